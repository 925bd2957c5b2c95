"""The suite `doors`: slices in processes, resumed; a slice that fails is told; figures."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tilewright as tw
from tilewright.tools import doors, zoo
from tilewright.tools.cli import cli
from tilewright.tools.doors import architectures, branches, hostile, nodes, opinfo
from tilewright.tools.suite import Part, load_suite
from unit.frontend.onnx.support import onnxruntime_results


def bench(tmp_path: Path, *more: str) -> tuple[int, dict[str, Any]]:
    out = tmp_path / "out.json"
    shown = CliRunner().invoke(cli, ["bench", "--suite", "doors", *more, "--json", str(out)])
    return shown.exit_code, json.loads(out.read_text())


@pytest.fixture(autouse=True)
def _own_cache(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))


def test_a_part_runs_and_is_resumed(tmp_path: Path) -> None:
    status, first = bench(tmp_path, "--only", "hostile")
    assert status == 0, first["rows"][0]["detail"]
    (row,) = first["rows"]
    assert row["verified"] and row["workload"] == "hostile"
    assert first["figures"]["hostile_typed"]["value"] == len(row["cases"]) > 60
    _, second = bench(tmp_path, "--only", "hostile", "--resume")
    assert second["rows"] == first["rows"]


def test_a_slice_that_fails_leaves_its_part_unverified(monkeypatch: pytest.MonkeyPatch) -> None:
    part = Part("broken", "hostile", 1, 60.0)
    found = doors._slice(Part("broken", "none_such", 1, 60.0), 0, {})
    assert "No module named" in found["error"]
    row = doors._row(part, [{"workload": "broken[0/1]", **found}], 1)
    assert not row["verified"] and "No module named" in row["detail"]["error"]
    slow = doors._slice(Part("slow", "hostile", 1, 0.05), 0, {})
    assert slow["error"] == "no answer within 0 s"


def test_every_part_has_its_module() -> None:
    for part in load_suite("doors").parts:
        module = doors._module(part)
        assert module.figures([]) is not None and module.trouble([]) == []
        assert isinstance(module.page([]), list)


def test_figures_count_what_was_found() -> None:
    found = [
        {"name": "a", "outcome": "passed"}, {"name": "b", "outcome": "baked"},
        {"name": "c", "outcome": "refused", "detail": "why"},
        {"name": "d", "outcome": "wrong", "detail": "off"},
    ]  # fmt: skip
    figures = nodes.figures(found)
    assert figures["onnx_node_share"]["value"] == 0.5
    assert figures["onnx_node_wrong"]["value"] == figures["onnx_node_refused"]["value"] == 1
    assert nodes.trouble(found) == ["d: off"]

    operators = [
        {"name": "sort", "outcome": "agree", "detail": "", "listed": 9, "samples": 4, "agree": 4,
         "native": 4, "extern": 2, "handed": []},
        {"name": "svd", "outcome": "wrong", "detail": "off", "listed": 2, "samples": 2, "agree": 1,
         "native": 0, "extern": 0, "handed": ["_linalg_svd.default"]},
    ]  # fmt: skip
    figures = opinfo.figures(operators)
    assert figures["opinfo_share"]["value"] == 0.5
    assert figures["native_share"]["value"] == 4 / 6
    assert figures["native_operator_share"]["value"] == 0.5
    assert figures["extern_share"]["value"] == 2 / 6
    assert figures["opinfo_wrong"]["value"] == 1
    assert "_linalg_svd.default" in "\n".join(opinfo.page(operators))

    models = [
        {"name": "bert.torch", "door": "torch", "outcome": "agree", "calls": 99, "handed": {}},
        {"name": "t5.torch", "door": "torch", "outcome": "agree", "calls": 50,
         "handed": {"qr": 1}},
    ]  # fmt: skip
    assert architectures.figures(models)["architectures_torch"]["value"] == 2
    assert architectures.trouble(models) == ["t5.torch: hands over 1 of 50 calls"]


def test_samples_are_spread_evenly() -> None:
    assert opinfo.spread(3, 8) == [0, 1, 2]
    assert opinfo.spread(100, 4) == [0, 25, 50, 75]


def test_a_branch_costs_little_and_is_counted() -> None:
    assert branches.branch_ns(8) < 1e6  # a bound on nonsense, not on speed
    assert hostile.figures([])["hostile_typed"]["value"] == 0


def test_the_open_bert_is_the_bert_of_every_length(tmp_path: Path) -> None:
    path = tmp_path / "open.onnx"
    path.write_bytes(zoo.open_bert(layers=1, width=64))
    with tw.config(symbolic="always"):
        model = tw.compile(path, threads=1)
    rng = np.random.default_rng(0)
    for batch, length in ((1, 5), (1, 9), (3, 5), (3, 40), (2, 33), (1, 1)):
        ids = rng.integers(0, 30522, (batch, length))
        got = model(ids)
        (want,) = onnxruntime_results(path.read_bytes(), {"ids": ids})
        assert got.shape == (batch, length, 64)
        np.testing.assert_allclose(got, want, rtol=0, atol=2e-5)
    # One for (1, 5) and (1, 9), (3, 5), (3, 40) and (2, 33), (1, 1): a point is a program of its own.
    assert len(model.builds) == 4
