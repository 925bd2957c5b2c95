"""Sizes that values define become fixed sizes: the memory is planned for the bound.

In: a Program. Out: `with_shapes`, the Program that also returns the shape of every result whose
size a value defines; `bounded`, for fixed input sizes an equal Program without such sizes. Every
tensor then has its largest possible shape; elements past its true size hold anything. Invariants:
no element inside the true size depends on one outside; no read leaves its tensor.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, I64
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import int_extent
from tilewright.ir.program import (
    Attribute,
    Axis,
    Block,
    Carry,
    Definition,
    Extern,
    If,
    Program,
    Recurrence,
    Reduction,
    Scatter,
    Size,
    Statement,
    Tensor,
    While,
    blocks_of,
    defined_by,
)
from tilewright.ir.ranges import interval

__all__ = ["bounded", "with_shapes"]


def with_shapes(p: Program) -> tuple[Program, dict[str, str]]:
    """The Program that also returns shapes (i64[rank]), and result -> the name of its shape.

    Only results are listed whose size a value defines; where there is none, it is `p` itself.
    """
    sizes = {s.name for s in p.body if isinstance(s, Size)}
    tensors = p.tensors
    taken, added = set(tensors), list[Definition]()
    shapes: dict[str, str] = {}
    for n in dict.fromkeys(p.results):
        shape = tensors[n].shape
        if not any(e.names("dim") & sizes for e in shape):
            continue
        name = f"{n}_shape"
        while name in taken:
            name += "_"
        taken.add(name)
        axis = Axis("i0", E.const(len(shape)))
        body = shape[-1]
        for k in range(len(shape) - 2, -1, -1):
            body = E.select(E.compare("eq", axis.index, E.const(k)), shape[k], body)
        added.append(Definition(name, I64, (axis,), body))
        shapes[n] = name
    if not shapes:
        return p, {}
    results = (*p.results, *shapes.values())
    return replace(p, body=(*p.body, *added), results=results), shapes


def bounded(p: Program) -> Program:
    """See the module's text. The sizes of the inputs are fixed.

    Errors: P001 where the bound of a size is not fixed.
    """
    if not any(_has_size(s) for s in p.body):
        return p
    names = set(p.tensors) | {t.name for s in p.body for t in _inside(s)}
    work = _Bounding(dict(p.tensors), names)
    return replace(p, body=tuple(work.statements(p.body)))


def _has_size(s: Statement) -> bool:
    return isinstance(s, Size) or any(_has_size(x) for b in blocks_of(s) for x in b.body)


def _inside(s: Statement) -> list[Tensor]:
    return [t for b in blocks_of(s) for x in b.body for t in (*defined_by(x), *_inside(x))]


@dataclass
class _Bounding:
    """tensors: with their true shapes; taken: names in use."""

    tensors: dict[str, Tensor]
    taken: set[str]

    def __post_init__(self) -> None:
        self.bounds: dict[str, int] = {}  # size -> its bound
        self.sources: dict[Expr, Expr] = {}  # size -> the read of its scalar

    # ---- sizes
    def upper(self, e: Expr, where: object) -> Expr:
        """The largest value of a size. Errors: P001."""
        swap = {E.dim(n): E.index(n) for n in self.bounds}
        high = interval(E.substitute(e, swap), {n: (0, b) for n, b in self.bounds.items()})[1]
        if high is None:
            raise UserError(
                "P001", f"the size {e} has no bound", where=str(where),
                hint="define its dims with bounds, as in dim N <= 100 = count",
            )  # fmt: skip
        return E.const(max(high, 0))

    def value(self, e: Expr) -> Expr:
        """An expression with the scalars in place of the sizes."""
        return E.substitute(e, self.sources)

    def varies(self, e: Expr) -> bool:
        return any(n in self.bounds for n in e.names("dim"))

    def loose(self, name: str) -> bool:
        """Has the tensor a size that a value defines?"""
        t = self.tensors.get(name)
        return t is not None and any(self.varies(e) for e in t.shape)

    def tensor(self, t: Tensor) -> Tensor:
        return replace(t, shape=tuple(self.upper(e, t) for e in t.shape))

    def axis(self, a: Axis) -> Axis:
        return Axis(a.name, self.upper(a.extent, a))

    def fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    # ---- statements
    def statements(self, body: tuple[Statement, ...]) -> list[Statement]:
        out: list[Statement] = []
        for s in body:
            self.tensors.update((t.name, t) for t in defined_by(s))
            match s:
                case Size():
                    bound = E.int_value(self.upper(s.bound, s))
                    assert bound is not None  # `upper` gives constants
                    self.bounds[s.name] = bound
                    self.sources[E.dim(s.name)] = E.read(s.source, (), I64)
                case Definition():
                    out += self.definition(s)
                case Recurrence():
                    own = frozenset(d.name for d in s.definitions)
                    parts = [x for d in s.definitions for x in self.definition(d, own)]
                    out.append(Recurrence(self.axis(s.axis), tuple(parts)))
                case Scatter():
                    out.append(self.scatter(s))
                case Extern():
                    out += self.extern(s)
                case If():
                    results = tuple(map(self.tensor, s.results))
                    blocks = [self.block(b, results) for b in (s.then, s.orelse)]
                    out.append(If(results, s.condition, *blocks))
                case While():
                    out += self.loop(s)
        return out

    def definition(self, d: Definition, own: frozenset[str] = frozenset()) -> list[Definition]:
        """own: the group of a recurrence, whose reads name finished steps."""
        axes = tuple(map(self.axis, d.axes))
        reduction = d.reduction
        inner: tuple[Axis, ...] = ()
        guard: Expr | None = None
        if reduction is not None:
            inner = tuple(map(self.axis, reduction.axes))
            guard = reduction.guard
        dynamic = any(self.varies(a.extent) for a in d.all_axes) or any(
            self.loose(n) for n in d.read_names
        )
        every = [d.body] + ([guard] if guard is not None else [])
        if not dynamic and not any(self.varies(e) for e in every):
            return [d]
        ranges = _ranges(axes + inner)

        def go(e: Expr) -> Expr:
            return self.reads(self.value(e), ranges, own, dynamic)

        body = go(d.body)
        if reduction is not None:
            guard = None if guard is None else go(guard)
            for a in reduction.axes:
                if self.varies(a.extent):
                    inside = E.compare("lt", a.index, self.value(a.extent))
                    guard = inside if guard is None else E.logical("and", inside, guard)
            new = Reduction(reduction.monoid, inner, guard)
            if reduction.monoid in ("argmax", "argmin"):
                return self.position(d, axes, body, new)
            return [replace(d, axes=axes, body=body, reduction=new)]
        return [replace(d, axes=axes, body=body)]

    def position(
        self, d: Definition, axes: tuple[Axis, ...], body: Expr, r: Reduction
    ) -> list[Definition]:
        """argmax counts positions in the true shape: decode the bounded one, encode again."""
        assert d.reduction is not None  # the caller looked
        true = [self.value(a.extent) for a in d.reduction.axes]
        if not any(self.varies(a.extent) for a in d.reduction.axes[1:]):
            return [replace(d, axes=axes, body=body, reduction=r)]
        name = self.fresh(f"{d.name}_wide")
        rest: Expr = E.read(name, [a.index for a in axes], I64)
        places: list[Expr] = []
        for a in reversed(r.axes):
            places.append(E.mod(rest, a.extent))
            rest = E.floordiv(rest, a.extent)
        total: Expr = E.const(0)
        for place, size in zip(reversed(places), true, strict=True):
            total = total * size + place
        first = replace(d, name=name, axes=axes, body=body, reduction=r)
        return [first, Definition(d.name, I64, axes, total)]

    def reads(
        self, e: Expr, ranges: Mapping[str, tuple[int, int]], own: frozenset[str], protect: bool
    ) -> Expr:
        """Reads see the true sizes in their `else`, and none leaves the bounded tensor."""
        memo: dict[Expr, Expr] = {}
        for r in e.reads():  # operands first
            args = tuple(E.substitute(a, memo) for a in r.args)
            subs, orelse = (args[:-1], args[-1]) if r.attr[1] else (args, None)
            t = self.tensors.get(r.attr[0])
            new = E.read(r.attr[0], subs, r.dtype, orelse)
            if t is not None:
                if orelse is not None and t.name not in own:
                    for s, size in zip(subs, t.shape, strict=True):
                        if self.varies(size):
                            new = E.select(E.compare("lt", s, self.value(size)), new, orelse)
                elif orelse is None and protect and not self.fits(subs, t, ranges):
                    zero = E.const(False, BOOL) if r.dtype is BOOL else E.const(0, r.dtype)
                    new = E.read(r.attr[0], subs, r.dtype, zero)
            if new is not r:
                memo[r] = new
        return E.substitute(e, memo)

    def fits(
        self, subs: tuple[Expr, ...], t: Tensor, ranges: Mapping[str, tuple[int, int]]
    ) -> bool:
        for s, size in zip(subs, t.shape, strict=True):
            lo, hi = interval(s, ranges)
            most = E.int_value(self.upper(size, t))
            if lo is None or hi is None or most is None or lo < 0 or hi >= most:
                return False
        return True

    def scatter(self, s: Scatter) -> Scatter:
        axes, source = tuple(map(self.axis, s.axes)), tuple(map(self.axis, s.source))
        ranges, outer = _ranges(source), _ranges(axes)
        subscripts = [self.reads(self.value(e), ranges, frozenset(), True) for e in s.subscripts]
        for a in s.source:
            if self.varies(a.extent) and subscripts:
                inside = E.compare("lt", a.index, self.value(a.extent))
                subscripts[0] = E.select(inside, subscripts[0], E.const(-1))
        return replace(
            s,
            axes=axes,
            source=source,
            subscripts=tuple(subscripts),
            body=self.reads(self.value(s.body), ranges, frozenset(), True),
            base=self.reads(self.value(s.base), outer, frozenset(), True),
        )

    def extern(self, s: Extern) -> list[Statement]:
        """The call; where it reads tensors of loose sizes, one that cuts them to the true ones."""
        results = tuple(map(self.tensor, s.results))
        if not any(self.loose(n) for n in s.args):
            return [replace(s, results=results)]
        sizes: dict[Expr, Definition] = {}
        shapes: list[int] = []
        for t in (self.tensors[n] for n in s.args):
            shapes.append(len(t.shape))
            for e in t.shape:
                fixed = E.int_value(e)
                if fixed is None:
                    if e not in sizes:
                        name = self.fresh(f"{t.name}_size")
                        sizes[e] = Definition(name, I64, (), self.value(e))
                    fixed = -1 - list(sizes).index(e)
                shapes.append(fixed)
        wanted = [n for t in results for n in (len(t.shape), *map(int_extent, t.shape))]
        attributes: tuple[tuple[str, Attribute], ...] = (
            ("function", s.function), ("count", len(s.args)), ("shapes", tuple(shapes)),
            ("results", tuple(wanted)), *s.attributes,
        )  # fmt: skip
        args = (*s.args, *(d.name for d in sizes.values()))
        return [*sizes.values(), Extern(results, "trimmed", args, attributes)]

    # ---- blocks
    def block(self, b: Block, wanted: tuple[Tensor, ...]) -> Block:
        """The block, handing out tensors of exactly the wanted shapes."""
        body = self.statements(b.body)
        results = []
        for name, t in zip(b.results, wanted, strict=False):
            fitted = self.fitted(name, t)
            if fitted is not None:
                body.append(fitted)
                name = fitted.name
            results.append(name)
        return Block(tuple(body), (*results, *b.results[len(wanted) :]))

    def fitted(self, name: str, t: Tensor) -> Definition | None:
        """A copy of a tensor in a shape with other bounds; None where they are equal."""
        have = self.tensor(self.tensors[name])
        if have.shape == t.shape:
            return None
        axes = tuple(Axis(f"i{k}", e) for k, e in enumerate(t.shape))
        zero = E.const(False, BOOL) if t.dtype is BOOL else E.const(0, t.dtype)
        read = E.read(name, [a.index for a in axes], t.dtype, zero)
        return Definition(self.fresh(f"{name}_fit"), t.dtype, axes, read)

    def loop(self, s: While) -> list[Statement]:
        before: list[Statement] = []
        carries = []
        for c in s.carries:
            self.tensors[c.tensor.name] = c.tensor
            t = self.tensor(c.tensor)
            fitted = self.fitted(c.initial, t)
            if fitted is not None:
                before.append(fitted)
            carries.append(Carry(t, c.initial if fitted is None else fitted.name))
        results = tuple(map(self.tensor, s.results))
        n = len(carries)
        rows = tuple(replace(t, shape=t.shape[1:]) for t in results[n:])
        axis = self.axis(s.axis)
        condition, proceed, block = s.condition, s.proceed, s.block
        more: list[Statement] = []
        if self.varies(s.axis.extent):
            limit = self.value(s.axis.extent)
            step = E.read(s.axis.name, (), I64)
            body = self.block(block, (*(c.tensor for c in carries), *rows))
            inside = E.compare("lt", step + 1, limit)
            if proceed or condition:
                inside = E.logical("and", inside, E.read(proceed or condition, (), BOOL))
            proceed = self.fresh(f"{s.axis.name}_more")
            last = Definition(proceed, BOOL, (), inside)
            start = E.compare("lt", E.const(0), limit)
            if condition:
                start = E.logical("and", start, E.read(condition, (), BOOL))
            condition = self.fresh(f"{s.axis.name}_any")
            more.append(Definition(condition, BOOL, (), start))
            block = replace(body, body=(*body.body, last))
        else:
            block = self.block(block, (*(c.tensor for c in carries), *rows))
        loop = While(results, axis, condition, tuple(carries), block, proceed)
        return [*before, *more, loop]


def _ranges(axes: tuple[Axis, ...]) -> dict[str, tuple[int, int]]:
    return {a.name: (0, max(0, (E.int_value(a.extent) or 1) - 1)) for a in axes}
