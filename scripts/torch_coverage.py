"""Writes docs/torch-coverage.md from the operator table and PyTorch's list of core ATen operators.

    python scripts/torch_coverage.py [--check]

With --check nothing is written; exits 1 when the page is not current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import Any

import torch

from tilewright.frontend.torch import ROWS, name_of
from tilewright.torch.lowering import decompositions

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "torch-coverage.md"

KINDS = {
    "creation": "Made from numbers and sizes",
    "elementwise": "Elementwise",
    "special": "Special functions",
    "layout": "Layout",
    "index": "Gather, scatter, search",
    "reduction": "Reductions and prefixes",
    "contraction": "Contractions",
    "window": "Convolution and pooling",
    "normalization": "Normalization",
    "linear": "Linear algebra",
    "extern": "Algorithms (`extern`)",
}
WHY = {
    "backward": "training",
    "rand": "random",
    "dropout": "random outside inference",
    "fft": "complex numbers",
    "nonzero": "the data decide the size of the result",
    "_local_scalar_dense": "a number that leaves the graph",
    "sym_": "sizes: followed symbolically, no operator at run time",
}

HEAD = """# PyTorch operators

Generated from the operator table by `python scripts/torch_coverage.py`; a test keeps it current.

The PyTorch door takes graphs of ATen operators. An operator with a row is compiled. One without is
decomposed, by PyTorch's own decompositions, into operators that have one. What remains is handed to
PyTorch: the graph is split around it, and the report (`tilewright.torch.reports()`, and the logger
`tilewright.torch`) names it. Element types: bool, signed and unsigned integers of 8 to 64 bits,
float16, bfloat16, float32, float64; complex, quantized and sparse tensors, and other devices, are
PyTorch's.

An `extern` is an algorithm that is no sum over an index (sorting). It runs inside the compiled
graph, today by its NumPy meaning.
"""


def core_operators() -> list[Any]:
    """Every overload with the tag `core`, by name."""
    found = []
    for packet in dir(torch.ops.aten):
        held = getattr(torch.ops.aten, packet)
        for overload in getattr(held, "overloads", list)():
            op = getattr(held, overload)
            if torch.Tag.core in op.tags:
                found.append(op)
    return sorted(found, key=name_of)


def status(op: Any) -> tuple[str, str]:
    """`native`, `extern`, `decomposed` or `PyTorch`, and a note."""
    name = name_of(op)
    r = ROWS.get(name)
    if r is not None:
        return ("extern" if r.kind == "extern" else "native"), r.notes
    if name.endswith(".out"):
        return "native", "as its functional form; graphs are functional"
    why = next((w for part, w in WHY.items() if part in name), "")
    if op in decompositions() and not why:
        return "decomposed", ""
    return "PyTorch", why


def page() -> str:
    """The text of the page."""
    rows = [(name_of(op), *status(op)) for op in core_operators()]
    counts = {
        s: sum(r[1] == s for r in rows) for s in ("native", "extern", "decomposed", "PyTorch")
    }
    lines = [
        HEAD,
        f"Of the {len(rows)} overloads of the core ATen set, {counts['native']} have a row of "
        f"definitions, {counts['extern']} one with an extern, {counts['decomposed']} are "
        f"decomposed, {counts['PyTorch']} are PyTorch's. Beyond it the table has "
        f"{len(set(ROWS) - {r[0] for r in rows})} rows.",
        "",
        "## Core ATen",
        "",
        "| Operator | How | Restrictions |",
        "| --- | --- | --- |",
        *(f"| {name} | {how} | {note} |" for name, how, note in rows),
        "",
        "## Every row",
        "",
    ]
    for kind, title in KINDS.items():
        held = sorted(r.name for r in ROWS.values() if r.kind == kind)
        if held:
            lines += [f"{title}: {', '.join(held)}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def main() -> int:
    """Write or check the page."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        return 0 if PAGE.exists() and PAGE.read_text() == text else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
