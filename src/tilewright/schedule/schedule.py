"""Schedule: a total assignment of named parameters, one JSON line.

In: parameter values. Out: `Schedule`, its text. Invariant: equal assignments have equal text,
whatever their order.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property

from tilewright.errors import UserError

__all__ = ["SCHEDULE_FORMAT", "Schedule", "Value"]

SCHEDULE_FORMAT = 1
Value = int | str | bool


@dataclass(frozen=True)
class Schedule:
    """Parameter values by name, sorted; names come from axis roles (`s0.reg.m0`), never from loop
    numbers.
    """

    items: tuple[tuple[str, Value], ...]

    @staticmethod
    def of(values: Mapping[str, Value]) -> Schedule:
        return Schedule(tuple(sorted(values.items())))

    @cached_property
    def values(self) -> Mapping[str, Value]:
        return dict(self.items)

    def integer(self, name: str, default: int = 0) -> int:
        v = self.values.get(name, default)
        return int(v) if not isinstance(v, str) else default

    def text(self, name: str, default: str = "") -> str:
        return str(self.values.get(name, default))

    def __iter__(self) -> Iterator[tuple[str, Value]]:
        return iter(self.items)

    def __str__(self) -> str:
        return json.dumps({"format": SCHEDULE_FORMAT, **dict(self.items)}, separators=(",", ":"))

    @cached_property
    def key(self) -> str:
        return hashlib.sha256(str(self).encode()).hexdigest()

    @staticmethod
    def parse(text: str) -> Schedule:
        """The Schedule of its JSON line.

        Errors: S002 for another format; S001 where it is no flat object.
        """
        try:
            data = json.loads(text)
        except json.JSONDecodeError as e:
            raise UserError("S001", f"a schedule is one JSON object: {e}") from None
        if not isinstance(data, dict) or not all(
            isinstance(v, int | str | bool) for v in data.values()
        ):
            raise UserError(
                "S001", "a schedule is one flat JSON object of numbers, strings and flags"
            )
        if data.pop("format", None) != SCHEDULE_FORMAT:
            raise UserError("S002", f"this schedule has another format than {SCHEDULE_FORMAT}")
        return Schedule.of(data)
