"""Target: round trip, agreement with LLVM, and the CPU count under affinity and cgroup quotas."""

from __future__ import annotations

import os
import subprocess
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from tilewright.errors import TargetError
from tilewright.machine.target import NAMES, Target, available_cpus


@pytest.mark.parametrize("name", NAMES)
def test_round_trip(name: str) -> None:
    target = Target.named(name)
    assert Target.parse(str(target)) == target
    assert len(target.key) == 64
    assert replace(target, cores=target.cores + 1).key != target.key


def test_native_features_are_what_llvm_sees() -> None:
    import llvmlite.binding as llvm

    host = llvm.get_host_cpu_features()
    for feature in Target.native().features.split(","):
        assert host[feature[1:]], feature


def test_named_targets_do_not_depend_on_the_machine() -> None:
    wide = Target.named("x86-avx512")
    assert (wide.vector_bits, wide.vector_registers, wide.has_masks, wide.lanes(32)) == (
        512,
        32,
        True,
        16,
    )
    narrow = Target.named("x86-sse42")
    assert (narrow.vector_bits, narrow.has_fma, narrow.has_masks, narrow.lanes(64)) == (
        128,
        False,
        False,
        2,
    )
    assert '"prefer-vector-width"="512"' in wide.function_attributes()
    assert wide.with_machine_of(narrow).isa == "x86-avx512"


def test_foreign_code_is_refused_with_what_is_missing() -> None:
    foreign = "aarch64" if Target.native().triple.startswith("x86") else "x86-avx2"
    with pytest.raises(TargetError) as caught:
        Target.named(foreign).require_runnable()
    assert caught.value.code == "R012"
    Target.native().require_runnable()
    missing = replace(Target.native(), features=Target.native().features + ",+amx-unheard-of")
    with pytest.raises(TargetError, match="lacks amx-unheard-of"):
        missing.require_runnable()


@pytest.mark.parametrize(
    "text", ["", "target 2 name=x", "target 1 name=x", "target 1 vector_bits=-1"]
)
def test_bad_text(text: str) -> None:
    with pytest.raises(TargetError) as caught:
        Target.parse(text)
    assert caught.value.code == "S002"
    whole = str(Target.named("aarch64"))
    with pytest.raises(TargetError, match="has_fma"):
        Target.parse(whole.replace("has_fma=1", "has_fma=yes"))
    with pytest.raises(TargetError, match="unknown fields: more"):
        Target.parse(whole + " more=1")


def test_affinity_is_honoured() -> None:
    code = (
        "import os; os.sched_setaffinity(0, [min(os.sched_getaffinity(0))]);"
        "from tilewright.machine.target import available_cpus; print(available_cpus())"
    )
    environment = dict(os.environ, PYTHONPATH=os.pathsep.join(sys.path))
    done = subprocess.run(
        [sys.executable, "-c", code], env=environment, capture_output=True, text=True, check=True
    )
    assert done.stdout.strip() == "1"


@pytest.mark.parametrize(
    ("version", "inner", "outer", "expected"),
    [
        (2, "max 100000", "max 100000", None),
        (2, "max 100000", "100000 100000", 1),
        (2, "50000 100000", "max 100000", 1),
        (1, "-1", "-1", None),
        (1, "150000", "-1", 1),
        (1, "-1", "100000", 1),
    ],
)
def test_cgroup_quota(
    tmp_path: Path, version: int, inner: str, outer: str, expected: int | None
) -> None:
    proc, mount = tmp_path / "proc", tmp_path / "mount"
    proc.mkdir()
    (mount / "a" / "b").mkdir(parents=True)
    if version == 2:
        (proc / "cgroup").write_text("3:cpuset:/\n0::/a/b\n")
        (proc / "mountinfo").write_text(f"30 20 0:26 / {mount} rw - cgroup2 cgroup2 rw\n")
        (mount / "a" / "b" / "cpu.max").write_text(inner + "\n")
        (mount / "a" / "cpu.max").write_text(outer + "\n")
    else:
        (proc / "cgroup").write_text("3:cpu,cpuacct:/a/b\n")
        (proc / "mountinfo").write_text(f"30 20 0:26 / {mount} rw - cgroup cgroup rw,cpu,cpuacct\n")
        for folder, quota in ((mount / "a" / "b", inner), (mount / "a", outer)):
            (folder / "cpu.cfs_quota_us").write_text(quota + "\n")
            (folder / "cpu.cfs_period_us").write_text("100000\n")
    here = len(os.sched_getaffinity(0))
    assert available_cpus(proc) == (here if expected is None else min(here, expected))
