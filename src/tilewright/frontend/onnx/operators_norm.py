"""Normalization rows.

In: a node. Out: mean and variance in two passes, then multiply-add. Invariant: constants of batch
normalization are computed in float64 and rounded once; statistics of half-precision tensors are
f32.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.layouts import reshape_to
from tilewright.frontend.operations.reductions import (
    central_squares,
    inverse_deviation,
    mean_of,
    normalized,
    normalized_groups,
    reduced,
    scale_and_shift,
)
from tilewright.frontend.operations.windows import power_of_abs, root, spatial_names
from tilewright.frontend.values import Array, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, F64
from tilewright.ir.expr import Expr

__all__: list[str] = []


@row("BatchNormalization", kind="normalization", since=7)
def batch_normalization(n: Node) -> list[Value | None]:
    """x * scale + shift per channel, folded into a preceding Conv or Gemm of constant weights that
    nobody else reads.
    """
    x = n[0]
    epsilon = float(n.attribute("epsilon", 1e-5))
    if n.attribute("training_mode", 0) or (n.opset < 14 and n.has_output(1)):
        return _batch_training(n, epsilon)
    arrays = [n[k].array for k in range(1, 5)]
    names = ("n", "c", *spatial_names(x.rank - 2))
    if all(a is not None for a in arrays):
        gamma, beta, mean, variance = (np.asarray(a, np.float64) for a in arrays)
        scale = gamma / np.sqrt(variance + epsilon)
        shift = beta - mean * scale
        folded = _fold_into_producer(n, x, scale, shift)
        if folded is not None:
            return [folded]
        dtype = x.dtype.accumulator
        s, t = (
            n.constant(scale.astype(dtype.np), "scale"),
            n.constant(shift.astype(dtype.np), "shift"),
        )
        return [
            n.define(
                x.shape,
                lambda *i: E.cast(
                    E.add(E.mul(E.cast(x.at(*i), dtype), s.at(i[1])), t.at(i[1])), x.dtype
                ),
                names,
            )
        ]
    return [_batch(n, x, n[3], n[4], epsilon)]


def _batch(n: Node, x: Value, mean: Value, variance: Value, epsilon: float) -> Value:
    dtype = x.dtype.accumulator
    inverse = n.define(
        variance.shape,
        lambda c: E.unary("rsqrt", E.add(E.cast(variance.at(c), dtype), E.const(epsilon, dtype))),
        ("c",),
        "inverse",
    )

    def body(*i: Expr) -> Expr:
        centred = E.sub(E.cast(x.at(*i), dtype), E.cast(mean.at(i[1]), dtype))
        scaled = E.mul(E.mul(centred, inverse.at(i[1])), E.cast(n[1].at(i[1]), dtype))
        return E.cast(E.add(scaled, E.cast(n[2].at(i[1]), dtype)), x.dtype)

    return n.define(x.shape, body, ("n", "c", *spatial_names(x.rank - 2)))


def _batch_training(n: Node, epsilon: float) -> list[Value | None]:
    x = n[0]
    axes = [k for k in range(x.rank) if k != 1]
    momentum = float(n.attribute("momentum", 0.9))
    kept = mean_of(n, x, axes, "mean")
    mean = reshape_to(n, kept, [x.shape[1]], "mean1")
    squares = central_squares(n, x, axes, kept)
    variance = reshape_to(n, squares, [x.shape[1]], "variance1")
    y = _batch(n, x, mean, variance, epsilon)

    def running(old: Value, new: Value, name: str) -> Value:
        def body(c: Expr) -> Expr:
            a = E.mul(E.cast(old.at(c), new.dtype), E.const(momentum, new.dtype))
            b = E.mul(new.at(c), E.const(1 - momentum, new.dtype))
            return E.cast(E.add(a, b), old.dtype)

        return n.define(old.shape, body, ("c",), name)

    if any(n.has_output(k) for k in range(3, 5)):
        raise n.refuse("the saved statistics of training before opset 14")
    return [y, running(n[3], mean, "running_mean"), running(n[4], variance, "running_variance")]


def _fold_into_producer(n: Node, x: Value, scale: Array, shift: Array) -> Value | None:
    recipe = n.importer.recipes.get(x.name)
    if recipe is None or n.importer.readers[recipe[3]] != 1 or n.importer.scope.depth:
        return None
    weights, bias, axis, _, make = recipe
    per = scale.reshape([-1 if k == axis else 1 for k in range(weights.ndim)])
    new_weights = np.empty(weights.shape, weights.dtype)  # products in f64, rounded once
    np.multiply(weights, per, out=new_weights, dtype=np.float64, casting="unsafe")
    old_bias = np.zeros(len(scale)) if bias is None else np.asarray(bias, np.float64)
    new_bias = (old_bias * scale + shift).astype(weights.dtype)
    n.importer.warnings.append(
        f"{n.name}: folded into the weights of {recipe[3]!r}; exact up to rounding"
    )
    folded: Value = make(n, n.constant(new_weights, "weight"), n.constant(new_bias, "bias"))
    return folded


@row("LayerNormalization", kind="normalization", since=17)
def layer_normalization(n: Node) -> list[Value | None]:
    """Zero mean and unit variance over the last axes, then scale and shift."""
    x = n[0]
    axes = list(range(n.axis(x.rank, default=-1), x.rank))
    mean = mean_of(n, x, axes, "mean")
    variance = central_squares(n, x, axes, mean)
    inverse = inverse_deviation(n, variance, float(n.attribute("epsilon", 1e-5)))
    y = normalized(n, x, mean, inverse, scale_and_shift(n[1], n.optional(2)))
    stash = {1: F32, 11: F64}.get(int(n.attribute("stash_type", 1)), F32)
    return [
        y,
        n.cast(mean, stash, "mean_out") if n.has_output(1) else None,
        n.cast(inverse, stash, "inverse_out") if n.has_output(2) else None,
    ]


@row("RMSNormalization", kind="normalization", since=23)
def rms_normalization(n: Node) -> Value:
    """x / sqrt(mean(x^2) + epsilon) over the last axes, then scale."""
    x = n[0]
    axes = list(range(n.axis(x.rank, default=-1), x.rank))
    squares = mean_of(n, x, axes, "square", lambda e: E.mul(e, e))
    inverse = inverse_deviation(n, squares, float(n.attribute("epsilon", 1e-5)))
    return normalized(n, x, None, inverse, scale_and_shift(n[1], None))


@row("InstanceNormalization", kind="normalization", since=6)
def instance_normalization(n: Node) -> Value:
    """Zero mean and unit variance over the spatial axes, then scale and shift per channel."""
    x = n[0]
    axes = list(range(2, x.rank))
    mean = mean_of(n, x, axes, "mean")
    inverse = inverse_deviation(
        n, central_squares(n, x, axes, mean), float(n.attribute("epsilon", 1e-5))
    )

    def finish(e: Expr, i: Sequence[Expr]) -> Expr:
        scaled = E.mul(e, E.cast(n[1].at(i[1]), e.dtype))
        return E.add(scaled, E.cast(n[2].at(i[1]), e.dtype))

    return normalized(n, x, mean, inverse, finish)


@row("GroupNormalization", kind="normalization", since=18)
def group_normalization(n: Node) -> Value:
    """Zero mean and unit variance over groups of channels; scale and shift per channel (opset 18:
    per group).
    """
    x = n[0]
    groups = n.count("num_groups")
    epsilon = float(n.attribute("epsilon", 1e-5))
    _, inverse, element = normalized_groups(n, x, groups, epsilon)
    dtype = inverse.dtype
    per_group = n.opset < 21 and E.int_value(n[1].shape[0]) == groups

    def body(*i: Expr) -> Expr:
        g, e = element(i)
        c = g if per_group else i[1]
        return E.cast(
            E.add(E.mul(e, E.cast(n[1].at(c), dtype)), E.cast(n[2].at(c), dtype)), x.dtype
        )

    return n.define(x.shape, body, ("n", "c", *spatial_names(x.rank - 2)))


@row("MeanVarianceNormalization", kind="normalization", since=9)
def mean_variance_normalization(n: Node) -> Value:
    """(x - mean) / (deviation + 1e-9) over axes."""
    x = n[0]
    axes = sorted(n.normal_axis(int(a), x.rank) for a in n.attribute("axes") or [0, 2, 3])
    mean = mean_of(n, x, axes, "mean")
    variance = central_squares(n, x, axes, mean)

    def body(*i: Expr) -> Expr:
        deviation = E.add(E.unary("sqrt", variance.aligned(i)), like(variance, 1e-9))
        return E.cast(
            E.binary("div", E.sub(E.cast(x.at(*i), mean.dtype), mean.aligned(i)), deviation),
            x.dtype,
        )

    return n.define(x.shape, body)


@row("LpNormalization", kind="normalization")
def lp_normalization(n: Node) -> Value:
    """x divided by its p-norm along an axis; 0 where the norm is 0."""
    x = n[0]
    p = int(n.attribute("p", 2))
    if p not in (1, 2):
        raise n.refuse(f"a norm of order {p}", "orders 1 and 2")
    axis = n.axis(x.rank, default=-1)
    total = reduced(n, x, [axis], lambda e: power_of_abs(e, p), "norm")

    def body(*i: Expr) -> Expr:
        norm = root(total.aligned(i), p)
        zero = E.compare("eq", norm, like(norm, 0))
        return E.cast(
            E.select(zero, like(norm, 0), E.binary("div", E.cast(x.at(*i), norm.dtype), norm)),
            x.dtype,
        )

    return n.define(x.shape, body)


@row("LRN", kind="normalization")
def local_response_normalization(n: Node) -> Value:
    """x / (bias + alpha/size * sum of squares over neighbouring channels)^beta."""
    x = n[0]
    size = n.count("size")
    alpha, beta = float(n.attribute("alpha", 1e-4)), float(n.attribute("beta", 0.75))
    bias = float(n.attribute("bias", 1.0))
    wide = x.dtype.accumulator
    before = (size - 1) // 2

    def element(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        e = E.cast(x.at(i[0], i[1] + r[0] - before, *i[2:], orelse=0 if size > 1 else None), wide)
        return E.mul(e, e)

    names = ("n", "c", *spatial_names(x.rank - 2))
    total = n.reduce("sum", x.shape, [size], element, names=names, suffix="squares")

    def body(*i: Expr) -> Expr:
        base = E.add(like(total, bias), E.mul(like(total, alpha / size), total.at(*i)))
        return E.cast(
            E.binary("div", E.cast(x.at(*i), wide), E.binary("pow", base, like(base, beta))),
            x.dtype,
        )

    return n.define(x.shape, body, names)
