"""Import of whole graphs: memory order, symbolic sizes, what is refused, names."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest

torch = pytest.importorskip("torch")

from tilewright.errors import UserError  # noqa: E402
from tilewright.frontend.torch import import_graph, unsupported  # noqa: E402
from tilewright.ir.program import Extern  # noqa: E402
from unit.frontend.torch.support import check, exported, imported, run  # noqa: E402


def test_a_transposed_input_is_read_where_it_lies() -> None:
    x = torch.randn(4, 6).t()
    found = check(lambda a: a * 2, x)
    (i,) = found.inputs
    assert [str(e) for e in i.physical] == ["4", "6"]
    assert [str(e) for e in i.shape] == ["6", "4"]


def test_a_strided_input_is_read_where_it_lies() -> None:
    x = torch.randn(4, 12)[:, ::3]
    found = check(lambda a: a + 1, x)
    (i,) = found.inputs
    assert [str(e) for e in i.physical] == [str(3 * 12 + 3 * 3 + 1)]


def test_an_expanded_input_keeps_one_copy() -> None:
    x = torch.randn(4, 1).expand(4, 5)
    (i,) = check(lambda a: a + 1, x).inputs
    assert [str(e) for e in i.physical] == ["4"]


def test_a_result_keeps_the_memory_order_of_the_graph() -> None:
    found = check(lambda a: (a * 2).permute(2, 0, 1), torch.randn(2, 3, 4))
    (o,) = found.outputs
    assert o.order == (1, 2, 0)


def test_symbolic_sizes_become_dims_with_ranges() -> None:
    n = torch.export.Dim("n", min=2, max=64)
    x = torch.randn(5, 3)
    f = lambda a: torch.cat([a, a]).reshape(-1) / a.shape[0]  # noqa: E731
    found = imported(f, x, dynamic={"x": ({0: n},)})
    (d,) = found.program.dims
    assert (d.lo, d.hi) == (2, 64)
    for count in (2, 7, 64):
        y = torch.randn(count, 3)
        (got,) = run(found, y, **{d.name: count})
        np.testing.assert_allclose(got, f(y).numpy(), rtol=1e-6)


def test_origins_name_the_nodes() -> None:
    found = imported(lambda a: a.exp().sum(0), torch.randn(3, 4))
    assert {o.split()[1] for o in found.origins.values()} == {"(exp.default)", "(sum.dim_IntList)"}


def test_what_has_no_row_is_named() -> None:
    module = exported(lambda a: torch.linalg.svdvals(a.exp()) + 1, (torch.randn(3, 3),))
    refused = unsupported(module.graph)
    assert [str(n.target) for n in refused if "getitem" not in str(n.target)] == [
        "aten._linalg_svd.default"
    ]
    with pytest.raises(UserError) as caught:
        import_graph(module.graph)
    assert caught.value.code == "F005"
    assert "linalg_svd" in str(caught.value)


def test_complex_numbers_are_refused() -> None:
    module = exported(lambda a: a * 2, (torch.randn(3, dtype=torch.complex64),))
    assert unsupported(module.graph)


def test_positions_of_a_maximum_are_made_only_where_they_are_read() -> None:
    found = imported(lambda a: torch.max(a, 1)[0], torch.randn(3, 4))
    monoids = [d.reduction.monoid for d in found.program.body if d.reduction is not None]
    assert monoids == ["max"]


def test_sorting_is_one_extern() -> None:
    found = imported(lambda a: torch.topk(a, 2)[1], torch.randn(3, 4))
    assert [s.function for s in found.program.body if isinstance(s, Extern)] == ["topk"]


def test_constants_are_shared_with_the_tensor() -> None:
    w = torch.randn(4, 8)
    module = exported(lambda a, b: a @ b, (torch.randn(3, 4), w))
    found = import_graph(module.graph, constants={1: w})
    ((_, key),) = found.program.constants
    held: Any = found.program.values[key]
    assert held.ctypes.data == w.data_ptr()
    assert not held.flags.writeable
