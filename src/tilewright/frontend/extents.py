"""Extents of the indexes of index notation, inferred from how they are used.

In: variables (one per index and per axis of a tensor), the reads that tie them. Out: an expression
over named sizes for each variable. Invariant: a variable with an explicit bound or a declared size
keeps it; whatever else is equal through a plain read gets one size.

A read `A[i, 2*h + r]` without `else` says that `i` runs over the whole first axis, and that `h`
runs as far as the window stays inside the second one.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

from tilewright.errors import UserError
from tilewright.ir import expr as E
from tilewright.ir.expr import Expr
from tilewright.ir.program import (
    Axis,
    Definition,
    Recurrence,
    Reduction,
    Scatter,
    Statement,
    map_statement,
)
from tilewright.ir.text import Token

__all__ = ["Extents", "Use", "finish"]


@dataclass
class Use:
    """Axis `axis` of `tensor` is read at `subscript`; `padded`: the read has an `else`."""

    tensor: str
    axis: int
    subscript: Expr
    subscripts: tuple[Expr, ...]
    token: Token
    padded: bool = False
    conditional: bool = False  # under a guard or a `where`: may be outside where it is not needed


@dataclass
class _Variable:
    label: str  # for messages and for naming a size
    is_index: bool
    value: Expr | None = None
    fixed: bool = False  # an explicit bound: a plain read does not make it equal to an axis
    parent: _Variable | None = None
    token: Token | None = None


class Extents:
    """Variables, made while parsing, and their solution."""

    def __init__(self, fail: Callable[..., UserError]) -> None:
        self.fail = fail
        self.variables: list[_Variable] = []
        self.indexes: dict[str, int] = {}  # unique index name -> variable
        self.axes: dict[str, list[int]] = {}  # tensor -> variables of its axes
        self.inputs: list[str] = []
        self.uses: list[Use] = []
        self._ties: list[tuple[_Variable, Expr, _Variable, Expr, Token]] = []

    def variable(self, label: str, is_index: bool, value: Expr | None, token: Token) -> int:
        self.variables.append(_Variable(label, is_index, value, value is not None, None, token))
        return len(self.variables) - 1

    def placeholder(self, number: int) -> Expr:
        """A size that stands for the variable until it is solved."""
        return E.dim(f"?{number}")

    def resolve(self, e: Expr) -> Expr:
        """`e` with every placeholder replaced by what it was solved to."""
        while waiting := [n for n in e.names("dim") if n.startswith("?")]:
            known = {E.dim(n): self._value(int(n[1:])) for n in sorted(waiting)}
            replaced = E.substitute(e, {k: v for k, v in known.items() if v is not None})
            if replaced is e:
                break
            e = replaced
        return e

    # ---- solving ----

    def solve(self, taken: set[str]) -> None:
        """Find every variable.

        Errors: F006 contradicting sizes; F011 an index without an extent.
        """
        for u in self.uses:
            self._tie(u)
        while True:
            while any([self._windows(u) for u in self.uses]):  # a list: every use is tried
                pass
            if not (self._exact_axis() or self._new_size(taken) or self._same_size()):
                break
        for number, v in enumerate(self.variables):
            if self._value(number) is None:
                raise self.fail(
                    f"nothing determines how far {v.label!r} runs",
                    v.token,
                    code="F011",
                    hint=f"give it a bound, as in {v.label}<N",
                )
        for u in self.uses:
            self._check(u)
        for a, ea, b, eb, token in self._ties:
            ea, eb = self.resolve(ea), self.resolve(eb)
            if ea is not eb:
                raise self.fail(
                    f"{a.label} is {ea} and {b.label} is {eb}, but they must be equal",
                    token,
                    code="F006",
                    hint="give both the same size, or the index a bound",
                )

    def _check(self, u: Use) -> None:
        """A read that is outside its tensor for every size is refused here."""
        form = None if u.conditional or u.padded else self._form(u.subscript)
        high = form and self._reach(form[0], None, True)
        if form is None or high is None:
            return
        size = self.resolve(self.placeholder(self.axes[u.tensor][u.axis]))
        beyond = E.int_value(self.resolve(high + form[1] + 1) - size)
        if beyond is not None and beyond > 0:
            raise self.fail(
                f"axis {u.axis} of {u.tensor!r} is read {beyond} past its end, {size}",
                u.token,
                code="F006",
                hint="give the index a smaller bound, as in i<N-1, or the read an `else`",
            )

    def _root(self, number: int) -> _Variable:
        v = self.variables[number]
        while v.parent is not None:
            v = v.parent
        return v

    def _value(self, number: int) -> Expr | None:
        return self._root(number).value

    def _known(self, e: Expr) -> bool:
        """Is everything in it solved?"""
        return not any(n.startswith("?") for n in self.resolve(e).names("dim"))

    def _tie(self, u: Use) -> None:
        """A plain read at a bare index makes the index run over the axis."""
        if u.padded or u.subscript.op != "index":
            return
        index = self.variables[self.indexes[u.subscript.attr]]
        if index.fixed:
            return
        self.unite(self.axes[u.tensor][u.axis], self.indexes[u.subscript.attr], u.token)

    def unite(self, first: int, second: int, token: Token) -> None:
        """Two variables are equal."""
        a, b = self._root(first), self._root(second)
        if a is b:
            return
        if a.value is not None and b.value is not None:
            self._ties.append((a, a.value, b, b.value, token))
        if a.value is None and b.value is not None:
            a, b = b, a
        b.parent = a  # the one with a value stays the root
        if a.value is None and b.is_index and not a.is_index:
            a.label, a.is_index = b.label, True

    def _form(self, e: Expr) -> tuple[dict[str, int], Expr] | None:
        """A subscript as multiples of indexes and the rest, which has no index in it."""
        slopes: dict[str, int] = {}
        rest = E.const(0)
        for atoms, c in E.polynomial(e).items():
            if len(atoms) == 1 and atoms[0].op == "index":
                slopes[atoms[0].attr] = c
            elif any(a.names("index") or a.reads() for a in atoms):
                return None
            else:
                rest = rest + E.from_polynomial({atoms: c})
        return slopes, rest

    def _reach(self, slopes: dict[str, int], skip: str | None, up: bool) -> Expr | None:
        """The largest (or smallest) value of the sum of multiples, without index `skip`."""
        total = E.const(0)
        for name, c in slopes.items():
            if name == skip:
                continue
            n = self._value(self.indexes[name])
            if n is None or not self._known(n):
                return None
            if (c > 0) == up:
                total = total + (n - 1) * c
        return total

    def _windows(self, u: Use) -> bool:
        """Solve the one unknown index of a window from the size of the axis."""
        if u.padded:
            return False
        size = self._value(self.axes[u.tensor][u.axis])
        if size is None or not self._known(size):
            return False
        divided = u.subscript.op == "floordiv" and u.subscript.args[0].op == "index"
        form = self._form(u.subscript.args[0] if divided else u.subscript)
        if form is None:
            return False
        slopes, rest = form
        unknown = [n for n in slopes if self._value(self.indexes[n]) is None]
        if len(unknown) != 1:
            return False
        name = unknown[0]
        if divided:
            extent = size * u.subscript.args[1]
        elif slopes[name] > 0:
            high = self._reach(slopes, name, True)
            if high is None:
                return False
            extent = E.floordiv(size - 1 - rest - high, E.const(slopes[name])) + 1
        else:
            low = self._reach(slopes, name, False)
            if low is None:
                return False
            extent = E.floordiv(rest + low, E.const(-slopes[name])) + 1
        self._root(self.indexes[name]).value = self.resolve(extent)
        return True

    def _exact_axis(self) -> bool:
        """An input axis that is read at known indexes only has the size that these need."""
        for name in self.inputs:
            for axis, number in enumerate(self.axes[name]):
                if self._value(number) is not None:
                    continue
                needs = [self._need(u) for u in self.uses if (u.tensor, u.axis) == (name, axis)]
                found = [n for n in needs if n is not None]
                if not found or len(found) < len(needs):
                    continue
                if all(n is found[0] for n in found):
                    self._root(number).value = found[0]
                    return True
                sizes = [E.int_value(n) for n in found]
                if None not in sizes:
                    self._root(number).value = E.const(max(s for s in sizes if s is not None))
                    return True
        return False

    def _need(self, u: Use) -> Expr | None:
        form = None if u.padded else self._form(u.subscript)
        if form is None:
            return None
        high = self._reach(form[0], None, True)
        return None if high is None else self.resolve(high + form[1] + 1)

    def _new_size(self, taken: set[str]) -> bool:
        """Name the size of the first input axis that has none."""
        for name in self.inputs:
            for axis, number in enumerate(self.axes[name]):
                v = self._root(number)
                if v.value is None:
                    wish = v.label.upper() if v.is_index else f"{name}_{axis}".upper()
                    base, k = wish, 1
                    while wish in taken:
                        k += 1
                        wish = f"{base}_{k}"
                    taken.add(wish)
                    v.value = E.dim(wish)
                    return True
        return False

    def _same_size(self) -> bool:
        """An index of padded reads alone, with step one, runs over the whole axis."""
        for u in self.uses:
            form = self._form(u.subscript)
            size = self._value(self.axes[u.tensor][u.axis])
            if not u.padded or form is None or size is None:
                continue
            unknown = [n for n in form[0] if self._value(self.indexes[n]) is None]
            if len(unknown) == 1 and form[0][unknown[0]] == 1:
                self._root(self.indexes[unknown[0]]).value = size
                return True
        return False


def finish(s: Statement, resolve: Callable[[Expr], Expr], taken: set[str]) -> Statement:
    """The statement with extents solved and indexes under readable names."""
    match s:
        case Recurrence():
            axis = _pretty({s.axis.name}, taken)
            group = tuple(_rename(d, resolve, taken, axis) for d in s.definitions)
            return Recurrence(Axis(axis[s.axis.name], resolve(s.axis.extent)), group)
        case Definition():
            return _rename(s, resolve, taken, {})
        case Scatter():
            left = _pretty({a.name for a in s.axes}, taken)
            source = _pretty({a.name for a in s.source}, taken)
            mapping = {E.index(k): E.index(v) for k, v in (left | source).items()}

            def go(e: Expr) -> Expr:
                return resolve(E.substitute(e, mapping))

            done = map_statement(s, go)
            assert isinstance(done, Scatter)
            return replace(
                done,
                axes=tuple(Axis(left[a.name], a.extent) for a in done.axes),
                source=tuple(Axis(source[a.name], a.extent) for a in done.source),
            )
    return s


def _rename(
    d: Definition, resolve: Callable[[Expr], Expr], taken: set[str], fixed: Mapping[str, str]
) -> Definition:
    unique = {a.name for a in d.all_axes} - set(fixed)
    names = dict(fixed) | _pretty(unique, taken | set(fixed.values()))
    mapping = {E.index(k): E.index(v) for k, v in names.items()}

    def axes(xs: tuple[Axis, ...]) -> tuple[Axis, ...]:
        return tuple(Axis(names[a.name], resolve(a.extent)) for a in xs)

    def go(e: Expr) -> Expr:
        return resolve(E.substitute(e, mapping))

    r = d.reduction
    if r is not None:
        r = Reduction(r.monoid, axes(r.axes), None if r.guard is None else go(r.guard))
    scan = None if d.scan is None else (d.scan[0], names[d.scan[1]])
    return replace(d, axes=axes(d.axes), body=go(d.body), reduction=r, scan=scan)


def _pretty(unique: set[str], taken: set[str]) -> dict[str, str]:
    """`i#7` -> `i`, or another name where `i` is a tensor or a size."""
    out: dict[str, str] = {}
    for name in sorted(unique, key=lambda n: int(n.split("#")[1])):
        base = wish = name.split("#")[0]
        k = 1
        while wish in taken or wish in out.values():
            k += 1
            wish = f"{base}_{k}"
        out[name] = wish
    return out
