"""Time the hand-written nests against the limits of this core, measured in the same window.

In: names of nests (default: all), `--no-lsr`, `--asm`. Out: one line a nest: milliseconds, share of
the FMA peak or of the copy bandwidth, vector stack references, microseconds to emit. Take the
machine's timing lock round it.
"""

from __future__ import annotations

import argparse
import ctypes
import mmap
import sys
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import llvmlite.binding as llvm
import numpy as np

ROOT = Path(__file__).resolve().parent.parent
sys.path[:0] = [str(ROOT / "src"), str(ROOT / "tests/backend"), str(ROOT / "tests/golden/nests")]

import native  # noqa: E402
import texts  # noqa: E402

from tilewright.codegen.assembly import stack_references  # noqa: E402
from tilewright.codegen.llvm import chunk_count, emit_llvm, scratch_bytes  # noqa: E402
from tilewright.ir.nest import parse_nest  # noqa: E402
from tilewright.machine.target import Target  # noqa: E402

_libc = ctypes.CDLL(None)


class Bound:
    """A kernel with its buffers: huge pages, 64-byte aligned, touched."""

    def __init__(self, text: str, target: Target) -> None:
        nest = parse_nest(text)
        start = time.perf_counter()
        self.llvm = emit_llvm(nest, target)
        self.emit_ms = (time.perf_counter() - start) * 1e3
        self.kernel = native.Kernel(nest, target, self.llvm)
        self.maps: list[mmap.mmap] = []
        slots = []
        generator = np.random.default_rng(0)
        for b in nest.buffers:
            if b.place != "scratch":
                size = b.size.attr * b.dtype.bytes
                at = self._memory(size)
                slots.append(at)
                view = np.frombuffer((ctypes.c_char * size).from_address(at), np.float32)
                view[:] = np.resize(
                    generator.standard_normal(1 << 16).astype(np.float32), view.size
                )
        self.args = (ctypes.c_int64 * len(slots))(*slots)
        self.scratch = self._memory(scratch_bytes(nest, {}) + 64)
        self.chunks = [chunk_count(nest, k, {}) for k in range(len(nest.phases))]

    def _memory(self, size: int) -> int:
        whole = -(-(size + (2 << 20)) // (2 << 20)) * (2 << 20)
        m = mmap.mmap(-1, whole, flags=mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS)
        m.madvise(mmap.MADV_HUGEPAGE)
        self.maps.append(m)
        base = ctypes.addressof(ctypes.c_char.from_buffer(m))
        ctypes.memset(base, 0, whole)
        return -(-base // (2 << 20)) * (2 << 20) if size > (1 << 20) else base

    def pieces(self, phases: slice = slice(None), count: int = 16) -> list[Callable[[], None]]:
        """The work as about `count` calls a phase: short windows are less often disturbed than long
        ones.
        """
        out: list[Callable[[], None]] = []
        for f, n in list(zip(self.kernel.functions, self.chunks, strict=True))[phases]:
            step = -(-n // count)
            for lo in range(0, n, step):
                out.append(partial(f, self.args, lo, min(n, lo + step), self.scratch))
        return out


class Timer:
    """Least time of each piece over all rounds."""

    def __init__(self, pieces: list[Callable[[], None]]) -> None:
        self.pieces = pieces
        self.least = [float("inf")] * len(pieces)

    def round(self) -> None:
        for i, f in enumerate(self.pieces):
            start = time.perf_counter()
            f()
            self.least[i] = min(self.least[i], time.perf_counter() - start)

    @property
    def seconds(self) -> float:
        return sum(self.least)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("names", nargs="*")
    parser.add_argument("--no-lsr", action="store_true")
    parser.add_argument("--asm", action="store_true")
    parser.add_argument("--seconds", type=float, default=1.5)
    options = parser.parse_args()
    if options.no_lsr:
        llvm.set_option("", "-disable-lsr")
    target = Target.native()
    big = 4096 * 4096
    # name -> (text, phases to time, flops, bytes)
    rows = {
        "matmul": (texts.matmul(1008, 1024, 1024), slice(1, 2), 2 * 1008 * 1024 * 1024, 0),
        "matmul_tails": (texts.matmul(1000, 1000, 1000), slice(1, 2), 2 * 1000**3, 0),
        "matmul_small": (texts.matmul(252, 256, 256), slice(1, 2), 2 * 252 * 256 * 256, 0),
        "convolution": (texts.convolution(56, 56, 64, 64), slice(0, 1), 18 * 56 * 56 * 64 * 64, 0),
        "deep": (texts.convolution(14, 14, 256, 256), slice(0, 1), 18 * (14 * 256) ** 2, 0),
        "softmax": (texts.softmax(4096, 4096), slice(0, 1), 0, 8 * big),
        "layer_norm": (texts.layer_norm(4096, 4096), slice(0, 1), 0, 8 * big),
        "transpose": (texts.transpose(4096, 4096), slice(0, 1), 0, 8 * big),
        "attention": (texts.attention(4, 1024), slice(0, 2), 2 * 4 * 1024 * 1024 * 64 * 2 // 2, 0),
        "lstm": (texts.lstm(32, 12, 256), slice(0, 2), 2 * 32 * 12 * 4 * 256 * 512, 0),
    }  # fmt: skip
    peak = Bound(texts.fma_peak(), target)
    line = Bound(texts.copy(big), target)
    peak_flops, line_bytes = 2 * 12 * 32 * 20000, 8 * big
    for name in options.names or rows:
        text, phases, flops, size = rows[name]
        bound = Bound(text, target)
        asm = native.assembly(bound.llvm, target)
        if options.asm:
            Path(f"/tmp/{name}.s").write_text(asm)
            Path(f"/tmp/{name}.ll").write_text(bound.llvm)
        reference = Timer((peak if flops else line).pieces())
        timer = Timer(bound.pieces(phases))
        end = time.perf_counter() + options.seconds
        while time.perf_counter() < end:
            reference.round()
            timer.round()
            timer.round()
        limit, t = reference.seconds, timer.seconds
        if flops:
            share = flops / t / (peak_flops / limit)
            what = f"{flops / t / 1e9:7.1f} of {peak_flops / limit / 1e9:7.1f} GFLOP/s"
        else:
            share = size / t / (line_bytes / limit)
            what = f"{size / t / 1e9:7.1f} of {line_bytes / limit / 1e9:7.1f} GB/s"
        print(
            f"{name:18} {t * 1e3:9.3f} ms  {share:5.2f}  {what}  stack {stack_references(asm):3}  "
            f"emit {bound.emit_ms:5.1f} ms", flush=True,
        )  # fmt: skip


if __name__ == "__main__":
    main()
