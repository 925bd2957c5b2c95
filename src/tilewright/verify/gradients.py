"""Where a Program's values stop being finite, and how inputs should move so that they are.

In: a Program, inputs. Out: the first statement where a value that is not finite arises from finite
ones, and a gradient for every float input that leads out of its domain; a search goes the other
way. Invariants: infinities that the text itself holds (masks, folds of nothing) arise nowhere;
loops of blocks pass no gradient on, the chosen block of a branch does.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tilewright.ir.binding import ORACLE, Array, bind_sizes, gather_arrays, size_of
from tilewright.ir.evaluate import Evaluator, Frame
from tilewright.ir.expr import Expr
from tilewright.ir.interpreter import Runner
from tilewright.ir.monoids import fold, identity_array
from tilewright.ir.program import (
    Axis,
    Definition,
    Extern,
    If,
    Program,
    Recurrence,
    Scatter,
    Statement,
    defined_by,
)
from tilewright.verify.slopes import directions, fits, fold_slopes, prefix_slopes, slopes

__all__ = ["Fault", "first_fault", "gradients_of"]

_MOST_POINTS = 1 << 20  # of a statement that passes a gradient on
_STEEP = 1e6


@dataclass(frozen=True)
class Fault:
    """A tensor in which values that are not finite arise; `by`: float input or constant -> the
    gradient of how far they are out of the domain.
    """

    tensor: str
    by: dict[str, Array]


@dataclass(frozen=True)
class _Alias:
    """A result of a branch is what its block handed out."""

    name: str
    source: str


@dataclass
class _Gradients:
    """Gradients by tensor, collected from the last statement to the first."""

    runner: Runner
    by: dict[str, Array] = field(default_factory=dict)

    def add(self, name: str, g: Array) -> None:
        """Add to what is known of a tensor."""
        g = np.clip(np.nan_to_num(g, posinf=_STEEP, neginf=-_STEEP), -_STEEP, _STEEP)
        self.by[name] = self.by[name] + g if name in self.by else g

    # ---- statements ----

    def back(self, s: Statement | _Alias) -> None:
        """From the gradients of what a statement defines to those of what it reads."""
        match s:
            case _Alias():
                if s.name in self.by:
                    self.add(s.source, self.by[s.name])
            case Definition():
                if s.name in self.by and s.dtype.is_float:
                    bound = self.runner.bound(s)
                    assert isinstance(bound, Definition)
                    self.definition(bound, _frame(bound.all_axes), self.by[s.name])
            case Recurrence():
                self.recurrence(s)
            case Scatter():
                if s.name in self.by and s.dtype.is_float:
                    bound = self.runner.bound(s)
                    assert isinstance(bound, Scatter)
                    self.scatter(bound, self.by[s.name])
            case Extern():
                self.extern(s)
            case _:
                pass

    def definition(self, d: Definition, frame: Frame, up: Array) -> None:
        if not 0 < frame.size <= _MOST_POINTS:
            return
        local = _Local(d, self.runner, frame)
        self.reads(local, d.body, local.contributions(up))

    def recurrence(self, s: Recurrence) -> None:
        bound = self.runner.bound(s)
        assert isinstance(bound, Recurrence)
        names = [d.name for d in bound.definitions]
        if not any(n in self.by for n in names):
            return
        for t in reversed(range(size_of(bound.axis.extent, {}))):
            for d in reversed(bound.definitions):
                up = self.by.get(d.name)
                if up is None or not up[t].any() or not d.dtype.is_float:
                    continue
                frame = _frame(d.all_axes)
                frame = Frame(frame.names, ((t, t + 1), *frame.ranges[1:]))
                self.definition(d, frame, up[t : t + 1])

    def scatter(self, s: Scatter, up: Array) -> None:
        target = _frame(s.axes)
        if target.size:
            local = _Local(Definition(s.name, s.dtype, s.axes, s.base), self.runner, target)
            self.reads(local, s.base, np.broadcast_to(up, target.shape))
        source = _frame(s.source)
        if not 0 < source.size <= _MOST_POINTS:
            return
        local = _Local(Definition(s.name, s.dtype, s.source, s.body), self.runner, source)
        places = [local.evaluator.value(e, source) for e in s.subscripts]
        at, inside = _clipped(places, up.shape, source.shape)
        g = np.where(inside, up[at], 0.0)
        if s.monoid is not None:
            out = self.runner.arrays[s.name][at]
            g = g * fold_slopes(s.monoid, np.broadcast_to(local.values[s.body], g.shape), out)
        self.reads(local, s.body, g)

    def extern(self, s: Extern) -> None:
        up = self.by.get(s.results[0].name)
        if up is None or s.function not in ("sort", "topk"):
            return
        x, at = self.runner.arrays[s.args[0]], self.runner.arrays[s.results[1].name]
        axis = int(dict(s.attributes).get("axis", -1))  # type: ignore[arg-type]
        g = np.zeros(x.shape)
        np.put_along_axis(g, at, up, axis)
        self.add(s.args[0], g)

    # ---- expressions ----

    def reads(self, local: _Local, root: Expr, g: Array) -> None:
        """From a gradient of an expression to those of the tensors that it reads."""
        self.spread(local, root, {root: np.asarray(np.broadcast_to(g, local.frame.shape))})

    def spread(self, local: _Local, root: Expr, known: dict[Expr, Array]) -> None:
        """`known`: nodes below `root` -> their gradients over the frame, so far."""
        values = local.values
        for node in reversed(list(root.walk())):
            g = known.pop(node, None)
            if g is None or not node.dtype.is_float or not g.any():
                continue
            if node.op == "read":
                self.read(local, node, g, known)
                continue
            if node.op == "select":
                chosen = values[node.args[0]]
                parts: list[Array] = [np.where(chosen, g, 0.0), np.where(chosen, 0.0, g)]
                operands = node.args[1:]
            elif node.op == "cast":
                parts, operands = [g], node.args
            else:
                args = [values[a] for a in node.args]
                parts = [_times(g, d) for d in slopes(node.op, args, values[node])]
                operands = node.args
            for a, part in zip(operands, parts, strict=False):
                _into(known, a, part)

    def read(self, local: _Local, node: Expr, g: Array, known: dict[Expr, Array]) -> None:
        name, padded = node.attr
        array = self.runner.arrays[name]
        places = [local.values[a] for a in node.args[: array.ndim]]
        at, inside = _clipped(places, array.shape, g.shape)
        if padded:
            _into(known, node.args[-1], np.where(inside, 0.0, g))
        if array.size:
            flat = np.ravel_multi_index(at, array.shape) if at else np.zeros(g.shape, np.intp)
            weights = np.where(inside, g, 0.0).astype(np.float64)
            total = np.bincount(flat.reshape(-1), weights.reshape(-1), array.size)
            self.add(name, total.reshape(array.shape))


class _Local:
    """One definition over a frame: the value of every node, and which contributions count."""

    def __init__(self, d: Definition, runner: Runner, frame: Frame) -> None:
        self.d, self.frame = d, frame
        self.evaluator = Evaluator(runner.arrays, ORACLE, d, False)
        self.values = self.evaluator.every(d.body, frame)
        self.array = runner.arrays.get(d.name)
        self.inner = len(d.reduction.axes) if d.reduction is not None else 0

    def counted(self) -> Array:
        r = self.d.reduction
        if r is None or r.guard is None:
            return np.ones(self.frame.shape, np.bool_)
        guard = self.evaluator.value(r.guard, self.frame)
        return np.asarray(np.broadcast_to(guard, self.frame.shape))

    def folded(self) -> tuple[Array, Array]:
        """What the body contributes, and the fold of it, with folded axes of length 1."""
        x = np.broadcast_to(self.values[self.d.body], self.frame.shape)
        r = self.d.reduction
        if r is None:
            return x, x
        if r.guard is not None:
            nothing = identity_array(r.monoid, self.d.dtype, (), x.dtype)
            x = np.where(self.counted(), x, nothing)
        if r.monoid in ("argmax", "argmin"):
            return x, x
        out = fold(r.monoid, x, self.inner, False)
        return x, out.reshape((*out.shape, *(1,) * self.inner))

    def contributions(self, up: Array) -> Array:
        """From a gradient of the tensor to that of the body."""
        x, out = self.folded()
        if self.d.scan is not None and self.array is not None:
            monoid, name = self.d.scan
            axis = [a.name for a in self.d.axes].index(name)
            before = out.reshape(up.shape)
            up = prefix_slopes(monoid, before, self.array, axis, up)
        up = up.reshape((*up.shape, *(1,) * self.inner))
        if self.d.reduction is None:
            return up
        return np.where(self.counted(), _times(up, fold_slopes(self.d.reduction.monoid, x, out)), 0)

    def needed(self, start: Array) -> dict[Expr, Array]:
        """Where the value of each node is needed, if the body's is needed at `start`."""
        need = {self.d.body: start}
        for node in reversed(list(self.d.body.walk())):
            here = need.get(node)
            if here is None:
                continue
            for k, a in enumerate(node.args):
                part = here
                if node.op == "select" and k:
                    chosen = self.values[node.args[0]]
                    part = here & (chosen if k == 1 else ~chosen)
                elif node.op == "read" and node.attr[1] and k == len(node.args) - 1:
                    shape = self.evaluator.arrays[node.attr[0]].shape
                    places = [self.values[b] for b in node.args[:-1]]
                    part = here & ~_clipped(places, shape, self.frame.shape)[1]
                need[a] = need[a] | part if a in need else part
        return need

    def faults(self) -> dict[Expr, Array]:
        """Nodes -> gradients of how far operands are out of what gives a finite value."""
        out: dict[Expr, Array] = {}
        need = self.needed(self.counted())
        for node in self.d.body.walk():
            operands = [a for a in node.args if a.dtype.is_float]
            if not node.dtype.is_float or node.op in ("read", "select") or not operands:
                continue
            y = self.values[node]
            bad = need[node] & ~fits(y, node.dtype)
            for a in operands:
                bad = bad & fits(self.values[a], a.dtype)
            if bad.any():
                args = [self.values[a] for a in operands]
                for a, d in zip(operands, directions(node.op, args, y), strict=True):
                    _into(out, a, np.where(bad, d, 0.0))
        return out or self.overflow()

    def overflow(self) -> dict[Expr, Array]:
        """The same of a body whose fold, prefix or storing makes something infinite of it."""
        x = np.broadcast_to(self.values[self.d.body], self.frame.shape)
        if self.array is None or not self.d.dtype.is_float or not self.d.body.dtype.is_float:
            return {}
        if self.array.shape != self.frame.shape[: len(self.d.axes)]:
            return {}
        bad = ~fits(self.array, self.d.dtype)
        good = fits(x, self.d.body.dtype) | ~self.counted()
        good = np.asarray(good.all(tuple(range(len(self.d.axes), x.ndim))))
        if self.d.scan is not None:
            axis = [a.name for a in self.d.axes].index(self.d.scan[1])
            bad = np.asarray(bad.any(axis, keepdims=True))
            good = np.asarray(good.all(axis, keepdims=True))
        bad = (bad & good).reshape((*bad.shape, *(1,) * self.inner)) & self.counted()
        return {self.d.body: np.where(bad, np.sign(x), 0.0)} if bad.any() else {}


