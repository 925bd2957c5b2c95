"""Which schedules to try next: a pool around the best ones, sampled by what it promises.

In: a Space, a prior (log of the time ratio to the default, from the analytic cost), results. Out:
batches of row tuples. Invariants: no schedule is proposed twice; equal seeds and results give equal
proposals; parameters that no loop of the schedule reads do not make a schedule another one.

The belief is a Gaussian process over log(default time / time): its mean is the scaled prior, two
schedules correlate as far as their groups agree. Batches are drawn by Thompson sampling, which
spreads them without a parameter for it.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np

from tilewright.schedule.space import Group, Space

__all__ = ["Proposer", "Rows"]

Rows = tuple[int, ...]
Prior = Callable[[Rows], float]
Floats = np.ndarray[Any, np.dtype[np.float64]]

_NOISE = 0.01  # of a measured log ratio, at best
_SPREAD = 0.12  # of a schedule that shares nothing with those measured, times the prior's own range
_POOL = 160
_PARENTS = 4
_NEAR = 20
_SLOW = -0.7  # log ratio given to a candidate that was refused
_WEIGHT = (0.8, 10.0)  # prior weight: mean, and how many results it takes to move it


class _Codes:
    """Rows of a group as points: close rows behave alike."""

    def __init__(self, group: Group) -> None:
        self._group = group
        self._near: dict[int, list[int]] = {}
        columns = []
        for i, kind in enumerate(group.kinds):
            values = [r[i] for r in group.rows]
            if kind == "tile":
                columns.append(np.log2(np.array([float(v) + 1.0 for v in values])))
            else:
                ranks = {v: k for k, v in enumerate(dict.fromkeys(values))}
                columns.append(np.array([3.0 * ranks[v] for v in values]))
        self.points = np.stack(columns, 1) if columns else np.zeros((len(group.rows), 1))
        self.weight = min(1.0, 0.3 + 0.7 * np.log(len(group.rows)) / np.log(60.0))

    def near(self, row: int) -> list[int]:
        """`Group.near`, remembered."""
        if row not in self._near:
            self._near[row] = self._group.near(row)
        return self._near[row]

    def alike(self, a: np.ndarray[Any, Any], b: np.ndarray[Any, Any]) -> Floats:
        gap = self.points[a][:, None, :] - self.points[b][None, :, :]
        return np.asarray(np.exp(-0.5 * (gap**2).sum(-1)))


class Proposer:
    """Ask for batches, tell results; everything of one kernel."""

    def __init__(
        self, space: Space, prior: Prior, rng: np.random.Generator,
        canonical: Callable[[Rows], Rows] | None = None, most: Callable[[Rows], bool] | None = None,
    ) -> None:  # fmt: skip
        self.space, self.prior, self.rng = space, prior, rng
        self.canonical = canonical or (lambda r: r)
        self.allowed = most or (lambda r: True)
        self.default: Rows = self.canonical(tuple(g.start for g in space.groups))
        self.seen: set[Rows] = {self.default}
        self.results: dict[Rows, float] = {self.default: 0.0}
        self._noise: dict[Rows, float] = {self.default: _NOISE}
        self.seeds: list[Rows] = []
        self._codes = [_Codes(g) for g in space.groups]
        self._free = [k for k, g in enumerate(space.groups) if len(g.rows) > 1]
        self._priors: dict[Rows, float] = {}
        self._ranked: dict[int, list[int]] = {}
        self.is_exhausted = not self._free

    # -- results
    def tell(self, rows: Rows, ratio: float | None, noise: float = _NOISE) -> None:
        """Default time / time of a schedule; None where it was refused.

        noise: how far the ratio may be off, relative to it. A second result of equal rows counts
        where it is the surer one.
        """
        rows = self.canonical(rows)
        self.seen.add(rows)
        if rows in self.results and noise > self._noise[rows]:
            return
        self.results[rows] = _SLOW if ratio is None else float(np.log(max(ratio, 0.05)))
        self._noise[rows] = max(_NOISE, noise)

    def same(self, rows: Rows, as_rows: Rows) -> None:
        """`rows` lowers to the nest of `as_rows`."""
        self.seen.add(self.canonical(rows))
        known = self.results.get(self.canonical(as_rows))
        if known is not None:
            self.results[self.canonical(rows)] = known
            self._noise[self.canonical(rows)] = self._noise[self.canonical(as_rows)]

    def seed(self, rows: Rows) -> None:
        """Propose these early."""
        rows = self.canonical(rows)
        if rows not in self.seen and rows not in self.seeds:
            self.seeds.append(rows)

    def skip(self, rows: Rows) -> None:
        """Never propose these."""
        self.seen.add(self.canonical(rows))

    # -- the pool
    def _add(self, pool: dict[Rows, None], rows: Rows) -> None:
        rows = self.canonical(rows)
        if rows not in self.seen and rows not in pool and self.allowed(rows):
            pool[rows] = None

    def _moved(self, rows: Rows, k: int) -> Rows:
        near = self._codes[k].near(rows[k])
        if not near:
            return rows
        return (*rows[:k], int(near[int(self.rng.integers(len(near)))]), *rows[k + 1 :])

    def _pool(self, parents: Sequence[Rows]) -> list[Rows]:
        rng, pool = self.rng, dict[Rows, None]()
        for r in self.seeds:
            self._add(pool, r)
        for parent in parents[:2]:
            for k in self._free:
                near = self._codes[k].near(parent[k])
                for j in rng.permutation(len(near))[:_NEAR]:
                    self._add(pool, (*parent[:k], near[int(j)], *parent[k + 1 :]))
                for row in self._promising(k):
                    self._add(pool, (*parent[:k], row, *parent[k + 1 :]))
        tries = 0
        while len(pool) < _POOL and tries < 2 * _POOL:
            tries += 1
            rows = parents[int(rng.integers(len(parents)))]
            if rng.random() < 0.4 and len(parents) > 1:
                other = parents[int(rng.integers(len(parents)))]
                take = rng.random(len(rows)) < 0.5
                rows = tuple(a if t else b for a, b, t in zip(rows, other, take, strict=True))
            for _ in range(int(rng.integers(1, 4))):
                rows = self._moved(rows, self._free[int(rng.integers(len(self._free)))])
            self._add(pool, rows)
        for _ in range(40):
            k = self._free[int(rng.integers(len(self._free)))]
            row = int(rng.integers(len(self.space.groups[k].rows)))
            self._add(pool, (*parents[0][:k], row, *parents[0][k + 1 :]))
        return list(pool)

    def _promising(self, k: int) -> list[int]:
        """Rows of a large group that the prior likes best, whatever lies near."""
        if k not in self._ranked:
            size, d = len(self.space.groups[k].rows), self.default
            ranked: list[int] = []
            if size > _NEAR:
                ranked = sorted(range(size), key=lambda j: -self._prior((*d[:k], j, *d[k + 1 :])))
            self._ranked[k] = ranked[:_NEAR]
        return self._ranked[k]

    def _prior(self, rows: Rows) -> float:
        if rows not in self._priors:
            self._priors[rows] = float(self.prior(rows))
        return self._priors[rows]

    # -- belief
    def _kernel(self, a: Sequence[Rows], b: Sequence[Rows]) -> Floats:
        x, y = np.array(a), np.array(b)
        total = np.zeros((len(a), len(b)))
        weight = 0.0
        for k in self._free:
            code = self._codes[k]
            total += code.weight * code.alike(x[:, k], y[:, k])
            weight += code.weight
        # Schedules that agree everywhere correlate fully, those that agree nowhere not at all.
        return _SPREAD**2 * (0.7 * total / weight + 0.3 * np.exp(total - weight))

    def ask(self, count: int) -> list[Rows]:
        """Up to `count` new schedules; fewer where the pool has no more."""
        if self.is_exhausted:
            return []
        known = list(self.results)
        y = np.array([self.results[r] for r in known])
        base = self._prior(self.default)
        prior = np.array([self._prior(r) for r in known]) - base
        scale = self._scale(prior, y)
        own = self._kernel(known, known)
        noisy = own + np.diag([self._noise[r] ** 2 for r in known])
        # What is believed of the known ones, not one lucky timing, makes them parents.
        pull = np.linalg.solve(noisy, y - scale * prior)
        belief = scale * prior + own @ pull
        pool = self._pool([known[int(k)] for k in np.argsort(-belief)[:_PARENTS]])
        if not pool:
            self.is_exhausted = True
            return []
        across = self._kernel(pool, known)
        mean = scale * (np.array([self._prior(r) for r in pool]) - base) + across @ pull
        covariance = self._kernel(pool, pool) - across @ np.linalg.solve(noisy, across.T)
        root = np.linalg.cholesky(covariance + 1e-6 * np.eye(len(pool)))
        out: list[int] = []
        place = {r: k for k, r in enumerate(pool)}
        out += [place[r] for r in self.seeds if r in place][: max(1, count // 2)]
        if len(out) < count:
            mean[out] -= 10.0
            out.append(int(np.argmax(mean)))
        for _ in range(8 * count):
            if len(out) >= min(count, len(pool)):
                break
            draw = mean + root @ self.rng.standard_normal(len(pool))
            draw[out] = -np.inf
            out.append(int(np.argmax(draw)))
        chosen = [pool[k] for k in out[:count]]
        self.seen.update(chosen)
        return chosen

    @staticmethod
    def _scale(prior: Floats, y: Floats) -> float:
        """How far the prior is believed: a regression of results on it, drawn to 1."""
        mean, strength = _WEIGHT
        spread = 0.1
        top = float((prior * y).sum()) + strength * spread**2 * mean
        bottom = float((prior * prior).sum()) + strength * spread**2
        return min(1.5, max(0.0, top / bottom))
