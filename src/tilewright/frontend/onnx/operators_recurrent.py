"""RNN, GRU and LSTM as `recur` groups.

In: a node. Out: per direction, one contraction of all inputs with the input weights, then a `recur
t<T` group with the contraction of the previous state. Invariants: states accumulate in f32 or
wider; past a sequence's length the state stays and the output is zero.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import partial

from tilewright.frontend.onnx.operators_math import ACTIVATIONS
from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import Axis, Definition, Recurrence, Reduction

__all__: list[str] = []

Activation = Callable[[Expr], Expr]
_TAKES = {  # how many of alpha, beta an activation takes
    "affine": 2,
    "leakyrelu": 1,
    "thresholdedrelu": 1,
    "scaledtanh": 2,
    "hardsigmoid": 2,
    "elu": 1,
}


@dataclass
class _Setup:
    """What the three operators share. x is [T, B, I] by `read_x(t, b, i)`."""

    n: Node
    hidden: int
    steps: Expr
    batch: Expr
    inputs: Expr
    wide: DType
    lengths: Value | None
    layout: int
    directions: list[bool]  # is it reversed?

    def x(self, t: Expr, b: Expr, i: Expr) -> Expr:
        v = self.n[0]
        return E.cast(v.at(b, t, i) if self.layout else v.at(t, b, i), self.wide)

    def length(self, b: Expr) -> Expr:
        assert self.lengths is not None  # for the type checker: callers looked
        return E.minimum(E.cast(self.lengths.at(b), I64), self.steps)

    def source(self, t: Expr, b: Expr, backwards: bool) -> Expr:
        """The time step that step t of a direction looks at."""
        if not backwards:
            return t
        if self.lengths is None:
            return self.steps - 1 - t
        return E.select(E.compare("lt", t, self.length(b)), self.length(b) - 1 - t, t)

    def initial(self, k: int, d: int, b: Expr, j: Expr) -> Expr:
        v = self.n.optional(k)
        if v is None:
            return E.const(0, self.wide)
        return E.cast(v.at(b, d, j) if self.layout else v.at(d, b, j), self.wide)

    def clipped(self, e: Expr) -> Expr:
        limit = self.n.attribute("clip")
        if limit is None:
            return e
        return E.maximum(E.minimum(e, like(e, limit)), like(e, -limit))


def _setup(n: Node, gates: int, lengths: int) -> _Setup:
    x, w, r = n[0], n[1], n[2]
    layout = int(n.attribute("layout", 0))
    hidden = n.fixed(r.shape[2], "the hidden size")
    n.equal(w.shape[1], E.const(gates * hidden), "the gates of W")
    n.equal(r.shape[1], E.const(gates * hidden), "the gates of R")
    direction = n.attribute("direction", "forward")
    known = {"forward": [False], "reverse": [True], "bidirectional": [False, True]}
    if direction not in known:
        raise n.refuse(f"direction {direction!r}")
    n.equal(w.shape[0], E.const(len(known[direction])), "directions")
    steps, batch = (x.shape[1], x.shape[0]) if layout else (x.shape[0], x.shape[1])
    return _Setup(
        n,
        hidden,
        steps,
        batch,
        n.equal(x.shape[2], w.shape[2], "input sizes"),
        x.dtype.accumulator,
        n.optional(lengths),
        layout,
        known[direction],
    )


def _activations(n: Node, per_direction: Sequence[str], direction: int) -> list[Activation]:
    names = n.attribute("activations")
    count = len(per_direction)
    alphas = list(n.attribute("activation_alpha") or [])
    betas = list(n.attribute("activation_beta") or [])
    if not names:
        return [ACTIVATIONS[x] for x in per_direction]
    out: list[Activation] = []
    for k, name in enumerate(names):
        key = name.lower()
        if key not in ACTIVATIONS:
            raise n.refuse(f"activation {name!r}", f"activations: {', '.join(sorted(ACTIVATIONS))}")
        takes = _TAKES.get(key, 0)
        arguments = {}
        if takes >= 1 and alphas:
            arguments["alpha"] = alphas.pop(0)
        if takes >= 2 and betas:
            arguments["beta"] = betas.pop(0)
        if direction * count <= k < (direction + 1) * count:
            out.append(partial(ACTIVATIONS[key], **arguments))
    if len(out) != count:
        raise n.contradiction(f"{len(names)} activations for {count} per direction")
    return out


def _project(s: _Setup, d: int, backwards: bool, gates: int) -> Value:
    """x W^T plus the biases that are added outside the recurrence: [T, B, gates*H]."""
    n, w, b = s.n, s.n[1], s.n.optional(3)
    suffix = f"x{d}"
    acc = n.reduce(
        "sum",
        [s.steps, s.batch, gates * s.hidden],
        [s.inputs],
        lambda i, r: E.mul(
            s.x(s.source(i[0], i[1], backwards), i[1], r[0]), E.cast(w.at(d, i[2], r[0]), s.wide)
        ),
        names=("t", "b", "g"),
        over_names=("i",),
        suffix=suffix if b is None else f"{suffix}_acc",
    )
    if b is None:
        return acc
    return n.define(
        acc.shape,
        lambda t, m, g: E.add(acc.at(t, m, g), E.cast(b.at(d, g), s.wide)),
        ("t", "b", "g"),
        suffix,
    )


class _Group:
    """Definitions of one `recur t<T` group under construction."""

    def __init__(self, s: _Setup, d: int) -> None:
        self.s, self.d = s, d
        self.definitions: list[Definition] = []
        self.t, self.b, self.j, self.k = s.n.builder.axes(
            [s.steps, s.batch, s.hidden, s.hidden], "tbjk"
        )

    def name(self, suffix: str) -> str:
        return self.s.n.builder.fresh(f"{self.s.n.hint}_{suffix}{self.d}")

    def read(self, name: str, t: Expr, j: Expr) -> Expr:
        return E.read(name, (t, self.b.index, j), self.s.wide)

    def previous(self, name: str, j: Expr, initial: int) -> Expr:
        """The state one step earlier, or its initial value."""
        return E.read(
            name,
            (self.t.index - 1, self.b.index, j),
            self.s.wide,
            self.s.initial(initial, self.d, self.b.index, j),
        )

    def product(self, suffix: str, operand: Expr, offset: int, count: int) -> str:
        """`sum(k<H) operand[k] * R[offset*H + g, k]` for count*H gates; returns the name."""
        name = self.name(suffix)
        g = Axis(self.s.n.builder.axes([0], "g")[0].name, E.const(count * self.s.hidden))
        weight = E.cast(
            self.s.n[2].at(self.d, g.index + offset * self.s.hidden, self.k.index), self.s.wide
        )
        self.definitions.append(
            Definition(
                name,
                self.s.wide,
                (self.t, self.b, g),
                E.mul(operand, weight),
                Reduction("sum", (self.k,)),
            )
        )
        return name

    def define(self, name: str, body: Expr) -> None:
        self.definitions.append(Definition(name, self.s.wide, (self.t, self.b, self.j), body))

    def gate(
        self, project: Value, product: str | None, k: int, product_k: int | None = None
    ) -> Expr:
        """Gate k: the input's part, the recurrent part and the recurrent bias."""
        e = project.at(self.t.index, self.b.index, self.j.index + k * self.s.hidden)
        if product is not None:
            at = self.j.index + (k if product_k is None else product_k) * self.s.hidden
            e = E.add(e, self.read(product, self.t.index, at))
        return e

    def bias(self, gates: int, k: int) -> Expr | None:
        """The recurrent bias of gate k."""
        b = self.s.n.optional(3)
        if b is None:
            return None
        return E.cast(b.at(self.d, self.j.index + (gates + k) * self.s.hidden), self.s.wide)

    def gate_sum(
        self, project: Value, product: str | None, k: int, gates: int, product_k: int | None = None
    ) -> Expr:
        e = self.gate(project, product, k, product_k)
        bias = self.bias(gates, k)
        return e if bias is None else E.add(e, bias)

    def frozen(self, e: Expr, previous: Expr) -> Expr:
        """The new state, or the previous one past the sequence's length."""
        if self.s.lengths is None:
            return e
        return E.select(E.compare("lt", self.t.index, self.s.length(self.b.index)), e, previous)

    def finish(self) -> None:
        self.s.n.builder.add(Recurrence(self.t, tuple(self.definitions)))


