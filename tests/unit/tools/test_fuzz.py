"""`tilewright fuzz`: counts, resumption, failing cases, children that die; and the model generator."""

from __future__ import annotations

import json
import os
import random
import resource
import signal
import threading
import time
from contextlib import suppress
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

import tilewright
from tilewright import program as tw_program
from tilewright.errors import TilewrightError, UserError
from tilewright.frontend.onnx import import_onnx
from tilewright.group.plan import plan_program
from tilewright.lower.kernel import Lowered, lower
from tilewright.machine.target import Target
from tilewright.runtime.wire import WorkerDied
from tilewright.schedule.kernel_space import space_of
from tilewright.tools.fuzz import campaign, models, nests
from tilewright.tools.fuzz.corpus import Corpus, FailedCase
from tilewright.tools.fuzz.kinds import KINDS, derived
from tilewright.tools.fuzz.models import (
    _is_undefined,
    _onnxruntime,
    check_model,
    model_of,
    reduce_model,
    text_of,
)
from tilewright.tools.fuzz.nests import NestFuzzer
from tilewright.tools.fuzz.programs import Options, check_program
from tilewright.verify.fuzz import isolated
from tilewright.verify.models import draw_model
from tilewright.verify.models.rows import all_rows
from tilewright.verify.programs import Case, generate
from tilewright.verify.schedules import PARAMETERS, parameter_kind

AVX2 = Options("x86-avx2", 1)


def run(**more: Any) -> dict[str, Any]:
    settings = campaign.Settings(targets=("x86-avx2",), **more)
    return campaign.run(settings, lambda share, facts: None)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "corpus"


def test_a_campaign_is_carried_on(folder: Path) -> None:
    first = run(kinds=("programs", "schedules"), count=2, corpus=folder, seed=3)
    assert first["ok"] and first["figures"]["programs"]["value"] == 1
    second = run(kinds=("programs",), count=2, corpus=folder, seed=3)
    assert second["figures"]["programs"]["value"] == 3
    assert second["counts"]["programs"]["cases"] == {"3": first["counts"]["programs"]["programs"] + 2}
    assert second["figures"]["valid_share"]["value"] == 1.0
    assert json.loads((folder / "state.json").read_text())["kinds"]["schedules"]["pairs"] > 0
    (folder / "state.json").write_text("{}")
    with pytest.raises(UserError) as error:
        run(kinds=("programs",), count=1, corpus=folder)
    assert error.value.code == "U003"


def test_kept_failures_are_tried_again(folder: Path) -> None:
    """A case that passes by now is noted as fixed; a text that no stage takes still fails."""
    corpus = Corpus(folder)
    case = KINDS["programs"].text_of(5)
    passing = FailedCase("programs", 5, "wrong", "it was wrong", "x86-avx2", 1)
    assert corpus.add(passing, case, ".txt") and corpus.data_of(passing) == case
    errors = FailedCase("programs", 6, "error X", "m", "x86-avx2", 1)
    assert corpus.add(errors, case + b"\n", ".txt") and not corpus.add(errors, case, ".txt")
    assert errors.count == 2
    corpus.save()
    with pytest.raises(UserError) as error:
        run(kinds=("programs",), count=1, corpus=folder)
    assert "another campaign" in str(error.value)
    corpus.close()
    result = run(kinds=("programs",), count=1, corpus=folder)
    assert [f["fixed"] for f in result["failed"]] == [True, True]
    assert result["figures"]["wrong"]["value"] == 0 and result["ok"]


def test_a_full_disk_loses_no_count(folder: Path) -> None:
    """A case that does not fit is counted without its text; a smaller one does not replace it by a
    part of itself; the counts that were saved stay.
    """
    corpus = Corpus(folder)
    kept = FailedCase("programs", 5, "wrong", "it was wrong", "x86-avx2", 1)
    assert corpus.add(kept, b"text", ".txt")
    corpus.tally("programs").generated = 7
    corpus.save()
    before = sorted(p.name for p in folder.rglob("*"))
    child = os.fork()
    if child == 0:
        status = 1
        with suppress(BaseException):
            signal.signal(signal.SIGXFSZ, signal.SIG_IGN)
            resource.setrlimit(resource.RLIMIT_FSIZE, (100, 100))
            lost = FailedCase("programs", 6, "crash", "it died", "x86-avx2", 1)
            corpus.rewrite(kept, bytes(5000))
            counted = corpus.add(lost, bytes(5000), ".txt") and corpus.data_of(lost) == b""
            corpus.tally("programs").generated = 8
            with pytest.raises(UserError, match="U003"):
                corpus.save()
            status = 0 if counted and len(corpus.failed) == 2 else 2
        os._exit(status)
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == 0
    assert sorted(p.name for p in folder.rglob("*")) == before
    corpus.close()
    again = Corpus(folder)
    assert again.data_of(again.failed[0]) == b"text" and again.tallies["programs"].generated == 7


