"""The builder: names, dead statements, constants kept once."""

from __future__ import annotations

import numpy as np
import pytest

from tilewright.errors import InternalError
from tilewright.frontend.builder import Builder, identifier, statement_reads
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32, I64
from tilewright.ir.program import Dim, Reduction, Scatter
from tilewright.ir.program_parser import parse_program

N = E.dim("N")


def test_identifiers() -> None:
    assert identifier("a.b/c:0") == "a_b_c"
    assert identifier("") == "v" and identifier("9", "x") == "x9"
    assert identifier("sum") == "sum_" and identifier("where") == "where_"
    assert len(identifier("x" * 500)) <= 48


def test_fresh_names_never_collide() -> None:
    b = Builder("m", taken=["x", "N"], promised=["out"])
    assert [b.fresh("x"), b.fresh("h"), b.fresh("h"), b.fresh("t9")] == ["x_", "h_", "h__1", "t9_"]
    assert [b.fresh("layer"), b.fresh("layer")] == ["layer", "layer_1"]
    assert [b.fresh("out"), b.fresh("out")] == ["out", "out_1"]


def test_indices_avoid_inputs_dims_and_promised_results() -> None:
    b = Builder("m", taken=["i", "n"], promised=["k"])
    assert [a.name for a in b.axes([N, 2, 3], "")] == ["i1", "j", "k1"]
    assert [a.name for a in b.axes([1, 2], "nn")] == ["n1", "n2"]
    assert [a.name for a in b.axes([1] * 8)][-2:] == ["n2", "n3"]


def program_of(b: Builder, *results: str) -> list[str]:
    p = b.program(results, [Dim("N")])
    assert parse_program(str(p)) == p
    return [str(s) for s in p.body]


def test_only_what_results_need_is_kept() -> None:
    b = Builder("m", taken=["x", "N"])
    x = b.input("x", F32, [N])
    (i,) = b.axes([N])
    b.define("dead", [i], E.mul(b.read(x, [i.index]), E.const(2.0)))
    used = b.define("used", [i], E.add(b.read(x, [i.index]), E.const(1.0)))
    (r,) = b.axes([N], "r")
    y = b.define("total", [], b.read(used, [r.index]), reduction=Reduction("sum", (r,)))
    assert [line.partition(":")[0] for line in program_of(b, y.name)] == ["used", "total"]


def test_equal_constants_are_kept_once_wherever_they_are_read() -> None:
    b = Builder("m", taken=["N"])
    first = b.constant(np.arange(3, dtype=np.int64), "first")
    second = b.constant(np.arange(3, dtype=np.int64), "second")
    other = b.constant(np.arange(3, dtype=np.float32), "other")
    (i,) = b.axes([3])
    inner = b.read(second, [b.read(first, [i.index])])
    nested = b.define("nested", [i], b.read(other, [inner], E.const(0.0)))
    (s,) = b.axes([3], "s")
    b.add(
        Scatter(b.fresh("put"), F32, (i,), "sum", (s,), (b.read(second, [s.index]),),
                b.read(nested, [s.index]), E.const(0.0))
    )  # fmt: skip
    out = b.extern("topk", ["put", second.name], [("values", F32, [2]), ("at", I64, [2])], axis=0)
    lines = program_of(b, *(t.name for t in out))
    assert "second" not in "".join(lines)
    assert lines[0] == "nested: f32[i<3] = (other[first[first[i]]] else 0.0)"
    assert lines[-1].endswith("= extern topk(put, first) {axis = 0}")


def test_reads_of_statements() -> None:
    b = Builder("m", taken=["x", "N"])
    x = b.input("x", F32, [N])
    (i,) = b.axes([N])
    b.define("y_", [i], b.read(x, [i.index]))
    assert list(statement_reads(b.statements[0])) == ["x"]
    with pytest.raises(InternalError, match="X001"):
        b.input("x", F32, [N])
    with pytest.raises(InternalError, match="X001"):
        b.constant(np.array(["text"]), "t")
