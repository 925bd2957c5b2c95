"""Elementwise rows: arithmetic, comparisons, logic, bits, activations, casts.

In: a call. Out: one definition of the result's shape. Invariant: operands are promoted as PyTorch
promotes them; half precision is computed in f32 and rounded once.
"""

from __future__ import annotations

import math
from collections.abc import Callable

from tilewright.frontend.operations.activations import (
    convert,
    elu,
    gelu,
    hard_sigmoid,
    relu,
    softplus,
)
from tilewright.frontend.operations.arithmetic import (
    both,
    copysign,
    floor_divide,
    floor_modulo,
    negative,
    truncate_divide,
)
from tilewright.frontend.torch.call import Call
from tilewright.frontend.torch.table import pointwise, row
from tilewright.frontend.values import Value, like
from tilewright.ir import expr as E
from tilewright.ir.dtypes import BOOL, U8
from tilewright.ir.expr import Expr

__all__: list[str] = []

_TWO = ("self", "other")


# ---- one operand ---------------------------------------------------------------------------------


def _unary(op: str) -> Callable[[Call, Expr], Expr]:
    return lambda n, x: E.unary(op, x)


for _name in (
    "exp", "exp2", "expm1", "log", "log2", "log1p", "sqrt", "rsqrt", "sin", "cos", "tan", "asin",
    "acos", "atan", "sinh", "cosh", "tanh", "asinh", "acosh", "atanh", "erf", "sigmoid",
):  # fmt: skip
    pointwise(f"{_name}.default", f=_unary(_name))


def _rounding(op: str) -> Callable[[Call, Expr], Expr]:
    return lambda n, x: E.unary(op, x) if x.dtype.is_float else x


for _name in ("floor", "ceil", "round", "trunc"):
    pointwise(f"{_name}.default", f=_rounding(_name))


def _round_decimals(n: Call, x: Expr) -> Expr:
    decimals = int(n.get("decimals", 0))
    if decimals == 0 or not x.dtype.is_float:
        return _rounding("round")(n, x)
    scale = like(x, 10.0 ** abs(decimals))
    if decimals > 0:
        return E.binary("div", E.unary("round", E.mul(x, scale)), scale)
    return E.mul(E.unary("round", E.binary("div", x, scale)), scale)


def _sign(n: Call, x: Expr) -> Expr:
    if x.dtype is BOOL:
        return x
    if x.dtype.is_float:  # PyTorch gives 0 for NaN
        zero, one = like(x, 0), like(x, 1)
        return E.select(
            E.compare("lt", zero, x), one, E.select(E.compare("lt", x, zero), E.neg(one), zero)
        )
    return E.unary("sign", x)


def _absolute(n: Call, x: Expr) -> Expr:
    return x if x.dtype.kind in "ub" else E.unary("abs", x)


def _not(n: Call, x: Expr) -> Expr:
    return E.unary("not", x)


pointwise("round.decimals", f=_round_decimals)
pointwise("sign.default", "sgn.default", f=_sign)
pointwise("abs.default", f=_absolute)
pointwise("neg.default", f=lambda n, x: E.neg(x))
pointwise("positive.default", f=lambda n, x: x)
pointwise("reciprocal.default", f=lambda n, x: E.binary("div", like(x, 1), x))
pointwise("log10.default", f=lambda n, x: E.mul(E.unary("log", x), like(x, 1 / math.log(10))))
pointwise("square.default", f=lambda n, x: E.mul(x, x))
pointwise("frac.default", f=lambda n, x: E.sub(x, E.unary("trunc", x)))
pointwise("bitwise_not.default", f=_not)
pointwise("logical_not.default", f=lambda n, x: E.unary("not", convert(x, BOOL)), compute="own")


def _is_nan(n: Call, x: Expr) -> Expr:
    return E.unary("isnan", x) if x.dtype.is_float else E.const(False)


def _is_infinite(n: Call, x: Expr) -> Expr:
    return E.unary("isinf", x) if x.dtype.is_float else E.const(False)


def _is_finite(n: Call, x: Expr) -> Expr:
    if not x.dtype.is_float:
        return E.const(True)
    return both(E.unary("not", E.unary("isnan", x)), E.unary("not", E.unary("isinf", x)))


def _is_one_infinity(value: float) -> Callable[[Call, Expr], Expr]:
    def f(n: Call, x: Expr) -> Expr:
        return E.compare("eq", x, like(x, value)) if x.dtype.is_float else E.const(False)

    return f


