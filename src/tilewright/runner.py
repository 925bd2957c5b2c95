"""Run saved models where nothing is compiled: `from tilewright.runner import load`.

In: files that `save` wrote. Out: models that are called with arrays. Invariant: this module, and
what loading and calling need of the package, imports NumPy, ml_dtypes and the standard library
only, so that llvmlite and the front ends' packages may be absent.
"""

from __future__ import annotations

from tilewright.errors import TargetError, TilewrightError, UserError
from tilewright.runtime.package import LoadedModel, load
from tilewright.runtime.pool import set_num_threads

__all__ = [
    "LoadedModel",
    "TargetError",
    "TilewrightError",
    "UserError",
    "load",
    "set_num_threads",
]
