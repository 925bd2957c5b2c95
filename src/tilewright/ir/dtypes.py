"""Element types.

In: nothing. Out: `DType` values, one per supported element type, and lookups by name or NumPy
dtype. Invariant: there is exactly one `DType` object per name, so identity is equality.
"""

from __future__ import annotations

from dataclasses import dataclass, field

import ml_dtypes
import numpy as np

__all__ = [
    "BF16",
    "BOOL",
    "DTYPES",
    "DType",
    "F16",
    "F32",
    "F64",
    "I8",
    "I16",
    "I32",
    "I64",
    "U8",
    "U16",
    "U32",
    "U64",
    "dtype_of",
]


@dataclass(frozen=True, eq=False)
class DType:
    """One element type: `kind` is 'f' float, 'i' signed, 'u' unsigned, 'b' bool; `bits` is the
    storage width.
    """

    name: str
    kind: str
    bits: int
    llvm: str  # the LLVM type of a value in memory (bool is one byte)
    bytes: int = field(init=False)  # storage size of one element
    is_float: bool = field(init=False)
    is_int: bool = field(init=False)

    def __post_init__(self) -> None:
        object.__setattr__(self, "bytes", self.bits // 8)
        object.__setattr__(self, "is_float", self.kind == "f")
        object.__setattr__(self, "is_int", self.kind in "iu")

    def __str__(self) -> str:
        return self.name

    __repr__ = __str__

    def __reduce__(self) -> tuple[object, ...]:
        return (_by_name, (self.name,))

    @property
    def np(self) -> np.dtype[np.generic]:
        """The NumPy dtype (bfloat16 through ml_dtypes)."""
        return _NUMPY[self.name]

    @property
    def accumulator(self) -> DType:
        """The type a reduction of this type accumulates in (SPEC section 8)."""
        return F32 if self.name in ("f16", "bf16") else self


BOOL = DType("bool", "b", 8, "i8")
I8, U8 = DType("i8", "i", 8, "i8"), DType("u8", "u", 8, "i8")
I16, U16 = DType("i16", "i", 16, "i16"), DType("u16", "u", 16, "i16")
I32, U32 = DType("i32", "i", 32, "i32"), DType("u32", "u", 32, "i32")
I64, U64 = DType("i64", "i", 64, "i64"), DType("u64", "u", 64, "i64")
F16, BF16 = DType("f16", "f", 16, "half"), DType("bf16", "f", 16, "bfloat")
F32, F64 = DType("f32", "f", 32, "float"), DType("f64", "f", 64, "double")

DTYPES: dict[str, DType] = {
    d.name: d for d in (BOOL, I8, U8, I16, U16, I32, U32, I64, U64, F16, BF16, F32, F64)
}
_NUMPY: dict[str, np.dtype[np.generic]] = {
    "bool": np.dtype(np.bool_),
    "i8": np.dtype(np.int8),
    "u8": np.dtype(np.uint8),
    "i16": np.dtype(np.int16),
    "u16": np.dtype(np.uint16),
    "i32": np.dtype(np.int32),
    "u32": np.dtype(np.uint32),
    "i64": np.dtype(np.int64),
    "u64": np.dtype(np.uint64),
    "f16": np.dtype(np.float16),
    "bf16": np.dtype(ml_dtypes.bfloat16),
    "f32": np.dtype(np.float32),
    "f64": np.dtype(np.float64),
}
_FROM_NUMPY = {v: DTYPES[k] for k, v in _NUMPY.items()}


def _by_name(name: str) -> DType:
    return DTYPES[name]


def dtype_of(dtype: np.dtype[np.generic] | type) -> DType | None:
    """The `DType` of a NumPy dtype, or None where there is none (object, string, complex...)."""
    return _FROM_NUMPY.get(np.dtype(dtype))
