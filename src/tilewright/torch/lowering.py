"""PyTorch's private parts that this door uses, in one place.

In: nothing. Out: the table of decompositions, and AOTAutograd. Invariant: an operator that has a
row of ours is not decomposed.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Sequence
from functools import lru_cache
from typing import Any

from functorch.compile import make_boxed_func
from torch._decomp import core_aten_decompositions, decomposition_table
from torch._dynamo.backends.common import aot_autograd
from torch._functorch._aot_autograd.schemas import OutputType
from torch._guards import TracingContext

from tilewright.frontend.torch import ROWS, name_of

__all__ = ["decompositions", "functional_backend", "has_plain_results", "name_inputs"]

_STEP = re.compile(r"\['?(\w+)'?\]|\.(\w+)")  # of how a captured function reaches a tensor

# Not decomposed: what draws random numbers, what gives complex numbers (which stay with PyTorch),
# and constants, which tracing must see as they are.
_KEPT = frozenset(
    [
        "bernoulli.p",
        "complex.default",
        "detach.default",
        "lift.default",
        "native_dropout.default",
        "polar.default",
        "rand.default",
        "randn.default",
    ]
)


@lru_cache(maxsize=1)
def decompositions() -> dict[Any, Callable[..., Any]]:
    """Operator -> decomposition, for every operator that has no row."""
    out: dict[Any, Callable[..., Any]] = {}
    for table in (decomposition_table, core_aten_decompositions()):
        for op, f in table.items():
            if name_of(op) not in ROWS and name_of(op) not in _KEPT:
                out[op] = f
    return out


def functional_backend(
    inference: Callable[[Any, Any], Any], training: Callable[[Any, Any], Any]
) -> Callable[..., Any]:
    """A Dynamo backend that gives functional graphs of ATen operators to one of two compilers."""

    def boxed(compile_: Callable[[Any, Any], Any]) -> Callable[[Any, Any], Any]:
        return lambda module, examples: make_boxed_func(compile_(module, examples))

    backend: Callable[..., Any] = aot_autograd(
        fw_compiler=boxed(training),
        bw_compiler=boxed(training),
        inference_compiler=boxed(inference),
        decompositions=decompositions(),
        keep_inference_input_mutations=True,
    )
    return backend


def has_plain_results() -> bool:
    """Does the graph that AOTAutograd is compiling take and give plain tensors: does it update no
    input, and return no views of inputs or of each other, so that a call of it is all there is?
    """
    context = TracingContext.try_get()
    about = getattr(context, "fw_metadata", None)
    return (
        about is not None
        and not about.num_mutated_inp_runtime_indices
        and not about.num_outputs_aliased
        and not about.num_intermediate_bases
        and not about.tokens
        and all(o.output_type is OutputType.non_alias for o in about.output_info)
    )


def name_inputs(graph: Any, captured: Sequence[Any]) -> None:
    """Name the inputs of a functional graph as the user does: by what Dynamo captured them from.

    captured: the inputs of Dynamo's graph, which are those of `graph` in order.
    """
    places = [n for n in graph.nodes if n.op == "placeholder"]
    for node, origin in zip(places, captured, strict=True):
        source = getattr(origin.meta.get("grapharg"), "source", None)
        steps = [a or b for a, b in _STEP.findall(str(getattr(source, "name", "")))]
        steps = [s for s in steps if not s.startswith("_") and s != "self"]
        if steps and origin.meta.get("tensor_dict") is not None:
            node._rename("_".join(steps))
