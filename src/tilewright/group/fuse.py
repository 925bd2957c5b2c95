"""Partition a normalized Program into groups of definitions, each of which becomes one kernel.

In: a normalized Program and a Target. Out: `Group`s in execution order, with the reason of every
decision. Invariants: each definition is in exactly one group or inlined into its readers; the
groups are topologically ordered; a group's internal reads use its shared axes with one meaning.

First, sums whose terms depend on a maximum over the same axis become one group that streams along
it (derive/stream.py). Then three moves, in order: absorb pointwise readers into the stage that
produces what they read (epilogue); inline cheap pointwise producers into their readers (prologue);
stack stages that share outer axes, so that what flows between them stays in cache (row groups:
normalizations, softmax).
"""

from __future__ import annotations

from collections.abc import Iterable, Set
from dataclasses import dataclass, field, replace
from math import prod

from tilewright.derive.stream import find_stream
from tilewright.group.normalize import (
    axis_ranges,
    inline_reads,
    is_plain_read,
    statement_reads,
    tidy,
)
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import Definition, Program, Statement, defined_by
from tilewright.machine.target import Target

__all__ = ["Decision", "Group", "StageGroup", "group_program"]

# Operations that cost tens of instructions a vector; everything else counts as one.
_HEAVY = frozenset(
    [
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log1p",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "erf",
        "sigmoid",
        "pow",
        "atan2",
        "fmod",
    ]
)
CHEAP = 4


@dataclass
class StageGroup:
    """One loop nest in the making: members in order, the anchor among them."""

    anchor: str
    members: list[str]


@dataclass
class Group:
    """Stages over `shared` axes (names of the first stage's axes), or one statement that stands
    alone.
    """

    stages: list[StageGroup]
    shared: tuple[str, ...] = ()
    statement: Statement | None = None
    stream: str = ""

    def names(self) -> list[str]:
        if self.statement is not None:
            return [t.name for t in defined_by(self.statement)]
        return [m for s in self.stages for m in s.members]


@dataclass(frozen=True)
class Decision:
    """Why two definitions were or were not put together, in the names of the user's graph."""

    producer: str
    consumer: str
    fused: bool
    reason: str


@dataclass
class _State:
    program: Program
    target: Target
    definitions: dict[str, Definition]
    shapes: dict[str, tuple[int, ...]]
    group_of: dict[str, Group] = field(default_factory=dict)
    groups: list[Group] = field(default_factory=list)
    decisions: list[Decision] = field(default_factory=list)
    _group_reads: dict[int, frozenset[str]] = field(default_factory=dict)
    _index: dict[str, list[str]] | None = None

    def note(self, producer: str, consumer: str, fused: bool, reason: str) -> None:
        self.decisions.append(Decision(producer, consumer, fused, reason))

    def index(self) -> dict[str, list[str]]:
        """Tensor -> names of what is defined by statements that read it."""
        if self._index is None:
            self._index = {}
            for g, d in self.definitions.items():
                for n in d.read_names:
                    self._index.setdefault(n, []).append(g)
            for s in self.program.body:
                if not isinstance(s, Definition):
                    for n in statement_reads(s):
                        self._index.setdefault(n, []).extend(t.name for t in defined_by(s))
        return self._index

    def readers(self, name: str) -> list[str]:
        """Definitions that read a tensor."""
        return [g for g in self.index().get(name, ()) if g in self.definitions]

    def other_readers(self, name: str) -> bool:
        """Is it a result, or read by a statement that is no definition?"""
        if name in self.program.results:
            return True
        return any(
            not isinstance(s, Definition) and name in statement_reads(s) for s in self.program.body
        )

    def group_reads(self, g: Group) -> Set[str]:
        if g.statement is not None:
            return statement_reads(g.statement)
        hit = self._group_reads.get(id(g))
        if hit is None:
            own = g.names()
            hit = frozenset[str]().union(*(self.definitions[m].read_names for m in own)) - set(own)
            self._group_reads[id(g)] = hit
        return hit

    def touch(self, g: Group) -> None:
        """The group's members have changed."""
        self._group_reads.pop(id(g), None)


def cost(e: Expr) -> int:
    """Arithmetic weight of an expression, subscripts excluded."""
    total, stack, seen = 0, [e], set()
    while stack:
        n = stack.pop()
        if id(n) in seen:
            continue
        seen.add(id(n))
        if n.op in ("const", "index", "dim"):
            continue
        if n.op == "read":
            if n.attr[1]:
                total += 1
            total += sum(1 for s in n.args for _ in s.reads())
            continue
        total += (
            12
            if n.op in _HEAVY
            else 3
            if n.op in ("div", "sqrt", "rsqrt", "floordiv", "mod")
            else 1
        )
        stack.extend(n.args)
    return total


