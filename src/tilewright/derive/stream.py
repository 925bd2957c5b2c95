"""Streaming: reductions over one axis that depend on each other, computed block by block.

In: definitions over row axes R and an axis j. Out: `Streamed`, definitions that say the same and
whose reductions over j can be folded block by block; for a kernel made of them, `StreamPlan`.
Invariants: the rewritten definitions are equal to the given ones over the reals, and where a row
has no finite score too (NaN, or what the definitions ask for); nothing here knows an operator.

The rule is a homomorphism. With m = max_j x and z = f(m), every sum of the form

    a = sum_j exp(x_j - z) * w_j

obeys, when m grows from m' to m,  a(m) = a(m') * exp(f(m') - f(m)).  So a block of j is absorbed
by one multiplication of what was summed before, and no x_j is needed again. Factors that do not
depend on j leave the sum first: sum_j (e_j / l) * w_j = (sum_j e_j * w_j) / l. While m is still the
identity of max, nothing but zeros has been summed, so the factor is 0 there; z is 0 where m is
-inf, so that a block without a finite score makes no NaN.

A contribution whose score is `where(c, x, -inf)` adds nothing where c is false. Where c bounds j by
the row, the blocks outside are never visited (so an infinity among the w_j of such a contribution
does not turn into NaN, as it would if it were multiplied by 0).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence, Set
from dataclasses import dataclass, replace
from math import inf, prod

from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.kernel import Kernel, int_extent
from tilewright.ir.program import Axis, Definition, Reduction
from tilewright.ir.ranges import simplify

__all__ = ["StreamPlan", "StreamStage", "Streamed", "find_stream", "scaled_terms", "stream_plan"]

_DTYPES = ("f32", "f64")
_REUSE = 4  # a turned copy pays where each of its elements is read at least so many times


@dataclass(frozen=True)
class StreamStage:
    """Definitions that are computed together; `anchor` names the reduction among them."""

    anchor: str
    members: tuple[Definition, ...]


@dataclass(frozen=True)
class Streamed:
    """What takes the place of the definitions `replaced`: stages in order, the axis that is cut
    into blocks, and the axes that all stages share. `copies` are computed before, each stored in
    the order of its axes.
    """

    axis: str
    shared: tuple[str, ...]
    stages: tuple[StreamStage, ...]
    replaced: frozenset[str]
    copies: tuple[Definition, ...] = ()


@dataclass(frozen=True)
class _Member:
    """A definition seen from the last one: its body over that one's axes."""

    name: str
    kind: str  # score: over j, knows no fold; soft: over j, reads folds; fold: over j; row
    read: Expr
    body: Expr
    reduction: Reduction | None


class _Failure(Exception):
    """The definitions do not stream; the message says why."""


def find_stream(
    name: str,
    definitions: Mapping[str, Definition],
    readers: Callable[[str], Sequence[str]],
    is_needed: Callable[[str], bool],
    taken: frozenset[str],
) -> Streamed | None:
    """The stream that ends in the sum `name`, or None.

    readers: names of the definitions that read a tensor. is_needed: is a tensor a result, or read
    by what is no definition? taken: names that are in use.
    """
    outside: set[str] = set()
    for _ in range(8):
        try:
            return _Finder(name, definitions, outside, taken).find(readers, is_needed, outside)
        except _Failure:
            return None
        except _Outside:
            continue
    return None


