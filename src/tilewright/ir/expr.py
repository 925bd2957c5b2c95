"""Scalars, subscripts and sizes: one immutable, hash-consed node type.

In: nothing. Out: `Expr` and its constructors. Invariants: structurally equal expressions are the
same object, so `is` is equality; integer (i64) sums and products are kept as polynomials in a
canonical order, so two spellings of one subscript are one object; constructors fold constants,
nothing else.
"""

from __future__ import annotations

import math
import operator
import weakref
from collections.abc import Callable, Iterable, Iterator, Mapping
from functools import lru_cache
from typing import Any

import numpy as np

from tilewright.errors import InternalError
from tilewright.ir.dtypes import BF16, BOOL, F32, I32, I64, DType

__all__ = [
    "BINARY",
    "COMPARE",
    "CONSTANT",
    "Expr",
    "TRANSCENDENTAL",
    "UNARY",
    "add",
    "binary",
    "cast",
    "compare",
    "conjuncts",
    "const",
    "dim",
    "floordiv",
    "index",
    "int_value",
    "logical",
    "map_atoms",
    "maximum",
    "minimum",
    "mod",
    "mul",
    "neg",
    "polynomial",
    "read",
    "select",
    "split_multiples",
    "sub",
    "substitute",
    "substitute_more",
    "unary",
]

# Unary operations on floats, except where the comment says otherwise. Their NumPy meaning is in
# ir/scalar.py.
# Unary functions that cost tens of instructions.
TRANSCENDENTAL: frozenset[str] = frozenset(
    [
        "exp",
        "exp2",
        "expm1",
        "log",
        "log2",
        "log1p",
        "sin",
        "cos",
        "tan",
        "asin",
        "acos",
        "atan",
        "sinh",
        "cosh",
        "tanh",
        "asinh",
        "acosh",
        "atanh",
        "erf",
        "sigmoid",
    ]
)
UNARY: frozenset[str] = TRANSCENDENTAL | frozenset(
    [
        "neg",
        "abs",
        "sign",
        "floor",
        "ceil",
        "round",
        "trunc",
        "sqrt",
        "rsqrt",
        "isnan",
        "isinf",
        "bits",
        "upper_half",
        "not",
    ]  # neg abs sign: any; not: bool, ints; bits: those of an f32, as i32; upper_half: as bf16
)
BINARY: frozenset[str] = frozenset(
    [
        "add",
        "sub",
        "mul",
        "div",
        "floordiv",
        "mod",
        "min",
        "max",
        "pow",
        "atan2",
        "fmod",
        "and",
        "or",
        "xor",
        "shl",
        "shr",
    ]
)
COMPARE: frozenset[str] = frozenset(["lt", "le", "eq", "ne"])

Polynomial = dict[tuple["Expr", ...], int]
CONSTANT: frozenset[tuple[Expr, ...]] = frozenset([()])  # terms of one that is a constant
_NOTHING: frozenset[str] = frozenset()


