"""Plan: the host program of a model: buffers with layouts, constants, and kernel and extern calls
in order, in branches and loops.

In: nothing. Out: `Plan` and its parts, printer, parser, `verify_plan`. Invariants: every step's
operands are declared buffers; a buffer is written before it is read; kernels are numbered once,
however many steps call them; `if`, `else`, `while` and `end` nest.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from functools import cached_property

from tilewright.errors import UserError
from tilewright.ir.dtypes import BOOL, DTYPES, I64, DType
from tilewright.ir.extent import assuming
from tilewright.ir.kernel import Kernel, parse_kernel
from tilewright.ir.layout import Layout
from tilewright.ir.program import Attribute, Dim, attribute_text
from tilewright.ir.program_parser import ProgramParser, parse_dim

__all__ = [
    "PLAN_FORMAT",
    "Control",
    "ExternCall",
    "KernelCall",
    "Plan",
    "PlanBuffer",
    "PlanStep",
    "nested",
    "parse_plan",
    "verify_plan",
]

PLAN_FORMAT = 1


@dataclass(frozen=True)
class PlanBuffer:
    """place: input, output, const (then `constant` is the array's key) or arena."""

    name: str
    dtype: DType
    layout: Layout
    place: str
    constant: str = ""

    def __str__(self) -> str:
        tail = f" @{self.constant}" if self.constant else ""
        return f"{self.place} {self.name}: {self.dtype} {self.layout}{tail}"

    @property
    def bytes(self) -> int:
        return self.layout.size * self.dtype.bytes


@dataclass(frozen=True)
class KernelCall:
    """Run kernel number `kernel`; `buffers` are in the order of the kernel's layouts. `names`: what
    it computes.
    """

    kernel: int
    buffers: tuple[str, ...]
    names: tuple[str, ...] = ()

    def __str__(self) -> str:
        return f"call {self.kernel} ({', '.join(self.buffers)}) for {', '.join(self.names)}"

    @property
    def touches(self) -> tuple[str, ...]:
        """The buffers that it reads or writes."""
        return self.buffers


@dataclass(frozen=True)
class ExternCall:
    """Run an extern's NumPy meaning over row-major buffers."""

    function: str
    args: tuple[str, ...]
    results: tuple[str, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()

    def __str__(self) -> str:
        attributes = ", ".join(f"{k} = {attribute_text(v)}" for k, v in self.attributes)
        arrow = f"({', '.join(self.args)}) -> ({', '.join(self.results)})"
        return f"extern {self.function} {arrow} {{{attributes}}}"

    @property
    def touches(self) -> tuple[str, ...]:
        """The buffers that it reads or writes."""
        return (*self.args, *self.results)


@dataclass(frozen=True)
class Control:
    """What the host program does itself. By kind, with its buffers:

    if (condition), else, end: the steps of a branch.
    while (counter[, condition]) with the most steps as number, end: a loop. The counter, i64[],
    starts at 0 and counts the steps; before each the condition, bool[], is looked at.
    copy (source, target): all bytes. stack (source, target, counter): into the target's row of
    that number. fill (target) with a byte as number. Buffers of these three are row-major.
    """

    kind: str
    buffers: tuple[str, ...] = ()
    number: int = 0

    def __str__(self) -> str:
        match self.kind:
            case "if":
                return f"if {self.buffers[0]}"
            case "while":
                condition = f" if {self.buffers[1]}" if len(self.buffers) > 1 else ""
                return f"while {self.buffers[0]} < {self.number}{condition}"
            case "copy":
                return f"copy {self.buffers[0]} -> {self.buffers[1]}"
            case "stack":
                return f"stack {self.buffers[0]} -> {self.buffers[1]} at {self.buffers[2]}"
            case "fill":
                return f"fill {self.buffers[0]} with {self.number}"
        return self.kind

    @property
    def touches(self) -> tuple[str, ...]:
        """The buffers that it reads or writes."""
        return self.buffers


PlanStep = KernelCall | ExternCall | Control


@dataclass(frozen=True)
class Plan:
    """See the module docstring."""

    name: str
    buffers: tuple[PlanBuffer, ...]
    kernels: tuple[Kernel, ...]
    steps: tuple[PlanStep, ...]
    dims: tuple[Dim, ...] = ()

    def __str__(self) -> str:
        lines = [f"plan {self.name} format {PLAN_FORMAT}"]
        lines += [f"  {d}" for d in self.dims]
        lines += [f"  {b}" for b in self.buffers]
        lines += [f"  {'  ' * depth}{s}" for depth, s in nested(self.steps)]
        text = "\n".join(lines) + "\n"
        for k, kernel in enumerate(self.kernels):
            text += f"--- kernel {k}\n{kernel}"
        return text

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(str(self).encode()).hexdigest()

    @cached_property
    def buffer_of(self) -> dict[str, PlanBuffer]:
        return {b.name: b for b in self.buffers}

    def bind(self, sizes: Mapping[str, int]) -> Plan:
        """The Plan at these sizes of all its dims."""
        if not self.dims:
            return self
        buffers = tuple(replace(b, layout=b.layout.bind(sizes)) for b in self.buffers)
        kernels = tuple(k.bind(sizes) for k in self.kernels)
        return replace(self, buffers=buffers, kernels=kernels, dims=())


def nested(steps: Iterable[PlanStep]) -> Iterator[tuple[int, PlanStep]]:
    """Every step with the number of branches and loops around it."""
    depth = 0
    for s in steps:
        kind = s.kind if isinstance(s, Control) else ""
        depth -= kind in ("else", "end")
        yield max(depth, 0), s
        depth += kind in ("if", "else", "while")


_BUFFER = re.compile(r"(input|output|const|arena) ([\w.]+): (\w+) ([^@]*?)(?: @(\w+))?$")
_CALL = re.compile(r"call (\d+) \(([^)]*)\) for (.*)$")
_CONTROL = re.compile(
    r"if (?P<if>[\w.]+)|(?P<else>else)|(?P<end>end)"
    r"|while (?P<while>[\w.]+) < (?P<most>\d+)(?: if (?P<go>[\w.]+))?"
    r"|copy (?P<copy>[\w.]+) -> (?P<to>[\w.]+)"
    r"|stack (?P<stack>[\w.]+) -> (?P<rows>[\w.]+) at (?P<row>[\w.]+)"
    r"|fill (?P<fill>[\w.]+) with (?P<byte>\d+)"
)
_KINDS = ("if", "else", "end", "while", "copy", "stack", "fill")
_EXTERN = re.compile(r"extern (\w+) \(([^)]*)\) -> \(([^)]*)\) \{(.*)\}$")


def _names(text: str) -> tuple[str, ...]:
    return tuple(x for x in text.split(", ") if x)


def parse_plan(text: str) -> Plan:
    """The Plan of its text.

    Errors: S002 for another format; F010 for a line that is none of a plan's; those of
    `verify_plan`.
    """
    head, *rest = re.split(r"^--- kernel \d+\n", text, flags=re.M)
    lines = head.strip().splitlines() or [""]
    m = re.match(r"plan (\S+) format (\d+)$", lines[0])
    if m is None or int(m.group(2)) != PLAN_FORMAT:
        raise UserError("S002", f"this is not plan text of format {PLAN_FORMAT}", where=lines[0])
    buffers: list[PlanBuffer] = []
    steps: list[PlanStep] = []
    stated = [x.strip() for x in lines[1:]]
    dims = tuple(parse_dim(x) for x in stated if x.startswith("dim "))
    with assuming(dims):
        return _plan_of(m.group(1), stated[len(dims) :], rest, dims, buffers, steps)


def _plan_of(
    name: str,
    lines: list[str],
    rest: list[str],
    dims: tuple[Dim, ...],
    buffers: list[PlanBuffer],
    steps: list[PlanStep],
) -> Plan:
    for line in lines:
        if (b := _BUFFER.match(line)) and b.group(3) in DTYPES:
            buffers.append(
                PlanBuffer(
                    b.group(2),
                    DTYPES[b.group(3)],
                    Layout.parse(b.group(4)),
                    b.group(1),
                    b.group(5) or "",
                )
            )
        elif c := _CALL.match(line):
            steps.append(KernelCall(int(c.group(1)), _names(c.group(2)), _names(c.group(3))))
        elif e := _EXTERN.match(line):
            attributes: list[tuple[str, Attribute]] = []
            p = ProgramParser(e.group(4))
            while p.token.kind != "end":
                key = p.name()
                p.expect("=")
                attributes.append((key, p.attribute()))
                p.accept(",")
            steps.append(
                ExternCall(e.group(1), _names(e.group(2)), _names(e.group(3)), tuple(attributes))
            )
        elif control := _CONTROL.fullmatch(line):
            steps.append(_control(control))
        else:
            raise UserError("F010", f"unknown line in plan text: {line!r}")
    kernels = tuple(parse_kernel(k) for k in rest)
    plan = Plan(name, tuple(buffers), kernels, tuple(steps), dims)
    verify_plan(plan)
    return plan


def _control(m: re.Match[str]) -> Control:
    kind = next(k for k in _KINDS if m.group(k))
    operands = [m.group(g) for g in (kind, "go", "to", "rows", "row") if m.group(g)]
    if kind in ("else", "end"):
        operands = []
    return Control(kind, tuple(operands), int(m.group("most") or m.group("byte") or 0))


def verify_plan(p: Plan) -> None:
    """Check that operands are declared and fit, and that branches and loops nest.

    Errors: P001, P002, P004, naming the step.
    """

    def buffer(name: str, s: PlanStep) -> PlanBuffer:
        b = p.buffer_of.get(name)
        if b is None:
            raise UserError("P004", f"the buffer {name!r} is not declared", where=str(s))
        return b

    def scalar(name: str, dtype: DType, s: PlanStep) -> None:
        b = buffer(name, s)
        if b.dtype is not dtype or b.layout.shape:
            message = f"{name!r} must be {dtype}[], it is {b.dtype} {b.layout}"
            raise UserError("P002", message, where=str(s))

    def plain(name: str, s: PlanStep) -> PlanBuffer:
        b = buffer(name, s)
        if not b.layout.is_row_major:
            raise UserError("P001", f"{name!r} is not row-major", where=str(s))
        return b

    open_: list[str] = []
    for s in p.steps:
        if isinstance(s, KernelCall) and not 0 <= s.kernel < len(p.kernels):
            raise UserError("P004", f"there is no kernel {s.kernel}", where=str(s))
        for name in s.touches:
            buffer(name, s)
        if not isinstance(s, Control):
            continue
        match s.kind:
            case "if":
                scalar(s.buffers[0], BOOL, s)
                open_.append("if")
            case "else":
                if not open_ or open_[-1] != "if":
                    raise UserError("P001", "an else without its if", where=p.name)
                open_[-1] = "else"
            case "while":
                scalar(s.buffers[0], I64, s)
                for name in s.buffers[1:]:
                    scalar(name, BOOL, s)
                open_.append("while")
            case "end":
                if not open_:
                    raise UserError("P001", "an end without a beginning", where=p.name)
                open_.pop()
            case "copy":
                a, b = (plain(name, s) for name in s.buffers)
                if (a.dtype, a.layout.shape) != (b.dtype, b.layout.shape):
                    raise UserError("P002", "a copy between different tensors", where=str(s))
            case "stack":
                scalar(s.buffers[2], I64, s)
                a, b = (plain(name, s) for name in s.buffers[:2])
                if (a.dtype, a.layout.shape) != (b.dtype, b.layout.shape[1:]):
                    raise UserError("P002", "a row of another tensor", where=str(s))
            case "fill":
                plain(s.buffers[0], s)
    if open_:
        raise UserError("P001", f"an {open_[-1]} without its end", where=p.name)
