"""What a Program cannot tell apart, read off its definitions.

In: a Program. Out: sets of axes that may be permuted together, and the inputs in which every result
is affine. Invariant: both are facts, by induction over its definitions, not samples.

An axis class is a set of tensor axes that are only ever walked as one: subscripts that are a bare
index, reductions by a monoid that commutes. Where an index is compared, added to, scanned over, or
the axis belongs to a statement that is no definition, nothing is claimed.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from typing import Any

from tilewright.ir.expr import Expr
from tilewright.ir.program import Definition, Program, statement_reads

__all__ = ["AxisClass", "affine_inputs", "axis_classes"]

_COMMUTES = ("sum", "prod", "max", "min", "all", "any", "logsumexp")
Node = tuple[str, str, Any]


@dataclass(frozen=True)
class AxisClass:
    """Axes (number of input or result, axis) that a permutation moves together."""

    inputs: tuple[tuple[int, int], ...]
    results: tuple[tuple[int, int], ...]


class _Union:
    def __init__(self) -> None:
        self.parent: dict[Node, Node] = {}
        self.tainted: set[Node] = set()

    def find(self, n: Node) -> Node:
        self.parent.setdefault(n, n)
        while self.parent[n] != n:
            self.parent[n] = self.parent[self.parent[n]]
            n = self.parent[n]
        return n

    def join(self, a: Node, b: Node) -> None:
        self.parent[self.find(a)] = self.find(b)


def axis_classes(program: Program) -> list[AxisClass]:
    """Every class that reaches an input and may be permuted."""
    union = _Union()
    tensors = program.tensors
    for s in program.body:
        if isinstance(s, Definition):
            _definition(union, s, tensors)
            continue
        names = {*statement_reads(s), *(t.name for t in getattr(s, "results", ()))}
        names |= {getattr(s, "name", "")} & tensors.keys()
        for name in names & tensors.keys():
            union.tainted |= {("tensor", name, k) for k in range(len(tensors[name].shape))}
    for value in program.values:  # a constant does not move along
        if value in tensors:
            union.tainted |= {("tensor", value, k) for k in range(len(tensors[value].shape))}
    bad = {union.find(n) for n in union.tainted}
    found: dict[Node, tuple[list[tuple[int, int]], list[tuple[int, int]]]] = {}
    results = list(dict.fromkeys(program.results))
    for which, listed in enumerate(([t.name for t in program.inputs], results)):
        for number, name in enumerate(listed):
            for k in range(len(tensors[name].shape)):
                root = union.find(("tensor", name, k))
                if root not in bad:
                    found.setdefault(root, ([], []))[which].append((number, k))
    return [AxisClass(tuple(i), tuple(r)) for i, r in found.values() if i]


def _definition(union: _Union, d: Definition, tensors: Mapping[str, Any]) -> None:
    def variable(name: str) -> Node:
        return ("index", d.name, name)

    extents = {a.name: a.extent for a in d.all_axes}
    for k, a in enumerate(d.axes):
        union.join(("tensor", d.name, k), variable(a.name))
    for a in d.all_axes:
        if list(a.extent.reads()):
            union.tainted |= {variable(x.name) for x in d.all_axes}
    if d.scan is not None:
        union.tainted.add(variable(d.scan[1]))
    if d.reduction is not None and d.reduction.monoid not in _COMMUTES:
        union.tainted |= {variable(a.name) for a in d.reduction.axes}

    def visit(e: Expr) -> None:
        if e.op == "index":
            union.tainted.add(variable(e.attr))
        elif e.op == "read":
            name = e.attr[0]
            shape = tensors[name].shape
            for k, s in enumerate(e.args[: len(shape)]):
                place: Node = ("tensor", name, k)
                if s.op == "index" and extents.get(s.attr) is shape[k]:
                    union.join(place, variable(s.attr))
                else:
                    union.tainted.add(place)
                    visit(s)
            for x in e.args[len(shape) :]:
                visit(x)
        else:
            for x in e.args:
                visit(x)

    for e in d.expressions():
        visit(e)


def affine_inputs(program: Program) -> list[frozenset[str]]:
    """Sets of float inputs, single ones and all of them, in which every result is affine."""
    floats = [t.name for t in program.inputs if t.dtype.is_float]
    sets = [frozenset((n,)) for n in floats]
    if len(floats) > 1:
        sets.append(frozenset(floats))
    return [s for s in sets if _is_affine(program, s)]


def _is_affine(program: Program, inputs: Iterable[str]) -> bool:
    moving = set(inputs)
    for s in program.body:
        if not isinstance(s, Definition):
            if set(statement_reads(s)) & moving:
                return False
            continue
        degree = max((_degree(e, moving) for e in s.expressions()), default=0)
        guard = s.reduction.guard if s.reduction is not None else None
        if degree > 1 or (guard is not None and _degree(guard, moving)):
            return False
        if degree:
            folds = [s.reduction.monoid] if s.reduction is not None else []
            folds += [s.scan[0]] if s.scan is not None else []
            if set(folds) - {"sum"} or any(_degree(a.extent, moving) for a in s.all_axes):
                return False
            moving.add(s.name)
    return True


def _degree(e: Expr, moving: set[str]) -> int:
    """0: independent of the inputs; 1: affine in them; 2: anything else."""
    if e.op == "read":
        inner = max((_degree(x, moving) for x in e.args), default=0)
        return 2 if inner else int(e.attr[0] in moving)
    parts = [_degree(x, moving) for x in e.args]
    most = max(parts, default=0)
    if most == 0:
        return 0
    if e.op in ("add", "sub", "neg"):
        return most
    if e.op == "mul":
        return sum(parts)
    if e.op == "div" and parts[1] == 0:
        return parts[0]
    if e.op == "cast" and e.dtype.is_float:
        return most
    if e.op == "select" and parts[0] == 0:
        return most
    return 2