class Expr:
    """One node `op(args; attr): dtype`.

    op       leaf forms: const (attr: Python value), index (attr: iteration variable), dim (attr:
    symbolic size);
             read (attr: (tensor, has_else); args: subscripts, then the else value); a unary, binary
             or compare name; select (condition, then, else); cast.
    Source: tinygrad UOp, Halide Expr.
    """

    __slots__ = (
        "__weakref__",
        "_indices",
        "_poly",
        "_reads",
        "_text",
        "args",
        "attr",
        "dtype",
        "has_reads",
        "op",
    )
    op: str
    args: tuple[Expr, ...]
    attr: Any
    dtype: DType
    has_reads: bool  # does it, or anything in it, read memory?
    _poly: Polynomial | None
    _text: str | None
    _reads: tuple[Expr, ...] | None
    _indices: frozenset[str] | None

    def __init__(self) -> None:
        raise InternalError("X001", "Expr is made by its constructors only")

    def __str__(self) -> str:
        if self._text is None:
            from tilewright.ir.text import expr_text

            self._text = expr_text(self)
        return self._text

    __repr__ = __str__

    def __reduce__(self) -> tuple[object, ...]:
        return (_make, (self.op, self.args, self.attr, self.dtype))

    # Arithmetic on i64 is so common in subscripts that operators read better; ints are lifted.
    def __add__(self, other: Expr | int) -> Expr:
        return add(self, other if isinstance(other, Expr) else const(other))

    __radd__ = __add__

    def __sub__(self, other: Expr | int) -> Expr:
        return sub(self, _lift(other))

    def __rsub__(self, other: int) -> Expr:
        return sub(_lift(other), self)

    def __mul__(self, other: Expr | int) -> Expr:
        return mul(self, other if isinstance(other, Expr) else const(other))

    __rmul__ = __mul__

    def __floordiv__(self, other: Expr | int) -> Expr:
        return floordiv(self, _lift(other))

    def __mod__(self, other: Expr | int) -> Expr:
        return mod(self, _lift(other))

    def __neg__(self) -> Expr:
        return neg(self)

    def walk(self) -> Iterator[Expr]:
        """Every distinct node below and including this one, operands first."""
        seen: set[int] = set()
        stack: list[tuple[Expr, bool]] = [(self, False)]
        while stack:
            node, done = stack.pop()
            if done:
                yield node
            elif id(node) not in seen:
                seen.add(id(node))
                stack.append((node, True))
                stack.extend((a, False) for a in reversed(node.args))

    def names(self, op: str) -> set[str]:
        """Names of all leaves of kind `op` ('index' or 'dim')."""
        if op == "index":
            return set(self.indices())
        return {n.attr for n in self.walk() if n.op == op}

    def indices(self) -> frozenset[str]:
        """Names of all index variables in it."""
        if self._indices is None:
            if self.op == "index":
                self._indices = frozenset((self.attr,))
            else:
                found: frozenset[str] = _NOTHING
                for a in self.args:
                    more = a.indices()
                    found = (found | more if found else more) if more else found
                self._indices = found
        return self._indices

    def reads(self) -> list[Expr]:
        """All distinct reads in it, operands first."""
        if not self.has_reads:
            return []
        if self._reads is None:
            below: dict[Expr, None] = {}
            for a in self.args:
                if a.has_reads:
                    below.update(dict.fromkeys(a.reads()))
            self._reads = tuple(below)  # without itself, which would be a reference cycle
        return [*self._reads, self] if self.op == "read" else list(self._reads)


class _Reference(weakref.ref[Expr]):
    """A node of the table, and where it stands there."""

    __slots__ = ("key",)
    key: tuple[Any, ...]


# As a WeakValueDictionary, which takes three calls for each node that is made and dropped.
_TABLE: dict[tuple[Any, ...], _Reference] = {}
_INTEGERS: dict[int, Expr] = {}  # i64 constants, which would be made and dropped all the time
_MOST_INTEGERS = 1 << 14


def _make(op: str, args: tuple[Expr, ...], attr: Any, dtype: DType) -> Expr:
    # 1, 1.0 and True, and 0.0 and -0.0, are different constants but equal dictionary keys: repr
    # tells them apart.
    key = (op, args, repr(attr) if op == "const" else attr, dtype)
    known = _TABLE.get(key)
    found = None if known is None else known()
    if found is not None:
        return found
    node = object.__new__(Expr)
    node.op, node.args, node.attr, node.dtype = op, args, attr, dtype
    node._poly = node._text = node._reads = node._indices = None
    node.has_reads = op == "read"
    for a in args:
        if a.has_reads:
            node.has_reads = True
            break
    reference = _TABLE[key] = _Reference(node, _forget)
    reference.key = key
    return node


def _forget(dead: _Reference) -> None:
    if _TABLE.get(dead.key) is dead:  # else the node has been made again
        _TABLE.pop(dead.key, None)


def _lift(x: Expr | int) -> Expr:
    return x if isinstance(x, Expr) else const(x)


# ---- leaves --------------------------------------------------------------------------------------


