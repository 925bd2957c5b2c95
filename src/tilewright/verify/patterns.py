"""Larger patterns for random programs: those that a derivation or a schedule treats in its own way.

In: a `Maker`. Out: statements added to it. Invariants: as for the kinds of `statements.py`; sizes
are those at which the pattern is treated so, and those just below.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16, F16, F32, F64, I8, I32, I64, U8
from tilewright.ir.expr import Expr
from tilewright.ir.program import Axis, Reduction
from tilewright.verify.maker import Maker

__all__ = ["PATTERNS"]


def _attention(m: Maker) -> None:
    """Scores of queries and keys, masked by place or by value, normalised, times values."""
    rng = m.rng
    dtype = rng.choice((F32, F32, F32, F64, F16))
    heads = [E.const(rng.choice((1, 2, 3)))] if rng.random() < 0.6 else []
    queries = E.const(rng.choice((1, 3, 8, 17, 33, 64)))
    keys = E.const(rng.choice((1, 5, 16, 40, 113, 130, 260)))
    width, out = E.const(rng.choice((1, 4, 8, 16))), E.const(rng.choice((1, 4, 8, 17)))
    q = m.operand(dtype, [*heads, queries, width])
    k = m.operand(dtype, [*heads, keys, width])
    v = m.operand(dtype, [*heads, keys, out])
    h = tuple(Axis("h", e) for e in heads)
    i, j, d, o = Axis("i", queries), Axis("j", keys), Axis("d", width), Axis("o", out)
    at = [a.index for a in h]

    def read(name: str, *places: Axis) -> Expr:
        return E.read(name, [*at, *(a.index for a in places)], dtype)

    product = E.mul(read(q.name, i, d), read(k.name, j, d))
    scores = m.add(dtype, (*h, i, j), product, Reduction("sum", (d,)))
    x = E.mul(read(scores.name, i, j), E.const(rng.choice((0.125, 0.5, 1.0)), dtype))
    style = rng.choice(("plain", "causal", "window", "added", "length"))
    low = E.const(float("-inf"), dtype)
    if style == "causal":
        x = E.select(E.compare("le", j.index, i.index + rng.choice((0, 0, 3))), x, low)
    elif style == "window":
        near = E.logical(
            "and",
            E.compare("le", j.index, i.index + 4),
            E.compare("le", i.index, j.index + 4),
        )
        x = E.select(near, x, low)
    elif style == "added":
        bias = m.operand(dtype, [queries, keys])
        x = E.add(x, E.read(bias.name, [i.index, j.index], dtype))
    elif style == "length":
        many = m.operand(I64, [])
        x = E.select(E.compare("lt", j.index, E.read(many.name, (), I64)), x, low)
    if style != "plain":
        x = read(m.add(dtype, (*h, i, j), x).name, i, j)
    top = m.add(dtype, (*h, i), x, Reduction("max", (j,)))
    level = E.read(top.name, [*at, i.index], dtype)
    if style != "plain":  # a row without any score has weights of zero
        level = E.select(E.compare("eq", level, low), E.const(0, dtype), level)
    power = m.add(dtype, (*h, i, j), E.unary("exp", E.sub(x, level)))
    total = m.add(dtype, (*h, i), read(power.name, i, j), Reduction("sum", (j,)))
    floor = E.maximum(E.read(total.name, [*at, i.index], dtype), E.const(2.0**-14, dtype))
    weight = m.add(dtype, (*h, i, j), E.binary("div", read(power.name, i, j), floor))
    body = E.mul(read(weight.name, i, j), read(v.name, j, o))
    m.add(dtype, (*h, i, o), body, Reduction("sum", (j,)))


def _ragged(m: Maker) -> None:
    """Rows of different lengths: bounds are read, in offsets or as first and last."""
    rng = m.rng
    rows, longest = m.extent(17), m.extent(40)
    t = m.operand(m.float_type(), [longest])
    first, last = m.operand(I64, [rows]), m.operand(I64, [rows])
    i, j = Axis("i", rows), Axis("j", longest)
    inside = E.compare("lt", j.index, E.read(last.name, [i.index], I64))
    if rng.random() < 0.7:
        begun = E.compare("le", E.read(first.name, [i.index], I64), j.index)
        inside = E.logical("and", begun, inside)
    body = E.read(t.name, [j.index], t.dtype)
    monoid = rng.choice(("sum", "max", "min", "prod", "logsumexp"))
    if monoid == "prod":
        body = m.factor(body, [j])
    m.add(t.dtype, (i,), body, Reduction(monoid, (j,), inside))


def _long(m: Maker) -> None:
    """A long reduction with few results, or a prefix over many elements: split over threads, or
    kept in strips.
    """
    rng = m.rng
    dtype = rng.choice((F32, F32, F64))
    long = rng.choice((511, 512, 1000, 2049, 8193, 33_000))
    fits = [n for n in (1, 2, 3, 9, 33, 64) if n * long <= 1 << 17]
    much = [n for n in fits if n * long >= 1 << 15]  # enough to be split
    few = rng.choice(much if much and rng.random() < 0.6 else fits)
    across = rng.random() < 0.5
    shape = [E.const(long), E.const(few)] if across else [E.const(few), E.const(long)]
    if rng.random() < 0.2:
        shape = [E.const(long)]
    t = m.operand(dtype, shape)
    axes = m.axes(t.shape)
    body = E.read(t.name, [a.index for a in axes], dtype)
    along = next(a for a in axes if E.int_value(a.extent) == long)
    if rng.random() < 0.3:
        m.add(dtype, axes, body, None, (rng.choice(("sum", "max", "min")), along.name))
        return
    if rng.random() < 0.5:
        body = m.expression(dtype, axes, 1, t)
    monoid = rng.choice(("sum", "sum", "max", "min", "logsumexp", "argmax"))
    outer = tuple(a for a in axes if a is not along)
    result = I64 if monoid == "argmax" else dtype
    m.add(result, outer, body, Reduction(monoid, (along,)))


def _sliding(m: Maker) -> None:
    """A sum over one or two windows that slide by one, with known weights, in any order of axes:
    wide enough that a form with fewer multiplications pays, or not.
    """
    rng = m.rng
    dtype = rng.choice((F32, F32, F32, F32, F32, F64, F16))
    rank = rng.choice((1, 2, 2, 2))
    wide = rng.random() < 0.75
    taps = [rng.choice((3, 3, 3, 3, 5))] * rank
    if rng.random() < 0.15:
        taps[-1] = rng.choice((2, 3, 5))
    depth, outs = (rng.choice((24, 32, 48, 64) if wide else (1, 3, 8, 17)) for _ in range(2))
    if wide and rank == 1:
        depth = outs = 64
    places = (64, 129, 131) if rank == 1 else (12, 13, 16, 19)
    space = [rng.choice(places if wide else (3, 4, 7, 12)) for _ in taps]
    pads = [rng.choice((0, 1, k // 2, k)) for k in taps]
    steps = [rng.choice((1, 1, 1, 1, 2, 3)) for _ in taps]  # from tap to tap
    extents = [n + 2 * p - s * (k - 1) for n, p, k, s in zip(space, pads, taps, steps, strict=True)]
    if min(extents) < 1:
        return
    batch = [Axis("n", E.const(rng.choice((1, 2))))] if rng.random() < 0.5 else []
    o, c = Axis("o", E.const(outs)), Axis("c", E.const(depth))
    slides = [Axis(x, E.const(n)) for x, n in zip("hw", extents, strict=False)]
    windows = [Axis(x, E.const(k)) for x, k in zip("uv", taps, strict=False)]

    def shuffled(things: Sequence[Axis]) -> list[Axis]:
        return rng.sample(things, len(things))

    from_x = shuffled([*batch, c, *slides])
    from_k = shuffled([o, c, *windows])
    inside = dict(zip(slides, zip(windows, pads, space, steps, strict=True), strict=True))
    x = m.operand(dtype, [E.const(inside[a][2]) if a in inside else a.extent for a in from_x])
    k = m.new_input(dtype, [a.extent for a in from_k])
    m.weights.add(k.name)
    at = [a.index for a in from_x]
    for place, a in enumerate(from_x):
        if a in inside:
            window, pad, _, step = inside[a]
            at[place] = a.index + window.index * step - pad
    padded = E.const(0, dtype) if any(pads) or rng.random() < 0.2 else None
    factors = [
        E.read(x.name, at, dtype, padded),
        E.read(k.name, [a.index for a in from_k], dtype),
    ]
    axes = shuffled([*batch, o, *slides])
    body = E.mul(*rng.sample(factors, 2))
    y = m.add(dtype, axes, body, Reduction("sum", tuple(shuffled([c, *windows]))))
    if rng.random() < 0.7:
        bias = m.new_input(dtype, [o.extent])
        m.weights.add(bias.name)
        moved = E.read(y.name, [a.index for a in axes], dtype)
        moved = E.add(moved, E.read(bias.name, [o.index], dtype))
        m.add(dtype, axes, E.maximum(moved, E.const(0, dtype)) if rng.random() < 0.6 else moved)


def _phased(m: Maker) -> None:
    """A reduction over the taps that fit an output: those for which a quotient has no remainder, in
    one to three axes; with weights, known or not, or without.
    """
    rng = m.rng
    dtype = rng.choice((F32, F32, F32, F32, F64, F16))
    rank = rng.choice((1, 1, 2, 2, 3))
    taps = [rng.choice((1, 2, 3, 4, 5)) for _ in range(rank)]
    strides = [rng.choice((1, 2, 2, 3, 4)) for _ in range(rank)]
    apart = [rng.choice((1, 1, 1, 2, 3)) for _ in range(rank)]  # from tap to tap
    scale = [rng.choice((1, 1, 1, 1, 2, 3)) for _ in range(rank)]  # of the output's position
    space = [rng.choice((3, 4, 7, 9) if rank < 3 else (2, 3, 4)) for _ in range(rank)]
    pads = [rng.choice((-1, 0, 0, 1, 2)) for _ in range(rank)]
    extents = [
        max(1, ((n - 1) * s + (k - 1) * e + 1 - 2 * p + rng.choice((0, 0, 1, 2))) // f)
        for n, s, k, e, p, f in zip(space, strides, taps, apart, pads, scale, strict=True)
    ]
    groups = rng.choice((1, 1, 1, 2))
    depth, outs = rng.choice((1, 3, 8, 16)), groups * rng.choice((1, 3, 8, 17, 32))
    monoid = rng.choice(("sum", "sum", "sum", "sum", "max", "min"))
    o, c = Axis("o", E.const(outs)), Axis("c", E.const(depth))
    slides = [Axis(x, E.const(n)) for x, n in zip("hwd", extents, strict=False)]
    windows = [Axis(x, E.const(k)) for x, k in zip("uvt", taps, strict=False)]
    group = E.floordiv(o.index, E.const(outs // groups)) if groups > 1 else E.const(0)
    at: list[Expr] = []
    fits: list[Expr] = []
    around = zip(slides, windows, strides, apart, scale, pads, strict=True)
    for h, u, s, e, f, p in around:
        backward = rng.random() < 0.8
        place = h.index * f + (-e if backward else e) * u.index + p
        at.append(E.floordiv(place, E.const(s)))
        if s > 1 and rng.random() < 0.95:
            fits.append(E.compare("eq", E.mod(place, E.const(s)), E.const(0)))
    if rng.random() < 0.15:
        fits.append(E.compare("lt", slides[0].index, windows[0].index + extents[0] // 2))
    zero = E.const(0, dtype)
    weighted = rng.random() < 0.75
    channel = c.index + group * depth if weighted else o.index
    x = m.operand(dtype, [E.const(depth * groups if weighted else outs), *map(E.const, space)])
    body = E.read(x.name, [channel, *at], dtype, zero)
    over = windows
    if weighted:
        per = outs // groups
        k = m.new_input(
            dtype, [E.const(depth * groups), E.const(per), *(a.extent for a in windows)]
        )
        if rng.random() < 0.7:
            m.weights.add(k.name)
        taken = [a.index for a in windows]
        factor = E.read(k.name, [channel, o.index - group * per, *taken], dtype)
        body = E.mul(*rng.sample((body, factor), 2))
        over = rng.sample([c, *windows], rank + 1)
    condition = E.const(True)
    for e in fits:
        condition = E.logical("and", condition, e)
    guard: Expr | None = condition if fits else None
    if guard is not None and monoid == "sum" and rng.random() < 0.5:
        body, guard = E.select(guard, body, zero), None
    axes = rng.sample([o, *slides], rank + 1)
    y = m.add(dtype, axes, body, Reduction(monoid, tuple(over), guard))
    if rng.random() < 0.5:
        bias = m.operand(dtype, [o.extent])
        moved = E.read(y.name, [a.index for a in axes], dtype)
        m.add(dtype, axes, E.maximum(moved, E.read(bias.name, [o.index], dtype)))


def _narrow(m: Maker) -> None:
    """A product of bytes or of bf16, summed in a wider type: words of a few elements are multiplied
    at once, and matrix registers hold such factors.
    """
    rng = m.rng
    kinds = ((U8, I8, I32), (I8, I8, I32), (I8, U8, I32), (U8, U8, I32), (BF16, BF16, F32))
    left, right, wide = rng.choice((*kinds, kinds[-1]))
    rows = E.const(rng.choice((1, 3, 16, 17, 33, 40)))
    columns = E.const(rng.choice((1, 8, 16, 17, 32, 48, 67)))
    depth = E.const(rng.choice((3, 4, 8, 16, 31, 64, 65, 130)))
    i, j, k = Axis("i", rows), Axis("j", columns), Axis("k", depth)
    order = (k, j) if rng.random() < 0.6 else (j, k)
    a = m.operand(left, [rows, depth])
    b = m.new_input(right, [x.extent for x in order])
    if rng.random() < 0.5:
        m.weights.add(b.name)
    factors = [
        E.cast(E.read(a.name, [i.index, k.index], left), wide),
        E.cast(E.read(b.name, [x.index for x in order], right), wide),
    ]
    if wide is I32 and rng.random() < 0.25:  # zero points
        factors = [E.sub(x, E.const(rng.choice((0, 3, 128)), wide)) for x in factors]
    y = m.add(wide, (i, j), E.mul(*factors), Reduction("sum", (k,)))
    if rng.random() < 0.5:
        scale = m.operand(F32, [columns])
        moved = E.cast(E.read(y.name, [i.index, j.index], wide), F32)
        m.add(F32, (i, j), E.mul(moved, E.read(scale.name, [j.index], F32)))


PATTERNS: dict[str, tuple[Callable[[Maker], None], int]] = {
    "attention": (_attention, 1),
    "ragged": (_ragged, 1),
    "long": (_long, 1),
    "sliding": (_sliding, 1),
    "phased": (_phased, 1),
    "narrow": (_narrow, 1),
}