def scaled_terms(d: Definition, inner: Definition, taken: Set[str]) -> list[Definition]:
    """`d`, a product or quotient of the sum `inner` and a factor, as sums whose terms have the
    factor: in their first part, and in their second. Nothing where `d` is something else.

    taken: names that are in use.
    """
    reduction = inner.reduction
    if d.reduction is not None or d.scan is not None or d.body.op not in ("mul", "div"):
        return []
    if reduction is None or reduction.monoid != "sum" or inner.body.op != "mul":
        return []
    total, factor = d.body.args
    if d.body.op == "mul" and total.attr != (inner.name, False):
        total, factor = factor, total
    if total.op != "read" or total.attr != (inner.name, False) or d.dtype is not inner.dtype:
        return []
    if any(r.attr[0] == inner.name for r in factor.reads()):
        return []
    own = {a.name: int_extent(a.extent) for a in d.axes}
    swap: dict[Expr, Expr] = {}
    for s, a in zip(total.args, inner.axes, strict=True):
        n = int_extent(a.extent)
        if n != 1 and (s.op != "index" or own.get(s.attr) != n):
            return []
        if s.op == "index":
            own.pop(s.attr, None)
        swap[a.index] = s
    if any(n != 1 for n in own.values()):
        return []
    axes = []
    for a in reduction.axes:
        fresh = a.name
        while fresh in taken or any(x.name == fresh for x in d.axes):
            fresh += "_"
        axes.append(replace(a, name=fresh))
        swap[a.index] = axes[-1].index
    guard = None if reduction.guard is None else E.substitute(reduction.guard, swap)
    over = Reduction("sum", tuple(axes), guard)
    first, second = (E.substitute(x, swap) for x in inner.body.args)
    op = d.body.op
    return [
        Definition(d.name, d.dtype, d.axes, E.mul(*parts), over)
        for parts in (
            (E.binary(op, first, factor), second),
            (first, E.binary(op, second, factor)),
        )
    ]


class _Outside(Exception):
    """A score turned out to be needed elsewhere: it is computed before."""


def _ones(axes: Sequence[Axis]) -> dict[Expr, Expr]:
    return {a.index: E.const(0) for a in axes if int_extent(a.extent) == 1}


def _subscripts(r: Expr) -> tuple[Expr, ...]:
    return r.args[:-1] if r.attr[1] else r.args


