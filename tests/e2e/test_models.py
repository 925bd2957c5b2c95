"""Real models from wheels: every stage printed and fed back, and saved models that give equal bits."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.config import DUMP_STAGES, current
from tilewright.errors import UserError
from tilewright.tools import wiring
from tilewright.tools.wheels import MODELS, model_path
from tilewright.verify.generate import random_inputs

pytest.importorskip("onnx")
pytestmark = [pytest.mark.models, pytest.mark.slow]
SIZES = {
    "open_nsfw": {"batch": 1},
    "magika": {"unk__214": 1},
    "ocr_det": {"DynamicDimension_0": 1, "DynamicDimension_1": 64, "DynamicDimension_2": 96},
    "ocr_rec": {"DynamicDimension_0": 1, "DynamicDimension_1": 64},
}
WHEELS = Path(__file__).parents[2] / "build" / "wheels"


@pytest.fixture(params=sorted(MODELS), scope="module")
def model(request: pytest.FixtureRequest) -> Any:
    with tw.config(wheels_dir=current().wheels_dir if current().wheels_dir.exists() else WHEELS):
        try:
            path = model_path(request.param)
        except UserError as error:
            pytest.skip(error.message)
    return tw.compile(path, dims=SIZES[request.param], threads=1)


def test_every_stage_comes_back_with_the_same_keys_and_code(model: Any, tmp_path: Path) -> None:
    stages = [s for s in DUMP_STAGES if s != "asm"]
    texts = {stage: model.dump(stage, folder=tmp_path) for stage in stages}
    plan = model.latest.plan
    for stage in ("derived", "plan", "schedule", "loops"):
        found = wiring.load_model(tmp_path / f"{stage}.txt")
        if not wiring.is_printed(found):
            again = tw.compile(found, threads=1)
            assert again.latest.plan.key == plan.key
        else:
            again = found.on(threads=1)
            if again.plan is not None:
                assert again.plan.key == plan.key
            keys = [k.key for k in again.kernels.values()]
            assert stage == "loops" or keys == [k.key for k in plan.kernels]
        assert again.dump("loops") == texts["loops"] and again.dump("llvm") == texts["llvm"], stage


def test_a_saved_model_gives_the_same_bits(model: Any, tmp_path: Path) -> None:
    inputs = random_inputs(model.program, model.latest.sizes, 1)
    model.save(tmp_path / "m.twa")
    loaded = tw.load(tmp_path / "m.twa", threads=1)
    for got, wanted in zip(loaded.run(inputs), model.run(inputs), strict=True):
        np.testing.assert_array_equal(got, wanted)
    weights = sum(a.nbytes for a in model.program.values.values())
    assert (tmp_path / "m.twa").stat().st_size <= 1.3 * weights + (2 << 20)
    assert "kernel 0" in model.explain() and model.explain(memory=True).startswith("peak ")
