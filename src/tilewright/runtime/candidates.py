"""What is measured: candidates, their buffers, the expected outputs, and the answers, as data.

In: objects and step lists. Out: frozen values that both ends of the measuring pipe read and write
as JSON beside content-addressed blobs; `buffer_values`, the data a buffer starts with.
Invariant: nothing here is code; equal specs give equal buffer contents in every process.
"""

from __future__ import annotations

import hashlib
import statistics
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any, Literal

import numpy as np
from numpy.typing import NDArray

from tilewright.runtime.wire import Header

__all__ = [
    "Buffer",
    "Candidate",
    "CandidateStep",
    "Expected",
    "Fill",
    "Plan",
    "Timing",
    "buffer_values",
]


@dataclass(frozen=True)
class Fill:
    """How a buffer starts: "random" values, "zeros", given "values", or "garbage".

    `dtype` is a NumPy name, or "bfloat16". Random floats are standard normal times `scale`; random
    integers are uniform in [low, high). Garbage is all ones: NaN, or a huge number.
    """

    kind: Literal["random", "zeros", "values", "garbage"]
    dtype: str = "uint8"
    seed: int = 0
    scale: float = 1.0
    low: int = -100
    high: int = 101
    values: bytes = field(default=b"", repr=False)


@dataclass(frozen=True)
class Buffer:
    """Memory of one argument. "input" is read only; "output" may be verified; "scratch" is the
    kernel's own (an arena part). `align` is honoured when guard pages decide where it lies. A
    `cold` one is put out of the caches before each timed run."""

    size_bytes: int
    role: Literal["input", "output", "scratch"]
    fill: Fill = field(default_factory=lambda: Fill("garbage"))
    align: int = 64
    cold: bool = False


@dataclass(frozen=True)
class CandidateStep:
    """One phase: `args` are numbers of buffers, then `numbers` follow as 64-bit integers."""

    function: str
    args: tuple[int, ...]
    numbers: tuple[int, ...] = ()
    chunks: int = 1
    serial: bool = False
    grain: int = 0


@dataclass(frozen=True)
class Candidate:
    """Code to run: objects, steps over buffers, and how many threads run it."""

    objects: tuple[bytes, ...] = field(repr=False)
    steps: tuple[CandidateStep, ...]
    buffers: tuple[Buffer, ...]
    threads: int = 1
    scratch_bytes: int = 0


@dataclass(frozen=True)
class Expected:
    """What output buffer `buffer` must hold: `values`, or what the reference candidate writes.

    Exact when `bound` is None, else no element differs by more than `bound` plus `relative` times
    the largest magnitude of a float output; NaN and infinities must agree.
    """

    buffer: int
    dtype: str
    values: bytes | None = field(default=None, repr=False)
    bound: float | None = None
    relative: float = 0.0


@dataclass(frozen=True)
class Plan:
    """How to measure a batch.

    `rounds` of interleaved samples, each at least `sample_s` long; none with 0 rounds. `rotations`
    sets of buffers take turns, for kernels that must find their operands in memory. `guard` puts
    every buffer right before an unreadable page. A candidate slower than `prune` times the best
    one after two rounds is timed no further; one whose first run took `screen` times that of the
    reference has only that run for its timing. `timeout_s` is for each run of one candidate.
    """

    rounds: int = 7
    sample_s: float = 0.001
    rotations: int = 1
    guard: bool = False
    prune: float | None = None
    screen: float | None = None
    timeout_s: float = 10.0
    return_outputs: bool = False


@dataclass(frozen=True)
class Timing:
    """Seconds of one run in each round, and of the reference right around each of them."""

    seconds: tuple[float, ...]
    reference_seconds: tuple[float, ...] = ()
    outputs: Mapping[int, bytes] = field(default_factory=dict, repr=False)

    @property
    def median_s(self) -> float:
        """Median of the rounds."""
        return statistics.median(self.seconds)

    @property
    def ratio(self) -> float:
        """Median of time over the reference's time of the same round; below 1 is faster."""
        pairs = zip(self.seconds, self.reference_seconds, strict=True)
        return statistics.median(own / other for own, other in pairs)

    @property
    def spread(self) -> float:
        """Half the range of the middle half of the ratios (or times), over their median."""
        values = list(self.seconds)
        if self.reference_seconds:
            pairs = zip(self.seconds, self.reference_seconds, strict=True)
            values = [own / other for own, other in pairs]
        if len(values) < 4:
            return (max(values) - min(values)) / 2 / statistics.median(values)
        low, _, high = statistics.quantiles(values, n=4)
        return (high - low) / 2 / statistics.median(values)