def _is_pointwise(d: Definition) -> bool:
    return d.reduction is None and d.scan is None


def is_contraction(d: Definition) -> bool:
    """Is it a reduction in which some operand is reused along an output axis (so that it is worth
    blocking)?
    """
    if d.reduction is None:
        return False
    outs = {a.name for a in d.axes if int_extent(a.extent) > 1}
    reads = [r for r in d.body.reads() if r.args]
    used = [{x for s in r.args for x in s.names("index")} for r in reads]
    reduced = {a.name for a in d.reduction.axes}
    return len(reads) >= 2 and any(outs - u and u & reduced for u in used)


def _extents(d: Definition) -> dict[str, int]:
    return {a.name: int_extent(a.extent) for a in d.all_axes}


# ---- streams -------------------------------------------------------------------------------------


def _find_streams(st: _State) -> None:
    """Put definitions that stream along one axis into a group of their own."""
    for name in reversed(list(st.definitions)):
        d = st.definitions.get(name)
        if d is None or d.reduction is None or d.body.op != "mul":
            continue
        taken = frozenset({*st.program.tensors, *st.definitions})
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


# ---- epilogues -----------------------------------------------------------------------------------


def _descendants(st: _State, g: Group) -> set[int]:
    """Groups that (transitively) read what `g` produces."""
    out: set[int] = set()
    waiting = g.names()
    while waiting:
        for reader in st.index().get(waiting.pop(), ()):
            other = st.group_of[reader]
            if other is not g and id(other) not in out:
                out.add(id(other))
                waiting += other.names()
    return out


def _aligned(d: Definition, tail: Definition, shape: tuple[int, ...]) -> dict[str, str] | None:
    """d's axis -> tail's axis where d reads `tail` element by element over the whole of both, else
    None.
    """
    reads = [r for r in d.reads() if r.attr[0] == tail.name]
    extents = _extents(d)
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


def _rename(d: Definition, mapping: dict[str, str]) -> Definition:
    """`d` with its axes renamed."""
    swap = {E.index(a): E.index(b) for a, b in mapping.items() if a != b}
    axes = tuple(replace(a, name=mapping.get(a.name, a.name)) for a in d.axes)
    r = d.reduction
    if r is not None:
        clash = {a.name for a in r.axes} & {a.name for a in axes}
        fresh = {a: f"{a}_r" for a in clash}
        swap.update({E.index(a): E.index(b) for a, b in fresh.items() if a not in mapping})
        r = replace(
            r,
            axes=tuple(replace(a, name=fresh.get(a.name, a.name)) for a in r.axes),
            guard=None if r.guard is None else E.substitute(r.guard, swap),
        )
    scan = None if d.scan is None else (d.scan[0], mapping.get(d.scan[1], d.scan[1]))
    return replace(d, axes=axes, body=E.substitute(d.body, swap), reduction=r, scan=scan)


def _absorb_epilogues(st: _State, onto_reductions: bool) -> None:
    """Move pointwise definitions into the stages whose results they read element by element."""
    for name in list(st.definitions):
        d = st.definitions[name]
        home = st.group_of[name]
        if not _is_pointwise(d) or home.names() != [name]:
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
            later = _descendants(st, g)
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
        st.definitions[name] = _rename(d, mapping)
        g.stages[0].members.append(name)
        st.groups.remove(home)
        st.group_of[name] = g
        st.touch(g)
        st.note(g.stages[0].anchor, name, True, "computed on the producer's register tile")


def _sort(st: _State) -> None:
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


# ---- prologues -----------------------------------------------------------------------------------


def _inline_prologues(st: _State) -> None:
    """Inline pointwise definitions that stand alone into their readers where recomputing is cheaper
    than storing.
    """
    for name in reversed(list(st.definitions)):
        d = st.definitions[name]
        g = st.group_of[name]
        if not _is_pointwise(d) or g.names() != [name] or st.other_readers(name):
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
            reduction, guard = e.reduction, None
            if reduction is not None and reduction.guard is not None:
                guard = inline_reads(reduction.guard, d, ())
                if guard is None:
                    break
                reduction = replace(reduction, guard=guard)
            if body is None:
                break
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


