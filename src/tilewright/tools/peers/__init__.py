"""The other frameworks that the benchmark compares with: one adapter file per peer.

In: a `Workload`, a number of threads. Out: `Entry`s that the worker process times. Invariant: an
adapter runs only in a worker process of its own (`tools/worker.py`); this file imports no
framework, so the list of peers is always known.

A new peer is one file here with a class `Adapter`; its file name is its name. `NAME+tcmalloc` is
the same peer with that allocator preloaded.
"""

from __future__ import annotations

import glob
import importlib
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from importlib import metadata
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tilewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tilewright.tools.suite import Workload

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["PEERS", "VARIANTS", "BoundCall", "Entry", "Peer", "Unavailable", "check_names"]
__all__ += ["load", "package_version", "preload_of"]

# Files whose names start with an underscore are what several adapters share.
PEERS = tuple(
    sorted(p.stem for p in Path(__file__).parent.glob("*.py") if not p.stem.startswith("_"))
)

# What may follow a peer's name after `+`: the library to preload, and how to get it.
VARIANTS = {
    "tcmalloc": (
        "libtcmalloc_minimal.so.4",
        "tcmalloc is not installed: apt-get install libtcmalloc-minimal4",
    )
}
_LIBRARY_FOLDERS = ("/usr/lib/*-linux-gnu*", "/usr/lib64", "/usr/lib", "/usr/local/lib")


class Unavailable(Exception):
    """This peer cannot run here, or not this workload; the text is the reason that a row shows."""


@dataclass(frozen=True)
class BoundCall:
    """One inference on its own buffers: `call()` reads `inputs` and fills what `outputs()` gives.

    After new data was written into `inputs` in place, `refresh()` takes it over; it is never timed.
    """

    call: Callable[[], object]
    inputs: dict[str, Array]
    outputs: Callable[[], Sequence[Array]]
    refresh: Callable[[], object] = lambda: None


@dataclass(frozen=True)
class Entry:
    """What is timed: one inference, on one set of buffers or on several in turn.

    outputs_kind: `bound` where results are written into memory given beforehand, else `fresh`.
    """

    calls: Sequence[BoundCall]
    outputs_kind: str = "bound"
    settings: str = ""
    keep: object = field(default=None, repr=False)


class Peer(Protocol):
    """What an adapter offers."""

    def available(self) -> str:
        """The version. Errors: Unavailable with the reason."""
        ...

    def prepare(self, workload: Workload, threads: int, copies: int) -> Sequence[Entry]:
        """Build the workload in every way worth trying; the fastest is timed.

        Where `workload.fresh` is set, only entries whose results are new arrays each time.
        Errors: Unavailable where the peer has no form of the workload.
        """
        ...


def package_version(package: str) -> str:
    """The installed version. Errors: Unavailable with the line that installs it."""
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        raise Unavailable(
            f"{package} is not installed: pip install 'tilewright[peers]'"
        ) from None


def check_names(names: Sequence[str]) -> None:
    """Errors: U001 for a peer that does not exist, with the nearest name."""
    import difflib

    for name in names:
        plain, _, variant = name.partition("+")
        if plain not in PEERS or (variant and variant not in VARIANTS):
            known = [*PEERS, *(f"{peer}+{variant}" for variant in VARIANTS for peer in PEERS)]
            near = difflib.get_close_matches(name, known, 1, 0.5)
            hint = (f"did you mean {near[0]}? " if near else "") + "known: " + ", ".join(PEERS)
            raise UserError(
                "U001", f"there is no peer {name!r}", hint=f"{hint}, each also with +tcmalloc"
            )


def preload_of(name: str) -> str:
    """The library that a variant's process preloads; empty for a plain name.

    Errors: Unavailable where it is not installed.
    """
    variant = name.partition("+")[2]
    if not variant:
        return ""
    library, reason = VARIANTS[variant]
    for folder in _LIBRARY_FOLDERS:
        for found in sorted(glob.glob(f"{folder}/{library}")):
            return found
    raise Unavailable(reason)


def load(name: str) -> Peer:
    """The adapter of a peer or of its variant; called in a worker process only."""
    check_names([name])
    module = importlib.import_module(f"tilewright.tools.peers.{name.partition('+')[0]}")
    adapter: Peer = module.Adapter()
    return adapter
