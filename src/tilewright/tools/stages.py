"""Every stage of a compiled model as text, and text of any stage as something to go on from.

In: a `CompiledModel`, or a file that `dump` wrote. Out: text and files; or a `Printed`. Invariant:
feeding a printed stage back gives the keys and the code that it came from.

Several kernels are told apart by lines `--- kernel NUMBER KEY NAMES`, their schedules by lines
`--- schedule NUMBER`. Constants lie beside the text in `constants.safetensors`, by content; text
without them can be dumped further, not run.
"""

from __future__ import annotations

import difflib
import hashlib
import os
import re
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.config import DUMP_STAGES, current
from tilewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tilewright.ir.plan import Plan
    from tilewright.ir.program import Program
    from tilewright.tools.printed import Printed

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["CONSTANTS", "constants_beside", "dump", "dump_by_setting", "kernel_number", "load"]
__all__ += ["computes_of", "names_of", "without_constants", "write"]

CONSTANTS = "constants.safetensors"
PER_KERNEL = ("kernels", "schedule", "loops", "llvm", "asm")
_SUFFIX = {"llvm": "ll", "asm": "s"}
_COMMENT = {"llvm": "; ", "asm": "# "}
_KERNEL = re.compile(
    r"^(?:; )?--- kernel (?P<number>\d+)(?: [0-9a-f]{16})?(?: (?P<names>.*))?\n", re.MULTILINE
)
_SCHEDULE = re.compile(r"^--- schedule (?P<number>\d+)\n", re.MULTILINE)
_LLVM = re.compile(r"(;|source_filename|target |define |declare |@|attributes #)")
_PRINTED = re.compile(rf"\s*(plan |kernel |nest |(; )?--- kernel |{_LLVM.pattern})")


# ---- printing ----------------------------------------------------------------------------------


def dump(model: Any, stage: str, *, kernel: str | None = None, folder: Path | None = None) -> str:
    """The text of one stage of a compiled model; with `folder` also files, constants beside them.

    Errors: U001 for an unknown kernel, U003 for an unknown stage or an unwritable folder.
    """
    if stage == "program":  # as imported, before its sizes are bound
        from tilewright.machine.target import Target
        from tilewright.tools.printed import Printed

        whole = Printed(
            stage, Target.native(), 1, program=model.program, values=model.program.values
        )
        return write(whole, stage, kernel, folder)
    return write(_of_variant(model, model.latest), stage, kernel, folder)


def dump_by_setting(model: Any, variant: Any) -> None:
    """What the setting `dump` asks for, into a folder of `dump_dir` for each model and size."""
    config = current()
    stage, _, kernel = config.dump.partition("@")[0].partition(",")
    if "@" in config.dump:
        raise UserError(
            "U003",
            f"there is no pass {config.dump.partition('@')[2]!r}",
            where="TILEWRIGHT_DUMP",
            hint="leave @pass out: each stage is one pass",
        )
    held = _of_variant(model, variant)
    folder = config.dump_dir / f"{variant.program.name}-{variant.program.key[:8]}"
    for wanted in DUMP_STAGES if stage == "all" else (stage,):
        write(held, wanted, kernel or None if wanted in PER_KERNEL else None, folder)


def _of_variant(model: Any, variant: Any) -> Printed:
    """The stages of a compiled variant, as they were made."""
    from tilewright.tools.printed import Printed

    linked = variant.linked
    return Printed(
        "program",
        model.target,
        variant.threads,
        program=model.program,
        bound=variant.derived,
        plan=variant.plan,
        kernels=dict(enumerate(variant.plan.kernels)),
        computes=computes_of(variant.plan),
        schedules=dict(enumerate(linked.schedules)),
        nests={number: low.nest for number, low in enumerate(linked.lowered)},
        llvm=dict(enumerate(linked.texts)),
        values=variant.derived.values,
    )


def names_of(plan: Plan) -> dict[int, list[str]]:
    """What each kernel of a plan computes, over all its calls."""
    from tilewright.ir.plan import KernelCall

    names: dict[int, list[str]] = {}
    for step in plan.steps:
        if isinstance(step, KernelCall):
            names.setdefault(step.kernel, []).extend(step.names)
    return names


