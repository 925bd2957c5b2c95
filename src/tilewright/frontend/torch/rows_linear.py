"""Rows of linear algebra: factorizations, determinants, systems of equations.

In: a call. Out: loops and recurrences (`operations.linear`). Invariants: factors are packed, pivots
counted and signs chosen as LAPACK does, so that results can be given to PyTorch's own operators;
`info` says where a factorization failed.
"""

from __future__ import annotations

from tilewright.frontend.operations.linear import (
    Matrix,
    cholesky,
    first_failure,
    identity,
    lu,
    permutation,
    qr_reflections,
    reflect,
    solve_cholesky,
    solve_lu,
    solve_triangular,
    transposed,
)
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Index, Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I32, I64
from tilewright.ir.expr import Expr

__all__: list[str] = []


def _read(x: Value) -> Matrix:
    """The matrices of a value, which broadcast to the batch that they are read at."""
    lead = x.shape[:-2]

    def element(g: Index, i: Expr, j: Expr) -> Expr:
        own = list(g)[len(g) - len(lead) :]
        at = [E.const(0) if E.int_value(s) == 1 else e for s, e in zip(lead, own, strict=True)]
        return x.at(*at, i, j)

    return element


def _square(n: Call, x: Value) -> Expr:
    n.equal(x.shape[-1], x.shape[-2], "a square matrix")
    _fixed(n, x)
    return x.shape[-1]


def _fixed(n: Call, x: Value) -> None:
    """Sizes are fixed, and the element type is one that is computed in as it is. Errors: F005."""
    for s in x.shape:
        n.fixed(s, "a size")
    if not x.dtype.is_float or x.dtype.accumulator is not x.dtype:
        raise n.refuse(f"matrices of {x.dtype}")


def _pivots(n: Call, pivots: Value) -> Value:
    """Counted from 1, as LAPACK does."""
    return n.define(pivots.shape, lambda *i: E.cast(pivots.at(*i) + 1, I32), suffix="pivots_out")


def _from_lapack(n: Call, pivots: Value) -> Value:
    return n.define(
        pivots.shape, lambda *i: E.cast(pivots.at(*i), I64) - 1, suffix="pivots_in"
    )


def _failed(n: Call, factors: Value) -> Value:
    """The first zero on the diagonal of U."""
    steps = E.minimum(factors.shape[-1], factors.shape[-2])

    def is_zero(g: Index, k: Expr) -> Expr:
        e = factors.at(*g, k, k)
        return E.compare("eq", e, like(e, 0))

    return first_failure(n, factors.shape[:-2], steps, is_zero, I32)


# ---- LU ----------------------------------------------------------------------------------------


@row("linalg_lu_factor_ex.default", kind="linear")
def lu_factor(n: Call) -> list[Value | None]:
    """L and U in one matrix, pivots, and where it failed."""
    x = n["A"]
    _fixed(n, x)
    factors, pivots = lu(n, x, bool(n.get("pivot", True)))
    return [factors, _pivots(n, pivots), _failed(n, factors) if n.is_read(2) else None]


def _unpacked(n: Call, factors: Value, pivots: Value | None) -> list[Value | None]:
    """P, L, U; no P where there are no pivots to be looked at."""
    batch, (rows, columns) = factors.shape[:-2], factors.shape[-2:]
    steps = E.minimum(rows, columns)
    at = _read(factors)
    one = identity(factors.dtype)
    zero = E.const(0, factors.dtype)
    lower = n.define(
        (*batch, rows, steps),
        lambda *i: E.select(
            E.compare("lt", i[-1], i[-2]), at(i[:-2], i[-2], i[-1]), one((), i[-2], i[-1])
        ),
        suffix="lower",
    )
    upper = n.define(
        (*batch, steps, columns),
        lambda *i: E.select(E.compare("lt", i[-1], i[-2]), zero, at(i[:-2], i[-2], i[-1])),
        suffix="upper",
    )
    if pivots is None:
        return [None, lower, upper]
    order = permutation(n, pivots, rows)

    def element(*i: Expr) -> Expr:
        return one((), order.at(*i[:-2], i[-1]), i[-2])

    return [n.define((*batch, rows, rows), element, suffix="rows"), lower, upper]


