"""Phases: the rewritten program says the same, its conditions are gone, the rest is left alone."""

from __future__ import annotations

from dataclasses import replace
from itertools import product

import numpy as np
import pytest

import tilewright
from tilewright.derive import derived, residue
from tilewright.derive.residue import split_residues
from tilewright.errors import TargetError
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Definition, Program, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.verify.oracle import check

TARGET = Target.named("x86-avx512")
LINE = """program line(x: f32[{c}, {n}], k: f32[{c}, {o}, {t}]):
  y: f32[o<{o}, h<{h}] = sum(c<{c}, r<{t} if ({a}*h + {b}*r + {p}) % {s} == 0) (x[c, ({a}*h + {b}*r + {p}) // {s}] else 0.0) * k[c, o, r]
  return y
"""
IMAGE = """program image(x: f32[2, 4, 5, 6], k: f32[4, 3, 4, 3], b: f32[6]):
  y: f32[n<2, o<6, h<{h}, w<{w}] = sum(c<2, r<4, s<3) where((h + 1 - r) % 2 == 0 and (w - s*2) % 3 == 0, (x[n, c + o // 3 * 2, (h + 1 - r) // 2, (w - s*2) // 3] else 0.0) * k[c + o // 3 * 2, o % 3, r, s], 0.0)
  z: f32[n<2, o<6, h<{h}, w<{w}] = max(y[n, o, h, w] + b[o], 0.0)
  t: f32[n<2, o<6] = max(h<{h}, w<{w}) z[n, o, h, w]
  return z, y, t
"""
VOLUME = """program volume(x: f32[3, 3, 4, 2], k: f32[3, 5, 2, 3, 4]):
  y: f32[d<6, h<7, w<4, o<5] = sum(c<3, q<2, r<3, s<4 if (d - q) % 2 == 0 and (h + 1 - r) % 2 == 0) (x[c, (d - q) // 2, (h + 1 - r) // 2, w - s] else 0.0) * k[c, o, q, r, s]
  return y
"""
POOL = """program pool(g: f32[3, 7]):
  y: f32[c<3, h<15] = {monoid}(r<3 if (h + 1 - r) % 2 == 0) (g[c, (h + 1 - r) // 2] else 0.5)
  return y
"""


def known(p: Program, *names: str) -> Program:
    """The program with seeded constants in place of the named inputs."""
    rng = np.random.default_rng(3)
    arrays = {
        t.name: rng.standard_normal([n.attr for n in t.shape]).astype(np.float32)
        for t in p.inputs
        if t.name in names
    }
    return replace(
        p,
        inputs=tuple(t for t in p.inputs if t.name not in names),
        constants=tuple((t, array_key(arrays[t.name])) for t in p.inputs if t.name in names),
        values={array_key(a): a for a in arrays.values()},
    )


def line(
    t: int, s: int, a: int = 1, b: int = -1, p: int = 1, c: int = 3, o: int = 4, h: int = 17
) -> Program:
    return parse_program(LINE.format(n=6, t=t, s=s, a=a, b=b, p=p, c=c, o=o, h=h))


def numbers(p: Program) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(1)
    return {
        t.name: rng.standard_normal([n.attr for n in t.shape]).astype(np.float32) for t in p.inputs
    }


def definition(p: Program, name: str) -> Definition:
    return next(s for s in p.body if isinstance(s, Definition) and s.name == name)


def assert_says_the_same(program: Program) -> Program:
    """The program by phases, after it was compared with the plain one."""
    split, found = split_residues(program, TARGET, worth=0.0)
    assert [d.rule for d in found] == ["residue"]
    assert parse_program(str(split)) == split
    inputs = numbers(program)
    for want, got in zip(run_program(program, inputs), run_program(split, inputs), strict=True):
        np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)
    return split


@pytest.mark.parametrize(
    ("t", "s", "a", "b"),
    [
        *product((1, 2, 3, 4, 5), (2, 3, 4), (1,), (-1,)),  # taps below the stride: empty phases
        *product((3, 4), (2, 3, 4, 6), (1,), (-2, -3, 2)),  # dilation, also one that shares factors
        *product((4,), (4, 6), (2, 3, -1), (-1, 1, -2)),
    ],
)
def test_a_line_says_the_same(t: int, s: int, a: int, b: int) -> None:
    for p in (-1, 0, 2):
        if any((a * h + b * r + p) % s == 0 for h in range(s) for r in range(t)):
            assert_says_the_same(line(t, s, a, b, p))
            assert_says_the_same(known(line(t, s, a, b, p), "k"))
        else:  # nothing ever contributes
            assert split_residues(line(t, s, a, b, p), TARGET, worth=0.0)[1] == []


@pytest.mark.parametrize("subscript", ["h % 2", "(h + r) // 4 % 2", "min(h // 5, 1)"])
def test_what_the_phase_and_the_axis_share_is_kept(subscript: str) -> None:
    """A remainder of 3*h' + p by another number depends on both."""
    text = """program mixed(x: f32[9, 2], k: f32[9, 40]):
  y: f32[h<9] = sum(r<40 if h % 3 == 0) x[h, SUBSCRIPT] * k[h, r]
  return y
"""
    assert_says_the_same(parse_program(text.replace("SUBSCRIPT", subscript)))


@pytest.mark.parametrize(("h", "w"), [(10, 18), (9, 16), (1, 1)])
def test_several_axes_groups_and_readers(h: int, w: int) -> None:
    p = parse_program(IMAGE.format(h=h, w=w))
    assert_says_the_same(p)
    assert_says_the_same(known(p, "k", "b"))