def _outputs(
    s: _Setup, states: Sequence[str], final: Sequence[Sequence[str]]
) -> list[Value | None]:
    """Y from the states of each direction, then the last state of each list in `final`."""
    n = s.n

    def at(name: str, d: int, t: Expr, b: Expr, j: Expr) -> Expr:
        e = E.read(name, (s.source(t, b, s.directions[d]), b, j), s.wide)
        if s.lengths is None:
            return e
        return E.select(E.compare("lt", t, s.length(b)), e, E.const(0, s.wide))

    def pick(d: Expr, parts: Sequence[Expr]) -> Expr:
        return (
            parts[0]
            if len(parts) == 1
            else E.select(E.compare("eq", d, E.const(0)), parts[0], parts[1])
        )

    count = E.const(len(s.directions))
    dtype = n[0].dtype
    out: list[Value | None] = [None]
    if n.has_output(0):

        def y(t: Expr, d: Expr, b: Expr, j: Expr) -> Expr:
            return E.cast(pick(d, [at(name, k, t, b, j) for k, name in enumerate(states)]), dtype)

        if s.layout:
            out[0] = n.define(
                [s.batch, s.steps, count, s.hidden], lambda b, t, d, j: y(t, d, b, j), "btdj"
            )
        else:
            out[0] = n.define([s.steps, count, s.batch, s.hidden], y, "tdbj")
    for k, names in enumerate(final):
        if not n.has_output(k + 1):
            out.append(None)
            continue

        def last(d: Expr, b: Expr, j: Expr, names: Sequence[str] = names) -> Expr:
            return E.cast(pick(d, [E.read(x, (s.steps - 1, b, j), s.wide) for x in names]), dtype)

        name = ("h", "c")[k] + "_last"
        if s.layout:

            def turned(b: Expr, d: Expr, j: Expr, f: Callable[..., Expr] = last) -> Expr:
                return f(d, b, j)

            out.append(n.define([s.batch, count, s.hidden], turned, "bdj", name))
        else:
            out.append(n.define([count, s.batch, s.hidden], last, "dbj", name))
    return out


