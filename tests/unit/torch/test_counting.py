"""Histograms, positions of non-zeros, and writes into scalars, through torch.compile."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tilewright.torch as door  # noqa: E402

G = torch.Generator().manual_seed(0)
X, W, P = torch.randn(7, 9, generator=G), torch.rand(7, 9, generator=G), torch.randn(20, 2, generator=G)
EDGES = torch.linspace(-1, 1, 6)
S, I = torch.tensor(2.0), torch.tensor(0)

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "histc": (lambda x: torch.histc(x, 10), (X,)),
    "histc_limits": (lambda x: torch.histc(x, 5, -1.0, 1.0), (X,)),
    "histc_of_one_value": (lambda x: torch.histc(x, 5), (torch.ones(4),)),
    "histc_of_nothing": (lambda x: torch.histc(x, 5), (torch.ones(0),)),
    "histogram": (lambda x: torch.histogram(x, 10), (X,)),
    "histogram_dense": (
        lambda x, w: torch.histogram(x, 10, range=(-1.0, 1.0), weight=w, density=True), (X, W),
    ),
    "histogram_edges": (torch.histogram, (X, EDGES)),
    "histogram_of_nothing": (lambda x: torch.histogram(x, 2), (torch.empty(0),)),
    "histogramdd_of_nothing": (lambda x: torch.histogramdd(x, [2, 3]), (torch.empty(5, 0, 2),)),
    "histogram_on_the_edges": (torch.histogram, (EDGES, EDGES)),
    "histogramdd": (lambda p: torch.histogramdd(p, [4, 5]), (P,)),
    "histogramdd_dense": (
        lambda p, w: torch.histogramdd(p, [4, 5], weight=w, density=True), (P, W[0].repeat(3)[:20]),
    ),
    "histogramdd_edges": (lambda p, a, b: torch.histogramdd(p, [a, b]), (P, EDGES, EDGES * 2)),
    "nonzero_static": (lambda x: torch.nonzero_static(x > 0.5, size=30, fill_value=-7), (X,)),
    "nonzero_static_cut": (lambda x: torch.nonzero_static(x.trunc(), size=5), (X,)),
    "nonzero_static_scalar": (lambda x: torch.nonzero_static(x, size=4), (S,)),
    "scatter_scalar": (lambda x, i, s: torch.scatter(x, 0, i, s), (S, I, S * 2)),
    "scatter_add_scalar": (
        lambda x, i, s: torch.scatter_add(x, 0, i, s),
        (S, torch.tensor([0, 0]), torch.tensor([5.0, 2.0])),
    ),
    "put_scalar": (lambda x, i, s: torch.ops.aten.put(x, i, s, True), (S, I, S * 3)),
    "index_reduce_scalar": (lambda x, i, s: torch.index_reduce(x, 0, i, s, "prod"), (S, I, S * 3)),
}  # fmt: skip


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    door.reset_reports()
    yield
    torch._dynamo.reset()


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_eager(name: str) -> None:
    f, args = CASES[name]
    with torch.no_grad():
        want = f(*args)
        got = torch.compile(f, backend=door.backend, dynamic=False)(*args)
    torch.testing.assert_close(got, want, rtol=1e-5, atol=1e-6)
    assert not {n for r in door.reports() for n in r.handed}
