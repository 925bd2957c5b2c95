"""Control flow: If, Loop and Scan as branches and loops of the Program; what needs random numbers
or sequences is refused by name.

In: a node with subgraphs. Out: the values of the branch taken or of the loop's end. Invariants: a
condition that is known at import leaves no branch; no fact about sizes is learned inside a block;
where shapes change from step to step, a loop of few known steps is unrolled.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.frontend.onnx.table import row
from tilewright.frontend.onnx.value import Node, ValueNeeded
from tilewright.frontend.values import Value
from tilewright.ir import expr as E
from tilewright.ir.dtypes import I64
from tilewright.ir.expr import Expr
from tilewright.ir.program import Axis, Carry, If, Statement, Tensor, While

__all__: list[str] = []

_ENDLESS = (1 << 31) - 1  # steps of a loop that only its condition ends
_UNROLLED = 64  # steps


# ---- If ------------------------------------------------------------------------------------------


@row("If", kind="control", notes="both branches of one rank and element type")
def if_(n: Node) -> list[Value | None]:
    """The branch that a known condition chooses; else both, and a branch of the Program."""
    graphs = [n.required("then_branch"), n.required("else_branch")]
    known = n[0].known
    if known is not None:
        return n.importer.branch(n, graphs[0 if bool(known.reshape(-1)[0]) else 1])
    inputs, dims = n.importer.sources_of(n[0])
    if not inputs and dims:  # decided as soon as the sizes are
        raise n.needed(0, "the condition")
    condition = n.define((), lambda: n[0].at(*[0] * n[0].rank), suffix="condition")
    sides: list[tuple[list[Statement], list[Value]]] = []
    for name, graph in zip(("then", "else"), graphs, strict=True):
        try:
            with n.importer.block(n) as statements:
                sides.append((statements, _values(n, n.importer.branch(n, graph))))
        except UserError as error:
            needed = n.needed(
                0, f"the condition, as its {name} branch does not fit ({error.message}),"
            )
            if isinstance(error, ValueNeeded) or not (needed.inputs or needed.value):
                raise
            raise needed from error
    joined = [_join(n, k, sides) for k in range(len(n.outputs))]
    results = [t for j in joined for t in j.tensors]
    blocks = [
        n.builder.block(statements, [name for j in joined for name in j.names[side]])
        for side, (statements, _) in enumerate(sides)
    ]
    n.builder.add(If(tuple(results), condition.name, *blocks))
    return [j.value(n) for j in joined]


def _values(n: Node, found: Sequence[Value | None]) -> list[Value]:
    if any(v is None for v in found):
        raise n.refuse("a subgraph whose output is no tensor")
    return [v for v in found if v is not None]


@dataclass
class _Joined:
    """One output of both branches: the tensors of the Program, their names in each block, and the
    sizes (axis -> number of the tensor that holds it, and its bound) that differ.
    """

    tensors: list[Tensor]
    names: tuple[list[str], list[str]]
    open: dict[int, tuple[int, Expr]]
    known: Value | None = None

    def value(self, n: Node) -> Value:
        if self.known is not None:
            return self.known
        first = self.tensors[0]
        if not self.open:
            return n.value(first)
        shape = list(first.shape)
        for axis, (k, bound) in self.open.items():
            shape[axis] = n.importer.new_size(
                f"{first.name}_d{axis}", n.value(self.tensors[k]), bound
            )
        return n.define(shape, lambda *i: E.read(first.name, i, first.dtype), suffix="joined")


def _join(n: Node, k: int, sides: Sequence[tuple[list[Statement], list[Value]]]) -> _Joined:
    (first, a), (second, b) = ((statements, values[k]) for statements, values in sides)
    if a.array is not None and b.array is not None and a.dtype is b.dtype:
        if a.array.shape == b.array.shape and a.array.tobytes() == b.array.tobytes():
            return _Joined([], ([], []), {}, a)
    if a.dtype is not b.dtype or a.rank != b.rank:
        raise n.refuse(f"branches that give {_kind(a)} and {_kind(b)} for output {k}")
    hint = n.importer.display_name(n.outputs[k]) if n.has_output(k) else f"{n.hint}_{k}"
    shape: list[Expr] = []
    differs: dict[int, Expr] = {}
    for axis, (x, y) in enumerate(zip(a.shape, b.shape, strict=True)):
        if n.sizes.same(x, y) and not x.names("dim") & n.sizes.defined.keys():
            shape.append(x)
            continue
        bound = E.maximum(_bound(n, x), _bound(n, y))
        shape.append(bound)
        differs[axis] = bound
    names = []
    for statements, v in ((first, a), (second, b)):
        with n.builder.inside(statements):
            whole = v
            if differs:
                whole = n.define(shape, lambda *i, v=v: v.at(*i, orelse=0), suffix="wide")
            sizes = [
                n.define((), lambda axis=axis, v=v: v.shape[axis], suffix="size")
                for axis in differs
            ]
            names.append([whole.name, *(s.name for s in sizes)])
    tensors = [Tensor(n.builder.fresh(hint), a.dtype, tuple(shape))]
    opened = {}
    for axis, bound in differs.items():
        opened[axis] = (len(tensors), bound)
        tensors.append(Tensor(n.builder.fresh(f"{hint}_size"), I64, ()))
    return _Joined(tensors, (names[0], names[1]), opened)


def _kind(v: Value) -> str:
    return f"{v.dtype}[{', '.join(map(str, v.shape))}]"


def _bound(n: Node, e: Expr) -> Expr:
    """A size with the bounds of what values define in it."""
    return E.substitute(e, {E.dim(name): b for name, b in n.sizes.defined.items()})


# ---- loops ---------------------------------------------------------------------------------------


@dataclass
class _Body:
    """One step: from the step's number and the states to the next states and a row of each stack;
    `again` says whether to go on.
    """

    states: list[Value]
    rows: list[Value]
    again: Value | None = None


_Step = Callable[[Value, list[Value]], _Body]


def _loop(
    n: Node,
    limit: Expr,
    start: Expr | None,
    initial: Sequence[Value],
    step: _Step,
    limited: Expr | None = None,
) -> tuple[list[Value], list[Value]]:
    """Last states and stacks of a loop of at most `limit` steps.

    start: a condition for the first step; limited: where the number of steps is a value, that.
    """  # fmt: skip
    b = n.builder
    counter = b.fresh(f"{n.hint}_step")
    carries = [Carry(Tensor(b.fresh(f"{n.hint}_state"), v.dtype, v.shape), v.name) for v in initial]
    at = E.read(counter, (), I64)
    if limited is not None:
        more = E.compare("lt", E.const(0), limited)
        start = more if start is None else E.logical("and", more, start)
    condition = "" if start is None else n.define((), lambda: start, suffix="first").name
    with n.importer.block(n) as statements:
        number = Value(b, I64, (), tensor=Tensor(counter, I64, ()), hint=counter)
        states = [Value(b, c.tensor.dtype, c.tensor.shape, tensor=c.tensor) for c in carries]
        found = step(number, states)
        for was, now in zip(states, found.states, strict=True):
            if was.dtype is not now.dtype or was.rank != now.rank:
                raise n.refuse(f"a state that turns from {_kind(was)} into {_kind(now)}")
            if not all(map(n.sizes.same, was.shape, now.shape)):
                raise n.refuse(f"a state whose shape turns from {_kind(was)} into {_kind(now)}")
        proceed = ""
        again = found.again
        if again is not None and again.array is not None:
            if not bool(again.array.reshape(-1)[0]):
                limit = E.minimum(limit, E.const(1))
            again = None
        if again is not None or limited is not None:
            go: Expr | None = None if again is None else again.at(*[0] * again.rank)
            if limited is not None:
                more = E.compare("lt", at + 1, limited)
                go = more if go is None else E.logical("and", more, go)
            assert go is not None  # one of the two is there
            proceed = n.define((), lambda: go, suffix="again").name
        for r in found.rows:
            if any(e.names("dim") & n.sizes.defined.keys() for e in r.shape):
                raise n.refuse(f"a scan output of shape {_kind(r)}, which values define")
        handed = [v.name for v in (*found.states, *found.rows)]
        block = b.block(statements, handed + [proceed] * bool(proceed))
    block = type(block)(block.body, tuple(handed))
    hints = [n.importer.display_name(o) if o else f"{n.hint}_{k}" for k, o in enumerate(n.outputs)]
    hints += [n.hint] * (len(handed) - len(hints))
    shapes = [c.tensor.shape for c in carries] + [(limit, *r.shape) for r in found.rows]
    dtypes = [v.dtype for v in (*found.states, *found.rows)]
    results = [
        Tensor(b.fresh(hint), dtype, tuple(shape))
        for hint, dtype, shape in zip(hints, dtypes, shapes, strict=False)
    ]
    axis = Axis(counter, limit)
    b.add(While(tuple(results), axis, condition, tuple(carries), block, proceed))
    values = [n.value(t) for t in results]
    states, stacks = values[: len(carries)], values[len(carries) :]
    if stacks and (condition or proceed):
        steps = n.value(b.tensors[counter])
        count = n.importer.new_size(f"{counter}s", steps, limit)
        stacks = [
            n.define([count, *s.shape[1:]], lambda *i, s=s: s.at(*i), suffix="rows") for s in stacks
        ]
    return states, stacks


@row("Loop", kind="control", notes="states of one shape, or at most 64 steps of a known number")
def loop(n: Node) -> list[Value | None]:
    """A loop of the Program; unrolled where states change their shape."""
    graph = n.required("body")
    trips, condition = n.optional(0), n.optional(1)
    initial = [n[k] for k in range(2, len(n.inputs))]
    stacks = len(graph.output) - 1 - len(initial)
    if len(graph.input) != 2 + len(initial) or stacks < 0:
        raise UserError("F001", "Loop: its body does not fit its inputs", where=n.where)
    start: Expr | None = None
    limit, limited = E.const(_ENDLESS), None
    if trips is not None and trips.known is not None:
        limit = n.sizes.larger(n.integers(0, "the number of steps")[0], E.const(0))
    elif trips is not None:
        limited = E.cast(trips.at(*[0] * trips.rank), I64)
    if condition is not None and condition.array is not None:
        if not bool(condition.array.reshape(-1)[0]):
            limit = E.const(0)
    elif condition is not None:
        start = condition.at(*[0] * condition.rank)
    if stacks and E.int_value(limit) == _ENDLESS:
        raise (
            n.needed(0, "the number of steps of a loop with scan outputs")
            if (trips is not None)
            else n.refuse("scan outputs of a loop without a number of steps")
        )

    def step(number: Value, states: list[Value]) -> _Body:
        found = _values(n, n.importer.branch(n, graph, _given(n, graph, number, states)))
        return _Body(found[1 : 1 + len(states)], found[1 + len(states) :], found[0])

    count = E.int_value(limit)
    try:
        states, rows = _loop(n, limit, start, initial, step, limited)
    except UserError as error:
        if error.code not in ("F005", "F006") or isinstance(error, ValueNeeded):
            raise
        for k, asked in ((0, limited), (1, start)):  # known, the steps may follow one another
            if asked is not None:
                needed = n.needed(k, f"the steps of a loop that only unrolls ({error.message})")
                raise (needed if needed.inputs or needed.value else error) from None
        if count is None or count > _UNROLLED:
            raise
        states, rows = _unrolled(n, count, initial, step, error)
    return [*states, *rows]


def _given(n: Node, graph: Any, number: Value, states: list[Value]) -> dict[str, Value]:
    """Values of the inputs of a Loop's body."""
    names = [i.name for i in graph.input]
    true = n.constant(np.array(True), "true")
    out = [_in_rank(n, graph.input[0], number), _in_rank(n, graph.input[1], true), *states]
    return dict(zip(names, out, strict=True))


