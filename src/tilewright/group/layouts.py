"""Choose one layout per tensor that kernels exchange.

In: groups and definitions of a normalized Program. Out: tensor -> `Layout`, and which tensors share
one buffer. Invariants: inputs and results are row-major; constants are row-major here (a schedule
may pack them); a halo is added only to tensors that kernels write, and holds the one value that
padded readers expect.

The rule is structural: what a contraction with a constant operand produces is stored with its
n-like axes innermost (they are the lanes), and everything that only moves or combines elements
follows the order of its largest operand.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from math import prod

import numpy as np

from tilewright.group.groups import Group, is_contraction
from tilewright.group.normalize import axis_ranges, statement_reads
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.kernel import int_extent
from tilewright.ir.layout import Layout, Term, dense, ordered, panels
from tilewright.ir.program import Definition, Extern, If, Program, While
from tilewright.ir.ranges import Ranges, interval, nonnegative
from tilewright.ir.scalar import evaluate
from tilewright.ir.words import word_axis

__all__ = ["choose_layouts"]

LINE = 64  # bytes
TAPS = 4  # positions of a window that pay for a line, or a page, of their own
_MOST_PAST = 16  # positions past an axis of open size that are asked for
VIEW_LIMIT = 1 << 22  # elements up to which a view is searched for


def choose_layouts(
    p: Program, groups: Sequence[Group], definitions: dict[str, Definition]
) -> tuple[dict[str, Layout], dict[str, str]]:
    """Layouts of all border tensors, and `alias`: tensors that are stored in another tensor's
    buffer.
    """
    shapes = {t.name: tuple(int_extent(n) for n in t.shape) for t in p.tensors.values()}
    fixed = {t.name for t in p.inputs} | {t.name for t, _ in p.constants} | set(p.results)
    layouts = {n: dense(shapes[n]) for n in fixed}
    for g in groups:
        if isinstance(g.statement, Extern | If | While):  # what they read is row-major too
            fixed |= statement_reads(g.statement)
            layouts.update((n, dense(shapes[n])) for n in statement_reads(g.statement))
        if g.statement is not None:
            layouts.update((n, dense(shapes[n])) for n in g.names())
    constants = {t.name for t, _ in p.constants}
    readers = _readers(groups, definitions)
    homes = {n: g for g in groups for n in g.names()}
    border = {n for n in readers if any(g is not homes.get(n) for g in readers[n])} | fixed
    orders: dict[str, list[int]] = {}
    for g in groups:
        if g.statement is not None:
            continue
        for n in g.names():
            if n in layouts or n not in border:
                continue
            if g.stored:
                layouts[n] = _in_panels(shapes[n], definitions[n].dtype.bytes)
                continue
            orders[n] = _order(definitions[n], g, definitions, constants, layouts, shapes)
            inner = _words(n, readers[n], definitions)
            if inner is None and _is_copy(definitions[n]):
                inner = _depth(n, readers[n], definitions, constants)
            if inner is not None:
                orders[n] = [i for i in orders[n] if i != inner] + [inner]
            layouts[n] = ordered(shapes[n], orders[n])
    alias = _views(homes, groups, definitions, layouts, readers, fixed, shapes)
    for n, order in orders.items():
        if n not in alias and n not in alias.values():
            halo = _halo(n, readers.get(n, ()), definitions, shapes[n])
            if halo is not None:
                layouts[n] = ordered(shapes[n], order, *halo)
    return layouts, alias


def _in_panels(shape: tuple[int, ...], element_bytes: int) -> Layout:
    """Row-major, but cut along the last axis, so that a tile's rows lie side by side: apart, each
    of them is on a page of its own, in one set of the first level of cache."""
    last, width = len(shape) - 1, 2 * LINE // element_bytes
    return panels(shape, last, width, [last - 1]) if shape[last] > width else dense(shape)


def _readers(groups: Sequence[Group], definitions: dict[str, Definition]) -> dict[str, list[Group]]:
    out: dict[str, list[Group]] = {}
    for g in groups:
        if g.statement is not None:
            names = statement_reads(g.statement) | set(g.names())
        else:
            names = {r.attr[0] for m in g.names() for r in definitions[m].reads()}
        for n in names:
            out.setdefault(n, []).append(g)
    return out


def _order(
    d: Definition,
    g: Group,
    definitions: dict[str, Definition],
    constants: set[str],
    layouts: dict[str, Layout],
    shapes: dict[str, tuple[int, ...]],
) -> list[int]:
    """Axes of d's tensor, outermost first."""
    axes = [a.name for a in d.axes]
    anchor = next(definitions[s.anchor] for s in g.stages if d.name in s.members)
    if is_contraction(anchor):
        inner = _constant_axes(anchor, constants)
        inner = [a for a in inner if a in axes]
        # They are worth being innermost where they fill a cache line.
        if prod(_extent(d, a) for a in inner) * d.dtype.bytes >= LINE:
            return [axes.index(a) for a in axes if a not in inner] + [axes.index(a) for a in inner]
        if not any(r.attr[0] in constants for r in anchor.body.reads()):
            return list(range(len(axes)))
    best: tuple[int, list[int]] | None = None
    for m in (anchor, d):
        for r in m.reads():
            name = r.attr[0]
            if name in constants or name not in layouts:
                continue
            size = prod(shapes[name])
            found = _follow(r, layouts[name], axes)
            if len(found) == len([a for a in axes if _extent(d, a) > 1]) and (
                best is None or size > best[0]
            ):
                best = (size, found)
    if best is None:
        return list(range(len(axes)))
    rest = [i for i in range(len(axes)) if i not in best[1]]
    return rest + best[1]


