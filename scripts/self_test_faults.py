"""Planted faults: does the self-test of a kernel notice them, with no reference?

    python scripts/self_test_faults.py [--faults 20] [--seed 0] [--json OUT]

For each of a dozen kernels, relations are learned and kept (`verify.reductions.models`). Then faults are
drawn by seed: one change in the LLVM text of one kernel: an operation replaced by another, a constant
changed, an operand exchanged, a comparison widened, a store left out. A fault counts when the text still
builds, runs without a crash in a child, and gives other results than before beyond rounding; each of
those must be noticed by the self-test alone. Exit status 1 if one is not.
"""

from __future__ import annotations

import argparse
import json
import random
import re
import sys
import time
from pathlib import Path
from typing import Any

import numpy as np

import tilewright as tw
from tilewright.runtime import link
from tilewright.verify.reductions.models import SelfTest, learn_model, run_self_test
from tilewright.verify.sandbox import Limits, run_in_child

KERNELS = {
    "matmul": """program p(a: f32[33, 40], b: f32[40, 50]):
  y: f32[i<33, j<50] = sum(k<40) a[i, k] * b[k, j]
  return y
""",
    "linear": """program p(x: f32[20, 36], w: f32[36, 47], b: f32[47]):
  h: f32[i<20, j<47] = sum(k<36) x[i, k] * w[k, j]
  y: f32[i<20, j<47] = h[i, j] + b[j]
  return y
""",
    "convolution": """program p(x: f32[2, 14, 15, 6], w: f32[3, 3, 6, 21]):
  y: f32[n<2, i<14, j<15, c<21] = sum(u<3, v<3, d<6) (x[n, i + u - 1, j + v - 1, d] else 0.0) * w[u, v, d, c]
  return y
""",
    "depthwise": """program p(x: f32[2, 17, 18, 19], w: f32[3, 3, 19]):
  y: f32[n<2, i<15, j<16, c<19] = sum(u<3, v<3) x[n, i + u, j + v, c] * w[u, v, c]
  return y
""",
    "softmax": """program p(x: f32[21, 45]):
  m: f32[i<21] = max(j<45) x[i, j]
  e: f32[i<21, j<45] = exp(x[i, j] - m[i])
  s: f32[i<21] = sum(j<45) e[i, j]
  y: f32[i<21, j<45] = e[i, j] / s[i]
  return y
""",
    "layer norm": """program p(x: f32[18, 52]):
  m: f32[i<18] = sum(j<52) x[i, j] / 52.0
  v: f32[i<18] = sum(j<52) (x[i, j] - m[i]) * (x[i, j] - m[i]) / 52.0
  y: f32[i<18, j<52] = (x[i, j] - m[i]) * rsqrt(v[i] + 0.00001)
  return y
""",
    "gelu": """program p(x: f32[30, 41]):
  y: f32[i<30, j<41] = x[i, j] * 0.5 * (1.0 + erf(x[i, j] * 0.70710678))
  return y
""",
    "sums of rows": """program p(x: f32[37, 61]):
  y: f32[i<37] = sum(j<61) x[i, j]
  return y
""",
    "prefix": """program p(x: f32[23, 49]):
  y: f32[i<23, j<49] = scan sum(j) x[i, j]
  return y
""",
    "attention": """program p(q: f32[2, 13, 16], k: f32[2, 19, 16], v: f32[2, 19, 16]):
  s: f32[b<2, i<13, j<19] = sum(d<16) q[b, i, d] * k[b, j, d] * 0.25
  m: f32[b<2, i<13] = max(j<19) s[b, i, j]
  e: f32[b<2, i<13, j<19] = exp(s[b, i, j] - m[b, i])
  t: f32[b<2, i<13] = sum(j<19) e[b, i, j]
  o: f32[b<2, i<13, c<16] = sum(j<19) e[b, i, j] * v[b, j, c]
  y: f32[b<2, i<13, c<16] = o[b, i, c] / t[b, i]
  return y
""",
    "transpose and add": """program p(x: f32[35, 44], z: f32[44, 35]):
  y: f32[i<44, j<35] = x[j, i] + z[i, j]
  return y
""",
    "tanh": """program p(x: f32[29, 43]):
  y: f32[i<29, j<43] = tanh(x[i, j])
  return y
""",
}

_SWAPS = [
    ("fadd", "fsub"), ("fsub", "fadd"), ("fmul", "fadd"), ("fdiv", "fmul"), ("add nuw nsw i64", "sub i64"),
    ("icmp slt", "icmp sle"), ("icmp ult", "icmp ule"), ("icmp sgt", "icmp sge"), ("mul i64", "add i64"),
    ("fcmp ogt", "fcmp olt"), ("fcmp olt", "fcmp ogt"), ("shl i64", "add i64"),
]  # fmt: skip


