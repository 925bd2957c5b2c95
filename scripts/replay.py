"""Process replay: emit a stored corpus of kernels again, and compare with the hashes that are stored.

    python scripts/replay.py                              what changed since the hashes were written; exit 1 if anything did
    python scripts/replay.py --write                      write the corpus anew, with the hashes of this source (a release)
    python scripts/replay.py --show NAME [--against REV]  the difference of the texts of an entry, REV (default: the commit
                                                          of the stored hashes) being emitted again from git

tests/replay/corpus.json holds programs as text, a random schedule of each kernel as JSON, and for every
target the SHA-256 of the LLVM text of each kernel, with its default schedule and with that one. A refactoring
shows an empty difference. No text is stored; `--show` makes both sides when they are asked for.
"""

from __future__ import annotations

import argparse
import difflib
import hashlib
import json
import subprocess
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

ROOT = Path(__file__).resolve().parents[1]
STORE = ROOT / "tests" / "replay" / "corpus.json"
TARGETS = ("x86-avx512", "x86-avx2", "x86-sse42", "aarch64")
EVERY = 5  # of the corpus of the schedule fuzzer


def emitted(text: str, target: str, schedules: dict[str, str]) -> Iterator[tuple[str, str, str]]:
    """(kernel and schedule, the schedule, LLVM text) of every kernel of a program."""
    from tilewright.codegen.llvm import emit_llvm
    from tilewright.errors import Rejected
    from tilewright.group.plan import plan_program
    from tilewright.ir.program_parser import parse_program
    from tilewright.lower.kernel import lower
    from tilewright.machine.target import Target
    from tilewright.schedule.kernel_space import space_of
    from tilewright.schedule.schedule import Schedule

    machine = Target.named(target)
    program = parse_program(text)
    plan, _ = plan_program(program.bind({}) if program.dims else program, machine)
    for k, kernel in enumerate(plan.kernels):
        space = space_of(kernel, machine)
        stored = schedules.get(f"{target}/{k}")
        if stored is None:
            sampled = space.sample(np.random.default_rng([k, len(text)]))
        else:
            sampled = Schedule.parse(stored)
        for name, schedule in (("default", space.default()), ("sampled", sampled)):
            if not space.contains(schedule):
                yield f"{target}/{k}/{name}", str(schedule), "no schedule of the space any more\n"
                continue
            lowered = lower(kernel, schedule, machine)
            shown = (
                f"rejected {lowered.code}\n" if isinstance(lowered, Rejected)
                else emit_llvm(lowered.nest, machine)
            )  # fmt: skip
            yield f"{target}/{k}/{name}", str(schedule), shown


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()[:32]


def commit() -> str:
    command = ["git", "rev-parse", "HEAD"]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True).stdout.strip()


def write(store: Path) -> None:
    """The corpus and its hashes."""
    sys.path.insert(0, str(ROOT / "tests" / "fuzz"))
    from corpus import CORPUS, program_of  # type: ignore[import-not-found]

    entries: dict[str, Any] = {}
    for entry in CORPUS[::EVERY]:
        text = str(program_of((entry[0], entry[1], ())))
        schedules: dict[str, str] = {}
        hashes: dict[str, str] = {}
        for target in TARGETS:
            for name, schedule, shown in emitted(text, target, {}):
                hashes[name] = digest(shown)
                if name.endswith("/sampled"):
                    schedules[name.removesuffix("/sampled")] = schedule
        entries[entry[0]] = {"program": text, "schedules": schedules, "hashes": hashes}
    store.write_text(json.dumps({"commit": commit(), "entries": entries}, indent=0) + "\n")
    kernels = sum(len(e["hashes"]) for e in entries.values())
    print(f"{len(entries)} programs, {kernels} texts")


def changed(store: Path, only: str = "") -> list[str]:
    """Entries whose text differs from what is stored."""
    out = []
    for name, entry in json.loads(store.read_text())["entries"].items():
        if only not in name:
            continue
        found = {
            part: digest(text)
            for target in TARGETS
            for part, _, text in emitted(entry["program"], target, entry["schedules"])
        }
        parts = [k for k in {**entry["hashes"], **found} if entry["hashes"].get(k) != found.get(k)]
        out += [f"{name} {part}" for part in parts]
    return out


def texts(store: Path, name: str) -> dict[str, str]:
    entry = json.loads(store.read_text())["entries"][name]
    return {
        part: text for target in TARGETS
        for part, _, text in emitted(entry["program"], target, entry["schedules"])
    }  # fmt: skip


def show(store: Path, name: str, against: str) -> int:
    """Print the differences of an entry; how many texts differ."""
    with tempfile.TemporaryDirectory() as folder:
        archive = subprocess.run(
            ["git", "archive", against, "src"], cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", folder], input=archive, check=True)
        command = [sys.executable, __file__, "--print", name, "--store", str(store)]
        old = json.loads(
            subprocess.run(
                command, env={"PYTHONPATH": f"{folder}/src"}, stdout=subprocess.PIPE, check=True
            ).stdout
        )
    new = texts(store, name)
    count = 0
    for part in sorted({*old, *new}):
        a, b = (side.get(part, "").splitlines(keepends=True) for side in (old, new))
        if a != b:
            count += 1
            sys.stdout.writelines(difflib.unified_diff(a, b, f"{against[:12]}/{part}", f"now/{part}"))
    print(f"{count} of {len(new)} texts differ")
    return count


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--write", action="store_true")
    parser.add_argument("--show", metavar="NAME")
    parser.add_argument("--print", metavar="NAME", help="the texts as JSON, for --show")
    parser.add_argument("--against", metavar="REV")
    parser.add_argument("--only", default="", metavar="PART", help="entries with this in their name")
    parser.add_argument("--store", type=Path, default=STORE)
    options = parser.parse_args()
    if options.write:
        write(options.store)
        return 0
    if options.print:
        print(json.dumps(texts(options.store, options.print)))
        return 0
    stored = json.loads(options.store.read_text())
    if options.show:
        return int(bool(show(options.store, options.show, options.against or stored["commit"])))
    found = changed(options.store, options.only)
    for line in found:
        print(line)
    total = sum(len(e["hashes"]) for n, e in stored["entries"].items() if options.only in n)
    print(f"{len(found)} of {total} texts differ from {stored['commit'][:12]}")
    return int(bool(found))


if __name__ == "__main__":
    sys.exit(main())
