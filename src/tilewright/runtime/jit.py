"""Load ELF objects into this process.

In: ELF bytes that `runtime.build` made for this kind of CPU. Out: a `LoadedObject` whose
`address(name)` is callable machine code for as long as the object lives.
Invariant: code of the pool is never unloaded, because threads may still sleep inside it when the
interpreter ends.

Objects of x86-64 are placed by `runtime.elf`: a process that only runs saved models needs no
compiler then, and starts without loading one. Those of other CPUs are placed by LLVM's linker, of
which a process has one, made at the first load and never torn down.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import threading
from collections.abc import Iterable
from typing import Any

from tilewright.errors import InternalError, UserError
from tilewright.machine.permission import matrices_permitted, uses_matrices
from tilewright.runtime.elf import Elf, place

__all__ = ["LoadedObject", "exported_symbols", "load_object"]

_lock = threading.Lock()
_numbers = itertools.count()
_loader: Any = None


class LoadedObject:
    """Machine code in memory; dropping the last reference unloads it."""

    def __init__(self, held: Any, addresses: dict[str, int]) -> None:
        self._held = held
        self._addresses = addresses

    @property
    def symbols(self) -> tuple[str, ...]:
        """Names of the exported functions and variables."""
        return tuple(self._addresses)

    def address(self, name: str) -> int:
        """Where `name` lies. Errors: InternalError X001 when the object does not export it."""
        if name not in self._addresses:
            raise InternalError("X001", f"the object exports {self.symbols}, not {name!r}")
        return self._addresses[name]

    def keep_forever(self) -> LoadedObject:
        """Never unload, not even when the interpreter ends."""
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._held))
        return self


def load_object(data: bytes, imports: Iterable[tuple[str, int]] = ()) -> LoadedObject:
    """Link `data` against this process and the addresses in `imports`.

    Errors: UserError R011 when the bytes are no object of this CPU or name unknown symbols.
    """
    elf = Elf(data)
    if platform.machine() != "x86_64":
        return _load_by_llvm(elf, imports)
    if uses_matrices(data):
        matrices_permitted()  # another process may have compiled it
    placed = place(elf, dict(imports))
    return LoadedObject(placed, placed.addresses)


def _load_by_llvm(elf: Elf, imports: Iterable[tuple[str, int]]) -> LoadedObject:
    import llvmlite.binding as llvm

    builder = llvm.JITLibraryBuilder().add_object_img(elf.data).add_current_process()
    for name in elf.exported:
        builder.export_symbol(name)
    for name, address in imports:
        builder.import_symbol(name, address)
    with _lock:
        try:
            tracker = builder.link(_the_loader(), f"tilewright-{next(_numbers)}")
        except RuntimeError as error:  # what llvmlite raises for every refusal of the linker
            raise UserError("R011", f"the object cannot be loaded: {error}") from None
    return LoadedObject(tracker, {name: int(tracker[name]) for name in elf.exported})


def _the_loader() -> Any:
    global _loader
    if _loader is None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        _loader = llvm.create_lljit_compiler(use_jit_link=True)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_loader))
    return _loader


def exported_symbols(data: bytes) -> tuple[str, ...]:
    """Global functions and variables that an ELF object defines, in the order of its symbol table.

    Errors: UserError R011 when the bytes are no ELF object of this kind of CPU.
    """
    return Elf(data).exported
