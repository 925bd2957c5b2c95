"""Inputs of a Program for which its values are finite, after NNSmith.

In: a Program, sizes, a seed. Out: arrays by input name, and what came of the search. Invariants:
the same arguments give the same arrays; where random inputs do, they are returned as they are;
inputs that are moved stay multiples of 1/1024, so that the last bits of a logarithm decide nothing.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir.program import Program
from tilewright.verify.generate import random_inputs
from tilewright.verify.gradients import Fault, first_fault

__all__ = ["AS_DRAWN", "finite_inputs", "made_finite"]

Array = np.ndarray[Any, np.dtype[Any]]
_STEPS, _STEPS_OF_LARGE, _LARGE = 80, 12, 60  # a large program has more definitions than that
_TRIES = 30  # steps at one tensor before it is passed over
_RATE, _SLOWER = 0.5, 0.9
AS_DRAWN = 8  # one case in so many keeps what makes it infinite
_GRID = 1024.0


def finite_inputs(
    program: Program, sizes: Mapping[str, int] | None = None, seed: int = 0
) -> tuple[dict[str, Array], str]:
    """Random inputs, moved so that values are finite, and how that went, as `made_finite` says.

    Every eighth seed keeps what it drew ("as drawn"): NaN and infinities are to be met, too.
    Errors: those of the oracle.
    """
    inputs = random_inputs(program, sizes, seed)
    if seed % AS_DRAWN == 0:
        return inputs, "as drawn"
    return made_finite(program, inputs, sizes)


def made_finite(
    program: Program, inputs: dict[str, Array], sizes: Mapping[str, int] | None = None
) -> tuple[dict[str, Array], str]:
    """`inputs` themselves where no value that is not finite arises ("sampled"); else others, found
    along the gradient ("searched"), or themselves again where none are found ("kept").

    Errors: those of the oracle.
    """
    fault = first_fault(program, inputs, dims=sizes)
    if fault is None:
        return inputs, "sampled"
    found, passed = dict(inputs), set[str]()
    moves: dict[str, _Moves] = {}  # for each tensor apart, so that two in turn come to rest
    for _ in range(_STEPS if len(program.body) <= _LARGE else _STEPS_OF_LARGE):
        if fault is None:
            return (inputs, "kept") if passed else (found, "searched")
        own = moves.setdefault(fault.tensor, _Moves())
        if own.count >= _TRIES or not any(g.any() for g in fault.by.values()):
            passed.add(fault.tensor)
        else:
            own.step(found, fault)
        try:
            fault = first_fault(program, found, dims=sizes, passed=passed)
        except UserError:  # a moved value leads outside a tensor
            break
    return inputs, "kept"


class _Moves:
    """Adam: each element moves by about the rate, which falls, however steep its gradient is."""

    def __init__(self) -> None:
        self.first: dict[str, Array] = {}
        self.second: dict[str, Array] = {}
        self.count = 0

    def step(self, inputs: dict[str, Array], fault: Fault) -> None:
        self.count += 1
        for name, g in fault.by.items():
            one = self.first[name] = 0.9 * self.first.get(name, 0.0) + 0.1 * g
            two = self.second[name] = 0.999 * self.second.get(name, 0.0) + 0.001 * g * g
            mean, square = one / (1 - 0.9**self.count), two / (1 - 0.999**self.count)
            by = _RATE * _SLOWER ** (self.count - 1) * mean / (np.sqrt(square) + 1e-12)
            x = inputs[name].astype(np.float64)
            grid = np.round((x - by) * _GRID) / _GRID
            inputs[name] = np.where(mean == 0, x, grid).astype(inputs[name].dtype)
