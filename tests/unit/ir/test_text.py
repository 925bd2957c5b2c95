"""Literals in expression text: rounded once, to the dtype that they end up in."""

from __future__ import annotations

import numpy as np

from tilewright.ir.program import Definition, Extern
from tilewright.ir.program_parser import parse_program


def definition(body: str) -> Definition:
    text = f"program p(z: f64[N], x: f32[N]):\n  y: f64[i<N] = {body}\n  return y\n"
    program = parse_program(text)
    assert parse_program(str(program)) == program
    found = program.body[0]
    assert isinstance(found, Definition)
    return found


def test_f64_literals_keep_their_digits() -> None:
    assert definition("f64(0.1)").body.attr == 0.1
    assert definition("-0.1").body.attr == -0.1
    assert definition("z[i] * 0.1").body.args[1].attr == 0.1
    assert definition("0.1 * z[i]").body.args[0].attr == 0.1
    assert definition("z[i] + 1.0/3").body.args[1].attr == 1 / 3
    assert definition("z[i] + 1/3").body.args[1].attr == 1 / 3
    assert definition("(z[i - 1] else 0.1)").body.args[-1].attr == 0.1
    assert definition("f64(x[i] * 0.1)").body.args[0].args[1].attr == float(np.float32(0.1))


def test_attributes_keep_their_digits() -> None:
    text = "program p(x: f32[4]):\n  y: f32[4] = extern sort(x) {eps = 0.1}\n  return y\n"
    program = parse_program(text)
    assert parse_program(str(program)) == program
    extern = program.body[0]
    assert isinstance(extern, Extern) and extern.attributes == (("eps", 0.1),)
