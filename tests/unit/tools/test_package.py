"""What is shipped: the wheel's content, its licence, generated pages, and the build files."""

from __future__ import annotations

import re
import subprocess
import sys
import tomllib
import zipfile
from pathlib import Path

import pytest

from tilewright.errors import CODES, UserError
from tilewright.tools import docs, lines, wheels

ROOT = Path(__file__).resolve().parents[3]


def test_generated_pages_are_current() -> None:
    for path, text in docs.pages(ROOT / "docs").items():
        assert path.read_text(encoding="utf-8") == text, "run: python -m tilewright.tools.docs"


def test_no_page_or_figure_names_a_folder_of_a_machine() -> None:
    files = [ROOT / "README.md", ROOT / "CONTRIBUTING.md"]
    files += [p for d in ("docs", "examples") for p in (ROOT / d).rglob("*") if p.suffix in {".md", ".json", ".toml", ".py", ".svg"}]
    assert len(files) > 40
    found = {p.name: m.group() for p in files if (m := re.search(r"(?<![\w.])/(?:tmp|work|root|home|var)/\w[^\s]*", p.read_text(encoding="utf-8")))}
    assert not found


def test_every_code_has_a_page_with_two_examples() -> None:
    examples = tomllib.loads((ROOT / "docs" / "errors.toml").read_text())
    assert set(examples) == set(CODES)
    assert all(set(entry) == {"why", "fails", "works"} and entry["fails"] != entry["works"] for entry in examples.values())
    with pytest.raises(KeyError):
        docs.errors_page({**examples, "Z999": {}})


def test_the_wheel_is_pure_and_complete(tmp_path: Path) -> None:
    pytest.importorskip("hatchling")
    subprocess.run(
        [sys.executable, "-m", "hatchling", "build", "-t", "wheel", "-d", str(tmp_path)],
        cwd=ROOT, check=True, capture_output=True,
    )  # fmt: skip
    (wheel,) = tmp_path.glob("*.whl")
    assert wheel.name.endswith("-py3-none-any.whl")
    with zipfile.ZipFile(wheel) as archive:
        names = set(archive.namelist())
        metadata = archive.read(next(n for n in names if n.endswith("METADATA"))).decode()
    suites = {f"tilewright/tools/suites/{name}.toml" for name in ("spine", "kernels", "models")}
    assert {"tilewright/py.typed", "tilewright/tools/cli.py"} | suites <= names
    assert (ROOT / "benchmarks" / "kernels.toml").is_file()
    assert "License-Expression: Apache-2.0" in metadata and any(n.endswith("licenses/LICENSE") for n in names)
    assert not [n for n in names if n.endswith((".so", ".onnx", ".whl", ".pyc")) or "tests/" in n]
    core = [line.split(":")[1].split(">")[0].strip() for line in metadata.splitlines() if line.startswith("Requires-Dist") and "extra" not in line]
    assert sorted(core) == ["click", "llvmlite", "ml-dtypes", "numpy", "platformdirs", "rich", "threadpoolctl"]


def test_count_of_code_lines() -> None:
    text = '"""One\n\ntwo."""\n\nx = 1  # why\n\n\ndef f():\n    """Doc."""\n    # note\n    return """a\n    b"""\n'
    assert lines.count_file(text) == (4, 5)


def test_wheels_are_read_as_files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TILEWRIGHT_WHEELS_DIR", str(tmp_path))
    monkeypatch.setenv("TILEWRIGHT_CACHE_DIR", str(tmp_path / "cache"))
    with pytest.raises(UserError, match="U002") as caught:
        wheels.model_path("ocr_det")
    assert "pip download --no-deps" in caught.value.hint and "rapidocr" in caught.value.hint
    for version, content in (("3.9.0", b"old"), ("3.10.0", b"new")):
        with zipfile.ZipFile(tmp_path / f"rapidocr-{version}-py3-none-any.whl", "w") as archive:
            archive.writestr("rapidocr/models/PP-OCRv6_det_small.onnx", content)
    path = wheels.model_path("ocr_det")
    assert path.read_bytes() == b"new" and path == wheels.model_path("ocr_det")
    with pytest.raises(UserError, match="U002"):
        wheels.model_path("ocr_rec")


def test_make_says_which_package_to_install(tmp_path: Path) -> None:
    (tmp_path / "Makefile").write_text((ROOT / "Makefile").read_text())
    (tmp_path / "pyproject.toml").write_text("")
    python = tmp_path / "bin" / "python3"
    python.parent.mkdir()
    python.write_text(
        f"#!/bin/sh\ncase \"$2\" in *ensurepip*) exit 1;; esac\nexec {sys.executable} \"$@\"\n"
    )
    python.chmod(0o755)
    path = f"{python.parent}:/usr/bin:/bin"
    for name in ("python", "python3.11", "python3.12", "python3.13", "python3.14"):
        (python.parent / name).symlink_to("python3")
    result = subprocess.run(["make", "test"], cwd=tmp_path, capture_output=True, text=True, env={"PATH": path})
    assert result.returncode != 0 and "-venv" in result.stderr, result.stderr
    python.write_text("#!/bin/sh\nexit 1\n")
    result = subprocess.run(["make", "demo"], cwd=tmp_path, capture_output=True, text=True, env={"PATH": path})
    assert result.returncode != 0 and "Python 3.11 or newer" in result.stderr, result.stderr
