"""Every stage of a compiled model as text, and text of any stage as something to go on from.

In: a `CompiledModel`, or a file that `dump` wrote. Out: text; or a `Printed` whose later stages are
made from the text alone. Invariant: feeding a printed stage back gives the keys and the code that
it came from. Several kernels are told apart by lines `--- kernel N`; constants lie beside the text
in `constants.safetensors`, by content.
"""

from __future__ import annotations

import os
import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.config import DUMP_STAGES, current
from tilewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    from tilewright.ir.kernel import Kernel
    from tilewright.ir.nest import LoopNest
    from tilewright.ir.plan import Plan
    from tilewright.machine.target import Target
    from tilewright.schedule.schedule import Schedule

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["CONSTANTS", "Printed", "dump", "load"]

CONSTANTS = "constants.safetensors"
_SUFFIX = {"llvm": "ll", "asm": "s"}
_KERNEL = re.compile(r"^(?:; )?--- kernel (\d+)\n", re.MULTILINE)
_SCHEDULE = re.compile(r"^--- schedule (\d+)\n", re.MULTILINE)


@dataclass
class Printed:
    """What a text holds: the earliest stage it was printed at, and what the later ones need.

    plan: of the stages `plan` and `schedule`. kernels, nests, llvm: by number, where the text
    starts there. schedules: by number, where the text fixes them; else each kernel's default.
    """

    stage: str
    target: Target
    threads: int
    plan: Plan | None = None
    kernels: Mapping[int, Kernel] = field(default_factory=dict)
    schedules: Mapping[int, Schedule] = field(default_factory=dict)
    nests: Mapping[int, LoopNest] = field(default_factory=dict)
    llvm: Mapping[int, str] = field(default_factory=dict)

    def dump(self, stage: str, *, kernel: str | None = None, folder: Path | None = None) -> str:
        """The text of this stage or a later one. Errors: U003 for an earlier one."""
        if DUMP_STAGES.index(stage) < DUMP_STAGES.index(self.stage):
            raise UserError(
                "U003",
                f"the stage {stage} comes before {self.stage}, which is what the file holds",
                where="--stage",
                hint=f"ask for {self.stage} or a later stage, or give the model",
            )
        names = {} if self.plan is None else _names(self.plan)
        text = _render(stage, kernel, names, self._parts(stage), self.plan, self._schedules())
        if folder is not None:
            _write(folder, stage, kernel, text, {})
        return text

    def explain(self, *, kernel: str | None = None, memory: bool = False) -> str:
        raise UserError(
            "U003",
            f"a printed {self.stage} carries no decisions to explain",
            where="MODEL",
            hint="give the model or its program",
        )

    def _schedules(self) -> dict[int, Schedule]:
        from tilewright.schedule.kernel_space import space_of

        return {
            number: self.schedules.get(number)
            or space_of(kernel, self.target, self.threads).default()
            for number, kernel in self.kernels.items()
        }

    def _nests(self) -> Mapping[int, LoopNest]:
        if self.nests:
            return self.nests
        from tilewright.runtime.link import lower_kernel

        schedules = self._schedules()
        return {
            number: lower_kernel(kernel, schedules[number], self.target).nest
            for number, kernel in self.kernels.items()
        }

    def _texts(self) -> Mapping[int, str]:
        if self.llvm:
            return self.llvm
        from tilewright.codegen.llvm import emit_llvm

        return {number: emit_llvm(nest, self.target) for number, nest in self._nests().items()}

    def _parts(self, stage: str) -> dict[int, str]:
        match stage:
            case "kernels":
                return {number: str(kernel) for number, kernel in self.kernels.items()}
            case "loops":
                return {number: str(nest) for number, nest in self._nests().items()}
            case "llvm":
                return dict(self._texts())
            case "asm":
                return _assembly(self._texts(), self.target)
        return {}


def _assembly(texts: Mapping[int, str], target: Target) -> dict[int, str]:
    from tilewright.runtime.build import emit_assembly

    return {number: emit_assembly(text, target) for number, text in texts.items()}


def _names(plan: Plan) -> dict[int, tuple[str, ...]]:
    """What each kernel of a plan computes, over all its calls."""
    from tilewright.ir.plan import KernelCall

    names: dict[int, tuple[str, ...]] = {}
    for step in plan.steps:
        if isinstance(step, KernelCall):
            names[step.kernel] = (*names.get(step.kernel, ()), *step.names)
    return names


def kernel_number(kernel: str, numbers: Sequence[int], names: Mapping[int, Sequence[str]]) -> int:
    """A kernel by number, or by the name of something it computes. Errors: U001."""
    if kernel.isdigit() and int(kernel) in numbers:
        return int(kernel)
    known = {name: number for number, found in names.items() for name in found}
    if kernel in known:
        return known[kernel]
    import difflib

    near = difflib.get_close_matches(kernel, known, 1, 0.4)
    last = max(numbers, default=-1)
    hint = f"did you mean {near[0]}? " if near else ""
    raise UserError(
        "U001",
        f"there is no kernel {kernel!r}",
        where="--kernel",
        hint=f"{hint}kernels are numbered 0 to {last}; `dump --stage plan` names what they compute",
    )


