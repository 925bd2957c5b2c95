"""Writes docs/onnx-coverage.md from the operator table and the ONNX schemas.

    python scripts/coverage.py [--check]

With --check nothing is written; exits 1 when the page is not current.
"""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from tilewright.frontend.onnx import NEWEST_OPSET, ROWS

__all__ = ["PAGE", "page"]

PAGE = Path(__file__).parents[1] / "docs" / "onnx-coverage.md"

KINDS = {
    "elementwise": "Elementwise",
    "layout": "Layout",
    "index": "Gather, scatter, padding, positions",
    "reduction": "Reductions and prefix sums",
    "contraction": "Contractions",
    "window": "Convolution and pooling",
    "normalization": "Normalization",
    "attention": "Attention",
    "recurrent": "Recurrent",
    "quantized": "Quantized",
    "resize": "Resampling",
    "signal": "Signals",
    "extern": "Algorithms (`extern`)",
    "control": "Control flow",
}

HEAD = f"""# ONNX operators

Generated from the operator table by `python scripts/coverage.py`; a test keeps it current.

The importer reads opsets 7 to {NEWEST_OPSET} of the default domain. An operator without a row is
imported through its ONNX function body where the standard has one. What is refused is refused at
import, with code F005, the node's name and the nearest form that is supported. Element types: bool,
signed and unsigned integers of 8 to 64 bits, float16, bfloat16, float32, float64.

Sizes may be symbolic everywhere. Sizes that the data defines (of `NonZero`, `NonMaxSuppression`,
`Unique`, `Compress`, `Slice` and `TopK` by values, branches of other sizes) are computed natively,
in memory planned for their bounds. Where a value decides a size that has no bound, or which branch
fits (the shape of `Reshape`, the limits of `Range`), `tw.onnx.load(model).run(inputs)` reads it
first and imports the model for it, once per value; it can also be given:
`tw.onnx.load(model, known={{"shape": array}})`.
"""


def page() -> str:
    """The text of the page."""
    import onnx

    schemas = {s.name: s for s in onnx.defs.get_all_schemas() if s.domain == ""}
    first: dict[str, int] = {}
    for s in onnx.defs.get_all_schemas_with_history():
        if s.domain == "":
            first[s.name] = min(first.get(s.name, s.since_version), s.since_version)
    supported = {name for (domain, name), r in ROWS.items() if not domain and r.kind != "refused"}
    refused = {name: r for (domain, name), r in ROWS.items() if not domain and r.kind == "refused"}
    bodies = {
        n
        for n, s in schemas.items()
        if n not in supported
        and n not in refused
        and (s.has_function or s.has_context_dependent_function)
    }
    missing = sorted(set(schemas) - supported - set(refused) - bodies)
    lines = [
        HEAD,
        f"Of the {len(schemas)} operators of opset {NEWEST_OPSET}, "
        f"{len(supported & set(schemas))} have a row, {len(bodies)} more are imported through "
        f"their function body, {len(set(schemas) - supported - bodies)} are refused.",
        "",
    ]
    for kind, title in KINDS.items():
        rows = sorted((r for r in ROWS.values() if r.kind == kind), key=lambda r: r.name)
        lines += [f"## {title}", "", "| Operator | Since | Restrictions |", "| --- | --- | --- |"]
        lines += [f"| {r.name} | {max(r.since, first[r.name])} | {r.notes} |" for r in rows]
        lines.append("")
    lines += ["## Through their function body", "", _sentence(sorted(bodies)), ""]
    lines += ["## Refused", "", "| Operator | Reason |", "| --- | --- |"]
    lines += [f"| {name} | {r.notes} |" for name, r in sorted(refused.items())]
    lines += [f"| {name} | {_reason(name)} |" for name in missing]
    return "\n".join(lines) + "\n"


def _sentence(names: list[str]) -> str:
    text, line = "", ""
    for k, name in enumerate(names):
        piece = name + ("." if k == len(names) - 1 else ",")
        if len(line) + len(piece) > 95:
            text, line = f"{text}{line}\n", ""
        line = f"{line} {piece}".strip()
    return text + line


def _reason(name: str) -> str:
    if name.startswith(("Sequence", "SplitToSequence", "ConcatFromSequence")):
        return "sequences of tensors"
    if name.startswith("Optional"):
        return "optional values"
    if "String" in name or name == "RegexFullMatch":
        return "strings"
    return {"ImageDecoder": "image files", "TfIdfVectorizer": "n-grams"}.get(name, "no row yet")


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--check", action="store_true")
    text = page()
    if parser.parse_args().check:
        return 0 if PAGE.exists() and PAGE.read_text() == text else 1
    PAGE.write_text(text)
    return 0


if __name__ == "__main__":
    sys.exit(main())
