"""Kinds of statements of random programs: each adds one or several definitions to a `Maker`.

In: a `Maker`. Out: statements added to it, or none where the sizes at hand do not allow the kind.
Invariant: reads without `else` are in range for the sizes of the case.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, F16, F32, F64, I32, I64
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    Attribute,
    Axis,
    Definition,
    Extern,
    Recurrence,
    Reduction,
    Scatter,
    Tensor,
    statement_reads,
)
from tilewright.verify.maker import INTS, WORK, Maker
from tilewright.verify.patterns import PATTERNS

__all__ = ["KINDS"]


def _elementwise(m: Maker) -> None:
    t = m.source(m.rng.choice((0, 1, 1, 2, 2, 3)))
    shape = list(t.shape)
    if m.rng.random() < 0.3:
        m.rng.shuffle(shape)
    axes = m.axes(shape)
    dtype = t.dtype if m.rng.random() < 0.8 else m.float_type()
    m.add(dtype, axes, m.expression(dtype, axes, m.rng.choice((1, 2, 2, 3)), t))


def _integers(m: Maker) -> None:
    t = m.source(m.rng.choice((1, 2)), "iu")
    axes = m.axes(t.shape)
    dtype = t.dtype if m.rng.random() < 0.6 else m.rng.choice((*INTS, BOOL))
    m.add(dtype, axes, m.expression(dtype, axes, m.rng.choice((1, 2, 3)), t))


def _reduction(m: Maker) -> None:
    t = m.source(m.rng.choice((1, 2, 2, 3)))
    axes = list(m.axes(t.shape))
    count = m.rng.randint(1, len(axes)) if axes else 0
    reduced = sorted(m.rng.sample(range(len(axes)), count))
    inner = tuple(axes[k] for k in reduced)
    outer = tuple(a for k, a in enumerate(axes) if k not in reduced)
    monoid = m.rng.choice(
        ("sum", "sum", "sum", "prod", "max", "min", "argmax", "argmin", "logsumexp", "all", "any")
    )
    dtype = t.dtype
    body: Expr = E.read(t.name, [a.index for a in axes], t.dtype)
    if m.rng.random() < 0.5:
        body = m.expression(t.dtype, tuple(axes), 2, t)
    if monoid in ("all", "any"):
        limit = E.const(0.75 if monoid == "all" else 1.5, t.dtype)
        body, dtype = E.compare("lt", body, limit), BOOL
    if monoid == "prod":
        body = m.factor(body, inner)
    guard = None
    if m.rng.random() < 0.35:
        guard = m.condition(tuple(axes))
    if monoid in ("argmax", "argmin"):
        dtype = I64
        if guard is not None and inner:  # the last point always counts
            last = [E.compare("eq", a.index, a.extent - 1) for a in inner]
            for e in last[1:]:
                last[0] = E.logical("and", last[0], e)
            guard = E.logical("or", guard, last[0])
        if m.elements([a.extent for a in inner]) == 0:
            return
    m.add(dtype, outer, body, Reduction(monoid, inner, guard))


def _contraction(m: Maker) -> None:
    rng = m.rng
    a = m.source(rng.choice((1, 2, 2, 3)), "f" if rng.random() < 0.8 else "iu")
    axes = list(m.axes(a.shape))
    rng.shuffle(axes)
    inner_count = rng.randint(1, max(1, min(2, len(axes)))) if axes else 0
    inner, rest = axes[:inner_count], axes[inner_count:]
    batch = rest[: rng.randint(0, len(rest))] if rng.random() < 0.4 else []
    work = m.elements(a.shape)
    wide = m.shape(rng.choice((0, 1, 1, 1, 2)), max(1, WORK // max(1, work)))
    columns = list(m.axes(wide, len(axes)))
    b_axes = inner + batch + columns
    rng.shuffle(b_axes)
    b = m.operand(a.dtype, [x.extent for x in b_axes])
    order = {x.name: x for x in (*rest, *columns)}
    outer = list(order.values())
    if rng.random() < 0.3:
        rng.shuffle(outer)
    dtype = a.dtype
    if a.dtype.bits <= 16 and rng.random() < 0.7:
        dtype = F32 if a.dtype.is_float else I32
    factors = [
        E.cast(E.read(a.name, [x.index for x in m.axes(a.shape)], a.dtype), dtype),
        E.cast(E.read(b.name, [x.index for x in b_axes], b.dtype), dtype),
    ]
    rng.shuffle(factors)
    body = E.mul(*factors)
    if dtype.is_float and rng.random() < 0.1:
        body = E.mul(body, m.leaf(dtype, tuple(axes)))
    guard = m.condition((*outer, *inner)) if rng.random() < 0.1 else None
    t = m.add(dtype, outer, body, Reduction("sum", tuple(inner), guard))
    if dtype.is_float and rng.random() < 0.6:
        again = m.axes(t.shape)
        m.add(dtype, again, m.expression(dtype, again, 2, t))


def _window(m: Maker) -> None:
    """Convolution or pooling over the last one or two axes, in either layout."""
    rng = m.rng
    rank = rng.choice((1, 1, 2))
    groups = rng.choice((1, 1, 1, 2, 3))
    per, outs = rng.choice((1, 2, 3, 4)), rng.choice((1, 2, 4, 5))
    dtype = m.float_type()
    space = [m.extent(17) for _ in range(rank)]
    channels = E.const(groups * per)
    x = m.operand(dtype, [channels, *space])
    taps = [rng.choice((1, 2, 3, 3, 5)) for _ in space]
    strides = [rng.choice((1, 1, 2, 3)) for _ in space]
    dilations = [rng.choice((1, 1, 2)) for _ in space]
    pads = [rng.randint(0, d * (k - 1)) for k, d in zip(taps, dilations, strict=True)]
    extents = []
    for n, k, s, d, p in zip(space, taps, strides, dilations, pads, strict=True):
        e = E.floordiv(n + 2 * p - d * (k - 1) - 1, E.const(s)) + 1
        if m.value(n) + 2 * p - d * (k - 1) - 1 < 0:
            return
        extents.append(e)
    kind = rng.choice(("conv", "conv", "max", "average"))
    letters = [Axis(c, e) for c, e in zip("hv", extents, strict=False)]
    tap_axes = [Axis(c, E.const(k)) for c, k in zip("rs", taps, strict=False)]
    places = [
        o.index * s + t.index * d - p
        for o, t, s, d, p in zip(letters, tap_axes, strides, dilations, pads, strict=True)
    ]
    o = Axis("o", E.const(groups * outs if kind == "conv" else groups * per))
    c = Axis("c", E.const(per))
    inside: Expr | None = None
    for e, n in zip(places, space, strict=True):
        for test in (E.compare("le", E.const(0), e), E.compare("lt", e, n)):
            inside = test if inside is None else E.logical("and", inside, test)
    padded = any(pads)
    if kind == "conv":
        channel = E.floordiv(o.index, E.const(outs)) * per + c.index
        fill = E.const(0, dtype) if padded else None
        w = m.operand(dtype, [o.extent, c.extent, *(a.extent for a in tap_axes)])
        x_read = E.read(x.name, [channel, *places], dtype, fill)
        w_read = E.read(w.name, [o.index, c.index, *(a.index for a in tap_axes)], dtype)
        reduction = Reduction("sum", (c, *tap_axes))
        m.add(dtype, [o, *letters], E.mul(x_read, w_read), reduction)
    elif kind == "max":
        fill = E.const(float("-inf"), dtype) if padded else None
        body = E.read(x.name, [o.index, *places], dtype, fill)
        m.add(dtype, [o, *letters], body, Reduction("max", tuple(tap_axes)))
    else:
        body = E.read(x.name, [o.index, *places], dtype)
        guard = inside if padded else None
        total = m.add(dtype, [o, *letters], body, Reduction("sum", tuple(tap_axes), guard))
        count = m.add(I64, letters, E.const(1), Reduction("sum", tuple(tap_axes), guard))
        many = E.cast(E.read(count.name, [a.index for a in letters], I64), dtype)
        one = E.maximum(many, E.const(1, dtype))
        read = E.read(total.name, [o.index, *(a.index for a in letters)], dtype)
        m.read[total.name] += 1
        m.add(dtype, [o, *letters], E.binary("div", read, one))


def _normalise(m: Maker) -> None:
    """Softmax or layer norm over one or more axes: reductions of reductions, fan-out."""
    rng = m.rng
    t = m.source(rng.choice((1, 2, 2, 3)))
    axes = m.axes(t.shape)
    if not axes or m.elements(t.shape) == 0:
        return
    count = rng.choice((1, 1, len(axes)))
    inner, outer = axes[len(axes) - count :], axes[: len(axes) - count]
    at = [a.index for a in axes]
    x = E.read(t.name, at, t.dtype)
    if rng.random() < 0.5:
        top = m.add(t.dtype, outer, x, Reduction("max", inner))
        shifted = E.binary("sub", x, E.read(top.name, at[: len(outer)], t.dtype))
        e = E.unary("exp", shifted)
        if rng.random() < 0.5:
            stored = m.add(t.dtype, axes, e)
            e = E.read(stored.name, at, t.dtype)
        total = m.add(t.dtype, outer, e, Reduction("sum", inner))
        m.add(t.dtype, axes, E.binary("div", e, E.read(total.name, at[: len(outer)], t.dtype)))
        return
    size = E.cast(_product([a.extent for a in inner]), t.dtype)
    sum1 = m.add(t.dtype, outer, x, Reduction("sum", inner))
    mean = E.binary("div", E.read(sum1.name, at[: len(outer)], t.dtype), size)
    centred = E.binary("sub", x, mean)
    sum2 = m.add(t.dtype, outer, E.mul(centred, centred), Reduction("sum", inner))
    var = E.binary("div", E.read(sum2.name, at[: len(outer)], t.dtype), size)
    scale = E.unary("rsqrt", E.add(var, E.const(0.01, t.dtype)))
    y = E.mul(centred, scale)
    g = m.operand(t.dtype, [a.extent for a in inner])
    m.add(t.dtype, axes, E.mul(y, E.read(g.name, at[len(outer) :], t.dtype)))


def _product(es: Sequence[Expr]) -> Expr:
    out = E.const(1)
    for e in es:
        out = out * e
    return out


def _scan(m: Maker) -> None:
    t = m.source(m.rng.choice((1, 2)))
    axes = m.axes(t.shape)
    if not axes:
        return
    monoid = m.rng.choice(("sum", "sum", "prod", "max", "min", "logsumexp"))
    body = m.expression(t.dtype, axes, 1, t)
    along = m.rng.choice(axes)
    if monoid == "prod":
        body = m.factor(body, [along])
    m.add(t.dtype, axes, body, None, (monoid, along.name))


def _recurrence(m: Maker) -> None:
    rng = m.rng
    steps, width = m.extent(9), m.extent(17)
    dtype = rng.choice((F32, F32, F64, F16))
    x = m.operand(dtype, [steps, width])
    t, i, k = Axis("t", steps), Axis("i", width), Axis("k", width)
    h, a = m.fresh("t"), m.fresh("t")
    first: Expr = E.const(rng.choice((0.0, 0.5)), dtype)
    if rng.random() < 0.5:
        start = m.operand(dtype, [width])
        first = E.read(start.name, [k.index], dtype)
    before = E.read(h, [t.index - 1, k.index], dtype, first)
    group = []
    drive = E.read(x.name, [t.index, i.index], dtype)
    if rng.random() < 0.7:
        w = m.operand(dtype, [width, width])
        weight = E.mul(E.read(w.name, [i.index, k.index], dtype), E.const(0.25, dtype))
        body = E.mul(weight, before)
        group.append(Definition(a, dtype, (t, i), body, Reduction("sum", (k,))))
        carried = E.read(a, [t.index, i.index], dtype)
    else:
        gate = E.unary("sigmoid", drive)
        carried = E.mul(gate, E.substitute(before, {k.index: i.index}))
    group.append(Definition(h, dtype, (t, i), E.unary("tanh", E.add(carried, drive))))
    m.body.append(Recurrence(t, tuple(group)))
    for d in group:
        m.tensors.append(Tensor(d.name, dtype, d.shape))
        for r in d.reads():
            m.read[r.attr[0]] += r.attr[0] not in (h,)


def _scatter(m: Maker) -> None:
    rng = m.rng
    t = m.source(rng.choice((1, 2)), "f" if rng.random() < 0.8 else "iu")
    source = m.axes(t.shape)
    if not source:
        return
    targets = m.axes([m.extent(16), *(a.extent for a in source[1:])], len(source))
    at = m.operand(rng.choice((I64, I32)), [source[0].extent])
    monoid = rng.choice(("sum", "sum", "max", "min", "prod", "logsumexp", None))
    if monoid == "logsumexp" and not t.dtype.is_float:
        monoid = "max"
    subscripts = [E.cast(E.read(at.name, [source[0].index], at.dtype), I64)]
    subscripts += [a.index for a in source[1:]]
    if rng.random() < 0.2:
        subscripts[0] = subscripts[0] - 1
    base: Expr = E.const(rng.choice((0, 1)), t.dtype)
    if rng.random() < 0.4:
        b = m.operand(t.dtype, [a.extent for a in targets])
        base = E.read(b.name, [a.index for a in targets], t.dtype)
    body = m.expression(t.dtype, source, 1, t)
    if monoid == "prod" and t.dtype.is_float:
        body = m.factor(body, source)
    s = Scatter(m.fresh("t"), t.dtype, targets, monoid, source, tuple(subscripts), body, base)
    m.body.append(s)
    for n in statement_reads(s):
        m.read[n] += 1
    m.tensors.append(Tensor(s.name, t.dtype, s.shape))


def _gather(m: Maker) -> None:
    rng = m.rng
    t = m.source(rng.choice((1, 2, 2)))
    if not t.shape:
        return
    axis = rng.randrange(len(t.shape))
    n = t.shape[axis]
    ids = m.operand(rng.choice((I64, I32)), m.shape(rng.choice((1, 1, 2)), 256))
    where = m.axes(ids.shape)
    rest = m.axes(t.shape[:axis] + t.shape[axis + 1 :], len(where))
    picked = E.cast(E.read(ids.name, [a.index for a in where], ids.dtype), I64)
    subscripts = [a.index for a in rest]
    style = rng.choice(("else", "clamp", "wrap")) if m.value(n) else "else"
    if style == "clamp":
        picked = E.minimum(E.maximum(picked, E.const(0)), n - 1)
    elif style == "wrap":
        picked = E.mod(picked, n)
    subscripts.insert(axis, picked)
    orelse = E.const(0.5, t.dtype) if style == "else" else None
    axes = (*where, *rest)
    if m.elements([a.extent for a in axes]) <= 4 * 4096:
        m.add(t.dtype, axes, E.read(t.name, subscripts, t.dtype, orelse))


def _movement(m: Maker) -> None:
    """Reshape, transpose, slice, reverse, repeat, tile, pad, concatenate: reads at other places."""
    rng = m.rng
    t = m.source(rng.choice((1, 2, 2, 3)), "f" if rng.random() < 0.8 else "iu")
    if not t.shape:
        return
    style = rng.choice(
        ("flatten", "regroup", "transpose", "slice", "repeat", "tile", "pad", "concat")
    )
    axes = list(m.axes(t.shape))
    at: list[Expr] = [a.index for a in axes]
    k = rng.randrange(len(axes))
    n = t.shape[k]
    orelse: Expr | None = None
    if style in ("flatten", "regroup"):
        total = _product(t.shape)
        flat: Expr
        if style == "flatten":
            axes = [Axis("f", total)]
            flat = axes[0].index
        else:
            factor = rng.choice([f for f in (1, 2, 3, 4, 6) if m.value(total) % f == 0])
            if m.value(total) and E.int_value(total) is None:
                factor = 1
            axes = [Axis("f", E.const(factor)), Axis("g", E.floordiv(total, E.const(factor)))]
            flat = axes[0].index * axes[1].extent + axes[1].index
        at, step = [], E.const(1)
        for d in reversed(range(len(t.shape))):
            e = E.floordiv(flat, step)
            at.insert(0, E.mod(e, t.shape[d]) if d else e)
            step = step * t.shape[d]
    elif style == "transpose":
        rng.shuffle(axes)
    elif style == "slice" and m.value(n) > 1:
        s = rng.choice((1, 2, 3, -1))
        if s < 0:
            at[k] = n - 1 - at[k]
        else:
            first = rng.randint(0, 1)
            axes[k] = Axis(axes[k].name, E.floordiv(n - 1 - first, E.const(s)) + 1)
            at[k] = axes[k].index * s + first
    elif style in ("repeat", "tile"):
        c = rng.choice((2, 3))
        axes[k] = Axis(axes[k].name, n * c)
        i = axes[k].index
        at[k] = E.floordiv(i, E.const(c)) if style == "repeat" else E.mod(i, n)
    elif style == "pad":
        before, after = rng.randint(0, 3), rng.randint(0, 3)
        axes[k] = Axis(axes[k].name, n + before + after)
        at[k] = axes[k].index - before
        orelse = E.const(rng.choice((0, 1)), t.dtype)
    elif style == "concat":
        other = m.operand(t.dtype, [*t.shape[:k], m.extent(9), *t.shape[k + 1 :]])
        axes[k] = Axis(axes[k].name, n + other.shape[k])
        there = list(at)
        there[k] = axes[k].index - n
        first_part = E.read(t.name, at, t.dtype)
        second = E.read(other.name, there, t.dtype)
        body = E.select(E.compare("lt", axes[k].index, n), first_part, second)
        m.add(t.dtype, axes, body)
        return
    if m.elements([a.extent for a in axes]) <= 4 * 4096:
        body = E.read(t.name, at, t.dtype, orelse)
        if rng.random() < 0.3 and t.dtype.is_float:
            body = m.unary(body)
        m.add(t.dtype, axes, body)


def _extern(m: Maker) -> None:
    """Sorted values, or the largest, with their positions."""
    t = m.source(m.rng.choice((1, 2)), "f" if m.rng.random() < 0.7 else "iu")
    if not t.shape or not m.elements(t.shape):
        return
    axis = m.rng.randrange(len(t.shape))
    shape = list(t.shape)
    attributes: list[tuple[str, Attribute]] = [("axis", axis)]
    if m.rng.random() < 0.5:
        function = "sort"
        attributes.append(("descending", m.rng.random() < 0.5))
    else:
        function = "topk"
        k = m.rng.randint(1, min(20, m.value(shape[axis])))
        shape[axis] = E.const(k)
        attributes += [("k", k), ("largest", m.rng.random() < 0.7)]
        attributes += [("nan_first", True)] * (m.rng.random() < 0.2)
    results = (
        Tensor(m.fresh("t"), t.dtype, tuple(shape)),
        Tensor(m.fresh("t"), I64, tuple(shape)),
    )
    m.body.append(Extern(results, function, (t.name,), tuple(attributes)))
    m.read[t.name] += 1
    m.tensors += results


KINDS: dict[str, tuple[Callable[[Maker], None], int]] = {
    "elementwise": (_elementwise, 6),
    "integers": (_integers, 2),
    "reduction": (_reduction, 5),
    "contraction": (_contraction, 5),
    "window": (_window, 3),
    "normalise": (_normalise, 2),
    "scan": (_scan, 1),
    "recurrence": (_recurrence, 1),
    "scatter": (_scatter, 2),
    "gather": (_gather, 2),
    "movement": (_movement, 4),
    "extern": (_extern, 1),
    **PATTERNS,
}