def const(value: float | int | bool | np.generic, dtype: DType | None = None) -> Expr:
    """A constant, rounded to `dtype` (default: bool, i64 or f32 after the Python type)."""
    if type(value) is int and (dtype is None or dtype is I64):
        known = _INTEGERS.get(value)
        if known is None:
            known = _make("const", (), (value + (1 << 63)) % (1 << 64) - (1 << 63), I64)
            if len(_INTEGERS) < _MOST_INTEGERS:
                _INTEGERS[value] = known
        return known
    symbolic = getattr(value, "expr", None)  # an extent that depends on dims (ir/extent.py)
    if symbolic is not None:
        return symbolic  # type: ignore[no-any-return]
    if dtype is None:
        kind = type(value)
        dtype = BOOL if kind is bool else I64 if kind is int else F32
    if dtype.is_float:
        with np.errstate(over="ignore"):
            value = float(np.asarray(value).astype(dtype.np))
    elif dtype is BOOL:
        value = bool(value)
    else:
        value = int(value)
        span, low = 1 << dtype.bits, (-(1 << (dtype.bits - 1)) if dtype.kind == "i" else 0)
        value = (value - low) % span + low
    return _make("const", (), value, dtype)


@lru_cache(maxsize=1 << 12)
def index(name: str) -> Expr:
    """An iteration variable (i64)."""
    return _make("index", (), name, I64)


def dim(name: str) -> Expr:
    """A symbolic size (i64, not negative)."""
    return _make("dim", (), name, I64)


def read(tensor: str, subscripts: Iterable[Expr], dtype: DType, orelse: Expr | None = None) -> Expr:
    """`tensor[subscripts]`, or `orelse` where a subscript is outside the tensor."""
    args = tuple(subscripts)
    if orelse is not None:
        args = (*args, orelse)
    return _make("read", args, (tensor, orelse is not None), dtype)


def int_value(e: Expr) -> int | None:
    """The value of a constant integer, else None."""
    return e.attr if e.op == "const" and type(e.attr) is int else None


# ---- integer polynomials -------------------------------------------------------------------------


def polynomial(e: Expr) -> Polynomial:
    """An i64 expression as {sorted atoms: coefficient}; the empty tuple holds the constant.

    Do not mutate it.
    """
    if e._poly is None:
        if e.op == "const":
            e._poly = {(): e.attr} if e.attr else {}
        elif e.op == "add":
            total: Polynomial = {}
            for a in e.args:
                for k, v in polynomial(a).items():
                    total[k] = total.get(k, 0) + v
            e._poly = {k: v for k, v in total.items() if v}
        elif e.op == "mul":
            p: Polynomial = {(): 1}
            for a in e.args:
                p = _poly_mul(p, polynomial(a))
            e._poly = p
        else:
            e._poly = {(e,): 1}
    return e._poly


def is_affine(e: Expr) -> bool:
    """Is it an i64 sum of products of variables, sizes and constants only, in canonical form?"""
    if e.op not in ("add", "mul") or e.dtype is not I64:
        return False
    for atoms in polynomial(e):
        for atom in atoms:
            if atom.args:
                return False
    return True


def _poly_mul(p: Polynomial, q: Polynomial) -> Polynomial:
    if len(q) == 1 and () in q:
        c = q[()]
        return {k: v * c for k, v in p.items()}
    out: Polynomial = {}
    for ka, va in p.items():
        for kb, vb in q.items():
            k = tuple(sorted(ka + kb, key=str)) if ka and kb else ka or kb
            out[k] = out.get(k, 0) + va * vb
    return {k: v for k, v in out.items() if v}


@lru_cache(maxsize=1 << 14)
def _rank(atoms: tuple[Expr, ...]) -> tuple[int, list[str]]:
    return (-len(atoms), [str(a) for a in atoms])


