"""Reading ONNX files: the model, its tensors and attributes.

In: a path or bytes. Out: a checked ModelProto, NumPy arrays, plain Python attributes. Invariant:
nothing in a file is executed or unpickled; whatever is malformed is F001, F002 or F003 with its
place.
"""

from __future__ import annotations

import math
import os
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.frontend.onnx.checks import check_names, check_opsets
from tilewright.frontend.onnx.external import ExternalData
from tilewright.ir.dtypes import BF16, BOOL, DTYPES, F16, F32, F64, DType

__all__ = [
    "ELEMENT_TYPES",
    "NEWEST_OPSET",
    "attribute_value",
    "dtype_of_element",
    "load_model",
    "tensor_array",
]

NEWEST_OPSET = 28
# TensorProto.DataType -> our dtype; the others are refused by name.
ELEMENT_TYPES: dict[int, DType] = {
    1: F32,
    2: DTYPES["u8"],
    3: DTYPES["i8"],
    4: DTYPES["u16"],
    5: DTYPES["i16"],
    6: DTYPES["i32"],
    7: DTYPES["i64"],
    9: BOOL,
    10: F16,
    11: F64,
    12: DTYPES["u32"],
    13: DTYPES["u64"],
    16: BF16,
}
_OTHER_TYPES = {
    8: "string",
    14: "complex64",
    15: "complex128",
    17: "float8e4m3fn",
    18: "float8e4m3fnuz",
    19: "float8e5m2",
    20: "float8e5m2fnuz",
    21: "uint4",
    22: "int4",
    23: "float4e2m1",
    24: "float8e8m0",
    25: "uint2",
    26: "int2",
}
_MAX_NODES = 1_000_000


def dtype_of_element(element: int, where: str) -> DType:
    """The dtype of a TensorProto.DataType. Errors: F005 for strings, complex numbers, 8-bit floats
    and 4-bit types.
    """
    if element in ELEMENT_TYPES:
        return ELEMENT_TYPES[element]
    name = _OTHER_TYPES.get(element)
    if name is None:
        raise UserError("F001", f"unknown element type {element}", where=where)
    raise UserError(
        "F005",
        f"element type {name} is not supported",
        where=where,
        hint="supported: " + ", ".join(DTYPES),
    )


def load_model(source: str | os.PathLike[str] | bytes) -> tuple[Any, ExternalData]:
    """The ModelProto and its external data. Errors: F001 not ONNX, F003 a newer opset."""
    try:
        import onnx
    except ImportError as error:
        raise UserError(
            "U002",
            "reading ONNX models needs the onnx package",
            hint="pip install 'tilewright[onnx]'",
        ) from error
    from google.protobuf.message import DecodeError  # type: ignore[import-untyped]

    folder = None
    where = "the given bytes"
    if isinstance(source, (bytes, bytearray, memoryview)):
        data = bytes(source)
    else:
        path = Path(source)
        where = str(path)
        try:
            data = path.read_bytes()
        except OSError as error:
            raise UserError(
                "F001", f"the model cannot be read: {error.strerror}", where=where
            ) from error
        folder = path.resolve().parent
    model = onnx.ModelProto()
    try:
        model.ParseFromString(data)
    except DecodeError as error:
        raise UserError(
            "F001",
            "this is not an ONNX model, or it is truncated",
            where=where,
            hint="compare the file's size with its source and copy it again",
        ) from error
    if not model.HasField("graph") or not model.opset_import:
        raise UserError(
            "F001",
            "this is not an ONNX model: it has no graph or no opset",
            where=where,
            hint="compare the file's size with its source and copy it again",
        )
    check_names(model, where)
    check_opsets(model, where)
    for entry in model.opset_import:
        if entry.domain in ("", "ai.onnx") and entry.version > NEWEST_OPSET:
            raise UserError(
                "F003",
                f"the model uses opset {entry.version}, the newest known is {NEWEST_OPSET}",
                where=where,
                hint=f"export it with opset {NEWEST_OPSET} or older, or use onnx.version_converter",
            )
    if len(model.graph.node) > _MAX_NODES:
        raise UserError(
            "F001",
            f"the graph has {len(model.graph.node)} nodes, more than {_MAX_NODES}",
            where=where,
        )
    return model, ExternalData(folder)


def tensor_array(tensor: Any, external: ExternalData) -> np.ndarray[Any, Any]:
    """The read-only array of a TensorProto, without copying where its bytes are stored raw.

    Errors: F001 when the data does not fit the shape, F002 for external data, F005 for an
    unsupported element type.
    """
    where = f"tensor {tensor.name!r}"
    dtype = dtype_of_element(tensor.data_type, where)
    shape = tuple(int(d) for d in tensor.dims)
    if any(d < 0 for d in shape):
        raise UserError("F001", f"negative size in shape {shape}", where=where)
    count = math.prod(shape)
    if tensor.data_location == 1:  # EXTERNAL
        fields = {entry.key: entry.value for entry in tensor.external_data}
        raw: Any = external.read(fields, count * dtype.bytes, tensor.name)
    elif tensor.HasField("raw_data"):
        raw = tensor.raw_data
    else:
        return _from_fields(tensor, dtype, shape, where)
    if len(raw) != count * dtype.bytes:
        raise UserError(
            "F001", f"{len(raw)} bytes for a tensor of {count * dtype.bytes}", where=where
        )
    return np.frombuffer(
        raw, dtype.np.newbyteorder("<") if dtype is not BF16 else dtype.np
    ).reshape(shape)


def _from_fields(
    tensor: Any, dtype: DType, shape: tuple[int, ...], where: str
) -> np.ndarray[Any, Any]:
    count = math.prod(shape)
    if dtype is F32:
        items: Any = tensor.float_data
    elif dtype is F64:
        items = tensor.double_data
    elif dtype.name == "i64":
        items = tensor.int64_data
    elif dtype.name in ("u32", "u64"):
        items = tensor.uint64_data
    else:
        items = tensor.int32_data
    if len(items) != count:
        raise UserError("F001", f"{len(items)} elements for a tensor of {count}", where=where)
    if dtype in (F16, BF16):  # the bits, in the low half of an int32
        return np.array(items, np.int64).astype(np.uint16).view(dtype.np).reshape(shape)
    if dtype.is_float:
        return np.array(items, dtype.np).reshape(shape)
    wide = np.array(items, np.uint64 if dtype.name == "u64" else np.int64)
    return wide.astype(dtype.np).reshape(shape)


def attribute_value(a: Any, external: ExternalData) -> Any:
    """An AttributeProto as a Python value; tensors as arrays, graphs as GraphProto, strings
    decoded.
    """
    match a.type:
        case 1:
            return a.f
        case 2:
            return a.i
        case 3:
            return a.s.decode("utf-8", "replace")
        case 4:
            return tensor_array(a.t, external)
        case 5:
            return a.g
        case 6:
            return list(a.floats)
        case 7:
            return list(a.ints)
        case 8:
            return [s.decode("utf-8", "replace") for s in a.strings]
        case 10:
            return list(a.graphs)
    raise UserError("F005", f"attribute {a.name!r} has an unsupported type {a.type}")
