"""Axis roles of a stage, computed from which operands an index touches.

In: a Kernel (with layouts) and a stage number. Out: `StageRoles`. Invariants: names of roles depend
on incidence alone, never on an operator; an axis of one point has no role.

m-like: an output axis that only operand A uses; n-like: only operand B; batch-like (b): both, or
not a contraction; k-like: a reduce axis. A is the operand that holds the (first) m-like axes; B is
preferably constant, then the one that is contiguous along an n-like axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass
from functools import cached_property
from math import prod

import numpy as np

from tilewright.group.groups import cost
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16
from tilewright.ir.expr import Expr
from tilewright.ir.extent import is_symbolic
from tilewright.ir.kernel import Kernel, int_extent
from tilewright.ir.layout import Layout
from tilewright.ir.program import Definition
from tilewright.ir.ranges import along, coefficient, simplify
from tilewright.ir.words import WORD_BYTES, half_factors, narrow_factors, single_factors
from tilewright.machine.target import Target

__all__ = ["Access", "StageRoles", "scatter_lane", "stage_roles"]

_NEAR = 16  # positions: a vector of 4-byte elements
_SEEN = 4096  # positions of an axis that are looked at


@dataclass(frozen=True)
class Access:
    """One read (or the write) of a tensor: element stride per axis, None where it is not linear in
    it.
    """

    tensor: str
    read: Expr | None
    strides: dict[str, int | None]
    constant: bool
    dtype_bytes: int

    def uses(self, axis: str) -> bool:
        return self.strides.get(axis, 0) != 0

    def is_near(self, axis: str, extents: dict[str, int]) -> bool:
        """Whether neighbours along an axis read what lies close together, though not in a line: a
        vector of them is a load or two, and a shuffle.
        """
        if self.strides.get(axis, 0) is not None or self.read is None or not self.read.args:
            return False
        subscripts = self.read.args[: len(self.read.args) - self.read.attr[1]]
        if [s for s in subscripts if axis in s.indices()] != [subscripts[-1]]:
            return False
        found = along(subscripts[-1], axis, np.arange(min(extents[axis], _SEEN)))
        return found is not None and all(
            int(np.ptp(found[k : k + _NEAR])) < 2 * _NEAR for k in range(0, len(found), _NEAR)
        )

    @property
    def packs(self) -> bool:
        """Whether a copy in panels can be made: it is read by plain axes, each once."""
        if self.read is None or self.read.attr[1]:
            return False
        axes = [x.attr for x in self.read.args if x.op == "index"]
        others = [x for x in self.read.args if x.op != "index"]
        return len(axes) == len(set(axes)) and all(E.int_value(x) == 0 for x in others)


@dataclass(frozen=True)
class StageRoles:
    """What a Space and a default schedule need to know of one stage."""

    anchor: Definition
    extents: dict[str, int]
    out: tuple[str, ...]  # output axes of more than one point, in the output's order
    reduce: tuple[str, ...]
    names: dict[str, str]  # axis -> role name, as m0
    accesses: tuple[Access, ...]
    writes: tuple[Access, ...]
    a: Access | None = None
    b: Access | None = None
    follows: tuple[Access, ...] = ()  # what members after the anchor read from outside
    after: int = 0  # weight of what members after the anchor compute for a point

    @property
    def is_contraction(self) -> bool:
        return self.a is not None and self.b is not None

    @cached_property
    def pairs(self) -> tuple[str, int]:
        """The same for factors of bf16, which matrix registers take two at a time, and dot products
        of some CPUs.
        """
        if not self.is_contraction or half_factors(self.anchor) is None:
            return "", 1
        return self._words()

    @cached_property
    def group(self) -> tuple[str, int]:
        """The reduce axis along which a dot product takes a word of both factors at once, and how
        many positions a word holds; ("", 1) where the factors are no narrow ones.

        One factor is packed for it; the other must hold the axis side by side.
        """
        if not self.is_contraction or narrow_factors(self.anchor) is None:
            return "", 1
        return self._words()

    @cached_property
    def split(self) -> tuple[str, int]:
        """The same for factors of f32, which matrix registers take as sums of bf16
        (ir/pieces.py): both are copied for it, so that neither need hold the axis side by side.
        Constants are left as they are: their pieces would be half as large again.
        """
        if not self.is_contraction or single_factors(self.anchor) is None:
            return "", 1
        assert self.a is not None and self.b is not None
        if self.a.constant or self.b.constant:
            return "", 1
        for axis in sorted(self.reduce, key=lambda x: -self.extents[x]):
            long = not is_symbolic(self.extents[axis]) and self.extents[axis] >= 16
            if long and _is_plain(self.a, axis) and _is_plain(self.b, axis):
                return axis, WORD_BYTES // BF16.bytes
        return "", 1

    @cached_property
    def words(self) -> tuple[str, int]:
        """The axis that matrix registers take in words, and positions of a word, or ("", 1)."""
        return next((x for x in (self.group, self.pairs, self.split) if x[0]), ("", 1))

    def dotted(self, target: Target) -> tuple[str, int]:
        """The axis that dot products of vectors take in words, and positions of a word."""
        halves = target.dots_halves and self.b is not None and self.b.packs
        return self.pairs if halves and self.pairs[0] else self.group

    def dots(self, target: Target, lane: str | None) -> bool:
        """Whether the stage, with these lanes, takes its reduction a word of factors at a time."""
        if not self.dotted(target)[0] or self.a is None or self.b is None:
            return False
        return lane in self.out and self.b.uses(lane) and not self.a.uses(lane)

    def _words(self) -> tuple[str, int]:
        assert self.a is not None and self.b is not None
        size = WORD_BYTES // self.b.dtype_bytes
        for axis in sorted(self.reduce, key=lambda x: -self.extents[x]):
            long = self.extents[axis] >= size and not is_symbolic(self.extents[axis])
            if long and self.a.strides.get(axis) == 1 and self.b.uses(axis):
                return axis, size
        return "", 1

    @cached_property
    def axis_of(self) -> dict[str, str]:
        """Role name -> axis."""
        return {v: k for k, v in self.names.items()}

    def roles(self, kind: str) -> list[str]:
        """Axes whose role is of this kind (m, n, b, k)."""
        return [a for a, r in self.names.items() if r.startswith(kind)]

    def contiguous(self, axis: str) -> float:
        """How much of what is read and written has unit stride along the axis; strided data counts
        against it.

        Every access weighs by its number of elements, the largest as 1; writes count twice.
        """
        sizes = [
            prod(self.extents.get(a, 1) for a in x.strides if x.uses(a))
            for x in (*self.accesses, *self.writes)
        ]
        most = max([1, *sizes])
        score = 0.0
        for x, size in zip((*self.accesses, *self.writes), sizes, strict=True):
            s = x.strides.get(axis, 0)
            weight = (2 if x in self.writes else 1) * size / most
            none = s == 0 or x.is_near(axis, self.extents)
            score += weight * (1 if s == 1 else 0 if none else -1)
        return score


def _is_plain(access: Access, axis: str) -> bool:
    """Whether the axis is one of the subscripts, and in no other."""
    if access.read is None:
        return False
    return [s for s in access.read.args if axis in s.names("index")] == [E.index(axis)]


def _strides(
    read: Expr, layout: Layout | None, extents: dict[str, int], subs: tuple[Expr, ...]
) -> dict[str, int | None]:
    used = {x for s in subs for x in s.names("index")}
    if layout is None:  # a tensor inside the kernel: row-major over its own axes
        return {a: 1 if subs and subs[-1] is E.index(a) else None for a in used}
    ranges = {a: (0, max(0, n - 1)) for a, n in extents.items()}
    address = simplify(layout.within_panels().address(subs), ranges)
    return {a: coefficient(address, E.index(a)) for a in used}


def stage_roles(kernel: Kernel, k: int) -> StageRoles:
    """The roles of stage `k`; found once for a kernel whose sizes are known."""
    key = ("roles", k)
    found: StageRoles | None = kernel.facts.get(key)
    if found is None:
        found = _stage_roles(kernel, k)
        if not kernel.program.dims:  # what is assumed of dims differs from place to place
            kernel.facts[key] = found
    return found


def _stage_roles(kernel: Kernel, k: int) -> StageRoles:
    stage = kernel.stages[k]
    d = kernel.definitions[stage.anchor]
    extents = {a.name: int_extent(a.extent) for a in d.all_axes}
    out = tuple(a.name for a in d.axes if extents[a.name] != 1)
    reduced = tuple(
        a.name for a in (d.reduction.axes if d.reduction else ()) if extents[a.name] != 1
    )
    constants = {t.name for t, _ in kernel.program.constants}
    own = set(stage.members)
    at = stage.members.index(stage.anchor)

    def accessed(bodies: Iterable[Expr]) -> list[Access]:
        found = []
        for r in dict.fromkeys(r for e in bodies for r in e.reads() if r.attr[0] not in own):
            subs = r.args[:-1] if r.attr[1] else r.args
            strides = _strides(r, kernel.layout_of.get(r.attr[0]), extents, subs)
            found.append(Access(r.attr[0], r, strides, r.attr[0] in constants, r.dtype.bytes))
        return found

    accesses = accessed(
        [*d.expressions(), *(kernel.definitions[m].body for m in stage.members[:at])]
    )
    follows = accessed(kernel.definitions[m].body for m in stage.members[at + 1 :])
    writes = []
    for m in stage.members:
        if kernel.is_stored(m):
            md = kernel.definitions[m]
            subs = tuple(a.index for a in md.axes)
            layout = kernel.layout_of.get(m)
            strides = _strides(d.body, layout, extents, subs)
            writes.append(Access(m, None, strides, False, md.dtype.bytes))
    roles = StageRoles(d, extents, out, reduced, {}, tuple(accesses), tuple(writes))
    a, b = _operands(roles)
    counts = {"m": 0, "n": 0, "b": 0, "k": 0}
    names: dict[str, str] = {}
    for axis in out:
        if a is not None and b is not None:
            in_a, in_b = a.uses(axis), b.uses(axis)
            kind = "m" if in_a and not in_b else "n" if in_b and not in_a else "b"
        else:
            kind = "b"
        names[axis] = f"{kind}{counts[kind]}"
        counts[kind] += 1
    for axis in reduced:
        names[axis] = f"k{counts['k']}"
        counts["k"] += 1
    return StageRoles(
        d, extents, out, reduced, names, tuple(accesses), tuple(writes), a, b, tuple(follows),
        sum(cost(kernel.definitions[m].body) for m in stage.members[at + 1 :]),
    )  # fmt: skip


def _operands(r: StageRoles) -> tuple[Access | None, Access | None]:
    """The two operands of a contraction: they share a reduce axis and at least one leaves out an
    output axis.
    """
    body = r.anchor.body
    if (
        not r.reduce
        or r.anchor.reduction is None
        or r.anchor.reduction.monoid != "sum"
        or body.op != "mul"
    ):
        return None, None
    left, right = ([x for x in r.accesses if x.read in set(side.reads())] for side in body.args)
    if len(left) != 1 or len(right) != 1 or left[0] is right[0]:
        return None, None
    x, y = left[0], right[0]
    if not any(x.uses(k) and y.uses(k) for k in r.reduce):
        return None, None
    only_x = [a for a in r.out if x.uses(a) and not y.uses(a)]
    only_y = [a for a in r.out if y.uses(a) and not x.uses(a)]
    if not only_x and not only_y:
        return None, None
    if not only_x or not only_y:  # one operand has no axes of its own: it is B
        return (x, y) if only_x else (y, x)

    def wants_lane(access: Access, own: list[str]) -> float:
        """How well the operand's own output axes serve as lanes."""
        best = 0.0
        for axis in own:
            n = r.extents[axis]
            fit = min(n, 16) / 16
            unit = any(w.strides.get(axis) == 1 for w in r.writes)
            best = max(
                best,
                fit * (1 + 2 * unit + 2 * (access.strides.get(axis) == 1) + 6 * access.constant),
            )
        return best

    return (x, y) if wants_lane(y, only_y) >= wants_lane(x, only_x) else (y, x)


def scatter_lane(kernel: Kernel) -> str | None:
    """The axis of a scatter's source that goes straight along rows of the tensor: positions of it
    never meet, so they are vectors, and blocks of it are independent.
    """
    s = kernel.scatter
    assert s is not None
    layout = kernel.layout_of[s.name]
    extents = {a.name: int_extent(a.extent) for a in s.source}
    uses = [x for sub in s.subscripts for x in sub.indices()]
    straight = [
        sub.attr
        for k, sub in enumerate(s.subscripts)
        if sub.op == "index"
        and layout.stride(k) == 1
        and not is_symbolic(extents.get(sub.attr, 0))
        and not is_symbolic(layout.shape[k])
        and 1 < extents.get(sub.attr, 0) <= layout.shape[k]
    ]
    return straight[0] if straight and uses.count(straight[0]) == 1 else None
