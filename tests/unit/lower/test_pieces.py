"""Products of f32 in pieces of bf16: what they are, where they are taken, that results are right."""

from __future__ import annotations

from collections.abc import Iterator
from itertools import pairwise, product

import numpy as np
import pytest
from tests.unit.codegen.test_matrices import AMX, HERE, emitted, kernel_of, matrix_schedules

import tilewright as tw
from tilewright.config import config
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16, F32
from tilewright.ir.interpreter import run_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.nest import Contract, For, Node
from tilewright.ir.pieces import PIECES, PRODUCTS, definitions_of_pieces
from tilewright.ir.program import Axis, Program, Tensor
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.roles import stage_roles
from tilewright.schedule.schedule import Schedule
from tilewright.verify.schedules import replay

PLAIN = """program k(a: f32[{m}, {k}], b: f32[{k}, {n}]):
  c: f32[i<{m}, j<{n}] = sum(k<{k}) a[i, k] * b[k, j]
  return c
"""
MATMUL = "C[i, j] = sum(k) A[i, k] * B[k, j]"


def pieces_of(x: np.ndarray) -> list[np.ndarray]:
    """The three pieces of a vector, as f64."""
    axis = Axis("i", E.const(x.size))
    names = [f"p{i}" for i in range(PIECES)]
    body = definitions_of_pieces(names, [axis], E.read("x", [axis.index], F32))
    t = Tensor("x", F32, (E.const(x.size),))
    program = Program("pieces", (t,), body, tuple(names))
    found = run_program(program, {"x": x})
    return [np.asarray(p).astype(np.float64) for p in found]


def schedules(kernel: Kernel, few: int) -> Iterator[Schedule]:
    """Schedules in matrix registers: the first tiles, with every loop order."""
    for s in list(matrix_schedules(kernel))[:few]:
        orders = next(g for g in space_of(kernel, AMX).groups if g.names == ("s0.order",))
        for (order,) in orders.rows[:2]:
            yield Schedule.of({**dict(s.items), "s0.order": order})


def check(text: str, few: int = 2, interpret: bool = False) -> int:
    """Replay schedules in pieces against the oracle, natively between unmapped pages where this
    machine can; how many there were."""
    kernel, count = kernel_of(text), 0
    for s in schedules(kernel, few):
        found = replay(kernel, s, AMX, native=HERE, interpret=interpret)
        assert found is None, str(found)
        count += "call void @llvm.x86.tdpbf16ps(" in emitted(kernel, s)
    return count


def test_pieces_add_up_exactly() -> None:
    rng = np.random.default_rng(7)
    bits = rng.integers(0, 1 << 32, 20_000, np.uint32).view(np.float32)
    x = bits[np.isfinite(bits) & (np.abs(bits) > 2.0**-100)]
    ends = [0.0, -0.0, 1.0, -1.0, 3.4028235e38, -3.4028235e38, 2.0**-99]
    x = np.concatenate([x, np.float32(ends)])
    first, second, third = pieces_of(x)
    np.testing.assert_array_equal(first + second + third, x.astype(np.float64))
    size = np.abs(x.astype(np.float64))
    assert (np.abs(second) <= 2.0**-7 * size).all() and (np.abs(third) <= 2.0**-15 * size).all()
    for p in (first, second, third):
        np.testing.assert_array_equal(p, p.astype(BF16.np).astype(np.float64))


def test_what_is_not_finite_is_the_last_piece() -> None:
    first, second, third = pieces_of(np.float32([np.inf, -np.inf, np.nan]))
    for p in (first, second):
        assert np.isfinite(p).all() and p[0] > 0 > p[1]
    np.testing.assert_array_equal(third, [np.inf, -np.inf, np.nan])


def test_pieces_have_the_sign_of_their_number() -> None:
    """So that the products of an infinity with the pieces of a number are all of one sign."""
    rng = np.random.default_rng(5)
    x = (rng.standard_normal(4000) * 10.0 ** rng.uniform(-30, 38, 4000)).astype(np.float32)
    largest = np.finfo(np.float32).max
    x = np.concatenate([x[np.isfinite(x)], np.float32([largest, -largest, 2.0**-100, -0.0])])
    for p in pieces_of(x):
        assert (p * np.sign(x) >= 0).all()


