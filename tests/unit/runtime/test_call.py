"""Model calls: results that stay, out=, sizes, kinds of arrays, eight threads, errors, lifetimes."""

from __future__ import annotations

import gc
import sys
import threading
import weakref
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import UserError
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.runtime import call as call_module
from tilewright.runtime.build import build
from tilewright.runtime.call import ModelCall
from tilewright.runtime.context import ArrayType, Binding, PhaseCall, Slot
from tilewright.runtime.jit import LoadedObject, load_object
from tilewright.runtime.pool import set_num_threads

TARGET = Target.native()
F32 = np.dtype(np.float32)
# Each function: args (x, y, z, n); z[c*n : (c+1)*n] for chunks c. `axpy` is x*y+x, `add` x+y.
LOOP = """
define void @NAME(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {
entry:
  %x = load ptr, ptr %args
  %p1 = getelementptr i8, ptr %args, i64 8
  %y = load ptr, ptr %p1
  %p2 = getelementptr i8, ptr %args, i64 16
  %z = load ptr, ptr %p2
  %p3 = getelementptr i8, ptr %args, i64 24
  %n = load i64, ptr %p3
  %first = mul i64 %lo, %n
  %last = mul i64 %hi, %n
  %none = icmp sge i64 %first, %last
  br i1 %none, label %out, label %loop
loop:
  %i = phi i64 [%first, %entry], [%j, %loop]
  %px = getelementptr float, ptr %x, i64 %i
  %a = load float, ptr %px
  %py = getelementptr float, ptr %y, i64 %i
  %b = load float, ptr %py
  BODY
  %pz = getelementptr float, ptr %z, i64 %i
  store float %r, ptr %pz
  %j = add i64 %i, 1
  %t = icmp slt i64 %j, %last
  br i1 %t, label %loop, label %out
out:
  ret void
}
""".replace("#A", TARGET.function_attributes())
TEXT = LOOP.replace("NAME", "add").replace("BODY", "%r = fadd float %a, %b") + LOOP.replace(
    "NAME", "axpy"
).replace("BODY", "%m = fmul float %a, %b\n  %r = fadd float %m, %a")


@pytest.fixture(scope="module")
def code() -> LoadedObject:
    return load_object(build(TEXT, TARGET))


@pytest.fixture(autouse=True)
def default_threads() -> Iterator[None]:
    yield
    set_num_threads(None)


def array(name: str, *shape: int | str | None) -> ArrayType:
    return ArrayType(name, F32, shape)


def add_binding(code: LoadedObject, rows: int, columns: int) -> Binding:
    slots = (Slot("input", 0), Slot("input", 1), Slot("output", 0), Slot("value", columns))
    return Binding(
        (array("x", rows, columns), array("y", rows, columns)),
        (array("z", rows, columns),),
        (PhaseCall(code.address("add"), slots, chunks=rows),),
    )


def two_step_binding(code: LoadedObject, rows: int, columns: int) -> Binding:
    """t = x*y+x in the arena; z = t+y; w = t*z+t."""
    n = Slot("value", columns)
    x, y, z, w = Slot("input", 0), Slot("input", 1), Slot("output", 0), Slot("output", 1)
    t = Slot("arena", 64)
    return Binding(
        (array("x", rows, columns), array("y", rows, columns)),
        (array("z", rows, columns), array("w", rows, columns)),
        (
            PhaseCall(code.address("axpy"), (x, y, t, n), chunks=rows),
            PhaseCall(code.address("add"), (t, y, z, n), chunks=rows, grain=2),
            PhaseCall(code.address("axpy"), (t, z, w, n), chunks=rows, serial=True),
        ),
        arena_bytes=64 + 4 * rows * columns,
        scratch_bytes=256,
    )


def two_step_numpy(x: Any, y: Any) -> tuple[Any, Any]:
    t = x * y + x
    z = t + y
    return z, t * z + t


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, F32)


