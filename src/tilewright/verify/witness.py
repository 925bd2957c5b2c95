"""What the oracle would say if inexact operands of discrete operations were a little different.

In: a Program and inputs. Out: oracle values, naive values, and `wiggle`: further oracle values,
each with every inexact float operand of a discrete operation (comparison, rounding, narrowing
cast, argmax, extern) moved within the bound of the policy. Invariants: a program whose discrete
operations see exact operands only has no wiggle; statements that nothing moved reaches are
computed once.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, field

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.binding import NAIVE, ORACLE, Array, bind_sizes, gather_arrays
from tilewright.ir.evaluate import Frame, Probe, is_discrete
from tilewright.ir.expr import Expr
from tilewright.ir.interpreter import Runner, last_uses
from tilewright.ir.program import (
    Definition,
    Extern,
    If,
    Program,
    Recurrence,
    Scatter,
    Size,
    Statement,
    While,
    blocks_of,
    defined_by,
    statement_reads,
)
from tilewright.verify.choices import Choice, Order
from tilewright.verify.policy import BILINEAR, FACTOR, UNIT_ROUNDOFF

__all__ = ["References", "references", "shaken", "spreads"]

# Operations that give an exact result for exact operands.
_EXACT = {
    "neg", "abs", "min", "max", "select", "sign", "floor", "ceil", "round", "trunc", "cast", "read",
}  # fmt: skip
_LANES = (1, 2, 4, 8, 16, 32, 64)  # how many partial folds code may keep
_BY_CHANCE = 1.2  # unit roundoffs per square root of the steps: four standard deviations
_CHOOSING = {None, "max", "min", "argmax", "argmin", "all", "any"}


@dataclass(frozen=True)
class References:
    """Values of the results: oracle, naive, and one list per moved run.

    keys: results that are positions in an order, or of a best value -> the judge of such positions.
    doubtful: inexact values decide something, whether the moved runs show a difference or not.
    """

    ref: list[Array]
    naive: list[Array]
    wiggle: list[list[Array]] = field(default_factory=list)
    keys: dict[str, Order | Choice] = field(default_factory=dict)
    doubtful: bool = False


def references(
    program: Program,
    inputs: Mapping[str, Array],
    *,
    values: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    moves: int = 6,
    seed: int = 0,
    bilinear: bool = False,
) -> References:
    """Everything that `policy.compare` needs. bilinear: operands of discrete operations may be
    off by what the policy allows such forms. Errors: those of `run_program`.
    """
    factor = BILINEAR if bilinear else FACTOR
    sizes = bind_sizes(program, {n: np.asarray(a).shape for n, a in inputs.items()}, dims)
    exact = Runner(gather_arrays(program, inputs, values, ORACLE), dict(sizes), ORACLE)
    naive = Runner(gather_arrays(program, inputs, values, NAIVE), dict(sizes), NAIVE)
    moved = [_Moved(exact, np.random.default_rng([seed, k]), k) for k in range(moves)]
    sure = _Sure(exact.arrays)
    last = last_uses(program, list(program.results))
    keys: dict[str, Order | Choice] = {}
    with np.errstate(all="ignore"):
        for k, s in enumerate(program.body):
            keys.update(_ordered(s, exact, naive, sure, factor))
            keys.update(_step(s, exact, naive, moved, sure, factor))
            for name in [n for n, at in last.items() if at == k]:
                exact.arrays.pop(name, None)
                naive.arrays.pop(name, None)
                for m in moved:
                    m.own.pop(name, None)
    used = [m for m in moved if m.alive and any(n in m.own for n in program.results)]
    return References(
        [exact.arrays[n] for n in program.results],
        [naive.arrays[n] for n in program.results],
        [[m.own.get(n, exact.arrays[n]) for n in program.results] for m in used],
        keys,
        any(m.doubtful for m in moved),
    )


def _ordered(
    s: Statement, exact: Runner, naive: Runner, sure: _Sure, factor: float
) -> dict[str, Order]:
    """The `keys` of a statement that orders inexact values."""
    if not isinstance(s, Extern) or s.function not in ("sort", "topk"):
        return {}
    if s.args[0] in sure - sure.stepped:
        return {}
    x, rough = exact.arrays[s.args[0]], naive.arrays[s.args[0]]
    if x.dtype.kind != "f" or rough.shape != x.shape:
        return {}
    given = dict(s.attributes)
    axis = int(given.get("axis", -1))  # type: ignore[arg-type]
    falling = given.get("largest", True) if s.function == "topk" else given.get("descending")
    by = factor * _gap(x, rough, s.results[0].dtype.name)
    return {s.results[1].name: Order(s.args[0], x.copy(), by, axis, bool(falling))}


class _Moved:
    """One moved run: the arrays that differ from the oracle's, and how operands are moved."""

    def __init__(self, exact: Runner, rng: np.random.Generator, number: int) -> None:
        self.exact, self.rng, self.number = exact, rng, number
        self.own: dict[str, Array] = {}
        self.alive = True
        self.doubtful = False  # has it moved anything?

    def noise(self, x: Array, by: float, k: int = 0) -> Array:
        """Operands of two sides moved apart, the best of many pushed back, or all by chance."""
        if self.number < 2 and k >= 0:
            return np.asarray(x + (by if self.number == k % 2 else -by))
        if self.number == 0:
            best = np.max(x, -1, keepdims=True) if k == -1 else np.min(x, -1, keepdims=True)
            return np.where(x == best, x + (2 * by if k == -2 else -2 * by), x)
        if k < 0:  # all amounts, so that each of many nearly equal values comes to be the best
            share = np.asarray(self.rng.uniform(-1, 1, x.shape))
            return np.asarray(x + by * share.astype(x.dtype))
        return np.asarray(x + by * self.rng.choice([-1.0, 1.0], x.shape).astype(x.dtype))

    def run(self, s: Statement, deltas: dict[tuple[Expr, int], float], probed: bool) -> None:
        arrays = dict(self.exact.arrays)
        arrays.update(self.own)
        runner = Runner(arrays, dict(self.exact.sizes), ORACLE)
        if probed:
            self.doubtful = True
            runner.probe = self.probe_of(deltas)
        try:
            runner.statement(s)
        except UserError:  # a moved value led outside a tensor: this run says no more
            self.alive = False
            return
        for t in defined_by(s):
            new, old = arrays[t.name], self.exact.arrays[t.name]
            if new.shape != old.shape or not np.array_equal(
                new, old, equal_nan=new.dtype.kind == "f"
            ):
                self.own[t.name] = new

    def probe_of(self, deltas: Mapping[tuple[Expr, int], float]) -> Probe:
        """Moves operands by up to `deltas`; one run brings those together that are compared for
        equality, for no noise makes two values the same.
        """
        grid = dict[Expr, float]()
        for (e, _), by in deltas.items():
            if self.number == 2 and e.op in ("eq", "ne") and by > 0:
                grid[e] = max(by, grid.get(e, 0.0))

        def probe(e: Expr, k: int, frame: Frame, x: Array) -> Array:
            if e in grid:
                return np.asarray(np.round(x / grid[e]) * grid[e])
            return self.noise(x, deltas[e, k], k) if (e, k) in deltas else x

        return probe

    def run_moved(self, s: Statement, by: Mapping[str, float]) -> None:
        """The statement with tensors that it reads moved by so much, for it alone."""
        self.doubtful |= bool(by)
        kept = dict(self.own)
        for name, delta in by.items():
            self.own[name] = self.noise(self.own.get(name, self.exact.arrays[name]), delta)
        self.run(s, {}, False)
        self.own = {n: a for n, a in self.own.items() if n not in by} | {
            n: kept[n] for n in by if n in kept
        }


