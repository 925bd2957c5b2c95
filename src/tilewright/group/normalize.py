"""Bring a bound Program into the form that grouping works on.

In: a Program whose dims are bound, or assumed (ir/extent.py). Out: an equal Program. Invariants
afterwards: no read has an `else` that interval arithmetic shows to be dead; a log-sum-exp is its
three definitions; definitions that nothing needs are gone; definitions that only move elements are
inlined into their readers where the subscripts stay quasi-affine; what is computed row by row has
an axis for the rows (group/quotients.py).
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tilewright.group.quotients import split_quotients
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import (
    Axis,
    Definition,
    Program,
    Recurrence,
    Reduction,
    Scatter,
    Statement,
    defined_by,
    statement_reads,
)
from tilewright.ir.ranges import Ranges, interval, is_inside, simplify

__all__ = [
    "axis_ranges", "inline_choices", "inline_reads", "is_plain_read", "normalize",
    "statement_reads", "tidy",
]  # fmt: skip


def axis_ranges(axes: Iterable[Axis]) -> dict[str, tuple[int, int]]:
    """Inclusive ranges of axes; an empty axis counts as one point, so intervals are defined."""
    return {a.name: (0, max(0, (int_extent(a.extent) or 1) - 1)) for a in axes}


def tidy(e: Expr, ranges: Ranges, shapes: dict[str, tuple[int, ...]]) -> Expr:
    """Simplify under the ranges, and drop the `else` of reads that are always inside."""
    e = simplify(e, ranges)
    swap: dict[Expr, Expr] = {}
    for r in e.reads():
        if r.attr[1]:
            shape = shapes[r.attr[0]]
            inside = True
            for s, n in zip(r.args, shape, strict=False):
                lo, hi = interval(s, ranges)
                if lo is None or hi is None or is_symbolic(n):
                    inside = inside and is_inside(s, 0, n, ranges)
                else:
                    inside = inside and lo >= 0 and hi < n
            if inside:
                swap[r] = E.read(r.attr[0], r.args[:-1], r.dtype)
    return E.substitute(e, swap) if swap else e


def _shapes(p: Program) -> dict[str, tuple[int, ...]]:
    return {t.name: tuple(int_extent(n) for n in t.shape) for t in p.tensors.values()}


def _tidy_definition(d: Definition, shapes: dict[str, tuple[int, ...]]) -> Definition:
    ranges = axis_ranges(d.all_axes)
    r = d.reduction
    if r is not None and r.guard is not None:
        guard: Expr | None = tidy(r.guard, ranges, shapes)
        guard = None if guard is not None and guard.op == "const" and guard.attr else guard
        r = Reduction(r.monoid, r.axes, guard)
    if r is not None and not r.axes and r.guard is None and r.monoid not in ("argmax", "argmin"):
        r = None
    if r is not None and r.guard is None and r.monoid.startswith("arg") and _is_one(r.axes):
        return replace(d, body=E.const(0, d.dtype), reduction=None)
    body = tidy(d.body, ranges, shapes)
    whole = r is not None and r.guard is not None
    return replace(d, body=_protect(body, whole, ranges, shapes), reduction=r)


def _is_one(axes: Iterable[Axis]) -> bool:
    """Is there one position in all?"""
    return all(int_extent(a.extent) == 1 for a in axes)


def _protect(e: Expr, whole: bool, ranges: Ranges, shapes: dict[str, tuple[int, ...]]) -> Expr:
    """`else 0` for reads that only a condition keeps inside: their value is not used elsewhere, but
    the address may not be touched. `whole`: all of `e` stands under the guard of a reduction.
    """
    swap: dict[Expr, Expr] = {}
    for r in e.reads() if whole else _conditional_reads(e):
        if r.attr[1]:
            continue
        zero = E.const(False, r.dtype) if r.dtype is BOOL else E.const(0, r.dtype)
        padded = tidy(E.read(r.attr[0], r.args, r.dtype, zero), ranges, shapes)
        if padded.attr[1]:
            swap[r] = padded
    while swap:  # a read may stand in the subscripts of another: outer ones first
        new = E.substitute(e, swap)
        if new is e:
            break
        e = new
    return e


def _conditional_reads(e: Expr) -> list[Expr]:
    """Reads that stand on a side of a `where`."""
    out: dict[Expr, None] = {}
    for n in e.walk():
        if n.op == "select":
            out.update((r, None) for side in n.args[1:] for r in side.reads())
    return list(out)


def _expand_logsumexp(d: Definition, taken: set[str]) -> list[Definition]:
    """m = max x; s = sum exp(x - m); m + log s, with m replaced by 0 where it is infinite."""

    def fresh(suffix: str) -> str:
        name = f"{d.name}_{suffix}"
        while name in taken:
            name += "_"
        taken.add(name)
        return name

    assert d.reduction is not None
    subs = [a.index for a in d.axes]
    top, total = fresh("max"), fresh("sum")
    m = E.read(top, subs, d.dtype)
    zero = E.const(0, d.dtype)
    safe = E.select(E.unary("isinf", m), zero, m)
    first = Definition(top, d.dtype, d.axes, d.body, replace(d.reduction, monoid="max"))
    body = E.unary("exp", E.sub(d.body, safe))
    second = Definition(total, d.dtype, d.axes, body, replace(d.reduction, monoid="sum"))
    infinite = E.logical("and", E.unary("isinf", m), E.compare("lt", zero, m))
    out = E.select(infinite, m, E.add(safe, E.unary("log", E.read(total, subs, d.dtype))))
    return [first, second, Definition(d.name, d.dtype, d.axes, out)]


def is_plain_read(r: Expr, extents: dict[str, int], shape: tuple[int, ...]) -> bool:
    """Are the subscripts distinct bare index variables (0 for axes of extent 1) that cover the
    whole tensor?
    """
    seen: set[str] = set()
    for s, n in zip(r.args, shape, strict=False):
        if s.op == "index" and s.attr not in seen and extents.get(s.attr) == n:
            seen.add(s.attr)
        elif not (n == 1 and E.int_value(s) == 0):
            return False
    return True


def _body_at(d: Definition, r: Expr) -> tuple[tuple[Expr, ...], Expr]:
    """The subscripts of a read of `d`, and d's body there."""
    subs = r.args[:-1] if r.attr[1] else r.args
    return subs, E.substitute(d.body, {a.index: s for a, s in zip(d.axes, subs, strict=True)})


