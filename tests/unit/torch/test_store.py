"""Graphs that are found again: what is stored, when it is used, and when it must not be."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

torch = pytest.importorskip("torch")

import tilewright.config as config  # noqa: E402
from tilewright.torch import backend  # noqa: E402
from tilewright.torch import store as store_of_graphs  # noqa: E402
from tilewright.torch.calls import Options  # noqa: E402
from tilewright.torch.store import StoredGraph, entry_of  # noqa: E402


@pytest.fixture(autouse=True)
def _empty_store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(store_of_graphs, "_WORTH_S", 0.0)
    with config.config(cache_dir=tmp_path):
        yield
        _wait()


def _wait() -> None:
    for t in threading.enumerate():
        if t.name == "tilewright store":
            t.join()


class _Net(torch.nn.Module):
    def __init__(self, seed: int) -> None:
        super().__init__()
        torch.manual_seed(seed)
        self.inner = torch.nn.Linear(24, 40)
        self.outer = torch.nn.Linear(40, 7)

    def forward(self, x: Any) -> Any:
        return self.outer(torch.relu(self.inner(x)))


def _run(model: Callable[..., Any], *inputs: Any) -> tuple[Callable[..., Any], Any, bool]:
    """The compiled model, its result, and whether it was found in the store: as a new process
    would compile it."""
    torch._dynamo.reset()
    found: list[Any] = []

    def noted(module: Any, examples: Any) -> Any:
        found.append(backend(module, examples))
        return found[-1]

    fast = torch.compile(model, backend=noted)
    with torch.no_grad():
        got = fast(*inputs)
    _wait()
    return fast, got, isinstance(found[0], StoredGraph)


def test_a_graph_is_found_again_and_gives_the_same_bits() -> None:
    x = torch.randn(5, 24)
    _, first, was_stored = _run(_Net(0), x)
    assert not was_stored
    _, second, is_stored = _run(_Net(0), x)
    assert is_stored
    assert torch.equal(first, second)
    torch.testing.assert_close(second, _Net(0)(x))


def test_other_weights_sizes_and_modes_are_other_graphs() -> None:
    x = torch.randn(5, 24)
    _run(_Net(0), x)
    assert not _run(_Net(1), x)[2]
    assert not _run(_Net(0), torch.randn(6, 24))[2]
    assert not _run(_Net(0), torch.randn(24, 5).T)[2]  # other strides
    with torch.autocast("cpu", dtype=torch.bfloat16):
        _, got, was_stored = _run(_Net(0), x)
    assert not was_stored
    assert got.dtype is torch.bfloat16


def test_a_weight_that_changes_is_noticed() -> None:
    x = torch.randn(5, 24)
    _run(_Net(0), x)
    model = _Net(0)
    fast, _, is_stored = _run(model, x)
    assert is_stored
    with torch.no_grad():
        model.outer.weight.mul_(3.0)
        torch.testing.assert_close(fast(x), model(x))
        model.inner.bias.add_(1.0)
        torch.testing.assert_close(fast(x), model(x))


def test_updates_and_views_are_not_stored(tmp_path: Path) -> None:
    def update(x: Any, total: Any) -> Any:
        total.add_(x)
        return x * 2.0

    def view(x: Any) -> Any:
        return x[1:], x * 2.0

    for _ in range(2):
        x, total = torch.randn(4, 3), torch.zeros(4, 3)
        _, _got, is_stored = _run(update, x, total)
        assert not is_stored
        torch.testing.assert_close(total, x)
        _, (part, _), is_stored = _run(view, x)
        assert not is_stored
        assert part.data_ptr() == x[1:].data_ptr()


def test_a_damaged_file_is_compiled_again(tmp_path: Path) -> None:
    x = torch.randn(5, 24)
    _, first, _ = _run(_Net(0), x)
    (file,) = (tmp_path / "models").glob("*.twa")
    file.write_bytes(file.read_bytes()[:-100])
    _, got, is_stored = _run(_Net(0), x)
    assert not is_stored
    assert torch.equal(got, first)


def test_the_store_stays_within_its_part_of_the_cache(tmp_path: Path) -> None:
    x = torch.randn(5, 24)
    with config.config(cache_max_bytes=1000):  # less than the weights of a model
        _run(_Net(0), x)
    assert not list((tmp_path / "models").glob("*.twa"))
    store_of_graphs._make_room(tmp_path, 10)  # of an empty folder
    for k in range(3):
        (tmp_path / f"{k}.twa").write_bytes(b"x" * 100)
    store_of_graphs._make_room(tmp_path, 250)
    assert len(list(tmp_path.glob("*.twa"))) == 2


def test_what_cannot_be_written_down_has_no_place() -> None:
    def mine(x: Any) -> Any:
        return x + 1.0

    graph = torch.fx.Graph()
    x = graph.placeholder("x")
    graph.output((graph.call_function(mine, (x,)),))
    module = torch.fx.GraphModule(torch.nn.Module(), graph)
    with torch.no_grad():
        assert entry_of(module, [torch.zeros(2)], [False], Options()) is None
    plain = torch.fx.symbolic_trace(lambda x: torch.relu(x) + 1.0)
    with torch.no_grad():
        here = entry_of(plain, [torch.zeros(2)], [False], Options())
        again = entry_of(plain, [torch.ones(2)], [False], Options())
        weight = entry_of(plain, [torch.ones(2)], [True], Options())
        assert here is not None
        assert again is not None
        assert weight is not None
        assert here.key == again.key != weight.key
        assert entry_of(plain, [torch.zeros(2)], [False], Options(tune=1.0)) is None
    learning = [torch.zeros(2, requires_grad=True)]
    assert entry_of(plain, learning, [True], Options()) is None
