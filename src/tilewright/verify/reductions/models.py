"""Self-tests of whole kernels and models: relations between their results, without a reference.

In: something that runs (a compiled or loaded model), what its inputs look like, for learning also
its Program. Out: a `SelfTest`, which prints as JSON, lives in a saved model, and runs anywhere.

What is learned: linear relations with rational coefficients between results at x, r, x+r, x-r, -x,
2x, 0, x+1, the coordinates x, r and the constant 1, for single inputs and for all together; between
neighbours along the axes of a result (the view `local`), between its sums along an axis (`total`);
permutations of axes; and which results are not the same everywhere, as zeros satisfy every linear
relation. A relation is `proved` where the structure of the Program implies it; the rest held at
fresh points, within a tolerance that is kept with it. Whole numbers as inputs make what is
polynomial exact, and its relations are found by exact elimination modulo a prime.
"""

from __future__ import annotations

import hashlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from fractions import Fraction
from typing import Any

import numpy as np

from tilewright.ir.program import Program
from tilewright.verify.generate import default_sizes, index_limits
from tilewright.verify.reductions.field import PRIMES
from tilewright.verify.reductions.learn import null_space, rational
from tilewright.verify.reductions.structure import affine_inputs, axis_classes

__all__ = ["InputSpec", "Outcome", "SelfTest", "Sum", "corrected", "learn_model", "run_self_test"]
__all__ += ["same_bits"]

Array = np.ndarray[Any, np.dtype[Any]]
Run = Callable[[Sequence[Array]], Sequence[Array]]

QUERIES = ("F(x)", "F(r)", "F(x+r)", "F(x-r)", "F(-x)", "F(2x)", "F(0)", "1", "F(x+1)", "x", "r")
# In the view `local`, `[k]` is the neighbour before along axis k; in `total k`, all are sums.
LOCAL = ("F(x)", "F(x)[0]", "F(x)[1]", "F(x)[2]", "x", "x[0]", "x[1]", "x[2]")
TOTAL = ("1", "F(x)", "x")
_POINT = {  # factors of x and r, and what is added
    "F(x)": (1, 0, 0), "F(r)": (0, 1, 0), "F(x+r)": (1, 1, 0), "F(x-r)": (1, -1, 0),
    "F(-x)": (-1, 0, 0), "F(2x)": (2, 0, 0), "F(0)": (0, 0, 0), "F(x+1)": (1, 0, 1),
}  # fmt: skip
_ELEMENTS = 400  # of a result that are looked at
_EPS = 2.0**-24


@dataclass(frozen=True)
class InputSpec:
    """An input: dtype name, shape, and the range of integers."""

    dtype: str
    shape: tuple[int, ...]
    low: int = 0
    high: int = 1


@dataclass(frozen=True)
class Sum:
    """sum of coefficient * query = 0 for result `output`, x and r being the inputs `moved`.

    tolerance: of the residual, relative to the sum of the sizes of the terms.
    """

    moved: tuple[int, ...]
    output: int
    terms: tuple[tuple[int, int, str], ...]  # numerator, denominator, query
    is_proved: bool
    tolerance: float
    view: str = ""

    def __str__(self) -> str:
        words = []
        for up, down, query in self.terms:
            c = Fraction(up, down)
            words.append(f"{'-' if c < 0 else '+'} {'' if abs(c) == 1 else f'{abs(c)} '}{query}")
        who = ", ".join(f"input {k}" for k in self.moved) + (f", {self.view}" if self.view else "")
        return f"result {self.output}, {who}: {' '.join(words).removeprefix('+ ')} = 0"


@dataclass(frozen=True)
class Permutation:
    """Results move with the inputs along these axes; proved from the structure."""

    inputs: tuple[tuple[int, int], ...]
    results: tuple[tuple[int, int], ...]
    tolerance: float

    def __str__(self) -> str:
        moved = [f"input {n} axis {k}" for n, k in self.inputs]
        moved += [f"result {n} axis {k}" for n, k in self.results]
        return f"permutation of {', '.join(moved)}"