class _Finder:
    def __init__(
        self,
        name: str,
        definitions: Mapping[str, Definition],
        outside: set[str],
        taken: frozenset[str],
    ) -> None:
        self.name, self.definitions, self.outside = name, definitions, outside
        self.taken = set(taken)
        self.last = d = definitions[name]
        r = d.reduction
        if r is None or r.monoid != "sum" or d.dtype.name not in _DTYPES:
            raise _Failure("no plain sum")
        axes = [a for a in r.axes if int_extent(a.extent) != 1]
        if len(axes) != 1 or int_extent(axes[0].extent) < 2 or d.scan is not None:
            raise _Failure("not one axis")
        self.j = axes[0].name
        self.extents = {a.name: int_extent(a.extent) for a in d.all_axes}
        if 0 in self.extents.values():
            raise _Failure("nothing to compute")
        self.members: dict[str, _Member] = {}
        self.copies: dict[Expr, Definition] = {}
        self.body = E.substitute(d.body, _ones(d.all_axes))
        # What a guard omits is a score of -inf to the maximum and to what follows from it.
        self.guard = None if r.guard is None else E.substitute(r.guard, _ones(d.all_axes))
        if self.guard is not None:
            # Every row must have some: a sum of none is 0, and 0 / 0 is not.
            first = E.substitute(self.guard, {E.index(self.j): E.const(0)})
            ranges = {a: (0, n - 1) for a, n in self.extents.items()}
            kept = simplify(first, ranges)
            if self.guard.reads() or kept.op != "const" or not kept.attr:
                raise _Failure("a row may have no contribution")

    # -- which definitions take part
    def find(
        self,
        readers: Callable[[str], Sequence[str]],
        is_needed: Callable[[str], bool],
        outside: set[str],
    ) -> Streamed:
        if self.body.op != "mul":
            raise _Failure("no product")
        for side in self.body.args:
            names = {x for r in side.reads() for s in r.args for x in s.names("index")}
            self.rows = tuple(a for a in self.extents if a in names and a != self.j)
            self.members = {}
            if self.rows and self.j in names and all(n in self.extents for n in names):
                kinds = [self.visit(r) for r in side.reads()]
                if "soft" in kinds or "fold" in kinds or "row" in kinds:
                    break
        else:
            raise _Failure("no factor depends on a reduction over the axis")
        known = {*self.members, self.name}
        for m in self.members.values():
            if is_needed(m.name) or not set(readers(m.name)) <= known:
                if m.kind == "score":
                    outside.add(m.name)
                    raise _Outside
                raise _Failure(f"{m.name} is needed elsewhere")
        return self.build()

    def visit(self, r: Expr) -> str:
        """What kind of member a read names; "out" where it names none."""
        name = r.attr[0]
        d = self.definitions.get(name)
        if d is None or r.attr[1] or d.scan is not None or name in self.outside:
            return "out"
        known = self.members.get(name)
        if known is not None:
            if known.read is not r:
                raise _Failure(f"{name} is read in two ways")
            return known.kind
        swap: dict[Expr, Expr] = {}
        names: list[str] = []
        for s, a in zip(r.args, d.axes, strict=True):
            n = int_extent(a.extent)
            if n == 1:
                swap[a.index] = E.const(0)
            elif s.op == "index" and self.extents.get(s.attr) == n and s.attr not in names:
                swap[a.index] = s
                names.append(s.attr)
            else:
                return "out"
        rows = set(self.rows)
        reduction = d.reduction
        if set(names) == rows | {self.j}:
            if reduction is not None:
                fresh = {a.name: self.fresh(f"{name}_{a.name}") for a in reduction.axes}
                swap.update((E.index(a), E.index(b)) for a, b in fresh.items())
                swap.update(_ones(reduction.axes))
                axes = tuple(replace(a, name=fresh[a.name]) for a in reduction.axes)
                guard = None if reduction.guard is None else E.substitute(reduction.guard, swap)
                reduction = Reduction(reduction.monoid, axes, guard)
        elif set(names) == rows:
            if reduction is not None:
                axes = tuple(a for a in reduction.axes if int_extent(a.extent) != 1)
                if (
                    len(axes) != 1
                    or int_extent(axes[0].extent) != self.extents[self.j]
                    or reduction.monoid not in ("sum", "max")
                ):
                    return "out"
                swap.update(_ones(reduction.axes))
                swap[axes[0].index] = E.index(self.j)
                guard = None if reduction.guard is None else E.substitute(reduction.guard, swap)
                if guard is not self.guard:
                    return "out"
                reduction = Reduction(reduction.monoid, (replace(axes[0], name=self.j),))
        else:
            return "out"
        body = E.substitute(d.body, swap)
        over_j = len(names) > len(rows)
        if d.dtype.name not in _DTYPES:
            return "out"
        before = dict(self.members)
        kinds = {self.visit(x) for x in body.reads()}
        if over_j:
            soft = kinds & {"soft", "fold", "row"}
            if soft and reduction is not None:
                raise _Failure(f"{name} reduces what depends on a fold")
            kind = "soft" if soft else "score"
        elif reduction is not None:
            kind = "fold" if kinds & {"score", "soft"} else "out"
        else:
            kind = "row" if kinds & {"fold", "row"} else "out"
        if kind == "out":
            self.members = before
            return kind
        self.members[name] = _Member(name, kind, r, body, reduction)
        return kind

    def fresh(self, name: str) -> str:
        while name in self.taken:
            name += "_"
        self.taken.add(name)
        return name

    # -- what each sum is a product of
    def inline(self, e: Expr) -> Expr:
        """`e` over scores, folds and what comes from outside."""
        swap = {
            r: self.inline(m.body)
            for r in e.reads()
            if (m := self.members.get(r.attr[0])) is not None and m.kind in ("soft", "row")
        }
        return E.substitute(e, swap)

    def pull(self, e: Expr) -> tuple[list[Expr], Callable[[Expr], Expr]]:
        """Factors that depend on j, and what is applied to their sum."""
        if self.j not in e.indices():
            raise _Failure("a sum of equal terms")
        if e.op == "mul":
            a, b = e.args
            if self.j not in a.indices():
                inner, wrap = self.pull(b)
                return inner, lambda x: E.mul(a, wrap(x))
            if self.j not in b.indices():
                inner, wrap = self.pull(a)
                return inner, lambda x: E.mul(wrap(x), b)
            left, outer = self.pull(a)
            right, second = self.pull(b)
            return left + right, lambda x: outer(second(x))
        if e.op == "div" and self.j not in e.args[1].indices():
            inner, wrap = self.pull(e.args[0])
            return inner, lambda x: E.binary("div", wrap(x), e.args[1])
        if e.op == "neg":
            inner, wrap = self.pull(e.args[0])
            return inner, lambda x: E.neg(wrap(x))
        if e.op == "select" and self.j not in e.args[0].indices() and _is_const(e.args[1], 0):
            inner, wrap = self.pull(e.args[2])
            return inner, lambda x: E.select(e.args[0], e.args[1], wrap(x))
        return [e], lambda x: x

    def reads_folds(self, e: Expr) -> bool:
        return any(
            (m := self.members.get(r.attr[0])) is not None and m.kind == "fold" for r in e.reads()
        )

    def split(self, body: Expr) -> tuple[Expr, list[Expr], Callable[[Expr], Expr]]:
        """The exponential that depends on a fold, the other factors, what is applied outside."""
        factors, wrap = self.pull(self.inline(body))
        soft = [f for f in factors if self.reads_folds(f)]
        if len(soft) != 1 or soft[0].op != "exp" or soft[0].args[0].op != "sub":
            raise _Failure("not one exponential of a difference")
        x, z = soft[0].args[0].args
        if self.reads_folds(x) or self.j in z.indices() or self.j not in x.indices():
            raise _Failure("the difference is not of a score and a fold")
        return soft[0], [f for f in factors if f is not soft[0]], wrap

    # -- the definitions that take the place of the members
    def build(self) -> Streamed:
        scores = [m for m in self.members.values() if m.kind == "score"]
        folds = [m for m in self.members.values() if m.kind == "fold"]
        tops = [m for m in folds if m.reduction is not None and m.reduction.monoid == "max"]
        sums = [m for m in folds if m not in tops]
        if len(tops) != 1 or not any(m.reduction is not None for m in scores):
            raise _Failure("not one maximum over computed scores")
        top = tops[0]
        if self.reads_folds(self.inline(top.body)):
            raise _Failure("the maximum depends on a fold")
        exponential, others, wrap = self.split(self.body)
        pieces = {m.name: self.split(m.body) for m in sums}
        if any(p[0] is not exponential for p in pieces.values()):
            raise _Failure("sums with different exponentials")
        x, z = exponential.args[0].args
        if self.guard is not None and not self.guard.indices() <= {*self.rows, self.j}:
            raise _Failure("the guard knows other axes")
        raw = z is top.read
        if not raw and not _is_safe(z, top.read):
            raise _Failure("the shift is not the maximum")
        return self.stages(scores, top, sums, x, z, raw, others, wrap, pieces)

    def stages(
        self,
        scores: list[_Member],
        top: _Member,
        sums: list[_Member],
        x: Expr,
        z: Expr,
        raw: bool,
        others: list[Expr],
        wrap: Callable[[Expr], Expr],
        pieces: dict[str, tuple[Expr, list[Expr], Callable[[Expr], Expr]]],
    ) -> Streamed:
        lane = self._lane(scores, others)
        rows = [a for a in self.rows if a != lane] + [a for a in self.rows if a == lane]
        ahead = [a for a in rows if a != lane]
        tail = [lane] if lane else []
        dtype = self.last.dtype
        order = {n: k for k, n in enumerate(self.definitions)}
        out: list[StreamStage] = []
        swap: dict[Expr, Expr] = {}

        def define(
            name: str, names: list[str], body: Expr, reduction: Reduction | None = None
        ) -> Definition:
            axes = tuple(Axis(a, E.const(self.extents[a])) for a in names)
            return Definition(name, body.dtype, axes, E.substitute(body, swap), reduction)

        def made(name: str, names: list[str], old: Expr | None = None) -> Expr:
            new = E.read(name, [E.index(a) for a in names], dtype if old is None else old.dtype)
            if old is not None:
                swap[old] = new
            return new

        block = [*ahead, self.j, *tail]
        members: list[Definition] = []
        anchor = ""
        for m in sorted(scores, key=lambda m: order[m.name]):
            body = m.body
            if m.reduction is not None:
                if anchor:
                    out.append(StreamStage(anchor, tuple(members)))
                    members = []
                anchor = m.name
                body, copies = self._staged(body, lane, m.reduction)
                out += copies
            else:
                body = self._turned(body, lane)
            anchor = anchor or m.name
            members.append(define(m.name, block, body, m.reduction))
            made(m.name, block, m.read)
        peak = top.body
        if peak is x and x.op != "read":  # computed once, beside the sum that it comes from
            scored = self.fresh(f"{self.name}_score")
            members.append(define(scored, block, self._turned(x, lane)))
            peak = x = made(scored, block)
        if self.guard is not None:
            none = E.const(-inf, dtype)
            kept = self.fresh(f"{self.name}_kept")
            members.append(define(kept, block, E.select(self.guard, x, none)))
            peak = made(kept, block) if peak is x else E.select(self.guard, peak, none)
            x = made(kept, block)
        out.append(StreamStage(anchor, tuple(members)))
        # The largest score so far, and what is subtracted: 0 where there is none.
        shift = self.fresh(f"{self.name}_shift")
        best = define(top.name, rows, peak, top.reduction)
        made(top.name, rows, top.read)
        none = E.compare("eq", top.read, E.const(-inf, dtype))
        safe = E.select(none, E.const(0, dtype), top.read) if raw else z
        out.append(StreamStage(top.name, (best, define(shift, rows, safe))))
        zero = made(shift, rows)
        weight = self.fresh(f"{self.name}_weight")
        term = define(weight, block, E.unary("exp", E.sub(x, zero)))
        e = made(weight, block)
        over = Reduction("sum", (Axis(self.j, E.const(self.extents[self.j])),))
        after: list[Definition] = []
        one: Expr | None = None
        if raw:  # 1, but NaN where every score is -inf, as in the definitions
            again = self.fresh(f"{self.name}_again")
            after.append(define(again, rows, E.unary("exp", E.sub(zero, top.read))))
            one = made(again, rows)
        leading: tuple[Definition, ...] = (term,)
        finished: dict[Expr, Expr] = {}
        for m in sorted(sums, key=lambda m: order[m.name]):
            _, more, apply = pieces[m.name]
            part = self.fresh(f"{self.name}_{m.name}")
            out.append(
                StreamStage(part, (*leading, define(part, rows, _product([e, *more]), over)))
            )
            leading = ()
            value = made(part, rows)
            after.append(define(m.name, rows, apply(value if one is None else E.mul(value, one))))
            made(m.name, rows, m.read)
            finished[m.read] = swap[m.read]
        if leading:
            out.append(StreamStage(weight, leading))
        names = [a.name for a in self.last.axes if a.name not in rows]
        names = [a for a in names if self.extents[a] != 1]
        total = self.fresh(f"{self.name}_sum")
        full = [*ahead, *names, *tail]
        over = replace(over, guard=self.guard)
        out.append(StreamStage(total, (define(total, full, _product([e, *others]), over),)))
        value = made(total, full)
        result = wrap(value)
        if one is not None and not any(r in finished for r in result.reads()):
            result = wrap(E.mul(value, one))
        if after:
            out.append(StreamStage(after[0].name, tuple(after)))
        last = replace(self.last, body=E.substitute(result, swap), reduction=None)
        out.append(StreamStage(self.name, (last,)))
        replaced = frozenset({*self.members, self.name})
        turned = tuple(self.copies.values())
        return Streamed(self.j, tuple(rows), tuple(out), replaced, turned)

    def _lane(self, scores: list[_Member], others: list[Expr]) -> str:
        """The row axis along which what is read along j is reused; "" where there is none."""
        used: set[str] = set()
        for e in (*[m.body for m in scores if m.reduction is not None], *others):
            for r in e.reads():
                names = {x for s in r.args for x in s.names("index")}
                if self.j in names:
                    used |= names
        free = [a for a in self.rows if a not in used]
        return max(free, key=lambda a: (self.extents[a], self.rows.index(a)), default="")

    def _staged(
        self, body: Expr, lane: str, reduction: Reduction
    ) -> tuple[Expr, list[StreamStage]]:
        """What a score reads that does not change along j, copied with the lane axis last."""
        inner = {a.name: a for a in reduction.axes}
        copies: list[StreamStage] = []
        swap: dict[Expr, Expr] = {}
        for r in body.reads():
            names = [x for s in r.args for x in s.names("index")]
            if not lane or lane not in names or self.j in names or r.attr[1]:
                continue
            if r.attr[0] in self.members or not set(names) <= {*self.rows, *inner}:
                continue
            name = self.fresh(f"{self.name}_{r.attr[0]}")
            mine = [a for a in self.rows if a in names and a != lane]
            fresh = {a: self.fresh(f"{a}_copy") for a in inner if a in names}
            axes = [Axis(a, E.const(self.extents[a])) for a in mine]
            axes += [Axis(b, inner[a].extent) for a, b in fresh.items()]
            axes.append(Axis(lane, E.const(self.extents[lane])))
            moved = E.substitute(r, {E.index(a): E.index(b) for a, b in fresh.items()})
            copies.append(StreamStage(name, (Definition(name, r.dtype, tuple(axes), moved),)))
            here = [E.index(a) for a in (*mine, *fresh, lane)]
            swap[r] = E.read(name, here, r.dtype)
        return E.substitute(body, swap), copies


    def _turned(self, body: Expr, lane: str) -> Expr:
        """The body of a score that reads copies with the lane axis last of what several rows share
        and what lies along j: a block of it would be turned in registers for each of them."""
        swap: dict[Expr, Expr] = {}
        for r in body.reads():
            names = {x for s in r.args for x in s.names("index")}
            mine = [a for a in self.rows if a in names and a != lane]
            if not lane or r.attr[0] in self.members or r.attr[1] or not {lane, self.j} <= names:
                continue
            if not names <= {*self.rows, self.j} or r.args[-1] is not E.index(self.j):
                continue
            if prod(self.extents[a] for a in self.rows if a not in names) < _REUSE:
                continue
            d = self.copies.get(r)
            if d is None:
                axes = tuple(Axis(a, E.const(self.extents[a])) for a in (*mine, self.j, lane))
                d = Definition(self.fresh(f"{self.name}_{r.attr[0]}"), r.dtype, axes, r)
                self.copies[r] = d
            swap[r] = E.read(d.name, [a.index for a in d.axes], r.dtype)
        return E.substitute(body, swap)


