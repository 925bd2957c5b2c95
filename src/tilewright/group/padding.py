"""Give padded readers of a model's inputs a copy with a halo.

In: a normalized Program. Out: the same with a moving definition put before each input that a
reduction reads with `else` many times over, so that its inner loops need no guards. Invariant: the
value of every definition is unchanged.
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tilewright.ir import expr as E
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import Axis, Definition, Program, Statement
from tilewright.machine.target import Target

__all__ = ["pad_inputs"]

REUSE = 4  # a copy pays where each element is read at least so many times

# The same where only the taps of a window read an element again, by the width of vectors: where the
# window slides along the innermost axis, a guard is a mask of vectors that are loaded anyway; else
# it chooses between two pointers.
WINDOW_REUSE = {512: (64, 16), 256: (10, 4)}


def pad_inputs(p: Program, target: Target) -> Program:
    """See the module docstring."""
    masked, chosen_between = REUSE, REUSE
    if not target.triple.startswith("aarch64"):
        masked, chosen_between = WINDOW_REUSE.get(target.vector_bits, (REUSE, REUSE))
    inputs = {t.name: t for t in p.inputs}
    results = set(p.results)
    chosen: set[str] = set()
    for s in p.body:
        if isinstance(s, Definition) and s.reduction is not None:
            for r in s.body.reads():
                name = r.attr[0]
                t = inputs.get(name)
                if r.attr[1] and r.args[-1].op == "const" and t is not None:
                    points = prod(int_extent(a.extent) for a in s.all_axes)
                    reuse = points // max(1, prod(int_extent(n) for n in t.shape))
                    used = r.indices()
                    least = REUSE
                    if all(a.name in used or int_extent(a.extent) == 1 for a in s.axes):
                        taps = {a.name for a in s.reduction.axes}
                        slides = len(r.args) > 1 and bool(taps & r.args[-2].indices())
                        least = masked if slides else chosen_between
                    if reuse >= least:
                        chosen.add(name)
    if not chosen:
        return p
    taken = set(p.tensors) | results
    copies: list[Statement] = []
    swap_name: dict[str, str] = {}
    for n in (t.name for t in p.inputs if t.name in chosen):
        t = inputs[n]
        name = f"{n}_wide"
        while name in taken:
            name += "_"
        axes = tuple(Axis(f"x{i}", e) for i, e in enumerate(t.shape))
        copies.append(Definition(name, t.dtype, axes, E.read(n, [a.index for a in axes], t.dtype)))
        swap_name[n] = name
    body: list[Statement] = []
    for s in p.body:
        if isinstance(s, Definition) and s.reduction is not None:
            swap = {
                r: E.read(swap_name[r.attr[0]], r.args[:-1], r.dtype, r.args[-1])
                for r in s.body.reads()
                if r.attr[1] and r.attr[0] in swap_name
            }
            s = replace(s, body=E.substitute(s.body, swap))
        body.append(s)
    return replace(p, body=tuple(copies + body))
