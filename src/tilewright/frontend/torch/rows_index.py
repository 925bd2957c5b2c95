"""Rows that index: gather, scatter, embedding, index_put, searches in sorted sequences.

In: a call. Out: reads at computed subscripts, scatters. Invariant: an index from data never makes a
Program read or write outside a tensor; a contribution outside is dropped.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.operations.activations import convert
from tilewright.frontend.operations.indexing import Subscripts, outside, position, scatter
from tilewright.frontend.operations.layouts import regroup
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr
from tilewright.ir.program import identity_of

__all__: list[str] = []


def _along(n: Call, x: Value, axis: int, indices: Value, at: Sequence[Expr]) -> Expr:
    return position(indices, at, x.shape[axis])


@row("index_select.default", kind="index")
def index_select(n: Call) -> Value:
    """Elements of an axis chosen by indices."""
    x, indices = n["self"], n["index"]
    axis = n.axis("dim", max(x.rank, 1))
    if not x.rank:
        return x
    orelse = outside(n, indices, [x.shape[axis]])

    def body(*i: Expr) -> Expr:
        chosen = position(indices, [i[axis]] if indices.rank else [], x.shape[axis])
        return x.at(*i[:axis], chosen, *i[axis + 1 :], orelse=orelse)

    return n.define(n.shape, body)


@row("gather.default", kind="index")
def gather(n: Call) -> Value:
    """y[i, j] = x[index[i, j], j] along an axis."""
    x, indices = n["self"], n["index"]
    if not x.rank:
        return n.define(n.shape, lambda *i: x.at())
    axis = n.axis("dim", x.rank)
    orelse = outside(n, indices, [x.shape[axis]])

    def body(*i: Expr) -> Expr:
        if not indices.rank:
            return x.at(*[position(indices, [], x.shape[0])], orelse=orelse)
        return x.at(
            *(_along(n, x, axis, indices, i) if k == axis else e for k, e in enumerate(i)),
            orelse=orelse,
        )

    return n.define(n.shape, body)


@row("take.default", kind="index")
def take(n: Call) -> Value:
    """Elements of the flattened tensor."""
    x, indices = n["self"], n["index"]
    whole = n.sizes.product(x.shape)

    def body(*i: Expr) -> Expr:
        at = position(indices, i, whole)
        inside = E.maximum(E.minimum(at, whole - 1), E.const(0))
        return x.at(*regroup(n, x.shape, [whole], [inside]))

    return n.define(n.shape, body)


@row("embedding.default", kind="index")
def embedding(n: Call) -> Value:
    """Rows of a table."""
    table, indices = n["weight"], n["indices"]
    orelse = outside(n, indices, [table.shape[0]])

    def body(*i: Expr) -> Expr:
        lead = i[: indices.rank]
        return table.at(E.cast(indices.at(*lead), I64), *i[indices.rank :], orelse=orelse)

    return n.define(n.shape, body)


# ---- index and index_put -------------------------------------------------------------------------


class _Places:
    """Where the axes of an indexed result come from, as NumPy's advanced indexing has it."""

    def __init__(self, n: Call, x: Value, given: Sequence[Value | None]) -> None:
        if any(v is not None and v.dtype is BOOL for v in given):
            raise n.refuse("a mask of bools, whose count only the data tell")
        self.n, self.x = n, x
        self.indices = list(given) + [None] * (x.rank - len(given))
        held = [v for v in self.indices if v is not None]
        self.common = n.broadcast(*(v.shape for v in held))
        where = [k for k, v in enumerate(self.indices) if v is not None]
        together = not where or where == list(range(where[0], where[-1] + 1))
        self.start = where[0] if together and where else 0
        kept = [k for k, v in enumerate(self.indices) if v is None]
        before = [k for k in kept if k < self.start] if together else []
        self.kept = kept
        self.before = len(before)
        sizes = [x.shape[k] for k in kept]
        self.shape = [*sizes[: self.before], *self.common, *sizes[self.before :]]
        self.orelse = None
        for k, v in enumerate(self.indices):
            if v is not None and outside(n, v, [x.shape[k]]) is not None:
                self.orelse = 0

    def subscripts(self, i: Sequence[Expr]) -> list[Expr]:
        """Subscripts of x for the result's element at `i`."""
        at = i[self.before : self.before + len(self.common)]
        rest = [*i[: self.before], *i[self.before + len(self.common) :]]
        plain = iter(rest)
        out = []
        for k, v in enumerate(self.indices):
            if v is None:
                out.append(next(plain))
                continue
            mine = at[len(at) - v.rank :] if v.rank else []
            mine = [
                E.const(0) if E.int_value(s) == 1 else e for s, e in zip(v.shape, mine, strict=True)
            ]
            out.append(position(v, mine, self.x.shape[k]))
        return out


