"""Reshape the axes of a kernel: split those that subscripts divide, merge those that every access
walks as one.

In: a Kernel. Out: an equal Kernel. Invariants: splitting axis v at c gives v = c*outer + inner, so
`v // c` and `v % c` become bare axes; after merging a (outer, extent A) and b (inner, extent B)
into one axis of extent A*B, every address is the same linear function of it.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import Kernel, int_extent
from tilewright.ir.layout import Layout, Term
from tilewright.ir.program import Axis, Definition
from tilewright.ir.ranges import coefficient, simplify

__all__ = ["merge_axes", "split_axes"]


def split_axes(kernel: Kernel) -> Kernel:
    """Split axes whose quotient or remainder by a constant occurs in a reduction's subscripts."""
    if not any(d.reduction is not None for d in kernel.definitions.values()):
        return kernel
    for _ in range(8):
        found = next((x for x in _divided(kernel) if _splittable(kernel, *x)), None)
        if found is None:
            return kernel
        kernel = _split(kernel, *found)
    return kernel


def _divided(kernel: Kernel) -> list[tuple[str, int]]:
    """(axis, divisor) of every `axis // c` and `axis % c` in a subscript."""
    out: dict[tuple[str, int], None] = {}
    for d in kernel.definitions.values():
        for r in d.reads():
            for s in r.args[: len(r.args) - r.attr[1]]:
                for n in s.walk():
                    if n.op in ("floordiv", "mod") and n.args[0].op == "index":
                        c = E.int_value(n.args[1])
                        if c is not None and c > 1:
                            out.setdefault((n.args[0].attr, c))
    return list(out)


def _splittable(kernel: Kernel, axis: str, c: int) -> bool:
    n = kernel.extents.get(axis, 0)
    if n % c or n <= c or axis in (*kernel.shared, kernel.sequence, kernel.stream):
        return False
    for d in kernel.definitions.values():
        if any(x.name == axis and int_extent(x.extent) != n for x in d.all_axes):
            return False
        out = [x.name for x in d.axes]
        if d.scan is not None and d.scan[1] == axis:
            return False
        if (
            d.reduction is not None
            and d.reduction.monoid.startswith("arg")
            and axis in {x.name for x in d.reduction.axes}
        ):
            return False
        layout = kernel.layout_of.get(d.name)
        if axis in out and layout is not None and layout.stride(out.index(axis)) is None:
            return False
        for r in d.reads():  # tensors made here are read at the very axis, or not split
            source = kernel.definitions.get(r.attr[0])
            if source is not None:
                subs = r.args[: len(r.args) - r.attr[1]]
                for s, own in zip(subs, source.axes, strict=True):
                    if (own.name == axis) != (s is E.index(axis)) or (
                        s is not E.index(axis) and axis in s.indices()
                    ):
                        return False
    return True


