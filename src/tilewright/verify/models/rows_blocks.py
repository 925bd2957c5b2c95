"""Specifications: operators with blocks."""

from __future__ import annotations

from typing import Any

import numpy as np
from onnx import helper

from tilewright.verify.models.graph import BOOL, Graph, Tensor
from tilewright.verify.models.rows import row

__all__: list[str] = []


def _info(name: str, t: Tensor | None, dtype: Any, shape: tuple[int, ...]) -> Any:
    kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype if t is None else t.dtype))
    return helper.make_tensor_value_info(name, kind, list(shape if t is None else t.shape))


def _kind(t: Tensor) -> int:
    return int(helper.np_dtype_to_tensor_dtype(t.dtype))


@row("If")
def branch(g: Graph) -> None:
    t = g.any()
    blocks = []
    for op in (g.rng.choice(("Neg", "Tanh")), g.rng.choice(("Relu", "Sigmoid", "Identity"))):
        name = g.fresh("b")
        nodes = [helper.make_node(op, [t.name], [name])]
        blocks.append(helper.make_graph(nodes, name, [], [_info(name, t, None, ())]))
    node = helper.make_node(
        "If", [g.new(BOOL, ()).name], [g.fresh("t")], then_branch=blocks[0], else_branch=blocks[1]
    )
    condition = next(
        Tensor(n, a.dtype, a.shape)
        for n, a in [*g.inputs.items(), *g.constants.items()]
        if n == node.input[0]
    )
    g.read.add(t.name)
    g.attach(node, [condition])


@row("Loop")
def loop(g: Graph) -> None:
    t = g.any(most=512)
    i, going, state = (g.fresh("b") for _ in range(3))
    moved, after, still, shown = (g.fresh("b") for _ in range(4))
    step = [
        helper.make_node("Cast", [i], [moved + "i"], to=_kind(t)),
        helper.make_node("Add", [state, moved + "i"], [moved]),
        helper.make_node("Tanh", [moved], [after]),
        helper.make_node("Identity", [going], [still]),
        helper.make_node("Identity", [after], [shown]),
    ]
    body = helper.make_graph(
        step,
        g.fresh("body"),
        [_info(i, None, np.int64, ()), _info(going, None, np.bool_, ()), _info(state, t, None, ())],
        [_info(still, None, np.bool_, ()), _info(after, t, None, ()), _info(shown, t, None, ())],
    )
    count = g.const(g.rng.choice((0, 1, 2, 4)))
    node = helper.make_node(
        "Loop", [count.name, "", t.name], [g.fresh("t"), g.fresh("t")], body=body
    )
    g.attach(node, [count, t], [t])


@row("Scan")
def scan(g: Graph) -> None:
    t = g.any(low=2, most=512)
    rest = Tensor("", t.dtype, t.shape[1:])
    start = g.like(t.dtype, rest.shape)
    state, part, after, shown = (g.fresh("b") for _ in range(4))
    step = [
        helper.make_node("Add", [state, part], [after + "s"]),
        helper.make_node("Tanh", [after + "s"], [after]),
        helper.make_node("Mul", [after, part], [shown]),
    ]
    body = helper.make_graph(
        step,
        g.fresh("body"),
        [_info(state, rest, None, ()), _info(part, rest, None, ())],
        [_info(after, rest, None, ()), _info(shown, rest, None, ())],
    )
    more = {"scan_input_directions": [1]} if g.chance(0.3) else {}
    node = helper.make_node(
        "Scan",
        [start.name, t.name],
        [g.fresh("t"), g.fresh("t")],
        body=body,
        num_scan_inputs=1,
        **more,
    )
    g.attach(node, [start, t])
