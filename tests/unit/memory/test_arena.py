"""The arena: nothing that lives at the same time overlaps, whatever the sizes."""

from __future__ import annotations

import random

import pytest

from tilewright.memory.arena import ALIGN, Lifetime, Placement, place_buffers


def random_lifetimes(rng: random.Random, count: int, kinds: tuple[str, ...]) -> list[Lifetime]:
    out = []
    sizes = {k: rng.randrange(1, 900) for k in kinds}
    for n in range(count):
        first = rng.randrange(0, 12)
        last = min(12, first + int(rng.expovariate(0.4)))
        kind = rng.choice(kinds)
        size = sizes[kind] if kind else rng.choice((0, 1, 63, 64, 65, rng.randrange(2000)))
        out.append(Lifetime(f"b{n}", size, first, last, kind))
    return out


def check(lifetimes: list[Lifetime], placed: Placement) -> None:
    assert set(placed.offsets) == {x.name for x in lifetimes}
    for x in lifetimes:
        at = placed.offsets[x.name]
        assert at >= 0
        assert at % ALIGN == 0
        assert at + x.bytes <= placed.size
        for y in lifetimes:
            other = placed.offsets[y.name]
            apart = at + x.bytes <= other or other + y.bytes <= at
            if x is y or apart:
                continue
            # They share memory: never at one time, and buffers with a halo only with their like.
            assert x.last < y.first or y.last < x.first
            if x.kind or y.kind:
                assert x.kind == y.kind
                assert at == other
    assert placed.size >= placed.lower_bound


@pytest.mark.parametrize("seed", range(60))
def test_random_instances(seed: int) -> None:
    rng = random.Random(seed)
    kinds = ("",) if seed % 3 == 0 else ("", "", "halo a", "halo b")
    lifetimes = random_lifetimes(rng, rng.randrange(1, 40), kinds)
    placed = place_buffers(lifetimes)
    check(lifetimes, placed)
    assert place_buffers(lifetimes) == placed


def test_nothing() -> None:
    assert place_buffers([]) == Placement({}, 0, 0)


def test_a_chain_needs_two_places() -> None:
    chain = [Lifetime(f"b{k}", 640, k, k + 1) for k in range(10)]
    placed = place_buffers(chain)
    check(chain, placed)
    assert placed.size == 1280 == placed.lower_bound


def test_a_small_buffer_fits_beside_a_large_one() -> None:
    lifetimes = [Lifetime("a", 1024, 0, 1), Lifetime("b", 512, 1, 2), Lifetime("c", 1024, 2, 3)]
    placed = place_buffers(lifetimes)
    check(lifetimes, placed)
    assert placed.size == 1536


def test_halos_of_one_layout_share_in_turn() -> None:
    lifetimes = [
        Lifetime("a", 100, 0, 1, "h"),
        Lifetime("b", 100, 2, 3, "h"),
        Lifetime("c", 100, 2, 3, "g"),
        Lifetime("d", 100, 1, 2, "h"),
    ]
    placed = place_buffers(lifetimes)
    check(lifetimes, placed)
    assert placed.offsets["a"] == placed.offsets["b"]
    assert len(set(placed.offsets.values())) == 3
