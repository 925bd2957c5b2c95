"""PyTorch's own operator samples through `torch.compile(backend="tilewright")`.

In: the float32 samples of OpInfo for operators of torch, torch.nn.functional and torch.linalg, not
random and not purely allocating. Out: per operator how many samples agree with eager execution, how
many run without any ATen compute operator in the compiled call (seen by the profiler), how many of
these call an `extern` by its NumPy meaning, and what is handed to PyTorch, by name. Invariant:
operators run in a child process, so that one that crashes is counted and named.
"""

from __future__ import annotations

import copy
import fnmatch
import json
import logging
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from types import FunctionType
from typing import Any

from tilewright.tools.doors.judge import figure, named, share

__all__ = ["cases", "figures", "operators", "page", "sweep", "trouble"]

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
# Not computing: allocation, other views of the same memory, and a number that Python asks for.
QUIET = {
    "aten::_reshape_alias", "aten::_unsafe_view", "aten::alias", "aten::as_strided",
    "aten::_local_scalar_dense", "aten::chunk", "aten::detach", "aten::diagonal", "aten::empty",
    "aten::empty_like",
    "aten::empty_strided", "aten::expand", "aten::expand_as", "aten::is_nonzero", "aten::item",
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
                torch.manual_seed(0)
                reference = tensors(function_of(op)(*copy.deepcopy(args), **copy.deepcopy(kwargs)))
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
        off = (y - exact)[ok].abs().max().item()
        if off > bound:
            return f"result {k} is off by {off:.3g}, allowed {bound:.3g}"
    return ""


def function_of(op: Any) -> Any:
    """What is run: OpInfo's function, or PyTorch's own where OpInfo only wraps it so that random
    numbers are the same again (Dynamo does not enter the wrapper; we seed before each call).
    """
    import torch

    names = getattr(getattr(op.op, "__code__", None), "co_names", ())
    if "wrapper_set_seed" not in names:
        return op.op
    found: Any = torch
    for part in op.name.split("."):
        found = getattr(found, part)
    return found


def one(op: Any, sample: Any) -> dict[str, Any]:
    """One sample: outcome `agree`, `wrong` or `error`, `native`, and what was handed over."""
    import torch
    import torch._dynamo

    import tilewright.torch as door
    from tilewright.frontend.torch import ROWS

    torch._dynamo.reset()
    door.reset_reports()
    args, kwargs = (sample.input, *sample.args), sample.kwargs
    out: dict[str, Any] = {"native": False, "handed": [], "externs": [], "detail": ""}

    run = function_of(op)

    def call(*a: Any, **k: Any) -> Any:
        return run(*a, **k)

    with torch.inference_mode(False), torch.no_grad():
        try:
            torch.manual_seed(0)
            want = call(*copy.deepcopy(args), **copy.deepcopy(kwargs))
        except Exception as error:  # noqa: BLE001 - a sample that PyTorch refuses does not count
            return {"skip": str(error)}
        try:
            # A function written in Python is compiled itself: within another one, a value that it
            # looks at would leave all of it to PyTorch.
            whole = run if isinstance(run, FunctionType) else call
            compiled = torch.compile(whole, backend=door.backend, dynamic=False)
            torch.manual_seed(0)
            mine = copy.deepcopy(args)
            got = compiled(*mine, **copy.deepcopy(kwargs))
            reports = door.reports()
            out["handed"] = sorted({n for r in reports for n in r.handed})
            wrong = difference(op, sample, want, got)
            kind = "layout" if " has strides " in wrong else "wrong"
            out["outcome"], out["detail"] = (kind if wrong else "agree"), wrong
            again = copy.deepcopy(args), copy.deepcopy(kwargs)
            with torch.profiler.profile(activities=[torch.profiler.ProfilerActivity.CPU]) as seen:
                compiled(*again[0], **again[1])
            ran = {e.name for e in seen.events() if e.name.startswith("aten::")} - QUIET
            out["native"] = not ran and not out["handed"]
            held = {n for r in reports for n in r.native}
            out["externs"] = sorted(n for n in held if n in ROWS and ROWS[n].kind == "extern")
            if ran and not out["handed"]:
                out["handed"] = sorted(ran)
        except Exception as error:  # noqa: BLE001 - every failure is a result here
            out["outcome"] = "error"
            out["detail"] = f"{type(error).__name__}: {str(error).strip()[:400]}"
    return out


def work(names: Sequence[str], samples: int) -> None:
    """Child process: run operators, one JSON line each; a line before each says which."""
    import torch

    logging.disable(logging.WARNING)
    known = {full_name(op): op for op in operators()}
    for name in names:
        print(json.dumps({"start": name}), flush=True)
        started = time.perf_counter()
        torch.manual_seed(0)
        given = list(known[name].sample_inputs("cpu", torch.float32))
        rows = []
        for k in spread(len(given), samples):
            row = one(known[name], given[k])
            if "skip" not in row:
                rows.append({"sample": k, **row})
        seconds = round(time.perf_counter() - started, 2)
        found = {"name": name, "listed": len(given), **counts(rows), "seconds": seconds}
        print(json.dumps(found), flush=True)


def spread(count: int, most: int) -> list[int]:
    """At most `most` of `count` numbers, evenly spread."""
    return sorted({count * k // most for k in range(most)}) if count > most else list(range(count))


def counts(rows: Sequence[Mapping[str, Any]]) -> dict[str, Any]:
    """The samples of one operator, counted."""
    bad = [f"sample {r['sample']}: {r['detail']}" for r in rows if r["outcome"] != "agree"]
    outcomes = {r["outcome"] for r in rows}
    return {
        "outcome": next((o for o in ("wrong", "error", "layout") if o in outcomes), "agree"),
        "detail": "; ".join(bad)[:400],
        "samples": len(rows),
        "agree": sum(r["outcome"] == "agree" for r in rows),
        "native": sum(r["native"] for r in rows),
        "extern": sum(r["native"] and bool(r["externs"]) for r in rows),
        "handed": sorted({n for r in rows for n in r["handed"]}),
    }


def sweep(names: Iterable[str], samples: int) -> list[dict[str, Any]]:
    """Results of operators by name; a crash counts as an error of its operator."""
    results: list[dict[str, Any]] = []
    left = list(names)
    while left:
        child = subprocess.Popen(
            [sys.executable, "-P", "-m", "tilewright.tools.doors.opinfo", str(samples)],
            stdin=subprocess.PIPE, stdout=subprocess.PIPE, stderr=subprocess.DEVNULL, text=True,
        )  # fmt: skip
        assert child.stdin is not None and child.stdout is not None  # both are pipes
        child.stdin.write(json.dumps(left))
        child.stdin.close()
        current = ""
        for line in child.stdout:
            if not line.startswith(('{"start"', '{"name"')):
                continue
            found = json.loads(line)
            if "start" in found:
                current = found["start"]
                continue
            results.append(found)
            left.remove(found["name"])
        status = child.wait()
        if not current:
            raise RuntimeError(f"the process ended with {status} before its first operator")
        if current in left:
            left.remove(current)
            row = {"sample": -1, "outcome": "error", "native": False, "handed": [], "externs": [],
                   "detail": f"the process ended with {status}"}  # fmt: skip
            results.append({"name": current, "listed": 0, **counts([row]), "seconds": 0})
    return results


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every n-th operator from the k-th on."""
    return sweep([full_name(op) for op in operators(settings.get("only", "*"))][k::n],
                 settings["samples"])  # fmt: skip


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Shares of operators and of samples."""
    ran = [c for c in found if c["samples"]]
    samples, listed = sum(c["samples"] for c in ran), sum(c["listed"] for c in ran)
    whole = sum(c["agree"] == c["samples"] for c in ran)
    agree, native = sum(c["agree"] for c in ran), sum(c["native"] for c in ran)
    own = "without a compute operator of ATen in the compiled call"
    return {
        "opinfo_operators": figure(
            len(ran), "operators", f"{samples} samples run of the {listed} that PyTorch lists"
        ),
        "opinfo_share": share(whole, len(ran), "operators of which every sample agrees"),
        "opinfo_sample_share": share(agree, samples, "samples that agree with eager execution"),
        "opinfo_wrong": figure(
            sum(c["outcome"] == "wrong" for c in ran), "operators", "a result differs, silently"
        ),
        "opinfo_layout": figure(
            sum(c["outcome"] == "layout" for c in ran), "operators",
            "equal elements in other strides than eager execution gives",
        ),
        "opinfo_errors": figure(
            sum(c["outcome"] == "error" for c in ran), "operators", "a sample ends in an error"
        ),
        "native_share": share(native, samples, f"samples {own}"),
        "native_operator_share": share(
            sum(c["native"] == c["samples"] for c in ran), len(ran),
            f"operators of which every sample runs {own}",
        ),
        "extern_share": share(
            sum(c["extern"] for c in ran), samples,
            "native samples that hold an extern, which may run by its NumPy meaning",
        ),
    }  # fmt: skip


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    return named(found, "wrong")


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What is handed over, by operator, as Markdown."""
    handed: Counter[str] = Counter()
    for c in found:
        handed.update(c["handed"])
    part = [c for c in found if c["native"] < c["samples"]]
    lines = ["Operators of OpInfo of which some sample is handed to PyTorch, wholly or in part "
             "(native samples of all, and what PyTorch ran):", ""]  # fmt: skip
    lines += [
        f"* `{c['name']}` ({c['native']} of {c['samples']}): "
        f"{', '.join(c['handed']) or c['detail']}"
        for c in part
    ]
    return [*lines, ""]


if __name__ == "__main__":
    work(json.load(sys.stdin), int(sys.argv[1]))
