"""ONNX graph -> Program: names, order, scopes, functions, facts about dims.

In: a ModelProto. Out: `Imported`. Invariants: nodes that no output needs are not looked at; every
definition has an origin, the ONNX node it came from; facts about dims hold for the whole Program
(the walk restarts when one is learned).
"""

from __future__ import annotations

import os
import re
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.frontend.builder import Builder, identifier, statement_reads
from tilewright.frontend.onnx.checks import check_node, check_reads, check_types
from tilewright.frontend.onnx.external import ExternalData
from tilewright.frontend.onnx.folding import fold
from tilewright.frontend.onnx.functions import body_of
from tilewright.frontend.onnx.proto import (
    NEWEST_OPSET,
    attribute_value,
    dtype_of_element,
    load_model,
    tensor_array,
)
from tilewright.frontend.onnx.table import ROWS
from tilewright.frontend.onnx.value import (
    Node,
    ValueNeeded,
)
from tilewright.frontend.sizes import LearnedFact, Sizes, SizesNeeded, Undecided
from tilewright.frontend.values import Value, sizes_of
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Definition, Dim, Program, Size, Statement, defined_by
from tilewright.ir.program_verifier import verify_program

__all__ = ["Imported", "Importer", "from_onnx", "import_onnx"]

_MAX_FACTS = 64
_MAX_DEPTH = 32


@dataclass(frozen=True)
class Imported:
    """A Program and where it came from.

    origins: definition -> "node (OpType)"; values: ONNX value -> tensor of the Program, for
    comparing node by node; inputs and outputs: the Program's names -> ONNX names, in order;
    warnings: what was rewritten inexactly; assumptions: what the model asks of its symbolic sizes,
    and which node asks.
    """

    program: Program
    origins: dict[str, str]
    values: dict[str, str]
    inputs: dict[str, str]
    outputs: dict[str, str]
    opset: int
    producer: str
    warnings: tuple[str, ...] = ()
    assumptions: tuple[str, ...] = ()


def from_onnx(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    known: Mapping[str, np.ndarray[Any, Any]] | None = None,
    sizes: Mapping[str, int] | None = None,
) -> Program:
    """The Program of an ONNX model; see `import_onnx`."""
    return import_onnx(source, name=name, known=known, sizes=sizes).program


def import_onnx(
    source: str | os.PathLike[str] | bytes,
    *,
    name: str | None = None,
    known: Mapping[str, np.ndarray[Any, Any]] | None = None,
    sizes: Mapping[str, int] | None = None,
    shapes: Mapping[str, Sequence[int]] | None = None,
    outputs: Sequence[str] | None = None,
) -> Imported:
    """Import an ONNX model given by path or as bytes.

    known: values of inputs that the shapes depend on; such inputs are no inputs of the Program any
    more; values of the model's own graph may be among them. sizes: values of symbolic sizes, by the
    names that the model or the Program gives them. shapes: of inputs. outputs: values of the graph
    that are returned instead of its outputs.
    Errors: F001 not ONNX, F002 external data, F003 newer opset, F004 cycle or undefined name, F005
    unsupported operator or form, F006 contradicting shapes.
    """
    model, external = load_model(source)
    if name is None:
        stem = Path(source).stem if isinstance(source, (str, os.PathLike)) else ""
        name = stem or model.graph.name or "model"
    facts = Sizes()
    facts.equal = {identifier(n, "d"): E.const(int(v)) for n, v in (sizes or {}).items()}
    for _ in range(_MAX_FACTS):
        try:
            importer = Importer(model, external, facts, name, known or {}, shapes, outputs)
            imported = importer.run()
            if not facts.stale:
                return imported
        except LearnedFact:
            pass
        except UserError:
            if not facts.stale:
                raise
        facts.restart()
    raise UserError("F006", "the sizes of the model could not be made to agree", where=name)


@dataclass
class Scope:
    """Values by ONNX name, of a graph, a branch or a function body."""

    values: dict[str, Value]
    opsets: dict[str, int]
    parent: Scope | None = None
    initializers: dict[str, Any] = field(default_factory=dict)
    attributes: dict[str, Any] | None = None  # of the call, inside a function body
    prefix: str = ""
    depth: int = 0


