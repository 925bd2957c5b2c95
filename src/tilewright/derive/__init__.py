"""Rules that write a Program in another form, and their order.

In: a bound Program, a Target. Out: an equal Program (over the reals), and what was done. Invariant:
the result does not depend on whether the values of constants are at hand.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from tilewright.ir.binding import Array
    from tilewright.ir.program import Program, Statement, Tensor
    from tilewright.machine.target import Target

__all__ = ["Derivation", "Names", "derived", "rewritten"]


@dataclass(frozen=True)
class Derivation:
    """What was rewritten by which rule, and why, in the names of the user's graph."""

    rule: str
    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name}: {self.reason}"


class Names:
    """New names beside those that are taken."""

    def __init__(self, taken: set[str]) -> None:
        self.taken = taken

    def new(self, name: str) -> str:
        """`name`, with underscores behind it as far as needed."""
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name


def rewritten(
    program: Program,
    body: Sequence[Statement],
    added: Sequence[tuple[Tensor, str]],
    values: Mapping[str, Array],
) -> Program:
    """The Program with another body and more constants; those that nothing reads any longer go."""
    from tilewright.ir.program import statement_reads

    used = {n for s in body for n in statement_reads(s)} | set(program.results)
    kept = [(t, k) for t, k in program.constants if t.name in used]
    return replace(program, body=tuple(body), constants=(*kept, *added), values=values)


def derived(
    program: Program, target: Target, strict: bool = False
) -> tuple[Program, list[Derivation]]:
    """The Program in the form that is estimated to be fastest; strict: without rules that change
    rounding beyond the order of a sum.
    """
    from tilewright.derive.bilinear import faster_convolutions
    from tilewright.derive.residue import split_residues
    from tilewright.derive.selection import order_values, select_few

    program, few = select_few(program)
    program, orders = order_values(program)
    program, split = split_residues(program, target)
    program, faster = faster_convolutions(program, target, strict)
    return program, few + orders + split + faster