def _words(name: str, readers: Sequence[Group], definitions: dict[str, Definition]) -> int | None:
    """The axis of a tensor that dot products of words want innermost, if they read it."""
    found = [
        word_axis(definitions[m], name) for g in readers if g.statement is None for m in g.names()
    ]
    return next((x for x in found if x is not None), None)


def _is_copy(d: Definition) -> bool:
    return d.reduction is None and d.scan is None and d.body.op == "read"


def _depth(
    name: str, readers: Sequence[Group], definitions: dict[str, Definition], constants: set[str]
) -> int | None:
    """The axis of a copy that the contractions which read it sum over, if lanes go along their
    constants: one position after the other is then read from few lines and pages. Many taps along
    the last axis do the same for it.
    """
    found: set[int | None] = set()
    for g in readers:
        for m in () if g.statement is not None else g.names():
            d = definitions[m]
            if name not in d.read_names:
                continue
            summed = {a.name for a in d.reduction.axes} if d.reduction is not None else set()
            lanes = prod(_extent(d, a) for a in _constant_axes(d, constants)) * d.dtype.bytes
            for r in d.reads():
                if r.attr[0] != name:
                    continue
                subs = r.args[: len(r.args) - r.attr[1]]
                deep = [
                    i
                    for i, s in enumerate(subs)
                    if s.op == "index" and s.attr in summed and _extent(d, s.attr) >= LINE // 4
                ]
                last = next((s for i, s in reversed([*enumerate(subs)]) if i not in deep), None)
                taps = set() if last is None else last.indices() & summed
                few = prod(_extent(d, a) for a in taps) < TAPS
                wide = is_contraction(d) and lanes >= LINE
                found.add(deep[0] if len(deep) == 1 and few and wide else None)
    return found.pop() if len(found) == 1 else None


def _extent(d: Definition, axis: str) -> int:
    return next(int_extent(a.extent) for a in d.all_axes if a.name == axis)


def _constant_axes(anchor: Definition, constants: set[str]) -> list[str]:
    """Output axes that only constant operands of a contraction use."""
    mine: set[str] = set()
    others: set[str] = set()
    for r in anchor.body.reads():
        used = {x for s in r.args for x in s.names("index")}
        if r.attr[0] in constants:
            mine |= used
        else:
            others |= used
    return [
        a.name
        for a in anchor.axes
        if a.name in mine and a.name not in others and int_extent(a.extent) > 1
    ]