@row("linalg_lu.default", kind="linear")
def lu_parts(n: Call) -> list[Value | None]:
    """P, L and U."""
    x = n["A"]
    _fixed(n, x)
    if not n.get("pivot", True):
        raise n.refuse("no pivots")
    factors, pivots = lu(n, x)
    return _unpacked(n, factors, pivots)


@row("lu_unpack.default", kind="linear")
def lu_unpack(n: Call) -> list[Value | None]:
    """P, L and U of packed factors."""
    factors = n["LU_data"]
    _fixed(n, factors)
    if not n.get("unpack_data", True) or not n.get("unpack_pivots", True):
        raise n.refuse("a part of the factors")
    return _unpacked(n, factors, _from_lapack(n, n["LU_pivots"]))


def _sign(n: Call, factors: Value, pivots: Value, with_signs: bool) -> Value:
    """-1 for an odd number of exchanges, times the signs of the diagonal if `with_signs`."""
    one, minus = E.const(1, factors.dtype), E.const(-1, factors.dtype)

    def term(g: Index, r: Index) -> Expr:
        swapped = E.select(E.compare("eq", pivots.at(*g, r[0]), r[0]), one, minus)
        d = factors.at(*g, r[0], r[0])
        return E.mul(swapped, E.unary("sign", d) if with_signs else d)

    return n.reduce("prod", factors.shape[:-2], [factors.shape[-1]], term, suffix="sign")


@row("_linalg_det.default", kind="linear")
def det(n: Call) -> list[Value | None]:
    """The determinant, and the factors that it is made of."""
    x = n["A"]
    _square(n, x)
    factors, pivots = lu(n, x)
    return [_sign(n, factors, pivots, False), factors, _pivots(n, pivots)]


@row("_linalg_slogdet.default", kind="linear")
def slogdet(n: Call) -> list[Value | None]:
    """Sign and logarithm of the determinant."""
    x = n["A"]
    size = _square(n, x)
    factors, pivots = lu(n, x)
    total = n.reduce(
        "sum", x.shape[:-2], [size],
        lambda g, r: E.unary("log", E.unary("abs", factors.at(*g, r[0], r[0]))), suffix="log",
    )  # fmt: skip
    return [_sign(n, factors, pivots, True), total, factors, _pivots(n, pivots)]


def _equations(
    n: Call, factors: Value, order: Value, b: Value, left: bool, adjoint: bool, shape: Index
) -> Value:
    """x with A x = b, or x A = b, for one b or several; `shape` is the result's."""
    size = factors.shape[-1]
    one = b.rank == factors.rank - 1 and len(shape) == b.rank
    given = b
    if one:
        given = n.define((*b.shape, 1), lambda *i: b.at(*i[:-1]), suffix="column")
    elif not left:
        given = n.define(
            (*b.shape[:-2], b.shape[-1], b.shape[-2]), lambda *i: b.at(*i[:-2], i[-1], i[-2]),
            suffix="turned",
        )  # fmt: skip
    batch = n.broadcast(factors.shape[:-2], given.shape[:-2])
    wide = order
    if order.shape[:-1] != batch:
        wide = n.define(
            (*batch, order.shape[-1]),
            lambda *i: order.at(
                *(E.const(0) if E.int_value(s) == 1 else e
                  for s, e in zip(order.shape[:-1], i[len(batch) - order.rank + 1 : -1],
                                  strict=True)),
                i[-1],
            ),
            suffix="orders",
        )  # fmt: skip
    x = solve_lu(
        n, _read(factors), wide, _read(given), size, given.shape[-1], factors.dtype,
        adjoint=adjoint if left or one else not adjoint,
    )  # fmt: skip
    if one:
        return n.define(shape, lambda *i: x.at(*i, 0))
    if not left:
        return n.define(shape, lambda *i: x.at(*i[:-2], i[-1], i[-2]))
    return x


