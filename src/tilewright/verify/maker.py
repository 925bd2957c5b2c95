"""A program in the making: sizes, inputs, statements, and what may be read.

In: random choices of the statement kinds. Out: a verified Program. Invariants: every dim is an axis
of some input; every tensor that nothing reads is a result.
"""

from __future__ import annotations

import random
import re
from collections import Counter
from collections.abc import Sequence
from math import prod

from tilewright.ir import expr as E
from tilewright.ir.binding import size_of
from tilewright.ir.dtypes import BF16, F16, F32, F64, I8, I16, I32, I64, U8, U32, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    Axis,
    Definition,
    Dim,
    Program,
    Reduction,
    Statement,
    Tensor,
    statement_reads,
)
from tilewright.ir.program_verifier import verify_program
from tilewright.verify.expressions import Expressions

__all__ = ["INTS", "WORK", "Maker"]

WORK = 1 << 17
_SIZES = (1, 2, 3, 4, 5, 7, 8, 9, 13, 16, 17, 24, 31, 33, 64, 67)
_FLOATS = (F32, F32, F32, F32, F32, F64, F16, BF16)
_FEW = 8  # factors
INTS = (I32, I64, I8, U8, I16, U32)


class Maker(Expressions):
    """The program so far."""

    def __init__(self, rng: random.Random, zero_sizes: bool) -> None:
        super().__init__(rng)
        self.zero = zero_sizes and rng.random() < 0.06
        self.sizes: dict[str, int] = {}
        self.values: dict[Expr, int] = {}
        self.inputs: list[Tensor] = []
        self.body: list[Statement] = []
        self.read: Counter[str] = Counter()
        self.number = 0
        self.weights: set[str] = set()  # inputs that are constants wherever that can be

    # ---- pieces ----

    def value(self, e: Expr) -> int:
        if e not in self.values:
            self.values[e] = size_of(e, self.sizes)
        return self.values[e]

    def elements(self, shape: Sequence[Expr]) -> int:
        return prod(self.value(e) for e in shape)

    def factor(self, e: Expr, axes: Sequence[Axis]) -> Expr:
        """A factor near one of a product over `axes`. A long product stays within a few powers of
        two, as in another order it would pass through infinity, or through 0; and its factors
        differ, as steps that are all alike round the same way, by how much depends on the order.
        """
        one = E.const(1, e.dtype)
        count = self.elements([a.extent for a in axes])
        if count <= _FEW:
            return E.add(E.mul(e, E.const(0.0625, e.dtype)), one)
        bounded = E.maximum(E.minimum(e, one), E.neg(one))
        for a in axes:
            sign = E.sub(E.mod(a.index, E.const(3)), E.const(1))
            varied = E.mul(E.cast(sign, e.dtype), E.const(0.25, e.dtype))
            bounded = E.add(E.mul(bounded, E.const(0.75, e.dtype)), varied)
        return E.add(E.mul(bounded, E.const(2.0 ** -count.bit_length(), e.dtype)), one)

    def fresh(self, letter: str) -> str:
        self.number += 1
        return f"{letter}{self.number}"

    def extent(self, most: int = 67) -> Expr:
        """A size: a constant, a dim that is there, or a new one."""
        rng = self.rng
        if self.sizes and rng.random() < 0.35:
            e = E.dim(rng.choice(list(self.sizes)))
            if self.value(e) <= most:
                return e
        n = rng.choice([s for s in _SIZES if s <= most] or [1])
        if self.zero and rng.random() < 0.2:
            n = 0
        if rng.random() < 0.35:
            name = f"N{len(self.sizes)}"
            self.sizes[name] = n
            return E.dim(name)
        return E.const(n)

    def shape(self, rank: int, budget: int = 4096) -> tuple[Expr, ...]:
        out: list[Expr] = []
        for _ in range(rank):
            e = self.extent(max(1, min(67, budget)))
            out.append(e)
            budget //= max(1, self.value(e))
        self.rng.shuffle(out)
        return tuple(out)

    def float_type(self) -> DType:
        return self.rng.choice(_FLOATS)

    def new_input(self, dtype: DType, shape: Sequence[Expr]) -> Tensor:
        t = Tensor(self.fresh("x"), dtype, tuple(shape))
        self.inputs.append(t)
        self.tensors.append(t)
        return t

    def operand(self, dtype: DType, shape: Sequence[Expr]) -> Tensor:
        """A tensor of exactly this type: an old one, often, or a new input."""
        fits = [t for t in self.tensors if t.dtype is dtype and t.shape == tuple(shape)]
        return (
            self.rng.choice(fits)
            if fits and self.rng.random() < 0.4
            else self.new_input(dtype, shape)
        )

    def source(self, rank: int, kind: str = "f", budget: int = 4096) -> Tensor:
        """A tensor of at least `rank` axes, recent ones preferred, or a new input."""
        fits = [
            t
            for t in self.tensors
            if t.dtype.kind in kind and len(t.shape) >= rank and self.elements(t.shape) <= budget
        ]
        if fits and self.rng.random() < 0.75:
            weights = [k + 1 + 3 * (self.read[t.name] == 0) for k, t in enumerate(fits)]
            return self.rng.choices(fits, weights)[0]
        dtype = self.float_type() if "f" in kind else self.rng.choice(INTS)
        return self.new_input(dtype, self.shape(rank + (self.rng.random() < 0.3), budget))

    def axes(self, shape: Sequence[Expr], start: int = 0) -> tuple[Axis, ...]:
        letters = "ijklmnopqrstuvw"
        return tuple(Axis(letters[start + k], e) for k, e in enumerate(shape))

    def add(
        self,
        dtype: DType,
        axes: Sequence[Axis],
        body: Expr,
        reduction: Reduction | None = None,
        scan: tuple[str, str] | None = None,
    ) -> Tensor:
        d = Definition(self.fresh("t"), dtype, tuple(axes), body, reduction, scan)
        self.body.append(d)
        for r in d.reads():
            self.read[r.attr[0]] += 1
        t = Tensor(d.name, dtype, d.shape)
        self.tensors.append(t)
        return t

    def known_inputs(self, program: Program) -> tuple[str, ...]:
        """Inputs of the program that are to be constants: the weights, and now and then others."""
        rng = self.rng
        share = rng.choice((0.0, 0.0, 0.0, 0.5))
        return tuple(
            t.name
            for t in program.inputs
            if all(E.int_value(e) is not None for e in t.shape)
            and t.name not in program.results
            and (t.name in self.weights or rng.random() < share)
        )

    def program(self) -> Program:
        """What was made so far; unread tensors and some others are the results."""
        defined = [t for t in self.tensors if t not in self.inputs]
        results = [t.name for t in defined if not self.read[t.name]]
        results += [t.name for t in defined if self.read[t.name] and self.rng.random() < 0.1]
        used = {n for s in self.body for n in statement_reads(s)}
        inputs = tuple(t for t in self.inputs if t.name in used or t.name in results)
        shown = {d for t in inputs for e in t.shape for d in e.names("dim")}
        missing = [n for n in self.sizes if n not in shown]
        if missing:  # every dim is an axis of some input
            name = self.fresh("x")
            inputs += (Tensor(name, F32, tuple(map(E.dim, missing))),)
        order = re.findall(r"\bN\d+", " ".join(str(e) for t in inputs for e in t.shape))
        dims = tuple(Dim(n) for n in dict.fromkeys(order))
        p = Program("case", inputs, tuple(self.body), tuple(results), dims)
        verify_program(p)
        return p
