"""Factorizations and triangular systems over the last two axes of stacks of matrices.

In: values of shape [..., m, n] in a float dtype. Out: definitions: loops whose state is the matrix,
or recurrences over rows. Invariants: pivots, signs of reflections and what is stored where are
LAPACK's, so that a factor made here can be used there; an empty matrix has empty factors.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.frontend.operations.loops import repeat
from tilewright.frontend.values import Definer, Index, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Definition, Recurrence, Reduction

__all__ = ["Matrix", "cholesky", "first_failure", "identity", "lu", "permutation", "qr_reflections"]
__all__ += ["reflect", "solve_cholesky", "solve_lu", "solve_triangular", "transposed"]

Matrix = Callable[[Index, Expr, Expr], Expr]  # element (i, j) of the matrix at a batch index


def transposed(a: Matrix) -> Matrix:
    """The matrix with its axes exchanged."""
    return lambda g, i, j: a(g, j, i)


def identity(dtype: DType) -> Matrix:
    """Ones on the diagonal."""
    one, zero = E.const(1, dtype), E.const(0, dtype)
    return lambda g, i, j: E.select(E.compare("eq", i, j), one, zero)


def _at(v: Value) -> Matrix:
    return lambda g, i, j: v.at(*g, i, j)


def _abs(e: Expr) -> Expr:
    return E.unary("abs", e)


def _ratio(a: Expr, b: Expr) -> Expr:
    return E.binary("div", a, b)


# ---- LU ----------------------------------------------------------------------------------------


def lu(n: Definer, x: Value, pivot: bool = True) -> tuple[Value, Value]:
    """L below the diagonal (ones left out) and U above it, [..., m, n]; and the row that each step
    exchanges with its own, i64[..., min(m, n)], counted from 0.

    The pivot is the first largest element of what is left of the column; without `pivot` it is the
    diagonal's. A column without any keeps its zeros.
    """
    batch, (rows, columns) = x.shape[:-2], x.shape[-2:]
    steps = E.minimum(rows, columns)

    def step(t: Expr, states: list[Value]) -> list[Value]:
        m, pivots = states
        column = n.define((*batch, rows), lambda *i: m.at(*i, t), suffix="column")
        if pivot:
            chosen = n.reduce(
                "argmax", batch, [rows],
                lambda g, r: E.select(
                    E.compare("ge", r[0], t), _abs(column.at(*g, r[0])), like(column, -1)
                ),
                suffix="pivot", keep_ones=True,
            )  # fmt: skip
        else:
            chosen = n.define(batch, lambda *g: t, suffix="pivot")
        top = n.define((*batch, columns), lambda *i: m.at(*i[:-1], chosen.at(*i[:-1]), i[-1]),
                       suffix="top")  # fmt: skip

        def source(g: Index, i: Expr) -> Expr:
            return E.select(E.compare("eq", i, chosen.at(*g)), t, i)

        def factor(*i: Expr) -> Expr:
            *g, r = i
            divisor = top.at(*g, t)
            zero = like(divisor, 0)
            return E.select(
                E.compare("eq", divisor, zero), zero, _ratio(column.at(*g, source(g, r)), divisor)
            )

        scale = n.define((*batch, rows), factor, suffix="scale")

        def new(*i: Expr) -> Expr:
            *g, r, c = i
            old = m.at(*g, source(g, r), c)
            below = E.select(
                E.compare("lt", t, c),
                E.sub(old, E.mul(scale.at(*g, r), top.at(*g, c))),
                E.select(E.compare("eq", t, c), scale.at(*g, r), old),
            )
            return E.select(
                E.compare("lt", t, r), below,
                E.select(E.compare("eq", t, r), top.at(*g, c), m.at(*g, r, c)),
            )  # fmt: skip

        return [
            n.define(m.shape, new, suffix="eliminated"),
            n.define(
                pivots.shape,
                lambda *i: E.select(E.compare("eq", i[-1], t), chosen.at(*i[:-1]), pivots.at(*i)),
                suffix="pivots",
            ),
        ]

    first = n.define((*batch, steps), lambda *i: i[-1], suffix="diagonal")
    factors, pivots = repeat(n, steps, [_own(n, x), first], step)
    return factors, pivots


def _own(n: Definer, x: Value) -> Value:
    """A definition of ours that equals `x`: what a loop starts from is no input of the graph."""
    return n.define(x.shape, lambda *i: x.at(*i), suffix="start")


def permutation(n: Definer, pivots: Value, rows: Expr) -> Value:
    """i64[..., rows]: which row comes to each place when rows are exchanged one after the other."""
    batch = pivots.shape[:-1]

    def step(t: Expr, states: list[Value]) -> list[Value]:
        (order,) = states

        def new(*i: Expr) -> Expr:
            *g, r = i
            other = pivots.at(*g, t)
            there = E.select(
                E.compare("eq", r, t), other, E.select(E.compare("eq", r, other), t, r)
            )
            return order.at(*g, there)

        return [n.define(order.shape, new, suffix="order")]

    first = n.define((*batch, rows), lambda *i: i[-1], suffix="order")
    return repeat(n, pivots.shape[-1], [first], step)[0]


def solve_lu(
    n: Definer, factors: Matrix, order: Value, b: Matrix, size: Expr, columns: Expr,
    dtype: DType, adjoint: bool = False,
) -> Value:  # fmt: skip
    """x with A x = b, or A^T x = b, where the rows `order` of A are L U."""
    batch = order.shape[:-1]
    if not adjoint:

        def exchanged(g: Index, i: Expr, j: Expr) -> Expr:
            return b(g, order.at(*g, i), j)

        y = solve_triangular(n, factors, exchanged, batch, size, columns, dtype, unit=True)
        return solve_triangular(n, factors, _at(y), batch, size, columns, dtype, upper=True)
    y = solve_triangular(n, transposed(factors), b, batch, size, columns, dtype)
    z = solve_triangular(
        n, transposed(factors), _at(y), batch, size, columns, dtype, upper=True, unit=True
    )
    place = n.reduce(
        "sum", order.shape, [size],
        lambda i, r: E.select(
            E.compare("eq", order.at(*i[:-1], r[0]), i[-1]), r[0], E.const(0)
        ),
        suffix="place",
    )  # fmt: skip
    return n.define(
        (*batch, size, columns), lambda *i: z.at(*i[:-2], place.at(*i[:-1]), i[-1]), suffix="back"
    )


# ---- Cholesky ----------------------------------------------------------------------------------


def cholesky(n: Definer, a: Matrix, batch: Index, size: Expr, dtype: DType) -> Value:
    """The lower factor [..., size, size] of a positive definite matrix, of which the lower triangle
    is read. Where a pivot is not positive, it and what depends on it is NaN.
    """
    t, *rest = n.axes((size, *batch, size))
    *g, i = rest
    (s,) = n.axes((size,), ("s",))
    done, part = n.builder.fresh(f"{n.hint}_factor"), n.builder.fresh(f"{n.hint}_part")
    at = [x.index for x in g]

    def factor(step: Expr, row: Expr) -> Expr:
        return E.read(done, (step, *at, row), dtype)

    def left(row: Expr) -> Expr:
        return E.sub(a(at, row, t.index), E.read(part, (t.index, *at, row), dtype))

    products = Reduction("sum", (s,), E.compare("lt", s.index, t.index))
    axes = (t, *g, i)
    n.builder.add(
        Recurrence(
            t,
            (
                Definition(
                    part, dtype, axes, E.mul(factor(s.index, i.index), factor(s.index, t.index)),
                    products,
                ),
                Definition(
                    done, dtype, axes,
                    E.select(
                        E.compare("lt", i.index, t.index), E.const(0, dtype),
                        _ratio(left(i.index), E.unary("sqrt", left(t.index))),
                    ),
                ),
            ),
        )
    )  # fmt: skip
    found = n.value(n.builder.tensors[done])
    return n.define(
        (*batch, size, size), lambda *k: found.at(k[-1], *k[:-2], k[-2]), suffix="lower"
    )


def solve_cholesky(
    n: Definer, lower: Matrix, b: Matrix, batch: Index, size: Expr, columns: Expr, dtype: DType
) -> Value:
    """x with L L^T x = b."""
    y = solve_triangular(n, lower, b, batch, size, columns, dtype)
    return solve_triangular(
        n, transposed(lower), _at(y), batch, size, columns, dtype, upper=True
    )


def first_failure(
    n: Definer, batch: Index, steps: Expr, bad: Callable[[Index, Expr], Expr], dtype: DType
) -> Value:
    """LAPACK's `info`: 1 + the first step that is bad, 0 where none is."""
    none = steps + 1
    first = n.reduce(
        "min", batch, [steps], lambda g, r: E.select(bad(g, r[0]), r[0] + 1, none),
        suffix="first", keep_ones=True,
    )  # fmt: skip
    return n.define(
        batch,
        lambda *g: E.cast(
            E.select(E.compare("lt", first.at(*g), none), first.at(*g), E.const(0)), dtype
        ),
        suffix="info",
    )


