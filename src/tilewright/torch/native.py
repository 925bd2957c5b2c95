"""Imported graphs, compiled at their first call.

In: an `Imported` graph. Out: `NativeGraph`, a `Calls`. Invariant: each combination of sizes is
compiled once and kept.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import torch

from tilewright.api import CompiledModel
from tilewright.errors import UserError
from tilewright.frontend.torch import Imported, Input, Output
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.torch.calls import Calls, Options, Source, Variant

__all__ = ["NativeGraph"]


class NativeGraph(Calls):
    """A graph of which every operator is ours.

    single: the graph returns its one result alone, not in a tuple.
    """

    def __init__(self, imported: Imported, options: Options, *, single: bool = False) -> None:
        self.imported, self.options = imported, options
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
        super().__init__(
            _sources(imported.sizes, list(dict.fromkeys(wanted))), options.threads, single
        )

    def _compiled(self, known: tuple[int, ...]) -> Variant:
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
        return Variant(
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


def _sources(known: Sequence[tuple[int, int | None, Expr]], wanted: Sequence[str]) -> list[Source]:
    """Where the value of each wanted size comes from. Errors: F005 where nothing tells it."""
    out: dict[str, Source] = {}
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
