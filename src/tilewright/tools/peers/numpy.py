"""NumPy, with SciPy where it has the function: one thread of ufuncs, OpenBLAS for products.

In: a workload with a `numpy` form. Out: an `Entry` on fixed arrays. Invariant: results go into
preallocated arrays where the outermost call of the form takes `out=`.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable, package_version
from tilewright.tools.peers._forms import Form, fill_forms, with_out
from tilewright.tools.suite import aligned_copy, aligned_empty, output_specs, peer_inputs

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Adapter"]


def _libraries() -> dict[str, Any]:
    import numpy as np

    libraries: dict[str, Any] = {"np": np}
    try:
        import scipy
        import scipy.special

        libraries["scipy"] = scipy
    except ModuleNotFoundError:
        pass
    return libraries


class Adapter:
    """The peer `numpy`."""

    def available(self) -> str:
        import numpy as np

        if "scipy" in _libraries():
            return f"{np.__version__}, scipy {package_version('scipy')}"
        return np.__version__

    def prepare(self, workload: Workload, threads: int, copies: int) -> list[Entry]:
        if not workload.numpy:
            raise Unavailable("the row has no NumPy form")
        given, constants = peer_inputs(workload)
        entries = []
        for source in fill_forms(workload, workload.numpy):
            if "scipy" in source and "scipy" not in _libraries():
                raise Unavailable("scipy is not installed: pip install 'tilewright[peers]'")
            calls, kind = [], "bound"
            for _ in range(copies):
                kind, call = _bind(workload, source, given, constants)
                calls.append(call)
            entries.append(Entry(calls, kind, f"{threads} threads in OpenBLAS"))
        return entries


def _bind(
    workload: Workload, source: str, given: Mapping[str, Array], constants: Mapping[str, Array]
) -> tuple[str, BoundCall]:
    inputs = {name: aligned_copy(array) for name, array in given.items()}
    outs = tuple(aligned_empty(*spec) for spec in output_specs(workload))
    values = {**constants, **inputs, "out": outs[0], "outs": outs}
    form = Form(source, _libraries(), values)
    last: list[Any] = [None]
    if not workload.fresh:
        if form.mentions("out"):
            return "bound", BoundCall(form.function(()), inputs, lambda: outs)
        expression = with_out(form, "out") if len(outs) == 1 else None
        if expression is not None:
            bound = form.function((), expression)
            try:
                if bound() is outs[0]:
                    return "bound", BoundCall(bound, inputs, lambda: outs)
            except (TypeError, ValueError):  # this function takes no `out`
                pass
    fresh = form.function(())
    if form.mentions("out"):  # a copy into a given array: the array is made anew

        def call() -> None:
            made = tuple(aligned_empty_like(out) for out in outs)
            form.namespace.update(out=made[0], outs=made)
            fresh()
            last[0] = made

    else:

        def call() -> None:
            last[0] = fresh()

    return "fresh", BoundCall(call, inputs, lambda: _several(last[0]))


def aligned_empty_like(array: Array) -> Array:
    """A new array of the same kind from NumPy's own allocator."""
    import numpy as np

    return np.empty(array.shape, array.dtype)


def _several(value: Any) -> list[Array]:
    return list(value) if isinstance(value, tuple | list) else [value]
