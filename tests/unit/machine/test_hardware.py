"""The hardware descriptor: round trip, damage, rates between measured thread counts."""

from __future__ import annotations

import json
from dataclasses import replace

import pytest

from tilewright.errors import UserError
from tilewright.machine.hardware import LATENCIES, RATES, HardwareDescriptor
from tilewright.machine.target import NAMES, Target


@pytest.mark.parametrize("name", NAMES)
def test_typical_round_trip(name: str) -> None:
    typical = HardwareDescriptor.typical(Target.named(name))
    assert HardwareDescriptor.parse(str(typical)) == typical
    assert set(typical.rates) <= set(RATES) and set(typical.latencies_ns) <= set(LATENCIES)
    assert ("vnni_gops" in typical.rates) == Target.named(name).has_vnni
    assert not typical.is_measured


def test_rates_between_counts() -> None:
    target = replace(Target.named("x86-avx2"), cores=8)
    descriptor = replace(
        HardwareDescriptor.typical(target),
        thread_counts=(1, 2, 8),
        rates={"read_gbs": (10.0, 18.0, 30.0), "fma_gflops": (100.0, 190.0, 700.0)},
    )
    assert [descriptor.rate("read_gbs", n) for n in (0, 1, 2, 5, 8, 64)] == [10, 10, 18, 24, 30, 30]
    assert descriptor.rounded("fma_gflops") == 128.0
    assert descriptor.rounded("read_gbs", 2) == 16.0
    with pytest.raises(KeyError):
        descriptor.rate("bf16_gflops")


def test_keys_and_fingerprints() -> None:
    one = HardwareDescriptor.typical(Target.named("x86-avx512"))
    again = replace(one, rates={**one.rates, "read_gbs": (1.0, 2.0)})
    assert one.key != again.key and one.fingerprint == again.fingerprint
    assert replace(one, machine="other").fingerprint != one.fingerprint


@pytest.mark.parametrize(
    "change",
    [
        {"format": 2},
        {"thread_counts": []},
        {"thread_counts": [2]},
        {"rates": {"read_gbs": [1.0]}},
        {"rates": {"read_gbs": [0.0, 1.0]}},
        {"latencies_ns": None},
        {"target": "target 9"},
        {"extra": 1},
    ],
)
def test_damage(change: dict[str, object]) -> None:
    values = json.loads(str(HardwareDescriptor.typical(Target.named("x86-avx2"))))
    with pytest.raises(UserError):
        HardwareDescriptor.parse(json.dumps(values | change))
    with pytest.raises(UserError, match="S002"):
        HardwareDescriptor.parse(json.dumps(values)[:-20])
