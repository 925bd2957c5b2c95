"""Stages as text and back: the same keys, the same code, and stages that run on their own."""

from __future__ import annotations

import dataclasses
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from click.testing import CliRunner

import tilewright as tw
from tilewright.config import DUMP_STAGES
from tilewright.errors import TilewrightError, UserError
from tilewright.ir.kernel import parse_kernel
from tilewright.ir.nest import parse_nest
from tilewright.ir.program import array_key
from tilewright.ir.program_parser import parse_program
from tilewright.tools import models, stages, wiring
from tilewright.tools.cli import cli

Array = np.ndarray[Any, Any]
SOURCE = Path(tw.__file__).parents[1]
# A sum with an epilogue before it, a matmul, a padded window over a blocked layout, a returned input.
TEXT = """program net(x: f32[N, 8, 12, 12], w: f32[5, 8], f: f32[24, 8, 3, 3]):
  dim N in 1 .. 4
  r: f32[n<N, c<8, h<12, v<12] = max(x[n, c, h, v], 0.0)
  s: f32[n<N, c<8] = sum(h<12, v<12) r[n, c, h, v]
  y: f32[n<N, o<5] = sum(c<8) s[n, c] * w[o, c]
  z: f32[n<N, o<24, h<12, v<12] = sum(c<8, p<3, q<3) (r[n, c, h + p - 1, v + q - 1] else 0.0) * f[o, c, p, q]
  g: f32[n<N, o<24, h<12, v<12] = sum(c<24) z[n, c, h, v] * sigmoid(z[n, o, h, v])
  return y, x, g
"""
SUFFIX = {"llvm": "ll", "asm": "s"}
BACK = [s for s in DUMP_STAGES if s != "asm"]


def random(seed: int, *shape: int) -> Array:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


@pytest.fixture(scope="module")
def model() -> Any:
    program = wiring.with_constants(parse_program(TEXT), {"w": random(0, 5, 8), "f": random(1, 24, 8, 3, 3)})
    return tw.compile(program, dims={"N": 2}, threads=2)