@row(
    "index.Tensor", "_unsafe_index.Tensor", kind="index",
    notes="no masks of bools, whose count only the data tell",
)  # fmt: skip
def index(n: Call) -> Value:
    """Elements at the positions that several index tensors give together."""
    x = n["self"]
    places = _Places(n, x, n.tensors("indices"))
    return n.define(places.shape, lambda *i: x.at(*places.subscripts(i), orelse=places.orelse))


@row("_unsafe_masked_index.default", kind="index")
def masked_index(n: Call) -> Value:
    """`index` where a mask holds, else `fill`."""
    x, mask = n["self"], n["mask"]
    places = _Places(n, x, n.tensors("indices"))
    fill = n.scalar(n.get("fill", 0), x.dtype)

    def body(*i: Expr) -> Expr:
        found = x.at(*places.subscripts(i), orelse=0)
        return E.select(mask.aligned(i), found, fill)

    return n.define(n.shape, body)


@row(
    "index_put.default", "_unsafe_index_put.default", kind="index",
    notes="no masks of bools among other indices",
)  # fmt: skip
def index_put(n: Call) -> Value:
    """`self` with elements at index tensors replaced, or added to; the last of several wins."""
    x, values = n["self"], n["values"]
    given = n.tensors("indices")
    add = bool(n.get("accumulate", False))
    masks = [v for v in given if v is not None and v.dtype is BOOL]
    if masks:
        return _put_where(n, x, given, values, add)
    places = _Places(n, x, given)
    dtype = x.dtype

    def source(*i: Expr) -> Expr:
        return convert(values.aligned(i), dtype)

    return scatter(
        n, dtype, x.shape, places.shape, "sum" if add else None,
        lambda *i: places.subscripts(i), source, lambda *i: x.at(*i),
    )  # fmt: skip


def _rank_of_true(n: Call, mask: Value) -> Value:
    """For each element of a mask, in row-major order, how many before and at it are true; flat."""
    whole = n.sizes.product(mask.shape)
    return n.scan(
        "sum", 0, [whole],
        lambda i: E.cast(convert(mask.at(*regroup(n, mask.shape, [whole], [i])), BOOL), I64),
        "rank",
    )  # fmt: skip


def _linear(shape: Sequence[Expr], i: Sequence[Expr]) -> Expr:
    at = E.const(0)
    for e, s in zip(i, shape, strict=True):
        at = at * s + e
    return at


def _put_where(n: Call, x: Value, given: Sequence[Value | None], values: Value, add: bool) -> Value:
    first = given[0]
    if (
        first is None
        or any(v is not None for v in given[1:])
        or n.sizes.product(values.shape) is not E.const(1)
    ):
        raise n.refuse("a mask of bools with several values")

    def body(*i: Expr) -> Expr:
        new = convert(values.at(*[0] * values.rank), x.dtype)
        old = x.at(*i)
        return E.select(first.at(*i[: first.rank]), E.add(old, new) if add else new, old)

    return n.define(n.shape, body)


@row("masked_scatter.default", kind="index")
def masked_scatter(n: Call) -> Value:
    """`self` with the elements where a mask holds replaced by the first elements of `source`."""
    x, mask, source = n["self"], n["mask"], n["source"]
    shape = n.shape
    spread = n.define(shape, lambda *i: mask.aligned(i), suffix="mask")
    order = _rank_of_true(n, spread)
    whole = n.sizes.product(source.shape)

    def body(*i: Expr) -> Expr:
        at = order.at(_linear(shape, i)) - 1
        inside = E.maximum(E.minimum(at, whole - 1), E.const(0))
        new = source.at(*regroup(n, source.shape, [whole], [inside]))
        return E.select(spread.at(*i), new, x.aligned(i))

    return n.define(shape, body)


