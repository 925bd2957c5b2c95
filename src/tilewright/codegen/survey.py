"""What a phase has, looked at once before code is written for it.

In: the body of a phase. Out: its loads and contractions, nodes that make integers, how often each
tile is an operand, which buffers are touched, which loops have loops in them.
"""

from __future__ import annotations

from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr
from tilewright.ir.nest import (
    Contract,
    Fill,
    For,
    Gather,
    If,
    Iota,
    Load,
    Map,
    Node,
    Position,
    Prefetch,
    Scatter,
    Store,
    operands,
)

__all__ = ["Survey"]


class Survey:
    """loads, contracts, integers: in order. gathers: whether there is a Gather. uses: of each
    tile. buffers: that are read or written, in subscripts and bounds too.
    """

    def __init__(self, body: tuple[Node, ...]) -> None:
        self.loads: list[Load] = []
        self.contracts: list[Contract] = []
        self.integers: list[Fill | Iota | Map | Position] = []
        self.gathers = False
        self.uses: dict[str, int] = {}
        self.buffers: set[str] = set()
        self._outer: set[int] = set()  # loops with loops in them
        self._visit(body)

    def is_innermost(self, n: For) -> bool:
        """Whether no loop is in it."""
        return id(n) not in self._outer

    def _visit(self, body: tuple[Node, ...]) -> bool:
        """Whether there is a loop in it."""
        has_loop = False
        for n in body:
            exprs: tuple[Expr, ...] = ()
            match n:
                case Load() | Store():
                    self.buffers.add(n.buffer)
                    exprs = (n.base, *[s for _, s in n.strides])
                    for _, lo, hi in n.limits:
                        exprs += (lo, hi)
                    if type(n) is Load:
                        self.loads.append(n)
                case Contract():
                    self.contracts.append(n)
                case Fill() | Iota() | Map():
                    if n.type.dtype in (I64, BOOL):
                        self.integers.append(n)
                case For():
                    has_loop = True
                    exprs = (n.lo, n.hi)
                    if self._visit(n.body):
                        self._outer.add(id(n))
                case If():
                    exprs = (n.condition,)
                    has_loop |= self._visit(n.then) | self._visit(n.orelse)
                case Position():
                    self.integers.append(n)
                    exprs = (n.value,)
                case Gather() | Scatter() | Prefetch():
                    self.gathers |= type(n) is Gather
                    self.buffers.add(n.buffer)
                    exprs = (n.base,)
            for e in exprs:
                if e.has_reads:
                    self.buffers |= {r.attr[0] for r in e.reads()}
            for name in operands(n):
                self.uses[name] = self.uses[name] + 1 if name in self.uses else 1
        return has_loop
