"""Is a file well-formed? Names, and inputs and attributes of each node against the ONNX schemas.

In: protobuf messages, then the finished Program. Out: nothing, or F001 or F006 with the place.
Invariant: what passes has names that are text, and attributes of the types that rows read.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cache
from typing import Any

from tilewright.errors import UserError
from tilewright.frontend.sizes import Sizes
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Definition, Program, Recurrence

__all__ = ["check_names", "check_node", "check_opsets", "check_reads", "check_types"]


def check_names(model: Any, where: str) -> None:
    """Every name is valid UTF-8 (the protobuf library gives bytes otherwise). Errors: F001."""
    for name in _names(model):
        if not isinstance(name, str):
            raise UserError("F001", f"a name is no text: {name!r}", where=where)


def check_opsets(model: Any, where: str) -> None:
    """Versions are numbers that a schema can have. Errors: F001."""
    for entry in (*model.opset_import, *(e for f in model.functions for e in f.opset_import)):
        least = 1 if entry.domain in ("", "ai.onnx") else 0
        if not least <= entry.version < 1 << 31:
            raise UserError(
                "F001", f"{entry.version} is no version of the opset {entry.domain or 'ai.onnx'!r}",
                where=where, hint="does onnx.checker.check_model accept the model?",
            )  # fmt: skip


def _names(model: Any) -> Iterator[Any]:
    yield from (model.producer_name, model.producer_version)
    for entry in model.opset_import:
        yield entry.domain
    yield from _graph_names(model.graph)
    for f in model.functions:
        yield from (f.name, f.domain, f.overload, *f.input, *f.output, *f.attribute)
        for entry in f.opset_import:
            yield entry.domain
        yield from _attribute_names(f.attribute_proto)
        yield from _node_names(f.node)


def _graph_names(graph: Any) -> Iterator[Any]:
    yield graph.name
    for v in (*graph.input, *graph.output):
        yield v.name
        if v.type.HasField("tensor_type"):
            for d in v.type.tensor_type.shape.dim:
                yield d.dim_param
    for t in graph.initializer:
        yield t.name
        for entry in t.external_data:
            yield from (entry.key, entry.value)
    yield from _node_names(graph.node)


def _node_names(nodes: Iterable[Any]) -> Iterator[Any]:
    for n in nodes:
        yield from (n.name, n.op_type, n.domain, n.overload, *n.input, *n.output)
        yield from _attribute_names(n.attribute)


def _attribute_names(attributes: Iterable[Any]) -> Iterator[Any]:
    for a in attributes:
        yield from (a.name, a.ref_attr_name, a.t.name)
        for entry in a.t.external_data:
            yield from (entry.key, entry.value)
        if a.type == 5:
            yield from _graph_names(a.g)
        for g in a.graphs:
            yield from _graph_names(g)


@dataclass(frozen=True)
class _Expected:
    """What the standard says of an operator. Types are sets of our dtype names, by type name."""

    inputs: tuple[tuple[str, bool], ...]  # type name, required
    variadic: bool
    most: int
    least: int
    attributes: dict[str, int]
    required: frozenset[str]
    types: dict[str, frozenset[str]]


# Attributes that are 0 or 1.
_FLAGS = frozenset(
    [
        "keepdims",
        "noop_with_empty_axes",
        "ceil_mode",
        "count_include_pad",
        "exclusive",
        "reverse",
        "is_causal",
        "fmod",
        "select_last_index",
        "interleaved",
        "align_corners",
        "transA",
        "transB",
        "training_mode",
        "largest",
        "sorted",
        "upper",
        "allowzero",
        "periodic",
        "onesided",
        "inverse",
        "linear_before_reset",
        "input_forget",
        "layout",
        "detect_positive",
        "detect_negative",
        "antialias",
        "exclude_outside",
        "storage_order",
        "center_point_box",
        "saturate",
    ]
)
_TENSORS = {
    "float": "f32", "double": "f64", "float16": "f16", "bfloat16": "bf16", "bool": "bool",
    "int8": "i8", "int16": "i16", "int32": "i32", "int64": "i64",
    "uint8": "u8", "uint16": "u16", "uint32": "u32", "uint64": "u64",
}  # fmt: skip


def _ours(types: Iterable[str]) -> frozenset[str]:
    inner = (t[len("tensor(") : -1] for t in types if t.startswith("tensor("))
    return frozenset(_TENSORS[t] for t in inner if t in _TENSORS)


@cache
def _expected(op: str, opset: int, domain: str) -> _Expected | None:
    """The schema of an operator of the standard; None for others."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    single = onnx.defs.OpSchema.FormalParameterOption.Single
    variadic = onnx.defs.OpSchema.FormalParameterOption.Variadic
    types = {c.type_param_str: _ours(c.allowed_type_strs) for c in schema.type_constraints}
    for i in schema.inputs:
        types.setdefault(i.type_str, _ours([i.type_str]))
    return _Expected(
        tuple((i.type_str, i.option == single) for i in schema.inputs),
        bool(schema.inputs) and schema.inputs[-1].option == variadic,
        schema.max_input,
        schema.min_input,
        {name: int(a.type.value) for name, a in schema.attributes.items()},
        frozenset(name for name, a in schema.attributes.items() if a.required),
        types,
    )


