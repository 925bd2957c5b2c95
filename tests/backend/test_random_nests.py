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
