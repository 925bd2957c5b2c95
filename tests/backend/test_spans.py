"""Lanes a few elements apart: native code gives the interpreter's values and touches nothing before
the first lane or behind the last one.
"""

from __future__ import annotations

import numpy as np
import pytest
from native import assembly, run_native

from tilewright.codegen.llvm import emit_llvm
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.nest import LoopNest, parse_nest
from tilewright.ir.nest_interpreter import run_nest
from tilewright.ir.nest_verifier import verify_nest
from tilewright.machine.target import Target

TARGETS = ("x86-avx512", "x86-avx2", "x86-sse42")


def assert_agrees(nest: LoopNest, dtype: str, size: int, dims: dict[str, int], out: int) -> None:
    verify_nest(nest)
    kind = DTYPES[dtype].np
    x = (np.arange(size) % 113).astype(kind)
    data = {"x": x, "y": np.zeros(out, kind)}
    want = {k: v.copy() for k, v in data.items()}
    run_nest(nest, want, dims)
    for target in TARGETS:
        for at_start in (False, True):
            got = run_native(nest, Target.named(target), data, dims, at_start)
            a, b = got["y"].astype(np.float64), want["y"].astype(np.float64)
            assert np.array_equal(a, b), (target, at_start)


@pytest.mark.parametrize("step", [2, 3, 4, 5, 8])
@pytest.mark.parametrize(
    ("dtype", "lanes"),
    [("f32", 5), ("f32", 16), ("f32", 56), ("f64", 24), ("bf16", 64), ("u8", 40), ("bool", 33)],
)
def test_a_row_ends_with_the_buffer(dtype: str, lanes: int, step: int) -> None:
    size = 3 * step + (lanes - 1) * step + 1
    nest = parse_nest(f"""nest k format 1:
  arg x: {dtype}[{size}]
  arg y: {dtype}[{4 * lanes}]
  phase:
    v: {dtype}[a:4, c:{lanes}*] = load x[0] by (a={step}, c={step})
    store y[0] by (a={lanes}, c=1) = v
""")
    assert_agrees(nest, dtype, size, {}, 4 * lanes)


@pytest.mark.parametrize("step", [2, 3, 4])
@pytest.mark.parametrize(("dtype", "other"), [("f32", "-inf"), ("i32", "7"), ("u8", "3")])
@pytest.mark.parametrize("lo", ["1", "16", "2 - N", "N - 2"])
def test_limits_become_masks(lo: str, dtype: str, other: str, step: int) -> None:
    lanes, size = 48, 90
    count = -(-(size - 3) // step)
    nest = parse_nest(f"""nest k format 1:
  dim N
  arg x: {dtype}[{size}]
  arg y: {dtype}[{2 * lanes}]
  phase:
    v: {dtype}[a:2, c:{lanes}*] = load x[-{step}*({lo})] by (a=3, c={step}) within (c: {lo} .. min({lo} + {count}, {lanes})) else {other}
    store y[0] by (a={lanes}, c=1) = v
""")
    for n in (0, 2, 3, 19, 50):
        first = {"1": 1, "16": 16, "2 - N": 2 - n, "N - 2": n - 2}[lo]
        if first < 0:
            continue
        # Lane l of row a reads element 3*a + step*(l - lo), which exists from lane lo on.
        assert_agrees(nest, dtype, size, {"N": n}, 2 * lanes)


def test_a_condition_of_all_lanes() -> None:
    nest = parse_nest("""nest k format 1:
  arg x: f32[130]
  arg y: f32[192]
  phase:
    for i in 0 .. 3 step 1:
      v: f32[c:64*] = load x[i*4000 - 1] by (c=2) within (c: 1 .. where(i < 1, 64, 0)) else 5.0
      store y[i*64] by (c=1) = v
""")
    assert_agrees(nest, "f32", 130, {}, 192)


def test_whole_vectors_are_loaded() -> None:
    text = emit_llvm(
        parse_nest("""nest k format 1:
  arg x: f32[512]
  arg y: f32[64]
  phase:
    v: f32[c:64*] = load x[0] by (c=2) within (c: 1 .. 64) else 0.0
    w: f32[c:64*] = load x[129] by (c=3)
    s: f32[c:64*] = add v, w
    store y[0] by (c=1) = s
"""),
        Target.named("x86-avx512"),
    )
    lines = assembly(text, Target.named("x86-avx512")).splitlines()
    assert not any("gather" in x or "insertps" in x or "vmovss" in x for x in lines)
    assert sum("vpermt2ps" in x or "vpermi2ps" in x for x in lines) == 4 * 1 + 4 * 2
