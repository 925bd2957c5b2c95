"""Values known at import: constant subgraphs and arithmetic on tracked sizes.

In: a node all of whose inputs are known. Out: its outputs as arrays (numbers, or objects holding
`Sym` and bool), or nothing where it cannot or should not be folded. Invariant: a folded result is
what the row's definitions would compute, by the NumPy meaning of ir/scalar.py; results much larger
than what they are made of are not folded.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.frontend.onnx.table import Row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.sizes import Sizes, Sym, Undecided
from tilewright.frontend.values import Array, Value, sizes_of
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, DType, dtype_of
from tilewright.ir.expr import Expr
from tilewright.ir.scalar import evaluate

__all__ = ["as_objects", "evaluate_scalar", "fold", "fold_reduction", "may_grow", "tracked"]

_TRACKED = 256  # elements of a tracked shape tensor
_GROWTH_FLOOR = 1 << 16


def may_grow(result_elems: int, source_elems: int) -> None:
    """Raises Undecided when a folded constant would be much larger than its sources."""
    if result_elems > max(_GROWTH_FLOOR, 2 * source_elems):
        raise Undecided


def fold(n: Node, r: Row) -> list[Value | None] | None:
    """The outputs of a node with known inputs, or None."""
    given = [v for v in n.inputs if v is not None]
    if not given or any(v.known is None for v in given):
        return None
    arrays = [None if v is None else v.known for v in n.inputs]
    objects = any(v.known is not None and v.known.dtype == object for v in given)
    try:
        if objects and sum(v.known.size for v in given if v.known is not None) > _TRACKED:
            return None
        if objects and n.op in _SYMBOLIC:
            return [_symbolic(n, given)]
        if r.fold is not None:
            results = r.fold(n, *arrays)
            listed = [results] if isinstance(results, np.ndarray) else list(results)
            return [_value(n, x, given[0].dtype if x.dtype == object else None) for x in listed]
        if objects:
            return None
        if r.scalar is not None:
            return [_numeric(n, r, given)]
    except Undecided:
        return None
    except (ValueError, IndexError) as error:  # NumPy refuses the shapes
        raise n.contradiction(str(error)) from error
    return None


def _value(n: Node, array: Array, dtype: DType | None) -> Value:
    array = np.asarray(array)
    if array.dtype == object and array.size and all(isinstance(x, Sym) for x in array.reshape(-1)):
        plain = [E.int_value(x.num) if x.den == 1 else None for x in array.reshape(-1)]
        if dtype is not None and dtype.is_int and all(p is not None for p in plain):
            array = np.array(plain, dtype.np).reshape(array.shape)
    found = dtype if array.dtype == object else dtype_of(array.dtype)
    if found is None:
        raise Undecided
    return Value(n.builder, found, sizes_of(array.shape), known=array, hint=n.hint)


# ---- constants -----------------------------------------------------------------------------------


def _numeric(n: Node, r: Row, given: Sequence[Value]) -> Value:
    arrays = [v.known for v in given if v.known is not None]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    may_grow(math.prod(map(int, shape)), sum(a.size for a in arrays))
    assert r.scalar is not None  # for the type checker; `fold` looked
    scalar = r.scalar
    result = evaluate_scalar(lambda *e: scalar(n, *e), arrays)
    return _value(n, np.array(np.broadcast_to(result, shape), order="C"), None)


def evaluate_scalar(f: Callable[..., Expr], arrays: Sequence[Array]) -> Array:
    """The scalar expression `f` over whole arrays that broadcast."""
    leaves = []
    for k, a in enumerate(arrays):
        dtype = dtype_of(a.dtype)
        if dtype is None:
            raise Undecided
        leaves.append(E.read(f"%{k}", (), dtype))
    e = f(*leaves)
    memo: dict[int, Array] = {id(leaf): a for leaf, a in zip(leaves, arrays, strict=True)}
    with np.errstate(all="ignore"):
        for node in e.walk():
            if id(node) in memo:
                continue
            if node.op == "const":
                memo[id(node)] = np.asarray(node.attr, node.dtype.np)
            else:
                memo[id(node)] = np.asarray(
                    evaluate(node.op, [memo[id(a)] for a in node.args], node.dtype)
                )
    return memo[id(e)]


def fold_reduction(n: Node, x: Array, axes: Sequence[int], keep: bool) -> Array:
    """ReduceProd, ReduceSum, ReduceMax, ReduceMin of integers (numbers or tracked sizes)."""
    if x.dtype.kind not in "iuO":
        raise Undecided
    if x.dtype != object:
        f = {"ReduceProd": np.prod, "ReduceSum": np.sum, "ReduceMax": np.max, "ReduceMin": np.min}[
            n.op
        ]
        if not x.size:
            raise Undecided
        return np.asarray(f(x, axis=tuple(axes), keepdims=keep)).astype(x.dtype)  # type: ignore[operator]
    if x.ndim != 1 or not x.size or list(axes) != [0]:
        raise Undecided
    step = {"ReduceProd": lambda a, b: a * b, "ReduceSum": lambda a, b: a + b}.get(n.op)
    total = x[0]
    for item in x[1:]:
        total = (
            step(total, item) if step else _SYMBOLIC[n.op.removeprefix("Reduce")](n, total, item)
        )
    out = np.empty(1, object)
    out[0] = total
    return out if keep else out.reshape(())


# ---- tracked sizes -------------------------------------------------------------------------------


def _symbolic(n: Node, given: Sequence[Value]) -> Value:
    f = _SYMBOLIC[n.op]
    if n.op == "CastLike":
        given = given[:1]
    arrays = [as_objects(v, n.sizes) for v in given]
    shape = np.broadcast_shapes(*(a.shape for a in arrays))
    if math.prod(map(int, shape)) > _TRACKED:
        raise Undecided
    out = np.empty(shape, object)
    spread = [np.broadcast_to(a, shape) for a in arrays]
    for at in np.ndindex(shape):
        out[at] = f(n, *(a[at] for a in spread))
    dtype = given[-1].dtype
    if n.op in ("Equal", "Less", "LessOrEqual", "Greater", "GreaterOrEqual", "And", "Or", "Not"):
        return _value(n, out.astype(bool), None)
    if n.op in ("Cast", "CastLike"):
        dtype = n.importer.cast_target(n)
        if dtype is BOOL:
            return _value(n, np.array([bool(x) for x in out.reshape(-1)]).reshape(shape), None)
    return _value(n, out, dtype)


def as_objects(v: Value, sizes: Sizes) -> Array:
    """Known contents as an array of `Sym` and bool."""
    assert v.known is not None  # for the type checker; callers looked
    seed = Sym(E.const(0), 1, sizes)
    if v.known.dtype == object:
        return v.known
    out = np.empty(v.known.shape, object)
    for at in np.ndindex(v.known.shape):
        item = v.known[at]
        out[at] = (
            bool(item)
            if v.dtype is BOOL
            else seed.lift(float(item) if v.dtype.is_float else int(item))
        )
    return out


def _divide(n: Node, a: Sym, b: Sym) -> Sym:
    return a.divide(b, n[0].dtype.is_int)


def _modulo(n: Node, a: Sym, b: Sym) -> Sym:
    if n.attribute("fmod", 0) and a.sizes.low(a.num) < 0:
        raise Undecided
    return a.modulo(b)


def _extreme(largest: bool) -> Callable[..., Sym]:
    def apply(n: Node, *items: Sym) -> Sym:
        best = items[0]
        for x in items[1:]:
            if best.den != 1 or x.den != 1:
                raise Undecided
            pick = n.sizes.larger if largest else n.sizes.smaller
            best = Sym(pick(best.num, x.num), 1, n.sizes)
        return best

    return apply


def _cast(n: Node, x: Sym | bool, *_: Any) -> Sym | bool:
    to = n.importer.cast_target(n)
    if isinstance(x, bool):
        return x if to is BOOL else Sym(E.const(int(x)), 1, n.sizes)
    if to is BOOL:
        return x.compare("ne", x.lift(0))
    return x.truncate() if to.is_int else x


def _clip(n: Node, x: Sym, *limits: Sym) -> Sym:
    if (
        n[0].rank < 0
        or len(limits) != sum(v is not None for v in n.inputs[1:])
        or "min" in n.attributes
    ):
        raise Undecided
    rest = iter(limits)
    if n.optional(1) is not None:
        x = _extreme(True)(n, x, next(rest))
    if n.optional(2) is not None:
        x = _extreme(False)(n, x, next(rest))
    return x


def _compare(op: str, swap: bool = False) -> Callable[..., bool]:
    return lambda n, a, b: b.compare(op, a) if swap else a.compare(op, b)


def _sum(n: Node, *items: Sym) -> Sym:
    total = items[0]
    for x in items[1:]:
        total = total + x
    return total


_SYMBOLIC: dict[str, Callable[..., Any]] = {
    "Add": lambda n, a, b: a + b,
    "Sub": lambda n, a, b: a - b,
    "Mul": lambda n, a, b: a * b,
    "Div": _divide,
    "Mod": _modulo,
    "Neg": lambda n, a: -a,
    "Sum": _sum,
    "Min": _extreme(False),
    "Max": _extreme(True),
    "Abs": lambda n, a: a if n.sizes.low(a.num) >= 0 else _undecided(),
    "Floor": lambda n, a: a.floor(),
    "Ceil": lambda n, a: a.ceil(),
    "Cast": _cast,
    "CastLike": _cast,
    "Clip": _clip,
    "Equal": _compare("eq"),
    "Less": _compare("lt"),
    "LessOrEqual": _compare("le"),
    "Greater": _compare("lt", True),
    "GreaterOrEqual": _compare("le", True),
    "Where": lambda n, c, a, b: a if c else b,
    "And": lambda n, a, b: a and b,
    "Or": lambda n, a, b: a or b,
    "Not": lambda n, a: not a,
    "Relu": lambda n, a: _extreme(True)(n, a, a.lift(0)),
}


def _undecided() -> Sym:
    raise Undecided


def tracked(n: Node, items: Sequence[Expr], dtype: DType) -> Value:
    """A 1-D shape tensor of size expressions."""
    out = np.empty(len(items), object)
    for k, e in enumerate(items):
        out[k] = Sym(e, 1, n.sizes)
    return (
        _value(n, out, dtype)
        if items
        else Value(n.builder, dtype, (E.const(0),), known=np.zeros(0, dtype.np))
    )
