"""tilewright: tensor programs made fast on the machine they run on, verified."""

from __future__ import annotations

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from tilewright import onnx as onnx
    from tilewright import torch as torch
    from tilewright import verify as verify
    from tilewright.api import CompiledModel as CompiledModel
    from tilewright.api import compile as compile
    from tilewright.api import program as program
    from tilewright.config import config as config
    from tilewright.errors import TilewrightError as TilewrightError
    from tilewright.runtime.package import load as load
    from tilewright.runtime.pool import set_num_threads as set_num_threads

__all__ = [
    "CompiledModel",
    "TilewrightError",
    "compile",
    "config",
    "einsum",
    "function",
    "load",
    "onnx",
    "program",
    "set_num_threads",
    "torch",
    "verify",
]

# Name -> module that holds it (None: the name is a module). Imported on first use, so that
# importing tilewright is quick.
_HOME: dict[str, str | None] = {
    "CompiledModel": "tilewright.api",
    "compile": "tilewright.api",
    "einsum": "tilewright.arrays",
    "function": "tilewright.arrays",
    "load": "tilewright.runtime.package",
    "program": "tilewright.api",
    "config": "tilewright.config",
    "TilewrightError": "tilewright.errors",
    "set_num_threads": "tilewright.runtime.pool",
    "onnx": None,
    "torch": None,
    "verify": None,
}


def __getattr__(name: str) -> Any:
    if name not in _HOME:
        raise AttributeError(f"module 'tilewright' has no attribute {name!r}")
    home = _HOME[name]
    value = (
        importlib.import_module(f"tilewright.{name}")
        if home is None
        else getattr(importlib.import_module(home), name)
    )
    globals()[name] = value
    return value


def __dir__() -> list[str]:
    return sorted([*globals(), *__all__])