def _of_scalars(expand: Callable[[Call], Value]) -> Callable[[Call], Value]:
    """A row that takes scalars as vectors of one element."""

    def lifted(n: Call) -> Value:
        if n["self"].rank:
            return expand(n)
        for name in ("self", "index", "src", "source"):
            if n.importer.is_tensor(n.arguments.get(name)) and not n[name].rank:
                x = n[name]
                n.instead[name] = n.define((1,), lambda i, x=x: x.at(), suffix=f"{name}_one")
        y = expand(n)
        return n.define((), lambda: y.at(0))

    return lifted


@row("put.default", kind="index")
@_of_scalars
def put(n: Call) -> Value:
    """`self` with elements at linear positions replaced, or added to."""
    x, indices, source = n["self"], n["index"], n["source"]
    whole = n.sizes.product(x.shape)
    add = bool(n.get("accumulate", False))
    if add and x.dtype is BOOL:
        raise n.refuse("adding bools")

    def place(*i: Expr) -> list[Expr]:
        return regroup(n, x.shape, [whole], [position(indices, i, whole)])

    def body(*i: Expr) -> Expr:
        return convert(source.at(*regroup(n, source.shape, indices.shape, i)), x.dtype)

    return scatter(
        n, x.dtype, x.shape, indices.shape, "sum" if add else None, place, body,
        lambda *i: x.at(*i),
    )  # fmt: skip


# ---- scatter -------------------------------------------------------------------------------------

_MONOIDS = {
    "sum": "sum", "add": "sum", "prod": "prod", "multiply": "prod", "amax": "max", "amin": "min",
}  # fmt: skip


def _scatter(n: Call, source: str, monoid: str | None) -> Value:
    x, indices = n["self"], n["index"]
    dtype = x.dtype
    held = n.importer.is_tensor(n.arguments[source])
    values = n[source] if held else None
    axis = n.axis("dim", x.rank)
    if dtype is BOOL and monoid is not None:
        raise n.refuse("combining bools")

    def place(*i: Expr) -> list[Expr]:
        if not indices.rank:
            return [position(indices, [], x.shape[0])]
        return [_along(n, x, axis, indices, i) if k == axis else e for k, e in enumerate(i)]

    def body(*i: Expr) -> Expr:
        if values is None:
            return n.scalar(n.arguments[source], dtype)
        return convert(values.at(*i[: values.rank]), dtype)

    return scatter(n, dtype, x.shape, indices.shape, monoid, place, body, lambda *i: x.at(*i))


@row("scatter.src", "scatter.value", kind="index")
@_of_scalars
def scatter_(n: Call) -> Value:
    """`self` with x[index[i, j], j] replaced by src[i, j]; the last of several wins."""
    return _scatter(n, "src" if n.op.endswith("src") else "value", None)


@row("scatter.reduce", "scatter.value_reduce", kind="index")
@_of_scalars
def scatter_combining(n: Call) -> Value:
    """`scatter` that adds or multiplies."""
    return _scatter(n, "src" if n.op == "scatter.reduce" else "value", _MONOIDS[n.get("reduce")])


@row("scatter_add.default", kind="index")
@_of_scalars
def scatter_add(n: Call) -> Value:
    """`self` with src[i, j] added at x[index[i, j], j]."""
    return _scatter(n, "src", "sum")


@row("scatter_reduce.two", kind="index", notes="not the mean of integers")
@_of_scalars
def scatter_reduce(n: Call) -> Value:
    """Contributions combined by sum, product, mean, maximum or minimum."""
    x, indices = n["self"], n["index"]
    how, include = n.get("reduce"), bool(n.get("include_self", True))
    monoid = _MONOIDS.get("sum" if how == "mean" else how)
    if monoid is None or (how == "mean" and not x.dtype.is_float):
        raise n.refuse(f"reduction {how!r} of {x.dtype}")
    if include and how != "mean":
        return _scatter(n, "src", monoid)
    axis = n.axis("dim", x.rank)
    source = n["src"]

    def place(*i: Expr) -> list[Expr]:
        return [_along(n, x, axis, indices, i) if k == axis else e for k, e in enumerate(i)]

    return _combined(
        n, x, indices.shape, place, lambda *i: convert(source.at(*i), x.dtype),
        how, monoid, include,
    )  # fmt: skip


