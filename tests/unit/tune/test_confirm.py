"""Never slower than the default: what counts as a gain, on recorded timings."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from tilewright.errors import Rejected
from tilewright.tune.bench import Timing
from tilewright.tune.search import NOISE, gain_of, is_gain

# Microseconds of two kernels as they were timed in turn; the second is 10 % faster.
QUIET = Timing(
    (91.2, 90.8, 91.0, 90.9, 91.4, 91.1, 90.7), (100.1, 99.8, 100.4, 100.0, 99.9, 100.6, 100.2)
)
# The same two while another program takes turns on the CPU: most samples are spoiled.
BUSY = Timing(
    (91.5, 280.1, 91.0, 312.7, 130.2, 91.1, 90.9), (101.0, 260.2, 100.3, 305.5, 140.9, 180.3, 100.1)
)
# Equal kernels; the neighbour happened to hit the reference more often.
LUCKY = Timing(
    (100.0, 100.3, 99.9, 100.1, 100.2, 99.8, 100.0), (181.0, 100.2, 190.3, 100.0, 170.7, 100.1, 160.9)
)
# The machine slows down by half during the window; the candidate is as fast as the reference.
DRIFT = Timing(
    (100.0, 110.0, 120.0, 130.0, 140.0, 150.0, 160.0),
    (100.4, 109.6, 120.3, 130.1, 139.5, 150.6, 160.2),
)


def test_a_clear_gain_is_one() -> None:
    assert is_gain(QUIET)
    assert abs(QUIET.ratio - 1.1) < 0.01
    assert is_gain(BUSY)
    assert 1.05 < BUSY.ratio < 1.2


def test_luck_and_drift_are_no_gain() -> None:
    assert not is_gain(LUCKY)
    assert not is_gain(DRIFT)


def test_within_noise_is_no_gain() -> None:
    almost = Timing(tuple([99.0] * 9), tuple([100.0] * 9))
    assert 1.0 < almost.ratio < NOISE
    assert not is_gain(almost)


def test_few_samples_prove_nothing() -> None:
    assert not is_gain(Timing((50.0, 50.0), (100.0, 100.0)))
    assert not is_gain(Timing((), ()))


def test_the_best_of_the_gains() -> None:
    slow = Timing(tuple([120.0] * 7), tuple([100.0] * 7))
    small = Timing(tuple([95.0] * 7), tuple([100.0] * 7))
    assert gain_of([slow, small, QUIET, Rejected("V001", "wrong"), LUCKY]) == 2
    assert gain_of([slow, Rejected("V001", "wrong")]) is None
    assert gain_of([]) is None


TIMES = st.lists(st.floats(1.0, 1e6), min_size=3, max_size=15)


@given(TIMES, TIMES)
def test_a_gain_is_faster_by_every_estimate(mine: list[float], reference: list[float]) -> None:
    n = min(len(mine), len(reference))
    t = Timing(tuple(mine[:n]), tuple(reference[:n]))
    if is_gain(t):
        assert t.ratio >= NOISE
        assert t.quiet_ratio >= NOISE
        assert sum(p > 1.0 for p in t.pairs) > n / 2


@given(TIMES, st.floats(1.0, 1.5))
def test_a_candidate_that_is_never_faster_is_no_gain(times: list[float], more: float) -> None:
    assert not is_gain(Timing(tuple(x * more for x in times), tuple(times)))
