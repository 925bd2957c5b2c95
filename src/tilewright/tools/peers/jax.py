"""JAX: the row's form under `jit`, its results in donated buffers or in new ones.

In: a workload with a `jax` form, or a model of our own suite. Out: `Entry`s. Invariant: every call
waits for its results; XLA's own threads are limited to `threads`.
"""

from __future__ import annotations

import os
import warnings
from typing import TYPE_CHECKING, Any

from tilewright.tools.peers import BoundCall, Entry, Unavailable, package_version
from tilewright.tools.peers._forms import Form, fill_forms
from tilewright.tools.peers._models import JaxOps
from tilewright.tools.peers.torch import no_form
from tilewright.tools.suite import aligned_copy, output_specs, peer_inputs
from tilewright.tools.zoo import ZOO

if TYPE_CHECKING:
    from collections.abc import Mapping

    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Adapter"]

# Below this an allocation costs less than handing a buffer round.
_WORTH_DONATING_BYTES = 1 << 20


class Adapter:
    """The peer `jax`."""

    def available(self) -> str:
        return package_version("jax")

    def prepare(self, workload: Workload, threads: int, copies: int) -> list[Entry]:
        if not workload.jax and workload.model not in ZOO:
            raise Unavailable(no_form(workload, "JAX"))
        if threads == 1:
            os.environ["XLA_FLAGS"] = "--xla_cpu_multi_thread_eigen=false"
        import jax
        import jax.numpy as jnp

        jax.config.update("jax_enable_x64", True)
        jax.config.update("jax_platforms", "cpu")
        jax.clear_caches()
        warnings.filterwarnings("ignore", message="Some donated buffers")
        libraries = {"jax": jax, "jnp": jnp, "lax": jax.lax}
        given, constants = peer_inputs(workload)
        held = {name: jnp.asarray(array) for name, array in constants.items()}
        names = list(given)
        if workload.model:
            ops, build = JaxOps(), ZOO[workload.model].build
            whole = jax.jit(lambda *inputs: build(ops, dict(zip(names, inputs, strict=True))))
            calls = [_fresh(whole, given) for _ in range(copies)]
            return [Entry(calls, "fresh", f"{threads} threads, jit")]
        entries = []
        for source in fill_forms(workload, workload.jax):
            function = Form(source, libraries, held).function(names)
            compiled = jax.jit(function)
            calls = [_fresh(compiled, given) for _ in range(copies)]
            entries.append(Entry(calls, "fresh", f"{threads} threads, jit"))
            if not workload.fresh and _output_bytes(workload) >= _WORTH_DONATING_BYTES:
                donated = jax.jit(
                    lambda outs, *inputs, f=function: f(*inputs),
                    donate_argnums=0,
                    keep_unused=True,
                )
                calls = [_donated(donated, workload, given) for _ in range(copies)]
                settings = f"{threads} threads, jit, results in donated buffers"
                entries.append(Entry(calls, "bound", settings))
        return entries


def _output_bytes(workload: Workload) -> int:
    import numpy as np

    return sum(
        int(np.prod(shape)) * np.dtype(dtype).itemsize for shape, dtype in output_specs(workload)
    )


def _several(value: Any) -> list[Array]:
    import numpy as np

    return [np.asarray(a) for a in (value if isinstance(value, tuple | list) else [value])]


def _fresh(function: Any, given: Mapping[str, Array]) -> BoundCall:
    import jax
    import jax.numpy as jnp

    inputs = {name: aligned_copy(array) for name, array in given.items()}
    arrays: list[Any] = []
    last: list[Any] = [None]

    def refresh() -> None:
        arrays[:] = [jnp.array(array) for array in inputs.values()]

    def call() -> None:
        last[0] = jax.block_until_ready(function(*arrays))

    refresh()
    call()
    return BoundCall(call, inputs, lambda: _several(last[0]), refresh)


def _donated(function: Any, workload: Workload, given: Mapping[str, Array]) -> BoundCall:
    import jax
    import jax.numpy as jnp

    inputs = {name: aligned_copy(array) for name, array in given.items()}
    arrays: list[Any] = []
    outs = tuple(jnp.zeros(shape, dtype) for shape, dtype in output_specs(workload))
    last: list[Any] = [outs[0] if len(outs) == 1 else outs]

    def refresh() -> None:
        arrays[:] = [jnp.array(array) for array in inputs.values()]

    def call() -> None:
        last[0] = jax.block_until_ready(function(last[0], *arrays))

    refresh()
    call()
    return BoundCall(call, inputs, lambda: _several(last[0]), refresh)
