"""Statement kinds with blocks, and sizes that values define, for random Programs.

In: a `Maker`. Out: one statement more, or a few. Invariants: a block reads what stands before it;
states of a loop stay bounded; tensors whose size a value defines are read by other statements only
after they are folded.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    Axis,
    Block,
    Carry,
    Definition,
    If,
    Reduction,
    Scatter,
    Size,
    Statement,
    Tensor,
    While,
    statement_reads,
)
from tilewright.verify.maker import Maker

__all__ = ["BLOCK_KINDS"]


def _inside(m: Maker, make: Callable[[], tuple[str, ...]], own: tuple[Tensor, ...] = ()) -> Block:
    """A block of what `make` adds; tensors that it defines, and its own, are seen nowhere else."""
    body, tensors = m.body, m.tensors
    m.body, m.tensors = [], [*tensors, *own]
    try:
        results = make()
        made = tuple(m.body)
    finally:
        inner = {t.name for t in m.inputs} - {t.name for t in tensors}
        m.body, m.tensors = body, [*tensors, *(t for t in m.inputs if t.name in inner)]
    return Block(made, results)


def _keep(m: Maker, s: Statement, *results: Tensor) -> None:
    m.body.append(s)
    for n in statement_reads(s):
        m.read[n] += 1
    m.tensors += results


def _condition(m: Maker) -> Tensor:
    """A bool scalar that an input decides."""
    given = m.operand(I64, ())
    limit = E.const(m.rng.randint(-4, 4))
    return m.add(BOOL, (), E.compare("lt", E.read(given.name, (), I64), limit))


def branch(m: Maker) -> None:
    """Two blocks that give tensors like one that is there."""
    t = m.source(m.rng.choice((1, 2, 2)))
    condition = _condition(m)

    def make() -> tuple[str, ...]:
        last = t
        for _ in range(m.rng.randint(0, 2)):
            axes = m.axes(t.shape)
            last = m.add(t.dtype, axes, m.expression(t.dtype, axes, m.rng.choice((1, 2)), last))
        return (last.name,)

    blocks = [_inside(m, make) for _ in range(2)]
    result = Tensor(m.fresh("t"), t.dtype, t.shape)
    _keep(m, If((result,), condition.name, *blocks), result)


def loop(m: Maker) -> None:
    """A state that is squashed at every step, with a row for every step."""
    t = m.source(m.rng.choice((1, 2)), budget=1024)
    steps = E.const(m.rng.choice((0, 1, 2, 5)))
    condition = _condition(m).name if m.rng.random() < 0.4 else ""
    counter, state = m.fresh("s"), Tensor(m.fresh("t"), t.dtype, t.shape)
    proceed = m.rng.random() < 0.5

    def make() -> tuple[str, ...]:
        axes = m.axes(t.shape)
        at = E.cast(E.read(counter, (), I64), t.dtype)
        moved = E.add(m.expression(t.dtype, axes, 2, state), at)
        after = m.add(t.dtype, axes, E.unary("tanh", moved))
        out = (after.name, state.name if m.rng.random() < 0.5 else after.name)
        if not proceed:
            return out
        limit = E.const(m.rng.randint(0, 4))
        again = m.add(BOOL, (), E.compare("lt", E.read(counter, (), I64), limit))
        return (*out, again.name)

    block = _inside(m, make, (state,))
    handed = block.results[:2]
    last, rows = (Tensor(m.fresh("t"), t.dtype, shape) for shape in (t.shape, (steps, *t.shape)))
    s = While(
        (last, rows),
        Axis(counter, steps),
        condition,
        (Carry(state, t.name),),
        Block(block.body, handed),
        block.results[2] if proceed else "",
    )
    _keep(m, s, last, rows, s.counter)


def chosen(m: Maker) -> None:
    """The elements that a condition holds for, moved together, and what is made of them."""
    t = m.source(1, budget=512)
    if len(t.shape) != 1:
        return
    (n,) = t.shape
    i = Axis("i", n)
    at = E.read(t.name, [i.index], t.dtype)
    holds = m.add(I64, (i,), E.cast(E.compare("lt", E.const(0, t.dtype), at), I64))
    one = E.read(holds.name, [i.index], I64)
    count = m.add(I64, (), one, Reduction("sum", (i,)))
    rank = m.add(I64, (i,), one, scan=("sum", "i"))
    size = E.dim(m.fresh("K"))
    _keep(m, Size(size.attr, n, count.name))
    k, j = Axis("k", size), Axis("j", size)
    place = E.read(rank.name, [i.index], I64) - 1
    place = E.select(E.compare("eq", one, E.const(1)), place, E.const(-1))
    name = m.fresh("t")
    _keep(m, Scatter(name, I64, (k,), None, (i,), (place,), i.index, E.const(0)))
    found = E.read(t.name, [E.read(name, [k.index], I64)], t.dtype)
    values = Definition(m.fresh("t"), t.dtype, (k,), found)
    _keep(m, values)

    def value(e: Expr) -> Expr:
        return E.read(values.name, [e], t.dtype)

    made = m.rng.choice(("max", "min", "turned", "padded", "pairs"))
    if made in ("max", "min"):
        m.add(t.dtype, (), value(k.index), Reduction(made, (k,)))
    elif made == "turned":
        zero = E.const(0, t.dtype)
        m.add(t.dtype, (i,), E.read(values.name, [size - 1 - i.index], t.dtype, zero))
    elif made == "padded":
        m.add(t.dtype, (i,), E.read(values.name, [i.index - 1], t.dtype, E.const(2, t.dtype)))
    else:
        both = E.minimum(value(k.index), value(j.index))
        rows = Definition(m.fresh("t"), t.dtype, (j,), both, Reduction("max", (k,)))
        _keep(m, rows)
        m.add(t.dtype, (), E.read(rows.name, [j.index], t.dtype), Reduction("min", (j,)))


BLOCK_KINDS: dict[str, tuple[Callable[[Maker], None], int]] = {
    "branch": (branch, 1),
    "loop": (loop, 1),
    "chosen": (chosen, 1),
}
