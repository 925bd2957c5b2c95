"""Call a compiled model with arrays.

In: a `Binding` (or a function that makes one for given symbol values) and arrays from the caller.
Out: a `ModelCall` whose `function` is a CPython builtin: `function(*inputs, out=None)` returns one
array, or a tuple of arrays when there are several outputs.
Invariant: a returned array is never written by a later call (unless `reuse_outputs`); calls from
several threads at once run in contexts of their own and give the same bits; an array that does not
fit is a typed error before anything runs.

The usual call never enters Python code: `tw_call` checks the arrays, writes their addresses into a
free context and walks its steps. Python code here serves the rest: the first call, other sizes,
other kinds of arrays, strided or overlapping ones, and errors.
"""

from __future__ import annotations

import ctypes
import itertools
import sys
import sysconfig
import threading
import time
import weakref
from collections.abc import Callable, Mapping
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import NDArray

from tilewright.errors import InternalError, UserError
from tilewright.machine.target import Target
from tilewright.runtime.build import build_shared, shared_key
from tilewright.runtime.call_text import call_text
from tilewright.runtime.context import ArrayType, Binding, CallContext
from tilewright.runtime.exchange import array_of, dlpack_code, memory_of
from tilewright.runtime.jit import LoadedObject, load_object
from tilewright.runtime.pool import listen, num_threads, walker_address
from tilewright.runtime.pool_text import pool_text
from tilewright.runtime.tensor_layout import tensor_layout

__all__ = ["Bind", "ModelCall", "shared_objects"]

Bind = Callable[[Mapping[str, int]], Binding]

_C_CONTIGUOUS, _ALIGNED, _WRITEABLE = 0x1, 0x100, 0x400
_METH_FASTCALL, _METH_KEYWORDS = 0x80, 0x2
_MAX_CONTEXTS = 64
_SPARE_BYTES = 256 << 20  # contexts for other sizes are kept while they take no more than this
_RELEASE_NS = 10_000  # a call shorter than this keeps the GIL
_python = ctypes.pythonapi


class _NativeKind(ctypes.Structure):
    _fields_ = [
        ("dtype", ctypes.c_uint64),
        ("ndim", ctypes.c_int64),
        ("flags", ctypes.c_int64),
        ("code", ctypes.c_uint32),
        ("bytes", ctypes.c_uint32),
    ]


class _NativeEntry(ctypes.Structure):
    """What `tw_call` finds in its capsule, as `call_text` lays it out."""

    _fields_ = [
        ("inputs", ctypes.c_int64),
        ("outputs", ctypes.c_int64),
        ("array_type", ctypes.c_uint64),
        ("kinds", ctypes.c_uint64),
        ("contexts", ctypes.c_uint64),
        ("count", ctypes.c_int64),
        ("release", ctypes.c_int64),
        ("false", ctypes.c_uint64),
        ("out", ctypes.c_uint64),
        ("walk", ctypes.c_uint64),
        ("refill", ctypes.c_uint64),
        ("reuse", ctypes.c_int64),
        ("none", ctypes.c_uint64),
        ("tuple_type", ctypes.c_uint64),
        ("tensor_type", ctypes.c_uint64),
        ("read_tensor", ctypes.c_uint64),
        ("requires_grad", ctypes.c_uint64),
        ("tensor_at", ctypes.c_int64),
        ("keys_at", ctypes.c_int64),
        ("gradients_at", ctypes.c_int64),
        ("plain_keys", ctypes.c_uint64 * 2),
    ]


class _NativeCapsule(ctypes.Structure):
    _fields_ = [("entry", ctypes.c_uint64), ("python", ctypes.c_uint64)]


class _MethodDef(ctypes.Structure):
    _fields_ = [
        ("name", ctypes.c_char_p),
        ("function", ctypes.c_void_p),
        ("flags", ctypes.c_int),
        ("doc", ctypes.c_char_p),
    ]