def _moves(
    names: Iterable[str], exact: Runner, naive: Runner, sure: _Sure, factor: float
) -> dict[str, float]:
    """By how much each inexact one of these tensors may be off."""
    out = {}
    for name in names:
        x, rough = exact.arrays.get(name), naive.arrays.get(name)
        if x is not None and rough is not None and name not in sure and x.dtype.kind == "f":
            out[name] = factor * _gap(x, rough if rough.shape == x.shape else x, "f32")
    return out


def _definitions(body: Iterable[Statement]) -> Iterator[Definition]:
    """Those of a block, and of the blocks inside it."""
    for s in body:
        yield from (d for d in getattr(s, "definitions", (s,)) if isinstance(d, Definition))
        for block in blocks_of(s):
            yield from _definitions(block.body)


def _is_stepwise(d: Definition) -> bool:
    """Does it choose, or go by a step, where an operand moves?"""
    if d.reduction is not None and d.reduction.monoid in ("argmax", "argmin"):
        return True
    nodes = (n for e in _parts(d) for n in e.walk())
    return any(is_discrete(n) and not (n.op == "cast" and n.dtype.is_float) for n in nodes)


def _step(
    s: Statement,
    exact: Runner,
    naive: Runner,
    moved: list[_Moved],
    sure: _Sure,
    factor: float,
) -> dict[str, Choice]:
    """Run the statement everywhere; the `keys` of one that chooses among inexact values."""
    if isinstance(s, Extern):
        _extern_step(s, exact, naive, moved, sure, factor)
        return {}
    if isinstance(s, Size | If | While):
        _control_step(s, exact, naive, moved, sure, factor)
        return {}
    sites = _sites(s, sure)
    deltas: dict[tuple[Expr, int], float] = {}
    seen: dict[tuple[Expr, int, Frame], Array] = {}

    def record(e: Expr, k: int, frame: Frame, x: Array) -> Array:
        seen[e, k, frame] = x
        return x

    def measure(e: Expr, k: int, frame: Frame, x: Array) -> Array:
        operand = e.args[k] if k >= 0 else e
        known = _is_sure(operand, sure) if k >= 0 else _is_untouched(operand, sure)
        if not known:
            rough = seen.get((e, k, frame))
            if rough is None or rough.shape != x.shape:
                rough = x
            by = factor * _gap(x, rough, operand.dtype.name)
            deltas[e, k] = max(deltas.get((e, k), 0.0), by)
        return x

    naive.probe, exact.probe = (record, measure) if sites else (None, None)
    naive.statement(s)
    exact.statement(s)
    names = statement_reads(s)
    for m in moved:
        if m.alive and (deltas or any(n in m.own for n in names)):
            m.run(s, deltas, bool(deltas))
    definitions = s.definitions if isinstance(s, Recurrence) else (s,)
    for d in definitions:
        if not d.dtype.is_float or _exact_statement(d, sure):
            sure.add(d.name)
            if d.dtype.is_float and not all(_is_untouched(e, sure) for e in _parts(d)):
                sure.stepped.add(d.name)
    return _chosen(s, exact, moved, deltas) if isinstance(s, Definition) else {}


