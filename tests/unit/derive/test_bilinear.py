"""Fewer multiplications: the tables are identities, the rewritten program says the same."""

from __future__ import annotations

from dataclasses import replace
from fractions import Fraction

import numpy as np
import pytest

import tilewright
from tilewright.derive import bilinear
from tilewright.derive.bilinear import faster_convolutions, tables
from tilewright.errors import TargetError
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Definition, Program, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.tools import wiring
from tilewright.verify.oracle import check

TARGET = Target.named("x86-avx512")
IMAGE = """program image(x: f32[{n}, {c}, {h}, {w}], k: f32[{o}, {c}, 3, 3], b: f32[{o}]):
  y: f32[n<{n}, o<{o}, h<{oh}, w<{ow}] = sum(c<{c}, u<3, v<3) (x[n, c, h + u - {p}, w + v - {q}] else 0.0) * k[o, c, u, v]
  z: f32[n<{n}, o<{o}, h<{oh}, w<{ow}] = max(y[n, o, h, w] + b[o], 0.0)
  return z, y
"""
APART = """program apart(x: f32[{n}, {c}, {h}, {w}], k: f32[{o}, {c}, 3, 3]):
  y: f32[n<{n}, o<{o}, h<{h}, w<{w}] = sum(c<{c}, u<3, v<3) (x[n, c, h + {s}*u - {s}, w + {t}*v - {t}] else 0.0) * k[o, c, u, v]
  return y
"""
LINE = """program line(x: f32[{c}, {w}], k: f32[3, {o}, {c}]):
  y: f32[w<{ow}, o<{o}] = sum(v<3, c<{c}) k[v, o, c] * x[c, w + v]
  return y
"""


def with_constants(text: str, *names: str) -> Program:
    """The program with seeded constants in place of the named inputs."""
    p = parse_program(text)
    rng = np.random.default_rng(len(text))
    values = {}
    constants = []
    for t in p.inputs:
        if t.name in names:
            a = rng.standard_normal([n.attr for n in t.shape]).astype(np.float32)
            values[array_key(a)] = a
            constants.append((t, array_key(a)))
    inputs = tuple(t for t in p.inputs if t.name not in names)
    return replace(p, inputs=inputs, constants=tuple(constants), values=values)


def image(n: int, c: int, o: int, h: int, w: int, p: int = 1, q: int = 1) -> Program:
    sizes = {"n": n, "c": c, "o": o, "h": h, "w": w, "p": p, "q": q}
    text = IMAGE.format(**sizes, oh=h + 2 * p - 2, ow=w + 2 * q - 2)
    return with_constants(text, "k", "b")


def apart(n: int, c: int, o: int, h: int, w: int, s: int, t: int) -> Program:
    return with_constants(APART.format(n=n, c=c, o=o, h=h, w=w, s=s, t=t), "k")


def definitions(p: Program) -> list[Definition]:
    return [s for s in p.body if isinstance(s, Definition)]


@pytest.mark.parametrize(("m", "r"), [(1, 3), (2, 3), (3, 3), (4, 3), (6, 3), (2, 5), (4, 2)])
def test_the_tables_are_an_identity(m: int, r: int) -> None:
    at, g, bt = tables(m, r)
    n = m + r - 1
    for i in range(m):
        for u in range(r):
            for j in range(n):
                total = sum((at[i][e] * g[e][u] * bt[e][j] for e in range(n)), Fraction(0))
                assert total == (1 if j == i + u else 0)


