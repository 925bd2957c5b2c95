"""Artifact: everything a model at fixed sizes needs to run, as data.

In: objects, constants and a step list from the linker. Out: a `Binding` for the caller. Invariants:
an Artifact holds no addresses, so it can be written to a file; making a Binding of it compiles
nothing.
"""

from __future__ import annotations

import ctypes
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, Protocol

import numpy as np

from tilewright.errors import InternalError, UserError
from tilewright.ir.program import Attribute
from tilewright.runtime.context import ArrayType, Binding, PhaseCall, Slot
from tilewright.runtime.jit import LoadedObject, load_object
from tilewright.runtime.pages import Memory

__all__ = [
    "Argument",
    "Artifact",
    "ArtifactStep",
    "CallBack",
    "Fill",
    "Parts",
    "bind_artifact",
    "load_parts",
]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Argument:
    """One slot: kind input, output, const (number), arena (byte offset), value (the number)."""

    kind: str
    value: int


@dataclass(frozen=True)
class CallBack:
    """An extern: its NumPy meaning over row-major arrays."""

    function: str
    attributes: tuple[tuple[str, Attribute], ...]
    args: tuple[
        tuple[str, tuple[int, ...]], ...
    ]  # dtype name and shape of each argument, then of each result
    results: int


@dataclass(frozen=True)
class ArtifactStep:
    """One phase: function `symbol` of object `object`; or a callback; or with `control` a step of
    the walker's own, where `chunks` is the step to go on with, `count` and `bytes` are its numbers.
    """

    object: int
    symbol: str
    arguments: tuple[Argument, ...]
    chunks: int
    callback: CallBack | None = None
    control: str = ""
    count: int = 0
    bytes: int = 0


@dataclass(frozen=True)
class Fill:
    """A part of the arena that is filled once, when a context is made: what a halo holds."""

    offset: int
    dtype: str
    count: int
    value: float | int | bool


@dataclass(frozen=True)
class Artifact:
    """Objects, flat constants in their final layout, steps, and the arrays of the border."""

    inputs: tuple[ArrayType, ...]
    outputs: tuple[ArrayType, ...]
    objects: tuple[bytes, ...]
    constants: tuple[Array, ...]
    steps: tuple[ArtifactStep, ...]
    arena_bytes: int
    scratch_bytes: int
    fills: tuple[Fill, ...] = ()
    kept: list[Any] = field(default_factory=list, compare=False, repr=False)
    failures: list[UserError] = field(default_factory=list, compare=False, repr=False)

    @property
    def has_callbacks(self) -> bool:
        """Does it call back into Python?"""
        return any(s.callback is not None for s in self.steps)


class Placed(Protocol):
    """Something that lies in memory."""

    @property
    def address(self) -> int: ...


@dataclass(frozen=True)
class Parts:
    """Objects and constants in memory, which artifacts of one model at several sizes share."""

    objects: Sequence[LoadedObject]
    constants: Sequence[Placed]


def load_parts(a: Artifact) -> Parts:
    """Load the objects and constants of an artifact."""
    return Parts([load_object(o) for o in a.objects], [_place_constant(c) for c in a.constants])


def bind_artifact(
    a: Artifact, constants: Sequence[Placed] | None = None, parts: Parts | None = None
) -> Binding:
    """Load the objects and constants. Errors: X001 for bad slots.

    constants, parts: they are in memory already, which the caller keeps alive.
    """
    loaded = parts.objects if parts is not None else [load_object(o) for o in a.objects]
    places: Sequence[Placed] = constants or (
        parts.constants if parts is not None else [_place_constant(c) for c in a.constants]
    )
    a.kept.extend([loaded, places])
    phases = []
    for s in a.steps:
        slots = []
        for x in s.arguments:
            if x.kind == "const":
                slots.append(Slot("address", places[x.value].address))
            elif x.kind in ("input", "output", "arena", "value"):
                slots.append(Slot(x.kind, x.value))  # type: ignore[arg-type]
            else:
                raise InternalError("X001", f"unknown slot kind {x.kind!r}")
        if s.control:
            phases.append(PhaseCall(0, tuple(slots), s.chunks, True, s.count, s.control, s.bytes))
        elif s.callback is not None:
            function = _callback(s.callback, a)
            phases.append(PhaseCall(function, tuple(slots), 1, True))
        else:
            phases.append(
                PhaseCall(loaded[s.object].address(s.symbol), tuple(slots), s.chunks, s.chunks <= 1)
            )
    return Binding(
        a.inputs,
        a.outputs,
        tuple(phases),
        a.arena_bytes,
        a.scratch_bytes,
        tuple(
            (f.offset, np.full(f.count, f.value, np.dtype(f.dtype)))
            for f in a.fills
            if f.value != 0
        ),
        a.failures if a.has_callbacks else None,
    )


@dataclass(frozen=True)
class _Shared:
    """A constant that stays where it lies; `held` keeps it there."""

    held: Array

    @property
    def address(self) -> int:
        return int(self.held.ctypes.data)


def _place_constant(c: Array) -> Placed:
    """The constant in aligned memory: a copy, but for a read-only array that is aligned already."""
    if c.size and not c.flags.writeable and c.flags.c_contiguous and c.ctypes.data % 64 == 0:
        return _Shared(c)
    memory = Memory(max(64, c.nbytes))
    memory.array(c.size, c.dtype)[...] = c
    return memory


_ABI = ctypes.CFUNCTYPE(None, ctypes.c_void_p, ctypes.c_int64, ctypes.c_int64, ctypes.c_void_p)


def _callback(c: CallBack, a: Artifact) -> int:
    """A native function that runs an extern's NumPy meaning on the arrays of its slots."""
    from tilewright.ir.dtypes import DTYPES
    from tilewright.ir.externs import EXTERNS, INTO

    meaning: Callable[..., Any] = EXTERNS[c.function]
    into = INTO.get(c.function)

    def run(args: int, lo: int, hi: int, scratch: int) -> None:
        arrays = []
        for k, (name, shape) in enumerate(c.args):
            address = ctypes.c_uint64.from_address(args + 8 * k).value
            dtype = DTYPES[name].np
            count = int(np.prod(shape, dtype=np.int64))
            raw = (ctypes.c_uint8 * max(1, count * dtype.itemsize)).from_address(address)
            arrays.append(np.frombuffer(memoryview(raw), dtype, count).reshape(shape))
        given, wanted = arrays[: len(arrays) - c.results], arrays[len(arrays) - c.results :]
        try:
            with np.errstate(all="ignore"):
                if into is not None:
                    into(*arrays, **dict(c.attributes))
                    return
                found = meaning(*given, **dict(c.attributes))
            results = found if isinstance(found, tuple | list) else (found,)
            for got, out in zip(results, wanted, strict=True):
                out[...] = np.asarray(got).reshape(out.shape)
        except (ValueError, TypeError, IndexError, ArithmeticError) as e:
            # No exception passes through native code: the caller of the model raises it.
            a.failures.append(UserError("P001", f"extern {c.function} failed: {e}"))
        except UserError as e:
            a.failures.append(e)

    function = _ABI(run)
    a.kept.append(function)
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address
