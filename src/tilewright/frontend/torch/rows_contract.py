"""Contractions: matrix products, convolution, distances.

In: a call. Out: sums of products as definitions. Invariant: half-precision products accumulate in
f32, and bias and scale are applied before rounding.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.frontend.operations.contractions import contract
from tilewright.frontend.operations.windows import (
    Window,
    convolution,
    spatial_names,
    transposed_convolution,
)
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

__all__: list[str] = []


@row(
    "mm.default", "bmm.default", "mv.default", "dot.default", "vdot.default", "matmul.default",
    kind="contraction",
)  # fmt: skip
def product(n: Call) -> Value:
    """The matrix product, of stacks of matrices too."""
    names = {"bmm": "mat2", "mm": "mat2", "mv": "vec", "dot": "tensor", "vdot": "other"}
    a, b = n["self"], n[names.get(n.op.split(".")[0], "other")]
    dtype = n.dtype.accumulator
    y = contract(n, a, b, dtype, "" if dtype is n.dtype else "acc")
    return n.cast(y, n.dtype)


def _plus(n: Call, acc: Value, bias: Value) -> Value:
    """beta * bias + alpha * acc."""
    alpha, beta = n.get("alpha", 1), n.get("beta", 1)
    dtype = acc.dtype

    def body(*i: Expr) -> Expr:
        e = acc.at(*i)
        if alpha != 1:
            e = E.mul(e, n.scalar(alpha, dtype))
        if beta == 0:
            return E.cast(e, n.dtype)
        extra = E.cast(bias.aligned(i), dtype)
        return E.cast(
            E.add(e, extra if beta == 1 else E.mul(extra, n.scalar(beta, dtype))), n.dtype
        )

    return n.define(n.shape, body)


@row("addmm.default", "addmv.default", "baddbmm.default", kind="contraction")
def product_plus(n: Call) -> Value:
    """beta * self + alpha * (the matrix product)."""
    names = {"addmm": ("mat1", "mat2"), "addmv": ("mat", "vec"), "baddbmm": ("batch1", "batch2")}
    left, right = names[n.op.split(".")[0]]
    acc = contract(n, n[left], n[right], n.dtype.accumulator, "acc")
    return _plus(n, acc, n["self"])


@row("addbmm.default", kind="contraction")
def sum_of_products(n: Call) -> Value:
    """beta * self + alpha * (the sum of the matrix products of a stack)."""
    a, b, dtype = n["batch1"], n["batch2"], n.dtype.accumulator
    acc = n.reduce(
        "sum",
        n.shape,
        [a.shape[0], a.shape[2]],
        lambda i, r: E.mul(
            E.cast(a.at(r[0], i[0], r[1]), dtype), E.cast(b.at(r[0], r[1], i[1]), dtype)
        ),
        over_names=("b", "k"),
        suffix="acc",
    )
    return _plus(n, acc, n["self"])


@row("addr.default", kind="contraction")
def outer_plus(n: Call) -> Value:
    """beta * self + alpha * (the outer product)."""
    a, b, dtype = n["vec1"], n["vec2"], n.dtype.accumulator
    acc = n.define(
        n.shape, lambda i, j: E.mul(E.cast(a.at(i), dtype), E.cast(b.at(j), dtype)), suffix="outer"
    )
    return _plus(n, acc, n["self"])


@row("_trilinear.default", kind="contraction")
def trilinear(n: Call) -> Value:
    """The sum over some axes of a product of three tensors that get further axes of extent 1."""
    operands = [(n[f"i{k}"], [int(d) for d in n.get(f"expand{k}", [])]) for k in (1, 2, 3)]
    summed = [int(d) for d in n.get("sumdim", [])]
    rank = operands[0][0].rank + len(operands[0][1])
    sizes: list[Expr] = [E.const(1)] * rank
    for v, extra in operands:
        own = [k for k in range(rank) if k not in extra]
        for k, s in zip(own, v.shape, strict=True):
            if E.int_value(s) != 1:
                sizes[k] = s
    outer = [k for k in range(rank) if k not in summed]
    dtype = n.dtype.accumulator

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        at = dict(zip([*outer, *summed], [*i, *r], strict=True))
        total: Expr | None = None
        for v, extra in operands:
            own = [at[k] for k in range(rank) if k not in extra]
            e = E.cast(v.aligned(own), dtype)
            total = e if total is None else E.mul(total, e)
        assert total is not None  # for the type checker: there are three operands
        return total

    acc = n.reduce("sum", [sizes[k] for k in outer], [sizes[k] for k in summed], body, suffix="acc")
    return n.cast(acc, n.dtype)


# ---- convolution ---------------------------------------------------------------------------------


@row("convolution.default", kind="window", notes="the kernel's shape is fixed")
def convolution_(n: Call) -> Value:
    """Convolution or transposed convolution over one to three axes, plus bias."""
    x, w, bias = n["input"], n["weight"], n.optional("bias")
    spatial = w.rank - 2
    strides = n.numbers("stride", spatial, 1)
    padding = n.numbers("padding", spatial, 0)
    dilations = n.numbers("dilation", spatial, 1)
    groups = int(n.get("groups", 1))
    dtype = n.dtype.accumulator
    single = x.rank == spatial + 1  # no batch
    shape = list(n.shape)
    if single:
        held = x
        x = n.define((E.const(1), *held.shape), lambda b, *i: held.at(*i), suffix="batch")
        shape = [E.const(1), *shape]
    if n.get("transposed", False):
        begin = [E.const(p) for p in padding]
        acc = transposed_convolution(n, x, w, begin, shape[2:], strides, dilations, groups, "acc")
    else:
        geometry = [
            Window(
                x.shape[2 + k],
                n.fixed(w.shape[2 + k], "the kernel's size"),
                strides[k],
                dilations[k],
                E.const(padding[k]),
                E.const(padding[k]),
                shape[2 + k],
            )
            for k in range(spatial)
        ]
        acc = convolution(n, x, w, geometry, groups, dtype, "acc")
    names = ("n", "o", *spatial_names(spatial))

    def body(*i: Expr) -> Expr:
        at = (E.const(0), *i) if single else i
        e = acc.at(*at)
        if bias is not None:
            e = E.add(e, E.cast(bias.at(at[1]), dtype))
        return E.cast(e, n.dtype)

    if bias is None and acc.dtype is n.dtype and not single:
        return acc
    return n.define(n.shape, body, names[1:] if single else names)


# ---- distances -----------------------------------------------------------------------------------


def _norm_of(n: Call, p: float, shape: Sequence[Expr], over: Expr, difference: object) -> Value:
    """The p-norm over one axis of |difference(i, k)|."""
    read = difference
    assert callable(read)  # for the type checker

    def term(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        size = E.unary("abs", read(i, r[0]))
        if p == 0:
            zero = E.compare("eq", size, like(size, 0))
            return E.select(zero, like(size, 0), like(size, 1))
        if p in (1.0, float("inf")):
            return size
        return E.mul(size, size) if p == 2 else E.binary("pow", size, like(size, p))

    if p == float("inf"):
        worst = n.reduce("max", shape, [over], term, over_names=("k",), suffix="largest")
        return n.define(shape, lambda *i: E.maximum(worst.at(*i), like(worst, 0)))
    total = n.reduce("sum", shape, [over], term, over_names=("k",), suffix="sum")
    if p in (0.0, 1.0):
        return total

    def root(*i: Expr) -> Expr:
        e = total.at(*i)
        return E.unary("sqrt", e) if p == 2 else E.binary("pow", e, like(e, 1 / p))

    return n.define(shape, root)


@row("_cdist_forward.default", "cdist.default", kind="contraction")
def distances(n: Call) -> Value:
    """p-norms of the differences between all rows of two matrices."""
    a, b = n["x1"], n["x2"]
    lead = len(n.shape) - 2

    def of(v: Value, i: Sequence[Expr], row_: Expr, k: Expr) -> Expr:
        batch = i[lead - (v.rank - 2) : lead]
        at = [
            E.const(0) if E.int_value(s) == 1 else e
            for s, e in zip(v.shape[:-2], batch, strict=True)
        ]
        return v.at(*at, row_, k)

    return _norm_of(
        n, float(n.get("p", 2)), n.shape, a.shape[-1],
        lambda i, k: E.sub(of(a, i, i[lead], k), of(b, i, i[lead + 1], k)),
    )  # fmt: skip


@row("_pdist_forward.default", kind="contraction")
def own_distances(n: Call) -> Value:
    """p-norms of the differences between the rows of a matrix, pairs i < j in order."""
    x = n["self"]
    count = n.fixed(x.shape[0], "the number of rows")
    pairs = [(i, j) for i in range(count) for j in range(i + 1, count)]
    import numpy as np

    first = n.constant(np.array([p[0] for p in pairs], np.int64), "first")
    second = n.constant(np.array([p[1] for p in pairs], np.int64), "second")
    return _norm_of(
        n, float(n.get("p", 2)), n.shape, x.shape[1],
        lambda i, k: E.sub(x.at(first.at(i[0]), k), x.at(second.at(i[0]), k)),
    )  # fmt: skip
