"""Intervals of subscripts: sound for every value of the variables."""

from __future__ import annotations

import random

from tilewright.codegen.ranges import Ranges
from tilewright.ir import expr as E


def test_divisible_loops_need_no_tail() -> None:
    r = Ranges()
    r.loop("b", E.const(0), E.const(4096), 256)
    i = E.index("i")
    r.loop("i", E.index("b"), E.minimum(E.const(4096), E.index("b") + 256), 16)
    assert r.of(4096 - i)[0] == 16


def test_random_expressions_stay_inside() -> None:
    g = random.Random(0)
    for _ in range(300):
        r = Ranges()
        spans = {}
        for v in "ij":
            lo, step = g.randrange(-5, 5), g.choice([1, 2, 3])
            hi = lo + g.randrange(1, 12)
            r.loop(v, E.const(lo), E.const(hi), step)
            spans[v] = range(lo, hi, step)
        e = (
            E.index("i") * g.randrange(-3, 4)
            + E.index("j") * g.randrange(-3, 4)
            + g.randrange(-9, 9)
        )
        for _ in range(g.randrange(3)):
            op = g.choice(["floordiv", "mod", "min", "max", "mul"])
            if op in ("floordiv", "mod"):
                e = E.binary(op, e, E.const(g.randrange(1, 7)))
            elif op == "mul":
                e = e * E.index("i")
            else:
                e = E.binary(op, e, E.index("j"))
        low, high = r.of(e)
        d = r.divisor(e)
        for i in spans["i"]:
            for j in spans["j"]:
                x = E.int_value(
                    E.substitute(e, {E.index("i"): E.const(i), E.index("j"): E.const(j)})
                )
                assert x is not None
                assert low is None or low <= x, e
                assert high is None or x <= high, e
                assert x == 0 if d == 0 else x % d == 0, e
