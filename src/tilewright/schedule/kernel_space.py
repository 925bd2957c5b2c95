"""The Space of a kernel: the groups of its stages, and how its outer loops are shared out.

In: a Kernel, a Target, a number of threads. Out: its `Space`. Invariant: a function of structure,
extents, Target and threads alone.
"""

from __future__ import annotations

from dataclasses import replace
from math import ceil, prod

from tilewright.group.groups import cost
from tilewright.ir.extent import is_symbolic
from tilewright.ir.kernel import Kernel
from tilewright.machine.target import Target
from tilewright.schedule.roles import StageRoles, scatter_lane, stage_roles
from tilewright.schedule.schedule import Value
from tilewright.schedule.shares import share_of, shared_out
from tilewright.schedule.space import Group, Space
from tilewright.schedule.stages import stage_groups

__all__ = ["space_of"]

ROWS_BYTES = 16 << 10  # of rows that are asked for before they are read
_SERIAL = 16_384  # points: a few microseconds, which do not pay for waking a second thread
_ENOUGH = 32  # blocks a thread, so that they are shared out evenly


def space_of(kernel: Kernel, target: Target, threads: int = 1) -> Space:
    """All schedules of a kernel; its default is good without tuning."""
    if kernel.scatter is not None:
        return Space(tuple(_scatter(kernel, target, threads)))
    groups: list[Group] = []
    shared = set(kernel.shared) | ({kernel.sequence} if kernel.sequence else set())
    blocks = _blocks(kernel, target, threads) if kernel.shared else []
    guesses = {a: int(g.rows[0][0]) for a, g in zip(kernel.shared, blocks, strict=False)}
    if kernel.sequence:
        guesses[kernel.sequence] = 1
    if kernel.stream:
        groups += _stream(kernel, target)
        guesses[kernel.stream] = int(groups[0].rows[0][0])
    ahead = _rows_ahead(kernel, target)
    rows: list[tuple[Value, ...]]
    apart = shared_out(kernel, threads)
    for k in range(len(kernel.stages)):
        roles = stage_roles(kernel, k)
        extents = {a: min(n, guesses.get(a, n)) for a, n in roles.extents.items()}
        if apart:
            own = apart[kernel.stages[k].anchor]
            extents[own] = share_of(extents[own], threads)
        cut = replace(roles, extents=extents)
        fixed = shared
        if kernel.stream in roles.reduce:  # a tile that is moved back would be absorbed twice
            fixed = shared | set(roles.out)
        groups += stage_groups(
            cut, target, k, fixed, threads, ahead.get(k, 0), roles.extents, bool(kernel.sequence)
        )
    if kernel.shared:
        groups += blocks
        depth = len(kernel.shared)
        groups.append(Group(("par",), ("choice",), ((depth,), (1,)) if depth > 1 else ((1,),)))
        groups.append(Group(("chunk",), ("choice",), ((1,), (2,), (4,), (8,))))
    elif apart:
        every = (stage_roles(kernel, k).extents.values() for k in range(len(kernel.stages)))
        points = sum(map(prod, every))
        serial = not is_symbolic(points) and points < _SERIAL
        rows = [(0,), (threads,)] if serial else [(threads,), (0,)]
        groups.append(Group(("par",), ("choice",), tuple(rows)))
    elif not kernel.sequence:
        roles = stage_roles(kernel, 0)
        points = prod(roles.extents.values())
        outer = len(roles.out)
        serial = points < _SERIAL
        # Loops of a fused counter divide for each block, so one does where it is long enough.
        long = outer > 1 and _outer_trips(roles, groups) >= _ENOUGH * threads
        alone = long and not roles.is_contraction
        depths: list[int] = [x for x in ((1, 2, 3) if alone else (2, 1, 3)) if x <= max(1, outer)]
        if outer > 2 and roles.is_contraction:
            depths = [x for x in (3, 2, 1) if x <= outer]
        rows = [(x,) for x in depths]
        rows = [(0,), *rows] if serial else [*rows, (0,)]
        groups.append(Group(("par",), ("choice",), tuple(rows)))
        groups.append(Group(("chunk",), ("choice",), ((1,), (2,), (4,), (8,), (16,))))
        groups += _parts(roles, threads)
    return Space(tuple(groups))


def _scatter(kernel: Kernel, target: Target, threads: int) -> list[Group]:
    """How the base is stored, and for contributions that are vectors into how many blocks of each
    their phase is shared out, and how many contributions before its own a row is asked for.
    """
    s = kernel.scatter
    assert s is not None
    size = kernel.layout_of[s.name].size * s.dtype.bytes
    if is_symbolic(size):
        return []
    leaves = size > target.l3_bytes  # nothing of the base is in cache when contributions come
    out = [Group(("s0.nt",), ("flag",), ((1,), (0,)) if leaves else ((0,), (1,)))]
    if scatter_lane(kernel) is not None:
        far = size > target.l2_bytes
        ahead = (8, 4, 16, 0) if far else (0, 8)
        out.append(Group(("s0.ahead",), ("choice",), tuple((x,) for x in ahead)))
        blocks = (1, 4) if threads == 1 else (4, 1, 8)
        out.append(Group(("s0.blocks",), ("choice",), tuple((x,) for x in blocks)))
    return out


