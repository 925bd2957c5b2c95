"""Settings: precedence, origins, parsing, and errors that name where the value came from."""

from __future__ import annotations

import threading
from pathlib import Path

import pytest

from tilewright.config import (
    SETTINGS,
    Config,
    config,
    current,
    parse_duration_s,
    parse_size_bytes,
    settings,
)
from tilewright.errors import UserError


@pytest.fixture(autouse=True)
def bare(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    for setting in SETTINGS.values():
        monkeypatch.delenv(setting.variable, raising=False)
    monkeypatch.chdir(tmp_path)


def origin_of(name: str) -> str:
    return next(row.origin for row in settings() if row.name == name)


def test_at_most_twenty_settings_each_documented() -> None:
    assert len(SETTINGS) <= 20
    assert all(s.doc.endswith(".") and "\n" not in s.doc for s in SETTINGS.values())
    assert set(Config.__dataclass_fields__) == set(SETTINGS)


def test_precedence(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert current().debug == 0 and origin_of("debug") == "default"
    (tmp_path / "pyproject.toml").write_text("[tool.tilewright]\ndebug = 1\ncache_dir = 'c'\n")
    assert current().debug == 1 and origin_of("debug").endswith("pyproject.toml")
    assert current().cache_dir == tmp_path / "c"  # relative to the file, not to the working folder
    monkeypatch.setenv("TILEWRIGHT_DEBUG", "2")
    assert current().debug == 2 and origin_of("debug") == "TILEWRIGHT_DEBUG"
    with config(debug=3) as inside:
        assert inside.debug == current().debug == 3
        assert origin_of("debug") == "tilewright.config(...)"
        with config(num_threads=1):
            assert (current().debug, current().num_threads) == (3, 1)
        assert current(debug=4).debug == 4
        assert current(debug=None).debug == 3
    assert current().debug == 2


def test_file_of_a_parent_folder_and_change(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    file = tmp_path / "pyproject.toml"
    file.write_text("[tool.tilewright]\nseed = 5\n")
    inner = tmp_path / "a" / "b"
    inner.mkdir(parents=True)
    monkeypatch.chdir(inner)
    assert current().seed == 5
    file.write_text("[tool.tilewright]\nseed = 66\n")
    import os

    os.utime(file, ns=(1, 1))
    assert current().seed == 66


def test_context_is_per_thread() -> None:
    seen: list[int] = []
    with config(debug=5):
        thread = threading.Thread(target=lambda: seen.append(current().debug))
        thread.start()
        thread.join()
    assert seen == [0]


@pytest.mark.parametrize(
    ("name", "text", "value"),
    [
        ("cache_max_bytes", "512M", 512 << 20),
        ("num_threads", "", None),
        ("num_threads", "2", 2),
        ("frozen", "yes", True),
        ("frozen", "0", False),
        ("budget", "0", 0.0),
        ("budget", "1.5m", 90.0),
        ("dump", "loops,k_3@tile", "loops,k_3@tile"),
        ("logs", "+tune,-codegen", "+tune,-codegen"),
        ("target", "aarch64", "aarch64"),
        ("db", "/x/y.sqlite", Path("/x/y.sqlite")),
    ],
)
def test_values(monkeypatch: pytest.MonkeyPatch, name: str, text: str, value: object) -> None:
    monkeypatch.setenv(SETTINGS[name].variable, text)
    assert getattr(current(), name) == value


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("num_threads", "0"),
        ("num_threads", "two"),
        ("debug", "8"),
        ("frozen", "maybe"),
        ("budget", "soon"),
        ("budget", "-1"),
        ("cache_max_bytes", "much"),
        ("cache_dir", ""),
        ("target", "gpu"),
        ("dump", "everything"),
        ("logs", "+tune;x"),
        ("numerics", "fast"),
    ],
)
def test_wrong_values(monkeypatch: pytest.MonkeyPatch, name: str, text: str) -> None:
    monkeypatch.setenv(SETTINGS[name].variable, text)
    with pytest.raises(UserError) as caught:
        current()
    assert caught.value.code == "U003"
    assert name in caught.value.message and repr(text) in caught.value.message
    assert caught.value.where == SETTINGS[name].variable


def test_unknown_names(tmp_path: Path) -> None:
    with pytest.raises(UserError, match=r"U003.*num_thread'(.|\n)*did you mean num_threads"), config(num_thread=1):
        pass
    (tmp_path / "pyproject.toml").write_text("[tool.tilewright]\nbudgett = 1\n")
    with pytest.raises(UserError, match=r"budgett") as caught:
        current()
    assert caught.value.where.endswith("pyproject.toml")


def test_broken_file_of_others_is_ignored(tmp_path: Path) -> None:
    (tmp_path / "pyproject.toml").write_text("tilewright = [[[")
    assert current().debug == 0


def test_durations_and_sizes() -> None:
    assert parse_duration_s("250ms") == 0.25
    assert parse_duration_s(30) == 30.0
    assert parse_size_bytes("2GiB") == 2 << 30
    assert parse_size_bytes("1k") == 1024
    with pytest.raises(ValueError, match="duration"):
        parse_duration_s(float("inf"))


def test_the_module_and_the_context_are_one_name() -> None:
    import importlib

    import tilewright
    import tilewright.config as module

    importlib.import_module("tilewright.config")
    with tilewright.config(debug=6), module(num_threads=3):
        assert (module.current().debug, tilewright.config.current().num_threads) == (6, 3)
    assert tilewright.config is module
