"""How a tile is spread over registers, and how wide its vectors are.

In: a phase. Out: `Tile` (a table of LLVM values) and the vector width of every tile. Invariants:
all tiles that meet in elementwise operations along one lane axis use one width, so nothing is ever
cut or joined between operations; the width is that of the widest dtype among them. 64-bit integers
(offsets) do not count: they take two registers instead.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass
from itertools import product

from tilewright.ir.dtypes import BOOL, DType
from tilewright.ir.nest import (
    Fill,
    For,
    If,
    Load,
    Node,
    Phase,
    Prefetch,
    Reduce,
    Relayout,
    Scatter,
    Store,
    TileType,
    operands,
)

__all__ = ["LazyRows", "Tile", "offsets", "row_axes", "row_count", "row_index", "rows"]
__all__ += ["vector_widths", "vectors"]


class LazyRows(Sequence[list[str]]):
    """Rows that are emitted when first asked for, so that a load stands next to its use.

    again: where reading a row twice is cheap, the load of its one value (row, number of the copy):
    no pass merges two copies.
    """

    def __init__(
        self,
        count: int,
        make: Callable[[int], list[str]],
        again: Callable[[int, int], str] | None = None,
    ) -> None:
        self.made: list[list[str] | None] = [None] * count
        self.make = make
        self.again = again

    def __len__(self) -> int:
        return len(self.made)

    def __getitem__(self, row: int) -> list[str]:  # type: ignore[override]
        found = self.made[row]
        if found is None:
            again = self.again
            found = self.made[row] = self.make(row) if again is None else [again(row, 0)]
        return found


@dataclass(slots=True)
class Tile:
    """`values[row][chunk]`: rows are positions of all axes but the lane axis, in row-major order.

    width: lanes of one LLVM vector; 0 where there is no lane axis (then one chunk, a scalar). The
    last vector may hold lanes beyond the extent; what they contain is unspecified, and harmless.
    """

    type: TileType
    width: int
    values: Sequence[list[str]]

    @property
    def extent(self) -> int:
        """Lanes in all."""
        return self.type.extent(self.type.lane) if self.type.lane is not None else 1

    @property
    def chunks(self) -> int:
        """Vectors of a row."""
        return vectors(self.type, self.width)


def vectors(t: TileType, width: int) -> int:
    """How many vectors of `width` lanes a row has; 1 without a lane axis."""
    for a, n in t.axes:
        if a == t.lane:
            return -(-n // width)
    return 1


def row_axes(t: TileType) -> list[tuple[str, int]]:
    """The axes that are not the lane axis."""
    return [(a, n) for a, n in t.axes if a != t.lane]


def row_count(t: TileType) -> int:
    """How many rows a tile has."""
    count = 1
    for a, n in t.axes:
        if a != t.lane:
            count *= n
    return count


def rows(t: TileType) -> Iterator[dict[str, int]]:
    """Positions of the row axes, in row-major order."""
    axes = row_axes(t)
    names = [a for a, _ in axes]
    for position in product(*[range(n) for _, n in axes]):
        yield dict(zip(names, position, strict=True))


def offsets(result: list[tuple[str, int]], strides: dict[str, int]) -> list[int]:
    """sum(stride * position) over the axes of `result` in row-major order; absent axes count 0."""
    out = [0]
    for a, n in result:
        s = strides.get(a, 0)
        out = [o + s * i for o in out for i in range(n)]
    return out


def row_index(operand: TileType, result: list[tuple[str, int]]) -> list[int]:
    """For each row over the axes `result`: the row of `operand` that meets it (broadcast by axis
    name).
    """
    strides: dict[str, int] = {}
    step = 1
    for a, n in reversed(row_axes(operand)):
        strides[a] = step if n > 1 else 0
        step *= n
    return offsets(result, strides)


def _power(n: int) -> int:
    return 1 << max(1, (n - 1).bit_length())


class _Classes:
    """Union-find over tile names, with the dtypes and the lane extent of each class."""

    def __init__(self) -> None:
        self.parent: dict[str, str] = {}
        self.dtypes: dict[str, set[DType]] = {}
        self.extents: dict[str, int] = {}
        self.types: dict[str, TileType] = {}

    def define(self, name: str, t: TileType) -> None:
        self.types[name] = t
        if t.lane is not None:
            self.parent[name] = name
            self.dtypes[name] = {t.dtype}
            self.extents[name] = t.extent(t.lane)

    def find(self, name: str) -> str:
        while self.parent[name] != name:
            self.parent[name] = self.parent[self.parent[name]]
            name = self.parent[name]
        return name

    def join(self, names: Iterable[str]) -> None:
        first, parent = "", self.parent
        for name in names:
            if name not in parent:
                continue
            root = parent[name]
            if parent[root] != root:
                root = self.find(root)
            if first and root != first:
                parent[root] = first
                self.dtypes[first] |= self.dtypes[root]
                if self.extents[root] > self.extents[first]:
                    self.extents[first] = self.extents[root]
            first = first or root


def _visit(body: tuple[Node, ...], classes: _Classes) -> None:
    for n in body:
        match n:
            case Load() | Fill():
                classes.define(n.result, n.type)
            case For():
                for name, initial in n.carries:
                    classes.define(name, classes.types[initial])
                _visit(n.body, classes)
                for (name, initial), end, result in zip(
                    n.carries, n.yields, n.results, strict=True
                ):
                    classes.define(result, classes.types[initial])
                    classes.join((name, initial, end, result))
            case If():
                _visit(n.then, classes)
                _visit(n.orelse, classes)
                for a, b, result in zip(n.then_yields, n.else_yields, n.results, strict=True):
                    classes.define(result, classes.types[a])
                    classes.join((a, b, result))
            case Store() | Prefetch():
                pass
            case Scatter():
                classes.join(operands(n))
            case Relayout() if classes.types[n.value].lane != n.type.lane:
                classes.define(n.result, n.type)
            case Reduce() if n.type.lane is None:
                classes.define(n.result, n.type)
            case _:
                classes.define(n.result, n.type)
                classes.join((n.result, *operands(n)))


def vector_widths(phase: Phase, vector_bits: int) -> dict[str, int]:
    """Lanes of one LLVM vector, for each tile name of the phase (0 where the tile has no lane
    axis).
    """
    classes = _Classes()
    _visit(phase.body, classes)
    widths: dict[str, int] = {}
    known: dict[str, int] = {}  # of classes
    for name, t in classes.types.items():
        if t.lane is None:
            widths[name] = 0
            continue
        root = classes.find(name)
        width = known.get(root)
        if width is None:
            dtypes = classes.dtypes[root] - {BOOL}
            counted = {d for d in dtypes if not (d.is_int and d.bits == 64)} or dtypes
            bits = max([d.bits for d in counted], default=32)
            width = known[root] = min(vector_bits // bits, _power(classes.extents[root]))
        widths[name] = width
    return widths
