"""How native code reads PyTorch's tensors without a call into Python.

In: a tensor, once PyTorch is imported. Out: a `TensorLayout`. Invariant: offsets are found by
looking at tensors of every kind that matters, never assumed; where one of them is not found, or
not alone, there is no layout, and calls with tensors go through Python.

Size, strides and data are asked of the type's DLPack table. It does not tell what a tensor's keys
do (that its memory stands for its negative, is sparse, belongs to a transformation) and whether
gradients belong to it; asked of Python, those two cost more than all else of a call.
"""

from __future__ import annotations

import ctypes
import sys
from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

__all__ = ["TensorLayout", "tensor_layout"]

_WORDS = 24  # of the C++ object that are looked at; it is larger


@dataclass(frozen=True)
class TensorLayout:
    """Addresses of the type and of `int read(PyObject *, DLTensor *)` for exactly this type; where
    an object holds its C++ tensor, and this its keys and what gradients need (null: none); the
    keys of a dense tensor of the CPU, made in inference mode or not."""

    type: int
    read: int
    tensor: int
    keys: int
    gradients: int
    plain: tuple[int, int]


def tensor_layout(value: Any) -> TensorLayout | None:
    """The layout for objects of exactly this value's type; None where it is no torch.Tensor."""
    torch: Any = sys.modules.get("torch")
    return _layout() if type(value) is getattr(torch, "Tensor", None) else None


@lru_cache(maxsize=1)
def _layout() -> TensorLayout | None:
    torch: Any = sys.modules["torch"]
    read = _reader(torch.Tensor)
    try:
        first = torch.zeros(3)
        with torch.inference_mode():
            without_versions = torch.zeros(2, 5)
        dense = [first, torch.ones(2, 2, dtype=torch.int32), without_versions]
        tracked = [torch.zeros(3, requires_grad=True), torch.zeros((), requires_grad=True)]
        every = [*dense, *tracked, torch._neg_view(torch.zeros(4))]
        raw = [torch._C._dispatch_keys(t).raw_repr() for t in every]
        inner = [t._cdata for t in every]
    except (AttributeError, TypeError, RuntimeError):
        return None
    tensor = _only([_words(id(t), torch.Tensor.__basicsize__ // 8) for t in every], inner)
    if read is None or tensor is None:
        return None
    held = [_words(address, _WORDS) for address in inner]
    keys = _only(held, raw)
    gradients = [
        k
        for k in range(_WORDS)
        if not any(w[k] for w in held[: len(dense)]) and all(w[k] for w in held[len(dense) : 5])
    ]
    if keys is None or len(gradients) != 1 or raw[5] in (raw[0], raw[2]):
        return None
    return TensorLayout(
        id(torch.Tensor), read, tensor, keys, 8 * gradients[0], (raw[0], raw[2])
    )


def _reader(kind: Any) -> int | None:
    """The function of a type's DLPack 1.x table that describes a tensor without owning it."""
    table = getattr(kind, "__dlpack_c_exchange_api__", None)
    if type(table).__name__ != "PyCapsule":
        return None
    pointer = ctypes.PYFUNCTYPE(ctypes.c_void_p, ctypes.py_object, ctypes.c_char_p)(
        ("PyCapsule_GetPointer", ctypes.pythonapi)
    )(table, b"dlpack_exchange_api")
    words = _words(pointer, 6)  # version, older table, allocator, three functions
    return words[5] if words[0] & 0xFFFFFFFF == 1 and words[5] else None


def _words(address: int, count: int) -> Sequence[int]:
    return list((ctypes.c_uint64 * count).from_address(address))


def _only(held: Sequence[Sequence[int]], wanted: Sequence[int]) -> int | None:
    """The offset at which each of `held` has what is wanted of it, where there is just one."""
    found = [
        k
        for k in range(len(held[0]))
        if all(words[k] == value for words, value in zip(held, wanted, strict=True))
    ]
    return 8 * found[0] if len(found) == 1 else None
