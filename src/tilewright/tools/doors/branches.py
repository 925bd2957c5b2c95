"""What a branch, and a step of a loop, cost the host program of a compiled model.

In: nothing, and for silero-vad its wheel. Out: nanoseconds of a branch beyond the kernel that it
runs, of a step of a loop, and how many times faster than onnxruntime a frame of silero-vad is, its
state carried from frame to frame. Invariant: what is timed gives the right numbers.
"""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.ir.plan import KernelCall
from tilewright.ir.program_parser import parse_program
from tilewright.tools.doors.judge import figure, named
from tilewright.tools.wheels import model_path

__all__ = ["branch_ns", "cases", "figures", "page", "silero", "step_ns", "trouble"]

SILERO = ("silero_vad", "silero_vad_16k_op15", "silero_vad_op18_ifless")
_FRAMES = 200


def _chain(count: int, branches: bool) -> str:
    lines = ["program chain format 1(x: f32[8], c: bool[]):"]
    last = "x"
    for k in range(count):
        if branches:
            lines += [
                f"  y{k}: f32[8] = if c:", f"    a{k}: f32[i<8] = scan sum(i) {last}[i]",
                f"    yield a{k}", "  else:", f"    b{k}: f32[i<8] = {last}[i] + 1.0",
                f"    yield b{k}",
            ]  # fmt: skip
        else:
            lines.append(f"  y{k}: f32[i<8] = scan sum(i) {last}[i]")  # never fused with the next
        last = f"y{k}"
    kept = ", ".join(f"y{k}" for k in range(count))  # results are stored: no kernel disappears
    return "\n".join([*lines, f"  return {kept}", ""])


def _median_ns(run: Callable[[], object], repeat: int = 400) -> float:
    for _ in range(20):
        run()
    times = []
    for _ in range(repeat):
        start = time.perf_counter_ns()
        run()
        times.append(time.perf_counter_ns() - start)
    return statistics.median(times)


def _walk_ns(text: str, *arrays: Any) -> tuple[float, int]:
    """Time of a call, and how many kernels it runs."""
    model = tw.compile(parse_program(text), threads=1, reuse_outputs=True)
    taken = sum(isinstance(s, KernelCall) for s in model.latest.plan.steps)
    return _median_ns(lambda: model(*arrays)), taken


def branch_ns(count: int = 48) -> float:
    """Nanoseconds of a branch beyond the kernel that it runs."""
    x, c = np.ones(8, np.float32), np.asarray(True)
    with_branches, twice = _walk_ns(_chain(count, True), x, c)
    without, kernels = _walk_ns(_chain(count, False), x, c)
    per_kernel = without / max(kernels, 1)
    return (with_branches - per_kernel * twice / 2) / count


def step_ns(count: int = 1000) -> float:
    """Nanoseconds of a step of a loop with a condition, its kernel included."""
    text = f"""program loop format 1(x: f32[8], n: i64[]):
  s: f32[8] = while t<{count}:
    carry h: f32[8] = x
    a: f32[i<8] = h[i] * 0.5
    more: bool[] = t[] < n[]
    next a if more
  return s
"""
    time_ns, _ = _walk_ns(text, np.ones(8, np.float32), np.asarray(count))
    return time_ns / count


def silero(name: str, tune_s: float, threads: int = 1) -> dict[str, Any]:
    """One 32 ms frame at 16 kHz after the other, the state carried: microseconds of ours, of
    onnxruntime, and the ratio, the median of interleaved rounds.
    """
    import onnxruntime

    path = model_path(name)
    stream = np.random.default_rng(0)
    frames = stream.standard_normal((_FRAMES, 1, 576)).astype(np.float32) * np.float32(0.1)
    state = np.zeros((2, 1, 128), np.float32)
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.log_severity_level = threads, 3
    session = onnxruntime.InferenceSession(
        str(path), options, providers=["CPUExecutionProvider"]
    )
    rate = {"sr": np.array(16000, np.int64)} if len(session.get_inputs()) == 3 else {}
    first = {"input": frames[0], "state": state, **rate}
    model = tw.compile(tw.onnx.load(path), first, threads=threads, tune=tune_s or None)
    order = [s.name for s in model.input_specs]

    def ours() -> tuple[Any, Any]:
        given, spoken = {**first}, []
        for frame in frames:
            given["input"] = frame
            p, given["state"] = model(*[given[n] for n in order])
            spoken.append(p)
        return np.stack(spoken), given["state"]

    def theirs() -> tuple[Any, Any]:
        given, spoken = {**first}, []
        for frame in frames:
            given["input"] = frame
            p, given["state"] = session.run(None, given)
            spoken.append(p)
        return np.stack(spoken), given["state"]

    wrong = [
        f"off by {np.abs(a - b).max():.3g}"
        for a, b in zip(ours(), theirs(), strict=True)
        if not np.allclose(a, b, rtol=1e-3, atol=1e-4)
    ]
    rounds: dict[str, list[float]] = {"ours": [], "onnxruntime": []}
    for _ in range(11):
        for side, call in (("ours", ours), ("onnxruntime", theirs)):
            started = time.perf_counter_ns()
            call()
            rounds[side].append((time.perf_counter_ns() - started) / _FRAMES / 1e3)
    ratio = statistics.median(
        b / a for a, b in zip(rounds["ours"], rounds["onnxruntime"], strict=True)
    )
    return {
        "ratio": ratio, "rounds_us": rounds, "tune_s": tune_s,
        "wrong": "; ".join(wrong),
    }  # fmt: skip


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Slice 0: branches and frames without tuning; slice 1: frames after some seconds of it."""
    threads = settings["threads"]
    out: list[dict[str, Any]] = []
    if k == 0:
        out.append({"name": "branch_ns", "outcome": "done", "value": branch_ns()})
        out.append({"name": "loop_step_ns", "outcome": "done", "value": step_ns()})
    for name in SILERO if k == 0 else SILERO[:1]:
        tune_s = 0.0 if k == 0 else 10.0
        found = silero(name, tune_s, threads)
        outcome = "wrong" if found["wrong"] else "done"
        suffix = "" if k == 0 else "_tuned"
        out.append(
            {"name": f"{name}{suffix}", "outcome": outcome, "detail": found["wrong"],
             "value": found["ratio"], "rounds_us": found["rounds_us"]}
        )  # fmt: skip
    return out


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Nanoseconds and ratios."""
    how = {
        "branch_ns": "a branch beyond the kernel that it runs, in a chain of 48",
        "loop_step_ns": "a step of a loop with a condition: its kernel, the test, the state",
    }
    out = {}
    for c in found:
        if c["name"] in how:
            out[c["name"]] = figure(c["value"], "ns", how[c["name"]])
        elif c["outcome"] == "done":
            text = "onnxruntime / ours, one thread, 32 ms frame, state carried"
            out[f"{c['name']}_vs_onnxruntime"] = figure(c["value"], "ratio", text)
    return out


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    return named(found, "wrong")


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing beyond the figures."""
    return []
