"""torch.compile(backend="tilewright"): results, strides, aliasing, updates, dynamic sizes, reports.

Every test runs the compiled code and compares with eager execution.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from typing import Any

import pytest

torch = pytest.importorskip("torch")


import tilewright.torch as door  # noqa: E402
from tilewright.errors import UserError  # noqa: E402
from tilewright.torch import backend  # noqa: E402
from tilewright.torch.native import NativeGraph  # noqa: E402

F = torch.nn.functional


@pytest.fixture(autouse=True)
def _fresh() -> Iterator[None]:
    torch._dynamo.reset()
    door.reset_reports()
    torch.manual_seed(0)
    yield
    torch._dynamo.reset()


def assert_same(want: Any, got: Any, rtol: float = 1e-4, atol: float = 1e-5) -> None:
    if isinstance(want, tuple | list):
        assert len(want) == len(got)
        for x, y in zip(want, got, strict=True):
            assert_same(x, y, rtol, atol)
        return
    torch.testing.assert_close(got, want, rtol=rtol, atol=atol)
    for n, s, t in zip(want.shape, want.stride(), got.stride(), strict=True):
        assert n <= 1 or s == t, (want.stride(), got.stride())


def compiled(f: Callable[..., Any], dynamic: bool | None = False) -> Callable[..., Any]:
    found: Callable[..., Any] = torch.compile(f, backend=backend, dynamic=dynamic, fullgraph=True)
    return found


def check(f: Callable[..., Any], *args: Any, handed: tuple[str, ...] = ()) -> None:
    with torch.no_grad():
        assert_same(f(*args), compiled(f)(*args))
    assert {n for r in door.reports() for n in r.handed} == set(handed)


def test_a_network() -> None:
    model = torch.nn.Sequential(
        torch.nn.Conv2d(3, 8, 3, padding=1),
        torch.nn.BatchNorm2d(8),
        torch.nn.ReLU(),
        torch.nn.MaxPool2d(2),
        torch.nn.Flatten(),
        torch.nn.Linear(8 * 4 * 4, 10),
    ).eval()
    check(model, torch.randn(2, 3, 8, 8))


def test_the_name_is_registered() -> None:
    pyproject = __import__("tomllib").loads(
        (__import__("pathlib").Path(__file__).parents[3] / "pyproject.toml").read_text()
    )
    entry = pyproject["project"]["entry-points"]["torch_dynamo_backends"]["tilewright"]
    module, _, name = entry.partition(":")
    assert getattr(__import__(module, fromlist=[name]), name) is backend


def test_channels_last_stays() -> None:
    x = torch.randn(2, 4, 6, 6).to(memory_format=torch.channels_last)
    check(lambda a: F.relu(a) * 2, x)


def test_strided_and_expanded_inputs() -> None:
    x = torch.randn(6, 8)
    check(
        lambda a, b, c: a + b + c,
        x.t()[:6, :],
        torch.randn(6, 12)[:, ::2],
        torch.randn(6, 1).expand(6, 6),
    )


def test_results_that_are_views() -> None:
    check(lambda a: (a.t(), (a + 1).t(), a[1:], (a * 2).reshape(-1)), torch.randn(3, 4))


def test_one_result_twice_and_an_input() -> None:
    def f(a: Any) -> Any:
        b = a + 1
        return b, a, b, 3

    x = torch.randn(4)
    got = compiled(f)(x)
    assert_same(f(x)[:3], got[:3])
    assert got[3] == 3
    assert got[1] is x or got[1].data_ptr() == x.data_ptr()


def test_updates_in_place() -> None:
    def f(a: Any, b: Any) -> Any:
        a.add_(b)
        c = a * 2
        b[1:].mul_(3)
        return c + b

    one, two = (torch.randn(4), torch.randn(4)), ()
    two = tuple(t.clone() for t in one)
    before = two[0]._version
    want, got = f(*one), compiled(f)(*two)
    assert_same(want, got)
    assert_same(one, two)
    assert two[0]._version > before


def test_updates_of_inputs_that_share_memory() -> None:
    def f(a: Any, b: Any) -> Any:
        a.add_(1)
        return b * 2, a + b

    for first, second in ((slice(0, 6), slice(3, 9)), (slice(0, 6), slice(0, 6))):
        torch._dynamo.reset()
        base = torch.randn(10)
        twin = base.clone()
        want, got = f(base[first], base[second]), compiled(f)(twin[first], twin[second])
        assert_same(want, got)
        assert_same(base, twin)
    x = torch.randn(5)
    y = x.clone()
    torch._dynamo.reset()
    assert_same(f(x, x), compiled(f)(y, y))
    assert_same(x, y)


def test_updates_through_views_and_strides() -> None:
    def f(a: Any, b: Any) -> Any:
        a[1].add_(5)
        b.mul_(3)
        return a.sum() + b.sum()

    one = (torch.randn(3, 4), torch.randn(4, 6))
    two = tuple(t.clone() for t in one)
    run = compiled(f)
    assert_same(f(one[0], one[1][:, ::2]), run(two[0], two[1][:, ::2]))
    assert_same(one, two)
    assert_same(f(one[0].t(), one[1].t()), run(two[0].t(), two[1].t()))
    assert_same(one, two)


def test_views_of_an_input_are_views() -> None:
    def f(a: Any) -> Any:
        return a[1:], a.view(-1), a.t(), a * 2

    x = torch.randn(3, 4)
    rows, flat, turned, _ = compiled(f)(x)
    rows.zero_()
    assert (x[1:] == 0).all() and (flat[4:] == 0).all() and (turned[:, 1:] == 0).all()

    def g(a: Any, out: Any) -> Any:
        a.add_(1)
        return a, torch.mul(a, 2, out=out)

    torch._dynamo.reset()
    out = torch.empty(3, 4)
    first, second = compiled(g)(x, out)
    assert first.data_ptr() == x.data_ptr() and second.data_ptr() == out.data_ptr()
    assert_same(out, x * 2)


def test_tensors_are_read_where_they_lie() -> None:
    run = compiled(lambda a: a * 2)
    for x in (
        torch.randn(4, 6), torch.randn(6, 4).t(), torch.randn(4, 12)[:, ::2], torch.randn(101)[1:],
        torch.randn(1, 6).expand(4, 6), torch._neg_view(torch.randn(4, 6)),
    ):  # fmt: skip
        assert_same(x * 2, run(x))


def test_results_are_fresh_at_every_call() -> None:
    run = compiled(lambda a: a * 2)
    x = torch.randn(1000)
    first = run(x)
    kept = first.clone()
    assert run(x + 1).data_ptr() != first.data_ptr()
    assert_same(kept, first)


def test_running_statistics() -> None:
    model, twin = torch.nn.BatchNorm1d(5), torch.nn.BatchNorm1d(5)
    with torch.no_grad():
        run = compiled(twin)
        for _ in range(3):
            x = torch.randn(7, 5)
            assert_same(model(x), run(x))
    assert_same([model.running_mean, model.running_var], [twin.running_mean, twin.running_var])
    assert int(twin.num_batches_tracked) == 3


def test_random_and_unsupported_operators_are_handed_over() -> None:
    def f(a: Any) -> Any:
        values, vectors = torch.linalg.eigh(torch.tanh(a))
        return values.exp() @ vectors.abs()

    check(f, torch.randn(4, 4), handed=("_linalg_eigh.default",))
    (report,) = door.reports()
    assert report.graphs == 2
    assert "_linalg_eigh.default" in str(report)


def test_random_numbers_are_those_of_pytorch() -> None:
    f = lambda a: torch.rand_like(a) * 2 + a  # noqa: E731
    x = torch.zeros(5)
    torch.manual_seed(3)
    want = f(x)
    torch.manual_seed(3)
    assert_same(want, compiled(f)(x))


def test_one_graph_serves_many_sizes() -> None:
    def f(a: Any, b: Any) -> Any:
        c = torch.cat([a, b], 0)
        return F.softmax(c @ c.t(), -1).sum(0) * a.shape[0] + torch.arange(c.shape[0])

    run = compiled(f, dynamic=True)
    with torch.no_grad():
        for m, n, k in ((3, 4, 5), (7, 2, 5), (9, 9, 33)):
            a, b = torch.randn(m, k), torch.randn(n, k)
            assert_same(f(a, b), run(a, b))
    assert len(door.reports()) == 1


@pytest.mark.parametrize("symbolic", ["always", "auto"])
def test_one_build_serves_many_sizes(symbolic: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing is captured or built again for another size, and a range names the user's argument."""

    class Model(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.table = torch.nn.Embedding(60, 32)
            self.mixed = torch.nn.Linear(32, 96)

        def forward(self, tokens: Any) -> Any:
            q, k, v = self.mixed(self.table(tokens)).chunk(3, -1)
            return F.softmax(F.scaled_dot_product_attention(q, k, v, is_causal=True), -1)

    made: list[NativeGraph] = []
    start = NativeGraph.__init__

    def noted(self: NativeGraph, *args: Any, **named: Any) -> None:
        start(self, *args, **named)
        made.append(self)

    monkeypatch.setattr(NativeGraph, "__init__", noted)
    monkeypatch.setenv("TILEWRIGHT_SYMBOLIC", symbolic)
    model = Model().eval()
    run = compiled(model, dynamic=True)
    with torch.no_grad():
        for rows, length in ((2, 5), (3, 9), (4, 31), (2, 30), (7, 13)):
            x = torch.randint(0, 60, (rows, length))
            assert_same(model(x), run(x))
    assert len(door.reports()) == 1
    (graph,) = made
    ranges = [scope for scope in graph.model.builds if len(scope.dims) == 2]
    assert len(ranges) == 1 and len(graph.model.builds) == (1 if symbolic == "always" else 2)
    text = graph.model.explain()
    assert "(axis 0 of input 'tokens') of 2 to 31 shares this build" in text
    assert "(axis 1 of input 'tokens') of 2 to 31 shares this build" in text


def test_dynamic_views() -> None:
    def f(a: Any) -> Any:
        n, m = a.shape
        return a.reshape(n * 2, m // 2).t(), a.unsqueeze(1).expand(n, 3, m).reshape(n, 3 * m)

    run = compiled(f, dynamic=True)
    with torch.no_grad():
        for n, m in ((3, 4), (5, 8), (2, 12)):
            x = torch.randn(n, m)
            assert_same(f(x), run(x))


def test_changed_weights_are_noticed() -> None:
    model = torch.nn.Linear(6, 4)
    run = compiled(model)
    x = torch.randn(3, 6)
    with torch.no_grad():
        for _ in range(5):
            assert_same(model(x), run(x))
            model.weight.mul_(2)
        model.load_state_dict(torch.nn.Linear(6, 4).state_dict())
        assert_same(model(x), run(x))


def test_gradients() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.Tanh(), torch.nn.Linear(5, 1))
    run = torch.compile(model, backend=backend, dynamic=False)
    x = torch.randn(4, 6)
    want = torch.autograd.grad(model(x).sum(), list(model.parameters()))
    got = torch.autograd.grad(run(x).sum(), list(model.parameters()))
    for a, b in zip(want, got, strict=True):
        torch.testing.assert_close(b, a, rtol=1e-4, atol=1e-5)


def test_inference_mode_and_autocast() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 16), torch.nn.GELU(), torch.nn.Linear(16, 4))
    run = compiled(model)
    x = torch.randn(3, 16)
    with torch.inference_mode():
        assert_same(model(x), run(x))
        with torch.autocast("cpu", torch.bfloat16):
            want, got = model(x), run(x)
    assert got.dtype == want.dtype == torch.bfloat16
    torch.testing.assert_close(got.float(), want.float(), rtol=2e-2, atol=2e-2)


