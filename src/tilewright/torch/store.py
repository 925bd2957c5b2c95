"""Compiled graphs that a later process finds again, before PyTorch decomposes the graph.

In: a graph as Dynamo captured it, its example inputs. Out: `entry_of` and from its `Entry` a
`StoredGraph`. Invariants: the key holds all that decides what is compiled (the calls and their
arguments, the kinds of the inputs, every byte of the weights, the modes of PyTorch, settings,
machine, and the files of the compiler); what cannot be written down has no key; only graphs are
stored that one native call runs as a whole, updating nothing and returning no views.
"""

from __future__ import annotations

import contextvars
import hashlib
import json
import logging
import os
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from functools import lru_cache
from pathlib import Path
from typing import Any

import torch

import tilewright
import tilewright.config as config
from tilewright.errors import TilewrightError
from tilewright.runtime.cache import default_cache
from tilewright.runtime.package import load
from tilewright.runtime.pool import num_threads
from tilewright.torch.calls import Calls, Options, Variant
from tilewright.torch.report import Report
from tilewright.torch.state import Held, is_unchanged, state_of

__all__ = ["Entry", "StoredGraph", "entry_of"]

_log = logging.getLogger("tilewright.torch")
_WORTH_S = 0.5  # what took less to compile is not stored
_SHARE = 4  # one model takes at most this part of the cache, all of them twice as much


class _Unwritten(Exception):
    """A part of a graph that has no faithful text."""


@dataclass
class Entry:
    """A place in the store for one graph.

    places: of the inputs that are weights. inputs: the example inputs.
    """

    key: str
    places: Sequence[int]
    inputs: Sequence[Any]
    options: Options
    started: float = field(default_factory=time.monotonic)

    @property
    def _path(self) -> Path:
        return default_cache().folder.parent / "models" / f"{self.key}.twa"

    def find(self, again: Callable[[Sequence[Any]], Callable[..., Any]]) -> StoredGraph | None:
        """What an earlier process stored. again: compiles the graph, should a weight change."""
        text = default_cache().get(self.key)
        if text is None or not self._path.exists():
            return None
        try:
            model = load(self._path, threads=self.options.threads, target=self.options.target)
            os.utime(self._path)
            return StoredGraph(json.loads(text), model, self, again)
        except (TilewrightError, OSError) as error:
            _log.info("a stored graph is compiled again: %s", error)
            return None

    def keep(self, graph: Any, held: Held) -> None:
        """Store a compiled graph, in a thread, where that took long enough and there is room.

        held: what it holds as constants.
        """
        if time.monotonic() - self.started < _WORTH_S or not graph.is_one_part:
            return
        part = graph.parts[0]
        variants = list(part._variants.values())
        if len(variants) != 1 or part.imported.program.dims:
            return
        (variant,) = variants
        outputs = _outputs_text(variant)
        if outputs is None or {k for k, *_ in held} - set(self.places):
            return
        about = {
            "held": [k for k, *_ in held],
            "single": part.single,
            "inputs": [[k, list(sizes), list(strides)] for k, sizes, strides in variant.inputs],
            "outputs": outputs,
            "report": vars(graph.report),
        }
        work = (self._write, part.model, held, about)
        here = contextvars.copy_context()  # settings of the caller hold in the thread
        threading.Thread(target=here.run, args=work, name="tilewright store").start()

    def _write(self, model: Any, held: Held, about: Mapping[str, Any]) -> None:
        path, cap = self._path, config.current().cache_max_bytes // _SHARE
        if model.stats["constant_bytes"] > cap:
            return
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            _make_room(path.parent, 2 * cap - model.stats["constant_bytes"])
            written = path.with_name(f".{path.name}.{os.getpid()}.whole")
            model.save(written)
            if all(t._version == v and t.data_ptr() == at for _, t, v, at in held):
                os.replace(written, path)
                default_cache().put(self.key, json.dumps(about).encode())
            written.unlink(missing_ok=True)
        except (TilewrightError, OSError) as error:
            _log.info("a graph was not stored: %s", error)


def _make_room(folder: Path, most_bytes: int) -> None:
    """Remove what was not used for longest until at most so much remains."""
    found = sorted((p.stat().st_mtime, p.stat().st_size, p) for p in folder.glob("*.twa"))
    left = sum(size for _, size, _ in found)
    for _, size, path in found:
        if left <= most_bytes:
            break
        path.unlink(missing_ok=True)
        left -= size


class StoredGraph(Calls):
    """A graph that an earlier process compiled, and its report."""

    def __init__(
        self,
        about: Mapping[str, Any],
        model: Any,
        entry: Entry,
        again: Callable[[Sequence[Any]], Callable[..., Any]],
    ) -> None:
        super().__init__((), entry.options.threads, about["single"])
        self.report = _report_of(about["report"])
        self._model, self._about, self._again = model, about, again
        self._state = state_of({k: entry.inputs[k] for k in about["held"]})
        self._other: Callable[..., Any] | None = None  # after a change

    def __call__(self, *args: Any) -> Any:
        """Run the graph on its arguments."""
        if self._other is None:
            if is_unchanged(self._state, args):
                return super().__call__(*args)
            self._other, self._state = self._again(args), []
        return self._other(*args)

    def _compiled(self, known: tuple[int, ...]) -> Variant:
        binding = self._model._bind({})
        inputs = [
            (place, torch.Size(sizes), tuple(strides))
            for place, sizes, strides in self._about["inputs"]
        ]
        outputs: list[tuple[str, Any, Any]] = []
        for kind, what, order in self._about["outputs"]:
            if kind == "tensor":
                k, sizes, dtype, gaps = what
                gaps = None if gaps is None else tuple(gaps)
                what = (k, tuple(sizes), getattr(torch, dtype), gaps)
            outputs.append((kind, what, None if order is None else tuple(order)))
        failures = [] if binding.failures is None else binding.failures
        return Variant(binding, failures, inputs, outputs, [])


