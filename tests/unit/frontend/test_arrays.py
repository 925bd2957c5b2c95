"""Functions written with NumPy, and einsum: compiled results against NumPy's own."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError
from tilewright.frontend.arrays import record
from tilewright.ir.interpreter import run_program

R = np.random.default_rng(0)
A, B, C = (R.standard_normal(s).astype(np.float32) for s in ((4, 6), (6, 5), (4, 5)))
K = R.integers(-5, 6, (4, 6)).astype(np.int32)

FUNCTIONS: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "layer": (lambda a, b: np.maximum(a @ b, 0).sum(axis=1), (A, B)),
    "softmax": (
        lambda a: (lambda e: e / e.sum(axis=-1, keepdims=True))(
            np.exp(a - a.max(axis=-1, keepdims=True))
        ), (A,),
    ),
    "normalized": (lambda a: (a - a.mean(axis=0)) / np.sqrt(((a - a.mean(axis=0)) ** 2).mean(axis=0)), (A,)),
    "promotion": (lambda a, k: k / 2 + a * k, (A, K)),
    "python_numbers": (lambda a: 2 * a - 1.5, (A,)),
    "integers": (lambda k: (k // 3, k % 3, k * k, k.sum(), k.max(axis=1), k.argmax(axis=0)), (K,)),
    "comparison": (lambda a, k: (np.where(a > 0, a, k), (a > 0) & (k != 0), ~(a < 0)), (A, K)),
    "subscripts": (lambda a: (a[1], a[:, ::-2], a[..., 2:5], a[None, -1], a[1:3, 0]), (A,)),
    "layout": (lambda a: (a.T, a.reshape(3, -1), np.swapaxes(a, 0, 1), np.expand_dims(a, 1)), (A,)),
    "joined": (lambda a, b: np.concatenate([a.T, b], axis=1), (A, B)),
    "spread": (lambda a: np.broadcast_to(a[0], (3, 6)) + 1, (A,)),
    "clipped": (lambda a: np.clip(a, -0.5, 0.5), (A,)),
    "types": (lambda a, k: (a.astype(np.float64), k.astype(np.float32) / 3, np.logical_not(k)), (A, K)),
    "an_argument_and_a_constant": (lambda a: (a, np.arange(3)), (A,)),
    "reduce": (lambda a: np.add.reduce(a, axis=1), (A,)),
}  # fmt: skip


@pytest.mark.parametrize("name", FUNCTIONS)
def test_functions(name: str) -> None:
    f, args = FUNCTIONS[name]
    want = f(*args)
    got = tw.function(f)(*args)
    many = isinstance(want, tuple)
    assert isinstance(got, list) == many
    for x, y in zip(want if many else [want], got if many else [got], strict=True):
        x = np.asarray(x)
        assert y.dtype == x.dtype and y.shape == x.shape
        np.testing.assert_allclose(y, x, rtol=1e-5, atol=1e-6)


EINSUMS = [
    ("ij,jk->ik", (A, B)),
    ("ij,jk,ik->", (A, B, C)),
    ("ij,jk,ik->j", (A, B, C)),
    ("ij->ji", (A,)),
    ("ij->", (A,)),
    ("ij,jk", (A, B)),
    ("ij,ij->ij", (A, A)),
    ("ij,kj,lj,mj->iklm", (A, A, A, A)),
    ("ii->i", (A[:, :4],)),
    ("ij,kl->ijkl", (A, C)),
]


@pytest.mark.parametrize(("spec", "operands"), EINSUMS, ids=[s for s, _ in EINSUMS])
def test_einsum(spec: str, operands: tuple[Any, ...]) -> None:
    want = np.einsum(spec, *operands)
    got = tw.einsum(spec, *operands)
    assert got.shape == want.shape and got.dtype == want.dtype
    np.testing.assert_allclose(got, want, rtol=1e-4, atol=1e-4)


def test_the_program_means_the_same() -> None:
    def f(a: Any, b: Any) -> Any:
        return np.tanh(a @ b).sum(axis=0)

    program, single = record(f, [("a", A.shape, A.dtype), ("b", B.shape, B.dtype)])
    assert single
    (got,) = run_program(program, {"a": A, "b": B})
    np.testing.assert_allclose(got, f(A, B), rtol=1e-5)


def test_compiled_once_for_shapes_and_dtypes() -> None:
    calls = []

    @tw.function(threads=1)
    def f(a: Any) -> Any:
        calls.append(a.shape)
        return a + 1

    f(A), f(A * 2), f(B), f(a=A)
    assert calls == [A.shape, B.shape]
    assert f.__name__ == "f" and len(f.models) == 2


def test_out_and_strides() -> None:
    out = np.empty((4, 5), np.float32)
    assert tw.einsum("ij,jk->ik", A, B, out=out) is out
    np.testing.assert_allclose(out, A @ B, rtol=1e-4, atol=1e-5)
    wide = np.repeat(A, 2, axis=1)
    np.testing.assert_allclose(tw.function(lambda a: a * 2)(wide[:, ::2]), A * 2)


def test_the_kind_of_array_comes_back() -> None:
    torch = pytest.importorskip("torch")
    f = tw.function(lambda a, b: (a @ b, a.sum()))
    product, total = f(torch.from_numpy(A), torch.from_numpy(B))
    assert isinstance(product, torch.Tensor) and isinstance(total, torch.Tensor)
    torch.testing.assert_close(product, torch.from_numpy(A @ B))
    out = torch.empty(4, 5)
    assert tw.einsum("ij,jk->ik", torch.from_numpy(A), torch.from_numpy(B), out=out) is out
    torch.testing.assert_close(out, torch.from_numpy(A @ B))
    strided = torch.from_numpy(A).t()
    torch.testing.assert_close(tw.function(lambda a: a + 1)(strided), strided + 1)


@pytest.mark.parametrize(
    ("f", "code", "message"),
    [
        (lambda a: np.linalg.svd(a), "F005", "numpy.svd: no row for this function"),
        (lambda a: np.cbrt(a), "F005", "numpy.cbrt: no row for this function"),
        (lambda a: a if a.sum() > 0 else -a, "F005", "is not known while recording"),
        (lambda a: np.asarray(a), "F005", "is not known while recording"),
        (lambda a: a @ a, "F006", "the contracted sizes: 6 is not 4"),
        (lambda a: a.reshape(5, 5), "F006", "cannot reshape"),
        (lambda a: "text", "R005", "the function returns a str"),
        (lambda a: a[a > 0], "F005", "an index that is no integer or slice"),
    ],
)
def test_what_cannot_be_recorded(f: Any, code: str, message: str) -> None:
    with pytest.raises(UserError) as caught:
        tw.function(f)(A)
    assert caught.value.code == code and message in caught.value.message


def test_einsum_strings_that_make_no_sense() -> None:
    for spec, operands, code in (
        ("ij,j1->i", (A, A), "F010"), ("ij->ij", (A, B), "F006"), ("ij,jk->ik", (A, A), "F006"),
        ("ij->k", (A,), "F010"), ("ijk->i", (A,), "F006"),
    ):  # fmt: skip
        with pytest.raises(UserError) as caught:
            tw.einsum(spec, *operands)
        assert caught.value.code == code, spec
    with pytest.raises(UserError, match="R001"):
        tw.function(lambda a: a)(A, B)