def computes_of(plan: Plan) -> dict[int, str]:
    """The same as text."""
    return {number: ", ".join(names) for number, names in names_of(plan).items()}


def kernel_number(kernel: str, numbers: Sequence[int], names: Mapping[int, Sequence[str]]) -> int:
    """A kernel by number, or by the name of something it computes. Errors: U001."""
    if kernel.isdigit() and int(kernel) in numbers:
        return int(kernel)
    known = {name: number for number, found in names.items() for name in found}
    if kernel in known:
        return known[kernel]
    near = difflib.get_close_matches(kernel, known, 1, 0.4)
    last = max(numbers, default=-1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        "U001",
        f"there is no kernel {kernel!r}",
        where="--kernel",
        hint=f"{hint}kernels are numbered 0 to {last}; `dump --stage plan` names what they compute",
    )


def write(p: Printed, stage: str, kernel: str | None, folder: Path | None) -> str:
    """The text of one stage; with `folder` a file of it, one for each kernel, and the constants.

    Errors: U001 for an unknown kernel, U003 for a stage that there is not.
    """
    _require(p, stage, kernel)
    parts = _parts(p, stage)
    chosen = list(parts)
    if kernel is not None:
        names = {number: text.split(", ") for number, text in p.computes.items()}
        chosen = [kernel_number(kernel, chosen, names)]
        text = parts[chosen[0]]
    elif stage in ("program", "derived"):
        text = str(p.program if stage == "program" else p.derived)
    elif stage == "plan" or (stage == "schedule" and p.plan is not None):
        text = str(p.plan) + "".join(_schedule_lines(p).values() if stage == "schedule" else ())
    else:
        text = "".join(parts.values())
    if folder is not None:
        files = {f"{stage}.{number}": parts[number] for number in chosen}
        if kernel is None:
            files[stage] = text
        _write(folder, {f"{n}.{_SUFFIX.get(stage, 'txt')}": t for n, t in files.items()}, p.values)
    return text


def _require(p: Printed, stage: str, kernel: str | None) -> None:
    """Errors: U003; R004 for a program whose sizes are open."""
    if stage not in DUMP_STAGES:
        raise UserError(
            "U003",
            f"there is no stage {stage!r}",
            where="stage",
            hint="one of " + ", ".join(DUMP_STAGES),
        )
    if p.program is not None and p.bound is None and stage != "program":
        from tilewright.runtime.model import check_sizes

        check_sizes(p.program.dims, (), {})
    there = {
        "program": p.program,
        "derived": p.bound,
        "plan": p.plan,
        "kernels": p.kernels,
        "schedule": p.kernels,
        "loops": p.kernels or p.nests,
    }
    if not there.get(stage, True):
        raise UserError(
            "U003",
            f"the stage {stage} comes before {p.stage}, which is what the file holds",
            where="--stage",
            hint=f"ask for {p.stage} or a later stage, or give the model",
        )
    if kernel is not None and stage not in PER_KERNEL:
        raise UserError(
            "U003",
            f"the stage {stage} is of the whole model, not of a kernel",
            where="--kernel",
            hint="kernels have the stages " + ", ".join(PER_KERNEL),
        )


def _parts(p: Printed, stage: str) -> dict[int, str]:
    """The text of every kernel, headed by its number, the stage's key, and what it computes."""
    texts: Mapping[int, tuple[str, str]]
    match stage:
        case "kernels":
            texts = {number: (k.key, str(k)) for number, k in p.kernels.items()}
        case "schedule":
            lines = _schedule_lines(p)
            texts = {number: (k.key, f"{k}{lines[number]}") for number, k in p.kernels.items()}
        case "loops":
            texts = {number: (nest.key, str(nest)) for number, nest in p.loops().items()}
        case "llvm":
            texts = {number: (_hash(text), text) for number, text in p.texts().items()}
        case "asm":
            texts = {number: (_hash(text), text) for number, text in p.assembly().items()}
        case _:
            return {}
    out = {}
    for number, (key, text) in texts.items():
        names = p.computes.get(number, "")
        head = f"{_COMMENT.get(stage, '')}--- kernel {number} {key[:16]} {names}".rstrip()
        out[number] = f"{head}\n{text}" + ("" if text.endswith("\n") else "\n")
    return out


