"""One build for a range of sizes: it gives what a build for each size gives, at sizes that hurt."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from tilewright.api import CompiledModel
from tilewright.errors import TargetError
from tilewright.group.plan import plan_program
from tilewright.group.symbolic import scope_of_sizes
from tilewright.ir import expr as E
from tilewright.ir.extent import Extent, assuming, extent_of, hint_of
from tilewright.ir.kernel import parse_kernel
from tilewright.ir.plan import parse_plan
from tilewright.ir.program import Dim, Program
from tilewright.ir.program_parser import parse_program
from tilewright.ir.ranges import nonnegative, simplify
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.runtime.model import places_of
from tilewright.runtime.package import load
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.symbolic import for_range
from tilewright.verify.oracle import check

PROGRAMS = {
    "ew": """
program ew(x: f32[B, N], b: f32[N]):
  dim B in 0 .. inf
  dim N in 0 .. inf
  y: f32[i<B, j<N] = tanh(x[i, j] + b[j])
  return y
""",
    "soft": """
program sm(x: f32[B, N]):
  dim B in 0 .. inf
  dim N in 0 .. inf
  m: f32[i<B] = max(j<N) x[i, j]
  e: f32[i<B, j<N] = exp(x[i, j] - m[i])
  s: f32[i<B] = sum(j<N) e[i, j]
  y: f32[i<B, j<N] = e[i, j] / s[i]
  return y
""",
    "mm": """
program mm(x: f32[B, L, 64], w: f32[64, 96]):
  dim B in 0 .. inf
  dim L in 0 .. inf
  y: f32[i<B, l<L, j<96] = sum(k<64) x[i, l, k] * w[k, j]
  z: f32[i<B, l<L, j<96] = max(y[i, l, j], 0.0)
  return z
""",
    "nmk": """
program nmk(x: f32[M, K], w: f32[K, N]):
  dim M in 0 .. inf
  dim K in 0 .. inf
  dim N in 0 .. inf
  y: f32[i<M, j<N] = sum(k<K) x[i, k] * w[k, j]
  return y
""",
    "ln": """
program ln(x: f32[B, L, 48], g: f32[48], c: f32[48]):
  dim B in 0 .. inf
  dim L in 0 .. inf
  s: f32[b<B, l<L] = sum(j<48) x[b, l, j]
  m: f32[b<B, l<L] = s[b, l] / 48.0
  v: f32[b<B, l<L] = sum(j<48) (x[b, l, j] - m[b, l]) * (x[b, l, j] - m[b, l])
  y: f32[b<B, l<L, j<48] = (x[b, l, j] - m[b, l]) * rsqrt(v[b, l] / 48.0 + 0.00001) * g[j] + c[j]
  return y
""",
    "att": """
