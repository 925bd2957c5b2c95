"""Branches and loops of a Program as steps of its Plan.

In: an `If` or `While` of a normalized Program. Out: steps, and the buffers inside the blocks.
Invariants: a block is planned as a Program of its own, whose inputs are the buffers that it reads
outside and whose results are written where the branch or loop wants them; what the blocks read and
hand out is row-major; names of buffers are used once in the whole Plan.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace

from tilewright.group.groups import Decision
from tilewright.group.normalize import statement_reads
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import Kernel, int_extent
from tilewright.ir.layout import dense
from tilewright.ir.plan import Control, ExternCall, KernelCall, Plan, PlanBuffer, PlanStep
from tilewright.ir.program import (
    Axis,
    Block,
    Definition,
    If,
    Program,
    Statement,
    Tensor,
    While,
    defined_by,
)

__all__ = ["Blocks", "own_results", "resolve_branches"]


def own_results(p: Program, distinct: bool = False) -> Program:
    """The Program with a copy of every input or constant that it returns: a result has its own
    memory. distinct: also of results that are named more than once.
    """
    held = {t.name for t in p.inputs} | {t.name for t, _ in p.constants}
    taken, copies = set(p.tensors), list[Definition]()
    names: list[str] = []
    copied: dict[str, str] = {}
    for n in p.results:
        again = distinct and n in names
        if n in copied and not again:
            names.append(copied[n])
            continue
        if n not in held and not again:
            names.append(n)
            continue
        t = p.tensors[n]
        name = f"{n}_returned"
        while name in taken:
            name += "_"
        taken.add(name)
        axes = tuple(Axis(f"i{k}", size) for k, size in enumerate(t.shape))
        copies.append(Definition(name, t.dtype, axes, E.read(n, [a.index for a in axes], t.dtype)))
        names.append(name)
        copied.setdefault(n, name)
    return replace(p, body=(*p.body, *copies), results=tuple(names)) if copies else p


def resolve_branches(p: Program) -> Program:
    """The Program with every branch whose condition is known replaced by the block it takes."""
    if not any(isinstance(s, If | While) for s in p.body):
        return p
    return replace(p, body=tuple(_resolved(p.body, {})))


def _resolved(body: tuple[Statement, ...], known: dict[str, Expr]) -> Iterator[Statement]:
    """The statements with branches decided; `known` collects scalars of known value."""
    for s in body:
        if isinstance(s, Definition) and not s.all_axes:
            swap = {r: known[r.attr[0]] for r in s.body.reads() if r.attr[0] in known}
            value = E.substitute(s.body, swap)
            if value.op == "const" and s.reduction is None:
                known[s.name] = value
        if isinstance(s, While):
            yield replace(s, block=replace(s.block, body=tuple(_resolved(s.block.body, known))))
        elif not isinstance(s, If):
            yield s
        elif s.condition not in known:
            blocks = [replace(b, body=tuple(_resolved(b.body, known))) for b in (s.then, s.orelse)]
            yield If(s.results, s.condition, *blocks)
        else:
            block = s.then if known[s.condition].attr else s.orelse
            yield from _resolved(block.body, known)
            handed = zip(s.results, block.results, strict=True)
            yield from _resolved(tuple(_copy(t, name) for t, name in handed), known)


def _copy(t: Tensor, source: str) -> Definition:
    axes = tuple(Axis(f"i{k}", size) for k, size in enumerate(t.shape))
    return Definition(t.name, t.dtype, axes, E.read(source, [a.index for a in axes], t.dtype))


@dataclass
class Blocks:
    """Plans the blocks of one Program's branches and loops.

    plan: the planner of whole Programs. kernels: those of the Plan, by key. buffers: those
    inside the blocks. taken: names that are in use.
    """

    program: Program
    plan: Callable[[Program], tuple[Plan, list[Decision]]]
    kernels: dict[str, tuple[int, Kernel]]
    decisions: list[Decision]
    taken: set[str]
    buffers: dict[str, PlanBuffer] = field(default_factory=dict)

    def steps(self, s: If | While) -> list[PlanStep]:
        """The steps of a branch or loop; the names that it defines are buffers of the Plan."""
        if isinstance(s, While):
            return self._loop(s)
        names = [t.name for t in s.results]
        return [
            Control("if", (s.condition,)),
            *self._block(s.then, names, {}, {}),
            Control("else"),
            *self._block(s.orelse, names, {}, {}),
            Control("end"),
        ]

    def _loop(self, s: While) -> list[PlanStep]:
        n, counter = len(s.carries), s.axis.name
        out: list[PlanStep] = []
        for c, t in zip(s.carries, s.results, strict=False):
            out.append(Control("copy", (c.initial, t.name)))
        out += [Control("fill", (t.name,)) for t in s.results[n:]]
        go = s.condition
        if s.proceed:
            go = self._buffer(f"{counter}.go", Tensor("", BOOL, ()))
            start = Control("copy", (s.condition, go)) if s.condition else Control("fill", (go,), 1)
            out.append(start)
        limit = int_extent(s.axis.extent)
        out.append(Control("while", (counter, go) if go else (counter,), limit))
        # Values of the next step go to places of their own: the block may still read the old ones.
        rows = [replace(t, shape=t.shape[1:]) for t in s.results[n:]]
        handed = [*(c.tensor for c in s.carries), *rows]
        names = [self._buffer(f"{t.name}.next", t) for t in handed]
        seen = {c.tensor.name: c.tensor for c in s.carries} | {counter: s.counter}
        places = {c.tensor.name: t.name for c, t in zip(s.carries, s.results, strict=False)}
        block = replace(s.block, results=(*s.block.results, *filter(None, [s.proceed])))
        out += self._block(block, names + [go] * bool(s.proceed), seen, places)
        for name, t in zip(names[:n], s.results, strict=False):
            out.append(Control("copy", (name, t.name)))
        for name, t in zip(names[n:], s.results[n:], strict=True):
            out.append(Control("stack", (name, t.name, counter)))
        return [*out, Control("end")]

    def _buffer(self, name: str, t: Tensor) -> str:
        """A new row-major buffer in the arena, named like `name`."""
        name = self._fresh(name)
        layout = dense(tuple(int_extent(e) for e in t.shape))
        self.buffers[name] = PlanBuffer(name, t.dtype, layout, "arena")
        return name

    def _fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    def _block(
        self, b: Block, results: list[str], own: Mapping[str, Tensor], places: Mapping[str, str]
    ) -> list[PlanStep]:
        """The steps of a block that writes its results to the buffers `results`.

        own: tensors that only it sees; places: the buffers of some of them.
        """
        p = self.program
        tensors = {**p.tensors, **own}
        reads = set(b.results)
        for s in reversed(b.body):
            reads -= {t.name for t in defined_by(s)}
            reads |= statement_reads(s)
        constants = tuple((t, key) for t, key in p.constants if t.name in reads)
        fixed = {t.name for t, _ in constants}
        inputs = tuple(tensors[n] for n in sorted(reads - fixed))
        inside = Program(p.name, inputs, b.body, b.results, (), constants, p.values)
        inside = own_results(inside, distinct=True)
        plan, decisions = self.plan(inside)
        self.decisions += decisions
        outputs = dict(zip(inside.results, results, strict=True))
        name_of: dict[str, str] = {}
        for x in plan.buffers:
            if x.place == "output":
                name_of[x.name] = outputs[x.name]
            elif x.place == "arena":
                name_of[x.name] = self._fresh(x.name)
                self.buffers[name_of[x.name]] = replace(x, name=name_of[x.name])
            else:
                name_of[x.name] = places.get(x.name, x.name)
        numbers = [self.kernels.setdefault(k.key, (len(self.kernels), k))[0] for k in plan.kernels]
        return [_renamed(s, name_of, numbers) for s in plan.steps]


def _renamed(s: PlanStep, name_of: Mapping[str, str], numbers: list[int]) -> PlanStep:
    def go(names: tuple[str, ...]) -> tuple[str, ...]:
        return tuple(name_of[n] for n in names)

    if isinstance(s, KernelCall):
        return replace(s, kernel=numbers[s.kernel], buffers=go(s.buffers))
    if isinstance(s, ExternCall):
        return replace(s, args=go(s.args), results=go(s.results))
    return replace(s, buffers=go(s.buffers))
