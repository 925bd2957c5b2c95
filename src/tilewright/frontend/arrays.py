"""Functions written with NumPy -> Program.

In: a Python function of arrays, and the shapes and dtypes of its arguments. Out: the Program that
it computes, found by calling it once with arrays that record what is done with them. Invariants:
dtypes are NumPy's promotion; a NumPy function without a row is an error with its name; what the
function does beside arrays happens once, while it is recorded.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.frontend.builder import Builder, identifier
from tilewright.frontend.notation import from_einsum
from tilewright.frontend.operations.activations import convert
from tilewright.frontend.operations.arithmetic import floor_divide, floor_modulo
from tilewright.frontend.operations.contractions import contract
from tilewright.frontend.operations.layouts import reshape_to
from tilewright.frontend.operations.reductions import arg_over, mean_of, over_axes
from tilewright.frontend.sizes import Sizes
from tilewright.frontend.values import Definer, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, dtype_of
from tilewright.ir.expr import Expr
from tilewright.ir.program import Program
from tilewright.ir.program_verifier import verify_program

__all__ = ["Recorded", "record"]

_COMPARE = {
    "less": "lt", "less_equal": "le", "greater": "gt", "greater_equal": "ge", "equal": "eq",
    "not_equal": "ne",
}  # fmt: skip
_UNARY = {
    "negative": "neg", "absolute": "abs", "fabs": "abs", "sign": "sign", "floor": "floor",
    "ceil": "ceil", "trunc": "trunc", "rint": "round", "sqrt": "sqrt", "exp": "exp", "exp2": "exp2",
    "expm1": "expm1", "log": "log", "log2": "log2", "log1p": "log1p", "sin": "sin", "cos": "cos",
    "tan": "tan", "arcsin": "asin", "arccos": "acos", "arctan": "atan", "sinh": "sinh",
    "cosh": "cosh", "tanh": "tanh", "arcsinh": "asinh", "arccosh": "acosh", "arctanh": "atanh",
    "isnan": "isnan", "isinf": "isinf", "logical_not": "not",
}  # fmt: skip
_BINARY: dict[str, Callable[[Expr, Expr], Expr]] = {
    "add": E.add, "subtract": E.sub, "multiply": E.mul, "maximum": E.maximum,
    "minimum": E.minimum, "remainder": floor_modulo, "floor_divide": floor_divide,
    "divide": lambda a, b: E.binary("div", a, b), "power": lambda a, b: E.binary("pow", a, b),
    "arctan2": lambda a, b: E.binary("atan2", a, b), "fmod": lambda a, b: E.binary("fmod", a, b),
}  # fmt: skip
_BITS = {"bitwise_and": "and", "bitwise_or": "or", "invert": "not"}  # of bools
_LOGICAL = {"logical_and": "and", "logical_or": "or"}
_FOLDS = {"sum": "sum", "prod": "prod", "max": "max", "amax": "max", "min": "min", "amin": "min"}


class _Step(Definer):
    """The definitions of one call of a NumPy function."""

    def __init__(self, builder: Builder, sizes: Sizes, op: str) -> None:
        self.builder, self.sizes, self.op = builder, sizes, op

    @property
    def where(self) -> str:
        return f"numpy.{self.op}"

    @property
    def hint(self) -> str:
        return identifier(self.op, "y")

    def refuse(self, message: str, nearest: str = "") -> UserError:
        return UserError(
            "F005", f"numpy.{self.op}: {message}", where=self.where,
            hint=nearest or "write it with other functions, or in index notation",
        )  # fmt: skip

    def contradiction(self, message: str) -> UserError:
        return UserError("F006", f"numpy.{self.op}: {message}", where=self.where)


class Recorded(np.lib.mixins.NDArrayOperatorsMixin):
    """An array while a function is recorded: it has a shape and a dtype, and no numbers."""

    def __init__(self, home: _Home, value: Value) -> None:
        self.home, self.value = home, value
        self.shape = tuple(int(E.int_value(s) or 0) for s in value.shape)
        self.dtype = np.dtype(value.dtype.np)
        self.ndim = len(self.shape)

    @property
    def size(self) -> int:
        """How many elements there are."""
        return int(np.prod(self.shape, dtype=np.int64))

    @property
    def T(self) -> Recorded:
        """The axes in reverse order."""
        return self.transpose()

    def transpose(self, *axes: Any) -> Recorded:
        """As ndarray.transpose."""
        given = axes[0] if len(axes) == 1 and not isinstance(axes[0], int) else axes or None
        return self.home.call("transpose", self, given)

    def reshape(self, *shape: Any) -> Recorded:
        """As ndarray.reshape."""
        given = shape[0] if len(shape) == 1 else shape
        return self.home.call("reshape", self, given)

    def astype(self, dtype: Any) -> Recorded:
        """As ndarray.astype."""
        return self.home.cast(self, np.dtype(dtype))

    def __getattr__(self, name: str) -> Any:
        if name in (*_FOLDS, "mean", "argmax", "argmin") and not name.startswith("am"):
            return lambda *args, **more: getattr(np, name)(self, *args, **more)
        raise AttributeError(f"an array that is recorded has no attribute {name!r}")

    def __getitem__(self, key: Any) -> Recorded:
        return self.home.item(self, key)

    def __len__(self) -> int:
        return self.shape[0]

    def __bool__(self) -> bool:
        raise self.home.step("bool").refuse("the value of an array is not known while recording")

    def __array__(self, *_: Any, **__: Any) -> Any:
        raise self.home.step("asarray").refuse("an array of numbers is not known while recording")

    def __array_ufunc__(self, ufunc: Any, method: str, *args: Any, **more: Any) -> Any:
        if method == "reduce":
            fold = {"add": "sum", "multiply": "prod", "maximum": "max", "minimum": "min"}
            if ufunc.__name__ in fold:
                more.setdefault("axis", 0)
                return self.home.call(fold[ufunc.__name__], *args, **more)
        if method != "__call__" or more:
            extra = ", ".join(more) or "this"
            raise self.home.step(ufunc.__name__).refuse(f"{method} with {extra}")
        if ufunc.__name__ == "matmul":
            return self.home.call("matmul", *args)
        return self.home.pointwise(ufunc, args)

    def __array_function__(self, function: Any, _: Any, args: Any, more: Any) -> Any:
        return self.home.call(function.__name__, *args, **more)


class _Home:
    """The Program that is being recorded."""

    def __init__(self, name: str, taken: Sequence[str]) -> None:
        self.builder, self.sizes = Builder(name, taken), Sizes()

    def step(self, op: str) -> _Step:
        """A step of the Program."""
        return _Step(self.builder, self.sizes, op)

    def value(self, n: _Step, x: Any, dtype: Any = None) -> Value:
        """Recorded arrays as they are, anything else as a constant."""
        if isinstance(x, Recorded):
            return x.value
        array = np.asarray(x, dtype)
        if dtype_of(array.dtype) is None:
            raise n.refuse(f"an array of {array.dtype}")
        return n.constant(array)

    def cast(self, x: Recorded, dtype: Any) -> Recorded:
        """The array in another dtype."""
        n = self.step("astype")
        to = dtype_of(dtype)
        if to is None:
            raise n.refuse(f"an array of {dtype}")
        return Recorded(self, n.define(x.value.shape, lambda *i: convert(x.value.at(*i), to)))

    def pointwise(self, ufunc: Any, args: Sequence[Any]) -> Recorded:
        """A ufunc of arrays that broadcast."""
        name = ufunc.__name__
        n = self.step(name)
        kinds = [a.dtype if isinstance(a, Recorded) else _kind(a) for a in args]
        found = ufunc.resolve_dtypes((*kinds, *[None] * ufunc.nout))
        inner, outer = dtype_of(found[0]), dtype_of(found[-1])
        if inner is None or outer is None or ufunc.nout != 1:
            raise n.refuse(f"an array of {found[-1]}")
        values = [self.value(n, a, None if isinstance(a, Recorded) else found[0]) for a in args]

        def body(*e: Expr) -> Expr:
            x = [convert(v, inner) for v in e]
            if name in _COMPARE:
                return E.compare(_COMPARE[name], x[0], x[1])
            if name in _BITS and inner is BOOL:
                return E.unary("not", x[0]) if name == "invert" else E.logical(_BITS[name], *x)
            if name in _LOGICAL:
                return E.logical(_LOGICAL[name], *(_truth(v) for v in x))
            if name == "logical_not":
                return E.unary("not", _truth(x[0]))
            if name in _UNARY:
                return convert(E.unary(_UNARY[name], x[0]), outer)
            if name == "square":
                return E.mul(x[0], x[0])
            if name == "reciprocal":
                return E.binary("div", like(x[0], 1), x[0])
            if name in _BINARY:
                return convert(_BINARY[name](x[0], x[1]), outer)
            raise n.refuse("no row for this function")

        return Recorded(self, n.elementwise(body, *values))

    def item(self, x: Recorded, key: Any) -> Recorded:
        """Integers, slices, None and `...` as subscripts."""
        n = self.step("getitem")
        keys = list(key) if isinstance(key, tuple) else [key]
        if not all(k is None or k is ... or isinstance(k, int | slice) for k in keys):
            raise n.refuse("an index that is no integer or slice", "use numpy.take")
        given = sum(k is not None and k is not ... for k in keys)
        if ... not in keys:
            keys.append(...)
        at = keys.index(...)
        keys[at : at + 1] = [slice(None)] * (x.ndim - given)
        shape: list[int] = []
        reads: list[Callable[[list[Expr]], Expr]] = []
        axis = 0
        for k in keys:
            if k is None:
                shape.append(1)
                continue
            size = x.shape[axis]
            if isinstance(k, int):
                place = range(size)[k]
                reads.append(lambda i, place=place: E.const(place))  # type: ignore[misc]
            else:
                span = range(size)[k]
                where = len(shape)
                reads.append(
                    lambda i, s=span, w=where: i[w] * s.step + s.start  # type: ignore[misc]
                )
                shape.append(len(span))
            axis += 1
        if axis != x.ndim:
            raise n.contradiction(f"{axis} indices for {x.ndim} axes")
        return Recorded(self, n.define(shape, lambda *i: x.value.at(*(r(list(i)) for r in reads))))

    def call(self, name: str, *args: Any, **more: Any) -> Recorded:
        """A NumPy function that is no ufunc."""
        n = self.step(name)
        row = _ROWS.get(name)
        if row is None:
            raise n.refuse("no row for this function")
        try:
            found = row(self, n, *args, **more)
        except TypeError as error:
            raise n.refuse(f"arguments of this form ({error})") from None
        return Recorded(self, found)


def _kind(x: Any) -> Any:
    """What NumPy promotes with: the type of a Python number, else a dtype."""
    if type(x) in (int, float, complex):
        return type(x)
    return np.asarray(x).dtype


def _truth(e: Expr) -> Expr:
    return e if e.dtype is BOOL else E.compare("ne", e, like(e, 0))


def _axes(n: _Step, x: Value, axis: Any) -> list[int]:
    if axis is None:
        return list(range(x.rank))
    given = axis if isinstance(axis, tuple | list) else [axis]
    return sorted(n.normal_axis(int(a), x.rank) for a in given)


def _fold(monoid: str) -> Callable[..., Value]:
    def row(home: _Home, n: _Step, a: Any, axis: Any = None, keepdims: bool = False) -> Value:
        x = home.value(n, a)
        dtype = x.dtype
        if monoid in ("sum", "prod"):
            found = dtype_of(getattr(np, monoid)(np.empty(0, x.dtype.np)).dtype)
            assert found is not None  # sums of our dtypes are of our dtypes
            dtype = found
        wide = dtype.accumulator
        y = over_axes(
            n, x, _axes(n, x, axis), monoid, lambda *i: convert(x.at(*i), wide), keepdims, ""
        )
        return n.cast(y, dtype)

    return row


def _mean(home: _Home, n: _Step, a: Any, axis: Any = None, keepdims: bool = False) -> Value:
    x = home.value(n, a)
    if not x.dtype.is_float:
        raise n.refuse("the mean of integers", "convert with astype first")
    axes = _axes(n, x, axis)
    kept = mean_of(n, x, axes, "mean")
    shape = kept.shape if keepdims else [s for k, s in enumerate(kept.shape) if k not in axes]
    return n.cast(reshape_to(n, kept, shape), x.dtype)


def _arg(monoid: str) -> Callable[..., Value]:
    def row(home: _Home, n: _Step, a: Any, axis: Any = None, keepdims: bool = False) -> Value:
        x = home.value(n, a)
        if axis is None:
            x, axis = reshape_to(n, x, [n.sizes.product(x.shape)]), 0
        return arg_over(n, x, n.normal_axis(axis, x.rank), monoid, keepdims, lambda e: e, "")

    return row


def _matmul(home: _Home, n: _Step, a: Any, b: Any) -> Value:
    x, y = home.value(n, a), home.value(n, b)
    found = dtype_of(np.result_type(x.dtype.np, y.dtype.np))
    if found is None:
        raise n.refuse(f"operands of {x.dtype} and {y.dtype}")
    return n.cast(contract(n, x, y, found.accumulator), found)


def _transpose(home: _Home, n: _Step, a: Any, axes: Any = None) -> Value:
    x = home.value(n, a)
    order = list(range(x.rank))[::-1] if axes is None else [n.normal_axis(k, x.rank) for k in axes]
    if sorted(order) != list(range(x.rank)):
        raise n.contradiction(f"axes {axes} are no order")
    return n.define(
        [x.shape[k] for k in order], lambda *i: x.at(*(i[order.index(k)] for k in range(x.rank)))
    )


def _swapaxes(home: _Home, n: _Step, a: Any, axis1: int, axis2: int) -> Value:
    order = list(range(home.value(n, a).rank))
    order[axis1], order[axis2] = order[axis2], order[axis1]
    return _transpose(home, n, a, order)


def _reshape(home: _Home, n: _Step, a: Any, shape: Any) -> Value:
    x = home.value(n, a)
    wanted = list(shape) if isinstance(shape, tuple | list) else [shape]
    held = [int(E.int_value(s) or 0) for s in x.shape]
    try:
        whole = np.empty(held, np.bool_).reshape(wanted).shape if np.prod(held) < 1 << 24 else None
    except ValueError as error:
        raise n.contradiction(str(error)) from None
    if whole is None:
        known = int(np.prod([s for s in wanted if s >= 0], dtype=np.int64))
        whole = tuple(int(np.prod(held, dtype=np.int64)) // known if s < 0 else s for s in wanted)
    return reshape_to(n, x, [E.const(int(s)) for s in whole])


def _where(home: _Home, n: _Step, condition: Any, x: Any, y: Any) -> Value:
    c = home.value(n, condition)
    kinds = [v.dtype if isinstance(v, Recorded) else _plain(v) for v in (x, y)]
    found = dtype_of(np.result_type(*kinds))
    if found is None:
        raise n.refuse("operands of these dtypes")
    a, b = (home.value(n, v, None if isinstance(v, Recorded) else found.np) for v in (x, y))
    return n.elementwise(
        lambda k, p, q: E.select(_truth(k), convert(p, found), convert(q, found)), c, a, b
    )


def _plain(x: Any) -> Any:
    return x if type(x) in (int, float) else np.asarray(x).dtype


def _concatenate(home: _Home, n: _Step, arrays: Sequence[Any], axis: int = 0) -> Value:
    values = [home.value(n, a) for a in arrays]
    found = dtype_of(np.result_type(*(v.dtype.np for v in values)))
    if found is None:
        raise n.refuse("operands of these dtypes")
    at = n.normal_axis(axis, values[0].rank)
    starts = [E.const(0)]
    for v in values:
        starts.append(starts[-1] + v.shape[at])
    shape = [starts[-1] if k == at else s for k, s in enumerate(values[0].shape)]

    def body(*i: Expr) -> Expr:
        out: Expr | None = None
        for v, start in reversed(list(zip(values, starts, strict=False))):
            e = convert(v.at(*(x - start if k == at else x for k, x in enumerate(i))), found)
            before = E.compare("lt", i[at], start + v.shape[at])
            out = e if out is None else E.select(before, e, out)
        assert out is not None  # there is an array
        return out

    return n.define(shape, body)


def _expand(home: _Home, n: _Step, a: Any, axis: int) -> Value:
    x = home.value(n, a)
    at = n.normal_axis(axis, x.rank + 1)
    return reshape_to(n, x, [*x.shape[:at], E.const(1), *x.shape[at:]])


def _broadcast(home: _Home, n: _Step, array: Any, shape: Any) -> Value:
    x = home.value(n, array)
    whole = n.broadcast(x.shape, [E.const(int(s)) for s in shape])
    return n.define(whole, lambda *i: x.aligned(i))


def _clip(home: _Home, n: _Step, a: Any, a_min: Any = None, a_max: Any = None) -> Value:
    found: Any = a
    if a_min is not None:
        found = np.maximum(found, a_min)
    if a_max is not None:
        found = np.minimum(found, a_max)
    return home.value(n, found)


def _einsum(home: _Home, n: _Step, spec: str, *operands: Any) -> Value:
    """Operands one after the other; an index is summed as soon as nothing later has it."""
    left, arrow, right = spec.replace(" ", "").partition("->")
    terms = left.split(",")
    from_einsum(spec)  # says what is wrong with it
    if len(terms) != len(operands):
        raise n.contradiction(f"{spec!r} has {len(terms)} terms for {len(operands)} operands")
    letters = left.replace(",", "")
    if not arrow:
        right = "".join(sorted(c for c in set(letters) if letters.count(c) == 1))
    values = [home.value(n, v) for v in operands]
    found = dtype_of(np.result_type(*(v.dtype.np for v in values)))
    if found is None:
        raise n.refuse("operands of these dtypes")
    wide = found.accumulator
    sizes: dict[str, Expr] = {}
    for term, v in zip(terms, values, strict=True):
        if len(term) != v.rank:
            raise n.contradiction(f"term {term!r} for {v.rank} axes")
        for c, s in zip(term, v.shape, strict=True):
            sizes[c] = n.equal(sizes[c], s, f"index {c!r}") if c in sizes else s
    have, current = terms[0], values[0]
    for k in range(1, len(terms) + 1):
        later = set(right).union(*terms[k + 1 :])
        other = values[k] if k < len(terms) else None
        term = terms[k] if k < len(terms) else ""
        if other is None and len(terms) > 1:
            break
        kept = [c for c in dict.fromkeys(have + term) if c in later]
        last = k >= len(terms) - 1
        kept = list(right) if last else kept
        gone = [c for c in dict.fromkeys(have + term) if c not in kept]

        def body(
            i: Sequence[Expr], r: Sequence[Expr], kept: list[str] = kept, gone: list[str] = gone,
            have: str = have, term: str = term, a: Value = current, b: Value | None = other,
        ) -> Expr:
            at = dict(zip([*kept, *gone], [*i, *r], strict=True))
            e = convert(a.at(*(at[c] for c in have)), wide)
            if b is None:
                return e
            return E.mul(e, convert(b.at(*(at[c] for c in term)), wide))

        current = n.reduce("sum", [sizes[c] for c in kept], [sizes[c] for c in gone], body)
        have = "".join(kept)
    return n.cast(current, found)


_ROWS: dict[str, Callable[..., Value]] = {
    **{name: _fold(monoid) for name, monoid in _FOLDS.items()},
    "mean": _mean, "argmax": _arg("argmax"), "argmin": _arg("argmin"), "matmul": _matmul,
    "dot": _matmul, "transpose": _transpose, "swapaxes": _swapaxes, "reshape": _reshape,
    "where": _where, "concatenate": _concatenate, "expand_dims": _expand,
    "broadcast_to": _broadcast, "clip": _clip, "einsum": _einsum,
}  # fmt: skip


def record(
    function: Callable[..., Any], specs: Sequence[tuple[str, tuple[int, ...], Any]]
) -> tuple[Program, bool]:
    """The Program of `function` for arguments of these names, shapes and dtypes, and whether it
    returns one array and no tuple.

    Errors: F005 for what has no row, F006 for shapes that contradict, R005 for a result that is no
    array.
    """
    home = _Home(getattr(function, "__name__", "function"), [s[0] for s in specs])
    given = []
    for name, shape, dtype in specs:
        kind = dtype_of(np.dtype(dtype))
        if kind is None:
            raise UserError("R005", f"argument {name!r} is an array of {dtype}")
        tensor = home.builder.input(name, kind, [E.const(s) for s in shape])
        given.append(Recorded(home, Value(home.builder, kind, tensor.shape, tensor=tensor)))
    found = function(*given)
    many = list(found) if isinstance(found, tuple | list) else [found]
    n = home.step("result")
    names = []
    for x in many:
        if not isinstance(x, Recorded | np.ndarray | np.generic | int | float):
            raise UserError(
                "R005", f"the function returns a {type(x).__name__}",
                where=str(function), hint="return an array, or a tuple of arrays",
            )  # fmt: skip
        v = home.value(n, x)
        taken = v.known is not None or v.tensor.name in {t.name for t in home.builder.inputs}
        names.append((n.define(v.shape, lambda *i, v=v: v.at(*i)) if taken else v).name)
    program = home.builder.program(names, ())
    verify_program(program)
    return program, not isinstance(found, tuple | list)