def _outer_trips(roles: StageRoles, groups: list[Group]) -> int:
    """Trips of the outermost loop of the first stage's default."""
    guess = {n: v for g in groups for n, v in zip(g.names, g.rows[0], strict=True)}
    name, _, is_block = str(guess.get("s0.order", "")).partition(",")[0].partition(":")
    if name not in roles.axis_of:
        return 0
    size = guess.get(f"s0.{'tile' if is_block else 'reg'}.{name}", 1)
    return ceil(roles.extents[roles.axis_of[name]] / max(1, int(size)))


def _rows_ahead(kernel: Kernel, target: Target) -> dict[int, int]:
    """By stage, how many rows ahead it should ask for what it reads from outside.

    The stage that computes most while it sums asks for the next row, which arrives beside it. The
    one that writes results past the caches asks for some more, where rows are short: beside such
    writes the CPU looks ahead too little.
    """
    out: dict[int, int] = {}
    best, weight = -1, 0
    for k, stage in enumerate(kernel.stages if kernel.shared else ()):
        bodies = [kernel.definitions[m].body for m in stage.members]
        outside = any(r.attr[0] in kernel.layout_of for e in bodies for r in e.reads())
        w = sum(cost(e) for e in bodies)
        if not outside:
            continue
        if kernel.definitions[stage.anchor].reduction is None:
            out[k] = _rows_of_bytes(stage_roles(kernel, k), kernel, target)
        elif w > weight:
            best, weight = k, w
    return {**out, best: 1} if best >= 0 else out


def _rows_of_bytes(roles: StageRoles, kernel: Kernel, target: Target) -> int:
    """How many rows make `ROWS_BYTES`, one at least, of what is written past the caches as it is
    read; none where a row would not stay in cache.
    """
    inner = prod(n for a, n in roles.extents.items() if a not in kernel.shared)
    rows = prod(roles.extents.get(a, 1) for a in kernel.shared)
    if is_symbolic(inner) or not inner:
        return 0
    if not is_symbolic(rows) and roles.anchor.dtype.bytes * inner * rows <= target.kept_bytes:
        return 0
    row = roles.anchor.dtype.bytes * inner
    return max(1, ROWS_BYTES // row) if 4 * row <= target.l2_bytes else 0


def _blocks(kernel: Kernel, target: Target, threads: int) -> list[Group]:
    """Block sizes of the shared axes."""
    roles = [stage_roles(kernel, k) for k in range(len(kernel.stages))]
    contraction = any(r.is_contraction for r in roles)
    lanes = target.lanes(32)
    out = []
    for i, axis in enumerate(kernel.shared):
        n = max(1, kernel.extents[axis])
        contiguous = sum(r.contiguous(axis) for r in roles) > 0
        last = i == len(kernel.shared) - 1
        guess = 1
        if kernel.stream:
            if _is_lane(kernel, axis):
                guess = min(n, 2 * lanes)
        elif contiguous:
            guess = min(n, lanes * (2 if n >= 2 * lanes else 1))
        elif contraction and last:
            guess = min(n, 28 if n <= 512 else 56)
            if n % guess and n > guess:
                guess = ceil(n / ceil(n / guess))
        sizes = [x for x in (1, 2, 4, 8, 14, 16, 28, 32, 56, 64, 128) if x <= n]
        rows = list(dict.fromkeys([guess, *sizes]))
        out.append(Group((f"block.{i}",), ("tile",), tuple((x,) for x in rows)))
    return out


def _is_lane(kernel: Kernel, axis: str) -> bool:
    """Is a shared axis of a streaming kernel the innermost one of what a block holds?"""
    return any(
        d.axes[-1].name == axis
        for d in kernel.definitions.values()
        if kernel.stream in {a.name for a in d.axes}
    )


def _stream(kernel: Kernel, target: Target) -> list[Group]:
    """Blocks of the streamed axis: what a block holds stays in L1, and loops over it are long
    enough to pay for correcting the sums. The smaller one is for blocks that conditions cut.
    """
    n = max(1, kernel.extents[kernel.stream])
    sizes = [x for x in (112, 128, 64, 56, 224, 256, 512, 32) if x < n] or [n]
    rows = [(x, min(x, 32)) for x in sizes]
    rows += [(x, b) for x in sizes for b in (16, 64) if b < x]
    return [Group(("stream", "border"), ("tile", "tile"), tuple(rows))]


def _parts(roles: StageRoles, threads: int) -> list[Group]:
    """In how many parts a reduction is split that leaves too few points to share out."""
    fold = roles.anchor.reduction
    if fold is None or not roles.reduce or fold.monoid.startswith("arg"):
        return []
    points = prod(roles.extents[a] for a in roles.out)
    longest = max(roles.extents[a] for a in roles.reduce)
    if points > 4096 or longest < 512 or points * longest < 1 << 15:
        return []
    rows: list[tuple[Value, ...]] = [(x,) for x in (16, 8, 32, 64) if x * 32 <= longest]
    # Too few points to share out, or so few that one long run is read at a time.
    few = (threads > 1 and points < 64) or (points < 4 and longest >= 1 << 18)
    return [Group(("s0.parts",), ("choice",), (*rows, (0,)) if few else ((0,), *rows))]