@row("_linalg_solve_ex.default", kind="linear")
def solve(n: Call) -> list[Value | None]:
    """The solution, the factors, and where they failed."""
    a, b = n["A"], n["B"]
    size = _square(n, a)
    factors, pivots = lu(n, a)
    order = permutation(n, pivots, size)
    x = _equations(n, factors, order, b, bool(n.get("left", True)), False, n.shape)
    failed = _failed(n, factors) if n.is_read(3) else None
    return [x, factors, _pivots(n, pivots), failed]


@row("linalg_lu_solve.default", kind="linear")
def lu_solve(n: Call) -> Value:
    """The solution from packed factors."""
    factors = n["LU"]
    size = _square(n, factors)
    order = permutation(n, _from_lapack(n, n["pivots"]), size)
    left, adjoint = bool(n.get("left", True)), bool(n.get("adjoint", False))
    return _equations(n, factors, order, n["B"], left, adjoint, n.shape)


@row("linalg_inv_ex.default", kind="linear")
def inverse(n: Call) -> list[Value | None]:
    """The inverse, and where it failed."""
    x = n["A"]
    size = _square(n, x)
    factors, pivots = lu(n, x)
    order = permutation(n, pivots, size)
    y = solve_lu(n, _read(factors), order, identity(x.dtype), size, size, x.dtype)
    return [y, _failed(n, factors) if n.is_read(1) else None]


# ---- Cholesky, triangles -----------------------------------------------------------------------


@row("linalg_cholesky_ex.default", kind="linear")
def cholesky_ex(n: Call) -> list[Value | None]:
    """The factor, and where it failed."""
    x = n["self"]
    size = _square(n, x)
    upper = bool(n.get("upper", False))
    batch = x.shape[:-2]
    lower = cholesky(n, transposed(_read(x)) if upper else _read(x), batch, size, x.dtype)

    def failed(g: Index, k: Expr) -> Expr:
        e = lower.at(*g, k, k)
        return E.unary("not", E.compare("lt", like(e, 0), e))

    info = first_failure(n, batch, size, failed, I32) if n.is_read(1) else None
    return [_turned(n, lower) if upper else lower, info]


def _turned(n: Call, x: Value) -> Value:
    return n.define(x.shape, lambda *i: x.at(*i[:-2], i[-1], i[-2]), suffix="turned")


@row("cholesky_solve.default", kind="linear")
def cholesky_solve(n: Call) -> Value:
    """The solution from a factor."""
    b, factor = n["self"], n["input2"]
    size = _square(n, factor)
    _fixed(n, b)
    at = _read(factor)
    lower = transposed(at) if n.get("upper", False) else at
    return solve_cholesky(n, lower, _read(b), n.shape[:-2], size, b.shape[-1], b.dtype)


@row("cholesky_inverse.default", kind="linear")
def cholesky_inverse(n: Call) -> Value:
    """The inverse from a factor."""
    factor = n["self"]
    size = _square(n, factor)
    at = _read(factor)
    lower = transposed(at) if n.get("upper", False) else at
    batch, dtype = factor.shape[:-2], factor.dtype
    return solve_cholesky(n, lower, identity(dtype), batch, size, size, dtype)


def _triangle(
    n: Call, a: Value, b: Value, *, upper: bool, unit: bool, turn: bool, left: bool
) -> Value:
    """a x = b, a^T x = b, or x a = b."""
    _fixed(n, b)
    size = _square(n, a)
    batch = n.broadcast(a.shape[:-2], b.shape[:-2])
    at, given = _read(a), _read(b)
    if not left:  # a^T x^T = b^T
        at, given, upper = transposed(at), transposed(given), not upper
    if turn:
        at, upper = transposed(at), not upper
    columns = b.shape[-1] if left else b.shape[-2]
    x = solve_triangular(n, at, given, batch, size, columns, a.dtype, upper=upper, unit=unit)
    if left:
        return x
    return n.define(
        (*batch, columns, size), lambda *i: x.at(*i[:-2], i[-1], i[-2]), suffix="turned"
    )