def from_polynomial(p: Polynomial) -> Expr:
    """The canonical expression of a polynomial: terms sorted, constant last."""
    if not p:
        return const(0)
    total: Expr | None = None
    known: Polynomial = {}  # its polynomial, which need not be computed from the expression again
    for atoms in sorted(p, key=_rank) if len(p) > 1 else p:
        c = p[atoms]
        if not atoms:
            e = const(c)
            c = e.attr
        else:
            e = atoms[0]
            for a in atoms[1:]:
                e = _make("mul", (e, a), None, I64)
            if c != 1:
                factor = const(c)
                c = factor.attr
                e = _make("mul", (e, factor), None, I64)
        if c:
            known[atoms] = c
        total = e if total is None else _make("add", (total, e), None, I64)
    assert total is not None
    if total._poly is None and len(p) > 1:
        total._poly = known
    return total


# ---- arithmetic ----------------------------------------------------------------------------------


# Candidates of one kernel build the same subscripts again and again; sums and products of the last
# few thousand pairs stay alive and are answered without rebuilding them.
_MEMO = 1 << 13


def add(a: Expr, b: Expr) -> Expr:
    """a + b (integers wrap)."""
    return _add(a, b) if a.dtype is I64 and b.dtype is I64 else binary("add", a, b)


@lru_cache(maxsize=_MEMO)
def _add(a: Expr, b: Expr) -> Expr:
    if b.op == "const":
        if a.op == "const":
            return const(a.attr + b.attr)
        if b.attr == 0:
            return a
    elif a.op == "const" and a.attr == 0:
        return b
    total = dict(polynomial(a))
    for k, v in polynomial(b).items():
        total[k] = total.get(k, 0) + v
    return from_polynomial({k: v for k, v in total.items() if v})


def sub(a: Expr, b: Expr) -> Expr:
    """a - b (integers wrap)."""
    if a.dtype is I64 and b.dtype is I64:
        if b.op == "const":
            return _add(a, const(-b.attr)) if b.attr else a
        return _add(a, _mul(b, const(-1)))
    return binary("sub", a, b)


def mul(a: Expr, b: Expr) -> Expr:
    """a * b (integers wrap)."""
    return _mul(a, b) if a.dtype is I64 and b.dtype is I64 else binary("mul", a, b)


@lru_cache(maxsize=_MEMO)
def _mul(a: Expr, b: Expr) -> Expr:
    if b.op == "const" and b.attr == 1:
        return a
    if a.op == "const" and a.attr == 1:
        return b
    return from_polynomial(_poly_mul(polynomial(a), polynomial(b)))


def neg(a: Expr) -> Expr:
    """-a."""
    return _mul(a, const(-1)) if a.dtype is I64 else unary("neg", a)


_RING = {"add": add, "sub": sub, "mul": mul}


def split_multiples(p: Polynomial, c: int) -> tuple[Polynomial, Polynomial]:
    """`p` as c * first + second, where second holds what c does not divide, constants below c."""
    first: Polynomial = {}
    second: Polynomial = {}
    for k, v in p.items():
        q, r = divmod(v, c)
        if k and r:
            second[k] = v
            continue
        if q:
            first[k] = q
        if r:
            second[k] = r
    return first, second


def floordiv(a: Expr, b: Expr) -> Expr:
    """Floor division. Integers: x // 0 is 0 by definition, so that no input traps."""
    if a.dtype is I64 and b.dtype is I64:
        c = int_value(b)
        if c == 1:
            return a
        if c is not None and c > 0:
            first, second = split_multiples(polynomial(a), c)
            if not second or (len(second) == 1 and () in second):
                return from_polynomial(first)
            if first:
                rest = floordiv(from_polynomial(second), b)
                return add(from_polynomial(first), rest)
            # (x // d) // c = x // (d*c) for positive d and c
            if a.op == "floordiv":
                d = int_value(a.args[1])
                if d is not None and d > 0:
                    return floordiv(a.args[0], const(c * d))
        elif a is b and a.op == "dim":
            return const(1)
        elif c is None:
            q = _exact_quotient(a, b)
            if q is not None:
                return q
    return binary("floordiv", a, b)


