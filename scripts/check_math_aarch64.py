"""Check the math functions' aarch64 code under an emulator, without a cross compiler.

Usage: python scripts/check_math_aarch64.py [NAME ...] (needs ld.lld and qemu-aarch64)

Links each function's loop into a static program that reads its arguments from standard input and
writes the results, runs it under the emulator, and compares with libm as `check_math.py` does.
Prints one row a function and type; exit status 1 if a bound is exceeded.
"""

from __future__ import annotations

import subprocess
import sys
import tempfile
from pathlib import Path

import numpy as np

from tilewright.codegen.mathlib import MATH
from tilewright.codegen.mathlib.harness import (
    LEVELS,
    compile_reference,
    loop_object,
    sample,
    worst_error,
)

COUNT = 1 << 16
READ, WRITE, EXIT = 63, 64, 93
# mov x8, x3; svc #0; ret: a system call with its number as the fourth argument.
SYSTEM_CALL = (0xAA0303E8, 0xD4000001, 0xD65F03C0)


def _transfer(label: str, before: str, number: int, handle: int, buffer: str, size: int) -> str:
    """A loop that reads or writes `size` bytes; control comes from block `before`."""
    return f"""
  br label %{label}
{label}:
  %{label}.at = phi i64 [ 0, %{before} ], [ %{label}.next, %{label} ]
  %{label}.p = getelementptr i8, ptr {buffer}, i64 %{label}.at
  %{label}.rest = sub i64 {size}, %{label}.at
  %{label}.n = call i64 @system(i64 {handle}, ptr %{label}.p, i64 %{label}.rest, i64 {number})
  %{label}.next = add i64 %{label}.at, %{label}.n
  %{label}.more = icmp slt i64 %{label}.next, {size}
  br i1 %{label}.more, label %{label}, label %{label}.done
{label}.done:"""


def program(arity: int, dtype: str, lanes: int) -> str:
    """`_start`: read the arguments, call `loop`, write the results."""
    size = COUNT * (4 if dtype == "f32" else 8)
    buffers = [f"@b{i}" for i in range(arity + 1)]
    lines = [f"{b} = internal global [{size} x i8] zeroinitializer, align 64" for b in buffers]
    words = ", ".join(f"i32 u0x{word:08X}" for word in SYSTEM_CALL)
    lines.append(f'@system = internal constant [3 x i32] [{words}], section ".text", align 4')
    lines += ["define void @_start() {", "entry:"]
    before = "entry"
    for i in range(arity):
        lines.append(_transfer(f"read{i}", before, READ, 0, buffers[i + 1], size))
        before = f"read{i}.done"
    pointers = ", ".join(f"ptr {b}" for b in buffers)
    lines.append(f"  call void @loop(i64 {COUNT // lanes}, {pointers})")
    lines.append(_transfer("write", before, WRITE, 1, "@b0", size))
    lines.append(f"  %code = call i64 @system(i64 0, ptr @b0, i64 0, i64 {EXIT})")
    return "\n".join([*lines, "  unreachable", "}", ""])


def check(name: str, dtype: str, folder: Path) -> float:
    """The largest error of the emulated function on a sample."""
    level = LEVELS["aarch64"]
    arity, lanes = MATH[name].arity, level.lanes(dtype)
    (folder / "a.o").write_bytes(
        loop_object(name, dtype, lanes, level, program(arity, dtype, lanes))
    )
    subprocess.run(["ld.lld", "-static", "-o", folder / "a", folder / "a.o"], check=True)
    arguments = sample(dtype, COUNT, arity, seed=5)
    data = b"".join(a.tobytes() for a in arguments)
    done = subprocess.run(
        ["qemu-aarch64", folder / "a"], input=data, capture_output=True, check=False
    )
    y = np.frombuffer(done.stdout, arguments[0].dtype)
    taken = iter(range(0, COUNT, 1 << 14))

    def emulated(*_: object) -> np.ndarray:
        start = next(taken)
        return y[start : start + (1 << 14)]

    return worst_error(name, dtype, emulated, compile_reference(name, dtype), arguments)[0]


def main(names: list[str]) -> int:
    """Check and print."""
    failed = False
    with tempfile.TemporaryDirectory() as folder:
        for name in names or MATH:
            for dtype in ("f32", "f64"):
                error = check(name, dtype, Path(folder))
                bound = MATH[name].ulp[dtype]
                failed |= error > bound
                print(
                    f"| {name} | {dtype} | aarch64 | {COUNT} | {error:.3f} | {bound} |", flush=True
                )
    return int(failed)


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
