"""tilewright.compile of modules and functions of PyTorch."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

import tilewright as tw  # noqa: E402
from tilewright.errors import UserError  # noqa: E402


class Block(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Embedding(50, 16)
        self.inner = torch.nn.Linear(16, 32)
        self.register_buffer("count", torch.zeros((), dtype=torch.long))

    def forward(self, x: Any, *, scale: float = 1.0) -> dict[str, Any]:
        h = torch.relu(self.inner(self.table(x)))
        return {"h": h * scale, "mean": h.mean(), "views": [h.transpose(0, 1)]}


def assert_close(want: Any, got: Any) -> None:
    torch.testing.assert_close(got, want, rtol=1e-4, atol=1e-5)


def test_results_have_the_structure_of_the_module() -> None:
    torch.manual_seed(0)
    model = Block().eval()
    x = torch.randint(0, 50, (3, 7))
    fast = tw.compile(model, (x,))
    with torch.no_grad():
        want = model(x)
    got = fast(x)
    assert set(got) == set(want)
    assert_close(want["h"], got["h"])
    assert_close(want["mean"], got["mean"])
    assert_close(want["views"][0], got["views"][0])
    assert got["views"][0].stride() == want["views"][0].stride()
    assert not got["h"].requires_grad
    assert not fast.report.handed


def test_other_shapes_types_and_arguments_get_their_own_graph() -> None:
    model = Block().eval()
    fast = tw.compile(model, (torch.randint(0, 50, (3, 7)),))
    for x, named in (
        (torch.randint(0, 50, (2, 5)), {}),
        (torch.randint(0, 50, (3, 7)), {"scale": 2.0}),
    ):
        with torch.no_grad():
            assert_close(model(x, **named)["h"], fast(x, **named)["h"])


def test_dynamic_sizes_are_one_graph() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(8, 4), torch.nn.Softmax(-1)).eval()
    n = torch.export.Dim("n", min=2, max=50)
    fast = tw.compile(model, (torch.randn(3, 8),), dynamic_shapes=({0: n},))
    for count in (2, 9, 50):
        x = torch.randn(count, 8)
        with torch.no_grad():
            assert_close(model(x), fast(x))
    assert len(fast.entries) == 1


def test_functions() -> None:
    def f(a: Any, b: Any) -> Any:
        return torch.einsum("ij,kj->ik", a, b).tanh()

    a, b = torch.randn(3, 5), torch.randn(4, 5)
    assert_close(f(a, b), tw.compile(f, (a, b))(a, b))


def test_updated_buffers() -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Any) -> Any:
            self.seen.add_(x)
            return self.seen * 2

    model = Counter()
    fast = tw.compile(model, (torch.ones(3),))
    assert_close(torch.full((3,), 4.0), fast(torch.ones(3)))
    assert_close(torch.full((3,), 2.0), model.seen)


def test_updates_of_arguments_that_share_memory(caplog: pytest.LogCaptureFixture) -> None:
    def f(a: Any, b: Any) -> Any:
        a.add_(1)
        return b * 2

    fast = tw.compile(f, (torch.randn(6), torch.randn(6)))
    for first, second in ((slice(0, 6), slice(3, 9)), (slice(0, 6), slice(0, 6))):
        base = torch.randn(10)
        twin = base.clone()
        want, got = f(base[first], base[second]), fast(twin[first], twin[second])
        assert_close(want, got)
        assert_close(base, twin)
    same, twin = torch.ones(6), torch.ones(6)
    assert_close(f(same, same), fast(twin, twin))
    assert_close(same, twin)
    assert "shares its memory" in caplog.text
    caplog.clear()
    apart, twin = torch.ones(6), torch.ones(6)
    assert_close(f(apart, same), fast(twin, same))
    assert_close(apart, twin)
    assert not caplog.text


def test_an_argument_that_is_a_buffer_which_the_module_updates() -> None:
    class Counter(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.register_buffer("seen", torch.zeros(3))

        def forward(self, x: Any) -> Any:
            self.seen.add_(1)
            return x * 2

    plain, model = Counter(), Counter()
    fast = tw.compile(model, (torch.ones(3),))
    model.seen.zero_()
    assert_close(plain(plain.seen), fast(model.seen))


@pytest.mark.parametrize("mode", [torch.no_grad, torch.inference_mode, torch.enable_grad])
def test_modes_of_pytorch(mode: Any) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(16, 8), torch.nn.LayerNorm(8)).eval()
    fast = tw.compile(model, (torch.randn(3, 16),))
    for x in (torch.randn(3, 16), torch.randn(3, 16, requires_grad=True)):
        with mode():
            got = fast(x)
            with torch.no_grad():
                assert_close(model(x), got)
            assert not got.requires_grad and got.is_inference() == (mode is torch.inference_mode)
            with torch.autocast("cpu", torch.bfloat16):
                half = fast(x)
                want = model(x)
            assert half.dtype == want.dtype
            torch.testing.assert_close(half.float(), want.float(), rtol=3e-2, atol=3e-2)
            assert_close(got, fast(x))


def test_weights_are_shared_and_changes_noticed() -> None:
    model = Block().eval()
    x = torch.randint(0, 50, (3, 7))
    fast = tw.compile(model, (x,))
    (part,) = fast.entries[0].graph.graph.parts
    held = [a.ctypes.data for a in part.model.latest.linked.artifact.constants]
    assert model.table.weight.data_ptr() in held
    with torch.no_grad():
        model.inner.weight.mul_(-1)
        model.table.weight.add_(1)
        assert_close(model(x)["h"], fast(x)["h"])


def test_training_mode_is_a_graph_of_its_own() -> None:
    model = torch.nn.Sequential(torch.nn.Linear(4, 4), torch.nn.BatchNorm1d(4))
    x = torch.randn(6, 4)
    fast = tw.compile(model.eval(), (x,))
    with torch.no_grad():
        assert_close(model(x), fast(x))


def test_what_cannot_be_captured_is_a_typed_error() -> None:
    class Branch(torch.nn.Module):
        def forward(self, x: Any) -> Any:
            return x + 1 if x.sum() > 0 else x - 1

    with pytest.raises(UserError) as caught:
        tw.compile(Branch(), (torch.randn(3),))
    assert caught.value.code == "F005"
    assert "torch.compile" in str(caught.value)


def test_importing_the_package_and_the_onnx_path_need_no_torch() -> None:
    code = (
        "import sys; sys.modules['torch'] = None\n"
        "import tilewright as tw, numpy as np\n"
        "p = tw.program('C[i,j] = sum(k) A[i,k] * B[k,j]')\n"
        "a = np.ones((3, 4), np.float32)\n"
        "assert (tw.compile(p)(a, a.T.copy()) == 4).all()\n"
        "try:\n    tw.torch\n"
        "except tw.TilewrightError as e:\n    assert 'tilewright[torch]' in str(e)\n"
        "else:\n    raise SystemExit('no error')\n"
        "import tilewright.onnx"
    )
    root = Path(__file__).parents[3] / "src"
    done = subprocess.run(
        [sys.executable, "-c", code], env={"PYTHONPATH": str(root), "PATH": "/usr/bin:/bin"},
        capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr


def test_a_module_is_saved_and_runs_without_torch(tmp_path: Path) -> None:
    model = torch.nn.Sequential(torch.nn.Linear(6, 5), torch.nn.ReLU(), torch.nn.Linear(5, 2)).eval()
    x = torch.randn(3, 6, generator=torch.Generator().manual_seed(0))
    tw.compile(model, (x,)).save(tmp_path / "m.twa")
    np.save(tmp_path / "x.npy", x.numpy())
    code = (
        "import sys, numpy as np, tilewright as tw\n"
        "y = tw.load(sys.argv[1] + '/m.twa')(np.load(sys.argv[1] + '/x.npy'))\n"
        "assert 'torch' not in sys.modules and 'onnx' not in sys.modules\n"
        "np.save(sys.argv[1] + '/y.npy', y)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=True)
    np.testing.assert_allclose(np.load(tmp_path / "y.npy"), model(x).detach(), rtol=1e-5, atol=1e-6)


def test_what_pytorch_runs_is_not_saved(tmp_path: Path) -> None:
    compiled = tw.compile(lambda a: torch.linalg.eigh(a).eigenvalues * 2, (torch.eye(3),))
    with pytest.raises(UserError, match="PyTorch takes part"):
        compiled.save(tmp_path / "m.twa")
    with pytest.raises(UserError, match="0 kinds of inputs"):
        tw.compile(torch.nn.ReLU()).save(tmp_path / "m.twa")
