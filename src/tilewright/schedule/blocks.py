"""Sizes of cache blocks of contractions.

In: the roles of a stage, the Target, sizes of a register tile. Out: sizes of blocks, from extents
and the sizes of caches alone.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import ceil, prod

from tilewright.ir.dtypes import BF16
from tilewright.ir.extent import is_symbolic
from tilewright.ir.pieces import PIECES
from tilewright.machine.target import Target
from tilewright.schedule.roles import StageRoles

__all__ = ["SummedBlock", "equal_blocks", "summed_block"]

_DEEP = 32  # positions of the summed axis that a block is a multiple of: a cache line of pieces
_MOST_BLOCKS = 16
_FEW = 4  # register tiles: fewer rows than these for a block of B are not worth its way to L2
_SUM_BYTES = 4
_GAIN = 0.95  # more blocks are more code
_SMALLER = 0.02  # of the time, to halve a block
_BALANCED = 64  # blocks of a thread: with more of them all threads end together


def equal_blocks(n: int, guess: int, height: int, threads: int) -> int:
    """The size of equal blocks of about `guess` of n rows: whole tiles of `height`, and as much
    work for each thread.
    """
    blocks = max(1, ceil(ceil(n / guess) / threads) * threads)
    most = ceil(ceil(n / blocks) / height)
    if threads > 1 and n and blocks <= _BALANCED * threads:
        # A smaller block reads the other operand more often.
        some = range(most, most // 2, -1)
        most = max(some, key=lambda k: _balance(n, k * height, threads) + _SMALLER * k / most)
    return min(n, most * height)


def _balance(n: int, block: int, threads: int) -> float:
    """The share of threads that are busy while blocks are taken one by one."""
    busy = [0] * threads
    for at in range(0, n, block):
        busy[busy.index(min(busy))] += min(block, n - at)
    return n / threads / max(busy)


@dataclass(frozen=True)
class SummedBlock:
    """`deep` positions of the summed axis and `tall` rows of operand A, taken by register tiles.

    by_rows: a row of register tiles after the other, so that their rows of A stay in L1 and a block
    of B passes from L2; else all rows for each panel of B.
    """

    deep: int
    tall: int
    by_rows: bool


def summed_block(
    r: StageRoles, target: Target, height: int, threads: int
) -> SummedBlock | None:
    """The block of pieces that is worth its sums, which wait in scratch for those of the next; None
    where one block of all positions moves hardly more.
    """
    axis, rows = r.split[0], r.roles("m")
    if not axis or len(rows) != 1 or r.reduce != (axis,):
        return None
    if any(is_symbolic(n) for n in r.extents.values()):
        return None
    m, k, size = r.extents[rows[0]], r.extents[axis], PIECES * BF16.bytes
    n = prod(r.extents[a] for a in r.roles("n"))
    if 2 * size * k * n < target.l2_bytes:
        return None
    # A row of tiles has half of L1. The block of B, the sums and rows of A that meet it have
    # half of L2: another thread of the core takes the rest.
    deep = target.l1_bytes // 2 // (size * height) // _DEEP * _DEEP
    if 0 < deep < k:
        room = (target.l2_bytes // 2 - size * deep * n) // (_SUM_BYTES * n + size * deep)
        if room >= min(m, _FEW * height):
            tall = equal_blocks(m, max(height, room // height * height), height, threads)
            return SummedBlock(deep, tall, True)
    least, found = 0.0, None
    for blocks in range(1, _MOST_BLOCKS + 1):
        deep = ceil(ceil(k / blocks) / _DEEP) * _DEEP
        tall = max(height, 2 * target.l2_bytes // 5 // (size * deep))
        tall = equal_blocks(m, tall, height, threads)
        # For each column of B and of the sums: tall blocks let B pass less often.
        moved = size * k * ceil(m / tall) + 2 * _SUM_BYTES * m * (ceil(k / deep) - 1)
        if blocks == 1:
            least = moved
        elif moved < _GAIN * least:
            least, found = moved, SummedBlock(deep, tall, False)
    return found
