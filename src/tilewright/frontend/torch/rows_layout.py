"""Rows that move data: reshapes, transposes, parts, joins, padding.

In: a call. Out: definitions whose subscripts are quasi-affine, which are read through and cost
nothing where a reader can. Invariant: sizes are those that PyTorch inferred.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.frontend.operations.activations import convert
from tilewright.frontend.operations.indexing import reflected
from tilewright.frontend.operations.layouts import regroup, reshape_to
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

__all__: list[str] = []


@row(
    "view.default", "_unsafe_view.default", "reshape.default", "view_copy.default",
    "_reshape_alias.default", "prims.reshape.default", "_reshape_copy.default",
    kind="layout",
)  # fmt: skip
def view(n: Call) -> Value:
    """The elements in order, in another shape."""
    return reshape_to(n, n["a"] if n.op.startswith("prims.") else n["self"], n.shape)


@row("flatten.using_ints", "unflatten.int", kind="layout")
def flatten(n: Call) -> Value:
    """Axes joined or split."""
    return reshape_to(n, n["self"], n.shape)


def _reordered(n: Call, x: Value, order: Sequence[int]) -> Value:
    back = [list(order).index(k) for k in range(x.rank)]
    return n.define([x.shape[k] for k in order], lambda *i: x.at(*(i[b] for b in back)))


@row("permute.default", "permute_copy.default", kind="layout")
def permute(n: Call) -> Value:
    """Axes in another order."""
    x = n["self"]
    return _reordered(n, x, [n.normal_axis(int(d), x.rank) for d in n.get("dims", [])])


@row("transpose.int", "t.default", "transpose_copy.int", "t_copy.default", kind="layout")
def transpose(n: Call) -> Value:
    """Two axes swapped."""
    x = n["self"]
    order = list(range(x.rank))
    if x.rank >= 1 and "dim0" in n.arguments:
        a, b = n.axis("dim0", x.rank), n.axis("dim1", x.rank)
        order[a], order[b] = order[b], order[a]
    elif x.rank == 2:
        order = [1, 0]
    return _reordered(n, x, order)


@row("expand.default", "expand_copy.default", "broadcast_to.default", kind="layout")
def expand(n: Call) -> Value:
    """Broadcast to a shape."""
    x = n["self"]
    return n.define(n.shape, lambda *i: x.aligned(i))


@row("prims.broadcast_in_dim.default", kind="layout")
def broadcast_in_dim(n: Call) -> Value:
    """Broadcast, with the places of the axes given."""
    x = n["a"]
    places = [int(k) for k in n.get("broadcast_dimensions", [])]

    def body(*i: Expr) -> Expr:
        return x.at(
            *(
                E.const(0) if E.int_value(s) == 1 else i[k]
                for k, s in zip(places, x.shape, strict=True)
            )
        )

    return n.define(n.shape, body)


@row(
    "unsqueeze.default", "unsqueeze_copy.default", "squeeze.default", "squeeze.dim", "squeeze.dims",
    "squeeze_copy.dim", "squeeze_copy.dims", "squeeze_copy.default",
    kind="layout",
)  # fmt: skip
def squeeze(n: Call) -> Value:
    """With or without axes of extent 1."""
    return reshape_to(n, n["self"], n.shape)


# ---- parts ---------------------------------------------------------------------------------------


def _start_of(n: Call, given: object, size: Expr) -> Expr:
    """A bound of a slice, counted from 0 and clamped to the axis."""
    e = n.importer.size(given)
    value = E.int_value(e)
    if value is not None and value < 0:
        e = size + value
    elif value is None and n.sizes.low(e) < 0:
        raise n.refuse(f"a bound {e} that may be negative")
    return n.sizes.larger(n.sizes.smaller(e, size), E.const(0))


@row("slice.Tensor", "slice_copy.Tensor", kind="layout")
def slice_(n: Call) -> Value:
    """Evenly spaced elements of one axis."""
    x = n["self"]
    axis = n.axis("dim", x.rank)
    step = n.fixed(n.whole("step"), "the step")
    start = E.const(0)
    if n.arguments.get("start") is not None:
        start = _start_of(n, n.arguments["start"], x.shape[axis])
    return n.define(
        n.shape, lambda *i: x.at(*(start + e * step if k == axis else e for k, e in enumerate(i)))
    )


@row("select.int", "select_copy.int", kind="layout")
def select(n: Call) -> Value:
    """One element of an axis."""
    x = n["self"]
    axis = n.axis("dim", x.rank)
    at = n.whole("index")
    if (E.int_value(at) or 0) < 0:
        at = x.shape[axis] + at
    elif E.int_value(at) is None and n.sizes.low(at) < 0:
        raise n.refuse(f"an index {at} that may be negative")
    return n.define(n.shape, lambda *i: x.at(*i[:axis], at, *i[axis:]))


@row("narrow.default", "narrow_copy.default", kind="layout")
def narrow(n: Call) -> Value:
    """Consecutive elements of one axis."""
    x = n["self"]
    axis = n.axis("dim", x.rank)
    start = _start_of(n, n.arguments["start"], x.shape[axis])
    return n.define(
        n.shape, lambda *i: x.at(*(start + e if k == axis else e for k, e in enumerate(i)))
    )


@row(
    "split_with_sizes.default", "split.Tensor", "split_with_sizes_copy.default",
    "split_copy.Tensor", "chunk.default",
    kind="layout",
)  # fmt: skip
def split(n: Call) -> list[Value | None]:
    """Consecutive parts of one axis."""
    x = n["self"]
    axis = n.axis("dim", x.rank)
    out: list[Value | None] = []
    start = E.const(0)
    for k in range(len(n.result)):
        shape = n.shape_of(k)
        out.append(_part(n, x, shape, axis, start, k))
        start = start + shape[axis]
    return out


def _part(n: Call, x: Value, shape: Sequence[Expr], axis: int, start: Expr, k: int) -> Value:
    return n.define(
        shape,
        lambda *i: x.at(*(e + start if d == axis else e for d, e in enumerate(i))),
        suffix=f"part{k}",
    )


@row("unbind.int", "unbind_copy.int", kind="layout")
def unbind(n: Call) -> list[Value | None]:
    """Every element of one axis."""
    x = n["self"]
    axis = n.axis("dim", x.rank)
    return [_element(n, x, axis, k) for k in range(len(n.result))]


def _element(n: Call, x: Value, axis: int, k: int) -> Value:
    shape = [s for d, s in enumerate(x.shape) if d != axis]
    return n.define(shape, lambda *i: x.at(*i[:axis], E.const(k), *i[axis:]), suffix=f"element{k}")


@row("diagonal.default", "diagonal_copy.default", kind="layout")
def diagonal(n: Call) -> Value:
    """The elements where two axes have equal positions (up to an offset), as the last axis."""
    x = n["self"]
    first, second = n.axis("dim1", x.rank, 0), n.axis("dim2", x.rank, 1)
    offset = int(n.get("offset", 0))

    def body(*i: Expr) -> Expr:
        rest = iter(i[:-1])
        at = {first: i[-1] + max(-offset, 0), second: i[-1] + max(offset, 0)}
        return x.at(*(at[k] if k in at else next(rest) for k in range(x.rank)))

    return n.define(n.shape, body)


@row("unfold.default", "unfold_copy.default", kind="layout")
def unfold(n: Call) -> Value:
    """All windows of one axis; the position inside is the last axis."""
    x = n["self"]
    if not x.rank:
        return n.define(n.shape, lambda i: x.at())
    axis, step = n.axis("dimension", x.rank), int(n.get("step"))
    return n.define(
        n.shape,
        lambda *i: x.at(*(e * step + i[-1] if k == axis else e for k, e in enumerate(i[:-1]))),
    )


@row("as_strided.default", "as_strided_copy.default", kind="layout", notes="of dense tensors")
def as_strided(n: Call) -> Value:
    """Elements at linear positions in the tensor's memory, which is row-major here."""
    x = n["self"]
    fake = n.importer.fake(n.arguments["self"])
    if not fake.is_contiguous():
        raise n.refuse("a tensor that is not contiguous")
    start = n.importer.size(n.get("storage_offset", fake.storage_offset()))
    if E.int_value(n.importer.size(fake.storage_offset())) != 0:
        raise n.refuse("a part of another tensor's memory")
    strides = n.wholes("stride")
    whole = n.sizes.product(x.shape)

    def body(*i: Expr) -> Expr:
        at = start
        for e, s in zip(i, strides, strict=True):
            at = at + e * s
        return x.at(*regroup(n, x.shape, [whole], [at]))

    return n.define(n.shape, body)


