"""Normalization rows.

In: a call. Out: mean and variance in two passes, then multiply-add. Invariant: statistics of
half-precision tensors are f32.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.frontend.operations.layouts import reshape_to
from tilewright.frontend.operations.reductions import (
    central_squares,
    inverse_deviation,
    mean_of,
    normalized,
    normalized_groups,
    scale_and_shift,
)
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

__all__: list[str] = []


@row("native_layer_norm.default", kind="normalization")
def layer_norm(n: Call) -> list[Value | None]:
    """Zero mean and unit variance over the last axes, then scale and shift."""
    x = n["input"]
    count = len(n.get("normalized_shape", []))
    axes = list(range(x.rank - count, x.rank))
    mean = mean_of(n, x, axes, "mean")
    inverse = inverse_deviation(n, central_squares(n, x, axes, mean), float(n.get("eps", 1e-5)))
    y = normalized(n, x, mean, inverse, scale_and_shift(n.optional("weight"), n.optional("bias")))
    return [
        y,
        n.cast(mean, n.dtype_of(1), "mean_out") if n.is_read(1) else None,
        n.cast(inverse, n.dtype_of(2), "inverse_out") if n.is_read(2) else None,
    ]


@row("_fused_rms_norm.default", kind="normalization")
def rms_norm(n: Call) -> list[Value | None]:
    """x / sqrt(mean(x^2) + epsilon) over the last axes, then scale."""
    x = n["input"]
    count = len(n.get("normalized_shape", []))
    axes = list(range(x.rank - count, x.rank))
    squares = mean_of(n, x, axes, "square", lambda e: E.mul(e, e))
    epsilon = n.get("eps")
    if epsilon is None:
        import numpy as np

        epsilon = float(np.finfo(squares.dtype.np.name).eps)
    inverse = inverse_deviation(n, squares, float(epsilon))
    y = normalized(n, x, None, inverse, scale_and_shift(n.optional("weight"), None))
    return [y, n.cast(inverse, n.dtype_of(1), "inverse_out") if n.is_read(1) else None]


@row("native_group_norm.default", kind="normalization")
def group_norm(n: Call) -> list[Value | None]:
    """Zero mean and unit variance over groups of channels; scale and shift per channel."""
    x, weight, bias = n["input"], n.optional("weight"), n.optional("bias")
    epsilon = float(n.get("eps", 1e-5))
    mean, inverse, element = normalized_groups(n, x, int(n.get("group")), epsilon)
    dtype = inverse.dtype

    def body(*i: Expr) -> Expr:
        _, e = element(i)
        if weight is not None:
            e = E.mul(e, E.cast(weight.at(i[1]), dtype))
        if bias is not None:
            e = E.add(e, E.cast(bias.at(i[1]), dtype))
        return E.cast(e, x.dtype)

    def statistic(v: Value, k: int, suffix: str) -> Value | None:
        if not n.is_read(k):
            return None
        return n.cast(reshape_to(n, v, n.shape_of(k), suffix), n.dtype_of(k), f"{suffix}_out")

    return [
        n.define(x.shape, body),
        statistic(mean, 1, "mean_flat"),
        statistic(inverse, 2, "inverse_flat"),
    ]


@row("_native_batch_norm_legit_no_training.default", kind="normalization")
def batch_norm(n: Call) -> list[Value | None]:
    """(x - mean) / sqrt(variance + epsilon) per channel, then scale and shift."""
    x, weight, bias = n["input"], n.optional("weight"), n.optional("bias")
    mean, variance = n["running_mean"], n["running_var"]
    dtype = x.dtype.accumulator
    epsilon = E.const(float(n.get("eps", 1e-5)), dtype)
    inverse = n.define(
        variance.shape,
        lambda c: E.unary("rsqrt", E.add(E.cast(variance.at(c), dtype), epsilon)),
        ("c",),
        "inverse",
    )

    def body(*i: Expr) -> Expr:
        e = E.mul(E.sub(E.cast(x.at(*i), dtype), E.cast(mean.at(i[1]), dtype)), inverse.at(i[1]))
        if weight is not None:
            e = E.mul(e, E.cast(weight.at(i[1]), dtype))
        if bias is not None:
            e = E.add(e, E.cast(bias.at(i[1]), dtype))
        return E.cast(e, x.dtype)

    y = n.define(x.shape, body)
    none: Sequence[Value | None] = [_nothing(n, k) for k in (1, 2)]
    return [y, *none]


def _nothing(n: Call, k: int) -> Value | None:
    """An empty tensor where the graph returns one."""
    if not n.is_read(k):
        return None
    dtype = n.dtype_of(k)
    return n.define(n.shape_of(k), lambda *i: E.const(0, dtype), suffix=f"empty{k}")