def _chosen(
    s: Definition, exact: Runner, moved: list[_Moved], deltas: Mapping[tuple[Expr, int], float]
) -> dict[str, Choice]:
    """The `keys` of an argmax or argmin of inexact values; `deltas` tells that they are."""
    if not any(k < 0 for _, k in deltas):
        return {}
    bound = exact.bound(s)
    assert isinstance(bound, Definition)
    job = exact.job(bound)
    reads = statement_reads(s)
    runs = [{n: exact.arrays[n] for n in reads}]
    for m in moved:
        if m.alive and any(n in m.own for n in reads):
            runs.append({**runs[0], **{n: m.own[n] for n in reads if n in m.own}})
    return {s.name: Choice(job.split, job.outer, runs, dict(deltas))}


def _extern_step(
    s: Extern,
    exact: Runner,
    naive: Runner,
    moved: list[_Moved],
    sure: _Sure,
    factor: float,
) -> None:
    """An extern may choose by comparing its arguments, so the inexact ones are moved."""
    by = _moves(s.args, exact, naive, sure, factor)
    naive.statement(s)
    exact.statement(s)
    for m in moved:
        if m.alive and (by or any(n in m.own for n in s.args)):
            m.run_moved(s, by)
    for t in s.results:
        if not t.dtype.is_float:
            sure.add(t.name)


def _control_step(
    s: Size | If | While,
    exact: Runner,
    naive: Runner,
    moved: list[_Moved],
    sure: _Sure,
    factor: float,
) -> None:
    """Blocks run as a whole: where a discrete operation stands inside, what they read is moved."""
    by = {}
    if any(_is_stepwise(d) for block in blocks_of(s) for d in _definitions(block.body)):
        by = _moves(sorted(statement_reads(s)), exact, naive, sure, factor)
    naive.statement(s)
    exact.statement(s)
    for m in moved:
        if m.alive and (by or any(n in m.own for n in statement_reads(s))):
            m.run_moved(s, by)
    sure.update(t.name for t in defined_by(s) if not t.dtype.is_float)


def _gap(x: Array, rough: Array, dtype: str) -> float:
    """The error that the policy's bound is a multiple of."""
    both = np.isfinite(x) & np.isfinite(rough)
    gap = float(np.max(np.abs(x[both] - rough[both]), initial=0.0))
    scale = float(np.max(np.abs(x[both]), initial=0.0))
    return max(gap, 8 * UNIT_ROUNDOFF[dtype] * scale)


