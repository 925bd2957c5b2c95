"""How a command ends: its exit status, and the JSON it leaves.

In: a result or an exception. Out: 0 done, 1 a check failed, 2 wrong use, 3 unsupported input,
4 internal error, 130 interrupted. Invariant: the status depends on the class and code of an error,
never on its text.
"""

from __future__ import annotations

import json
import math
import os
import sys
from collections.abc import Mapping
from contextlib import suppress
from pathlib import Path
from typing import Any

from tilewright.errors import InternalError, TargetError, TilewrightError, UserError

__all__ = ["CHECK_FAILED", "DONE", "INTERNAL", "INTERRUPTED", "UNSUPPORTED", "WRONG_USE"]
__all__ += ["error_json", "exit_status", "write_json"]

DONE, CHECK_FAILED, WRONG_USE, UNSUPPORTED, INTERNAL = range(5)
INTERRUPTED = 130

# A model that we cannot take, as against a command that was given wrongly.
_UNSUPPORTED_CODES = {"F001", "F002", "F003", "F004", "F005", "F006", "R005", "R011", "S002"}


def exit_status(error: BaseException) -> int:
    """The exit status of a command that ended with `error`."""
    if isinstance(error, KeyboardInterrupt):
        return INTERRUPTED
    if isinstance(error, TilewrightError) and error.code.startswith("V"):
        return CHECK_FAILED
    if isinstance(error, TargetError):
        return WRONG_USE if error.code.startswith("U") else UNSUPPORTED
    if isinstance(error, UserError):
        return UNSUPPORTED if error.code in _UNSUPPORTED_CODES else WRONG_USE
    return INTERNAL


def error_json(error: BaseException) -> dict[str, Any]:
    """The error as `--json` shows it."""
    if isinstance(error, TilewrightError):
        kind = type(error).__name__
        return {
            "error": {
                "kind": kind,
                "code": error.code,
                "message": error.message,
                "where": error.where,
                "next": error.hint,
            },
            "status": exit_status(error),
        }
    return {
        "error": {"kind": type(error).__name__, "code": "X001", "message": str(error)},
        "status": exit_status(error),
    }


def as_internal(error: Exception) -> InternalError:
    """An exception that nobody expected, as an error of ours."""
    return InternalError(
        "X001",
        f"{type(error).__name__}: {error}",
        hint="this is a bug; run again with TILEWRIGHT_DEBUG=1 for the traceback, and report it",
    )


def _plain(value: Any) -> Any:
    """The value with only JSON's types; NaN and infinities become null."""
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple | set | frozenset):
        return [_plain(item) for item in value]
    if isinstance(value, bool) or value is None or isinstance(value, str | int):
        return value
    if isinstance(value, float):
        return value if math.isfinite(value) else None
    if hasattr(value, "item") and getattr(value, "shape", None) == ():
        return _plain(value.item())
    return str(value)


def write_json(data: Any, path: str) -> None:
    """Write `data` to `path`, or to standard output when it is `-`; a file appears whole.

    Errors: U003 when the path cannot be written.
    """
    text = json.dumps(_plain(data), indent=1, ensure_ascii=False) + "\n"
    if path == "-":
        sys.stdout.write(text)
        sys.stdout.flush()
        return
    target = Path(path)
    temporary = target.with_name(f".{target.name}.{os.getpid()}")
    try:
        temporary.write_text(text, encoding="utf-8")
        temporary.replace(target)
    except OSError as error:
        with suppress(OSError):
            temporary.unlink(missing_ok=True)
        raise UserError(
            "U003",
            f"the JSON cannot be written to {path}: {error.strerror}",
            where="--json",
            hint="give a path in a folder that exists, or - for standard output",
        ) from error