@cache
def _first_opset(op: str) -> int:
    """The opset of the default domain that brought an operator; 0 where none did."""
    import onnx

    versions = [
        s.since_version for s in onnx.defs.get_all_schemas_with_history()
        if s.name == op and s.domain == ""
    ]  # fmt: skip
    return min(versions, default=0)


def check_node(proto: Any, opset: int, domain: str, where: str) -> None:
    """Numbers of inputs, and the types of attributes.

    Errors: F001; F005 for an operator of the standard that the opset does not have yet.
    """
    expected = _expected(proto.op_type, opset, domain)
    if expected is None:
        since = 0 if domain else _first_opset(proto.op_type)
        if opset < since:
            raise UserError(
                "F005", f"operator {proto.op_type!r} is of opset {since}, not of opset {opset}",
                where=where, hint=f"export the model with opset {since} or newer",
            )  # fmt: skip
        return
    if len(proto.input) > expected.most:
        raise UserError(
            "F001",
            f"{proto.op_type} has {len(proto.input)} inputs, at most {expected.most}",
            where=where,
        )
    needed = [required for _, required in expected.inputs]
    if expected.variadic:
        needed = needed[:-1] + [True] * (len(proto.input) - len(needed) + 1)
    for k, required in enumerate(needed):
        if required and (k >= len(proto.input) or not proto.input[k]):
            raise UserError("F001", f"{proto.op_type} lacks its input {k}", where=where)
    if len(proto.input) < expected.least:
        raise UserError("F001", f"{proto.op_type} lacks its input {len(proto.input)}", where=where)
    given = set()
    for a in proto.attribute:
        given.add(a.name)
        if a.name in expected.attributes and a.type != expected.attributes[a.name]:
            raise UserError("F001", f"attribute {a.name!r} has a wrong type", where=where)
        if a.name in _FLAGS and not a.ref_attr_name and a.i not in (0, 1):
            raise UserError("F001", f"attribute {a.name!r} is {a.i}, not 0 or 1", where=where)
    for name in sorted(expected.required - given):
        raise UserError("F001", f"{proto.op_type} lacks its attribute {name!r}", where=where)


def check_types(
    op: str, opset: int, domain: str, dtypes: Sequence[DType | None], where: str
) -> None:
    """The element types of the inputs are those the operator takes, equal where it says so.

    Errors: F006.
    """
    expected = _expected(op, opset, domain)
    if expected is None:
        return
    bound: dict[str, DType] = {}
    for k, dtype in enumerate(dtypes):
        if dtype is None:
            continue
        name = expected.inputs[min(k, len(expected.inputs) - 1)][0]
        allowed = expected.types[name]
        if allowed and dtype.name not in allowed:
            raise UserError("F006", f"input {k} of {op} cannot be {dtype}", where=where)
        if bound.setdefault(name, dtype) is not dtype:
            raise UserError(
                "F006", f"{op}: operands of different dtypes {bound[name]}, {dtype}", where=where
            )


# ---- reads ---------------------------------------------------------------------------------------


def check_reads(program: Program, sizes: Sizes, origins: Mapping[str, str]) -> None:
    """No definition reads outside a tensor where that can be told: affine subscripts, no guard.

    A scale of three elements for four channels ends here if its row did not notice. Errors: F006.
    """
    for t in program.tensors.values():
        for e in t.shape:
            if sizes.decide("lt", e, E.const(0)):
                raise UserError(
                    "F006", f"{t.name!r} has a size of {e}", where=origins.get(t.name, t.name)
                )
    for s in program.body:
        for d in s.definitions if isinstance(s, Recurrence) else (s,):
            if isinstance(d, Definition) and (d.reduction is None or d.reduction.guard is None):
                _check_definition(d, program, sizes, origins.get(d.name, d.name))


def _check_definition(d: Definition, program: Program, sizes: Sizes, where: str) -> None:
    extents = {a.name: a.extent for a in d.all_axes}
    if any(E.int_value(e) == 0 for e in extents.values()):
        return
    for r in _plain_reads(d.body):
        shape = program.tensors[r.attr[0]].shape
        for subscript, size in zip(r.args, shape, strict=True):
            if _leaves(subscript, size, extents, sizes):
                raise UserError(
                    "F006",
                    f"{r} reads outside {r.attr[0]!r} of shape [{', '.join(map(str, shape))}]",
                    where=where,
                )


def _plain_reads(e: Expr) -> Iterator[Expr]:
    """Reads without `else` that happen at every point: none below a select."""
    seen: set[int] = set()
    stack = [e]
    while stack:
        node = stack.pop()
        if id(node) in seen:
            continue
        seen.add(id(node))
        if node.op == "read" and not node.attr[1]:
            yield node
        stack.extend(node.args[:1] if node.op == "select" else node.args)


def _leaves(e: Expr, size: Expr, extents: Mapping[str, Expr], sizes: Sizes) -> bool:
    """Does an affine subscript surely leave [0, size) somewhere?"""
    low = high = E.const(0)
    for atoms, k in E.polynomial(e).items():
        if not atoms:
            low, high = low + k, high + k
            continue
        if len(atoms) != 1 or atoms[0].op not in ("index", "dim"):
            return False
        if atoms[0].op == "dim":
            low, high = low + atoms[0] * k, high + atoms[0] * k
            continue
        last = extents[atoms[0].attr] - 1
        low, high = (low, high + last * k) if k > 0 else (low + last * k, high)
    return bool(sizes.decide("lt", low, E.const(0)) or sizes.decide("le", size, high))
