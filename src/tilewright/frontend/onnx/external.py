"""External tensor data, read lazily and only from beside the model.

In: the fields of a TensorProto's `external_data`, the model's folder. Out: bytes as a read-only
memory map. Invariant: nothing outside the model's folder is ever opened: no absolute path, no `..`,
no symbolic or hard link, no range past the end of the file.
"""

from __future__ import annotations

import mmap
import os
import stat
from collections.abc import Mapping
from pathlib import Path

from tilewright.errors import UserError

__all__ = ["ExternalData"]


class ExternalData:
    """Files of one model, mapped once each. `folder` is None where the model was given as bytes."""

    def __init__(self, folder: Path | None) -> None:
        self.folder = folder
        self._maps: dict[str, memoryview] = {}

    def read(self, fields: Mapping[str, str], size_bytes: int, tensor: str) -> memoryview:
        """`size_bytes` bytes of a tensor. Errors: F002 for every rule of the module."""
        where = f"tensor {tensor!r}"
        location = fields.get("location", "")
        offset = _number(fields.get("offset", "0"), "offset", where)
        length = _number(fields["length"], "length", where) if "length" in fields else size_bytes
        if length != size_bytes:
            raise UserError(
                "F002", f"external data of {length} bytes for a tensor of {size_bytes}", where=where
            )
        data = self._open(location, where)
        if offset + length > len(data):
            raise UserError(
                "F002",
                f"{location!r} has {len(data)} bytes, {offset} to {offset + length} are asked for",
                where=where,
                hint="copy the data file again: it is too short",
            )
        return data[offset : offset + length]

    def _open(self, location: str, where: str) -> memoryview:
        if location in self._maps:
            return self._maps[location]
        if self.folder is None:
            raise UserError(
                "F002",
                f"the model keeps data in {location!r}, but it was given as bytes",
                where=where,
                hint="pass the path of the model file instead",
            )
        parts = location.replace("\\", "/").split("/")
        if (
            not location
            or location.startswith(("/", "\\"))
            or ".." in parts
            or "\0" in location
            or ":" in parts[0]
        ):
            raise UserError(
                "F002",
                f"external data location {location!r} leaves the model's folder",
                where=where,
            )
        path = self.folder
        for part in (p for p in parts if p not in ("", ".")):
            path = path / part
            if path.is_symlink():
                raise UserError(
                    "F002", f"external data {location!r} goes through a symbolic link", where=where
                )
        try:
            descriptor = os.open(
                path, os.O_RDONLY | getattr(os, "O_NOFOLLOW", 0) | getattr(os, "O_NONBLOCK", 0)
            )
        except OSError as error:
            raise UserError(
                "F002",
                f"external data {location!r} cannot be opened: {error.strerror}",
                where=where,
                hint="keep the data file beside the model file",
            ) from error
        try:
            state = os.fstat(descriptor)
            if not stat.S_ISREG(state.st_mode):
                raise UserError(
                    "F002", f"external data {location!r} is not a regular file", where=where
                )
            if state.st_nlink > 1:
                raise UserError("F002", f"external data {location!r} is a hard link", where=where)
            size = state.st_size
            view = memoryview(mmap.mmap(descriptor, 0, access=mmap.ACCESS_READ) if size else b"")
        finally:
            os.close(descriptor)
        self._maps[location] = view
        return view


def _number(text: str, what: str, where: str) -> int:
    if not text.isdecimal():
        raise UserError("F002", f"the {what} of external data is {text!r}", where=where)
    return int(text)
