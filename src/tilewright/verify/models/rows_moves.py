"""Specifications: operators that move elements, choose them, or make them."""

from __future__ import annotations

from functools import partial
from math import prod

import numpy as np
from onnx import helper, numpy_helper

from tilewright.verify.models.graph import BOOL, F32, I32, I64, Graph, Refused, Tensor
from tilewright.verify.models.rows import row

__all__: list[str] = []


@row("Reshape")
def reshape(g: Graph) -> None:
    t = g.any("fib")
    if t.size == 0:
        raise Refused("empty")
    rest = t.size
    shape: list[int] = []
    while rest > 1 and len(shape) < 4 and g.chance(0.8):
        n = g.rng.choice([k for k in range(1, rest + 1) if rest % k == 0])
        shape.append(n)
        rest //= n
    shape.append(rest)
    g.rng.shuffle(shape)
    if g.chance(0.3):
        shape[g.rng.randrange(len(shape))] = -1
    g.add("Reshape", [t, g.const(shape)])


@row("Flatten")
def flatten(g: Graph) -> None:
    t = g.any("fi", low=1)
    g.add("Flatten", [t], axis=g.rng.randint(-t.rank, t.rank))


@row("Squeeze")
def squeeze(g: Graph) -> None:
    t = g.any("fi", low=1)
    ones = [k for k, n in enumerate(t.shape) if n == 1]
    if not ones:
        t = g.one("Unsqueeze", [t, g.const([g.rng.randint(0, t.rank)])])
        ones = [k for k, n in enumerate(t.shape) if n == 1]
    chosen = g.rng.sample(ones, g.rng.randint(1, len(ones)))
    g.add("Squeeze", [t, g.const(chosen)] if g.chance(0.8) else [t])


@row("Unsqueeze")
def unsqueeze(g: Graph) -> None:
    t = g.any("fib", high=4)
    count = g.rng.choice((1, 1, 2))
    axes = g.rng.sample(range(t.rank + count), count)
    g.add("Unsqueeze", [t, g.const(axes)])


@row("Transpose")
def transpose(g: Graph) -> None:
    t = g.any("fib", low=1)
    order = list(range(t.rank))
    g.rng.shuffle(order)
    g.add("Transpose", [t], **({"perm": order} if g.chance(0.85) else {}))


@row("Concat")
def concat(g: Graph) -> None:
    t = g.any("fi", low=1)
    k = g.axis(t)
    parts = [t]
    for _ in range(g.rng.choice((1, 1, 2))):
        shape = list(t.shape)
        shape[k] = g.size(9)
        parts.append(g.like(t.dtype, shape))
    g.rng.shuffle(parts)
    g.add("Concat", parts, axis=k)


