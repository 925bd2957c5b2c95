"""The rule for the few largest elements: results are the extern's, bit for bit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import tilewright as tw
from tilewright.derive.selection import MOST, order_values, select_few
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.externs import sort, topk
from tilewright.ir.program import Definition, Extern, Program
from tilewright.ir.program_parser import parse_program

KINDS = ("f32", "f16", "bf16", "i8", "u8", "i16", "u16", "i32", "u32")


def selection(dtype: str, shape: tuple[int, ...], axis: int, k: int, about: str = "") -> Program:
    out = ", ".join(str(k if j == axis else n) for j, n in enumerate(shape))
    return parse_program(
        f"""program p(x: {dtype}{list(shape)}):
  v: {dtype}[{out}], i: i64[{out}] = extern topk(x) {{axis = {axis}, k = {k}{about}}}
  return v, i
"""
    )


def hard(dtype: str, shape: tuple[int, ...]) -> np.ndarray:
    """Few different values, the ends of the type, and for floats both zeros, infinities and NaN."""
    rng = np.random.default_rng(7)
    kind = DTYPES[dtype].np
    if DTYPES[dtype].is_float:
        known = [0.0, -0.0, 1.5, -1.5, np.inf, -np.inf, np.nan, 1e-7, -1e-7, 3e-39]
        return rng.choice(np.array(known, np.float64), shape).astype(kind)
    info = np.iinfo(kind)
    return rng.choice(np.array([info.min, info.max, 0, 1, 5, info.max // 2], kind), shape)


@pytest.mark.parametrize("dtype", KINDS)
def test_results_are_those_of_the_extern(dtype: str) -> None:
    cases = [((5, 37), 1, 3), ((11, 4, 3), 0, 11), ((1,), 0, 1), ((3, 70, 2), 1, 8)]
    for (shape, axis, k), largest, first in product(cases, (True, False), (True, False)):
        flags = {"largest": largest, "nan_first": first}
        text = "".join(f", {n} = {str(v).lower()}" for n, v in flags.items())
        program = selection(dtype, shape, axis, k, text)
        derived, found = select_few(program)
        assert [d.rule for d in found] == ["selection"]
        assert all(isinstance(s, Definition) for s in derived.body)
        x = hard(dtype, shape)
        values, places = tw.compile(program)(x)
        wanted, order = topk(x, axis=axis, k=k, largest=largest, nan_first=first)
        np.testing.assert_array_equal(places, order)
        bits = f"u{x.itemsize}"
        np.testing.assert_array_equal(values.view(bits), wanted.view(bits))


@pytest.mark.parametrize(
    ("dtype", "shape", "k"), [("f32", (5, 40), MOST + 1), ("f64", (5, 40), 3), ("i64", (5, 40), 3)]
)
def test_what_is_no_selection_of_few_stays(dtype: str, shape: tuple[int, ...], k: int) -> None:
    program = selection(dtype, shape, 1, k)
    derived, found = select_few(program)
    assert derived is program and not found
    assert isinstance(derived.body[0], Extern)
    x = hard(dtype, shape)
    np.testing.assert_array_equal(tw.compile(program)(x)[1], topk(x, axis=1, k=k)[1])


@pytest.mark.parametrize("dtype", ["f4", "f8"])
@pytest.mark.parametrize("largest", [True, False])
def test_nan_comes_first_where_that_is_asked(dtype: str, largest: bool) -> None:
    x = np.array([1.0, np.nan, np.inf, -np.inf, np.nan, 2.0], dtype)
    order = topk(x, k=6, largest=largest, nan_first=True)[1]
    assert order.tolist() == ([1, 4, 2, 5, 0, 3] if largest else [1, 4, 3, 0, 5, 2])


@pytest.mark.parametrize("dtype", [*KINDS, "f64", "i64", "bool"])
@pytest.mark.parametrize("zeros", [True, False])
def test_values_in_order_without_positions(dtype: str, zeros: bool) -> None:
    """Of equal values the first comes first by its bits, too: -0 and 0 keep their order."""
    kind = DTYPES[dtype].np
    for (shape, axis), down in product([((5, 37), 1), ((11, 4, 3), 0), ((70,), 0)], (True, False)):
        text = f"""program p(x: {dtype}{list(shape)}):
  v: {dtype}{list(shape)}, i: i64{list(shape)} = extern sort(x) {{axis = {axis}, descending = {str(down).lower()}}}
  return v
"""
        program = parse_program(text)
        derived, found = order_values(program)
        assert [d.rule for d in found] == ["order"]
        assert [s.function for s in derived.body if isinstance(s, Extern)] == ["ordered"]
        x = np.arange(np.prod(shape)).reshape(shape) % 2 == 0 if dtype == "bool" else hard(dtype, shape)
        x = x if zeros or not DTYPES[dtype].is_float else np.where(x == 0, np.array(1, kind), x)
        got = tw.compile(program)(x)
        wanted = sort(x, axis=axis, descending=down)[0]
        bits = f"u{x.itemsize}"
        number = ~np.isnan(wanted) if DTYPES[dtype].is_float else np.ones(shape, np.bool_)
        np.testing.assert_array_equal(got.view(bits)[number], wanted.view(bits)[number])
        assert np.isnan(got[~number]).all()


@pytest.mark.parametrize("dtype", ["f32", "bf16", "i32"])
def test_many_values_without_positions(dtype: str) -> None:
    x = hard(dtype, (6, 200))
    for k, largest, first in product((1, 50, 199, 200), (True, False), (True, False)):
        program = selection(dtype, x.shape, 1, k, f", largest = {str(largest).lower()}, nan_first = {str(first).lower()}")
        program = order_values(parse_program(str(program).replace("return v, i", "return v")))[0]
        assert [s.function for s in program.body if isinstance(s, Extern)] == ["ordered"]
        wanted = topk(x, axis=1, k=k, largest=largest, nan_first=first)[0].astype(np.float64)
        np.testing.assert_array_equal(tw.compile(program)(x).astype(np.float64), wanted)


def test_positions_that_are_read_stay() -> None:
    text = """program p(x: f32[9]):
  v: f32[9], i: i64[9] = extern sort(x) {axis = 0}
  y: i64[j<9] = i[j] + 1
  return v, y
"""
    derived, found = order_values(parse_program(text))
    assert not found and [s.function for s in derived.body if isinstance(s, Extern)] == ["sort"]