program att(q: f32[B, L, 32], k: f32[B, L, 32], v: f32[B, L, 32], w: f32[B, L]):
  dim B in 0 .. inf
  dim L in 0 .. inf
  s: f32[b<B, h<2, i<L, j<L] = sum(d<16) q[b, i, h*16 + d] * k[b, j, h*16 + d]
  t: f32[b<B, h<2, i<L, j<L] = s[b, h, i, j] * 0.25 + w[b, j]
  m: f32[b<B, h<2, i<L] = max(j<L) t[b, h, i, j]
  e: f32[b<B, h<2, i<L, j<L] = exp(t[b, h, i, j] - m[b, h, i])
  z: f32[b<B, h<2, i<L] = sum(j<L) e[b, h, i, j]
  p: f32[b<B, h<2, i<L, j<L] = e[b, h, i, j] / z[b, h, i]
  o: f32[b<B, h<2, i<L, d<16] = sum(j<L) p[b, h, i, j] * v[b, j, h*16 + d]
  y: f32[b<B, i<L, c<32] = o[b, c // 16, i, c % 16]
  return y
""",
    "causal": """
program causal(q: f32[L, 16], k: f32[L, 16], v: f32[L, 16]):
  dim L in 0 .. inf
  s: f32[i<L, j<L] = sum(d<16) q[i, d] * k[j, d]
  t: f32[i<L, j<L] = where(j <= i, s[i, j], -1e30)
  m: f32[i<L] = max(j<L) t[i, j]
  e: f32[i<L, j<L] = exp(t[i, j] - m[i])
  z: f32[i<L] = sum(j<L) e[i, j]
  o: f32[i<L, d<16] = sum(j<L) e[i, j] / z[i] * v[j, d]
  return o
""",
    "conv": """
program conv(x: f32[B, 8, H, W], w: f32[16, 8, 3, 3]):
  dim B in 0 .. inf
  dim H in 0 .. inf
  dim W in 0 .. inf
  y: f32[b<B, o<16, i<H, j<W] = sum(c<8, u<3, v<3) (x[b, c, i + u - 1, j + v - 1] else 0.0) * w[o, c, u, v]
  z: f32[b<B, o<16, i<H, j<W] = max(y[b, o, i, j], 0.0)
  a: f32[b<B, o<16, i<((H + 1) // 2), j<((W + 1) // 2)] = max(u<3, v<3) (z[b, o, 2*i + u - 1, 2*j + v - 1] else -inf)
  return a
""",
    "colsum": """
program colsum(x: f32[N, M]):
  dim N in 0 .. inf
  dim M in 0 .. inf
  y: f32[j<M] = sum(i<N) x[i, j]
  z: f32[i<N] = sum(j<M) x[i, j]
  t: f32[] = sum(i<N, j<M) x[i, j]
  return y, z, t
""",
    "cumsum": """
program cumsum(x: f32[N, M]):
  dim N in 0 .. inf
  dim M in 0 .. inf
  y: f32[i<N, j<M] = scan sum(j) x[i, j]
  z: f32[i<N, j<M] = scan sum(i) x[i, j]
  return y, z
""",
    "trans": """
program trans(x: f32[N, M, 12]):
  dim N in 0 .. inf
  dim M in 0 .. inf
  y: f32[k<12, j<M, i<N] = x[i, j, k] * 2.0
  r: f32[i<(N*M), k<12] = tanh(x[i // M, i % M, k])
  q: f32[i<N, j<(M*12)] = x[i, j // 12, j % 12] + 1.0
  return y, r, q
""",
    "concat": """
program concat(x: f32[N, 5], y: f32[M, 5]):
  dim N in 0 .. inf
  dim M in 0 .. inf
  z: f32[i<(N + M), j<5] = where(i < N, (x[i, j] else 0.0), (y[i - N, j] else 0.0)) * 3.0
  return z
""",
    "bmm": """
program bmm(x: f32[B, N, K], y: f32[B, K, N]):
  dim B in 0 .. inf
  dim N in 0 .. inf
  dim K in 0 .. inf
  z: f32[b<B, i<N, j<N] = sum(k<K) x[b, i, k] * y[b, k, j]
  return z
""",
    "gemv": """
program gemv(x: f32[M, 256], y: f32[512, 256]):
  dim M in 0 .. inf
  z: f32[i<M, j<512] = sum(k<256) x[i, k] * y[j, k]
  return z
""",
}

PROGRAMS |= {
    "turned": """
program turned(x: f32[M, N, 3]):
  dim M in 0 .. inf
  dim N in 0 .. inf
  y: f32[j<N, k<3, i<M] = x[i, j, k]
  z: f32[j<N, i<M] = max(k<3) x[i, j, k] * f32(i)
  return y, z
""",
    "padded": """
program padded(x: f32[1, 40, H, W], w: f32[32, 40, 3, 3]):
  dim H in 0 .. inf
  dim W in 0 .. inf
  t: f32[n<1, c<40, h<H, v<W] = tanh(x[n, c, h, v])
  y: f32[n<1, o<32, h<H, v<W] = sum(c<40, r<3, s<3) w[o, c, r, s] * (t[n, c, h + r - 1, v + s - 1] else 0.0)
  return y
""",
    "columns": """
program columns(x: f32[600, N]):
  dim N in 0 .. inf
  y: f32[j<N] = sum(i<600) x[i, j]
  z: f32[j<N] = max(i<600) x[i, j]
  return y, z
""",
}

SIZES = (
    (17, 5, 9), (2, 31, 3), (16, 16, 16), (7, 2, 30), (33, 64, 100), (100, 33, 63), (0, 3, 2),
    (5, 1, 17),
)  # fmt: skip


def model(text: str, target: str) -> tuple[Program, CompiledModel]:
    p = parse_program(text)
    made = CompiledModel(p, target=Target.named(target), threads=1, symbolic="always")
    return p, made


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2", "x86-sse42"])
@pytest.mark.parametrize("name", PROGRAMS)
def test_sizes(name: str, target: str) -> None:
    try:
        Target.named(target).require_runnable()
    except TargetError as e:
        pytest.skip(str(e))
    p, made = model(PROGRAMS[name], target)
    for numbers in SIZES:
        sizes = dict(zip((d.name for d in p.dims), numbers, strict=False))
        check(made, p, 1, sizes=sizes).raise_if_wrong()
    ranges = [b for b in made._builds if len(b.scope.dims) == len(p.dims)]
    assert len(ranges) == 2  # up to 31, and above


DEEP = """
program deep(x: f32[M, 1024], w: f32[1024, 64]):
  dim M in 0 .. inf
  y: f32[i<M, j<64] = sum(k<1024) x[i, k] * w[k, j]
  return y
"""


def test_rows_that_are_left_of_a_copied_operand_are_one_tile() -> None:
    """Each size has code of its own, so that the other operand passes once."""
    target = Target.named("x86-avx512")
    p = parse_program(DEEP)
    scope = scope_of_sizes(p, {"M": 28}, {"M"})
    (kernel,) = plan_program(scope.program(p), target)[0].kernels
    schedule = for_range(kernel, space_of(kernel.bind({"M": 28}), target).default())
    made = lower(kernel, schedule, target)
    assert isinstance(made, Lowered)
    tile = int(dict(schedule.items)["s0.reg.m0"])
    assert dict(schedule.items)["s0.pack.a"] == "block" and tile > 8
    tiles = re.findall(r"f32\[(?:a0:(\d+), )?a1:32\*\] = contract", str(made.nest))
    assert sorted(int(n or 1) for n in tiles) == list(range(1, tile + 1))


def test_every_number_of_rows_of_a_copied_operand() -> None:
    try:
        Target.named("x86-avx512").require_runnable()
    except TargetError as e:
        pytest.skip(str(e))
    p, made = model(DEEP, "x86-avx512")
    for rows in (17, *range(16), 27, 28, 29, 31, 45):
        check(made, p, 1, sizes={"M": rows}).raise_if_wrong()


def test_another_size_compiles_nothing() -> None:
    p, made = model(PROGRAMS["mm"], "native")
    made.variant({"B": 3, "L": 40})
    built = made.latest.build
    for sizes in ({"B": 2, "L": 32}, {"B": 31, "L": 255}):
        assert made.variant(sizes).build is built
        check(made, p, 1, sizes=sizes).raise_if_wrong()


def test_by_default_a_dim_is_symbolic_from_its_second_size_on() -> None:
    p = parse_program(PROGRAMS["mm"])
    made = CompiledModel(p, target=Target.named("native"), threads=1)
    at = [{"B": 2, "L": n} for n in (40, 50, 60)] + [{"B": b, "L": 40} for b in (5, 6)]
    for sizes in at:
        check(made, p, 1, sizes=sizes).raise_if_wrong()
    assert made.variant(at[0]).build.scope.report() == [
        "B is fixed at 2 in this build: no other size was asked for",
        "L is fixed at 40 in this build: no other size was asked for",
    ]
    assert made.variant(at[1]).build is made.variant(at[2]).build
    assert made.variant(at[1]).build.scope.report() == [
        "B is fixed at 2 in this build: no other size was asked for",
        "L of 32 to 255 shares this build, decided for 128",
    ]
    assert made.variant(at[3]).build is made.variant(at[4]).build
    assert len(made.builds) == 3


def test_report_says_what_was_specialised() -> None:
    _, made = model(PROGRAMS["mm"], "native")
    made.variant({"B": 1, "L": 40})
    assert made.latest.build.scope.report() == [
        "B is fixed at 1 in this build: below 2 an axis is one point, or nothing",
        "L of 32 to 255 shares this build, decided for 128",
    ]
    text = made.explain()
    places = {d.name: places_of(made.input_specs, d.name) for d in made.dims}
    assert all(places.values())
    assert all(line in text for line in made.latest.build.scope.report(places))


def test_saved_sizes_run(tmp_path: Path) -> None:
    p, made = model(PROGRAMS["att"], "native")
    known = [{"B": 2, "L": 9}, {"B": 3, "L": 40}]
    for sizes in known:
        made.variant(sizes)
    made.save(tmp_path / "m.twa")
    loaded = load(tmp_path / "m.twa", threads=1)
    for sizes in known:
        check(loaded, p, 1, sizes=sizes).raise_if_wrong()


@pytest.mark.parametrize("name", PROGRAMS)
def test_code_does_not_depend_on_the_hint(name: str) -> None:
    """A schedule chosen, the nest is the same whatever size the decisions were taken for."""
    target = Target.named("x86-avx512")
    p = parse_program(PROGRAMS[name])
    scope = scope_of_sizes(p, {d.name: 96 for d in p.dims}, {d.name for d in p.dims})
    plan, _ = plan_program(scope.program(p), target)
    assert str(parse_plan(str(plan))) == str(plan)
    for k in plan.kernels:
        assert str(parse_kernel(str(k))) == str(k)
        schedule = space_of(k.bind({d.name: hint_of(d) for d in k.program.dims}), target).default()
        nests = set()
        for hint in (128, 35, 250):
            text = str(k).replace("hint 128", f"hint {hint}")
            made = lower(parse_kernel(text), schedule, target)
            assert isinstance(made, Lowered)
            nests.add(str(made.nest))
        assert len(nests) == 1


def test_extents_are_equal_for_every_size_only() -> None:
    dims = (Dim("n", 2, None, 1, 64), Dim("m", 2, None, 1, 64))
    with assuming(dims):
        n, m = extent_of(E.dim("n")), extent_of(E.dim("m"))
        assert isinstance(n, Extent) and int(n) == hint_of(dims[0]) == 64
        assert n != m and n != 64 and n == extent_of(E.dim("n"))
        assert n * m == m * n and n * 3 - n == 2 * n and n - n == 0
        assert (n * 8) % 4 == 0 and n % 4 != 0
        assert str(n * m + 1) == "m*n + 1"


def test_proofs_hold_for_every_size() -> None:
    n, m = E.dim("n"), E.dim("m")
    i, j = E.index("i"), E.index("j")
    with assuming((Dim("n", 2, 512), Dim("m", 1))):
        ranges = {"i": (0, extent_of(n - 1)), "j": (0, extent_of(m - 1))}
        assert nonnegative(n - 1 - i, ranges)
        assert not nonnegative(n - 2 - i, ranges)
        assert not nonnegative(m - 2, ranges)
        assert nonnegative(n * m - 1 - (i * m + j), ranges)
        assert nonnegative(E.const(512) - n, ranges) and not nonnegative(E.const(511) - n, ranges)
        assert nonnegative(n - n // 16 * 16, ranges) and not nonnegative(n // 16 * 16 - n, ranges)
        assert simplify((i * m + j) // m, ranges) is i
        assert simplify((i * m + j) % m, ranges) is j
        assert simplify((i // m) * m + i % m, ranges) is i
        assert (i * m + j) // n is simplify((i * m + j) // n, ranges)


def test_sizes_that_values_define_are_compiled_for_each_size() -> None:
    p = parse_program(
        """
program chosen(x: f32[N], c: i64[]):
  dim N in 0 .. inf
  dim K <= N = c
  y: f32[i<K] = x[i] * 2.0
  return y
"""
    )
    scope = scope_of_sizes(p, {"N": 12}, {"N"})
    assert scope.fixed == (("N", 12),) and "K" in scope.reason


@pytest.mark.parametrize("n", [999, 6144, 7001])
def test_strips_of_an_open_row(n: int) -> None:
    """One strip and what is left of the next: a single pass over the rows each."""
    p, made = model(PROGRAMS["columns"], "x86-avx512")
    check(made, p, 1, sizes={"N": n}).raise_if_wrong()
    for lowered in made.latest.build.built.lowered:
        text = str(lowered.nest)
        assert "scratch f0" in text and not re.search(r"// \d+ % 2 != 0", text)


def test_what_is_read_past_an_open_axis_has_a_halo() -> None:
    """So that no read needs a guard: tiles of four rows read up to nine past the end."""
    text = """
program tiles(x: f32[H, 8]):
  dim H in 1 .. inf
  t: f32[i<H, j<8] = tanh(x[i, j])
  y: f32[a<((H + 3) // 4), b<6, j<8] = sum(k<6) (t[a*4 + b + k - 1, j] else 0.0)
  return y
"""
    p, made = model(text, "x86-avx512")
    for h in (1, 4, 5, 30, 64):
        check(made, p, 1, sizes={"H": h}).raise_if_wrong()
    first, second = made.latest.plan.kernels
    assert "halo 1:9,0:0" in str(first) and "halo 1:9,0:0" in str(second)
    assert "where" not in str(made.latest.build.built.lowered[1].nest)


@pytest.mark.parametrize(("n", "widest"), [(100, 32), (1000, 256)])
def test_the_least_size_of_a_range_fills_the_tiles_of_a_reduced_row(n: int, widest: int) -> None:
    target = Target.named("x86-avx512")
    p = parse_program(PROGRAMS["soft"])
    scope = scope_of_sizes(p, {"B": n, "N": n}, {"B", "N"})
    (kernel,) = plan_program(scope.program(p), target)[0].kernels
    hints = {d.name: hint_of(d) for d in kernel.program.dims}
    schedule = for_range(kernel, space_of(kernel.bind(hints), target).default())
    tiles = [int(v) for k, v in schedule.items if k.endswith("reg.k0")]
    assert len(tiles) == 2 and all(32 <= t <= widest for t in tiles)
