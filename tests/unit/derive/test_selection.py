"""The rule for the few largest elements: results are the extern's, bit for bit."""

from __future__ import annotations

from itertools import product

import numpy as np
import pytest

import tilewright as tw
from tilewright.derive.selection import MOST, select_few
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.externs import topk
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
