"""Symbolic extents: integers that know the expression they stand for.

In: size expressions over dims, and what is assumed of the dims. Out: `Extent`, `extent_of`, proofs.
Invariants: an Extent *is* its hint, so whatever orders or weighs extents decides for a typical
size; equality is that of the expressions, so whatever asks for equal extents is answered for every
size; a proof holds for every size within the ranges of the dims.

Stages that work on extents are written for integers and serve both kinds: a constant extent is a
plain int. What must hold for every size may only be asked by `==`, by `nonnegative` (ir/ranges.py)
or of the expression itself; `<` answers for the hint.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import contextmanager
from contextvars import ContextVar
from typing import Any, Protocol

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr

__all__ = [
    "Extent",
    "assuming",
    "ceil_div",
    "dim_range",
    "extent_of",
    "hint_of",
    "is_symbolic",
    "smaller",
]

DEFAULT_HINT = 128


class _Dim(Protocol):
    @property
    def name(self) -> str: ...
    @property
    def lo(self) -> int: ...
    @property
    def hi(self) -> int | None: ...
    @property
    def hint(self) -> int | None: ...


class _Assumed:
    """Dims by name, and the extents that were asked for under them."""

    def __init__(self, dims: Mapping[str, _Dim]) -> None:
        self.dims = dims
        self.known: dict[Expr, int] = {}


_NONE = _Assumed({})
_ASSUMED: ContextVar[_Assumed] = ContextVar("assumed", default=_NONE)


@contextmanager
def assuming(dims: Iterable[_Dim]) -> Iterator[None]:
    """Within it the dims are symbolic, with their ranges and hints."""
    before = _ASSUMED.get()
    more = {d.name: d for d in dims if before.dims.get(d.name) != d}
    if not more:
        yield
        return
    token = _ASSUMED.set(_Assumed({**before.dims, **more}))
    try:
        yield
    finally:
        _ASSUMED.reset(token)


def dim_range(name: str) -> tuple[int, int | None]:
    """What is assumed of a dim: its inclusive range."""
    d = _ASSUMED.get().dims.get(name)
    return (0, None) if d is None else (d.lo, d.hi)


def hint_of(d: _Dim) -> int:
    """A typical size of a dim, within its range."""
    value = DEFAULT_HINT if d.hint is None else d.hint
    return max(d.lo, value if d.hi is None else min(d.hi, value))


def is_symbolic(n: int) -> bool:
    """Is it no plain integer?"""
    return isinstance(n, Extent)


def extent_of(e: Expr) -> int:
    """The integer of a size expression: an Extent where dims are in it.

    Errors: P001 for a dim of which nothing is assumed.
    """
    if e.op == "const":
        return int(e.attr)
    assumed = _ASSUMED.get()
    found = assumed.known.get(e)
    if found is not None:
        return found
    dims = assumed.dims
    names = e.names("dim")
    if e.names("index") or e.reads() or not names <= set(dims):
        raise UserError("P001", f"extent {e} is not a constant; bind the program's dims first")
    known = E.substitute(e, {E.dim(n): E.const(hint_of(dims[n])) for n in names})
    value = E.int_value(known)
    assert value is not None
    out = assumed.known[e] = Extent.of(value, e)
    return out


def _expr(n: int) -> Expr:
    return n.expr if isinstance(n, Extent) else E.const(int(n))


def _from(e: Expr, value: int) -> int:
    return int(e.attr) if e.op == "const" else Extent.of(value, e)


class Extent(int):
    """A size that depends on dims; see the module docstring."""

    expr: Expr

    @staticmethod
    def of(value: int, e: Expr) -> Extent:
        """The extent `e` with its hint."""
        out = int.__new__(Extent, value)
        out.expr = e
        return out

    def __str__(self) -> str:
        return str(self.expr)

    __repr__ = __str__

    def __format__(self, spec: str) -> str:
        return format(str(self.expr), spec)

    def __hash__(self) -> int:
        return hash(self.expr)

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Extent) and other.expr is self.expr

    def __ne__(self, other: object) -> bool:
        return not self == other

    def __bool__(self) -> bool:
        return True

    def __reduce__(self) -> tuple[object, ...]:
        return (Extent.of, (int(self), self.expr))

    def __int__(self) -> int:
        return int.__add__(self, 0)

    def _apply(self, other: object, op: Callable[[Any, Any], Any], swapped: bool) -> Any:
        if not isinstance(other, int):
            return NotImplemented
        a, b = (other, self) if swapped else (self, other)
        return _from(op(_expr(a), _expr(b)), op(_plain(a), _plain(b)))

    def __add__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a + b, False)  # type: ignore[no-any-return]

    def __radd__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a + b, True)  # type: ignore[no-any-return]

    def __sub__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a - b, False)  # type: ignore[no-any-return]

    def __rsub__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a - b, True)  # type: ignore[no-any-return]

    def __mul__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a * b, False)  # type: ignore[no-any-return]

    def __rmul__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a * b, True)  # type: ignore[no-any-return]

    def __floordiv__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a // b, False)  # type: ignore[no-any-return]

    def __rfloordiv__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a // b, True)  # type: ignore[no-any-return]

    def __mod__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a % b, False)  # type: ignore[no-any-return]

    def __rmod__(self, other: int) -> int:
        return self._apply(other, lambda a, b: a % b, True)  # type: ignore[no-any-return]

    def __divmod__(self, other: int) -> tuple[int, int]:
        return self // other, self % other

    def __neg__(self) -> int:
        return 0 - self


def _plain(n: Any) -> Any:
    return int.__add__(n, 0) if isinstance(n, int) else n


def ceil_div(n: int, block: int) -> int:
    """How many blocks cover `n`, which is not negative."""
    return (n + (block - 1)) // block if is_symbolic(n) else -(-n // block)


def smaller(a: int, b: int) -> int:
    """The smaller of two extents, for every size."""
    if not is_symbolic(a) and not is_symbolic(b):
        return min(a, b)
    if a == b:
        return a
    return _from(E.minimum(_expr(a), _expr(b)), min(_plain(a), _plain(b)))
