"""Graphs whose parameters are constants for as long as they do not change.

In: a functional graph, the places of parameters and buffers. Out: `FrozenGraph`. Invariant: before
each call every constant is the same tensor, at the same address, in the same version as when it was
taken; otherwise the graph is compiled again, and after several changes these tensors become inputs.
"""

from __future__ import annotations

import copy
from collections.abc import Callable, Sequence
from typing import Any

import torch

from tilewright.frontend.torch.dtypes import is_plain
from tilewright.runtime.collection import no_collection
from tilewright.torch.calls import Options
from tilewright.torch.graph import CompiledGraph, compile_graph
from tilewright.torch.report import Report
from tilewright.torch.state import Held, is_unchanged, state_of

__all__ = ["FrozenGraph"]

_MOST_CHANGES = 2


class FrozenGraph:
    """A graph that is compiled at its first call, when its parameters are there.

    keep: called once, after the first call, with the compiled graph and what it holds.
    """

    def __init__(
        self,
        module: Any,
        places: Sequence[int],
        options: Options,
        keep: Callable[[CompiledGraph, Held], None] | None = None,
    ) -> None:
        self._keep = keep
        self._module, self._options = module, options
        self._places = [k for k in places if k not in _updated(module.graph)]
        self.report = Report()
        self._changes = 0
        self._graph: CompiledGraph | None = None
        self._state: Held = []
        if not self._places:  # nothing to wait for
            self._compile(())

    @property
    def graph(self) -> CompiledGraph | None:
        """The compiled graph; None before the first call."""
        return self._graph

    def __call__(self, *args: Any) -> Any:
        """Run the graph on its arguments."""
        if self._graph is not None and is_unchanged(self._state, args):
            if self._keep is None:
                return self._graph(*args)
            graph, keep, self._keep = self._graph, self._keep, None
            results = graph(*args)
            keep(graph, self._state)
            return results
        self._changes += self._graph is not None
        self._compile(args)
        return self(*args)

    @no_collection()
    def _compile(self, args: Sequence[Any]) -> CompiledGraph:
        keep = self._changes <= _MOST_CHANGES
        held = {k: args[k] for k in self._places if _can_hold(args[k])} if keep and args else {}
        module = copy.copy(self._module)
        module.graph = copy.deepcopy(self._module.graph)
        found = compile_graph(module, held, self._options, quiet=self._changes > 0)
        self._state = state_of(held)
        if not self.report.calls:
            self.report.add(found.report)
        self._graph = found
        return found


def _can_hold(t: Any) -> bool:
    return is_plain(t) and not t.is_inference()


def _updated(graph: Any) -> set[int]:
    """Placeholders that the graph itself writes."""
    places = {n: k for k, n in enumerate(n for n in graph.nodes if n.op == "placeholder")}
    return {
        places[n.args[0]]
        for n in graph.nodes
        if n.op == "call_function"
        and n.target is torch.ops.aten.copy_.default
        and n.args[0] in places
    }
