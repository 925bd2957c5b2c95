"""Groups of definitions in the making, and what the moves that form them ask.

In: a normalized Program and a Target. Out: `Grouping`, the state of the partition; what a
definition is (pointwise, a contraction) and what it costs. Invariant: each definition is in exactly
one group.
"""

from __future__ import annotations

from collections.abc import Set
from dataclasses import dataclass, field, replace

from tilewright.group.normalize import statement_reads
from tilewright.ir import expr as E
from tilewright.ir.expr import TRANSCENDENTAL, Expr
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import Definition, Program, Statement, defined_by
from tilewright.machine.target import Target

__all__ = [
    "Decision",
    "Group",
    "Grouping",
    "StageGroup",
    "cost",
    "descendants",
    "extents_of",
    "is_contraction",
    "is_pointwise",
    "renamed",
]

# Operations that cost tens of instructions a vector; everything else counts as one.
_HEAVY = TRANSCENDENTAL | {"pow", "atan2", "fmod"}


@dataclass
class StageGroup:
    """One loop nest in the making: members in order, the anchor among them."""

    anchor: str
    members: list[str]


@dataclass
class Group:
    """Stages over `shared` axes (names of the first stage's axes), or one statement that stands
    alone. `stored`: what it computes lies in memory as its axes do, in panels, whatever it reads.
    """

    stages: list[StageGroup]
    shared: tuple[str, ...] = ()
    statement: Statement | None = None
    stream: str = ""
    stored: bool = False

    def names(self) -> list[str]:
        if self.statement is not None:
            return [t.name for t in defined_by(self.statement)]
        return [m for s in self.stages for m in s.members]


@dataclass(frozen=True)
class Decision:
    """Why two definitions were or were not put together, in the names of the user's graph."""

    producer: str
    consumer: str
    fused: bool
    reason: str


@dataclass
class Grouping:
    program: Program
    target: Target
    definitions: dict[str, Definition]
    shapes: dict[str, tuple[int, ...]]
    group_of: dict[str, Group] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    _group_reads: dict[int, frozenset[str]] = field(default_factory=dict)
    _index: dict[str, list[str]] | None = None

    def note(self, producer: str, consumer: str, fused: bool, reason: str) -> None:
        self.decisions.append(Decision(producer, consumer, fused, reason))

    def index(self) -> dict[str, list[str]]:
        """Tensor -> names of what is defined by statements that read it."""
        if self._index is None:
            self._index = {}
            for g, d in self.definitions.items():
                for n in d.read_names:
                    self._index.setdefault(n, []).append(g)
            for s in self.program.body:
                if not isinstance(s, Definition):
                    for n in statement_reads(s):
                        self._index.setdefault(n, []).extend(t.name for t in defined_by(s))
        return self._index

    def readers(self, name: str) -> list[str]:
        """Definitions that read a tensor."""
        return [g for g in self.index().get(name, ()) if g in self.definitions]

    def other_readers(self, name: str) -> bool:
        """Is it a result, or read by a statement that is no definition?"""
        if name in self.program.results:
            return True
        return any(
            not isinstance(s, Definition) and name in statement_reads(s) for s in self.program.body
        )

    def group_reads(self, g: Group) -> Set[str]:
        if g.statement is not None:
            return statement_reads(g.statement)
        hit = self._group_reads.get(id(g))
        if hit is None:
            own = g.names()
            hit = frozenset[str]().union(*(self.definitions[m].read_names for m in own)) - set(own)
            self._group_reads[id(g)] = hit
        return hit

    def touch(self, g: Group) -> None:
        """The group's members have changed."""
        self._group_reads.pop(id(g), None)


def cost(e: Expr) -> int:
    """Arithmetic weight of an expression, subscripts excluded."""
    total, stack, seen = 0, [e], set()
    while stack:
        n = stack.pop()
        if id(n) in seen:
            continue
        seen.add(id(n))
        if n.op in ("const", "index", "dim"):
            continue
        if n.op == "read":
            if n.attr[1]:
                total += 1
            total += sum(1 for s in n.args for _ in s.reads())
            continue
        total += (
            12
            if n.op in _HEAVY
            else 3
            if n.op in ("div", "sqrt", "rsqrt", "floordiv", "mod")
            else 1
        )
        stack.extend(n.args)
    return total


def is_pointwise(d: Definition) -> bool:
    return d.reduction is None and d.scan is None


def is_contraction(d: Definition) -> bool:
    """Is it a reduction in which some operand is reused along an output axis (so that it is worth
    blocking)?
    """
    if d.reduction is None:
        return False
    outs = {a.name for a in d.axes if int_extent(a.extent) > 1}
    reads = [r for r in d.body.reads() if r.args]
    used = [{x for s in r.args for x in s.names("index")} for r in reads]
    reduced = {a.name for a in d.reduction.axes}
    return len(reads) >= 2 and any(outs - u and u & reduced for u in used)


def extents_of(d: Definition) -> dict[str, int]:
    return {a.name: int_extent(a.extent) for a in d.all_axes}


def descendants(st: Grouping, g: Group) -> set[int]:
    """Groups that (transitively) read what `g` produces."""
    out: set[int] = set()
    waiting = g.names()
    while waiting:
        for reader in st.index().get(waiting.pop(), ()):
            other = st.group_of[reader]
            if other is not g and id(other) not in out:
                out.add(id(other))
                waiting += other.names()
    return out


def renamed(d: Definition, mapping: dict[str, str]) -> Definition:
    """`d` with its axes renamed."""
    swap = {E.index(a): E.index(b) for a, b in mapping.items() if a != b}
    axes = tuple(replace(a, name=mapping.get(a.name, a.name)) for a in d.axes)
    r = d.reduction
    if r is not None:
        own = {a.name for a in axes}
        names = {a.name: mapping.get(a.name, a.name) for a in r.axes}
        names = {a: f"{a}_r" if b in own else b for a, b in names.items()}
        swap.update({E.index(a): E.index(b) for a, b in names.items() if a != b})
        r = replace(
            r,
            axes=tuple(replace(a, name=names[a.name]) for a in r.axes),
            guard=None if r.guard is None else E.substitute(r.guard, swap),
        )
    scan = None if d.scan is None else (d.scan[0], mapping.get(d.scan[1], d.scan[1]))
    return replace(d, axes=axes, body=E.substitute(d.body, swap), reduction=r, scan=scan)