@row("Split")
def split(g: Graph) -> None:
    t = g.any("fi", low=1)
    k = g.axis(t)
    n = t.shape[k]
    if n < 2:
        raise Refused("too short")
    if g.chance(0.5):
        first = g.rng.randint(1, n - 1)
        g.add("Split", [t, g.const([first, n - first])], 2, axis=k)
    else:
        count = g.rng.randint(2, min(n, 4))
        if -(-n // count) * (count - 1) >= n:
            raise Refused("a part would be empty")
        g.add("Split", [t], count, axis=k, num_outputs=count)


@row("Slice")
def cut(g: Graph) -> None:
    t = g.any("fib", low=1)
    axes = g.rng.sample(range(t.rank), g.rng.randint(1, min(2, t.rank)))
    begin, end, step = [], [], []
    for k in axes:
        n, s = t.shape[k], g.rng.choice((1, 1, 2, 3, -1, -2))
        a, b = sorted(g.rng.sample(range(n + 1), 2)) if n else (0, 0)
        if s < 0:
            a, b = b - 1, (a - 1 if a else -n - 1)
        elif g.chance(0.2):
            a, b = a - n, 1 << 40
        begin.append(a)
        end.append(b)
        step.append(s)
    g.add("Slice", [t, g.const(begin), g.const(end), g.const(axes), g.const(step)])


@row("Tile")
def tile(g: Graph) -> None:
    t = g.any("fi", low=1, most=512)
    g.add("Tile", [t, g.const([g.rng.choice((1, 1, 2, 3)) for _ in t.shape])])


@row("Expand")
def expand(g: Graph) -> None:
    t = g.any("fi", high=3, most=512)
    shape = [g.size(5) if n == 1 else n for n in t.shape]
    g.add("Expand", [t, g.const([*([g.size(4)] if g.chance(0.4) else []), *shape])])


@row("Shape")
def shape_of(g: Graph) -> None:
    t = g.any("fi")
    start = g.rng.randint(-2, min(2, len(t.shape) - 1))  # of a shape without axes nothing follows
    g.add("Shape", [t], **({"start": start} if g.chance(0.3) and t.shape else {}))


@row("Size")
def size_of(g: Graph) -> None:
    g.add("Size", [g.any("fi")])


@row("Constant")
def constant(g: Graph) -> None:
    value = g.draw_array(g.float_type, g.shape(g.rng.choice((0, 1, 2)), 64))
    g.add("Constant", [], value=numpy_helper.from_array(value))


@row("ConstantOfShape")
def constant_of_shape(g: Graph) -> None:
    value = np.asarray([g.real()], F32)
    g.add("ConstantOfShape", [g.const(g.shape(2, 256))], value=numpy_helper.from_array(value))


@row("Dropout")
def dropout(g: Graph) -> None:
    g.add("Dropout", [g.any()])


@row("Range")
def count_up(g: Graph) -> None:
    g.add(
        "Range",
        [g.const(v) for v in (g.rng.randint(-3, 3), g.rng.randint(4, 20), g.rng.randint(1, 3))],
    )


@row("EyeLike")
def eye(g: Graph) -> None:
    g.add("EyeLike", [g.any("f", low=2, high=2)], k=g.rng.randint(-2, 2))


@row("OneHot")
def one_hot(g: Graph) -> None:
    ids = g.put(g.values.integers(-4, 5, g.shape(g.rng.choice((1, 2)), 64)).astype(I64))
    values = g.put(np.asarray([0, 1], g.float_type))
    g.add("OneHot", [ids, g.const(5), values], axis=g.rng.randint(-1, ids.rank))


@row("Trilu")
def triangle(g: Graph) -> None:
    t = g.any("fi", low=2)
    by = [g.const(g.rng.randint(-2, 2))] if g.chance(0.6) else []
    g.add("Trilu", [t, *by], upper=int(g.chance(0.5)))


@row("Pad")
def pad(g: Graph) -> None:
    t = g.any("f", low=1, high=4)
    mode = g.rng.choice(("constant", "constant", "edge", "reflect", "wrap"))
    most = [3 if mode in ("constant", "edge") else max(0, n - 1) for n in t.shape]
    sides = [min(g.rng.randint(0, 2), m) for _ in range(2) for m in most]
    if mode == "constant" and g.chance(0.2):
        sides[0] = -1 if t.shape[0] > 1 else 0
    value = [g.const(g.real(), t.dtype)] if mode == "constant" and g.chance(0.6) else []
    g.add("Pad", [t, g.const(sides), *value], mode=mode)


@row("CenterCropPad")
def crop(g: Graph) -> None:
    t = g.any("f", low=1, high=4)
    g.add("CenterCropPad", [t, g.const([max(1, n + g.rng.randint(-3, 3)) for n in t.shape])])


def _positions(g: Graph, shape: tuple[int, ...], n: int) -> Tensor:
    """Places along an axis of `n`, some counted from its end."""
    if n == 0:
        raise Refused("empty")
    ids = g.values.integers(-n if g.chance(0.3) else 0, n, shape)
    return g.put(ids.astype(g.rng.choice((I64, I64, I32))))


@row("Gather")
def gather(g: Graph) -> None:
    t = g.any("fi", low=1)
    k = g.axis(t)
    g.add("Gather", [t, _positions(g, g.shape(g.rng.choice((0, 1, 2)), 16), t.shape[k])], axis=k)


@row("GatherElements")
def gather_elements(g: Graph) -> None:
    t = g.any("fi", low=1)
    k = g.axis(t) % t.rank
    shape = tuple(g.rng.randint(1, max(1, n)) for n in t.shape)
    g.add("GatherElements", [t, _positions(g, shape, t.shape[k])], axis=k)


@row("GatherND")
def gather_nd(g: Graph) -> None:
    t = g.any("fi", low=1)
    depth = g.rng.randint(1, min(2, t.rank))
    lead = g.shape(g.rng.choice((1, 2)), 16)
    if 0 in t.shape:
        raise Refused("empty")
    ids = np.stack([g.values.integers(0, t.shape[k], lead) for k in range(depth)], -1)
    g.add("GatherND", [t, g.put(ids.astype(I64))])


@row("ScatterElements")
def scatter_elements(g: Graph) -> None:
    t = g.any("fi", low=1)
    k = g.axis(t) % t.rank
    how = g.rng.choice(("none", "add", "mul", "max", "min"))
    shape = tuple(g.rng.randint(1, max(1, n)) for n in t.shape)
    if how == "none":  # two values for one place are not defined
        ids = np.argsort(g.values.random(t.shape), axis=k)[tuple(slice(n) for n in shape)]
        places = g.put(ids.astype(I64))
    else:
        places = _positions(g, shape, t.shape[k])
    g.add("ScatterElements", [t, places, g.like(t.dtype, shape)], axis=k, reduction=how)


@row("ScatterND")
def scatter_nd(g: Graph) -> None:
    t = g.any("f", low=1, high=3)
    if 0 in t.shape:
        raise Refused("empty")
    how = g.rng.choice(("none", "add", "mul", "max", "min"))
    count = g.rng.randint(1, t.shape[0]) if how == "none" else g.rng.randint(1, 6)
    ids = (
        g.values.permutation(t.shape[0])[:count]
        if how == "none"
        else g.values.integers(0, t.shape[0], count)
    )
    places = g.put(ids.astype(I64).reshape(-1, 1))
    g.add("ScatterND", [t, places, g.like(t.dtype, (len(ids), *t.shape[1:]))], reduction=how)


@row("Scatter", old=True)
def scatter_old(g: Graph) -> None:
    t = g.any("f", low=1)
    k = g.rng.randrange(t.rank)
    ids = np.argsort(g.values.random(t.shape), axis=k)
    g.add("Scatter", [t, g.put(ids.astype(I64)), g.like(t.dtype, t.shape)], axis=k)


@row("TensorScatter")
def tensor_scatter(g: Graph) -> None:
    b, n, d = g.rng.choice((1, 2)), g.rng.randint(4, 9), g.size(8)
    past, update = g.like(g.float_type, (b, 2, n, d)), g.like(g.float_type, (b, 2, 3, d))
    mode = g.rng.choice(("linear", "circular"))
    most = n - 3 if mode == "linear" else n - 1
    places = g.put(g.values.integers(0, most + 1, (b,)).astype(I64))
    g.add("TensorScatter", [past, update, places], mode=mode, axis=-2)


@row("NonZero")
def non_zero(g: Graph) -> None:
    g.add("NonZero", [g.any("fib", low=1, most=256)])


@row("Compress")
def compress(g: Graph) -> None:
    t = g.any("f", low=1)
    k = g.axis(t)
    g.add("Compress", [t, g.new(BOOL, (t.shape[k],), 0.5)], axis=k)


@row("Unique")
def unique(g: Graph) -> None:
    t = g.any("fi", low=1, most=256)
    if t.dtype.kind == "f":  # how many there are of computed values may hang on their last bits
        t = g.put(np.round(g.values.standard_normal(t.shape), 1).astype(t.dtype), 0.5)
    more = {"axis": g.axis(t)} if g.chance(0.4) and t.size else {}
    g.add("Unique", [t], 4, sorted=int(g.chance(0.6)), **more)


@row("TopK")
def top_k(g: Graph) -> None:
    t = g.any("fi", low=1)
    k = g.axis(t)
    if not t.shape[k]:
        raise Refused("empty")
    count = g.const([g.rng.randint(1, t.shape[k])])
    g.add("TopK", [t, count], 2, axis=k, largest=int(g.chance(0.6)))


@row("NonMaxSuppression")
def suppress(g: Graph) -> None:
    n = g.rng.randint(1, 12)
    corners = np.sort(g.values.random((1, n, 2, 2)).astype(F32), axis=2)
    boxes = g.put(corners.reshape(1, n, 4))
    scores = g.put(g.values.permutation(n).reshape(1, 1, n).astype(F32) / n)
    g.add("NonMaxSuppression", [boxes, scores, g.const([4]), g.const([0.4], F32)])


@row("ReverseSequence")
def reverse(g: Graph) -> None:
    t = g.any("f", low=2)
    if 0 in t.shape:
        raise Refused("empty")
    lengths = g.put(g.values.integers(1, t.shape[0] + 1, (t.shape[1],)).astype(I64))
    g.add("ReverseSequence", [t, lengths], time_axis=0, batch_axis=1)


@row("DepthToSpace")
def depth_to_space(g: Graph) -> None:
    b = g.rng.choice((1, 2, 3))
    t = g.like(g.float_type, (1, b * b * g.rng.choice((1, 2)), g.size(7), g.size(7)))
    g.add("DepthToSpace", [t], blocksize=b, mode=g.rng.choice(("DCR", "CRD")))


@row("SpaceToDepth")
def space_to_depth(g: Graph) -> None:
    b = g.rng.choice((1, 2, 3))
    t = g.like(g.float_type, (1, g.rng.choice((1, 3)), b * g.size(5), b * g.size(5)))
    g.add("SpaceToDepth", [t], blocksize=b)


@row("Col2Im")
def col2im(g: Graph) -> None:
    n, k = (g.size(9) + 2, g.size(9) + 2), (g.rng.choice((1, 2, 3)), g.rng.choice((1, 2)))
    blocks = prod(a - b + 1 for a, b in zip(n, k, strict=True))
    t = g.like(
        g.float_type if g.float_type.itemsize > 2 else np.dtype(F32), (1, 2 * prod(k), blocks)
    )
    g.add("Col2Im", [t, g.const(n), g.const(k)])


def _signal(g: Graph, op: str) -> None:
    dtype = g.float_type if g.float_type.itemsize > 2 else F32
    n = g.rng.choice((1, 2, 4, 5, 8, 12))
    if op == "DFT":
        real = g.chance(0.5)
        t = g.like(dtype, (g.rng.choice((1, 2)), n, 1 if real else 2))
        more = {"onesided": 1} if real and g.chance(0.5) else {}
        if not more and g.chance(0.4):
            more = {"inverse": 1}
        g.add("DFT", [t, None, g.const(1)], **more)
    else:
        t = g.like(dtype, (1, n + 16, 1))
        window = g.new(dtype, (8,))
        g.add("STFT", [t, g.const(4), window, g.const(8)], onesided=int(g.chance(0.5)))


for _name in ("DFT", "STFT"):
    row(_name)(partial(_signal, op=_name))


@row("MelWeightMatrix")
def mel(g: Graph) -> None:
    parts = [g.const(g.rng.choice((4, 8))), g.const(16), g.const(8000)]
    kind = helper.np_dtype_to_tensor_dtype(F32)
    g.add(
        "MelWeightMatrix", [*parts, g.const(0.0, F32), g.const(4000.0, F32)], output_datatype=kind
    )