@lru_cache(maxsize=1)
def _method() -> tuple[_MethodDef, LoadedObject]:
    """The one method definition that every model's builtin shares; never freed."""
    code = load_object(build_shared(call_text(Target.portable()))).keep_forever()
    method = _MethodDef(
        b"call",
        code.address("tw_call"),
        _METH_FASTCALL | _METH_KEYWORDS,
        b"Run the model on arrays; out= receives the result.",
    )
    _python.Py_IncRef(ctypes.py_object(method))
    return method, code


def shared_objects() -> list[tuple[str, bytes]]:
    """Keys and bytes of the objects that every model of this process runs on: pool and wrapper."""
    texts = (pool_text(Target.portable()), call_text(Target.portable()))
    return [(shared_key(t), build_shared(t)) for t in texts]


@lru_cache(maxsize=1)
def _is_native_possible() -> bool:
    """Whether objects of this interpreter and this NumPy lie in memory as `call_text` expects."""
    if sysconfig.get_config_var("Py_GIL_DISABLED") or sys.implementation.name != "cpython":
        return False
    if object.__basicsize__ != 16 or np.ndarray.__basicsize__ < 80:
        return False
    probe = np.zeros((3, 5, 2), np.float32)[:, ::2]
    base = id(probe)

    def word(offset: int) -> int:
        return ctypes.c_uint64.from_address(base + offset).value

    return (
        word(8) == id(np.ndarray)
        and word(16) == probe.ctypes.data
        and word(24) & 0xFFFFFFFF == 3
        and [ctypes.c_int64.from_address(word(32) + 8 * k).value for k in range(3)] == [3, 3, 2]
        and word(56) == id(probe.dtype)
        and word(64) & 0xFFFFFFFF == probe.flags.num
        and word(72) == 0
        and ctypes.c_uint32.from_address(base).value == sys.getrefcount(probe) - 1
    )


