"""Specifications: reductions, prefixes, normalizations, contractions, attention, recurrences."""

from __future__ import annotations

from functools import partial

import numpy as np
from onnx import helper

from tilewright.verify.models.graph import (
    BOOL,
    F16,
    F32,
    F64,
    I32,
    I64,
    MOST,
    Graph,
    Tensor,
)
from tilewright.verify.models.rows import row

__all__: list[str] = []


# Elements of a product: in another order more of them may pass through infinity, or through 0.
_FACTORS = 32


def _reduce(g: Graph, op: str) -> None:
    kinds = "fi" if op in ("ReduceSum", "ReduceMax", "ReduceMin") else "f"
    t = g.any(kinds, low=1, most=_FACTORS if op == "ReduceProd" else MOST)
    if op in ("ReduceLogSum",) and g.chance(0.8):
        t = g.one("Add", [g.one("Abs", [t]), g.const(0.25, t.dtype)])
    chosen = g.rng.sample(range(t.rank), g.rng.randint(1, t.rank))
    axes = [g.const([k - t.rank if g.chance(0.3) else k for k in chosen])]
    more = {"keepdims": int(g.chance(0.5))}
    if g.chance(0.1):
        axes = []
        more["noop_with_empty_axes"] = int(g.chance(0.3))
    g.add(op, [t, *axes], **more)


_FOLDS = """
    ReduceSum ReduceMean ReduceMax ReduceMin ReduceProd ReduceL1 ReduceL2 ReduceSumSquare
    ReduceLogSum ReduceLogSumExp
"""
for _name in _FOLDS.split():
    row(_name)(partial(_reduce, op=_name))


def _along(g: Graph, op: str) -> None:
    t = g.any(low=1)
    g.add(op, [t], axis=g.axis(t))


for _name in ("Softmax", "LogSoftmax", "Hardmax"):
    row(_name)(partial(_along, op=_name))


def _arg(g: Graph, op: str) -> None:
    t = g.any("fi", low=1)
    more = {"select_last_index": 1} if g.chance(0.2) else {}
    g.add(op, [t], axis=g.axis(t), keepdims=int(g.chance(0.5)), **more)


for _name in ("ArgMax", "ArgMin"):
    row(_name)(partial(_arg, op=_name))


def _prefix(g: Graph, op: str) -> None:
    most = MOST if op == "CumSum" else _FACTORS
    t = g.any("fi" if op == "CumSum" else "f", low=1, most=most)
    more = {k: 1 for k in ("exclusive", "reverse") if g.chance(0.3)}
    g.add(op, [t, g.const(g.axis(t), g.rng.choice((I64, I32)))], **more)


for _name in ("CumSum", "CumProd"):
    row(_name)(partial(_prefix, op=_name))


@row("MatMul")
def matmul(g: Graph) -> None:
    a = g.any(low=1)
    k = a.shape[-1]
    n = g.size()
    if a.rank == 1 or g.chance(0.15):
        b = g.like(a.dtype, g.rng.choice(((k,), (k, n))))
    else:
        batch = a.shape[:-2] if g.chance(0.6) else ()
        b = g.like(a.dtype, (*batch, k, n))
    if g.chance(0.2) and a.rank > 1:
        a = g.like(a.dtype, (g.size(), k))
    g.add("MatMul", [a, b])


@row("Gemm")
def gemm(g: Graph) -> None:
    a = g.any(low=2, high=2)
    ta, tb = int(g.chance(0.4)), int(g.chance(0.4))
    m, k = (a.shape[1], a.shape[0]) if ta else a.shape
    n = g.size()
    b = g.like(a.dtype, (n, k) if tb else (k, n))
    more = {"alpha": g.real(), "beta": g.real()} if g.chance(0.4) else {}
    c = [g.like(a.dtype, g.rng.choice(((m, n), (n,), (m, 1), (1,))))] if g.chance(0.7) else []
    g.add("Gemm", [a, b, *c], transA=ta, transB=tb, **more)