# ---- triangular systems ------------------------------------------------------------------------


def solve_triangular(
    n: Definer, a: Matrix, b: Matrix, batch: Sequence[Expr], size: Expr, columns: Expr,
    dtype: DType, *, upper: bool = False, unit: bool = False,
) -> Value:  # fmt: skip
    """x [..., size, columns] with a x = b; of `a` one triangle is read, without its diagonal where
    that is `unit`.
    """

    def row(k: Expr) -> Expr:
        return size - 1 - k if upper else k

    t, *rest = n.axes((size, *batch, columns))
    *g, j = rest
    (s,) = n.axes((size,), ("s",))
    done, part = n.builder.fresh(f"{n.hint}_rows"), n.builder.fresh(f"{n.hint}_part")
    at = [x.index for x in g]
    product = E.mul(
        a(at, row(t.index), row(s.index)), E.read(done, (s.index, *at, j.index), dtype)
    )
    rest_of = E.sub(b(at, row(t.index), j.index), E.read(part, (t.index, *at, j.index), dtype))
    if not unit:
        rest_of = _ratio(rest_of, a(at, row(t.index), row(t.index)))
    axes = (t, *g, j)
    guard = Reduction("sum", (s,), E.compare("lt", s.index, t.index))
    n.builder.add(
        Recurrence(
            t,
            (
                Definition(part, dtype, axes, product, guard),
                Definition(done, dtype, axes, rest_of),
            ),
        )
    )
    found = n.value(n.builder.tensors[done])
    return n.define(
        (*batch, size, columns), lambda *k: found.at(row(k[-2]), *k[:-2], k[-1]), suffix="solved"
    )


