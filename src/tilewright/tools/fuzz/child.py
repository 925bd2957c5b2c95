"""The child of a campaign: makes a case from its number, runs it, and says what came of it.

In: frames of `runtime.wire`. Out: frames. Invariants: the same number gives the same case in every
child; limits on memory and core dumps are set before anything is run.

Requests: `case` (kind, number, options), `reduce` (kind, text or number, what it fails with,
seconds), `replay` (kind, text), `coverage`.
"""

from __future__ import annotations

import resource
import time
from contextlib import suppress
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.runtime.wire import Header, serve
from tilewright.tools.fuzz import coverage

if TYPE_CHECKING:
    from tilewright.tools.fuzz.programs import Answer

__all__ = ["main"]

_MEMORY_BYTES = 12 << 30  # of address space


def _limit() -> None:
    hard = resource.getrlimit(resource.RLIMIT_AS)[1]
    most = _MEMORY_BYTES if hard == resource.RLIM_INFINITY else min(hard, _MEMORY_BYTES)
    resource.setrlimit(resource.RLIMIT_AS, (most, hard))
    resource.setrlimit(resource.RLIMIT_CORE, (0, 0))


def _answer(header: Header, body: bytes) -> tuple[Header, bytes]:
    from tilewright.tools.fuzz import kinds  # imports what `coverage` measures

    if header["do"] == "coverage":
        branches = coverage.current()
        return {"coverage": None if branches is None else branches.facts()}, b""
    kind = kinds.KINDS[header["kind"]]
    started = time.perf_counter()
    match header["do"]:
        case "case":
            answer = kind.check(header["number"], kinds.options_of(header), header["careful"])
        case "third":
            answer = kind.third(header["number"])
        case "replay":
            answer = kind.replay(body, kinds.options_of(header), header["careful"])
        case "reduce":
            data = kind.reduce(body, header["failure"], kinds.options_of(header), header["seconds"])
            return {"seconds": time.perf_counter() - started}, data
        case other:
            raise ValueError(f"unknown request {other}")
    return _header(answer, time.perf_counter() - started), answer.data


def _header(answer: Answer, seconds: float) -> dict[str, Any]:
    return {
        "pairs": answer.pairs,
        "definitions": answer.definitions,
        "drawn": sorted(answer.drawn),
        "found": answer.found,
        "valid": answer.valid,
        "others": answer.others,
        "digest": answer.digest,
        "seconds": seconds,
    }


def main(arguments: list[str]) -> None:
    """Serve until standard input closes. arguments: a file for the arcs of branches, or none."""
    _limit()
    if arguments:
        with suppress(ModuleNotFoundError):  # without the package no case is preferred
            coverage.start(Path(arguments[0]))
    from tilewright.runtime.build import set_kernel_options  # imports what `coverage` measures

    set_kernel_options()
    serve(_answer)