@pytest.fixture(params=["native", "python"])
def make(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> Callable[..., Any]:
    """Makes a call function, once through the builtin and once without native help."""
    if request.param == "python":
        monkeypatch.setattr(call_module, "_is_native_possible", lambda: False)

    def function(*arguments: Any, **names: Any) -> Any:
        return ModelCall(*arguments, **names).function

    return function


@pytest.mark.parametrize(("rows", "columns"), [(1, 1), (3, 5), (64, 33), (0, 4), (1000, 1031)])
def test_results_are_right_fresh_and_aligned(
    code: LoadedObject, make: Callable[..., Any], rows: int, columns: int
) -> None:
    f = make(add_binding(code, rows, columns), threads=2)
    kept = []
    for seed in range(7):
        x, y = random(seed, rows, columns), random(seed + 100, rows, columns)
        z = f(x, y)
        assert z.ctypes.data % 64 == 0 or z.size == 0
        kept.append((z, x + y))
        if seed % 3 == 0:
            kept.append((z[1:], (x + y)[1:]))  # only a view is held
            del z
        f(y, y)  # dropped at once
    for z, expected in kept:
        assert np.array_equal(z, expected)


def test_dropped_results_are_written_again(code: LoadedObject) -> None:
    f = ModelCall(add_binding(code, 700, 1000)).function
    x = random(1, 700, 1000)
    f(x, x)
    places = {f(x, x).ctypes.data for _ in range(20)}
    assert len(places) <= 2


def test_changed_results_are_not_reused(code: LoadedObject, make: Callable[..., Any]) -> None:
    f = make(add_binding(code, 4, 6))
    x = random(1, 4, 6)

    def spoil(z: Any, how: int) -> None:
        if how == 0:
            z.shape = (24,)
        elif how == 1:
            z.flags.writeable = False
        elif how == 2:
            z.dtype = np.int32

    for how in range(12):
        spoil(f(x, x), how % 4)
        z = f(x, x)
        assert z.shape == (4, 6) and z.dtype == F32 and z.flags.writeable
        assert np.array_equal(z, x + x)
    dead: list[int] = []
    z = f(x, x)
    watch = weakref.ref(z, lambda _: dead.append(1))
    del z
    for _ in range(4):
        held = f(x, x)
    assert watch() is not held


def test_out_and_reuse(code: LoadedObject, make: Callable[..., Any]) -> None:
    f = make(add_binding(code, 9, 7))
    x, y = random(1, 9, 7), random(2, 9, 7)
    z = np.zeros((9, 7), F32)
    for _ in range(3):
        z[:] = 0
        assert f(x, y, out=z) is z and np.array_equal(z, x + y)
        assert np.array_equal(f(x, y, out=None), x + y)
    total = x + y
    assert f(x, y, out=y) is y and np.array_equal(y, total)  # out= over an input
    big = random(3, 10, 7)
    expected = big[:9] + x
    assert np.array_equal(f(big[:9], x, out=big[1:]), expected)
    g = make(add_binding(code, 9, 7), reuse_outputs=True)
    first = g(x, x)
    assert g(y, y) is first and np.array_equal(first, y + y)


def test_several_outputs(code: LoadedObject, make: Callable[..., Any]) -> None:
    f = make(two_step_binding(code, 31, 17), threads=2)
    kept = []
    for seed in range(5):
        x, y = random(seed, 31, 17), random(seed + 9, 31, 17)
        kept.append((f(x, y), two_step_numpy(x, y)))
    for (z, w), (z0, w0) in kept:
        np.testing.assert_allclose(z, z0, rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(w, w0, rtol=1e-4, atol=1e-4)
    outs = (np.zeros((31, 17), F32), np.zeros((31, 17), F32))
    for _ in range(2):
        assert f(x, y, out=outs) is outs
        assert outs[0].tobytes() == z.tobytes() and outs[1].tobytes() == w.tobytes()
    with pytest.raises(UserError, match=r"R006.*overlaps"):
        f(x, y, out=(outs[0], outs[0]))
    with pytest.raises(UserError, match=r"R006.*tuple of 2"):
        f(x, y, out=outs[0])


def test_eight_threads_get_equal_bits(code: LoadedObject, make: Callable[..., Any]) -> None:
    f = make(two_step_binding(code, 101, 64), threads=2)
    inputs = [(random(s, 101, 64), random(s + 50, 101, 64)) for s in range(8)]
    expected = [tuple(r.tobytes() for r in f(x, y)) for x, y in inputs]
    wrong: list[int] = []
    barrier = threading.Barrier(8)

    def call(number: int) -> None:
        x, y = inputs[number]
        out = (np.zeros_like(x), np.zeros_like(x))
        barrier.wait()
        for turn in range(150):
            results = f(x, y, out=out) if turn % 3 == 0 else f(x, y)
            if tuple(r.tobytes() for r in results) != expected[number]:
                wrong.append(number)

    threads = [threading.Thread(target=call, args=(number,)) for number in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert wrong == []


def symbolic(code: LoadedObject, **options: Any) -> tuple[ModelCall, list[dict[str, int]]]:
    bound: list[dict[str, int]] = []

    def bind(symbols: Mapping[str, int]) -> Binding:
        bound.append(dict(symbols))
        return two_step_binding(code, symbols["B"], symbols["N"])

    model = ModelCall(
        bind,
        (array("x", "B", "N"), array("y", "B", "N")),
        (array("z", None, "N"), array("w", None, "N")),
        **options,
    )
    return model, bound


def test_sizes_may_alternate(code: LoadedObject) -> None:
    model, bound = symbolic(code, threads=2)
    for turn in range(30):
        rows, columns = [(3, 4), (1, 1), (7, 4), (64, 100), (0, 5)][turn % 5]
        x, y = random(turn, rows, columns), random(turn + 1, rows, columns)
        z, w = model.function(x, y)
        expected = two_step_numpy(x, y)
        np.testing.assert_allclose(z, expected[0], rtol=1e-5, atol=1e-5)
        np.testing.assert_allclose(w, expected[1], rtol=1e-4, atol=1e-4)
    assert len(bound) == 5  # every size keeps its context
    with pytest.raises(UserError, match=r"R004.*B is 3 but axis 0 of input 'y' has size 4"):
        model.function(random(1, 3, 4), random(1, 4, 4))


def test_sizes_that_are_expressions(tmp_path: Path) -> None:
    """What no axis says alone is solved where it is linear in one dim; others must agree with it."""
    program = parse_program("""program p format 1(x: f32[2*N + 1, M]):
  dim N in 0 .. inf
  dim M in 0 .. inf
  y: f32[j<M] = sum(i<(2*N)) x[i, j]
  return y
""")
    model = tw.compile(program)
    model(np.zeros((5, 3), np.float32))
    model.save(tmp_path / "p.twa")
    for m in (model, tw.load(tmp_path / "p.twa")):
        x = random(1, 5, 3)
        np.testing.assert_allclose(m(x), x[:4].sum(0), rtol=1e-6)
        with pytest.raises(UserError, match=r"R003.*must have shape \[5, 3\], got \[6, 3\]"):
            m(random(1, 6, 3))


def test_contexts_of_old_sizes_are_freed(
    code: LoadedObject, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(call_module, "_SPARE_BYTES", 1 << 20)
    model, bound = symbolic(code)
    for rows in range(1, 300):
        x = random(rows, rows, 100)
        z, _ = model.function(x, x)
        assert np.array_equal(z, (x * x + x) + x)
    assert len(bound) == 299
    assert len(model._alive) == len(model._contexts) < 70
    assert sum(context.memory_bytes for context in model._contexts) < 2 << 20


def test_changing_the_number_of_threads(code: LoadedObject) -> None:
    model = ModelCall(two_step_binding(code, 50, 20))
    x, y = random(1, 50, 20), random(2, 50, 20)
    results = []
    for threads in (1, 2, 5, 1):
        set_num_threads(threads)
        results.append(tuple(r.tobytes() for r in model.function(x, y)))
        assert [context.threads for context in model._contexts] == [threads]
    assert len(set(results)) == 1


def test_kinds_of_arrays(code: LoadedObject, make: Callable[..., Any]) -> None:
    f = make(add_binding(code, 6, 4))
    base = random(1, 12, 9)
    strided, expected = base[::2, 1:9:2], 2 * base[::2, 1:9:2]
    assert not strided.flags.c_contiguous

    class Sub(np.ndarray[Any, Any]):
        pass

    class Interface:
        def __init__(self, value: Any) -> None:
            self.__array_interface__ = value.__array_interface__
            self.value = value

    class Dlpack:
        def __dlpack__(self, **names: Any) -> Any:
            return strided.__dlpack__(**names)

        def __dlpack_device__(self) -> Any:
            return strided.__dlpack_device__()

    unaligned = np.frombuffer(b"x" + strided.tobytes(), np.uint8)[1:].view(F32).reshape(6, 4)
    read_only = strided.copy()
    read_only.flags.writeable = False
    columns = np.asfortranarray(strided)
    for value in (
        strided,
        columns,
        strided.copy().view(Sub),
        Interface(strided.copy()),
        Dlpack(),
        memoryview(strided.copy()),
        unaligned,
        read_only,
    ):
        assert np.array_equal(f(value, value), expected)
    with pytest.raises(UserError, match=r"R005.*list"):
        f([[1.0]], strided)
    with pytest.raises(UserError, match="R005"):
        f(None, strided)
    torch = sys.modules.get("torch")  # never imported for the test: it takes seconds
    if torch is not None:
        assert np.array_equal(f(torch.from_numpy(strided.copy()), strided), expected)


def test_errors(code: LoadedObject, make: Callable[..., Any]) -> None:
    f = make(add_binding(code, 6, 4))
    x = random(1, 6, 4)
    cases: list[tuple[str, tuple[Any, ...], dict[str, Any]]] = [
        ("R001", (x,), {}),
        ("R001", (x, x, x), {}),
        ("R002", (x, x.astype(np.float64)), {}),
        ("R002", (x, x.astype(">f4")), {}),
        ("R003", (x, x[0]), {}),
        ("R003", (x, x[:5]), {}),
        ("R003", (x, x.T), {}),
        ("R006", (x, x), {"out": np.zeros((6, 5), F32)}),
        ("R006", (x, x), {"out": np.zeros((6, 4))}),
        ("R006", (x, x), {"out": np.zeros((12, 4), F32)[::2]}),
        ("R006", (x, x), {"out": np.frombuffer(bytes(96), F32).reshape(6, 4)}),
        ("R006", (x, x), {"out": "z"}),
    ]
    for _ in range(2):
        for wanted, arguments, names in cases:
            with pytest.raises(UserError) as caught:
                f(*arguments, **names)
            assert caught.value.code == wanted
        with pytest.raises(TypeError):
            f(x, x, result=x)
        assert np.array_equal(f(x, x), x + x)


def test_times_of_phases(code: LoadedObject) -> None:
    model = ModelCall(two_step_binding(code, 300, 1000), threads=2)
    x = random(1, 300, 1000)
    (z, _), phases = model.timed(x, x)
    assert np.array_equal(z, (x * x + x) + x)
    assert len(phases) == 3 and all(ns > 1000 for ns in phases)
    assert model._contexts[0].native.clock == 0


def test_nothing_leaks(code: LoadedObject) -> None:
    model = ModelCall(two_step_binding(code, 30, 10))
    f = model.function
    x = random(1, 30, 10)
    out = (np.zeros_like(x), np.zeros_like(x))
    for _ in range(10):
        f(x, x)
    gc.collect()
    before = [sys.getrefcount(item) for item in (x, out, out[0], None, f, model)]
    blocks = sys.getallocatedblocks()
    for _ in range(2000):
        f(x, x)
        f(x, x, out=out)
        f(x, x, out=None)
    assert abs(sys.getallocatedblocks() - blocks) < 200
    after = [sys.getrefcount(item) for item in (x, out, out[0], None, f, model)]
    assert all(abs(b - a) < 50 for a, b in zip(before, after, strict=True))
    watch = weakref.ref(model)
    z = f(x, x)
    del model, f
    gc.collect()
    assert watch() is None
    assert np.array_equal(z[0], (x * x + x) + x)


def test_an_interrupted_refill_leaves_the_model_usable(code: LoadedObject) -> None:
    model = ModelCall(two_step_binding(code, 30, 10))
    f = model.function
    x = random(1, 30, 10)
    kept = [f(x, x)]
    context = model._contexts[0]
    context._stocks = []  # the next new array raises IndexError
    with pytest.raises(IndexError):
        for _ in range(5):
            kept.append(f(x, x))
    assert context.native.busy == 0
    context._stocks = [[], []]
    assert np.array_equal(f(x, x)[0], kept[0][0])


def test_the_gil_is_released_for_long_calls_only(code: LoadedObject) -> None:
    x = random(1, 2, 2)

    def keeps_it() -> bool:
        model = ModelCall(add_binding(code, 2, 2))
        model.function(x, x)
        return model._entry.release == 0

    assert any(keeps_it() for _ in range(100))  # the first one, when the machine is quiet
    x = random(1, 4000, 1000)
    long = ModelCall(add_binding(code, 4000, 1000), threads=1)
    long.function(x, x)
    assert long._entry.release == 1
    forced = ModelCall(add_binding(code, 4000, 1000), threads=1, release_gil=False)
    forced.function(x, x)
    assert forced._entry.release == 0
