"""Every scalar operation, dtype, target: native code against ir/scalar.py on special and random values."""

from __future__ import annotations

import itertools
from typing import Any

import ml_dtypes
import numpy as np
import pytest
from native import run_native

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, DTYPES, DType
from tilewright.ir.nest import Buffer, For, Load, LoopNest, Map, Node, Phase, Store, TileType
from tilewright.ir.nest_verifier import verify_nest
from tilewright.ir.scalar import evaluate
from tilewright.machine.target import Target

TARGETS = ("native", "x86-avx512", "x86-avx2", "x86-sse42")
_EXACT = ("neg", "abs", "sign", "floor", "ceil", "round", "trunc", "sqrt", "isnan", "isinf")
_PAIRS = ("add", "sub", "mul", "div", "min", "max", "floordiv", "mod")
_BITS = ("and", "or", "xor", "shl", "shr", "fmod", "pow")


def values(dtype: DType) -> np.ndarray[Any, np.dtype[Any]]:
    r = np.random.default_rng(0)
    if dtype is BOOL:
        return r.integers(0, 2, 70).astype(bool)
    if dtype.is_int:
        info = np.iinfo(dtype.np)  # type: ignore[type-var]
        special = [
            0,
            1,
            2,
            3,
            7,
            info.max,
            info.min,
            info.max - 1,
            info.min + 1,
            -1 % (info.max + 1),
        ]
        if dtype.kind == "i":
            special += [-1, -2, -3, -7]
        return np.concatenate(
            [special, r.integers(info.min, info.max, 40, dtype.np), r.integers(0, 20, 20)]
        ).astype(dtype.np)
    info = ml_dtypes.finfo(dtype.np)
    special = [0.0, -0.0, 1, -1, 0.5, -0.5, 1.5, 2.5, -2.5, np.inf, -np.inf, np.nan, float(info.max), -float(info.max),
               float(info.tiny), float(info.smallest_subnormal), 127.5, 128, 255.9, -129, 32768, 65504, 3e9, -3e9, 1e19]  # fmt: skip
    with np.errstate(all="ignore"):
        return np.concatenate([special, r.standard_normal(40) * 10]).astype(dtype.np)


def operations(dtype: DType) -> list[tuple[str, DType, int]]:
    """(operation, result dtype, operands) that the dtype has."""
    out: list[tuple[str, DType, int]] = [("cast", d, 1) for d in DTYPES.values() if d is not dtype]
    out += [(c, BOOL, 2) for c in ("lt", "le", "eq", "ne")]
    if dtype is BOOL:
        return [
            *out,
            ("not", BOOL, 1),
            *((b, BOOL, 2) for b in ("and", "or", "xor", "add", "mul", "min", "max")),
        ]
    if dtype.is_float:
        out += [(u, BOOL if u.startswith("is") else dtype, 1) for u in _EXACT]
        return out + [(p, dtype, 2) for p in _PAIRS if p not in ("floordiv", "mod")]
    out += [(u, dtype, 1) for u in ("abs", "sign", "not")] + (
        [("neg", dtype, 1)] if dtype.kind == "i" else []
    )
    return out + [(p, dtype, 2) for p in (*_PAIRS, *_BITS)]


def build(dtype: DType, lanes: int) -> tuple[LoopNest, int]:
    t = TileType(dtype, (("n", lanes),), "n") if lanes else TileType(dtype)
    step = lanes or 1
    n = len(values(dtype)) ** 2
    axis = (("n", E.const(1)),) if lanes else ()
    limit = (("n", E.const(0), E.const(n) - E.index("i")),) if lanes else ()
    buffers = [Buffer("x", dtype, E.const(n), "arg"), Buffer("y", dtype, E.const(n), "arg")]
    body: list[Node] = [Load(b, t, b, E.index("i"), axis, limit, 0) for b in ("x", "y")]
    for k, (op, result, count) in enumerate(operations(dtype)):
        buffers.append(Buffer(f"o{k}", result, E.const(n), "arg"))
        body.append(Map(f"r{k}", TileType(result, t.axes, t.lane), op, ("x", "y")[:count]))
        body.append(Store(f"o{k}", E.index("i"), axis, f"r{k}", limit))
    loop = For("i", E.const(0), E.const(n), step, tuple(body))
    return LoopNest("operations", tuple(buffers), (), (Phase((loop,)),)), n


