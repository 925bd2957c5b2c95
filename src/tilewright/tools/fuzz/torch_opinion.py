"""A third party for Programs: PyTorch evaluates the definitions, the oracle is compared with it.

In: a Program, inputs. Out: results as arrays, or why there are none. Invariants: what a definition
computes is computed by PyTorch alone, in float64 and in the integers' own width; what PyTorch has
no answer for, and statements that are no definitions (recurrences, scatters, externs, blocks), are
handed over with the oracle's values; PyTorch is never loaded where compiled code runs.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Mapping, Sequence
from math import prod
from typing import Any

import numpy as np

from tilewright.ir.binding import ORACLE, bind_sizes, gather_arrays, size_of
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.interpreter import Runner
from tilewright.ir.program import Axis, Definition, Program, defined_by
from tilewright.verify.finite import finite_inputs
from tilewright.verify.fuzz import first_wrong
from tilewright.verify.programs import Case
from tilewright.verify.witness import references

__all__ = ["Refused", "is_available", "opinion", "torch_outputs"]

Array = np.ndarray[Any, np.dtype[Any]]
Tensor = Any
_MOST = 1 << 21  # points of one definition
_INTS = {"i8": "int8", "i16": "int16", "i32": "int32", "i64": "int64", "u8": "uint8"}


class Refused(Exception):
    """PyTorch has no answer; the message says why."""


def torch_outputs(
    program: Program, inputs: Mapping[str, Array], dims: Mapping[str, int] | None = None
) -> list[Array]:
    """The results, in their dtypes. Errors: Refused; those of the oracle."""
    sizes = bind_sizes(program, {n: np.asarray(a).shape for n, a in inputs.items()}, dims)
    exact = Runner(gather_arrays(program, inputs, None, ORACLE), dict(sizes), ORACLE)
    evaluator = _Evaluator({})
    evaluator.hand_over(exact.arrays)
    made, why = 0, "no definition"
    with np.errstate(all="ignore"):
        for s in program.body:
            exact.statement(s)
            if isinstance(s, Definition):
                try:
                    evaluator.arrays[s.name] = evaluator.definition(s, exact.sizes)
                    made += 1
                    continue
                except Refused as refused:
                    why = str(refused)
            evaluator.hand_over({t.name: exact.arrays[t.name] for t in defined_by(s)})
        if not made:
            raise Refused(why)
        kinds = {n: program.tensors[n].dtype.np for n in program.results}
        held = evaluator.arrays
        return [
            (held[n].numpy() if n in held else exact.arrays[n]).astype(k) for n, k in kinds.items()
        ]


def is_available() -> bool:
    """Is PyTorch installed? It is not loaded for that."""
    return importlib.util.find_spec("torch") is not None


def opinion(case: Case) -> tuple[str, str | None]:
    """ "agreed", "refused" or "differs", and how. Errors: those of the oracle."""
    _torch().set_num_threads(1)
    inputs = finite_inputs(case.program, case.sizes, case.seed)[0]
    try:
        got = torch_outputs(case.program, inputs, case.sizes)
    except Refused as refused:
        return "refused", str(refused)
    expected = references(case.program, inputs, dims=case.sizes)
    wrong = first_wrong(case.program, got, expected, inputs, case.sizes)
    if wrong is None:
        return "agreed", None
    return "differs", f"output {wrong.output}: {wrong.verdict}"


def _torch() -> Any:
    try:
        return importlib.import_module("torch")
    except ImportError:
        raise Refused("it is not installed") from None


def _tensor(array: Array) -> Tensor:
    a = np.asarray(array)
    if a.dtype.kind not in "iub":
        a = a.astype(np.float64)
    return _torch().from_numpy(np.array(a))


def _kind(dtype: DType) -> Any:
    torch = _torch()
    if dtype.is_float:
        return torch.float64
    if dtype.kind == "b":
        return torch.bool
    if dtype.name not in _INTS:
        raise Refused(f"it has no arithmetic of {dtype}")
    return getattr(torch, _INTS[dtype.name])


class _Evaluator:
    """Values of definitions over dense boxes of points, one tensor axis per iteration axis."""

    def __init__(self, arrays: dict[str, Tensor]) -> None:
        self.torch = _torch()
        self.arrays = arrays

    def hand_over(self, arrays: Mapping[str, Array]) -> None:
        """Take tensors as they are, but for those of dtypes that PyTorch does not compute in."""
        for name, a in arrays.items():
            if a.dtype.kind != "u" or a.dtype.itemsize == 1:
                self.arrays[name] = _tensor(a)

    def definition(self, d: Definition, sizes: Mapping[str, int]) -> Tensor:
        torch = self.torch
        axes: Sequence[Axis] = (*d.axes, *(d.reduction.axes if d.reduction else ()))
        extents = [size_of(a.extent, sizes) for a in axes]
        if prod(extents) > _MOST:
            raise Refused("too many points")
        points: dict[str, Tensor] = {}
        for k, (a, n) in enumerate(zip(axes, extents, strict=True)):
            shape = [n if i == k else 1 for i in range(len(axes))]
            points[a.name] = torch.arange(n).reshape(shape)
        memo: dict[Expr, Tensor] = {}
        value = self.value(d.body, points, sizes, memo).expand(extents)
        if d.reduction is not None:
            guard = d.reduction.guard
            held = None if guard is None else self.value(guard, points, sizes, memo).expand(extents)
            value = self.reduced(d.reduction.monoid, value, held, len(d.axes))
        if d.scan is not None:
            value = self.prefix(d.scan[0], value, [a.name for a in d.axes].index(d.scan[1]))
        return value.to(_kind(d.dtype)).contiguous()

    def reduced(self, monoid: str, x: Tensor, held: Tensor | None, rank: int) -> Tensor:
        """Fold the axes from `rank` on."""
        torch = self.torch
        shape, over = list(x.shape[:rank]), x.shape[rank:]
        x = x.reshape([*shape, prod(over)])
        if held is not None:
            held = held.reshape(x.shape)
        infinite = float("inf")
        floats = x.dtype is torch.float64
        if x.dtype is torch.bool:
            identity: Any = monoid == "all"
        elif monoid in ("sum", "prod"):
            identity = int(monoid == "prod")
        elif monoid in ("max", "argmax", "logsumexp"):
            identity = -infinite if floats else torch.iinfo(x.dtype).min
        else:
            identity = infinite if floats else torch.iinfo(x.dtype).max
        if held is not None:
            x = torch.where(held, x, torch.tensor(identity, dtype=x.dtype))
        if x.shape[-1] == 0:
            if monoid in ("argmax", "argmin"):
                raise Refused("a choice among nothing")
            return torch.full(shape, identity, dtype=x.dtype)
        if monoid in ("argmax", "argmin") and held is not None:
            raise Refused("a guarded choice")
        match monoid:
            case "sum" | "prod":
                return getattr(torch, monoid)(x, -1, dtype=x.dtype)
            case "max" | "min":
                return getattr(torch, f"a{monoid}")(x, -1)
            case "argmax" | "argmin" | "all" | "any":
                return getattr(torch, monoid)(x, -1)
            case "logsumexp":
                return torch.logsumexp(x, -1)
        raise Refused(f"it folds no {monoid}")

    def prefix(self, monoid: str, x: Tensor, axis: int) -> Tensor:
        torch = self.torch
        if x.numel() == 0:
            return x
        match monoid:
            case "sum" | "prod":
                return getattr(torch, f"cum{monoid}")(x, axis, dtype=x.dtype)
            case "max" | "min":
                return getattr(torch, f"cum{monoid}")(x, axis).values
            case "logsumexp":
                return torch.logcumsumexp(x, axis)
        raise Refused(f"it has no prefix of {monoid}")

    def value(
        self,
        e: Expr,
        points: Mapping[str, Tensor],
        sizes: Mapping[str, int],
        memo: dict[Expr, Tensor],
    ) -> Tensor:
        """`e` over the box, broadcast where it does not vary."""
        if e in memo:
            return memo[e]
        torch = self.torch
        out: Tensor
        if e.op == "const":
            out = torch.tensor(e.attr, dtype=_kind(e.dtype))
        elif e.op == "index":
            out = points[e.attr]
        elif e.op == "dim":
            out = torch.tensor(sizes[e.attr])
        else:
            args = [self.value(a, points, sizes, memo) for a in e.args]
            if e.op == "read":
                out = self.read(e, args)
            elif e.op == "select":
                out = torch.where(*args)
            elif e.op == "cast":
                out = self.cast(args[0], e.dtype)
            else:
                out = self.operation(e, args)
        memo[e] = out
        return out

    def read(self, e: Expr, args: list[Tensor]) -> Tensor:
        torch = self.torch
        name, padded = e.attr
        if name not in self.arrays:
            raise Refused(f"it has no arithmetic of {e.dtype}")
        array = self.arrays[name]
        places = args[:-1] if padded else args
        inside = torch.tensor(True)
        clipped = []
        for p, n in zip(places, array.shape, strict=True):
            inside = inside & (p >= 0) & (p < n)
            clipped.append(p.clamp(0, max(0, n - 1)))
        if array.numel() == 0:
            found = torch.zeros([], dtype=array.dtype).expand(inside.shape)
        else:
            found = array[tuple(clipped)] if clipped else array
        return torch.where(inside, found, args[-1]) if padded else found

    def cast(self, x: Tensor, dtype: DType) -> Tensor:
        torch = self.torch
        kind = _kind(dtype)
        if dtype.is_float:
            x = x.to(kind)
            if dtype.bits == 16:  # rounded where it is asked for
                narrow = torch.float16 if dtype.name == "f16" else torch.bfloat16
                x = x.to(narrow).to(kind)
            return x
        if x.dtype is torch.float64 and kind is not torch.bool:  # towards zero, to the nearest end
            low, high = torch.iinfo(kind).min, torch.iinfo(kind).max
            whole = x.nan_to_num(0.0).trunc()
            inner = whole.clamp(float(low), float(high)).to(torch.int64)
            inner = torch.where(whole >= 2.0**63, torch.tensor(2**63 - 1), inner)
            return inner.clamp(low, high).to(kind)
        return x.to(kind)

    def operation(self, e: Expr, args: list[Tensor]) -> Tensor:
        torch = self.torch
        floats = args[0].dtype is torch.float64
        if e.op in ("floordiv", "mod", "fmod", "div") and not floats:
            return self.divided(e.op, *args)
        if e.op in ("shl", "shr"):
            count = args[1] & (e.dtype.bits - 1)
            return args[0] << count if e.op == "shl" else args[0] >> count
        if e.op == "floordiv":
            return torch.floor(args[0] / args[1])
        if e.op in ("and", "or", "xor", "not"):
            return getattr(torch, f"bitwise_{e.op}")(*args)
        if e.op == "sign" and floats:  # its own makes 0 of NaN
            return torch.where(args[0].isnan(), args[0], torch.sign(args[0]))
        if e.op == "rsqrt":
            return 1 / torch.sqrt(args[0])
        names = {"min": "minimum", "max": "maximum", "mod": "remainder"}
        function: Callable[..., Tensor] | None = getattr(torch, names.get(e.op, e.op), None)
        if function is None:
            raise Refused(f"it has no {e.op}")
        try:
            return function(*args)
        except (RuntimeError, TypeError) as error:
            raise Refused(f"{e.op}: {error}") from None

    def divided(self, op: str, a: Tensor, b: Tensor) -> Tensor:
        """Integer division; by zero it gives zero."""
        torch = self.torch
        safe = torch.where(b == 0, torch.ones_like(b), b)
        match op:
            case "mod":
                out = torch.remainder(a, safe)
            case "fmod":
                out = torch.fmod(a, safe)
            case _:
                way = "floor" if op == "floordiv" else "trunc"
                out = torch.div(a, safe, rounding_mode=way)
        return torch.where(b == 0, torch.zeros_like(out), out)
