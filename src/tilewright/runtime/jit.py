"""Load ELF objects into this process.

In: ELF bytes that `runtime.build` made for this kind of CPU. Out: a `LoadedObject` whose
`address(name)` is callable machine code for as long as the object lives.
Invariant: the process has one loader, made at the first load and never torn down, because threads
may still sleep inside loaded code when the interpreter ends.
"""

from __future__ import annotations

import ctypes
import itertools
import platform
import struct
import threading
from collections.abc import Iterable
from typing import Any

from tilewright.errors import InternalError, UserError

__all__ = ["LoadedObject", "exported_symbols", "load_object"]

_lock = threading.Lock()
_numbers = itertools.count()
_loader: Any = None


class LoadedObject:
    """Machine code in memory; dropping the last reference unloads it."""

    def __init__(self, tracker: Any, addresses: dict[str, int]) -> None:
        self._tracker = tracker
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
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(self._tracker))
        return self


def load_object(data: bytes, imports: Iterable[tuple[str, int]] = ()) -> LoadedObject:
    """Link `data` against this process and the addresses in `imports`.

    Errors: UserError R011 when the bytes are no object of this CPU or name unknown symbols.
    """
    import llvmlite.binding as llvm

    names = exported_symbols(data)
    builder = llvm.JITLibraryBuilder().add_object_img(data).add_current_process()
    for name in names:
        builder.export_symbol(name)
    for name, address in imports:
        builder.import_symbol(name, address)
    with _lock:
        try:
            tracker = builder.link(_the_loader(), f"tilewright-{next(_numbers)}")
        except RuntimeError as error:  # what llvmlite raises for every refusal of the linker
            raise UserError("R011", f"the object cannot be loaded: {error}") from None
    return LoadedObject(tracker, {name: int(tracker[name]) for name in names})


def _the_loader() -> Any:
    global _loader
    if _loader is None:
        import llvmlite.binding as llvm

        llvm.initialize_native_target()
        llvm.initialize_native_asmprinter()
        _loader = llvm.create_lljit_compiler(use_jit_link=True)
        ctypes.pythonapi.Py_IncRef(ctypes.py_object(_loader))
    return _loader


_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_SYMBOL_TABLE = 2
_GLOBAL = 1
_DATA_OR_FUNCTION = (1, 2)
_MACHINES = {62: "x86_64", 183: "aarch64"}


def exported_symbols(data: bytes) -> tuple[str, ...]:
    """Global functions and variables that an ELF object defines, in the order of its symbol table.

    Errors: UserError R011 when the bytes are no ELF object of this kind of CPU.
    """
    if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
        raise UserError("R011", "not a 64-bit ELF object")
    try:
        return tuple(_symbols(data))
    except (struct.error, UnicodeDecodeError, IndexError, ValueError):
        raise UserError("R011", "the ELF object is truncated or damaged") from None


def _symbols(data: bytes) -> Iterable[str]:
    if _MACHINES.get(struct.unpack_from("<H", data, 18)[0]) != platform.machine():
        raise ValueError("another kind of CPU")
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    sections = [_SECTION.unpack_from(data, table + size * index) for index in range(count)]
    for section in sections:
        if section[1] != _SYMBOL_TABLE:
            continue
        strings = sections[section[6]][4]
        for offset in range(section[4], section[4] + section[5], _SYMBOL.size):
            name, info, _, index, _, _ = _SYMBOL.unpack_from(data, offset)
            if info >> 4 == _GLOBAL and info & 15 in _DATA_OR_FUNCTION and index != 0:
                start = strings + name
                yield data[start : data.index(b"\0", start)].decode()
