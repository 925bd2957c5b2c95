"""The coverage pages: every operator of a front end, from its table.

In: the operator tables, ONNX's schemas, PyTorch's list of core operators. Out: Markdown, counts.
Invariant: nothing about an operator is written here but why one without a row has none.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

__all__ = ["DOORS", "counts", "onnx_page", "torch_page"]

ONNX_KINDS = {
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

TORCH_KINDS = {
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

def _onnx_head(newest: int) -> str:
    return f"""# ONNX operators

Generated from the operator table by `tilewright coverage onnx --markdown`; a test
keeps it current.

The importer reads opsets 7 to {newest} of the default domain. An operator without a row is
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


TORCH_HEAD = """# PyTorch operators

Generated from the operator table by `tilewright coverage torch --markdown`; a test
keeps it current.

The PyTorch door takes graphs of ATen operators. An operator with a row is compiled. One without is
decomposed, by PyTorch's own decompositions, into operators that have one. What remains is handed to
PyTorch: the graph is split around it, and the report (`tilewright.torch.reports()`, and the logger
`tilewright.torch`) names it. Element types: bool, signed and unsigned integers of 8 to 64 bits,
float16, bfloat16, float32, float64; complex, quantized and sparse tensors, and other devices, are
PyTorch's.

An `extern` is an algorithm that is no sum over an index (sorting). It runs inside the compiled
graph, today by its NumPy meaning.
"""


def onnx_page() -> str:
    """The page about the ONNX door. Errors: ImportError where onnx is not installed."""
    import onnx

    from tilewright.frontend.onnx import NEWEST_OPSET, ROWS

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
        _onnx_head(NEWEST_OPSET),
        f"Of the {len(schemas)} operators of opset {NEWEST_OPSET}, "
        f"{len(supported & set(schemas))} have a row, {len(bodies)} more are imported through "
        f"their function body, {len(set(schemas) - supported - bodies)} are refused.",
        "",
    ]
    for kind, title in ONNX_KINDS.items():
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


def core_operators() -> list[Any]:
    """Every registered ATen overload with the tag `core`, by name.

    Asked of the dispatcher: `dir(torch.ops.aten)` grows with what was used in the process before.
    """
    import torch

    from tilewright.frontend.torch import name_of

    found = []
    for name in torch._C._dispatch_get_all_op_names():
        namespace, _, rest = name.partition("::")
        packet, _, overload = rest.partition(".")
        if namespace == "aten":
            op = getattr(getattr(torch.ops.aten, packet), overload or "default")
            if torch.Tag.core in op.tags:
                found.append(op)
    return sorted(found, key=name_of)


def status(op: Any) -> tuple[str, str]:
    """`native`, `extern`, `decomposed` or `PyTorch`, and a note."""
    from tilewright.frontend.torch import ROWS, name_of
    from tilewright.torch.lowering import decompositions

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


def torch_page() -> str:
    """The page about the PyTorch door. Errors: ImportError where torch is not installed."""
    from tilewright.frontend.torch import ROWS, name_of

    rows = [(name_of(op), *status(op)) for op in core_operators()]
    counts = {
        s: sum(r[1] == s for r in rows) for s in ("native", "extern", "decomposed", "PyTorch")
    }
    lines = [
        TORCH_HEAD,
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
    for kind, title in TORCH_KINDS.items():
        held = sorted(r.name for r in ROWS.values() if r.kind == kind)
        if held:
            lines += [f"{title}: {', '.join(held)}.", ""]
    return "\n".join(lines).rstrip() + "\n"


def counts(page: str) -> str:
    """The sentence of a page that counts its operators."""
    return next(line for line in page.splitlines() if line.startswith("Of the "))


DOORS: dict[str, tuple[str, Callable[[], str]]] = {
    "onnx": ("onnx-coverage.md", onnx_page),
    "torch": ("torch-coverage.md", torch_page),
}
