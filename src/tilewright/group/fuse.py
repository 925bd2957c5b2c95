"""Partition a normalized Program into groups of definitions, each of which becomes one kernel.

In: a normalized Program and a Target. Out: `Group`s in execution order, with the reason of every
decision. Invariants: each definition is in exactly one group or inlined into its readers; the
groups are topologically ordered; a group's internal reads use its shared axes with one meaning.

First, sums whose terms depend on a maximum over the same axis become one group that streams along
it (derive/stream.py). Then three moves, in order: absorb pointwise readers into the stage that
produces what they read (epilogue); inline cheap pointwise producers into their readers (prologue);
stack stages that share outer axes (rows.py).
"""

from __future__ import annotations

from dataclasses import replace
from math import prod

from tilewright.derive.stream import Streamed, find_stream, scaled_terms
from tilewright.group.groups import (
    Decision,
    Group,
    Grouping,
    StageGroup,
    cost,
    descendants,
    extents_of,
    is_contraction,
    is_pointwise,
    renamed,
)
from tilewright.group.normalize import (
    axis_ranges,
    inline_choices,
    inline_reads,
    is_plain_read,
    tidy,
)
from tilewright.group.quotients import is_view_of_rows
from tilewright.group.rows import feed_reductions, stack_rows
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import Definition, Program, defined_by
from tilewright.machine.target import Target

__all__ = ["group_program"]

# The most that an expression may cost which is computed again at every read.
CHEAP = 4
_SHORT = 8  # weight of what is computed inside a part of a concatenation
_MOST_PARTS = 64  # fewer have loops of their own (lower/cuts.py)


# ---- streams -------------------------------------------------------------------------------------


def _find_streams(st: Grouping) -> None:
    """Put definitions that stream along one axis into a group of their own."""
    for name in reversed(list(st.definitions)):
        d = st.definitions.get(name)
        if d is None or d.body.op not in ("mul", "div"):
            continue
        taken = frozenset({*st.program.tensors, *st.definitions})
        if d.reduction is None:
            found = _scaled_stream(st, name, taken)
        else:
            found = find_stream(name, st.definitions, st.readers, st.other_readers, taken)
        if found is None:
            continue
        home = st.group_of[name]
        stages = [StageGroup(s.anchor, [m.name for m in s.members]) for s in found.stages]
        g = Group(stages, found.shared, stream=found.axis)
        at = st.groups.index(home)
        gone = {id(st.group_of[n]) for n in found.replaced}
        before = sum(id(x) in gone for x in st.groups[:at])
        st.groups = [x for x in st.groups if id(x) not in gone]
        st.groups.insert(at - before, g)
        for d in found.copies:
            copy = Group([StageGroup(d.name, [d.name])], stored=True)
            st.groups.insert(at - before, copy)
            st.definitions[d.name], st.group_of[d.name] = d, copy
            st.shapes[d.name] = tuple(extents_of(d).values())
            st.note(d.body.attr[0], d.name, False, "turned once, as many rows read it along lanes")
        st.program = replace(st.program, body=(*found.copies, *st.program.body))
        for n in found.replaced:
            del st.definitions[n], st.group_of[n]
        for s in found.stages:
            for m in s.members:
                st.definitions[m.name] = m
                st.group_of[m.name] = g
        st._index = None
        reason = (
            "folded block by block along one axis, what was summed rescaled as the maximum grows"
        )
        for n in sorted(found.replaced - {name}):
            st.note(n, name, True, reason)


def _scaled_stream(st: Grouping, name: str, taken: frozenset[str]) -> Streamed | None:
    """The stream of a sum that `name` multiplies or divides, with the factor in its terms."""
    d = st.definitions[name]
    for source in d.read_names:
        inner = st.definitions.get(source)
        if inner is None or st.other_readers(source) or set(st.readers(source)) != {name}:
            continue
        others = {n: x for n, x in st.definitions.items() if n != source}

        def readers(tensor: str, gone: str = source) -> list[str]:
            return [name if n == gone else n for n in st.readers(tensor)]

        for whole in scaled_terms(d, inner, taken):
            found = find_stream(name, {**others, name: whole}, readers, st.other_readers, taken)
            if found is not None:
                return replace(found, replaced=found.replaced | {source})
    return None


