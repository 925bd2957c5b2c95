"""Arrays of other libraries as NumPy's, and back, over the same memory.

In: anything with the buffer protocol, `__dlpack__` or `__array_interface__`. Out: NumPy arrays; for
results, arrays of the caller's library. Invariants: nothing is imported for it; memory is copied
only where a library gives no other way, never for what is written; a tensor that PyTorch would
differentiate is refused, as its gradients would be lost.
"""

from __future__ import annotations

import sys
from typing import Any

import ml_dtypes
import numpy as np

from tilewright.errors import UserError

__all__ = ["array_of", "as_kind", "dlpack_code", "memory_of"]

Array = np.ndarray[Any, np.dtype[Any]]

_NUMPY = (np.ndarray, np.generic, memoryview, bytes, bytearray)
_BFLOAT16 = np.dtype(ml_dtypes.bfloat16)
_CODES = {"i": 0, "u": 1, "f": 2, "b": 6}  # of DLPack, by NumPy's kind; bfloat16 is 4
_HINT = "pass a NumPy array, or an object with a buffer or __dlpack__"


def array_of(name: str, value: Any) -> Array:
    """`value` as an array over its memory, strides as they are; `name` is for errors.

    Errors: UserError R005 for what is no array of numbers in memory of the CPU.
    """
    if isinstance(value, _NUMPY):
        return np.asarray(value)
    if not hasattr(value, "__dlpack__"):
        if hasattr(value, "__array_interface__"):
            return np.asarray(value)
        kind = f"a {type(value).__module__}.{type(value).__qualname__}"
        raise UserError("R005", f"{name} is {kind}", hint=_HINT)
    try:
        if _is_torch(value):
            value = value.clone() if value._is_zerotensor() else value.resolve_neg()
            value, is_bfloat16 = _without_gradients(value)
            found = np.from_dlpack(value)
            return found.view(_BFLOAT16) if is_bfloat16 else found
        if str(getattr(value, "dtype", "")) == "bfloat16":  # NumPy takes no such memory by DLPack
            return np.asarray(value)
        return np.from_dlpack(value)
    except (BufferError, RuntimeError, TypeError, ValueError, AttributeError) as error:
        raise UserError(
            "R005", f"{name} cannot be read through DLPack: {str(error).splitlines()[0]}",
            hint="give an array in the CPU's memory; of PyTorch: x.detach().cpu()",
        ) from None  # fmt: skip


def memory_of(out: Any) -> Any:
    """`out=` arrays of another library as NumPy arrays that write the same memory.

    Errors: UserError R006 for what cannot be written so.
    """
    if isinstance(out, tuple | list):
        held = [memory_of(x) for x in out]
        return out if all(a is b for a, b in zip(held, out, strict=True)) else tuple(held)
    if isinstance(out, np.ndarray) or not hasattr(out, "__dlpack__"):
        return out
    try:
        if not _is_torch(out):
            return np.from_dlpack(out)
        # NumPy takes what DLPack gives for read-only.
        if out.is_neg() or out._is_zerotensor():
            raise BufferError("it stands for the negative of its memory, or for zeros")
        value, is_bfloat16 = _without_gradients(out)
        return value.numpy().view(_BFLOAT16) if is_bfloat16 else value.numpy()
    except (BufferError, RuntimeError, TypeError, ValueError) as error:
        raise UserError(
            "R006", f"out= cannot be written: {str(error).splitlines()[0]}",
            hint="give an array in the CPU's memory that no gradients belong to",
        ) from None  # fmt: skip


def as_kind(first: Any, array: Array) -> Any:
    """`array` as the library of `first` has arrays, sharing its memory; NumPy's where it has none.

    The library is asked by the array API standard, or is PyTorch.
    """
    if isinstance(first, _NUMPY):
        return array
    if _is_torch(first):
        torch: Any = sys.modules["torch"]
        if array.dtype == _BFLOAT16:
            return torch.from_dlpack(array.view(np.uint16)).view(torch.bfloat16)
        return torch.from_dlpack(array)
    namespace = getattr(first, "__array_namespace__", None)
    if namespace is None:
        return array
    library = namespace()
    return library.asarray(array) if array.dtype == _BFLOAT16 else library.from_dlpack(array)


def dlpack_code(dtype: np.dtype[Any]) -> int:
    """A dtype as the four bytes of a DLDataType (kind, bits, lanes); where DLPack has none, bytes
    that no tensor has."""
    code = 4 if dtype == _BFLOAT16 else _CODES.get(dtype.kind, 0xFF)
    return code | 8 * dtype.itemsize << 8 | 1 << 16


def _is_torch(value: Any) -> bool:
    torch: Any = sys.modules.get("torch")
    return torch is not None and isinstance(value, getattr(torch, "Tensor", ()))


def _without_gradients(tensor: Any) -> tuple[Any, bool]:
    """A tensor as DLPack gives it away, and whether it stands for numbers of bfloat16.

    Errors: BufferError where gradients would be lost.
    """
    torch: Any = sys.modules["torch"]
    if tensor.requires_grad:
        if torch.is_grad_enabled():
            raise BufferError(
                "gradients do not flow through this call (detach the tensor, or use torch.no_grad)"
            )
        tensor = tensor.detach()
    if tensor.dtype is torch.bfloat16:
        return tensor.view(torch.uint16), True
    return tensor, False
