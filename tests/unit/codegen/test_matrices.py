"""Matrix registers: which loops run in them, what is emitted, and that results are right."""

from __future__ import annotations

import os
from collections.abc import Iterator
from dataclasses import replace

import ml_dtypes
import numpy as np
import pytest

import tilewright as tw
from tilewright.codegen.llvm import emit_llvm
from tilewright.codegen.matrices import _spans
from tilewright.config import config
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine import target as targets
from tilewright.machine.permission import uses_matrices
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_object
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.matrices import in_matrices
from tilewright.schedule.roles import stage_roles
from tilewright.schedule.schedule import Schedule
from tilewright.verify.schedules import replay

PLAIN = Target.named("x86-avx512")
AMX = replace(
    PLAIN,
    features=PLAIN.features + ",+avx512vnni,+amx-bf16,+amx-int8,+amx-tile",
    has_vnni=True,
)
HERE = not AMX.triple.startswith(os.uname().machine) or not AMX.lacks(Target.native())
BF16 = """program k(a: bf16[{m}, {k}], b: bf16[{k}, {n}]):
  c: f32[i<{m}, j<{n}] = sum(k<{k}) f32(a[i, k]) * f32(b[k, j])
  return c
"""
BYTES = """program k(a: {a}[{m}, {k}], b: {b}[{k}, {n}]):
  c: i32[i<{m}, j<{n}] = sum(k<{k}) i32(a[i, k]) * i32(b[k, j])
  return c
"""


def kernel_of(text: str, target: Target = AMX) -> Kernel:
    (kernel,) = plan_program(parse_program(text), target)[0].kernels
    return kernel


def matrix_schedules(kernel: Kernel, target: Target = AMX) -> Iterator[Schedule]:
    """The default schedule with every register tile that matrix registers hold."""
    space, roles = space_of(kernel, target), stage_roles(kernel, 0)
    group = space.groups[0]
    for row in group.rows:
        values = dict(zip(group.names, row, strict=True))
        sizes = {a: int(values[f"s0.reg.{n}"]) for a, n in roles.names.items()}
        if in_matrices(roles, target, roles.axis_of.get(str(values["s0.lane"])), sizes):
            yield Schedule.of({**dict(space.default().items), **values})


def emitted(kernel: Kernel, schedule: Schedule, target: Target = AMX) -> str:
    low = lower(kernel, schedule, target)
    assert isinstance(low, Lowered)
    return emit_llvm(low.nest, target)


def check(text: str, few: int = 2, interpret: bool = False) -> int:
    """Replay the default and the first tiles of matrix registers against the oracle: natively between unmapped pages where this machine can."""
    kernel, count = kernel_of(text), 0
    schedules = [space_of(kernel, AMX).default(), *list(matrix_schedules(kernel))[:few]]
    for s in schedules:
        found = replay(kernel, s, AMX, native=HERE, interpret=interpret)
        assert found is None, str(found)
        count += "call void @llvm.x86.tdp" in emitted(kernel, s)
    return count


def test_a_large_product_is_set_up_once_and_keeps_no_vectors_across_steps() -> None:
    kernel = kernel_of(BF16.format(m=128, n=128, k=256))
    whole = emitted(kernel, space_of(kernel, AMX).default())
    text = whole.rpartition("define ")[2]  # after the phase that packs B
    assert text.count("call void @llvm.x86.ldtilecfg") == 1
    assert text.index("call void @llvm.x86.ldtilecfg") < text.index("phi")
    assert text.count("call void @llvm.x86.tdpbf16ps(") == 4
    assert "phi <16 x float>" not in text and "alloca" not in text
    assert uses_matrices(emit_object(whole, AMX))


@pytest.mark.parametrize("name", ["x86-avx512", "x86-avx2", "x86-sse42", "aarch64"])
def test_other_targets_have_no_such_tiles(name: str) -> None:
    target = Target.named(name)
    for text in (BF16.format(m=64, n=64, k=64), BYTES.format(a="u8", b="i8", m=64, n=64, k=64)):
        kernel = kernel_of(text, target)
        assert not list(matrix_schedules(kernel, target))
        assert "amx" not in str(target)
        code = emitted(kernel, space_of(kernel, target).default(), target)
        assert "tile" not in code and "alloca" not in code


def test_both_forms_are_in_the_space() -> None:
    kernel = kernel_of(BF16.format(m=128, n=128, k=128))
    space, group = space_of(kernel, AMX), space_of(kernel, AMX).groups[0]
    tiles = {str(Schedule.of(dict(zip(group.names, r, strict=True)))) for r in group.rows}
    some = list(matrix_schedules(kernel))
    assert 0 < len(some) < len(tiles)
    assert str(space.default()) in {str(s) for s in some}


@pytest.mark.parametrize("count", range(1, 70))
def test_steps_cover_every_word_once(count: int) -> None:
    at = 0
    for first, steps, words in _spans(count):
        assert first == at and steps > 0 and 0 < words <= 16
        at += steps * words
    assert at == count


