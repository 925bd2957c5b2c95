"""Where the positions of one load or store lie, and which of them count.

In: a buffer, an address, strides and limits of a tile. Out: pointers of rows and lanes, predicates,
masks. Invariant: what rows have in common is worked out once.
"""

from __future__ import annotations

from tilewright.codegen.address import Addresses, Bounds, Pointer
from tilewright.codegen.tiles import offsets, row_axes
from tilewright.ir.expr import CONSTANT, Expr, Polynomial, int_value, polynomial
from tilewright.ir.nest import Limits, Strides, TileType

__all__ = ["Access"]

_FEW = 4  # pointers of which each has a register of its own


class Access:
    """Pointers, predicates and masks of the positions of one Load or Store."""

    def __init__(
        self,
        addresses: Addresses,
        buffer: str,
        base: Expr,
        strides: Strides,
        limits: Limits,
        t: TileType,
        width: int,
        word: int = 1,
    ) -> None:
        """word: how many neighbouring elements one position of the tile, of dtype i32, holds;
        strides still count elements.
        """
        self.addresses = addresses
        self.buffer = buffer
        self.type = t
        self.lane_stride = 0 if t.lane is None else -1
        self.lane_limit: tuple[Expr, Expr] | None = None
        element = addresses.buffers[buffer][1]
        self.dtype = t.dtype if word > 1 else element
        self.unit = element.bytes
        self.width = width
        self.extent = t.extent(t.lane) if t.lane is not None else 1
        self._base = polynomial(base)
        self._axes = row_axes(t)
        names = t.names
        self._strides = {a: polynomial(s) for a, s in strides if a in names}
        self._lane = self._strides.pop(t.lane, {}) if t.lane is not None else {}
        if t.lane is not None and self._lane.keys() <= CONSTANT:
            self.lane_stride = self._lane.get((), 0)
            if word > 1 and self.lane_stride == word:
                self.lane_stride = 1  # words side by side
        self._limits: list[tuple[list[int], Bounds]] = []  # of each row its position, and where
        self._condition: Expr | None = None  # what all lanes have in common
        for a, lo, hi in limits:
            if a == t.lane:
                if hi.op == "select" and int_value(hi.args[2]) == 0:
                    self._condition, hi = hi.args[:2]
                if int_value(lo) != 0 or (int_value(hi) or 0) < self.extent:
                    self.lane_limit = (lo, hi)
            elif a in names:
                self._limits.append((self._positions(a), Bounds(addresses, lo, hi)))
        # Where lane 0 of the first row is, and the bytes from there to the other rows, if they lie
        # at constant distances.
        self._first: Pointer | None = None
        self.steps: list[int] = []
        self._places: dict[str, list[int]] = {}
        self._open: str | None = None
        if all([s.keys() <= CONSTANT for s in self._strides.values()]):
            self._first = addresses.pointer(buffer, self._base)
            strides_bytes = {a: s.get((), 0) * self.unit for a, s in self._strides.items()}
            self.steps = offsets(self._axes, strides_bytes)
        else:
            self._places = {a: self._positions(a) for a in self._strides}
            # Rows that all lie along one axis of a stride that sizes decide follow from the first.
            open_axes = [a for a, s in self._strides.items() if not s.keys() <= CONSTANT]
            if len(open_axes) == 1 and t.extent(open_axes[0]) > _FEW:
                self._open = open_axes[0]
                closed = {a: s.get((), 0) for a, s in self._strides.items() if a != self._open}
                self.steps = offsets(self._axes, {a: s * self.unit for a, s in closed.items()})
        self._lanes: Bounds | None = None
        self._masks: dict[int, tuple[str | None, int]] = {}
        self.guard_depth = 0  # region where the predicates of `inside` live

    @property
    def is_plain(self) -> bool:
        """Scalars that nothing guards, all at constant distances from one pointer."""
        return not self.width and self._first is not None and not self.is_guarded

    def _positions(self, axis: str) -> list[int]:
        """Of each row its position along an axis."""
        return offsets(self._axes, {axis: 1})

    @property
    def is_guarded(self) -> bool:
        """Whether a row may be outside the limits."""
        return bool(self._limits) or self._condition is not None

    @property
    def is_free(self) -> bool:
        """Whole vectors that nothing guards."""
        whole = not self.width or self.extent % self.width == 0
        return whole and self.lane_limit is None and not self.is_guarded

    def row(self, row: int) -> Pointer:
        """Pointer to lane 0 of a row."""
        if self._first is not None:
            return self._first[0], self._first[1] + self.steps[row]
        if self._open is not None:
            base, d = self.addresses.pointer(self.buffer, self._base)
            first, position = (base, d + self.steps[row]), self._places[self._open][row]
            return self.addresses.along(first, self._strides[self._open], self.unit, position)
        return self.addresses.pointer(self.buffer, self.offset(row))

    def offset(self, row: int) -> Polynomial:
        """Element offset of lane 0 of a row."""
        total: Polynomial = dict(self._base)
        if self._first is not None:
            total[()] = total.get((), 0) + self.steps[row] // self.unit
        else:
            for a, s in self._strides.items():
                position = self._places[a][row]
                for k, v in s.items():
                    total[k] = total.get(k, 0) + v * position
        return {k: v for k, v in total.items() if v}

    def lane(self, row: int, first: Pointer, lane: int) -> Pointer:
        """Pointer to one lane of a row that begins at `first`; the lane stride is not 1."""
        if self.lane_stride >= 0 or self._lane.keys() <= CONSTANT:
            return first[0], first[1] + self._lane.get((), 0) * lane * self.dtype.bytes
        if self.extent > _FEW:
            return self.addresses.along(first, self._lane, self.dtype.bytes, lane)
        total = self.offset(row)
        for k, v in self._lane.items():
            total[k] = total.get(k, 0) + v * lane
        return self.addresses.pointer(self.buffer, {k: v for k, v in total.items() if v})

    def inside(self, row: int) -> str:
        """Whether the row is within the limits of its axes."""
        out = "true"
        if self._condition is not None:
            out = self.addresses.value(self._condition)
            self.guard_depth = self.addresses.depth(self._condition)
        for positions, bounds in self._limits:
            if bounds.depth > self.guard_depth:
                self.guard_depth = bounds.depth
            inside = bounds.inside(positions[row])
            out = inside if out == "true" else self.addresses.both(out, inside, self.guard_depth)
        return out

    def inside_lane(self, lane: int) -> str:
        if self.lane_limit is None:
            return "true"
        if self._lanes is None:
            self._lanes = Bounds(self.addresses, *self.lane_limit)
        return self._lanes.inside(lane)

    def valid(self, chunk: int) -> int:
        return min(self.width, self.extent - chunk * self.width)

    def part(self, chunk: int) -> tuple[str | None, int]:
        """The dynamic mask of a chunk, or None where all its valid lanes are in; and how many of
        its lanes are valid.
        """
        found = self._masks.get(chunk)
        if found is None:
            mask, width, valid = None, self.width, self.valid(chunk)
            if self.lane_limit is not None:
                mask = self.addresses.lane_mask(*self.lane_limit, chunk * width, width, valid)
            found = self._masks[chunk] = mask, valid
        return found

    def mask(self, chunk: int) -> str | None:
        """The mask of `part`."""
        return self.part(chunk)[0]

    def known_lanes(self, chunk: int) -> tuple[int, int] | None:
        """First lane of a chunk that constant limits leave, and the one behind the last; None where
        limits are not constant, or there are none.
        """
        if self.lane_limit is None:
            return None
        lo, hi = int_value(self.lane_limit[0]), int_value(self.lane_limit[1])
        if lo is None or hi is None:
            return None
        first = chunk * self.width
        return max(lo - first, 0), min(hi - first, self.valid(chunk))

    def only_lane(self, chunk: int) -> int | None:
        """The one lane of a chunk that constant limits leave, None where there are more or none."""
        known = self.known_lanes(chunk)
        return known[0] if known is not None and known[1] - known[0] == 1 else None
