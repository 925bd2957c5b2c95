"""Every file of examples/ runs; the C program gives the bits that Python gives."""

from __future__ import annotations

import importlib.util
import os
import shutil
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError

ROOT = Path(__file__).parents[2]
NEEDS = {"pytorch.py": "torch", "onnx_file.py": "onnx"}


def run(*command: str, folder: Path) -> str:
    surroundings = {**os.environ, "PYTHONPATH": str(ROOT / "src")}
    done = subprocess.run(
        command, cwd=folder, env=surroundings, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
    return done.stdout


@pytest.mark.parametrize("path", sorted((ROOT / "examples").glob("*.py")), ids=lambda p: p.stem)
def test_examples_run(path: Path, tmp_path: Path) -> None:
    need = NEEDS.get(path.name)
    if need is not None and importlib.util.find_spec(need) is None:
        pytest.skip(f"{path.name} needs {need}, which is not installed")
    assert run(sys.executable, str(path), folder=tmp_path)


def compiler() -> str:
    found = shutil.which("cc") or shutil.which("gcc") or shutil.which("clang")
    if found is None:
        pytest.skip("no C compiler on this machine: the C program is not built")
    return found


def test_the_c_program_gives_the_same_bits(tmp_path: Path) -> None:
    cc = compiler()
    run(sys.executable, str(ROOT / "examples" / "artifact.py"), str(tmp_path), folder=tmp_path)
    objects = sorted(str(p) for p in tmp_path.glob("mlp_*.o"))
    run(
        cc, "-O2", "-Wall", "-Werror", "-I.", "-o", "program",
        str(ROOT / "examples" / "call_from_c.c"), "mlp.c", *objects, folder=tmp_path,
    )  # fmt: skip
    shown = run(str(tmp_path / "program"), folder=tmp_path)
    got = np.array(shown.split(), np.float32).reshape(8, 4)
    np.testing.assert_array_equal(got, np.load(tmp_path / "y.npy"))


def test_two_models_and_halos_in_one_program(tmp_path: Path) -> None:
    """Objects of several kernels and models have names of their own; halos are filled."""
    cc = compiler()
    text = "x: f32[1, 3, 9, 9]; w: f32[4, 3, 3, 3]\n" \
        "h[n,c,i<9,j<9] = sum(k, a, b) (x[n,k,i+a-1,j+b-1] else 1.0) * w[c,k,a,b]\n" \
        "y[n,i] = sum(c, j) h[n,c,i,j]"
    model = tw.compile(text, threads=1)
    x = np.random.default_rng(0).standard_normal((1, 3, 9, 9)).astype(np.float32)
    w = np.random.default_rng(1).standard_normal((4, 3, 3, 3)).astype(np.float32)
    want = model(x, w)
    many = want if isinstance(want, list) else [want]
    names = ("one", "two")
    for name in names:
        model.save_c(tmp_path, name)
    (tmp_path / "in.bin").write_bytes(x.tobytes() + w.tobytes())
    sizes = [a.size for a in many]
    arrays = "".join(f"static float out{k}[{n}];\n" for k, n in enumerate(sizes))
    outs = ", ".join(f"out{k}" for k in range(len(sizes)))
    calls = "".join(
        f"    {{ static _Alignas(64) unsigned char m[{n.upper()}_MEMORY_BYTES]; void *o[] = {{{outs}}};\n"
        f"      {n}_prepare(m); {n}_run(in, o, m); }}\n" for n in names
    )
    writes = "".join(f"    fwrite(out{k}, 4, {n}, stdout);\n" for k, n in enumerate(sizes))
    (tmp_path / "main.c").write_text(
        '#include <stdio.h>\n#include "one.h"\n#include "two.h"\n'
        f"static float x[{x.size}], w[{w.size}];\n{arrays}"
        'int main(void) {\n    FILE *f = fopen("in.bin", "rb");\n'
        f"    if (fread(x, 4, {x.size}, f) + fread(w, 4, {w.size}, f) != {x.size + w.size}) return 1;\n"
        f"    const void *in[] = {{x, w}};\n{calls}{writes}    return 0;\n}}\n"
    )
    objects = sorted(str(p) for p in tmp_path.glob("*_*.o"))
    run(cc, "-O1", "-I.", "-o", "program", "main.c", "one.c", "two.c", *objects, folder=tmp_path)
    raw = subprocess.run([tmp_path / "program"], cwd=tmp_path, capture_output=True, check=True).stdout
    np.testing.assert_array_equal(np.frombuffer(raw, np.float32), np.concatenate([a.reshape(-1) for a in many]))


def test_what_c_does_not_run(tmp_path: Path) -> None:
    sort = tw.compile("x: f32[4, 9]\ns: f32[4, 9], p: i64[4, 9] = extern sort(x) {axis = 1}")
    with pytest.raises(UserError, match=r"F005.*the extern sort, which C does not run"):
        sort.save_c(tmp_path)
    with pytest.raises(UserError, match=r"U003.*'1x' is no name in C"):
        tw.compile("y[i] = 2.0 * x[i]", dims={"I": 6}).save_c(tmp_path, "1x")