def plant(text: str, rng: random.Random) -> tuple[str, str] | None:
    """The text with one fault, and what it is."""
    lines = text.split("\n")
    order = list(range(len(lines)))
    rng.shuffle(order)
    how = rng.choice(("swap", "swap", "number", "number", "operands", "store", "mask", "fma"))
    for k in order:
        line = lines[k]
        if not line.startswith("  ") or "phi" in line or "br " in line:
            continue
        new = line
        if how == "swap":
            fits = [(a, b) for a, b in _SWAPS if f" {a} " in line]
            if fits:
                a, b = rng.choice(fits)
                new = line.replace(f" {a} ", f" {b} ", 1)
        elif how == "number" and (m := re.search(r"0x([0-9A-F]{16})", line)):
            value = int(m[1], 16)
            bits = value ^ (1 << rng.randrange(40, 56))
            new = line.replace(m[0], f"0x{bits:016X}", 1)
        elif how == "operands" and (m := re.search(r"(%[\w.]+), (%[\w.]+)$", line)) and (
            "fsub" in line or "fdiv" in line or "icmp" in line
        ):
            new = line[: m.start()] + f"{m[2]}, {m[1]}"
        elif how == "store" and line.strip().startswith("store"):
            new = ""
        elif how == "mask" and (m := re.search(r"shufflevector .*<i32 (\d+)", line)):
            new = line.replace(f"<i32 {m[1]}", f"<i32 {int(m[1]) ^ 1}", 1)
        elif how == "fma" and "llvm.fma" in line and line.lstrip().startswith("%"):
            operands = re.findall(r"(<\d+ x float>|float) (%[\w.]+)", line)
            if len(operands) >= 3:
                new = line.replace(operands[0][1], operands[1][1], 1)
        if new != line:
            lines[k] = new
            return "\n".join(lines), f"line {k}: {line.strip()[:100]} -> {new.strip()[:100] or 'nothing'}"
    return None


def compiled(program: Any, change: Any = None) -> Any:
    """The model; `change` is applied to the text of every kernel."""
    plain = link.emit_llvm
    if change is not None:
        link.emit_llvm = lambda nest, target: change(plain(nest, target))  # type: ignore[assignment]
    try:
        return tw.compile(program, threads=1)
    finally:
        link.emit_llvm = plain  # type: ignore[assignment]


def inputs_of(test: SelfTest, seed: int) -> list[Any]:
    rng = np.random.default_rng(seed)
    return [rng.standard_normal(s.shape).astype(np.float32) for s in test.inputs]


def runner(model: Any) -> Any:
    names = [s.name for s in model.input_specs]
    return lambda arrays: model.run(dict(zip(names, arrays, strict=True)))


def trial(program: Any, test: SelfTest, expected: list[Any], seed: str) -> dict[str, Any]:
    """In a child: plant, build, run, test."""
    rng = random.Random(seed)
    told: list[str] = []

    def change(text: str) -> str:
        if told:
            return text
        found = plant(text, rng)
        if found is None:
            return text
        told.append(found[1])
        return found[0]

    run = runner(compiled(program, change))
    got = run(inputs_of(test, 5))
    gap = max(
        float(np.max(np.abs(np.nan_to_num(a - b, nan=1e9)))) / max(1e-9, float(np.max(np.abs(b))))
        for a, b in zip(got, expected, strict=True)
    )
    outcomes = run_self_test(run, test, seeds=2)
    failed = [o for o in outcomes if not o.ok]
    return {
        "fault": told[0] if told else "", "gap": gap,
        "noticed": bool(failed), "by": failed[0].relation if failed else "",
    }  # fmt: skip


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--faults", type=int, default=20)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.monotonic()
    tests: dict[str, Any] = {}
    for name, text in KERNELS.items():
        program = tw.program(text)
        run = runner(compiled(program))
        test = learn_model(run, program)
        healthy = run_self_test(run, test)
        assert all(o.ok for o in healthy), [o for o in healthy if not o.ok]
        expected = [np.array(y) for y in run(inputs_of(test, 5))]
        tests[name] = (program, test, expected)
        print(f"{name}: {len(test.sums)} sums ({sum(s.is_proved for s in test.sums)} proved), "
              f"{len(test.permutations)} permutations", flush=True)  # fmt: skip
    found: list[dict[str, Any]] = []
    skipped: dict[str, int] = {}
    k = 0
    names = list(KERNELS)
    while len(found) < options.faults:
        name = names[k % len(names)]
        seed = f"{options.seed}/{k}"
        k += 1
        ended = run_in_child(
            lambda name=name, seed=seed: trial(*tests[name], seed), Limits(wall_s=90, cpu_s=30)
        )
        if ended.kind != "done" or not ended.value["fault"]:
            kind = ended.kind if ended.kind != "done" else "no place"
            skipped[kind] = skipped.get(kind, 0) + 1
            continue
        if ended.value["gap"] < 1e-4:
            skipped["same results"] = skipped.get("same results", 0) + 1
            continue
        found.append({"kernel": name, "seed": seed, **ended.value})
        print("noticed" if ended.value["noticed"] else "MISSED", name, ended.value["fault"], "|",
              ended.value["by"], flush=True)  # fmt: skip
    noticed = sum(f["noticed"] for f in found)
    result = {
        "command": f"python scripts/self_test_faults.py --faults {options.faults} --seed {options.seed}",
        "faults": len(found), "noticed": noticed, "drawn": k, "passed_over": skipped,
        "kernels": {n: {"sums": [str(s) for s in t.sums], "proved": sum(s.is_proved for s in t.sums),
                        "permutations": [str(p) for p in t.permutations]}
                    for n, (_, t, _) in tests.items()},
        "all": found, "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    if options.json:
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    print(f"{noticed} of {len(found)} planted faults noticed ({k} drawn, passed over: {skipped})")
    return int(noticed < len(found))


if __name__ == "__main__":
    sys.exit(main())
