"""The PyTorch door: `torch.compile(model, backend="tilewright")`.

In: graphs that Dynamo captures. Out: compiled functions. Invariants: importing this module needs
the extra `torch`; nothing is handed to PyTorch without being named in a report.
"""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

from tilewright.errors import TargetError

try:
    import torch as _torch  # noqa: F401
except ModuleNotFoundError as error:
    if error.name != "torch":
        raise
    raise TargetError(
        "U002", "this needs the package torch", hint="pip install 'tilewright[torch]'"
    ) from None

from tilewright.torch.backend import backend, options_of, reports, reset_reports
from tilewright.torch.report import Report

if TYPE_CHECKING:
    from tilewright.torch.module import CompiledModule as CompiledModule
    from tilewright.torch.module import compile_module as compile_module

__all__ = [
    "CompiledModule",
    "Report",
    "backend",
    "compile_module",
    "options_of",
    "reports",
    "reset_reports",
]


def __getattr__(name: str) -> Any:  # what imports the compiler is imported on first use
    if name not in ("CompiledModule", "compile_module"):
        raise AttributeError(f"module 'tilewright.torch' has no attribute {name!r}")
    from tilewright.torch import module

    globals()[name] = getattr(module, name)
    return globals()[name]
