"""The hand-written nests: text round trip, verifier, interpreter and native code against a float64 oracle."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import texts
from native import assembly, run_native
from oracles import CASES

from tilewright.codegen.assembly import innermost_loops, stack_references
from tilewright.codegen.llvm import emit_llvm
from tilewright.ir.nest import parse_nest
from tilewright.ir.nest_interpreter import run_nest
from tilewright.ir.nest_verifier import verify_nest
from tilewright.machine.target import Target

HERE = Path(__file__).resolve().parent
FULL = {
    "matmul": texts.matmul(1000, 1000, 1000),
    "convolution": texts.convolution(56, 56, 64, 64),
    "softmax": texts.softmax(4096, 4096),
    "attention": texts.attention(4, 1024),
    "transpose": texts.transpose(4096, 4096),
    "lstm": texts.lstm(32, 12, 256),
}


@pytest.mark.parametrize("name", FULL)
def test_text(name: str) -> None:
    nest = parse_nest(FULL[name])
    verify_nest(nest)
    assert parse_nest(str(nest)) == nest
    assert (HERE / f"{name}.nest").read_text() == str(nest)


@pytest.mark.parametrize("name", CASES)
def test_values(name: str) -> None:
    text, data, oracle, output = CASES[name]
    nest = parse_nest(text)
    verify_nest(nest)
    buffers = {
        b.name: data[b.name] if b.name in data else np.zeros(b.size.attr, b.dtype.np)
        for b in nest.buffers
        if b.place != "scratch"
    }
    want = oracle(*(data[k].astype(np.float64) for k in data)).reshape(-1)
    interpreted = {k: v.copy() for k, v in buffers.items()}
    run_nest(nest, interpreted, {})
    limit = 2e-6 * float(np.abs(want).max())
    assert np.abs(interpreted[output] - want).max() <= limit
    for target in ("native", "x86-avx512", "x86-avx2", "x86-sse42"):
        for at_start in (False, True):
            got = run_native(
                nest,
                Target.named(target),
                buffers,
                {},
                at_start,
                at_once=1 if at_start else 1 << 60,
            )
            assert np.abs(got[output] - want).max() <= limit, target


@pytest.mark.parametrize("name", ["matmul", "convolution", "lstm"])
def test_inner_loops_hold_their_tile_in_registers(name: str) -> None:
    target = Target.named("x86-avx512")
    text = assembly(emit_llvm(parse_nest(FULL[name]), target), target)
    assert stack_references(text) == 0
    busy = [loop for loop in innermost_loops(text) if sum("vfmadd" in line for line in loop) >= 24]
    assert busy
    for loop in busy:
        assert not any("gather" in line or "call" in line for line in loop)
        assert len(loop) <= 2.2 * sum("vfmadd" in line for line in loop), "\n".join(loop)