def _is_const(e: Expr, value: float) -> bool:
    return e.op == "const" and e.attr == value


def _is_safe(z: Expr, top: Expr) -> bool:
    """Is z the maximum, but 0 where that is -inf?"""
    if z.op != "select" or z.args[2] is not top or not _is_const(z.args[1], 0):
        return False
    c = z.args[0]
    if c.op == "isinf":
        return c.args[0] is top
    return c.op == "eq" and top in c.args and any(_is_const(x, -inf) for x in c.args)


def _product(factors: Sequence[Expr]) -> Expr:
    out = factors[0]
    for f in factors[1:]:
        out = E.mul(out, f)
    return out


# ---- kernels -------------------------------------------------------------------------------------


@dataclass(frozen=True)
class StreamPlan:
    """How the stages of a streaming kernel run.

    before, within, after: stage numbers: once per block of rows, once per block of the axis, once
    at the end. folds: stages whose anchor is folded block by block. corrected: those whose sums are
    multiplied by exp(z before - z now) first, with the name of z. states: stage -> (m, z), z a
    function of m. conditions: a contribution counts only where all of them hold.
    """

    axis: str
    before: tuple[int, ...]
    within: tuple[int, ...]
    after: tuple[int, ...]
    folds: tuple[int, ...]
    corrected: Mapping[int, str]
    states: Mapping[int, tuple[str, str]]
    conditions: tuple[Expr, ...]


