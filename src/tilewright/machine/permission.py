"""Leave of the operating system to use matrix registers.

In: nothing, or the bytes of an object. Out: whether this process may use them, whether the object
does. Invariant: asked once for each process; Linux gives the leave to the whole process with all
its threads and to what it forks, and takes it away when another program is started in it.
"""

from __future__ import annotations

import ctypes
import platform
import sys
from functools import lru_cache

__all__ = ["ARCH_PRCTL", "REQUEST", "TILE_DATA", "matrices_permitted", "uses_matrices"]

ARCH_PRCTL = 158  # number of the system call on x86-64
REQUEST = 0x1023  # ARCH_REQ_XCOMP_PERM
TILE_DATA = 18  # number of the state component
_RELEASE = b"\xc4\xe2\x78\x49\xc0"  # tilerelease, at the end of every function that uses them


def uses_matrices(code: bytes) -> bool:
    """Whether an object holds code for matrix registers."""
    return _RELEASE in code


@lru_cache(maxsize=1)
def matrices_permitted() -> bool:
    """Ask for the tile registers of AMX; False where the kernel does not know them, a filter of
    system calls forbids the question, or the machine is another one.
    """
    if sys.platform != "linux" or platform.machine() != "x86_64":
        return False
    try:
        call = ctypes.CDLL(None).syscall
    except (OSError, AttributeError):  # no C library that can be asked
        return False
    call.restype = ctypes.c_long
    numbers = [ctypes.c_long(x) for x in (ARCH_PRCTL, REQUEST, TILE_DATA)]
    return int(call(*numbers)) == 0