def _exact_quotient(a: Expr, b: Expr) -> Expr | None:
    """a / b where b is one monomial of dims that divides every term of a."""
    pb = polynomial(b)
    if len(pb) != 1:
        return None
    (atoms, c), out = next(iter(pb.items())), {}
    if c <= 0 or any(x.op != "dim" for x in atoms):
        return None
    for k, v in polynomial(a).items():
        rest = list(k)
        for x in atoms:
            if x not in rest:
                return None
            rest.remove(x)
        if v % c:
            return None
        out[tuple(rest)] = v // c
    return from_polynomial(out)


def mod(a: Expr, b: Expr) -> Expr:
    """Floor modulo: the sign of the divisor. Integers: x % 0 is 0 by definition."""
    if a.dtype is I64 and b.dtype is I64:
        c = int_value(b)
        if c is not None and c > 0:
            if c == 1:
                return const(0)
            first, second = split_multiples(polynomial(a), c)
            if first:
                return mod(from_polynomial(second), b)
            if not second:
                return const(0)
        elif c is None and _exact_quotient(a, b) is not None:
            return const(0)
    return binary("mod", a, b)


def minimum(a: Expr, b: Expr) -> Expr:
    """The smaller; NaN wins."""
    return a if a is b else binary("min", a, b)


def maximum(a: Expr, b: Expr) -> Expr:
    """The larger; NaN wins."""
    return a if a is b else binary("max", a, b)


# What needs no NumPy, because it cannot leave the 64 bits.
_ON_INTEGERS: dict[str, Callable[[int, int], int]] = {
    "lt": operator.lt,
    "le": operator.le,
    "eq": operator.eq,
    "ne": operator.ne,
    "min": min,
    "max": max,
}


def _fold(op: str, args: tuple[Expr, ...], dtype: DType) -> Expr | None:
    """The constant value of op over constants, computed in the operation's own dtype."""
    for a in args:
        if a.op != "const":
            return None
    if op in _ON_INTEGERS and args[0].dtype is I64:
        return const(_ON_INTEGERS[op](args[0].attr, args[1].attr), dtype)
    from tilewright.ir.scalar import evaluate

    with np.errstate(all="ignore"):
        value = evaluate(op, [np.asarray(a.attr, a.dtype.np) for a in args], dtype)
    return const(value.item(), dtype)


_RESULTS: dict[str, DType] = {"isnan": BOOL, "isinf": BOOL, "bits": I32, "upper_half": BF16}


def unary_dtype(op: str, dtype: DType) -> DType:
    """The dtype of a unary operation on values of a dtype."""
    return _RESULTS.get(op, dtype)


def unary(op: str, a: Expr) -> Expr:
    """A unary operation of `UNARY`; the result has the dtype of `a`: but bool for isnan and isinf,
    i32 for bits and bf16 for upper_half, which take f32.
    """
    if op in ("bits", "upper_half"):
        a = cast(a, F32)
    dtype = unary_dtype(op, a.dtype)
    if op == "neg" and a.dtype is I64:
        return neg(a)
    if op == "not" and a.op == "not":
        return a.args[0]
    return _fold(op, (a,), dtype) or _make(op, (a,), None, dtype)


def binary(op: str, a: Expr, b: Expr) -> Expr:
    """A binary operation of `BINARY`, for any dtype; both operands have the same one (X001
    otherwise).
    """
    if a.dtype is not b.dtype:
        raise InternalError("X001", f"{op} of {a.dtype} and {b.dtype}", where=f"{a} {op} {b}")
    if a.dtype is I64 and op in ("add", "sub", "mul"):
        return _RING[op](a, b)
    folded = _fold(op, (a, b), a.dtype)
    if folded is not None:
        return folded
    if a.dtype is BOOL:
        for x, y in ((a, b), (b, a)):
            if x.op == "const" and op in ("and", "or"):
                return y if x.attr == (op == "and") else x
    return _make(op, (a, b), None, a.dtype)


