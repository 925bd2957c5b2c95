"""The context of one ONNX node during import.

In: tensors, attributes. Out: `Node`, through which operator rows read inputs and add definitions.
Invariant: what must be known at import and is not is named in the error, with the inputs behind it.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from tilewright.errors import UserError
from tilewright.frontend.builder import Builder
from tilewright.frontend.sizes import Sizes, Sym
from tilewright.frontend.values import Array, Definer, Value
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

if TYPE_CHECKING:
    from tilewright.frontend.onnx.importer import Importer

__all__ = ["Node", "ValueNeeded"]


class ValueNeeded(UserError):
    """F005: a size, or a branch, depends on a value that only the run gives.

    inputs, dims: the model's inputs and sizes that it is computed from; value: the ONNX name of the
    value itself, where it has one in the model's own graph.
    """

    def __init__(
        self,
        message: str,
        where: str,
        inputs: Sequence[str],
        dims: Sequence[str] = (),
        value: str = "",
    ) -> None:
        hints = []
        if inputs:
            hints.append(f"known={{{', '.join(f'{name!r}: array' for name in inputs)}}}")
        if dims:
            hints.append(f"sizes={{{', '.join(f'{name!r}: number' for name in dims)}}}")
        hint = f"import with {', '.join(hints)}" if hints else "see docs/onnx-coverage.md"
        super().__init__("F005", message, where=where, hint=hint)
        self.inputs, self.dims, self.value = tuple(inputs), tuple(dims), value

    def __reduce__(self) -> tuple[object, ...]:
        return (ValueNeeded, (self.message, self.where, self.inputs, self.dims, self.value))


class Node(Definer):
    """One ONNX node being imported: inputs, attributes, errors, and helpers that add definitions
    named after its output.

    `opset` is the version of the operator's domain. Helpers return `Value`s.
    """

    page = "docs/onnx-coverage.md"

    def __init__(
        self,
        importer: Importer,
        op: str,
        name: str,
        opset: int,
        inputs: Sequence[Value | None],
        attributes: dict[str, Any],
        outputs: Sequence[str],
        domain: str = "",
    ) -> None:
        self.importer, self.op, self.name, self.opset, self.domain = (
            importer,
            op,
            name,
            opset,
            domain,
        )
        self.inputs, self.attributes, self.outputs = list(inputs), attributes, list(outputs)
        self.builder: Builder = importer.builder
        self.sizes: Sizes = importer.sizes

    # ---- inputs and attributes
    def __getitem__(self, k: int) -> Value:
        v = self.optional(k)
        if v is None:
            raise UserError("F001", f"{self.op} lacks its input {k}", where=self.where)
        return v

    def optional(self, k: int) -> Value | None:
        return self.inputs[k] if k < len(self.inputs) else None

    def attribute(self, name: str, default: Any = None) -> Any:
        return self.attributes.get(name, default)

    def required(self, name: str) -> Any:
        if name not in self.attributes:
            raise UserError("F001", f"{self.op} lacks its attribute {name!r}", where=self.where)
        return self.attributes[name]

    def count(self, name: str, default: int | None = None) -> int:
        """An attribute that counts something: at least 1. Errors: F006."""
        value = self.required(name) if default is None else self.attribute(name, default)
        if not 1 <= int(value) < 1 << 31:
            raise UserError("F006", f"{name} is {value}", where=self.where)
        return int(value)

    def counts(self, name: str, length: int) -> list[int]:
        """A list of counts of the given length, by default ones. Errors: F006."""
        values = [int(v) for v in self.attribute(name) or [1] * length]
        if len(values) != length or not all(1 <= v < 1 << 31 for v in values):
            raise UserError("F006", f"{name} is {values}", where=self.where)
        return values

    def has_output(self, k: int) -> bool:
        """Is output k named, so that someone may read it?"""
        return k < len(self.outputs) and bool(self.outputs[k])

    def axis(self, rank: int, name: str = "axis", default: int | None = None) -> int:
        """An axis attribute, counted from 0."""
        value = self.attribute(name, default)
        return self.normal_axis(0 if value is None else int(value), rank)

    def array(self, k: int, what: str = "") -> Array:
        """The constant value of input k. Errors: F005 where it is known only at run time."""
        v = self[k]
        if v.array is None:
            raise self.needed(k, what)
        return v.array

    def integers(self, k: int, what: str = "") -> list[Expr]:
        """Input k, a 1-D (or scalar) integer tensor, as size expressions. Errors: F005 where it is
        not known.
        """
        v = self[k]
        if v.known is None:
            raise self.needed(k, what)
        if v.known.dtype != object:
            return [E.const(int(x)) for x in v.known.reshape(-1)]
        out = []
        for x in v.known.reshape(-1):
            if not isinstance(x, Sym) or x.den != 1:
                raise self.refuse(f"{what or f'input {k}'} holds {x}, which is no integer")
            out.append(self.sizes.tidy(x.num))
        return out

    # ---- errors
    @property
    def where(self) -> str:
        return f"node {self.name!r} ({self.op}, opset {self.opset})"

    def needed(self, k: int, what: str = "") -> ValueNeeded:
        """F005: input k must be known at import."""
        return ValueNeeded(
            f"{self.op}: {what or f'input {k}'} must follow from constants and sizes",
            self.where,
            *self.importer.sources_of(self[k]),
            self.importer.name_of(self[k]),
        )

    def contradiction(self, message: str) -> UserError:
        """F006: shapes contradict each other."""
        shapes = ", ".join(
            "-" if v is None else f"[{', '.join(map(str, v.shape))}]" for v in self.inputs
        )
        return UserError("F006", f"{self.op}: {message}", where=f"{self.where}, inputs {shapes}")

    # ---- shapes
    # ---- definitions
    @property
    def hint(self) -> str:
        """The base of names: the first output's."""
        return self.importer.display_name(next((o for o in self.outputs if o), self.op))
