"""Put memory out of every cache of the machine, line by line.

In: an address and a size. Out: `evict`. Invariant: what is stored there does not change. CLFLUSH
writes a changed line back and drops it from the caches of all cores, and any program may use it
(Intel SDM 2). LLVM has no such operation for other CPUs: there memory stays where it is.
"""

from __future__ import annotations

import ctypes
import platform
from functools import lru_cache

from tilewright.runtime.build import build_shared
from tilewright.runtime.jit import load_object

__all__ = ["evict"]

_TEXT = """
declare void @llvm.x86.sse2.clflush(ptr)
declare void @llvm.x86.sse2.mfence()
define void @tw_evict(ptr %first, ptr %end) {
entry:
  br label %loop
loop:
  %p = phi ptr [ %first, %entry ], [ %next, %loop ]
  call void @llvm.x86.sse2.clflush(ptr %p)
  %next = getelementptr i8, ptr %p, i64 64
  %more = icmp ult ptr %next, %end
  br i1 %more, label %loop, label %done
done:
  call void @llvm.x86.sse2.mfence()
  ret void
}
"""


def evict(address: int, size_bytes: int) -> None:
    """Drop the lines of `size_bytes` from `address` on from all caches, where the CPU can."""
    if size_bytes > 0 and platform.machine() == "x86_64":
        _evict()(address, address + size_bytes)


@lru_cache(maxsize=1)
def _evict() -> ctypes._CFunctionType:
    loaded = load_object(build_shared(_TEXT)).keep_forever()
    return ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_void_p)(loaded.address("tw_evict"))
