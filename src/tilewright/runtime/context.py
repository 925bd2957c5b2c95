"""Call contexts: the memory one call of a model runs in.

In: a `Binding`, a model at fixed sizes: its arrays, phases with the meaning of each args slot,
arena and scratch sizes. Out: a `CallContext`: step table, args arrays, arena, per-thread scratch,
and for each output a few arrays to return.
Invariant: everything of a call that is not the caller's lives in its context, so calls with two
contexts never meet; an array that anybody else still refers to is never written again.
"""

from __future__ import annotations

import ctypes
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.pages import HUGE_BYTES, SCRATCH_BYTES, Memory, recycled_array
from tilewright.runtime.pool import Context, NativeStep, Step, share_threads, write_step

__all__ = [
    "RING",
    "ArrayType",
    "Binding",
    "CallContext",
    "Memory",
    "NativeContext",
    "PhaseCall",
    "Slot",
    "aligned_array",
]

RING = 2  # arrays kept per output: the one that the caller still holds, and one to write
_SLAB_BYTES = 4096
_TWO_RESULTS = struct.Struct("<8Q")  # object, address of its data, flags, unused; twice


@dataclass(frozen=True)
class ArrayType:
    """An input or output. A size is a number, or the name of a symbol; None where only the binding
    knows it (a size that is an expression).

    linear: (axis, symbol, slope, rest) of sizes that are slope * symbol + rest.
    """

    name: str
    dtype: np.dtype[Any]
    shape: tuple[int | str | None, ...]
    linear: tuple[tuple[int, str, int, int], ...] = ()


@dataclass(frozen=True)
class Slot:
    """One 8-byte entry of an args array.

    `value` is the number of the input or output, a byte offset into the arena, an absolute address
    (constants), or the number itself (symbolic sizes).
    """

    kind: Literal["input", "output", "arena", "address", "value"]
    value: int


@dataclass(frozen=True)
class PhaseCall:
    """One phase of a kernel in a model: what to run, on which args, over how many chunks; or a step
    of the walker's own (see `runtime.pool.Step`).
    """

    function: int
    slots: tuple[Slot, ...]
    chunks: int = 1
    serial: bool = False
    grain: int = 0
    control: str = ""
    bytes: int = 0


@dataclass(frozen=True)
class Binding:
    """A model at fixed sizes: shapes hold numbers only. `scratch_bytes` is per thread.

    `fills`: byte offsets into the arena and what stands there from the beginning (halos).
    `failures`: where steps that call Python leave their exceptions; None where there are none.
    """

    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    phases: tuple[PhaseCall, ...]
    arena_bytes: int = 0
    scratch_bytes: int = 0
    fills: tuple[tuple[int, NDArray[Any]], ...] = ()
    failures: list[Any] | None = None


def aligned_array(shape: Sequence[int], dtype: np.dtype[Any]) -> NDArray[Any]:
    """An uninitialized array that starts on a 64-byte boundary."""
    count = 1
    for size in shape:
        count *= size
    size_bytes = count * dtype.itemsize
    if size_bytes >= HUGE_BYTES:
        return recycled_array(count, dtype).reshape(shape)
    raw = np.empty(size_bytes + 64, np.uint8)
    start = -raw.ctypes.data % 64
    return raw[start : start + size_bytes].view(dtype).reshape(shape)


