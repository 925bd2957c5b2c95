"""One file for a compiled model: load it, compile nothing. (`runtime.save` writes it.)

In: the path of a `.twa` file. Out: a `LoadedModel`. Invariants: the file is a zip archive of
uncompressed members: `manifest.json`, ELF objects by content, and for each target the constants of
its variants as one safetensors file; every member's SHA-256 is in the manifest, and the manifest's
is in the archive's comment; each is checked before anything of the member is used. One target's
part of the file is used: the best that this CPU can run. Nothing is unpickled, and no callback is
named that `ir.externs` does not list.

Constants are read once, straight from their place in the file into one block of memory, so loading
costs their size and little more. Format 1 had one target, in the manifest itself.
"""

from __future__ import annotations

import hashlib
import json
import struct
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

import tilewright.config as config
from tilewright.errors import TargetError, UserError
from tilewright.ir.dtypes import DTYPES
from tilewright.ir.externs import EXTERNS
from tilewright.ir.program import Dim
from tilewright.machine.target import Target
from tilewright.runtime.artifact import (
    Argument,
    Artifact,
    ArtifactStep,
    CallBack,
    Fill,
    bind_artifact,
)
from tilewright.runtime.build import provide
from tilewright.runtime.context import ArrayType, Binding
from tilewright.runtime.jit import exported_symbols
from tilewright.runtime.model import CallableModel
from tilewright.runtime.pages import Memory
from tilewright.runtime.tensors import Entry, read_header

__all__ = ["ABI", "ARTIFACT_FORMAT", "COMMENT", "LoadedModel", "load"]

Array = np.ndarray[Any, np.dtype[Any]]

ARTIFACT_FORMAT = 2
_FORMATS = (1, 2)  # that this release reads
ABI = 1  # of phase functions: raise it when docs/architecture.md says something else about them
COMMENT = b"tilewright artifact, manifest sha256 "
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 1 << 46  # of memory, half of what a process can address


@dataclass(frozen=True)
class _Place:
    """A constant inside the block of all constants."""

    address: int


class LoadedModel(CallableModel):
    """A saved model: called like a compiled one, for the sizes that were saved."""

    def __init__(
        self, manifest: Mapping[str, Any], part: Mapping[str, Any], artifacts: list[Artifact],
        constants: Memory, entries: Mapping[str, Entry], threads: int | None, started: float,
    ) -> None:  # fmt: skip
        self.name: str = manifest["name"]
        self.target = Target.parse(part["target"])
        """What the code that runs was made for."""
        self._sizes = [dict(v["sizes"]) for v in part["variants"]]
        self.self_tests = [(dict(v["sizes"]), v.get("self_test")) for v in part["variants"]]
        """The sizes of each variant, and the data of its self-test or None."""
        self._artifacts = artifacts
        self._keys = [list(v["constants"]) for v in part["variants"]]
        self._constants, self._entries = constants, entries
        self._bindings: dict[int, Binding] = {}
        kernels = [v["kernels"] for v in part["variants"]]
        super().__init__(
            tuple(_array_in(a) for a in manifest["inputs"]),
            tuple(_array_in(a) for a in manifest["results"]),
            manifest["order"],
            tuple(Dim(*d) for d in manifest["dims"]),
            threads=threads,
            shapes={int(k): int(at) for k, at in manifest.get("shapes", ())},
        )
        common = set[tuple[str, int]].intersection(*(set(sizes.items()) for sizes in self._sizes))
        self.given = dict(common)
        arena = max(a.arena_bytes for a in artifacts)
        self.stats: dict[str, Any] = {
            "load_s": time.perf_counter() - started,
            "compile_s": 0.0,
            "tune_s": 0.0,
            "kernels": kernels[-1],
            "kernels_compiled": 0,
            "kernels_tuned": 0,
            "arena_bytes": arena,
            "constant_bytes": constants.size,
            "peak_bytes": arena + constants.size,
        }

    def _bind(self, symbols: Mapping[str, int]) -> Binding:
        sizes = self.sizes(symbols)
        if sizes not in self._sizes:
            saved = "; ".join(_sizes_text(s) for s in self._sizes)
            raise UserError(
                "R004",
                f"the file holds no variant for {_sizes_text(sizes)}",
                where=f"model {self.name}",
                hint=f"it holds: {saved}; to add one, call the compiled model with arrays of "
                "that size before saving it",
            )
        number = self._sizes.index(sizes)
        if number not in self._bindings:
            places = [
                _Place(self._constants.address + self._entries[key].start)
                for key in self._keys[number]
            ]
            binding = bind_artifact(self._artifacts[number], places)
            self._bindings.setdefault(number, binding)
        return self._bindings[number]


