"""ONNX's own node tests through importer and interpreter: some always, all of them when slow tests run."""

from __future__ import annotations

import importlib
import warnings
from collections import Counter
from typing import Any

import pytest

from tilewright.tools.doors import nodes

# Modules of onnx.backend.test.case.node: cheap to collect, and what test_operators.py does not cover.
SAMPLE = [
    "affinegrid", "batch_normalization", "center_crop_pad", "col2im", "cumsum", "cumprod", "deformconv", "einsum",
    "gathernd", "groupnormalization", "layernormalization", "lrn", "maxunpool", "mod", "onehot",
    "pad", "qlinearconv", "rmsnormalization", "roialign", "rotaryembedding", "scatternd",
    "spacetodepth", "stft", "tensorscatter", "trilu", "unique", "nonmaxsuppression", "dft",
]  # fmt: skip


def collected(modules: list[str]) -> list[Any]:
    from onnx.backend.test.case import node

    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        for name in modules:
            importlib.import_module(f"onnx.backend.test.case.node.{name}")
    return list(node._NodeTestCases)


def test_sample() -> None:
    outcomes = Counter()
    for case in collected(SAMPLE):
        if "_expanded" not in case.name and nodes.in_scope(case):
            outcome = nodes.outcome_of(case)
            outcomes[outcome.kind] += 1
            assert outcome.kind in ("passed", "baked", "refused"), f"{case.name}: {outcome.detail}"
    assert outcomes["refused"] == 0
    assert outcomes["passed"] + outcomes["baked"] > 200


@pytest.mark.slow
@pytest.mark.parametrize("variant", ["plain", "expanded", "symbolic"])
def test_all(variant: str) -> None:
    """At least 92 % pass, none is wrong; with symbolic sizes fewer pass, and none is wrong either."""
    outcomes = Counter()
    for case in nodes.node_cases(expanded=variant == "expanded"):
        outcome = nodes.outcome_of(case, symbolic=variant == "symbolic")
        outcomes[outcome.kind] += 1
        assert outcome.kind not in ("wrong", "crashed"), f"{case.name}: {outcome.detail}"
    good = (outcomes["passed"] + outcomes["baked"]) / sum(outcomes.values())
    assert good >= {"plain": 0.98, "expanded": 0.94, "symbolic": 0.85}[variant], outcomes
