"""Blocks of a reduced axis whose sums wait in scratch: what is emitted, and that results are right."""

from __future__ import annotations

import pytest
from tests.unit.codegen.test_matrices import AMX, HERE, emitted, kernel_of

from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.blocks import equal_blocks, summed_block
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.roles import stage_roles
from tilewright.schedule.schedule import Schedule, Value
from tilewright.verify.schedules import replay

PLAIN = """program k(a: f32[{m}, {k}], b: f32[{k}, {n}]):
  c: f32[i<{m}, j<{n}] = sum(k<{k}) a[i, k] * b[k, j]
  return c
"""
LINEAR = """program k(a: f32[70, 200], b: f32[200, 45], d: f32[45]):
  e: f32[i<70, j<45] = sum(k<200) a[i, k] * b[k, j]
  c: f32[i<70, j<45] = max(e[i, j] + d[j], 0.0)
  return c
"""
BATCHED = """program k(a: f32[3, 37, 150], b: f32[3, 150, 40]):
  c: f32[g<3, i<37, j<40] = sum(k<150) a[g, i, k] * b[g, k, j]
  return c
"""
LARGEST = """program k(a: f32[70, 200], b: f32[200, 45]):
  c: f32[i<70, j<45] = max(k<200) a[i, k] + b[k, j]
  return c
"""
HALF = """program k(a: bf16[70, 200], b: bf16[200, 45]):
  c: f32[i<70, j<45] = sum(k<200) f32(a[i, k]) * f32(b[k, j])
  return c
"""
BYTES = """program k(a: u8[70, 200], b: i8[200, 45]):
  c: i32[i<70, j<45] = sum(k<200) i32(a[i, k]) * i32(b[k, j])
  return c
"""
MATRIX: dict[str, Value] = {"s0.reg.m0": 32, "s0.reg.n0": 16, "s0.reg.k0": 2}


def check(text: str, values: dict[str, Value], target: Target, native: bool = True) -> Lowered:
    """Replay a schedule against the oracle in the interpreter, and natively if this machine can."""
    kernel = kernel_of(text, target)
    default = space_of(kernel, target).default()
    known = dict(default.items)
    lanes = next(str(v) for n, v in default.items if n == "s0.lane")
    s = Schedule.of({**known, "s0.lane": lanes, **values})
    found = replay(kernel, s, target, native=native, interpret=True)
    assert found is None, str(found)
    low = lower(kernel, s, target)
    assert isinstance(low, Lowered)
    return low


@pytest.mark.parametrize("deep", [64, 96, 192])
@pytest.mark.parametrize(
    "order", ["m0:L2,k0:L2,n0,m0", "k0:L2,n0,m0", "n0,k0:L2,m0", "m0:L2,n0:L2,k0:L2,m0,n0"]
)
def test_results_are_right_in_vectors(order: str, deep: int) -> None:
    target = Target.native()
    more: dict[str, Value] = {"s0.tile.m0": 24, "s0.tile.n0": 32, "s0.tail.m0": "overlap"}
    for pack in ("none", "block"):
        low = check(
            LINEAR, {"s0.order": order, "s0.tile.k0": deep, "s0.pack.a": pack, **more}, target
        )
        assert "store f0[" in str(low.nest) and "load f0[" in str(low.nest)


@pytest.mark.parametrize("text", [BATCHED, LARGEST, HALF, BYTES])
def test_other_sums_are_right(text: str) -> None:
    order = "b0,m0:L2,k0:L2,n0,m0" if text is BATCHED else "m0:L2,k0:L2,n0,m0"
    values: dict[str, Value] = {"s0.order": order, "s0.tile.k0": 64, "s0.tile.m0": 24}
    low = check(text, values, Target.native())
    assert any(b.name == "f0" for b in low.nest.buffers)


@pytest.mark.parametrize(
    ("order", "tall"),
    [("m0:L2,k0:L2,n0,m0", 64), ("m0:L2,k0:L2,m0,n0", 64), ("n0,k0:L2,m0", 0)],
)
@pytest.mark.parametrize("deep", [32, 64, 160])
def test_results_are_right_in_matrix_registers(order: str, tall: int, deep: int) -> None:
    for m, n, k in ((70, 45, 200), (64, 32, 321), (33, 16, 192)):
        values = {**MATRIX, "s0.order": order, "s0.tile.k0": deep, "s0.tile.m0": tall or 1}
        text = PLAIN.format(m=m, n=n, k=k)
        low = check(text, values, AMX, native=HERE)
        assert any(b.name == "f0" for b in low.nest.buffers)


def test_pieces_of_a_block_lie_together() -> None:
    values: dict[str, Value] = {**MATRIX, "s0.order": "k0:L2,n0,m0", "s0.tile.k0": 64}
    low = check(PLAIN.format(m=64, n=48, k=192), values, AMX, native=HERE)
    loads = [x for x in str(low.nest).splitlines() if "load w0[" in x]
    # Three panels of 64 x 16 in each of three blocks.
    assert all("*1024 + " in x for x in loads) and any("3072" in x for x in loads)


