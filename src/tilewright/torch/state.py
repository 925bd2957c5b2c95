"""Tensors that a compiled graph holds as constants, and whether they are still what they were.

In: tensors by the place of the argument. Out: `Held`, compared at every call.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

__all__ = ["Held", "is_unchanged", "state_of"]

Held = list[tuple[int, Any, int, int]]  # place, tensor, version, address


def state_of(tensors: Mapping[int, Any]) -> Held:
    """What `is_unchanged` compares."""
    return [(k, t, t._version, t.data_ptr()) for k, t in tensors.items()]


def is_unchanged(state: Held, args: Sequence[Any]) -> bool:
    """Are the arguments at these places the same tensors, or the same memory, unchanged?"""
    for place, held, version, address in state:
        t = args[place]
        if t is not held and t.data_ptr() != address:
            return False
        if t._version != version or t.data_ptr() != address:
            return False
    return True