def test_modes_may_alternate() -> None:
    model = torch.nn.Linear(4, 3)
    run = compiled(model)
    x = torch.randn(2, 4)
    with torch.no_grad():
        plain = run(x)
    tracked = run(x)
    with torch.inference_mode():
        inferred = run(x)
        made = torch.randn(2, 4)
    assert not plain.requires_grad and tracked.requires_grad and inferred.is_inference()
    assert_same(plain, inferred.clone())
    assert_same(plain, tracked.detach())
    tracked.sum().backward()
    assert_same(x.sum(0).expand(3, 4).clone(), model.weight.grad)
    with torch.no_grad():  # a tensor that was made in inference mode
        assert_same(model(made), run(made))


def test_inference_tensors_are_updated() -> None:
    def f(a: Any) -> Any:
        a.add_(1)
        return a * 2

    with torch.inference_mode():
        x = torch.randn(3)
        y = x.clone()
        assert_same(f(x), compiled(f)(y))
        assert_same(x, y)


@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16])
def test_autocast_in_parts_and_by_turns(dtype: Any) -> None:
    def f(a: Any, b: Any) -> Any:
        c = a @ b
        with torch.autocast("cpu", enabled=False):
            d = c.float() @ b
        with torch.autocast("cpu", dtype):
            return c, d, torch.softmax(d @ a, -1)

    run = compiled(f)
    a, b = torch.randn(8, 8), torch.randn(8, 8)
    with torch.no_grad():
        for enabled in (False, True, False):
            with torch.autocast("cpu", dtype, enabled=enabled):
                want, got = f(a, b), run(a, b)
            for x, y in zip(want, got, strict=True):
                assert x.dtype == y.dtype
                torch.testing.assert_close(y.float(), x.float(), rtol=3e-2, atol=1e-1)


