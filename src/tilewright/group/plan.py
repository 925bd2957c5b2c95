"""From a bound Program to a Plan: normalized, grouped, laid out, each group a canonical Kernel.

In: a Program, a Target. Out: the `Plan` and the grouping decisions. Invariants: decisions are taken
for the hints of the dims, what must hold is proved for their ranges (ir/extent.py); equal kernels
are one kernel in the Plan; axes that every access walks as one are one axis.
"""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import replace

from tilewright.group.blocks import (
    Blocks,
    own_results,
    resolve_branches,
)
from tilewright.group.fuse import group_program
from tilewright.group.groups import Decision, Group
from tilewright.group.layouts import choose_layouts
from tilewright.group.merge import merge_axes, split_axes
from tilewright.group.normalize import normalize
from tilewright.group.padding import pad_inputs
from tilewright.group.rings import ring
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.extent import assuming
from tilewright.ir.kernel import Kernel, Stage
from tilewright.ir.layout import Layout
from tilewright.ir.plan import ExternCall, KernelCall, Plan, PlanBuffer, PlanStep
from tilewright.ir.program import (
    Axis,
    Definition,
    Dim,
    Extern,
    If,
    Program,
    Recurrence,
    Scatter,
    Statement,
    Tensor,
    While,
    map_statement,
    statement_dims,
    statement_reads,
)
from tilewright.machine.target import Target

__all__ = ["own_results", "plan_program", "prepare"]


def prepare(program: Program, target: Target) -> Program:
    """The form that is grouped; preparing it again changes nothing."""
    return pad_inputs(normalize(resolve_branches(program)), target)


def plan_program(program: Program, target: Target) -> tuple[Plan, list[Decision]]:
    """The Plan of a Program; its dims stay symbolic in it (group/symbolic.py says where they
    may)."""
    with assuming(program.dims):
        return _planned(program, target)


def _planned(program: Program, target: Target) -> tuple[Plan, list[Decision]]:
    p = prepare(program, target)
    p, groups, definitions, decisions = group_program(p, target)
    layouts, alias = choose_layouts(p, groups, definitions)
    for g in groups:
        if isinstance(g.statement, Recurrence):
            leaving = {n for n in g.names() if n in alias or _leaves(n, g, p, definitions)}
            rings = {n: ring(g.statement, n, layouts[n], leaving) for n in g.names()}
            layouts |= {n: x for n, x in rings.items() if x is not None}
    groups = [
        g
        for g in groups
        if not (
            g.statement is None
            and set(g.names()) <= set(alias.values()) - set(alias)
            and _is_view(g, definitions, alias)
        )
    ]
    kernels: dict[str, tuple[int, Kernel]] = {}
    steps: list[PlanStep] = []
    used: dict[str, Layout] = {}
    blocks = Blocks(p, lambda q: plan_program(q, target), kernels, decisions, set(p.tensors))
    for g in groups:
        if isinstance(g.statement, If | While):
            steps += blocks.steps(g.statement)
            touched = sorted({*statement_reads(g.statement), *g.names()})
            used.update((n, layouts[n]) for n in touched)
            continue
        if isinstance(g.statement, Extern):
            e = g.statement
            results = tuple(t.name for t in e.results)
            steps.append(ExternCall(e.function, e.args, results, e.attributes))
            used.update((n, layouts[n]) for n in (*e.args, *results))
            continue
        kernel, names = _kernel(g, p, definitions, layouts)
        number, _ = kernels.setdefault(kernel.key, (len(kernels), kernel))
        steps.append(KernelCall(number, names, tuple(g.names())))
        used.update((n, layouts[n]) for n in names)
    buffers = [*blocks.buffers.values(), *_buffers(p, used, layouts, alias)]
    found = [kernel for _, kernel in kernels.values()]
    steps = [_aliased(s, alias) for s in steps]
    plan = Plan(program.name, tuple(buffers), tuple(found), tuple(steps), program.dims)
    return plan, decisions


def _is_view(g: Group, definitions: dict[str, Definition], alias: dict[str, str]) -> bool:
    """Is the group's one definition the rearrangement whose place its source is written into?"""
    (name,) = g.names() if len(g.names()) == 1 else ("",)
    d = definitions.get(name)
    return d is not None and d.body.op == "read" and alias.get(d.body.attr[0]) == name


