"""Rows of the ATen table against PyTorch, through the Program interpreter."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest

torch = pytest.importorskip("torch")
F = torch.nn.functional

from unit.frontend.torch.support import check  # noqa: E402


def floats(*shape: int, seed: int = 0) -> Any:
    return torch.randn(*shape, generator=torch.Generator().manual_seed(seed))


def ints(*shape: int, high: int = 5, low: int = 0) -> Any:
    return torch.randint(low, high, shape, generator=torch.Generator().manual_seed(1))


X, Y = floats(3, 5), floats(3, 5, seed=1)
IMAGE = floats(2, 4, 7, 6)
HALF = floats(3, 5).bfloat16()

CASES: dict[str, tuple[Callable[..., Any], tuple[Any, ...]]] = {
    "promotion": (lambda a, b: a + b * 2, (ints(3, 5), X)),
    "scalar promotion": (lambda a: a * 2.5, (ints(3, 5),)),
    "alpha": (lambda a, b: torch.add(a, b, alpha=3), (X, Y)),
    "bool addition": (lambda a, b: (a > 0) + (b > 0), (X, Y)),
    "floor division": (lambda a, b: torch.div(a, b, rounding_mode="floor"), (X, Y)),
    "floor division of integers": (lambda a: a // 3, (ints(3, 5, low=-9),)),
    "truncated division": (lambda a: torch.div(a, 3, rounding_mode="trunc"), (ints(3, 5, low=-9),)),
    "remainder": (lambda a, b: torch.remainder(a, b), (X * 10, Y)),
    "power": (lambda a: (a.abs() + 1) ** 1.5 + a**2 + a**3, (X,)),
    "clamp": (lambda a: a.clamp(-0.5, 0.7), (X,)),
    "clamp by tensors": (lambda a, b: torch.clamp(a, min=b), (X, Y)),
    "where": (lambda a, b: torch.where(a > b, a, 1.0), (X, Y)),
    "comparison of mixed types": (lambda a: a > 1.5, (ints(3, 5),)),
    "bits": (lambda a, b: (a & b) ^ (a | 3), (ints(4, 4), ints(4, 4))),
    "shift": (lambda a: (a << 2) + (a >> 1), (ints(4, 4),)),
    "half precision": (lambda a: torch.sigmoid(a * 0.1 + 1), (HALF,)),
    "gelu": (lambda a: F.gelu(a) + F.gelu(a, approximate="tanh"), (X,)),
    "silu": (lambda a: F.silu(a) + F.softplus(a) + F.mish(a), (X,)),
    "elu": (lambda a: F.elu(a) + F.selu(a) + F.celu(a), (X,)),
    "matmul": (lambda a, b: a @ b.t(), (X, Y)),
    "stacked matmul": (lambda a, b: a @ b, (floats(2, 3, 4), floats(4, 5))),
    "linear": (lambda a, w, b: F.linear(a, w, b), (X, floats(4, 5), floats(4))),
    "einsum": (lambda a, b: torch.einsum("bij,bkj->bik", a, b), (floats(2, 3, 4), floats(2, 5, 4))),
    "convolution": (lambda x, w: F.conv2d(x, w, stride=2, padding=1), (IMAGE, floats(3, 4, 3, 3))),
    "grouped convolution": (lambda x, w: F.conv2d(x, w, groups=2), (IMAGE, floats(6, 2, 3, 3))),
    "transposed convolution": (
        lambda x, w: F.conv_transpose2d(x, w, stride=2, padding=1, output_padding=1),
        (IMAGE, floats(4, 3, 3, 3)),
    ),
    "sum": (lambda a: a.sum(1) + a.mean(1, keepdim=True).squeeze(1), (X,)),
    "sum of integers": (lambda a: a.int().sum(), (ints(3, 5),)),
    "variance": (lambda a: a.var(1) + a.std(1, correction=0), (X,)),
    "extremes": (lambda a: (a.max(1), a.min(0).indices, a.amax())[0], (X,)),
    "argmax": (lambda a: (a.argmax(), a.argmin(1)), (X,)),
    "softmax": (lambda a: F.softmax(a, 0) + F.log_softmax(a, 1), (X,)),
    "logsumexp": (lambda a: torch.logsumexp(a, 1), (X,)),
    "cumsum": (lambda a: (a.cumsum(1), a.cumprod(0)), (X,)),
    "cummax": (lambda a: torch.cummax(a, 1), (X,)),
    "norms": (lambda a: torch.linalg.vector_norm(a, 3, dim=1), (X,)),
    "view": (lambda a: a.reshape(5, 3).transpose(0, 1).reshape(-1), (X,)),
    "slices": (lambda a: a[1:, ::2] + a[:2, -1:], (X,)),
    "select": (lambda a: a[:, -1], (X,)),
    "cat": (lambda a, b: torch.cat([a, b[:, :2], torch.zeros(3, 0)], 1), (X, Y)),
    "stack": (lambda a, b: torch.stack([a, b], 1), (X, Y)),
    "split": (lambda a: torch.split(a, 2, 1)[2], (X,)),
    "expand": (lambda a: a[:, None].expand(3, 4, 5) * 2, (X,)),
    "repeat": (lambda a: a.repeat(2, 1, 2), (X,)),
    "flip and roll": (lambda a: a.flip(1).roll(2, 0), (X,)),
    "pad": (lambda a: F.pad(a, (1, 2, -1, 0), value=3.0), (X,)),
    "reflect": (lambda a: F.pad(a, (1, 2, 3, 1), mode="reflect"), (IMAGE,)),
    "diagonal": (lambda a: torch.diagonal(a, 1), (X,)),
    "triangle": (lambda a: a.tril(1) + a.triu(), (X,)),
    "unfold": (lambda a: a.unfold(1, 3, 1), (X,)),
    "index": (lambda a, i: a[i, :] + a[i, i], (floats(5, 5), ints(5))),
    "index around": (lambda a, i: a[:, None, i, 2], (floats(3, 4, 5), ints(3, high=4))),
    "negative index": (lambda a, i: a[i], (X, torch.tensor([-1, 0, -3]))),
    "gather": (lambda a, i: a.gather(1, i), (X, ints(3, 4))),
    "embedding": (lambda w, i: F.embedding(i, w), (floats(5, 4), ints(2, 3))),
    "scatter": (lambda a, i, b: a.scatter(1, i[:, :1], b), (X, ints(3, 4), Y)),
    "scatter add": (lambda a, i, b: a.scatter_add(1, i, b[:, :4]), (X, ints(3, 4), Y)),
    "scatter mean": (lambda a, i, b: a.scatter_reduce(1, i, b[:, :4], "mean"), (X, ints(3, 4), Y)),
    "index_put": (lambda a, i, b: torch.index_put(a, (i,), b, True), (X, ints(4, high=3), floats(4, 5))),
    "masked fill": (lambda a: a.masked_fill(a > 0, float("-inf")), (X,)),
    "searchsorted": (lambda a, b: torch.searchsorted(b, a), (X, torch.arange(5.0) / 2 - 1)),
    "arange": (lambda a: a + torch.arange(5) * 2 + torch.full((3, 1), 7), (X,)),
    "linspace": (lambda a: a + torch.linspace(0, 1, 5), (X,)),
    "layer norm": (lambda a, w: F.layer_norm(a, (5,), w), (X, floats(5))),
    "group norm": (lambda x, w: F.group_norm(x, 2, w), (IMAGE, floats(4))),
    "batch norm": (lambda x, m, v: F.batch_norm(x, m, v), (IMAGE, floats(4), floats(4).abs())),
    "max pool": (lambda x: F.max_pool2d(x, 3, 2, 1, return_indices=True), (IMAGE,)),
    "average pool": (lambda x: F.avg_pool2d(x, 3, 2, 1, count_include_pad=False), (IMAGE,)),
    "average pool, ceil": (lambda x: F.avg_pool2d(x, 3, 2, 1, ceil_mode=True), (IMAGE,)),
    "adaptive pool": (lambda x: F.adaptive_avg_pool2d(x, (3, 4)), (IMAGE,)),
    "adaptive max": (lambda x: F.adaptive_max_pool2d(x, (3, 4), return_indices=True), (IMAGE,)),
    "bilinear": (lambda x: F.interpolate(x, scale_factor=2.0, mode="bilinear"), (IMAGE,)),
    "nearest": (lambda x: F.interpolate(x, size=(3, 9)), (IMAGE,)),
    "attention": (
        lambda q: F.scaled_dot_product_attention(q, q, q, is_causal=True),
        (floats(1, 2, 5, 4),),
    ),
    "sort": (lambda a: torch.sort(a, 1, descending=True), (X,)),
    "topk": (lambda a: torch.topk(a, 2, 1), (X,)),
    "median": (lambda a: torch.median(a, 1), (X,)),
    "special": (lambda a: torch.lgamma(a.abs() + 0.1) + torch.erfc(a) + torch.digamma(a), (X,)),
    "erfinv": (lambda a: torch.erfinv(torch.tanh(a)), (X,)),
    "bessel": (lambda a: torch.i0(a * 9), (X,)),
    "columns": (lambda x: F.fold(F.unfold(x, 3, padding=1), (7, 6), 3, padding=1), (IMAGE,)),
    "distances": (lambda a, b: torch.cdist(a, b), (X, Y)),
    "nan": (lambda a: torch.nan_to_num(a / (a - a)), (X,)),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_row(name: str) -> None:
    f, args = CASES[name]
    check(f, *args, rtol=1e-5 if args[0].dtype != torch.bfloat16 else 1e-2)


def test_nan_is_the_largest_when_sorting() -> None:
    x = torch.tensor([[2.0, float("nan"), 1.0, 2.0], [float("nan"), 0.0, -1.0, 5.0]])
    check(lambda a: torch.sort(a, dim=1, descending=True, stable=True), x)
    check(lambda a: torch.sort(a, dim=1, stable=True), x)
    check(lambda a: (torch.median(a, 1)[0], torch.nanmedian(a, 1)[0]), x)


def test_special_values_of_division() -> None:
    a = torch.tensor([5.0, -5.0, 0.0, float("inf"), float("nan"), 1e30, 3.0])
    b = torch.tensor([0.0, 0.0, 0.0, 2.0, 1.0, 1e10, float("-inf")])
    check(lambda x, y: (torch.div(x, y, rounding_mode="floor"), torch.remainder(x, y)), a, b)
    check(lambda x: (torch.copysign(torch.ones(7), x), torch.signbit(x)), -b)