# ---- joins ---------------------------------------------------------------------------------------


def _joined(n: Call, parts: Sequence[Value], axis: int, thick: bool) -> Value:
    """Parts one after the other along an axis; `thick`: each is one element of a new axis."""
    dtype = n.dtype
    starts = [E.const(0)]
    for p in parts:
        starts.append(starts[-1] + (1 if thick else p.shape[axis]))

    def body(*i: Expr) -> Expr:
        e: Expr | None = None
        for p, start, end in reversed(list(zip(parts, starts[:-1], starts[1:], strict=True))):
            at = [s - start if k == axis else s for k, s in enumerate(i)]
            if thick:
                del at[axis]
            part = convert(p.at(*at), dtype)
            e = part if e is None else E.select(E.compare("lt", i[axis], end), part, e)
        assert e is not None  # for the type checker: there is at least one part
        return e

    return n.define(n.shape, body)


@row("cat.default", kind="layout")
def cat(n: Call) -> Value:
    """Tensors one after the other along an axis; empty ones of rank 1 are left out."""
    given = [v for v in n.tensors("tensors") if v is not None]
    rank = len(n.shape)
    parts = [p for p in given if p.rank == rank]
    axis = n.axis("dim", rank)
    parts = [p for p in parts if E.int_value(p.shape[axis]) != 0] or parts[:1]
    return _joined(n, parts, axis, False)


