"""Errors of saved models: the whole text, as a user reads it."""

from __future__ import annotations

import hashlib
import json
import zipfile
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tilewright as tw
from tilewright.errors import TargetError, UserError
from tilewright.runtime import package
from tilewright.tools.cli import cli


@pytest.fixture
def saved(tmp_path: Path) -> Path:
    model = tw.compile("y[i] = 2.0 * x[i]", dims={"I": 6})
    model.save(tmp_path / "m.twa")
    return tmp_path / "m.twa"


def text(path: Path, kind: type[Exception] = UserError) -> str:
    with pytest.raises(kind) as caught:
        tw.load(path)
    return str(caught.value)


def test_no_artifact(tmp_path: Path) -> None:
    path = tmp_path / "notes.twa"
    path.write_text("these are notes")
    assert text(path) == (
        "[R011] the artifact is damaged (BadZipFile: File is not a zip file)\n"
        f"  at {path}\n"
        "  next: copy it again, or save the model anew with this release"
    )
    with zipfile.ZipFile(path, "w") as archive:
        archive.writestr("manifest.json", "{}")
    assert text(path).startswith("[R011] this is no artifact of tilewright\n")


def test_a_flipped_byte(saved: Path) -> None:
    with zipfile.ZipFile(saved) as archive:
        info = next(i for i in archive.infolist() if i.filename.endswith(".o"))
    data = bytearray(saved.read_bytes())
    data[info.header_offset + 300] ^= 1
    saved.write_bytes(data)
    assert text(saved).startswith(
        f"[R011] the artifact is damaged (BadZipFile: Bad CRC-32 for file '{info.filename}')\n"
    )


def test_another_file_than_the_one_that_was_named(saved: Path) -> None:
    digest = hashlib.sha256(saved.read_bytes()).hexdigest()
    assert tw.load(saved, sha256=digest.upper())(np.ones(6, np.float32)).tolist() == [2.0] * 6
    with pytest.raises(UserError) as caught:
        tw.load(saved, sha256="0" * 64)
    assert str(caught.value) == (
        f"[R011] the file's SHA-256 is {digest}, not {'0' * 64}\n"
        f"  at {saved}\n  next: this is another file than the one that was named"
    )


def test_another_format(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(package, "_FORMATS", (6, 7))
    assert "the artifact has format 2 (ABI 1); this release reads 6 and 7 (ABI 1)" in text(saved)


def test_a_missing_feature(saved: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def lacking(_: Any) -> None:
        raise TargetError("R012", "this CPU lacks avx512f")

    monkeypatch.setattr("tilewright.machine.target.Target.require_runnable", lacking)
    shown = text(saved, TargetError)
    assert shown.startswith(
        "[R012] this CPU lacks avx512f\n  at an artifact made for native (x86-64-v"
    )
    assert shown.endswith(
        "  next: compile and save the model for this machine, or for one that both have: "
        'save(path, targets=["native", "x86-sse42"])'
    )


def test_a_size_that_was_not_saved(saved: Path) -> None:
    with pytest.raises(UserError) as caught:
        tw.load(saved)(np.ones(7, np.float32))
    assert str(caught.value) == (
        "[R004] the file holds no variant for I=7\n"
        "  at model main\n"
        "  next: it holds: I=6; to add one, call the compiled model with arrays of that size before saving it"
    )


def test_a_path_that_cannot_be_written(tmp_path: Path) -> None:
    model = tw.compile("y[i] = 2.0 * x[i]", dims={"I": 6})
    with pytest.raises(UserError) as caught:
        model.save(tmp_path / "none" / "m.twa")
    assert str(caught.value) == (
        f"[U003] {tmp_path / 'none' / 'm.twa'} cannot be written: No such file or directory\n"
        "  next: give a path in a folder that exists and has space"
    )


def test_exit_statuses(saved: Path, tmp_path: Path) -> None:
    np.savez(tmp_path / "x.npz", x=np.ones(7, np.float32))
    shown = CliRunner().invoke(
        cli, ["run", str(saved), "--input", str(tmp_path / "x.npz"), "--json", "-"]
    )
    assert shown.exit_code == 2 and json.loads(shown.stdout)["error"]["code"] == "R004"
    saved.write_bytes(saved.read_bytes()[:100])
    shown = CliRunner().invoke(
        cli, ["run", str(saved), "--input", str(tmp_path / "x.npz"), "--json", "-"]
    )
    assert shown.exit_code == 3 and json.loads(shown.stdout)["error"]["code"] == "R011"
