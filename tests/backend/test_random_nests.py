"""Random nests: native code on three instruction sets gives the interpreter's values, bit for bit."""

from __future__ import annotations

import numpy as np
import pytest
from native import run_native

from tilewright.ir.nest import parse_nest
from tilewright.ir.nest_interpreter import run_nest
from tilewright.ir.nest_verifier import verify_nest
from tilewright.machine.target import Target
from tilewright.verify.nests import Generator


@pytest.mark.parametrize("seed", range(24))
def test_native_equals_interpreter(seed: int) -> None:
    nest, data, dims = Generator(seed).nest()
    assert parse_nest(str(nest)) == nest
    verify_nest(nest)
    want = {k: v.copy() for k, v in data.items()}
    run_nest(nest, want, dims)
    for target in ("x86-avx512", "x86-avx2", "x86-sse42"):
        got = run_native(
            nest, Target.named(target), data, dims, at_start=seed % 2 == 1, at_once=1 + seed % 3
        )
        for k in got:
            a, b = got[k].astype(np.float64), want[k].astype(np.float64)
            assert np.array_equal(a, b, equal_nan=True), (target, k)


def test_lanes_become_scalars_under_two_more_axes() -> None:
    nest = parse_nest("""nest k format 1:
  arg x: f32[64]
  arg y: f32[64]
  phase:
    v: f32[a:2, b:2, c:16*] = load x[0] by (a=32, b=16, c=1)
    w: f32[a:2, b:2, c:16] = relayout v
    store y[0] by (a=16, b=32, c=1) = w
""")
    verify_nest(nest)
    data = {"x": np.arange(64, dtype=np.float32), "y": np.zeros(64, np.float32)}
    want = {k: v.copy() for k, v in data.items()}
    run_nest(nest, want, {})
    assert want["y"][32] == 16
    got = run_native(nest, Target.named("x86-sse42"), data, {})
    assert np.array_equal(got["y"], want["y"])