def test_a_child_that_dies_is_a_finding(tmp_path: Path) -> None:
    """Killed in the middle of a case, hung, and out of memory; the next case has a new child."""
    children = campaign.Children(tmp_path / "arcs", tmp_path)
    request = campaign._header("programs", 7, "x86-avx2", 1)
    try:
        assert children.ask("main", request, b"", 100)[0]["found"] is None

        def kill(number: int) -> None:
            time.sleep(0.05)
            os.kill(children._workers["main"].pid, number)

        for number in (signal.SIGSEGV, signal.SIGKILL):
            children.ask("main", request, b"", 100)
            thread = threading.Thread(target=kill, args=(number,))
            thread.start()
            with pytest.raises(WorkerDied) as died:
                children.ask("main", {**request, "number": 77, "do": "case"}, b"", 100)
            thread.join()
            assert died.value.signal_name == number.name
        with pytest.raises(WorkerDied) as hung:
            children.ask("main", {**request, "number": 78}, b"", 0.0)
        assert hung.value.timed_out
        assert children.ask("main", request, b"", 100)[0]["found"] is None
    finally:
        children.close()


def test_a_finding_names_files_without_their_folders() -> None:
    """What a campaign keeps is shown in docs; where this machine has its files is no part of it."""
    text = 'File "/tmp/tree/src/a.py", line 3, in f\n  y = x / 2  # /home/me/b.c:7 and http://a.b/c'
    expected = 'File "a.py", line 3, in f\n  y = x / 2  # b.c:7 and http://a.b/c'
    assert campaign._without_folders(text) == expected


def test_a_child_builds_into_a_cache_of_its_own(folder: Path, tmp_path: Path) -> None:
    """What was generated displaces nothing in the user's cache, and a twin builds for itself."""
    mine = tmp_path / "mine"
    with tilewright.config(cache_dir=mine):
        (mine / "hardware").mkdir(parents=True)
        (mine / "hardware" / "a.json").write_text("{}")
        result = run(kinds=("programs",), count=2, corpus=folder, seed=3)
    assert result["ok"] and not (mine / "objects").exists()
    children = campaign.Children(tmp_path / "arcs", tmp_path)
    try:
        for name in ("main", "twin"):
            with tilewright.config(cache_dir=mine):
                children.ask(name, campaign._header("programs", 7, "x86-avx2", 1), b"", 100)
            assert list((tmp_path / name / "objects").glob("*/*"))
            assert (tmp_path / name / "hardware" / "a.json").exists()
    finally:
        children.close()