# ---- epilogues -----------------------------------------------------------------------------------


def _absorb_epilogues(st: Grouping, onto_reductions: bool) -> None:
    """Move pointwise definitions into the stages whose results they read element by element."""
    for name in list(st.definitions):
        d = st.definitions[name]
        home = st.group_of[name]
        if not is_pointwise(d) or home.names() != [name] or home.stored:
            continue
        sources = [r.attr[0] for r in d.reads()]
        best: tuple[int, Group, dict[str, str]] | None = None
        for source in dict.fromkeys(sources):
            g = st.group_of.get(source)
            if g is None or g is home or g.statement is not None or len(g.stages) != 1:
                continue
            tail = st.definitions[source]
            mapping = _aligned(d, tail, st.shapes[source])
            if mapping is None:
                continue
            others = [n for n in dict.fromkeys(sources) if st.group_of.get(n) is g and n != source]
            if any(_aligned(d, st.definitions[n], st.shapes[n]) != mapping for n in others):
                st.note(source, name, False, "it also reads other elements of the same stage")
                continue
            anchor = st.definitions[g.stages[0].anchor]
            # The stage's axes must be those of its anchor, whatever chain led here.
            if {*mapping.values()} - {a.name for a in anchor.axes}:
                continue
            if anchor.scan is not None or (anchor.reduction is not None) != onto_reductions:
                continue
            if (
                st.readers(source) != [name]
                and not st.other_readers(source)
                and anchor.reduction is None
            ):
                # Several readers of a pointwise tensor: they are siblings only while the work is
                # small.
                if len(st.readers(source)) > 2:
                    st.note(source, name, False, "read by several others; stored once instead")
                    continue
            later = descendants(st, g)
            blocked = [s for s in sources if s in st.group_of and id(st.group_of[s]) in later]
            if blocked:
                st.note(
                    source, name, False, f"{blocked[0]} depends on {source} and must come between"
                )
                continue
            weight = (anchor.reduction is not None) * 2 + is_contraction(anchor)
            if best is None or weight > best[0]:
                best = (weight, g, mapping)
        if best is None:
            continue
        _, g, mapping = best
        st.definitions[name] = renamed(d, mapping)
        g.stages[0].members.append(name)
        st.groups.remove(home)
        st.group_of[name] = g
        st.touch(g)
        st.note(g.stages[0].anchor, name, True, "computed on the producer's register tile")


def _aligned(d: Definition, tail: Definition, shape: tuple[int, ...]) -> dict[str, str] | None:
    """d's axis -> tail's axis where d reads `tail` element by element over the whole of both, else
    None.
    """
    reads = [r for r in d.reads() if r.attr[0] == tail.name]
    extents = extents_of(d)
    mapping: dict[str, str] | None = None
    for r in reads:
        if r.attr[1] or not is_plain_read(r, extents, shape):
            return None
        here = {s.attr: a.name for s, a in zip(r.args, tail.axes, strict=True) if s.op == "index"}
        if mapping is not None and mapping != here:
            return None
        mapping = here
    if mapping is None:
        return None
    missing = [a.name for a in d.axes if a.name not in mapping]
    if any(extents[a] != 1 for a in missing):
        return None
    spare = [
        a.name for a in tail.axes if a.name not in mapping.values() and int_extent(a.extent) == 1
    ]
    for a in missing:
        if not spare:
            return None
        mapping[a] = spare.pop(0)
    return mapping if len(mapping) == len(d.axes) else None


# ---- prologues -----------------------------------------------------------------------------------


