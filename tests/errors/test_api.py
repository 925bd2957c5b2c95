"""Bad input to the public verbs: the code, the place and the next step of every error."""

from __future__ import annotations

import re
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import TilewrightError, UserError

TEXT = """program pair(query: f32[B, 8], keys: f32[B, N], scale: f32[]):
  dim B in 1 .. 16
  dim N in 4 .. 40 multiple 4
  s: f32[b<B, i<8, n<N] = query[b, i] * keys[b, n] * scale[]
  t: f32[b<B] = sum(i<8, n<N) s[b, i, n]
  return s, t
"""


@pytest.fixture(scope="module")
def model() -> Any:
    return tw.compile(tw.program(TEXT))


def arrays(b: int = 2, n: int = 8) -> dict[str, Any]:
    rng = np.random.default_rng(0)
    return {
        "query": rng.standard_normal((b, 8), np.float32),
        "keys": rng.standard_normal((b, n), np.float32),
        "scale": np.float32(0.5).reshape(()),
    }


def changed(**new: Any) -> dict[str, Any]:
    return {**arrays(), **new}


def assert_fails(code: str, call: Callable[[], object], *words: str) -> UserError:
    """The call ends in this code; the whole text holds every word, and there is a next step."""
    with pytest.raises(TilewrightError) as caught:
        call()
    error = caught.value
    assert isinstance(error, UserError) and error.code == code, error
    for word in words:
        assert word in str(error), (word, str(error))
    assert error.hint, error
    return error


def test_the_model_works(model: Any) -> None:
    a = arrays()
    s, t = model.run(a)
    wanted = a["query"][:, :, None] * a["keys"][:, None, :] * a["scale"]
    np.testing.assert_allclose(s, wanted, rtol=1e-6)
    np.testing.assert_allclose(t, wanted.sum((1, 2)), rtol=1e-4, atol=1e-4)


def test_missing_and_misspelt_inputs(model: Any) -> None:
    a = arrays()
    without = {k: v for k, v in a.items() if k != "keys"}
    assert_fails("R001", lambda: model.run(without), "'keys' is missing", "'query', 'scale'")
    assert_fails(
        "R001",
        lambda: model.run({**without, "kyes": a["keys"]}),
        "no input 'kyes'",
        "did you mean 'keys'?",
    )
    assert_fails("R001", lambda: model.run({**a, "zzz": 1}), "no input 'zzz'", "query, keys, scale")
    assert_fails("R001", lambda: model.run([1, 2]), "list", "{name: array}")
    assert_fails("R001", lambda: model(a["query"]), "1 arrays given", "query, keys, scale")
    assert_fails("R001", lambda: model(*a.values(), a["scale"]), "4 arrays given", "takes 3")
    assert_fails("R001", lambda: model(a["query"], keys=a["keys"]), "'scale' is missing")
    assert_fails("R001", lambda: model(a["query"], **a), "'query' is given twice")
    assert_fails("R001", lambda: model(*a.values(), a["scale"], keys=a["keys"]), "4 arrays given")


@pytest.mark.parametrize("dtype", ["f8", "f2", "i4", "?", ">f4", "c8"])
def test_wrong_dtype(model: Any, dtype: str) -> None:
    wrong = changed(keys=np.ones((2, 8), dtype))
    error = assert_fails("R002", lambda: model.run(wrong), "'keys'", "float32", str(np.dtype(dtype)))
    assert "astype('float32')" in error.hint
    assert_fails("R002", lambda: model(*wrong.values()), "'keys'")


def test_wrong_rank_and_fixed_size(model: Any) -> None:
    assert_fails("R003", lambda: model.run(changed(keys=np.ones(8, "f4"))), "'keys'", "[B, N]", "[8]")
    assert_fails(
        "R003",
        lambda: model.run(changed(query=np.ones((2, 8, 1), "f4"))),
        "'query'",
        "[B, 8]",
        "[2, 8, 1]",
    )
    assert_fails(
        "R003",
        lambda: model.run(changed(query=np.ones((2, 9), "f4"))),
        "'query'",
        "[B, 8]",
        "[2, 9]",
    )
    assert_fails("R003", lambda: model.run(changed(scale=np.ones(1, "f4"))), "'scale'", "[]", "[1]")


def test_symbolic_size_out_of_range(model: Any) -> None:
    assert_fails(
        "R004",
        lambda: model.run(arrays(17)),
        "B is 17",
        "1 to 16",
        "axis 0 of input 'query'",
        "axis 0 of input 'keys'",
    )
    assert_fails("R004", lambda: model.run(arrays(0)), "B is 0", "1 to 16")
    assert_fails(
        "R004",
        lambda: model.run(arrays(2, 10)),
        "N is 10",
        "4 to 40, multiples of 4",
        "axis 1 of input 'keys'",
    )
    assert_fails("R004", lambda: model.run(arrays(2, 44)), "N is 44")
    assert_fails("R004", lambda: model.run(arrays(2, 0)), "N is 0")


def test_two_inputs_disagree(model: Any) -> None:
    assert_fails(
        "R004",
        lambda: model.run(changed(keys=np.ones((3, 8), "f4"))),
        "B is 2",
        "axis 0 of input 'keys' has size 3",
    )


@pytest.mark.parametrize(
    "value",
    [
        np.array([[object()] * 8] * 2), np.array([["x"] * 8] * 2), np.array([[b"x"] * 8] * 2),
        np.zeros((2, 8), "M8[s]"), np.zeros((2, 8), [("a", "f4")]),
    ],
    ids=["object", "str", "bytes", "datetime", "record"],
)  # fmt: skip
def test_arrays_that_hold_no_numbers(model: Any, value: Any) -> None:
    assert_fails("R005", lambda: model.run(changed(keys=value)), "'keys'", "numbers")


