"""What flows along the edges of a graph during import, and the means of defining more of it.

In: tensors, sizes. Out: `Value`s, and definitions added through a `Definer`, which every front end
makes one of for each operator call. Invariant: a `Value` whose contents are known (a constant, or a
shape tensor of tracked sizes) becomes a tensor of the Program only when a definition reads it; a
one-element constant is read as a literal.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import numpy as np

from tilewright.errors import InternalError, UserError
from tilewright.frontend.builder import Builder
from tilewright.frontend.sizes import Sizes, Sym
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64, DType, dtype_of
from tilewright.ir.expr import Expr
from tilewright.ir.program import Axis, Reduction, Tensor

__all__ = ["Array", "Definer", "Index", "Value", "like", "sizes_of"]

Array = np.ndarray[Any, np.dtype[Any]]
Index = Sequence[Expr]
_MAX_TABLE = 1 << 24


def like(e: Expr | Value, value: float | int | bool) -> Expr:
    """A constant of the dtype of `e`."""
    return E.const(value, e.dtype)


def sizes_of(shape: Sequence[int | Expr]) -> tuple[Expr, ...]:
    """A shape of integers and expressions as expressions."""
    return tuple(s if isinstance(s, Expr) else E.const(int(s)) for s in shape)


class Value:
    """dtype, shape, and one or both of: a tensor of the Program; known contents.

    known: a NumPy array (constant), or an object array of `Sym` and bool (a shape tensor).
    """

    __slots__ = ("_home", "_tensor", "builder", "dtype", "hint", "known", "shape")

    def __init__(
        self,
        builder: Builder,
        dtype: DType,
        shape: Sequence[Expr],
        *,
        tensor: Tensor | None = None,
        known: Array | None = None,
        hint: str = "c",
    ) -> None:
        self.builder, self.dtype, self.shape = builder, dtype, tuple(shape)
        self._tensor, self.known, self.hint = tensor, known, hint
        self._home = builder.statements  # a block that reads it first does not own it

    @property
    def rank(self) -> int:
        return len(self.shape)

    @property
    def array(self) -> Array | None:
        """The constant value, or None."""
        return self.known if self.known is not None and self.known.dtype != object else None

    @property
    def tensor(self) -> Tensor:
        """The tensor of the Program; made on first use from known contents."""
        if self._tensor is None:
            if self.known is None:
                raise InternalError("X001", f"value {self.hint!r} has neither tensor nor contents")
            with self.builder.inside(self._home):
                known = self.known.dtype != object
                self._tensor = self._constant() if known else self._symbolic()
        return self._tensor

    @property
    def name(self) -> str:
        return self.tensor.name

    def _constant(self) -> Tensor:
        assert self.known is not None  # for the type checker; `tensor` looked
        return self.builder.constant(self.known, self.hint)

    def _symbolic(self) -> Tensor:
        assert self.known is not None
        axes = self.builder.axes(self.shape)
        strides = [math.prod(self.known.shape[k + 1 :]) for k in range(self.rank)]
        position = E.const(0)
        for a, s in zip(axes, strides, strict=True):
            position = position + a.index * s
        items = [self._element(x) for x in self.known.reshape(-1)]
        body = items[-1] if items else E.const(0, self.dtype)
        for k in range(len(items) - 2, -1, -1):
            body = E.select(E.compare("eq", position, E.const(k)), items[k], body)
        return self.builder.define(self.hint, axes, body)

    def _element(self, x: Sym | bool) -> Expr:
        if isinstance(x, Sym):
            e = E.cast(x.num, self.dtype)
            return e if x.den == 1 else E.binary("div", e, E.const(x.den, self.dtype))
        return E.const(bool(x), BOOL)

    def at(self, *subscripts: Expr | int, orelse: Expr | float | int | bool | None = None) -> Expr:
        """The read `value[subscripts]` (or `else orelse`); a literal where the element is known and
        alone.
        """
        subs = [s if isinstance(s, Expr) else E.const(s) for s in subscripts]
        if len(subs) != self.rank:
            raise UserError(
                "F006",
                f"{self.hint!r} has rank {self.rank}, {len(subs)} is needed",
                where=self.builder.origin or self.hint,
            )
        if orelse is not None and not isinstance(orelse, Expr):
            orelse = E.const(orelse, self.dtype)
        if self.known is not None and orelse is None:
            if self.known.size == 1:
                item = self.known.reshape(-1)[0]
                return (
                    E.const(item, self.dtype) if self.known.dtype != object else self._element(item)
                )
            fixed = [E.int_value(s) for s in subs]
            if all(f is not None for f in fixed) and self.known.size:
                item = self.known[tuple(f for f in fixed if f is not None)]
                return (
                    E.const(item, self.dtype) if self.known.dtype != object else self._element(item)
                )
        return E.read(self.tensor.name, subs, self.dtype, orelse)

    def aligned(self, index: Index, orelse: Expr | None = None) -> Expr:
        """The read under NumPy broadcasting, at `index` of the broadcast result."""
        subs = index[len(index) - self.rank :] if self.rank else ()
        return self.at(
            *(
                E.const(0) if E.int_value(n) == 1 else s
                for n, s in zip(self.shape, subs, strict=True)
            ),
            orelse=orelse,
        )


class Definer:
    """One operator call being imported: helpers that add definitions named after its result.

    builder: the Program so far. sizes: what is known of its dims. op: the operator's name. Helpers
    return `Value`s. A front end says how the results are called, and what an error points at.
    """

    builder: Builder
    sizes: Sizes
    op: str
    page: ClassVar[str] = "docs/notation.md"  # what the front end supports

    @property
    def where(self) -> str:
        """What an error points at."""
        raise NotImplementedError

    @property
    def hint(self) -> str:
        """The base of names of what is defined."""
        raise NotImplementedError

    # ---- errors
    def refuse(self, message: str, nearest: str = "") -> UserError:
        """F005: this form of the operator has no import. `nearest`: what to write instead."""
        hint = nearest or f"see {self.page}"
        return UserError("F005", f"{self.op}: {message}", where=self.where, hint=hint)

    def contradiction(self, message: str) -> UserError:
        """F006: sizes contradict each other."""
        return UserError("F006", f"{self.op}: {message}", where=self.where)

    # ---- sizes
    def normal_axis(self, axis: int, rank: int) -> int:
        if not -rank <= axis < max(rank, 1):
            raise UserError(
                "F006",
                f"axis {axis} of {self.op} is outside a tensor of rank {rank}",
                where=self.where,
            )
        return axis + rank if axis < 0 else axis

    def fixed(self, e: Expr, what: str) -> int:
        """A size that must be static here. Errors: F005."""
        value = E.int_value(e)
        if value is None:
            raise self.refuse(f"{what} must be a fixed number, found {e}")
        return value

    def table(self, e: Expr, what: str) -> int:
        """A fixed size for which a table is made at import. Errors: F005, also above 2^24."""
        size = self.fixed(e, what)
        if size > _MAX_TABLE:
            raise self.refuse(f"{what} of {size}, more than {_MAX_TABLE}")
        return size

    def equal(self, a: Expr, b: Expr, what: str) -> Expr:
        """Require two sizes to be equal; returns the simpler one. Errors: F006."""
        if not self.sizes.require_equal(a, b):
            raise self.contradiction(f"{what}: {a} is not {b}")
        return min((a, b), key=lambda e: (e.op != "const", len(str(e))))

    def divide(self, a: Expr, b: Expr, what: str) -> Expr:
        """a / b for sizes; makes b divide a, by a new fact about the dims where needed. Errors:
        F006.
        """
        quotient = self.sizes.quotient(a, b)
        if quotient is None:
            whole = E.floordiv(a, b)
            if E.int_value(b) is None or not self.sizes.require_equal(whole * b, a):
                raise self.contradiction(f"{what}: {a} is not divisible by {b}")
            return whole
        return quotient

    # ---- shapes
    def broadcast(self, *shapes: Sequence[Expr]) -> tuple[Expr, ...]:
        """The NumPy broadcast of shapes; a symbolic size never stands for 1 unless it is 1. Errors:
        F006.
        """
        rank = max(map(len, shapes), default=0)
        out: list[Expr] = [E.const(1)] * rank
        for shape in shapes:
            for k, size in enumerate(shape, rank - len(shape)):
                if E.int_value(size) == 1:
                    continue
                out[k] = size if E.int_value(out[k]) == 1 else self.equal(out[k], size, f"axis {k}")
        return tuple(out)

    def tidied(self, shape: Sequence[Expr | int]) -> tuple[Expr, ...]:
        """A shape in the simplest spelling of its sizes."""
        return tuple(s if s.op == "const" else self.sizes.tidy(s) for s in sizes_of(shape))

    # ---- definitions
    def value(self, tensor: Tensor) -> Value:
        return Value(self.builder, tensor.dtype, tensor.shape, tensor=tensor, hint=tensor.name)

    def constant(self, array: Array, suffix: str = "c") -> Value:
        """A known value; the array's dtype must be one of ours."""
        array = np.asarray(array)
        dtype = dtype_of(array.dtype)
        if dtype is None:
            raise self.refuse(f"no element type for {array.dtype}")
        return Value(
            self.builder, dtype, sizes_of(array.shape), known=array, hint=f"{self.hint}_{suffix}"
        )

    def define(
        self,
        shape: Sequence[Expr | int],
        body: Callable[..., Expr],
        names: Sequence[str] = (),
        suffix: str = "",
        dtype: DType | None = None,
    ) -> Value:
        """`y[axes] = body(*indices)`; `dtype` casts the body."""
        axes = self.builder.axes(self.tidied(shape), names)
        e = body(*(a.index for a in axes))
        return self.value(
            self.builder.define(self._named(suffix), axes, e if dtype is None else E.cast(e, dtype))
        )

    def _named(self, suffix: str) -> str:
        return f"{self.hint}_{suffix}" if suffix else self.hint

    def scan(
        self, monoid: str, axis: int, shape: Sequence[Expr], body: Callable[..., Expr], suffix: str
    ) -> Value:
        """`y[axes] = scan monoid(axis) body(*indices)`."""
        axes = self.builder.axes(shape)
        e = body(*(a.index for a in axes))
        return self.value(
            self.builder.define(self._named(suffix), axes, e, scan=(monoid, axes[axis].name))
        )

    def reduce(
        self,
        monoid: str,
        shape: Sequence[Expr | int],
        over: Sequence[Expr | int],
        body: Callable[[Index, Index], Expr],
        *,
        names: Sequence[str] = (),
        over_names: Sequence[str] = (),
        guard: Callable[[Index, Index], Expr] | None = None,
        suffix: str = "",
        keep_ones: bool = False,
    ) -> Value:
        """`y[axes] = monoid(over if guard) body(indices, reduce indices)`.

        Reduce axes of extent 1 are dropped (their index is 0) unless `keep_ones`; with none left,
        sums, products, max and min become plain definitions.
        """
        over, shape = self.tidied(over), self.tidied(shape)
        if len(over_names) < len(over):
            over_names = [*over_names, *"rstuvwpq"[: len(over) - len(over_names)]]
        kept = [keep_ones or E.int_value(s) != 1 for s in over]
        names = [*names, *"ijklmn"[len(names) : len(shape)]]
        all_axes = self.builder.axes(
            (*shape, *(s for s, k in zip(over, kept, strict=True) if k)),
            (*_padded(names, len(shape)), *(x for x, k in zip(over_names, kept, strict=True) if k)),
        )
        axes, reduce_axes = all_axes[: len(shape)], all_axes[len(shape) :]
        rest = iter(reduce_axes)
        index = [a.index for a in axes]
        inner = [next(rest).index if k else E.const(0) for k in kept]
        e = body(index, inner)
        dtype = e.dtype
        if monoid in ("argmax", "argmin"):
            dtype = I64
        condition = guard(index, inner) if guard is not None else None
        if condition is not None and condition.op == "const" and condition.attr:
            condition = None
        plain = not reduce_axes and condition is None and monoid not in ("argmax", "argmin")
        reduction = None if plain else Reduction(monoid, reduce_axes, condition)
        return self.value(
            self.builder.define(self._named(suffix), axes, e, reduction=reduction, dtype=dtype)
        )

    def cast(self, v: Value, dtype: DType, suffix: str = "") -> Value:
        """The value in another dtype (itself where it has it already)."""
        if v.dtype is dtype:
            return v
        return self.define(v.shape, lambda *i: E.cast(v.at(*i), dtype), suffix=suffix)

    def elementwise(
        self, f: Callable[..., Expr], *values: Value, suffix: str = "", names: Sequence[str] = ()
    ) -> Value:
        """`f` of broadcast operands."""
        shape = self.broadcast(*(v.shape for v in values))
        return self.define(shape, lambda *i: f(*(v.aligned(i) for v in values)), names, suffix)

    def extern(
        self,
        function: str,
        args: Sequence[Value],
        results: Sequence[tuple[str, DType, Sequence[Expr]]],
        **attributes: int | float | str | bool | tuple[int, ...],
    ) -> list[Value]:
        """A call of an extern function; results are (suffix, dtype, shape)."""
        tensors = self.builder.extern(
            function,
            [a.name for a in args],
            [(self._named(s), t, shape) for s, t, shape in results],
            **attributes,
        )
        return [self.value(t) for t in tensors]

    def axes(self, shape: Sequence[Expr], names: Sequence[str] = ()) -> tuple[Axis, ...]:
        return self.builder.axes(shape, names)


def _padded(names: Sequence[str], count: int) -> list[str]:
    return [*names[:count], *("" for _ in range(count - len(names)))]