pointwise("isnan.default", f=_is_nan, compute="own")
pointwise("isinf.default", f=_is_infinite, compute="own")
pointwise("isfinite.default", f=_is_finite, compute="own")
pointwise("isposinf.default", f=_is_one_infinity(math.inf), compute="own")
pointwise("isneginf.default", f=_is_one_infinity(-math.inf), compute="own")
pointwise(
    "signbit.default",
    f=lambda n, x: negative(x) if x.dtype.is_float else E.compare("lt", x, like(x, 0)),
    compute="own",
)


pointwise(
    "angle.default",
    f=lambda n, x: E.select(
        E.unary("isnan", x), x,
        E.select(E.compare("lt", x, like(x, 0)), like(x, math.pi), like(x, 0)),
    ),
)  # fmt: skip


# ---- two operands --------------------------------------------------------------------------------


def _scaled(n: Call, b: Expr) -> Expr:
    alpha = n.get("alpha", 1)
    return b if alpha == 1 else E.mul(b, n.scalar(alpha, b.dtype))


def _add(n: Call, a: Expr, b: Expr) -> Expr:
    if a.dtype is BOOL:
        return E.logical("or", a, b)
    return E.add(a, _scaled(n, b))


def _multiply(n: Call, a: Expr, b: Expr) -> Expr:
    return E.logical("and", a, b) if a.dtype is BOOL else E.mul(a, b)


def _divide(n: Call, a: Expr, b: Expr) -> Expr:
    mode = n.get("rounding_mode")
    if mode == "floor":
        return floor_divide(a, b)
    return truncate_divide(a, b) if mode == "trunc" else E.binary("div", a, b)


def _power(n: Call, a: Expr, b: Expr) -> Expr:
    if b.op == "const" and a.dtype.is_float:
        value = float(b.attr)
        if value in (1.0, 2.0, 3.0):
            square = E.mul(a, a)
            return {1.0: a, 2.0: square, 3.0: E.mul(square, a)}[value]
        if value == 0.0:
            return like(a, 1)
        if value == 0.5:
            return E.unary("sqrt", a)
        if value in (-1.0, -2.0, -0.5):
            below = {-1.0: a, -2.0: E.mul(a, a), -0.5: E.unary("sqrt", a)}[value]
            return E.binary("div", like(a, 1), below)
    return E.binary("pow", a, b)


def _minimum(op: str) -> Callable[[Call, Expr, Expr], Expr]:
    def f(n: Call, a: Expr, b: Expr) -> Expr:
        if a.dtype is BOOL:
            return E.logical("and" if op == "min" else "or", a, b)
        return E.minimum(a, b) if op == "min" else E.maximum(a, b)

    return f


def _known(op: str) -> Callable[[Call, Expr, Expr], Expr]:
    """fmin, fmax: the other operand where one is NaN."""
    step = _minimum(op)

    def f(n: Call, a: Expr, b: Expr) -> Expr:
        if not a.dtype.is_float:
            return step(n, a, b)
        other = E.select(E.unary("isnan", b), a, step(n, a, b))
        return E.select(E.unary("isnan", a), b, other)

    return f


pointwise("add.Tensor", "add.Scalar", f=_add, args=_TWO)
pointwise("sub.Tensor", "sub.Scalar", f=lambda n, a, b: E.sub(a, _scaled(n, b)), args=_TWO)
pointwise("rsub.Tensor", "rsub.Scalar", f=lambda n, a, b: E.sub(b, _scaled(n, a)), args=_TWO)
pointwise("mul.Tensor", "mul.Scalar", f=_multiply, args=_TWO)
pointwise("div.Tensor", "div.Scalar", "div.Tensor_mode", "div.Scalar_mode", f=_divide, args=_TWO)
pointwise(
    "floor_divide.default", "floor_divide.Scalar", f=lambda n, a, b: floor_divide(a, b), args=_TWO
)
pointwise("true_divide.Tensor", f=lambda n, a, b: E.binary("div", a, b), args=_TWO)
pointwise(
    "remainder.Tensor", "remainder.Scalar", "remainder.Scalar_Tensor",
    f=lambda n, a, b: floor_modulo(a, b), args=_TWO,
)  # fmt: skip
pointwise("fmod.Tensor", "fmod.Scalar", f=lambda n, a, b: E.binary("fmod", a, b), args=_TWO)
pointwise(
    "pow.Tensor_Tensor", "pow.Tensor_Scalar", "pow.Scalar", f=_power, args=("self", "exponent")
)
pointwise("minimum.default", f=_minimum("min"), args=_TWO)
pointwise("maximum.default", f=_minimum("max"), args=_TWO)
pointwise("fmin.default", f=_known("min"), args=_TWO)
pointwise("fmax.default", f=_known("max"), args=_TWO)
pointwise("atan2.default", f=lambda n, a, b: E.binary("atan2", a, b), args=_TWO)
pointwise("copysign.Tensor", "copysign.Scalar", f=lambda n, a, b: copysign(a, b), args=_TWO)


