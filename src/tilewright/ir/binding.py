"""What both Program interpreters share: sizes, working types, inputs and constants.

In: a Program, input arrays. Out: sizes of the dims, arrays in working types. Invariant: integers
and bools keep their own type; a float tensor is float64 (f64: longdouble) in the oracle, float32
(f64: float64) in the naive evaluation, whatever its storage type.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Program, Size, Statement, Tensor
from tilewright.ir.scalar import evaluate

__all__ = [
    "NAIVE",
    "ORACLE",
    "Array",
    "Numerics",
    "bind_sizes",
    "define_size",
    "gather_arrays",
    "handed_out",
    "linear_size",
    "size_of",
]

Array = np.ndarray[Any, np.dtype[Any]]
_LONG = np.dtype(np.longdouble)


@dataclass(frozen=True)
class Numerics:
    """Working types: `narrow` for f16, bf16 and f32, `wide` for f64."""

    name: str
    narrow: np.dtype[Any]
    wide: np.dtype[Any]

    def work(self, dtype: DType) -> np.dtype[Any]:
        """The type in which values of `dtype` are held."""
        if not dtype.is_float:
            return dtype.np
        return self.wide if dtype.bits == 64 else self.narrow

    def cast(self, x: Array, dtype: DType) -> Array:
        """The meaning of `cast`: to f16 and bf16 it rounds, to f32 and f64 it does not."""
        x = np.asarray(x)
        if not dtype.is_float:
            return evaluate("cast", [x], dtype)
        if dtype.bits == 16:
            x = (x.astype(np.float64) if x.dtype == _LONG else x).astype(dtype.np)
        return x.astype(self.work(dtype))

    def store(self, x: Array, dtype: DType) -> Array:
        """A value as an operation, or a tensor, has it: only the naive evaluation rounds to f16 and
        bf16 here, as compiled code may.
        """
        if self.name == "naive" and dtype.is_float and dtype.bits == 16:
            return self.cast(x, dtype)
        return np.asarray(x).astype(self.work(dtype), copy=False)


ORACLE = Numerics("oracle", np.dtype(np.float64), _LONG)
NAIVE = Numerics("naive", np.dtype(np.float32), np.dtype(np.float64))


def size_of(e: Expr, sizes: Mapping[str, int], where: object = "") -> int:
    """The value of a dim expression. Errors: R004 for a dim without a size; P001 below zero."""
    known = E.substitute(e, {E.dim(n): E.const(v) for n, v in sizes.items()})
    value = E.int_value(known)
    if value is None:
        missing = ", ".join(sorted(known.names("dim"))) or str(known)
        raise UserError("R004", f"no input determines the size {missing}", where=str(where))
    if value < 0:
        raise UserError("P001", f"the size {e} is {value}", where=str(where))
    return value


def define_size(s: Size, arrays: Mapping[str, Array], sizes: dict[str, int]) -> None:
    """Enter the value of a size that a scalar defines. Errors: R007 outside 0 .. its bound."""
    value, bound = int(arrays[s.source][()]), size_of(s.bound, sizes, s)
    if not 0 <= value <= bound:
        message = f"the size {s.name} is {value}, outside 0 .. {bound}"
        raise UserError("R007", message, where=str(s))
    sizes[s.name] = value


def handed_out(array: Array, t: Tensor, sizes: Mapping[str, int], where: Statement) -> Array:
    """What a block hands out as `t`. Errors: P005 for another shape."""
    shape = tuple(size_of(e, sizes, where) for e in t.shape)
    if array.shape != shape:
        message = f"a block gives {list(array.shape)} for {t}, which is {list(shape)}"
        raise UserError("P005", message, where=str(where))
    return array


def bind_sizes(
    program: Program,
    shapes: Mapping[str, tuple[int, ...]],
    dims: Mapping[str, int] | None = None,
) -> dict[str, int]:
    """Sizes of the dims from the shapes of the inputs; `dims` gives those that no input shows.

    Errors: R001 a missing input; R003 wrong rank or fixed size; R004 sizes that disagree.
    """
    sizes = dict(dims or {})
    pending: list[tuple[Tensor, int, Expr, int]] = []
    for t in program.inputs:
        if t.name not in shapes:
            raise UserError("R001", f"input {t.name!r} is missing", where=f"program {program.name}")
        shape = shapes[t.name]
        if len(shape) != len(t.shape):
            message = f"input {t.name!r} has {len(shape)} axes instead of {len(t.shape)}"
            raise UserError("R003", message, where=str(t))
        pending += [(t, k, e, n) for k, (e, n) in enumerate(zip(t.shape, shape, strict=True))]
    progress = True
    while pending and progress:
        progress = False
        mapping = {E.dim(n): E.const(v) for n, v in sizes.items()}
        waiting = []
        for t, axis, e, n in pending:
            known = E.substitute(e, mapping)
            value = E.int_value(known)
            if value is None:
                solved = _solve(known, n)
                if solved is None:
                    waiting.append((t, axis, e, n))
                    continue
                sizes.setdefault(*solved)
                mapping = {E.dim(name): E.const(v) for name, v in sizes.items()}
                value = E.int_value(E.substitute(e, mapping))
            progress = True
            if value != n:
                code = "R003" if e.op == "const" else "R004"
                message = f"axis {axis} of input {t.name!r} is {n} instead of {value}"
                raise UserError(code, message, where=str(t))
        pending = waiting
    for d in program.dims:
        if d.name in sizes:
            v = sizes[d.name]
            if v < d.lo or (d.hi is not None and v > d.hi) or v % d.multiple:
                high = "inf" if d.hi is None else d.hi
                span = f"{d.lo} .. {high}" + (f" multiple {d.multiple}" if d.multiple > 1 else "")
                message = f"dim {d.name} is {v}, not in {span}"
                raise UserError("R004", message, where=f"program {program.name}")
    return sizes


def _solve(e: Expr, n: int) -> tuple[str, int] | None:
    """The one unknown dim of `e == n` where `e` is linear in it."""
    found = linear_size(e)
    return (found[0], (n - found[2]) // found[1]) if found is not None else None


def linear_size(e: Expr) -> tuple[str, int, int] | None:
    """(dim, slope, rest) of an extent that is slope * dim + rest."""
    slope, rest, name = 0, 0, ""
    for atoms, c in E.polynomial(e).items():
        if not atoms:
            rest = c
        elif len(atoms) == 1 and atoms[0].op == "dim" and not name:
            slope, name = c, atoms[0].attr
        else:
            return None
    return (name, slope, rest) if name else None


def gather_arrays(
    program: Program,
    inputs: Mapping[str, Array],
    values: Mapping[str, Array] | None,
    numerics: Numerics,
) -> dict[str, Array]:
    """Inputs and constants by name, contiguous, in working types.

    Errors: R001 a missing input or constant; R002 a float for an integer, or the other way round.
    """
    out: dict[str, Array] = {}
    for t in program.inputs:
        if t.name not in inputs:
            raise UserError("R001", f"input {t.name!r} is missing", where=f"program {program.name}")
        array = np.asarray(inputs[t.name])
        if array.dtype.kind in "biu" and array.dtype != t.dtype.np:
            message = f"input {t.name!r} is {array.dtype} instead of {t.dtype}"
            raise UserError("R002", message, where=str(t))
        if array.dtype.kind not in "biu" and not t.dtype.is_float:
            message = f"input {t.name!r} is {array.dtype} instead of {t.dtype}"
            raise UserError("R002", message, where=str(t))
        out[t.name] = _working(array, t.dtype, numerics)
    for t, key in program.constants:
        array_or_none = (values or {}).get(key)
        if array_or_none is None:
            array_or_none = program.values.get(key)
        if array_or_none is None:
            raise UserError("R001", f"the value of constant {t.name!r} is missing", where=str(t))
        out[t.name] = _working(array_or_none, t.dtype, numerics)
    return out


def _working(array: Array, dtype: DType, numerics: Numerics) -> Array:
    wide = array.astype(np.float64) if array.dtype.kind == "V" else array
    return np.ascontiguousarray(wide.astype(numerics.work(dtype), copy=False)).reshape(array.shape)