def _into(known: dict[Expr, Array], e: Expr, g: Array) -> None:
    if e.dtype.is_float:
        known[e] = known[e] + g if e in known else g


def _times(g: Array, d: Array | float) -> Array:
    """The product; no slope, however steep, makes something of no gradient."""
    steep = np.nan_to_num(np.asarray(d, np.float64), posinf=_STEEP, neginf=-_STEEP)
    return np.asarray(np.where(g == 0, 0.0, g * np.clip(steep, -_STEEP, _STEEP)))


def _frame(axes: tuple[Axis, ...]) -> Frame:
    ranges = tuple((0, size_of(a.extent, {})) for a in axes)
    return Frame(tuple(a.name for a in axes), ranges)


def _clipped(
    places: list[Array], shape: tuple[int, ...], full: tuple[int, ...]
) -> tuple[tuple[Array, ...], Array]:
    """Subscripts over a whole frame, moved inside the shape, and which of them were inside."""
    inside = np.ones(full, np.bool_)
    at = []
    for p, n in zip(places, shape, strict=True):
        inside = inside & (p >= 0) & (p < n)
        at.append(np.broadcast_to(np.clip(p, 0, max(n - 1, 0)), full))
    return tuple(at), inside


@dataclass
class _Trace:
    """A run of a Program that keeps every tensor, and what was run, the chosen blocks in place."""

    runner: Runner
    left: list[Statement | _Alias]
    done: list[Statement | _Alias] = field(default_factory=list)

    @staticmethod
    def of(program: Program, inputs: Mapping[str, Array], dims: Mapping[str, int] | None) -> _Trace:
        """Errors: those of `run_program`."""
        sizes = bind_sizes(program, {n: np.asarray(a).shape for n, a in inputs.items()}, dims)
        arrays = gather_arrays(program, inputs, None, ORACLE)
        return _Trace(Runner(arrays, dict(sizes), ORACLE), list(reversed(program.body)))

    def __iter__(self) -> Iterator[Statement]:
        """Run one statement after the other."""
        while self.left:
            s = self.left.pop()
            if isinstance(s, If):
                chosen = s.then if self.runner.arrays[s.condition][()] else s.orelse
                for t, name in zip(s.results, chosen.results, strict=True):
                    self.left.append(_Alias(t.name, name))
                self.left += reversed(chosen.body)
                continue
            self.done.append(s)
            if isinstance(s, _Alias):
                self.runner.arrays[s.name] = self.runner.arrays[s.source]
                continue
            self.runner.statement(s)
            yield s


