"""Python's garbage collector while something is compiled.

In: nothing. Out: `no_collection`. Invariant: afterwards the collector is as it was.
"""

from __future__ import annotations

import gc
from collections.abc import Iterator
from contextlib import contextmanager

__all__ = ["no_collection"]


@contextmanager
def no_collection() -> Iterator[None]:
    """Within it the collector does not start by itself.

    Compiling makes many objects that live on, so that the collector would walk the whole heap
    several times and find nothing: in a process with PyTorch half a second each time.
    """
    if not gc.isenabled():
        yield
        return
    gc.disable()
    try:
        yield
    finally:
        gc.enable()
