"""Loading: names, damage, unloading, imports, and the C library."""

from __future__ import annotations

import ctypes
import gc
import platform
import struct

import pytest

from tilewright.errors import InternalError, TargetError, UserError
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


def permissions(address: int) -> str:
    """How the page at `address` may be used; "" where there is none."""
    with open("/proc/self/maps") as file:
        for line in file:
            span, allowed = line.split()[:2]
            begin, end = (int(x, 16) for x in span.split("-"))
            if begin <= address < end:
                return allowed
    return ""


def test_code_cannot_be_written_and_leaves_when_nobody_holds_it() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("LLVM places the object")
    loaded = load_object(emit_object(TEXT.replace("@outside", "@llabs"), TARGET))
    code, table = loaded.address("both"), loaded.address("table")
    assert permissions(code) == permissions(table) == "r-xp"
    function = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(code)
    assert function(-2) == 42
    del loaded
    gc.collect()
    assert "x" not in permissions(code)


def test_variables_and_addresses_of_each_other() -> None:
    text = """
@counter = global i64 40
@zeros = global [700 x i64] zeroinitializer, align 64
@where = global ptr @bump
@labs_at = constant ptr @labs
declare i64 @labs(i64)
define i64 @bump(i64 %x) nounwind {
  %a = load i64, ptr @counter
  %b = add i64 %a, %x
  store i64 %b, ptr @counter
  %z = load i64, ptr getelementptr ([700 x i64], ptr @zeros, i64 0, i64 699)
  %c = add i64 %b, %z
  ret i64 %c
}
define i64 @through(i64 %x) nounwind {
  %f = load ptr, ptr @where
  %r = call i64 %f(i64 %x)
  %g = load volatile ptr, ptr @labs_at
  %s = call i64 %g(i64 %r)
  ret i64 %s
}
"""
    first, second = (load_object(emit_object(text, TARGET)) for _ in range(2))
    for loaded in (first, second):  # each has variables of its own
        call = ctypes.CFUNCTYPE(ctypes.c_int64, ctypes.c_int64)(loaded.address("through"))
        assert call(2) == 42 and call(-50) == 8
        assert ctypes.c_int64.from_address(loaded.address("counter")).value == -8
        assert loaded.address("zeros") % 64 == 0
        assert ctypes.c_uint64.from_address(loaded.address("where")).value == loaded.address("bump")


def test_a_relocation_that_nobody_knows_is_refused() -> None:
    if platform.machine() != "x86_64":
        pytest.skip("LLVM places the object")
    data = bytearray(emit_object(TEXT.replace("@outside", "@llabs"), TARGET))
    (table,) = struct.unpack_from("<Q", data, 40)
    size, count = struct.unpack_from("<HH", data, 58)
    rows = [struct.unpack_from("<IIQQQQIIQQ", data, table + size * k) for k in range(count)]
    at = next(row[4] for row in rows if row[1] == 4)
    data[at + 8] = 23  # R_X86_64_TPOFF32
    with pytest.raises(UserError, match="relocation of type 23"):
        load_object(bytes(data))


def test_damage_anywhere_is_a_typed_error_or_none() -> None:
    """Nothing of a damaged object runs when it is loaded, and no byte of it ends the process."""
    data = emit_object(TEXT.replace("@outside", "@llabs"), TARGET)
    for at in range(0, len(data), 3):
        for bits in (0x01, 0x80, 0xFF):
            broken = bytearray(data)
            broken[at] ^= bits
            try:
                load_object(bytes(broken))
            except (UserError, TargetError) as error:
                assert error.code in ("R011", "R014")


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