@row("LSTM", kind="recurrent", since=7)
def lstm(n: Node) -> list[Value | None]:
    """Long short-term memory; gates in the order i, o, f, c; optional peepholes."""
    s = _setup(n, 4, 4)
    peephole = n.optional(7)
    states, cells = [], []
    for d, backwards in enumerate(s.directions):
        f, g, h = _activations(n, ("sigmoid", "tanh", "tanh"), d)
        project = _project(s, d, backwards, 4)
        group = _Group(s, d)
        state, cell = group.name("h"), group.name("c")
        product = group.product("r", group.previous(state, group.k.index, 5), 0, 4)
        j = group.j.index
        cell_before = group.previous(cell, j, 6)

        def gate(
            k: int,
            c: Expr | None,
            p: int,
            group: _Group = group,
            project: Value = project,
            product: str = product,
            d: int = d,
        ) -> Expr:
            e = group.gate_sum(project, product, k, 4)
            if peephole is not None and c is not None:
                e = E.add(e, E.mul(E.cast(peephole.at(d, group.j.index + p * s.hidden), s.wide), c))
            return s.clipped(e)

        i = f(gate(0, cell_before, 0))
        forget = (
            E.sub(E.const(1, s.wide), i)
            if n.attribute("input_forget", 0)
            else f(gate(2, cell_before, 2))
        )
        new = E.add(E.mul(forget, cell_before), E.mul(i, g(gate(3, None, 0))))
        group.define(cell, group.frozen(new, cell_before))
        now = group.read(cell, group.t.index, j)
        output = E.mul(f(gate(1, now, 1)), h(now))
        group.define(state, group.frozen(output, group.previous(state, j, 5)))
        group.finish()
        states.append(state)
        cells.append(cell)
    return _outputs(s, states, [states, cells])


@row("GRU", kind="recurrent", since=7)
def gru(n: Node) -> list[Value | None]:
    """Gated recurrent unit; gates in the order z, r, h."""
    s = _setup(n, 3, 4)
    linear = bool(n.attribute("linear_before_reset", 0))
    states = []
    for d, backwards in enumerate(s.directions):
        f, g = _activations(n, ("sigmoid", "tanh"), d)
        project = _project(s, d, backwards, 3)
        group = _Group(s, d)
        state = group.name("h")
        j = group.j.index
        before = group.previous(state, j, 5)
        product = group.product("r", group.previous(state, group.k.index, 5), 0, 3 if linear else 2)
        z = f(s.clipped(group.gate_sum(project, product, 0, 3)))
        reset = f(s.clipped(group.gate_sum(project, product, 1, 3)))
        bias = group.bias(3, 2)
        if linear:
            part = group.read(product, group.t.index, j + 2 * s.hidden)
            part = E.mul(reset, part if bias is None else E.add(part, bias))
            inner = E.add(group.gate(project, None, 2), part)
        else:
            gated = group.name("reset")
            group.define(gated, E.mul(reset, before))
            second = group.product("s", group.read(gated, group.t.index, group.k.index), 2, 1)
            inner = E.add(group.gate(project, None, 2), group.read(second, group.t.index, j))
            inner = inner if bias is None else E.add(inner, bias)
        candidate = g(s.clipped(inner))
        new = E.add(E.mul(E.sub(E.const(1, s.wide), z), candidate), E.mul(z, before))
        group.define(state, group.frozen(new, before))
        group.finish()
        states.append(state)
    return _outputs(s, states, [states])