@pytest.mark.parametrize("m", [2, 4])
@pytest.mark.parametrize(
    "program",
    [
        image(1, 5, 7, 9, 11),
        image(2, 3, 4, 8, 8, 0, 1),
        image(1, 4, 4, 7, 6, 0, 0),
        image(1, 2, 3, 1, 4, 2, 2),
        with_constants(LINE.format(c=3, o=5, w=13, ow=11), "k"),
        apart(1, 3, 4, 9, 16, 2, 2),
        apart(2, 2, 3, 7, 5, 3, 1),
        apart(1, 2, 3, 4, 11, 1, 5),
    ],
)
def test_the_rewritten_program_says_the_same(
    program: Program, m: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(bilinear, "_gain", lambda c, size, target: 2.0 * (size == m))
    derived, found = faster_convolutions(program, TARGET)
    assert [d.name for d in found] == ["y"]
    assert f"F({m},3)" in str(found[0])
    assert parse_program(str(derived)) == derived
    assert not any(d.reduction and len(d.reduction.axes) > 1 for d in definitions(derived))
    rng = np.random.default_rng(1)
    inputs = {
        t.name: rng.standard_normal([n.attr for n in t.shape]).astype(np.float32)
        for t in program.inputs
    }
    for want, got in zip(
        run_program(program, inputs), run_program(derived, inputs), strict=True
    ):
        assert np.abs(got - want).max() <= 4e-6 * max(1.0, np.abs(want).max())


def test_the_form_does_not_depend_on_values() -> None:
    p = image(1, 64, 64, 28, 28)
    derived, found = faster_convolutions(p, TARGET)
    assert found
    blind, same = faster_convolutions(replace(p, values={}), TARGET)
    assert same == found
    assert blind == derived
    other, _ = faster_convolutions(image(1, 64, 64, 28, 132), TARGET)
    assert {k for _, k in other.constants} != {k for _, k in derived.constants}


def test_a_gain_is_needed() -> None:
    # One tile of outputs a weight: the transformed weights are four times as many bytes.
    assert not faster_convolutions(image(1, 512, 512, 4, 4), TARGET)[1]
    assert not faster_convolutions(image(1, 3, 64, 56, 56), TARGET)[1]
    assert faster_convolutions(image(1, 64, 64, 56, 56), TARGET)[1]


@pytest.mark.parametrize(
    "change",
    [
        ("h + u - 1", "2*h + u - 1"),  # stride
        ("h + u - 1", "h - u + 1"),  # taps that run backwards
        ("else 0.0", "else 1.0"),
        ("sum(c", "max(c"),
        ("k[o, c, u, v]", "k[o, c, 2 - u, v]"),
        ("u<3, v<3)", "u<3, v<3 if c < 7)"),
        ("f32", "f64"),
    ],
)
def test_what_is_left_alone(change: tuple[str, str], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(bilinear, "_gain", lambda c, size, target: 2.0)
    text = IMAGE.format(n=1, c=16, o=16, h=12, w=12, oh=12, ow=12, p=1, q=1)
    assert change[0] in text
    p = with_constants(text, "k", "b")
    assert faster_convolutions(p, TARGET)[1]
    assert not faster_convolutions(p, TARGET, strict=True)[1]
    changed = with_constants(text.replace(*change), "k", "b")
    same, found = faster_convolutions(changed, TARGET)
    assert not found
    assert same is changed or same == changed
    assert not faster_convolutions(parse_program(text), TARGET)[1]  # weights that vary


@pytest.mark.parametrize(
    "program",
    [image(1, 96, 64, 28, 30), image(2, 64, 128, 27, 29), apart(1, 64, 96, 29, 26, 2, 2)],
)
def test_native_code_obeys_the_policy_of_bilinear_forms(
    program: Program, monkeypatch: pytest.MonkeyPatch
) -> None:
    # Whether the form is faster depends on the caches; the largest one rounds most.
    monkeypatch.setattr(bilinear, "_gain", lambda c, size, target: 1.0 + size)
    try:
        Target.native().require_runnable()
    except TargetError:
        pytest.skip("no native target")
    model = tilewright.compile(program, threads=2)
    report = check(model, program, seeds=2, bilinear=True)
    assert report.ok, str(report)
    assert [d.name for d in model.latest.derivations] == ["y"]


def test_constants_grow_by_little() -> None:
    """A model of many convolutions: some take the form with less memory, or none."""
    text = "\n".join(
        ["x: f32[1, 256, 14, 14]"]
        + [f"k{n}: f32[256, 256, 3, 3]" for n in range(16)]
        + [
            f"y{n + 1}[n<1, o<256, h<14, w<14] = sum(c<256, u<3, v<3) "
            f"(y{n}[n, c, h + u - 1, w + v - 1] else 0.0) * k{n}[o, c, u, v]".replace("y0[", "x[")
            for n in range(16)
        ]
    )
    rng = np.random.default_rng(0)
    weights = {f"k{n}": rng.standard_normal((256, 256, 3, 3), np.float32) for n in range(16)}
    program = wiring.with_constants(tilewright.program(text), weights)
    derived, found = faster_convolutions(program, TARGET)
    before, after = (
        sum(float(np.prod([int(str(n)) for n in t.shape])) * 4 for t, _ in p.constants)
        for p in (program, derived)
    )
    assert found and before < after <= 1.3 * before