def stream_plan(kernel: Kernel) -> StreamPlan:
    """The plan of a kernel that streams along `kernel.stream`."""
    j = kernel.stream
    folds: list[int] = []
    touching: list[int] = []
    states: dict[int, tuple[str, str]] = {}
    for k, stage in enumerate(kernel.stages):
        d = kernel.definitions[stage.anchor]
        if d.reduction is not None and j in {a.name for a in d.reduction.axes}:
            folds.append(k)
            touching.append(k)
            at = stage.members.index(stage.anchor)
            if stage.members[at + 1 :]:
                states[k] = (stage.anchor, stage.members[at + 1])
        elif j in {a.name for a in d.axes}:
            touching.append(k)
    weights: dict[str, str] = {}  # exp(x - z) by name -> z
    scores: list[Expr] = []
    for d in kernel.definitions.values():
        if d.body.op == "exp" and d.body.args[0].op == "sub" and j in {a.name for a in d.axes}:
            x, z = d.body.args[0].args
            if z.op == "read" and z.attr[0] in {s for _, s in states.values()}:
                weights[d.name] = z.attr[0]
                scores.append(x)
    corrected: dict[int, str] = {}
    for k in folds:
        d = kernel.definitions[kernel.stages[k].anchor]
        found = [weights[r.attr[0]] for r in d.body.reads() if r.attr[0] in weights]
        if found:
            corrected[k] = found[0]
    tops = [kernel.definitions[m].body for m, _ in states.values()]
    bounds = [set(_conditions(kernel, e)) for e in (*scores, *tops)]
    conditions = set.intersection(*bounds) if bounds else set()
    first, last = touching[0], touching[-1]
    return StreamPlan(
        j,
        tuple(range(first)),
        tuple(range(first, last + 1)),
        tuple(range(last + 1, len(kernel.stages))),
        tuple(folds),
        corrected,
        states,
        tuple(sorted(conditions, key=str)),
    )


def _conditions(kernel: Kernel, e: Expr) -> list[Expr]:
    """Conditions without which a score is -inf."""
    if e.op == "read" and not e.attr[1]:
        d = kernel.definitions.get(e.attr[0])
        if (
            d is not None
            and d.reduction is None
            and all(s is a.index for s, a in zip(e.args, d.axes, strict=True))
        ):
            return _conditions(kernel, d.body)
    if e.op == "select" and _is_const(e.args[2], -inf):
        return [*E.conjuncts(e.args[0]), *_conditions(kernel, e.args[1])]
    if e.op == "add":
        return [c for a in e.args for c in _conditions(kernel, a)]
    if e.op in ("mul", "div"):
        scaled, by = e.args if e.args[1].op == "const" or e.op == "div" else e.args[::-1]
        if by.op == "const" and by.attr > 0:
            return _conditions(kernel, scaled)
    return []