def _outputs_text(variant: Variant) -> list[Any] | None:
    """The results of a graph as plain data; None where they are none."""
    out: list[Any] = []
    for kind, what, order in variant.outputs:
        if kind == "tensor":
            k, sizes, dtype, gaps = what
            what = [k, list(sizes), str(dtype).removeprefix("torch."), gaps]
        elif not (what is None or type(what) in (bool, int, float)):
            return None
        out.append([kind, what, order])
    return out


def _report_of(found: Mapping[str, Any]) -> Report:
    return Report(
        Counter(found["native"]), Counter(found["handed"]), found["reasons"], found["graphs"]
    )


# ---- keys --------------------------------------------------------------------------------------


def entry_of(
    module: Any, inputs: Sequence[Any], static: Sequence[bool], options: Options
) -> Entry | None:
    """The place of a graph in the store; None where it has none.

    static: which inputs are parameters or buffers.
    """
    if options.tune or options.db is not None or options.frozen or options.on_event is not None:
        return None
    settings = config.current()
    if settings.dump or settings.cache_max_bytes == 0:
        return None
    if torch.is_grad_enabled() and any(getattr(x, "requires_grad", False) for x in inputs):
        return None
    try:
        parts = [_modes(options), repr(settings), _compiler(), *map(_node_text, module.graph.nodes)]
        parts += map(_kind_text, inputs)
    except _Unwritten:
        return None
    places = [k for k, s in enumerate(static) if s]
    check = hashlib.sha256("\n".join([*parts, str(places)]).encode())
    for k in places:
        check.update(_bytes_of(inputs[k]))
    return Entry(check.hexdigest(), places, inputs, options)


def _modes(options: Options) -> str:
    """What decides how a graph is decomposed and compiled, besides the graph."""
    casts = torch.is_autocast_enabled("cpu") and torch.get_autocast_dtype("cpu")
    found = (
        torch.__version__, options.target, options.threads or num_threads(), casts,
        torch.get_default_dtype(), torch.are_deterministic_algorithms_enabled(),
        torch.backends.mkldnn.enabled, torch.is_inference_mode_enabled(),
    )  # fmt: skip
    return repr(found)


@lru_cache(maxsize=1)
def _compiler() -> str:
    """The files of this package: another release, or an edited one, compiles anew."""
    root = Path(tilewright.__file__).parent
    found = []
    for folder, _, names in os.walk(root):
        for name in names:
            if name.endswith(".py"):
                status = os.stat(os.path.join(folder, name))
                found.append((folder, name, status.st_size, status.st_mtime_ns))
    return hashlib.sha256(repr(sorted(found)).encode()).hexdigest()


def _kind_text(x: Any) -> str:
    """What a graph depends on of an input, its elements aside."""
    if type(x) not in (torch.Tensor, torch.nn.Parameter):
        raise _Unwritten
    if x.layout is not torch.strided or x.device.type != "cpu" or x.is_conj() or x.is_neg():
        raise _Unwritten
    return f"{x.dtype} {list(x.shape)} {list(x.stride())} {x.requires_grad} {x.is_inference()}"


def _bytes_of(t: Any) -> memoryview:
    flat = t.detach().contiguous().view(-1).view(torch.uint8) if t.numel() else t.new_empty(0)
    return memoryview(flat.numpy()).cast("B") if t.numel() else memoryview(b"")


def _node_text(node: Any) -> str:
    if node.op not in ("placeholder", "call_function", "call_method", "output"):
        raise _Unwritten  # a module or an attribute: what it holds is not in the graph
    target = node.target if isinstance(node.target, str) else _function_text(node.target)
    args = "" if node.op == "placeholder" else f"{_text(node.args)} {_text(node.kwargs)}"
    return f"{node.op} {node.name} {target} {args}"


def _function_text(f: Any) -> str:
    """A function of PyTorch or of Python, which stays what it is while versions do."""
    if isinstance(f, torch._ops.OpOverload | torch._ops.OpOverloadPacket):
        if not str(f).startswith(("aten.", "prims.")):
            raise _Unwritten
        return str(f)
    home, name = getattr(f, "__module__", None), getattr(f, "__qualname__", None)
    home = home or type(f).__module__  # of a method of torch._C
    if not isinstance(home, str) or not isinstance(name, str):
        raise _Unwritten
    if home.split(".")[0] not in ("torch", "_operator", "builtins", "math", "_VariableFunctions"):
        raise _Unwritten
    return f"{home}.{name}"


_PLAIN = (type(None), bool, int, float, complex, str, torch.dtype, torch.device, torch.layout,
          torch.memory_format, type(...))  # fmt: skip


def _text(x: Any) -> str:
    if isinstance(x, torch.fx.Node):
        return f"%{x.name}"
    if isinstance(x, tuple | list):
        return f"{type(x).__name__}({', '.join(map(_text, x))})"
    if isinstance(x, dict):
        return "{" + ", ".join(f"{_text(k)}: {_text(v)}" for k, v in x.items()) + "}"
    if isinstance(x, slice):
        return f"slice({_text(x.start)}, {_text(x.stop)}, {_text(x.step)})"
    if type(x) not in _PLAIN:
        raise _Unwritten
    return f"{type(x).__name__} {x!r}"
