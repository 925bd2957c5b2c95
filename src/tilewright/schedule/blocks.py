"""Sizes of cache blocks of contractions.

In: the roles of a stage, the Target, sizes of a register tile. Out: sizes of blocks, from extents
and the sizes of caches alone.
"""

from __future__ import annotations

from math import ceil, prod

from tilewright.ir.dtypes import BF16
from tilewright.ir.extent import is_symbolic
from tilewright.ir.pieces import PIECES
from tilewright.machine.target import Target
from tilewright.schedule.roles import StageRoles

__all__ = ["equal_blocks", "summed_block"]

_DEEP = 32  # positions of the summed axis that a block is a multiple of: a cache line of pieces
_MOST_BLOCKS = 16
_SUM_BYTES = 4
_GAIN = 0.95  # more blocks are more code


def equal_blocks(n: int, guess: int, height: int, threads: int) -> int:
    """The size of equal blocks of about `guess` of n rows: whole tiles of `height`, and as many
    blocks for each thread.
    """
    blocks = max(1, ceil(ceil(n / guess) / threads) * threads)
    return min(n, ceil(ceil(n / blocks) / height) * height)


def summed_block(
    r: StageRoles, target: Target, height: int, threads: int
) -> tuple[int, int] | None:
    """Positions of the summed axis, and rows of operand A, of a block of pieces that stays in L2
    while B passes; None where one block of all positions moves hardly more.

    Tall blocks let B pass less often. They are less deep, and sums of a block wait in scratch for
    those of the next.
    """
    axis, rows = r.split[0], r.roles("m")
    if not axis or len(rows) != 1 or r.reduce != (axis,):
        return None
    if any(is_symbolic(n) for n in r.extents.values()):
        return None
    m, k, size = r.extents[rows[0]], r.extents[axis], PIECES * BF16.bytes
    if 2 * size * k * prod(r.extents[a] for a in r.roles("n")) < target.l2_bytes:
        return None
    least, found = 0.0, None
    for blocks in range(1, _MOST_BLOCKS + 1):
        deep = ceil(ceil(k / blocks) / _DEEP) * _DEEP
        tall = max(height, 2 * target.l2_bytes // 5 // (size * deep))
        tall = equal_blocks(m, tall, height, threads)
        # For each column of B and of the sums.
        moved = size * k * ceil(m / tall) + 2 * _SUM_BYTES * m * (ceil(k / deep) - 1)
        if blocks == 1:
            least = moved
        elif moved < _GAIN * least:
            least, found = moved, (deep, tall)
    return found