def _schedule_lines(p: Printed) -> dict[int, str]:
    return {n: f"--- schedule {n}\n{schedule}\n" for n, schedule in p.chosen().items()}


def _hash(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def _write(folder: Path, files: Mapping[str, str], values: Mapping[str, Array]) -> None:
    """Texts, and the constants that they name, into a folder. Errors: U003."""
    from tilewright.runtime.tensors import write_tensors

    used = {k: a for k, a in values.items() if any(f"@{k}" in text for text in files.values())}
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            (folder / name).write_text(text, encoding="utf-8")
        kept = constants_beside(folder / CONSTANTS) if used else {}
        if set(used) - set(kept):
            temporary = folder / f".{CONSTANTS}.{os.getpid()}"
            with temporary.open("wb") as file:
                write_tensors(file, {**kept, **used})
            temporary.replace(folder / CONSTANTS)
    except OSError as error:
        raise UserError(
            "U003",
            f"{folder} cannot be written: {error.strerror}",
            where="-o",
            hint="give a folder that can be written",
        ) from error


# ---- reading -----------------------------------------------------------------------------------


def constants_beside(path: Path) -> dict[str, Array]:
    """The constants that `dump -o` wrote beside a text; nothing where there is no such file."""
    from tilewright.runtime.tensors import read_tensors

    file = path.parent / CONSTANTS
    return dict(read_tensors(file)) if file.is_file() else {}


def without_constants(program: Program) -> Printed:
    """A program whose constants are not there: its later stages can be printed."""
    from tilewright.machine.target import Target, available_cpus
    from tilewright.tools.printed import Printed

    config = current()
    threads = config.num_threads or available_cpus()
    return Printed("program", Target.named(config.target), threads, program=program)


def _sections(pattern: re.Pattern[str], text: str) -> tuple[str, dict[int, str], dict[int, str]]:
    """The text before the first mark; by number, the text after each mark, and its names."""
    marks = list(pattern.finditer(text))
    ends = [*(m.start() for m in marks), len(text)][1:]
    bodies, names = {}, {}
    for m, end in zip(marks, ends, strict=False):
        number = int(m["number"])
        bodies[number] = text[m.end() : end]
        if found := m.groupdict().get("names"):
            names[number] = found
    return text[: marks[0].start()] if marks else text, bodies, names


def load(
    text: str,
    *,
    target: str | None = None,
    threads: int | None = None,
    values: Mapping[str, Array] | None = None,
) -> Printed | None:
    """What a text holds from the stage `plan` on; None where it is a program or index notation.

    values: the constants beside it. Errors: those of the parsers; S002 for an unknown format.
    """
    if not _PRINTED.match(text):
        return None
    from tilewright.ir.kernel import parse_kernel
    from tilewright.ir.nest import parse_nest
    from tilewright.ir.plan import parse_plan
    from tilewright.machine.target import Target, available_cpus
    from tilewright.schedule.schedule import Schedule
    from tilewright.tools.printed import Printed

    config = current(target=target, num_threads=threads)
    found = Printed(
        "plan",
        Target.named(config.target),
        config.num_threads or available_cpus(),
        values=values or {},
    )
    if text.lstrip().startswith("plan "):
        body, schedules, _ = _sections(_SCHEDULE, text)
        found.plan = parse_plan(body)
        found.kernels = dict(enumerate(found.plan.kernels))
        found.computes = computes_of(found.plan)
        found.schedules = {number: Schedule.parse(line) for number, line in schedules.items()}
    else:
        head, parts, names = _sections(_KERNEL, text)
        parts = parts or {0: head}
        found.computes = names
        inner = next(iter(parts.values())).lstrip()
        if inner.startswith("kernel "):
            found.stage = "kernels"
            pieces = {number: _sections(_SCHEDULE, part) for number, part in parts.items()}
            found.kernels = {number: parse_kernel(body) for number, (body, _, _) in pieces.items()}
            found.schedules = {
                number: Schedule.parse(line)
                for number, (_, lines, _) in pieces.items()
                for line in lines.values()
            }
        elif inner.startswith("nest "):
            found.stage = "loops"
            found.nests = {number: parse_nest(part) for number, part in parts.items()}
        elif _LLVM.match(inner):
            found.stage, found.llvm = "llvm", parts
        else:
            return None
    if found.schedules:
        found.stage = "schedule"
    return found