def test_three_axes() -> None:
    assert_says_the_same(parse_program(VOLUME))


@pytest.mark.parametrize("monoid", ["sum", "max", "min", "prod"])
def test_without_weights(monoid: str) -> None:
    split = assert_says_the_same(parse_program(POOL.format(monoid=monoid)))
    assert len(split.inputs) == 1


def test_no_condition_is_left_where_taps_divide() -> None:
    split = assert_says_the_same(known(line(4, 2, h=16), "k"))
    d = definition(split, "y")
    assert d.reduction is not None and d.reduction.guard is None
    assert {a.name: a.extent.attr for a in d.reduction.axes} == {"c": 3, "r": 2}
    # Of five taps the even phase has three and the odd one two: that is what is left to ask.
    d = definition(assert_says_the_same(known(line(5, 2, h=16), "k")), "y")
    assert d.reduction is not None and d.reduction.guard is not None
    assert "%" not in str(d.reduction.guard).replace("h % 2", "p")


def test_infinities_stay_where_they_were() -> None:
    """A tap that a phase does not have contributes nothing, whatever stands in the input."""
    p = known(line(3, 2), "k")
    split, _ = split_residues(p, TARGET, worth=0.0)
    inputs = numbers(p)
    inputs["x"][1, 2] = np.inf
    inputs["x"][2, 3] = np.nan
    (want,), (got,) = run_program(p, inputs), run_program(split, inputs)
    assert not np.isfinite(want).all() and np.isfinite(want).any()
    np.testing.assert_allclose(got, want, rtol=1e-6, atol=1e-6)


def test_the_form_does_not_depend_on_values() -> None:
    p = known(line(4, 2, h=16), "k")
    split, found = split_residues(p, TARGET)
    blind, same = split_residues(replace(p, values={}), TARGET)
    assert found and same == found and blind == split
    other, _ = split_residues(known(line(4, 2, h=16, p=0), "k"), TARGET)
    assert {k for _, k in other.constants} != {k for _, k in split.constants}


def test_a_gain_is_needed() -> None:
    plain = known(line(4, 2, h=16), "k")
    assert split_residues(plain, TARGET)[1]
    assert not split_residues(plain, TARGET, worth=1e9)[1]


def test_weights_that_vary_are_copied_where_they_are_used_again() -> None:
    def copied(n: int) -> bool:
        sizes = {"n": n, "h": 2 * n, "c": 16, "o": 16, "t": 2, "a": 1, "b": -1, "p": 0, "s": 2}
        split = assert_says_the_same(parse_program(LINE.format(**sizes)))
        return any(t == "k_phases" for t in split.tensors)

    assert copied(40)
    assert not copied(1)


@pytest.mark.parametrize(
    ("old", "new"),
    [
        ("== 0)", "!= 0)"),
        ("if (1*h + -1*r + 1) % 2 == 0", "if (1*h + -1*r + c) % 2 == 0"),
        ("if (1*h + -1*r + 1) % 2 == 0", "if (h*r) % 2 == 0"),
        ("if (1*h + -1*r + 1) % 2 == 0", "if (h - r) % 2 < 1"),
    ],
)
def test_what_is_left_alone(old: str, new: str) -> None:
    d = definition(line(4, 2), "y")
    assert d.reduction is not None
    text = str(line(4, 2)).replace(str(d.reduction.guard), "(1*h + -1*r + 1) % 2 == 0")
    assert old in text
    p = parse_program(text.replace(old, new))
    assert split_residues(p, TARGET, worth=0.0) == (p, [])


def test_open_sizes_are_left_alone_and_fixed_ones_are_not() -> None:
    text = str(line(4, 2)).replace("\n", "\n  dim N in 2 .. 64\n", 1)
    p = parse_program(text.replace("[3, 6]", "[3, N]").replace("h<17", "h<(N*2)"))
    assert split_residues(p, TARGET, worth=0.0) == (p, [])
    assert_says_the_same(p.bind({"N": 5}))


def test_phases_of_a_window_of_three_are_split_before_other_rules() -> None:
    p = known(line(6, 2, c=64, o=64, h=32), "k")
    assert [d.rule for d in derived(p, TARGET)[1]] == ["residue"]


@pytest.mark.parametrize("target", ["x86-avx512", "x86-avx2"])
@pytest.mark.parametrize(
    "program",
    [
        known(line(4, 2, c=16, o=33, h=12), "k"),
        line(3, 3, c=5, o=17, h=18),
        known(line(5, 3, c=4, o=16, h=17), "k"),
        # Wide rows of results: turned in registers, and stored some elements apart.
        known(line(4, 2, c=16, o=32, h=140), "k"),
        known(line(3, 3, c=16, o=33, h=141), "k"),
        known(line(5, 5, c=16, o=32, h=150), "k"),
        known(parse_program(IMAGE.format(h=9, w=18)), "k", "b"),
        known(parse_program(VOLUME), "k"),
        parse_program(POOL.format(monoid="sum")),
    ],
)
def test_native_code_obeys_the_policy(
    program: Program, target: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    machine = Target.named(target)
    try:
        machine.require_runnable()
    except TargetError:
        pytest.skip(f"{target} does not run here")
    monkeypatch.setattr(residue, "_gain", lambda *_: 2.0)
    model = tilewright.compile(program, target=machine, threads=2)
    assert [d.rule for d in model.latest.derivations] == ["residue"]
    report = check(model, program, seeds=2)
    assert report.ok, str(report)
