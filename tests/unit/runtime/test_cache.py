"""The object cache: damage, caps, folders that refuse, and many writers."""

from __future__ import annotations

import hashlib
import logging
import os
import resource
import stat
import time
from pathlib import Path

import pytest

from tilewright.config import config
from tilewright.errors import UserError
from tilewright.runtime.cache import ObjectCache, default_cache


def key_of(number: int) -> str:
    return hashlib.sha256(str(number).encode()).hexdigest()


def entry(cache: ObjectCache, number: int) -> Path:
    return cache.folder / key_of(number)[:2] / key_of(number)[2:]


def test_round_trip_and_absence(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path / "new" / "folder")
    assert cache.get(key_of(1)) is None
    for payload in (b"", b"x", os.urandom(300_000)):
        assert cache.put(key_of(1), payload)
        assert ObjectCache(tmp_path / "new" / "folder").get(key_of(1)) == payload


@pytest.mark.parametrize("damage", ["flip", "cut", "empty", "grow", "directory"])
def test_damage_is_noticed(tmp_path: Path, damage: str) -> None:
    cache = ObjectCache(tmp_path)
    cache.put(key_of(1), b"payload" * 100)
    path = entry(cache, 1)
    data = bytearray(path.read_bytes())
    if damage == "flip":
        data[200] ^= 1
    elif damage == "cut":
        del data[-1:]
    elif damage == "empty":
        data.clear()
    elif damage == "grow":
        data += b"!"
    path.write_bytes(data)
    if damage == "directory":
        path.unlink()
        path.mkdir()
    assert cache.get(key_of(1)) is None
    if damage != "directory":
        assert not path.exists()
        assert cache.put(key_of(1), b"again") and cache.get(key_of(1)) == b"again"
    else:
        assert not cache.put(key_of(1), b"again")


def test_least_recently_used_goes_first(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path, max_bytes=10_000)
    now = time.time()
    for number in range(20):
        cache.put(key_of(number), bytes(400))
        if number < 20:
            os.utime(entry(cache, number), (now, now - 10_000 + number))
    cache.get(key_of(0))  # long unused, so this use is recorded
    for number in range(20, 30):
        cache.put(key_of(number), bytes(400))
    kept = [number for number in range(30) if cache.get(key_of(number)) is not None]
    assert 0 in kept and 29 in kept and 1 not in kept
    assert sum(path.stat().st_size for path in cache.folder.glob("??/*")) <= 10_000
    assert cache.collect(0) > 0 and cache.get(key_of(29)) is None


def test_abandoned_temporary_files_are_collected(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    cache.put(key_of(1), b"x")
    orphan = entry(cache, 1).parent / ".new-orphan"
    orphan.write_bytes(b"half")
    os.utime(orphan, (0, 0))
    cache.collect()
    assert not orphan.exists() and cache.get(key_of(1)) == b"x"


def run_in_child(body: object) -> int:
    child = os.fork()
    if child == 0:
        try:
            status = 0 if body() else 1  # type: ignore[operator]
        except BaseException:  # noqa: BLE001 - the child must not return into pytest
            status = 2
        os._exit(status)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])


def test_read_only_folder(tmp_path: Path) -> None:
    cache = ObjectCache(tmp_path)
    cache.put(key_of(1), b"kept")
    os.chmod(tmp_path, 0o755)
    for path in (cache.folder, *cache.folder.rglob("*")):
        path.chmod(0o555 if path.is_dir() else 0o444)
    folders = [tmp_path, *tmp_path.parents]
    for folder in folders:
        if folder.stat().st_uid == os.getuid() and not folder.stat().st_mode & stat.S_IXOTH:
            folder.chmod(folder.stat().st_mode | stat.S_IXOTH | stat.S_IROTH)

    def body() -> bool:
        if os.getuid() == 0:
            os.setgid(65534)
            os.setuid(65534)
        with pytest.raises(UserError, match="R010"):
            cache.require_writable()
        return not cache.put(key_of(2), b"lost") and cache.get(key_of(1)) == b"kept"

    assert run_in_child(body) == 0
    for path in (cache.folder, *cache.folder.rglob("*")):
        path.chmod(0o755)


def test_full_folder(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    cache = ObjectCache(tmp_path)

    def body() -> bool:
        resource.setrlimit(resource.RLIMIT_FSIZE, (1000, 1000))
        with pytest.raises(UserError, match="R010"):
            cache.require_writable()
        with caplog.at_level(logging.WARNING):
            lost = [cache.put(key_of(number), bytes(5000)) for number in range(3)]
        return lost == [False] * 3 and len(caplog.records) == 1 and cache._entries() == []

    assert run_in_child(body) == 0
    cache.require_writable()


def test_many_writers_and_readers(tmp_path: Path) -> None:
    children = []
    for seed in range(4):
        child = os.fork()
        if child == 0:
            cache = ObjectCache(tmp_path, max_bytes=60_000)
            for number in range(200):
                name = (number * 7 + seed) % 40
                data = cache.get(key_of(name))
                if data is not None and data != bytes([name]) * 3000:
                    os._exit(1)
                cache.put(key_of(name), bytes([name]) * 3000)
            os._exit(0)
        children.append(child)
    assert [os.waitpid(child, 0)[1] for child in children] == [0] * 4


def test_settings_choose_the_folder(tmp_path: Path) -> None:
    with config(cache_dir=tmp_path, cache_max_bytes=12345):
        assert default_cache().folder == tmp_path / "objects"
        assert default_cache().max_bytes == 12345
        assert default_cache() is default_cache()
