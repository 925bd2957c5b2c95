"""Proposals: nothing twice, the same for the same seed, and better than chance."""

from __future__ import annotations

from math import log2

import numpy as np

from tilewright.schedule.space import Group, Space
from tilewright.tune.propose import Proposer, Rows


def space() -> Space:
    tiles = tuple((a, b) for a in (1, 2, 4, 8, 16) for b in (16, 32, 64))
    return Space(
        (
            Group(("s0.reg.m0", "s0.reg.n0"), ("tile", "tile"), tiles),
            Group(("s0.order",), ("order",), (("x",), ("y",), ("z",))),
            Group(("s0.tile.m0",), ("tile",), tuple((n,) for n in (32, 64, 128, 256, 512))),
            Group(("s0.nt",), ("flag",), ((0,), (1,))),
        )
    )


def speed(rows: Rows) -> float:
    """A planted time ratio: best at 8x32, order y, tile 128, flag 1."""
    s = space().at(rows)
    out = 1.5 - 0.15 * abs(log2(s.integer("s0.reg.m0")) - 3)
    out -= 0.1 * abs(log2(s.integer("s0.reg.n0")) - 5)
    out -= 0.05 * abs(log2(s.integer("s0.tile.m0")) - 7)
    return out + 0.1 * (s.text("s0.order") == "y") + 0.1 * s.integer("s0.nt")


def flat(rows: Rows) -> float:
    return 0.0


def proposer(seed: int = 0) -> Proposer:
    return Proposer(space(), flat, np.random.default_rng(seed))


def searched(p: Proposer, batches: int) -> float:
    best = 0.0
    base = speed(p.default)
    for _ in range(batches):
        for rows in p.ask(6):
            best = max(best, speed(rows))
            p.tell(rows, speed(rows) / base)
    return best


def test_nothing_is_proposed_twice() -> None:
    p, seen = proposer(), set[Rows]()
    seen.add(p.default)
    for _ in range(12):
        batch = p.ask(8)
        assert not seen & set(batch)
        assert len(set(batch)) == len(batch)
        seen |= set(batch)
        for rows in batch:
            p.tell(rows, 1.0)


def test_equal_seeds_and_results_give_equal_proposals() -> None:
    a, b = proposer(5), proposer(5)
    for _ in range(4):
        x, y = a.ask(6), b.ask(6)
        assert x == y
        for rows in x:
            a.tell(rows, speed(rows))
            b.tell(rows, speed(rows))


def test_it_finds_more_than_random_sampling() -> None:
    found = [searched(proposer(seed), 8) for seed in range(5)]
    rng = np.random.default_rng(0)
    s = space()
    sampled = [
        max(speed(tuple(int(rng.integers(len(g.rows))) for g in s.groups)) for _ in range(48))
        for _ in range(5)
    ]
    assert np.mean(found) >= np.mean(sampled)
    assert max(found) > 1.6  # of 1.7


def test_a_prior_decides_the_first_batch() -> None:
    p = Proposer(space(), lambda rows: float(np.log(speed(rows))), np.random.default_rng(0))
    assert max(speed(r) for r in p.ask(4)) > speed(p.default)


def test_what_was_refused_is_avoided() -> None:
    p = proposer()
    for _ in range(6):
        for rows in p.ask(6):
            is_bad = space().at(rows).text("s0.order") == "z"
            p.tell(rows, None if is_bad else 1.0)
    late = [r for _ in range(3) for r in p.ask(6)]
    assert sum(space().at(r).text("s0.order") == "z" for r in late) <= len(late) // 3


def test_seeds_come_first_and_idle_parameters_do_not_count() -> None:
    def canonical(rows: Rows) -> Rows:
        return (*rows[:2], 0, rows[3])  # the cache block is read by no loop

    p = Proposer(space(), flat, np.random.default_rng(0), canonical)
    wanted = (7, 1, 3, 1)
    p.seed(wanted)
    batch = p.ask(4)
    assert canonical(wanted) in batch
    assert all(r[2] == 0 for r in batch)


def test_a_small_space_is_exhausted() -> None:
    s = Space((Group(("par",), ("choice",), ((1,), (0,), (2,))),))
    p = Proposer(s, flat, np.random.default_rng(0))
    got = [r for _ in range(4) for r in p.ask(8)]
    assert sorted(got) == [(1,), (2,)]
    assert p.is_exhausted
    assert not Proposer(Space(()), flat, np.random.default_rng(0)).ask(3)
