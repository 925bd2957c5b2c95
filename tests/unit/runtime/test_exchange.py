"""Arrays in and out: DLPack, buffers, strides, the caller's kind; what cannot be read is typed."""

from __future__ import annotations

import array
import importlib.util
import os
import subprocess
import sys
from collections.abc import Callable
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError

A = np.arange(12, dtype=np.float32).reshape(3, 4)


@pytest.fixture(scope="module")
def doubled() -> Any:
    return tw.compile("x: f32[3, 4]; y[i, j] = 2.0 * x[i, j]")


class Strided:
    """Only `__dlpack__`: what another library has."""

    def __init__(self, held: Any) -> None:
        self.held = held
        self.shape, self.dtype = held.shape, held.dtype

    def __dlpack__(self, **names: Any) -> Any:
        return self.held.__dlpack__(**names)

    def __dlpack_device__(self) -> Any:
        return self.held.__dlpack_device__()


def test_buffers_and_dlpack(doubled: Any) -> None:
    wide = np.repeat(A, 2, axis=1)
    rows = array.array("f", A.ravel().tolist())
    for given in (
        A, A.T.copy().T, wide[:, ::2], memoryview(A), memoryview(rows).cast("B").cast("f", [3, 4]),
        Strided(A), Strided(wide[:, ::2]), np.broadcast_to(A[:1], (3, 4)),
    ):  # fmt: skip
        wanted = 2 * np.asarray(given.held if isinstance(given, Strided) else given)
        np.testing.assert_array_equal(doubled(given), wanted)
        np.testing.assert_array_equal(tw.function(lambda a: 2 * a)(given), wanted)


def test_a_result_is_given_away_by_dlpack_and_lives_on(doubled: Any) -> None:
    first = np.from_dlpack(Strided(doubled(A)))
    kept = first.copy()
    for k in range(5):  # the memory is not written again while somebody reads it
        doubled(A + k + 1)
    np.testing.assert_array_equal(first, kept)


TORCH: dict[str, Callable[[Any], Any]] = {
    "plain": lambda t: t.arange(12.0).reshape(3, 4),
    "transposed": lambda t: t.arange(12.0).reshape(4, 3).t(),
    "every second": lambda t: t.arange(24.0).reshape(3, 8)[:, 1::2],
    "spread": lambda t: t.arange(3.0).reshape(3, 1).expand(3, 4),
    "negative": lambda t: t._neg_view(t.arange(12.0).reshape(3, 4)),
    "bfloat16": lambda t: t.arange(12.0).reshape(3, 4).bfloat16(),
    "half": lambda t: t.arange(12.0).reshape(3, 4).half(),
    "integers": lambda t: t.arange(12).reshape(3, 4),
    "empty": lambda t: t.zeros(0, 4),
    "scalar": lambda t: t.tensor(3.0),
}


@pytest.mark.parametrize("name", TORCH)
def test_tensors_of_pytorch(name: str) -> None:
    torch = pytest.importorskip("torch")
    x = TORCH[name](torch)
    got = tw.function(lambda a: a * 2)(x)
    assert isinstance(got, torch.Tensor) and got.dtype == x.dtype
    torch.testing.assert_close(got, x * 2, rtol=0, atol=0)
    out = torch.empty(x.shape, dtype=x.dtype)
    assert tw.function(lambda a: a * 2)(x, out=out) is out
    torch.testing.assert_close(out, got, rtol=0, atol=0)


def test_out_of_another_library_than_the_inputs(doubled: Any) -> None:
    torch = pytest.importorskip("torch")
    out = torch.zeros(3, 4)
    assert doubled(A, out=out) is out
    np.testing.assert_array_equal(out.numpy(), 2 * A)
    plain = np.zeros((3, 4), np.float32)
    assert doubled(torch.from_numpy(A), out=plain) is plain
    np.testing.assert_array_equal(plain, 2 * A)
    both = tw.function(lambda a: (a + 1, a * 2))
    held = (torch.zeros(3, 4), np.zeros((3, 4), np.float32))
    assert both(A, out=held) is held
    np.testing.assert_array_equal(held[0].numpy(), A + 1)
    np.testing.assert_array_equal(held[1], A * 2)


def test_an_input_may_be_the_result(doubled: Any) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(A.copy())
    assert doubled(x, out=x) is x
    np.testing.assert_array_equal(x.numpy(), 2 * A)
    y = np.arange(20, dtype=np.float32)
    doubled(y[:12].reshape(3, 4), out=y[4:16].reshape(3, 4))  # they overlap
    np.testing.assert_array_equal(y[4:16], np.arange(0, 24, 2))


