"""Spaces: the default is a point, counting is exact, every row obeys the register rule."""

from __future__ import annotations

import os
import subprocess
import sys
from itertools import product
from math import ceil, prod

import numpy as np
import pytest

from tilewright.group.plan import plan_program
from tilewright.ir.kernel import Kernel
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of
from tilewright.schedule.roles import stage_roles
from tilewright.schedule.schedule import Schedule
from tilewright.schedule.space import Group, Space

TARGETS = [Target.named(n) for n in ("x86-avx512", "x86-avx2", "x86-sse42", "aarch64")]
TEXTS = {
    "matmul": """program p(x: f32[37, 29], w: f32[29, 45]):
  y: f32[i<37, j<45] = sum(k<29) x[i, k] * w[k, j]
  return y
""",
    "large matmul": """program p(x: f32[512, 512], w: f32[512, 512]):
  y: f32[i<512, j<512] = sum(k<512) x[i, k] * w[k, j]
  return y
""",
    "doubles": """program p(x: f64[37, 29], w: f64[29, 45]):
  y: f64[i<37, j<45] = sum(k<29) x[i, k] * w[k, j]
  return y
""",
    "one point": """program p(x: f32[], y: f32[]):
  z: f32[] = x * y
  return z
""",
    "empty": """program p(x: f32[0, 5], w: f32[5, 3]):
  y: f32[i<0, j<3] = sum(k<5) x[i, k] * w[k, j]
  return y
""",
    "convolution": """program p(x: f32[1, 7, 13, 11], w: f32[20, 7, 3, 3]):
  y: f32[n<1, o<20, h<13, w_<11] = sum(c<7, u<3, v<3) (x[n, c, h + u - 1, w_ + v - 1] else 0.0) * w[o, c, u, v]
  return y
""",
    "depthwise": """program p(x: f32[1, 19, 8, 9], k: f32[19, 3, 3]):
  y: f32[n<1, c<19, h<8, w<9] = sum(u<3, v<3) (x[n, c, h + u - 1, w + v - 1] else 0.0) * k[c, u, v]
  return y
""",
    "softmax": """program p(x: f32[13, 83]):
  m: f32[i<13] = max(j<83) x[i, j]
  e: f32[i<13, j<83] = exp(x[i, j] - m[i])
  s: f32[i<13] = sum(j<83) e[i, j]
  y: f32[i<13, j<83] = e[i, j] / s[i]
  return y
""",
    "transpose": """program p(x: f32[50, 70]):
  y: f32[i<70, j<50] = x[j, i]
  return y
""",
    "scan": """program p(x: f32[50, 70]):
  y: f32[i<50, j<70] = scan sum(j) x[i, j]
  return y
""",
    "position": """program p(x: f64[5, 33]):
  y: i64[i<5] = argmax(j<33) x[i, j]
  return y
""",
    "scatter": """program p(x: f32[5], i: i64[5]):
  y: f32[p<3] = scatter sum(r<5) at (i[r]) of x[r] base 0.0
  return y
""",
}


def kernels(text: str, target: Target) -> list[Kernel]:
    return list(plan_program(parse_program(text), target)[0].kernels)


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("name", TEXTS)
def test_default_samples_and_neighbours_are_points(name: str, target: Target) -> None:
    rng = np.random.default_rng(0)
    for kernel in kernels(TEXTS[name], target):
        for threads in (1, 2, 64):
            space = space_of(kernel, target, threads)
            assert space.contains(space.default())
            assert space.rows_of(space.default()) == tuple(g.start for g in space.groups)
            for _ in range(5):
                s = space.sample(rng)
                rows = space.rows_of(s)
                assert rows is not None
                assert space.at(rows) == s
                assert Schedule.parse(str(s)) == s
                assert np.isfinite(space.encode(s)).all()
                for n in list(space.neighbours(s))[:40]:
                    assert space.contains(n)
                    assert n != s


@pytest.mark.parametrize("name", TEXTS)
def test_a_space_is_a_function_of_its_arguments(name: str) -> None:
    target = TARGETS[0]
    one, two = (kernels(TEXTS[name], target) for _ in range(2))
    assert [space_of(k, target, 2).key for k in one] == [space_of(k, target, 2).key for k in two]


def test_rows_are_distinct_and_few() -> None:
    for target in TARGETS:
        for text in TEXTS.values():
            for kernel in kernels(text, target):
                for g in space_of(kernel, target).groups:
                    assert len(set(g.rows)) == len(g.rows) <= 100_000
                    assert all(len(r) == len(g.names) == len(g.kinds) for r in g.rows)
                names = [n for g in space_of(kernel, target).groups for n in g.names]
                assert len(names) == len(set(names))


def test_counting_is_exact() -> None:
    space = Space(
        (
            Group(("a", "b"), ("tile", "choice"), ((1, "x"), (2, "x"), (2, "y"))),
            Group(("c",), ("flag",), ((0,), (1,)), 1),
            Group(("d",), ("order",), (("p,q",), ("q,p",), ("p",))),
        )
    )
    points = {space.at(rows) for rows in product(range(3), range(2), range(3))}
    assert len(points) == space.cardinality == 18
    assert all(space.contains(p) for p in points)
    assert space.default() == Schedule.of({"a": 1, "b": "x", "c": 1, "d": "p,q"})
    assert not space.contains(Schedule.of({"a": 1, "b": "y", "c": 0, "d": "p"}))
    assert not space.contains(Schedule.of({"a": 1, "b": "x", "c": 0}))
    assert list(space.neighbours(Schedule.of({"a": 7}))) == []