@pytest.mark.parametrize("dtype", DTYPES.values(), ids=str)
@pytest.mark.parametrize("lanes", [0, 24])
def test_every_operation(dtype: DType, lanes: int) -> None:
    nest, n = build(dtype, lanes)
    verify_nest(nest)
    v = values(dtype)
    x, y = (np.ascontiguousarray(a.reshape(-1)) for a in np.meshgrid(v, v, indexing="ij"))
    buffers = {"x": x, "y": y}
    for b in nest.buffers[2:]:
        buffers[b.name] = np.zeros(n, b.dtype.np)
    with np.errstate(all="ignore"):
        want = [evaluate(op, [x, y][:count], result) for op, result, count in operations(dtype)]
    for name in TARGETS:
        target = Target.named(name)
        if lanes == 0 and name not in ("native", "x86-sse42"):
            continue
        got = run_native(nest, target, buffers, {})
        for k, (op, result, _) in enumerate(operations(dtype)):
            a, b = got[f"o{k}"], want[k]
            same = (a == b) | ((a != a) & (b != b))
            if op == "div" and dtype.kind == "i":  # the lowest integer has no absolute value
                same |= (x == np.iinfo(dtype.np).min) | (y == np.iinfo(dtype.np).min)  # type: ignore[type-var]
            if not same.all():
                i = int(np.flatnonzero(~same)[0])
                raise AssertionError(
                    f"{name}: {op}({x[i]!r}, {y[i]!r}) -> {result}: {a[i]!r}, expected {b[i]!r}"
                )


@pytest.mark.parametrize("narrow", ["f16", "bf16"])
def test_every_half_pattern(narrow: str) -> None:
    """All 65536 patterns to f32, and f32 numbers on, beside and between them back."""
    text = f"""nest half format 1:
  arg H: {narrow}[65536]
  arg W: f32[65536]
  arg F: f32[262144]
  arg N: {narrow}[262144]
  phase:
    for i in 0 .. 65536 step 16:
      h: {narrow}[n:16*] = load H[i] by (n=1)
      w: f32[n:16*] = cast h
      store W[i] by (n=1) = w
    for j in 0 .. 262144 step 16:
      f: f32[n:16*] = load F[j] by (n=1)
      g: {narrow}[n:16*] = cast f
      store N[j] by (n=1) = g
"""
    from tilewright.ir.nest import parse_nest

    d = DTYPES[narrow].np
    h = np.arange(65536, dtype=np.uint16).view(d)
    with np.errstate(all="ignore"):
        wide = h.astype(np.float32)
        middle = (wide.view(np.uint32) + np.uint32(0x1000 if narrow == "f16" else 0x8000)).view(
            np.float32
        )
        f = np.concatenate(
            [
                wide,
                middle,
                np.nextafter(middle, np.float32(np.inf)),
                np.nextafter(middle, -np.float32(1e38)),
            ]
        )
        want = f.astype(d)
    buffers = {"H": h, "W": np.zeros(65536, np.float32), "F": f, "N": np.zeros(262144, d)}
    for name in TARGETS:
        got = run_native(parse_nest(text), Target.named(name), buffers, {})
        for a, b in ((got["W"], wide), (got["N"], want)):
            bits = np.uint32 if a.itemsize == 4 else np.uint16
            same = (a.view(bits) == b.view(bits)) | (
                np.isnan(a.astype(np.float32)) & np.isnan(b.astype(np.float32))
            )
            assert same.all(), (name, np.flatnonzero(~same)[:4], a[~same][:4], b[~same][:4])


def test_all_dtypes_are_covered() -> None:
    seen = set(
        itertools.chain.from_iterable((op for op, _, _ in operations(d)) for d in DTYPES.values())
    )
    assert E.COMPARE <= seen and "cast" in seen
