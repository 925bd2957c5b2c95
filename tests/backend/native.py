"""Runs emitted nests natively, each buffer flush against an unmapped page.

In: a nest, a target, arrays. Out: the arrays after the run. Invariant: an access one byte past the end (or, with
`at_start`, before the start) of a buffer is a segmentation fault.
"""

from __future__ import annotations

import ctypes
import mmap
from collections.abc import Mapping
from typing import Any

import numpy as np

from tilewright.codegen.llvm import chunk_count, emit_llvm, function_name, scratch_bytes
from tilewright.ir.nest import LoopNest
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_assembly, emit_object, set_kernel_options
from tilewright.runtime.jit import load_object

Array = np.ndarray[Any, np.dtype[Any]]
_PAGE = mmap.PAGESIZE
_libc = ctypes.CDLL(None, use_errno=True)

def assembly(text: str, target: Target) -> str:
    """Assembly of LLVM text, as it is shipped."""
    set_kernel_options()
    return emit_assembly(text, target)


def build(text: str, target: Target) -> bytes:
    """An ELF object of LLVM text, as it is shipped."""
    set_kernel_options()
    return emit_object(text, target)


class Guarded:
    """Memory whose end (or start) touches an unmapped page."""

    def __init__(self, source: Array, at_start: bool = False) -> None:
        size = max(1, source.nbytes)
        pages = -(-size // _PAGE)
        self.map = mmap.mmap(-1, (pages + 2) * _PAGE)
        self.base = ctypes.addressof(ctypes.c_char.from_buffer(self.map))
        for at in (0, pages + 1):
            if _libc.mprotect(ctypes.c_void_p(self.base + at * _PAGE), _PAGE, 0):
                raise OSError("mprotect")
        offset = _PAGE if at_start else _PAGE * (pages + 1) - source.nbytes
        raw = np.frombuffer(
            (ctypes.c_char * source.nbytes).from_address(self.base + offset), np.uint8
        )
        self.address = self.base + offset
        self.array: Array = raw.view(source.dtype)
        self.array[:] = source


class Kernel:
    """A loaded nest."""

    def __init__(self, nest: LoopNest, target: Target, text: str | None = None) -> None:
        self.nest = nest
        self.library = load_object(build(text or emit_llvm(nest, target), target))
        names = [function_name(nest, k) for k in range(len(nest.phases))]
        kind = ctypes.CFUNCTYPE(
            None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p
        )
        self.functions = [kind(self.library.address(name)) for name in names]

    def run(
        self, addresses: Mapping[str, int], dims: Mapping[str, int], at_once: int = 1 << 60
    ) -> None:
        """All phases; `at_once` chunks a call."""
        placed = [b for b in self.nest.buffers if b.place != "scratch"]
        slots = [addresses[b.name] for b in placed] + [dims[d] for d in self.nest.dims]
        args = (ctypes.c_int64 * (len(slots) or 1))(*slots)
        size = scratch_bytes(self.nest, dims)
        memory = np.zeros(size + 64, np.uint8)
        at = -(-memory.ctypes.data // 64) * 64
        scratch = Guarded(np.zeros(size, np.uint8)) if size else None
        if scratch is not None and scratch.address % 64 == 0:
            at = scratch.address
        for k, f in enumerate(self.functions):
            count = chunk_count(self.nest, k, dims)
            for lo in range(0, count, at_once):
                f(args, lo, min(count, lo + at_once), at)


def run_native(
    nest: LoopNest, target: Target, buffers: Mapping[str, Array], dims: Mapping[str, int],
    at_start: bool = False, at_once: int = 1 << 60,
) -> dict[str, Array]:  # fmt: skip
    """Copies of the buffers after a native run."""
    placed = {k: Guarded(v, at_start) for k, v in buffers.items()}
    Kernel(nest, target).run({k: g.address for k, g in placed.items()}, dims, at_once)
    return {k: g.array.copy() for k, g in placed.items()}