# ---- reflections -------------------------------------------------------------------------------


def qr_reflections(n: Definer, x: Value) -> tuple[Value, Value]:
    """R in the upper triangle, the reflections' vectors below it (their leading ones left out), and
    their factors tau [..., min(m, n)].
    """
    batch, (rows, columns) = x.shape[:-2], x.shape[-2:]
    steps = E.minimum(rows, columns)
    zero, one = like(x, 0), like(x, 1)

    def step(t: Expr, states: list[Value]) -> list[Value]:
        m, taus = states
        squares = n.reduce(
            "sum", batch, [rows],
            lambda g, r: E.select(
                E.compare("lt", t, r[0]), E.mul(m.at(*g, r[0], t), m.at(*g, r[0], t)), zero
            ),
            suffix="squares",
        )  # fmt: skip

        def corner(g: Index) -> Expr:
            return m.at(*g, t, t)

        def reflected(*g: Expr) -> Expr:
            length = E.unary(
                "sqrt", E.add(E.mul(corner(g), corner(g)), squares.at(*g))
            )
            away = E.select(E.compare("lt", corner(g), zero), length, E.unary("neg", length))
            return E.select(E.compare("eq", squares.at(*g), zero), corner(g), away)

        beta = n.define(batch, reflected, suffix="beta")

        def factor(*g: Expr) -> Expr:
            return E.select(
                E.compare("eq", squares.at(*g), zero), zero,
                _ratio(E.sub(beta.at(*g), corner(g)), beta.at(*g)),
            )  # fmt: skip

        tau = n.define(batch, factor, suffix="tau")

        def entry(*i: Expr) -> Expr:
            *g, r = i
            scaled = E.select(
                E.compare("eq", tau.at(*g), zero), zero,
                _ratio(m.at(*g, r, t), E.sub(corner(g), beta.at(*g))),
            )  # fmt: skip
            return E.select(
                E.compare("lt", t, r), scaled, E.select(E.compare("eq", r, t), one, zero)
            )

        vector = n.define((*batch, rows), entry, suffix="vector")
        along = _along(n, vector, m)

        def new(*i: Expr) -> Expr:
            *g, r, c = i
            old = m.at(*g, r, c)
            moved = E.sub(
                old, E.mul(E.mul(tau.at(*g), vector.at(*g, r)), along.at(*g, c))
            )
            stored = E.select(E.compare("eq", r, t), beta.at(*g), vector.at(*g, r))
            after = E.select(E.compare("eq", c, t), stored, moved)
            outside = E.logical("or", E.compare("lt", r, t), E.compare("lt", c, t))
            return E.select(outside, old, after)

        return [
            n.define(m.shape, new, suffix="reflected"),
            n.define(
                taus.shape,
                lambda *i: E.select(E.compare("eq", i[-1], t), tau.at(*i[:-1]), taus.at(*i)),
                suffix="taus",
            ),
        ]

    first = n.define((*batch, steps), lambda *i: zero, suffix="taus")
    packed, taus = repeat(n, steps, [_own(n, x), first], step)
    return packed, taus