def inline_reads(e: Expr, d: Definition, shape: tuple[int, ...]) -> Expr | None:
    """`e` with every read of pointwise `d` replaced by d's body; None where an `else` stands in the
    way.
    """
    swap: dict[Expr, Expr] = {}
    for r in e.reads():
        if r.attr[0] != d.name:
            continue
        _, body = _body_at(d, r)
        if r.attr[1]:
            inner = d.body
            extents = {a.name: int_extent(a.extent) for a in d.axes}
            checked = {s.attr for s in inner.args if s.op == "index"}
            if (
                inner.op != "read"
                or inner.attr[1]
                or not is_plain_read(inner, extents, shape)
                or not checked >= set(extents)  # each subscript decides whether `else` holds
            ):
                return None
            body = E.read(body.attr[0], body.args, body.dtype, r.args[-1])
        swap[r] = body
    # A replaced read may sit inside another replaced read's subscripts: substitution is top down,
    # so repeat.
    out = E.substitute(e, swap)
    return out if not any(r.attr[0] == d.name for r in out.reads()) else inline_reads(out, d, shape)


def inline_choices(
    e: Expr, d: Definition, ranges: Ranges, shapes: dict[str, tuple[int, ...]]
) -> Expr:
    """`e`, which chooses among operands by position, with every read of pointwise `d` replaced by
    d's body, or by what stands for it outside of d.
    """
    swap: dict[Expr, Expr] = {}
    for r in e.reads():
        if r.attr[0] != d.name:
            continue
        subs, body = _body_at(d, r)
        for s, a in zip(subs, d.axes, strict=True):
            n = int_extent(a.extent)
            if r.attr[1] and not is_inside(s, 0, n, ranges):
                inside = E.logical(
                    "and", E.compare("le", E.const(0), s), E.compare("lt", s, E.const(n))
                )
                body = E.select(inside, body, r.args[-1])
        swap[r] = body
    return _protect(E.substitute(e, swap), False, ranges, shapes)


def _is_movement(d: Definition) -> bool:
    """Does it only move elements (a read, or a constant, without arithmetic on data)?"""
    if d.reduction is not None or d.scan is not None:
        return False
    b = d.body
    if b.op == "const":
        return True
    return b.op == "read" and not b.attr[1] and not any(s.reads() for s in b.args)


def _divides(e: Expr) -> int:
    return sum(n.op in ("floordiv", "mod") and n.dtype is I64 for n in e.walk())


def _inline_movement(
    body: list[Statement], keep: set[str], shapes: dict[str, tuple[int, ...]]
) -> list[Statement]:
    """Replace reads of moving definitions by reads of what they move."""
    moving: dict[str, Definition] = {}
    out: list[Statement] = []
    for s in body:
        if isinstance(s, Definition):
            s = _inline_into(s, moving, shapes)
            if _is_movement(s):
                moving[s.name] = s
        elif isinstance(s, Recurrence):
            s = Recurrence(s.axis, tuple(_inline_into(d, moving, shapes) for d in s.definitions))
        elif isinstance(s, Scatter):
            ranges = axis_ranges(s.source)

            def go(e: Expr, ranges: Ranges = ranges) -> Expr:
                return _inline_expr(e, moving, ranges, shapes, 99)

            subscripts = tuple(map(go, s.subscripts))
            s = replace(s, body=go(s.body), subscripts=subscripts, base=go(s.base))
        out.append(s)
    return out