def _new_arrays(shape: Sequence[int], dtype: np.dtype[Any]) -> list[tuple[NDArray[Any], int, int]]:
    """Arrays with their addresses and flags; small ones are cut from one block."""
    first = aligned_array(shape, dtype)
    stride = -(-first.nbytes // 64) * 64
    count = _SLAB_BYTES // max(64, stride)
    if count < 2:
        return [(first, first.ctypes.data, first.flags.num)]
    raw = aligned_array([count * stride], np.dtype(np.uint8))
    address = raw.ctypes.data
    arrays = [np.ndarray(shape, dtype, raw, stride * k) for k in range(count)]
    flags = arrays[0].flags.num
    return [(array, address + stride * k, flags) for k, array in enumerate(arrays)]


class NativeContext(Context):
    """The head of a context: what `tw_run` reads, then what `tw_call` does."""

    _fields_ = [  # noqa: RUF012 (read by ctypes when the class is made)
        ("busy", ctypes.c_int64),
        ("dims", ctypes.c_uint64),  # sizes of every axis of every input, then output
        ("bytes", ctypes.c_uint64),  # of each input, then output
        ("places", ctypes.c_uint64),  # NativePlaces of each input, then output
        ("ring", ctypes.c_uint64),  # RING results of each output
        ("addresses", ctypes.c_uint64),  # room for the address of each input, then output
    ]


class NativePlaces(ctypes.Structure):
    """Where the address of one array is to be written."""

    _fields_ = [("count", ctypes.c_int64), ("addresses", ctypes.c_uint64)]


# An array that may be returned, and what it looked like when it was made.
_Result = tuple[NDArray[Any] | None, tuple[int, int, int, int]]
_NO_RESULT: _Result = (None, (0, 0, 0, 0))


class CallContext:
    """Memory for one call at a time; `native.busy` says whether one is running."""

    def __init__(self, binding: Binding, threads: int) -> None:
        share_threads()
        self.binding = binding
        self.threads = threads
        self._arena = Memory(binding.arena_bytes) if binding.arena_bytes else None
        for offset, values in binding.fills:
            assert self._arena is not None
            raw = self._arena.array(binding.arena_bytes, np.dtype(np.uint8))
            raw[offset : offset + values.nbytes].view(values.dtype)[...] = values
        stride = -(-binding.scratch_bytes // 128) * 128
        self._scratch = Memory(stride * threads, SCRATCH_BYTES) if stride else None
        self.memory_bytes = binding.arena_bytes + stride * threads
        self.shape_key = tuple(array.shape for array in binding.inputs)
        arrays = (*binding.inputs, *binding.outputs)
        self.places: list[list[int]] = [[] for _ in arrays]
        self._args = [self._fill_args(slots) for slots in self._distinct_slots()]
        self._steps = self._fill_steps()
        self._dims = (ctypes.c_int64 * (1 + sum(len(a.shape) for a in arrays)))(
            *(int(size or 0) for array in arrays for size in array.shape)
        )
        self._bytes = (ctypes.c_int64 * (1 + len(arrays)))(*map(_array_bytes, arrays))
        self._addresses = (ctypes.c_uint64 * (1 + len(arrays)))()
        self._place_lists = [(ctypes.c_uint64 * len(place))(*place) for place in self.places]
        self._places = (NativePlaces * (1 + len(arrays)))(
            *(NativePlaces(len(place), ctypes.addressof(place)) for place in self._place_lists)
        )
        self.rings: list[tuple[_Result, _Result]] = [(_NO_RESULT, _NO_RESULT)] * len(
            binding.outputs
        )
        self._stocks: list[list[tuple[NDArray[Any], int, int]]] = [[] for _ in binding.outputs]
        self._native_ring = ctypes.create_string_buffer(
            _TWO_RESULTS.size * (1 + len(binding.outputs))
        )
        self.native = NativeContext(
            steps=ctypes.addressof(self._steps),
            count=len(binding.phases),
            scratch=self._scratch.address if self._scratch else 0,
            scratch_stride=stride,
            threads=threads,
            dims=ctypes.addressof(self._dims),
            bytes=ctypes.addressof(self._bytes),
            places=ctypes.addressof(self._places),
            ring=ctypes.addressof(self._native_ring),
            addresses=ctypes.addressof(self._addresses),
        )
        self.address = ctypes.addressof(self.native)

    def _distinct_slots(self) -> list[tuple[Slot, ...]]:
        return list(dict.fromkeys(phase.slots for phase in self.binding.phases))

    def _fill_args(self, slots: tuple[Slot, ...]) -> ctypes.Array[ctypes.c_uint64]:
        """The args array of one kernel; notes where addresses of inputs and outputs belong."""
        args = (ctypes.c_uint64 * max(1, len(slots)))()
        for index, slot in enumerate(slots):
            place = ctypes.addressof(args) + 8 * index
            if slot.kind == "input":
                self.places[slot.value].append(place)
            elif slot.kind == "output":
                self.places[len(self.binding.inputs) + slot.value].append(place)
            elif slot.kind == "arena":
                assert self._arena is not None
                args[index] = self._arena.address + slot.value
            else:
                args[index] = slot.value  # wraps negative numbers to their 64 bits
        return args

    def _fill_steps(self) -> ctypes.Array[NativeStep]:
        where = {
            slots: ctypes.addressof(args)
            for slots, args in zip(self._distinct_slots(), self._args, strict=True)
        }
        steps = (NativeStep * max(1, len(self.binding.phases)))()
        for native, phase in zip(steps, self.binding.phases, strict=False):
            args = where[phase.slots]
            step = Step(
                phase.function, args, phase.chunks, phase.serial, phase.grain,
                phase.control, phase.bytes,
            )  # fmt: skip
            write_step(native, step, self.threads)
        return steps

    def place(self, number: int, address: int) -> None:
        """Make array `number` (inputs first, then outputs) the one at `address`."""
        for place in self.places[number]:
            ctypes.c_uint64.from_address(place).value = address

    def new_result(self, output: int) -> NDArray[Any]:
        """A fresh array for `output`, kept for reuse once nobody else refers to it."""
        stock = self._stocks[output]
        if not stock:
            kind = self.binding.outputs[output]
            stock += _new_arrays([int(size or 0) for size in kind.shape], kind.dtype)
        array, address, flags = stock.pop()
        # The older of the two leaves: its holder, if any, now owns it alone.
        ring = self.rings[output]
        newest = (array, (id(array), address, flags, 0))
        previous = self.rings[output] = (newest, ring[0])
        _TWO_RESULTS.pack_into(
            self._native_ring, output * _TWO_RESULTS.size, *newest[1], *previous[1][1]
        )
        return array

    def newest_result(self, output: int) -> NDArray[Any] | None:
        """The array that `new_result` made last."""
        return self.rings[output][0][0]


def _array_bytes(array: ArrayType) -> int:
    count = array.dtype.itemsize
    for size in array.shape:
        count *= int(size or 0)
    return count
