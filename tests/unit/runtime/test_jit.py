"""Loading: names, damage, unloading, imports, and the C library."""

from __future__ import annotations

import ctypes
import gc

import pytest

from tilewright.errors import InternalError, UserError
from tilewright.machine.target import Target
from tilewright.runtime.build import emit_object
from tilewright.runtime.jit import exported_symbols, load_object

TARGET = Target.native()
TEXT = """
@table = constant [2 x i64] [i64 40, i64 2]
@hidden = internal global i64 7
declare i64 @outside(i64)
declare i64 @labs(i64)
define i64 @both(i64 %x) nounwind {
  %a = load i64, ptr @table
  %h = load volatile i64, ptr @hidden
  %n = sub i64 0, %a
  %b = call i64 @labs(i64 %n)
  %c = call i64 @outside(i64 %x)
  %d = add i64 %b, %c
  ret i64 %d
}
"""


def test_same_object_many_times() -> None:
    data = emit_object(TEXT, TARGET)
    assert set(exported_symbols(data)) == {"table", "both"}
    callback_type = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)
    callback = callback_type(lambda x: 2 * x)
    address = ctypes.cast(callback, ctypes.c_void_p).value
    assert address is not None
    for _ in range(50):
        loaded = load_object(data, [("outside", address)])
        assert callback_type(loaded.address("both"))(1) == 42
        assert ctypes.c_int64.from_address(loaded.address("table")).value == 40
        del loaded
    gc.collect()


def test_unknown_names() -> None:
    data = emit_object(TEXT, TARGET)
    with pytest.raises(UserError, match="R011"):
        load_object(data)  # `outside` is nowhere
    plain = load_object(emit_object("define void @f() { ret void }", TARGET))
    with pytest.raises(InternalError, match="exports"):
        plain.address("g")


@pytest.mark.parametrize("cut", [0, 3, 63, 64, 200, -1])
def test_damaged_object(cut: int) -> None:
    data = emit_object(TEXT, TARGET)
    with pytest.raises(UserError, match="R011"):
        load_object(data[:cut])


def test_object_of_another_cpu() -> None:
    other = "aarch64" if TARGET.triple.startswith("x86") else "x86-avx2"
    with pytest.raises(UserError, match="R011"):
        load_object(emit_object("define void @f() { ret void }", Target.named(other)))
