"""Every kernel of the corpus under random schedules, interpreted and run natively.

`TILEWRIGHT_FUZZ_COUNT` raises the number of schedules of a kernel, `TILEWRIGHT_FUZZ_SEED` changes
them. By default a few programs of every kind run.
"""

from __future__ import annotations

import os

import numpy as np
import pytest
from corpus import CORPUS, Entry, program_of

from tilewright.errors import TargetError
from tilewright.machine.target import Target
from tilewright.verify.schedules import fuzz_schedules

COUNT = int(os.environ.get("TILEWRIGHT_FUZZ_COUNT", "0"))
SEED = int(os.environ.get("TILEWRIGHT_FUZZ_SEED", "0"))
TARGETS = ("x86-avx512", "x86-avx2", "x86-sse42")
FEW = {
    "mm_ik_kj_37_29_45", "mmc_ik_jk_70_13_97", "mm_ik_kj_3_0_4", "dot_u8_i8", "mm_bf16", "dot_i8_i8_constant", "dot_u8_u8", "dot_turned", "dot_window", "conv_stride_constant", "depthwise", "windows_even_2", "windows_wide_2", "windows_cut_1", "windows_deep_3", "windows_none_1",
    "softmax_1_33", "attention_causal", "stream_causal", "scan_lanes_17", "strips", "parts", "matrix_vector", "scatter_runs", "rnn_f16", "args", "stream_nothing", "stream_one_row", "reduce_1", "transpose", "gather", "scatter", "casts", "rnn", "sums_f16", "scan_logsumexp", "scatter_logsumexp", "recurrent_logsumexp",
}  # fmt: skip


def assert_schedules_agree(entry: Entry, number: int, count: int, targets: tuple[str, ...]) -> None:
    program = program_of(entry, SEED)
    for name in targets:
        target = Target.named(name)
        try:
            target.require_runnable()
            native = True
        except TargetError:
            native = False
        rng = np.random.default_rng([SEED, number])
        report = fuzz_schedules(program, target, rng, count, native=native)
        assert report.ok, str(report)


@pytest.mark.parametrize("number", [k for k, e in enumerate(CORPUS) if e[0] in FEW])
def test_few(number: int) -> None:
    assert_schedules_agree(CORPUS[number], number, max(1, COUNT), (TARGETS[number % 3],))


@pytest.mark.slow
@pytest.mark.skipif(COUNT == 0, reason="set TILEWRIGHT_FUZZ_COUNT")
@pytest.mark.parametrize("number", range(len(CORPUS)), ids=[e[0] for e in CORPUS])
def test_all(number: int) -> None:
    assert_schedules_agree(CORPUS[number], number, COUNT, TARGETS)