@row("stack.default", kind="layout")
def stack(n: Call) -> Value:
    """Tensors as the elements of a new axis."""
    parts = [v for v in n.tensors("tensors") if v is not None]
    return _joined(n, parts, n.axis("dim", len(n.shape)), True)


@row("repeat.default", kind="layout")
def repeat(n: Call) -> Value:
    """Repeated along axes."""
    x = n["self"]
    lead = len(n.shape) - x.rank

    def body(*i: Expr) -> Expr:
        return x.at(
            *(
                E.const(0) if E.int_value(s) == 1 else e if n.sizes.same(s, full) else E.mod(e, s)
                for e, s, full in zip(i[lead:], x.shape, n.shape[lead:], strict=True)
            )
        )

    return n.define(n.shape, body)


@row("flip.default", "prims.rev.default", kind="layout")
def flip(n: Call) -> Value:
    """Axes in reverse."""
    x = n["a"] if n.op.startswith("prims.") else n["self"]
    axes = {n.normal_axis(int(d), x.rank) for d in n.get("dims", [])}
    return n.define(
        n.shape,
        lambda *i: x.at(*(x.shape[k] - 1 - e if k in axes else e for k, e in enumerate(i))),
    )


@row("roll.default", kind="layout")
def roll(n: Call) -> Value:
    """Shifted around axes, or around the flattened tensor."""
    x = n["self"]
    shifts = n.wholes("shifts")
    dims = [n.normal_axis(int(d), x.rank) for d in n.get("dims", [])]
    if not dims and x.rank != 1:
        whole = n.sizes.product(x.shape)
        if E.int_value(whole) == 0:
            return x

        def flat(*i: Expr) -> Expr:
            linear = E.const(0)
            for e, s in zip(i, x.shape, strict=True):
                linear = linear * s + e
            return x.at(*regroup(n, x.shape, [whole], [E.mod(linear - shifts[0], whole)]))

        return n.define(n.shape, flat)
    moved: dict[int, Expr] = {}
    for d, s in zip(dims or [0], shifts, strict=True):
        moved[d] = moved.get(d, E.const(0)) + s

    def body(*i: Expr) -> Expr:
        return x.at(
            *(E.mod(e - moved[k], x.shape[k]) if k in moved else e for k, e in enumerate(i))
        )

    return n.define(n.shape, body)


# ---- parts replaced ------------------------------------------------------------------------------


@row("select_scatter.default", kind="layout")
def select_scatter(n: Call) -> Value:
    """`self` with one element of an axis replaced."""
    x, source = n["self"], n["src"]
    axis = n.axis("dim", x.rank)
    at = n.whole("index")
    if (E.int_value(at) or 0) < 0:
        at = x.shape[axis] + at
    return n.define(
        n.shape,
        lambda *i: E.select(
            E.compare("eq", i[axis], at),
            convert(source.aligned(i[:axis] + i[axis + 1 :]), x.dtype),
            x.at(*i),
        ),
    )


@row("slice_scatter.default", kind="layout")
def slice_scatter(n: Call) -> Value:
    """`self` with evenly spaced elements of an axis replaced."""
    x, source = n["self"], n["src"]
    axis = n.axis("dim", x.rank)
    step = n.fixed(n.whole("step"), "the step")
    size = x.shape[axis]
    start = E.const(0)
    if n.arguments.get("start") is not None:
        start = _start_of(n, n.arguments["start"], size)
    count = source.shape[axis]

    def body(*i: Expr) -> Expr:
        offset = i[axis] - start
        k = E.floordiv(offset, E.const(step))
        inside = E.logical("and", E.compare("le", E.const(0), offset), E.compare("lt", k, count))
        if step != 1:
            exact = E.compare("eq", E.mod(offset, E.const(step)), E.const(0))
            inside = E.logical("and", inside, exact)
        return E.select(inside, convert(source.at(*i[:axis], k, *i[axis + 1 :]), x.dtype), x.at(*i))

    return n.define(n.shape, body)


