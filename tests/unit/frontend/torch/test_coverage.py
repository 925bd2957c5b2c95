"""The coverage page is that of the table, and the table is consistent with PyTorch."""

from __future__ import annotations

from pathlib import Path

import pytest

torch = pytest.importorskip("torch")

from tilewright.frontend.torch import ROWS, name_of  # noqa: E402
from tilewright.tools.coverage import core_operators, torch_page  # noqa: E402

ROOT = Path(__file__).parents[4]
KINDS = {
    "creation", "elementwise", "special", "layout", "index", "reduction", "contraction", "window",
    "normalization", "linear", "extern",
}  # fmt: skip


def test_the_page_is_current() -> None:
    page = (ROOT / "docs" / "torch-coverage.md").read_text(encoding="utf-8")
    assert page == torch_page(), "run: python -m tilewright.tools.docs"


def test_rows_belong_to_operators() -> None:
    for name, r in ROWS.items():
        namespace, _, rest = name.partition(".")
        if namespace != "prims":
            namespace, rest = "aten", name
        packet, _, overload = rest.rpartition(".")
        assert overload in getattr(getattr(torch.ops, namespace), packet).overloads(), name
        assert r.kind in KINDS, name


def test_most_of_the_core_set_has_a_row() -> None:
    core = [name_of(op) for op in core_operators()]
    assert sum(name in ROWS for name in core) > 0.8 * len(core)


def test_the_core_set_does_not_depend_on_what_was_used_before() -> None:
    """PyTorch lists a few operators, `resize_` among them, only after somebody asked for them."""
    before = core_operators()
    assert torch.Tag.core in torch.ops.aten.resize_.default.tags
    assert torch.ops.aten.resize_.default in before
    assert core_operators() == before
