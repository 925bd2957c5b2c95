"""A model that can be called: what compiled and loaded models have in common.

In: the arrays of the border, the dims, a function that makes a `Binding` for sizes. Out:
`CallableModel`. Invariant: every way to call (positional, by name, bound) checks the same things
and runs the same native entry.
"""

from __future__ import annotations

import difflib
import inspect
import weakref
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.program import Dim
from tilewright.runtime.call import ModelCall
from tilewright.runtime.context import ArrayType, Binding
from tilewright.runtime.exchange import as_kind, memory_of
from tilewright.runtime.pool_text import MAX_THREADS

__all__ = ["CallableModel", "check_sizes", "nearest", "places_of"]

Array = np.ndarray[Any, np.dtype[Any]]


def nearest(name: str, known: Sequence[str], otherwise: str) -> str:
    """`did you mean 'x'?` where a known name is near, else `otherwise`."""
    near = [k for k in known if k.casefold() == name.casefold()]
    near = near or difflib.get_close_matches(name, known, 1, 0.4)
    return f"did you mean {near[0]!r}?" if near else otherwise


class CallableModel:
    """Inputs, results and the native entry.

    `results` lists each distinct result once; `order` says which of them every output is (a model
    may return one tensor twice). `shapes`: a result whose size follows from values -> the result
    that holds its true shape; its array has the largest shape, of which a call returns a part.
    """

    values: Mapping[str, Array] = {}  # of inputs that are none any more: sizes depend on them

    def __init__(
        self,
        inputs: tuple[ArrayType, ...],
        results: tuple[ArrayType, ...],
        order: Sequence[int],
        dims: tuple[Dim, ...],
        *,
        threads: int | None = None,
        reuse_outputs: bool = False,
        shapes: Mapping[int, int] | None = None,
    ) -> None:
        if threads is not None and not (type(threads) is int and 1 <= threads < MAX_THREADS):
            raise UserError(
                "U003", f"{threads!r} is no number of threads",
                hint=f"give threads=1 to {MAX_THREADS - 1}, or None for the setting",
            )  # fmt: skip
        self.input_specs = inputs
        self.output_specs: tuple[ArrayType, ...] = tuple(results[k] for k in order)
        self.dims = dims
        self.given: Mapping[str, int] = {}  # sizes that were told before any call
        self.results = results
        self.order = list(order)
        self.shapes = dict(shapes or {})
        self._is_plain = self.order == list(range(len(results))) and not self.shapes
        self._failures: list[list[Exception]] = []  # of variants that call back into Python
        self._call = ModelCall(
            self._bound, inputs, results, threads=threads, reuse_outputs=reuse_outputs
        )
        self._function = self._call.function
        self._kind = type(self)
        if self._is_plain and len(self.order) == 1:
            self._call_natively()

    def _call_natively(self) -> None:
        """Make the builtin the call of this object, in a class of its own: a call in Python costs
        several times what a small kernel does."""
        me = weakref.ref(self)

        def call(*arrays: Any, **names: Any) -> Any:
            model = me()
            assert model is not None  # it is being called
            return CallableModel.__call__(model, *arrays, **names)

        kind = self._kind
        namespace = {
            "__slots__": (), "__doc__": kind.__doc__, "__module__": kind.__module__,
            "__qualname__": kind.__qualname__, "__signature__": _SIGNATURE,
            "__call__": self._call.function_before(call),
        }  # fmt: skip
        self.__class__ = type(kind.__name__, (kind,), namespace)

    def _bound(self, symbols: Mapping[str, int]) -> Binding:
        binding = self._bind(symbols)
        if binding.failures is not None and all(binding.failures is not f for f in self._failures):
            self._failures.append(binding.failures)
            self.__class__ = self._kind  # what failed is asked for after each call
        return binding

    def _bind(self, symbols: Mapping[str, int]) -> Binding:
        """The model at these sizes. Errors: R004."""
        raise NotImplementedError

    # -- calling
    def __call__(self, /, *arrays: Any, out: Any = None, **named: Any) -> Any:
        """One array, or a list of arrays where the model has several outputs.

        Errors: R001 to R006 for arrays that do not fit.
        """
        if named:
            arrays = self._by_name(self._joined(arrays, named))
        if out is None:
            foreign = bool(arrays) and type(arrays[0]) is not np.ndarray
            got = self._function(*arrays)
            if self.shapes or self._failures:
                got = self._finished(got)
            if len(self.order) == 1:
                return as_kind(arrays[0], got) if foreign else got
            many = self._in_order(got)
            return [as_kind(arrays[0], x) for x in many] if foreign else many
        if self._is_plain:
            got = self._function(*arrays, out=out)
            return self._finished(got) if self._failures else got
        self._into(arrays, memory_of(out))
        return out

    def run(self, inputs: Mapping[str, Any]) -> list[Array]:
        """Outputs in order, for inputs by name. Errors: R001 to R006."""
        return self._in_order(self._finished(self._function(*self._by_name(inputs))))

    def timed(self, inputs: Mapping[str, Any]) -> tuple[list[Array], list[int]]:
        """`run`, and the time of each phase of the binding in nanoseconds."""
        got, phases = self._call.timed(*self._by_name(inputs))
        return self._in_order(self._finished(got)), phases

    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object]:
        """A call without arguments on fixed arrays: the very entry, for timing."""
        function, given = self._function, tuple(inputs)
        out: Any = outputs[0] if len(outputs) == 1 else tuple(outputs)
        if self._is_plain:
            return lambda: function(*given, out=out)
        return lambda: self._into(given, out)

    def _finished(self, got: Any) -> Any:
        """Results in their true shapes. Errors: R007; what an extern raised."""
        for failures in self._failures:
            if failures:
                first = failures[0]
                failures.clear()
                raise first
        if not self.shapes:
            return got
        out = list(got)
        for k, at in self.shapes.items():
            shape, most = [int(n) for n in got[at]], got[k].shape
            if any(not 0 <= n <= m for n, m in zip(shape, most, strict=True)):
                name = self.results[k].name
                raise UserError(
                    "R007", f"the shape of {name!r} is {shape}, outside its bound {list(most)}",
                    hint="raise the bound of the size, or check the value that it comes from",
                )  # fmt: skip
            out[k] = got[k][tuple(slice(n) for n in shape)]
        return out if len(self.order) > 1 else out[self.order[0]]

    def _in_order(self, got: Any) -> list[Array]:
        many = got if isinstance(got, list | tuple) else (got,)
        return [many[k] for k in self.order]

    def _into(self, arrays: tuple[Any, ...], out: Any) -> Any:
        """Write into `out` where some result is returned more than once, or in another order."""
        if self.shapes:
            name = self.results[next(iter(self.shapes))].name
            raise UserError(
                "R006", f"out= cannot hold {name!r}, whose size follows from values",
                hint="call without out=",
            )  # fmt: skip
        if not isinstance(out, tuple | list) or len(out) != len(self.order):
            names = ", ".join(s.name for s in self.output_specs)
            raise UserError(
                "R006", f"out= must be a tuple of {len(self.order)} arrays",
                hint=f"give one for each of {names}",
            )  # fmt: skip
        first = [self.order.index(k) for k in range(len(self.results))]
        wanted = tuple(out[i] for i in first)
        self._finished(self._function(*arrays, out=wanted[0] if len(wanted) == 1 else wanted))
        for i, k in enumerate(self.order):
            if i != first[k]:
                np.copyto(out[i], out[first[k]], casting="no")
        return out

    def _joined(self, arrays: tuple[Any, ...], named: dict[str, Any]) -> dict[str, Any]:
        names = [s.name for s in self.input_specs]
        if len(arrays) > len(names):
            raise UserError(
                "R001", f"{len(arrays)} arrays given, the model takes {len(names)}",
                hint=f"the inputs are {', '.join(names)}",
            )  # fmt: skip
        by_place = dict(zip(names, arrays, strict=False))
        twice = [n for n in by_place if n in named]
        if twice:
            raise UserError(
                "R001", f"input {twice[0]!r} is given twice, by place and by name",
                hint="give it once",
            )  # fmt: skip
        return {**by_place, **named}

    def _by_name(self, inputs: Mapping[str, Any]) -> tuple[Any, ...]:
        if not isinstance(inputs, Mapping):
            raise UserError(
                "R001", f"run takes a dictionary of arrays by name, not a {type(inputs).__name__}",
                hint="pass {name: array}, or call the model with the arrays in order",
            )  # fmt: skip
        wanted = [s.name for s in self.input_specs]
        for name in inputs:
            if name in self.values:
                if not np.array_equal(np.asarray(inputs[name]), self.values[name]):
                    raise UserError(
                        "R007", f"the model was compiled for another value of {name!r}",
                        hint="compile it with this value among example_inputs",
                    )  # fmt: skip
            elif name not in wanted:
                hint = nearest(str(name), wanted, f"the inputs are {', '.join(wanted) or 'none'}")
                raise UserError("R001", f"the model has no input {name!r}", hint=hint)
        missing = [n for n in wanted if n not in inputs]
        if missing:
            given = ", ".join(map(repr, inputs)) or "none"
            raise UserError(
                "R001", f"input {missing[0]!r} is missing",
                hint=f"give an array for each of {', '.join(wanted)}; given: {given}",
            )  # fmt: skip
        return tuple(inputs[n] for n in wanted)

    def sizes(self, symbols: Mapping[str, int]) -> dict[str, int]:
        """A size for every dim, in order, checked against its range; where no input tells one (an
        axis of N*M elements says neither), it is the one given before. Errors: R004.
        """
        return check_sizes(self.dims, self.input_specs, {**self.given, **symbols})