def _parts(s: Definition | Scatter) -> list[Expr]:
    if isinstance(s, Scatter):
        return [s.body, s.base, *s.subscripts]
    return list(s.expressions())


def _sites(s: Definition | Scatter | Recurrence, sure: _Sure) -> bool:
    """Has the statement a discrete operation with an operand that may be inexact?"""
    for d in s.definitions if isinstance(s, Recurrence) else (s,):
        r = d.reduction if isinstance(d, Definition) else None
        if r is not None and r.monoid in ("argmax", "argmin") and not _is_untouched(d.body, sure):
            return True
        for node in (n for e in _parts(d) for n in e.walk()):
            if is_discrete(node) and not all(_is_sure(a, sure) for a in node.args):
                return True
    return False


class _Sure(set[str]):
    """Tensors without rounding error; `stepped`: the floats among them that go by a step where an
    inexact operand moves (casts to 16 bits, floor), so that an order among them is not sure."""

    def __init__(self, names: Iterable[str]) -> None:
        super().__init__(names)
        self.stepped: set[str] = set()


def _is_untouched(e: Expr, sure: _Sure) -> bool:
    """Is the value free of rounding error, and of steps that follow from it?"""
    if not e.dtype.is_float or e.op == "const":
        return True
    if e.op == "read" and e.attr[0] in sure.stepped:
        return False
    if is_discrete(e):
        return all(_is_untouched(a, sure) for a in e.args)
    return _is_sure(e, sure) and all(_is_untouched(a, sure) for a in e.args)


def _is_sure(e: Expr, sure: _Sure) -> bool:
    """Is the value free of rounding error? A discrete operation's is: its operand moves."""
    if not e.dtype.is_float or e.op == "const" or is_discrete(e):
        return True
    if e.op == "read" and e.attr[0] not in sure:
        return False
    return e.op in _EXACT and all(_is_sure(a, sure) for a in e.args)


def _exact_statement(s: Definition | Scatter, sure: _Sure) -> bool:
    if isinstance(s, Scatter):
        chosen = s.monoid in _CHOOSING
    else:
        chosen = (s.reduction is None or s.reduction.monoid in _CHOOSING) and (
            s.scan is None or s.scan[0] in _CHOOSING
        )
    return chosen and all(_is_sure(e, sure) for e in _parts(s))


def spreads(
    program: Program,
    inputs: Mapping[str, Array],
    *,
    values: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    runs: int = 4,
) -> list[float]:
    """How far each float result moves when every rounding before it falls another way.

    An ill-conditioned result moves by more than the naive evaluation happens to be off.
    """
    ref, others = shaken(program, inputs, values=values, dims=dims, runs=runs)
    out = []
    for k, x in enumerate(ref):
        worst = 0.0
        for y in (o[k] for o in others):
            if x.dtype.kind == "f" and y.shape == x.shape:
                both = np.isfinite(x) & np.isfinite(y)
                worst = max(worst, float(np.max(np.abs(y[both] - x[both]), initial=0.0)))
        out.append(worst)
    return out


def shaken(
    program: Program,
    inputs: Mapping[str, Array],
    *,
    values: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    runs: int = 4,
) -> tuple[list[Array], list[list[Array]]]:
    """The oracle's results, and those of runs in which every rounding falls another way: each
    operation is moved by a few units of roundoff, each tensor by what the naive evaluation is off.
    """
    sizes = bind_sizes(program, {n: np.asarray(a).shape for n, a in inputs.items()}, dims)
    exact = Runner(gather_arrays(program, inputs, values, ORACLE), dict(sizes), ORACLE)
    naive = Runner(gather_arrays(program, inputs, values, NAIVE), dict(sizes), NAIVE)
    moved = []
    for k in range(runs):
        runner = Runner(dict(exact.arrays), dict(sizes), ORACLE)
        runner.shake = shake = _Shake(k)
        moved.append((runner, shake))
    with np.errstate(all="ignore"):
        for s in program.body:
            naive.statement(s)
            exact.statement(s)
            for pair in list(moved):
                runner, shake = pair
                try:
                    runner.statement(s)
                except UserError:
                    moved.remove(pair)
                    continue
                for t in defined_by(s):
                    x, rough = exact.arrays[t.name], naive.arrays[t.name]
                    if t.dtype.is_float and rough.shape == x.shape == runner.arrays[t.name].shape:
                        by = _gap(x, rough, t.dtype.name)
                        runner.arrays[t.name] = shake.move(runner.arrays[t.name], by)
    names = program.results
    return (
        [exact.arrays[n] for n in names],
        [[runner.arrays[n] for n in names] for runner, _ in moved],
    )