def _in_rank(n: Node, declared: Any, v: Value) -> Value:
    """A scalar in the rank that a graph declares: some say [1]."""
    t = declared.type.tensor_type
    rank = len(t.shape.dim) if t.HasField("shape") else 0
    if not rank:
        return v
    if v.known is not None:
        return n.constant(np.asarray(v.known).reshape([1] * rank), "one")
    return n.define([1] * rank, lambda *i: v.at(), suffix="one")


def _unrolled(
    n: Node, count: int, initial: Sequence[Value], step: _Step, error: UserError
) -> tuple[list[Value], list[Value]]:
    """The steps one after the other. Errors: `error` where a condition is not known."""
    states, rows = list(initial), list[list[Value]]()
    for k in range(count):
        found = step(n.constant(np.array(k, np.int64), "step"), states)
        states = found.states
        rows.append(found.rows)
        if found.again is not None:
            if found.again.array is None:
                raise error
            if not bool(found.again.array.reshape(-1)[0]):
                break
    if not rows:
        raise error
    return states, [_stacked(n, [r[k] for r in rows]) for k in range(len(rows[0]))]


def _stacked(n: Node, parts: Sequence[Value]) -> Value:
    """Values of one shape along a new first axis."""

    def body(*i: Expr) -> Expr:
        out = parts[-1].at(*i[1:])
        for k in range(len(parts) - 2, -1, -1):
            out = E.select(E.compare("eq", i[0], E.const(k)), parts[k].at(*i[1:]), out)
        return out

    shape = parts[0].shape
    for p in parts[1:]:
        if p.rank != len(shape) or not all(map(n.sizes.same, p.shape, shape)):
            raise n.contradiction(f"scan outputs of {_kind(parts[0])} and {_kind(p)}")
    return n.define([len(parts), *shape], body, suffix="stack")


