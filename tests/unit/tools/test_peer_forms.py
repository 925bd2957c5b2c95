"""Every form of every row of `kernels`, at small sizes, in every peer that is installed: does it compute the row?"""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest

from tilewright.tools import suite, wiring
from tilewright.tools.ours import model_of
from tilewright.tools.peers import Unavailable, load

KERNELS = suite.load_suite("kernels")
CATEGORIES = sorted({row.category for row in KERNELS.rows})
SMALL = 24
# What a peer cannot do at all; it says so itself, and the row names it.
CANNOT = {
    ("onnxruntime", "bf16"), ("onnxruntime", "f16"), ("openvino", "u8"), ("torch", "u8"), ("jax", "u8"),
}  # fmt: skip


def shrunk(row: suite.Workload) -> suite.Workload:
    """The row with every free size over 64 made small."""
    dims = {
        name: SMALL if size > 64 and name not in row.fixed else size for name, size in row.dims.items()
    }
    return suite.replace(row, dims=dims)


def problems(peer: str, category: str) -> list[str]:
    """What went wrong, one line each; all ways of a peer are compared with the float64 meaning."""
    adapter = load(peer)
    found, seen = [], set()
    for row in map(shrunk, (row for row in KERNELS.rows if row.category == category)):
        key = (row.text, row.constants)
        if key in seen:
            continue
        seen.add(key)
        try:
            ways = [*adapter.prepare(row, 1, 1), *adapter.prepare(suite.replace(row, fresh=True), 1, 1)]
        except Unavailable:
            continue
        except Exception as error:  # noqa: BLE001  libraries raise what they like
            if (peer, row.dtype) not in CANNOT:
                found.append(f"{row.name}: {type(error).__name__}: {str(error)[:200]}")
            continue
        everything = suite.make_inputs(row, suite.input_specs(row), 2)
        given = {name: array for name, array in everything.items() if name not in row.constants}
        model = model_of(row)
        expected = wiring.oracle(model, given)
        specs = suite.output_specs(row)
        for way in ways:
            bound = way.calls[0]
            for name, buffer in bound.inputs.items():
                buffer[...] = given[name]
            bound.refresh()
            bound.call()
            outputs = [np.asarray(array) for array in bound.outputs()]
            outputs = [
                array.astype(kind) if array.dtype.kind in "iu" else array
                for array, (_, kind) in zip(outputs, specs, strict=True)
            ]
            bad = [verdict for verdict in wiring.compare(model, outputs, expected) if not verdict.ok]
            found += [f"{row.name} ({way.outputs_kind}): {verdict.detail}" for verdict in bad]
    return found


@pytest.mark.parametrize("category", CATEGORIES)
@pytest.mark.parametrize(
    "peer", ["numpy", "onnxruntime", *(pytest.param(name, marks=pytest.mark.slow) for name in ("openvino", "torch", "jax"))]
)
def test_forms(peer: str, category: str) -> None:
    if importlib.util.find_spec(peer) is None:
        pytest.skip(f"{peer} is not installed")
    code = f"import test_peer_forms as t; print('\\n'.join(t.problems({peer!r}, {category!r})))"
    folder = str(Path(__file__).parent)
    # A process each: some of these libraries do not like each other in one.
    ended = subprocess.run(
        [sys.executable, "-c", f"import sys; sys.path.insert(0, {folder!r}); {code}"],
        capture_output=True, text=True, timeout=250, check=False,
    )  # fmt: skip
    assert ended.returncode == 0, ended.stderr[-1500:]
    assert ended.stdout.strip() == ""


PRECISION = """
import numpy as np
from tilewright.tools import suite
from tilewright.tools.peers import load
row = next(r for r in suite.load_suite("kernels").rows if r.name == "matmul_1024_f16")
row = suite.replace(row, dims={n: 256 for n in row.dims})
given = suite.make_inputs(row, suite.input_specs(row), 2)
(way, *_) = load("openvino").prepare(row, 1, 1)
call = way.calls[0]
for name, buffer in call.inputs.items():
    buffer[...] = given[name]
call.refresh()
call.call()
exact = given["a"].astype(np.float64) @ given["b"].astype(np.float64)
got = np.asarray(call.outputs()[0]).astype(np.float64)
print(np.abs(got - exact).max() / np.abs(exact.astype(np.float16) - exact).max())
"""


def test_openvino_is_held_to_half_precision() -> None:
    """Asked for f16 on a CPU without such products, it would round factors to bf16."""
    if importlib.util.find_spec("openvino") is None:
        pytest.skip("openvino is not installed")
    ended = subprocess.run(
        [sys.executable, "-c", PRECISION], capture_output=True, text=True, timeout=250, check=False
    )
    assert ended.returncode == 0, ended.stderr[-1500:]
    assert float(ended.stdout) < 2.5