def test_gradients_are_not_lost_in_silence(doubled: Any) -> None:
    torch = pytest.importorskip("torch")
    x = torch.ones(3, 4, requires_grad=True)
    fresh = tw.function(lambda a: a + 1)
    for call in (lambda: doubled(x), lambda: fresh(x)):
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.code == "R005" and "detach" in caught.value.message
    with pytest.raises(UserError) as caught:
        doubled(A, out=torch.ones(3, 4, requires_grad=True))
    assert caught.value.code == "R006"
    for mode in (torch.no_grad, torch.inference_mode):
        with mode():
            assert doubled(x).tolist() == (x * 2).tolist()
            out = torch.zeros(3, 4, requires_grad=True)
            assert doubled(x, out=out) is out and out.tolist() == (x * 2).tolist()


def test_tensors_are_taken_without_python(doubled: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    torch = pytest.importorskip("torch")
    x, out = torch.from_numpy(A), torch.zeros(3, 4)
    doubled(x, out=out)
    with torch.inference_mode():
        made_there = torch.ones(3, 4)
    detached = torch.ones(3, 4, requires_grad=True).detach()

    def refuse(*arrays: Any, **names: Any) -> None:
        raise AssertionError("a call through Python")

    monkeypatch.setattr(doubled._call, "_call", refuse)
    for given in (x, A, made_there, detached, torch.ones(2, 3, 4)[1], x.t().contiguous().t().clone(
        memory_format=torch.contiguous_format
    )):  # fmt: skip
        assert doubled(given, out=out) is out
        np.testing.assert_array_equal(out.numpy(), 2 * np.asarray(given))
    held = np.zeros((3, 4), np.float32)
    assert doubled(x, out=held) is held
    np.testing.assert_array_equal(held, 2 * A)


def test_tensors_that_are_no_plain_memory_go_through_python(doubled: Any) -> None:
    torch = pytest.importorskip("torch")
    x = torch.from_numpy(A)
    doubled(x, out=torch.zeros(3, 4))  # from now on tensors are read natively
    raw = torch.zeros(49, dtype=torch.uint8)
    for given in (
        torch._neg_view(x), x.t().contiguous().t(), x[:1].expand(3, 4), torch.nn.Parameter(x, False),
        torch._efficientzerotensor((3, 4)), torch.complex(x, x).conj().imag,
        raw[1:].numpy().view(np.float32).reshape(3, 4),
    ):  # fmt: skip
        out = torch.zeros(3, 4)
        assert doubled(given, out=out) is out
        wanted = given if isinstance(given, np.ndarray) else given.clone().numpy()
        np.testing.assert_array_equal(out.numpy(), 2 * wanted)
    for out in (torch._neg_view(x), x.reshape(4, 3).t(), torch._efficientzerotensor((3, 4))):
        with pytest.raises(UserError) as caught:
            doubled(x, out=out)
        assert caught.value.code == "R006"
    for wrong in (x.double(), x[:2], x[0], x.bfloat16()):
        with pytest.raises(UserError) as caught:
            doubled(wrong, out=torch.zeros(3, 4))
        assert caught.value.code in ("R002", "R003")
        with pytest.raises(UserError) as caught:
            doubled(x, out=torch.zeros_like(wrong))
        assert caught.value.code == "R006"
    mapped = torch.func.vmap(lambda a: a)(x)
    np.testing.assert_array_equal(doubled(mapped, out=np.zeros((3, 4), np.float32)), 2 * A)


def test_tensors_elsewhere_and_of_other_kinds_are_typed_errors(doubled: Any) -> None:
    torch = pytest.importorskip("torch")
    for x in (torch.ones(3, 4, device="meta"), torch.ones(3, 4).to_sparse()):
        for f in (doubled, tw.function(lambda a: a + 1)):
            with pytest.raises(UserError) as caught:
                f(x)
            assert caught.value.code == "R005" and caught.value.hint
    with pytest.raises(UserError) as caught:
        doubled(A, out=torch.ones(3, 4, device="meta"))
    assert caught.value.code == "R006"


JAX = """
import jax
import numpy as np
import tilewright as tw
for dtype in ("float32", "bfloat16", "int32"):
    x = jax.numpy.arange(12, dtype=dtype).reshape(3, 4)
    got = tw.function(lambda a: a * 2)(x)
    assert isinstance(got, jax.Array) and got.dtype == x.dtype, got
    np.testing.assert_array_equal(np.asarray(got), np.asarray(x * 2))
a = np.arange(12, dtype=np.float32).reshape(3, 4)
both = tw.einsum("ij,kj->ik", jax.numpy.asarray(a), a)
assert isinstance(both, jax.Array)
np.testing.assert_allclose(both, a @ a.T)
"""


def test_arrays_of_jax() -> None:
    """In a process of its own: what was forked from one that imported JAX may hang."""
    if importlib.util.find_spec("jax") is None:
        pytest.skip("no JAX")
    variables = {**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)}
    done = subprocess.run(
        [sys.executable, "-c", JAX], env=variables, capture_output=True, text=True, check=False
    )
    assert done.returncode == 0, done.stderr
