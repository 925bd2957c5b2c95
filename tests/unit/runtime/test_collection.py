"""The garbage collector is as it was after something was compiled."""

from __future__ import annotations

import gc
from collections.abc import Iterator

import pytest

import tilewright as tw
from tilewright.runtime.collection import no_collection


@pytest.fixture(autouse=True)
def _collector() -> Iterator[None]:
    was = gc.isenabled()
    yield
    (gc.enable if was else gc.disable)()


def test_it_does_not_start_inside_and_is_restored_after_an_error() -> None:
    gc.enable()
    with pytest.raises(ValueError, match="inside"), no_collection():
        assert not gc.isenabled()
        with no_collection():
            assert not gc.isenabled()
        assert not gc.isenabled()
        raise ValueError("inside")
    assert gc.isenabled()


@pytest.mark.parametrize("enabled", [True, False])
def test_compiling_leaves_it_as_it_was(enabled: bool) -> None:
    (gc.enable if enabled else gc.disable)()
    model = tw.compile("C[i,j] = sum(k) A[i,k] * B[k,j]", dims={"I": 3, "J": 4, "K": 5})
    assert model.stats["kernels"] >= 1
    assert gc.isenabled() is enabled