@pytest.mark.parametrize("m", [1, 16, 17, 33, 64])
@pytest.mark.parametrize("n", [1, 17, 33])
def test_products_of_bf16(m: int, n: int) -> None:
    k = 4 + (m * 7 + n * 13) % 127
    used = check(BF16.format(m=m, n=n, k=k))
    assert used >= (1 if m >= 33 and n > 1 else 0)


@pytest.mark.parametrize("k", [1, 3, 4, 5, 31, 64, 67, 106, 130])
def test_every_depth(k: int) -> None:
    check(BF16.format(m=33, n=40, k=k), few=1, interpret=k == 5)
    check(BYTES.format(a="u8", b="i8", m=33, n=40, k=k), few=1)


@pytest.mark.parametrize("a", ["u8", "i8"])
@pytest.mark.parametrize("b", ["u8", "i8"])
def test_signs_of_bytes(a: str, b: str) -> None:
    assert check(BYTES.format(a=a, b=b, m=33, n=35, k=70))


@pytest.mark.parametrize(
    "text",
    [
        # an epilogue on the accumulators, which come back as vectors
        """program k(a: bf16[33, 50], b: bf16[50, 37], z: bf16[37], r: bf16[33, 37]):
  c: f32[i<33, j<37] = sum(k<50) f32(a[i, k]) * f32(b[k, j])
  d: bf16[i<33, j<37] = bf16(max(c[i, j] + f32(z[j]), 0.0) + f32(r[i, j]))
  return d
""",
        # the other operand turned
        """program k(a: bf16[40, 64], b: bf16[33, 64]):
  c: f32[i<40, j<33] = sum(k<64) f32(a[i, k]) * f32(b[j, k])
  return c
""",
        # a batch
        """program k(a: bf16[3, 33, 34], b: bf16[3, 34, 20]):
  c: f32[g<3, i<33, j<20] = sum(k<34) f32(a[g, i, k]) * f32(b[g, k, j])
  return c
""",
        # the result turned
        """program k(a: bf16[40, 48], b: bf16[48, 33]):
  c: f32[j<33, i<40] = sum(k<48) f32(a[i, k]) * f32(b[k, j])
  return c
""",
        # windows: accumulators stay in matrix registers through three loops
        """program k(x: u8[8, 30, 20], w: i8[32, 20, 3, 3]):
  c: i32[h<6, v<28, o<32] = sum(p<3, q<3, k<20) i32(x[h + p, v + q, k]) * i32(w[o, k, p, q])
  return c
""",
    ],
)
def test_other_products(text: str) -> None:
    assert check(text)


def test_accumulators_stay_through_the_loops_of_a_window() -> None:
    kernel = kernel_of(
        """program k(x: u8[8, 30, 64], w: i8[32, 64, 3, 3]):
  c: i32[h<6, v<28, o<32] = sum(p<3, q<3, k<64) i32(x[h + p, v + q, k]) * i32(w[o, k, p, q])
  return c
"""
    )
    text = emitted(kernel, next(matrix_schedules(kernel)))
    stores = text.count("call void @llvm.x86.tilestored64")
    assert stores == text.count("call void @llvm.x86.tilezero")  # never through memory between
    assert "phi <16 x i32>" not in text


def test_a_process_without_leave_has_no_matrix_registers(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(targets, "matrices_permitted", lambda: False)
    here = targets._native.__wrapped__()
    assert "amx" not in here.features
    if here.triple.startswith("x86"):
        missing = AMX.lacks(here)
        assert {"amx-bf16", "amx-int8", "amx-tile"} <= set(missing)


SYMBOLIC = "a: bf16[M, K]; b: bf16[K, 80]; c: f32[i, j] = sum(k) f32(a[i, k]) * f32(b[k, j])"


def product(model: tw.CompiledModel, m: int, k: int) -> tuple[np.ndarray, np.ndarray]:
    rng = np.random.default_rng(m * 1000 + k)
    a, b = (rng.standard_normal(s).astype(ml_dtypes.bfloat16) for s in ((m, k), (k, 80)))
    got = model(a, b)
    return np.asarray(got), a.astype(np.float64) @ b.astype(np.float64)


def test_sizes_threads_and_children() -> None:
    """One build for a range of rows and depths, two threads, and a child made by fork."""
    model = tw.compile(tw.program(SYMBOLIC), threads=2)
    for m, k in ((64, 96), (1, 96), (33, 96), (200, 96), (40, 31), (64, 128)):
        got, wanted = product(model, m, k)
        np.testing.assert_allclose(got, wanted, atol=1e-4)
    child = os.fork()
    if not child:
        got, wanted = product(model, 64, 96)
        os._exit(int(np.abs(got - wanted).max() > 1e-4))
    assert os.waitpid(child, 0)[1] == 0


def test_strict_numerics_keep_denormals_of_bf16() -> None:
    a = np.full((64, 64), 2.0**-130).astype(ml_dtypes.bfloat16)
    b = np.full((64, 64), 2.0**120).astype(ml_dtypes.bfloat16)
    text = "a: bf16[64, 64]; b: bf16[64, 64]; c: f32[i, j] = sum(k) f32(a[i, k]) * f32(b[k, j])"
    with config(numerics="strict"):
        got = np.asarray(tw.compile(tw.program(text))(a, b))
    np.testing.assert_array_equal(got, np.float32(64 * 2.0**-10))
