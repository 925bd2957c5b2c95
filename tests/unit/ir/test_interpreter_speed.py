"""The oracle checks real models: a thin ResNet-50 at 224x224 within its time and memory."""

from __future__ import annotations

import resource
import time

import numpy as np
import pytest

from tilewright.ir.interpreter import run_program
from tilewright.ir.program_parser import parse_program
from tilewright.verify.policy import compare
from tilewright.verify.witness import references


class Network:
    """Text of a residual network, channels last."""

    def __init__(self, size: int) -> None:
        self.inputs = [f"x: f32[1, {size}, {size}, 3]"]
        self.lines: list[str] = []

    def conv(
        self, source: str, size: int, channels: tuple[int, int], taps: int, stride: int, tail: str
    ) -> tuple[str, int]:
        n, (ci, co), out = len(self.lines), channels, -(-size // stride)
        pad = (taps - 1) // 2
        self.inputs += [f"w{n}: f32[{taps}, {taps}, {ci}, {co}]", f"b{n}: f32[{co}]"]
        read = f"{source}[n, {stride}*h + i - {pad}, {stride}*v + j - {pad}, c]"
        read = f"({read} else 0.0)" if pad else read
        axes = f"[n<1, h<{out}, v<{out}, o<{co}]"
        self.lines += [
            f"c{n}: f32{axes} = sum(i<{taps}, j<{taps}, c<{ci}) {read} * w{n}[i, j, c, o]",
            f"r{n}: f32{axes} = " + tail.replace("@", f"c{n}[n, h, v, o] + b{n}[o]"),
        ]
        return f"r{n}", out

    def text(self, result: str) -> str:
        body = "".join(f"  {line}\n" for line in self.lines)
        return f"program net({', '.join(self.inputs)}):\n{body}  return {result}\n"


def resnet50(width: int, size: int) -> str:
    net = Network(size)
    t, h = net.conv("x", size, (3, width), 7, 2, "max(@, 0.0)")
    h = h // 2
    net.lines.append(
        f"p: f32[n<1, h<{h}, v<{h}, o<{width}] = "
        f"max(i<3, j<3) ({t}[n, 2*h + i - 1, 2*v + j - 1, o] else -inf)"
    )
    t, ci = "p", width
    for stage, blocks in enumerate((3, 4, 6, 3)):
        mid = width << stage
        for block in range(blocks):
            stride = 2 if block == 0 and stage else 1
            skip = t if block else net.conv(t, h, (ci, 4 * mid), 1, stride, "@")[0]
            u, _ = net.conv(t, h, (ci, mid), 1, 1, "max(@, 0.0)")
            u, h = net.conv(u, h, (mid, mid), 3, stride, "max(@, 0.0)")
            t, _ = net.conv(u, h, (mid, 4 * mid), 1, 1, f"max(@ + {skip}[n, h, v, o], 0.0)")
            ci = 4 * mid
    net.lines.append(f"g: f32[n<1, o<{ci}] = sum(h<{h}, v<{h}) {t}[n, h, v, o]")
    return net.text("g")


@pytest.mark.slow
def test_a_thin_resnet_50() -> None:
    program = parse_program(resnet50(32, 224))
    rng = np.random.default_rng(0)
    inputs = {}
    for t in program.inputs:
        shape = tuple(e.attr for e in t.shape)
        fan_in = int(np.prod(shape[:-1])) if len(shape) == 4 and t.name != "x" else 1
        inputs[t.name] = (rng.standard_normal(shape) / np.sqrt(fan_in)).astype(np.float32)
    before = time.process_time()
    found = references(program, inputs)
    assert time.process_time() - before < 20
    assert resource.getrusage(resource.RUSAGE_SELF).ru_maxrss < 4 << 20  # KiB
    got = run_program(program, inputs, precision="naive")[0]
    assert compare(got, found.ref[0], found.naive[0], program.tensors["g"].dtype).ok