def test_products_that_are_left_out_are_the_small_ones() -> None:
    assert set(PRODUCTS) == {(i, j) for i, j in product(range(PIECES), repeat=2) if i + j < PIECES}
    for one, next_ in pairwise(PRODUCTS):
        assert (one[0] == next_[0]) != (one[1] == next_[1])  # one register is loaded anew


@pytest.mark.parametrize("m", [1, 16, 17, 33, 65])
@pytest.mark.parametrize("n", [1, 16, 17, 37])
def test_hard_sizes(m: int, n: int) -> None:
    k = 16 + (m * 7 + n * 13) % 97
    assert check(PLAIN.format(m=m, n=n, k=k)) >= (1 if m > 17 and n > 1 else 0)


@pytest.mark.parametrize("k", [16, 17, 31, 32, 33, 64, 67, 97, 130])
def test_every_depth(k: int) -> None:
    assert check(PLAIN.format(m=35, n=40, k=k), few=2, interpret=k in (17, 67))


@pytest.mark.parametrize(
    "text",
    [
        # an epilogue on the accumulators
        """program k(a: f32[33, 50], b: f32[50, 37], z: f32[37], r: f32[33, 37]):
  c: f32[i<33, j<37] = sum(k<50) a[i, k] * b[k, j]
  d: f32[i<33, j<37] = max(c[i, j] + z[j], 0.0) + r[i, j]
  return d
""",
        # both operands turned
        """program k(a: f32[64, 40], b: f32[33, 64]):
  c: f32[i<40, j<33] = sum(k<64) a[k, i] * b[j, k]
  return c
""",
        # a batch
        """program k(a: f32[3, 33, 34], b: f32[3, 34, 20]):
  c: f32[g<3, i<33, j<20] = sum(k<34) a[g, i, k] * b[g, k, j]
  return c
""",
        # the result turned
        """program k(a: f32[40, 48], b: f32[48, 33]):
  c: f32[j<33, i<40] = sum(k<48) a[i, k] * b[k, j]
  return c
""",
        # one tensor is both factors
        """program k(a: f32[41, 48]):
  c: f32[i<41, j<41] = sum(k<48) a[i, k] * a[j, k]
  return c
""",
        # two summed axes, of which one is in words: operand A is copied whole
        """program k(a: f32[40, 3, 34], b: f32[34, 3, 35]):
  c: f32[i<40, j<35] = sum(q<3, k<34) a[i, q, k] * b[k, q, j]
  return c
""",
        # rows that slide along a summed axis
        """program k(a: f32[44, 34], b: f32[34, 5, 35]):
  c: f32[i<40, j<35] = sum(q<5, k<34) a[i + q, k] * b[k, q, j]
  return c
""",
    ],
)
def test_other_products(text: str) -> None:
    assert check(text, few=3)


def contractions(nodes: tuple[Node, ...]) -> int:
    """Contractions in the innermost loops of a nest that have any."""
    return sum(
        contractions(n.body) if isinstance(n, For) else isinstance(n, Contract) for n in nodes
    )


def test_a_large_product_is_taken_in_pieces_by_default() -> None:
    kernel = kernel_of(PLAIN.format(m=256, n=256, k=256))
    low = lower(kernel, space_of(kernel, AMX).default(), AMX)
    assert isinstance(low, Lowered)
    assert contractions(low.nest.phases[-1].body) == len(PRODUCTS)
    text = emitted(kernel, space_of(kernel, AMX).default()).rpartition("define ")[2]
    assert text.count("call void @llvm.x86.ldtilecfg") == 1  # tails have the shapes of whole tiles
    assert text.count("call void @llvm.x86.tdpbf16ps(") == 2 * len(PRODUCTS)


def test_tails_have_the_shapes_of_whole_tiles() -> None:
    kernel = kernel_of(PLAIN.format(m=203, n=211, k=227))
    text = emitted(kernel, next(matrix_schedules(kernel))).rpartition("define ")[2]
    assert text.count("call void @llvm.x86.ldtilecfg") == 1


@pytest.mark.parametrize("name", ["x86-avx512", "x86-avx2", "aarch64"])
def test_other_targets_multiply_f32(name: str) -> None:
    target = Target.named(name)
    kernel = kernel_of(PLAIN.format(m=256, n=256, k=256), target)
    assert "bf16" not in str(lower(kernel, space_of(kernel, target).default(), target).nest)  # type: ignore[union-attr]