def compare(op: str, a: Expr, b: Expr) -> Expr:
    """lt, le, eq, ne (gt and ge are spelled with the operands swapped); the result is bool."""
    if op in ("gt", "ge"):
        return compare({"gt": "lt", "ge": "le"}[op], b, a)
    if a.dtype is not b.dtype:
        raise InternalError("X001", f"{op} of {a.dtype} and {b.dtype}", where=f"{a} {op} {b}")
    if a is b and not a.dtype.is_float:
        return const(op in ("le", "eq"), BOOL)
    return _fold(op, (a, b), BOOL) or _make(op, (a, b), None, BOOL)


def logical(op: str, a: Expr, b: Expr) -> Expr:
    """`and` / `or` of two bools."""
    return a if a is b else binary(op, a, b)


def conjuncts(e: Expr) -> list[Expr]:
    """The conditions that `and` joins, in order."""
    return [c for a in e.args for c in conjuncts(a)] if e.op == "and" else [e]


def select(condition: Expr, then: Expr, orelse: Expr) -> Expr:
    """`then` where `condition`, else `orelse`; only the chosen side's reads need be in range."""
    if then.dtype is not orelse.dtype:
        raise InternalError("X001", f"select of {then.dtype} and {orelse.dtype}")
    if condition.op == "const":
        return then if condition.attr else orelse
    return then if then is orelse else _make("select", (condition, then, orelse), None, then.dtype)


def cast(a: Expr, dtype: DType) -> Expr:
    """Value conversion; float to integer truncates and saturates, NaN gives 0; integers wrap; to
    bool is `!= 0`.
    """
    if a.dtype is dtype:
        return a
    return _fold("cast", (a,), dtype) or _make("cast", (a,), None, dtype)


# ---- rewriting -----------------------------------------------------------------------------------


def rebuild(e: Expr, args: tuple[Expr, ...]) -> Expr:
    """`e` with other operands, through the folding constructors."""
    if args == e.args:
        return e
    op = e.op
    if op in ("add", "sub", "mul"):
        return _RING[op](*args)
    if op == "floordiv":
        return floordiv(*args)
    if op == "mod":
        return mod(*args)
    if op in BINARY:
        return binary(op, *args)
    if op in COMPARE:
        return compare(op, *args)
    if op == "select":
        return select(*args)
    if op == "cast":
        return cast(args[0], e.dtype)
    if op == "read":
        return _make("read", args, e.attr, e.dtype)
    return unary(op, *args)


def map_atoms(e: Expr, f: Callable[[Expr], Expr]) -> Expr:
    """An i64 sum or product with f(x) in place of each variable, size or other atom x of it."""
    total: Polynomial = {}
    changed = False
    for atoms, c in polynomial(e).items():
        term: Polynomial = {(): c}
        for x in atoms:
            new = f(x)
            changed |= new is not x
            term = _poly_mul(polynomial(new), term)
        for k, v in term.items():
            total[k] = total.get(k, 0) + v
    return from_polynomial({k: v for k, v in total.items() if v}) if changed else e


def substitute(e: Expr, mapping: Mapping[Expr, Expr]) -> Expr:
    """Replace every node that is a key of `mapping` (top down), rebuilding and folding what stands
    above it. Of an i64 sum or product the atoms are looked up, not some of its terms.
    """
    return substitute_more(e, dict(mapping))


def substitute_more(e: Expr, done: dict[Expr, Expr]) -> Expr:
    """`substitute` in one of many expressions: `done` begins as the mapping, and keeps what became
    of each node.
    """
    found = done.get(e)
    if found is not None:
        return found
    if not e.args:
        return e
    if e.op in ("add", "mul") and e.dtype is I64:
        out = map_atoms(e, lambda x: substitute_more(x, done))
    else:
        args = [substitute_more(a, done) if a.args or a in done else a for a in e.args]
        out = rebuild(e, tuple(args))
    done[e] = out
    return out


def is_finite_const(e: Expr) -> bool:
    """Is it a constant that is a finite number?"""
    return e.op == "const" and math.isfinite(e.attr)