def test_counting_of_a_kernel() -> None:
    target = TARGETS[2]
    (kernel,) = kernels(TEXTS["scan"], target)
    space = space_of(kernel, target)
    assert space.cardinality < 20_000
    ranges = [range(len(g.rows)) for g in space.groups]
    points = {space.at(rows) for rows in product(*ranges)}
    assert len(points) == space.cardinality


def test_a_uniform_sample_reaches_every_row() -> None:
    rng = np.random.default_rng(1)
    g = Group(("a",), ("tile",), tuple((k,) for k in range(6)))
    space = Space((g, Group(("b",), ("flag",), ((0,), (1,)))))
    counts: dict[Schedule, int] = {}
    for _ in range(2400):
        s = space.sample(rng)
        counts[s] = counts.get(s, 0) + 1
    assert len(counts) == 12
    assert 120 < min(counts.values()) and max(counts.values()) < 290


@pytest.mark.parametrize("target", TARGETS, ids=lambda t: t.name)
@pytest.mark.parametrize("name", ["matmul", "large matmul", "doubles", "convolution", "depthwise"])
def test_register_rule(name: str, target: Target) -> None:
    """Accumulators, one row of operand B and a broadcast fit the registers, in every row."""
    lanes = target.lanes(64 if name == "doubles" else 32)
    for kernel in kernels(TEXTS[name], target):
        for k in range(len(kernel.stages)):
            roles = stage_roles(kernel, k)
            if not roles.is_contraction:
                continue
            tiles = space_of(kernel, target).groups[0]
            assert f"s{k}.lane" in tiles.names
            for row in tiles.rows:
                values = dict(zip(tiles.names, row, strict=True))
                lane = roles.axis_of.get(str(values[f"s{k}.lane"]))
                sizes = {a: int(values[f"s{k}.reg.{n}"]) for a, n in roles.names.items()}
                vectors = ceil(sizes[lane] / lanes) if lane else 1
                rows = prod(sizes[a] for a in roles.out if a != lane)
                live = rows * vectors
                if lane in roles.reduce:
                    assert 2 * live + 1 <= target.vector_registers
                elif vectors > 1:
                    assert live + vectors + 1 <= target.vector_registers
                else:
                    assert live + 1 <= target.vector_registers


def test_default_tile_of_a_large_matmul() -> None:
    """Known good register tiles of square matmuls, found without looking anything up."""
    large = TEXTS["large matmul"]
    cases = product(((TARGETS[0], 32), (TARGETS[1], 16)), ((large, 32), (large.replace("f32", "f64"), 64)))
    for (target, most), (text, bits) in cases:
        (kernel,) = kernels(text, target)
        s = space_of(kernel, target).default()
        rows, columns = s.integer("s0.reg.m0"), s.integer("s0.reg.n0")
        assert s.text("s0.lane") == "n0"
        assert columns % target.lanes(bits) == 0
        live = rows * (columns // target.lanes(bits))
        assert most * 0.6 <= live <= most


@pytest.mark.parametrize("target", TARGETS[:2], ids=lambda t: t.name)  # of wide vectors
def test_a_factor_is_not_gathered_for_every_product(target: Target) -> None:
    # Windows over a mirrored border: no address of x is linear in the summed axis.
    text = """program p(x: f32[1, 576]):
  const w: f32[258, 256] @bdc37311eec093878b0798f5d7b07324a0004edd6d903d5aa75060dff54b3785
  y: f32[a<1, f<258, t<4] = sum(k<256) x[a, min(t*128 + k, t*-128 - k + 1150)] * w[f, k]
  return y
"""
    program = parse_program(text)
    for kernel in plan_program(program, target)[0].kernels:
        roles = stage_roles(kernel, 0)
        default = dict(space_of(kernel, target, 1).default().items)
        lane = roles.axis_of.get(str(default["s0.lane"]), "")
        for factor in (roles.a, roles.b):
            assert factor is None or factor.strides.get(lane, 0) is not None


def test_schedule_text() -> None:
    s = Schedule.of({"b": 2, "a": "x", "c": True})
    assert str(s) == '{"format":1,"a":"x","b":2,"c":true}'
    assert Schedule.parse(str(s)) == s
    assert s.key == Schedule.of({"c": True, "a": "x", "b": 2}).key
    assert (s.integer("b"), s.integer("a", 5), s.text("b"), s.integer("z", 3)) == (2, 5, "2", 3)


_WINDOW = """
from tilewright.group.plan import plan_program
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.schedule.kernel_space import space_of

text = '''program k(t0: f16[1, 9], t1: f16[1, 1, 4]):
  t2: f16[a0<12, a1<2, a2<1] = sum(a3<4, a4<1 if 1 - a1 == 0) (t0[a4, a0 + a1 - a3] else f16(0.0)) * t1[a4, a2, a3]
  return t2
'''
target = Target.named("x86-avx512")
(kernel,) = plan_program(parse_program(text), target)[0].kernels
print(space_of(kernel, target, 1).default())
"""


def test_defaults_are_the_same_in_every_process() -> None:
    """Two axes slide along one window: which is looked at first must not hang on the order of a set,
    which differs from process to process.
    """
    found = {
        subprocess.run(
            [sys.executable, "-c", _WINDOW], check=True, capture_output=True, text=True,
            env={**os.environ, "PYTHONHASHSEED": str(seed)},
        ).stdout
        for seed in range(1, 6)
    }  # fmt: skip
    assert len(found) == 1 and "s0.lane" in found.pop()
