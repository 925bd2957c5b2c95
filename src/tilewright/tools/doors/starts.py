"""The part `starts`: the first call in a new process.

In: nothing; ResNet-50 is that of the suite `models`. Out: seconds from the start of the process to
the first result, with empty caches and with full ones, for our backend and for Inductor; seconds to
load the model from an artifact. Invariants: a process that is timed is new; results are compared
with eager execution.
"""

from __future__ import annotations

import json
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from tilewright.tools.doors.judge import figure, named

__all__ = ["cases", "figures", "main", "page", "trouble"]

_ROUNDS = 3

_HOW = {
    "first_result_s": "torch.compile of ResNet-50 with our backend, empty caches: from the start "
    "of the process, the import of PyTorch included, to the first result",
    "first_result_inductor_s": "the same with Inductor, empty caches",
    "warm_start_s": "the same process again: our backend, its caches full",
    "warm_start_floor_s": "the same process with a backend that returns what it is given: Python, "
    "PyTorch, the model, Dynamo; in turns with warm_start_s",
    "warm_start_compile_s": "of warm_start_s, from the model in memory to its first result",
    "artifact_load_s": "tilewright.load of the same ResNet-50, in a new process, after imports",
    "artifact_first_result_s": "from the start of a process to the first result of the artifact",
}


def main(arguments: Sequence[str]) -> int:
    """The process that is timed: `torch BACKEND THREADS` or `artifact FOLDER THREADS`."""
    kind, which, threads = arguments
    started = time.time()
    answer = _artifact(Path(which), int(threads)) if kind == "artifact" else _torch(which, threads)
    print("\n" + json.dumps({"begun": started, "ended": time.time(), **answer}))
    return 0


def _resnet() -> tuple[Any, Any]:
    """The model as a module whose parameters are the weights, and an input."""
    import torch

    from tilewright.tools.peers._models import TorchOps
    from tilewright.tools.zoo import ZOO

    ops, build = TorchOps(), ZOO["resnet50"].build
    x = torch.randn(1, 3, 224, 224, generator=torch.Generator().manual_seed(0))
    with torch.no_grad():
        build(ops, {"x": x})

    class Model(torch.nn.Module, TorchOps):  # type: ignore[misc]
        """Its weights are its own, as those of any module: not closed over by `forward`."""

        def __init__(self) -> None:
            super().__init__()
            for name, t in ops.held.items():
                self.register_buffer(_attribute(name), t)

        def weight(self, name: str, shape: Any, kind: str = "normal") -> Any:
            return getattr(self, _attribute(name))

        def forward(self, x: Any) -> Any:
            return build(self, {"x": x})[0]

    return Model().eval(), x


def _attribute(weight: str) -> str:
    return weight.replace(".", "_").replace(" ", "_")


def _as_given(module: Any, examples: Any) -> Any:
    """A Dynamo backend that compiles nothing."""
    return module.forward


def _torch(backend: str, threads: str) -> dict[str, Any]:
    import torch

    imported = time.time()
    torch.set_num_threads(int(threads))
    chosen: Any = backend
    if backend == "floor":
        chosen = _as_given
    if backend == "tilewright":
        import tilewright.torch

        chosen = tilewright.torch.backend
    model, x = _resnet()
    with torch.inference_mode():
        made = time.time()
        got = torch.compile(model, backend=chosen, dynamic=False)(x)
        first = time.time()
        want = model(x)
    top = want.abs().max().item()
    off = (got - want).abs().max().item()
    return {"imported": imported, "made": made, "first": first, "off": off / top}


def _artifact(folder: Path, threads: int) -> dict[str, Any]:
    import numpy as np

    import tilewright as tw

    x, want = (np.load(folder / f"{n}.npy", allow_pickle=False) for n in ("x", "y"))
    load = tw.load  # imports what loading needs
    made = time.time()
    model = load(folder / "model.twa", threads=threads)
    loaded = time.time()
    got = model(x)
    first = time.time()
    off = float(np.abs(got - want).max() / np.abs(want).max())
    return {"made": made, "loaded": loaded, "first": first, "off": off}


