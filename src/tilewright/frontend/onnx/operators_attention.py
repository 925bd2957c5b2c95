"""Attention rows: scaled dot product attention with its masks and caches, and rotary embedding.

In: a node. Out: contraction, mask, softmax, contraction as definitions. Invariants: heads are
addressed by subscripts, so neither transposes nor repeated key heads are made; a row without any
allowed key gives zero.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.layouts import reshape_to
from tilewright.frontend.operations.reductions import over_axes, softmax_over
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr

__all__: list[str] = []


class _Heads:
    """Q, K or V as [batch, heads, positions, features], whatever its layout."""

    def __init__(self, n: Node, v: Value, heads_attribute: str) -> None:
        self.v = v
        if v.rank == 4:
            self.batch, self.heads, self.length, self.size = v.shape
        elif v.rank == 3:
            count = n.count(heads_attribute)
            self.batch, self.length, hidden = v.shape
            self.heads, self.size = (
                E.const(count),
                n.divide(hidden, E.const(count), "features in heads"),
            )
        else:
            raise n.contradiction(f"an operand of rank {v.rank}")

    def at(self, b: Expr, h: Expr, t: Expr, d: Expr) -> Expr:
        return self.v.at(b, h, t, d) if self.v.rank == 4 else self.v.at(b, t, h * self.size + d)


def _joined(n: Node, past: Value | None, now: _Heads, name: str, needed: bool) -> Value | None:
    """Past and new keys (or values) as one [B, H, T, D] tensor; None where the operand itself
    serves.
    """
    if past is None:
        if not needed:
            return None
        return n.define(
            [now.batch, now.heads, now.length, now.size], now.at, ("b", "h", "t", "d"), name
        )
    before = past.shape[2]

    def body(b: Expr, h: Expr, t: Expr, d: Expr) -> Expr:
        return E.select(
            E.compare("lt", t, before), past.at(b, h, t, d), now.at(b, h, t - before, d)
        )

    return n.define(
        [now.batch, now.heads, before + now.length, now.size], body, ("b", "h", "t", "d"), name
    )


@row("Attention", kind="attention", since=23)
def attention(n: Node) -> list[Value | None]:
    """softmax(Q K^T scale + mask) V, with grouped heads, causal and windowed masks, soft cap and
    caches.
    """
    q, k, v = (
        _Heads(n, n[0], "q_num_heads"),
        _Heads(n, n[1], "kv_num_heads"),
        _Heads(n, n[2], "kv_num_heads"),
    )
    mask, past_key, past_value, lengths = (n.optional(i) for i in range(3, 7))
    key = _joined(n, past_key, k, "present_key", n.has_output(1))
    value = _joined(n, past_value, v, "present_value", n.has_output(2))
    total = k.length if key is None else key.shape[2]
    wide = n[0].dtype.accumulator
    group = n.divide(q.heads, k.heads, "query heads per key head")
    scale = _scale(n, q.size)
    n.equal(q.size, k.size, "the head sizes of Q and K")
    names = ("b", "h", "i", "j")

    def kv_head(h: Expr) -> Expr:
        return E.floordiv(h, group)

    def key_at(b: Expr, h: Expr, t: Expr, d: Expr) -> Expr:
        return k.at(b, h, t, d) if key is None else key.at(b, h, t, d)

    def value_at(b: Expr, h: Expr, t: Expr, d: Expr) -> Expr:
        return v.at(b, h, t, d) if value is None else value.at(b, h, t, d)

    def product(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        b, h, s, t = i
        return E.mul(
            E.cast(q.at(b, h, s, r[0]), wide), E.cast(key_at(b, kv_head(h), t, r[0]), wide)
        )

    shape = [q.batch, q.heads, q.length, total]
    dots = n.reduce("sum", shape, [q.size], product, names=names, over_names=("d",), suffix="dots")
    raw = n.define(shape, lambda *i: E.mul(dots.at(*i), scale), names, "scores")
    softcap = float(n.attribute("softcap", 0.0) or 0.0)
    capped = raw
    if softcap > 0:
        capped = n.define(
            shape,
            lambda *i: E.mul(
                like(raw, softcap), E.unary("tanh", E.binary("div", raw.at(*i), like(raw, softcap)))
            ),
            names,
            "capped",
        )
    bias = _bias(n, mask, past_key, lengths, q.length, total)
    masked = capped
    if bias is not None:
        masked = n.define(shape, lambda *i: E.add(capped.at(*i), bias(*i)), names, "masked")
    weights = _guarded_softmax(n, masked, names, bias is not None)
    half = wide is not n[0].dtype

    def weighted(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        b, s, h, e = i if n[0].rank == 3 else (i[0], i[2], i[1], i[3])
        w = E.cast(E.cast(weights.at(b, h, s, r[0]), n[0].dtype), wide)
        return E.mul(w, E.cast(value_at(b, kv_head(h), r[0], e), wide))

    if n[0].rank == 3:
        out_shape, out_names = [q.batch, q.length, q.heads, v.size], ("b", "i", "h", "d")
    else:
        out_shape, out_names = [q.batch, q.heads, q.length, v.size], ("b", "h", "i", "d")
    flat = n[0].rank == 3
    y = n.reduce(
        "sum",
        out_shape,
        [total],
        weighted,
        names=out_names,
        over_names=("j",),
        suffix="mixed" if half or flat else "",
    )
    if flat:
        y = reshape_to(n, y, [q.batch, q.length, q.heads * v.size], "flat" if half else "")
    y = n.cast(y, n[0].dtype)
    scores = None
    if n.has_output(3):
        mode = int(n.attribute("qk_matmul_output_mode", 0))
        scores = n.cast({0: raw, 1: capped, 2: masked, 3: weights}[mode], n[0].dtype, "qk")
    return [y, key, value, scores]


def _scale(n: Node, size: Expr) -> Expr:
    """The factor of the scores: the attribute, or 1 / sqrt(head size)."""
    wide = n[0].dtype.accumulator
    given = float(n.attribute("scale", 0.0))
    fixed = E.int_value(size)
    if given or fixed is not None:
        return E.const(given or 1 / math.sqrt(fixed or 1), wide)
    return E.unary("rsqrt", E.cast(size, wide))


def _bias(
    n: Node,
    mask: Value | None,
    past: Value | None,
    lengths: Value | None,
    q_length: Expr,
    total: Expr,
) -> Callable[..., Expr] | None:
    """The additive mask at (b, h, i, j), or None. Forbidden positions are -inf."""
    causal = bool(n.attribute("is_causal", 0))
    left, right = (
        int(n.attribute("left_window_size", -1)),
        int(n.attribute("right_window_size", -1)),
    )
    if mask is None and lengths is None and not causal and left < 0 and right < 0:
        return None
    wide = n[0].dtype.accumulator
    none, zero = E.const(-math.inf, wide), E.const(0, wide)
    short = (
        mask is not None
        and not n.sizes.same(mask.shape[-1], total)
        and E.int_value(mask.shape[-1]) != 1
    )

    def length_of(b: Expr) -> Expr:
        assert lengths is not None  # for the type checker: callers looked
        return E.cast(lengths.at(b), I64)

    def bias(b: Expr, h: Expr, i: Expr, j: Expr) -> Expr:
        allowed: list[Expr] = []
        offset = E.const(0)
        if past is not None:
            offset = past.shape[2]
        elif lengths is not None:
            offset = length_of(b) - q_length
        if causal:
            allowed.append(E.compare("le", j, i + offset))
        if left >= 0:
            allowed.append(E.compare("le", i + offset - j, E.const(left)))
        if right >= 0:
            allowed.append(E.compare("le", j - i - offset, E.const(right)))
        if lengths is not None:
            allowed.append(E.compare("lt", j, length_of(b)))
        e = zero
        if mask is not None:
            outside = (
                (E.const(False) if mask.dtype is BOOL else E.const(-math.inf, mask.dtype))
                if short
                else None
            )
            m = mask.aligned((b, h, i, j), orelse=outside)
            e = E.select(m, zero, none) if mask.dtype is BOOL else E.cast(m, wide)
        for a in allowed:
            e = E.select(a, e, none)
        return e

    return bias


def _guarded_softmax(n: Node, x: Value, names: Sequence[str], masked: bool) -> Value:
    """Softmax over the last axis; a row of -inf gives zeros."""
    if not masked:
        return softmax_over(n, x, [3], suffix="weights")
    top = over_axes(n, x, [3], "max", lambda *i: x.at(*i), True, "max")
    lowest = like(x, -math.inf)

    def shift(i: Sequence[Expr]) -> Expr:
        m = top.aligned(i)
        return E.select(E.compare("eq", m, lowest), like(x, 0), m)

    power = n.define(x.shape, lambda *i: E.unary("exp", E.sub(x.at(*i), shift(i))), names, "exp")
    total = over_axes(n, power, [3], "sum", lambda *i: power.at(*i), True, "sum")

    def body(*i: Expr) -> Expr:
        t = total.aligned(i)
        return E.select(
            E.compare("eq", t, like(t, 0)), like(t, 0), E.binary("div", power.at(*i), t)
        )

    return n.define(x.shape, body, names, "weights")


@row("RotaryEmbedding", kind="attention", since=23)
def rotary_embedding(n: Node) -> Value:
    """Pairs of features rotated by the angle of their position."""
    x, cos, sin, positions = n[0], n[1], n[2], n.optional(3)
    heads = n.count("num_heads") if n[0].rank == 3 else 0
    if x.rank == 4:
        size = x.shape[3]
    else:
        size = n.divide(x.shape[2], E.const(heads), "features in heads")
    rotated = int(n.attribute("rotary_embedding_dim", 0)) or n.fixed(size, "the head size")
    if rotated < 2 or rotated % 2 or n.sizes.decide("lt", size, E.const(rotated)):
        raise n.contradiction(f"rotary_embedding_dim {rotated} for heads of {size}")
    half = rotated // 2
    interleaved = bool(n.attribute("interleaved", 0))
    wide = x.dtype.accumulator
    whole = E.int_value(size) == rotated

    def rotate(read: Callable[[Expr], Expr], b: Expr, s: Expr, d: Expr) -> Expr:
        pair = E.floordiv(d, E.const(2)) if interleaved else E.mod(d, E.const(half))
        first = (
            E.compare("eq", E.mod(d, E.const(2)), E.const(0))
            if interleaved
            else E.compare("lt", d, E.const(half))
        )
        at = (pair * 2, pair * 2 + 1) if interleaved else (pair, pair + half)
        if positions is None:
            c, w = cos.at(b, s, pair), sin.at(b, s, pair)
        else:
            p = E.cast(positions.at(b, s), I64)
            c, w = cos.at(p, pair, orelse=0), sin.at(p, pair, orelse=0)
        c, w = E.cast(c, wide), E.cast(w, wide)
        x1, x2 = E.cast(read(at[0]), wide), E.cast(read(at[1]), wide)
        real = E.sub(E.mul(c, x1), E.mul(w, x2))
        imaginary = E.add(E.mul(w, x1), E.mul(c, x2))
        e = E.cast(E.select(first, real, imaginary), x.dtype)
        return e if whole else E.select(E.compare("lt", d, E.const(rotated)), e, read(d))

    if x.rank == 4:
        return n.define(
            x.shape,
            lambda b, h, s, d: rotate(lambda e: x.at(b, h, s, e), b, s, d),
            ("b", "h", "s", "d"),
        )

    def body(b: Expr, s: Expr, f: Expr) -> Expr:
        h, d = E.floordiv(f, size), E.mod(f, size)
        return rotate(lambda e: x.at(b, s, h * size + e), b, s, d)

    return n.define(x.shape, body, ("b", "s", "f"))
