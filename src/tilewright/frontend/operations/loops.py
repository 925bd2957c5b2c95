"""Loops with a known number of steps.

In: first states, and what a step makes of them. Out: the last states. Invariant: a step sees the
states of the step before, all of them, whatever it has already made of the others.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.values import Definer, Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr
from tilewright.ir.program import Axis, Carry, Tensor, While

__all__ = ["repeat"]

Step = Callable[[Expr, list[Value]], Sequence[Value]]


def repeat(n: Definer, steps: Expr, initial: Sequence[Value], step: Step) -> list[Value]:
    """The states after `steps` steps; `step(t, states)` defines the next ones, in the shapes and
    dtypes that they had.
    """
    if E.int_value(steps) == 0:
        return list(initial)
    b = n.builder
    counter = b.fresh(f"{n.hint}_step")
    carries = [Carry(Tensor(b.fresh(f"{n.hint}_state"), v.dtype, v.shape), v.name) for v in initial]
    with b.inside() as statements:
        states = [n.value(c.tensor) for c in carries]
        found = step(E.read(counter, (), I64), states)
        block = b.block(statements, [v.name for v in found])
    results = [Tensor(b.fresh(f"{n.hint}_last"), v.dtype, v.shape) for v in initial]
    b.add(While(tuple(results), Axis(counter, steps), "", tuple(carries), block))
    return [n.value(t) for t in results]
