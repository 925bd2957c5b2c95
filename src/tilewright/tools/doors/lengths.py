"""The part `lengths`: one model for every length, against a build for each.

In: BERT of the suite `models` as ONNX, with its batch and its length left open. Out: the time of
one compiled model at each length over that of a build for this length alone, and how many builds
the one model came to hold. Invariants: both give the same numbers as the reference; the two are
timed in turns.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.tools.doors.judge import figure, named
from tilewright.tools.zoo import open_bert

__all__ = ["LENGTHS", "cases", "figures", "page", "trouble"]

LENGTHS = (1, 17, 64, 128, 333, 512)
_ROUNDS = 9


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Slice 0: all lengths, batch 1."""
    if k:
        return []
    out = []
    with tempfile.TemporaryDirectory(prefix="tilewright-lengths-") as folder:
        path = Path(folder) / "bert.onnx"
        path.write_bytes(open_bert())
        threads = settings["threads"]
        with tw.config(symbolic="always"):
            any_length = tw.compile(path, threads=threads)
        for length in LENGTHS:
            stream = np.random.default_rng(length)
            ids = stream.integers(0, 30522, (1, length), dtype=np.int64)
            with tw.config(symbolic="never"):
                one = tw.compile(path, dims={"B": 1, "S": length}, threads=threads)
            out.append(_case(any_length, one, ids))
            del one
    out.append({"name": "builds", "outcome": "done", "value": len(any_length.builds)})
    return out


def _case(any_length: Any, one: Any, ids: Any) -> dict[str, Any]:
    got, want = any_length(ids), one(ids)
    off = float(np.abs(got - want).max() / np.abs(want).max())
    times: dict[str, list[float]] = {"any": [], "one": []}
    for _ in range(_ROUNDS):
        for name, model in (("any", any_length), ("one", one)):
            start = time.perf_counter()
            model(ids)
            times[name].append(time.perf_counter() - start)
    pairs = zip(times["any"], times["one"], strict=True)
    return {
        "name": f"length {ids.shape[1]}",
        "outcome": "done" if off < 1e-4 else "wrong",
        "value": statistics.median(a / b for a, b in pairs),
        "detail": "" if off < 1e-4 else f"off by {off:.3g} of the largest element",
        "times_s": {name: statistics.median(x) for name, x in times.items()},
        "scope": any_length.latest.build.scope.report(),
    }


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """The worst loss, and the number of builds."""
    values = {c["name"]: c["value"] for c in found if c["outcome"] == "done"}
    losses = {name: v for name, v in values.items() if name.startswith("length")}
    worst = max(losses, key=lambda name: losses[name], default="")
    how = f"one model for every length over a build for each of {', '.join(map(str, LENGTHS))}"
    out = {
        "bert_symbolic_loss_worst": figure(losses.get(worst), "ratio", f"{how}; worst: {worst}"),
        "bert_symbolic_builds": figure(values.get("builds"), "builds", "that the one model holds"),
    }
    for name, value in losses.items():
        out[f"bert_symbolic_loss.{name.removeprefix('length ')}"] = figure(value, "ratio", "of it")
    return out


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    return named(found, "wrong", "error")


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing beyond the figures."""
    return []