@pytest.mark.parametrize("value", [None, "text", 1.0, [[1.0] * 8] * 2, {"a": 1}, object(), ...])
def test_things_that_are_no_arrays(model: Any, value: Any) -> None:
    assert_fails("R005", lambda: model.run(changed(keys=value)), "'keys'", type(value).__name__, "NumPy")


def test_out_that_does_not_fit(model: Any) -> None:
    a = list(arrays().values())
    s, t = model(*a)
    frozen = s.copy()
    frozen.flags.writeable = False
    for out, words in (
        (s, ("a tuple of 2",)),
        ((s,), ("a tuple of 2",)),
        ((s, t, t), ("a tuple of 2",)),
        ((s, t[:1]), ("'t'", "[2]", "[1]")),
        ((s.astype("f8"), t), ("'s'", "float32", "float64")),
        ((np.asfortranarray(s), t), ("'s'", "C-contiguous")),
        ((np.empty((2, 8, 16), "f4")[:, :, ::2], t), ("'s'", "C-contiguous")),
        ((frozen, t), ("'s'", "writable")),
        (([1.0], t), ("'s'", "list")),
        ((s, s.reshape(-1)[:2]), ("'t'", "overlaps")),
    ):
        assert_fails("R006", lambda out=out: model(*a, out=out), "out=", *words)  # type: ignore[misc]
    assert model(*a, out=(s, t)) == (s, t)


def test_sizes_given_by_name(model: Any) -> None:
    program = model.program
    assert_fails("R004", lambda: tw.compile(program, dims={"M": 3}), "no size 'M'", "B, N")
    assert_fails(
        "R004",
        lambda: tw.compile(program, dims={"Bx": 3, "N": 4}),
        "no size 'Bx'",
        "did you mean 'B'?",
    )
    assert_fails("R004", lambda: tw.compile(program, dims={"B": 99, "N": 4}), "B is 99", "1 to 16")
    assert_fails("R004", lambda: tw.compile(program, dims={"B": -1, "N": 4}), "B is -1")
    assert_fails("R004", lambda: tw.compile(program, dims={"B": 2.5, "N": 4}), "2.5", "whole number")
    assert_fails("R004", lambda: tw.compile(program, dims={"B": "two", "N": 4}), "'two'", "whole number")
    fixed = "program p(x: f32[3]):\n  y: f32[i<3] = x[i]\n  return y\n"
    assert_fails("R004", lambda: tw.compile(fixed, dims={"I": 3}), "no size 'I'", "fixed")
    assert_fails(
        "R004",
        lambda: tw.compile(program, dims={"B": 2}).stats,
        "nothing tells the size 'N'",
        "dims={'N'",
    )


def test_example_inputs_that_do_not_fit(model: Any) -> None:
    program, a = model.program, arrays()
    assert_fails(
        "R001",
        lambda: tw.compile(program, {"qurey": a["query"]}),
        "'qurey'",
        "did you mean 'query'?",
    )
    assert_fails("R001", lambda: tw.compile(program, [*a.values(), 1]), "4 example inputs for 3")
    assert_fails(
        "R003",
        lambda: tw.compile(program, {"query": np.ones(3, "f4")}),
        "'query' has 2 axes, the example 1",
        "[B, 8]",
    )
    assert_fails("R003", lambda: tw.compile(program, {"query": np.ones((3, 9), "f4")}), "size 8", "9")
    assert_fails("R004", lambda: tw.compile(program, {**a, "keys": np.ones((3, 8), "f4")}), "B is 2 and 3")
    assert_fails("R004", lambda: tw.compile(program, a, dims={"B": 3}), "B is 3 and 2")


@pytest.mark.parametrize("budget", ["soon", "10 parsecs", -1, "-3s", float("nan"), "", [3]])
def test_a_budget_that_is_no_time(budget: Any) -> None:
    assert_fails(
        "U003",
        lambda: tw.compile("y[i] = x[i]", tune=budget),
        repr(budget) if budget == budget else "nan",
        "30s",
    )


@pytest.mark.parametrize("threads", [0, -2, 1000, 1.5, "two"])
def test_a_number_of_threads_that_is_none(threads: Any) -> None:
    assert_fails("U003", lambda: tw.compile("y[i] = x[i]", threads=threads), "threads", str(threads))


def test_unknown_target() -> None:
    with pytest.raises(TilewrightError) as caught:
        tw.compile("y[i] = x[i]", target="pdp11")
    assert (
        caught.value.code == "U003"
        and "pdp11" in str(caught.value)
        and "x86-avx2" in caught.value.hint
    )


@pytest.mark.parametrize("model_", [None, 3, object(), np.ones(3), b"onnx"])
def test_things_that_are_no_model(model_: Any) -> None:
    assert_fails("F005", lambda: tw.compile(model_), type(model_).__name__, "index notation")


def test_a_program_whose_constants_are_missing() -> None:
    text = f"program p(x: f32[4]):\n  const w: f32[4] @{'0' * 64}\n  y: f32[i<4] = x[i] * w[i]\n  return y\n"
    assert_fails("F002", lambda: tw.compile(tw.program(text)), "'w'", "values")


def test_no_message_shows_a_traceback_or_an_address(model: Any) -> None:
    for call in (
        lambda: model(),
        lambda: model.run(changed(keys=object())),
        lambda: model(1, 2, 3),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert not re.search(r"0x[0-9a-f]{6}|Traceback", str(caught.value))
