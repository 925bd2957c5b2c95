"""The hardware descriptor: what a machine can do, as numbers.

In: measurements (`runtime.calibrate`), or a Target alone (`HardwareDescriptor.typical`).
Out: a frozen `HardwareDescriptor` that prints and parses as JSON.
Invariant: every rate is positive and known for one thread; a missing unit (no bf16 dot product,
say) is absent from `rates`, never zero. Decisions that must not change between two calibrations
read `rounded`, not the measured value.
"""

from __future__ import annotations

import hashlib
import json
import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field

from tilewright.errors import TargetError, UserError
from tilewright.machine.target import Target

__all__ = ["LATENCIES", "RATES", "HardwareDescriptor"]

FORMAT = 1

# Name -> meaning. Rates are per thread count; the first seven are what a benchmark window probes.
RATES: dict[str, str] = {
    "fma_gflops": "f32 multiply-adds in registers, 2 operations each",
    "f64_gflops": "f64 multiply-adds in registers, 2 operations each",
    "bf16_gflops": "bf16 dot products into f32, in matrix registers where there are some",
    "vnni_gops": "8-bit dot products into i32, in matrix registers where there are some",
    "read_gbs": "reading memory",
    "copy_nt_gbs": "copying memory with non-temporal stores, read plus written bytes",
    "triad_nt_gbs": "two reads, a multiply-add, a non-temporal store, all bytes",
    "copy_gbs": "copying memory with cached stores, useful bytes",
    "l1_gbs": "reading half the first-level cache",
    "l2_gbs": "reading half the second-level cache",
    "l3_gbs": "reading an eighth of the third-level cache, at most 8 MiB a thread",
    "divide_gops": "f32 vector divisions, elements",
    "shuffle_gops": "f32 two-source permutations in registers, elements",
    "gather_gops": "f32 gathers from the first-level cache, elements",
}
LATENCIES: dict[str, str] = {
    "fma_ns": "dependent f32 multiply-add",
    "l1_ns": "dependent load, first-level cache",
    "l2_ns": "dependent load, second-level cache",
    "l3_ns": "dependent load, third-level cache",
    "memory_ns": "dependent load, memory on huge pages",
    "fork_join_ns": "empty step on all threads, helpers awake",
    "wake_ns": "empty step on all threads, helpers asleep",
    "call_ns": "call from Python with three bound arrays and no work",
    "step_ns": "empty step on the caller",
}


@dataclass(frozen=True)
class HardwareDescriptor:
    """About 40 numbers of one machine. `rates[name]` goes with `thread_counts`, entry by entry."""

    machine: str
    target: str
    ghz: float
    thread_counts: tuple[int, ...]
    rates: Mapping[str, tuple[float, ...]] = field(hash=False)
    latencies_ns: Mapping[str, float] = field(hash=False)
    is_measured: bool = True

    def rate(self, name: str, threads: int = 1) -> float:
        """The rate at `threads`, from the nearest count measured at or below it, scaled up linearly
        at most to the next one. Errors: KeyError for a unit the machine lacks."""
        values, threads = self.rates[name], max(1, threads)
        below = max(k for k, count in enumerate(self.thread_counts) if count <= threads)
        if self.thread_counts[below] == threads or below + 1 == len(values):
            return values[below]
        low, high = self.thread_counts[below], self.thread_counts[below + 1]
        share = (threads - low) / (high - low)
        return values[below] + share * (values[below + 1] - values[below])

    def rounded(self, name: str, threads: int = 1) -> float:
        """The rate, rounded to a power of two."""
        return 2.0 ** round(math.log2(self.rate(name, threads)))

    @property
    def key(self) -> str:
        """Content key: sha256 of the JSON text."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    @property
    def fingerprint(self) -> str:
        """Which machine this is: the same for two calibrations of one machine."""
        return fingerprint(self.machine, Target.parse(self.target))

    def __str__(self) -> str:
        return json.dumps({"format": FORMAT, **asdict(self)}, indent=1, sort_keys=True)

    @staticmethod
    def parse(text: str) -> HardwareDescriptor:
        """Inverse of `str`. Errors: UserError S002 for another format or damaged text."""
        try:
            values = json.loads(text)
            if values.pop("format") != FORMAT:
                raise ValueError("another format")
            descriptor = HardwareDescriptor(
                machine=str(values.pop("machine")),
                target=str(Target.parse(values.pop("target"))),
                ghz=float(values.pop("ghz")),
                thread_counts=tuple(map(int, values.pop("thread_counts"))),
                rates={n: tuple(map(float, v)) for n, v in values.pop("rates").items()},
                latencies_ns={n: float(v) for n, v in values.pop("latencies_ns").items()},
                is_measured=bool(values.pop("is_measured")),
            )
            counts = descriptor.thread_counts
            if values or not counts or counts[0] != 1 or list(counts) != sorted(set(counts)):
                raise ValueError("fields")
            if any(
                len(rate) != len(counts) or min(rate) <= 0 for rate in descriptor.rates.values()
            ):
                raise ValueError("rates")
        except (ValueError, KeyError, TypeError, AttributeError, TargetError) as error:
            raise UserError(
                "S002", f"not a hardware descriptor of format {FORMAT}: {error}"
            ) from None
        return descriptor

    @staticmethod
    def typical(target: Target) -> HardwareDescriptor:
        """A guess from the instruction set alone: a 3 GHz core with two vector units."""
        ghz, lanes, counts = 3.0, target.lanes(32), tuple(sorted({1, max(1, target.cores)}))
        fma = 2 * 2 * lanes * ghz
        one: dict[str, float] = {
            "fma_gflops": fma,
            "f64_gflops": fma / 2,
            "read_gbs": 12.0,
            "copy_nt_gbs": 14.0,
            "triad_nt_gbs": 14.0,
            "copy_gbs": 9.0,
            "l1_gbs": 2 * 4 * lanes * ghz,
            "l2_gbs": 4 * lanes * ghz / 2,
            "l3_gbs": 24.0,
            "divide_gops": lanes * ghz / 8,
            "shuffle_gops": lanes * ghz,
            "gather_gops": 2 * ghz,
        }
        if target.has_bf16_dot:
            one["bf16_gflops"] = fma * (8 if target.multiplies_matrices(16) else 1)
        if target.has_vnni:
            one["vnni_gops"] = 4 * fma * (4 if target.multiplies_matrices(8) else 1)
        scales = {"read_gbs": 0.7, "copy_nt_gbs": 0.7, "triad_nt_gbs": 0.7, "copy_gbs": 0.7}
        rates = {
            name: tuple(rate * (1 + (count - 1) * scales.get(name, 1.0)) for count in counts)
            for name, rate in one.items()
        }
        latencies = dict(
            fma_ns=4 / ghz, l1_ns=5 / ghz, l2_ns=15 / ghz, l3_ns=25.0, memory_ns=100.0,
            fork_join_ns=300.0, wake_ns=20_000.0, call_ns=150.0, step_ns=3.0,
        )  # fmt: skip
        return HardwareDescriptor(
            "typical " + target.isa, str(target), ghz, counts, rates, latencies, is_measured=False
        )


def fingerprint(machine: str, target: Target) -> str:
    """Identity of a machine for files and records: CPU name, instruction set, caches, cores."""
    return hashlib.sha256(f"{machine}\n{target}".encode()).hexdigest()[:16]