def _refusal(st: _State, d: Definition, readers: list[str], weight: int) -> str:
    """Why a pointwise definition should be stored; empty where it should be inlined."""
    if not readers:
        return "nothing reads it"
    size = prod(st.shapes[d.name])
    for r in readers:
        e = st.definitions[r]
        uses = sum(1 for x in e.reads() if x.attr[0] == d.name)
        points = prod(_extents(e).values())
        if e.scan is not None:
            return "a scan reads it"
        if e.reduction is not None and (is_contraction(e) or points > 2 * size) and weight > 0:
            return "a reduction reads each element many times"
        if any(x.attr[0] == d.name and x.attr[1] for x in e.reads()):
            return "it is read with padding"
        if points > 2 * size and weight > CHEAP:
            return "it is read at more points than it has elements"
        if uses > 1 and weight > CHEAP:
            return "it is read more than once"
    if len(readers) > 1 and weight > CHEAP:
        return "several others read it"
    return ""


# ---- row groups ----------------------------------------------------------------------------------


def _share(
    st: _State, first: Group, second: Group
) -> tuple[dict[str, dict[str, str]], tuple[str, ...]] | None:
    """How `second` can be stacked on `first`: renamings of second's axes, and the shared axes; None
    where it cannot.
    """
    own = set(first.names())
    anchor = st.definitions[first.stages[0].anchor]
    candidates = list(first.shared) if first.shared else [a.name for a in anchor.axes]
    mapping: dict[str, str] = {}  # second's axis -> first's axis
    head = st.definitions[second.stages[0].anchor]
    allowed = set(second.shared) if second.shared else {a.name for a in head.axes}
    shared: set[str] | None = None
    for m in second.names():
        for r in st.definitions[m].reads():
            if r.attr[0] not in own:
                continue
            if r.attr[1]:
                return None
            here: set[str] = set()
            source = st.definitions[r.attr[0]]
            for s, a in zip(r.args, source.axes, strict=True):
                if a.name not in candidates:
                    continue
                if s.op == "index" and s.attr in allowed and mapping.get(s.attr, a.name) == a.name:
                    if a.name not in mapping.values() or mapping.get(s.attr) == a.name:
                        mapping[s.attr] = a.name
                        here.add(a.name)
                elif int_extent(a.extent) == 1 and E.int_value(s) == 0:
                    here.add(a.name)
            shared = here if shared is None else shared & here
    if not shared:
        return None
    extents = _extents(anchor)
    for mine, theirs in mapping.items():
        if theirs in shared and _extents(head).get(mine) != extents.get(theirs):
            shared.discard(theirs)
    ones = {a for a in shared if extents.get(a) == 1}
    inverse = {a: m for m, a in mapping.items()}
    # A prefix runs along its whole axis: rows cannot be cut there.
    scanned = {d.scan[1] for n in own if (d := st.definitions[n]).scan is not None}
    scanned |= {
        mapping.get(d.scan[1], "")
        for n in second.names()
        if (d := st.definitions[n]).scan is not None
    }
    shared -= scanned
    shared = {a for a in shared if a in inverse and a not in ones}
    if not shared:
        return None
    return {"axes": {inverse[a]: a for a in shared}}, tuple(a for a in candidates if a in shared)


def _row_bytes(st: _State, names: Iterable[str], shared: set[str]) -> int:
    """Bytes of the tensors of a group for one point of the shared axes."""
    total = 0
    for n in names:
        d = st.definitions[n]
        total += prod(int_extent(a.extent) for a in d.axes if a.name not in shared) * d.dtype.bytes
    return total


def _operand_bytes(st: _State, names: list[str], shared: set[str]) -> int:
    """Bytes of outside operands that one point of the shared axes reads again and again."""
    total, own = 0, set(names)
    for n in names:
        d = st.definitions[n]
        if not is_contraction(d):
            continue
        ext = _extents(d)
        for r in d.body.reads():
            if r.attr[0] in own:
                continue
            used = {x for s in r.args for x in s.names("index")}
            if used & {a for a in shared if ext.get(a, 1) > 1} == {
                a for a in shared if a in ext and ext[a] > 1
            }:
                continue
            total += prod(ext[a] for a in used if a not in shared) * r.dtype.bytes
    return total


def _stack_rows(st: _State) -> None:
    """Stack a group on the group that produces what it reads where they share outer axes and a row
    fits in cache.
    """
    changed = True
    while changed:
        changed = False
        for second in list(st.groups):
            if second.statement is not None:
                continue
            if second.stream:
                continue
            near = {
                id(g): g
                for n in sorted(st.group_reads(second))
                if (g := st.group_of.get(n)) is not None
            }
            producers = [
                g for g in near.values() if g is not second and g.statement is None and not g.stream
            ]
            for first in producers:
                if _try_stack(st, first, second):
                    changed = True
                    break
            if changed:
                break