@row("Scan", kind="control", since=8)
def scan(n: Node) -> list[Value | None]:
    """A loop over the slices of its inputs; in opset 8 for each element of a batch."""
    graph, count = n.required("body"), n.count("num_scan_inputs")
    given = list(n.inputs)
    if n.opset < 9:
        if n.optional(0) is not None:
            raise n.refuse("sequence_lens", "sequences of one length")
        given = given[1:]
    values = _values(n, given)
    split = len(values) - count
    outputs = len(graph.output) - split
    if split < 0 or outputs < 0 or len(graph.input) != len(values):
        raise UserError("F001", "Scan: its body does not fit its inputs", where=n.where)
    if n.opset < 9:
        return _batched_scan(n, graph, values, split)
    axes = _listed(n, "scan_input_axes", count)
    states, rows = _scan(
        n, graph, values[:split], values[split:], axes, _listed(n, "scan_input_directions", count)
    )
    places = _listed(n, "scan_output_axes", outputs)
    back = _listed(n, "scan_output_directions", outputs)
    return [
        *states,
        *(_placed(n, r, a, bool(d)) for r, a, d in zip(rows, places, back, strict=True)),
    ]


def _listed(n: Node, name: str, count: int) -> list[int]:
    found = [int(x) for x in n.attribute(name) or [0] * count]
    if len(found) != count:
        raise UserError("F001", f"Scan: {name} has {len(found)} entries for {count}", where=n.where)
    return found


