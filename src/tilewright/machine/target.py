"""`Target`: what code is generated for, and how many CPUs this process may use.

In: a name (`native`, `x86-avx512`, ...) or a printed Target; for `native`, the Linux machine.
Out: a frozen `Target` with `parse(str(t)) == t`; `available_cpus()`.
Invariant: named targets depend on nothing but their name, so golden texts are the same on every
machine; every feature of a native target was reported by the operating system, never implied by a
CPU name.
"""

from __future__ import annotations

import hashlib
import os
import platform
import sys
from dataclasses import dataclass, fields, replace
from functools import lru_cache
from pathlib import Path

from tilewright.errors import TargetError
from tilewright.machine.permission import matrices_permitted

__all__ = ["NAMES", "Target", "available_cpus"]

FORMAT = 1
NAMES = ("native", "x86-avx512", "x86-avx2", "x86-sse42", "aarch64")

# LLVM feature -> flag of /proc/cpuinfo, for the features that code generation can use.
_X86_FEATURES: dict[str, str] = {
    "amx-bf16": "amx_bf16",
    "amx-int8": "amx_int8",
    "amx-tile": "amx_tile",
    "avx": "avx",
    "avx2": "avx2",
    "avx512bf16": "avx512_bf16",
    "avx512bitalg": "avx512_bitalg",
    "avx512bw": "avx512bw",
    "avx512cd": "avx512cd",
    "avx512dq": "avx512dq",
    "avx512f": "avx512f",
    "avx512fp16": "avx512_fp16",
    "avx512ifma": "avx512ifma",
    "avx512vbmi": "avx512vbmi",
    "avx512vbmi2": "avx512_vbmi2",
    "avx512vl": "avx512vl",
    "avx512vnni": "avx512_vnni",
    "avx512vpopcntdq": "avx512_vpopcntdq",
    "avxvnni": "avx_vnni",
    "bmi": "bmi1",
    "bmi2": "bmi2",
    "cx16": "cx16",
    "f16c": "f16c",
    "fma": "fma",
    "gfni": "gfni",
    "lzcnt": "abm",
    "movbe": "movbe",
    "popcnt": "popcnt",
    "prfchw": "3dnowprefetch",
    "sahf": "lahf_lm",
    "sse3": "pni",
    "sse4.1": "sse4_1",
    "sse4.2": "sse4_2",
    "ssse3": "ssse3",
}
_ARM_FEATURES: dict[str, str] = {
    "bf16": "bf16",
    "dotprod": "asimddp",
    "fullfp16": "asimdhp",
    "i8mm": "i8mm",
    "neon": "asimd",
}
_V2 = ("cx16", "popcnt", "sahf", "sse3", "sse4.1", "sse4.2", "ssse3")
_V3 = (*_V2, "avx", "avx2", "bmi", "bmi2", "f16c", "fma", "lzcnt", "movbe")
_V4 = (*_V3, "avx512bw", "avx512cd", "avx512dq", "avx512f", "avx512vl")


