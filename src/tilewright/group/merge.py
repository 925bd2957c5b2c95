"""Merge axes that every access of a kernel walks as one.

In: a Kernel. Out: an equal Kernel with fewer axes. Invariant: after merging a (outer, extent A) and b (inner, extent B)
into one axis of extent A*B, every address is the same linear function of it.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import Kernel
from tilewright.ir.kernel import int_extent
from tilewright.ir.layout import Layout
from tilewright.ir.layout import Term
from tilewright.ir.program import Axis
from tilewright.ir.program import Definition
from tilewright.ir.ranges import coefficient
from tilewright.ir.ranges import simplify

__all__ = ["merge_axes"]


def merge_axes(kernel: Kernel) -> Kernel:
    """Merge pairs of axes until none is left to merge."""
    while True:
        for pair in _pairs(kernel):
            if _mergeable(kernel, *pair):
                kernel = _merge(kernel, *pair)
                break
        else:
            return kernel


def _pairs(kernel: Kernel) -> list[tuple[str, str]]:
    out: dict[tuple[str, str], None] = {}
    for d in kernel.definitions.values():
        for axes in (d.axes, d.reduction.axes if d.reduction else ()):
            names = [a.name for a in axes if int_extent(a.extent) > 1]
            for a in names:
                for b in names:
                    if a != b:
                        out.setdefault((a, b))
    return list(out)


def _mergeable(kernel: Kernel, a: str, b: str) -> bool:
    if (a in kernel.shared) != (b in kernel.shared):
        return False
    ext = kernel.extents[b]
    for d in kernel.definitions.values():
        out = {x.name for x in d.axes}
        red = {x.name for x in d.reduction.axes} if d.reduction else set()
        if {a, b} & (out | red) and not ({a, b} <= out or {a, b} <= red):
            return False
        if not {a, b} & (out | red):
            continue
        if d.scan is not None and d.scan[1] in (a, b):
            return False
        if d.reduction is not None and (d.reduction.guard is not None or d.reduction.monoid.startswith("arg")):
            return False
        if _outside_reads(d.body, {a, b}):
            return False
        ranges = {x.name: (0, max(0, int_extent(x.extent) - 1)) for x in d.all_axes}
        for r in d.reads():
            if not _walks(kernel, r, a, b, ext, ranges):
                return False
        if d.name in kernel.layout_of and {a, b} <= out:
            layout = kernel.layout_of[d.name]
            names = [x.name for x in d.axes]
            sa, sb = layout.stride(names.index(a)), layout.stride(names.index(b))
            if sa is None or sb is None or sa != sb * ext or layout.halo:
                return False
    return True


def _outside_reads(e: Expr, names: set[str]) -> bool:
    """Is an index used other than in a subscript?"""
    if e.op == "index":
        return e.attr in names
    if e.op == "read":
        subs = e.args[:-1] if e.attr[1] else e.args
        inner = any(_outside_reads(r, names) for s in subs for r in s.reads())
        return inner or (e.attr[1] and _outside_reads(e.args[-1], names))
    return any(_outside_reads(x, names) for x in e.args)


def _walks(kernel: Kernel, r: Expr, a: str, b: str, ext: int, ranges: dict[str, tuple[int, int]]) -> bool:
    subs = r.args[:-1] if r.attr[1] else r.args
    used = {x for s in subs for x in s.names("index")}
    if not {a, b} & used:
        return True
    if any(s.reads() for s in subs):
        return False
    layout = kernel.layout_of.get(r.attr[0])
    if layout is None:  # inside the kernel: both axes bare, in their own places
        d = kernel.definitions[r.attr[0]]
        here = [s.attr if s.op == "index" else None for s in subs]
        own = [x.name for x in d.axes]
        if a in here and b in here:
            return {own[here.index(a)], own[here.index(b)]} == {a, b} and own[here.index(a)] == a
        return False
    if r.attr[1]:
        return False
    address = simplify(layout.address(subs), ranges)
    ca, cb = coefficient(address, E.index(a)), coefficient(address, E.index(b))
    return ca is not None and cb is not None and ca == cb * ext


def _merge(kernel: Kernel, a: str, b: str) -> Kernel:
    """a and b become the one axis b."""
    ext = kernel.extents[b]
    merged = E.index(b)
    swap = {E.index(a): merged // ext, E.index(b): merged % ext}
    inside = set(kernel.definitions) - set(kernel.layout_of)
    narrowed = {
        n for n, d in kernel.definitions.items() if {a, b} <= {x.name for x in d.axes}
    }  # tensors that lose an axis

    def axes(xs: tuple[Axis, ...]) -> tuple[Axis, ...]:
        names = {x.name for x in xs}
        if not {a, b} <= names:
            return xs
        total = E.const(ext * next(int_extent(x.extent) for x in xs if x.name == a))
        return tuple(Axis(b, total) if x.name == b else x for x in xs if x.name != a)

    def go(e: Expr) -> Expr:
        memo: dict[Expr, Expr] = {}
        for r in e.reads():
            name, has_else = r.attr
            args = tuple(E.substitute(x, memo) for x in r.args)
            subs = args[:-1] if has_else else args
            if name in narrowed:  # written in this kernel: its tensor has lost axis a
                own = [x.name for x in kernel.definitions[name].axes]
                subs = tuple(merged if n == b else E.substitute(s, swap) for n, s in zip(own, subs, strict=True) if n != a)
            else:
                subs = tuple(E.substitute(s, swap) for s in subs)
            memo[r] = E.read(name, subs, r.dtype, args[-1] if has_else else None)
        return E.substitute(e, memo)

    def definition(d: Definition) -> Definition:
        if not {a, b} & {x.name for x in d.all_axes}:
            return d
        reduction = d.reduction
        if reduction is not None:
            reduction = replace(reduction, axes=axes(reduction.axes))
        return replace(d, axes=axes(d.axes), body=go(d.body), reduction=reduction)

    def layout(n: str, old: Layout) -> Layout:
        if n not in narrowed:
            return old
        names = [x.name for x in kernel.definitions[n].axes]
        at, to = names.index(a), names.index(b)
        shape = list(old.shape)
        shape[to] *= shape[at]
        del shape[at]
        terms = tuple(
            Term(t.axis - (t.axis > at), t.divisor, t.modulus, t.stride) for t in old.terms if t.axis != at
        )
        return replace(old, shape=tuple(shape), terms=terms)

    del inside
    body = tuple(definition(s) if isinstance(s, Definition) else s for s in kernel.program.body)
    program = replace(kernel.program, body=body)
    return replace(
        kernel, program=program, layouts=tuple((n, layout(n, x)) for n, x in kernel.layouts),
        shared=tuple(x for x in kernel.shared if not (x == a and b in kernel.shared)),
    )  # fmt: skip
