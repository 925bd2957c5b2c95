"""One ATen operator call during import.

In: an FX node, the values of its arguments. Out: `Call`, through which operator rows read arguments
by their names in the schema and add definitions. Invariant: shapes and dtypes of results are those
that PyTorch's own shape inference wrote into the graph.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import torch

from tilewright.frontend.operations.activations import convert
from tilewright.frontend.torch.dtypes import dtype_of_torch
from tilewright.frontend.values import Definer, Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr

if TYPE_CHECKING:
    from tilewright.frontend.torch.importer import Importer

__all__ = ["Call"]


class Call(Definer):
    """One call: arguments by name, results as PyTorch inferred them, helpers that define."""

    page = "docs/torch-coverage.md"

    def __init__(self, importer: Importer, node: Any, name: str) -> None:
        self.importer, self.node, self.op = importer, node, name
        self.builder, self.sizes = importer.builder, importer.sizes
        self.arguments: dict[str, Any] = _bind(node)
        self.instead: dict[str, Value] = {}  # of tensor arguments that a row has put in other form

    # ---- arguments
    def __getitem__(self, name: str) -> Value:
        """The tensor argument `name`. Errors: F005 where there is none."""
        found = self.optional(name)
        if found is None:
            raise self.refuse(f"no {name}")
        return found

    def optional(self, name: str) -> Value | None:
        """The tensor argument `name`, or None."""
        if name in self.instead:
            return self.instead[name]
        given = self.arguments.get(name)
        return None if given is None else self.importer.value(given)

    def tensors(self, name: str) -> list[Value | None]:
        """A list of tensors, some of which may be missing."""
        return [None if x is None else self.importer.value(x) for x in self.arguments[name]]

    def get(self, name: str, default: Any = None) -> Any:
        """A plain argument: number, bool, string, list, dtype."""
        found = self.arguments.get(name)
        return default if found is None else found

    def whole(self, name: str) -> Expr:
        """An integer argument as a size expression."""
        return self.importer.size(self.arguments[name])

    def wholes(self, name: str) -> list[Expr]:
        """A list of integers as size expressions."""
        return [self.importer.size(x) for x in self.arguments[name]]

    def numbers(self, name: str, count: int, default: int) -> list[int]:
        """A list of fixed integers; a single one stands for all `count`, an empty one for the
        default.
        """
        given = self.arguments.get(name)
        if given is None:
            return [default] * count
        out = [self.fixed(self.importer.size(x), name) for x in _listed(given)]
        if not out:
            return [default] * count
        return out * count if len(out) == 1 else out

    def axis(self, name: str, rank: int, default: int = 0) -> int:
        """An axis argument, counted from 0."""
        given = self.arguments.get(name)
        return self.normal_axis(default if given is None else int(given), rank)

    def axes_of(self, name: str, rank: int) -> list[int]:
        """A list of axes, counted from 0, in order; all of them where the list is missing or
        empty.
        """
        given = self.arguments.get(name)
        if given is None or (isinstance(given, list | tuple) and not given):
            return list(range(rank))
        return sorted({self.normal_axis(int(a), rank) for a in _listed(given)})

    def scalar(self, given: Any, dtype: DType) -> Expr:
        """A number, or a symbolic size, as an expression of `dtype`."""
        if isinstance(given, bool | int | float):
            if isinstance(given, float) and not dtype.is_float:
                return convert(E.const(given, _F64), dtype)
            return E.const(given, dtype)
        if isinstance(given, complex):
            raise self.refuse("a complex number")
        return E.cast(self.importer.size(given), dtype)

    # ---- results
    @property
    def result(self) -> Any:
        """What PyTorch inferred: a fake tensor, or a tuple of them."""
        return self.node.meta["val"]

    @property
    def shape(self) -> tuple[Expr, ...]:
        """The sizes of the (first) result."""
        return self.shape_of(0)

    @property
    def dtype(self) -> DType:
        """The element type of the (first) result."""
        return self.dtype_of(0)

    def _fake(self, k: int) -> Any:
        return self.result[k] if isinstance(self.result, list | tuple) else self.result

    def shape_of(self, k: int) -> tuple[Expr, ...]:
        """The sizes of result k."""
        return tuple(self.importer.size(s) for s in self._fake(k).shape)

    def dtype_of(self, k: int) -> DType:
        """The element type of result k. Errors: F005 where we have none."""
        return self.ours(self._fake(k).dtype)

    def ours(self, dtype: Any) -> DType:
        """Our element type. Errors: F005."""
        found = dtype_of_torch(dtype)
        if found is None:
            raise self.refuse(f"the element type {dtype}")
        return found

    def is_read(self, k: int) -> bool:
        """Does anything read result k?"""
        if not isinstance(self.result, list | tuple):
            return True
        return any(
            user.op == "output" or len(user.args) < 2 or user.args[1] == k
            for user in self.node.users
        )

    # ---- definitions
    def pointwise(
        self, f: Callable[..., Expr], args: Sequence[str], compute: str = "result"
    ) -> Value:
        """`f` of operands that broadcast to the result's shape; see `table.pointwise`."""
        given = [self.arguments.get(a) for a in args]
        values = [self.importer.value(g) if self.importer.is_tensor(g) else g for g in given]
        dtype = self.dtype if compute == "result" else None
        if compute == "operands":
            dtype = self.ours(promoted([self.importer.fake(g) for g in given]))
        out = self.dtype

        def body(*i: Expr) -> Expr:
            operands = []
            for v in values:
                if isinstance(v, Value):
                    wide = (dtype or v.dtype).accumulator
                    operands.append(convert(v.aligned(i), wide))
                else:
                    operands.append(self.scalar(v, (dtype or out).accumulator))
            return convert(f(*operands), out)

        return self.define(self.shape, body)

    @property
    def hint(self) -> str:
        return str(self.node.name)

    # ---- errors
    @property
    def where(self) -> str:
        return f"node {self.node.name!r} ({self.op})"



_F64 = dtype_of_torch(torch.float64)
assert _F64 is not None


def _listed(given: Any) -> list[Any]:
    return list(given) if isinstance(given, list | tuple) else [given]


def promoted(given: Sequence[Any]) -> Any:
    """The torch dtype that tensors and numbers promote to."""
    held = [g for g in given if g is not None]
    found: Any = held[0]
    if len(held) == 1:
        return found.dtype if isinstance(found, torch.Tensor) else torch.result_type(found, found)
    total = torch.result_type(held[0], held[1])
    for g in held[2:]:
        total = torch.promote_types(total, torch.result_type(g, g))
    return total


def _bind(node: Any) -> dict[str, Any]:
    """Arguments by their names in the schema, defaults filled in."""
    schema = node.target._schema.arguments
    out: dict[str, Any] = {}
    for k, a in enumerate(schema):
        if k < len(node.args) and not a.kwarg_only:
            out[a.name] = node.args[k]
        elif a.name in node.kwargs:
            out[a.name] = node.kwargs[a.name]
        elif a.has_default_value():
            out[a.name] = a.default_value
        else:
            out[a.name] = None
    return out
