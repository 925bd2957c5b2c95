"""Write a compiled model to one file.

In: a compiled model, for one or more targets. Out: the file that `runtime.package` describes and
loads. Invariants: a file appears whole or not at all; equal models give equal files.
"""

from __future__ import annotations

import hashlib
import io
import json
import os
import platform
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import IO, Any, Protocol

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.dtypes import dtype_of
from tilewright.ir.program import Program, array_key
from tilewright.machine.target import Target
from tilewright.runtime.artifact import Artifact, ArtifactStep
from tilewright.runtime.call import shared_objects
from tilewright.runtime.context import ArrayType
from tilewright.runtime.package import ABI, ARTIFACT_FORMAT, COMMENT
from tilewright.runtime.tensors import write_tensors

__all__ = ["Saveable", "Variant", "save_model"]

Array = np.ndarray[Any, np.dtype[Any]]


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
    def input_specs(self) -> tuple[ArrayType, ...]: ...
    @property
    def results(self) -> tuple[ArrayType, ...]: ...
    @property
    def order(self) -> list[int]: ...
    @property
    def shapes(self) -> Mapping[int, int]: ...


# ---- saving ------------------------------------------------------------------------------------


def save_model(
    path: Path | str,
    model: Saveable,
    parts: Sequence[tuple[Target, Sequence[Variant]]],
    self_tests: Sequence[Mapping[str, Any] | None] = (),
) -> None:
    """Write the variants of each target.

    self_tests: plain data of a self-test for each variant (the same variants stand in every part),
    for `LoadedModel.self_tests`. Errors: U003 where the file cannot be written.
    """
    path = Path(path)
    objects: dict[str, bytes] = {}
    held: dict[str, dict[str, Array]] = {}
    parts_out = []
    for number, (target, variants) in enumerate(parts):
        name = f"constants{f'-{number}' if number else ''}.safetensors"
        constants = held.setdefault(name, {})
        outs = [_variant_out(v, objects, constants) for v in variants]
        for out, test in zip(outs, self_tests, strict=False):
            out["self_test"] = test
        parts_out.append({"target": str(target), "constants": name, "variants": outs})
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
        "name": model.program.name,
        "dims": [[d.name, d.lo, d.hi, d.multiple, d.hint] for d in model.program.dims],
        "inputs": [_array_out(a) for a in model.input_specs],
        "results": [_array_out(a) for a in model.results],
        "order": list(model.order),
        "shapes": [list(pair) for pair in model.shapes.items()],
        "shared_objects": shared,
        "parts": parts_out,
    }
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with zipfile.ZipFile(temporary, "w", zipfile.ZIP_STORED) as archive:
            hashes = {name: _write_constants(archive, name, held[name]) for name in held}
            for name, data in objects.items():
                hashes[name] = hashlib.sha256(data).hexdigest()
                archive.writestr(_member(name), data)
            text = json.dumps({**manifest, "members": hashes}, indent=1).encode()
            archive.writestr(_member("manifest.json"), text)
            archive.comment = COMMENT + hashlib.sha256(text).hexdigest().encode()
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


def _write_constants(archive: zipfile.ZipFile, name: str, constants: Mapping[str, Array]) -> str:
    info = _member(name)
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
    out = {"name": a.name, "dtype": dtype.name, "shape": list(a.shape)}
    return out | ({"linear": [list(x) for x in a.linear]} if a.linear else {})


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
