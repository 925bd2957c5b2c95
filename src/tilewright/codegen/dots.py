"""Dot products of words: a few neighbouring narrow elements of both factors at once.

In: the nodes of a phase; words as i32 values. Out: which contractions take words, and LLVM
instructions for them. Invariants: a product is exact, and so is the sum of integers over a word
(32 bits, wrapping); a factor is loaded in words only if all that use it are such contractions.

A contraction over an axis g whose positions lie side by side in both factors needs no widened copy
of either: x86 has an instruction for unsigned times signed bytes (VNNI), and every x86 has one for
pairs of 16-bit integers, which even and odd bytes are made into. A word of two bf16 has one on some
CPUs; else it is two f32 by a shift and a mask.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import lru_cache

import numpy as np

from tilewright.codegen.operations import Operations
from tilewright.codegen.survey import Survey
from tilewright.codegen.tiles import Tile, row_axes, row_count, row_index, rows
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BF16, F32, I8, I32, U8, DType
from tilewright.ir.nest import Contract, Load, Store, TileType
from tilewright.ir.words import WORD_BYTES

__all__ = ["Dots", "dot", "find", "in_words", "interleaved", "parts_of", "per_word", "words"]

_BYTES = (I8, U8)


def per_word(dtype: DType) -> int:
    """How many elements a word holds; 0 where no words are made of them."""
    return WORD_BYTES // dtype.bytes if dtype in _BYTES or dtype is BF16 else 0


@dataclass(frozen=True)
class Dots:
    """Contractions that take words, with the dtypes of their factors, and the loads of those
    factors, with the axis that lies side by side.
    """

    contracts: dict[str, tuple[DType, DType]]
    loads: dict[str, str]


def find(survey: Survey) -> Dots:
    """The dot products of a phase."""
    if not survey.contracts:
        return Dots({}, {})
    loads = {n.result: n for n in survey.loads if per_word(n.type.dtype)}
    found: dict[str, tuple[Contract, str]] = {}
    for n in survey.contracts:
        if n.a in loads and n.b in loads:
            a, b = loads[n.a], loads[n.b]
            word = per_word(a.type.dtype)
            if per_word(b.type.dtype) != word or n.type.dtype is not (I32 if word == 4 else F32):
                continue
            result = n.type.names
            over = {x: k for t in (a.type, b.type) for x, k in t.axes if x not in result}
            for axis, k in over.items():
                if k % word == 0 and _holds_words(a, axis) and _holds_words(b, axis):
                    found[n.result] = (n, axis)
                    break
    while True:  # a load that something else uses too stays as it is, and with it its partner
        counts: dict[tuple[str, str], int] = {}
        for n, axis in found.values():
            for x in (n.a, n.b):
                counts[x, axis] = counts.get((x, axis), 0) + 1
        kept = {
            r: (n, axis)
            for r, (n, axis) in found.items()
            if counts[n.a, axis] == survey.uses[n.a] and counts[n.b, axis] == survey.uses[n.b]
        }
        if len(kept) == len(found):
            break
        found = kept
    return Dots(
        {r: (loads[n.a].type.dtype, loads[n.b].type.dtype) for r, (n, _) in found.items()},
        {x: axis for n, axis in found.values() for x in (n.a, n.b)},
    )


def _holds_words(n: Load, axis: str) -> bool:
    """Whether a load takes whole words along `axis`: side by side, one word a lane, nothing cut."""
    strides = dict(n.strides)
    word = per_word(n.type.dtype)
    if axis not in n.type.names or axis == n.type.lane or strides.get(axis) is not E.const(1):
        return False
    if any(a == axis for a, _, _ in n.limits):
        return False
    return n.type.lane is None or strides.get(n.type.lane) is E.const(word)


def _word_type(t: TileType, axis: str, word: int) -> TileType:
    axes = tuple((a, k // word if a == axis else k) for a, k in t.axes)
    return TileType(I32, tuple(x for x in axes if x[0] != axis or x[1] > 1), t.lane)


def in_words(n: Load, axis: str) -> Load:
    """The load with a word of `axis` in place of the elements that it holds."""
    word = per_word(n.type.dtype)
    t = _word_type(n.type, axis, word)
    names, step = t.names, E.const(word)
    strides = tuple([(a, step if a == axis else s) for a, s in n.strides if a in names])
    orelse = _pattern(repr(n.orelse), n.orelse, n.type.dtype)
    return Load(n.result, t, n.buffer, n.base, strides, n.limits, orelse)


@lru_cache(maxsize=1 << 8)
def _pattern(text: str, value: float | int | bool, dtype: DType) -> int:
    """A word, as i32, all of whose elements are `value`. text: tells 0.0 and -0.0 apart."""
    bits = 8 * dtype.bytes
    one = np.asarray(E.const(value, dtype).attr, dtype.np)
    pattern = sum(int(one.view(f"u{dtype.bytes}")) << bits * i for i in range(per_word(dtype)))
    return pattern - (1 << 32) if pattern >> 31 else pattern


def interleaved(n: Load | Store, t: TileType) -> str | None:
    """The axis of one word of elements that lie side by side for each lane, or None."""
    word = per_word(t.dtype)
    if not word or t.lane is None:
        return None
    strides = dict(n.strides)
    for axis, k in row_axes(t):
        if k != word or strides.get(axis) is not E.const(1):
            continue
        if strides.get(t.lane) is E.const(word) and all(a != axis for a, _, _ in n.limits):
            return axis
    return None


def words(ops: Operations, value: Tile, axis: str) -> Tile:
    """The tile with the positions of `axis` (one word of elements) put together."""
    word, bits = per_word(value.type.dtype), 8 * value.type.dtype.bytes
    t, lanes = _word_type(value.type, axis, word), value.width
    narrow, wide = ops.type(value.type.dtype, lanes), ops.type(I32, lanes)
    over = [(axis, word), *row_axes(t)]
    index = row_index(value.type, over)
    count = len(index) // word
    out: list[list[str]] = []
    for r in range(row_count(t)):
        chunks = []
        for c in range(value.chunks):
            total = ""
            for i in range(word):
                one = ops.op(f"zext {narrow} {value.values[index[i * count + r]][c]} to {wide}")
                if i:
                    one = ops.op(f"shl {wide} {one}, {_splat(bits * i, lanes)}")
                    one = ops.op(f"or {wide} {total}, {one}")
                total = one
            chunks.append(total)
        out.append(chunks)
    return Tile(t, lanes, out)


def parts_of(ops: Operations, value: Tile, t: TileType, axis: str) -> Tile:
    """The tile of type `t` whose positions of `axis` are the elements that the words hold."""
    lanes = value.width
    narrow, wide = ops.type(t.dtype, lanes), ops.type(I32, lanes)
    index = row_index(value.type, row_axes(t))
    out: list[list[str]] = []
    for at, r in zip(rows(t), index, strict=True):
        chunks = []
        for v in value.values[r]:
            moved = v
            if at[axis]:
                moved = ops.op(f"lshr {wide} {v}, {_splat(8 * t.dtype.bytes * at[axis], lanes)}")
            chunks.append(ops.op(f"trunc {wide} {moved} to {narrow}"))
        out.append(chunks)
    return Tile(t, lanes, out)


def _splat(value: int, lanes: int, bits: int = 32) -> str:
    return f"splat (i{bits} {value})" if lanes else str(value)


def dot(ops: Operations, a: str, b: str, acc: str, kinds: tuple[DType, DType], lanes: int) -> str:
    """acc + the sum of the products of the elements of words a and b, in each lane."""
    if kinds[0] is BF16:
        if 32 * lanes in (128, 256, 512) and ops.target.has_feature("avx512bf16"):
            return _dpbf16(ops, a, b, acc, lanes)
        multiply_add = ops.multiply_add(F32, lanes)
        for low in (True, False):
            acc = multiply_add(_half(ops, a, lanes, low), _half(ops, b, lanes, low), acc)
        return acc
    is_x86 = ops.target.triple.startswith("x86")
    size = 32 * lanes
    if is_x86 and size in (128, 256, 512):
        vnni = ops.target.has_feature("avx512vnni") or (
            size < 512 and ops.target.has_feature("avxvnni")
        )
        if vnni:
            return _native(ops, a, b, acc, kinds, lanes)
        pairs = {128: "sse2.pmadd.wd", 256: "avx2.pmadd.wd", 512: "avx512.pmaddw.d.512"}[size]
        return _in_pairs(ops, a, b, acc, kinds, lanes, pairs)
    t = ops.type(I32, lanes)
    for i in range(WORD_BYTES):
        p, q = (_byte(ops, x, k, i, lanes) for x, k in zip((a, b), kinds, strict=True))
        product = ops.op(f"mul {t} {p}, {q}")
        acc = ops.op(f"add {t} {acc}, {product}")
    return acc


def _dpbf16(ops: Operations, a: str, b: str, acc: str, lanes: int) -> str:
    """Both products of a word of bf16 and their sum in one instruction, which takes denormal
    numbers as 0.
    """
    t, halves, w = ops.type(F32, lanes), f"<{2 * lanes} x bfloat>", ops.writer
    name = f"llvm.x86.avx512bf16.dpbf16ps.{32 * lanes}"
    w.module.declare(f"{t} @{name}({t}, {halves}, {halves})")
    p, q = (w.once(f"bitcast {ops.type(I32, lanes)} {x} to {halves}") for x in (a, b))
    return ops.op(f"call {t} @{name}({t} {acc}, {halves} {p}, {halves} {q})")


def _half(ops: Operations, word: str, lanes: int, low: bool) -> str:
    """One of the two bf16 of a word, as f32."""
    t, w = ops.type(I32, lanes), ops.writer
    shift, mask = _splat(16, lanes), _splat(-65536, lanes)
    text = f"shl {t} {word}, {shift}" if low else f"and {t} {word}, {mask}"
    return w.once(f"bitcast {t} {w.once(text)} to {ops.type(F32, lanes)}")


def _byte(ops: Operations, word: str, kind: DType, i: int, lanes: int) -> str:
    """Byte i of a word, as i32."""
    t, w = ops.type(I32, lanes), ops.writer
    up = w.once(f"shl {t} {word}, {_splat(24 - 8 * i, lanes)}")
    return w.once(f"{'ashr' if kind is I8 else 'lshr'} {t} {up}, {_splat(24, lanes)}")


def _native(
    ops: Operations, a: str, b: str, acc: str, kinds: tuple[DType, DType], lanes: int
) -> str:
    """VNNI multiplies unsigned by signed bytes.

    Where both are signed, 128 is added to one and its share of the sum taken away; where both are
    unsigned, 128 is taken from one, and its share added.
    """
    t, w = ops.type(I32, lanes), ops.writer
    if kinds == (I8, U8):
        a, b = b, a
    elif kinds[0] is kinds[1]:
        half = _splat(-0x7F7F7F80, lanes)  # 128 in every byte
        moved = w.once(f"xor {t} {a}, {half}")
        zero = "zeroinitializer"
        if kinds[0] is I8:  # (a + 128) b - 128 b
            share = _vpdpbusd(ops, zero, half, b, lanes, True)
            acc, a = ops.op(f"sub {t} {acc}, {share}"), moved
        else:  # (a - 128) b + 128 b
            share = _vpdpbusd(ops, zero, b, half, lanes, True)
            acc, a, b = ops.op(f"sub {t} {acc}, {share}"), b, moved
    return _vpdpbusd(ops, acc, a, b, lanes, False)


def _vpdpbusd(ops: Operations, acc: str, a: str, b: str, lanes: int, once: bool) -> str:
    t, name = ops.type(I32, lanes), f"llvm.x86.avx512.vpdpbusd.{32 * lanes}"
    bytes_ = f"<{4 * lanes} x i8>"
    w = ops.writer
    w.module.declare(f"{t} @{name}({t}, {bytes_}, {bytes_})")
    p, q = (w.once(f"bitcast {t} {x} to {bytes_}") for x in (a, b))
    text = f"call {t} @{name}({t} {acc}, {bytes_} {p}, {bytes_} {q})"
    return w.once(text) if once else ops.op(text)


def _in_pairs(
    ops: Operations,
    a: str,
    b: str,
    acc: str,
    kinds: tuple[DType, DType],
    lanes: int,
    name: str,
) -> str:
    """Even and odd bytes as 16-bit integers, whose products are added in pairs."""
    t, half = ops.type(I32, lanes), f"<{2 * lanes} x i16>"
    w = ops.writer
    w.module.declare(f"{t} @llvm.x86.{name}({half}, {half})")
    for odd in (False, True):
        parts = []
        for x, kind in zip((a, b), kinds, strict=True):
            pairs = w.once(f"bitcast {t} {x} to {half}")
            shift = "ashr" if kind is I8 else "lshr"
            if not odd:
                pairs = w.once(f"shl {half} {pairs}, {_splat(8, lanes, 16)}")
            parts.append(w.once(f"{shift} {half} {pairs}, {_splat(8, lanes, 16)}"))
        product = ops.op(f"call {t} @llvm.x86.{name}({half} {parts[0]}, {half} {parts[1]})")
        acc = ops.op(f"add {t} {acc}, {product}")
    return acc
