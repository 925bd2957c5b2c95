"""Layouts: from a tensor's logical index to an element offset in a flat buffer.

In: logical shapes. Out: `Layout`, its address expressions, packing of NumPy arrays, text. Numbers
may be symbolic extents (ir/extent.py), printed in brackets; arrays need a layout without them.
Invariants: a layout is an injection over the tensor's index box widened by its halo, unless it is a
ring; the addresses lie in 0 .. size-1.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from functools import cached_property
from typing import Any

import numpy as np

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr, Polynomial
from tilewright.ir.extent import Extent, ceil_div, extent_of, is_symbolic
from tilewright.ir.ranges import Ranges, divide, simplify

__all__ = ["Layout", "Term", "dense", "ordered", "panels"]

Array = np.ndarray[Any, np.dtype[Any]]


@dataclass(frozen=True)
class Term:
    """One summand of an address: ((subscript[axis] // divisor) % modulus) * stride; modulus 0 is
    none.
    """

    axis: int
    divisor: int
    modulus: int
    stride: int


@dataclass(frozen=True)
class Layout:
    """Sum of terms plus `offset`; `size` elements in all.

    halo: per axis, how far before 0 and past the end the addresses stay valid; those elements hold
    `fill`.
    """

    shape: tuple[int, ...]
    terms: tuple[Term, ...]
    size: int
    offset: int = 0
    halo: tuple[tuple[int, int], ...] = ()
    fill: float | int | bool = 0

    def address(self, subscripts: Sequence[Expr], ranges: Ranges | None = None) -> Expr:
        """The element offset of a logical index; with the ranges of its variables, simplified."""
        if ranges is not None:
            return E.from_polynomial(self.terms_at(subscripts, ranges))
        total = E.const(self.offset)
        for t in self.terms:
            s = subscripts[t.axis]
            if t.divisor != 1:
                s = s // t.divisor
            if t.modulus:
                s = s % t.modulus
            total = total + s * t.stride
        return total

    def terms_at(self, subscripts: Sequence[Expr], ranges: Ranges) -> Polynomial:
        """The simplified address as a polynomial."""
        total: Polynomial = {}
        if is_symbolic(self.offset):
            total.update(E.polynomial(E.const(self.offset)))
        elif self.offset:
            total[()] = self.offset
        for t in self.terms:
            p = E.polynomial(subscripts[t.axis])
            if t.divisor != 1:
                p = divide(p, t.divisor, ranges)[0]
            if t.modulus:
                p = divide(p, t.modulus, ranges)[1]
            step = t.stride
            if isinstance(step, Extent):
                p, step = E.polynomial(E.from_polynomial(p) * step), 1
            for atoms, c in p.items():
                total[atoms] = total.get(atoms, 0) + c * step
        total = {atoms: c for atoms, c in total.items() if c}
        for atoms in total:
            for a in atoms:
                if a.args:
                    return E.polynomial(simplify(E.from_polynomial(total), ranges))
        return total

    def valid(self, axis: int) -> tuple[int, int]:
        """The half-open range of subscripts along `axis` that may be addressed."""
        lo, hi = self.halo[axis] if self.halo else (0, 0)
        return -lo, self.shape[axis] + hi

    def stride(self, axis: int) -> int | None:
        """The stride of a plain axis; None where the axis is blocked."""
        mine = [t for t in self.terms if t.axis == axis]
        if not mine:
            return 0
        return (
            mine[0].stride
            if len(mine) == 1 and mine[0].divisor == 1 and not mine[0].modulus
            else None
        )

    def within_panels(self) -> Layout:
        """The same with each panel as long as its axis: strides as they are inside of a panel."""
        cut = {t.axis for t in self.terms if t.divisor == 1 and t.modulus}
        if not cut:
            return self
        terms = [t for t in self.terms if t.axis not in cut or t.divisor == 1]
        return replace(self, terms=tuple(replace(t, modulus=0) for t in terms))

    @cached_property
    def is_ring(self) -> bool:
        """Do positions of the first axis go round in it, so that it keeps the last ones only?"""
        mine = [t for t in self.terms if t.axis == 0]
        modulus = mine[0].modulus if len(mine) == 1 else 0
        return modulus > 0 and mine[0].divisor == 1 and self.shape[0] > modulus

    @cached_property
    def is_row_major(self) -> bool:
        """Is it the dense layout that NumPy calls C order?"""
        plain = dense(self.shape)
        return plain.terms == self.terms and plain.size == self.size and self.offset == 0

    def addresses(self) -> Array:
        """Element offsets of every logical index, as an i64 array of the tensor's shape."""
        total = np.full((1,) * len(self.shape), self.offset, np.int64)
        for t in self.terms:
            n = np.arange(self.shape[t.axis]) // t.divisor
            if t.modulus:
                n = n % t.modulus
            total = total + (n * t.stride).reshape(
                [-1 if k == t.axis else 1 for k in range(len(self.shape))]
            )
        return np.broadcast_to(total, self.shape)

    def pack(self, array: Array) -> Array:
        """A flat buffer that holds `array` in this layout, holes and halo filled."""
        flat = np.full(self.size, self.fill, array.dtype)
        flat[self.addresses()] = array
        return flat

    def unpack(self, flat: Array) -> Array:
        """The logical array out of a flat buffer."""
        return np.asarray(flat[self.addresses()])

    def __str__(self) -> str:
        terms = []
        for t in self.terms:
            s = (
                f"a{t.axis}"
                + (f"//{t.divisor}" if t.divisor != 1 else "")
                + (f"%{t.modulus}" if t.modulus else "")
            )
            terms.append(f"{s}*{_text(t.stride)}")
        shape = ",".join(map(_text, self.shape))
        text = f"[{shape}] {'+'.join(terms) or '0'} size {_text(self.size)}"
        if self.offset:
            text += f" offset {_text(self.offset)}"
        if any(lo or hi for lo, hi in self.halo):
            text += f" halo {','.join(f'{lo}:{hi}' for lo, hi in self.halo)} fill {self.fill!r}"
        return text

    @cached_property
    def is_symbolic(self) -> bool:
        """Does a number of it depend on dims?"""
        return any(map(is_symbolic, (*self.shape, self.size, *(t.stride for t in self.terms))))

    def bind(self, sizes: Mapping[str, int]) -> Layout:
        """The layout at these sizes of all dims."""
        if not self.is_symbolic:
            return self
        swap = {E.dim(n): E.const(v) for n, v in sizes.items()}

        def known(n: int) -> int:
            return extent_of(E.substitute(E.const(n), swap)) if is_symbolic(n) else n

        terms = tuple(replace(t, stride=known(t.stride)) for t in self.terms)
        shape = tuple(map(known, self.shape))
        return replace(
            self, shape=shape, terms=terms, size=known(self.size), offset=known(self.offset)
        )

    @staticmethod
    def parse(text: str) -> Layout:
        """The layout of its text. Errors: F010 where it is none."""
        try:
            layout = Layout._parse(text)
        except (ValueError, IndexError):
            raise UserError("F010", f"this is no layout: {text!r}") from None
        rank = len(layout.shape)
        if any(t.axis >= rank for t in layout.terms) or len(layout.halo) not in (0, rank):
            raise UserError("F010", f"this layout has axes that its shape lacks: {text!r}")
        return layout

    @staticmethod
    def _parse(text: str) -> Layout:
        head, rest = _parts(text.strip(), "]")
        shape = tuple(_number(x) for x in _parts(head[1:], ",") if x)
        words = [w for w in _parts(rest, " ") if w]
        terms = []
        for part in _parts(words[0], "+") if words[0] != "0" else []:
            s, stride = _parts(part, "*")
            s, _, modulus = s.partition("%")
            axis, _, divisor = s.partition("//")
            terms.append(Term(int(axis[1:]), int(divisor or 1), int(modulus or 0), _number(stride)))
        fields = dict(zip(words[1::2], words[2::2], strict=True))
        halo: tuple[tuple[int, int], ...] = ()
        if "halo" in fields:
            pairs = [p.split(":") for p in fields["halo"].split(",")]
            halo = tuple((int(a), int(b)) for a, b in pairs)
        word = fields.get("fill", "0")
        fill: float | int | bool = word == "True"
        if word not in ("True", "False"):
            fill = float(word) if any(c in word for c in ".ein") else int(word)
        size, offset = _number(fields["size"]), _number(fields.get("offset", "0"))
        return Layout(shape, tuple(terms), size, offset, halo, fill)


def _text(n: int) -> str:
    return f"({n})" if is_symbolic(n) else str(n)


def _number(text: str) -> int:
    """A number, or a symbolic one in brackets."""
    if not text.startswith("("):
        return int(text)
    from tilewright.ir.text import Parser, Scope

    names = set(re.findall(r"[A-Za-z_]\w*", text)) - {"min", "max"}
    return extent_of(Parser(text).expression(Scope({}, {n: E.dim(n) for n in names})))


def _parts(text: str, separator: str) -> list[str]:
    """`text` cut at separators outside of brackets."""
    out, depth = [""], 0
    for c in text:
        depth += (c == "(") - (c == ")")
        if c == separator and not depth:
            out.append("")
        else:
            out[-1] += c
    return out


def dense(shape: Sequence[int]) -> Layout:
    """Row-major without holes; axes of extent 1 have no term."""
    return ordered(shape, range(len(shape)))


def ordered(
    shape: Sequence[int],
    order: Sequence[int],
    halo: Sequence[tuple[int, int]] = (),
    fill: float | int | bool = 0,
) -> Layout:
    """Dense over the axes in `order`, outermost first, widened by `halo` (per axis, in logical
    order).
    """
    n = len(shape)
    pads = tuple(halo) if halo else ((0, 0),) * n
    stride, offset, terms = 1, 0, []
    for axis in reversed(list(order)):
        lo, hi = pads[axis]
        if shape[axis] != 1 or lo or hi:
            terms.append(Term(axis, 1, 0, stride))
        offset += lo * stride
        wide = shape[axis] + lo + hi
        stride *= wide if is_symbolic(wide) else max(0, wide)
    keep = tuple(pads) if any(lo or hi for lo, hi in pads) else ()
    stride = stride if is_symbolic(stride) else max(stride, 1)
    fill = fill if keep else 0  # without a halo nothing holds it
    return Layout(
        tuple(shape), tuple(sorted(terms, key=lambda t: t.axis)), stride, offset, keep, fill
    )


def panels(
    shape: Sequence[int],
    axis: int,
    width: int,
    inner: Sequence[int],
    group: tuple[int, int] = (-1, 1),
    block: int = 0,
) -> Layout:
    """Panels of `width` along `axis`: address order (other axes, axis // width, inner axes in
    order, axis % width).

    The last panel is padded to full width. group: one of the inner axes, of which so many positions
    lie side by side innermost; it is padded to whole groups. block: so many positions of the first
    inner axis, whole groups, in all panels come before the next ones; 0 is all.
    """
    grouped, size = group
    terms = [Term(axis, 1, width, size)]
    stride = width * size
    if size > 1:
        terms.append(Term(grouped, 1, size, 1))
    for a in reversed(list(inner)):
        each = size if a == grouped else 1
        part = block if a == inner[0] else 0
        terms.append(Term(a, each, part // each, stride))
        most = part or shape[a]
        stride *= ceil_div(most, each) if each > 1 else most
    terms.append(Term(axis, width, 0, stride))
    stride *= ceil_div(shape[axis], width)
    if block:
        terms.append(Term(inner[0], block, 0, stride))
        stride *= ceil_div(shape[inner[0]], block)
    for a in reversed(range(len(shape))):
        if a != axis and a not in inner:
            terms.append(Term(a, 1, 0, stride))
            stride *= shape[a]
    stride = stride if is_symbolic(stride) else max(stride, 1)
    return Layout(tuple(shape), tuple(sorted(terms, key=lambda t: (t.axis, t.divisor))), stride)
