"""Programs: text round-trips, keys follow the text, binding sizes and interpreting commute."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
from hypothesis import given, settings
from hypothesis import strategies as st

from tilewright.ir import expr as E
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import map_program
from tilewright.ir.program_parser import parse_program
from tilewright.verify.generate import random_inputs
from tilewright.verify.programs import generate

seeds = st.integers(0, 1 << 40)


@settings(max_examples=25)
@given(seeds)
def test_text_round_trips(seed: int) -> None:
    program = generate(seed).program
    again = parse_program(str(program))
    assert again == program and again.key == program.key and str(again) == str(program)


@settings(max_examples=20)
@given(seeds, st.text("abc", min_size=1))
def test_the_key_is_of_the_content(seed: int, name: str) -> None:
    program = generate(seed).program
    renamed = replace(program, name=name)
    assert (renamed.key == program.key) == (name == program.name)
    assert replace(program, values={"k": np.zeros(1)}).key == program.key


@settings(max_examples=20)
@given(seeds)
def test_binding_sizes_changes_nothing(seed: int) -> None:
    case = generate(seed, statements=2)
    bound = case.program.bind(case.sizes)
    assert not bound.dims and parse_program(str(bound)) == bound
    assert all(E.int_value(e) is not None for t in bound.inputs for e in t.shape)
    inputs = random_inputs(case.program, case.sizes, case.seed)
    for a, b in zip(
        run_program(case.program, inputs, dims=case.sizes), run_program(bound, inputs), strict=True
    ):
        np.testing.assert_array_equal(a, b)


@settings(max_examples=20)
@given(seeds)
def test_mapping_the_identity_is_the_identity(seed: int) -> None:
    program = generate(seed).program
    assert map_program(program, lambda e: e) == program
    assert map_program(program, lambda e: E.substitute(e, {})) == program


def test_a_program_of_one_line_per_statement_kind() -> None:
    text = """program p format 1(x: f32[N, 4], k: i32[N]):
  dim N in 1 .. 64 multiple 2 hint 8
  const w: f32[4, 4] @0123456789abcdef
  a: f32[i<N, j<4] = sum(k_2<4) x[i, k_2] * w[k_2, j]
  b: i64[i<N] = argmax(j<4 if 0.0 < a[i, j] or j == 3) a[i, j]
  c: f32[i<N] = scan max(i) (a[i - 1, 0] else -inf)
  recur t<N:
    d: f32[t<N] = (d[t - 1] else 1.0) * 0.5 + c[t]
  e: f32[i<(N // 2 + 1), j<4] = scatter sum(n<N, m<4) at (i64(k[n]), m) of a[n, m] base 0.0
  f: f32[i<4] = scatter last(n<N) at (n % 4) of d[n] base f32(i)
  g: f32[N, 2], h: i64[N, 2] = extern topk(a) {axis = -1, k = 2, largest = true, pads = (1, 2,), mode = "x"}
  return b, g, e
"""
    program = parse_program(text)
    assert str(program) == text
    assert parse_program(str(program)) == program