@pytest.fixture(scope="module")
def folder(model: Any, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Every stage of the model, as `dump -o` writes it."""
    path = tmp_path_factory.mktemp("stages")
    for stage in DUMP_STAGES:
        assert model.dump(stage, folder=path) == (path / f"{stage}.{SUFFIX.get(stage, 'txt')}").read_text()
    return path


@pytest.fixture(autouse=True)
def place(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("TILEWRIGHT_NUM_THREADS", "2")
    monkeypatch.setenv("TILEWRIGHT_DB", str(tmp_path / "none.sqlite"))


def dump(path: Path, stage: str, kernel: str | None = None, **options: Any) -> str:
    """What `tilewright dump PATH --stage STAGE` prints."""
    given = {"output": None, "dims": {}, "threads": 2, "target": None, "db": None, **options}
    return models.dump(path, stage, kernel=kernel, **given)


def assert_fails(code: str, call: Any, *words: str) -> TilewrightError:
    with pytest.raises(TilewrightError) as caught:
        call()
    assert caught.value.code == code and caught.value.hint, caught.value
    for word in words:
        assert word in str(caught.value), caught.value
    return caught.value


# ---- printing ----------------------------------------------------------------------------------


def test_files_of_every_stage_and_kernel(model: Any, folder: Path) -> None:
    count = len(model.latest.plan.kernels)
    for stage in DUMP_STAGES:
        suffix = SUFFIX.get(stage, "txt")
        parts = sorted(folder.glob(f"{stage}.*.{suffix}"))
        assert len(parts) == (count if stage in stages.PER_KERNEL else 0)
        if stage in stages.PER_KERNEL and stage != "schedule":
            whole = (folder / f"{stage}.{suffix}").read_text()
            assert whole == "".join((folder / f"{stage}.{k}.{suffix}").read_text() for k in range(count))
    held = stages.constants_beside(folder / "plan.txt")
    assert {array_key(a) for a in held.values()} == set(held) == set(model.program.values)


def test_derived_is_bound_and_normalized(model: Any, folder: Path) -> None:
    program, derived = (parse_program((folder / f"{s}.txt").read_text()) for s in ("program", "derived"))
    assert program == model.program and program.dims and not derived.dims
    assert derived.results == ("y", "x_returned", "g")


def test_headings_say_number_key_and_names(model: Any, folder: Path) -> None:
    kernels = model.latest.plan.kernels
    for number, kernel in enumerate(kernels):
        head = (folder / f"kernels.{number}.txt").read_text().splitlines()[0]
        assert head.startswith(f"--- kernel {number} {kernel.key[:16]} ")
        nest = (folder / f"loops.{number}.txt").read_text().split("\n", 1)
        assert parse_nest(nest[1]).key[:16] == nest[0].split()[3]
    text = model.dump("kernels")
    for name in ("y", "g", "s", "z", "x_returned"):
        assert f" {name}" in text or f", {name}" in text
    assert model.dump("loops", kernel="y").splitlines()[0].endswith(" y")


def test_one_kernel_by_number_and_name(model: Any, tmp_path: Path) -> None:
    text = model.dump("kernels", kernel="0", folder=tmp_path)
    assert (tmp_path / "kernels.0.txt").read_text() == text
    assert sorted(p.name for p in tmp_path.iterdir()) == ["constants.safetensors", "kernels.0.txt"][
        0 if "@" in text else 1 :
    ]
    names = text.splitlines()[0].split(" ", 4)[4].split(", ")
    assert all(model.dump("kernels", kernel=n) == text for n in names)
    assert_fails("U001", lambda: model.dump("loops", kernel="zz"), "'zz'", "numbered 0 to")
    assert_fails("U001", lambda: model.dump("loops", kernel="x_return"), "did you mean x_returned?")
    assert_fails("U001", lambda: model.dump("loops", kernel="99"), "'99'")
    for stage in ("program", "derived", "plan"):
        assert_fails("U003", lambda stage=stage: model.dump(stage, kernel="0"), "whole model", "loops")
    assert_fails("U003", lambda: model.dump("nonsense"), "nonsense", "kernels, plan")


def test_a_folder_that_cannot_be_written(model: Any, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    assert_fails("U003", lambda: model.dump("plan", folder=tmp_path / "file" / "x"), "cannot be written")


def test_constants_of_several_models_share_a_folder(folder: Path, model: Any, tmp_path: Path) -> None:
    model.dump("plan", folder=tmp_path)
    text = "program p(x: f32[4]):\n  y: f32[i<4] = x[i] * v[i]\n  return y\n".replace("x: f32[4]", "x: f32[4], v: f32[4]")
    other = tw.compile(wiring.with_constants(parse_program(text), {"v": np.arange(4, dtype="f4")}))
    other.dump("program", folder=tmp_path)
    held = stages.constants_beside(tmp_path / "any")
    assert set(held) == set(model.program.values) | set(other.program.values)


# ---- back --------------------------------------------------------------------------------------


@pytest.mark.parametrize("stage", BACK)
def test_a_printed_stage_goes_on_to_the_same_keys_and_code(model: Any, folder: Path, stage: str) -> None:
    path = folder / f"{stage}.{SUFFIX.get(stage, 'txt')}"
    dims = {"N": 2} if stage == "program" else {}
    later = DUMP_STAGES[DUMP_STAGES.index(stage) :]
    for wanted in later:
        if stage in ("kernels", "loops", "llvm") and wanted in ("plan", "schedule"):
            continue
        assert dump(path, wanted, dims=dims) == model.dump(wanted), wanted


@pytest.mark.parametrize("stage", ["kernels", "schedule", "loops", "llvm"])
def test_so_does_every_kernel_alone(model: Any, folder: Path, stage: str) -> None:
    for number in range(len(model.latest.plan.kernels)):
        path = folder / f"{stage}.{number}.{SUFFIX.get(stage, 'txt')}"
        for wanted in ("llvm", "asm", *(["loops"] if stage != "llvm" else [])):
            assert dump(path, wanted) == model.dump(wanted, kernel=str(number))
            assert dump(path, wanted, str(number)) == model.dump(wanted, kernel=str(number))


def test_text_without_headings(folder: Path, model: Any, tmp_path: Path) -> None:
    for stage, parse in (("kernels", parse_kernel), ("loops", parse_nest)):
        body = (folder / f"{stage}.0.txt").read_text().split("\n", 1)[1]
        (tmp_path / "t.txt").write_text(body)
        assert parse(body).key[:16] in dump(tmp_path / "t.txt", stage)
        got, wanted = (t.split("\n", 1)[1] for t in (dump(tmp_path / "t.txt", "llvm"), model.dump("llvm", kernel="0")))
        assert got == wanted
    (tmp_path / "t.txt").write_text(model.dump("llvm", kernel="0").split("\n", 1)[1])
    assert dump(tmp_path / "t.txt", "asm").split("\n", 1)[1] == model.dump("asm", kernel="0").split("\n", 1)[1]


def test_an_edited_schedule_is_used(model: Any, folder: Path, tmp_path: Path) -> None:
    from tilewright.schedule.kernel_space import space_of

    number, kernel = max(enumerate(model.latest.plan.kernels), key=lambda x: space_of(x[1], model.target, 2).cardinality)
    space = space_of(kernel, model.target, 2)
    default = space.default()
    other = next(s for s in space.neighbours(default) if "reg" in str(set(s.items) ^ set(default.items)))
    text = (folder / "schedule.txt").read_text()
    assert text.count(f"--- schedule {number}\n{default}\n") == 1
    path = tmp_path / "schedule.txt"
    path.write_text(text.replace(f"--- schedule {number}\n{default}\n", f"--- schedule {number}\n{other}\n"))
    assert dump(path, "loops", str(number)) != model.dump("loops", kernel=str(number))
    assert dump(path, "schedule") == path.read_text()
    path.write_text(text.replace(f"--- schedule {number}\n{default}", f'--- schedule {number}\n{{"format":1,"turbo":3}}'))
    assert_fails("S001", lambda: dump(path, "loops"), "turbo", "dump MODEL --stage schedule")


def test_the_target_may_be_another(folder: Path) -> None:
    other = dump(folder / "plan.txt", "llvm", target="x86-sse42")
    assert other != dump(folder / "plan.txt", "llvm", target="x86-avx2")
    assert dump(folder / "loops.txt", "loops", target="x86-sse42") == (folder / "loops.txt").read_text()


def test_what_a_stage_lacks(folder: Path) -> None:
    assert_fails("U003", lambda: dump(folder / "plan.txt", "derived"), "derived", "plan")
    assert_fails("U003", lambda: dump(folder / "kernels.txt", "plan"), "plan", "kernels")
    assert_fails("U003", lambda: dump(folder / "loops.txt", "schedule"), "schedule", "loops")
    assert_fails("U003", lambda: dump(folder / "llvm.ll", "loops"), "loops", "llvm")
    for stage in ("loops.txt", "plan.txt"):
        for command in (("explain",), ("check",), ("tune", "--budget", "0")):
            result = CliRunner().invoke(cli, [command[0], str(folder / stage), *command[1:]])
            assert result.exit_code == 2 and "[U003]" in result.output, result.output


def test_text_of_an_unknown_format() -> None:
    kernel = "kernel format 99:\n  stage a of a\nprogram k format 1(x: f32[1]):\n"
    for text in ("plan p format 99\n", kernel, "nest k format 99:\n"):
        with pytest.raises(UserError, match="S002"):
            stages.load(text)
    for text in (TEXT, "C[i,j] = sum(k) A[i,k] * B[k,j]", "plan[i] = x[i]", ""):
        assert stages.load(text) is None


# ---- running -----------------------------------------------------------------------------------


def run(path: Path, inputs: dict[str, Array]) -> list[Array]:
    """What `tilewright run PATH` writes, in order."""
    source, output = path.parent / "in.npz", path.parent / "out.npz"
    np.savez(source, **inputs)  # type: ignore[arg-type]
    models.run(path, source, output, frozen=False, threads=2, target=None, db=None)
    with np.load(output) as file:
        return [file[n] for n in file.files]


@pytest.mark.parametrize("stage", ["program", "derived", "plan", "schedule"])
def test_a_whole_model_runs_from_its_text(model: Any, folder: Path, stage: str) -> None:
    x = random(3, 2, 8, 12, 12)
    for got, wanted in zip(run(folder / f"{stage}.txt", {"x": x}), model(x), strict=True):
        np.testing.assert_array_equal(got, wanted)


def test_kernels_run_alone_on_logical_arrays(model: Any, folder: Path) -> None:
    from tilewright.verify.generate import random_inputs
    from tilewright.verify.oracle import compare_outputs
    from tilewright.verify.witness import references

    blocked = 0
    for number, kernel in enumerate(model.latest.plan.kernels):
        blocked += any(not layout.is_row_major for _, layout in kernel.layouts)
        values = {k: a for k, a in model.program.values.items()}
        program = dataclasses.replace(kernel.program, values=values)
        inputs = random_inputs(program, {}, number)
        expected = references(program, inputs)
        for stage in ("kernels", "schedule"):
            got = run(folder / f"{stage}.{number}.txt", inputs)
            assert all(o.verdict.ok for o in compare_outputs(program, got, expected)), (number, stage)
    assert blocked


def test_a_nest_runs_on_flat_buffers(model: Any, folder: Path, tmp_path: Path) -> None:
    number = next(k for k, s in enumerate(model.latest.plan.steps) if s.names == ("y",))
    kernel = model.latest.plan.kernels[number]
    (tmp_path / "k.txt").write_text((folder / f"loops.{number}.txt").read_text())
    low = model.latest.linked.lowered[number]
    rng, flat, logical = np.random.default_rng(0), {}, {}
    for b in low.nest.buffers:
        if b.place in ("arg", "const") and b.name not in kernel.program.results:
            layout = low.layouts.get(b.name, kernel.layout_of[b.name])
            logical[b.name] = rng.standard_normal(layout.shape).astype(np.float32)
            flat[b.name] = layout.pack(logical[b.name])
    (got,) = run(tmp_path / "k.txt", flat)
    a, w = (next(x for x in logical.values() if x.shape == s) for s in ((2, 8), (5, 8)))
    np.testing.assert_allclose(got.reshape(2, 5), a @ w.T, rtol=1e-5, atol=1e-5)


def test_what_cannot_run(folder: Path) -> None:
    x = {"x": random(3, 2, 8, 12, 12)}
    assert_fails("U003", lambda: run(folder / "kernels.txt", x), "order", "printed plan")
    assert_fails("U003", lambda: run(folder / "llvm.0.ll", x), "llvm")
    assert_fails("R001", lambda: run(folder / "plan.txt", {"X": x["x"]}), "did you mean 'x'?")
    assert_fails("R003", lambda: run(folder / "plan.txt", {"x": x["x"][:1]}), "'x'")


def test_text_without_its_constants_is_printed_and_not_run(folder: Path, model: Any, tmp_path: Path) -> None:
    for stage in ("program", "plan", "kernels", "schedule"):
        path = tmp_path / f"{stage}.txt"
        path.write_text((folder / f"{stage}.txt").read_text())
        dims = {"N": 2} if stage == "program" else {}
        assert dump(path, "llvm", dims=dims) == model.dump("llvm")
    assert_fails("R004", lambda: dump(tmp_path / "program.txt", "plan"), "'N'", "--dim N=")
    assert dump(tmp_path / "program.txt", "program") == model.dump("program")
    x = {"x": random(3, 2, 8, 12, 12)}
    for stage in ("plan", "schedule", "program"):
        assert_fails("F002", lambda stage=stage: run(tmp_path / f"{stage}.txt", x), "-o FOLDER")
    result = CliRunner().invoke(cli, ["check", str(tmp_path / "program.txt")])
    assert result.exit_code == 2 and "without its constants" in result.output


def test_a_saved_model_has_no_stages(model: Any, tmp_path: Path) -> None:
    model.save(tmp_path / "m.twa")
    for command in (["dump", "--stage", "loops"], ["explain"], ["check"]):
        result = CliRunner().invoke(cli, [command[0], str(tmp_path / "m.twa"), *command[1:]])
        assert result.exit_code == 2 and "[U003]" in result.output, result.output
    x = random(3, 2, 8, 12, 12)
    np.testing.assert_array_equal(run(tmp_path / "m.twa", {"x": x})[0], model(x)[0])


# ---- the setting -------------------------------------------------------------------------------


def test_stages_are_written_while_compiling(model: Any, tmp_path: Path) -> None:
    with tw.config(dump="all", dump_dir=tmp_path):
        again = tw.compile(model.program, dims={"N": 2}, threads=2)
        again(random(1, 3, 8, 12, 12))
    folders = sorted(p.name for p in tmp_path.iterdir())
    assert len(folders) == 2 and all(n.startswith("net-") for n in folders)
    mine = tmp_path / f"net-{again.variant({'N': 2}).program.key[:8]}"
    for stage in DUMP_STAGES:
        assert (mine / f"{stage}.{SUFFIX.get(stage, 'txt')}").read_text() == model.dump(stage)
    assert stages.constants_beside(mine / "plan.txt")


def test_one_kernel_by_the_environment(tmp_path: Path) -> None:
    environment = {
        **os.environ, "PYTHONPATH": str(SOURCE), "TILEWRIGHT_DUMP": "loops,0", "TILEWRIGHT_DUMP_DIR": str(tmp_path / "d"),
    }  # fmt: skip
    code = "import tilewright as tw; tw.compile('y[i] = 2.0 * x[i]', dims={'I': 40})"
    subprocess.run([sys.executable, "-c", code], env=environment, check=True)
    (file,) = (tmp_path / "d").glob("main-*/*")
    assert file.name == "loops.0.txt" and "nest k" in file.read_text()
    environment["TILEWRIGHT_DUMP"] = "loops,0@tidy"
    done = subprocess.run([sys.executable, "-c", code], env=environment, check=False, capture_output=True, text=True)
    assert done.returncode == 1 and "[U003] there is no pass 'tidy'" in done.stderr