def _sizes_text(sizes: Mapping[str, int]) -> str:
    return ", ".join(f"{n}={v}" for n, v in sizes.items()) or "no sizes"


def load(
    path: Path | str, *, threads: int | None = None, sha256: str | None = None,
    target: str | Target | None = None,
) -> LoadedModel:
    """A saved model, ready to run; compiles nothing. An artifact is code: load only what you trust.

    sha256: what the whole file must hash to, in hexadecimal. target: run no code that this machine
    could not run; None follows the setting, which is the CPU's own ("native"). Errors: R011 for a
    damaged file, an unknown version, or another hash; R012, R013 where the machine lacks something;
    U003 where the file cannot be read.
    """  # fmt: skip
    started = time.perf_counter()
    if not isinstance(target, Target):
        target = Target.named(target or str(config.value("target")))
    try:
        with open(path, "rb") as file:
            if sha256 is not None:
                found = hashlib.file_digest(file, "sha256").hexdigest()
                if found != sha256.lower():
                    raise UserError(
                        "R011", f"the file's SHA-256 is {found}, not {sha256.lower()}",
                        where=str(path), hint="this is another file than the one that was named",
                    )  # fmt: skip
                file.seek(0)
            return _load(file, target, threads, started)
    except UserError as error:
        if error.code != "R011" or error.where:
            raise
        raise UserError(
            "R011", error.message, where=str(path),
            hint="copy it again, or save the model anew with this release",
        ) from None  # fmt: skip
    except OSError as error:
        raise UserError(
            "U003", f"{path} cannot be read: {error.strerror}", hint="give the path of a .twa file"
        ) from None


def _load(file: IO[bytes], limit: Target, threads: int | None, started: float) -> LoadedModel:
    try:
        archive = zipfile.ZipFile(file)
        manifest = _manifest(archive)
        _check_headers(archive, file)
        part = _best_part(manifest, limit)
        hashes = manifest["members"]
        name = part["constants"]
        entries, constants = _read_constants(archive, file, name, hashes[name])
        shared = manifest["shared_objects"]
        names = {n for v in part["variants"] for n in v["objects"]}
        objects = {n: _read_member(archive, n, hashes[n]) for n in (*names, *shared.values())}
        for key, n in shared.items():
            provide(key, objects[n])
        artifacts = [_variant_in(v, objects, entries) for v in part["variants"]]
        if not artifacts:
            raise ValueError("no variant")
        return LoadedModel(manifest, part, artifacts, constants, entries, threads, started)
    except (
        zipfile.BadZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError, EOFError,
        NotImplementedError, RuntimeError, struct.error,
    ) as error:  # fmt: skip
        detail = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise UserError("R011", f"the artifact is damaged ({detail})") from None


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    comment = archive.comment
    if not comment.startswith(COMMENT):
        raise UserError("R011", "this is no artifact of tilewright")
    text = _read_member(archive, "manifest.json", comment[len(COMMENT) :].decode())
    manifest: dict[str, Any] = json.loads(text)
    if manifest["format"] not in _FORMATS or manifest["abi"] != ABI:
        raise UserError(
            "R011",
            f"the artifact has format {manifest['format']} (ABI {manifest['abi']}); this release "
            f"reads {' and '.join(map(str, _FORMATS))} (ABI {ABI})",
        )
    if {*manifest["members"], "manifest.json"} != set(archive.namelist()):
        raise ValueError("the members are not those of the manifest")
    if manifest["format"] == 1:
        part = {n: manifest[n] for n in ("target", "variants")}
        manifest["parts"] = [{**part, "constants": "constants.safetensors"}]
    return manifest