@row("index_add.default", "index_copy.default", "index_fill.int_Scalar", kind="index")
@row("index_fill.int_Tensor", kind="index")
def index_combine(n: Call) -> Value:
    """Slices at indices of an axis added to, or replaced."""
    x, indices = n["self"], n["index"]
    dtype = x.dtype
    if not x.rank:
        return _combine_scalar(n, x)
    axis = n.axis("dim", x.rank)
    add = n.op.startswith("index_add")
    if add and dtype is BOOL:
        raise n.refuse("adding bools")
    name = "value" if "fill" in n.op else "source"
    held = n.importer.is_tensor(n.arguments[name])
    values = n[name] if held else None
    alpha = n.get("alpha", 1)
    count = indices.shape[0] if indices.rank else E.const(1)
    shape = [count if k == axis else s for k, s in enumerate(x.shape)]

    def place(*i: Expr) -> list[Expr]:
        at = [i[axis]] if indices.rank else []
        return [position(indices, at, x.shape[axis]) if k == axis else e for k, e in enumerate(i)]

    def body(*i: Expr) -> Expr:
        if values is None:
            return n.scalar(n.arguments[name], dtype)
        e = convert(values.at(*i) if values.rank else values.at(), dtype)
        return e if alpha == 1 else E.mul(e, n.scalar(alpha, dtype))

    return scatter(
        n, dtype, x.shape, shape, "sum" if add else None, place, body, lambda *i: x.at(*i)
    )


def _combine_scalar(n: Call, x: Value) -> Value:
    """`index_combine` of a scalar, at index 0 as often as there are indices."""
    name = "value" if "fill" in n.op else "source"
    given = n.arguments[name]
    count = E.cast(n.sizes.product(n["index"].shape), x.dtype)

    def body() -> Expr:
        if n.importer.is_tensor(given):
            held = n[name]
            e = convert(held.at(*[0] * held.rank), x.dtype)
        else:
            e = n.scalar(given, x.dtype)
        if not n.op.startswith("index_add"):
            return e
        return E.add(x.at(), E.mul(E.mul(e, n.scalar(n.get("alpha", 1), x.dtype)), count))

    return n.define((), body)


@row("index_reduce.default", kind="index")
@_of_scalars
def index_reduce(n: Call) -> Value:
    """Slices at indices of an axis combined by product, mean, maximum or minimum."""
    x, indices, source = n["self"], n["index"], n["source"]
    how, include = n.get("reduce"), bool(n.get("include_self", True))
    monoid = _MONOIDS.get("sum" if how == "mean" else how)
    if monoid is None or (how == "mean" and not x.dtype.is_float):
        raise n.refuse(f"reduction {how!r} of {x.dtype}")
    axis = n.axis("dim", x.rank)
    count = indices.shape[0] if indices.rank else E.const(1)
    shape = [count if k == axis else s for k, s in enumerate(x.shape)]

    def place(*i: Expr) -> list[Expr]:
        at = [i[axis]] if indices.rank else []
        return [position(indices, at, x.shape[axis]) if k == axis else e for k, e in enumerate(i)]

    return _combined(
        n, x, shape, place, lambda *i: convert(source.at(*i), x.dtype), how, monoid, include
    )


def _combined(
    n: Call,
    x: Value,
    shape: Sequence[Expr],
    place: Subscripts,
    body: Callable[..., Expr],
    how: str,
    monoid: str,
    include: bool,
) -> Value:
    """Contributions combined; `include`: with what is there, which else stays where none falls."""
    one, zero = E.const(1, I64), E.const(0, I64)
    count = scatter(
        n, I64, x.shape, shape, "sum", place, lambda *i: one,
        (lambda *i: one) if include else (lambda *i: zero), "count",
    )  # fmt: skip
    neutral = E.const(identity_of(monoid, x.dtype), x.dtype)
    total = scatter(
        n, x.dtype, x.shape, shape, monoid, place, body,
        (lambda *i: x.at(*i)) if include else (lambda *i: neutral), "total",
    )  # fmt: skip

    def finish(*i: Expr) -> Expr:
        e = total.at(*i)
        if how == "mean":
            e = E.binary("div", e, E.maximum(E.cast(count.at(*i), x.dtype), like(e, 1)))
        return E.select(E.compare("eq", count.at(*i), zero), x.at(*i), e)

    return n.define(x.shape, finish)