def _try_stack(st: _State, first: Group, second: Group) -> bool:
    a, b = first.stages[0].anchor, second.stages[0].anchor
    if not any(
        st.definitions[s.anchor].reduction is not None for g in (first, second) for s in g.stages
    ):
        return False
    found = _share(st, first, second)
    if found is None:
        return False
    renames, shared = found
    later = _descendants(st, first)
    between = [g for g in st.groups if id(g) in later and g is not second]
    needs = st.group_reads(second)
    blockers = [n for g in between for n in g.names() if n in needs]
    if blockers:
        st.note(a, b, False, f"{blockers[0]} must come between")
        return False
    rename = renames["axes"]
    names = first.names() + second.names()
    points = prod(_extents(st.definitions[a])[x] for x in shared)
    if len(first.stages) > 1 and len(shared) < len(first.shared):
        st.note(a, b, False, f"it shares fewer axes than {', '.join(first.shared)}")
        return False
    for n in names:
        if is_contraction(st.definitions[n]) and {
            r.attr[0] for r in st.definitions[n].body.reads()
        } & constants(st):
            st.note(a, b, False, f"{n} is blocked over rows to reuse its constant operand")
            return False
    if any(
        (d := st.definitions[s.anchor]).reduction is None
        and d.scan is None
        and not (set(first.names()) & statement_reads(d))
        for s in second.stages
    ):
        return False
    # Axis names of the two groups must not clash except for the shared ones.
    taken = {x for n in first.names() for x in _extents(st.definitions[n])}
    old = {n: st.definitions[n] for n in second.names()}
    for n in second.names():
        d = st.definitions[n]
        mapping = dict(rename)
        for axis in d.axes:
            if axis.name not in mapping and axis.name in taken:
                mapping[axis.name] = f"{axis.name}_{b}"
        st.definitions[n] = _rename(d, mapping)
    limit = st.target.l2_bytes // 2
    row = _row_bytes(st, names, set(shared))
    again = _operand_bytes(st, names, set(shared))
    reason = ""
    if row > limit:
        reason = f"a row of {row} bytes does not fit in half of L2"
    elif again > limit:
        reason = f"{again} bytes of operands would be read again for every row"
    elif points < 2 and prod(st.shapes[a]) > 1:
        reason = "there is only one row"
    if reason:
        st.definitions.update(old)
        st.note(a, b, False, reason)
        return False
    first.stages += second.stages
    first.shared = shared
    st.groups.remove(second)
    for n in second.names():
        st.group_of[n] = first
    st.touch(first)
    st.note(a, b, True, f"stages of one loop over {', '.join(shared)}: a row stays in cache")
    return True


def constants(st: _State) -> set[str]:
    """Names of the constant tensors."""
    return {t.name for t, _ in st.program.constants}


def _feed_reductions(st: _State, g: Group) -> None:
    """Compute a pointwise stage on the register tiles of the reduction that follows and reads it
    element by element.
    """
    k = 0
    while k + 1 < len(g.stages):
        first, second = g.stages[k], g.stages[k + 1]
        tail, anchor = st.definitions[first.members[-1]], st.definitions[second.anchor]
        k += 1
        if (
            not _is_pointwise(st.definitions[first.anchor])
            or anchor.reduction is None
            or is_contraction(anchor)
        ):
            continue
        if second.members[0] != second.anchor or anchor.reduction.guard is not None:
            continue
        extents, mapping = _extents(anchor), {}
        for r in (r for r in anchor.body.reads() if r.attr[0] == tail.name):
            if not r.attr[1] and is_plain_read(r, extents, st.shapes[tail.name]):
                mapping = {
                    a.name: s.attr
                    for s, a in zip(r.args, tail.axes, strict=True)
                    if s.op == "index"
                }
        if not set(mapping.values()) >= {n for n, x in extents.items() if x > 1}:
            continue
        rest = [a for a in tail.axes if a.name not in mapping]
        spare = [n for n, x in extents.items() if x == 1 and n not in mapping.values()]
        if len(rest) > len(spare):
            continue
        mapping.update(zip((a.name for a in rest), spare, strict=False))
        for m in first.members:
            st.definitions[m] = _rename(st.definitions[m], mapping)
        second.members[:0] = first.members
        g.stages.remove(first)
        k -= 1


# ---- entry ---------------------------------------------------------------------------------------


def group_program(
    p: Program, target: Target
) -> tuple[list[Group], dict[str, Definition], list[Decision]]:
    """Groups in order, the (rewritten) definitions they name, and the decisions."""
    definitions = {s.name: s for s in p.body if isinstance(s, Definition)}
    shapes = {t.name: tuple(int_extent(n) for n in t.shape) for t in p.tensors.values()}
    st = _State(p, target, definitions, shapes)
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
    _stack_rows(st)
    for g in st.groups:
        if not g.stream:
            _feed_reductions(st, g)
    _sort(st)
    return st.groups, st.definitions, st.decisions
