"""Random programs with symbolic sizes: one compiled model at several sizes against the oracle.

`TILEWRIGHT_FUZZ_COUNT` times 100 programs run, 8 by default; `TILEWRIGHT_FUZZ_SEED` changes them.
"""

from __future__ import annotations

import os
import random

import pytest

from tilewright.api import CompiledModel
from tilewright.errors import UserError
from tilewright.ir.program import Program
from tilewright.machine.target import Target
from tilewright.verify.generate import random_inputs
from tilewright.verify.oracle import check
from tilewright.verify.programs import generate
from tilewright.verify.witness import references

COUNT = 100 * int(os.environ.get("TILEWRIGHT_FUZZ_COUNT", "0")) or 8
SEED = int(os.environ.get("TILEWRIGHT_FUZZ_SEED", "0"))
SIZES = (2, 3, 5, 7, 16, 17, 31, 33, 40, 64)


def _is_valid(p: Program, sizes: dict[str, int]) -> bool:
    """A drawn program holds at the sizes it was drawn for; at others a read may leave its tensor."""
    try:
        references(p, random_inputs(p, sizes), dims=sizes)
    except UserError:
        return False
    return True


@pytest.mark.parametrize("number", range(COUNT))
def test_one_model_serves_every_size(number: int) -> None:
    case = generate(1000 * SEED + number)
    p = case.program
    model = CompiledModel(p, target=Target.native(), threads=1, symbolic="always")
    rng = random.Random(number)
    others = [{d.name: rng.choice(SIZES) for d in p.dims} for _ in range(2)]
    for sizes in (case.sizes, *(s for s in others if p.dims and _is_valid(p, s))):
        check(model, p, 1, sizes=sizes).raise_if_wrong()
