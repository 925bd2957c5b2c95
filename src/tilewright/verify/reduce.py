"""Automatic reduction: a smaller case that fails in the same way.

In: a failing `Case` and a test of failure. Out: the smallest case found within the time.
Invariants: every case that is tried parses and verifies; the result fails.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator
from dataclasses import replace

from tilewright.errors import TilewrightError
from tilewright.ir import expr as E
from tilewright.ir.binding import size_of
from tilewright.ir.dtypes import BOOL
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    Axis,
    Definition,
    Program,
    Recurrence,
    Scatter,
    Size,
    Statement,
    Tensor,
    defined_by,
    statement_dims,
    statement_reads,
)
from tilewright.ir.program_parser import parse_program
from tilewright.verify.programs import Case

__all__ = ["reduce_case"]

Fails = Callable[[Case], bool]


def reduce_case(case: Case, fails: Fails, seconds: float = 20.0) -> Case:
    """Shrink `case` while `fails` holds, trying the largest steps first, until nothing helps."""
    deadline = time.monotonic() + seconds
    tried: set[str] = set()
    progress = True
    while progress and time.monotonic() < deadline:
        progress = False
        for steps in (_results, _statements, _sizes, _expressions, _dims):
            while (smaller := _first(case, steps, fails, tried, deadline)) is not None:
                case, progress = smaller, True
    return case


def _first(
    case: Case,
    steps: Callable[[Case], Iterator[Case]],
    fails: Fails,
    tried: set[str],
    deadline: float,
) -> Case | None:
    """The first smaller case that still fails."""
    candidates = steps(case)
    while time.monotonic() < deadline:
        try:
            found = next(candidates, None)
            if found is None:
                return None
            text = str(found)
            if text in tried:
                continue
            tried.add(text)
            # Through text, so that names are sizes and everything is verified.
            found = replace(found, program=parse_program(str(found.program)))
        except TilewrightError:
            continue
        if fails(found):
            return found
    return None


def _clean(case: Case, **changes: object) -> Case:
    """The case with changes to its program, without statements and inputs that nothing needs."""
    p: Program = replace(case.program, **changes)  # type: ignore[arg-type]
    wanted = set(p.results)
    named: set[str] = set()
    body: list[Statement] = []
    for s in reversed(p.body):
        if s.name in named if isinstance(s, Size) else wanted & {t.name for t in defined_by(s)}:
            wanted |= statement_reads(s)
            named |= statement_dims(s)
            body.append(s)
    body.reverse()
    inputs = tuple(t for t in p.inputs if t.name in wanted)
    used = {d for t in inputs for e in t.shape for d in e.names("dim")}
    values = {n: v for n, v in case.sizes.items() if n not in used}
    p = replace(p, inputs=inputs, body=tuple(body)).bind(values)
    sizes = {n: v for n, v in case.sizes.items() if n in used}
    dims = tuple(d for d in p.dims if d.name in used)
    names = {t.name for t in inputs}
    known = tuple(n for n in case.constants if n in names)
    return Case(replace(p, dims=dims), sizes, case.seed, constants=known)


def _results(case: Case) -> Iterator[Case]:
    """Without constants; fewer results."""
    if case.constants:
        yield replace(case, constants=())
    names = case.program.results
    if len(names) > 1:
        for n in names:
            yield _clean(case, results=(n,))
        for n in names:
            yield _clean(case, results=tuple(x for x in names if x != n))


def _statements(case: Case) -> Iterator[Case]:
    """Make a defined tensor an input, or make it the result."""
    p = case.program
    for k, s in enumerate(p.body):
        for t in defined_by(s):
            if t.name not in p.results:
                yield _clean(case, results=(t.name,))
        made = tuple(t for t in defined_by(s))
        if not any(t.name in p.results for t in made):
            yield _clean(case, inputs=(*p.inputs, *made), body=p.body[:k] + p.body[k + 1 :])
    for k, s in enumerate(p.body):
        if isinstance(s, Recurrence) and len(s.definitions) > 1:
            for d in s.definitions:
                rest = tuple(x for x in s.definitions if x is not d)
                body = (*p.body[:k], replace(s, definitions=rest), *p.body[k + 1 :])
                inputs = (*p.inputs, Tensor(d.name, d.dtype, d.shape))
                yield _clean(case, inputs=inputs, body=body)


def _sizes(case: Case) -> Iterator[Case]:
    for n, v in case.sizes.items():
        for smaller in sorted({1, 2, 3, v // 2, v - 1}):
            if 0 < smaller < v:
                yield replace(case, sizes={**case.sizes, n: smaller})
    shapes = [e for t in case.program.tensors.values() for e in t.shape]
    extents = {x for e in shapes if (x := E.int_value(e)) is not None}
    for v in sorted(extents, reverse=True):
        for smaller in sorted({1, 2, 3, v // 2, v - 1}):
            if 0 < smaller < v:
                yield _resized(case, v, smaller)


def _resized(case: Case, old: int, new: int) -> Case:
    """Every constant extent `old` becomes `new`."""

    def extent(e: Expr) -> Expr:
        return E.const(new) if E.int_value(e) == old else e

    def axes(xs: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis(a.name, extent(a.extent)) for a in xs)

    def definition(d: Definition) -> Definition:
        r = d.reduction
        if r is not None:
            r = replace(r, axes=axes(r.axes))
        return replace(d, axes=axes(d.axes), reduction=r)

    body: list[Statement] = []
    for s in case.program.body:
        match s:
            case Definition():
                body.append(definition(s))
            case Recurrence():
                axis = Axis(s.axis.name, extent(s.axis.extent))
                body.append(Recurrence(axis, tuple(map(definition, s.definitions))))
            case Scatter():
                body.append(replace(s, axes=axes(s.axes), source=axes(s.source)))
            case _:
                body.append(s)
    inputs = tuple(replace(t, shape=tuple(map(extent, t.shape))) for t in case.program.inputs)
    return _clean(case, inputs=inputs, body=tuple(body))


def _expressions(case: Case) -> Iterator[Case]:
    """Replace a node by an operand of it or by a constant; drop guards, scans and unused axes."""
    p = case.program
    for k, s in enumerate(p.body):

        def put(new: Statement, k: int = k) -> Case:
            return _clean(case, body=(*p.body[:k], new, *p.body[k + 1 :]))

        if isinstance(s, Definition):
            yield from map(put, _simpler(s))
        elif isinstance(s, Recurrence):
            for j, d in enumerate(s.definitions):
                for new in _simpler(d):
                    group = (*s.definitions[:j], new, *s.definitions[j + 1 :])
                    yield put(replace(s, definitions=group))
        elif isinstance(s, Scatter):
            for body in _smaller(s.body):
                yield put(replace(s, body=body))
            if s.base.op != "const":
                yield put(replace(s, base=E.const(0, s.dtype)))


def _simpler(d: Definition) -> Iterator[Definition]:
    if d.scan is not None:
        yield replace(d, scan=None)
    r = d.reduction
    if r is not None:
        if r.guard is not None:
            yield replace(d, reduction=replace(r, guard=None))
            for g in _smaller(r.guard):
                yield replace(d, reduction=replace(r, guard=g))
        if r.monoid not in ("sum", "argmax", "argmin") and d.body.dtype is not BOOL:
            yield replace(d, reduction=replace(r, monoid="sum"))
        parts = list(d.expressions())
        used = set().union(*(e.names("index") for e in parts))
        kept = tuple(a for a in r.axes if a.name in used)
        if kept and len(kept) < len(r.axes):
            yield replace(d, reduction=replace(r, axes=kept))
        if r.monoid not in ("argmax", "argmin"):
            zero = {a.index: E.const(0) for a in r.axes}
            yield replace(d, body=E.substitute(d.body, zero), reduction=None)
    for body in _smaller(d.body):
        yield replace(d, body=body)


def _smaller(e: Expr) -> Iterator[Expr]:
    """The expression with one node replaced by something simpler, outermost first."""
    for node in reversed(list(e.walk())):
        if node.op in ("const", "index", "dim"):
            continue
        options: list[Expr] = []
        if node.op == "read":
            if node.attr[1]:
                options.append(E.read(node.attr[0], node.args[:-1], node.dtype))
        else:
            options += [a for a in node.args if a.dtype is node.dtype]
        options += [E.const(v, node.dtype) for v in (0, 1)]
        for option in options:
            new = E.substitute(e, {node: option})
            if new is not e:
                yield new


def _dims(case: Case) -> Iterator[Case]:
    """Sizes as constants, constants as inputs, expressions in shapes folded."""
    for n in case.constants:
        yield replace(case, constants=tuple(x for x in case.constants if x != n))
    for n in case.sizes:
        bound = case.program.bind({n: case.sizes[n]})
        yield _clean(replace(case, program=bound), inputs=bound.inputs)
    p = case.program
    if any(e.op not in ("const", "dim") for t in p.inputs for e in t.shape):
        folded = tuple(
            replace(t, shape=tuple(E.const(size_of(e, case.sizes)) for e in t.shape))
            for t in p.inputs
        )
        yield _clean(case, inputs=folded)
