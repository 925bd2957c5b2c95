"""Memory of large arrays is used again when they are gone, never before."""

from __future__ import annotations

import numpy as np

from tilewright.runtime.pages import HUGE_BYTES, SPARE_BYTES, recycled_array

COUNT = (HUGE_BYTES + 4096 * 3) // 4  # a size that nothing else asks for


def address(array: np.ndarray) -> int:
    return array.ctypes.data


def test_memory_is_taken_again_when_no_view_is_left() -> None:
    first = recycled_array(COUNT, np.dtype(np.float32))
    where = address(first)
    view = first.reshape(2, -1)[1:, ::2]
    view[...] = 7.0
    del first
    second = recycled_array(COUNT, np.dtype(np.float32))
    assert abs(address(second) - where) >= COUNT * 4
    second[...] = 1.0
    assert np.all(view == 7.0)
    del view
    third = recycled_array(COUNT, np.dtype(np.int32))
    assert address(third) == where
    assert not np.shares_memory(third, second)


def test_arrays_are_whole_and_writable() -> None:
    array = recycled_array(COUNT, np.dtype(np.float32))
    array[...] = np.arange(COUNT, dtype=np.float32)
    assert array.size == COUNT and array.flags.writeable and array.flags.aligned
    assert array[-1] == COUNT - 1


def test_what_is_kept_is_bounded() -> None:
    from tilewright.runtime import pages

    size = SPARE_BYTES // 4
    held = [recycled_array(size, np.dtype(np.uint8)) for _ in range(6)]
    del held
    assert sum(m.size for m in pages._spare) <= SPARE_BYTES
    large = recycled_array(SPARE_BYTES + 4096, np.dtype(np.uint8))
    del large
    assert sum(m.size for m in pages._spare) <= SPARE_BYTES
