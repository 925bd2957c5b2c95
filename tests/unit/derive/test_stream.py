"""Streams: which definitions become one, and what their kernels compute at infinities and NaN."""

from __future__ import annotations

import numpy as np
import pytest

import tilewright as tw
from tilewright.group.plan import plan_program
from tilewright.ir.interpreter import run_program
from tilewright.ir.kernel import Kernel, parse_kernel
from tilewright.ir.nest import For
from tilewright.ir.program_parser import parse_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of

TARGET = Target.named("x86-avx512")
TEXT = """program p(q: f32[2, 40, 8], k: f32[2, 150, 8], v: f32[2, 150, 6], z: f32[40, 150]):
  s: f32[h<2, i<40, j<150] = sum(e<8) q[h, i, e] * k[h, j, e]
  t: f32[h<2, i<40, j<150] = s[h, i, j] + z[i, j]
  m: f32[h<2, i<40] = max(j<150) t[h, i, j]
  p: f32[h<2, i<40, j<150] = exp(t[h, i, j] - m[h, i])
  l: f32[h<2, i<40] = sum(j<150) p[h, i, j]
  w: f32[h<2, i<40, j<150] = p[h, i, j] / l[h, i]
  o: f32[h<2, i<40, e<6] = sum(j<150) w[h, i, j] * v[h, j, e]
  return o
"""


def kernels(text: str) -> tuple[Kernel, ...]:
    return plan_program(parse_program(text), TARGET)[0].kernels


def test_a_chain_of_reductions_is_one_kernel() -> None:
    (kernel,) = kernels(TEXT)
    assert kernel.extents[kernel.stream] == 150
    assert parse_kernel(str(kernel)) == kernel
    assert not any(150 in x.shape for n, x in kernel.layouts if n in kernel.definitions)


LATE = TEXT.replace("  w: f32[h<2, i<40, j<150] = p[h, i, j] / l[h, i]\n", "").replace("w[h", "p[h")


@pytest.mark.parametrize(
    "last",
    [
        "o[h, i, e] / l[h, i]",
        "o[h, i, e] * r[h, i]",
        "r[h, i] * o[h, i, e]",
    ],
)
def test_a_sum_that_is_divided_later_streams_too(last: str) -> None:
    reciprocal = "  r: f32[h<2, i<40] = 1.0 / l[h, i]\n" if "r[" in last else ""
    text = LATE.replace("  return o", f"{reciprocal}  y: f32[h<2, i<40, e<6] = {last}\n  return y")
    (kernel,) = kernels(text)
    assert kernel.extents[kernel.stream] == 150
    program = parse_program(text)
    rng = np.random.default_rng(4)
    arrays = [
        rng.standard_normal(s).astype(np.float32)
        for s in ((2, 40, 8), (2, 150, 8), (2, 150, 6), (40, 150))
    ]
    got = tw.compile(program, threads=1)(*arrays)
    q, k, v, z = (a.astype(np.float64) for a in arrays)
    scores = np.einsum("hie,hje->hij", q, k) + z
    weights = np.exp(scores - scores.max(-1, keepdims=True))
    want = np.einsum("hij,hje->hie", weights / weights.sum(-1, keepdims=True), v)
    np.testing.assert_allclose(got, want, rtol=0, atol=2e-6)


@pytest.mark.parametrize(
    "last",
    [
        "o[h, e, i] / l[h, i]",  # turned: e and i are as long here
        "o[h, i, e] / (l[h, i] + abs(o[h, i, 0]))",  # the factor reads the sum
        "o[h, i, e] - l[h, i]",
    ],
)
def test_a_sum_that_is_used_otherwise_is_left(last: str) -> None:
    text = LATE.replace("e<6]", "e<40]").replace("2, 150, 6]", "2, 150, 40]")
    text = text.replace("  return o", f"  y: f32[h<2, i<40, e<40] = {last}\n  return y")
    program = parse_program(text)
    rng = np.random.default_rng(5)
    arrays = [
        rng.standard_normal(s).astype(np.float32)
        for s in ((2, 40, 8), (2, 150, 8), (2, 150, 40), (40, 150))
    ]
    got = tw.compile(program, threads=1)(*arrays)
    (want,) = run_program(program, dict(zip("qkvz", arrays, strict=True)))
    np.testing.assert_allclose(got, want, rtol=2e-4, atol=2e-4)


@pytest.mark.parametrize(
    "old, new",
    [
        ("return o", "return o, w"),  # the weights are asked for
        ("exp(t[h, i, j] - m[h, i])", "exp2(t[h, i, j] - m[h, i])"),  # no rule for this function
        ("exp(t[h, i, j] - m[h, i])", "exp(t[h, i, j] - 2.0 * m[h, i])"),  # not the maximum
        ("p[h, i, j] / l[h, i]", "p[h, i, j] + l[h, i]"),  # not homogeneous
        ("max(j<150) t[h, i, j]", "max(j<150 if j <= i) t[h, i, j]"),  # another set of points
    ],
)
def test_what_is_no_homomorphism_does_not_stream(old: str, new: str) -> None:
    assert old in TEXT
    assert not any(k.stream for k in kernels(TEXT.replace(old, new)))


@pytest.mark.parametrize("scaled", ["{}", "{} * 0.5", "0.5 * {}", "{} / 2.0"])
def test_conditions_become_bounds_of_the_loop_over_blocks(scaled: str) -> None:
    score = scaled.format("where(j <= i + 20, s[h, i, j] + z[i, j], -inf)")
    text = TEXT.replace("s[h, i, j] + z[i, j]", score)
    (kernel,) = kernels(text)
    nest = lower(kernel, space_of(kernel, TARGET).default(), TARGET)
    assert isinstance(nest, Lowered)
    (outer,) = [p.parallel for p in nest.nest.phases if p.parallel is not None]
    loops = [n for n in nest.nest.walk() if isinstance(n, For)]
    assert any(outer.var in n.hi.indices() for n in loops)