def test_tied_and_replaced_weights() -> None:
    weight = torch.nn.Parameter(torch.randn(4, 4))

    class Tied(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.a = self.b = weight

        def forward(self, x: Any) -> Any:
            return x @ self.a + x @ self.b.t()

    model = Tied()
    run = compiled(model)
    x = torch.randn(2, 4)
    with torch.no_grad():
        assert_same(model(x), run(x))
        weight.mul_(2)
        assert_same(model(x), run(x))
        weight.data = torch.randn(4, 4)
        assert_same(model(x), run(x))


def test_a_number_from_the_data_breaks_the_graph_only() -> None:
    def f(a: Any) -> Any:
        b = a * 2
        return b[b > 0].sum() + b.max().item()

    run = torch.compile(f, backend=backend, dynamic=False)
    x = torch.randn(9)
    with torch.no_grad():
        torch.testing.assert_close(run(x), f(x))


def test_calls_from_several_threads() -> None:
    from concurrent.futures import ThreadPoolExecutor

    f = lambda a: F.softmax(a @ a.t(), -1)  # noqa: E731
    run = compiled(f)
    xs = [torch.randn(33, 33) for _ in range(8)]
    with torch.no_grad():
        run(xs[0])
        with ThreadPoolExecutor(4) as pool:
            for x, got in zip(xs * 5, pool.map(_without_gradients(run), xs * 5), strict=True):
                assert_same(f(x), got)


def _without_gradients(f: Callable[..., Any]) -> Callable[..., Any]:
    def run(x: Any) -> Any:
        with torch.no_grad():
            return f(x)

    return run


def test_empty_and_scalar_tensors() -> None:
    check(lambda a, b: (a * 2, a.sum(0) + b, b.exp()), torch.randn(0, 3), torch.tensor(1.5))


def test_positions_computed_in_floats() -> None:
    check(
        lambda x: F.interpolate(x, size=(9, 5), mode="bicubic", align_corners=False),
        torch.randn(1, 2, 6, 4),
    )


def test_unknown_options_are_refused() -> None:
    run = torch.compile(lambda a: a + 1, backend=backend, options={"tune_": "1s"})
    with pytest.raises(Exception) as caught:
        run(torch.randn(3))
    cause = caught.value.__cause__ or caught.value
    assert "tune_" in str(cause) or isinstance(cause, UserError)


def test_elements_put_where_a_mask_or_a_position_says() -> None:
    x = torch.randn(4, 5)
    check(
        lambda a, b, i: (a.masked_scatter(a > 0, b), torch.put(a, i, b[:2, 0], accumulate=True)),
        x, torch.randn(4, 5), torch.tensor([3, -1]),
    )  # fmt: skip
