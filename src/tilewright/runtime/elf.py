"""Relocatable ELF objects: what they hold, and placing those of x86-64 in this process.

In: the bytes of an object as LLVM writes it (position independent, small code model). Out: `Elf`,
its sections and symbols; `Placed`, its code in memory. Invariants: memory that can be executed
cannot be written; an address leaves `place` only after every relocation was done; nothing of the
object runs here.

Of the relocations of x86-64 our code needs six; another one is refused, never guessed. A call out
of the object goes through a jump to the address in a table, as the callee may lie anywhere.
"""

from __future__ import annotations

import ctypes
import mmap
import os
import platform
import struct
import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from typing import Any, NamedTuple

from tilewright.errors import TargetError, UserError

__all__ = ["Elf", "Placed", "Section", "Symbol", "place"]

_SECTION = struct.Struct("<IIQQQQIIQQ")
_SYMBOL = struct.Struct("<IBBHQQ")
_RELOCATION = struct.Struct("<QQq")
_MACHINES = {62: "x86_64", 183: "aarch64"}

_CODE_OR_DATA, _SYMBOLS, _RELOCATIONS, _ZEROS = 1, 2, 4, 8  # types of sections
_WRITE, _ALLOC, _EXECUTE, _THREAD = 1, 2, 4, 0x400  # flags of sections
_UNDEFINED, _SPECIAL = 0, 0xFF00  # numbers of sections
_GLOBAL, _DATA_OR_FUNCTION = 1, (1, 2)

_ABS64, _PC32, _PLT32, _GOT, _GOT_RELAXED, _GOT_RELAXED_REX, _PC64 = 1, 2, 4, 9, 41, 42, 24
_MOST_BYTES = 1 << 30
_JUMP = b"\xff\x25"  # jmp *[rip + offset]
_JUMP_BYTES = 8


class Section(NamedTuple):
    """A row of the section table; `at` and `size` are bytes in the file."""

    name: int
    type: int
    flags: int
    address: int
    at: int
    size: int
    link: int
    info: int
    align: int
    entry_bytes: int


class Symbol(NamedTuple):
    """A row of a symbol table: `value` is an offset into section number `section`."""

    name: str
    at: int
    is_global: bool
    is_named: bool
    section: int
    value: int


class Elf:
    """The tables of a 64-bit object of this kind of CPU. Errors: UserError R011 for other bytes."""

    def __init__(self, data: bytes) -> None:
        if data[:6] != b"\x7fELF\x02\x01" or len(data) < 64:
            raise UserError("R011", "not a 64-bit ELF object")
        self.data = data
        try:
            if _MACHINES.get(struct.unpack_from("<H", data, 18)[0]) != platform.machine():
                raise ValueError("another kind of CPU")
            (self.table,) = struct.unpack_from("<Q", data, 40)
            self.row_bytes, count = struct.unpack_from("<HH", data, 58)
            rows = (self.table + self.row_bytes * k for k in range(count))
            self.sections = [Section(*_SECTION.unpack_from(data, at)) for at in rows]
            self.symbols = [s for table in self.sections for s in self._symbols(table)]
        except (struct.error, UnicodeDecodeError, IndexError, ValueError):
            raise UserError("R011", "the ELF object is truncated or damaged") from None

    def _symbols(self, table: Section) -> Iterator[Symbol]:
        if table.type != _SYMBOLS:
            return
        strings = self.sections[table.link].at
        for at in range(table.at, table.at + table.size, _SYMBOL.size):
            name, info, _, section, value, _ = _SYMBOL.unpack_from(self.data, at)
            start = strings + name
            text = self.data[start : self.data.index(b"\0", start)].decode()
            yield Symbol(
                text, at, info >> 4 == _GLOBAL, info & 15 in _DATA_OR_FUNCTION, section, value
            )

    @property
    def exported(self) -> tuple[str, ...]:
        """Global functions and variables that the object defines, in the order of its table."""
        found = (s for s in self.symbols if s.is_global and s.is_named)
        return tuple(s.name for s in found if s.section != _UNDEFINED)

    def renamed(self, names: Mapping[str, str]) -> bytes:
        """The object with symbols renamed: new string tables at its end."""
        out = bytearray(self.data)
        for table in (s for s in self.sections if s.type == _SYMBOLS):
            strings = self.sections[table.link]
            text = bytearray(self.data[strings.at : strings.at + strings.size])
            for s in self._symbols(table):
                if s.name in names:
                    struct.pack_into("<I", out, s.at, len(text))
                    text += names[s.name].encode() + b"\0"
            row = strings._replace(at=len(out), size=len(text))
            out += text
            _SECTION.pack_into(out, self.table + self.row_bytes * table.link, *row)
        return bytes(out)


