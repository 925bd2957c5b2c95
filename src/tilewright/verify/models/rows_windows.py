"""Specifications: convolutions, pooling, resizing and sampling."""

from __future__ import annotations

from functools import partial
from typing import Any

import numpy as np

from tilewright.verify.models.graph import F16, F32, I8, I64, U8, Graph, Refused, Tensor
from tilewright.verify.models.rows import row

__all__: list[str] = []


def _image(g: Graph, rank: int = 0, channels: int = 0) -> Tensor:
    """[N, C, spatial...] of one to three spatial axes."""
    fits = [
        t for t in g.tensors
        if t.dtype == g.float_type and 3 <= t.rank <= 5 and t.size
        and (not rank or t.rank == rank) and (not channels or t.shape[1] == channels)
    ]  # fmt: skip
    if fits and g.chance(0.75):
        return g.rng.choice(fits)
    r = rank or g.rng.choice((3, 4, 4, 4, 5))
    c = channels or g.rng.choice((1, 2, 3, 4, 6, 8))
    most = 17 if r < 5 else 7
    shape = (g.rng.choice((1, 1, 2)), c, *(g.size(most) for _ in range(r - 2)))
    return g.new(g.float_type, shape, 0.0)


def _window(g: Graph, sizes: tuple[int, ...], dilate: bool = True) -> dict[str, Any]:
    """kernel_shape, strides, dilations and pads that leave at least one position."""
    kernel, strides, dilations, low, high = [], [], [], [], []
    for n in sizes:
        k, d = g.rng.choice((1, 2, 3, 3, 5)), g.rng.choice((1, 1, 1, 2)) if dilate else 1
        reach = d * (k - 1) + 1
        a, b = (g.rng.randint(0, (reach - 1) // 2 if d == 1 else 0) for _ in range(2))
        if n + a + b < reach:
            k, d, a, b = 1, 1, 0, 0
        kernel.append(k)
        strides.append(g.rng.choice((1, 1, 2, 3)))
        dilations.append(d)
        low.append(a)
        high.append(b)
    out: dict[str, Any] = {"kernel_shape": kernel}
    if g.chance(0.6):
        out["strides"] = strides
    if dilate and any(d > 1 for d in dilations):
        out["dilations"] = dilations
    if g.chance(0.2) and "dilations" not in out:
        out["auto_pad"] = g.rng.choice(("SAME_UPPER", "SAME_LOWER", "VALID"))
        if "strides" in out and out["auto_pad"] != "VALID":
            # Where a stride is longer than the window, the standard's formula pads by less than 0.
            out["strides"] = [min(s, k) for s, k in zip(strides, kernel, strict=True)]
        if out["auto_pad"] == "VALID" and any(n < k for n, k in zip(sizes, kernel, strict=True)):
            raise Refused("too small")
    elif any(low + high) or "dilations" in out:
        out["pads"] = low + high
    return out


@row("Conv")
def conv(g: Graph) -> None:
    x = _image(g)
    c = x.shape[1]
    groups = g.rng.choice([k for k in range(1, c + 1) if c % k == 0] + [1, 1])
    outs = groups * g.rng.choice((1, 1, 2, 3, 4))
    more = _window(g, x.shape[2:])
    w = g.new(x.dtype, (outs, c // groups, *more["kernel_shape"]), 0.8)
    bias = [g.new(x.dtype, (outs,), 0.8)] if g.chance(0.6) else []
    g.add("Conv", [x, w, *bias], group=groups, **more)


@row("ConvTranspose")
def conv_transpose(g: Graph) -> None:
    x = _image(g)
    c = x.shape[1]
    groups = g.rng.choice([k for k in range(1, c + 1) if c % k == 0] + [1, 1])
    per = g.rng.choice((1, 2, 3))
    kernel = [g.rng.choice((1, 2, 3)) for _ in x.shape[2:]]
    strides = [g.rng.choice((1, 2, 3)) for _ in kernel]
    more: dict[str, Any] = {"kernel_shape": kernel, "strides": strides}
    if g.chance(0.4):
        more["pads"] = [min(g.rng.randint(0, 1), (k - 1) // 2) for _ in range(2) for k in kernel]
    if g.chance(0.3):
        more["output_padding"] = [g.rng.randint(0, s - 1) for s in strides]
    w = g.new(x.dtype, (c, per, *kernel), 0.8)
    bias = [g.new(x.dtype, (per * groups,), 0.8)] if g.chance(0.5) else []
    g.add("ConvTranspose", [x, w, *bias], group=groups, **more)


def _pool(g: Graph, op: str) -> None:
    x = _image(g)
    more = _window(g, x.shape[2:], dilate=op != "LpPool")
    if g.chance(0.3) and "auto_pad" not in more and op != "LpPool":
        more["ceil_mode"] = 1
    if op == "AveragePool" and g.chance(0.4):
        more["count_include_pad"] = 1
    if op == "LpPool":
        more["p"] = g.rng.choice((1, 2, 3))
    g.add(op, [x], 2 if op == "MaxPool" and g.chance(0.2) else 1, **more)


for _name in ("MaxPool", "AveragePool", "LpPool"):
    row(_name)(partial(_pool, op=_name))


def _global(g: Graph, op: str) -> None:
    g.add(op, [_image(g)])


for _name in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool"):
    row(_name)(partial(_global, op=_name))


@row("MaxUnpool")
def unpool(g: Graph) -> None:
    x = g.new(F32, (1, g.rng.choice((1, 2)), 2 * g.size(5), 2 * g.size(5)), 0.0)
    y, places = g.add("MaxPool", [x], 2, kernel_shape=[2, 2], strides=[2, 2])
    g.add("MaxUnpool", [y, places], kernel_shape=[2, 2], strides=[2, 2])


@row("DeformConv")
def deform(g: Graph) -> None:
    n, c, k, outs = g.size(7) + 2, g.rng.choice((1, 2)), g.rng.choice((1, 2)), g.rng.choice((1, 2))
    x, w = g.new(F32, (1, c, n, n), 0.0), g.new(F32, (outs, c, k, k))
    m = n - k + 1
    offset = g.new(F32, (1, 2 * k * k, m, m))
    mask = [None, g.new(F32, (1, k * k, m, m))] if g.chance(0.4) else []
    g.add("DeformConv", [x, w, offset, *mask], kernel_shape=[k, k])


def _integer(g: Graph, op: str) -> None:
    c, n = g.rng.choice((1, 2, 4)), g.size(9) + 2
    k, outs = g.rng.choice((1, 2, 3)), g.rng.choice((1, 2, 5))
    x, w = g.like(U8, (1, c, n, n)), g.new(g.rng.choice((U8, I8)), (outs, c, k, k), 0.9)
    zero = g.const(g.rng.randrange(9), U8)
    pads = {"pads": [k // 2] * 4} if g.chance(0.5) else {}
    if op == "ConvInteger":
        g.add(op, [x, w, zero] if g.chance(0.6) else [x, w], **pads)
        return
    scale = [g.const(round(g.rng.uniform(0.01, 0.1), 4), F32) for _ in range(2)]
    wz = g.const(0 if w.dtype == I8 else 3, w.dtype)
    parts = [x, scale[0], zero, w, scale[1], wz, g.const(0.9, F32), g.const(4, U8)]
    g.add(op, parts, **pads)


for _name in ("ConvInteger", "QLinearConv"):
    row(_name)(partial(_integer, op=_name))


@row("Resize")
def resize(g: Graph) -> None:
    x = _image(g, 4)
    if x.dtype == F16:
        x = g.new(F32, (1, 2, 5, 7), 0.0)
    mode = g.rng.choice(("nearest", "linear", "linear", "cubic"))
    more: dict[str, Any] = {
        "mode": mode,
        "coordinate_transformation_mode": g.rng.choice(
            ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
        ),
    }
    if mode == "nearest":
        more["nearest_mode"] = g.rng.choice(("round_prefer_floor", "floor", "ceil"))
    if g.chance(0.5):
        odd = 2.5 if mode == "nearest" else 2.6  # of 2.6 places hang on how it is rounded
        scales = [1.0, 1.0, *(g.rng.choice((0.5, 1.0, 1.5, 2.0, odd)) for _ in range(2))]
        g.add("Resize", [x, None, g.const(scales, F32)], **more)
    else:
        sizes = [*x.shape[:2], *(g.size(13) for _ in range(2))]
        g.add("Resize", [x, None, None, g.const(sizes)], **more)


@row("Upsample", old=True)
def upsample(g: Graph) -> None:
    x = _image(g, 4)
    scales = g.const([1.0, 1.0, g.rng.choice((1.0, 2.0)), g.rng.choice((2.0, 3.0))], F32)
    g.add("Upsample", [x, scales], mode=g.rng.choice(("nearest", "linear")))


@row("GridSample")
def grid_sample(g: Graph) -> None:
    x = _image(g, 4)
    if x.dtype == F16:
        x = g.new(F32, (1, 2, 5, 7), 0.0)
    places = g.values.uniform(-1.2, 1.2, (x.shape[0], g.size(5), g.size(5), 2)).astype(x.dtype)
    more = {
        "mode": g.rng.choice(("linear", "nearest", "cubic")),
        "padding_mode": g.rng.choice(("zeros", "border", "reflection")),
        "align_corners": int(g.chance(0.5)),
    }
    g.add("GridSample", [x, g.put(places)], **more)


@row("AffineGrid")
def affine_grid(g: Graph) -> None:
    n = g.rng.choice((1, 2))
    corners = int(g.chance(0.5))
    # With corners aligned nobody agrees where one row lies (tests/regress/third_parties).
    shape = (n, 1, *(max(g.size(7), 1 + corners) for _ in range(2)))
    g.add("AffineGrid", [g.new(F32, (n, 2, 3)), g.const(shape)], align_corners=corners)


def _regions(g: Graph, n: int) -> np.ndarray[Any, np.dtype[Any]]:
    corners = g.values.uniform(0, 6, (n, 2))
    return np.concatenate([corners, corners + g.values.uniform(0.5, 5, (n, 2))], 1).astype(F32)


@row("RoiAlign")
def roi_align(g: Graph) -> None:
    x = g.new(F32, (1, g.rng.choice((1, 2)), 9, 8), 0.0)
    n = g.rng.randint(1, 3)
    parts = [g.put(_regions(g, n)), g.put(np.zeros(n, I64))]
    more = {"mode": g.rng.choice(("avg", "max")), "sampling_ratio": g.rng.choice((1, 2))}
    g.add("RoiAlign", [x, *parts], output_height=2, output_width=g.rng.choice((1, 3)), **more)


@row("MaxRoiPool")
def max_roi_pool(g: Graph) -> None:
    x = g.new(F32, (1, g.rng.choice((1, 2)), 9, 8), 0.0)
    n = g.rng.randint(1, 3)
    regions = np.concatenate([np.zeros((n, 1), F32), np.floor(_regions(g, n)).clip(0, 7)], 1)
    g.add("MaxRoiPool", [x, g.put(regions.astype(F32))], pooled_shape=[2, g.rng.choice((1, 3))])