@row("linalg_solve_triangular.default", kind="linear")
def triangular(n: Call) -> Value:
    """A triangular system."""
    return _triangle(
        n, n["self"], n["B"], upper=bool(n.get("upper")), left=bool(n.get("left", True)),
        unit=bool(n.get("unitriangular", False)), turn=False,
    )  # fmt: skip


@row("triangular_solve.default", kind="linear")
def triangular_solve(n: Call) -> list[Value | None]:
    """A triangular system, and a copy of its matrix."""
    a = n["A"]
    x = _triangle(
        n, a, n["self"], upper=bool(n.get("upper", True)), left=True,
        unit=bool(n.get("unitriangular", False)), turn=bool(n.get("transpose", False)),
    )  # fmt: skip
    shape = n.shape_of(1)
    at = _read(a)
    copy = n.define(shape, lambda *i: at(i[:-2], i[-2], i[-1]), suffix="copy")
    return [x, copy if n.is_read(1) else None]


# ---- reflections -------------------------------------------------------------------------------


@row("geqrf.default", kind="linear")
def geqrf(n: Call) -> list[Value | None]:
    """R and the reflections in one matrix, and their factors."""
    x = n["self"]
    _fixed(n, x)
    packed, taus = qr_reflections(n, x)
    return [packed, taus]


def _orthogonal(n: Call, packed: Value, taus: Value, columns: Expr) -> Value:
    """The first columns of Q."""
    batch, rows = packed.shape[:-2], packed.shape[-2]
    one = identity(packed.dtype)
    eye = n.define((*batch, rows, columns), lambda *i: one((), i[-2], i[-1]), suffix="eye")
    return reflect(n, packed, taus, eye)


@row("linalg_qr.default", kind="linear")
def qr(n: Call) -> list[Value | None]:
    """Q and R."""
    x = n["A"]
    _fixed(n, x)
    mode = n.get("mode", "reduced")
    batch, (rows, columns) = x.shape[:-2], x.shape[-2:]
    packed, taus = qr_reflections(n, x)
    kept = rows if mode == "complete" else E.minimum(rows, columns)
    zero = E.const(0, x.dtype)
    upper = n.define(
        (*batch, kept, columns),
        lambda *i: E.select(E.compare("lt", i[-1], i[-2]), zero, packed.at(*i)),
        suffix="upper",
    )
    if mode == "r":
        return [n.define(n.shape, lambda *i: zero, suffix="none"), upper]
    return [_orthogonal(n, packed, taus, kept), upper]


@row("linalg_householder_product.default", kind="linear")
def householder_product(n: Call) -> Value:
    """The first columns of the product of reflections."""
    vectors, taus = n["input"], n["tau"]
    _fixed(n, vectors)
    return _orthogonal(n, vectors, taus, vectors.shape[-1])


@row("ormqr.default", kind="linear")
def ormqr(n: Call) -> Value:
    """Q c, Q^T c, c Q or c Q^T."""
    vectors, taus, c = n["self"], n["input2"], n["input3"]
    _fixed(n, c)
    transpose = bool(n.get("transpose", False))
    if n.get("left", True):
        return reflect(n, vectors, taus, c, transpose=transpose)
    turned = n.define(
        (*c.shape[:-2], c.shape[-1], c.shape[-2]), lambda *i: c.at(*i[:-2], i[-1], i[-2]),
        suffix="turned",
    )  # fmt: skip
    x = reflect(n, vectors, taus, turned, transpose=not transpose)
    return n.define(c.shape, lambda *i: x.at(*i[:-2], i[-1], i[-2]))