def _system(name: str, result: Any, *arguments: Any) -> Any:
    function = getattr(ctypes.CDLL(None, use_errno=True), name)
    function.restype, function.argtypes = result, arguments
    return function


_map = _system(
    "mmap", ctypes.c_void_p, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int, ctypes.c_int,
    ctypes.c_int, ctypes.c_long,
)  # fmt: skip
_protect = _system("mprotect", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t, ctypes.c_int)
_unmap = _system("munmap", ctypes.c_int, ctypes.c_void_p, ctypes.c_size_t)


class Placed:
    """Code in memory until the last reference goes."""

    def __init__(self, address: int, size: int, addresses: dict[str, int]) -> None:
        self._address, self._size, self.addresses = address, size, addresses

    def __del__(self) -> None:
        if not sys.is_finalizing():  # a thread may still run it
            _unmap(self._address, self._size)


@dataclass
class _Image:
    """The bytes of one mapping while it is made."""

    elf: Elf
    base: int
    data: memoryview
    places: dict[int, int]  # section -> offset
    imports: Mapping[str, int]
    table: int  # offset of the addresses of symbols from outside, then of the jumps to them
    jumps: int
    slots: dict[str, int]  # symbol -> its number in both

    def address(self, s: Symbol) -> int:
        if s.section == _UNDEFINED:
            return _outside(s.name, self.imports)
        if s.section >= _SPECIAL or s.section not in self.places:
            raise UserError("R011", f"the object cannot be loaded: nothing holds {s.name!r}")
        return self.base + self.places[s.section] + s.value

    def slot(self, s: Symbol) -> int:
        """The offset of the table's entry that holds the address of `s`."""
        number = self.slots[_slot_name(s)]
        at = self.table + 8 * number
        struct.pack_into("<Q", self.data, at, self.address(s))
        return at

    def jump(self, s: Symbol) -> int:
        """The offset of a jump to `s`, which lies outside."""
        entry = self.slot(s)
        at = self.jumps + _JUMP_BYTES * self.slots[_slot_name(s)]
        struct.pack_into("<2si", self.data, at, _JUMP, entry - (at + 6))
        return at

    def relocate(self, at: int, kind: int, s: Symbol, addend: int) -> None:
        """Write what one relocation asks for at offset `at`."""
        if kind == _ABS64:
            struct.pack_into("<Q", self.data, at, (self.address(s) + addend) % 2**64)
            return
        if kind in (_GOT, _GOT_RELAXED, _GOT_RELAXED_REX):
            to = self.base + self.slot(s)
        elif kind == _PLT32 and s.section == _UNDEFINED:
            to = self.base + self.jump(s)
        elif kind in (_PC32, _PLT32, _PC64):
            to = self.address(s)
        else:
            raise UserError("R011", f"the object cannot be loaded: relocation of type {kind}")
        width = "<q" if kind == _PC64 else "<i"  # struct.error: farther than 2 GiB
        struct.pack_into(width, self.data, at, to + addend - self.base - at)


def _slot_name(s: Symbol) -> str:
    return s.name or f"{s.section}+{s.value}"


def _outside(name: str, imports: Mapping[str, int]) -> int:
    """Where a symbol of the process, or of `imports`, lies. Errors: UserError R011."""
    if name in imports:
        return imports[name]
    try:
        function = getattr(ctypes.pythonapi, name)
    except AttributeError:
        raise UserError("R011", f"the object cannot be loaded: nothing defines {name!r}") from None
    address = ctypes.cast(function, ctypes.c_void_p).value
    assert address is not None
    return address