def _inline_prologues(st: Grouping) -> None:
    """Inline pointwise definitions that stand alone into their readers where recomputing is cheaper
    than storing.
    """
    for name in reversed(list(st.definitions)):
        d = st.definitions[name]
        g = st.group_of[name]
        if not is_pointwise(d) or g.names() != [name] or g.stored or st.other_readers(name):
            continue
        readers = st.readers(name)
        weight = cost(d.body)
        refusal = _refusal(st, d, readers, weight)
        if refusal:
            for r in readers:
                st.note(name, r, False, refusal)
            continue
        new: dict[str, Definition] = {}
        for r in readers:
            e = st.definitions[r]
            body = inline_reads(e.body, d, ())
            if body is None:  # padded, so a choice among parts: see `_refusal`
                body = inline_choices(e.body, d, axis_ranges(e.all_axes), st.shapes)
            reduction, guard = e.reduction, None
            if reduction is not None and reduction.guard is not None:
                guard = inline_reads(reduction.guard, d, ())
                if guard is None:
                    break
                reduction = replace(reduction, guard=guard)
            new[r] = replace(
                e, body=tidy(body, axis_ranges(e.all_axes), st.shapes), reduction=reduction
            )
        else:
            st.definitions.update(new)
            st.groups.remove(g)
            del st.definitions[name], st.group_of[name]
            st._index = None
            for r in readers:
                st.touch(st.group_of[r])
                st.note(
                    name, r, True, "recomputed where it is read: cheaper than a trip through memory"
                )


def _is_choice(e: Definition, name: str) -> bool:
    """Is it a concatenation, say, that reads the tensor once, at the positions of one part? Its
    loops are taken apart there (lower/cuts.py), so that no other part asks.
    """
    if e.reduction is not None or e.scan is not None or e.body.op != "select":
        return False
    parts, rest = 1, e.body
    while rest.op == "select":
        parts, rest = parts + 1, rest.args[2]
    if parts >= _MOST_PARTS:
        return False
    return sum(1 for x in e.body.reads() if x.attr[0] == name) == 1


def _refusal(st: Grouping, d: Definition, readers: list[str], weight: int) -> str:
    """Why a pointwise definition should be stored; empty where it should be inlined."""
    if not readers:
        return "nothing reads it"
    if is_view_of_rows(d):
        return "it is a view of rows"
    size = prod(st.shapes[d.name])
    for r in readers:
        e = st.definitions[r]
        uses = sum(1 for x in e.reads() if x.attr[0] == d.name)
        points = prod(extents_of(e).values())
        if e.scan is not None:
            return "a scan reads it"
        if is_view_of_rows(e):
            return "it is written into its place row by row"
        if e.reduction is not None and (is_contraction(e) or points > 2 * size) and weight > 0:
            return "a reduction reads each element many times"
        padded = any(x.attr[0] == d.name and x.attr[1] for x in e.reads())
        if padded and not (_is_choice(e, d.name) and len(readers) == 1 and weight <= _SHORT):
            return "it is read with padding"
        if points > 2 * size and weight > CHEAP:
            return "it is read at more points than it has elements"
        if uses > 1 and weight > CHEAP:
            return "it is read more than once"
    if len(readers) > 1 and weight > CHEAP:
        return "several others read it"
    return ""


# ---- order ---------------------------------------------------------------------------------------


def _sort(st: Grouping) -> None:
    """Topological order of the groups, as near to the present order as it can be."""
    producer = {n: g for g in st.groups for n in g.names()}
    done: set[int] = set()
    out: list[Group] = []

    def visit(g: Group) -> None:
        if id(g) in done:
            return
        done.add(id(g))
        for n in sorted(st.group_reads(g)):
            if n in producer and producer[n] is not g:
                visit(producer[n])
        out.append(g)

    for g in st.groups:
        visit(g)
    st.groups = out


# ---- entry ---------------------------------------------------------------------------------------


def group_program(
    p: Program, target: Target
) -> tuple[Program, list[Group], dict[str, Definition], list[Decision]]:
    """The Program with copies that were added, groups in order, the (rewritten) definitions they
    name, and the decisions."""
    definitions = {s.name: s for s in p.body if isinstance(s, Definition)}
    shapes = {t.name: tuple(int_extent(n) for n in t.shape) for t in p.tensors.values()}
    st = Grouping(p, target, definitions, shapes)
    for s in p.body:
        if isinstance(s, Definition):
            g = Group([StageGroup(s.name, [s.name])])
            st.group_of[s.name] = g
        else:
            g = Group([], statement=s)
            for t in defined_by(s):
                st.group_of[t.name] = g
        st.groups.append(g)
    _find_streams(st)
    _absorb_epilogues(st, onto_reductions=True)
    _inline_prologues(st)
    _absorb_epilogues(st, onto_reductions=False)
    stack_rows(st)
    for g in st.groups:
        if not g.stream:
            feed_reductions(st, g)
    _sort(st)
    return st.program, st.groups, st.definitions, st.decisions
