"""Is a file well-formed? Names, and inputs and attributes of each node against the ONNX schemas.

In: protobuf messages. Out: nothing, or F001 with the place. Invariant: what passes has names that
are text, and attributes of the types that the operator's row reads.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from functools import cache
from typing import Any

from tilewright.errors import UserError

__all__ = ["check_names", "check_node"]


def check_names(model: Any, where: str) -> None:
    """Every name is valid UTF-8 (the protobuf library gives bytes otherwise). Errors: F001."""
    for name in _names(model):
        if not isinstance(name, str):
            raise UserError("F001", f"a name is no text: {name!r}", where=where)


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


@cache
def _expected(
    op: str, opset: int, domain: str
) -> tuple[int, dict[str, int], frozenset[str]] | None:
    """Of an operator of the standard: most inputs, attribute -> type, required attributes."""
    import onnx

    try:
        schema = onnx.defs.get_schema(op, opset, domain)
    except onnx.defs.SchemaError:
        return None
    types = {name: int(a.type.value) for name, a in schema.attributes.items()}
    required = frozenset(name for name, a in schema.attributes.items() if a.required)
    return schema.max_input, types, required


def check_node(proto: Any, opset: int, domain: str, where: str) -> None:
    """No more inputs than the operator has, attributes of the right type. Errors: F001."""
    expected = _expected(proto.op_type, opset, domain)
    if expected is None:
        return
    most, types, required = expected
    if len(proto.input) > most:
        raise UserError(
            "F001", f"{proto.op_type} has {len(proto.input)} inputs, at most {most}", where=where
        )
    given = set()
    for a in proto.attribute:
        given.add(a.name)
        if a.name in types and a.type != types[a.name]:
            raise UserError("F001", f"attribute {a.name!r} has a wrong type", where=where)
    for name in sorted(required - given):
        raise UserError("F001", f"{proto.op_type} lacks its attribute {name!r}", where=where)