class _Shake:
    """Every operation off by a few units of roundoff, and every fold by what its steps may be."""

    def __init__(self, number: int) -> None:
        self.rng = np.random.default_rng(number)
        self.way = 1 - 2 * (number % 2)  # of what drifts

    def __call__(self, e: Expr, x: Array, monoid: str = "", folded: int = 0) -> Array:
        unit = UNIT_ROUNDOFF[e.dtype.name]
        factor = 1 + 4 * unit * np.asarray(self.rng.uniform(-1, 1, x.shape))
        out = np.asarray(x * factor.astype(x.dtype))
        if not folded or not x.size:
            return out
        axes = tuple(range(x.ndim - folded, x.ndim))
        if monoid == "sum":
            # Each step rounds the sum so far. Which sums there are depends on the order: any of
            # the axes may be the outermost one.
            largest = np.abs(x).max(axis=axes, keepdims=True)
            for a in axes:
                parts = x.sum(axis=tuple(k for k in axes if k != a), keepdims=True)
                for y in (parts, parts.cumsum(axis=a)):
                    largest = np.maximum(largest, np.abs(y).max(axis=a, keepdims=True))
            unit = min(unit, UNIT_ROUNDOFF["f32"])  # sums are kept in f32 at least
            step = unit / 2 * np.asarray(self.rng.uniform(-1, 1, x.shape))
            out = np.asarray(out + largest * step.astype(x.dtype))
        return self.drifted(out, monoid, folded)

    def drifted(self, x: Array, monoid: str, folded: int) -> Array:
        """The values, moved so that their fold is off by up to what `_drift` says."""
        flat = x.reshape(*x.shape[: x.ndim - folded], -1)
        first = np.arange(flat.shape[-1]) == 0
        if monoid == "sum":
            moved = np.where(first, flat + self.way * _drift(flat, np.add), flat)
        elif monoid == "prod":
            moved = np.where(first, flat * (1 + self.way * _relative(flat, np.multiply)), flat)
        elif monoid == "logsumexp":
            top = flat.max(-1, keepdims=True)
            terms = np.exp(flat - np.where(np.isfinite(top), top, np.zeros_like(top)))
            moved = flat + self.way * _relative(terms, np.add)
        else:
            return x
        return np.asarray(moved).astype(x.dtype).reshape(x.shape)

    def move(self, x: Array, by: float) -> Array:
        """Each element up or down by the same amount."""
        return np.asarray(x + by * self.rng.choice([-1.0, 1.0], x.shape).astype(x.dtype))


def _drift(x: Array, operation: np.ufunc) -> Array:
    """How far folding the last axis step by step leads from its exact value, in the worst of some
    orders: 1, 2, 4, ... values at a time; NaN where one meets infinity and zero. [..., 1].

    Where terms are alike the roundings of many steps fall the same way, so that they add up; how
    far that leads follows from the order alone. 0 where steps that fall by chance lead as far.
    """
    exact = operation.reduce(x, -1, keepdims=True)
    step = np.float64 if x.dtype == np.longdouble else np.float32
    y, n = x.astype(step), x.shape[-1]
    worst = np.zeros_like(exact)
    for lanes in _LANES:
        if lanes > n:
            break
        whole = n // lanes * lanes
        parts = y[..., :whole].reshape(*y.shape[:-1], -1, lanes)
        ends = operation.accumulate(parts, axis=-2)[..., -1, :]
        sequence = np.concatenate([ends, y[..., whole:]], -1)
        got = operation.accumulate(sequence, axis=-1)[..., -1:]
        worst = np.maximum(worst, np.abs(got - exact))
    unit = UNIT_ROUNDOFF["f64" if step is np.float64 else "f32"]
    largest = np.abs(operation.accumulate(x, axis=-1)).max(-1, keepdims=True)
    by_chance = _BY_CHANCE * unit * np.sqrt(n) * largest
    return np.asarray(np.where(worst <= by_chance, np.zeros_like(worst), worst))


def _relative(x: Array, operation: np.ufunc) -> Array:
    """`_drift` as a share of the exact value."""
    exact = operation.reduce(x, -1, keepdims=True)
    drift = _drift(x, operation)
    share = np.where((exact == 0) & ~np.isnan(drift), np.abs(exact), drift / np.abs(exact))
    return np.asarray(share)
