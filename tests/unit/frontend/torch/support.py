"""FX graphs of small functions, and the comparison of their Program with PyTorch."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from tilewright.frontend.torch import Imported, import_graph
from tilewright.frontend.torch.dtypes import array_of
from tilewright.ir.interpreter import run_program
from tilewright.ir.program_parser import parse_program
from tilewright.torch.lowering import decompositions


def exported(f: Callable[..., Any], args: tuple[Any, ...], dynamic: Any = None) -> Any:
    """The GraphModule of a function, as the front end meets it."""

    class Module(torch.nn.Module):
        def forward(self, *x: Any) -> Any:
            return f(*x)

    with torch.no_grad():
        program = torch.export.export(Module(), args, dynamic_shapes=dynamic)
        return program.run_decompositions(decompositions()).graph_module


def imported(f: Callable[..., Any], *args: Any, dynamic: Any = None) -> Imported:
    """The imported graph of a function."""
    module = exported(f, args, dynamic)
    return import_graph(module.graph, module=module)


def run(found: Imported, *args: Any, **sizes: int) -> list[np.ndarray[Any, Any]]:
    """Results by the interpreter, in the axis order of the graph."""
    program = found.program.bind(sizes) if sizes else found.program
    given = {}
    for i in found.inputs:
        t = args[i.place]
        if len(i.physical) == t.dim():
            order = sorted(range(t.dim()), key=lambda k: (-t.stride(k), k))
            given[i.name] = array_of(t.permute(order).contiguous())
        else:
            flat = torch.as_strided(
                t, (1 + sum((n - 1) * s for n, s in zip(t.shape, t.stride(), strict=True)),), (1,)
            )
            given[i.name] = array_of(flat.clone())
    results = dict(zip(program.results, run_program(program, given), strict=True))
    out = []
    for o in found.outputs:
        back = [o.order.index(k) for k in range(len(o.order))]
        out.append(np.transpose(results[o.name], back))
    return out


def check(f: Callable[..., Any], *args: Any, rtol: float = 1e-5, atol: float = 1e-5) -> Imported:
    """Import a function, run the Program in the interpreter, compare with PyTorch; the text parses
    back to the same Program.
    """
    found = imported(f, *args)
    assert str(parse_program(str(found.program))) == str(found.program)
    want = f(*args)
    got = run(found, *args)
    wanted = list(want) if isinstance(want, tuple | list) else [want]
    assert len(wanted) == len(got)
    for x, y, o in zip(wanted, got, found.outputs, strict=True):
        assert tuple(x.shape) == y.shape
        a = array_of(x.contiguous())
        assert found.program.tensors[o.name].dtype.np == a.dtype
        if x.is_floating_point():
            np.testing.assert_allclose(y, a.astype(np.float64), rtol=rtol, atol=atol)
        else:
            np.testing.assert_array_equal(y, a)
    return found
