"""RNN, GRU and LSTM in all directions, layouts, with lengths, initial states and activations."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.frontend.onnx import import_onnx
from tilewright.tools.fuzz.campaign import runnable
from unit.frontend.onnx.support import (
    assert_agree,
    check,
    floats,
    model,
    node,
    onnxruntime_results,
    run,
)

F = np.float32
T, B, I, H = 5, 3, 4, 2
GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}


def parts(op: str, directions: int, lengths: bool, states: bool) -> tuple[dict[str, Any], str]:
    g = GATES[op]
    values: dict[str, Any] = {
        "w": floats(directions, g * H, I, seed=1),
        "r": floats(directions, g * H, H, seed=2),
        "b": floats(directions, 2 * g * H, seed=3),
    }
    names = "x w r b"
    if lengths:
        values["n"] = np.array([5, 2, 3], np.int32)
    names += " n" if lengths else " -"
    if states:
        values["h0"] = floats(directions, B, H, seed=4)
        names += " h0"
        if op == "LSTM":
            values["c0"] = floats(directions, B, H, seed=5)
            values["p"] = floats(directions, 3 * H, seed=6)
            names += " c0 p"
    return values, names


CASES = [
    (op, direction, lengths, states)
    for op in GATES
    for direction in ("forward", "reverse", "bidirectional")
    for lengths, states in ((False, True), (True, False), (True, True))
]


@pytest.mark.parametrize(("op", "direction", "lengths", "states"), CASES)
def test_as_onnxruntime(op: str, direction: str, lengths: bool, states: bool) -> None:
    values, names = parts(op, 2 if direction == "bidirectional" else 1, lengths, states)
    outputs = "y h c" if op == "LSTM" else "y h"
    data = model(
        [node(op, names, outputs, hidden_size=H, direction=direction)], {"x": (F, (T, B, I))},
        outputs.split(), values, opset=14,
    )  # fmt: skip
    check(data, {"x": floats(T, B, I)})


ATTRIBUTES: list[tuple[str, dict[str, Any]]] = [
    ("LSTM", {"activations": ["HardSigmoid", "Relu", "Softsign"], "activation_alpha": [0.3], "activation_beta": [0.4]}),
    ("LSTM", {"clip": 0.5}),
    ("LSTM", {"input_forget": 1}),
    ("GRU", {"linear_before_reset": 1}),
    ("GRU", {"activations": ["Sigmoid", "LeakyRelu"], "activation_alpha": [0.1]}),
    ("RNN", {"activations": ["Elu"], "activation_alpha": [0.7]}),
    ("RNN", {"activations": ["Affine"], "activation_alpha": [0.5], "activation_beta": [0.25]}),
    ("RNN", {"activations": ["ScaledTanh"], "activation_alpha": [0.5], "activation_beta": [0.25]}),
]  # fmt: skip


@pytest.mark.parametrize(("op", "attributes"), ATTRIBUTES, ids=str)
def test_attributes(op: str, attributes: dict[str, Any]) -> None:
    values, names = parts(op, 1, False, False)
    data = model(
        [node(op, names, "y h", hidden_size=H, **attributes)], {"x": (F, (T, B, I))}, ["y", "h"],
        values, opset=14,
    )  # fmt: skip
    check(data, {"x": floats(T, B, I)})


@pytest.mark.parametrize("op", GATES)
def test_batch_first_layout(op: str) -> None:
    """onnxruntime does not take layout 1, so the transposed result of layout 0 is expected."""
    values, names = parts(op, 1, False, False)

    def of(layout: int, shape: tuple[int, ...]) -> bytes:
        n = node(op, names, "y h", hidden_size=H, layout=layout)
        return model([n], {"x": (F, shape)}, ["y", "h"], values, opset=14)

    x = floats(T, B, I)
    y, h = onnxruntime_results(of(0, (T, B, I)), {"x": x})
    got = run(import_onnx(of(1, (B, T, I))), {"x": x.transpose(1, 0, 2)})
    assert_agree(got, [y.transpose(2, 0, 1, 3), h.transpose(1, 0, 2)])


def test_symbolic_lengths() -> None:
    values, names = parts("LSTM", 2, False, True)
    values = {k: v for k, v in values.items() if k not in ("h0", "c0")}
    data = model(
        [node("LSTM", names, "y", hidden_size=H, direction="bidirectional")],
        {"x": (F, ("T", B, I)), "h0": (F, (2, B, H)), "c0": (F, (2, B, H))}, ["y"], values, opset=14,
    )  # fmt: skip
    imported = import_onnx(data)
    for steps in (1, 4):
        feeds = {"x": floats(steps, B, I), "h0": floats(2, B, H), "c0": floats(2, B, H)}
        assert_agree(run(imported, feeds), onnxruntime_results(data, feeds))
    assert [d.name for d in imported.program.dims] == ["T"]


def test_both_directions_of_one_step() -> None:
    """The product of a step lacks the first axis of the stage that it fetches for (a KeyError once)."""
    hidden, width = 4, 7
    values = {"w": floats(2, 4 * hidden, width, seed=1), "r": floats(2, 4 * hidden, hidden, seed=2)}
    data = model(
        [node("LSTM", "x w r", "y", hidden_size=hidden, direction="bidirectional")],
        {"x": (F, (1, 2, width))}, ["y"], values, opset=14,
    )  # fmt: skip
    feeds = {"x": floats(1, 2, width)}
    program = import_onnx(data).program
    for target in runnable(("x86-avx512", "x86-avx2", "x86-sse42")):
        got = tw.compile(program, target=target, threads=1)(feeds["x"])
        assert_agree([got], onnxruntime_results(data, feeds))