# ---- sorted sequences ----------------------------------------------------------------------------


def _rank_in(
    n: Call, edges: Value, x: Value | None, right: bool, flat: bool, order: Value | None = None
) -> Value:
    """How many edges lie below each element (or at it, with `right`)."""
    dtype = n.dtype

    def element(i: Sequence[Expr]) -> Expr:
        if x is None:
            return n.scalar(n.arguments["self"], edges.dtype)
        return x.at(*i)

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        k = r[0]
        if order is not None:
            k = E.cast(order.at(k) if flat else order.at(*i[:-1], k), I64)
        lead = () if flat else i[:-1]
        edge = edges.at(*lead, k, orelse=None if order is None else 0)
        e = element(i)
        if e.dtype is not edge.dtype:
            wide = e.dtype if e.dtype.is_float else edge.dtype
            e, edge = E.cast(e, wide), E.cast(edge, wide)
        below = E.compare("le" if right else "lt", edge, e)
        if e.dtype.is_float:
            below = E.logical("or", below, E.unary("isnan", e))
        return E.cast(below, dtype)

    return n.reduce("sum", n.shape, [edges.shape[-1]], body, over_names=("k",))


@row("bucketize.Tensor", "bucketize.Scalar", kind="index")
def bucketize(n: Call) -> Value:
    """The bucket that each element falls into."""
    held = n.importer.is_tensor(n.arguments["self"])
    return _rank_in(
        n, n["boundaries"], n["self"] if held else None, bool(n.get("right", False)), True
    )


@row("searchsorted.Tensor", "searchsorted.Scalar", kind="index")
def searchsorted(n: Call) -> Value:
    """Where each element would be inserted in a sorted sequence."""
    edges = n["sorted_sequence"]
    right = bool(n.get("right", False)) or n.get("side") == "right"
    held = n.importer.is_tensor(n.arguments["self"])
    return _rank_in(
        n, edges, n["self"] if held else None, right, edges.rank == 1, n.optional("sorter")
    )


# ---- bags ----------------------------------------------------------------------------------------


@row("_embedding_bag.default", "_embedding_bag_forward_only.default", kind="index")
def embedding_bag(n: Call) -> list[Value | None]:
    """Sums, means or maxima of rows of a table, one per bag of consecutive indices."""
    table, indices, offsets = n["weight"], n["indices"], n["offsets"]
    weights, mode = n.optional("per_sample_weights"), int(n.get("mode", 0))
    bags, dtype = n.shape[0], table.dtype
    skip = int(n.get("padding_idx", -1))
    if any(n.is_read(k) for k in (1, 2, 3)):
        raise n.refuse("the buffers for the gradient")
    count = indices.shape[0]
    bag = n.reduce(
        "sum", [count], [offsets.shape[0]],
        lambda i, r: E.cast(E.compare("le", E.cast(offsets.at(r[0]), I64), i[0]), I64),
        suffix="bag",
    )  # fmt: skip

    def place(k: Expr, d: Expr) -> list[Expr]:
        at = bag.at(k) - 1
        if skip < 0:
            return [at, d]
        used = E.compare("ne", E.cast(indices.at(k), I64), E.const(skip))
        return [E.select(used, at, E.const(-1)), d]

    def element(k: Expr, d: Expr) -> Expr:
        e = table.at(E.cast(indices.at(k), I64), d, orelse=0)
        return e if weights is None else E.mul(e, weights.at(k))

    one = E.const(1, I64)
    number = scatter(
        n, I64, [bags], [count], "sum", lambda k: place(k, E.const(0))[:1],
        lambda k: one, lambda b: E.const(0), "number",
    )  # fmt: skip
    start = E.const(identity_of("max", dtype) if mode == 2 else 0, dtype)
    total = scatter(
        n, dtype, n.shape, [count, table.shape[1]], "max" if mode == 2 else "sum",
        place, element, lambda *i: start, "total",
    )  # fmt: skip

    def finish(b: Expr, d: Expr) -> Expr:
        e, there = total.at(b, d), number.at(b)
        if mode == 1:
            e = E.binary("div", e, E.cast(E.maximum(there, one), dtype))
        return E.select(E.compare("eq", there, E.const(0)), like(e, 0), e)

    return [n.define(n.shape, finish), None, None, None]
