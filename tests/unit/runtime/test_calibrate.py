"""Calibration: every probe runs, finds the units the target has, and its figures are possible."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from tilewright.config import config
from tilewright.machine.hardware import LATENCIES, RATES, HardwareDescriptor
from tilewright.machine.target import Target
from tilewright.runtime.build import build, emit_assembly
from tilewright.runtime.calibrate import (
    WINDOW_PROBES,
    Probes,
    calibrate,
    hardware,
    measure_hardware,
)
from tilewright.runtime.calibrate_text import probe_text, register_operations


@pytest.fixture(scope="module")
def probes() -> Probes:
    return Probes(block_bytes=24 << 20)


@pytest.fixture(scope="module")
def measured(probes: Probes) -> HardwareDescriptor:
    return measure_hardware([1, 2], probes)


def test_every_number_is_there_and_possible(measured: HardwareDescriptor) -> None:
    target = Target.native()
    lacking = {"bf16_gflops"} if not target.has_bf16_dot else set()
    lacking |= {"vnni_gops"} if not target.has_vnni else set()
    assert set(measured.rates) == set(RATES) - lacking
    assert set(measured.latencies_ns) == set(LATENCIES)
    assert HardwareDescriptor.parse(str(measured)) == measured
    for value in (*measured.rates.values(), *measured.latencies_ns.values()):
        assert np.all(np.isfinite(value)) and np.all(np.asarray(value) > 0)
    assert 0.2 < measured.ghz < 8  # a loaded virtual machine may lose most of its time
    most = 4 * target.lanes(32) * 2 * 8
    assert 0.1 < measured.rate("fma_gflops") < most
    assert measured.rate("fma_gflops") > measured.rate("divide_gops")
    assert measured.latencies_ns["memory_ns"] > measured.latencies_ns["fma_ns"]


def test_a_window(probes: Probes) -> None:
    values = probes.window(2)
    assert set(values) <= set(WINDOW_PROBES) and min(values.values()) > 0


def test_other_instruction_sets_run_here(probes: Probes) -> None:
    native = Target.native()
    for name in ("x86-avx2", "x86-sse42"):
        if native.isa.startswith("x86") and native.vector_bits >= Target.named(name).vector_bits:
            narrow = Probes(Target.named(name), block_bytes=6 << 20)
            assert narrow.register("fma_gflops", 1) > 0.1
            assert not narrow.has("vnni_gops")


@pytest.mark.parametrize("name", ["x86-avx512", "x86-avx2", "x86-sse42", "aarch64", "native"])
def test_the_loops_are_what_they_claim(name: str) -> None:
    target = Target.named(name)
    text = emit_assembly(probe_text(target), target)
    body = text[text.index("\nfma_gflops:") : text.index("\nf64_gflops:")]
    multiply = "vfmadd" if target.isa in ("x86-avx512", "x86-avx2") else "fmla"
    if target.isa == "x86-sse42":
        multiply = "mulps"
    operations = register_operations("fma_gflops", target) // 2
    assert body.count(multiply) == operations // target.lanes(32)
    loop = body[body.index(".LBB") : body.rindex(".LBB")]
    assert "rsp)" not in loop and "[sp" not in loop
    read = text[text.index("\nread:") : text.index("\ncopy:")]
    assert read.count("addps" if target.isa != "aarch64" else "fadd") == 8
    copy = text[text.index("\ncopy_nt:") : text.index("\ntriad_nt:")]
    assert ("movnt" in copy and "sfence" in copy) or target.isa == "aarch64"
    if target.has_vnni and name == "native" and target.isa.startswith("x86"):
        assert ("tdpbusd" if target.multiplies_matrices(8) else "vpdpbusd") in text
    assert len(build(probe_text(target), target)) > 1000


def test_the_stored_descriptor(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, measured: HardwareDescriptor
) -> None:
    monkeypatch.setattr("tilewright.runtime.calibrate.measure_hardware", lambda *_: measured)
    with config(cache_dir=tmp_path):
        assert not hardware().is_measured
        assert hardware(measure=True) == measured == hardware()
        plain = calibrate([1, 2])
        assert plain["fingerprint"] == measured.fingerprint
        (path,) = (tmp_path / "hardware").iterdir()
        path.write_text(path.read_text()[:-30])
        assert not hardware().is_measured
        assert not hardware(Target.named("aarch64")).is_measured
    with config(cache_dir=Path("/proc/nowhere")):
        assert hardware(measure=True) == measured


def test_matrix_registers_set_the_peak_where_there_are_some() -> None:
    plain = Target.named("x86-avx512")
    features = plain.features + ",+amx-bf16,+amx-int8,+amx-tile"
    text = probe_text(replace(plain, features=features))
    for name, multiply in (("bf16_gflops", "tdpbf16ps"), ("vnni_gops", "tdpbusd")):
        body = text.partition(f"@{name}(")[2].partition("define ")[0]
        assert body.count(f"call void @llvm.x86.{multiply}(") == 4
    assert "tdp" not in probe_text(plain)
