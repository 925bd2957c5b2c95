"""Calling an imported graph with torch tensors.

In: an `Imported` graph. Out: `NativeGraph`, called with the graph's arguments, returning what the
graph returns. Invariants: a tensor is read where it lies, unless its strides are others than the
graph was traced with; results are fresh tensors with the strides of PyTorch's own inference; calls
from several threads at once run in contexts of their own.
"""

from __future__ import annotations

import ctypes
import threading
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.api import CompiledModel
from tilewright.errors import UserError
from tilewright.frontend.torch import Imported, Input, Output
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.runtime.context import CallContext
from tilewright.runtime.pool import num_threads, walker_address

__all__ = ["NativeGraph", "Options"]


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
class _Variant:
    """The graph at fixed sizes: free contexts, and what to make and check per call."""

    binding: Any
    failures: list[UserError]
    inputs: list[tuple[int, tuple[int, ...], tuple[int, ...]]]  # place, sizes, strides
    outputs: list[tuple[str, Any, Any]]  # ("tensor", (number, sizes, dtype, gaps), order), ...
    free: list[CallContext]


class NativeGraph:
    """A graph of which every operator is ours.

    single: the graph returns its one result alone, not in a tuple.
    """

    def __init__(self, imported: Imported, options: Options, *, single: bool = False) -> None:
        self.imported, self.options, self.single = imported, options, single
        self.model = CompiledModel(
            imported.program,
            target=options.target,
            threads=options.threads,
            tune=options.tune,
            db=options.db,
            frozen=options.frozen,
            on_event=options.on_event,
            origins=imported.origins,
        )
        wanted = [d.name for d in imported.program.dims]
        wanted += [n for o in imported.outputs if o.size is not None for n in o.size.names("dim")]
        self._sources = _sources(imported.sizes, list(dict.fromkeys(wanted)))
        self._variants: dict[tuple[int, ...], _Variant] = {}
        self._making = threading.Lock()
        self._walk = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(walker_address())

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
            threads = self.options.threads or num_threads()
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

    def _make(self, known: tuple[int, ...]) -> _Variant:
        with self._making:
            found = self._variants.get(known)
            if found is None:
                found = self._variants[known] = self._compiled(known)
            return found

    def _compiled(self, known: tuple[int, ...]) -> _Variant:
        symbols = dict(zip([s[0] for s in self._sources], known, strict=True))
        program = self.imported.program
        held = {d.name: symbols[d.name] for d in program.dims}
        made = self.model.variant(held)
        numbers = {name: k for k, name in enumerate(dict.fromkeys(program.results))}

        def fixed(e: Expr) -> int:
            value = E.int_value(E.substitute(e, {E.dim(n): E.const(v) for n, v in symbols.items()}))
            if value is None:
                raise UserError("R004", f"nothing tells the size {e}", hint="give other inputs")
            return value

        def sizes(shape: Sequence[Expr]) -> tuple[int, ...]:
            return tuple(fixed(e) for e in shape)

        tensors = program.tensors
        outputs: list[tuple[str, Any, Any]] = []
        for o in self.imported.outputs:
            if o.kind == "tensor":
                shape = sizes(tensors[o.name].shape)
                gaps = sizes(o.strides) if o.strides and 0 not in sizes(o.strides) else None
                outputs.append(("tensor", (numbers[o.name], shape, o.dtype, gaps), _back(o)))
            elif o.kind == "size":
                assert o.size is not None  # by `kind`
                outputs.append(("size", fixed(o.size), None))
            else:
                outputs.append(("value", o.value, None))
        return _Variant(
            made.binding,
            made.linked.artifact.failures,
            [
                (i.place, torch.Size(sizes(i.shape)), sizes(i.strides))
                for i in _in_order(self.imported.inputs, program.inputs)
            ],
            outputs,
            [],
        )


def _in_order(inputs: Sequence[Input], tensors: Sequence[Any]) -> list[Input]:
    by_name = {i.name: i for i in inputs}
    return [by_name[t.name] for t in tensors]


def _back(o: Output) -> tuple[int, ...] | None:
    """The permutation that turns the Program's result into the graph's; None where it is none."""
    if o.order == tuple(range(len(o.order))):
        return None
    return tuple(o.order.index(k) for k in range(len(o.order)))


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


_Source = tuple[str, int, int | None, int, int]  # dim, place, axis, factor, summand


def _sources(known: Sequence[tuple[int, int | None, Expr]], wanted: Sequence[str]) -> list[_Source]:
    """Where the value of each wanted size comes from. Errors: F005 where nothing tells it."""
    out: dict[str, _Source] = {}
    for place, axis, e in known:
        if e.op == "dim" and (e.attr not in out or axis is None):
            out[e.attr] = (e.attr, place, axis, 1, 0)
    for place, axis, e in known:
        poly = E.polynomial(e)
        terms = [k for k in poly if k]
        if len(terms) == 1 and len(terms[0]) == 1 and terms[0][0].op == "dim":
            name = terms[0][0].attr
            out.setdefault(name, (name, place, axis, poly[terms[0]], poly.get((), 0)))
    for name in wanted:
        if name not in out:
            raise UserError("F005", f"nothing tells the size {name}", hint="it runs in PyTorch")
    return [out[name] for name in wanted]


def _value(args: Sequence[Any], source: _Source) -> int:
    _, place, axis, factor, summand = source
    found = args[place] if axis is None else args[place].shape[axis]
    return int(found) if factor == 1 and summand == 0 else (int(found) - summand) // factor