def gradients_of(
    program: Program,
    inputs: Mapping[str, Array],
    up: Mapping[str, Array],
    dims: Mapping[str, int] | None = None,
) -> dict[str, Array]:
    """Tensor -> the gradient of a sum of elements, each times its number in `up`.

    Errors: those of `run_program`.
    """
    trace = _Trace.of(program, inputs, dims)
    with np.errstate(all="ignore"):
        for _ in trace:
            pass
        gradients = _Gradients(trace.runner, dict(up))
        for s in reversed(trace.done):
            gradients.back(s)
    return gradients.by


def first_fault(
    program: Program,
    inputs: Mapping[str, Array],
    *,
    dims: Mapping[str, int] | None = None,
    passed: Collection[str] = (),
) -> Fault | None:
    """The first tensor, but those of `passed`, in which a value that is not finite arises.

    Errors: those of `run_program`.
    """
    trace = _Trace.of(program, inputs, dims)
    given = {t.name for t in program.inputs if t.dtype.is_float}
    with np.errstate(all="ignore"):
        for s in trace:
            for t in defined_by(s):
                if not t.dtype.is_float or t.name in passed:
                    continue
                if fits(trace.runner.arrays[t.name], t.dtype).all():
                    continue
                gradients = _arising(s, t.name, trace.runner)
                if gradients is not None:
                    for earlier in reversed(trace.done[:-1]):
                        gradients.back(earlier)
                    return Fault(t.name, {n: g for n, g in gradients.by.items() if n in given})
    return None


def _arising(s: Statement, name: str, runner: Runner) -> _Gradients | None:
    """Gradients of what `s` reads where it makes values that are not finite; None where these come
    from what it reads, or from its text.
    """
    gradients = _Gradients(runner)
    bound = runner.bound(s)
    parts: list[tuple[Definition, Frame]] = []
    match bound:
        case Definition():
            parts = [(bound, _frame(bound.all_axes))]
        case Recurrence():
            parts = [(d, _frame(d.all_axes)) for d in bound.definitions if d.name == name]
        case Scatter():
            both = ((bound.source, bound.body), (bound.axes, bound.base))
            parts = [(Definition("", bound.dtype, axes, e), _frame(axes)) for axes, e in both]
        case _:
            return None
    for d, frame in parts:
        if 0 < frame.size <= _MOST_POINTS:
            local = _Local(d, runner, frame)
            known = local.faults()
            if known:
                full = {e: np.asarray(np.broadcast_to(g, frame.shape)) for e, g in known.items()}
                gradients.spread(local, d.body, full)
                if isinstance(bound, Recurrence):  # through the steps before
                    gradients.recurrence(bound)
                return gradients
    return None