def _along(n: Definer, vector: Value, m: Value) -> Value:
    """v^T m: [..., columns] of v [..., rows] and m [..., rows, columns]."""
    *batch, rows, columns = m.shape
    return n.reduce(
        "sum", (*batch, columns), [rows],
        lambda i, r: E.mul(vector.at(*i[:-1], r[0]), m.at(*i[:-1], r[0], i[-1])),
        suffix="along",
    )  # fmt: skip


def reflect(
    n: Definer, vectors: Value, taus: Value, x: Value, *, transpose: bool = False
) -> Value:
    """Q x, or Q^T x, for Q = H_0 H_1 ... with H_k = 1 - tau_k v_k v_k^T; x is [..., rows, columns]
    and v_k lies below the diagonal of column k, after an implied one.
    """
    batch, rows = x.shape[:-2], x.shape[-2]
    steps = taus.shape[-1]
    zero, one = like(x, 0), like(x, 1)

    def step(t: Expr, states: list[Value]) -> list[Value]:
        (m,) = states
        k = t if transpose else steps - 1 - t

        def entry(*i: Expr) -> Expr:
            *g, r = i
            return E.select(
                E.compare("lt", k, r), vectors.at(*g, r, k),
                E.select(E.compare("eq", r, k), one, zero),
            )  # fmt: skip

        vector = n.define((*batch, rows), entry, suffix="vector")
        along = _along(n, vector, m)

        def new(*i: Expr) -> Expr:
            *g, r, c = i
            return E.sub(
                m.at(*i),
                E.mul(E.mul(taus.at(*g, k), vector.at(*g, r)), along.at(*g, c)),
            )

        return [n.define(m.shape, new, suffix="reflected")]

    return repeat(n, steps, [_own(n, x)], step)[0]