def _check_headers(archive: zipfile.ZipFile, file: IO[bytes]) -> None:
    """What stands before every member is what the directory at the end says about it."""
    for info in archive.infolist():
        file.seek(info.header_offset)
        expected = [info.FileHeader(zip64=is_large) for is_large in (False, True)]
        found = file.read(max(map(len, expected)))
        if not any(found.startswith(header) for header in expected):
            raise ValueError(f"the header of {info.filename} is wrong")


def _best_part(manifest: Mapping[str, Any], limit: Target) -> Mapping[str, Any]:
    """The part for the widest machine among those that this CPU and `limit` can stand for.

    Errors: TargetError R012 naming the features that are missing, R013 for another system.
    """
    made_for = (manifest["os"], manifest["byte_order"])
    if made_for != (sys.platform, sys.byteorder):
        raise TargetError(
            "R013", f"the artifact is for {made_for[0]}, this is {sys.platform}",
            hint="compile and save the model on this system",
        )  # fmt: skip
    found: list[tuple[tuple[int, int], Mapping[str, Any]]] = []
    refused: list[tuple[Target, str]] = []
    for part in manifest["parts"]:
        try:
            target = Target.parse(part["target"])
        except TargetError as error:
            raise UserError("R011", error.message) from None
        try:
            target.require_runnable()
            if missing := target.lacks(limit):
                raise TargetError("R012", f"{limit.name} lacks {', '.join(missing)}")
        except TargetError as error:
            refused.append((target, error.message))
            continue
        found.append(((target.vector_bits, target.features.count("+")), part))
    if not found:
        if not refused:
            raise ValueError("no part")
        made_for_cpus = "; ".join(f"{t.name} ({t.cpu})" for t, _ in refused)
        raise TargetError(
            "R012", "; ".join(dict.fromkeys(m for _, m in refused)),
            where=f"an artifact made for {made_for_cpus}",
            hint="compile and save the model for this machine, or for one that both have: "
            'save(path, targets=["native", "x86-sse42"])',
        )  # fmt: skip
    return max(found, key=lambda x: x[0])[1]


def _read_member(archive: zipfile.ZipFile, name: str, digest: str) -> bytes:
    data = archive.read(name)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"the checksum of {name} is wrong")
    return data


def _read_constants(
    archive: zipfile.ZipFile, file: IO[bytes], name: str, digest: str
) -> tuple[dict[str, Entry], Memory]:
    """The constants in one block of memory, checked on the way."""
    info = archive.getinfo(name)
    if info.compress_type != zipfile.ZIP_STORED:
        raise ValueError("the constants are compressed")
    file.seek(info.header_offset)
    head = file.read(30)
    name_bytes, extra_bytes = struct.unpack_from("<HH", head, 26)
    start = info.header_offset + len(head) + name_bytes + extra_bytes
    file.seek(start)
    entries, begin = read_header(file, info.file_size)
    check = hashlib.sha256()
    file.seek(start)
    check.update(file.read(begin))
    memory = Memory(info.file_size - begin)
    into = memoryview(memory.array(memory.size, np.dtype(np.uint8)))  # type: ignore[arg-type]
    at = 0
    while at < memory.size:
        count = file.readinto(into[at : at + _BLOCK_BYTES])  # type: ignore[attr-defined]
        if not count:
            raise ValueError("the constants are cut off")
        check.update(into[at : at + count])
        at += count
    if check.hexdigest() != digest:
        raise ValueError("the checksum of the constants is wrong")
    return entries, memory


def _array_in(a: Mapping[str, Any]) -> ArrayType:
    shape = tuple(n if n is None or isinstance(n, str) else int(n) for n in a["shape"])
    linear = tuple((int(k), str(n), int(c), int(r)) for k, n, c, r in a.get("linear", ()))
    return ArrayType(str(a["name"]), DTYPES[a["dtype"]].np, shape, linear)


