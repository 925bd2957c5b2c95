"""Arrays between unmapped pages, and memory that nothing has written yet.

In: arrays, sizes. Out: copies whose end or start touches a page that may not be touched. Invariant:
an access one element outside on that side ends the process with SIGSEGV.
"""

from __future__ import annotations

import ctypes
import mmap
from typing import Any

import numpy as np

__all__ = ["guarded", "poison", "poisoned"]

Array = np.ndarray[Any, np.dtype[Any]]
_PAGE = mmap.PAGESIZE


def poison(flat: Array) -> None:
    """Fill a contiguous array: NaN for floats, a pattern of bytes for all else."""
    if flat.size:
        bytes_ = flat.reshape(-1).view(np.uint8)
        bytes_[:] = 0xA5 if flat.dtype.kind in "iu" else 1 if flat.dtype.kind == "b" else 0xFF


def poisoned(size: int, dtype: np.dtype[Any]) -> Array:
    """A flat array that holds no result."""
    flat = np.empty(size, dtype)
    poison(flat)
    return flat


def guarded(array: Array, alignment: int = 1, at_start: bool = False) -> tuple[int, Array, object]:
    """Address, copy and memory of an array whose end (or start) touches an unmapped page, as near
    as `alignment` in bytes allows. The copy is valid as long as the memory is held.
    """
    libc = ctypes.CDLL(None, use_errno=True)
    size = array.nbytes
    pages = max(1, -(-size // _PAGE))
    memory = mmap.mmap(-1, (pages + 2) * _PAGE)
    base = ctypes.addressof(ctypes.c_char.from_buffer(memory))
    for at in (0, pages + 1):
        if libc.mprotect(ctypes.c_void_p(base + at * _PAGE), ctypes.c_size_t(_PAGE), 0):
            raise OSError(ctypes.get_errno(), "mprotect")
    end = _PAGE * (pages + 1) - size
    address = base + (_PAGE if at_start else end - end % max(1, alignment))
    raw = np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))
    copy: Array = raw.view(array.dtype).reshape(array.shape)
    copy[...] = array
    return address, copy, memory
