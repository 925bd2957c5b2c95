"""FX graph of ATen operators -> Program.

In: a graph without side effects whose nodes carry fake tensors (`meta["val"]`), as torch.export and
AOTAutograd make it. Out: `Imported`, or for `unsupported`, the nodes that have no import.
Invariants: every definition has an origin, the FX node it came from; an input keeps the memory
order that the graph was traced with, so a strided tensor is read where it lies; so does a result.
"""

from __future__ import annotations

import operator
from collections.abc import Iterable, Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass
from typing import Any

import torch

from tilewright.errors import InternalError, UserError
from tilewright.frontend.builder import Builder, identifier
from tilewright.frontend.sizes import LearnedFact, Sizes, Undecided
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.dtypes import array_of, dtype_of_torch, is_plain
from tilewright.frontend.torch.sizes import SymbolicSizes
from tilewright.frontend.torch.table import ROWS
from tilewright.frontend.values import Value, sizes_of
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.program import Program
from tilewright.ir.program_verifier import verify_program

__all__ = ["Imported", "Importer", "Input", "Output", "import_graph", "name_of", "unsupported"]


# Assertions about types and layouts, which hold for the tensors that the graph was traced with.
_TRUE_HERE = frozenset(["_assert_tensor_metadata.default"])


@dataclass(frozen=True)
class Input:
    """A placeholder that the Program reads.

    place: position among the placeholders. name: of the Program's input. shape: sizes as the graph
    sees them. strides: in elements, as traced. physical: the shape of the Program's input, which is
    the same memory in row-major order.
    """

    place: int
    name: str
    dtype: Any
    shape: tuple[Expr, ...]
    strides: tuple[Expr, ...]
    physical: tuple[Expr, ...]


@dataclass(frozen=True)
class Output:
    """One value that the graph returns.

    kind: `tensor` (result `name`; `order` says which axis of the graph's tensor is the k-th of the
    Program's; `strides` are given where these leave gaps, so that it must be copied), `size` (the
    expression `size`) or `value` (the object `value`).
    """

    kind: str
    name: str = ""
    dtype: Any = None
    order: tuple[int, ...] = ()
    strides: tuple[Expr, ...] = ()
    size: Expr | None = None
    value: Any = None


@dataclass(frozen=True)
class Imported:
    """A Program and how it meets the graph's placeholders and results.

    sizes: (position of the placeholder, axis or None for an integer, expression) that tell the
    symbolic sizes. origins: definition -> FX node.
    """

    program: Program
    inputs: tuple[Input, ...]
    outputs: tuple[Output, ...]
    sizes: tuple[tuple[int, int | None, Expr], ...]
    origins: Mapping[str, str]


def name_of(target: Any) -> str:
    """The table's name of an operator: `add.Tensor` for aten.add.Tensor."""
    return str(target).removeprefix("aten.")


def import_graph(
    graph: Any,
    *,
    name: str = "model",
    constants: Mapping[int, Any] | None = None,
    module: Any = None,
) -> Imported:
    """The Program of an FX graph.

    constants: placeholders (by position) that are constants, with their tensors. module: where
    `get_attr` nodes find theirs. Errors: F005 what has no import, F006 contradicting sizes.
    """
    return Importer(graph, name, constants or {}, module).run()


def unsupported(graph: Any, *, module: Any = None) -> dict[Any, str]:
    """The nodes that cannot be imported, with the reason; found by trying each."""
    walk = Importer(graph, "probe", {}, module)
    walk.probe()
    return walk.refused