def _variant_in(
    v: Mapping[str, Any], objects: Mapping[str, bytes], entries: Mapping[str, Entry]
) -> Artifact:
    inputs, outputs = ([_array_in(a) for a in v[kind]] for kind in ("inputs", "outputs"))
    limits = {
        "input": len(inputs), "output": len(outputs), "const": len(v["constants"]),
        "arena": v["arena_bytes"] + 1,
    }  # fmt: skip
    missing = [key for key in v["constants"] if key not in entries]
    if missing:
        raise ValueError(f"constant {missing[0]} is not in the file")
    for size in ("arena_bytes", "scratch_bytes"):
        if not 0 <= v[size] <= _MOST_BYTES:
            raise ValueError(f"{size} is {v[size]}")
    steps = tuple(_step_in(s, limits, len(v["objects"]), len(v["steps"])) for s in v["steps"])
    known = {int(n) for n in v["sizes"].values()}
    for step in steps:
        for x in step.arguments:
            if x.kind == "value" and x.value not in known:
                raise ValueError(f"{x.value} is no size of the variant")
    exported = [exported_symbols(objects[n]) for n in v["objects"]]
    for s in steps:
        if s.object >= 0 and s.symbol not in exported[s.object]:
            raise ValueError(f"object {s.object} exports no {s.symbol!r}")
    return Artifact(
        tuple(inputs), tuple(outputs), tuple(objects[n] for n in v["objects"]), (), steps,
        int(v["arena_bytes"]), int(v["scratch_bytes"]), tuple(_fills_in(v)),
    )  # fmt: skip


def _fills_in(v: Mapping[str, Any]) -> Iterator[Fill]:
    for offset, dtype, count, value in v["fills"]:
        kind = np.dtype(dtype)
        if not 0 <= offset <= offset + count * kind.itemsize <= v["arena_bytes"]:
            raise ValueError("a fill lies outside the arena")
        yield Fill(offset, dtype, count, np.frombuffer(bytes.fromhex(value), kind)[0].item())


_OPERANDS = {
    "jump": 0, "unless": 1, "begin": 1, "while": 2, "next": 1, "copy": 2, "fill": 1, "stack": 3,
}  # fmt: skip


def _step_in(
    s: Mapping[str, Any], limits: Mapping[str, int], objects: int, steps: int
) -> ArtifactStep:
    arguments = tuple(Argument(str(kind), int(value)) for kind, value in s["arguments"])
    for x in arguments:
        if x.kind != "value" and not 0 <= x.value < limits[x.kind]:
            raise ValueError(f"{x.kind} {x.value} does not exist")
    if "control" in s:
        kind, to, count, size = s["control"], int(s["to"]), int(s["count"]), int(s["bytes"])
        if len(arguments) != _OPERANDS[kind] or not 0 <= to <= steps or min(count, size) < 0:
            raise ValueError(f"a {kind} step does not fit")
        if any(x.kind == "arena" and x.value + size >= limits["arena"] for x in arguments[:2]):
            raise ValueError(f"a {kind} step does not fit into the arena")
        return ArtifactStep(-1, "", arguments, to, None, kind, count, size)
    if "extern" not in s:
        if not 0 <= s["object"] < objects or s["chunks"] < 0:
            raise ValueError(f"{s['chunks']} chunks of object {s['object']}")
        return ArtifactStep(int(s["object"]), str(s["symbol"]), arguments, int(s["chunks"]))
    if s["extern"] not in EXTERNS:
        raise UserError("R011", f"the artifact calls {s['extern']!r}, which this release lacks")
    attributes = tuple(
        (str(name), tuple(value) if isinstance(value, list) else value)
        for name, value in s["attributes"]
    )
    args = tuple((str(name), tuple(map(int, shape))) for name, shape in s["args"])
    callback = CallBack(s["extern"], attributes, args, int(s["results"]))
    return ArtifactStep(-1, "", arguments, 1, callback)
