"""Loops taken apart where conditions change: what is emitted, and that results are right."""

from __future__ import annotations

import pytest

from tilewright.codegen.llvm import emit_llvm
from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.program import Definition
from tilewright.ir.program_parser import parse_program
from tilewright.lower.cuts import cuts_of
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_assembly
from tilewright.schedule.kernel_space import space_of
from tilewright.verify.schedules import replay

TARGET = Target.named("x86-avx512")
JOINED = """program k(a: f32[{m}, 70], b: f32[{m}, 58], c: f32[{m}, 33]):
  y: f32[i<{m}, j<161] = where(j < 70, (a[i, j] else 0.0), where(j <= 127, (b[i, j - 70] else 0.0), (c[i, j - 128] else 0.0)))
  return y
"""
STACKED = """program k(a: f32[100, 90], b: f32[101, 90]):
  y: f32[i<201, j<90] = where(i < 100, (a[i, j] else 0.0), (b[i - 100, j] else 0.0))
  return y
"""
PADDED = """program k(x: f32[{m}, 130]):
  y: f32[i<({m} + 3), j<135] = (x[i - 1, j - 2] else 1.5)
  return y
"""
CLAMPED = """program k(x: f32[130, 140]):
  y: f32[i<130, j<140] = x[i, min(max(j - 3, 0), 120)] + x[max(i - 1, 0), j]
  return y
"""
TURNED = """program k(x: f32[{m}, 128]):
  y: f32[i<{m}, j<150] = (x[i, 140 - j] else 0.0)
  return y
"""
BOTH = """program k(x: f32[130, 140]):
  y: f32[i<130, j<140] = where(i + j < 140, x[i, j], 0.0)
  return y
"""


def kernel_of(text: str) -> Kernel:
    (kernel,) = plan_program(parse_program(text), TARGET)[0].kernels
    return kernel


def lowered(kernel: Kernel) -> Lowered:
    low = lower(kernel, space_of(kernel, TARGET).default(), TARGET)
    assert isinstance(low, Lowered)
    return low


def nest_of(kernel: Kernel) -> str:
    return str(lowered(kernel).nest)


def cuts(text: str) -> dict[str, tuple[int, ...]]:
    p = parse_program(text)
    (d,) = (s for s in p.body if isinstance(s, Definition))
    shapes = {t.name: tuple(int(str(n)) for n in t.shape) for t in p.inputs}
    return cuts_of((d,), shapes, {a.name: int(a.extent.attr) for a in d.axes})


def test_where_conditions_change() -> None:
    assert cuts(JOINED.format(m=9)) == {"j": (70, 128)}
    assert cuts(STACKED) == {"i": (100,)}
    assert cuts(PADDED.format(m=40)) == {"i": (1, 41), "j": (2, 132)}
    assert cuts(CLAMPED) == {"i": (1,), "j": (3, 123)}
    assert cuts(TURNED.format(m=9)) == {"j": (13, 141)}
    assert cuts(BOTH) == {}  # two axes at once


WHOLE = """program k(a: f32[150, 64], b: f32[150, 96]):
  y: f32[i<150, j<160] = where(j < 64, (a[i, j] else 0.0), (b[i, j - 64] else 0.0))
  return y
"""


def test_no_condition_is_left() -> None:
    nest = nest_of(kernel_of(WHOLE))
    assert "else" not in nest and "gather" not in nest and " lt " not in nest
    rows = nest_of(kernel_of(STACKED))
    assert " lt " not in rows and rows.count("parallel for") == 2


def test_small_kernels_keep_their_conditions() -> None:
    assert "else 0.0" in nest_of(kernel_of(JOINED.format(m=9)))


@pytest.mark.parametrize(
    "text",
    [
        *(JOINED.format(m=m) for m in (1, 150)), STACKED, *(PADDED.format(m=m) for m in (1, 150)),
        CLAMPED, *(TURNED.format(m=m) for m in (1, 150)), BOTH,
    ],
)  # fmt: skip
@pytest.mark.parametrize("depth", [0, 1, 2])
def test_results(text: str, depth: int) -> None:
    kernel = kernel_of(text)
    default = space_of(kernel, TARGET).default()
    schedule = type(default).of({**dict(default.items), "par": depth})
    found = replay(kernel, schedule, TARGET, interpret=True)
    assert found is None, str(found)


def concatenated(parts: int) -> str:
    """Rows of as many operands, one below the other."""
    names = [f"x{k}" for k in range(parts)]
    body = f"({names[-1]}[i, j - {parts - 1}, k] else 0.0)"
    for k in reversed(range(parts - 1)):
        body = f"where(j < {k + 1}, ({names[k]}[i, j - {k}, k] else 0.0), {body})"
    inputs = ", ".join(f"{n}: f32[40, 1, 64]" for n in names)
    return f"program k({inputs}):\n  y: f32[i<40, j<{parts}, k<64] = {body}\n  return y\n"


def test_each_of_many_operands_has_its_own_loop() -> None:
    """Every part takes its share of the body, so many of them are no more code than one."""
    assert cuts(concatenated(27)) == {"j": tuple(range(1, 27))}
    kernel = kernel_of(concatenated(27))
    nest = nest_of(kernel)
    assert "else" not in nest and "select" not in nest and nest.count("= load") == 27
    found = replay(kernel, space_of(kernel, TARGET).default(), TARGET, interpret=True)
    assert found is None, str(found)
    steps = " + ".join(f"x[i, max(j - {k}, 0)]" for k in range(12))  # all of it in every part
    whole = f"program k(x: f32[130, 140]):\n  y: f32[i<130, j<140] = {steps}\n  return y\n"
    assert cuts(whole) == {}


ENLARGED = """program k(x: f32[{m}, {n}]):
  y: f32[i<{m}, j<(2*{n})] = x[i, j // 2] * 0.75 + x[i, min(max(j // 2 + 2*(j % 2) - 1, 0), {n} - 1)] * 0.25
  return y
"""


def test_vectors_are_cut_off_where_a_clamp_of_neighbours_matters() -> None:
    """j // 2 + 2*(j % 2) - 1 rises and falls: the first and the last vector read other neighbours."""
    (d,) = (s for s in parse_program(ENLARGED.format(m=300, n=64)).body if isinstance(s, Definition))
    shapes, extents = {"x": (300, 64)}, {"i": 300, "j": 128}
    assert cuts_of((d,), shapes, extents, ("j", 32)) == {"j": (32, 96)}
    assert cuts_of((d,), shapes, extents, ("j", 128)) == {}
    assert cuts_of((d,), shapes, extents, ("i", 32)) == {} == cuts_of((d,), shapes, extents)
    kernel = kernel_of(ENLARGED.format(m=300, n=64))
    assert '"s0.lane":"b1"' in str(space_of(kernel, TARGET).default())
    assembly = emit_assembly(emit_llvm(lowered(kernel).nest, TARGET), TARGET)
    assert "gather" not in assembly and "vperm" in assembly


@pytest.mark.parametrize("m", [1, 9, 300])
@pytest.mark.parametrize("n", [1, 2, 7, 16, 33, 64, 100])
def test_enlarged_rows_are_right(m: int, n: int) -> None:
    kernel = kernel_of(ENLARGED.format(m=m, n=n))
    found = replay(kernel, space_of(kernel, TARGET).default(), TARGET, interpret=True)
    assert found is None, str(found)
