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

__all__ = ["pad_inputs"]

REUSE = 4  # a copy pays where each element is read at least so many times


def pad_inputs(p: Program) -> Program:
    """See the module docstring."""
    inputs = {t.name: t for t in p.inputs}
    results = set(p.results)
    reuse: dict[str, int] = {}
    for s in p.body:
        if isinstance(s, Definition) and s.reduction is not None:
            for r in s.body.reads():
                name = r.attr[0]
                t = inputs.get(name)
                if r.attr[1] and r.args[-1].op == "const" and t is not None:
                    points = prod(int_extent(a.extent) for a in s.all_axes)
                    reuse[name] = max(
                        reuse.get(name, 0), points // max(1, prod(int_extent(n) for n in t.shape))
                    )
    chosen = {n for n, k in reuse.items() if k >= REUSE}
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
