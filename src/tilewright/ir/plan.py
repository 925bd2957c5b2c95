"""Plan: the host program of a model: buffers with layouts, constants, and kernel and extern calls
in order.

In: nothing. Out: `Plan` and its parts, printer and parser. Invariants: every step's operands are
declared buffers; a buffer is written before it is read; kernels are numbered once, however many
steps call them.
"""

from __future__ import annotations

import hashlib
import re
from dataclasses import dataclass
from functools import cached_property

from tilewright.errors import UserError
from tilewright.ir.dtypes import DTYPES, DType
from tilewright.ir.kernel import Kernel, parse_kernel
from tilewright.ir.layout import Layout
from tilewright.ir.program import Attribute, _attribute

__all__ = ["PLAN_FORMAT", "ExternCall", "KernelCall", "Plan", "PlanBuffer", "parse_plan"]

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


@dataclass(frozen=True)
class ExternCall:
    """Run an extern's NumPy meaning over row-major buffers."""

    function: str
    args: tuple[str, ...]
    results: tuple[str, ...]
    attributes: tuple[tuple[str, Attribute], ...] = ()

    def __str__(self) -> str:
        attributes = ", ".join(f"{k} = {_attribute(v)}" for k, v in self.attributes)
        arrow = f"({', '.join(self.args)}) -> ({', '.join(self.results)})"
        return f"extern {self.function} {arrow} {{{attributes}}}"


@dataclass(frozen=True)
class Plan:
    """See the module docstring."""

    name: str
    buffers: tuple[PlanBuffer, ...]
    kernels: tuple[Kernel, ...]
    steps: tuple[KernelCall | ExternCall, ...]

    def __str__(self) -> str:
        lines = [f"plan {self.name} format {PLAN_FORMAT}"]
        lines += [f"  {b}" for b in self.buffers]
        lines += [f"  {s}" for s in self.steps]
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


_BUFFER = re.compile(r"(input|output|const|arena) ([\w.]+): (\w+) ([^@]*?)(?: @(\w+))?$")
_CALL = re.compile(r"call (\d+) \(([^)]*)\) for (.*)$")
_EXTERN = re.compile(r"extern (\w+) \(([^)]*)\) -> \(([^)]*)\) \{(.*)\}$")


def _names(text: str) -> tuple[str, ...]:
    return tuple(x for x in text.split(", ") if x)


def parse_plan(text: str) -> Plan:
    """The Plan of its text.

    Errors: S002 for another format; F010 for a line that is none of a plan's.
    """
    head, *rest = re.split(r"^--- kernel \d+\n", text, flags=re.M)
    lines = head.strip().splitlines() or [""]
    m = re.match(r"plan (\S+) format (\d+)$", lines[0])
    if m is None or int(m.group(2)) != PLAN_FORMAT:
        raise UserError("S002", f"this is not plan text of format {PLAN_FORMAT}", where=lines[0])
    buffers: list[PlanBuffer] = []
    steps: list[KernelCall | ExternCall] = []
    for line in (x.strip() for x in lines[1:]):
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
            from tilewright.ir.program import _ProgramParser

            attributes: list[tuple[str, Attribute]] = []
            p = _ProgramParser(e.group(4))
            while p.token.kind != "end":
                key = p.name()
                p.expect("=")
                attributes.append((key, p.attribute()))
                p.accept(",")
            steps.append(
                ExternCall(e.group(1), _names(e.group(2)), _names(e.group(3)), tuple(attributes))
            )
        else:
            raise UserError("F010", f"unknown line in plan text: {line!r}")
    return Plan(m.group(1), tuple(buffers), tuple(parse_kernel(k) for k in rest), tuple(steps))
