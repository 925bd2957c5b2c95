"""Split an axis whose quotient names a row of a reduction: what belongs to one row becomes an axis.

In: the body of a normalized Program. Out: an equal one. Invariants: a definition that reads
`u[n, c // k]`, u a reduction, has axes n, c // k and c % k afterwards, so that it shares rows with
the reduction (group/rows.py) and they stay in cache; its own name is the rearrangement of the new
tensor into its own axes, which is a view (group/layouts.py). Pointwise definitions that read it
element by element follow.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import Axis, Definition, Statement
from tilewright.ir.ranges import simplify

__all__ = ["is_view_of_rows", "split_quotients"]

_WORTH = 1 << 14  # elements: below that everything is in cache anyway


def split_quotients(
    body: list[Statement], shapes: dict[str, tuple[int, ...]], taken: set[str]
) -> list[Statement]:
    """See the module docstring; shapes of new tensors are entered."""
    rows: set[str] = set()  # reductions, what follows from them, and what was split by them
    moved: dict[str, Expr] = {}  # split tensor -> its element at axes 0, 1, ... as a read
    out: list[Statement] = []
    for s in body:
        if not isinstance(s, Definition):
            out.append(s)
            continue
        if s.reduction is not None or s.scan is not None:
            if s.reduction is not None:
                rows.add(s.name)
            out.append(s)
            continue
        d = _following(s, moved)
        found = _quotient(d, rows)
        if found is None:
            if any(r.attr[0] in rows and shapes[r.attr[0]] == shapes[d.name] for r in d.reads()):
                rows.add(d.name)  # what a reduction gives, divided by a number
            out.append(s)
            continue
        name = f"{d.name}_rows"
        while name in taken:
            name += "_"
        taken.add(name)
        new, view = _split(d, name, *found)
        out += [new, view]
        shapes[name] = tuple(int_extent(a.extent) for a in new.axes)
        rows.add(name)
        axes = {a.index: E.index(f"#{k}") for k, a in enumerate(view.axes)}
        moved[d.name] = E.substitute(view.body, axes)
    return out


def is_view_of_rows(d: Definition) -> bool:
    """Is it the rearrangement of a split tensor into the axes that it was split from?"""
    e = d.body
    if e.op != "read" or e.attr[1] or d.reduction is not None or d.scan is not None:
        return False
    subs = [s for s in e.args if s.op != "index"]
    if len(subs) != 2 or len({s.attr for s in e.args if s.op == "index"}) + 1 != len(d.axes):
        return False
    a, b = subs
    return (a.op, b.op) == ("floordiv", "mod") and a.args == b.args and a.args[0].op == "index"


def _following(d: Definition, moved: Mapping[str, Expr]) -> Definition:
    """The definition with reads of split tensors, element by element, as reads of what they are."""
    swap = {}
    for r in d.reads():
        if r.attr[0] in moved and not r.attr[1] and all(s.op == "index" for s in r.args):
            places = {E.index(f"#{k}"): s for k, s in enumerate(r.args)}
            swap[r] = E.substitute(moved[r.attr[0]], places)
    return replace(d, body=E.substitute(d.body, swap)) if swap else d


def _quotient(d: Definition, rows: set[str]) -> tuple[str, int] | None:
    """(axis, divisor) of a quotient of an axis by which a row is read; None where there is none, or
    another one as well.
    """
    extents = {a.name: int_extent(a.extent) for a in d.axes}
    if any(map(is_symbolic, extents.values())):
        return None
    size = 1
    for n in extents.values():
        size *= n
    found: dict[str, set[int]] = {}
    for r in d.reads():
        for s in r.args[: len(r.args) - r.attr[1]] if r.attr[0] in rows else ():
            if s.op == "floordiv" and s.args[0].op == "index":
                found.setdefault(s.args[0].attr, set()).add(E.int_value(s.args[1]) or 0)
    if size < _WORTH or len(found) != 1:
        return None
    ((axis, by),) = found.items()
    k = next(iter(by))
    if len(by) != 1 or k < 2 or axis not in extents or extents[axis] % k or extents[axis] <= k:
        return None
    return axis, k


def _split(d: Definition, name: str, axis: str, k: int) -> tuple[Definition, Definition]:
    """The definition over quotient and remainder of an axis, and the view of it over the axis."""
    names = {a.name for a in d.axes}
    inner = f"{axis}_in"
    while inner in names:
        inner += "_"
    axes: list[Axis] = []
    subscripts: list[Expr] = []
    for a in d.axes:
        if a.name == axis:
            axes += [Axis(axis, E.const(int_extent(a.extent) // k)), Axis(inner, E.const(k))]
            subscripts += [a.index // k, a.index % k]
        else:
            axes.append(a)
            subscripts.append(a.index)
    ranges = {a.name: (0, int_extent(a.extent) - 1) for a in axes}
    whole = E.index(axis) * k + E.index(inner)
    body = simplify(E.substitute(d.body, {E.index(axis): whole}), ranges)
    new = replace(d, name=name, axes=tuple(axes), body=body)
    return new, replace(d, body=E.read(name, subscripts, d.dtype))
