"""Memory straight from the operating system, on huge pages where that pays.

In: a size. Out: zeroed memory that lives as long as the `Memory`, or an array on memory that is
kept for the next one when nobody refers to it any longer. Invariant: huge pages are asked for,
never needed.
"""

from __future__ import annotations

import ctypes
import mmap
import weakref
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tilewright.errors import TargetError

if TYPE_CHECKING:  # NumPy starts threads of its own when imported; the pool does without
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["HUGE_BYTES", "SCRATCH_BYTES", "Memory", "recycled_array"]

HUGE_BYTES = 2 << 20  # of one huge page
# Scratch memory of this size is worth a huge page: it holds what should stay in L2, where 4 KB
# pages fall into sets at random and throw each other out.
SCRATCH_BYTES = 128 << 10
# What dropped arrays leave behind is kept up to this size: to touch new pages costs more than to
# write them twice.
SPARE_BYTES = 256 << 20
_PRIVATE = mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS


class Memory:
    """Zeroed memory, 4096-byte aligned; from `huge_from` bytes up on huge pages.

    Errors: R014 where the system has not so much.
    """

    def __init__(self, size: int, huge_from: int = HUGE_BYTES) -> None:
        self.size = size
        big = size >= huge_from
        whole = max(size, HUGE_BYTES) if big else size
        try:
            self._pages = mmap.mmap(-1, max(1, whole + (HUGE_BYTES if big else 0)), flags=_PRIVATE)
        except (OSError, OverflowError, ValueError):  # too much for the system, or for an address
            raise TargetError(
                "R014", f"the system has no {size} bytes of memory to give",
                hint="give smaller inputs, or free memory; `explain --memory` shows the need",
            ) from None  # fmt: skip
        self._hold = ctypes.c_char.from_buffer(self._pages)
        start = ctypes.addressof(self._hold)
        self.offset = -start % HUGE_BYTES if big else 0
        self.address = start + self.offset
        if big:
            with suppress(OSError, ValueError):  # a kernel without transparent huge pages
                self._pages.madvise(mmap.MADV_HUGEPAGE, self.offset, whole // 4096 * 4096)

    def array(self, count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
        """The first `count` elements as a NumPy array that keeps the memory alive."""
        from numpy import frombuffer

        return frombuffer(self._pages, dtype, count, self.offset)


_spare: list[Memory] = []  # oldest first; list operations are atomic, finalizers run anywhere


def recycled_array(count: int, dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialized array of one axis, on memory that an array of this size left, or on new one.

    The memory is free again when neither the array nor any view of it is left.
    """
    from numpy import frombuffer

    size = count * dtype.itemsize
    memory = _taken(size) or Memory(size)
    hold = (ctypes.c_char * size).from_address(memory.address)
    weakref.finalize(hold, _leave, memory).atexit = False
    return frombuffer(memoryview(hold), dtype, count)


def _taken(size: int) -> Memory | None:
    """The newest spare memory of exactly this size."""
    for memory in reversed(_spare.copy()):
        if memory.size == size:
            with suppress(ValueError):  # another thread took it meanwhile
                _spare.remove(memory)
                return memory
    return None


def _leave(memory: Memory) -> None:
    """Keep the memory of an array that is gone; the oldest ones make room."""
    if memory.size > SPARE_BYTES:
        return
    _spare.append(memory)
    while sum(m.size for m in _spare.copy()) > SPARE_BYTES:
        with suppress(IndexError):
            _spare.pop(0)
