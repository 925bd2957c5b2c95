"""Plain arrays: functions written with NumPy, and einsum strings, compiled.

In: a function, or an einsum string, and arrays of any kind that shares memory by buffer or DLPack.
Out: arrays of the kind of the first argument. Invariant: each combination of shapes and dtypes is
compiled once and kept.
"""

from __future__ import annotations

import functools
import inspect
import threading
from collections.abc import Callable
from typing import Any

import numpy as np

from tilewright.api import CompiledModel, compile
from tilewright.errors import UserError
from tilewright.frontend.arrays import record
from tilewright.runtime.exchange import array_of

__all__ = ["Function", "einsum", "function"]


class Function:
    """A function of arrays that is compiled for the shapes and dtypes that it is called with.

    `models`: the compiled ones so far, by these.
    """

    def __init__(self, plain: Callable[..., Any], options: dict[str, Any]) -> None:
        functools.update_wrapper(self, plain)
        self._plain, self._options = plain, options
        self._signature = inspect.signature(plain)
        self.models: dict[Any, tuple[CompiledModel, bool]] = {}
        self._making = threading.Lock()

    def __call__(self, *args: Any, out: Any = None, **named: Any) -> Any:
        """The result, or results, as arrays of the kind of the first argument.

        Errors: F005 and F006 for the function, R001 to R006 for arrays.
        """
        try:
            bound = self._signature.bind(*args, **named)
        except TypeError as error:
            raise UserError("R001", str(error), where=self.__name__) from None  # type: ignore[attr-defined]
        arrays = [x if _has_kind(x) else np.asarray(x) for x in bound.arguments.values()]
        key = tuple((tuple(x.shape), str(x.dtype)) for x in arrays)
        found = self.models.get(key)
        if found is None:
            with self._making:
                found = self.models.get(key)
                if found is None:
                    found = self.models[key] = self._made(list(bound.arguments), arrays)
        model, single = found
        got = model(*arrays, out=out)
        return got if single or out is not None or isinstance(got, list) else [got]

    def _made(self, names: list[str], arrays: list[Any]) -> tuple[CompiledModel, bool]:
        held = [array_of(f"argument {n!r}", x) for n, x in zip(names, arrays, strict=True)]
        specs = [(n, x.shape, x.dtype) for n, x in zip(names, held, strict=True)]
        program, single = record(self._plain, specs)
        return compile(program, **self._options), single


def _has_kind(x: Any) -> bool:
    return hasattr(x, "shape") and hasattr(x, "dtype") and hasattr(x, "__dlpack__")


def function(plain: Callable[..., Any] | None = None, **options: Any) -> Any:
    """A decorator: a function written with NumPy, compiled when it is called.

    options: those of `compile` (tune, threads, target, ...).
    """
    if plain is None:
        return lambda f: Function(f, options)
    return Function(plain, options)


_EINSUMS: dict[tuple[str, int], Function] = {}


def einsum(spec: str, *operands: Any, out: Any = None) -> Any:
    """NumPy's einsum with any number of operands, compiled once per string, shapes and dtypes.

    Errors: F010 for the string, F006 for sizes that contradict.
    """
    key = (spec, len(operands))
    found = _EINSUMS.get(key)
    if found is None:
        names = [f"x{k}" for k in range(len(operands))]

        def plain(*arrays: Any) -> Any:
            return np.einsum(spec, *arrays)

        plain.__name__ = "einsum"
        plain.__signature__ = inspect.Signature(  # type: ignore[attr-defined]
            [inspect.Parameter(n, inspect.Parameter.POSITIONAL_ONLY) for n in names]
        )
        found = _EINSUMS[key] = Function(plain, {})
    return found(*operands, out=out)