@dataclass(frozen=True)
class SelfTest:
    """Everything that is known of one model at fixed sizes."""

    inputs: tuple[InputSpec, ...]
    sums: tuple[Sum, ...] = ()
    permutations: tuple[Permutation, ...] = ()
    varied: tuple[int, ...] = ()  # results whose elements differ from each other

    def to_json(self) -> dict[str, Any]:
        """Plain data."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> SelfTest:
        """The inverse. Errors: KeyError, TypeError, ValueError for anything else."""

        def pairs(x: Any) -> tuple[tuple[int, int], ...]:
            return tuple((int(a), int(b)) for a, b in x)

        inputs = tuple(
            InputSpec(str(i["dtype"]), tuple(map(int, i["shape"])), int(i["low"]), int(i["high"]))
            for i in data["inputs"]
        )
        sums = []
        for s in data["sums"]:
            terms = tuple((int(a), int(b), str(q)) for a, b, q in s["terms"])
            view = str(s["view"])
            known = LOCAL if view == "local" else TOTAL if view.startswith("total ") else QUERIES
            if any(q not in known or b == 0 for _, b, q in terms):
                raise ValueError("a self-test asks for an unknown query")
            moved = tuple(map(int, s["moved"]))
            if any(not 0 <= k < len(inputs) for k in moved) or int(s["output"]) < 0:
                raise ValueError("a self-test moves an input that does not exist")
            sums.append(
                Sum(
                    moved,
                    int(s["output"]),
                    terms,
                    bool(s["is_proved"]),
                    float(s["tolerance"]),
                    view,
                )
            )
        moves = []
        for p in data["permutations"]:
            moves.append(
                Permutation(pairs(p["inputs"]), pairs(p["results"]), float(p["tolerance"]))
            )
            for n, axis in moves[-1].inputs:
                inputs[n].shape[axis]  # an IndexError is for the caller
        return SelfTest(inputs, tuple(sums), tuple(moves), tuple(map(int, data.get("varied", ()))))


@dataclass(frozen=True)
class Outcome:
    """One relation on one set of inputs: its residual relative to what is allowed."""

    relation: str
    ok: bool
    share: float
    detail: str = ""


@dataclass
class _Points:
    """Inputs, and results at the queries, each run once."""

    run: Run
    base: list[Array]
    moved: tuple[int, ...]
    other: list[Array]
    cache: dict[str, list[Array]] = field(default_factory=dict)

    def inputs(self, query: str) -> list[Array]:
        out = list(self.base)
        for k in self.moved:
            x, r = self.base[k], self.other[k]
            a, b, shift = _POINT[query]
            out[k] = (a * x.astype(np.float64) + b * r + shift).astype(x.dtype)
        return out

    def at(self, query: str, output: int, view: str = "") -> Array | None:
        """The result at a query, or a coordinate, in float64; None where there is none."""
        name, _, axis = query.removesuffix("]").partition("[")
        if name == "1":
            value: Array | None = np.ones(self.outputs("F(x)")[output].shape)
        elif name in ("x", "r"):
            value = self._coordinate(name, output)
        else:
            value = np.asarray(self.outputs(name)[output], np.float64)
        if value is None or not view:
            return value
        if view.startswith("total "):
            k = int(view[6:])
            if k >= value.ndim:
                return None
            return np.ones_like(value.sum(k)) if name == "1" else np.asarray(value.sum(k))
        if axis and int(axis) >= value.ndim:
            return None
        return value[tuple(
            slice(0, -1) if axis and k == int(axis) else slice(1, None) for k in range(value.ndim)
        )]  # fmt: skip

    def _coordinate(self, name: str, output: int) -> Array | None:
        if len(self.moved) != 1:
            return None
        x = (self.base if name == "x" else self.other)[self.moved[0]]
        results = self.outputs("F(x)")
        if output >= len(results) or x.shape != results[output].shape:
            return None
        return np.asarray(x, np.float64)

    def outputs(self, query: str) -> list[Array]:
        if query not in self.cache:
            results = self.run([a.copy() for a in self.inputs(query)])
            self.cache[query] = [np.array(y, copy=True) for y in results]
        return self.cache[query]


def _draw(spec: InputSpec, rng: np.random.Generator, whole: bool) -> Array:
    from tilewright.ir.dtypes import DTYPES

    dtype = DTYPES[spec.dtype]
    if dtype.kind == "b":
        return np.asarray(rng.random(spec.shape) < 0.5)
    if dtype.is_int:
        return np.asarray(rng.integers(spec.low, spec.high + 1, spec.shape)).astype(dtype.np)
    if whole:
        return np.asarray(rng.integers(-4, 5, spec.shape)).astype(dtype.np)
    return np.asarray(rng.standard_normal(spec.shape).astype(np.float32)).astype(dtype.np)


def _points(
    run: Run, specs: Sequence[InputSpec], moved: tuple[int, ...], seed: int, whole: bool
) -> _Points:
    rng = np.random.default_rng([seed, *moved])
    base = [_draw(s, rng, whole) for s in specs]
    return _Points(run, base, moved, [_draw(s, rng, whole) for s in specs])


def input_specs(program: Program, sizes: Mapping[str, int]) -> tuple[InputSpec, ...]:
    """What the inputs look like at these sizes."""
    from tilewright.ir.binding import size_of

    known = default_sizes(program) | dict(sizes)
    limits = index_limits(program, known)
    out = []
    for t in program.inputs:
        shape = tuple(size_of(e, known, t) for e in t.shape)
        low, high = limits.get(t.name, (0 if t.dtype.kind == "u" else -9, 9))
        low = max(low, 0) if t.dtype.kind == "u" else low
        out.append(InputSpec(t.dtype.name, shape, low, max(low, high)))
    return tuple(out)


# ---- learning ----------------------------------------------------------------------------------


def learn_model(run: Run, program: Program, sizes: Mapping[str, int] | None = None) -> SelfTest:
    """What holds for `run`, which computes `program` at these sizes and is trusted now."""
    specs = input_specs(program, sizes or {})
    floats = [k for k, t in enumerate(program.inputs) if t.dtype.is_float and t.dtype.bits >= 32]
    affine = affine_inputs(program)
    sets: list[tuple[int, ...]] = [(k,) for k in floats] + (
        [tuple(floats)] if len(floats) > 1 else []
    )
    names = [t.name for t in program.inputs]
    sums: list[Sum] = []
    for moved in sets:
        is_affine = frozenset(names[k] for k in moved) in affine
        sums += _learn_sums(run, specs, moved, is_affine)
    moves = []
    for c in axis_classes(program):
        extent = specs[c.inputs[0][0]].shape[c.inputs[0][1]]
        if extent > 1:
            p = Permutation(c.inputs, c.results, 0.0)
            shares = [_permuted(run, specs, p, seed)[0] for seed in range(2)]
            moves.append(Permutation(c.inputs, c.results, max(8 * max(shares), 64 * _EPS)))
    drawn = [_results(run, specs, seed) for seed in range(4)]
    varied = [k for k in range(len(drawn[0])) if all(_varies(results[k]) for results in drawn)]
    return SelfTest(specs, tuple(sums), tuple(moves), tuple(varied))


def _results(run: Run, specs: Sequence[InputSpec], seed: int) -> list[Array]:
    rng = np.random.default_rng(seed)
    return _copied(run([_draw(s, rng, False) for s in specs]))


def _copied(results: Sequence[Array]) -> list[Array]:
    """The results, which the next run may write over."""
    return [np.array(y, copy=True) for y in results]


def _varies(y: Array) -> bool:
    """Has it numbers that differ?"""
    values = np.ravel(y)
    return bool((values[1:] != values[:1]).any()) and not bool(np.isnan(values).all())


def _learn_sums(
    run: Run, specs: Sequence[InputSpec], moved: tuple[int, ...], is_affine: bool
) -> list[Sum]:
    whole = [_points(run, specs, moved, seed, True) for seed in range(3)]
    out = []
    for output, y in enumerate(whole[0].outputs("F(x)")):
        if y.dtype.kind not in "f" or not y.size:
            continue
        views: list[tuple[str, tuple[str, ...]]] = [("", QUERIES)]
        if len(moved) == 1:
            views += [("local", LOCAL)] if y.ndim and min(y.shape) > 1 else []
            views += [(f"total {k}", TOTAL) for k in range(y.ndim)]
        for view, queries in views:
            out += _learn_view(run, specs, whole, output, view, queries, is_affine)
    return out


def _learn_view(
    run: Run, specs: Sequence[InputSpec], whole: Sequence[_Points], output: int, view: str,
    asked: Sequence[str], is_affine: bool,
) -> list[Sum]:  # fmt: skip
    moved = whole[0].moved
    queries = [q for q in asked if whole[0].at(q, output, view) is not None]
    shapes = {np.asarray(p.at(q, output, view)).shape for p in whole for q in queries}
    if len(shapes) != 1 or len(queries) < 2:
        return []
    columns = _columns(whole, queries, output, view)
    if not columns.size or not np.isfinite(columns).all():
        return []
    out = []
    is_exact = bool((columns == np.rint(columns)).all() and np.abs(columns).max() < 2**24)
    for vector in _exact_null(columns) if is_exact else _float_null(columns):
        terms = [(c, q) for c, q in zip(vector, queries, strict=True) if c]
        if any(c.denominator > 8 or abs(c) > 64 for c, _ in terms):
            continue
        if not any(q.startswith("F(") and q != "F(0)" for _, q in terms):
            continue
        share = max(
            _residual(_points(run, specs, moved, 10 + k, False), output, terms, view)
            for k in range(2)
        )
        if share < 2e-5:
            proved = not view and is_affine and _follows(terms, columns, queries)
            shown = tuple((c.numerator, c.denominator, q) for c, q in terms)
            out.append(Sum(moved, output, shown, proved, max(8 * share, 64 * _EPS), view))
    return out


def _columns(points: Sequence[_Points], queries: Sequence[str], output: int, view: str) -> Array:
    rows = []
    for number, p in enumerate(points):
        values = [np.ravel(np.asarray(p.at(q, output, view))) for q in queries]
        keep = np.random.default_rng(number).permutation(values[0].size)[:_ELEMENTS]
        rows.append(np.stack([v[keep] for v in values], 1))
    return np.concatenate(rows)


def _exact_null(columns: Array) -> list[list[Fraction]]:
    prime = PRIMES[0]
    out = []
    for v in null_space(columns.astype(np.int64) % prime, prime):
        found = [rational(int(c), prime) for c in v]
        if all(c is not None for c in found):
            out.append([c for c in found if c is not None])
    return out


def _float_null(columns: Array) -> list[list[Fraction]]:
    """Columns as combinations of those before them, where least squares gives small fractions."""
    out: list[list[Fraction]] = []
    basis: list[int] = []
    for k in range(columns.shape[1]):
        b = columns[:, k]
        size = float(np.abs(b).max())
        if size == 0:
            out.append([Fraction(int(j == k)) for j in range(columns.shape[1])])
            continue
        if basis:
            a = columns[:, basis]
            x, *_ = np.linalg.lstsq(a, b, rcond=1e-5)
            rounded = [Fraction(float(c)).limit_denominator(4) for c in x]
            value = a @ np.array([float(c) for c in rounded])
            if np.abs(b - value).max() < 1e-4 * size:
                v = [Fraction(0)] * columns.shape[1]
                v[k] = Fraction(1)
                for j, c in zip(basis, rounded, strict=True):
                    v[j] = -c
                out.append(v)
                continue
        basis.append(k)
    return out


def _follows(terms: Sequence[tuple[Fraction, str]], columns: Array, queries: Sequence[str]) -> bool:
    """Does the relation hold for every affine function (with F(0) = 0, where that is so)?"""
    if any(q not in _POINT or _POINT[q][2] for _, q in terms):
        return False
    of_x, of_r = (sum(c * _POINT[q][k] for c, q in terms) for k in range(2))
    constant = sum(c for c, _ in terms)
    is_linear = "F(0)" in queries and not columns[:, queries.index("F(0)")].any()
    return of_x == of_r == 0 and (constant == 0 or is_linear)


# ---- testing -----------------------------------------------------------------------------------


def _residual(
    p: _Points, output: int, terms: Sequence[tuple[Fraction, str]], view: str = ""
) -> float:
    """The largest residual, relative to the largest sum of sizes of the terms of the result."""
    values = [float(c) * np.asarray(p.at(q, output, view)) for c, q in terms]
    with np.errstate(all="ignore"):
        total = np.abs(sum(values))
        size = float(max(np.max(sum(np.abs(v) for v in values)), 1e-30))
        worst = float(np.max(total)) / size
    return worst if worst == worst else np.inf


def _permuted(run: Run, specs: Sequence[InputSpec], p: Permutation, seed: int) -> tuple[float, str]:
    rng = np.random.default_rng([seed, 77])
    base = [_draw(s, rng, False) for s in specs]
    number, axis = p.inputs[0]
    order = rng.permutation(specs[number].shape[axis])
    moved = list(base)
    for n, k in p.inputs:
        moved[n] = np.take(moved[n], order, axis=k)
    plain = [np.array(y, copy=True) for y in run(base)]
    got = [np.array(y, copy=True) for y in run(moved)]
    worst, where = 0.0, ""
    for j, (a, b) in enumerate(zip(plain, got, strict=True)):
        for n, k in p.results:
            if n == j:
                a = np.take(a, order, axis=k)
        if a.dtype.kind in "biu":
            share = float(not np.array_equal(a, b)) * np.inf if a.size else 0.0
            share = 0.0 if share != share else share
        else:
            wide, other = a.astype(np.float64), b.astype(np.float64)
            with np.errstate(all="ignore"):
                size = float(np.nanmax(np.abs(wide), initial=1e-30))
                gap = np.where(
                    (wide == other) | (np.isnan(wide) & np.isnan(other)), 0, wide - other
                )
                share = float(np.max(np.abs(gap), initial=0.0)) / size
            share = np.inf if share != share else share
        if share > worst:
            worst, where = share, f"result {j}"
    return worst, where


def run_self_test(run: Run, test: SelfTest, seeds: int = 2, first_seed: int = 100) -> list[Outcome]:
    """Every relation on fresh inputs, whole numbers and others; and that results repeat."""
    out: list[Outcome] = []
    for seed in range(first_seed, first_seed + seeds):
        rng = np.random.default_rng(seed)
        first = [_draw(s, rng, False) for s in test.inputs]
        second = [_draw(s, rng, False) for s in test.inputs]
        results = _copied(run(first))
        run(second)
        same = _bits(results) == _bits(run(first))
        out.append(Outcome("the same inputs give the same bits", same, 0.0 if same else np.inf))
        for k in test.varied:
            ok = k < len(results) and _varies(results[k])
            relation = f"result {k} is not the same everywhere"
            out.append(Outcome(relation, ok, 0.0 if ok else np.inf))
        points: dict[tuple[tuple[int, ...], bool], _Points] = {}
        for s in test.sums:
            for whole in (True, False):
                key = (s.moved, whole)
                if key not in points:
                    points[key] = _points(run, test.inputs, s.moved, seed, whole)
                terms = [(Fraction(a, b), q) for a, b, q in s.terms]
                share = _residual(points[key], s.output, terms, s.view) / s.tolerance
                out.append(Outcome(str(s), share <= 1, share, "whole numbers" if whole else ""))
        for p in test.permutations:
            worst, where = _permuted(run, test.inputs, p, seed)
            share = worst / p.tolerance
            out.append(Outcome(str(p), share <= 1, share, where))
    return out


def same_bits(runs: Sequence[Run], test: SelfTest, seeds: int = 2) -> list[Outcome]:
    """Do all of `runs` give the same bits? One model with other numbers of threads does."""
    out = []
    for seed in range(seeds):
        rng = np.random.default_rng([seed, 5])
        inputs = [_draw(s, rng, False) for s in test.inputs]
        found = {_bits(run(inputs)) for run in runs}
        ok = len(found) == 1
        relation = "any number of threads gives the same bits"
        out.append(Outcome(relation, ok, 0.0 if ok else np.inf))
    return out


def _bits(results: Sequence[Array]) -> str:
    digest = hashlib.sha256()
    for y in results:
        digest.update(np.ascontiguousarray(y).tobytes())
    return digest.hexdigest()


def corrected(
    run: Run, test: SelfTest, inputs: Sequence[Array], trials: int = 5, seed: int = 0
) -> list[Array]:
    """Results that stay right where `run` is wrong now and then: medians over random reductions.

    A result with a relation F(x) = F(x+r) - F(r) + F(0) is computed from it `trials` times, at
    random points; other results are those of one plain run.
    """
    plain = [np.array(y, copy=True) for y in run(list(inputs))]
    for output in range(len(plain)):
        found = next(
            (s for s in test.sums if s.output == output and not s.view and _reduces(s)), None
        )
        if found is None:
            continue
        terms = {q: Fraction(a, b) for a, b, q in found.terms}
        rng = np.random.default_rng([seed, output])
        votes = []
        for _ in range(trials):
            other = [_draw(s, rng, False) for s in test.inputs]
            p = _Points(run, list(inputs), found.moved, other)
            total = sum(
                float(c) * np.asarray(p.at(q, output)) for q, c in terms.items() if q != "F(x)"
            )
            votes.append(-np.asarray(total) / float(terms["F(x)"]))
        plain[output] = np.median(np.stack(votes), axis=0).astype(plain[output].dtype)
    return plain


def _reduces(s: Sum) -> bool:
    """Is F(x) given by queries that are random whatever x is?"""
    asked = {q for _, _, q in s.terms}
    return (
        "F(x)" in asked and asked <= {"F(x)", "F(r)", "F(x+r)", "F(x-r)", "F(0)"} and len(asked) > 1
    )
