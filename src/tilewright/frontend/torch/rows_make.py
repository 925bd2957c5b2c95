"""Rows that make tensors from numbers, sizes and positions.

In: a call. Out: definitions without reads. Invariant: a value of a size is a scalar that is known
when the sizes are.
"""

from __future__ import annotations

import numpy as np

from tilewright.frontend.operations.activations import convert
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import row
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

__all__: list[str] = []


def _filled(n: Call, value: object) -> Value:
    e = n.scalar(value, n.dtype)
    if e.op == "const" and not n.shape:  # readers see the number
        return n.constant(np.asarray(e.attr, n.dtype.np))
    return n.define(n.shape, lambda *i: e)


@row("full.default", "full_like.default", "new_full.default", kind="creation")
def full(n: Call) -> Value:
    """One value everywhere."""
    given = n.arguments["fill_value"]
    if n.importer.is_tensor(given):
        held = n.importer.value(given)
        return n.define(n.shape, lambda *i: convert(held.at(*[0] * held.rank), n.dtype))
    return _filled(n, given)


@row("fill.Scalar", "fill.Tensor", kind="creation")
def fill(n: Call) -> Value:
    """One value everywhere, of the shape of `self`."""
    given = n.arguments["value"]
    if n.importer.is_tensor(given):
        held = n.importer.value(given)
        return n.define(n.shape, lambda *i: convert(held.at(*[0] * held.rank), n.dtype))
    return _filled(n, given)


@row("zeros.default", "zeros_like.default", "new_zeros.default", kind="creation")
def zeros(n: Call) -> Value:
    """Zeros."""
    return _filled(n, 0)


@row("ones.default", "ones_like.default", "new_ones.default", kind="creation")
def ones(n: Call) -> Value:
    """Ones."""
    return _filled(n, 1)


@row(
    "empty.memory_format", "empty_like.default", "new_empty.default", "empty_strided.default",
    "new_empty_strided.default", "empty_permuted.default", "prims.empty_strided.default",
    kind="creation",
)  # fmt: skip
def empty(n: Call) -> Value:
    """Memory whose contents do not matter: zeros."""
    return _filled(n, 0)


@row("scalar_tensor.default", "prims.scalar_tensor.default", kind="creation")
def scalar_tensor(n: Call) -> Value:
    """A number as a tensor."""
    return _filled(n, n.arguments["s"])


@row("arange.start_step", "arange.default", "arange.start", kind="creation")
def arange(n: Call) -> Value:
    """start, start + step, ..."""
    dtype = n.dtype
    start, step = n.arguments.get("start"), n.arguments.get("step")
    first = n.scalar(0 if start is None else start, dtype.accumulator)
    by = n.scalar(1 if step is None else step, dtype.accumulator)
    return n.define(
        n.shape,
        lambda i: convert(E.add(E.mul(E.cast(i, dtype.accumulator), by), first), dtype),
    )


@row("prims.iota.default", kind="creation")
def iota(n: Call) -> Value:
    """start, start + step, ..., of a given length."""
    dtype = n.dtype
    start, step = n.scalar(n.get("start"), dtype), n.scalar(n.get("step"), dtype)
    return n.define(n.shape, lambda i: E.add(E.mul(E.cast(i, dtype), step), start))


@row("linspace.default", kind="creation")
def linspace(n: Call) -> Value:
    """Evenly spaced numbers, both ends included, computed from the nearer end."""
    dtype = n.dtype
    wide = dtype.accumulator
    if not wide.is_float:
        raise n.refuse("integers")
    start, end = n.scalar(n.get("start", 0), wide), n.scalar(n.get("end", 0), wide)
    count = n.whole("steps")
    gaps = E.cast(n.sizes.larger(count - 1, E.const(1)), wide)
    step = E.binary("div", E.sub(end, start), gaps)

    def body(i: Expr) -> Expr:
        near = E.add(start, E.mul(step, E.cast(i, wide)))
        far = E.sub(end, E.mul(step, E.cast(count - 1 - i, wide)))
        return E.cast(E.select(E.compare("lt", i * 2, count), near, far), dtype)

    return n.define(n.shape, body)


@row("eye.default", "eye.m", kind="creation")
def eye(n: Call) -> Value:
    """Ones on the diagonal."""
    dtype = n.dtype
    return n.define(n.shape, lambda i, j: E.cast(E.compare("eq", i, j), dtype))


@row("tril_indices.default", "triu_indices.default", kind="creation")
def triangle_indices(n: Call) -> Value:
    """Positions of a triangle of a matrix, row by row; a table made at import."""
    rows, columns = int(n.get("row")), int(n.get("col"))
    offset = int(n.get("offset", 0))
    make = np.tril_indices if n.op.startswith("tril") else np.triu_indices
    return n.constant(np.array(make(rows, offset, columns), n.dtype.np))
