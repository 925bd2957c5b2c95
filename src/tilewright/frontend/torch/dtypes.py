"""Element types, devices and memory of PyTorch, as ours.

In: a torch dtype or tensor. Out: `DType`, or a NumPy array that shares the tensor's memory.
Invariant: what has no counterpart here (complex, quantized, sparse, other devices) gives None.
"""

from __future__ import annotations

from typing import Any

import torch

from tilewright.frontend.values import Array
from tilewright.ir.dtypes import (
    BF16,
    BOOL,
    F16,
    F32,
    F64,
    I8,
    I16,
    I32,
    I64,
    U8,
    U16,
    U32,
    U64,
    DType,
)

__all__ = ["TORCH_DTYPES", "array_of", "dtype_of_torch", "is_plain"]

TORCH_DTYPES: dict[DType, Any] = {
    BOOL: torch.bool,
    I8: torch.int8,
    U8: torch.uint8,
    I16: torch.int16,
    U16: torch.uint16,
    I32: torch.int32,
    U32: torch.uint32,
    I64: torch.int64,
    U64: torch.uint64,
    F16: torch.float16,
    BF16: torch.bfloat16,
    F32: torch.float32,
    F64: torch.float64,
}
_OURS = {theirs: ours for ours, theirs in TORCH_DTYPES.items()}


def dtype_of_torch(dtype: Any) -> DType | None:
    """Our element type, or None where there is none."""
    return _OURS.get(dtype)


def is_plain(t: Any) -> bool:
    """Is it a dense tensor in this machine's memory with an element type of ours?"""
    return (
        isinstance(t, torch.Tensor)
        and t.device.type == "cpu"
        and t.layout is torch.strided
        and t.dtype in _OURS
        and not t.is_conj()
        and not t.is_neg()
    )


def array_of(t: Any) -> Array:
    """A read-only NumPy view of a tensor's memory; strided as the tensor is."""
    held = t.detach()
    if held.dtype is torch.bfloat16:
        array: Array = held.view(torch.int16).numpy().view(BF16.np)
    else:
        array = held.numpy()
    array.flags.writeable = False
    return array