def dtype_named(name: str) -> np.dtype[Any]:
    """The NumPy dtype called `name`, bfloat16 included."""
    if name == "bfloat16":
        import ml_dtypes

        bfloat16: np.dtype[Any] = np.dtype(ml_dtypes.bfloat16)
        return bfloat16
    return np.dtype(name)


def buffer_values(buffer: Buffer) -> NDArray[Any]:
    """The contents a buffer starts with, as bytes (an array of uint8 of its size)."""
    fill, size = buffer.fill, buffer.size_bytes
    if fill.kind == "zeros":
        return np.zeros(size, np.uint8)
    if fill.kind == "garbage":
        return np.full(size, 255, np.uint8)
    if fill.kind == "values":
        return np.frombuffer(fill.values, np.uint8, size)
    dtype = dtype_named(fill.dtype)
    random = np.random.Generator(np.random.SFC64(fill.seed))
    count = -(-size // dtype.itemsize)
    values: NDArray[Any]
    if dtype.kind == "f" or dtype.name == "bfloat16":
        wide = np.float64 if dtype.itemsize == 8 else np.float32
        values = random.standard_normal(count, wide)
        if fill.scale != 1.0:
            values *= wide(fill.scale)
        values = values.astype(dtype, copy=False)
    elif dtype.kind == "b":
        values = random.integers(0, 2, count, np.uint8)
    else:
        limits = np.iinfo(dtype)
        low, high = max(fill.low, int(limits.min)), min(fill.high, int(limits.max) + 1)
        values = random.integers(low, high, count, dtype)
    return values.view(np.uint8)[:size]


class Blobs:
    """Bytes by content, collected while values are written as JSON."""

    def __init__(self) -> None:
        self.by_key: dict[str, bytes] = {}

    def add(self, data: bytes) -> str:
        key = hashlib.sha256(data).hexdigest()
        self.by_key[key] = data
        return key


def _fill_key(buffer: Buffer, blobs: Blobs) -> Header:
    fill = buffer.fill
    common: Header = {"kind": fill.kind, "dtype": fill.dtype}
    if fill.kind == "values":
        return common | {"blob": blobs.add(fill.values)}
    if fill.kind == "random":
        return common | {
            "seed": fill.seed, "scale": fill.scale, "low": fill.low, "high": fill.high
        }  # fmt: skip
    return common


def write_candidate(candidate: Candidate, blobs: Blobs) -> Header:
    """JSON of `candidate`; its bytes go to `blobs`."""
    return {
        "objects": [blobs.add(data) for data in candidate.objects],
        "steps": [
            [s.function, s.args, s.numbers, s.chunks, s.serial, s.grain] for s in candidate.steps
        ],
        "buffers": [
            [b.size_bytes, b.role, b.align, b.cold, _fill_key(b, blobs)] for b in candidate.buffers
        ],
        "threads": candidate.threads,
        "scratch": candidate.scratch_bytes,
    }


def read_candidate(header: Header, blobs: Mapping[str, bytes]) -> Candidate:
    """Inverse of `write_candidate`."""
    buffers = []
    for size, role, align, cold, fill in header["buffers"]:
        fill = dict(fill)
        blob = fill.pop("blob", None)
        if blob is not None:
            fill["values"] = blobs[blob]
        buffers.append(Buffer(size, role, Fill(**fill), align, cold))
    return Candidate(
        tuple(blobs[key] for key in header["objects"]),
        tuple(
            CandidateStep(name, tuple(args), tuple(numbers), chunks, serial, grain)
            for name, args, numbers, chunks, serial, grain in header["steps"]
        ),
        tuple(buffers),
        header["threads"],
        header["scratch"],
    )


def write_expected(expected: Expected, blobs: Blobs) -> Header:
    """JSON of `expected`; its values go to `blobs`."""
    values = None if expected.values is None else blobs.add(expected.values)
    return {
        "buffer": expected.buffer,
        "dtype": expected.dtype,
        "values": values,
        "bound": expected.bound,
        "relative": expected.relative,
    }


def read_expected(header: Header, blobs: Mapping[str, bytes]) -> Expected:
    """Inverse of `write_expected`."""
    values = None if header["values"] is None else blobs[header["values"]]
    bound, relative = header["bound"], header["relative"]
    return Expected(header["buffer"], header["dtype"], values, bound, relative)