class Importer:
    """One walk over a graph."""

    def __init__(self, graph: Any, name: str, constants: Mapping[int, Any], module: Any) -> None:
        self.graph, self.module, self.constants = graph, module, constants
        self.sizes = Sizes()
        self.symbolic = SymbolicSizes(self.sizes)
        self.name = name
        self.values: dict[Any, Value | list[Value | None]] = {}
        self.inputs: list[Input] = []
        self.known_sizes: list[tuple[int, int | None, Expr]] = []
        self.refused: dict[Any, str] = {}
        self.probing = False
        names = [n.name for n in graph.nodes if n.op == "placeholder"]
        self.shown = _distinct(names)
        symbols = {
            str(s) for n in graph.nodes for f in _tensors(n.meta.get("val")) for s in _symbols(f)
        }
        clash = symbols & set(self.shown.values())
        self.shown = {k: f"{v}_in" if v in clash else v for k, v in self.shown.items()}
        self.builder = Builder(name, set(self.shown.values()) | symbols)

    # ---- the walk
    def run(self) -> Imported:
        """Errors: as `import_graph`."""
        place = 0
        outputs: tuple[Output, ...] = ()
        for node in self.graph.nodes:
            self._at(node)
            if node.op == "placeholder":
                self.placeholder(node, place)
                place += 1
            elif node.op == "output":
                outputs = self.outputs(node)
            else:
                self.node(node)
        return self._finish(outputs)

    def _finish(self, outputs: tuple[Output, ...]) -> Imported:
        results = [o.name for o in outputs if o.kind == "tensor"]
        live = {n for t in self.builder.tensors.values() for e in t.shape for n in e.names("dim")}
        dims = [d for d in self.sizes.dims.values() if d.name in live]
        program = self.builder.program(results, dims)
        used = {n for t in program.tensors.values() for e in t.shape for n in e.names("dim")}
        for e in (x for s in program.body for x in _expressions(s)):
            used |= e.names("dim")
        read = {n for s in program.body for n in _reads(s)} | set(results)
        keep = [t for t in program.inputs if t.name in read]
        program = Program(
            program.name,
            tuple(keep),
            program.body,
            program.results,
            tuple(d for d in self.sizes.dims.values() if d.name in used),
            program.constants,
            program.values,
        )
        verify_program(program)
        kept = {t.name for t in keep}
        return Imported(
            program,
            tuple(i for i in self.inputs if i.name in kept),
            outputs,
            tuple(self.known_sizes),
            {d: o for d, o in self.builder.origins.items() if d in program.tensors},
        )

    def probe(self) -> None:
        """Try every node; what is refused becomes an unknown tensor that the rest may read."""
        self.probing = True
        for node in self.graph.nodes:
            self._at(node)
            if node.op in ("placeholder", "get_attr"):
                self._unknown(node)
            elif node.op != "output":
                self._probe_node(node)

    def _probe_node(self, node: Any) -> None:
        try:
            for a in node.all_input_nodes:
                if self.is_tensor(a) and a not in self.values:
                    raise UserError("F005", f"an operand is {_kind(a.meta.get('val'))}")
            self.node(node)
        except (UserError, InternalError) as error:
            self.refused[node] = error.message
        except (LearnedFact, Undecided):
            self.refused[node] = "sizes that cannot be followed"
        except (
            ArithmeticError, LookupError, TypeError, ValueError, AttributeError, RuntimeError,
        ) as error:  # fmt: skip
            self.refused[node] = f"{type(error).__name__}: {error}"
        if node in self.refused:
            self._unknown(node)

    def _unknown(self, node: Any) -> None:
        """Stand a fresh tensor for the result of a node that is not imported."""
        found = node.meta.get("val")
        made: list[Value | None] = []
        for k, fake in enumerate(found if isinstance(found, list | tuple) else [found]):
            if not isinstance(fake, torch.Tensor) or not is_plain(fake):
                made.append(None)
                continue
            try:
                shape = [self.size(s) for s in fake.shape]
            except UserError:
                made.append(None)
                continue
            dtype = dtype_of_torch(fake.dtype)
            assert dtype is not None  # `is_plain` looked
            name = self.builder.fresh(f"{node.name}_{k}")
            tensor = self.builder.input(name, dtype, shape)
            made.append(Value(self.builder, dtype, shape, tensor=tensor, hint=name))
        if isinstance(found, list | tuple):
            self.values[node] = made
        elif made[0] is not None:
            self.values[node] = made[0]

    def _at(self, node: Any) -> None:
        self.builder.origin = f"{node.name} ({name_of(node.target)})"
        self.sizes.where = f"node {node.name!r}"

    def node(self, node: Any) -> None:
        """Import one node. Errors: F005."""
        if node.op == "get_attr":
            self.values[node] = self._constant(_attribute(self.module, node.target), node.name)
            return
        if node.op != "call_function":
            raise UserError("F005", f"{node.op} of {node.target}", where=f"node {node.name!r}")
        if node.target is operator.getitem:
            source = self.values.get(node.args[0])
            if isinstance(source, list):
                found = source[node.args[1]]
                if found is None:
                    raise UserError(
                        "F005", f"result {node.args[1]} of {node.args[0].target}",
                        where=f"node {node.name!r}",
                    )  # fmt: skip
                self.values[node] = found
                return
        if not _tensors(node.meta.get("val")):
            if _is_size(node.meta.get("val")) or name_of(node.target) in _TRUE_HERE:
                return  # users of a size read the expression from the graph
            raise UserError("F005", f"a result that is no tensor: {node.target}")
        name = name_of(node.target)
        found_row = ROWS.get(name)
        if found_row is None:
            raise UserError(
                "F005", f"no row for {name}", where=f"node {node.name!r}",
                hint="see docs/torch-coverage.md",
            )  # fmt: skip
        for fake in _tensors(node.meta["val"]):
            if not is_plain(fake):
                raise UserError("F005", f"{name} gives {_kind(fake)}")
        results = found_row.expand(Call(self, node, name))
        if isinstance(node.meta["val"], list | tuple):
            self.values[node] = [results] if isinstance(results, Value) else list(results)
        else:
            assert isinstance(results, Value)  # rows of one result give one
            self.values[node] = results

    # ---- the border
    def placeholder(self, node: Any, place: int) -> None:
        """Declare an input, note a size, or take a constant."""
        fake = node.meta.get("val")
        if place in self.constants:
            self.values[node] = self._constant(self.constants[place], node.name)
            return
        if _is_size(fake):
            with suppress(UserError):  # who needs a size that nothing can follow is refused
                self.known_sizes.append((place, None, self.size(fake)))
            return
        if not isinstance(fake, torch.Tensor) or not is_plain(fake):
            return
        shape = tuple(self.size(s) for s in fake.shape)
        strides = tuple(self.size(s) for s in fake.stride())
        dtype = dtype_of_torch(fake.dtype)
        assert dtype is not None  # `is_plain` looked
        for axis, e in enumerate(shape):
            if e.op != "const":
                self.known_sizes.append((place, axis, e))
        order = _memory_order(self.sizes, shape, strides)
        name = self.shown[node.name]
        physical: tuple[Expr, ...]
        if order is None:
            physical = (_span(shape, strides),)
        else:
            physical = tuple(shape[k] for k in order)
        tensor = self.builder.input(name, dtype, physical)
        self.inputs.append(Input(place, name, fake.dtype, shape, strides, physical))
        held = Value(self.builder, dtype, physical, tensor=tensor, hint=name)
        if order is not None and order == tuple(range(len(shape))):
            self.values[node] = held
            return
        axes = self.builder.axes(shape)
        if order is None:
            at = E.const(0)
            for a, s in zip(axes, strides, strict=True):
                at = at + a.index * s
            body = held.at(at)
        else:
            body = held.at(*(axes[k].index for k in order))
        view = self.builder.define(f"{name}_view", axes, body)
        self.values[node] = Value(self.builder, dtype, shape, tensor=view, hint=view.name)

    def _constant(self, held: Any, hint: str) -> Value:
        if not is_plain(held):
            raise UserError("F005", f"the constant {hint!r} is {_kind(held)}")
        array = array_of(held)
        dtype = dtype_of_torch(held.dtype)
        assert dtype is not None  # `is_plain` looked
        return Value(self.builder, dtype, sizes_of(array.shape), known=array, hint=hint)

    def outputs(self, node: Any) -> tuple[Output, ...]:
        """What the graph returns, in order; tensors in the memory order of their fakes."""
        out: list[Output] = []
        given = node.args[0]
        for x in given if isinstance(given, list | tuple) else [given]:
            if not isinstance(x, torch.fx.Node):
                out.append(Output("value", value=x))
                continue
            fake = x.meta.get("val")
            if _is_size(fake):
                out.append(Output("size", size=self.size(fake)))
                continue
            value = self.values.get(x)
            if not isinstance(value, Value):
                raise UserError("F005", f"the result {x.name!r} is {_kind(fake)}")
            out.append(self._result(x, fake, value))
        return tuple(out)

    def _result(self, x: Any, fake: Any, value: Value) -> Output:
        shape = value.shape
        strides = tuple(self.size(s) for s in fake.stride())
        dense = _memory_order(self.sizes, shape, strides)
        order = dense or tuple(range(len(shape)))
        plain = order == tuple(range(len(shape)))
        tensor = value.tensor
        taken = tensor.name in {t.name for t in self.builder.inputs} or value.known is not None
        if not plain or taken:
            self.builder.origin = f"{x.name} (output)"
            axes = self.builder.axes([shape[k] for k in order])
            at = {k: a.index for k, a in zip(order, axes, strict=True)}
            tensor = self.builder.define(
                f"{x.name}_out", axes, value.at(*(at[k] for k in range(len(shape))))
            )
        gaps = strides if dense is None else ()
        return Output("tensor", tensor.name, fake.dtype, order, gaps)

    # ---- what rows ask
    def value(self, given: Any) -> Value:
        """The value of a node. Errors: F005."""
        found = self.values.get(given) if isinstance(given, torch.fx.Node) else None
        if isinstance(found, Value):
            return found
        raise UserError("F005", f"{given} is no tensor that can be read here")

    def is_tensor(self, given: Any) -> bool:
        """Is the argument a node that gives one tensor?"""
        return isinstance(given, torch.fx.Node) and isinstance(given.meta.get("val"), torch.Tensor)

    def fake(self, given: Any) -> Any:
        """The fake tensor of a node, or the number itself."""
        return given.meta["val"] if isinstance(given, torch.fx.Node) else given

    def size(self, given: Any) -> Expr:
        """A size: a number, a symbolic one, or a node that gives one. Errors: F005."""
        return self.symbolic.size(self.fake(given))


