"""PyTorch's own operator samples through `torch.compile(backend="tilewright")`.

    python scripts/opinfo_sweep.py [--only GLOB] [--samples N] [--json PATH] [--list]

In: the float32 samples of OpInfo for operators of torch, torch.nn.functional and torch.linalg, not
random and not purely allocating. Out: the share that agrees with eager execution, the share that
runs without any ATen compute operator in the compiled call (seen by the profiler), and what is
handed to PyTorch, by name. An operator agrees (or is native) when all its samples do. Operators run
in a child process, so that one that crashes is counted and named.
"""

from __future__ import annotations

import argparse
import copy
import fnmatch
import json
import logging
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

RANDOM = (
    "bernoulli", "cauchy", "exponential", "geometric", "log_normal", "multinomial", "normal*",
    "rand*", "uniform", "nn.functional.*dropout*", "nn.functional.fractional_max_pool*",
    "nn.functional.rrelu", "nn.functional.scaled_dot_product_attention.dropout", "svd_lowrank",
    "pca_lowrank", "poisson", "gumbel_softmax",
)  # fmt: skip
ALLOCATING = ("empty*", "new_empty*")
OTHER = (
    "special.*",
    "fft.*",
    "signal.*",
    "masked.*",
    "sparse.*",
    "ops.*",
    "torch.ops.*",
    "jiterator*",
)
# Not computing: allocation, and other views of the same memory.
QUIET = {
    "aten::_reshape_alias", "aten::_unsafe_view", "aten::alias", "aten::as_strided",
    "aten::chunk", "aten::detach", "aten::diagonal", "aten::empty", "aten::empty_like",
    "aten::empty_strided", "aten::expand", "aten::expand_as", "aten::is_nonzero",
    "aten::lift_fresh", "aten::mH", "aten::mT", "aten::matrix_H", "aten::movedim", "aten::narrow",
    "aten::numpy_T", "aten::permute", "aten::reshape", "aten::resolve_conj", "aten::resolve_neg",
    "aten::select", "aten::set_", "aten::slice", "aten::split", "aten::split_with_sizes",
    "aten::squeeze", "aten::swapaxes", "aten::swapdims", "aten::t", "aten::transpose",
    "aten::unbind", "aten::unfold", "aten::unsqueeze", "aten::view", "aten::view_as",
    "aten::view_as_real", "detach",
}  # fmt: skip


def operators(only: str = "*") -> list[Any]:
    """The OpInfos that count, in order of their names."""
    import torch
    from torch.testing._internal.common_methods_invocations import op_db

    out = []
    for op in op_db:
        name = full_name(op)
        if any(fnmatch.fnmatch(op.name, p) for p in (*RANDOM, *ALLOCATING, *OTHER)):
            continue
        if torch.float32 not in op.dtypes or not fnmatch.fnmatch(name, only):
            continue
        if not is_public(torch, op.name):
            continue
        out.append(op)
    return sorted(out, key=full_name)


def is_public(torch: Any, name: str) -> bool:
    """Is it a function of torch, torch.nn.functional or torch.linalg, not just a method?"""
    found = torch
    for part in name.split("."):
        found = None if part.startswith("_") else getattr(found, part, None)
    return callable(found) and not isinstance(found, type)


def full_name(op: Any) -> str:
    """Name and variant."""
    return f"{op.name}.{op.variant_test_name}" if op.variant_test_name else str(op.name)


def tensors(x: Any) -> list[Any]:
    """All tensors in nested results."""
    import torch
    from torch.utils._pytree import tree_leaves

    return [t for t in tree_leaves(x) if isinstance(t, torch.Tensor)]


def wide(x: Any) -> Any:
    """Arguments with float32 as float64."""
    import torch
    from torch.utils._pytree import tree_map

    return tree_map(
        lambda t: t.double() if isinstance(t, torch.Tensor) and t.dtype == torch.float32 else t, x
    )