@dataclass(frozen=True)
class Target:
    """One machine to generate code for.

    `cpu` names an instruction set level that LLVM knows and `features` adds to it (comma separated,
    sorted, each with `+`); `tune` only chooses LLVM's scheduling model. Sizes are bytes; a cache
    that does not exist is 0. `cores` is what a default schedule may plan for.
    """

    name: str
    triple: str
    cpu: str
    tune: str
    features: str
    vector_bits: int
    vector_registers: int
    has_masks: bool
    has_fma: bool
    has_vnni: bool
    has_bf16_dot: bool
    has_f16c: bool
    has_fp16: bool
    l1_bytes: int
    l2_bytes: int
    l3_bytes: int
    cores: int
    cache_line_bytes: int = 64

    @staticmethod
    def native() -> Target:
        """The machine this process runs on.

        Errors: TargetError R012 (no SSE4.2), R013 (not Linux, or another kind of CPU).
        """
        return _native()

    @staticmethod
    def named(name: str) -> Target:
        """The target called `name` (one of `NAMES`). Errors: TargetError U003 for another name."""
        if name == "native":
            return _native()
        if name not in _NAMED:
            raise TargetError(
                "U003", f"unknown target {name!r}", hint=f"use one of: {', '.join(NAMES)}"
            )
        return _NAMED[name]

    @staticmethod
    def portable() -> Target:
        """The least machine of this process's kind of CPU: its code runs on all of them."""
        return _NAMED["aarch64" if platform.machine() == "aarch64" else "x86-sse42"]

    @staticmethod
    def parse(text: str) -> Target:
        """Inverse of `str`. Errors: TargetError S002 for another format or a malformed line."""
        words = text.split()
        if words[:2] != ["target", str(FORMAT)]:
            raise TargetError("S002", f"not a target of format {FORMAT}: {text[:60]!r}")
        values = dict(word.partition("=")[::2] for word in words[2:])
        arguments: dict[str, str | int | bool] = {}
        for field in fields(Target):
            value = values.pop(field.name, None)
            if value is None:
                raise TargetError("S002", f"target text lacks {field.name!r}")
            arguments[field.name] = _read_value(str(field.type), field.name, value)
        if values:
            raise TargetError(
                "S002", f"target text has unknown fields: {', '.join(sorted(values))}"
            )
        return Target(**arguments)  # type: ignore[arg-type]

    def __str__(self) -> str:
        parts = [f"target {FORMAT}"]
        for field in fields(self):
            value = getattr(self, field.name)
            parts.append(f"{field.name}={int(value) if isinstance(value, bool) else value}")
        return " ".join(parts)

    @property
    def key(self) -> str:
        """Content key: sha256 of the printed form."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    @property
    def isa(self) -> str:
        """The named target whose instruction set this one has at least."""
        if self.triple.startswith("aarch64"):
            return "aarch64"
        return {512: "x86-avx512", 256: "x86-avx2"}.get(self.vector_bits, "x86-sse42")

    @property
    def kept_bytes(self) -> int:
        """Bytes of a result beyond which it is written past the caches."""
        return self.l3_bytes // 8

    def lanes(self, dtype_bits: int) -> int:
        """How many elements of `dtype_bits` one vector register holds."""
        return max(1, self.vector_bits // dtype_bits)

    def has_feature(self, feature: str) -> bool:
        """Whether the LLVM feature is listed or implied by the level."""
        implied: tuple[str, ...] = {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}.get(
            self.cpu, ()
        )
        return f"+{feature}" in self.features.split(",") or feature in implied

    def function_attributes(self) -> str:
        """Text to put behind each LLVM function's parameter list.

        Without the width attribute LLVM splits 512-bit operations for CPUs whose model prefers 256.
        """
        text = 'nounwind "frame-pointer"="none"'
        if self.vector_bits >= 256 and not self.triple.startswith("aarch64"):
            width = self.vector_bits
            text += f' "prefer-vector-width"="{width}" "min-legal-vector-width"="{width}"'
        return text + f' "tune-cpu"="{self.tune}"'

    def multiplies_matrices(self, dtype_bits: int) -> bool:
        """Whether matrix registers multiply elements of this size: bf16 (16) or bytes (8)."""
        feature = {16: "amx-bf16", 8: "amx-int8"}.get(dtype_bits, "")
        return bool(feature) and self.has_feature("amx-tile") and self.has_feature(feature)

    @property
    def dots_halves(self) -> bool:
        """Whether vectors multiply bf16 in pairs, where no matrix registers do so faster."""
        return self.has_bf16_dot and not self.multiplies_matrices(16)

    def exceeds_vectors(self, rows: int, vectors: int) -> bool:
        """Whether a tile of accumulators, `rows` times `vectors` registers, and the factors of one
        product do not fit the vector registers, so that they must be matrix registers.
        """
        return rows * vectors + vectors + 1 > self.vector_registers

    def without_bf16(self) -> Target:
        """The target whose code has no instructions that multiply bf16: they take denormal numbers
        as 0.
        """
        kept = [f for f in self.features.split(",") if f not in ("+amx-bf16", "+avx512bf16")]
        return replace(self, features=",".join(kept), has_bf16_dot=False)

    def with_machine_of(self, other: Target) -> Target:
        """This instruction set with the caches and cores of `other`."""
        return replace(
            self,
            l1_bytes=other.l1_bytes,
            l2_bytes=other.l2_bytes,
            l3_bytes=other.l3_bytes,
            cores=other.cores,
            cache_line_bytes=other.cache_line_bytes,
        )

    def lacks(self, machine: Target) -> list[str]:
        """Features that this target's code uses and `machine` does not have, sorted.

        Errors: TargetError R012 where they are CPUs of different kinds.
        """
        if machine.triple.split("-")[0] != self.triple.split("-")[0]:
            raise TargetError("R012", f"code for {self.triple} cannot run on {machine.triple}")
        wanted = [f[1:] for f in self.features.split(",") if f]
        wanted += {"x86-64-v2": _V2, "x86-64-v3": _V3, "x86-64-v4": _V4}.get(self.cpu, ())
        return sorted({feature for feature in wanted if not machine.has_feature(feature)})

    def require_runnable(self) -> None:
        """Return if this process can run code of this target.

        Errors: TargetError R012 naming what is missing.
        """
        here = _native()
        missing = self.lacks(here)
        if missing:
            raise TargetError(
                "R012",
                f"this CPU lacks {', '.join(missing)}",
                hint=f"compile for target='{here.isa}' or 'native'",
            )


def _read_value(kind: str, name: str, text: str) -> str | int | bool:
    if kind == "str":
        return text
    if not text.isdigit() or (kind == "bool" and text not in ("0", "1")):
        raise TargetError("S002", f"target field {name!r} has the value {text!r}, expected {kind}")
    return text == "1" if kind == "bool" else int(text)


def _x86(
    name: str, features: frozenset[str], *, tune: str, caches: tuple[int, int, int], cores: int
) -> Target:
    if features.issuperset(_V4):
        cpu, bits = "x86-64-v4", 512
    elif features.issuperset(_V3):
        cpu, bits = "x86-64-v3", 256
    else:
        cpu, bits = "x86-64-v2", 128
    # An AVX-512 feature without the whole level would let LLVM use half of AVX-512.
    usable = {f for f in features if bits == 512 or not f.startswith("avx512")}
    # Matrix registers are stored a vector of 512 bits a row.
    matrices = bits == 512 and "amx-tile" in usable
    usable = {f for f in usable if matrices or not f.startswith("amx")}
    usable = {
        f for f in usable if bits >= 256 or (not f.startswith("avx") and f not in ("fma", "f16c"))
    }
    return Target(
        name=name,
        triple="x86_64-unknown-linux-gnu",
        cpu=cpu,
        tune=tune,
        features=",".join(f"+{f}" for f in sorted(usable)),
        vector_bits=bits,
        vector_registers=32 if bits == 512 else 16,
        has_masks=bits == 512,
        has_fma="fma" in usable,
        has_vnni="avx512vnni" in usable or "avxvnni" in usable,
        has_bf16_dot="avx512bf16" in usable,
        has_f16c="f16c" in usable,
        has_fp16="avx512fp16" in usable,
        l1_bytes=caches[0],
        l2_bytes=caches[1],
        l3_bytes=caches[2],
        cores=cores,
    )


def _aarch64(
    name: str, features: frozenset[str], *, caches: tuple[int, int, int], cores: int
) -> Target:
    return Target(
        name=name,
        triple="aarch64-unknown-linux-gnu",
        cpu="generic",
        tune="generic",
        features=",".join(f"+{f}" for f in sorted(features)),
        vector_bits=128,
        vector_registers=32,
        has_masks=False,
        has_fma=True,
        has_vnni="dotprod" in features,
        has_bf16_dot="bf16" in features,
        has_f16c=True,
        has_fp16="fullfp16" in features,
        l1_bytes=caches[0],
        l2_bytes=caches[1],
        l3_bytes=caches[2],
        cores=cores,
    )


_CACHES = (32 << 10, 1 << 20, 32 << 20)
_NAMED: dict[str, Target] = {
    "x86-avx512": _x86("x86-avx512", frozenset(_V4), tune="x86-64-v4", caches=_CACHES, cores=2),
    "x86-avx2": _x86("x86-avx2", frozenset(_V3), tune="x86-64-v3", caches=_CACHES, cores=2),
    "x86-sse42": _x86("x86-sse42", frozenset(_V2), tune="x86-64-v2", caches=_CACHES, cores=2),
    "aarch64": _aarch64("aarch64", frozenset({"neon"}), caches=_CACHES, cores=2),
}


@lru_cache(maxsize=1)
def _native() -> Target:
    if sys.platform != "linux":
        raise TargetError(
            "R013",
            f"tilewright runs on Linux only so far; {sys.platform} needs thread waiting, memory "
            "mapping and CPU detection of its own",
            hint="run under Linux (a container or WSL will do)",
        )
    machine = platform.machine()
    vendor, flags = _cpuinfo()
    caches = _cache_bytes()
    if machine in ("x86_64", "AMD64"):
        present = frozenset(f for f, flag in _X86_FEATURES.items() if flag in flags)
        if "amx-tile" in present and not matrices_permitted():
            present = frozenset(f for f in present if not f.startswith("amx"))
        if not present.issuperset(_V2):
            missing = ", ".join(sorted(set(_V2) - present))
            raise TargetError(
                "R012",
                f"this CPU lacks {missing}",
                hint="tilewright needs SSE4.2 (x86-64-v2) or newer",
            )
        return _x86(
            "native",
            present,
            tune=_x86_tune(vendor, present),
            caches=caches,
            cores=available_cpus(),
        )
    if machine == "aarch64":
        present = frozenset(f for f, flag in _ARM_FEATURES.items() if flag in flags)
        return _aarch64("native", present, caches=caches, cores=available_cpus())
    raise TargetError(
        "R013", f"CPUs of kind {machine!r} are not supported yet", hint="use x86-64 or aarch64"
    )


def _x86_tune(vendor: str, features: frozenset[str]) -> str:
    """LLVM scheduling model by features: hypervisors report model numbers of other CPUs."""
    if vendor == "AuthenticAMD":
        if "avxvnni" in features and "avx512f" in features:
            return "znver5"
        if "avx512bf16" in features:
            return "znver4"
        return "znver3" if "avx2" in features else "x86-64-v2"
    if "avx512fp16" in features:
        return "sapphirerapids"
    if "avx512bitalg" in features:
        return "icelake-server"
    if features.issuperset(_V4):
        return "skylake-avx512"
    return (
        "alderlake"
        if "avxvnni" in features
        else "haswell"
        if features.issuperset(_V3)
        else "x86-64-v2"
    )


def _cpuinfo() -> tuple[str, frozenset[str]]:
    """Vendor, and the flags that every CPU of the machine reports."""
    vendor = ""
    common: set[str] | None = None
    for line in _read(Path("/proc/cpuinfo")).splitlines():
        name, _, value = line.partition(":")
        name = name.strip()
        if name == "vendor_id":
            vendor = value.strip()
        elif name in ("flags", "Features"):
            common = set(value.split()) if common is None else common & set(value.split())
    return vendor, frozenset(common or ())


def _cache_bytes() -> tuple[int, int, int]:
    """Data or unified cache sizes of CPU 0; those of a small core where the kernel is silent."""
    sizes: dict[int, int] = {}
    for index in sorted(Path("/sys/devices/system/cpu/cpu0/cache").glob("index*")):
        kind, level, size = (_read(index / name).strip() for name in ("type", "level", "size"))
        scale = {"K": 1 << 10, "M": 1 << 20}.get(size[-1:], 1)
        if kind in ("Data", "Unified") and level.isdigit() and size.rstrip("KM").isdigit():
            sizes[int(level)] = int(size.rstrip("KM")) * scale
    if 1 not in sizes:
        return _CACHES
    return sizes[1], sizes.get(2, 0), sizes.get(3, 0)


def available_cpus(proc: Path = Path("/proc/self")) -> int:
    """CPUs that affinity and cgroup quota (v1 or v2) leave to this process; at least 1."""
    cpus = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count() or 1
    quota = _cgroup_quota(proc)
    return max(1, cpus if quota is None else min(cpus, int(quota)))


def _cgroup_quota(proc: Path) -> float | None:
    """Smallest CPU quota between this process's cgroup and the roots above it, in CPUs."""
    groups: dict[str, str] = {}
    for line in _read(proc / "cgroup").splitlines():
        number, controllers, path = (line.split(":", 2) + ["", ""])[:3]
        if number == "0" and controllers == "":
            groups["cgroup2"] = path
        elif "cpu" in controllers.split(","):
            groups["cgroup"] = path
    quotas: list[float] = []
    for line in _read(proc / "mountinfo").splitlines():
        left, _, right = line.partition(" - ")
        words, kind = left.split(), right.split()
        if len(words) < 5 or len(kind) < 3 or kind[0] not in groups:
            continue
        if kind[0] == "cgroup" and "cpu" not in kind[2].split(","):
            continue
        root, mount = words[3], Path(words[4])
        # In a container the mount shows a sub-tree: the path starts at `root`, or does not apply.
        path = groups[kind[0]]
        inside = path[len(root) :] if root != "/" and path.startswith(root) else path
        folder = mount / inside.strip("/")
        for level in (folder, *folder.parents):
            quota = _folder_quota(level, kind[0])
            if quota is not None:
                quotas.append(quota)
            if level == mount:
                break
    return min(quotas, default=None)


def _folder_quota(folder: Path, kind: str) -> float | None:
    if kind == "cgroup2":
        words = _read(folder / "cpu.max").split()
    else:
        words = [_read(folder / name).strip() for name in ("cpu.cfs_quota_us", "cpu.cfs_period_us")]
    if len(words) != 2 or not all(word.isdigit() for word in words) or int(words[1]) == 0:
        return None  # "max", -1, or no such file
    return int(words[0]) / int(words[1])


def _read(path: Path) -> str:
    try:
        return path.read_text()
    except OSError:
        return ""