def _render(
    stage: str,
    kernel: str | None,
    names: Mapping[int, Sequence[str]],
    parts: Mapping[int, str],
    plan: Plan | None,
    schedules: Mapping[int, Schedule],
) -> str:
    if stage == "plan":
        return str(plan)
    if stage == "schedule":
        chosen = schedules
        if kernel is not None:
            number = kernel_number(kernel, list(schedules), names)
            chosen = {number: schedules[number]}
        lines = "".join(f"--- schedule {n}\n{schedule}\n" for n, schedule in chosen.items())
        return lines if kernel is not None or plan is None else f"{plan}{lines}"
    mark = "; " if stage == "llvm" else ""
    if kernel is not None:
        return parts[kernel_number(kernel, list(parts), names)]
    return "".join(f"{mark}--- kernel {number}\n{_line(text)}" for number, text in parts.items())


def _line(text: str) -> str:
    return text if text.endswith("\n") else text + "\n"


def _write(
    folder: Path, stage: str, kernel: str | None, text: str, values: Mapping[str, Array]
) -> None:
    """The text, and the constants that it names, into a folder. Errors: U003."""
    from tilewright.runtime.tensors import write_tensors

    name = stage if kernel is None else f"{stage}.{kernel}"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        (folder / f"{name}.{_SUFFIX.get(stage, 'txt')}").write_text(text, encoding="utf-8")
        if values:
            temporary = folder / f".{CONSTANTS}.{os.getpid()}"
            with temporary.open("wb") as file:
                write_tensors(file, values)
            temporary.replace(folder / CONSTANTS)
    except OSError as error:
        raise UserError(
            "U003",
            f"{folder} cannot be written: {error.strerror}",
            where="-o",
            hint="give a folder that can be written",
        ) from error


def dump(model: Any, stage: str, *, kernel: str | None = None, folder: Path | None = None) -> str:
    """The text of one stage of a compiled model; with `folder` also a file, constants beside it.

    Errors: U001 for an unknown kernel, U003 for an unknown stage or an unwritable folder.
    """
    if stage not in DUMP_STAGES:
        raise UserError(
            "U003",
            f"there is no stage {stage!r}",
            where="stage",
            hint="one of " + ", ".join(DUMP_STAGES),
        )
    if stage in ("program", "derived"):
        text = str(model.program)
        values = dict(model.program.values)
    else:
        variant = model.latest
        linked = variant.linked
        printed = Printed(
            "kernels",
            model.target,
            variant.threads,
            variant.plan,
            dict(enumerate(variant.plan.kernels)),
            dict(enumerate(linked.schedules)),
            {number: low.nest for number, low in enumerate(linked.lowered)},
            dict(enumerate(linked.texts)),
        )
        text = printed.dump(stage, kernel=kernel)
        values = dict(variant.program.values)
    if folder is not None:
        used = {key: array for key, array in values.items() if key in text}
        _write(folder, stage, kernel, text, used)
    return text


def _sections(pattern: re.Pattern[str], text: str) -> tuple[str, dict[int, str]]:
    """The text before the first mark, and the text after each mark by its number."""
    pieces = pattern.split(text)
    return pieces[0], {int(n): body for n, body in zip(pieces[1::2], pieces[2::2], strict=True)}


def constants_beside(path: Path) -> dict[str, Array]:
    """The constants that `dump -o` wrote beside a text; nothing where there is no such file."""
    from tilewright.runtime.tensors import read_tensors

    file = path.parent / CONSTANTS
    return dict(read_tensors(file)) if file.is_file() else {}


def load(text: str, *, target: str | None = None, threads: int | None = None) -> Printed | None:
    """What a text holds from the stage `plan` on; None where it is a program or index notation.

    Errors: those of the parsers; S002 for text of an unknown format.
    """
    from tilewright.machine.target import Target, available_cpus

    config = current(target=target, num_threads=threads)
    machine = Target.named(config.target)
    count = config.num_threads or available_cpus()
    body, schedules = _sections(_SCHEDULE, text)
    lines = text.lstrip().splitlines()
    first = lines[0] if lines else ""
    if first.startswith("plan "):
        from tilewright.ir.plan import parse_plan
        from tilewright.schedule.schedule import Schedule

        plan = parse_plan(body)
        return Printed(
            "schedule" if schedules else "plan",
            machine,
            count,
            plan,
            dict(enumerate(plan.kernels)),
            {number: Schedule.parse(line) for number, line in schedules.items()},
        )
    head, parts = _sections(_KERNEL, text)
    if not parts:
        parts = {0: head}
    inner = next(iter(parts.values())).lstrip()
    if inner.startswith("kernel "):
        from tilewright.ir.kernel import parse_kernel

        kernels = {number: parse_kernel(part) for number, part in parts.items()}
        return Printed("kernels", machine, count, kernels=kernels)
    if inner.startswith("nest "):
        from tilewright.ir.nest import parse_nest

        nests = {number: parse_nest(part) for number, part in parts.items()}
        return Printed("loops", machine, count, nests=nests)
    if re.match(r"(;|source_filename|target |define |declare |@|attributes )", inner):
        return Printed("llvm", machine, count, llvm=parts)
    return None
