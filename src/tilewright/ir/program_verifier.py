"""Rules that every Program obeys.

In: a Program. Out: nothing, or UserError that names the statement. Invariant: what passes has a
meaning in interpreter.py and reference.py. The rules are the invariants in program.py.
"""

from __future__ import annotations

from dataclasses import replace

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64, DType
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    MONOIDS,
    Block,
    Definition,
    Extern,
    If,
    Program,
    Recurrence,
    Scatter,
    Size,
    Statement,
    Tensor,
    While,
    defined_by,
)

__all__ = ["verify_program"]


def verify_program(p: Program) -> None:
    """Check the invariants in the module's docstring.

    Errors: P001 to P005, F012, naming the statement.
    """
    known: dict[str, Tensor] = {}
    taken: set[str] = set()
    sizes = {d.name for d in p.dims}

    def define(t: Tensor) -> None:
        if t.name in taken:
            raise UserError("F012", f"{t.name!r} is defined twice", where=str(t))
        taken.add(t.name)
        known[t.name] = t

    def scalar(name: str, dtype: DType, what: str, where: Statement) -> None:
        t = known.get(name)
        if t is None:
            raise UserError("P004", f"{name!r} is read before it is defined", where=str(where))
        if t.dtype is not dtype or t.shape:
            raise UserError("P002", f"{what} must be {dtype}[], {name!r} is {t}", where=str(where))

    def check(e: Expr, bound: set[str], where: Statement | Definition) -> None:
        for node in e.walk():
            if node.op == "index" and node.attr not in bound:
                raise UserError("P001", f"index {node.attr!r} is not bound", where=str(where))
            if node.op == "read":
                t = known.get(node.attr[0])
                if t is None:
                    raise UserError(
                        "P004", f"{node.attr[0]!r} is read before it is defined", where=str(where)
                    )
                n = len(node.args) - node.attr[1]
                if n != len(t.shape):
                    raise UserError(
                        "P003",
                        f"{t.name!r} has {len(t.shape)} axes, {n} subscripts given",
                        where=str(where),
                    )
                if node.dtype is not t.dtype:
                    raise UserError(
                        "P002", f"{t.name!r} is {t.dtype}, read as {node.dtype}", where=str(where)
                    )
                if any(s.dtype is not I64 for s in node.args[:n]):
                    raise UserError(
                        "P002", f"subscripts of {t.name!r} must be i64", where=str(where)
                    )

    def definition(d: Definition) -> None:
        names = [a.name for a in d.all_axes]
        if len(set(names)) != len(names):
            raise UserError("P001", f"{d.name!r} binds an index twice", where=str(d))
        for e in d.expressions():
            check(e, set(names), d)
        r = d.reduction
        if r is not None and r.monoid not in MONOIDS:
            raise UserError("P001", f"unknown monoid {r.monoid!r}", where=str(d))
        if r is not None and r.guard is not None and r.guard.dtype is not BOOL:
            raise UserError("P002", "a guard must be bool", where=str(d))
        if r is not None and r.monoid in ("argmax", "argmin"):
            if d.dtype is not I64:
                raise UserError("P002", f"{r.monoid} gives i64, not {d.dtype}", where=str(d))
        elif d.body.dtype is not d.dtype:
            raise UserError(
                "P002", f"{d.name!r} is {d.dtype}, its body {d.body.dtype}", where=str(d)
            )
        if d.scan is not None and (
            d.scan[0] not in MONOIDS or d.scan[1] not in [a.name for a in d.axes]
        ):
            raise UserError(
                "P001", f"scan {d.scan[0]}({d.scan[1]}) names no monoid or no axis", where=str(d)
            )

    def block(b: Block, wanted: tuple[Tensor, ...], where: Statement, proceed: str = "") -> None:
        """A block's statements, and that it hands out tensors like `wanted`."""
        outer = dict(known)
        for x in b.body:
            statement(x)
        if proceed:
            scalar(proceed, BOOL, "a condition", where)
        if len(b.results) != len(wanted):
            message = f"a block hands out {len(b.results)} values instead of {len(wanted)}"
            raise UserError("P005", message, where=str(where))
        for name, t in zip(b.results, wanted, strict=True):
            found = known.get(name)
            if found is None:
                raise UserError("P004", f"{name!r} is read before it is defined", where=str(where))
            if not _is_like(found, t):
                message = f"{name!r} is {found}, where {t} is needed"
                raise UserError("P005", message, where=str(where))
        known.clear()
        known.update(outer)

    def loop(s: While) -> None:
        if s.condition:
            scalar(s.condition, BOOL, "a condition", s)
        for c in s.carries:
            start = known.get(c.initial)
            if start is None:
                raise UserError("P004", f"{c.initial!r} is read before it is defined", where=str(s))
            if not _is_like(start, c.tensor):
                message = f"{c.initial!r} is {start}, where {c.tensor} is needed"
                raise UserError("P005", message, where=str(s))
        n = len(s.carries)
        if len(s.results) < n:
            raise UserError("P005", f"a loop has {n} carried values", where=str(s))
        for c, t in zip(s.carries, s.results, strict=False):
            if not _is_like(c.tensor, t):
                message = f"{c.tensor.name!r} is {c.tensor}, the result is {t}"
                raise UserError("P005", message, where=str(s))
        for t in s.results[n:]:
            if not t.shape or t.shape[0] is not s.axis.extent:
                message = f"{t.name!r} must have {s.axis.extent} rows, one for every step"
                raise UserError("P005", message, where=str(s))
        outer = dict(known)
        define(s.counter)
        for c in s.carries:
            define(c.tensor)
        rows = tuple(replace(t, shape=t.shape[1:]) for t in s.results[n:])
        block(s.block, tuple(c.tensor for c in s.carries) + rows, s, s.proceed)
        known.clear()
        known.update(outer)
        for t in s.results:
            define(t)
        known[s.axis.name] = s.counter

    def statement(s: Statement) -> None:
        match s:
            case Definition():
                definition(s)
                define(Tensor(s.name, s.dtype, s.shape))
            case Recurrence():
                for t in defined_by(s):
                    define(t)
                for d in s.definitions:
                    if not d.axes or d.axes[0].name != s.axis.name:
                        raise UserError(
                            "P001",
                            f"the first axis of {d.name!r} must be {s.axis.name}",
                            where=str(d),
                        )
                    definition(d)
            case Scatter():
                check(s.body, {a.name for a in s.source}, s)
                for e in s.subscripts:
                    check(e, {a.name for a in s.source}, s)
                check(s.base, {a.name for a in s.axes}, s)
                if len(s.subscripts) != len(s.axes):
                    raise UserError(
                        "P003",
                        f"scatter into {s.name!r} needs {len(s.axes)} subscripts",
                        where=str(s),
                    )
                if s.body.dtype is not s.dtype or s.base.dtype is not s.dtype:
                    raise UserError("P002", f"scatter into {s.name!r} mixes dtypes", where=str(s))
                define(Tensor(s.name, s.dtype, s.shape))
            case Extern():
                for a in s.args:
                    if a not in known:
                        raise UserError("P004", f"{a!r} is read before it is defined", where=str(s))
                for t in s.results:
                    define(t)
            case Size():
                scalar(s.source, I64, f"the size {s.name!r}", s)
                if s.name in sizes:
                    raise UserError("F012", f"{s.name!r} is defined twice", where=str(s))
                sizes.add(s.name)
            case If():
                scalar(s.condition, BOOL, "a condition", s)
                for b in (s.then, s.orelse):
                    block(b, s.results, s)
                for t in s.results:
                    define(t)
            case While():
                loop(s)

    for t in p.inputs:
        define(t)
    for t, _ in p.constants:
        define(t)
    for s in p.body:
        statement(s)
    for name in p.results:
        if name not in known:
            raise UserError("P004", f"result {name!r} is not defined", where=f"program {p.name}")


def _is_like(a: Tensor, b: Tensor) -> bool:
    """Equal element types, and shapes that are not known to differ."""
    return (
        a.dtype is b.dtype
        and len(a.shape) == len(b.shape)
        and all(
            x is y or E.int_value(x) is None or E.int_value(y) is None
            for x, y in zip(a.shape, b.shape, strict=True)
        )
    )
