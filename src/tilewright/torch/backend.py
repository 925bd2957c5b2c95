"""The Dynamo backend.

In: a captured graph and example inputs. Out: a callable. Invariants: in inference a parameter is a
constant, packed as its kernels like it, for as long as it is the same tensor in the same state; a
changed one is noticed at the next call; while training, parameters are ordinary inputs. A graph
that an earlier process compiled is taken from the store; the compiler is imported where none is.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import torch

import tilewright.config as config
from tilewright.errors import UserError
from tilewright.machine.target import Target
from tilewright.runtime.collection import no_collection
from tilewright.torch.calls import Options
from tilewright.torch.report import Report
from tilewright.torch.store import Entry, entry_of

__all__ = ["backend", "options_of", "reports", "reset_reports"]

_REPORTS: list[Report] = []
_LOCK = threading.Lock()
_KNOWN = ("tune", "threads", "target", "db", "frozen", "on_event")


def reports() -> list[Report]:
    """The reports of all graphs that `torch.compile` gave us, in order."""
    return list(_REPORTS)


def reset_reports() -> None:
    """Forget them."""
    _REPORTS.clear()


def options_of(given: Mapping[str, Any] | None) -> Options:
    """Options from a mapping. Errors: U003 for one that is not known."""
    found = dict(given or {})
    unknown = [k for k in found if k not in _KNOWN]
    if unknown:
        raise UserError(
            "U003", f"the backend has no option {unknown[0]!r}",
            hint=f"its options are {', '.join(_KNOWN)}",
        )  # fmt: skip
    settings = config.current()
    target = found.get("target")
    if not isinstance(target, Target):
        target = Target.named(target or settings.target or "native")
    frozen = found.get("frozen")
    return Options(
        tune=config.seconds_of(found.get("tune")),
        threads=found.get("threads"),
        target=target,
        db=found.get("db"),
        frozen=bool(settings.frozen if frozen is None else frozen),
        on_event=found.get("on_event"),
    )


@no_collection()
def backend(
    module: Any, example_inputs: Sequence[Any], *, options: Mapping[str, Any] | None = None
) -> Callable[..., Any]:
    """Compile a graph that Dynamo captured; `torch.compile(f, backend="tilewright")` calls this.

    options: those of `tilewright.compile`. Errors: U003 for unknown options.
    """
    chosen = options_of(options)
    captured = _placeholders(module)
    static = [_is_static(n, x) for n, x in zip(captured, example_inputs, strict=True)]
    entry = entry_of(module, example_inputs, static, chosen)
    if entry is not None:
        found = entry.find(lambda args: _compiled(module, args, static, chosen, None))
        if found is not None:
            _note(found.report)
            return found
    return _compiled(module, example_inputs, static, chosen, entry)


def _note(report: Report) -> None:
    with _LOCK:
        _REPORTS.append(report)


def _compiled(
    module: Any,
    example_inputs: Sequence[Any],
    static: Sequence[bool],
    options: Options,
    entry: Entry | None,
) -> Callable[..., Any]:
    """static: which inputs are parameters or buffers. entry: where to store what is compiled."""
    from tilewright.torch.frozen import FrozenGraph
    from tilewright.torch.graph import compile_graph
    from tilewright.torch.lowering import functional_backend, has_plain_results, name_inputs

    captured = _placeholders(module)

    def inference(graph: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        places = [n for n in graph.graph.nodes if n.op == "placeholder"]
        held: list[int] = []
        keep = None
        if len(places) == len(static):
            held = [k for k, s in enumerate(static) if s]
            name_inputs(graph.graph, captured)
            if entry is not None and has_plain_results():
                keep = entry.keep
        found = FrozenGraph(graph, held, options, keep)
        _note(found.report)
        return found

    def training(graph: Any, examples: Sequence[Any]) -> Callable[..., Any]:
        found = compile_graph(graph, {}, options)
        _note(found.report)
        return found

    compiled: Callable[..., Any] = functional_backend(inference, training)(module, example_inputs)
    return compiled


def _placeholders(module: Any) -> list[Any]:
    return [n for n in module.graph.nodes if n.op == "placeholder"]


def _is_static(node: Any, example: Any) -> bool:
    """A parameter or buffer of a module."""
    if not isinstance(example, torch.Tensor):
        return False
    marks = node.meta.get("tensor_dict") or {}
    return isinstance(example, torch.nn.Parameter) or "_dynamo_static_input_type" in marks
