"""Layouts and schedules in words, for `explain`.

In: a `Layout`; a Kernel with its Schedule. Out: short English text. Invariant: everything said is
read from the value itself; what has no phrase is shown as it prints.
"""

from __future__ import annotations

from collections.abc import Iterator

from tilewright.ir.kernel import Kernel
from tilewright.ir.layout import Layout, Term, ordered
from tilewright.schedule.roles import stage_roles
from tilewright.schedule.schedule import Schedule

__all__ = ["layout_words", "schedule_words"]


def layout_words(layout: Layout) -> str:
    """`row-major`, `axes in the order 0 2 3 1`, `panels of 32 along axis 0`, with its halo."""
    if layout.is_row_major:
        return "row-major"
    by_stride = sorted(layout.terms, key=lambda t: (-t.stride, t.axis))
    order = [t.axis for t in by_stride] + [
        a for a in range(len(layout.shape)) if all(t.axis != a for t in layout.terms)
    ]
    words = ""
    if len(set(order)) == len(order) == len(layout.shape):
        dense = ordered(layout.shape, order, layout.halo, layout.fill)
        if dense == layout:
            words = f"axes in the order {' '.join(str(t.axis) for t in by_stride)}"
            plain = ordered(layout.shape, range(len(layout.shape)), layout.halo, layout.fill)
            words = "row-major" if plain == layout else words
    words = words or _blocks(layout.terms)
    if not words:
        return str(layout)
    if layout.halo:
        sides = " ".join(f"{lo}:{hi}" for lo, hi in layout.halo)
        words += f", with a halo of {sides} that holds {layout.fill!r}"
    return words


def _blocks(terms: tuple[Term, ...]) -> str:
    blocked = [(t.axis, t.modulus) for t in terms if t.modulus]
    blocked += [
        (t.axis, t.divisor)
        for t in terms
        if t.divisor != 1 and not any(t.axis == axis for axis, _ in blocked)
    ]
    if len(blocked) == 1:
        return f"panels of {blocked[0][1]} along axis {blocked[0][0]}"
    if blocked:
        return "blocks of " + " x ".join(f"{n} along axis {axis}" for axis, n in blocked)
    return ""


def schedule_words(kernel: Kernel, schedule: Schedule) -> list[str]:
    """One line for the kernel's outer loops, then one for each stage."""
    if kernel.scatter is not None:
        return ["one element after the other, in source order"]
    lines = []
    outer = ", ".join(_outer(kernel, schedule))
    if outer:
        lines.append(outer)
    several = len(kernel.stages) > 1
    for number, stage in enumerate(kernel.stages):
        words = "; ".join(_stage(kernel, number, schedule))
        lines.append(f"stage {stage.anchor}: {words}" if several else words)
    return lines


def _outer(kernel: Kernel, s: Schedule) -> Iterator[str]:
    for i, axis in enumerate(kernel.shared):
        size = s.integer(f"block.{i}", 1)
        extent = kernel.extents[axis]
        yield f"all stages for {size} of {extent} points of {axis} at a time"
    if kernel.stream:
        size, extent = s.integer("stream", 1), kernel.extents[kernel.stream]
        yield f"streaming {size} of {extent} points of {kernel.stream} at a time"
    if kernel.sequence:
        yield f"step by step along {kernel.sequence} ({kernel.extents[kernel.sequence]} steps)"
        return
    depth, chunk = s.integer("par", 1), s.integer("chunk", 1)
    if not depth:
        yield "on one thread"
    else:
        loops = "the outermost loop" if depth == 1 else f"the {depth} outermost loops"
        yield f"parallel over {loops}" + (f", {chunk} trips at a time" if chunk > 1 else "")


def _stage(kernel: Kernel, k: int, s: Schedule) -> Iterator[str]:
    p = f"s{k}."
    roles = stage_roles(kernel, k)
    extent = {name: roles.extents[axis] for axis, name in roles.names.items()}
    yield "points " + (" ".join(f"{n}={size}" for n, size in extent.items()) or "1")
    lane = s.text(p + "lane")
    if lane:
        yield f"vectors along {lane}"
    tile = [(n, s.integer(f"{p}reg.{n}", 1)) for n in extent]
    tile = [(n, size) for n, size in tile if size > 1]
    if tile:
        yield "register tile " + " x ".join(f"{n}:{size}" for n, size in tile)
    order = [x for x in s.text(p + "order").split(",") if x]
    if order:
        yield "loops " + " > ".join(_loop(x, p, s) for x in order)
    reduce = s.text(p + "reduce")
    if reduce:
        yield "summed over " + " > ".join(reduce.split(","))
    for operand in ("a", "b"):
        how = s.text(f"{p}pack.{operand}", "none")
        if how != "none":
            yield f"operand {operand.upper()} packed in {how}s"
    for name in extent:
        tail = s.text(f"{p}tail.{name}")
        if tail == "overlap":
            yield f"the last tile of {name} overlaps the one before"
    ahead = s.integer(p + "prefetch")
    if ahead:
        yield f"fetches {ahead} point{'s' if ahead > 1 else ''} ahead"
    if s.integer(p + "nt"):
        yield "stores past the caches"


def _loop(item: str, p: str, s: Schedule) -> str:
    name, _, level = item.partition(":")
    return f"{name} in blocks of {s.integer(f'{p}tile.{name}')}" if level else name