@row("Einsum")
def einsum(g: Graph) -> None:
    a = g.any(low=1, high=4, most=512)
    letters = "abcdefgh"
    left = letters[: a.rank]
    kept = [c for c in left if g.chance(0.5)]
    shape, right = [], ""
    for c, n in zip(left, a.shape, strict=True):
        if g.chance(0.6):
            right += c
            shape.append(n)
    right += "x"
    shape.append(g.size(8))
    b = g.like(a.dtype, shape)
    out = [*kept, "x"]
    g.rng.shuffle(out)
    equation = f"{left},{right}->{''.join(out)}"
    g.add("Einsum", [a, b], equation=equation if g.chance(0.8) else f"{left},{right}")


@row("Det")
def det(g: Graph) -> None:
    n = g.rng.choice((1, 2, 3, 4))
    dtype = g.float_type if g.float_type != F16 else F32
    g.add("Det", [g.new(dtype, (*g.shape(g.rng.choice((0, 1)), 8), n, n))])


def _spatial(g: Graph, rank: tuple[int, ...] = (3, 4, 4, 5)) -> Tensor:
    """[N, C, spatial...]"""
    fits = [t for t in g.tensors if t.dtype == g.float_type and t.rank in rank and t.size]
    if fits and g.chance(0.7):
        return g.rng.choice(fits)
    r = g.rng.choice(rank)
    return g.new(
        g.float_type,
        (
            g.rng.choice((1, 1, 2)),
            g.rng.choice((1, 2, 3, 4, 6)),
            *(g.size(13) for _ in range(r - 2)),
        ),
        0.0,
    )


@row("BatchNormalization")
def batch_norm(g: Graph) -> None:
    t = _spatial(g)
    c = t.shape[1]
    parts = [g.new(t.dtype, (c,), 0.9) for _ in range(3)]
    variance = g.put(g.values.uniform(0.2, 2, (c,)).astype(t.dtype), 0.9)
    g.add("BatchNormalization", [t, *parts, variance], epsilon=1e-3)


@row("LayerNormalization", "RMSNormalization")
def layer_norm(g: Graph) -> None:
    t = g.any(low=1)
    if t.dtype == F16:
        t = g.new(F32, g.shape(3))
    axis = g.axis(t)
    shape = t.shape[axis % t.rank :]
    op = (
        g.rng.choice(("LayerNormalization", "RMSNormalization"))
        if g.opset >= 23
        else "LayerNormalization"
    )
    parts = [g.like(t.dtype, shape)]
    if op == "LayerNormalization" and g.chance(0.6):
        parts.append(g.like(t.dtype, shape))
    g.add(op, [t, *parts], axis=axis, epsilon=1e-3)


@row("InstanceNormalization")
def instance_norm(g: Graph) -> None:
    t = _spatial(g)
    parts = [g.like(t.dtype, (t.shape[1],)) for _ in range(2)]
    g.add("InstanceNormalization", [t, *parts], epsilon=1e-2)


@row("GroupNormalization")
def group_norm(g: Graph) -> None:
    t = _spatial(g)
    c = t.shape[1]
    groups = g.rng.choice([k for k in range(1, c + 1) if c % k == 0])
    parts = [g.like(t.dtype, (c,)) for _ in range(2)]
    names = [x.name for x in (t, *parts)]
    node = helper.make_node(
        "GroupNormalization", names, [g.fresh("t")], num_groups=groups, epsilon=1e-2
    )
    g.attach(node, [t, *parts], [t])


@row("MeanVarianceNormalization")
def mean_variance(g: Graph) -> None:
    t = _spatial(g, (3, 4))
    if t.dtype != F32:  # the body that ONNX gives it holds f32 constants
        t = g.new(F32, t.shape)
    node = helper.make_node(
        "MeanVarianceNormalization", [t.name], [g.fresh("t")], axes=[0, 2, 3][: t.rank - 1]
    )
    g.attach(node, [t], [t])