def _aliased(s: PlanStep, alias: dict[str, str]) -> PlanStep:
    if isinstance(s, KernelCall):
        return replace(s, buffers=tuple(alias.get(b, b) for b in s.buffers))
    return s


def _buffers(
    p: Program, used: dict[str, Layout], layouts: dict[str, Layout], alias: dict[str, str]
) -> list[PlanBuffer]:
    constants = {t.name: key for t, key in p.constants}
    inputs, results = {t.name for t in p.inputs}, set(p.results)
    out: list[PlanBuffer] = []
    names = dict.fromkeys([*(t.name for t in p.inputs), *used, *p.results])
    for n in names:
        if n in alias:
            continue
        t = p.tensors[n]
        place = (
            "input"
            if n in inputs
            else "const"
            if n in constants
            else "output"
            if n in results
            else "arena"
        )
        layout = used.get(n, layouts[n])
        out.append(PlanBuffer(n, t.dtype, layout, place, constants.get(n, "")))
    known = {b.name for b in out}
    for n in alias.values():
        if n not in known:
            known.add(n)
            place = "output" if n in results else "arena"
            out.append(PlanBuffer(n, p.tensors[n].dtype, layouts[n], place))
    order = {n: k for k, n in enumerate(p.results)}
    out.sort(key=lambda b: order[b.name] if b.place == "output" else -1)
    return out


# ---- canonical kernels ---------------------------------------------------------------------------


def _kernel(
    g: Group, p: Program, definitions: dict[str, Definition], layouts: dict[str, Layout]
) -> tuple[Kernel, tuple[str, ...]]:
    """The canonical kernel of a group, and the model's tensors in the order of the kernel's
    layouts.
    """
    body: list[Statement]
    if g.statement is not None:
        body = [g.statement]
        members = [d.name for d in getattr(g.statement, "definitions", ())]
        stages = tuple(Stage(m, (m,)) for m in members)
        own = set(g.names())
        crossing = own
    else:
        body = [definitions[m] for s in g.stages for m in s.members]
        stages = tuple(Stage(s.anchor, tuple(s.members)) for s in g.stages)
        own = set(g.names())
        crossing = {n for n in own if n in layouts and _leaves(n, g, p, definitions)}
    sequence = ""
    if isinstance(g.statement, Recurrence):
        sequence = g.statement.axis.name
    constants = {t.name: key for t, key in p.constants}
    reads: dict[str, None] = {}
    for s in body:
        for e in _expressions(s):
            for r in e.reads():
                if r.attr[0] not in own:
                    reads.setdefault(r.attr[0])
    inputs = tuple(p.tensors[n] for n in reads if n not in constants)
    consts = tuple((p.tensors[n], constants[n]) for n in reads if n in constants)
    kept = [n for s in body for n in _defined(s) if n in crossing]
    results = tuple(n for n in kept if not layouts[n].is_ring)
    program = Program("k", inputs, tuple(body), results, p.dims, consts)
    border = [t.name for t in inputs] + [t.name for t, _ in consts] + kept
    border_layouts = tuple((n, layouts[n]) for n in border)
    kernel = Kernel(program, stages, border_layouts, g.shared, sequence, g.stream)
    if g.statement is None:
        kernel = merge_axes(split_axes(kernel))
    return canonical(kernel), tuple(border)


def _leaves(name: str, g: Group, p: Program, definitions: dict[str, Definition]) -> bool:
    """Is the tensor read outside its group, or a result?"""
    if name in p.results:
        return True
    own = set(g.names())
    for n, d in definitions.items():
        if n not in own and name in d.read_names:
            return True

    others = (s for s in p.body if s is not g.statement and not isinstance(s, Definition))
    return any(name in statement_reads(s) for s in others)


def _defined(s: Statement) -> tuple[str, ...]:
    from tilewright.ir.program import defined_by

    return tuple(t.name for t in defined_by(s))


