"""Memory straight from the operating system, on huge pages where that pays.

In: a size. Out: zeroed memory that lives as long as the `Memory`. Invariant: huge pages are asked
for, never needed.
"""

from __future__ import annotations

import ctypes
import mmap
from contextlib import suppress
from typing import TYPE_CHECKING, Any

from tilewright.errors import TargetError

if TYPE_CHECKING:  # NumPy starts threads of its own when imported; the pool does without
    import numpy as np
    from numpy.typing import NDArray

__all__ = ["HUGE_BYTES", "SCRATCH_BYTES", "Memory"]

HUGE_BYTES = 2 << 20  # of one huge page
# Scratch memory of this size is worth a huge page: it holds what should stay in L2, where 4 KB
# pages fall into sets at random and throw each other out.
SCRATCH_BYTES = 128 << 10
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