def test_a_generator_that_fails_is_a_finding(
    folder: Path, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """The parent keeps what it was told; it does not fail as the child did."""

    def broken(number: int) -> bytes:
        raise KeyError(1)

    monkeypatch.setattr(KINDS["onnx"], "text_of", broken)
    state = campaign._Run(campaign.Settings(corpus=folder), Corpus(folder), reduced=10**6)
    children = campaign.Children(tmp_path / "arcs", tmp_path)
    header = campaign._header("onnx", 9, "x86-avx2", 1)
    campaign._keep(state, children, "onnx", header, ("error KeyError", "1"), b"")
    assert state.corpus.data_of(state.corpus.failed[0]) == (
        b"# case 9 cannot be generated: KeyError(1)\n"
    )
    state.corpus.close()


def test_every_kind_of_case_is_the_same_in_every_process() -> None:
    for kind in ("programs", "onnx", "schedules"):
        assert KINDS[kind].text_of(11) == KINDS[kind].text_of(11)


def test_generated_models_are_valid_and_every_row_is_drawn() -> None:
    seen: set[str] = set()
    for number in range(120):
        model = draw_model(number)
        onnx.checker.check_model(onnx.load_model_from_string(model.data), full_check=True)
        assert model.nodes == len(onnx.load_model_from_string(model.data).graph.node)
        seen |= model.rows
        imported = import_onnx(model.data)
        assert set(imported.inputs.values()) == set(model.inputs)
    wanted = {r.removeprefix("row ") for r in KINDS["onnx"].rows() if r.startswith("row ")}
    assert wanted <= all_rows()
    for number in range(120, 240):
        seen |= draw_model(number).rows
    assert wanted <= seen  # operators come in turn


def test_bits_of_one_byte_are_cast() -> None:
    """A BitCast of int8, once a KeyError of the generator."""
    assert "BitCast" in draw_model(87021199967650429).rows


def test_a_model_and_its_text() -> None:
    model = draw_model(4)
    again = model_of(text_of(model))
    assert set(again.inputs) == set(model.inputs)
    for name, array in model.inputs.items():
        np.testing.assert_array_equal(again.inputs[name], array)
    assert check_model(again, AVX2).found is None


def test_nan_in_an_order_is_not_asked_of_third_parties() -> None:
    """A maximum over NaN: onnxruntime's and the standard's reference skip it in some places."""
    pytest.importorskip("onnxruntime")
    x = np.random.default_rng(0).standard_normal((1, 2, 6, 6)).astype(np.float32)
    x[0, 0, :3, ::2] = np.nan
    shape = list(x.shape)
    h = onnx.helper
    of = partial(h.make_tensor_value_info, elem_type=onnx.TensorProto.FLOAT)
    node = h.make_node("MaxPool", ["x"], ["y"], kernel_shape=[3, 3])
    graph = h.make_graph([node], "g", [of("x", shape=shape)], [of("y", shape=None)])
    opset = h.make_opsetid("", 17)
    data = h.make_model(graph, opset_imports=[opset], ir_version=8).SerializeToString()
    model = replace(draw_model(4), data=data, inputs={"x": x}, rows=frozenset(["MaxPool"]), nodes=1)
    answer = check_model(model, AVX2)
    assert answer.found is None and answer.others in (
        ["onnxruntime undefined"], ["onnxruntime agreed"],
    )  # fmt: skip
    program = import_onnx(data).program
    cast = tw_program("x: f32[3]; y[i] = u8(x[i])")
    assert _is_undefined(cast, {"x": np.array([1.0, 2.0, 5.8e17], np.float32)})
    assert not _is_undefined(cast, {"x": np.array([1.0, 255.9, -0.9], np.float32)})
    assert _is_undefined(program, {"x": x}) and not _is_undefined(program, {"x": np.ones_like(x)})


def test_a_failing_model_is_reduced_to_the_node() -> None:
    """`fails` stands for a compiler that is wrong about one operator."""
    pytest.importorskip("onnxruntime")
    drawn = (draw_model(n) for n in range(200))
    model = next(m for m in drawn if "Concat" in m.rows and m.nodes > 8 and _onnxruntime(m) is not None)

    def fails(part: Any) -> bool:
        return "Concat" in part.rows and _onnxruntime(part) is not None

    small = reduce_model(model, fails)
    assert small.rows == {"Concat"} and small.nodes == 1


def test_nests_of_a_case_are_mutations_that_run() -> None:
    fuzzer = NestFuzzer()
    kinds = set()
    for number in range(24):
        case = fuzzer.draw(number, AVX2)
        fuzzer.pool.append(case)
        assert json.loads(json.dumps(case)) == case
        answer = fuzzer.run({**case, "target": "x86-avx2"}, careful=False)
        assert answer.found is None, answer.found
        kinds |= answer.drawn
    assert {"random nest", "scheduled kernel", "symbolic kernel"} <= kinds
    assert fuzzer.tried.total() == 0  # only `check` learns what is promising


def test_what_no_small_kernel_asks_for_is_forced_now_and_then() -> None:
    """Loops taken apart at conditions, and sums in blocks: cases reach both, and run."""
    fuzzer, texts = NestFuzzer(), []
    rng = random.Random(5)
    plain = {"target": "x86-avx2", "opt": 2, "passes": 0, "at_start": True, "at_once": 1}
    for _ in range(40):
        kind = rng.choice(("movement", "contraction"))
        case = {**fuzzer._new_kernel(rng, kind, plain), "symbolic": False}
        kernels = nests._kernels_of(case)
        if not case["forced"] or not kernels:
            continue
        assert fuzzer.run(case, careful=False).found is None
        kernel = kernels[case["kernel"] % len(kernels)]
        with nests._conditions_cut(bool(case["forced"] & nests._CUTS)):
            made = lower(kernel, fuzzer.schedule_of(case, kernel), Target.named("x86-avx2"))
        assert isinstance(made, Lowered)
        texts.append(str(made.nest))
    assert any("scratch f0" in t for t in texts) and any(t.count("parallel for") > 1 for t in texts)


def test_reducing_a_program_keeps_its_failure() -> None:
    """A case that the compiler takes has no failure to keep: it stays as it is."""
    text = KINDS["programs"].text_of(12)
    assert Case.parse(KINDS["programs"].reduce(text, "wrong", AVX2, 5.0).decode()) == Case.parse(text.decode())
    with pytest.raises(TilewrightError):
        KINDS["programs"].replay(b"no case", AVX2, False)


def test_parts_and_forms_of_convolutions_are_drawn() -> None:
    """Cases of `schedules` hold reductions that are split, and convolutions in every form."""
    target = Target.named("x86-avx2")
    wanted = {"parameter parts", *(r for r in KINDS["schedules"].rows() if r.startswith("form "))}
    seen: set[str] = set()
    for number in range(100):
        case = Case.parse(KINDS["schedules"].text_of(number).decode())
        program, facts = derived(case, number, target)
        plan, _ = plan_program(program, target)
        groups = [g for k in plan.kernels for g in space_of(k, target, 2).groups]
        seen |= facts | {"parameter parts" for g in groups if "s0.parts" in g.names}
        if wanted <= seen:
            return
    raise AssertionError(f"not drawn: {wanted - seen}")


def test_every_parameter_of_a_schedule_has_a_row() -> None:
    """What spaces of drawn cases let a schedule choose, and nothing else, is asked of campaigns."""
    found: set[str] = set()
    for number in range(60):
        target = Target.named(("x86-avx512", "x86-avx2", "x86-sse42")[number % 3])
        case = Case.parse(KINDS["schedules"].text_of(number).decode())
        plan, _ = plan_program(derived(case, number, target)[0], target)
        groups = [g for k in plan.kernels for g in space_of(k, target, 2).groups]
        found |= {parameter_kind(n) for g in groups for n in g.names}
    assert found == PARAMETERS


def test_inputs_that_the_compiler_knows() -> None:
    """A case whose weights are constants is compiled in a form with fewer multiplications, and is
    the same after its text was read again.
    """
    for number in range(100):
        case = generate(number, 1, kind="sliding")
        again = Case.parse(str(case))
        assert again.constants == case.constants and again.program == case.program
        answer = check_program(case, AVX2)
        assert answer.found is None, answer.found
        if "rule bilinear" in answer.drawn:
            return
    raise AssertionError("no case is computed in another form")


def test_every_derivation_rule_has_a_fuzzer() -> None:
    """A rule is a file of `derive`; cases of `programs` count the models that it took part in."""
    folder = Path(str(tilewright.__file__)).parent / "derive"
    rules = {f"rule {path.stem}" for path in folder.glob("*.py")} - {"rule __init__"}
    assert rules <= KINDS["programs"].rows()


def test_a_third_party_that_dies_is_no_crash_of_ours(monkeypatch: pytest.MonkeyPatch) -> None:
    """onnxruntime takes its process with it for some models; a careful child asks it in another one."""

    def dies(model: Any) -> None:
        os.kill(os.getpid(), signal.SIGSEGV)

    monkeypatch.setattr(models, "_onnxruntime", dies)
    answer = check_model(draw_model(4), AVX2, isolated)
    assert answer.found is not None and answer.found[0] == "third onnxruntime"
    assert "SIGSEGV" in answer.found[1] and answer.others == ["onnxruntime crashed"]
    monkeypatch.setattr(models, "_onnxruntime", lambda model: None)
    assert check_model(draw_model(4), AVX2, isolated).others == ["onnxruntime refused"]


def test_a_kept_crash_of_a_third_party_is_named_so(
    folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What a careful child finds out later replaces what the first one could not tell."""
    corpus = Corpus(folder)
    crash = FailedCase("onnx", 4, "crash", "the child died", "x86-avx2", 1)
    assert corpus.add(crash, KINDS["onnx"].text_of(4), ".onnx")
    children = campaign.Children(tmp_path / "arcs", tmp_path)
    answer = {"found": ["third onnxruntime", "onnxruntime does not survive the model"]}
    monkeypatch.setattr(children, "ask", lambda *request: (answer, b""))
    state = campaign._Run(campaign.Settings(kinds=("onnx",), corpus=folder), corpus)
    campaign._replay_failed(state, children)
    assert not crash.fixed and crash.failure == "third onnxruntime"
    corpus.close()
