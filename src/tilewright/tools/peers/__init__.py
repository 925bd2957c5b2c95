"""The other frameworks that the benchmark compares with: one adapter file per peer.

In: a `Workload`, a number of threads. Out: an `Entry` that the worker process times. Invariant:
an adapter runs only in a worker process of its own (`tools/worker.py`); this file imports no
framework, so the list of peers is always known.

A new peer is one file here with a class `Adapter`, and its name in `PEERS`.
"""

from __future__ import annotations

import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, Protocol

from tilewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["PEERS", "BoundCall", "Entry", "Peer", "Unavailable", "check_names", "load"]

PEERS = ("onnxruntime", "torch")


class Unavailable(Exception):
    """This peer cannot run here, or not this workload; the text is the reason that a row shows."""


@dataclass(frozen=True)
class BoundCall:
    """One inference on its own buffers: `call()` reads `inputs` and fills what `outputs()` gives.

    New data written into `inputs` in place is what the next call computes with.
    """

    call: Callable[[], object]
    inputs: dict[str, Array]
    outputs: Callable[[], Sequence[Array]]


@dataclass(frozen=True)
class Entry:
    """What is timed: one inference, on one set of buffers or on several in turn."""

    calls: Sequence[BoundCall]
    outputs_kind: str = "bound"
    settings: str = ""
    keep: object = field(default=None, repr=False)


class Peer(Protocol):
    """What an adapter offers."""

    def available(self) -> str:
        """The version. Errors: Unavailable with the reason."""
        ...

    def prepare(self, workload: Workload, threads: int, copies: int) -> Entry:
        """Build the workload at its best settings. Errors: Unavailable where it has none."""
        ...


def check_names(names: Sequence[str]) -> None:
    """Errors: U001 for a peer that does not exist, with the nearest name."""
    import difflib

    for name in names:
        if name not in PEERS:
            near = difflib.get_close_matches(name, PEERS, 1, 0.5)
            hint = (f"did you mean {near[0]}? " if near else "") + "known: " + ", ".join(PEERS)
            raise UserError("U001", f"there is no peer {name!r}", hint=hint)


def load(name: str) -> Peer:
    """The adapter of a peer; called in a worker process only."""
    check_names([name])
    module = importlib.import_module(f"tilewright.tools.peers.{name}")
    adapter: Peer = module.Adapter()
    return adapter
