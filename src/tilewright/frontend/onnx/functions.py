"""Function bodies that ONNX itself gives for operators: the fallback for operators without a row.

In: a node without a row. Out: a FunctionProto, or None. Invariant: the body chosen is of the newest
opset that is not newer than the model's.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.frontend.onnx.proto import ELEMENT_TYPES
from tilewright.ir import expr as E

if TYPE_CHECKING:
    from tilewright.frontend.onnx.value import Node
from tilewright.frontend.values import Value

__all__ = ["body_of"]


def body_of(n: Node, proto: Any) -> Any | None:
    """The FunctionProto of an operator of the ONNX standard, or None where it has none.

    The node's attributes are completed by the operator's defaults.
    """
    import onnx

    try:
        schema = onnx.defs.get_schema(n.op, n.opset, n.domain)
    except onnx.defs.SchemaError:
        return None
    for name, declared in schema.attributes.items():
        if name not in n.attributes and declared.default_value.type:
            n.attributes[name] = onnx.helper.get_attribute_value(declared.default_value)
            if isinstance(n.attributes[name], bytes):
                n.attributes[name] = n.attributes[name].decode()
    if schema.has_function:
        versions = [v for v in schema.function_opset_versions if v <= n.opset]
        if versions:
            data = schema.get_function_with_opset_version(max(versions))
            if data:
                return _parse(data)
    if schema.has_context_dependent_function:
        versions = [v for v in schema.context_dependent_function_opset_versions if v <= n.opset]
        if versions:
            types = [_type(v) for v in n.inputs]
            data = schema.get_context_dependent_function_with_opset_version(
                max(versions), _resolved(n, proto).SerializeToString(), types
            )
            if data:
                return _parse(data)
    return None


def _resolved(n: Node, proto: Any) -> Any:
    """The NodeProto with references to a function's attributes replaced by their values."""
    import onnx

    copy = type(proto)()
    copy.CopyFrom(proto)
    plain = [a for a in copy.attribute if not a.ref_attr_name]
    for a in copy.attribute:
        if a.ref_attr_name and a.name in n.attributes:
            plain.append(onnx.helper.make_attribute(a.name, n.attributes[a.name]))
    del copy.attribute[:]
    copy.attribute.extend(plain)
    return copy


def _parse(data: bytes) -> Any:
    import onnx

    f = onnx.FunctionProto()
    f.ParseFromString(data)
    return f


def _type(v: Value | None) -> bytes:
    import onnx

    t = onnx.TypeProto()
    if v is not None:
        t.tensor_type.elem_type = next(k for k, d in ELEMENT_TYPES.items() if d is v.dtype)
        t.tensor_type.shape.SetInParent()
        for s in v.shape:
            d = t.tensor_type.shape.dim.add()
            fixed = E.int_value(s)
            if fixed is None:
                d.dim_param = str(s)
            else:
                d.dim_value = fixed
    data: bytes = t.SerializeToString()
    return data