def _hypot(n: Call, a: Expr, b: Expr) -> Expr:
    x, y = E.unary("abs", a), E.unary("abs", b)
    big, small, zero = E.maximum(x, y), E.minimum(x, y), like(a, 0)
    ratio = E.binary("div", small, big)
    size = E.mul(big, E.unary("sqrt", E.add(like(a, 1), E.mul(ratio, ratio))))
    endless = E.logical("or", E.unary("isinf", x), E.unary("isinf", y))
    return E.select(endless, like(a, math.inf), E.select(E.compare("eq", big, zero), big, size))


pointwise("hypot.default", f=_hypot, args=_TWO)


def _xlogy(n: Call, a: Expr, b: Expr) -> Expr:
    zero = like(a, 0)
    product = E.mul(a, E.unary("log", b))
    kept = E.select(
        both(E.compare("eq", a, zero), E.unary("not", E.unary("isnan", b))), zero, product
    )
    return kept


pointwise("xlogy.Tensor", "xlogy.Scalar_Other", "xlogy.Scalar_Self", f=_xlogy, args=_TWO)


def _compare(op: str) -> Callable[[Call, Expr, Expr], Expr]:
    return lambda n, a, b: E.compare(op, a, b)


for _name in ("eq", "ne", "lt", "le", "gt", "ge"):
    if _name in ("eq", "ne"):
        pointwise(
            f"{_name}.Tensor", f"{_name}.Scalar", f=_compare(_name), args=_TWO, compute="operands"
        )
    else:

        def _ordered(n: Call, a: Expr, b: Expr, op: str = _name) -> Expr:
            if a.dtype is BOOL:
                a, b = E.cast(a, U8), E.cast(b, U8)
            return E.compare(op, a, b)

        pointwise(f"{_name}.Tensor", f"{_name}.Scalar", f=_ordered, args=_TWO, compute="operands")

for _name in ("and", "or"):
    pointwise(
        f"logical_{_name}.default",
        f=lambda n, a, b, op=_name: E.logical(op, convert(a, BOOL), convert(b, BOOL)),
        args=_TWO,
        compute="own",
    )
pointwise(
    "logical_xor.default",
    f=lambda n, a, b: E.compare("ne", convert(a, BOOL), convert(b, BOOL)),
    args=_TWO,
    compute="own",
)
for _name in ("and", "or", "xor"):

    def _bits(n: Call, a: Expr, b: Expr, op: str = _name) -> Expr:
        if a.dtype is BOOL and op == "xor":
            return E.compare("ne", a, b)
        return E.binary(op, a, b)

    pointwise(
        f"bitwise_{_name}.Tensor", f"bitwise_{_name}.Scalar", f"bitwise_{_name}.Scalar_Tensor",
        f=_bits, args=_TWO,
    )  # fmt: skip


def _shift(left: bool) -> Callable[[Call, Expr, Expr], Expr]:
    def f(n: Call, a: Expr, b: Expr) -> Expr:
        wide = E.binary("shl" if left else "shr", a, b)
        nothing = like(a, 0)
        if not left and a.dtype.kind == "i":
            nothing = E.select(E.compare("lt", a, like(a, 0)), like(a, -1), nothing)
        inside = E.compare("lt", b, like(b, a.dtype.bits))
        if b.dtype.kind == "i":
            inside = both(inside, E.compare("le", like(b, 0), b))
        return E.select(inside, wide, nothing)

    return f


for _packet in ("bitwise_left_shift", "bitwise_right_shift"):
    pointwise(
        *(f"{_packet}.{o}" for o in ("Tensor", "Tensor_Scalar", "Scalar_Tensor")),
        f=_shift("left" in _packet),
        args=_TWO,
    )
pointwise("__lshift__.Tensor", "__lshift__.Scalar", f=_shift(True), args=_TWO)
pointwise("__rshift__.Tensor", "__rshift__.Scalar", f=_shift(False), args=_TWO)


