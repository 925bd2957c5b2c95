"""Contractions: MatMul, Gemm, Einsum, and their integer and quantized forms.

In: a node. Out: `sum(k) a[..., i, k] * b[..., k, j]`. Invariant: half-precision products accumulate
in f32, integers in i32 where ONNX says so.
"""

from __future__ import annotations

from collections.abc import Sequence

from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.operations.contractions import contract
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F32
from tilewright.ir.expr import Expr

__all__: list[str] = []


@row("MatMul", kind="contraction")
def matmul(n: Node) -> Value:
    """NumPy matmul."""
    a, b = n[0], n[1]
    dtype = a.dtype.accumulator
    half = dtype is not a.dtype
    y = contract(n, a, b, dtype, "acc" if half else "")
    return n.cast(y, a.dtype)


@row("Gemm", kind="contraction", since=7)
def gemm(n: Node) -> Value:
    """alpha A B + beta C, with A and B optionally transposed."""
    a, b, c = n[0], n[1], n.optional(2)
    alpha, beta = float(n.attribute("alpha", 1.0)), float(n.attribute("beta", 1.0))
    turn_a, turn_b = bool(n.attribute("transA", 0)), bool(n.attribute("transB", 0))
    if a.rank != 2 or b.rank != 2:
        raise n.contradiction("operands that are no matrices")
    dtype = a.dtype.accumulator
    rows, depth = (a.shape[1], a.shape[0]) if turn_a else a.shape
    depth_b, columns = (b.shape[1], b.shape[0]) if turn_b else b.shape
    depth = n.equal(depth, depth_b, "the contracted sizes")
    plain = c is None and alpha == 1.0 and dtype is a.dtype

    def make(m: Node, weights: Value, bias: Value | None) -> Value:
        def product(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
            x = a.at(r[0], i[0]) if turn_a else a.at(i[0], r[0])
            w = weights.at(i[1], r[0]) if turn_b else weights.at(r[0], i[1])
            return E.mul(E.cast(x, dtype), E.cast(w, dtype))

        acc = m.reduce(
            "sum",
            [rows, columns],
            [depth],
            product,
            names=("i", "j"),
            over_names=("k",),
            suffix="" if plain and bias is None else "acc",
        )
        if plain and bias is None:
            return acc

        def body(i: Expr, j: Expr) -> Expr:
            e = acc.at(i, j)
            if alpha != 1.0:
                e = E.mul(e, like(e, alpha))
            if bias is not None:
                extra = E.cast(bias.aligned((i, j)), dtype)
                e = E.add(e, extra if beta == 1.0 else E.mul(extra, like(e, beta)))
            return E.cast(e, a.dtype)

        return m.define(acc.shape, body, ("i", "j"))

    y = make(n, b, c)
    usual = (
        alpha == 1.0
        and beta == 1.0
        and a.dtype is F32
        and (c is None or (c.array is not None and c.rank == 1))
    )
    if usual and b.array is not None:
        n.importer.recipes[y.name] = (
            b.array,
            None if c is None else c.array,
            0 if turn_b else 1,
            n.outputs[0],
            make,
        )
    return y


def einsum_terms(n: Node, equation: str, ranks: Sequence[int]) -> tuple[list[list[str]], list[str]]:
    """Axis labels per operand and of the result; the axes of an ellipsis are '...0', '...1',
    counted from the right.
    """
    text = equation.replace(" ", "")
    left, arrow, right = text.partition("->")
    terms = left.split(",")
    if len(terms) != len(ranks):
        raise n.contradiction(f"{equation!r} has {len(terms)} terms for {len(ranks)} operands")
    labels: list[list[str]] = []
    for term, rank in zip(terms, ranks, strict=True):
        head, dots, tail = term.partition("...")
        extra = rank - len(head) - len(tail)
        if extra < 0 or (extra and not dots):
            raise n.contradiction(f"term {term!r} for rank {rank}")
        labels.append([*head, *(f"...{k}" for k in range(extra - 1, -1, -1)), *tail])
    widest = max((sum(x.startswith("...") for x in t) for t in labels), default=0)
    ellipsis = [f"...{k}" for k in range(widest - 1, -1, -1)]
    if arrow:
        head, dots, tail = right.partition("...")
        return labels, [*head, *(ellipsis if dots else []), *tail]
    flat = [x for t in labels for x in t if not x.startswith("...")]
    return labels, [*ellipsis, *sorted(x for x in set(flat) if flat.count(x) == 1)]


@row("Einsum", kind="contraction", since=12)
def einsum(n: Node) -> Value:
    """Sums of products by subscripts; more than two operands are contracted from the left."""
    operands = [v for v in n.inputs if v is not None]
    labels, result = einsum_terms(n, n.required("equation"), [v.rank for v in operands])
    current, have = operands[0], labels[0]
    if len(operands) == 1:
        return _einsum_pair(n, [current], [have], result, "")
    for k in range(1, len(operands)):
        later = {x for t in labels[k + 1 :] for x in t} | set(result)
        last = k == len(operands) - 1
        want = result if last else [x for x in dict.fromkeys([*have, *labels[k]]) if x in later]
        current = _einsum_pair(
            n, [current, operands[k]], [have, labels[k]], want, "" if last else f"step{k}"
        )
        have = want
    return current


def _einsum_pair(
    n: Node,
    values: Sequence[Value],
    labels: Sequence[Sequence[str]],
    result: Sequence[str],
    suffix: str,
) -> Value:
    sizes: dict[str, Expr] = {}
    for v, term in zip(values, labels, strict=True):
        for x, s in zip(term, v.shape, strict=True):
            one = x.startswith("...") and (E.int_value(s) == 1 or E.int_value(sizes.get(x, s)) == 1)
            if x not in sizes or (one and E.int_value(sizes[x]) == 1):
                sizes[x] = s
            elif not one:
                sizes[x] = n.equal(sizes[x], s, f"axis {x!r}")
    if unknown := [x for x in result if x not in sizes]:
        raise n.contradiction(f"the result's axis {unknown[0]!r} is in no operand")
    inner = [x for x in sizes if x not in result]
    first = values[0].dtype
    dtype = first.accumulator if inner else first

    def body(i: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        at = dict(zip([*result, *inner], [*i, *r], strict=True))
        product: Expr | None = None
        for v, term in zip(values, labels, strict=True):
            subs = [
                E.const(0) if E.int_value(s) == 1 else at[x]
                for x, s in zip(term, v.shape, strict=True)
            ]
            e = E.cast(v.at(*subs), dtype)
            product = e if product is None else E.mul(product, e)
        assert product is not None  # for the type checker: there is at least one operand
        return product

    def spelled(x: str) -> str:
        return x.lower() if x.isalpha() else f"b{x[3:]}"

    half = dtype is not first
    y = n.reduce(
        "sum",
        [sizes[x] for x in result],
        [sizes[x] for x in inner],
        body,
        names=[spelled(x) for x in result],
        over_names=[spelled(x) for x in inner],
        suffix="acc" if half else suffix,
    )
    return n.cast(y, first, suffix)


@row("Det", kind="contraction", since=11)
def det(n: Node) -> Value:
    """The determinant of square matrices; 1x1 to 3x3 by formula, larger ones by an extern."""
    x = n[0]
    size = n.fixed(n.equal(x.shape[-1], x.shape[-2], "a square matrix"), "the size of the matrix")
    if size > 3:
        return n.extern("det", [x], [("", x.dtype, x.shape[:-2])])[0]

    def body(*i: Expr) -> Expr:
        return _determinant([[x.at(*i, r, c) for c in range(size)] for r in range(size)])

    return n.define(x.shape[:-2], body)


def _determinant(m: list[list[Expr]]) -> Expr:
    if len(m) == 1:
        return m[0][0]
    total: Expr | None = None
    for c in range(len(m)):
        minor = _determinant([[e for k, e in enumerate(r) if k != c] for r in m[1:]])
        term = E.mul(m[0][c], minor)
        total = term if total is None else E.sub(total, term) if c % 2 else E.add(total, term)
    assert total is not None  # for the type checker: the matrix is not empty
    return total