def _split(kernel: Kernel, axis: str, c: int) -> Kernel:
    """axis becomes axis (outer) and a new inner axis of extent c."""
    inner = f"{axis}_in"
    while inner in kernel.extents:
        inner += "_"
    swap = {E.index(axis): E.index(axis) * c + E.index(inner)}
    widened = {n for n, d in kernel.definitions.items() if axis in {x.name for x in d.axes}}

    def axes(xs: tuple[Axis, ...]) -> tuple[Axis, ...]:
        out: list[Axis] = []
        for x in xs:
            if x.name == axis:
                out += [Axis(axis, E.const(int_extent(x.extent) // c)), Axis(inner, E.const(c))]
            else:
                out.append(x)
        return tuple(out)

    def definition(d: Definition) -> Definition:
        if axis not in {x.name for x in d.all_axes}:
            return d
        new_axes = axes(d.axes)
        reduction = (
            replace(d.reduction, axes=axes(d.reduction.axes)) if d.reduction is not None else None
        )
        ranges = {
            x.name: (0, max(0, int_extent(x.extent) - 1))
            for x in (*new_axes, *(reduction.axes if reduction else ()))
        }

        def go(e: Expr) -> Expr:
            memo: dict[Expr, Expr] = {}
            for r in e.reads():
                if r.attr[0] in widened:
                    args = [E.substitute(x, memo) for x in r.args]
                    subs: list[Expr] = []
                    for x in args[: len(args) - r.attr[1]]:
                        subs += [E.index(axis), E.index(inner)] if x is E.index(axis) else [x]
                    memo[r] = E.read(r.attr[0], subs, r.dtype, args[-1] if r.attr[1] else None)
            # Reads that are done must not be substituted again: their subscripts name the new axes
            # already.
            done = {v: E.index(f"?{i}") for i, v in enumerate(memo.values())}
            hidden = {k: done[v] for k, v in memo.items()}
            out = E.substitute(_with_placeholders(e, hidden), swap)
            return simplify(_restore(out, {v: k for k, v in done.items()}), ranges)

        if reduction is not None and reduction.guard is not None:
            reduction = replace(reduction, guard=go(reduction.guard))
        return replace(d, axes=new_axes, body=go(d.body), reduction=reduction)

    def layout(n: str, old: Layout) -> Layout:
        if n not in widened:
            return old
        at = [x.name for x in kernel.definitions[n].axes].index(axis)
        shape = (*old.shape[:at], old.shape[at] // c, c, *old.shape[at + 1 :])
        terms = []
        for t in old.terms:
            if t.axis == at:
                terms += [Term(at, 1, 0, t.stride * c), Term(at + 1, 1, 0, t.stride)]
            else:
                terms.append(replace(t, axis=t.axis + (t.axis > at)))
        return Layout(shape, tuple(terms), old.size, old.offset)

    body = tuple(definition(s) if isinstance(s, Definition) else s for s in kernel.program.body)
    return replace(
        kernel,
        program=replace(kernel.program, body=body),
        layouts=tuple((n, layout(n, x)) for n, x in kernel.layouts),
    )


def _with_placeholders(e: Expr, hidden: dict[Expr, Expr]) -> Expr:
    """`e` with finished reads standing aside as placeholder leaves of their dtype."""
    return E.substitute(e, {k: _placeholder(v, k) for k, v in hidden.items()})


def _placeholder(mark: Expr, like: Expr) -> Expr:
    return E.read(mark.attr, (), like.dtype)


def _restore(e: Expr, finished: dict[Expr, Expr]) -> Expr:
    back = {E.read(mark.attr, (), value.dtype): value for mark, value in finished.items()}
    return E.substitute(e, back)


def merge_axes(kernel: Kernel) -> Kernel:
    """Merge pairs of axes until none is left to merge."""
    while True:
        addresses: dict[tuple[str, Expr], Expr] = {}
        for pair in _pairs(kernel):
            if _mergeable(kernel, *pair, addresses):
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


def _mergeable(kernel: Kernel, a: str, b: str, addresses: dict[tuple[str, Expr], Expr]) -> bool:
    """May axes a and b become one? addresses: of reads, as far as they have been worked out."""
    if (a in kernel.shared) != (b in kernel.shared) or kernel.stream in (a, b):
        return False
    if not _read_as_it_is(kernel, a, b):
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
        if d.reduction is not None and (
            d.reduction.guard is not None or d.reduction.monoid.startswith("arg")
        ):
            return False
        if _outside_reads(d.body, {a, b}):
            return False
        for r in d.reads():
            if not _walks(kernel, d, r, a, b, ext, addresses):
                return False
        if d.name in kernel.layout_of and {a, b} <= out:
            layout = kernel.layout_of[d.name]
            names = [x.name for x in d.axes]
            sa, sb = layout.stride(names.index(a)), layout.stride(names.index(b))
            if sa is None or sb is None or sa != sb * ext or layout.halo:
                return False
    return True


def _read_as_it_is(kernel: Kernel, a: str, b: str) -> bool:
    """Is every tensor made here that has both axes read at these very axes?"""
    made = {n: d for n, d in kernel.definitions.items() if {a, b} <= {x.name for x in d.axes}}
    for d in kernel.definitions.values():
        for r in d.reads():
            source = made.get(r.attr[0])
            if source is None:
                continue
            for s, own in zip(r.args, source.axes, strict=False):  # an else value may follow
                if own.name in (a, b) and s is not E.index(own.name):
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


def _walks(
    kernel: Kernel,
    d: Definition,
    r: Expr,
    a: str,
    b: str,
    ext: int,
    addresses: dict[tuple[str, Expr], Expr],
) -> bool:
    """Does a read of `d` walk through memory along a and b as along one axis?"""
    subs = r.args[:-1] if r.attr[1] else r.args
    used = {x for s in subs for x in s.names("index")}
    if not {a, b} & used:
        return True
    if any(s.reads() for s in subs):
        return False
    layout = kernel.layout_of.get(r.attr[0])
    if layout is None:  # inside the kernel: both axes bare, in their own places
        here = [s.attr if s.op == "index" else None for s in subs]
        own = [x.name for x in kernel.definitions[r.attr[0]].axes]
        if a in here and b in here:
            return {own[here.index(a)], own[here.index(b)]} == {a, b} and own[here.index(a)] == a
        return False
    if r.attr[1]:
        return False
    if (d.name, r) not in addresses:
        ranges = {x.name: (0, max(0, int_extent(x.extent) - 1)) for x in d.all_axes}
        addresses[d.name, r] = simplify(layout.address(subs), ranges)
    address = addresses[d.name, r]
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
                subs = tuple(
                    merged if n == b else E.substitute(s, swap)
                    for n, s in zip(own, subs, strict=True)
                    if n != a
                )
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
            Term(t.axis - (t.axis > at), t.divisor, t.modulus, t.stride)
            for t in old.terms
            if t.axis != at
        )
        return replace(old, shape=tuple(shape), terms=terms)

    del inside
    body = tuple(definition(s) if isinstance(s, Definition) else s for s in kernel.program.body)
    program = replace(kernel.program, body=body)
    return replace(
        kernel,
        program=program,
        layouts=tuple((n, layout(n, x)) for n, x in kernel.layouts),
        shared=tuple(x for x in kernel.shared if not (x == a and b in kernel.shared)),
    )