def _follow(r: Expr, layout: Layout, axes: list[str]) -> list[int]:
    """Output axes in the memory order of what is read."""
    subs = r.args[: len(layout.shape)]
    terms = sorted(layout.terms, key=lambda t: -t.stride)
    out: list[int] = []
    for t in terms:
        for a in sorted(
            subs[t.axis].names("index"), key=lambda a: axes.index(a) if a in axes else -1
        ):
            if a in axes and axes.index(a) not in out:
                out.append(axes.index(a))
    return out


# ---- views ---------------------------------------------------------------------------------------


def _views(
    homes: dict[str, Group],
    groups: Sequence[Group],
    definitions: dict[str, Definition],
    layouts: dict[str, Layout],
    readers: dict[str, list[Group]],
    fixed: set[str],
    shapes: dict[str, tuple[int, ...]],
) -> dict[str, str]:
    """Tensors that can be written straight into the place of the definition that only rearranges
    them.
    """
    alias: dict[str, str] = {}
    for g in reversed(list(groups)):
        if g.statement is not None or len(g.names()) != 1:
            continue
        d = definitions[g.names()[0]]
        if d.reduction is not None or d.scan is not None or d.body.op != "read" or d.body.attr[1]:
            continue
        source = d.body.attr[0]
        home = homes.get(source)
        if (
            source in fixed
            or home is None
            or home.statement is not None
            or len(readers[source]) != 1
        ):
            continue
        if prod(shapes[source]) != prod(shapes[d.name]):
            continue
        if any(s.reads() for s in d.body.args):
            continue
        found = _inverse(d, layouts[d.name], shapes[source])
        if found is not None:
            layouts[source] = found
            alias[source] = alias.get(d.name, d.name)
            # Whatever was stored in `source` moves along.
            for k, v in list(alias.items()):
                if v == source:
                    alias[k] = alias[source]
    return alias