def _timed(arguments: Sequence[str], folder: Path) -> dict[str, Any]:
    """Run the process with its caches in `folder`; times in seconds since it was started."""
    surroundings = {**os.environ, "XDG_CACHE_HOME": str(folder / "ours"),
                    "TILEWRIGHT_CACHE_DIR": str(folder / "ours" / "tilewright"),
                    "TORCHINDUCTOR_CACHE_DIR": str(folder / "inductor")}  # fmt: skip
    started = time.time()
    ended = subprocess.run(
        [sys.executable, "-P", "-m", "tilewright.tools.doors.starts", *arguments],
        env=surroundings, capture_output=True, text=True, check=False,
    )  # fmt: skip
    lines = [x for x in ended.stdout.splitlines() if x.startswith("{")]
    if not lines:
        last = (ended.stderr.strip().splitlines() or ["it said nothing"])[-1]
        return {"error": f"exit status {ended.returncode}: {last[:300]}"}
    found = json.loads(lines[-1])
    return {k: v if k == "off" else v - started for k, v in found.items()}


def _cases_of(backend: str, threads: int) -> list[dict[str, Any]]:
    """A process with empty caches; then for ours, with full ones and with no compiler in turns."""
    with tempfile.TemporaryDirectory(prefix="tilewright-starts-") as name:
        folder = Path(name)
        first = _timed(["torch", backend, str(threads)], folder)
        if backend != "tilewright":
            return [_case(f"first_result_{backend}_s", first, "first")]
        out = [_case("first_result_s", first, "first")]
        warm, floor = [], []
        for _ in range(_ROUNDS):
            warm.append(_timed(["torch", backend, str(threads)], folder))
            floor.append(_timed(["torch", "floor", str(threads)], folder))
    found = _middle(warm)
    out.append(_case("warm_start_s", found, "first"))
    out.append(_case("warm_start_floor_s", _middle(floor), "first"))
    if "error" not in found:
        out.append(_case("warm_start_compile_s", found, "first", "made"))
    return out


def _middle(found: Sequence[dict[str, Any]]) -> dict[str, Any]:
    """The run that took neither longest nor shortest; the first error where there is one."""
    bad = [x for x in found if "error" in x]
    return bad[0] if bad else sorted(found, key=lambda x: x["first"])[len(found) // 2]


def _case(name: str, found: Mapping[str, Any], end: str, begin: str = "") -> dict[str, Any]:
    if "error" in found:
        return {"name": name, "outcome": "error", "detail": found["error"]}
    wrong = found["off"] > 1e-3
    detail = f"off by {found['off']:.3g} of the largest element" if wrong else ""
    value = found[end] - (found[begin] if begin else 0.0)
    return {"name": name, "outcome": "wrong" if wrong else "done", "value": value,
            "detail": detail, "times_s": dict(found)}  # fmt: skip


def _load_cases(threads: int) -> list[dict[str, Any]]:
    import numpy as np

    import tilewright as tw
    from tilewright.tools.zoo import onnx_file

    with tempfile.TemporaryDirectory(prefix="tilewright-starts-") as name:
        folder = Path(name)
        x = np.random.default_rng(0).standard_normal((1, 3, 224, 224)).astype(np.float32)
        model = tw.compile(onnx_file("resnet50"), [x], threads=threads)
        np.save(folder / "x.npy", x)
        np.save(folder / "y.npy", model(x))
        model.save(folder / "model.twa")
        tries = [_timed(["artifact", name, str(threads)], folder) for _ in range(3)]
    bad = [t for t in tries if "error" in t]
    found = bad[0] if bad else sorted(tries, key=lambda t: t["loaded"] - t["made"])[1]
    return [
        _case("artifact_load_s", found, "loaded", "made"),
        _case("artifact_first_result_s", found, "first"),
    ]


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Slice 0: our backend. 1: Inductor. 2: the artifact."""
    threads = settings["threads"]
    if k < 2:
        return _cases_of(("tilewright", "inductor")[k], threads)
    return _load_cases(threads)


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Seconds, and Inductor's over ours."""
    values = {c["name"]: c["value"] for c in found if c["outcome"] == "done"}
    out = {name: figure(values.get(name), "s", how) for name, how in _HOW.items()}
    ours, theirs = values.get("first_result_s"), values.get("first_result_inductor_s")
    if ours and theirs:
        out["first_result_vs_inductor"] = figure(theirs / ours, "ratio", "Inductor / ours")
    return out


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    return named(found, "wrong", "error")


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing beyond the figures."""
    return []


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