_SIGNATURE = inspect.signature(CallableModel.__call__.__get__(object()))


def check_sizes(
    dims: Sequence[Dim], inputs: Sequence[ArrayType], symbols: Mapping[str, int]
) -> dict[str, int]:
    """A size for every dim, in order, checked against its range. Errors: R004."""
    for d in dims:
        v = symbols.get(d.name)
        if v is None:
            raise UserError(
                "R004",
                f"nothing tells the size {d.name!r}",
                hint=f"pass dims={{{d.name!r}: ...}}, or --dim {d.name}=... on the command line",
            )
        if v < d.lo or (d.hi is not None and v > d.hi) or v % d.multiple:
            most = " and more" if d.hi is None else f" to {d.hi}"
            extra = f", multiples of {d.multiple}" if d.multiple != 1 else ""
            raise UserError(
                "R004",
                f"{d.name} is {v}; the model allows {d.lo}{most}{extra}",
                where=places_of(inputs, d.name),
                hint="give arrays of a size in this range",
            )
    return {d.name: symbols[d.name] for d in dims}


def places_of(inputs: Sequence[ArrayType], symbol: str) -> str:
    """Which axes of which inputs have this size."""
    found = [
        f"axis {axis} of input {s.name!r}"
        for s in inputs
        for axis, size in enumerate(s.shape)
        if size == symbol
    ]
    return ", ".join(found)
