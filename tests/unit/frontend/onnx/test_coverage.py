"""The coverage page is that of the table, and the table is consistent with ONNX."""

from __future__ import annotations

from pathlib import Path

import onnx

from tilewright.frontend.onnx import NEWEST_OPSET, ROWS
from tilewright.tools.coverage import onnx_page

ROOT = Path(__file__).parents[4]


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "onnx-coverage.md").read_text(encoding="utf-8")
    assert page == onnx_page(), "run: python -m tilewright.tools.docs"


def test_rows_belong_to_operators_of_the_standard() -> None:
    history = onnx.defs.get_all_schemas_with_history()
    for (domain, name), r in ROWS.items():
        assert onnx.defs.has(name, NEWEST_OPSET, domain) or onnx.defs.has(name, 9, domain), name
        versions = {s.since_version for s in history if s.name == name}
        assert r.since >= min(versions) or r.since == 1, (name, versions)


def test_most_operators_have_a_row() -> None:
    standard = {s.name for s in onnx.defs.get_all_schemas() if s.domain == ""}
    have = {name for (domain, name), r in ROWS.items() if not domain and r.kind != "refused"}
    assert len(standard & have) > 150
