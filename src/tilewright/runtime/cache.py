"""The object cache: content key -> bytes, in a folder shared by any number of processes.

In: keys (sha256 hex of everything that decides the bytes) and bytes. Out: the same bytes, or None.
Invariant: a reader sees a whole entry or none (atomic rename, checksum verified on each read); no
failure of the file system reaches a caller of `get` and `put`, they only lose the benefit.
"""

from __future__ import annotations

import hashlib
import logging
import os
import tempfile
import time
from contextlib import suppress
from pathlib import Path

from tilewright.config import current
from tilewright.errors import UserError

__all__ = ["ObjectCache", "default_cache"]

_log = logging.getLogger("tilewright.runtime.cache")
_MAGIC = b"TWOBJ001"
_DIGEST_BYTES = 32
_TOUCH_AFTER_S = 3600.0
_caches: dict[tuple[Path, int], ObjectCache] = {}


class ObjectCache:
    """Entries under `folder`, about `max_bytes` at most; the least recently used go first."""

    def __init__(self, folder: Path, max_bytes: int = 2 << 30) -> None:
        self.folder = folder / "objects"
        self.max_bytes = max_bytes
        self._total_bytes: int | None = None  # unknown until this process first writes
        self._warned = False

    def _path(self, key: str) -> Path:
        return self.folder / key[:2] / key[2:]

    def get(self, key: str) -> bytes | None:
        """The bytes stored under `key`; a damaged entry is removed and counts as absent."""
        path = self._path(key)
        try:
            with open(path, "rb") as file:
                data = file.read()
                age_s = time.time() - os.fstat(file.fileno()).st_mtime
        except OSError:
            return None
        payload = data[len(_MAGIC) + _DIGEST_BYTES :]
        if data[: len(_MAGIC) + _DIGEST_BYTES] != _MAGIC + hashlib.sha256(payload).digest():
            _log.warning("removed a damaged cache entry: %s", path)
            _remove(path)
            return None
        if age_s > _TOUCH_AFTER_S:
            with suppress(OSError):  # a cache that may only be read keeps its order
                os.utime(path)
        return payload

    def put(self, key: str, payload: bytes) -> bool:
        """Store `payload`; False (and one warning per process) when the folder does not take it."""
        path = self._path(key)
        temporary = ""
        try:
            path.parent.mkdir(parents=True, exist_ok=True)
            handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".new-")
            with os.fdopen(handle, "wb") as file:
                file.write(_MAGIC + hashlib.sha256(payload).digest() + payload)
            os.replace(temporary, path)
        except OSError as error:
            if temporary:
                _remove(Path(temporary))
            if not self._warned:
                self._warned = True
                _log.warning("the cache folder %s cannot be written: %s", self.folder, error)
            return False
        if self._total_bytes is None:
            self._total_bytes = sum(size for _, size, _ in self._entries())
        else:
            self._total_bytes += len(payload)
        if self._total_bytes > self.max_bytes:
            self.collect()
        return True

    def collect(self, max_bytes: int | None = None) -> int:
        """Remove the longest unused entries until nine tenths of the cap remain; bytes removed."""
        limit = self.max_bytes if max_bytes is None else max_bytes
        entries = sorted(self._entries())
        total = sum(size for _, size, _ in entries)
        removed = 0
        if total > limit:
            for _, size, path in entries:
                if total - removed <= limit * 9 // 10:
                    break
                _remove(path)
                removed += size
        self._total_bytes = total - removed
        return removed

    def require_writable(self) -> None:
        """Return if entries can be stored. Errors: UserError R010."""
        try:
            self.folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=self.folder) as file:
                file.write(b"x" * 4096)
        except OSError as error:
            raise UserError(
                "R010",
                f"the cache folder {self.folder} cannot be written: {error.strerror}",
                hint="set TILEWRIGHT_CACHE_DIR to a folder with space that you may write",
            ) from None

    def _entries(self) -> list[tuple[float, int, Path]]:
        """(last use, bytes, path) of every entry; removes abandoned temporary files on the way."""
        entries: list[tuple[float, int, Path]] = []
        for path in self.folder.glob("??/*"):
            try:
                status = path.stat()
            except OSError:
                continue  # another process removed it
            if path.name.startswith(".new-"):
                if time.time() - status.st_mtime > _TOUCH_AFTER_S:
                    _remove(path)
                continue
            entries.append((status.st_mtime, status.st_size, path))
        return entries


def _remove(path: Path) -> None:
    with suppress(OSError):  # gone already, or a folder that may only be read
        path.unlink()


def default_cache() -> ObjectCache:
    """The cache that the settings `cache_dir` and `cache_max_bytes` name."""
    settings = current()
    key = (settings.cache_dir, settings.cache_max_bytes)
    if key not in _caches:
        _caches[key] = ObjectCache(*key)
    return _caches[key]
