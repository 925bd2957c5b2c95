"""Worker processes and the frames that travel over their pipes.

In: a module of this package with a `main()`; headers (JSON objects) and bodies (bytes).
Out: a `Worker` whose `send` and `receive` move one frame each; `serve` is the other end.
Invariant: a frame is `<u32 header length><u64 body length><header><body>`; nothing is unpickled,
so a worker that was overwritten by a wild kernel can lie but not make its parent execute anything.
"""

from __future__ import annotations

import json
import os
import select
import signal
import struct
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import IO, Any

__all__ = ["Header", "Worker", "WorkerDied", "serve"]

Header = dict[str, Any]
_LENGTHS = struct.Struct("<IQ")
_MAX_HEADER_BYTES = 1 << 24
_MAX_BODY_BYTES = 1 << 34
_START_S = 60.0  # how long importing LLVM may take on a loaded machine

# A bare package object keeps the public `tilewright/__init__` and what it imports out of workers.
_LAUNCH = (
    "import sys,types;p=types.ModuleType('tilewright');p.__path__=[sys.argv[1]];"
    "sys.modules['tilewright']=p;import importlib;"
    "importlib.import_module(sys.argv[2]).main(sys.argv[3:])"
)


class WorkerDied(Exception):
    """The worker ended, hung (`timed_out`), or broke the protocol; the detail ends its stderr."""

    def __init__(self, detail: str, *, signal_name: str = "", timed_out: bool = False) -> None:
        super().__init__(detail)
        self.detail = detail
        self.signal_name = signal_name
        self.timed_out = timed_out


class Worker:
    """One child process that answers one frame at a time."""

    def __init__(
        self,
        module: str,
        arguments: tuple[str, ...] = (),
        environment: Mapping[str, str] | None = None,
    ) -> None:
        """Start `module.main(arguments)` with `environment` added to this process's.

        Errors: OSError when no process can be started.
        """
        package = str(Path(__file__).resolve().parent.parent)
        paths = os.pathsep.join(p for p in sys.path if p)
        variables = {**os.environ, "PYTHONPATH": paths, **(environment or {})}
        self._errors = tempfile.TemporaryFile()  # noqa: SIM115 - lives as long as the worker
        self._process = subprocess.Popen(
            [sys.executable or "python3", "-c", _LAUNCH, package, module, *arguments],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=self._errors,
            env=variables,
            bufsize=0,
        )
        self._ready = False
        assert self._process.stdin is not None and self._process.stdout is not None
        self._input = self._process.stdin
        self._output = self._process.stdout

    @property
    def pid(self) -> int:
        return self._process.pid

    def fileno(self) -> int:
        """The descriptor that becomes readable when an answer arrives or the worker ends."""
        return self._output.fileno()

    def send(self, header: Header, body: bytes = b"") -> None:
        """Write one frame. Errors: WorkerDied."""
        try:
            write_frame(self._input, header, body)
        except (BrokenPipeError, OSError):
            raise self._death("the worker ended before it could be asked") from None

    def receive(self, timeout_s: float) -> tuple[Header, bytes]:
        """Read one frame; after a timeout the worker has been killed.

        Errors: WorkerDied; OSError when the worker never came up.
        """
        deadline = time.monotonic() + timeout_s
        if not self._ready:
            try:
                self._receive(time.monotonic() + _START_S)
            except WorkerDied as died:
                raise OSError(died.detail) from None
            self._ready = True
        return self._receive(deadline)

    def _receive(self, deadline: float) -> tuple[Header, bytes]:
        try:
            lengths = self._read(_LENGTHS.size, deadline)
            header_length, body_length = _LENGTHS.unpack(lengths)
            if header_length > _MAX_HEADER_BYTES or body_length > _MAX_BODY_BYTES:
                self.kill()
                raise WorkerDied("the worker sent a malformed frame")
            header = json.loads(self._read(header_length, deadline))
            return header, self._read(body_length, deadline)
        except (ValueError, UnicodeDecodeError):
            self.kill()
            raise WorkerDied("the worker sent a malformed frame") from None

    def _read(self, count: int, deadline: float) -> bytes:
        parts: list[bytes] = []
        while count > 0:
            left = deadline - time.monotonic()
            if left <= 0 or not select.select([self._output], [], [], left)[0]:
                self.kill()
                raise WorkerDied("no answer in time", timed_out=True)
            part = os.read(self._output.fileno(), min(count, 1 << 20))
            if not part:
                raise self._death("the worker ended without an answer")
            parts.append(part)
            count -= len(part)
        return b"".join(parts)

    def _death(self, sentence: str) -> WorkerDied:
        try:
            status = self._process.wait(timeout=5)
        except subprocess.TimeoutExpired:
            self.kill()
            status = 0
        name = ""
        if status < 0:
            name = signal_name(-status)
            sentence += f" ({name})"
        self._errors.seek(max(0, self._errors.seek(0, os.SEEK_END) - 2000))
        tail = self._errors.read().decode(errors="replace").strip()
        self.close()
        return WorkerDied(f"{sentence}: {tail}" if tail else sentence, signal_name=name)

    def kill(self) -> None:
        """End the process now."""
        self._process.kill()
        self.close()

    def close(self) -> None:
        """Close the pipes, which ends a worker that is waiting for a frame, and reap it."""
        self._input.close()
        self._output.close()
        try:
            self._process.wait(timeout=2)
        except subprocess.TimeoutExpired:
            self._process.kill()
            self._process.wait()
        self._errors.close()

    def abandon(self) -> None:
        """Forget the process without ending it: for the copy of this object in a forked child."""
        self._input.close()
        self._output.close()
        self._process.returncode = 0


def signal_name(number: int) -> str:
    """`SIGSEGV` for 11."""
    try:
        return signal.Signals(number).name
    except ValueError:
        return f"signal {number}"


def write_frame(stream: IO[bytes], header: Header, body: bytes) -> None:
    """Write one frame to an unbuffered stream."""
    encoded = json.dumps(header).encode()
    for part in (_LENGTHS.pack(len(encoded), len(body)) + encoded, body):
        rest = memoryview(part)
        while rest:
            rest = rest[os.write(stream.fileno(), rest) :]


def serve(answer: Callable[[Header, bytes], tuple[Header, bytes]]) -> None:
    """Answer frames from standard input until it closes; standard output is for frames only."""
    signal.signal(signal.SIGINT, signal.SIG_IGN)  # an interrupted parent closes the pipes instead
    source = os.fdopen(os.dup(0), "rb")
    sink = os.fdopen(os.dup(1), "wb")
    os.dup2(2, 1)  # anything that prints goes to the error file
    write_frame(sink, {"ready": True}, b"")
    while True:
        lengths = source.read(_LENGTHS.size)
        if len(lengths) < _LENGTHS.size:
            return
        header_length, body_length = _LENGTHS.unpack(lengths)
        header = json.loads(source.read(header_length))
        write_frame(sink, *answer(header, source.read(body_length)))
