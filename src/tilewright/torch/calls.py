"""Calling a compiled graph with torch tensors.

In: for given sizes, a binding and how the graph's arguments and results meet it. Out: `Calls`,
called with the graph's arguments, returning what the graph returns. Invariants: a tensor is read
where it lies, unless its strides are others than the graph was traced with; results are fresh
tensors with the strides of PyTorch's own inference; calls from several threads at once run in
contexts of their own. Imports nothing that compiles, as stored graphs are called so too.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.errors import UserError
from tilewright.runtime.context import CallContext
from tilewright.runtime.pool import num_threads, walker_address

__all__ = ["Calls", "Options", "Source", "Variant"]

Source = tuple[str, int, int | None, int, int]  # dim, place, axis, factor, summand


@dataclass(frozen=True)
class Options:
    """How graphs are compiled: arguments of `tilewright.compile` with the same names."""

    tune: float = 0.0
    threads: int | None = None
    target: Any = None
    db: Any = None
    frozen: bool = False
    on_event: Callable[[Any], None] | None = None


@dataclass
class Variant:
    """The graph at fixed sizes: free contexts, and what to make and check per call."""

    binding: Any
    failures: list[UserError]
    inputs: list[tuple[int, tuple[int, ...], tuple[int, ...]]]  # place, sizes, strides
    outputs: list[tuple[str, Any, Any]]  # ("tensor", (number, sizes, dtype, gaps), order), ...
    free: list[CallContext]


class Calls:
    """A graph of which every operator is ours, called with tensors.

    sources: where the sizes that it needs come from. single: the graph returns its one result
    alone, not in a tuple.
    """

    def __init__(self, sources: Sequence[Source], threads: int | None, single: bool) -> None:
        self.single = single
        self._sources, self._threads = list(sources), threads
        self._variants: dict[tuple[int, ...], Variant] = {}
        self._making = threading.Lock()
        self._walk = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(walker_address())

    def _compiled(self, known: tuple[int, ...]) -> Variant:
        """The graph at these sizes, in the order of the sources. Errors: R004."""
        raise NotImplementedError

    def __call__(self, *args: Any) -> Any:
        """Run on the graph's arguments. Errors: R004 for sizes that do not fit."""
        if self._sources:
            known = tuple(_value(args, s) for s in self._sources)
        else:
            known = ()
        variant = self._variants.get(known)
        if variant is None:
            variant = self._make(known)
        try:
            context = variant.free.pop()
        except IndexError:
            threads = self._threads or num_threads()
            context = CallContext(variant.binding, threads)
        kept = []
        for number, (place, sizes, strides) in enumerate(variant.inputs):
            t = args[place]
            if t.stride() != strides or t.shape != sizes:
                t = _laid_out(t, sizes, strides)
                kept.append(t)
            context.place(number, t.data_ptr())
        results: list[Any] = []
        number = len(variant.inputs)
        made: dict[int, Any] = {}
        spread: list[tuple[int, tuple[int, ...]]] = []
        for kind, what, order in variant.outputs:
            if kind != "tensor":
                results.append(what)
                continue
            k, sizes, dtype, gaps = what
            t = made.get(k)
            if t is None:
                t = made[k] = torch.empty(sizes, dtype=dtype)
                context.place(number + k, t.data_ptr())
            if gaps is not None:
                spread.append((len(results), gaps))
            results.append(t if order is None else t.permute(order))
        self._walk(context.address)
        for place, strides in spread:
            held = results[place]
            results[place] = torch.empty_strided(held.shape, strides, dtype=held.dtype).copy_(held)
        variant.free.append(context)
        if variant.failures:
            raise variant.failures.pop()
        return results[0] if self.single else tuple(results)

    def _make(self, known: tuple[int, ...]) -> Variant:
        with self._making:
            found = self._variants.get(known)
            if found is None:
                found = self._variants[known] = self._compiled(known)
            return found


def _laid_out(t: Any, sizes: tuple[int, ...], strides: tuple[int, ...]) -> Any:
    """A tensor whose memory is as traced. Errors: R003 for another shape."""
    if t.shape != sizes:
        raise UserError(
            "R003", f"a tensor must have shape {list(sizes)}, got {list(t.shape)}",
            hint="reshape the tensor, or compile the model for other sizes",
        )  # fmt: skip
    if all(a == b or n <= 1 for a, b, n in zip(t.stride(), strides, sizes, strict=True)):
        return t
    if any(s == 0 and n > 1 for s, n in zip(strides, sizes, strict=True)):
        place = tuple(slice(0, 1) if s == 0 else slice(None) for s in strides)
        out = torch.empty_strided(sizes, strides, dtype=t.dtype)
        out[place].copy_(t[place])
        return out
    return torch.empty_strided(sizes, strides, dtype=t.dtype).copy_(t)


def _value(args: Sequence[Any], source: Source) -> int:
    _, place, axis, factor, summand = source
    found = args[place] if axis is None else args[place].shape[axis]
    return int(found) if factor == 1 and summand == 0 else (int(found) - summand) // factor