class ModelCall:
    """A model that can be called; see the module's text.

    `bind` makes the binding for symbol values that the inputs' sizes determine; `inputs` and
    `outputs` name those symbols in their shapes. `threads`: None follows `set_num_threads`.
    `release_gil`: None decides by the time of the first calls.
    """

    def __init__(
        self,
        bind: Binding | Bind,
        inputs: tuple[ArrayType, ...] | None = None,
        outputs: tuple[ArrayType, ...] | None = None,
        *,
        threads: int | None = None,
        release_gil: bool | None = None,
        reuse_outputs: bool = False,
    ) -> None:
        if isinstance(bind, Binding):
            binding = bind
            inputs, outputs = binding.inputs, binding.outputs
            self._bind: Bind = lambda symbols: binding
        else:
            self._bind = bind
        if inputs is None or outputs is None:
            raise InternalError("X001", "a model with symbolic sizes must declare its arrays")
        self.inputs = inputs
        self.outputs = outputs
        self.reuse_outputs = reuse_outputs
        self._threads = threads
        self._release_gil = release_gil
        self._lock = threading.Lock()
        self._contexts: list[CallContext] = []
        self._alive: dict[int, CallContext] = {}
        self._tables: list[ctypes.Array[ctypes.c_uint64]] = []
        self._walk = ctypes.CFUNCTYPE(None, ctypes.c_void_p)(walker_address())
        self.function: Callable[..., Any] = self._make_function()
        listen(self)

    # ------------------------------------------------------------------ the builtin

    def _make_function(self) -> Callable[..., Any]:
        """Build the CPython function; it keeps this object alive as long as itself."""
        if not _is_native_possible():
            return self._call
        kinds = [(a, _C_CONTIGUOUS | _ALIGNED) for a in self.inputs]
        kinds += [(a, _C_CONTIGUOUS | _ALIGNED | _WRITEABLE) for a in self.outputs]
        self._kinds = (_NativeKind * (1 + len(kinds)))(
            *(
                _NativeKind(
                    id(a.dtype), len(a.shape), flags, dlpack_code(a.dtype), a.dtype.itemsize
                )
                for a, flags in kinds
            )
        )
        names = [sys.intern(name) for name in ("out", "requires_grad")]
        # Weak, or entry -> method -> self -> entry would be a cycle that no collector sees.
        me = weakref.ref(self)

        def refill(context: int, output: int) -> NDArray[Any]:
            model = me()
            assert model is not None
            return model._alive[context].new_result(output)

        self._kept: list[Any] = [refill, names]
        self._entry = _NativeEntry(
            inputs=len(self.inputs),
            outputs=len(self.outputs),
            array_type=id(np.ndarray),
            kinds=ctypes.addressof(self._kinds),
            release=int(self._release_gil is not False),
            false=id(False),
            out=id(names[0]),
            walk=walker_address(),
            refill=id(refill),
            reuse=int(self.reuse_outputs),
            none=id(None),
            tuple_type=id(tuple),
            requires_grad=id(names[1]),
        )

        def call(*arrays: Any, **names: Any) -> Any:
            model = me()
            assert model is not None  # the builtin holds it
            return model._call(*arrays, **names)

        return self.function_before(call)

    def function_before(self, python: Callable[..., Any]) -> Callable[..., Any]:
        """A builtin that runs the model where it takes the arrays as they are, and otherwise
        returns what `python` does with the same arguments. It keeps this object alive."""
        if not hasattr(self, "_entry"):
            return python
        held = _NativeCapsule(ctypes.addressof(self._entry), id(python))
        self._kept += [held, python]
        new_capsule = ctypes.PYFUNCTYPE(
            ctypes.py_object, ctypes.c_void_p, ctypes.c_void_p, ctypes.c_void_p
        )(("PyCapsule_New", _python))
        new_function = ctypes.PYFUNCTYPE(
            ctypes.py_object, ctypes.POINTER(_MethodDef), ctypes.py_object, ctypes.py_object
        )(("PyCFunction_NewEx", _python))
        capsule = new_capsule(ctypes.addressof(held), None, None)
        function: Callable[..., Any] = new_function(ctypes.byref(_method()[0]), capsule, self)
        return function

    def _meet(self, value: Any) -> None:
        """Take tensors of this value's type as they are from now on, where `out=` is given."""
        if hasattr(self, "_entry") and not self._entry.tensor_type:
            layout = tensor_layout(value)
            if layout is not None:
                self._entry.read_tensor = layout.read
                self._entry.tensor_at = layout.tensor
                self._entry.keys_at = layout.keys
                self._entry.gradients_at = layout.gradients
                self._entry.plain_keys[:] = layout.plain
                self._entry.tensor_type = layout.type  # last, as calls look at it first

    # ------------------------------------------------------------------ everything unusual

    def _call(self, *arrays: Any, out: Any = None) -> Any:
        """The call for whatever `tw_call` does not recognize. Errors: UserError R001 to R006."""
        for array in arrays[:1]:
            self._meet(array)
        given = self._read_inputs(arrays)
        context = self._take(given)
        try:
            results = self._read_outputs(context, None if out is None else memory_of(out))
            for position, array in enumerate(given):
                if out is not None and any(np.may_share_memory(array, r) for r in results):
                    array = given[position] = array.copy()
                context.place(position, array.ctypes.data)
            for position, array in enumerate(results):
                context.place(len(given) + position, array.ctypes.data)
            self._run(context)
        finally:
            context.native.busy = 0
            self._forget_retired()
        if out is not None:
            return out
        return results[0] if len(results) == 1 else tuple(results)

    def timed(self, *arrays: Any) -> tuple[Any, list[int]]:
        """Call, and the time of each phase in nanoseconds."""
        given = self._read_inputs(arrays)
        context = self._take(given)
        readings = (ctypes.c_int64 * (len(context.binding.phases) + 1))()
        try:
            results = self._read_outputs(context, None)
            for position, array in enumerate((*given, *results)):
                context.place(position, array.ctypes.data)
            context.native.clock = ctypes.addressof(readings)
            self._walk(context.address)
        finally:
            context.native.clock = 0
            context.native.busy = 0
        phases = [after - before for before, after in itertools.pairwise(readings)]
        return (results[0] if len(results) == 1 else tuple(results)), phases

    def _run(self, context: CallContext) -> None:
        start_ns = time.perf_counter_ns()
        self._walk(context.address)
        if self._release_gil is None and hasattr(self, "_entry"):
            duration_ns = time.perf_counter_ns() - start_ns
            for _ in range(3):
                # A first run pays for cold memory; a model reads only its inputs and constants
                # before it writes, so another one gives the same and shows the true time.
                if _RELEASE_NS < duration_ns < 500 * _RELEASE_NS:
                    start_ns = time.perf_counter_ns()
                    self._walk(context.address)
                    duration_ns = min(duration_ns, time.perf_counter_ns() - start_ns)
            self._release_gil = duration_ns > _RELEASE_NS
            self._entry.release = int(self._release_gil)

    def _read_inputs(self, arrays: tuple[Any, ...]) -> list[NDArray[Any]]:
        if len(arrays) != len(self.inputs):
            names = ", ".join(array.name for array in self.inputs)
            raise UserError(
                "R001",
                f"{len(arrays)} arrays given, the model takes {len(self.inputs)}",
                hint=f"give, in this order: {names}" if names else "give none",
            )
        return [_as_input(k, a) for k, a in zip(self.inputs, arrays, strict=True)]

    def _solve(self, arrays: list[NDArray[Any]]) -> dict[str, int]:
        """Symbol values. Errors: UserError R003 a wrong size, R004 two values of a symbol."""
        symbols: dict[str, int] = {}
        for kind, array in zip(self.inputs, arrays, strict=True):
            for axis, (wanted, size) in enumerate(zip(kind.shape, array.shape, strict=True)):
                if isinstance(wanted, str):
                    if symbols.setdefault(wanted, size) != size:
                        raise UserError(
                            "R004",
                            f"{wanted} is {symbols[wanted]} but axis {axis} of input "
                            f"{kind.name!r} has size {size}",
                            hint="give arrays whose sizes agree",
                        )
                elif wanted is not None and wanted != size:
                    raise _wrong_shape(kind, array)
        for kind, array in zip(self.inputs, arrays, strict=True):
            for axis, name, slope, rest in kind.linear:
                symbols.setdefault(name, (array.shape[axis] - rest) // slope)
        return symbols

    def _take(self, arrays: list[NDArray[Any]]) -> CallContext:
        """A context for these sizes, marked busy; waits when too many calls are under way.

        Errors: UserError R003, R004 when the sizes do not fit the model.
        """
        symbols = self._solve(arrays)
        key = tuple(array.shape for array in arrays)
        while True:
            with self._lock:
                for context in self._contexts:
                    # Native code takes a context while it holds the GIL, and no bytecode between
                    # this test and the assignment lets go of it.
                    if context.shape_key == key and not context.native.busy:
                        context.native.busy = 1
                        return context
                self._make_room()
                if len(self._contexts) < _MAX_CONTEXTS:
                    return self._new_context(arrays, symbols)
            time.sleep(50e-6)

    def _make_room(self) -> None:
        """Give up free contexts of other sizes, the oldest first, until a new one may be made."""
        free = [context for context in self._contexts if not context.native.busy]
        spent = sum(context.memory_bytes for context in self._contexts)
        while free and (spent > _SPARE_BYTES or len(self._contexts) == _MAX_CONTEXTS):
            oldest = free.pop(0)
            spent -= oldest.memory_bytes
            self._contexts.remove(oldest)
            self._publish()

    def _new_context(self, arrays: list[NDArray[Any]], symbols: Mapping[str, int]) -> CallContext:
        binding = self._bind(symbols)
        for kind, array in zip(binding.inputs, arrays, strict=True):
            if array.shape != kind.shape:
                raise _wrong_shape(kind, array)
        context = CallContext(binding, num_threads() if self._threads is None else self._threads)
        context.native.busy = 1
        self._alive[context.address] = context
        self._contexts.append(context)
        self._publish()
        return context

    def _publish(self) -> None:
        """Show native code the contexts it may take; with a count of 0 it asks Python meanwhile."""
        table = (ctypes.c_uint64 * _MAX_CONTEXTS)(*(c.address for c in self._contexts))
        self._tables.append(table)
        if hasattr(self, "_entry"):
            self._entry.count = 0
            self._entry.contexts = ctypes.addressof(table)
            self._entry.count = len(self._contexts)
        del self._tables[:-1]
        self._forget_retired()

    def _forget_retired(self) -> None:
        """Free contexts that are neither offered nor in use."""
        if len(self._alive) > len(self._contexts):
            kept = {context.address for context in self._contexts}
            for address, context in list(self._alive.items()):
                if address not in kept and not context.native.busy:
                    self._alive.pop(address, None)  # another thread may do the same

    def threads_changed(self) -> None:
        """Make contexts anew at the next call; calls under way finish with what they have."""
        with self._lock:
            if self._threads is None and self._contexts:
                self._contexts = []
                self._publish()

    def _read_outputs(self, context: CallContext, out: Any) -> list[NDArray[Any]]:
        """The arrays to write. Errors: UserError R006."""
        kinds = context.binding.outputs
        if out is None:
            results: list[NDArray[Any]] = []
            for position in range(len(kinds)):
                array = context.newest_result(position) if self.reuse_outputs else None
                results.append(context.new_result(position) if array is None else array)
            return results
        arrays = (out,) if len(kinds) == 1 else out
        names = ", ".join(kind.name for kind in kinds)
        if not isinstance(arrays, tuple | list) or len(arrays) != len(kinds):
            raise UserError(
                "R006",
                f"out= must be a tuple of {len(kinds)} arrays",
                where=_describe(out),
                hint=f"give one for each of {names}",
            )
        for position, (kind, array) in enumerate(zip(kinds, arrays, strict=True)):
            wanted = f"a writable C-contiguous {kind.dtype} array of shape {list(kind.shape)}"
            if (
                not isinstance(array, np.ndarray)
                or array.dtype != kind.dtype
                or array.shape != kind.shape
                or not array.flags.carray
            ):
                raise UserError(
                    "R006",
                    f"out= for {kind.name!r} must be {wanted}",
                    where=_describe(array),
                    hint=f"make it with numpy.empty({list(kind.shape)}, {kind.dtype.name!r})",
                )
            if any(np.may_share_memory(array, other) for other in arrays[:position]):
                raise UserError(
                    "R006",
                    f"out= for {kind.name!r} overlaps another output",
                    hint="give arrays that share no memory",
                )
        return list(arrays)


def _as_input(kind: ArrayType, value: Any) -> NDArray[Any]:
    """A C-contiguous array of the declared dtype and rank; strided ones are copied."""
    array = value if type(value) is np.ndarray else array_of(f"input {kind.name!r}", value)
    if array.dtype.kind not in "biufcV" or array.dtype.names is not None:
        raise UserError(
            "R005",
            f"input {kind.name!r} is an array of {array.dtype}, which holds no numbers",
            hint=f"give numbers: numpy.array(values, {kind.dtype.name!r})",
        )
    if array.dtype != kind.dtype:
        raise UserError(
            "R002",
            f"input {kind.name!r} must be {kind.dtype}, got {array.dtype}",
            hint=f"convert it: x.astype({kind.dtype.name!r})",
        )
    if array.ndim != len(kind.shape):
        raise _wrong_shape(kind, array)
    if not array.flags.c_contiguous or not array.flags.aligned:
        array = np.array(array, order="C", ndmin=array.ndim)
    return array


def _wrong_shape(kind: ArrayType, array: NDArray[Any]) -> UserError:
    wanted = ", ".join("?" if size is None else str(size) for size in kind.shape)
    return UserError(
        "R003",
        f"input {kind.name!r} must have shape [{wanted}], got {list(array.shape)}",
        hint="reshape the array, or compile the model for other sizes",
    )


def _describe(value: Any) -> str:
    if isinstance(value, np.ndarray):
        return f"{value.dtype} array of shape {list(value.shape)}"
    return f"a {type(value).__module__}.{type(value).__qualname__}"