@pytest.mark.parametrize("guarded", [False, True])
def test_infinities_and_nan(guarded: bool) -> None:
    text = TEXT
    if guarded:
        text = text.replace("  p:", "  u: f32[h<2, i<40] = where(m[h, i] == -inf, 0.0, m[h, i])\n  p:")
        text = text.replace("- m[h, i])", "- u[h, i])")
        text = text.replace(
            "= p[h, i, j] / l", "= where(l[h, i] == 0.0, 0.0, p[h, i, j] / l"
        ).replace("/ l[h, i]\n", "/ l[h, i])\n")
    program = parse_program(text)
    assert plan_program(program, TARGET)[0].kernels[0].stream
    rng = np.random.default_rng(3)
    shapes = ((2, 40, 8), (2, 150, 8), (2, 150, 6), (40, 150))
    q, k, v, z = (rng.standard_normal(s).astype(np.float32) for s in shapes)
    z[0] = -np.inf  # nothing is left
    z[1, :130] = -np.inf  # nothing in the first block
    z[2, 20:] = -np.inf  # nothing in the last
    z[3, 7] = np.nan
    z[4, 140] = np.inf
    z[5, 3] = 3e38
    z[6] = -3e38
    q[1, 33, 0] = np.inf
    inputs = {"q": q, "k": k, "v": v, "z": z}
    (want,) = run_program(program, inputs)
    got = tw.compile(program, [q, k, v, z])(q, k, v, z)
    assert np.array_equal(np.isnan(got), np.isnan(want))
    assert np.isnan(want[:, 0]).all() != guarded
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-6)


def test_a_part_of_the_scores_that_is_needed_elsewhere() -> None:
    """It is computed before the stream; what follows still streams."""
    text = """program p(q: f32[64, 8], k: f32[300, 8], v: f32[300, 8], x: f32[64, 300]):
  b: f32[i<64, j<300] = x[i, j] * 2.0
  s: f32[i<64, j<300] = sum(d<8) q[i, d] * k[j, d]
  t: f32[i<64, j<300] = s[i, j] * 0.5 + b[i, j]
  m: f32[i<64] = max(j<300) t[i, j]
  e: f32[i<64, j<300] = exp(t[i, j] - m[i])
  l: f32[i<64] = sum(j<300) e[i, j]
  o: f32[i<64, c<8] = sum(j<300) e[i, j] / l[i] * v[j, c]
  return o, b
"""
    plan, _ = plan_program(parse_program(text), Target.named("x86-avx2"))
    assert [bool(kernel.stream) for kernel in plan.kernels] == [False, True]


SHARED = """program p(q: f32[{h}, {n}, 8], k: f32[{h}, 70, 8], v: f32[{h}, 70, 6], z: {dtype}[{n}, 70]):
  s: f32[h<{h}, i<{n}, j<70] = sum(e<8) q[h, i, e] * k[h, j, e]
  m: f32[h<{h}, i<{n}] = max(j<70) {score}
  p: f32[h<{h}, i<{n}, j<70] = exp({score} - m[h, i])
  l: f32[h<{h}, i<{n}] = sum(j<70) p[h, i, j]
  w: f32[h<{h}, i<{n}, j<70] = p[h, i, j] / l[h, i]
  o: f32[h<{h}, i<{n}, e<6] = sum(j<70) w[h, i, j] * v[h, j, e]
  return o
"""
ADDED, CHOSEN = "(s[h, i, j] * 0.5 + z[i, j])", "where(z[i, j], s[h, i, j], -inf)"


@pytest.mark.parametrize(("score", "dtype"), [(ADDED, "f32"), (CHOSEN, "bool")])
@pytest.mark.parametrize("n", [1, 16, 33, 71, 131])
def test_what_heads_share_is_turned_once(score: str, dtype: str, n: int) -> None:
    program = parse_program(SHARED.format(h=5, n=n, score=score, dtype=dtype))
    rng = np.random.default_rng(n)
    arrays = [
        rng.standard_normal(s).astype(np.float32) for s in ((5, n, 8), (5, 70, 8), (5, 70, 6))
    ]
    z = rng.standard_normal((n, 70))
    arrays.append(z.astype(np.float32) if dtype == "f32" else z > 0)
    got = tw.compile(program, threads=1)(*arrays)
    (want,) = run_program(program, dict(zip("qkvz", arrays, strict=True)))
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)
    if n > 1:
        buffers = {b.name: b.layout for b in plan_program(program, TARGET)[0].buffers}
        (turned,) = [layout for layout in buffers.values() if layout.shape == (70, n)]
        at = turned.addresses()
        assert (np.diff(at[:, : min(n, 16)], axis=1) == 1).all()
        assert at[1, 0] - at[0, 0] == min(n, 32 if dtype == "f32" else 128)


def test_a_copy_is_not_made_for_few_heads() -> None:
    plan, _ = plan_program(
        parse_program(SHARED.format(h=3, n=33, score=ADDED, dtype="f32")), TARGET
    )
    assert not any(b.layout.shape == (70, 33) for b in plan.buffers)


def test_a_scaled_score_is_computed_once() -> None:
    (kernel,) = [
        k
        for k in kernels(SHARED.format(h=3, n=33, score="(s[h, i, j] * 0.5)", dtype="f32"))
        if k.stream
    ]
    halves = [d for d in kernel.definitions.values() if "0.5" in str(d.body)]
    assert len(halves) == 1