def test_what_copies_read_is_not_asked_for_by_the_products() -> None:
    values: dict[str, Value] = {**MATRIX, "s0.order": "n0,m0"}
    ahead: dict[str, Value] = {**values, "s0.ahead": 2}
    text = PLAIN.format(m=64, n=48, k=192)
    plain, asked = (check(text, x, AMX, native=HERE) for x in (values, ahead))
    assert str(plain.nest) == str(asked.nest)


def test_whole_tiles_of_sums_take_no_way_through_vectors() -> None:
    values = {**MATRIX, "s0.order": "m0:L2,k0:L2,n0,m0", "s0.tile.k0": 64, "s0.tile.m0": 64}
    kernel = kernel_of(PLAIN.format(m=64, n=32, k=192))
    space = space_of(kernel, AMX)
    text = emitted(kernel, Schedule.of({**dict(space.default().items), **values}))
    # Zeros, then loads of two registers each of sums (and five of factors a step of each block).
    assert text.count("call void @llvm.x86.tilezero(") == 2
    assert text.count("call void @llvm.x86.tilestored64(") == 3 * 2
    assert "alloca" not in text


def test_one_block_of_all_positions_needs_no_scratch() -> None:
    kernel = kernel_of(LINEAR, Target.native())
    default = dict(space_of(kernel, Target.native()).default().items)
    plain = lower(kernel, Schedule.of(default), Target.native())
    order = str(default["s0.order"])
    for deep in (0, 200, 512):
        values = {"s0.order": "k0:L2," + order, "s0.tile.k0": deep}
        low = lower(kernel, Schedule.of({**default, **values}), Target.native())
        assert isinstance(low, Lowered) and isinstance(plain, Lowered)
        assert str(low.nest) == str(plain.nest)


def test_large_products_have_blocks_by_default() -> None:
    for n, blocks in ((256, False), (2048, True)):
        space = space_of(kernel_of(PLAIN.format(m=n, n=n, k=n)), AMX)
        s = dict(space.default().items)
        assert ("k0:L2" in str(s["s0.order"])) is blocks
        if blocks:
            deep, tall = int(s["s0.tile.k0"]), int(s["s0.tile.m0"])
            assert deep % 32 == 0 and tall % 32 == 0 and 0 < deep < n and 0 < tall < n
            assert 6 * deep * tall <= AMX.l2_bytes // 2


def test_blocks_are_equal_and_whole() -> None:
    assert equal_blocks(2048, 273, 32, 1) == 256
    assert equal_blocks(100, 64, 32, 2) == 64
    assert equal_blocks(20, 64, 32, 1) == 20
    assert equal_blocks(512, 56, 14, 2) == 42  # five blocks of 56 rows, and four and a bit
    assert equal_blocks(0, 56, 14, 2) == 0
    assert equal_blocks(2**63 - 1, 56, 14, 2) == 56  # a model may say so: nothing walks its blocks


def test_a_block_leaves_half_of_the_caches() -> None:
    """Where the block of B fits, rows of tiles may come one after the other; else it passes from L3."""
    size, height = 6, 32  # bytes of the pieces of a factor, rows of a register tile
    for n in (512, 2048):
        kernel = kernel_of(PLAIN.format(m=n, n=n, k=n))
        found = summed_block(stage_roles(kernel, 0), AMX, height, 1)
        assert found is not None and found.deep % 32 == 0 and found.tall % height == 0
        fits = 2 * size * 128 * n < AMX.l2_bytes
        assert found.by_rows == fits
        order = "m0:L2,n0,m0" if fits else "m0:L2,k0:L2,n0,m0"
        assert space_of(kernel, AMX).default().text("s0.order") == order
        if fits:
            assert 2 * size * height * found.deep <= AMX.l1_bytes
            held = size * found.deep * n + (4 * n + size * found.deep) * min(found.tall, n)
            assert 2 * held <= AMX.l2_bytes
        else:
            assert 2 * size * found.deep * found.tall <= AMX.l2_bytes


def test_blocks_are_offered_where_they_are_not_the_default() -> None:
    kernel = kernel_of(PLAIN.format(m=512, n=512, k=512))
    space = space_of(kernel, AMX)
    values = dict(space.default().items)
    values |= {"s0.order": "m0:L2,k0:L2,m0,n0", "s0.tile.k0": 128}
    tall = summed_block(stage_roles(kernel, 0), AMX, 32, 1)
    assert tall is not None
    assert space.contains(Schedule.of({**values, "s0.tile.m0": tall.tall}))


def test_sums_in_blocks_beside_an_axis_of_one_position() -> None:
    """Such an axis has no loop; its place in scratch is one all the same."""
    text = """program k(a: f32[1, 64, 16], b: f32[64, 1, 2]):
  t: f32[i<2, g<1, j<16] = sum(k<64) a[g, k, j] * b[k, g, i]
  c: f32[i<2, g<1, j<16] = min(t[i, g, j], 1.5)
  return c
"""
    for order in ("m0:L2,k0:L2,n0,m0", "k0:L2,n0,m0"):
        made = check(text, {"s0.lane": "m0", "s0.order": order, "s0.tile.k0": 16}, Target.native())
        assert "scratch f0" in str(made.nest)
