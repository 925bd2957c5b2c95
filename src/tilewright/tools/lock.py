"""The machine-wide lock that everything which times code holds: two runs would spoil each other.

In: who wants it. Out: a context manager. Invariant: the lock belongs to the open file, so it is
free again however its holder ends; a waiter says once what it waits for.
"""

from __future__ import annotations

import fcntl
import json
import logging
import os
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

from tilewright.errors import TargetError

__all__ = ["lock_path", "timing_lock"]

log = logging.getLogger("tilewright.tools.lock")
_POLL_S = 0.2


def lock_path() -> Path:
    """One file for all users and all cache folders of the machine."""
    return Path(tempfile.gettempdir()) / "tilewright-timing.lock"


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _open(path: Path) -> int:
    flags = os.O_RDWR | os.O_CREAT | os.O_CLOEXEC | os.O_NOFOLLOW
    try:
        descriptor = os.open(path, flags, 0o666)
    except OSError:
        # Another user's file, or a read-only folder: to lock it is enough to read it.
        try:
            return os.open(path, os.O_RDONLY | os.O_CLOEXEC | os.O_NOFOLLOW)
        except OSError as error:
            raise TargetError(
                "R010",
                f"the timing lock {path} cannot be opened: {error.strerror}",
                hint="set TMPDIR to a folder that can be written",
            ) from error
    with suppress(OSError):
        os.fchmod(descriptor, 0o666)
    return descriptor


def _holder(descriptor: int) -> str:
    try:
        facts = json.loads(os.pread(descriptor, 1000, 0) or b"{}")
        return f"process {facts['pid']} ({facts['purpose']})"
    except (OSError, ValueError, KeyError, TypeError):
        return "another process"


@contextmanager
def timing_lock(
    purpose: str, *, say: Callable[[str], None] = _say, path: Path | None = None
) -> Iterator[float]:
    """Hold the lock inside the block; yields the seconds waited.

    purpose: shown to whoever waits for us. say: told once, with the holder, when we have to wait.
    Errors: R010 when the lock file cannot be opened.
    """
    descriptor = _open(path or lock_path())
    started = time.monotonic()
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            say(f"waiting for the timing lock held by {_holder(descriptor)}")
            while True:  # polled, so that Ctrl-C ends the wait at once in every thread
                time.sleep(_POLL_S)
                try:
                    fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    break
                except BlockingIOError:
                    continue
        with suppress(OSError):
            os.ftruncate(descriptor, 0)
            os.pwrite(descriptor, json.dumps({"pid": os.getpid(), "purpose": purpose}).encode(), 0)
        yield time.monotonic() - started
    finally:
        os.close(descriptor)