# ---- three operands ------------------------------------------------------------------------------


@row("where.self", kind="elementwise")
def where(n: Call) -> Value:
    """`self` where the condition holds, else `other`."""
    condition, a, b = n["condition"], n["self"], n["other"]
    dtype = n.dtype
    return n.define(
        n.shape,
        lambda *i: E.select(
            convert(condition.aligned(i), BOOL),
            convert(a.aligned(i), dtype),
            convert(b.aligned(i), dtype),
        ),
    )


@row("masked_fill.Scalar", "masked_fill.Tensor", kind="elementwise")
def masked_fill(n: Call) -> Value:
    """`value` where the mask holds, else `self`."""
    x, mask, dtype = n["self"], n["mask"], n.dtype
    given = n.arguments["value"]
    held = n.importer.value(given) if n.importer.is_tensor(given) else None

    def body(*i: Expr) -> Expr:
        fill = n.scalar(given, dtype) if held is None else convert(held.at(*[0] * held.rank), dtype)
        return E.select(mask.aligned(i), fill, x.aligned(i))

    return n.define(n.shape, body)


@row("clamp.default", "clamp.Tensor", "hardtanh.default", kind="elementwise")
@row(
    "clamp_min.default",
    "clamp_min.Tensor",
    "clamp_max.default",
    "clamp_max.Tensor",
    kind="elementwise",
)
def clamp(n: Call) -> Value:
    """min(max(self, low), high); a limit may be missing."""
    low = "min_val" if n.op.startswith("hardtanh") else "min"
    high = "max_val" if n.op.startswith("hardtanh") else "max"
    names = ["self", *(x for x in (low, high) if n.arguments.get(x) is not None)]

    def f(x: Expr, *limits: Expr) -> Expr:
        rest = list(limits)
        if n.arguments.get(low) is not None:
            x = _minimum("max")(n, x, rest.pop(0))
        return _minimum("min")(n, x, rest.pop(0)) if rest else x

    return n.pointwise(f, names)


def _fused(op: str) -> Callable[[Call, Expr, Expr, Expr], Expr]:
    def f(n: Call, x: Expr, a: Expr, b: Expr) -> Expr:
        product = E.mul(a, b) if op == "mul" else E.binary("div", a, b)
        value = n.get("value", 1)
        return E.add(x, product if value == 1 else E.mul(n.scalar(value, x.dtype), product))

    return f


pointwise("addcmul.default", f=_fused("mul"), args=("self", "tensor1", "tensor2"))
pointwise("addcdiv.default", f=_fused("div"), args=("self", "tensor1", "tensor2"))


def _lerp(n: Call, a: Expr, b: Expr, w: Expr) -> Expr:
    difference, one = E.sub(b, a), like(a, 1)
    near = E.add(a, E.mul(w, difference))
    far = E.sub(b, E.mul(difference, E.sub(one, w)))
    return E.select(E.compare("lt", E.unary("abs", w), like(a, 0.5)), near, far)


pointwise("lerp.Tensor", "lerp.Scalar", f=_lerp, args=("self", "end", "weight"))


# ---- activations ---------------------------------------------------------------------------------

pointwise("relu.default", f=lambda n, x: relu(x))
pointwise("relu6.default", f=lambda n, x: E.minimum(relu(x), like(x, 6)))
pointwise(
    "leaky_relu.default",
    f=lambda n, x: E.select(
        E.compare("lt", like(x, 0), x), x, E.mul(x, like(x, n.get("negative_slope", 0.01)))
    ),
)
pointwise("gelu.default", f=lambda n, x: gelu(x, n.get("approximate", "none") == "tanh"))
pointwise("silu.default", f=lambda n, x: E.mul(x, E.unary("sigmoid", x)))
pointwise("hardsigmoid.default", f=lambda n, x: hard_sigmoid(x, 1 / 6, 0.5))
pointwise("hardswish.default", f=lambda n, x: E.mul(x, hard_sigmoid(x, 1 / 6, 0.5)))
pointwise("mish.default", f=lambda n, x: E.mul(x, E.unary("tanh", softplus(x))))


def _elu(n: Call, x: Expr) -> Expr:
    alpha, scale = float(n.get("alpha", 1)), float(n.get("scale", 1))
    inner = float(n.get("input_scale", 1))
    if inner == 1.0 and scale == 1.0:
        return elu(x, alpha)
    below = E.mul(E.unary("expm1", E.mul(x, like(x, inner))), like(x, alpha * scale))
    return E.select(E.compare("lt", like(x, 0), x), E.mul(x, like(x, scale)), below)


