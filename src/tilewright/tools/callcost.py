"""What a call costs beyond its kernel: `add` of 64 elements, results into a given array.

In: `numpy` or `torch` as the one argument. Out: one line of JSON, `ns` or `reason`. Invariant: the
time of the kernel itself is measured in the same process and taken away.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

from tilewright.errors import TilewrightError

__all__ = ["cost_ns", "main"]

TEXT = "a: f32[64]; b: f32[64]; y[i] = a[i] + b[i]"
_CALLS, _BURSTS = 5000, 15


def _least_ns(call: Callable[[], object]) -> float:
    """Nanoseconds of one call, the least of several bursts."""
    bursts = []
    for _ in range(_BURSTS):
        repeat = range(_CALLS)
        started = time.perf_counter_ns()
        for _ in repeat:
            call()
        bursts.append((time.perf_counter_ns() - started) / _CALLS)
    return min(bursts)


def cost_ns(kind: str) -> float:
    """A call with arrays of this kind, less the kernel and the loop around it.

    Errors: those of calling the model, where it takes no such arrays.
    """
    import numpy as np

    import tilewright as tw
    from tilewright.tools.suite import aligned_copy

    model = tw.compile(tw.program(TEXT), threads=1)
    stream = np.random.default_rng(0)
    arrays = [aligned_copy(stream.standard_normal(64, np.float32)) for _ in range(3)]
    a, b, out = arrays
    model(a, b, out=out)
    kernel_ns = min(sum(model.timed({"a": a, "b": b})[1]) for _ in range(200))
    given: Sequence[Any] = arrays
    if kind == "torch":
        import torch

        given = [torch.from_numpy(array) for array in arrays]
    x, y, z = given
    model(x, y, out=z)
    empty_ns = _least_ns(lambda: None)
    return _least_ns(lambda: model(x, y, out=z)) - empty_ns - kernel_ns


def main(arguments: Sequence[str]) -> int:
    """`python -m tilewright.tools.callcost numpy|torch`."""
    try:
        answer: dict[str, Any] = {"ns": cost_ns(arguments[0])}
    except TilewrightError as error:
        answer = {"reason": f"[{error.code}] {error.message}"}
    except ImportError as error:
        answer = {"reason": str(error)}
    print(json.dumps(answer))
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