@row("LpNormalization")
def lp_norm(g: Graph) -> None:
    t = g.any(low=1)
    g.add("LpNormalization", [t], axis=g.axis(t), p=g.rng.choice((1, 2)))


@row("LRN")
def lrn(g: Graph) -> None:
    g.add("LRN", [_spatial(g, (4,))], size=g.rng.choice((1, 2, 3, 5)), alpha=g.real(), bias=1.0)


@row("Attention")
def attention(g: Graph) -> None:
    b, kv, s, t, d, v = (
        1 + g.chance(0.3),
        g.rng.choice((1, 2)),
        g.size(17),
        g.size(33),
        g.rng.choice((4, 8)),
        g.rng.choice((4, 8)),
    )
    h = kv * g.rng.choice((1, 1, 2))
    dtype = g.float_type if g.float_type != F64 else F32
    q, k = g.like(dtype, (b, h, s, d)), g.like(dtype, (b, kv, t, d))
    operands = [q, k, g.like(dtype, (b, kv, t, v))]
    more: dict[str, float] = {"is_causal": 1} if g.chance(0.4) else {}
    if g.chance(0.3):
        more["scale"] = g.real() + 0.05
    if g.chance(0.3):
        more["softcap"] = 2.0
    if g.chance(0.4):
        shape = g.rng.choice(((s, t), (b, 1, s, t), (b, h, s, t)))
        operands.append(g.like(dtype if g.chance(0.6) else BOOL, shape))
    g.add("Attention", operands, **more)


@row("RotaryEmbedding")
def rotary(g: Graph) -> None:
    b, h, s, d = 1 + g.chance(0.3), g.rng.choice((1, 2, 3)), g.size(9), g.rng.choice((4, 8))
    dtype = g.float_type if g.float_type != F64 else F32
    x = g.like(dtype, (b, h, s, d))
    parts = [g.new(dtype, (16, d // 2)) for _ in range(2)]
    places = g.put(g.values.integers(0, 16, (b, s)).astype(I64), 0.5)
    g.add("RotaryEmbedding", [x, *parts, places], interleaved=int(g.chance(0.5)))


@row("LinearAttention")
def linear_attention(g: Graph) -> None:
    b, h, s, d, v = 1, g.rng.choice((1, 2)), g.size(9), g.rng.choice((2, 4)), g.rng.choice((2, 4))
    operands = [g.new(F32, (b, s, h * n), 0.0) for n in (d, d, v)]
    g.add("LinearAttention", operands, 2, q_num_heads=h, kv_num_heads=h, update_rule="linear")


def _recurrent(g: Graph, op: str) -> None:
    steps, batch, n, h = g.size(7), g.rng.choice((1, 2, 3)), g.size(8), g.rng.choice((1, 2, 4, 5))
    way = g.rng.choice(("forward", "forward", "reverse", "bidirectional"))
    ways = 1 + (way == "bidirectional")
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    dtype = g.float_type if g.float_type != F16 else F32
    x = g.like(dtype, (steps, batch, n))
    parts: list[Tensor | None] = [
        g.new(dtype, (ways, gates * h, n), 0.9), g.new(dtype, (ways, gates * h, h), 0.9)
    ]  # fmt: skip
    if g.chance(0.6):
        parts.append(g.new(dtype, (ways, 2 * gates * h), 0.9))
        if g.chance(0.4):
            lengths = g.values.integers(1, steps + 1, (batch,)).astype(np.int32)
            parts.append(g.put(lengths, 0.5))
        elif g.chance(0.4):
            parts += [None, g.new(dtype, (ways, batch, h))]
    more: dict[str, int] = {}
    if op == "GRU" and g.chance(0.5):
        more["linear_before_reset"] = 1
    g.add(op, [x, *parts], 3 if op == "LSTM" else 2, hidden_size=h, direction=way, **more)


for _name in ("LSTM", "GRU", "RNN"):
    row(_name)(partial(_recurrent, op=_name))
