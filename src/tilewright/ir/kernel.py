"""Kernel: the unit that is scheduled, lowered, built and timed.

In: nothing. Out: `Stage`, `Kernel`, its printer and parser. Invariants: extents are constants or
expressions over the dims of the kernel's program; names are canonical (t0, t1, ... for tensors in
order of use, a0, a1, ... for axes), so equal work has equal text; every stage's definitions share
their output axes' names; the `shared` axes are output axes of every stage, with one meaning in all
of them.

A kernel runs its stages in order, for each point (or block) of the shared axes. A stage is one loop
nest: its anchor is the reduction (or the first definition where there is none), `members` are
computed tile by tile along with it: those before the anchor feed it, those after it are its
epilogue. A tensor that only members of its own stage read stays in registers; one that other stages
read, and the kernel does not return, lives in scratch.

Along a `stream` axis the stages between run block by block: reductions over it are folded, what has
it as an output axis exists for one block only (derive/stream.py says when that is allowed).
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.extent import assuming, extent_of
from tilewright.ir.layout import Layout
from tilewright.ir.program import Definition, Program, Scatter, Statement
from tilewright.ir.program_parser import parse_program

__all__ = ["KERNEL_FORMAT", "Kernel", "Stage", "parse_kernel"]

KERNEL_FORMAT = 1


@dataclass(frozen=True)
class Stage:
    """One loop nest: members in order and which of them is the anchor."""

    anchor: str
    members: tuple[str, ...]

    def __str__(self) -> str:
        return f"stage {self.anchor} of {', '.join(self.members)}"


@dataclass(frozen=True)
class Kernel:
    """Definitions, how they are staged, and the layouts of every tensor that crosses the kernel's
    border.

    sequence: the axis of a recurrence around all stages, or "" (then stages may read earlier steps
    of each other). stream: the axis that is cut into blocks inside a point of the shared axes, or
    "".
    """

    program: Program
    stages: tuple[Stage, ...]
    layouts: tuple[tuple[str, Layout], ...]
    shared: tuple[str, ...] = ()
    sequence: str = ""
    stream: str = ""

    def __str__(self) -> str:
        lines = [f"kernel format {KERNEL_FORMAT}:"]
        lines += [f"  shared {', '.join(self.shared)}"] if self.shared else []
        lines += [f"  sequence {self.sequence}"] if self.sequence else []
        lines += [f"  stream {self.stream}"] if self.stream else []
        lines += [f"  {s}" for s in self.stages]
        lines += [f"  layout {n}: {layout}" for n, layout in self.layouts]
        return "\n".join(lines) + "\n" + str(self.program)

    @cached_property
    def key(self) -> str:
        """Content key, constants by hash."""
        return hashlib.sha256(str(self).encode()).hexdigest()

    @cached_property
    def task_key(self) -> str:
        """Key of the work: which operands are constant counts, their values do not."""
        text = str(self)
        for _, key in self.program.constants:
            text = text.replace(f"@{key}", "@")
        return hashlib.sha256(text.encode()).hexdigest()

    @cached_property
    def definitions(self) -> Mapping[str, Definition]:
        """Definitions by name; a scatter has none."""
        out: dict[str, Definition] = {}
        for s in self.program.body:
            for d in getattr(s, "definitions", (s,)):
                if isinstance(d, Definition):
                    out[d.name] = d
        return out

    @cached_property
    def layout_of(self) -> Mapping[str, Layout]:
        return dict(self.layouts)

    @cached_property
    def scatter(self) -> Scatter | None:
        """The scatter of a scatter kernel."""
        first: Statement = self.program.body[0]
        return first if isinstance(first, Scatter) else None

    @cached_property
    def extents(self) -> Mapping[str, int]:
        """Axis name -> extent, over all definitions."""
        out: dict[str, int] = {}
        with assuming(self.program.dims):
            for d in self.definitions.values():
                for a in d.all_axes:
                    out[a.name] = int_extent(a.extent)
        return out

    @cached_property
    def facts(self) -> dict[object, Any]:
        """What other modules found out about the kernel, so that they need not do so again."""
        return {}

    def bind(self, sizes: Mapping[str, int]) -> Kernel:
        """The kernel at these sizes of all its dims."""
        if not self.program.dims:
            return self
        layouts = tuple((n, x.bind(sizes)) for n, x in self.layouts)
        return replace(self, program=self.program.bind(sizes), layouts=layouts)

    def stage_of(self, name: str) -> int:
        """The number of the stage that computes a tensor, -1 for an input."""
        for k, s in enumerate(self.stages):
            if name in s.members:
                return k
        return -1

    def is_stored(self, name: str) -> bool:
        """Does the tensor leave its stage's registers?"""
        if name in self.program.results or self.sequence:
            return True
        r = self.definitions[name].reduction
        if self.stream and r is not None and self.stream in {a.name for a in r.axes}:
            return True
        k = self.stage_of(name)
        return any(
            r.attr[0] == name
            for j, s in enumerate(self.stages)
            if j != k
            for m in s.members
            for r in self.definitions[m].reads()
        )


def int_extent(e: Expr) -> int:
    """The value of an extent; an `Extent` where it is symbolic. Errors: P001 for a dim of which
    nothing is assumed.
    """
    v = E.int_value(e)
    return extent_of(e) if v is None else v


def parse_kernel(text: str) -> Kernel:
    """The Kernel of its text. Errors: S002 for another format; those of `parse_program`."""
    head, _, rest = text.partition("\nprogram ")
    lines = [line.strip() for line in head.strip().splitlines()] or [""]
    if lines[0] != f"kernel format {KERNEL_FORMAT}:":
        raise UserError(
            "S002", f"this is not kernel text of format {KERNEL_FORMAT}", where=lines[0]
        )
    shared: tuple[str, ...] = ()
    sequence = stream = ""
    stages, layouts = [], []
    program = parse_program("program " + rest)
    for line in lines[1:]:
        word, _, tail = line.partition(" ")
        if word == "shared":
            shared = tuple(tail.split(", "))
        elif word == "sequence":
            sequence = tail
        elif word == "stream":
            stream = tail
        elif word == "stage":
            anchor, _, members = tail.partition(" of ")
            stages.append(Stage(anchor, tuple(members.split(", "))))
        elif word == "layout":
            name, _, layout = tail.partition(": ")
            with assuming(program.dims):
                layouts.append((name, Layout.parse(layout)))
        else:
            raise UserError("F010", f"unknown line in kernel text: {line!r}")
    return Kernel(program, tuple(stages), tuple(layouts), shared, sequence, stream)
