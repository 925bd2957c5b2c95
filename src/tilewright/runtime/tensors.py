"""Arrays by name in one safetensors file.

In: arrays, or a file. Out: the file, or arrays that are read when they are touched. Invariants: the
data of every array starts on a 64-byte boundary counted from the beginning of the data (bytes
between two arrays belong to `_pad` tensors, because the format allows no holes); nothing of a file
is executed or unpickled.
"""

from __future__ import annotations

import json
import os
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.dtypes import DTYPES, DType, dtype_of

__all__ = ["Entry", "read_header", "read_tensors", "write_tensors"]

Array = np.ndarray[Any, np.dtype[Any]]

_ALIGN = 64
_PAD = "_pad"
_LENGTH = struct.Struct("<Q")
_MAX_HEADER_BYTES = 100 << 20
_NAMES = {name: name.upper() for name in DTYPES}
_DTYPES = {theirs: DTYPES[ours] for ours, theirs in _NAMES.items()}


@dataclass(frozen=True)
class Entry:
    """Where an array lies: `start` counts from the beginning of the data."""

    dtype: DType
    shape: tuple[int, ...]
    start: int
    bytes: int


def write_tensors(file: IO[bytes], arrays: Mapping[str, Array], *, at: int = 0) -> None:
    """Write a safetensors file; `at` is its offset in a larger file, to align the data there."""
    header: dict[str, Any] = {}
    end = 0
    for name, array in arrays.items():
        dtype = dtype_of(array.dtype)
        if dtype is None:
            raise UserError("P002", f"{name!r} holds {array.dtype}, which has no place in a file")
        if gap := -end % _ALIGN:
            offsets = [end, end + gap]
            header[f"{_PAD}{end}"] = {"dtype": "U8", "shape": [gap], "data_offsets": offsets}
            end += gap
        header[name] = {
            "dtype": _NAMES[dtype.name],
            "shape": list(array.shape),
            "data_offsets": [end, end + array.nbytes],
        }
        end += array.nbytes
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-(at + _LENGTH.size + len(text)) % _ALIGN)
    file.write(_LENGTH.pack(len(text)) + text)
    end = 0
    for array in arrays.values():
        file.write(bytes(-end % _ALIGN))
        end += -end % _ALIGN + array.nbytes
        if array.nbytes:
            file.write(np.ascontiguousarray(array).reshape(-1).view(np.uint8).data)


def read_header(file: IO[bytes], size: int) -> tuple[dict[str, Entry], int]:
    """The entries of the safetensors file of `size` bytes that starts here, and where data begin.

    Errors: UserError R011 where the header is damaged or does not fit the size.
    """
    try:
        (length,) = _LENGTH.unpack(file.read(_LENGTH.size))
        if length > min(_MAX_HEADER_BYTES, size - _LENGTH.size):
            raise ValueError("the header is longer than the file")
        out: dict[str, Entry] = {}
        for name, fields in json.loads(file.read(length)).items():
            if name == "__metadata__" or name.startswith(_PAD):
                continue
            dtype, shape = _DTYPES[fields["dtype"]], tuple(map(int, fields["shape"]))
            start, end = map(int, fields["data_offsets"])
            count = dtype.bytes
            for n in shape:
                count *= n
            fits = 0 <= start <= end <= size - _LENGTH.size - length
            if not fits or count != end - start or min(shape, default=0) < 0:
                raise ValueError(f"the offsets of {name!r} do not fit")
            out[name] = Entry(dtype, shape, start, count)
    except (struct.error, ValueError, KeyError, TypeError, AttributeError) as error:
        raise UserError("R011", f"the safetensors header is damaged: {error}") from None
    return out, _LENGTH.size + length


def read_tensors(path: Path) -> dict[str, Array]:
    """Arrays by name, mapped from the file: pages are read when they are touched.

    Errors: UserError R011 where the file is damaged, U003 where it cannot be read.
    """
    try:
        size = os.stat(path).st_size
        with open(path, "rb") as file:
            entries, begin = read_header(file, size)
        data = np.memmap(path, np.uint8, "r") if size else np.zeros(0, np.uint8)
    except OSError as error:
        raise UserError("U003", f"{path} cannot be read: {error.strerror}") from None
    except UserError as error:
        raise UserError(error.code, error.message, where=str(path)) from None
    return {
        name: np.asarray(data[begin + e.start : begin + e.start + e.bytes])
        .view(e.dtype.np)
        .reshape(e.shape)
        for name, e in entries.items()
    }