def _inline_expr(
    e: Expr,
    moving: dict[str, Definition],
    ranges: Ranges,
    shapes: dict[str, tuple[int, ...]],
    allowed: int,
) -> Expr:
    for name in dict.fromkeys(r.attr[0] for r in e.reads()):
        d = moving.get(name)
        if d is None:
            continue
        source = d.body.attr[0] if d.body.op == "read" else ""
        new = inline_reads(e, d, shapes.get(source, ()))
        if new is None:
            continue
        new = tidy(new, ranges, shapes)
        if _divides(new) <= max(allowed, _divides(e)):
            e = new
    return e


def _inline_into(
    d: Definition, moving: dict[str, Definition], shapes: dict[str, tuple[int, ...]]
) -> Definition:
    ranges = axis_ranges(d.all_axes)
    # A reduction reads each element many times, so divisions in its subscripts are paid many times
    # over; so are they in a definition that computes. One that only moves data itself may collect
    # them.
    allowed = 99 if _is_movement(d) else 0
    body = _inline_expr(d.body, moving, ranges, shapes, allowed)
    r = d.reduction
    if r is not None and r.guard is not None:
        r = replace(r, guard=_inline_expr(r.guard, moving, ranges, shapes, 99))
    return replace(d, body=body, reduction=r)


def _live(body: list[Statement], results: Iterable[str]) -> list[Statement]:
    needed = set(results)
    out: list[Statement] = []
    for s in reversed(body):
        if any(t.name in needed for t in defined_by(s)):
            needed |= statement_reads(s)
            out.append(s)
    return out[::-1]


def _parts(d: Definition, shapes: dict[str, tuple[int, ...]], taken: set[str]) -> list[Definition]:
    """The tidied definition, or the definitions that it stands for."""
    parts = [d]
    if d.reduction is not None and d.reduction.monoid == "logsumexp":
        parts = _expand_logsumexp(d, taken)
        shapes.update((x.name, shapes[d.name]) for x in parts)
    return [_tidy_definition(x, shapes) for x in parts]


def _finished_reads(d: Definition, group: Recurrence) -> Definition:
    """Spell out which steps of the group's tensors `d` may read: where a subscript may name a step
    that is not finished, the `else` of the read holds there.
    """
    names = [x.name for x in group.definitions]
    earlier = set(names[: names.index(d.name)])
    step = group.axis.index

    def go(e: Expr) -> Expr:
        memo: dict[Expr, Expr] = {}
        for r in e.reads():
            args = tuple(E.substitute(a, memo) for a in r.args)
            subs, orelse = (args[:-1], args[-1]) if r.attr[1] else (args, None)
            new = E.read(r.attr[0], subs, r.dtype, orelse)
            if r.attr[0] in names and orelse is not None:
                behind = E.int_value(simplify(subs[0] - step, {}))
                if behind is None or behind > -(r.attr[0] not in earlier):
                    bound = step + 1 if r.attr[0] in earlier else step
                    new = E.select(E.compare("lt", subs[0], bound), new, orelse)
            memo[r] = new
        return E.substitute(e, memo)

    r = d.reduction
    if r is not None and r.guard is not None:
        r = replace(r, guard=go(r.guard))
    return replace(d, body=go(d.body), reduction=r)


def normalize(p: Program) -> Program:
    """See the module docstring. Errors: P001 where an extent is still symbolic."""
    shapes = _shapes(p)
    taken = set(p.tensors)
    body: list[Statement] = []
    for s in p.body:
        if isinstance(s, Definition):
            body += _parts(s, shapes, taken)
        elif isinstance(s, Recurrence):
            known = [_finished_reads(d, s) for d in s.definitions]
            parts = [x for d in known for x in _parts(d, shapes, taken)]
            body.append(Recurrence(s.axis, tuple(parts)))
        elif isinstance(s, Scatter):
            inner, outer = axis_ranges(s.source), axis_ranges(s.axes)
            value = _protect(s.body, False, inner, shapes)
            body.append(replace(s, body=value, base=_protect(s.base, False, outer, shapes)))
        else:
            body.append(s)
    body = _live(body, p.results)
    body = _inline_movement(body, set(p.results), shapes)
    body = _live(split_quotients(_live(body, p.results), shapes, taken), p.results)
    used = {n for s in body for n in statement_reads(s)} | set(p.results)
    constants = tuple((t, k) for t, k in p.constants if t.name in used)
    return replace(p, body=tuple(body), constants=constants)