def _inverse(d: Definition, layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """The strided layout of the read tensor under which writing it is writing `d` in `layout`."""
    if layout.halo or prod(shape) == 0:
        return None
    if layout.is_symbolic or any(map(is_symbolic, shape)) or prod(shape) > VIEW_LIMIT:
        return _permuted(d, layout, shape)
    grids = np.meshgrid(
        *[np.arange(int_extent(a.extent)) for a in d.axes], indexing="ij", sparse=True
    )
    env = {a.name: g for a, g in zip(d.axes, grids, strict=True)}

    def go(e: Expr) -> np.ndarray:
        if e.op == "const":
            return np.asarray(e.attr, np.int64)
        if e.op == "index":
            return env[e.attr]
        return evaluate(e.op, [go(a) for a in e.args], e.dtype)

    where = np.full(shape, -1, np.int64)
    subs = np.broadcast_arrays(*[go(s) for s in d.body.args], np.zeros(d_shape(d), np.int64))[:-1]
    if any(s.min() < 0 or s.max() >= n for s, n in zip(subs, shape, strict=True)):
        return None
    where[tuple(subs)] = layout.addresses() if subs else layout.addresses().reshape(())
    if where.min() < 0:
        return None
    origin = int(where[(0,) * len(shape)])
    terms = []
    for axis, n in enumerate(shape):
        if n > 1:
            at = [0] * len(shape)
            at[axis] = 1
            terms.append(Term(axis, 1, 0, int(where[tuple(at)]) - origin))
    found = Layout(shape, tuple(terms), layout.size, origin)
    return found if np.array_equal(found.addresses(), where) else None


def _permuted(d: Definition, layout: Layout, shape: tuple[int, ...]) -> Layout | None:
    """`_inverse` for any size: the axes of `d` are those of what it reads, in another order, or
    the quotient and the remainder of one are two of these.
    """
    names = [a.name for a in d.axes]
    extents = {a.name: int_extent(a.extent) for a in d.axes}
    terms: list[Term] = []
    used: set[str] = set()
    halves: dict[str, dict[str, int]] = {}
    for axis, (s, n) in enumerate(zip(d.body.args, shape, strict=True)):
        if s.op == "index" and extents.get(s.attr) == n and s.attr not in used:
            used.add(s.attr)
            mine = [t for t in layout.terms if t.axis == names.index(s.attr)]
            terms += [replace(t, axis=axis) for t in mine]
        elif s.op in ("floordiv", "mod") and s.args[0].op == "index":
            name, by = s.args[0].attr, E.int_value(s.args[1])
            mine = [t for t in layout.terms if t.axis == names.index(name)]
            half = halves.setdefault(name, {})
            if by is None or s.op in half or len(mine) != 1:
                return None
            if mine[0].divisor != 1 or mine[0].modulus:
                return None
            half[s.op] = by
            if n != (by if s.op == "mod" else extents[name] // by) or extents[name] % by:
                return None
            times = by if s.op == "floordiv" else 1
            terms.append(replace(mine[0], axis=axis, stride=mine[0].stride * times))
        elif not (n == 1 and s is E.const(0)):
            return None
    if any(len(x) != 2 or len(set(x.values())) != 1 for x in halves.values()):
        return None
    if used & set(halves) or used | set(halves) != {a for a, n in extents.items() if n != 1}:
        return None
    return Layout(shape, tuple(terms), layout.size, layout.offset)


def d_shape(d: Definition) -> tuple[int, ...]:
    return tuple(int_extent(a.extent) for a in d.axes)


# ---- halos ---------------------------------------------------------------------------------------


def _halo(
    name: str, readers: Sequence[Group], definitions: dict[str, Definition], shape: tuple[int, ...]
) -> tuple[list[tuple[int, int]], float | int | bool] | None:
    """How far padded readers reach past the tensor, and the value they expect there; None where
    nothing is gained. readers: the groups that read it.
    """
    found: dict[float | int | bool, list[tuple[int, int]]] = {}
    weights: dict[float | int | bool, int] = {}
    for g in readers:
        if g.statement is not None:
            continue
        for m in g.names():
            d = definitions[m]
            if d.reduction is None or name not in d.read_names:
                continue
            ranges = axis_ranges(d.all_axes)
            for r in d.reads():
                if r.attr[0] != name or not r.attr[1] or r.args[-1].op != "const":
                    continue
                fill = r.args[-1].attr
                reach = found.setdefault(fill, [(0, 0)] * len(shape))
                for k, s in enumerate(r.args[:-1]):
                    past = _past(s, shape[k], ranges)
                    if past is None:
                        return None
                    before, after = reach[k]
                    reach[k] = (max(before, past[0]), max(after, past[1]))
                points = prod(int_extent(a.extent) for a in d.all_axes)
                weights[fill] = weights.get(fill, 0) + points
    if not found:
        return None
    fill = max(weights, key=lambda f: weights[f])
    reach = found[fill]
    wide = prod(n + a + b for n, (a, b) in zip(shape, reach, strict=True))
    return (reach, fill) if wide <= 2 * prod(shape) + 4096 else None


def _past(s: Expr, n: int, ranges: Ranges) -> tuple[int, int] | None:
    """How far a subscript reaches before the axis and past its end, whatever the sizes are; None
    where that is not known.
    """
    lo, hi = interval(s, ranges)
    if lo is not None and hi is not None and not is_symbolic(n):
        return max(-lo, 0), max(hi - n + 1, 0)
    steps = range(_MOST_PAST + 1)
    before = next((k for k in steps if nonnegative(s + k, ranges)), None)
    after = next((k for k in steps if nonnegative(E.const(n) + (k - 1) - s, ranges)), None)
    return None if before is None or after is None else (before, after)