def _scan(
    n: Node, graph: Any, initial: Sequence[Value], inputs: Sequence[Value], axes: Sequence[int],
    reverse: Sequence[int],
) -> tuple[list[Value], list[Value]]:  # fmt: skip
    axes = [n.normal_axis(a, v.rank) for a, v in zip(axes, inputs, strict=True)]
    steps = inputs[0].shape[axes[0]]
    for v, a in zip(inputs, axes, strict=True):
        steps = n.equal(steps, v.shape[a], "the number of steps")

    def step(number: Value, states: list[Value]) -> _Body:
        t = number.at()
        slices = []
        for v, a, back in zip(inputs, axes, reverse, strict=True):
            k = steps - 1 - t if back else t
            shape = [*v.shape[:a], *v.shape[a + 1 :]]
            slices.append(
                n.define(shape, lambda *i, v=v, a=a, k=k: v.at(*i[:a], k, *i[a:]), suffix="slice")
            )
        names = [i.name for i in graph.input]
        given = dict(zip(names, [*states, *slices], strict=True))
        found = _values(n, n.importer.branch(n, graph, given))
        return _Body(found[: len(states)], found[len(states) :])

    return _loop(n, steps, None, initial, step)


def _placed(n: Node, v: Value, axis: int, back: bool) -> Value:
    """A stack with its first axis reversed or moved elsewhere."""
    axis = n.normal_axis(axis, v.rank)
    if not axis and not back:
        return v
    steps = v.shape[0]

    def body(*i: Expr) -> Expr:
        t = steps - 1 - i[axis] if back else i[axis]
        return v.at(t, *i[:axis], *i[axis + 1 :])

    return n.define([*v.shape[1 : axis + 1], steps, *v.shape[axis + 1 :]], body, suffix="placed")


def _batched_scan(n: Node, graph: Any, values: list[Value], split: int) -> list[Value | None]:
    """Opset 8: the first axis of everything is a batch, the second of inputs the steps."""
    batch = n.fixed(values[0].shape[0], "the batch")
    reverse = _listed(n, "directions", len(values) - split)
    if batch < 1 or batch > _UNROLLED:
        raise n.refuse(f"a batch of {batch}")
    done: list[list[Value]] = []
    for b in range(batch):
        one = [
            n.define(v.shape[1:], lambda *i, v=v, b=b: v.at(b, *i), suffix="element")
            for v in values
        ]
        states, rows = _scan(n, graph, one[:split], one[split:], [0] * len(reverse), reverse)
        done.append([*states, *rows])
    return [_stacked(n, [d[k] for d in done]) for k in range(len(done[0]))]


# ---- refused -------------------------------------------------------------------------------------


def _refused(name: str, reason: str, nearest: str) -> None:
    def expand(n: Node) -> Value:
        raise n.refuse(reason, nearest)

    f: Callable[[Node], Value] = expand
    row(name, kind="refused", notes=reason)(f)


_refused("SequenceMap", "sequences of tensors", "operators on tensors")
for _name in (
    "RandomNormal",
    "RandomNormalLike",
    "RandomUniform",
    "RandomUniformLike",
    "Multinomial",
    "Bernoulli",
):
    _refused(_name, "random numbers", "pass the random values as an input")
