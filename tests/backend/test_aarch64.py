"""Golden and random nests as static aarch64 programs under qemu-user."""

from __future__ import annotations

import shutil
import subprocess
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from native import build
from oracles import CASES

from tilewright.codegen.llvm import chunk_count, emit_llvm, function_name, scratch_bytes
from tilewright.ir.nest import LoopNest, parse_nest
from tilewright.ir.nest_interpreter import run_nest
from tilewright.machine.target import Target
from tilewright.verify.nests import Generator

Array = np.ndarray[Any, np.dtype[Any]]
QEMU = shutil.which("qemu-aarch64") or shutil.which("qemu-aarch64-static")
LLD = shutil.which("ld.lld")
pytestmark = pytest.mark.skipif(
    QEMU is None or LLD is None, reason="needs qemu-user and lld: apt-get install qemu-user lld"
)

# A program without libc: read all buffers from standard input, run the phases, write them to standard output. The
# system call instruction is a word in the text section, because LLVM has no assembler for a foreign machine here.
_CALL = b"\xe8\x03\x03\xaa\x01\x00\x00\xd4\xc0\x03\x5f\xd6"  # mov x8, x3; svc #0; ret


def program(nest: LoopNest, buffers: Mapping[str, Array], dims: Mapping[str, int]) -> str:
    """LLVM text of `_start` for the nest."""
    placed = [b for b in nest.buffers if b.place != "scratch"]
    at, offsets = 0, []
    for b in placed:
        offsets.append(at)
        at += -(-buffers[b.name].nbytes // 64) * 64 + 64
    slots = len(placed) + len(nest.dims)
    code = "".join(f"\\{byte:02X}" for byte in _CALL)
    lines = [
        f"@memory = internal global [{max(at, 1)} x i8] zeroinitializer, align 64",
        f"@scratch = internal global [{scratch_bytes(nest, dims) + 64} x i8] zeroinitializer, align 64",
        f'@trap = internal constant [{len(_CALL)} x i8] c"{code}", section ".text.trap", align 4',
        "define void @_start() {",
        f"  %args = alloca [{max(slots, 1)} x i64], align 8",
    ]
    for k, o in enumerate(offsets):
        lines.append(f"  %b{k} = getelementptr i8, ptr @memory, i64 {o}")
        lines.append(f"  %s{k} = getelementptr i8, ptr %args, i64 {8 * k}")
        lines.append(f"  store ptr %b{k}, ptr %s{k}, align 8")
    for k, d in enumerate(nest.dims, len(placed)):
        lines.append(f"  %s{k} = getelementptr i8, ptr %args, i64 {8 * k}")
        lines.append(f"  store i64 {dims[d]}, ptr %s{k}, align 8")
    lines += ["  br label %more", "more:", "  %done = phi i64 [ 0, %0 ], [ %sum, %more ]"]
    lines += [
        "  %to = getelementptr i8, ptr @memory, i64 %done",
        f"  %left = sub i64 {at}, %done",
        "  %got = call i64 @trap(i64 0, ptr %to, i64 %left, i64 63)",
        "  %sum = add i64 %done, %got",
        f"  %short = icmp ult i64 %sum, {at}",
        "  br i1 %short, label %more, label %run",
        "run:",
    ]
    for k in range(len(nest.phases)):
        count = chunk_count(nest, k, dims)
        lines.append(
            f"  call void @{function_name(nest, k)}(ptr %args, i64 0, i64 {count}, ptr @scratch)"
        )
    lines += [
        f"  %w = call i64 @trap(i64 1, ptr @memory, i64 {at}, i64 64)",
        "  %e = call i64 @trap(i64 0, ptr null, i64 0, i64 93)",
        "  unreachable",
        "}",
    ]
    return "\n".join(lines) + "\n"


def run_emulated(
    nest: LoopNest, buffers: Mapping[str, Array], dims: Mapping[str, int], folder: Path
) -> dict[str, Array]:
    """Copies of the buffers after a run under qemu."""
    target = Target.named("aarch64")
    text = emit_llvm(nest, target)
    head, _, rest = text.partition("\n")
    obj = folder / "nest.o"
    obj.write_bytes(build(head + "\n" + program(nest, buffers, dims) + rest, target))
    exe = folder / "nest"
    subprocess.run(
        [str(LLD), "-static", "-z", "notext", "-o", exe, obj], check=True, capture_output=True
    )
    placed = [b for b in nest.buffers if b.place != "scratch"]
    data = b"".join(
        buffers[b.name].tobytes().ljust(-(-buffers[b.name].nbytes // 64) * 64, b"\0") + bytes(64)
        for b in placed
    )
    done = subprocess.run(
        [str(QEMU), exe], input=data, check=True, capture_output=True, timeout=120
    )
    out, at = {}, 0
    for b in placed:
        size = buffers[b.name].nbytes
        out[b.name] = np.frombuffer(done.stdout[at : at + size], b.dtype.np).copy()
        after = -(-size // 64) * 64 + 64
        assert done.stdout[at + size : at + after] == bytes(after - size), (
            f"{b.name}: wrote behind the buffer"
        )
        at += after
    return out


@pytest.mark.parametrize("name", CASES)
def test_golden_nests(name: str, tmp_path: Path) -> None:
    text, data, oracle, output = CASES[name]
    nest = parse_nest(text)
    buffers = {
        b.name: data[b.name] if b.name in data else np.zeros(b.size.attr, b.dtype.np)
        for b in nest.buffers
        if b.place != "scratch"
    }
    want = oracle(*(data[k].astype(np.float64) for k in data)).reshape(-1)
    got = run_emulated(nest, buffers, {}, tmp_path)
    assert np.abs(got[output] - want).max() <= 2e-6 * np.abs(want).max()


@pytest.mark.parametrize("seed", range(100, 112))
def test_random_nests(seed: int, tmp_path: Path) -> None:
    nest, data, dims = Generator(seed).nest()
    want = {k: v.copy() for k, v in data.items()}
    run_nest(nest, want, dims)
    got = run_emulated(nest, data, dims, tmp_path)
    for k in got:
        assert np.array_equal(
            got[k].astype(np.float64), want[k].astype(np.float64), equal_nan=True
        ), k
