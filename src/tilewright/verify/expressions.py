"""Random scalar expressions over the tensors of a program in the making.

In: tensors, axes, a dtype, a depth. Out: an expression. Invariants: it has the dtype asked for;
its reads are in range or have an `else`; operands stay in the domain of their function, so values
are mostly finite, but where `bare` asks for the function alone.
"""

from __future__ import annotations

import random
from collections.abc import Sequence

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F32, I32, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Axis, Tensor

__all__ = ["Expressions"]

_PLAIN = ("neg", "abs", "tanh", "sigmoid", "erf", "sin", "cos", "atan", "expm1", "asinh")
_STEPS = ("floor", "ceil", "round", "trunc", "sign")
_POSITIVE = ("sqrt", "rsqrt", "log", "log2", "log1p")
_LIMITED = ("tan", "asin", "acos", "atanh", "acosh", "sinh", "cosh")
_INT_BINARY = (
    "add",
    "sub",
    "mul",
    "min",
    "max",
    "floordiv",
    "mod",
    "fmod",
    "and",
    "or",
    "xor",
    "shl",
    "shr",
)


class Expressions:
    """Draws expressions; `tensors` may be read."""

    def __init__(self, rng: random.Random) -> None:
        self.rng = rng
        self.tensors: list[Tensor] = []
        self.bare: random.Random | None = None  # decides which operands are not brought into domain

    def alone(self, x: Expr) -> bool:
        """Is the operand taken as it is, whatever the domain of its function?"""
        if self.bare is None or not any(r.dtype.is_float for r in x.reads()):
            return False
        return self.bare.random() < 0.5

    def value(self, e: Expr) -> int:
        """The value of a size."""
        raise NotImplementedError

    def expression(
        self, dtype: DType, axes: Sequence[Axis], depth: int, must: Tensor | None = None
    ) -> Expr:
        """An expression over `axes`, one of whose leaves reads `must`."""
        if depth <= 0:
            return self.leaf(dtype, axes, must)
        if dtype is BOOL:
            return self.boolean(axes, depth, must)
        rng = self.rng
        first = self.expression(dtype, axes, depth - 1, must)
        style = rng.random()
        if style < 0.35:
            return self.unary(first)
        if style < 0.45:
            other = self.expression(dtype, axes, depth - 2)
            chosen = [first, other]
            rng.shuffle(chosen)
            return E.select(self.condition(axes, depth - 1), *chosen)
        second = self.expression(dtype, axes, depth - 1 if rng.random() < 0.5 else 0)
        return self.binary(first, second)

    def boolean(self, axes: Sequence[Axis], depth: int, must: Tensor | None) -> Expr:
        kind = must.dtype if must is not None else F32
        a = self.expression(kind, axes, depth - 1, must)
        b = self.expression(kind, axes, 0)
        if kind is BOOL:
            return E.logical(self.rng.choice(("and", "or")), a, b)
        test = E.compare(self.rng.choice(("lt", "le", "gt", "ge", "eq", "ne")), a, b)
        return E.unary("not", test) if self.rng.random() < 0.2 else test

    def condition(self, axes: Sequence[Axis], depth: int = 1) -> Expr:
        """A bool over indexes, or over values."""
        rng = self.rng
        if not axes or (depth > 0 and rng.random() < 0.3):
            dtype = F32
            limit = E.const(rng.choice((-0.5, 0.0, 0.25)), dtype)
            return E.compare("lt", self.leaf(dtype, axes), limit)
        a = rng.choice(axes)
        style = rng.random()
        if style < 0.4 and len(axes) > 1:
            return E.compare(rng.choice(("le", "lt", "ne")), a.index, rng.choice(axes).index)
        if style < 0.7:
            limit = E.const(rng.randint(0, max(1, self.value(a.extent))))
            return E.compare(rng.choice(("lt", "ge", "ne")), a.index, limit)
        return E.compare("eq", E.mod(a.index, E.const(rng.choice((2, 3)))), E.const(0))

    def unary(self, x: Expr) -> Expr:
        rng, dtype = self.rng, x.dtype
        if not dtype.is_float:
            op = rng.choice(("neg", "abs", "sign")) if dtype is not BOOL else "not"
            return E.unary(op, x)
        style = rng.random()
        if style < 0.12:
            return E.unary(rng.choice(_STEPS), E.mul(x, E.const(3, dtype)))
        if style < 0.3:
            positive = x if self.alone(x) else E.add(E.unary("abs", x), E.const(0.5, dtype))
            return E.unary(rng.choice(_POSITIVE), positive)
        if style < 0.4:
            below = x if self.alone(x) else E.minimum(x, E.const(3, dtype))
            return E.unary(rng.choice(("exp", "exp2")), below)
        if style < 0.5:
            return E.maximum(x, E.const(0, dtype))
        if style < 0.6:
            return self.limited(x)
        if style < 0.62:  # whole numbers, which the upper half holds
            return E.cast(E.unary("upper_half", E.unary("sign", x)), dtype)
        if style < 0.625:  # of 0 or 1, so that no rounding is seen
            some = E.select(E.unary("isnan", x), E.const(1, dtype), E.unary("sign", x))
            bits = E.unary("bits", E.unary("abs", some))
            return E.cast(E.floordiv(bits, E.const(1 << 20, I32)), dtype)
        if style < 0.63:
            test = E.unary(rng.choice(("isnan", "isinf")), x)
            return E.select(test, E.const(1, dtype), x)
        return E.unary(rng.choice(_PLAIN), x)

    def limited(self, x: Expr) -> Expr:
        """A function that is finite on a part of the line only, on that part."""
        op, dtype = self.rng.choice(_LIMITED), x.dtype
        if self.alone(x):
            return E.unary(op, x)
        inside = E.mul(E.unary("tanh", x), E.const(0.9375, dtype))
        if op == "acosh":
            return E.unary(op, E.add(E.unary("abs", x), E.const(1.125, dtype)))
        if op in ("sinh", "cosh"):
            return E.unary(op, E.maximum(E.minimum(x, E.const(3, dtype)), E.const(-3, dtype)))
        return E.unary(op, inside)

    def binary(self, a: Expr, b: Expr) -> Expr:
        rng, dtype = self.rng, a.dtype
        if dtype is BOOL:
            return E.logical(rng.choice(("and", "or")), a, b)
        if not dtype.is_float:
            return E.binary(rng.choice(_INT_BINARY), a, b)
        style = rng.random()
        if style < 0.7:
            return E.binary(rng.choice(("add", "sub", "mul", "max", "min")), a, b)
        away = b if self.alone(b) else E.add(E.unary("abs", b), E.const(0.5, dtype))
        if style < 0.85:
            return E.binary("div", a, away)
        if style < 0.9:
            return E.binary(rng.choice(("mod", "fmod", "floordiv")), a, away)
        if style < 0.95:
            base = a if self.alone(a) else E.add(E.unary("abs", a), E.const(0.5, dtype))
            return E.binary("pow", base, E.const(rng.choice((0.5, 2.0, -1.5)), dtype))
        return E.binary("atan2", a, away)

    def leaf(self, dtype: DType, axes: Sequence[Axis], must: Tensor | None = None) -> Expr:
        rng = self.rng
        if must is not None:
            return self.convert(self.read_at(must, axes), dtype)
        style = rng.random()
        fits = [t for t in self.tensors if t.dtype is dtype]
        if fits and style < 0.6:
            return self.read_at(rng.choice(fits), axes)
        if self.tensors and style < 0.7:
            t = rng.choice(self.tensors)
            if t.dtype.kind != "b":
                return self.convert(self.read_at(t, axes), dtype)
        if axes and style < 0.8 and dtype is not BOOL:
            index = rng.choice(axes).index
            if dtype.is_float:
                return E.mul(E.cast(index, dtype), E.const(0.0625, dtype))
            return E.cast(index, dtype)
        if dtype is BOOL:
            return E.const(rng.random() < 0.5)
        if dtype.is_float:
            return E.const(rng.choice((-1.5, -0.3, 0.0, 0.1, 0.7, 1.0, 2.0)), dtype)
        return E.const(rng.choice((0, 1, 2, 3, 7, -1, -5)), dtype)

    def convert(self, x: Expr, dtype: DType) -> Expr:
        if dtype is BOOL and x.dtype is not BOOL:
            return E.compare("lt", E.const(0, x.dtype), x)
        return E.cast(x, dtype)

    def read_at(self, t: Tensor, axes: Sequence[Axis]) -> Expr:
        """A read of `t` at places made of the indexes: its own axes where they fit."""
        rng = self.rng
        subscripts: list[Expr] = []
        padded = False
        for k, n in enumerate(t.shape):
            fits = [a for a in axes if a.extent is n]
            if fits and rng.random() < 0.92:
                own = [a for j, a in enumerate(axes) if j == k and a in fits]
                pick = own[0] if own and rng.random() < 0.8 else rng.choice(fits)
                subscripts.append(pick.index)
                if rng.random() < 0.04:
                    subscripts[-1] = subscripts[-1] + rng.choice((-1, 1))
                    padded = True
                continue
            size = self.value(n)
            style = rng.random()
            if not axes or style < 0.4:
                subscripts.append(E.const(rng.randrange(size) if size else 0))
            else:
                i = rng.choice(axes).index
                if style < 0.6 and size:
                    subscripts.append(E.mod(i, n))
                elif style < 0.8 and size:
                    subscripts.append(E.minimum(i, n - 1))
                else:
                    subscripts.append(i * rng.choice((1, 1, 2)) + rng.choice((0, 0, -1, 1)))
                    padded = True
            padded = padded or size == 0
        orelse = None
        if padded:
            orelse = E.const(True) if t.dtype is BOOL else E.const(1, t.dtype)
        return E.read(t.name, subscripts, t.dtype, orelse)
