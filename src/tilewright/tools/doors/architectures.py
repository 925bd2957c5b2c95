"""The part `architectures`: ten `transformers` architectures, judged; they run elsewhere.

In: what `transformer_runs.cases` found. Out: figures. Invariant: imports no framework.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any

from tilewright.tools.doors.judge import counted, figure, named, share

__all__ = ["cases", "figures", "page", "trouble"]

_MOST_HANDED = 0.01


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every n-th model from the k-th on, through both doors."""
    from tilewright.tools.doors import transformer_runs

    return transformer_runs.cases(k, n, settings)


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Models that agree, per door, and the share of calls handed over."""
    out = {}
    for door in ("torch", "onnx"):
        own = [c for c in found if c["door"] == door]
        out[f"architectures_{door}"] = figure(
            counted(own, "agree"), "models", f"of {len(own)} agree with PyTorch"
        )
    calls = sum(c["calls"] for c in found if c["door"] == "torch")
    out["architectures_handed_share"] = share(_handed(found).total(), calls,
                                              "operator calls run by PyTorch")  # fmt: skip
    return out


def _handed(found: Sequence[Mapping[str, Any]]) -> Counter[str]:
    total: Counter[str] = Counter()
    for c in found:
        total.update(c["handed"])
    return total


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    over = [
        f"{c['name']}: hands over {sum(c['handed'].values())} of {c['calls']} calls"
        for c in found
        if sum(c["handed"].values()) > _MOST_HANDED * c["calls"]
    ]
    return named(found, "wrong", "error") + over


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """A table of the models, as Markdown."""
    lines = ["| architecture and door | result | operator calls | handed over |",
             "|---|---|---:|---|"]  # fmt: skip
    for c in found:
        handed = ", ".join(f"{k} {v}" for k, v in c["handed"].items()) or "none"
        lines.append(f"| {c['name']} | {c['outcome']} | {c['calls']} | {handed} |")
    return [*lines, ""]
