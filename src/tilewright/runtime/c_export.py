"""A compiled model as C: objects, a header, and one C file that calls them in order.

In: a compiled model with one variant. Out: a folder with NAME.h, NAME.c, NAME_K.o, NAME.bin. What C
calls has no state: the caller gives the memory of a call. Invariants: the code is the very code
that the model runs here, so results are the same bits; nothing but libc's memset and memcpy (and
syscall, where matrix registers are used) is linked; models that call back into Python, or have
branches and loops of the host program, are refused.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.machine.permission import ARCH_PRCTL, REQUEST, TILE_DATA, uses_matrices
from tilewright.runtime.artifact import Artifact
from tilewright.runtime.context import ArrayType
from tilewright.runtime.elf import Elf

__all__ = ["export_c"]

_TYPES = {
    "float32": "float", "float64": "double", "bool": "uint8_t", "float16": "uint16_t",
    "bfloat16": "uint16_t",
}  # fmt: skip
_ALIGN = 64
# Linux gives leave to use matrix registers to a process that asks for it.
_LEAVE = (
    "    extern long syscall(long, ...);",
    f"    (void)syscall({ARCH_PRCTL}L, {REQUEST}L, {TILE_DATA}L);",
)


def export_c(folder: Path | str, name: str, artifact: Artifact) -> list[Path]:
    """Write the files of a model; they are returned, the header first.

    Compile them with `cc -c NAME.c` in that folder (it includes NAME.bin by its name) and link
    NAME.o and NAME_*.o. Errors: U003 for a name that is none in C, or a folder that cannot be
    written; F005 for externs, branches and loops.
    """
    if not re.fullmatch(r"[A-Za-z][A-Za-z0-9_]*", name):
        raise UserError("U003", f"{name!r} is no name in C", hint="give letters, digits and _")
    for s in artifact.steps:
        if s.control or s.callback is not None:
            what = f"the extern {s.callback.function}" if s.callback else f"a {s.control} step"
            raise UserError(
                "F005", f"the model has {what}, which C does not run",
                hint="save it as an artifact, for tilewright.load",
            )  # fmt: skip
    constants, places = _packed(artifact.constants)
    files: dict[str, bytes] = {f"{name}.h": b"", f"{name}.c": b"", f"{name}.bin": constants}
    symbols: dict[tuple[int, str], str] = {}
    for k, data in enumerate(artifact.objects):
        elf = Elf(data)
        names = {old: f"{name}_{k}_{old}" for old in elf.exported}
        symbols.update({(k, old): new for old, new in names.items()})
        files[f"{name}_{k}.o"] = elf.renamed(names)
    files[f"{name}.h"] = _header(name, artifact).encode()
    files[f"{name}.c"] = _source(name, artifact, places, symbols).encode()
    out = []
    try:
        Path(folder).mkdir(parents=True, exist_ok=True)
        for file, content in files.items():
            out.append(Path(folder) / file)
            out[-1].write_bytes(content)
    except OSError as error:
        raise UserError(
            "U003", f"{folder} cannot be written: {error.strerror}", hint="give another folder"
        ) from None
    return out


def _packed(constants: Sequence[np.ndarray[Any, Any]]) -> tuple[bytes, list[int]]:
    data, places = bytearray(), []
    for c in constants:
        data += bytes(-len(data) % _ALIGN)
        places.append(len(data))
        data += np.ascontiguousarray(c).tobytes()
    return bytes(data) or bytes(_ALIGN), places


def _memory(a: Artifact) -> tuple[int, int]:
    """Where scratch begins, and the bytes of a call."""
    scratch = -(-a.arena_bytes // _ALIGN) * _ALIGN
    return scratch, scratch + a.scratch_bytes + _ALIGN


def _array(kind: str, number: int, x: ArrayType) -> str:
    sizes = "".join(f"[{n}]" for n in x.shape) or "[1]"
    ctype = _TYPES.get(x.dtype.name, f"{x.dtype.name}_t")
    return f" *   {kind}[{number}]  {x.name}: {ctype}{sizes}, {x.dtype.name}, row-major"


def _header(name: str, a: Artifact) -> str:
    top = name.upper()
    arrays = [_array("inputs", k, x) for k, x in enumerate(a.inputs)]
    arrays += [_array("outputs", k, x) for k, x in enumerate(a.outputs)]
    return "\n".join(
        [
            f"/* {name}: a model compiled by tilewright. It is code for one kind of CPU.",
            " *",
            *arrays,
            " */",
            f"#ifndef {top}_H",
            f"#define {top}_H",
            "#include <stdint.h>",
            "#ifdef __cplusplus",
            'extern "C" {',
            "#endif",
            "",
            f"#define {top}_INPUTS {len(a.inputs)}",
            f"#define {top}_OUTPUTS {len(a.outputs)}",
            f"#define {top}_MEMORY_BYTES {_memory(a)[1]}u /* of one call, at 64 bytes */",
            "",
            "/* Once for each memory, before its first call. */",
            f"void {name}_prepare(void *memory);",
            "/* Runs on the calling thread; calls with memories of their own may overlap. */",
            f"void {name}_run(const void *const inputs[], void *const outputs[], void *memory);",
            "",
            "#ifdef __cplusplus",
            "}",
            "#endif",
            "#endif",
            "",
        ]
    )


def _source(
    name: str, a: Artifact, places: Sequence[int], symbols: Mapping[tuple[int, str], str]
) -> str:
    def slot(kind: str, value: int) -> str:
        match kind:
            case "input":
                return f"(uint64_t)inputs[{value}]"
            case "output":
                return f"(uint64_t)outputs[{value}]"
            case "arena":
                return f"(uint64_t)arena + {value}u"
            case "const":
                return f"(uint64_t)({name}_constants + {places[value]})"
        return f"{value}ull"

    leave = _LEAVE if any(map(uses_matrices, a.objects)) else ()
    used = dict.fromkeys(symbols[s.object, s.symbol] for s in a.steps)
    lines = [
        f"/* {name}: see {name}.h. */",
        f'#include "{name}.h"',
        "#include <string.h>",
        "",
        f'__asm__(".section .rodata\\n.balign {_ALIGN}\\n{name}_constants:\\n'
        f'.incbin \\"{name}.bin\\"\\n.text\\n");',
        f'extern const unsigned char {name}_constants[] __attribute__((visibility("hidden")));',
        *(f"void {s}(const uint64_t *, int64_t, int64_t, void *);" for s in used),
        "",
        f"void {name}_prepare(void *memory) {{",
        "    unsigned char *arena = memory;",
        *leave,
        f"    memset(arena, 0, {_memory(a)[1]}u);",
    ]
    for f in a.fills:
        kind = np.dtype(f.dtype)
        raw = ", ".join(str(b) for b in np.asarray(f.value, kind).tobytes())
        lines += [
            f"    {{ static const unsigned char value[] = {{{raw}}};",
            f"      for (uint64_t k = 0; k < {f.count}u; k++)",
            f"          memcpy(arena + {f.offset}u + k * {kind.itemsize}u, value, "
            f"{kind.itemsize}u); }}",
        ]
    lines += [
        "}",
        "",
        f"void {name}_run(const void *const inputs[], void *const outputs[], void *memory) {{",
        "    unsigned char *arena = memory;",
        f"    void *scratch = arena + {_memory(a)[0]}u;",
    ]
    for s in a.steps:
        slots = ", ".join(slot(x.kind, x.value) for x in s.arguments) or "0"
        lines += [
            f"    {{ const uint64_t arguments[] = {{{slots}}};",
            f"      {symbols[s.object, s.symbol]}(arguments, 0, {s.chunks}, scratch); }}",
        ]
    return "\n".join([*lines, "}", ""])