def _attribute(module: Any, path: str) -> Any:
    found = module
    for part in path.split("."):
        found = getattr(found, part)
    return found


def _kind(fake: Any) -> str:
    if isinstance(fake, torch.Tensor):
        return f"a tensor of {fake.dtype} on {fake.device}"
    return f"a {type(fake).__name__}"


def _is_size(x: Any) -> bool:
    return isinstance(x, torch.SymInt | int) and not isinstance(x, bool)


def _tensors(x: Any) -> list[Any]:
    if isinstance(x, torch.Tensor):
        return [x]
    return [t for y in x for t in _tensors(y)] if isinstance(x, list | tuple) else []


def _symbols(fake: Any) -> Iterable[Any]:
    for s in (*fake.shape, *(fake.stride() if fake.layout is torch.strided else ())):
        if isinstance(s, torch.SymInt):
            yield from s.node.expr.free_symbols


def _distinct(names: Sequence[str]) -> dict[str, str]:
    out: dict[str, str] = {}
    for name in names:
        shown = identifier(name, "x")
        while shown in out.values():
            shown += "_"
        out[name] = shown
    return out


def _memory_order(
    sizes: Sizes, shape: Sequence[Expr], strides: Sequence[Expr]
) -> tuple[int, ...] | None:
    """The order of axes in which the tensor is row-major without gaps, or None."""
    if any(E.int_value(s) == 0 for s in shape):
        return tuple(range(len(shape)))
    left = list(range(len(shape)))
    order: list[int] = []
    expected = E.const(1)
    ones = [k for k in left if E.int_value(shape[k]) == 1]
    while left:
        match = [k for k in reversed(left) if k in ones and (k == left[-1] or len(left) == 1)]
        if not match:
            match = [
                k for k in reversed(left) if k not in ones and sizes.same(strides[k], expected)
            ] or [k for k in reversed(left) if k in ones]
        if not match:
            return None
        k = match[0]
        left.remove(k)
        order.append(k)
        expected = expected * shape[k]
    return tuple(reversed(order))


def _span(shape: Sequence[Expr], strides: Sequence[Expr]) -> Expr:
    """Elements from the first to the last, inclusive."""
    total = E.const(1)
    for n, s in zip(shape, strides, strict=True):
        total = total + (n - 1) * s
    return total


def _expressions(s: Any) -> Iterable[Expr]:
    from tilewright.ir.program import map_statement

    found: list[Expr] = []

    def see(e: Expr) -> Expr:
        found.append(e)
        return e

    map_statement(s, see)
    return found


def _reads(s: Any) -> Iterable[str]:
    from tilewright.frontend.builder import statement_reads

    return statement_reads(s)