def place(elf: Elf, imports: Mapping[str, int]) -> Placed:
    """Copy an object of x86-64 into memory, relocate it, and make its code executable.

    imports: addresses by name; other names are looked for in the process. Errors: UserError R011
    for what cannot be loaded, TargetError R014 where the system gives no memory.
    """
    try:
        return _place(elf, imports)
    except (struct.error, IndexError, ValueError, OverflowError):
        raise UserError("R011", "the ELF object is truncated or damaged") from None


def _place(elf: Elf, imports: Mapping[str, int]) -> Placed:
    page = mmap.PAGESIZE
    relocations = list(_relocations(elf))
    called = dict.fromkeys(
        _slot_name(s) for _, _, kind, s, _ in relocations
        if kind in (_GOT, _GOT_RELAXED, _GOT_RELAXED_REX) or s.section == _UNDEFINED
    )  # fmt: skip
    slots = {name: k for k, name in enumerate(called)}
    kept = [(k, s) for k, s in enumerate(elf.sections) if _is_kept(s)]
    places: dict[int, int] = {}
    jumps = 8 * len(slots)
    end = code_end = jumps + _JUMP_BYTES * len(slots)
    for part in (0, _WRITE):
        for k, s in kept:
            if s.flags & _WRITE == part:
                end += -end % max(1, s.align)
                places[k] = end
                end += s.size
        end += -end % page
        code_end = end if part == 0 else code_end
    size = max(page, end)
    if size > _MOST_BYTES or any(s.align > page for _, s in kept):
        raise UserError("R011", f"the object cannot be loaded: it wants {size} bytes")
    base = _map(
        None, size, mmap.PROT_READ | mmap.PROT_WRITE, mmap.MAP_PRIVATE | mmap.MAP_ANONYMOUS, -1, 0
    )
    if base in (None, ctypes.c_void_p(-1).value):
        raise TargetError("R014", f"no memory for {size} bytes of code: {_reason()}")
    placed = Placed(base, size, {})
    memory = memoryview((ctypes.c_uint8 * size).from_address(base)).cast("B")
    image = _Image(elf, base, memory, places, imports, 0, jumps, slots)
    for k, s in kept:
        if s.type == _CODE_OR_DATA:
            memory[places[k] : places[k] + s.size] = elf.data[s.at : s.at + s.size]
    for section, offset, kind, symbol, addend in relocations:
        if not 0 <= offset < elf.sections[section].size:
            raise ValueError("a relocation lies outside")
        image.relocate(places[section] + offset, kind, symbol, addend)
    defined = (s for s in elf.symbols if s.is_global and s.is_named and s.section != _UNDEFINED)
    placed.addresses.update((s.name, image.address(s)) for s in defined)
    if code_end and _protect(base, code_end, mmap.PROT_READ | mmap.PROT_EXEC):
        raise TargetError(
            "R014", f"the system lets no new code run: {_reason()}",
            hint="allow executable memory to this process (SELinux: execmem; systemd: "
            "MemoryDenyWriteExecute)",
        )  # fmt: skip
    return placed


def _is_kept(s: Section) -> bool:
    """Does it belong into memory? Errors: UserError R011 for variables of threads."""
    if s.flags & _THREAD:
        raise UserError("R011", "the object cannot be loaded: it has variables of threads")
    return bool(s.flags & _ALLOC) and s.type in (_CODE_OR_DATA, _ZEROS) and s.size > 0


def _relocations(elf: Elf) -> Iterator[tuple[int, int, int, Symbol, int]]:
    """Section, offset, type, symbol and addend of every relocation of what is kept."""
    for s in elf.sections:
        if s.type != _RELOCATIONS or not 0 <= s.info < len(elf.sections):
            continue
        if not _is_kept(elf.sections[s.info]):
            continue
        for at in range(s.at, s.at + s.size, _RELOCATION.size):
            offset, info, addend = _RELOCATION.unpack_from(elf.data, at)
            yield s.info, offset, info & 0xFFFFFFFF, elf.symbols[info >> 32], addend


def _reason() -> str:
    return os.strerror(ctypes.get_errno())
