"""Gradients of Programs against differences, and the search for inputs whose values are finite."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from onnx import helper, numpy_helper

from tilewright.ir.dtypes import F16
from tilewright.ir.interpreter import run_program
from tilewright.ir.program import Program
from tilewright.ir.program_parser import parse_program
from tilewright.verify.finite import finite_inputs, made_finite
from tilewright.verify.generate import random_inputs
from tilewright.verify.gradients import first_fault, gradients_of
from tilewright.verify.models.finite import finite_model
from tilewright.verify.models.graph import Model
from tilewright.verify.programs import generate
from tilewright.verify.slopes import prefix_slopes

X = "x: f64[4, 5]"
SMOOTH: dict[str, tuple[str, str]] = {
    "add and multiply": (X, "y: f64[i<4, j<5] = x[i, j] * x[i, 0] + x[3 - i, j] - x[i, j] / 3.0"),
    "divide": (X, "y: f64[i<4, j<5] = x[i, j] / (x[i, 0] * x[i, 0] + 1.0)"),
    "power": (X, "y: f64[i<4, j<5] = pow(abs(x[i, j]) + 0.5, x[i, 0])"),
    "remainders": (X, "y: f64[i<4, j<5] = x[i, j] % 0.7 + fmod(x[i, j], abs(x[i, 0]) + 0.5)"),
    "angle": (X, "y: f64[i<4, j<5] = atan2(x[i, j], x[i, 0])"),
    "exponentials": (X, "y: f64[i<4, j<5] = exp(x[i, j]) + exp2(x[i, j]) + expm1(x[i, j])"),
    "logarithms": (
        X,
        "y: f64[i<4, j<5] = log(abs(x[i, j]) + 1.0) + log2(abs(x[i, j]) + 1.0) + log1p(abs(x[i, j]))",
    ),
    "circle": (X, "y: f64[i<4, j<5] = sin(x[i, j]) + cos(x[i, j]) + tan(x[i, j] * 0.25) + atan(x[i, j])"),
    "inverses": (
        X,
        "y: f64[i<4, j<5] = asin(x[i, j] * 0.25) + acos(x[i, j] * 0.25) + atanh(x[i, j] * 0.25) + acosh(abs(x[i, j]) + 1.5)",
    ),
    "hyperbola": (X, "y: f64[i<4, j<5] = sinh(x[i, j]) + cosh(x[i, j]) + tanh(x[i, j]) + asinh(x[i, j])"),
    "squashed": (X, "y: f64[i<4, j<5] = sigmoid(x[i, j]) + erf(x[i, j]) + -x[i, j]"),
    "roots": (X, "y: f64[i<4, j<5] = sqrt(abs(x[i, j]) + 1.0) + rsqrt(abs(x[i, j]) + 1.0)"),
    "select": (X, "y: f64[i<4, j<5] = where(x[i, j] < 0.1, x[i, j] * 3.0, x[i, 0])"),
    "padded": (X, "y: f64[i<4, j<5] = (x[i + 1, j - 1] else x[i, j] * 2.0)"),
    "sum": (X, "y: f64[i<4] = sum(j<5 if j <= i) x[i, j] * x[0, j]"),
    "prod": (X, "y: f64[i<4] = prod(j<5) x[i, j] + 3.0"),
    "max": (X, "y: f64[j<5] = max(i<4) x[i, j] * x[i, j]"),
    "logsumexp": (X, "y: f64[i<4] = logsumexp(j<5 if j != i) x[i, j]"),
    "prefixes": (
        X,
        "a: f64[i<4, j<5] = scan sum(j) x[i, j] * 2.0\n  b: f64[i<4, j<5] = scan prod(i) a[i, j] + 9.0\n  c: f64[i<4, j<5] = scan logsumexp(j) b[i, j]\n  y: f64[i<4, j<5] = scan max(i) c[i, j] * x[i, 4 - j]",
    ),
    "recurrence": (
        X,
        "recur t<4:\n    s: f64[t<4, i<5] = sum(k<5) (y[t - 1, k] else 0.5) * x[i % 4, k]\n    y: f64[t<4, i<5] = tanh(s[t, i] + x[t, i])",
    ),
    "scatter": (
        X,
        "y: f64[i<3, j<5] = scatter sum(a<4, j<5) at (a % 3, j) of x[a, j] * x[a, 0] base x[0, 0]",
    ),
    "sort": (X, "v: f64[4, 5], p: i64[4, 5] = extern sort(x) {axis = 1}\n  y: f64[i<4, j<5] = v[i, j] * v[i, 0]"),
    "branch": (
        X,
        "c: bool[] = x[0, 0] < 9.0\n  y: f64[4, 5] = if c:\n    u: f64[i<4, j<5] = x[i, j] * x[0, j]\n    yield u\n  else:\n    yield x",
    ),
}  # fmt: skip


def program(head: str, body: str) -> Program:
    return parse_program(f"program p format 1({head}):\n  {body}\n  return y\n")


@pytest.mark.parametrize("name", SMOOTH)
def test_gradients_are_the_limits_of_differences(name: str) -> None:
    p = program(*SMOOTH[name])
    rng = np.random.default_rng(3)
    x, to = rng.standard_normal((2, 4, 5))
    (y,) = run_program(p, {"x": x})
    weights = np.asarray(rng.standard_normal(y.shape))
    gradient = gradients_of(p, {"x": x}, {"y": weights})["x"]
    step = 1e-5
    ahead, behind = (run_program(p, {"x": x + s * to})[0] for s in (step, -step))
    difference = float(np.sum(weights * (ahead - behind)) / (2 * step))
    assert float(np.sum(gradient * to)) == pytest.approx(difference, rel=1e-5, abs=1e-7)


FOUND: dict[str, tuple[str, str]] = {
    "log": ("x: f32[9]", "y: f32[i<9] = log(x[i])"),
    "roots of a product": (
        "x: f32[5, 4], w: f32[4, 6]",
        "h: f32[i<5, j<6] = sum(k<4) x[i, k] * w[k, j]\n  y: f32[i<5, j<6] = sqrt(h[i, j]) + rsqrt(h[i, j] + 1.0)",
    ),
    "quotient": ("x: f32[7]", "y: f32[i<7] = 1.0 / (x[i] - x[i] * floor(x[i] * 0.001 + 1.0))"),
    "power": ("x: f32[9], e: f32[9]", "y: f32[i<9] = pow(x[i], e[i])"),
    "inverses": ("x: f32[9], w: f32[9]", "y: f32[i<9] = atanh(x[i] * 2.0) + acosh(w[i]) + asin(w[0] - x[i])"),
    "too large": ("x: f32[9]", "y: f32[i<9] = exp(x[i] * 200.0)"),
    "too large for a half": ("x: f16[9]", "y: f16[i<9] = x[i] * f16(60000.0)"),
    "a sum that is too large": ("x: f16[9]", "y: f16[] = sum(i<9) x[i] * f16(30000.0)"),
    "prefixes that are too large": ("x: f16[9]", "y: f16[i<9] = scan sum(i) abs(x[i]) * f16(16000.0)"),
    "behind a maximum": ("x: f32[9]", "y: f32[i<9] = log(max(x[i], 0.0))"),
    "behind a step": ("x: f32[9]", "y: f32[i<9] = log(floor(x[i]))"),
    "behind a mask": ("x: f32[9]", "y: f32[i<9] = where(i < 4, log(x[i]), x[i])"),
    "in a recurrence": (
        "x: f32[6]",
        "recur t<6:\n    y: f32[t<6] = log((y[t - 1] else 0.5) + x[t]) * 0.5",
    ),
    "in a scatter": ("x: f32[6]", "y: f32[i<3] = scatter max(a<6) at (a % 3) of sqrt(x[a]) base 0.0"),
    "behind a branch": (
        "x: f32[6], n: i64[]",
        "c: bool[] = n[] < 100\n  u: f32[6] = if c:\n    v: f32[i<6] = x[i] * 2.0\n    yield v\n  else:\n    yield x\n  y: f32[i<6] = log(u[i])",
    ),
}  # fmt: skip


@pytest.mark.parametrize("name", FOUND)
def test_inputs_are_found_for_which_values_are_finite(name: str) -> None:
    p = program(*FOUND[name])
    given = random_inputs(p, {}, 4)
    assert first_fault(p, given) is not None
    found, how = made_finite(p, given)
    assert how == "searched"
    limit = 65504.0 if p.tensors["y"].dtype is F16 else 3.4e38
    (y,) = run_program(p, found)
    assert (np.abs(y) <= limit).all()
    for t in p.inputs:
        assert found[t.name].dtype == given[t.name].dtype
        if not t.dtype.is_float:
            np.testing.assert_array_equal(found[t.name], given[t.name])
    again, _ = made_finite(p, given)
    assert all(np.array_equal(a, found[n]) for n, a in again.items())


NOT_FAULTS = {
    "mask": "y: f32[i<9] = exp(where(i < 4, x[i], -inf))",
    "nothing to fold": "y: f32[i<9] = max(j<9 if j < i) x[j]",
    "the other branch": "y: f32[i<9] = where(x[i] > 0.0, log(max(x[i], 0.001)), x[i])",
    "not taken": "y: f32[i<9] = where(i < 100, x[i], log(-1.0 - abs(x[i])))",
    "refused by the guard": "y: f32[] = sum(i<9 if i < 0) log(-1.0 - abs(x[i]))",
    "prefix of infinities": "y: f32[i<9] = scan max(i) where(i < 2, -inf, x[i])",
}


@pytest.mark.parametrize("name", NOT_FAULTS)
def test_infinities_of_the_text_are_no_faults(name: str) -> None:
    p = program("x: f32[9]", NOT_FAULTS[name])
    given = random_inputs(p, {}, 1)
    found, how = made_finite(p, given)
    assert how == "sampled" and found is given


def test_what_no_input_mends_stays_as_it_is() -> None:
    p = program("x: f32[9]", "y: f32[i<9] = x[i] / f32(i)")
    given = random_inputs(p, {}, 1)
    found, how = made_finite(p, given)
    assert how == "kept" and found is given


def test_one_case_in_eight_keeps_what_it_drew() -> None:
    p = program("x: f32[9]", "y: f32[i<9] = log(x[i])")
    hows = [finite_inputs(p, {}, seed)[1] for seed in range(16)]
    assert [k for k, how in enumerate(hows) if how == "as drawn"] == [0, 8]
    assert "searched" in hows and "kept" not in hows
    np.testing.assert_array_equal(finite_inputs(p, {}, 8)[0]["x"], random_inputs(p, {}, 8)["x"])


def test_gradients_of_long_prefixes_take_little_memory() -> None:
    """A table of all elements and all prefixes would have 10^10 entries."""
    x = np.linspace(-1, 1, 100_000)
    for monoid, op in (("sum", np.add), ("max", np.maximum), ("logsumexp", np.logaddexp)):
        got = prefix_slopes(monoid, x, op.accumulate(x), 0, np.ones_like(x))
        assert got.shape == x.shape
        if monoid == "sum":
            np.testing.assert_array_equal(got, np.arange(100_000, 0, -1))


@pytest.mark.parametrize("monoid", ["sum", "prod", "max", "min", "logsumexp"])
def test_gradients_of_prefixes(monoid: str) -> None:
    """Against differences of a weighted sum of all prefixes."""
    op = {"sum": np.add, "prod": np.multiply, "max": np.maximum, "min": np.minimum,
          "logsumexp": np.logaddexp}[monoid]  # fmt: skip
    rng = np.random.default_rng(5)
    x, up = rng.standard_normal((3, 6)), rng.standard_normal((3, 6))
    got = prefix_slopes(monoid, x, op.accumulate(x, 1), 1, up)
    for place in np.ndindex(x.shape):
        moved = x.copy()
        moved[place] += 1e-6
        slope = ((op.accumulate(moved, 1) - op.accumulate(x, 1)) * up).sum() / 1e-6
        assert got[place] == pytest.approx(slope, abs=1e-4)


def test_most_generated_programs_are_made_finite() -> None:
    """Most programs need no search; of the others it mends more than half."""
    hows = []
    for seed in range(80):
        case = generate(seed, 16)
        given = random_inputs(case.program, case.sizes, case.seed)
        found, how = made_finite(case.program, given, case.sizes)
        hows.append(how)
        if how != "kept":
            assert first_fault(case.program, found, dims=case.sizes) is None
    assert hows.count("searched") > hows.count("kept")
    assert hows.count("sampled") > 60


def model(*nodes: Any, inputs: dict[str, Any], weights: dict[str, Any]) -> Model:
    infos = [helper.make_tensor_value_info(n, 1, list(a.shape)) for n, a in inputs.items()]
    held = [numpy_helper.from_array(a, n) for n, a in weights.items()]
    out = helper.make_tensor_value_info("y", 1, None)
    graph = helper.make_graph(list(nodes), "g", infos, [out], held)
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    made = onnx.shape_inference.infer_shapes(made)
    return Model(made.SerializeToString(), inputs, len(nodes))


def test_weights_of_a_model_move_where_inputs_do_not_help() -> None:
    """The logarithm of a weight: no input reaches it."""
    rng = np.random.default_rng(5)
    x, w = rng.standard_normal((2, 6)).astype(np.float32)
    w = -abs(w)
    product = helper.make_node("Log", ["w"], ["l"])
    total = helper.make_node("Add", ["x", "l"], ["y"])
    found, how = finite_model(model(product, total, inputs={"x": x}, weights={"w": w}))
    assert how == "searched"
    (moved,) = onnx.load_model_from_string(found.data).graph.initializer
    assert moved.name == "w" and (numpy_helper.to_array(moved) > 0).all()
    np.testing.assert_array_equal(found.inputs["x"], x)
    plain = model(total, inputs={"x": x, "l": w}, weights={})
    assert finite_model(plain) == (plain, "sampled")
