"""Subscript expressions, pointers, predicates and lane masks as LLVM values.

In: i64 and bool `Expr`s over loop variables and dims. Out: names of LLVM values. Invariant: every
term is computed in the outermost region where its variables live, so the innermost loop holds only
what changes there; no LLVM pass moves addresses.
"""

from __future__ import annotations

from collections.abc import Iterable

from tilewright.codegen.operations import Operations
from tilewright.codegen.ranges import Ranges
from tilewright.codegen.writer import Induction, Writer
from tilewright.errors import InternalError
from tilewright.ir.dtypes import I64, DType
from tilewright.ir.expr import BINARY, COMPARE, UNARY, Expr, Polynomial, polynomial

__all__ = ["Addresses", "Bounds", "Pointer"]

Pointer = tuple[str, int]  # LLVM pointer value, constant displacement in bytes
_ZEROS = 4096  # bytes of the constant that guarded loads fall back to
_OPERATIONS = BINARY | COMPARE | UNARY | {"select", "cast"}
_SCALED = {1: "i8", 2: "i16", 4: "i32", 8: "i64"}


class Addresses:
    """Values of expressions in the function that `writer` is writing."""

    def __init__(self, writer: Writer, operations: Operations) -> None:
        self.writer = writer
        self.operations = operations
        self.ranges = Ranges()
        self.variables: dict[
            str, tuple[str, int]
        ] = {}  # loop variable or dim -> value, region depth
        self.buffers: dict[str, tuple[str, DType]] = {}
        self.sizes: dict[str, Expr] = {}  # in elements, of buffers of which only a call knows it
        # Of a pointer that follows from another: that one, and the steps that lie between.
        self.origins: dict[str, tuple[str, ...]] = {}
        self._depths: dict[Expr, int] = {}
        self._steps: dict[
            int, tuple[str, str, int]
        ] = {}  # loop region depth -> variable, first value, step

    # ---- scopes ----------------------------------------------------------------------------------

    def bind(self, var: str, value: str, first: str, step: int) -> tuple[str, int] | None:
        """A loop variable lives in the innermost region from now on; returns what it hid."""
        hidden = self.variables.get(var)
        self.variables[var] = (value, self.writer.depth)
        self._steps[self.writer.depth] = (var, first, step)
        if hidden is not None:
            self._depths.clear()
        return hidden

    def unbind(self, var: str, hidden: tuple[str, int] | None) -> None:
        """Leave the loop of `var` (its region must still be open)."""
        del self._steps[self.writer.depth]
        del self.variables[var]
        if hidden is not None:
            self.variables[var] = hidden
        self._depths.clear()

    def depth(self, e: Expr) -> int:
        """The outermost region where `e` can be computed."""
        found = self._depths.get(e)
        if found is None:
            if e.op in ("index", "dim"):
                if e.attr not in self.variables:
                    raise InternalError(
                        "L001", f"{e.attr!r} is not a loop variable or dim here", where=str(e)
                    )
                found = self.variables[e.attr][1]
            elif e.op == "read":
                return self.writer.depth  # memory changes: computed where it stands
            else:
                found = 0
                for a in e.args:
                    if a.op != "const":
                        here = self.depth(a)
                        found = here if here > found else found
                if e.has_reads:
                    return found
            self._depths[e] = found
        return found

    # ---- values ----------------------------------------------------------------------------------

    def value(self, e: Expr) -> str:
        """The value of a scalar expression, computed as far out as possible."""
        op = e.op
        if op == "const":
            return str(e.attr) if e.dtype is I64 else self.operations.literal(e.attr, e.dtype)
        if op in ("index", "dim"):
            return self.variables[e.attr][0]
        found = self.writer.known(e)
        if found is not None:
            return found
        depth = self.depth(e)
        if op == "read":
            return self._read(e)
        if e.dtype is I64 and op in ("add", "mul"):
            out = self._sum(polynomial(e), 1)
        elif (
            e.dtype is I64
            and op in ("floordiv", "mod")
            and e.args[1].op == "const"
            and e.args[1].attr > 0
        ):
            out = self._divide(e, depth)
        else:
            args = [self.value(a) for a in e.args]
            source = e.args[1].dtype if op == "select" else e.args[0].dtype
            if op not in _OPERATIONS:
                raise InternalError("L001", f"no subscript operation {op!r}", where=str(e))
            with self.operations.at(depth):
                out = self.operations.apply(op, args, source, e.dtype, 0)
        if not e.has_reads:
            self.writer.remember(e, out, depth)
        return out

    def _read(self, e: Expr) -> str:
        tensor = e.attr[0]
        dtype = self.buffers[tensor][1]
        pointer, displacement = self.pointer(tensor, polynomial(e.args[0]))
        w = self.writer
        at = (
            w.once(f"getelementptr i8, ptr {pointer}, i64 {displacement}")
            if displacement
            else pointer
        )
        raw = w.op(f"load {self.operations.memory_type(dtype, 0)}, ptr {at}, align {dtype.bytes}")
        return self.operations.from_memory(raw, dtype, 0)

    def _divide(self, e: Expr, depth: int) -> str:
        a, c = self.value(e.args[0]), e.args[1].attr
        w = self.writer
        power = c & (c - 1) == 0
        if e.op == "mod":
            if power:
                return w.op_at(depth, f"and i64 {a}, {c - 1}")
            if self.ranges.nonnegative(e.args[0]):
                return w.op_at(depth, f"urem i64 {a}, {c}")
            r = w.op_at(depth, f"srem i64 {a}, {c}")
            sign = w.op_at(depth, f"ashr i64 {r}, 63")
            fix = w.op_at(depth, f"and i64 {sign}, {c}")
            return w.op_at(depth, f"add i64 {r}, {fix}")
        if power:
            return w.op_at(depth, f"ashr i64 {a}, {c.bit_length() - 1}")
        if self.ranges.nonnegative(e.args[0]):
            return w.op_at(depth, f"udiv i64 {a}, {c}")
        q = w.op_at(depth, f"sdiv i64 {a}, {c}")
        r = w.op_at(depth, f"srem i64 {a}, {c}")
        sign = w.op_at(depth, f"ashr i64 {r}, 63")
        return w.op_at(depth, f"add i64 {q}, {sign}")

    def _groups(self, p: Polynomial, scale: int) -> list[tuple[int, Polynomial]]:
        """Terms (times `scale`, the constant left out) by the region that their variables live in,
        outermost first.
        """
        groups: dict[int, Polynomial] = {}
        known = self._depths
        for atoms, c in p.items():
            if atoms:
                depth = 0
                for a in atoms:
                    here = known[a] if a in known else self.depth(a)
                    depth = here if here > depth else depth
                if depth in groups:
                    groups[depth][atoms] = c * scale
                else:
                    groups[depth] = {atoms: c * scale}
        return sorted(groups.items()) if len(groups) > 1 else list(groups.items())

    def _product(self, values: Iterable[tuple[int, str]], c: int) -> str:
        """Product of values by depth and a constant, partial products as far out as possible."""
        ordered = sorted(values)
        depth, out = ordered[0]
        for d, v in ordered[1:]:
            depth = d
            out = self.writer.op_at(d, f"mul i64 {out}, {v}")
        return out if c == 1 else self.writer.op_at(depth, f"mul i64 {out}, {c}")

    def _sum(self, p: Polynomial, scale: int) -> str:
        """The value of a polynomial times `scale`."""
        total, depth = "", 0
        for depth, group in self._groups(p, scale):
            total = self._terms(group, depth, total)
        constant = p.get((), 0) * scale
        if not total:
            return str(constant)
        return self.writer.op_at(depth, f"add i64 {total}, {constant}") if constant else total

    def _terms(self, group: Polynomial, depth: int, total: str = "") -> str:
        """`total` and the terms of a group of `_groups`, which are of the region of `depth`."""
        for atoms, c in group.items():
            if len(atoms) > 1:
                term = self._product([(self.depth(a), self.value(a)) for a in atoms], c)
            else:
                term = self.value(atoms[0])
                term = term if c == 1 else self.writer.op_at(depth, f"mul i64 {term}, {c}")
            total = self.writer.op_at(depth, f"add i64 {total}, {term}") if total else term
        return total

    # ---- pointers --------------------------------------------------------------------------------

    def pointer(self, buffer: str, offset: Polynomial) -> Pointer:
        """Pointer to element `offset` of `buffer`, its constant part kept apart as a displacement
        in bytes.
        """
        out, dtype = self.buffers[buffer]
        for depth, group in self._groups(offset, dtype.bytes):
            linear: Polynomial = {}
            step = self._steps.get(depth)
            if step is not None and self.writer.regions[depth].innermost:
                group, linear = self._split(group, step[0], depth)
            if group:
                offset_here = self._terms(group, depth)
                out = self.writer.op_at(depth, f"getelementptr i8, ptr {out}, i64 {offset_here}")
            if linear and step is not None:
                out = self._moving(out, linear, depth, step, bool(group), self._hidden(buffer))
        return out, offset.get((), 0) * dtype.bytes

    def _split(self, group: Polynomial, var: str, depth: int) -> tuple[Polynomial, Polynomial]:
        """`group` as rest + coefficient * var, where the coefficient is of outer regions."""
        rest: Polynomial = {}
        linear: Polynomial = {}
        for atoms, c in group.items():
            if len(atoms) == 1 and atoms[0].op == "index" and atoms[0].attr == var:
                linear[()] = c
                continue
            others = [a for a in atoms if not (a.op == "index" and a.attr == var)]
            if len(others) == len(atoms) - 1 and all(self.depth(a) < depth for a in others):
                linear[tuple(others)] = c
            else:
                rest[atoms] = c
        return rest, linear

    def _moving(
        self,
        base: str,
        coefficient: Polynomial,
        depth: int,
        step: tuple[str, str, int],
        local: bool,
        hidden: str = "",
    ) -> str:
        """`base + coefficient * variable` in an innermost loop.

        The CPU scales the variable, or a pointer moves along.

        local: `base` itself changes in the loop. hidden: a zero that LLVM cannot see; it keeps
        LLVM from replacing the moving pointer by one it knows plus a distance.
        """
        var, first, width = step
        constant = coefficient.get(()) if len(coefficient) == 1 else None
        w = self.writer
        region = w.regions[depth]
        if constant in _SCALED and not hidden:
            return w.op_at(
                depth,
                f"getelementptr {_SCALED[constant]}, ptr {base}, i64 {self.variables[var][0]}",
            )
        key = (base, frozenset(coefficient.items()))
        found = w.known(key)
        if found is not None:
            return found
        if local:
            scale = self._sum(coefficient, 1)
            offset = w.op_at(depth, f"mul i64 {self.variables[var][0]}, {scale}")
            return w.op_at(depth, f"getelementptr i8, ptr {base}, i64 {offset}")
        outer = depth - 1
        scale = self._sum(coefficient, 1) if constant is None else str(constant)
        start = "0" if first == "0" else w.op_at(outer, f"mul i64 {first}, {scale}")
        increment = str(constant * width) if constant is not None else (
            scale if width == 1 else w.op_at(outer, f"mul i64 {scale}, {width}")
        )  # fmt: skip
        if hidden:
            increment = w.op_at(outer, f"xor i64 {increment}, {hidden}")
        name = w.fresh()
        region.inductions.append(Induction(name, base, start, increment))
        w.remember(key, name, depth)
        return name

    def twin(self, buffer: str, copy: int) -> str:
        """Another name of a buffer, whose pointer no pass knows to be the same.

        The number of the last chunk is never negative: its high bits are zeros that LLVM cannot
        see.
        The twin must be addressed by one register: with two, the CPU splits a multiply-add with a
        memory operand into two operations, and nothing is won.
        """
        name = f"{buffer}'{copy}"
        if name not in self.buffers:
            pointer, dtype = self.buffers[buffer]
            w = self.writer
            number = w.op_at(0, f"ptrtoint ptr {pointer} to i64")
            same = w.op_at(0, f"xor i64 {number}, {self._hidden(name)}")
            self.buffers[name] = w.op_at(0, f"inttoptr i64 {same} to ptr"), dtype
        return name

    def _hidden(self, buffer: str) -> str:
        """A zero that LLVM cannot see, for the twin of a buffer; nothing for other buffers."""
        _, mark, copy = buffer.partition("'")
        return self.writer.op_at(0, f"lshr i64 %hi, {64 - int(copy)}") if mark else ""

    def guarded(
        self, buffer: str, offset: Polynomial, predicate: str, depth: int, size: int
    ) -> Pointer | None:
        """A pointer chosen outside the innermost loop: to zeros where the predicate is false.

        depth: region of the predicate; size: bytes read behind the pointer. None where the offset
        does not move steadily through a small range.
        """
        w = self.writer
        groups = self._groups(offset, self.buffers[buffer][1].bytes)
        if not groups:
            return None
        inner, last = groups[-1]
        step = self._steps.get(inner)
        if step is None or not w.regions[inner].innermost or depth >= inner:
            return None
        rest, linear = self._split(last, step[0], inner)
        coefficient = linear.get((), 0)
        low, high = self.ranges.variables.get(step[0], (None, None))
        if rest or set(linear) != {()} or coefficient <= 0 or low is None or high is None:
            return None
        span = coefficient * (high - low) + size
        if span > _ZEROS:
            return None
        pointer = self.buffers[buffer][0]
        for d, group in groups[:-1]:
            pointer = w.op_at(d, f"getelementptr i8, ptr {pointer}, i64 {self._sum(group, 1)}")
        first = offset.get((), 0) * self.buffers[buffer][1].bytes + coefficient * low
        if first:
            pointer = w.op_at(inner - 1, f"getelementptr i8, ptr {pointer}, i64 {first}")
        zeros = w.module.constant(f"[{_ZEROS} x i8] zeroinitializer")
        chosen = w.op_at(inner - 1, f"select i1 {predicate}, ptr {pointer}, ptr {zeros}")
        if low:
            chosen = w.op_at(inner - 1, f"getelementptr i8, ptr {chosen}, i64 {-coefficient * low}")
        return self._moving(chosen, linear, inner, step, False), 0

    def at(self, pointer: Pointer, displacement: int = 0) -> str:
        """One pointer value in the innermost region: x86 folds the displacement into the access."""
        base, d = pointer[0], pointer[1] + displacement
        return self.writer.once(f"getelementptr i8, ptr {base}, i64 {d}") if d else base

    def along(self, first: Pointer, step: Polynomial, unit: int, k: int) -> Pointer:
        """`first` and k steps on, where sizes decide how far a step goes, and many are taken.

        One pointer for each k would fill the registers: the CPU scales a step, and every fourth
        position follows from the one before.
        """
        w = self.writer
        base, displacement = first
        if k == 0:
            return first
        one, rest = self._sum(step, unit), k % 4
        origin = self.origins.get(base, (base,))
        for _ in range(k // 4):
            four = w.once(f"shl i64 {one}, 2")
            base = w.once(f"getelementptr i8, ptr {base}, i64 {four}")
        if rest:
            some = one if rest == 1 else self._sum(step, 3 * unit)
            some = some if rest != 2 else w.once(f"shl i64 {one}, 1")
            base = w.once(f"getelementptr i8, ptr {base}, i64 {some}")
        self.origins[base] = (*origin, one)
        return base, displacement

    # ---- predicates and masks --------------------------------------------------------------------

    def both(self, a: str, b: str, depth: int = -1) -> str:
        """Conjunction of two i1 predicates, in the region of `depth` (default: the innermost)."""
        if "false" in (a, b):
            return "false"
        if a == "true":
            return b
        if b in ("true", a):
            return a
        return self.writer.op_at(self.writer.depth if depth < 0 else depth, f"and i1 {a}, {b}")

    def lane_mask(self, lo: Expr, hi: Expr, first: int, lanes: int, valid: int) -> str | None:
        """Mask of lanes l < valid with lo <= first + l < hi; None where all are in.

        Targets without mask registers keep a vector of 0 and -1, which lives across blocks at no
        cost.
        """
        lowest, highest = self.ranges.of(lo)[1], self.ranges.of(hi)[0]
        low_free = lowest is not None and lowest <= first
        high_free = highest is not None and highest >= first + valid
        if low_free and high_free:
            return None
        depth = max(0 if low_free else self.depth(lo), 0 if high_free else self.depth(hi))
        ops = self.operations
        bits = self._mask_bits(lanes)
        positions = ops.vector(f"i{bits}", range(lanes))
        w = self.writer
        mask = ""
        for bound, free, compare in ((lo, low_free, "sge"), (hi, high_free, "slt")):
            if free:
                continue
            v = self.value(bound - first if first else bound)
            v = w.op_at(depth, f"call i64 @llvm.smin.i64(i64 {v}, i64 {valid})")
            v = w.op_at(depth, f"call i64 @llvm.smax.i64(i64 {v}, i64 0)")
            if bits < 64:
                v = w.op_at(depth, f"trunc i64 {v} to i{bits}")
            one = w.op_at(depth, f"insertelement <{lanes} x i{bits}> poison, i{bits} {v}, i64 0")
            s = w.op_at(
                depth,
                f"shufflevector <{lanes} x i{bits}> {one}, <{lanes} x i{bits}> poison, "
                f"<{lanes} x i32> zeroinitializer",
            )
            m = w.op_at(depth, f"icmp {compare} <{lanes} x i{bits}> {positions}, {s}")
            mask = w.op_at(depth, f"and <{lanes} x i1> {mask}, {m}") if mask else m
        w.module.declare("i64 @llvm.smin.i64(i64, i64)")
        w.module.declare("i64 @llvm.smax.i64(i64, i64)")
        if high_free and valid < lanes:
            tail = ops.vector("i1", [int(i < valid) for i in range(lanes)])
            mask = w.op_at(depth, f"and <{lanes} x i1> {mask}, {tail}")
        if ops.target.has_masks:
            return mask
        return w.op_at(depth, f"sext <{lanes} x i1> {mask} to <{lanes} x i{bits}>")

    def _mask_bits(self, lanes: int) -> int:
        """Width of the integers that lane numbers are compared in."""
        return min(64, max(8, self.operations.target.vector_bits // lanes))

    def use_mask(self, mask: str, lanes: int) -> str:
        """The i1 vector of what `lane_mask` made, in the innermost region."""
        ops = self.operations
        if ops.target.has_masks:
            return mask
        bits = self._mask_bits(lanes)
        return self.writer.once(f"icmp slt <{lanes} x i{bits}> {mask}, zeroinitializer")


class Bounds:
    """The predicates `lo <= position < hi` of constant positions; depth: the region where all of
    them can be computed.
    """

    def __init__(self, addresses: Addresses, lo: Expr, hi: Expr) -> None:
        self._addresses = addresses
        self._ends = lo, hi
        self._ranges = (*addresses.ranges.of(lo), *addresses.ranges.of(hi))
        self._depths = addresses.depth(lo), addresses.depth(hi)
        self._values: dict[int, str] = {}
        self.depth = max(self._depths)

    def _value(self, end: int) -> str:
        """The value of an end; what reads memory is computed where it stands."""
        found = self._values.get(end)
        if found is None:
            e = self._ends[end]
            found = self._addresses.value(e)
            if not e.has_reads:
                self._values[end] = found
        return found

    def inside(self, position: int) -> str:
        """i1 `lo <= position < hi`: 'true', 'false' or a value."""
        lo_low, lo_high, hi_low, hi_high = self._ranges
        if (lo_low is not None and lo_low > position) or (
            hi_high is not None and hi_high <= position
        ):
            return "false"
        op_at = self._addresses.writer.op_at
        above = below = ""
        if lo_high is None or lo_high > position:
            above = op_at(self._depths[0], f"icmp sle i64 {self._value(0)}, {position}")
        if hi_low is None or hi_low <= position:
            below = op_at(self._depths[1], f"icmp sgt i64 {self._value(1)}, {position}")
        if above and below:
            return op_at(self.depth, f"and i1 {above}, {below}")
        return above or below or "true"