def difference(op: Any, sample: Any, want: Any, got: Any) -> str:
    """What is wrong with `got`, or nothing. Within the numeric policy of the float64 result."""
    import torch

    a, b = tensors(want), tensors(got)
    if len(a) != len(b):
        return f"{len(b)} results for {len(a)}"
    reference: list[Any] | None = None
    for k, (x, y) in enumerate(zip(a, b, strict=True)):
        if x.dtype != y.dtype or x.shape != y.shape:
            return f"result {k} is {y.dtype}{list(y.shape)}, not {x.dtype}{list(x.shape)}"
        for axis, size in enumerate(x.shape):
            if size > 1 and x.numel() and x.stride(axis) != y.stride(axis):
                return f"result {k} has strides {y.stride()}, not {x.stride()}"
        x, y = x.detach(), y.detach()
        if (
            torch.allclose(x, y, rtol=1e-4, atol=1e-5, equal_nan=True)
            if x.is_floating_point() or (x.is_complex())
            else torch.equal(x, y)
        ):
            continue
        if not x.is_floating_point():
            return f"result {k} differs in {int((x != y).sum())} of {x.numel()} elements"
        try:
            if reference is None:
                args, kwargs = wide((sample.input, *sample.args)), wide(sample.kwargs)
                reference = tensors(op.op(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
            exact = reference[k].double()
        except Exception as error:  # noqa: BLE001 - any operator may lack float64
            return f"result {k} differs, no reference: {error}"
        ok = torch.isfinite(exact) & torch.isfinite(x) & torch.isfinite(y)
        if not torch.equal(torch.isnan(x), torch.isnan(y)) or not torch.equal(
            torch.isinf(x), torch.isinf(y)
        ):
            return f"result {k} is not finite in other places"
        if not ok.any():
            continue
        top = exact[ok].abs().max().item()
        bound = 4 * max((x - exact)[ok].abs().max().item(), 8 * 2**-24 * top)
        error = (y - exact)[ok].abs().max().item()
        if error > bound:
            return f"result {k} is off by {error:.3g}, allowed {bound:.3g}"
    return ""


def one(op: Any, sample: Any) -> dict[str, Any]:
    """One sample: outcome `agree`, `wrong` or `error`, `native`, and what was handed over."""
    import torch
    import torch._dynamo

    import tilewright.torch as door

    torch._dynamo.reset()
    door.reset_reports()
    args, kwargs = (sample.input, *sample.args), sample.kwargs
    out: dict[str, Any] = {"native": False, "handed": [], "detail": ""}

    def call(*a: Any, **k: Any) -> Any:
        return op.op(*a, **k)

    with torch.inference_mode(False), torch.no_grad():
        try:
            want = call(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        except Exception as error:  # noqa: BLE001 - a sample that PyTorch refuses does not count
            return {"skip": str(error)}
        try:
            compiled = torch.compile(call, backend=door.backend, dynamic=False)
            mine = copy.deepcopy(args)
            got = compiled(*mine, **copy.deepcopy(kwargs))
            reports = door.reports()
            out["handed"] = sorted({n for r in reports for n in r.handed})
            out["reasons"] = {k: v for r in reports for k, v in r.reasons.items()}
            wrong = difference(op, sample, want, got)
            out["outcome"], out["detail"] = ("wrong" if wrong else "agree"), wrong
            again = copy.deepcopy(args), copy.deepcopy(kwargs)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
                compiled(*again[0], **again[1])
            ran = {e.name for e in seen.events() if e.name.startswith("aten::")} - QUIET
            out["ran"] = sorted(ran)
            out["native"] = not ran and not out["handed"]
        except Exception as error:  # noqa: BLE001 - every failure is a result here
            out["outcome"] = "error"
            out["detail"] = f"{type(error).__name__}: {str(error).strip()[:400]}"
    return out


def work(names: list[str], samples: int) -> None:
    """Child process: run operators, one JSON line each; a line before each says which."""
    import torch

    logging.disable(logging.WARNING)
    torch.manual_seed(0)
    known = {full_name(op): op for op in operators()}
    for name in names:
        print(json.dumps({"start": name}), flush=True)
        started = time.perf_counter()
        rows = []
        torch.manual_seed(0)
        for k, sample in enumerate(known[name].sample_inputs("cpu", torch.float32)):
            if k >= samples:
                break
            row = one(known[name], sample)
            if "skip" not in row:
                rows.append({"sample": k, **row})
        seconds = round(time.perf_counter() - started, 2)
        print(json.dumps({"name": name, "rows": rows, "seconds": seconds}), flush=True)


def sweep(names: list[str], samples: int, timeout: float) -> list[dict[str, Any]]:
    """Results of operators by name; a crash or a hang counts as an error of its operator."""
    results: list[dict[str, Any]] = []
    left = list(names)
    while left:
        child = subprocess.Popen(
            [sys.executable, __file__, "--work", "--samples", str(samples)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None
        child.stdin.write(json.dumps(left))
        child.stdin.close()
        current = ""
        for line in child.stdout:
            if not line.startswith("{"):
                continue
            found = json.loads(line)
            if "start" in found:
                current = found["start"]
                continue
            results.append(found)
            left.remove(found["name"])
            bad = [r for r in found["rows"] if r["outcome"] != "agree"]
            if bad:
                print(f"  {found['name']}: {bad[0]['outcome']}: {bad[0]['detail']}", flush=True)
        child.wait(timeout)
        if current in left:
            left.remove(current)
            row = {"sample": -1, "outcome": "error", "native": False, "handed": [],
                   "detail": f"the process ended with {child.returncode}"}  # fmt: skip
            results.append({"name": current, "rows": [row], "seconds": 0})
            print(f"  {current}: crash {child.returncode}", flush=True)
    return results


def summary(results: list[dict[str, Any]]) -> dict[str, Any]:
    """The figures of a sweep."""
    ran = [r for r in results if r["rows"]]
    samples = [row for r in ran for row in r["rows"]]
    handed: dict[str, list[str]] = {}
    for r in ran:
        for row in r["rows"]:
            for name in row["handed"]:
                handed.setdefault(name, []).append(r["name"])
    return {
        "operators": len(ran),
        "samples": len(samples),
        "opinfo_share": sum(all(x["outcome"] == "agree" for x in r["rows"]) for r in ran)
        / len(ran),
        "native_share": sum(all(x["native"] for x in r["rows"]) for r in ran) / len(ran),
        "sample_share": sum(x["outcome"] == "agree" for x in samples) / len(samples),
        "native_sample_share": sum(x["native"] for x in samples) / len(samples),
        "wrong": sorted({r["name"] for r in ran for x in r["rows"] if x["outcome"] == "wrong"}),
        "errors": sorted({r["name"] for r in ran for x in r["rows"] if x["outcome"] == "error"}),
        "handed": {k: sorted(set(v)) for k, v in sorted(handed.items())},
        "not_native": sorted(r["name"] for r in ran if not all(x["native"] for x in r["rows"])),
    }


def main() -> int:
    """Run the sweep; exit status 1 where a result is silently wrong."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--only", default="*", help="names of operators, as a pattern")
    parser.add_argument("--samples", type=int, default=1000, help="at most so many per operator")
    parser.add_argument("--json", type=Path, help="write everything here")
    parser.add_argument("--part", default="0/1", help="k/n: every n-th operator from the k-th")
    parser.add_argument("--timeout", type=float, default=600, help="seconds to wait at the end")
    parser.add_argument("--list", action="store_true", help="only list the operators")
    parser.add_argument("--work", action="store_true", help=argparse.SUPPRESS)
    given = parser.parse_args()
    if given.work:
        work(json.load(sys.stdin), given.samples)
        return 0
    k, n = map(int, given.part.split("/"))
    names = [full_name(op) for op in operators(given.only)][k::n]
    if given.list:
        print(*names, sep="\n")
        return 0
    results = sweep(names, given.samples, given.timeout)
    figures = summary(results)
    if given.json:
        given.json.write_text(json.dumps({"figures": figures, "results": results}, indent=1))
    print(json.dumps(figures, indent=1))
    return 1 if figures["wrong"] else 0


if __name__ == "__main__":
    sys.exit(main())
