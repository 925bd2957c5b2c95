"""Rings: room for the last steps of a recurrence's states, where nothing outside reads them.

In: a recurrence, and which of its tensors leave it. Out: layouts whose first axis, the steps, goes
round a few slots. Invariant: a step that is read has not been written over.

A ring is no injection: the places of a tensor hold what the last steps have left there, so it is
no result of its kernel.
"""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import replace

from tilewright.ir import expr as E
from tilewright.ir.extent import is_symbolic
from tilewright.ir.layout import Layout, Term
from tilewright.ir.program import Recurrence

__all__ = ["ring", "slots_of"]


def slots_of(r: Recurrence, name: str) -> int:
    """How many steps of a tensor are needed at a time; 0 where reads do not tell."""
    step = r.axis.index
    reach = 0
    for d in r.definitions:
        for read in d.reads():
            if read.attr[0] != name:
                continue
            back = E.int_value(step - read.args[0])
            if back is None or back < 0:
                return 0
            reach = max(reach, back)
    return reach + 1


def ring(r: Recurrence, name: str, layout: Layout, leaving: Collection[str]) -> Layout | None:
    """The layout with as many slots as are needed, or None where the whole tensor is."""
    slots = slots_of(r, name)
    if name in leaving or not slots or not layout.is_row_major or layout.halo:
        return None
    if layout.is_symbolic or layout.shape[0] <= slots:
        return None
    first, rest = layout.terms[0], layout.terms[1:]
    if first.axis != 0 or is_symbolic(first.stride):
        return None
    around = Term(0, 1, slots, first.stride)
    return replace(layout, terms=(around, *rest), size=slots * first.stride)