def _expressions(s: Statement) -> Iterable[Expr]:
    match s:
        case Definition():
            return list(s.expressions())
        case Recurrence():
            return [e for d in s.definitions for e in d.expressions()]
        case Scatter():
            return [s.body, s.base, *s.subscripts]
    return []


def canonical(kernel: Kernel) -> Kernel:
    """Tensors renamed to t0, t1, ... and axes to a0, a1, ..., in order of appearance."""
    tensors: dict[str, str] = {}
    axes: dict[str, str] = {}
    for n, _ in kernel.layouts:
        tensors.setdefault(n, f"t{len(tensors)}")
    for s in kernel.program.body:
        for n in _defined(s):
            tensors.setdefault(n, f"t{len(tensors)}")
        for d in getattr(s, "definitions", (s,)):
            for a in _axes(d):
                axes.setdefault(a.name, f"a{len(axes)}")
    swap = {E.index(a): E.index(b) for a, b in axes.items()}

    def go(e: Expr) -> Expr:
        e = E.substitute(e, swap)
        reads = {r: r for r in e.reads()}
        memo: dict[Expr, Expr] = {}
        for r in reads:  # operands first, so inner reads are renamed already
            args = tuple(E.substitute(a, memo) for a in r.args)
            memo[r] = E.read(
                tensors[r.attr[0]],
                args[:-1] if r.attr[1] else args,
                r.dtype,
                args[-1] if r.attr[1] else None,
            )
        return E.substitute(e, memo)

    def rename(s: Statement) -> Statement:
        if isinstance(s, Recurrence):
            definitions = tuple(rename(d) for d in s.definitions)
            return Recurrence(Axis(axes[s.axis.name], s.axis.extent), definitions)  # type: ignore[arg-type]
        s = map_statement(s, go)
        match s:
            case Definition():
                reduction = s.reduction
                if reduction is not None:
                    reduction = replace(reduction, axes=_renamed(reduction.axes, axes))
                scan = (s.scan[0], axes[s.scan[1]]) if s.scan else None
                return replace(
                    s,
                    name=tensors[s.name],
                    axes=_renamed(s.axes, axes),
                    reduction=reduction,
                    scan=scan,
                )
            case Scatter():
                return replace(
                    s,
                    name=tensors[s.name],
                    axes=_renamed(s.axes, axes),
                    source=_renamed(s.source, axes),
                )
        return s

    p = kernel.program

    def tensor(t: Tensor) -> Tensor:
        return replace(t, name=tensors[t.name])

    program = Program(
        "k",
        tuple(map(tensor, p.inputs)),
        tuple(map(rename, p.body)),
        tuple(tensors[n] for n in p.results),
        (),
        tuple((tensor(t), key) for t, key in p.constants),
    )
    if p.dims:
        program = replace(program, dims=_used_dims(p.dims, program, kernel.layouts))
    return Kernel(
        program,
        tuple(
            Stage(tensors[s.anchor], tuple(tensors[m] for m in s.members)) for s in kernel.stages
        ),
        tuple((tensors[n], layout) for n, layout in kernel.layouts),
        tuple(axes[a] for a in kernel.shared),
        axes[kernel.sequence] if kernel.sequence else "",
        axes[kernel.stream] if kernel.stream else "",
    )


def _used_dims(
    dims: tuple[Dim, ...], p: Program, layouts: tuple[tuple[str, Layout], ...]
) -> tuple[Dim, ...]:
    """Those of the dims that occur in a kernel."""
    numbers = [n for _, x in layouts for n in (*x.shape, x.size, *(t.stride for t in x.terms))]
    used = {name for n in numbers for name in E.const(n).names("dim")}
    used |= {name for t in p.tensors.values() for n in t.shape for name in n.names("dim")}
    used |= {name for s in p.body for name in statement_dims(s)}
    return tuple(d for d in dims if d.name in used)


def _axes(s: Statement | Definition) -> tuple[Axis, ...]:
    match s:
        case Definition():
            return s.all_axes
        case Scatter():
            return s.axes + s.source
    return ()


def _renamed(xs: tuple[Axis, ...], axes: dict[str, str]) -> tuple[Axis, ...]:
    return tuple(replace(a, name=axes[a.name]) for a in xs)
