"""Control flow and what needs random numbers or sequences: folded where constant, refused by name
otherwise.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.values import Value

__all__: list[str] = []


@row("If", kind="control", notes="a constant condition only")
def if_(n: Node) -> list[Value | None]:
    """The branch that a constant condition chooses, taken at import."""
    known = n[0].known
    if known is None:
        raise n.needed(0, "the condition")
    chosen = bool(known.reshape(-1)[0])
    return n.importer.branch(n, n.required("then_branch" if chosen else "else_branch"))


def _refused(name: str, reason: str, nearest: str) -> None:
    def expand(n: Node) -> Value:
        raise n.refuse(reason, nearest)

    f: Callable[[Node], Value] = expand
    row(name, kind="refused", notes=reason)(f)


for _name in ("Loop", "Scan"):
    _refused(_name, "loops are not imported yet", "If with a constant condition; RNN, GRU and LSTM")
_refused("SequenceMap", "sequences of tensors", "operators on tensors")
for _name in (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
):
    _refused(_name, "random numbers", "pass the random values as an input")