class Importer:
    """One walk over a model, under the facts known so far."""

    def __init__(
        self,
        model: Any,
        external: ExternalData,
        sizes: Sizes,
        name: str,
        known: Mapping[str, np.ndarray[Any, Any]],
        shapes: Mapping[str, Sequence[int]] | None = None,
        outputs: Sequence[str] | None = None,
    ) -> None:
        self.shapes = shapes or {}
        self.results = [o.name for o in model.graph.output] if outputs is None else list(outputs)
        self.model, self.external, self.sizes, self.known = model, external, sizes, known
        self.name = name
        self.warnings: list[str] = []
        self.functions = {(f.domain, f.name, f.overload): f for f in model.functions}
        self.builder = Builder(name)
        self.scope = self.scope_of_graph = Scope({}, {})
        self.readers: Counter[str] = Counter()
        self.shown: dict[str, str] = {}
        self.open: list[list[Statement]] = []  # what the blocks being imported stand in
        self.recipes: dict[
            str, Any
        ] = {}  # tensor name -> how to make it again, for folding into its producer
        self.bound: dict[str, Value] = {}

    # ---- the walk
    def run(self) -> Imported:
        """Errors: as `import_onnx`; LearnedFact when the walk must start again."""
        graph = self.model.graph
        opsets = {
            "" if e.domain == "ai.onnx" else e.domain: e.version for e in self.model.opset_import
        }
        scope = self.scope = self.scope_of_graph = Scope({}, opsets)
        scope.initializers = {t.name: t for t in graph.initializer}
        if graph.sparse_initializer:
            raise UserError(
                "F005", "sparse initializers are not supported", where=f"graph {graph.name!r}"
            )
        inputs = self._declare_inputs(graph, scope)
        nodes = self._needed(graph.node, self.results, scope)
        for node in nodes:
            for x in node.input:
                self.readers[x] += 1
        for name in self.results:
            self.readers[name] += 1
        self._show_outputs(nodes)
        for node in nodes:
            self.node(node, scope)
        results: list[str] = []
        outputs: dict[str, str] = {}
        for o in self.results:
            name = self._result(o, scope, results)
            results.append(name)
            outputs[name] = o
        dims = self._dims()
        program = self.builder.program(results, dims)
        verify_program(program)
        check_reads(program, self.sizes, self.builder.origins)
        live = program.tensors
        return Imported(
            program,
            {d: origin for d, origin in self.builder.origins.items() if d in live},
            {
                n: v._tensor.name
                for n, v in self.bound.items()
                if v._tensor is not None and v._tensor.name in live
            },
            inputs,
            outputs,
            opsets.get("", 0),
            f"{self.model.producer_name} {self.model.producer_version}".strip(),
            tuple(self.warnings),
            tuple(f"{fact}: {where}" for fact, where in self.sizes.reasons.items()),
        )

    def _declare_inputs(self, graph: Any, scope: Scope) -> dict[str, str]:
        names: dict[str, str] = {}
        declared: list[tuple[Any, str, DType, list[Expr]]] = []
        taken: set[str] = set()
        for i in graph.input:
            if i.name in scope.initializers:
                continue
            shown = identifier(i.name, "x")
            while shown in taken:
                shown += "_"
            taken.add(shown)
            declared.append((i, shown, *self._input_type(i, shown)))
        dim_names = {n for *_, shape in declared for e in shape for n in e.names("dim")}
        for n in sorted(dim_names & taken):
            raise UserError(
                "F006", f"{n!r} is both an input and a size", where=f"graph {graph.name!r}"
            )
        promised = {identifier(o) for o in self.results}
        self.builder = Builder(self.name, taken | dim_names, promised)
        for i, shown, dtype, shape in declared:
            if i.name in self.known:
                array = np.asarray(self.known[i.name])
                if array.dtype != dtype.np or array.ndim != len(shape):
                    raise UserError(
                        "F006", f"the known value of {i.name!r} is no {dtype} of rank {len(shape)}"
                    )
                value = Value(self.builder, dtype, sizes_of(array.shape), known=array, hint=shown)
            else:
                value = Value(
                    self.builder,
                    dtype,
                    shape,
                    tensor=self.builder.input(shown, dtype, shape),
                    hint=shown,
                )
                names[shown] = i.name
            scope.values[i.name] = self.bound[i.name] = value
        return names

    def _input_type(self, i: Any, shown: str) -> tuple[DType, list[Expr]]:
        where = f"input {i.name!r}"
        if not i.type.HasField("tensor_type"):
            raise UserError(
                "F005", "only tensors can be inputs, no sequences, maps or optionals", where=where
            )
        t = i.type.tensor_type
        dtype = dtype_of_element(t.elem_type, where)
        if not t.HasField("shape"):
            raise UserError(
                "F006",
                "the input has no declared rank",
                where=where,
                hint="give it a shape; sizes may be symbolic",
            )
        shape: list[Expr] = []
        given = self.shapes.get(i.name)
        if given is not None and len(given) != len(t.shape.dim):
            message = f"input {i.name!r} has {len(given)} axes instead of {len(t.shape.dim)}"
            raise UserError("R003", message, where=where)
        for k, d in enumerate(t.shape.dim):
            if given is not None:
                if d.HasField("dim_value") and d.dim_value not in (given[k], 0):
                    message = f"axis {k} of input {i.name!r} is {given[k]} instead of {d.dim_value}"
                    raise UserError("R003", message, where=where)
                shape.append(E.const(int(given[k])))
                continue
            if d.HasField("dim_value") and d.dim_value >= 0:
                shape.append(E.const(d.dim_value))
                continue
            text = d.dim_param if re.search(r"[A-Za-z0-9]", d.dim_param) else ""
            name = identifier(text, "d") if text else f"{shown}_d{k}"
            shape.append(self.sizes.declare(name))
        return dtype, shape

    def _needed(self, nodes: Sequence[Any], outputs: Iterable[str], scope: Scope) -> list[Any]:
        """The nodes that outputs need, in an order of definition before use. Errors: F004."""
        producer: dict[str, int] = {}
        for k, node in enumerate(nodes):
            for o in node.output:
                if o and o in producer:
                    raise UserError(
                        "F004", f"value {o!r} is defined twice", where=f"node {node.name!r}"
                    )
                if o:
                    producer[o] = k
        order: list[Any] = []
        state: dict[int, int] = {}  # 1: being visited, 2: done
        reads = [list(dict.fromkeys(_node_reads(node))) for node in nodes]
        for out in outputs:
            if out not in producer:
                self._check_defined(out, scope, "the graph's outputs")
                continue
            stack = [(producer[out], 0)]
            while stack:
                k, at = stack.pop()
                if state.get(k) == 2:
                    continue
                state[k] = 1
                if at == len(reads[k]):
                    state[k] = 2
                    order.append(k)
                    continue
                stack.append((k, at + 1))
                name = reads[k][at]
                p = producer.get(name)
                if p is None:
                    self._check_defined(name, scope, f"node {nodes[k].name!r} ({nodes[k].op_type})")
                elif state.get(p) == 1:
                    raise UserError(
                        "F004",
                        f"the graph has a cycle through {name!r}",
                        where=f"node {nodes[p].name!r}",
                    )
                elif state.get(p) is None:
                    stack.append((p, 0))
        return (
            [nodes[k] for k in sorted(order)]
            if _in_order(order, reads, producer)
            else [nodes[k] for k in order]
        )

    def _check_defined(self, name: str, scope: Scope, where: str) -> None:
        s: Scope | None = scope
        while s is not None:
            if name in s.values or name in s.initializers:
                return
            s = s.parent
        raise UserError("F004", f"value {name!r} is read but nothing defines it", where=where)

    def _show_outputs(self, nodes: Sequence[Any]) -> None:
        """Values that become outputs through Identity alone take the output's name."""
        outputs = self.results
        for node in reversed(nodes):
            if node.op_type == "Identity" and len(node.output) == len(node.input) == 1:
                name = self.shown.get(
                    node.output[0], node.output[0] if node.output[0] in outputs else None
                )
                if name is not None and node.input[0] not in outputs:
                    self.shown[node.input[0]] = name

    def _result(self, name: str, scope: Scope, results: Sequence[str]) -> str:
        value = self.lookup(name, scope)
        if not isinstance(value, Value):
            raise UserError("F004", f"output {name!r} is not a tensor", where="the graph's outputs")
        tensor = value.tensor
        self.builder.origin = ""
        defined = tensor.name in self.builder.origins
        if not defined or tensor.name in results:
            axes = self.builder.axes(value.shape)
            tensor = self.builder.define(
                self.display_name(name), axes, value.at(*(a.index for a in axes))
            )
            self.builder.origins[tensor.name] = f"{name} (output)"
        return tensor.name

    def _dims(self) -> list[Dim]:
        live = set()
        for t in self.builder.tensors.values():
            for e in t.shape:
                live |= e.names("dim")
        inner = self.sizes.defined
        return [d for d in self.sizes.dims.values() if d.name in live and d.name not in inner]

    # ---- names and values
    def display_name(self, value: str) -> str:
        """A readable name for the definitions of an ONNX value."""
        name = identifier(self.shown.get(value, value))
        return f"{self.scope.prefix}{name}"

    def lookup(self, name: str, scope: Scope) -> Value | None:
        """The value of a name; None for the empty name (an omitted input). Errors: F004."""
        if not name:
            return None
        s: Scope | None = scope
        while s is not None:
            if name in s.values:
                return s.values[name]
            if name in s.initializers:
                array = tensor_array(s.initializers[name], self.external)
                dtype = dtype_of_element(s.initializers[name].data_type, f"tensor {name!r}")
                value = Value(self.builder, dtype, sizes_of(array.shape), known=array, hint=name)
                s.values[name] = value
                return value
            s = s.parent
        raise UserError(
            "F004", f"value {name!r} is read but nothing defines it", where=f"graph {self.name!r}"
        )

    def new_size(self, hint: str, count: Value, bound: Expr) -> Expr:
        """A size that is the value of the scalar `count` (i64), at most `bound`."""
        for n in bound.names("dim") & self.sizes.defined.keys():
            bound = E.substitute(bound, {E.dim(n): self.sizes.defined[n]})
        name = self.builder.fresh(hint)
        self.builder.add(Size(name, bound, count.name))
        return self.sizes.define(name, bound)

    def sources_of(self, v: Value) -> tuple[list[str], list[str]]:
        """The model's inputs and the sizes that a value is computed from, by their ONNX names."""
        onnx_names: dict[str, str] = {}
        for name, x in self.scope_of_graph.values.items():
            if x._tensor is not None and x._tensor in self.builder.inputs:
                onnx_names.setdefault(x._tensor.name, name)  # the input's, not that of a copy
        wanted, dims = {v.tensor.name}, set[str]()
        every = [s for statements in self.open for s in statements] + self.builder.statements
        for s in reversed(every):
            if any(t.name in wanted for t in defined_by(s)):
                wanted.update(statement_reads(s))
                if isinstance(s, Definition):
                    dims.update(*(e.names("dim") for e in s.expressions()))
        inputs = [onnx_names[t.name] for t in self.builder.inputs if t.name in wanted]
        return inputs, sorted(dims)

    def name_of(self, v: Value) -> str:
        """The ONNX name of a value of the model's own graph; empty where it is none of those."""
        return next((name for name, x in self.bound.items() if x is v), "")

    def cast_target(self, n: Node) -> DType:
        """The dtype that Cast or CastLike converts to."""
        if n.op == "CastLike":
            return n[1].dtype
        return dtype_of_element(int(n.required("to")), n.where)

    def element_type(self, element: int, n: Node) -> DType:
        """The dtype of a TensorProto.DataType that an attribute holds."""
        return dtype_of_element(element, n.where)

    # ---- one node
    def node(self, proto: Any, scope: Scope) -> None:
        """Import one NodeProto into the scope."""
        domain = "" if proto.domain == "ai.onnx" else proto.domain
        name = scope.prefix + (proto.name or next((o for o in proto.output if o), proto.op_type))
        opset = scope.opsets.get(domain, 1)
        where = f"node {name!r} ({proto.op_type}, opset {opset})"
        check_node(proto, opset, domain, where)
        attributes: dict[str, Any] = {}
        for a in proto.attribute:
            if a.ref_attr_name:
                if scope.attributes is not None and a.ref_attr_name in scope.attributes:
                    attributes[a.name] = scope.attributes[a.ref_attr_name]
            else:
                attributes[a.name] = attribute_value(a, self.external)
        inputs = [self.lookup(x, scope) for x in proto.input]
        dtypes = [None if v is None else v.dtype for v in inputs]
        check_types(proto.op_type, opset, domain, dtypes, where)
        saved = self.scope, self.builder.origin
        self.scope = scope
        if not scope.depth:
            self.builder.origin = f"{name} ({proto.op_type})"
        if not scope.depth:
            self.sizes.where = f"node {name!r} ({proto.op_type})"
        n = Node(
            self,
            proto.op_type,
            name,
            opset,
            inputs,
            attributes,
            list(proto.output),
            domain,
        )
        results = self.expand(n, proto, scope)
        if len(results) < len(proto.output):
            results = [*results, *[None] * (len(proto.output) - len(results))]
        for k, out in enumerate(proto.output):
            if out:
                value = results[k]
                if value is None:
                    if self.readers[out] or scope.depth:
                        raise n.refuse(f"output {k} ({out!r}) is not provided")
                    continue
                if not scope.depth:
                    if out in self.known:
                        value = self._given(out, value)
                    self.bound[out] = value
                scope.values[out] = value
        self.scope, self.builder.origin = saved

    def _given(self, name: str, value: Value) -> Value:
        """A value of the graph that is known. Errors: F006 where it does not fit."""
        array = np.asarray(self.known[name])
        if array.dtype != value.dtype.np or array.ndim != value.rank:
            kind = f"{value.dtype} of rank {value.rank}"
            raise UserError("F006", f"the known value of {name!r} is no {kind}")
        return Value(self.builder, value.dtype, sizes_of(array.shape), known=array, hint=value.hint)

    def expand(self, n: Node, proto: Any, scope: Scope) -> list[Value | None]:
        """The outputs of a node: through its row, by folding, or through its function body."""
        local = self.functions.get((n.domain, n.op, getattr(proto, "overload", "")))
        if local is not None:
            return self.call(n, local, scope)
        r = ROWS.get((n.domain, n.op))
        if r is not None:
            if n.opset < r.since and not n.domain:
                raise n.refuse(f"its form of opset {n.opset}", f"opset {r.since} or newer")
            folded = fold(n, r)
            if folded is not None:
                return folded
            try:
                results = r.expand(n)
            except Undecided:
                raise n.refuse("sizes that cannot be followed at import") from None
            except (ArithmeticError, LookupError, TypeError, ValueError) as error:
                raise UserError(
                    "F001",
                    f"{n.op}: its attributes and inputs make no sense: {error}",
                    where=n.where,
                    hint="does onnx.checker.check_model accept the model?",
                ) from error
            return [results] if isinstance(results, Value) else list(results)
        body = body_of(n, proto)
        if body is not None:
            return self.call(n, body, scope)
        known = sorted(name for domain, name in ROWS if domain == n.domain)
        near = _nearest(n.op, known)
        raise UserError(
            "F005",
            f"operator {n.op!r} of domain {n.domain or 'ai.onnx'!r} is not supported",
            where=n.where,
            hint=(f"the nearest supported operator is {near}; " if near else "")
            + "see docs/onnx-coverage.md",
        )

    def call(self, n: Node, function: Any, scope: Scope) -> list[Value | None]:
        """A function body (the model's or an operator's) with the node's inputs."""
        if scope.depth >= _MAX_DEPTH:
            raise UserError(
                "F004", f"functions call each other deeper than {_MAX_DEPTH}", where=n.where
            )
        attributes = {a.name: attribute_value(a, self.external) for a in function.attribute_proto}
        attributes.update(n.attributes)
        opsets = {
            "" if e.domain == "ai.onnx" else e.domain: e.version for e in function.opset_import
        }
        for domain, version in opsets.items():
            if domain == "" and version > NEWEST_OPSET:
                raise UserError("F003", f"function {n.op!r} uses opset {version}", where=n.where)
        inner = Scope(
            {},
            opsets or scope.opsets,
            attributes=attributes,
            prefix=f"{n.hint}_",
            depth=scope.depth + 1,
        )
        for k, formal in enumerate(function.input):
            value = n.optional(k)
            if value is not None:
                inner.values[formal] = value
        missing = [f for k, f in enumerate(function.input) if n.optional(k) is None]
        nodes = []
        for node in function.node:
            if any(x in missing for x in node.input):
                node = _without(node, missing)
            nodes.append(node)
        wanted = [o for k, o in enumerate(function.output) if n.has_output(k)]
        for node in self._needed(nodes, wanted, inner):
            self.node(node, inner)
        return [
            self.lookup(o, inner) if n.has_output(k) else None
            for k, o in enumerate(function.output)
        ]

    @contextmanager
    def block(self, n: Node) -> Iterator[list[Statement]]:
        """Statements of a block that may run never or often: no facts are learned in it.

        Errors: ValueNeeded where it needs some.
        """
        self.open.append(self.builder.statements)
        self.sizes.locked += 1
        saved = self.scope, self.builder.origin
        try:
            with self.builder.inside() as statements:
                yield statements
        except SizesNeeded as needed:
            if self.sizes.locked > 1:
                raise
            message = f"{n.op}: what is done must follow from constants and sizes"
            raise ValueNeeded(message, n.where, [], needed.names) from None
        finally:
            self.open.pop()
            self.sizes.locked -= 1
            self.scope, self.builder.origin = saved

    def branch(
        self, n: Node, graph: Any, given: Mapping[str, Value] | None = None
    ) -> list[Value | None]:
        """The outputs of a subgraph; `given` are values of its inputs."""
        outer = self.scope
        if outer.depth >= _MAX_DEPTH:
            raise UserError("F004", f"subgraphs nest deeper than {_MAX_DEPTH}", where=n.where)
        inner = Scope(
            {},
            outer.opsets,
            outer,
            prefix=f"{n.hint}_",
            depth=outer.depth + 1,
            attributes=outer.attributes,
        )
        inner.initializers = {t.name: t for t in graph.initializer}
        inner.values.update(given or {})
        for node in self._needed(graph.node, [o.name for o in graph.output], inner):
            self.node(node, inner)
        return [self.lookup(o.name, inner) for o in graph.output]


def _node_reads(node: Any) -> Iterable[str]:
    """Names a node reads, those of its subgraphs included."""
    yield from (x for x in node.input if x)
    for a in node.attribute:
        for g in [a.g] if a.type == 5 else a.graphs if a.type == 10 else []:
            inner = {t.name for t in g.initializer} | {i.name for i in g.input}
            for sub in g.node:
                yield from (x for x in _node_reads(sub) if x not in inner)
                inner.update(sub.output)


def _in_order(
    order: Sequence[int], reads: Sequence[Sequence[str]], producer: Mapping[str, int]
) -> bool:
    return all(producer.get(x, -1) < k for k in order for x in reads[k])


def _without(node: Any, names: Sequence[str]) -> Any:
    copy = type(node)()
    copy.CopyFrom(node)
    for k, x in enumerate(copy.input):
        if x in names:
            copy.input[k] = ""
    return copy


def _nearest(name: str, known: Sequence[str]) -> str:
    import difflib

    found = difflib.get_close_matches(name, known, 1, 0.5)
    return found[0] if found else ""
