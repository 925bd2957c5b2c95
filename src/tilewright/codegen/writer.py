"""Text of one LLVM function: nested regions, fresh names and value numbering.

In: instructions. Out: lines of LLVM text. Invariants: a *region* is the code of one loop body or
branch; what is written to an outer region while an inner one is open lands before the inner one, so
it dominates it and is computed once (hoisting). Hoisted instructions are free of control flow and
cannot trap.
"""

from __future__ import annotations

from collections.abc import Hashable
from dataclasses import dataclass, field

__all__ = ["Induction", "Module", "Region", "Writer"]


@dataclass(slots=True)
class Induction:
    """A pointer that moves by `increment` bytes each trip: `name` starts as `pointer` + `start`."""

    name: str
    pointer: str
    start: str
    increment: str


@dataclass(slots=True)
class Region:
    """One straight-line stretch with everything nested in it. `label` is its current LLVM block."""

    label: str
    depth: int = 0  # how many regions are around it
    is_open: bool = True  # whether code may still be written to it
    lines: list[str] = field(default_factory=list)
    loads: dict[Hashable, str] = field(default_factory=dict)  # loads that no store has made stale
    inductions: list[Induction] = field(default_factory=list)
    innermost: bool = False  # a loop body without loops in it
    stored: bool = False  # whether something in it writes memory


class Module:
    """Declarations and constants shared by the functions of one module."""

    def __init__(self) -> None:
        self.declarations: dict[str, None] = {}
        self.constants: dict[str, str] = {}

    def declare(self, text: str) -> None:
        """Add `declare ...` once."""
        self.declarations[text] = None

    def constant(self, initializer: str) -> str:
        """The name of a private 64-byte aligned constant with this initializer."""
        name = self.constants.get(initializer)
        if name is None:
            name = self.constants[initializer] = f"@c{len(self.constants)}"
        return name

    @staticmethod
    def _kind(body: str) -> str:
        """Zeros are a variable, because only variables of zeros take no space in the object."""
        return "global" if body.endswith("zeroinitializer") else "unnamed_addr constant"

    def text(self) -> str:
        lines = [
            f"{name} = private {self._kind(body)} {body}, align 64"
            for body, name in self.constants.items()
        ]
        return "\n".join([*lines, *(f"declare {d}" for d in self.declarations)])


class Writer:
    """The regions of one function, outermost first."""

    def __init__(self, module: Module) -> None:
        self.module = module
        self.count = 0
        self.region = Region("entry")  # the innermost open one
        self.regions: list[Region] = [self.region]
        # Value numbering: the region where a value is computed (it dominates the rest of that
        # region, as long as that is open), and its name.
        self._values: dict[Hashable, tuple[Region, str]] = {}

    @property
    def depth(self) -> int:
        """Index of the innermost open region."""
        return self.region.depth

    def fresh(self) -> str:
        self.count += 1
        return f"%v{self.count}"

    def names(self, count: int) -> list[str]:
        """So many fresh names."""
        first = self.count + 1
        self.count += count
        return [f"%v{k}" for k in range(first, self.count + 1)]

    def label(self) -> str:
        self.count += 1
        return f"b{self.count}"

    def line(self, text: str) -> None:
        """Append an instruction without a result to the innermost region."""
        self.region.lines.append("  " + text)

    def op(self, text: str) -> str:
        """Append an instruction to the innermost region and return its name."""
        self.count += 1
        name = f"%v{self.count}"
        self.region.lines.append(f"  {name} = {text}")
        return name

    def op_at(self, depth: int, text: str) -> str:
        """Value-numbered instruction in the region of `depth`: an equal one that dominates is
        reused.
        """
        found = self._values.get(text)
        if found is not None and found[0].is_open and found[0].depth <= depth:
            return found[1]
        self.count += 1
        name = f"%v{self.count}"
        region = self.regions[depth]
        region.lines.append(f"  {name} = {text}")
        self._values[text] = region, name
        return name

    def known(self, key: Hashable) -> str | None:
        """What `remember` put under `key` in a region that is still open."""
        found = self._values.get(key)
        return None if found is None or not found[0].is_open else found[1]

    def remember(self, key: Hashable, value: str, depth: int) -> None:
        """Let `known` answer `value` as long as the region of `depth` is open."""
        self._values[key] = self.regions[depth], value

    def once(self, text: str) -> str:
        """Value-numbered instruction in the innermost region."""
        found = self._values.get(text)
        if found is not None and found[0].is_open:
            return found[1]
        self.count += 1
        name = f"%v{self.count}"
        region = self.region
        region.lines.append(f"  {name} = {text}")
        self._values[text] = region, name
        return name

    def once_both(self, first: str, head: str, tail: str) -> str:
        """Two instructions value-numbered as one: `first`, and `head` + its result + `tail`."""
        key = first, head  # not the text of `first`, whose own result this is not
        found = self._values.get(key)
        if found is not None and found[0].is_open:
            return found[1]
        inner, name = f"%v{self.count + 1}", f"%v{self.count + 2}"
        self.count += 2
        region = self.region
        region.lines += (f"  {inner} = {first}", f"  {name} = {head}{inner}{tail}")
        self._values[key] = region, name
        return name

    def start_block(self, label: str) -> None:
        """Begin a new LLVM block inside the innermost region (its label changes, its values stay
        valid).
        """
        region = self.region
        region.lines.append(f"{label}:")
        region.label = label

    def open(self, label: str, innermost: bool = False) -> Region:
        region = Region(label, len(self.regions), innermost=innermost)
        self.regions.append(region)
        self.region = region
        return region

    def close(self) -> Region:
        """Leave the innermost region; its text is not yet in the outer one."""
        region = self.regions.pop()
        self.region = self.regions[-1]
        region.is_open = False
        if region.stored:
            self.wrote()
        return region

    def wrote(self) -> None:
        """Memory changed: earlier loads may no longer be reused."""
        region = self.region
        region.stored = True
        region.loads.clear()