def test_constants_are_not_split() -> None:
    text = """program k(a: f32[64, 64]):
  const b: f32[64, 64] @aa11
  c: f32[i<64, j<64] = sum(k<64) a[i, k] * b[k, j]
  return c
"""
    assert stage_roles(kernel_of(text), 0).split == ("", 1)


def test_strict_numerics_multiply_f32() -> None:
    """Denormals and the exact product of one pair: pieces would lose both."""
    a, b = np.zeros((256, 256), np.float32), np.zeros((256, 256), np.float32)
    a[0, 0], b[0, 0] = np.float32(1 + 2.0**-23), np.float32(1 + 2.0**-23)
    a[1, 1], b[1, 1] = np.float32(2.0**-140), np.float32(2.0**100)
    with config(numerics="strict"):
        got = np.asarray(tw.compile(tw.program(MATMUL), [a, b])(a, b))
    assert got[0, 0] == a[0, 0] * b[0, 0] and got[1, 1] == 2.0**-40


@pytest.mark.parametrize("threads", [1, 2])
def test_infinities_and_nan_are_where_they_belong(threads: int) -> None:
    rng = np.random.default_rng(3)
    a, b = (rng.standard_normal((256, 256)).astype(np.float32) for _ in range(2))
    a[3, 5], a[7, 9], a[20, 21], a[40, 0] = np.inf, -np.inf, np.nan, 3.4028235e38
    b[0] *= 0.01
    b[11, 13], b[5, 17], b[9, 19], b[0, 30] = np.inf, 0.0, -np.inf, -3.4028235e38
    with np.errstate(all="ignore"):
        wanted = a.astype(np.float64) @ b.astype(np.float64)
        wanted[np.abs(wanted) > np.finfo(np.float32).max] *= np.inf
        bound = 1e-6 * (np.abs(a).astype(np.float64) @ np.abs(b).astype(np.float64)) + 1e-30
    got = np.asarray(tw.compile(tw.program(MATMUL), [a, b], threads=threads)(a, b))
    np.testing.assert_array_equal(np.isnan(got), np.isnan(wanted))
    np.testing.assert_array_equal(np.isinf(got), np.isinf(wanted))
    here = np.isinf(wanted)
    np.testing.assert_array_equal(np.sign(got[here]), np.sign(wanted[here]))
    fine = np.isfinite(wanted)
    assert (np.abs(got[fine].astype(np.float64) - wanted[fine]) <= bound[fine]).all()


@pytest.mark.parametrize("threads", [1, 2])
def test_products_of_special_numbers(threads: int) -> None:
    """Each with each, infinite, zero and NaN where IEEE 754 has them."""
    largest = float(np.finfo(np.float32).max)
    few = [0.0, 0.5, 1.0, 3.0, 2.0**-60, 2.0**70, 3.3895314e38, largest, np.inf]
    special = np.float32([*few, *(-v for v in few), np.nan])
    a, b = np.zeros((256, 256), np.float32), np.zeros((256, 256), np.float32)
    a[:, 17], b[17] = np.resize(special, 256), np.resize(special[::-1], 256)
    with np.errstate(all="ignore"):
        wanted = np.outer(a[:, 17], b[17])
    got = np.asarray(tw.compile(tw.program(MATMUL), [a, b], threads=threads)(a, b))
    fine = np.isfinite(wanted)
    np.testing.assert_array_equal(got[~fine], wanted[~fine])
    np.testing.assert_allclose(got[fine], wanted[fine], rtol=2.0**-22)


@pytest.mark.parametrize("positive", [False, True])
def test_as_accurate_as_f32(positive: bool) -> None:
    """Not worse than NumPy's own product by more than a quarter; with numbers of one sign too, where
    what is left out would add up.
    """
    rng = np.random.default_rng(11)
    a, b = (rng.standard_normal((512, 512)).astype(np.float32) for _ in range(2))
    if positive:
        a, b = np.abs(a), np.abs(b)
    wanted = a.astype(np.float64) @ b.astype(np.float64)
    got = np.asarray(tw.compile(tw.program(MATMUL), [a, b])(a, b))
    plain = np.zeros_like(got)
    for k in range(a.shape[1]):  # the plain order
        plain += np.outer(a[:, k], b[k])
    assert np.abs(got - wanted).max() <= 1.25 * np.abs(plain - wanted).max()
