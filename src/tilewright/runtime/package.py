"""One file for a compiled model: save it, load it, compile nothing.

In: a compiled model, or the path of a `.twa` file. Out: the file, or a `LoadedModel`. Invariants:
the file is a zip archive of uncompressed members: `manifest.json`, ELF objects by content, all
constants as one safetensors file; every member's SHA-256 is in the manifest, and the manifest's is
in the archive's comment; all are checked before anything of the file is used. A file appears whole
or not at all. Nothing is unpickled, and no callback is named that `ir.externs` does not list.

Constants of all variants are read once, straight from their place in the file into one block of
memory, so loading costs their size and little more.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import struct
import sys
import time
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from tilewright.errors import TargetError, UserError
from tilewright.ir.dtypes import DTYPES, dtype_of
from tilewright.ir.externs import EXTERNS
from tilewright.ir.program import Dim, Program, array_key
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
from tilewright.runtime.call import shared_objects
from tilewright.runtime.context import ArrayType, Binding
from tilewright.runtime.jit import exported_symbols
from tilewright.runtime.model import CallableModel
from tilewright.runtime.pages import Memory
from tilewright.runtime.tensors import Entry, read_header, write_tensors

__all__ = ["ARTIFACT_FORMAT", "LoadedModel", "load", "save_model"]

Array = np.ndarray[Any, np.dtype[Any]]

ARTIFACT_FORMAT = 1
ABI = 1  # of phase functions: raise it when docs/architecture.md says something else about them
_COMMENT = b"tilewright artifact, manifest sha256 "
_CONSTANTS = "constants.safetensors"
_BLOCK_BYTES = 1 << 20
_MOST_BYTES = 1 << 46  # of memory, half of what a process can address


class _Linked(Protocol):
    @property
    def artifact(self) -> Artifact: ...


class Variant(Protocol):
    """A compiled model at fixed sizes, as far as saving needs it."""

    @property
    def sizes(self) -> Mapping[str, int]: ...
    @property
    def linked(self) -> _Linked: ...
    @property
    def stats(self) -> Mapping[str, Any]: ...


class Saveable(Protocol):
    """What `save_model` needs of a compiled model."""

    @property
    def program(self) -> Program: ...
    @property
    def target(self) -> Target: ...
    @property
    def input_specs(self) -> tuple[ArrayType, ...]: ...
    @property
    def results(self) -> tuple[ArrayType, ...]: ...
    @property
    def order(self) -> list[int]: ...
    @property
    def shapes(self) -> Mapping[int, int]: ...
    @property
    def variants(self) -> tuple[Variant, ...]: ...


# ---- saving ------------------------------------------------------------------------------------


def save_model(
    path: Path | str, model: Saveable, self_tests: Sequence[Mapping[str, Any] | None] = ()
) -> None:
    """Write every variant that was compiled so far.

    self_tests: plain data of a self-test for each variant, for `LoadedModel.self_tests`.
    Errors: R004 where no variant was compiled and the sizes are not known; U003 where the file
    cannot be written.
    """
    path = Path(path)
    objects: dict[str, bytes] = {}
    constants: dict[str, Array] = {}
    variants = [_variant_out(v, objects, constants) for v in model.variants]
    for out, test in zip(variants, self_tests, strict=False):
        out["self_test"] = test
    shared = {}
    for key, data in shared_objects():
        shared[key] = _object_name(data)
        objects[shared[key]] = data
    manifest = {
        "format": ARTIFACT_FORMAT,
        "abi": ABI,
        "made_by": {"tilewright": _version("tilewright"), "llvmlite": _version("llvmlite")},
        "os": sys.platform,
        "machine": platform.machine(),
        "byte_order": sys.byteorder,
        "target": str(model.target),
        "name": model.program.name,
        "dims": [[d.name, d.lo, d.hi, d.multiple, d.hint] for d in model.program.dims],
        "inputs": [_array_out(a) for a in model.input_specs],
        "results": [_array_out(a) for a in model.results],
        "order": list(model.order),
        "shapes": [list(pair) for pair in model.shapes.items()],
        "shared_objects": shared,
        "variants": variants,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            hashes = {_CONSTANTS: _write_constants(archive, constants)}
            for name, data in objects.items():
                hashes[name] = hashlib.sha256(data).hexdigest()
                archive.writestr(_member(name), data)
            text = json.dumps({**manifest, "members": hashes}, indent=1).encode()
            archive.writestr(_member("manifest.json"), text)
            archive.comment = _COMMENT + hashlib.sha256(text).hexdigest().encode()
        os.replace(temporary, path)
    except OSError as error:
        raise UserError(
            "U003", f"{path} cannot be written: {error.strerror}",
            hint="give a path in a folder that exists and has space",
        ) from None  # fmt: skip
    finally:
        temporary.unlink(missing_ok=True)


def _version(distribution: str) -> str:
    from importlib import metadata

    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return "source"


def _member(name: str) -> zipfile.ZipInfo:
    """A member with a fixed date, so that equal models give equal files."""
    return zipfile.ZipInfo(name, (1980, 1, 1, 0, 0, 0))


def _object_name(data: bytes) -> str:
    return f"objects/{hashlib.sha256(data).hexdigest()[:32]}.o"


class _Hashed(io.RawIOBase):
    """Writes to a file and hashes what went through."""

    def __init__(self, file: IO[bytes]) -> None:
        self.file = file
        self.hash = hashlib.sha256()

    def writable(self) -> bool:
        return True

    def write(self, data: Any, /) -> int:
        self.hash.update(data)
        return self.file.write(data)


def _write_constants(archive: zipfile.ZipFile, constants: Mapping[str, Array]) -> str:
    info = _member(_CONSTANTS)
    with archive.open(info, "w", force_zip64=True) as file:
        hashed = _Hashed(file)
        begin = archive.fp.tell() if archive.fp is not None else 0
        write_tensors(hashed, constants, at=begin)  # type: ignore[arg-type]
    return hashed.hash.hexdigest()


def _variant_out(
    v: Variant, objects: dict[str, bytes], constants: dict[str, Array]
) -> dict[str, Any]:
    a = v.linked.artifact
    names = []
    for data in a.objects:
        names.append(_object_name(data))
        objects[names[-1]] = data
    keys = []
    for c in a.constants:
        keys.append(array_key(c))
        constants.setdefault(keys[-1], c)
    return {
        "sizes": dict(v.sizes),
        "kernels": v.stats.get("kernels"),
        "inputs": [_array_out(x) for x in a.inputs],
        "outputs": [_array_out(x) for x in a.outputs],
        "objects": names,
        "constants": keys,
        "arena_bytes": a.arena_bytes,
        "scratch_bytes": a.scratch_bytes,
        "fills": [
            [f.offset, f.dtype, f.count, np.asarray(f.value, f.dtype).tobytes().hex()]
            for f in a.fills
        ],
        "steps": [_step_out(s) for s in a.steps],
    }


def _array_out(a: ArrayType) -> dict[str, Any]:
    dtype = dtype_of(a.dtype)
    assert dtype is not None
    return {"name": a.name, "dtype": dtype.name, "shape": list(a.shape)}


def _step_out(s: ArtifactStep) -> dict[str, Any]:
    out: dict[str, Any] = {"arguments": [[x.kind, x.value] for x in s.arguments]}
    if s.control:
        return {
            "control": s.control, "to": s.chunks, "count": s.count, "bytes": s.bytes, **out
        }  # fmt: skip
    if s.callback is None:
        return {"object": s.object, "symbol": s.symbol, "chunks": s.chunks, **out}
    c = s.callback
    attributes = [
        [name, list(value) if isinstance(value, tuple) else value] for name, value in c.attributes
    ]
    args = [[name, list(shape)] for name, shape in c.args]
    return {
        "extern": c.function, "attributes": attributes, "args": args, "results": c.results, **out,
    }  # fmt: skip


# ---- loading -----------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Place:
    """A constant inside the block of all constants."""

    address: int


class LoadedModel(CallableModel):
    """A saved model: called like a compiled one, for the sizes that were saved."""

    def __init__(
        self, manifest: Mapping[str, Any], artifacts: list[Artifact], keys: list[list[str]],
        constants: Memory, entries: Mapping[str, Entry], threads: int | None, started: float,
    ) -> None:  # fmt: skip
        self.name: str = manifest["name"]
        self._sizes = [dict(v["sizes"]) for v in manifest["variants"]]
        self.self_tests = [(dict(v["sizes"]), v.get("self_test")) for v in manifest["variants"]]
        """The sizes of each variant, and the data of its self-test or None."""
        self._artifacts, self._keys = artifacts, keys
        self._constants, self._entries = constants, entries
        self._bindings: dict[int, Binding] = {}
        kernels = [v["kernels"] for v in manifest["variants"]]
        super().__init__(
            tuple(_array_in(a) for a in manifest["inputs"]),
            tuple(_array_in(a) for a in manifest["results"]),
            manifest["order"],
            tuple(Dim(*d) for d in manifest["dims"]),
            threads=threads,
            shapes={int(k): int(at) for k, at in manifest.get("shapes", ())},
        )
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
    path: Path | str, *, threads: int | None = None, sha256: str | None = None
) -> LoadedModel:
    """A saved model, ready to run; compiles nothing. An artifact is code: load only what you trust.

    sha256: what the whole file must hash to, in hexadecimal. Errors: R011 for a damaged file, an
    unknown version, or another hash; R012, R013 where the machine lacks something; U003 where the
    file cannot be read.
    """
    started = time.perf_counter()
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
            return _load(file, threads, started)
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


def _load(file: IO[bytes], threads: int | None, started: float) -> LoadedModel:
    try:
        archive = zipfile.ZipFile(file)
        manifest = _manifest(archive)
        _require_machine(manifest)
        hashes = manifest["members"]
        entries, constants = _read_constants(archive, file, hashes[_CONSTANTS])
        objects = {
            name: _read_member(archive, name, digest)
            for name, digest in hashes.items() if name != _CONSTANTS
        }  # fmt: skip
        for key, name in manifest["shared_objects"].items():
            provide(key, objects[name])
        artifacts = [_variant_in(v, objects, entries) for v in manifest["variants"]]
        keys = [list(v["constants"]) for v in manifest["variants"]]
        if not artifacts:
            raise ValueError("no variant")
        return LoadedModel(manifest, artifacts, keys, constants, entries, threads, started)
    except (
        zipfile.BadZipFile, KeyError, ValueError, TypeError, IndexError, AttributeError, EOFError,
        NotImplementedError, RuntimeError, struct.error,
    ) as error:  # fmt: skip
        detail = f"{type(error).__name__}: {error}" if not isinstance(error, ValueError) else error
        raise UserError("R011", f"the artifact is damaged ({detail})") from None


def _manifest(archive: zipfile.ZipFile) -> dict[str, Any]:
    comment = archive.comment
    if not comment.startswith(_COMMENT):
        raise UserError("R011", "this is no artifact of tilewright")
    text = _read_member(archive, "manifest.json", comment[len(_COMMENT) :].decode())
    manifest: dict[str, Any] = json.loads(text)
    if manifest["format"] != ARTIFACT_FORMAT or manifest["abi"] != ABI:
        raise UserError(
            "R011",
            f"the artifact has format {manifest['format']} (ABI {manifest['abi']}); this release "
            f"reads {ARTIFACT_FORMAT} (ABI {ABI})",
        )
    return manifest


def _require_machine(manifest: Mapping[str, Any]) -> None:
    """Errors: TargetError R012 for a missing CPU feature, R013 for another system."""
    made_for = (manifest["os"], manifest["byte_order"])
    if made_for != (sys.platform, sys.byteorder):
        raise TargetError(
            "R013", f"the artifact is for {made_for[0]}, this is {sys.platform}",
            hint="compile and save the model on this system",
        )  # fmt: skip
    try:
        target = Target.parse(manifest["target"])
    except TargetError as error:
        raise UserError("R011", error.message) from None
    try:
        target.require_runnable()
    except TargetError as error:
        raise TargetError(
            error.code, error.message, where=f"an artifact made for {target.name} ({target.cpu})",
            hint="compile and save the model for this machine, or for a target that both have",
        ) from None  # fmt: skip


def _read_member(archive: zipfile.ZipFile, name: str, digest: str) -> bytes:
    data = archive.read(name)
    if hashlib.sha256(data).hexdigest() != digest:
        raise ValueError(f"the checksum of {name} is wrong")
    return data


def _read_constants(
    archive: zipfile.ZipFile, file: IO[bytes], digest: str
) -> tuple[dict[str, Entry], Memory]:
    """The constants in one block of memory, checked on the way."""
    info = archive.getinfo(_CONSTANTS)
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
    return ArrayType(str(a["name"]), DTYPES[a["dtype"]].np, shape)


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