@row("LinearAttention", kind="recurrent", since=27)
def linear_attention(n: Node) -> list[Value | None]:
    """Attention by a state per head: S = decay S + k v^T (or its delta-rule form), output q S."""
    q, k, v, past, decay, beta = n[0], n[1], n[2], n.optional(3), n.optional(4), n.optional(5)
    q_heads, heads = n.count("q_num_heads"), n.count("kv_num_heads")
    rule = n.attribute("update_rule", "gated_delta")
    if rule not in ("linear", "gated", "delta", "gated_delta"):
        raise n.refuse(f"update_rule {rule!r}")
    batch, steps, q_features = q.shape
    keys = n.fixed(q_features, "the features of the query") // q_heads
    values = n.fixed(v.shape[2], "the features of the value") // heads
    scale = float(n.attribute("scale", 0.0)) or keys**-0.5
    wide = q.dtype.accumulator
    t, b, h, d, e = n.builder.axes([steps, batch, heads, keys, values], "tbhde")
    state, read = n.builder.fresh(f"{n.hint}_state"), n.builder.fresh(f"{n.hint}_seen")
    zero = E.const(0, wide)

    def before(at: Expr) -> Expr:
        """The decayed state before step t, at key feature `at`."""
        first = zero if past is None else E.cast(past.at(b.index, h.index, at, e.index), wide)
        s = E.read(state, (t.index - 1, b.index, h.index, at, e.index), wide, first)
        if decay is None:
            return s
        per_head = E.int_value(decay.shape[2]) == heads
        f = h.index if per_head else h.index * keys + at
        return E.mul(s, E.unary("exp", E.cast(decay.at(b.index, t.index, f), wide)))

    def key(at: Expr) -> Expr:
        return E.cast(k.at(b.index, t.index, h.index * keys + at), wide)

    definitions: list[Definition] = []
    written = E.cast(v.at(b.index, t.index, h.index * values + e.index), wide)
    if beta is not None:
        seen = E.mul(before(d.index), key(d.index))
        definitions.append(Definition(read, wide, (t, b, h, e), seen, Reduction("sum", (d,))))
        one = E.int_value(beta.shape[2]) == 1
        rate = E.cast(beta.at(b.index, t.index, E.const(0) if one else h.index), wide)
        written = E.mul(
            rate, E.sub(written, E.read(read, (t.index, b.index, h.index, e.index), wide))
        )
    new = E.add(before(d.index), E.mul(key(d.index), written))
    definitions.append(Definition(state, wide, (t, b, h, d, e), new))
    n.builder.add(Recurrence(t, tuple(definitions)))
    group = q_heads // heads

    def product(at: Sequence[Expr], r: Sequence[Expr]) -> Expr:
        m, s, f = at
        head = E.floordiv(f, E.const(values))
        query = E.cast(q.at(m, s, head * keys + r[0]), wide)
        held = E.read(
            state, (s, m, E.floordiv(head, E.const(group)), r[0], E.mod(f, E.const(values))), wide
        )
        return E.mul(query, held)

    total = n.reduce(
        "sum",
        [batch, steps, q_heads * values],
        [keys],
        product,
        names=("b", "t", "f"),
        over_names=("d",),
        suffix="dots",
    )
    y = n.define(
        total.shape,
        lambda *x: E.cast(E.mul(total.at(*x), like(total, scale)), q.dtype),
        ("b", "t", "f"),
    )
    present = None
    if n.has_output(1):
        dtype = q.dtype if past is None else past.dtype

        def last(*x: Expr) -> Expr:
            return E.cast(E.read(state, (steps - 1, *x), wide), dtype)

        present = n.define([batch, heads, keys, values], last, "bhde", "present")
    return [y, present]


@row("RNN", kind="recurrent", since=7)
def rnn(n: Node) -> list[Value | None]:
    """h = f(x W + h R + biases)."""
    s = _setup(n, 1, 4)
    states = []
    for d, backwards in enumerate(s.directions):
        (f,) = _activations(n, ("tanh",), d)
        project = _project(s, d, backwards, 1)
        group = _Group(s, d)
        state = group.name("h")
        product = group.product("r", group.previous(state, group.k.index, 5), 0, 1)
        new = f(s.clipped(group.gate_sum(project, product, 0, 1)))
        group.define(state, group.frozen(new, group.previous(state, group.j.index, 5)))
        group.finish()
        states.append(state)
    return _outputs(s, states, [states])