@row("diagonal_scatter.default", kind="layout")
def diagonal_scatter(n: Call) -> Value:
    """`self` with a diagonal replaced."""
    x, source = n["self"], n["src"]
    first, second = n.axis("dim1", x.rank, 0), n.axis("dim2", x.rank, 1)
    offset = int(n.get("offset", 0))

    def body(*i: Expr) -> Expr:
        rest = [e for k, e in enumerate(i) if k not in (first, second)]
        at = i[first] - max(-offset, 0)
        on = E.compare("eq", i[second] - i[first], E.const(offset))
        if E.int_value(source.shape[-1]) == 0:
            return x.at(*i)
        return E.select(on, convert(source.at(*rest, at), x.dtype), x.at(*i))

    return n.define(n.shape, body)


# ---- padding -------------------------------------------------------------------------------------


def _pads(n: Call, rank: int, name: str) -> list[tuple[Expr, Expr]]:
    """(before, after) per axis, from a list that starts with the last axis."""
    given = n.wholes(name)
    out = [(E.const(0), E.const(0))] * rank
    for k in range(len(given) // 2):
        out[rank - 1 - k] = (given[2 * k], given[2 * k + 1])
    return out


@row("constant_pad_nd.default", kind="layout")
def constant_pad(n: Call) -> Value:
    """A constant around the tensor; negative padding crops."""
    x = n["self"]
    pads = _pads(n, x.rank, "pad")
    fill = n.scalar(n.get("value", 0), x.dtype)
    grows = any(n.sizes.bounds(p)[1] > 0 for pair in pads for p in pair)
    return n.define(
        n.shape,
        lambda *i: x.at(
            *(e - before for e, (before, _) in zip(i, pads, strict=True)),
            orelse=fill if grows else None,
        ),
    )


def _mirrored(mode: str, *names: str) -> None:
    @row(*names, kind="layout")
    def expand_(n: Call) -> Value:
        """Padding with what is inside: mirrored, or the edge."""
        x = n["self"]
        pads = _pads(n, x.rank, "padding")

        def body(*i: Expr) -> Expr:
            subs = []
            for e, (before, after), s in zip(i, pads, x.shape, strict=True):
                none = E.int_value(before) == 0 and E.int_value(after) == 0
                subs.append(e if none else reflected(n, mode, e - before, s))
            return x.at(*subs)

        return n.define(n.shape, body)


_mirrored("reflect", *(f"reflection_pad{k}d.default" for k in (1, 2, 3)))
_mirrored("edge", *(f"replication_pad{k}d.default" for k in (1, 2, 3)))
_mirrored("wrap", "_pad_circular.default")


# ---- triangles -----------------------------------------------------------------------------------


@row("tril.default", "triu.default", kind="layout")
def triangle(n: Call) -> Value:
    """The lower or upper triangle; zero elsewhere."""
    x = n["self"]
    offset = int(n.get("diagonal", 0))
    lower = n.op.startswith("tril")

    def body(*i: Expr) -> Expr:
        line, column = i[-2], i[-1]
        kept = (
            E.compare("le", column - line, E.const(offset))
            if lower
            else E.compare("le", E.const(offset), column - line)
        )
        e = x.at(*i)
        return E.select(kept, e, like(e, 0))

    return n.define(n.shape, body)


@row("pixel_shuffle.default", kind="layout")
def pixel_shuffle(n: Call) -> Value:
    """Channels spread over blocks of pixels."""
    x, r = n["self"], int(n.get("upscale_factor"))

    def body(*i: Expr) -> Expr:
        *lead, c, h, w = i
        channel = c * (r * r) + E.mod(h, E.const(r)) * r + E.mod(w, E.const(r))
        return x.at(*lead, channel, E.floordiv(h, E.const(r)), E.floordiv(w, E.const(r)))

    return n.define(n.shape, body)


@row("pixel_unshuffle.default", kind="layout")
def pixel_unshuffle(n: Call) -> Value:
    """Blocks of pixels gathered into channels."""
    x, r = n["self"], int(n.get("downscale_factor"))

    def body(*i: Expr) -> Expr:
        *lead, c, h, w = i
        inside = E.mod(c, E.const(r * r))
        return x.at(
            *lead,
            E.floordiv(c, E.const(r * r)),
            h * r + E.floordiv(inside, E.const(r)),
            w * r + E.mod(inside, E.const(r)),
        )

    return n.define(n.shape, body)