def _softplus(n: Call, x: Expr) -> Expr:
    beta, threshold = float(n.get("beta", 1)), float(n.get("threshold", 20))
    scaled = E.mul(x, like(x, beta))
    smooth = E.binary("div", E.unary("log1p", E.unary("exp", scaled)), like(x, beta))
    return E.select(E.compare("lt", like(x, threshold), scaled), x, smooth)


def _log_sigmoid(n: Call, x: Expr) -> Expr:
    tail = E.unary("log1p", E.unary("exp", E.neg(E.unary("abs", x))))
    return E.sub(E.minimum(x, like(x, 0)), tail)


def _threshold(n: Call, x: Expr) -> Expr:
    limit, value = n.scalar(n.get("threshold"), x.dtype), n.scalar(n.get("value"), x.dtype)
    return E.select(E.compare("le", x, limit), value, x)


def _hard_shrink(n: Call, x: Expr) -> Expr:
    limit = like(x, float(n.get("lambd", 0.5)))
    inside = both(E.compare("le", E.neg(limit), x), E.compare("le", x, limit))
    return E.select(inside, like(x, 0), x)


def _soft_shrink(n: Call, x: Expr) -> Expr:
    limit, zero = like(x, float(n.get("lambd", 0.5))), like(x, 0)
    low = E.select(E.compare("lt", x, E.neg(limit)), E.add(x, limit), E.mul(x, zero))
    return E.select(E.compare("lt", limit, x), E.sub(x, limit), low)


pointwise("elu.default", f=_elu)
pointwise("celu.default", f=lambda n, x: _celu(x, float(n.get("alpha", 1))))
pointwise("softplus.default", f=_softplus)
pointwise("threshold.default", f=_threshold)
pointwise("hardshrink.default", f=_hard_shrink)
pointwise("softshrink.default", f=_soft_shrink)


def _celu(x: Expr, alpha: float) -> Expr:
    below = E.mul(like(x, alpha), E.unary("expm1", E.binary("div", x, like(x, alpha))))
    return E.select(E.compare("lt", like(x, 0), x), x, below)


@row("log_sigmoid_forward.default", kind="elementwise")
def log_sigmoid(n: Call) -> list[Value | None]:
    """log(sigmoid(x)); the buffer for the gradient is empty."""
    if n.is_read(1):
        raise n.refuse("the buffer for the gradient")
    return [n.pointwise(lambda x: _log_sigmoid(n, x), ("self",)), None]


@row("_prelu_kernel.default", kind="elementwise")
def prelu(n: Call) -> Value:
    """x, or weight x below 0."""
    return n.pointwise(
        lambda x, w: E.select(E.compare("lt", like(x, 0), x), x, E.mul(w, x)), ("self", "weight")
    )


# ---- casts and copies ----------------------------------------------------------------------------


@row(
    "_to_copy.default", "to.dtype", "alias.default", "clone.default", "detach.default",
    "lift_fresh_copy.default", "lift_fresh.default", "contiguous.default", "alias_copy.default",
    "_conj_physical.default", "conj_physical.default", "real.default", "resolve_conj.default",
    "resolve_neg.default", "_conj.default", "detach_copy.default",
    kind="layout",
)  # fmt: skip
@row("prims.convert_element_type.default", "prims.device_put.default", kind="layout")
@row("prims.view_of.default", "prims.clone.default", kind="layout")
def convert_(n: Call) -> Value:
    """The elements in another type; itself where that is the same."""
    x = n["a"] if n.op.startswith("prims.") else n["self"]
    dtype = n.dtype
    if x.dtype is dtype:
        return x
    return n.define(n.shape, lambda *i: convert(x.at(*i), dtype))


@row("copy.default", kind="layout")
def copy(n: Call) -> Value:
    """`src`, broadcast and converted to what `self` is."""
    x, dtype = n["src"], n.dtype
    return n.define(n.shape, lambda *i: convert(x.aligned(i), dtype))


@row("view.dtype", kind="layout", notes="only to the same element type")
def view_dtype(n: Call) -> Value:
    """The same bits as another type of the same width: nothing but the same type, so far."""
    x = n["self"]
    if x.dtype is not n.dtype:
        raise n.refuse(f"{x.dtype} as {n.dtype}")
    return x
