"""Row groups: stages that share outer axes in one loop, so that what flows between them stays in
cache (normalizations, softmax).

In: a `Grouping` after epilogues and prologues. Out: the same with groups stacked and the reason of
each decision. Invariants: stacked stages read each other at one point of the shared axes; a row of
everything between them fits in half of L2.
"""

from __future__ import annotations

from collections.abc import Iterable
from math import prod

from tilewright.group.groups import (
    Group,
    Grouping,
    descendants,
    extents_of,
    is_contraction,
    is_pointwise,
    renamed,
)
from tilewright.group.normalize import is_plain_read, statement_reads
from tilewright.group.quotients import is_view_of_rows
from tilewright.ir import expr as E
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import Definition

__all__ = ["feed_reductions", "stack_rows"]

_PACKED_FROM = 16  # rows and columns of a product of rows by rows


def stack_rows(st: Grouping) -> None:
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


def _try_stack(st: Grouping, first: Group, second: Group) -> bool:
    a, b = first.stages[0].anchor, second.stages[0].anchor
    if any(is_view_of_rows(st.definitions[n]) for n in (a, b)):
        return False  # nothing is computed for it
    if not any(
        st.definitions[s.anchor].reduction is not None for g in (first, second) for s in g.stages
    ):
        return False
    found = _share(st, first, second)
    if found is None:
        return False
    renames, shared = found
    later = descendants(st, first)
    between = [g for g in st.groups if id(g) in later and g is not second]
    needs = st.group_reads(second)
    blockers = [n for g in between for n in g.names() if n in needs]
    if blockers:
        st.note(a, b, False, f"{blockers[0]} must come between")
        return False
    rename = renames["axes"]
    names = first.names() + second.names()
    points = prod(extents_of(st.definitions[a])[x] for x in shared)
    if len(first.stages) > 1 and len(shared) < len(first.shared):
        st.note(a, b, False, f"it shares fewer axes than {', '.join(first.shared)}")
        return False
    for n in names:
        if is_contraction(st.definitions[n]) and {
            r.attr[0] for r in st.definitions[n].body.reads()
        } & constants(st):
            st.note(a, b, False, f"{n} is blocked over rows to reuse its constant operand")
            return False
    if all(is_pointwise(st.definitions[n]) for n in first.names()):
        for n in second.names():
            if _is_packed(st.definitions[n]):
                st.note(a, b, False, f"{n} multiplies rows by rows: one operand is packed first")
                return False
    if any(
        (d := st.definitions[s.anchor]).reduction is None
        and d.scan is None
        and not (set(first.names()) & statement_reads(d))
        for s in second.stages
    ):
        return False
    # Axis names of the two groups must not clash except for the shared ones.
    taken: dict[str, int] = {}
    for n in first.names():
        taken |= extents_of(st.definitions[n])
    old = {n: st.definitions[n] for n in second.names()}
    for n in second.names():
        d = st.definitions[n]
        mapping = dict(rename)
        results = {a.name for a in d.axes}
        for axis, extent in extents_of(d).items():
            # Two reductions may run along an axis of one name, if it is as long in both.
            clashes = axis in taken and (axis in results or taken[axis] != extent)
            if clashes and axis not in mapping:
                mapping[axis] = f"{axis}_{b}"
        st.definitions[n] = renamed(d, mapping)
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


def _is_packed(d: Definition) -> bool:
    """Is it a product both of whose operands lie along what is summed, with enough rows and columns
    that turning one of them pays? Stages of a loop do not pack.
    """
    if not is_contraction(d) or d.reduction is None:
        return False
    extents, summed = extents_of(d), {a.name for a in d.reduction.axes}
    rows = []
    for r in d.body.reads():
        used = {x for s in r.args for x in s.names("index")}
        if not r.args or not r.args[-1].names("index") or not r.args[-1].names("index") <= summed:
            return False
        rows.append(used - summed)
    if len(rows) != 2:
        return False
    both = rows[0] & rows[1]
    return all(prod(extents[x] for x in own - both) >= _PACKED_FROM for own in rows)


def _share(
    st: Grouping, first: Group, second: Group
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
    extents = extents_of(anchor)
    for mine, theirs in mapping.items():
        if theirs in shared and extents_of(head).get(mine) != extents.get(theirs):
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


def _row_bytes(st: Grouping, names: Iterable[str], shared: set[str]) -> int:
    """Bytes of the tensors of a group for one point of the shared axes."""
    total = 0
    for n in names:
        d = st.definitions[n]
        total += prod(int_extent(a.extent) for a in d.axes if a.name not in shared) * d.dtype.bytes
    return total


def _operand_bytes(st: Grouping, names: list[str], shared: set[str]) -> int:
    """Bytes of outside operands that one point of the shared axes reads again and again."""
    total, own = 0, set(names)
    for n in names:
        d = st.definitions[n]
        if not is_contraction(d):
            continue
        ext = extents_of(d)
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


def constants(st: Grouping) -> set[str]:
    """Names of the constant tensors."""
    return {t.name for t, _ in st.program.constants}


def _element_by_element(st: Grouping, given: list[str], takers: list[str]) -> dict[str, str]:
    """Axes of `given`, which share theirs, by those of the reduction that `takers` begin with and
    that reads them element by element; empty where a reader wants another element, which another
    tile of the same stage may make.
    """
    found: dict[str, str] = {}
    for name in takers:
        d = st.definitions[name]
        extents = extents_of(d)
        for r in (r for e in d.expressions() for r in e.reads() if r.attr[0] in given):
            if r.attr[1] or not is_plain_read(r, extents, st.shapes[r.attr[0]]):
                return {}
            axes = st.definitions[r.attr[0]].axes
            pairs = {a.name: s.attr for s, a in zip(r.args, axes, strict=True) if s.op == "index"}
            if found and found != pairs:
                return {}
            found = pairs
    return found


def feed_reductions(st: Grouping, g: Group) -> None:
    """Compute a pointwise stage on the register tiles of the reduction that follows and reads it
    element by element.
    """
    k = 0
    while k + 1 < len(g.stages):
        first, second = g.stages[k], g.stages[k + 1]
        anchor = st.definitions[second.anchor]
        k += 1
        if (
            not is_pointwise(st.definitions[first.anchor])
            or anchor.reduction is None
            or is_contraction(anchor)
        ):
            continue
        if second.members[0] != second.anchor or anchor.reduction.guard is not None:
            continue
        extents = extents_of(anchor)
        mapping = _element_by_element(st, first.members, second.members)
        if not set(mapping.values()) >= {n for n, x in extents.items() if x > 1}:
            continue
        spare = [n for n, x in extents.items() if x == 1 and n not in mapping.values()]
        renames = {}  # of each member: its own axes of one point stand for some of the reduction
        for m in first.members:
            rest = [a for a in st.definitions[m].axes if a.name not in mapping]
            if len(rest) <= len(spare) and all(int_extent(a.extent) == 1 for a in rest):
                own = dict(zip((a.name for a in rest), spare, strict=False))
                renames[m] = {**mapping, **own}
        if len(renames) < len(first.members):
            continue
        for m, names in renames.items():
            st.definitions[m] = renamed(st.definitions[m], names)
        second.members[:0] = first.members
        g.stages.remove(first)
        k -= 1
