"""Linear algebra through torch.compile: compiled as a whole, equal to eager execution, errors too."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tilewright.torch as door  # noqa: E402

L = torch.linalg


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    door.reset_reports()
    yield
    torch._dynamo.reset()


def made(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


A, R, W, B = made(2, 5, 5), made(3, 6, 4), made(3, 4), made(2, 5, 3, seed=1)
S = A @ A.mT + torch.eye(5)
U = A.triu() + 4 * torch.eye(5)
BT = B.mT.contiguous()

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "lu_factor": (L.lu_factor, (A,)),
    "lu_factor_tall": (L.lu_factor, (R,)),
    "lu": (L.lu, (R,)),
    "lu_wide": (L.lu, (W,)),
    "lu_unpack": (lambda a: torch.lu_unpack(*L.lu_factor(a)), (R,)),
    "det": (L.det, (A,)),
    "slogdet": (L.slogdet, (A,)),
    "inv": (L.inv, (A,)),
    "solve": (L.solve, (A, B)),
    "solve_vector": (L.solve, (A[0], B[0, :, 0])),
    "solve_broadcast": (L.solve, (A, B[0])),
    "solve_from_the_right": (lambda a, b: L.solve(a, b, left=False), (A, BT)),
    "lu_solve": (lambda a, b: L.lu_solve(*L.lu_factor(a), b), (A, B)),
    "lu_solve_adjoint": (lambda a, b: L.lu_solve(*L.lu_factor(a), b, adjoint=True), (A, B)),
    "cholesky": (L.cholesky, (S,)),
    "cholesky_upper": (lambda s: torch.cholesky(s, upper=True), (S,)),
    "cholesky_solve": (torch.cholesky_solve, (B, L.cholesky(S))),
    "cholesky_inverse": (torch.cholesky_inverse, (L.cholesky(S),)),
    "triangular": (lambda a, b: L.solve_triangular(a, b, upper=True), (U, B)),
    "triangular_right": (
        lambda a, b: L.solve_triangular(a, b, upper=False, left=False), (U.mT.contiguous(), BT),
    ),
    "triangular_unit": (
        lambda a, b: L.solve_triangular(a, b, upper=True, unitriangular=True), (U, B),
    ),
    "triangular_transposed": (lambda a, b: torch.triangular_solve(b, a, transpose=True), (U, B)),
    "qr": (L.qr, (R,)),
    "qr_complete": (lambda r: L.qr(r, mode="complete"), (R,)),
    "qr_wide": (L.qr, (W,)),
    "geqrf": (torch.geqrf, (R,)),
    "householder_product": (lambda r: L.householder_product(*torch.geqrf(r)), (R,)),
    "ormqr": (lambda r, c: torch.ormqr(*torch.geqrf(r), c, True, True), (R, made(3, 6, 2))),
    "ormqr_right": (lambda r, c: torch.ormqr(*torch.geqrf(r), c, False, False), (R, made(3, 2, 6))),
    "empty": (L.inv, (torch.zeros(0, 0),)),
    "det_of_empty": (L.det, (torch.zeros(2, 0, 0),)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_agrees_with_eager(name: str) -> None:
    f, args = CASES[name]
    with torch.no_grad():
        want = f(*args)
        got = torch.compile(f, backend=door.backend, dynamic=False)(*args)
    torch.testing.assert_close(got, want, rtol=2e-4, atol=2e-5)
    assert not {n for r in door.reports() for n in r.handed}


def test_a_hundred_rows() -> None:
    a, b = made(100, 100), made(100, 2, seed=2)
    with torch.no_grad():
        x = torch.compile(L.solve, backend=door.backend, dynamic=False)(a, b)
        want = L.solve(a.double(), b.double())
        eager = (L.solve(a, b) - want).abs().max()
    assert (x - want).abs().max() <= 8 * eager


@pytest.mark.parametrize(
    ("f", "a"),
    [(L.cholesky, -S), (torch.cholesky, -S), (L.inv, torch.zeros(3, 3)), (L.solve, torch.ones(3, 3))],
    ids=["cholesky", "old_cholesky", "inv", "solve"],
)
def test_what_cannot_be_factored_is_an_error_as_in_eager_execution(f: Any, a: Any) -> None:
    given = (a, a) if f is L.solve else (a,)
    with pytest.raises(L.LinAlgError) as eager:
        f(*given)
    with torch.no_grad(), pytest.raises(L.LinAlgError) as ours:
        torch.compile(f, backend=door.backend, dynamic=False)(*given)
    assert str(ours.value) == str(eager.value)


def test_where_it_failed() -> None:
    def f(a: Any) -> Any:
        return L.cholesky_ex(a).info, L.inv_ex(a * 0).info

    with torch.no_grad():
        got = torch.compile(f, backend=door.backend, dynamic=False)(-S)
    assert got[0].tolist() == [1, 1] and got[1].tolist() == [1, 1]
