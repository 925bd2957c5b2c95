"""Benchmark suites: fixed lists of rows in committed files, and the inputs of a row.

In: `suites/NAME.toml`. Out: `Workload`s, plain data that any worker process rebuilds by itself, and
inputs from a seed. Invariant: the list of rows of a suite is its file; options choose among the
rows or move their sizes, and never add or drop one silently.
"""

from __future__ import annotations

import ast
import fnmatch
import itertools
import operator
import random
import tomllib
from collections.abc import Callable, Mapping, Sequence
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from functools import lru_cache
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from tilewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Part", "Suite", "Workload", "bound_program", "choose", "input_specs", "jitter"]
__all__ += ["aligned_copy", "aligned_empty", "load_arrays", "load_suite", "make_inputs"]
__all__ += ["model_file", "output_specs", "peer_inputs", "save_arrays", "suite_names", "unknown"]

FORMAT = 1
FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Workload:
    """One row of a suite, before anybody has run it.

    program: index notation or Program text, where $NAME is a size. onnx, torch, jax, numpy: the
    same computation for the peers, one or more forms each. flops, bytes: formulas over the sizes,
    or empty where the Program is counted.
    """

    suite: str
    name: str
    category: str
    dims: Mapping[str, int]
    dtype: str = "f32"
    program: str = ""
    model: str = ""
    onnx: tuple[str, ...] = ()
    torch: tuple[str, ...] = ()
    jax: tuple[str, ...] = ()
    numpy: tuple[str, ...] = ()
    constants: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    inputs: Mapping[str, str] = field(default_factory=dict)
    derived: Mapping[str, str] = field(default_factory=dict)
    flops: str = ""
    bytes: str = ""
    rotate: bool = False
    fresh: bool = False
    weight: float = 1.0

    @property
    def text(self) -> str:
        """The program with the sizes filled in."""
        return self.fill(self.program).lstrip()

    def fill(self, template: str) -> str:
        """`template` with the sizes in place of $NAME."""
        derived = {name: self.number(formula) for name, formula in self.derived.items()}
        return Template(template).substitute({**self.dims, **derived})

    def number(self, formula: str) -> int:
        """The value of a formula over the sizes."""
        return _arithmetic(ast.parse(formula, mode="eval").body, self.dims)

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Workload:
        values = dict(data)
        for name in ("onnx", "torch", "jax", "numpy"):
            forms = values.get(name, ())
            values[name] = (forms,) if isinstance(forms, str) else tuple(forms)
        for name in ("constants", "fixed"):
            values[name] = tuple(values.get(name, ()))
        return Workload(**values)


def _arithmetic(node: ast.expr, sizes: Mapping[str, int]) -> int:
    match node:
        case ast.Constant(value=int(value)):
            return value
        case ast.Name(id=name):
            return sizes[name]
        case ast.BinOp(left=left, op=op, right=right):
            return _OPERATORS[type(op)](_arithmetic(left, sizes), _arithmetic(right, sizes))
    raise ValueError(f"a formula over sizes cannot hold {ast.unparse(node)}")


_OPERATORS: dict[type[ast.operator], Callable[[int, int], int]] = {
    ast.Add: operator.add,
    ast.Sub: operator.sub,
    ast.Mult: operator.mul,
    ast.FloorDiv: operator.floordiv,
    ast.Mod: operator.mod,
}


@dataclass(frozen=True)
class OpenSize:
    """A row of the suite, its dim that is left open, and the sizes that it is called with."""

    row: str
    dim: str
    sizes: tuple[int, ...]


@dataclass(frozen=True)
class Suite:
    """A list of rows, its tuning budget, and the figures that it reports; or a list of `parts`.

    open: rows whose model is also built with a size left open (tools/open_sizes.py).
    """

    name: str
    rows: tuple[Workload, ...]
    budget_s: float
    budget_for: str
    figures: tuple[str, ...] = field(default=())
    rounds: int = 15
    burst_s: float = 0.06
    peers: tuple[str, ...] = ()
    parts: tuple[Part, ...] = ()
    samples: int = 0
    open: tuple[OpenSize, ...] = ()


@dataclass(frozen=True)
class Part:
    """One part of a suite that is no list of workloads: see suites/doors.toml."""

    name: str
    module: str
    slices: int
    limit_s: float
    timed: bool = False


def suite_names() -> list[str]:
    """The suites that this release has."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def input_specs(workload: Workload) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and NumPy dtype of every input, constants included."""
    if workload.model:
        from tilewright.tools.wheels import MODELS
        from tilewright.tools.zoo import ZOO

        if workload.model in ZOO:
            given = ZOO[workload.model].inputs
            return {name: (shape, dtype) for name, (shape, dtype, _) in given.items()}
        model = MODELS[workload.model]
        shape = tuple(workload.dims[d] if isinstance(d, str) else d for d in model.shape)
        return {model.input_name: (shape, "int32" if model.content == "bytes" else "float32")}
    return {name: spec for name, *spec in _tensors(workload, "inputs")}  # type: ignore[misc]


def output_specs(workload: Workload) -> list[tuple[tuple[int, ...], str]]:
    """Shape and NumPy dtype of every output of a row that is given as a program."""
    return [(shape, dtype) for _, shape, dtype in _tensors(workload, "results")]


def _tensors(workload: Workload, which: str) -> list[tuple[str, tuple[int, ...], str]]:
    import numpy as np

    program = bound_program(workload)
    if which == "inputs":
        tensors = list(program.inputs)
    else:
        tensors = [program.tensors[name] for name in program.results]
    return [
        (t.name, tuple(int(str(size)) for size in t.shape), str(np.dtype(t.dtype.np)))
        for t in tensors
    ]


def bound_program(workload: Workload) -> Any:
    """The row's Program at the row's sizes; constants are inputs still.

    Errors: those of the notation; P001 where a size of the program is no size of the row.
    """
    return _bound(workload.text, tuple(sorted(workload.dims.items())))


@lru_cache(maxsize=256)
def _bound(text: str, dims: tuple[tuple[str, int], ...]) -> Any:
    from tilewright.frontend.notation import parse_notation

    program = parse_notation(text)
    known = {dim.name for dim in program.dims}
    bound = program.bind({name: size for name, size in dims if name in known})
    if bound.dims:
        names = ", ".join(dim.name for dim in bound.dims)
        raise UserError("P001", f"the row gives no size for {names}", hint="add it to `dims`")
    return bound


def unknown(kind: str, name: str, known: list[str]) -> UserError:
    """U001 for a name that is not among the known ones, with the nearest."""
    import difflib

    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = (f"did you mean {near[0]}? " if near else "") + "known: " + ", ".join(known)
    return UserError("U001", f"there is no {kind} {name!r}", hint=hint)


def load_suite(name: str) -> Suite:
    """Read a suite. Errors: U001 for an unknown one, with the nearest name."""
    path = FOLDER / f"{name}.toml"
    if name not in suite_names():
        raise unknown("suite", name, suite_names())
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if data.get("format") != FORMAT:
        raise UserError(
            "S002", f"suite {name} has format {data.get('format')}; this release knows {FORMAT}"
        )
    if "part" in data:
        parts = tuple(Part(**part) for part in data["part"])
        return Suite(name, (), 0.0, "suite", (), parts=parts, samples=int(data["samples"]))
    forms = data.get("form", {})
    rows = tuple(_row(name, row, forms) for row in data["row"])
    return Suite(
        name,
        rows,
        float(data["budget_s"]),
        str(data["budget_for"]),
        tuple(data["figures"]),
        int(data.get("rounds", 15)),
        float(data.get("burst_ms", 60.0)) * 1e-3,
        tuple(data.get("peers", ())),
        open=tuple(OpenSize(o["row"], o["dim"], tuple(o["sizes"])) for o in data.get("open", ())),
    )


def _row(suite: str, row: dict[str, Any], forms: Mapping[str, Any]) -> Workload:
    own = dict(row)
    shared = forms[own.pop("form")] if "form" in own else {}
    return Workload.from_json({"suite": suite, **shared, **own})


def choose(
    suite: Suite, *, only: str | None = None, sample: int | None = None, seed: int = 0
) -> Suite:
    """Keep the rows that match a glob, then an even sample of them, in the suite's order.

    only: globs of row names or categories, separated by commas. sample: so many rows, one from
    each of as many equal stretches of the list, so that every class keeps its share.
    Errors: U001 when no row matches.
    """
    rows = suite.rows
    if only is not None:
        patterns = only.split(",")
        rows = tuple(
            row
            for row in rows
            if any(fnmatch.fnmatch(name, p) for name in (row.name, row.category) for p in patterns)
        )
        if not rows:
            raise unknown("workload", only, [row.name for row in suite.rows])
    if sample is not None and sample < len(rows):
        stream = random.Random(seed)
        ends = [len(rows) * place // sample for place in range(sample + 1)]
        rows = tuple(
            rows[stream.randrange(low, high)] for low, high in itertools.pairwise(ends)
        )
    return replace(suite, rows=rows)


def jitter(workload: Workload, seed: int) -> Workload:
    """Move every free size of 32 or more by +1 to +15; equal names move together."""
    dims = {}
    for name, size in workload.dims.items():
        if size >= 32 and name not in workload.fixed:
            size += random.Random(f"{seed}/{workload.name}/{name}").randint(1, 15)
        dims[name] = size
    return replace(workload, dims=dims)


def _fill(
    content: str, shape: tuple[int, ...], dtype: str, stream: Any, sizes: Mapping[str, int]
) -> Array:
    """Values of one input; `content` is what docs/benchmarks.md lists under `inputs`."""
    import numpy as np

    kind, _, limit = content.partition(":")
    if limit:  # below:DIM
        top = sizes[limit] if limit in sizes else int(limit)
        return np.asarray(stream.integers(0, top, shape), dtype)
    match kind:
        case "bytes":
            return np.asarray(stream.integers(0, 257, shape), np.int32)
        case "pixels":  # what open-nsfw gets: BGR values less the mean
            return np.asarray(stream.uniform(-120.0, 140.0, shape), np.float32)
        case "image":
            return np.asarray(stream.uniform(-1.0, 1.0, shape), np.float32)
        case "flags":
            return np.asarray(stream.integers(0, 2, shape), np.bool_)
        case "unit":
            return np.asarray(stream.random(shape, np.float32), dtype)
        case "positive":
            return np.asarray(stream.random(shape, np.float32) + np.float32(0.5), dtype)
        case "negative":
            return np.asarray(-stream.random(shape, np.float32) - np.float32(0.5), dtype)
        case "near_one":  # long products stay in range
            tiny = stream.standard_normal(shape, np.float32) * np.float32(1e-3)
            return np.asarray(tiny + np.float32(1.0), dtype)
        case "spd":
            half = stream.standard_normal(shape, np.float32)
            square = half @ half.swapaxes(-1, -2) / np.float32(shape[-1])
            return np.asarray(square + np.eye(shape[-1], dtype=np.float32), dtype)
    if np.dtype(dtype).kind in "iu":
        low, high = (0, 256) if dtype == "uint8" else (-128, 128)
        return np.asarray(stream.integers(low, high, shape), dtype)
    return np.asarray(stream.standard_normal(shape, np.float32), dtype)


def make_inputs(
    workload: Workload, specs: Mapping[str, tuple[tuple[int, ...], str]], seed: int
) -> dict[str, Array]:
    """Inputs by name, the same in every process for one seed.

    specs: shape and NumPy dtype per input; constants take part with seed 0 whatever `seed` is.
    """
    import numpy as np

    content, contents = "normal", dict(workload.inputs)
    if workload.model:
        from tilewright.tools.wheels import MODELS
        from tilewright.tools.zoo import ZOO

        if workload.model in ZOO:
            given = ZOO[workload.model].inputs
            contents.update({name: what for name, (_, _, what) in given.items()})
        else:
            content = MODELS[workload.model].content
    inputs = {}
    for name, (shape, dtype) in specs.items():
        own = 0 if name in workload.constants else seed
        label = [ord(character) for character in f"{workload.name}/{name}"]
        stream = np.random.Generator(np.random.PCG64([own, *label]))
        what = contents.get(name, content)
        array = _fill(what, shape, dtype, stream, workload.dims)
        whole = array.dtype.kind in "biu"
        if name in workload.constants and what == "normal" and len(shape) > 1 and not whole:
            # Weights scaled as a trained layer has them, so that outputs keep the inputs' size.
            array = array / np.asarray(np.sqrt(np.prod(shape[1:])), array.dtype)
        inputs[name] = aligned_copy(array)
    return inputs


def model_file(workload: Workload) -> Path:
    """The ONNX file of a row that names a model. Errors: U002 where it must be downloaded first."""
    from tilewright.tools import wheels, zoo

    if workload.model in zoo.ZOO:
        return zoo.onnx_file(workload.model)
    return wheels.model_path(workload.model)


def peer_inputs(workload: Workload, seed: int = 1) -> tuple[dict[str, Array], dict[str, Array]]:
    """The inputs that change, and the constants, both by name."""
    everything = make_inputs(workload, input_specs(workload), seed)
    constants = {name: everything.pop(name) for name in workload.constants}
    return everything, constants


def save_arrays(path: str, arrays: Sequence[Array]) -> None:
    """Write arrays by position; dtypes that NumPy's format does not know keep their names."""
    import numpy as np

    held: dict[str, Any] = {"dtypes": np.array([array.dtype.name for array in arrays], "U16")}
    for place, array in enumerate(arrays):
        contiguous = np.ascontiguousarray(array).reshape(array.shape)
        known = contiguous.dtype.kind != "V" and contiguous.dtype.isbuiltin == 1
        held[f"arr_{place}"] = contiguous if known else contiguous.view(f"u{array.dtype.itemsize}")
    np.savez(path, **held)


def load_arrays(path: str) -> list[Array]:
    """What `save_arrays` wrote."""
    import ml_dtypes  # noqa: F401  registers its dtypes by name
    import numpy as np

    with np.load(path, allow_pickle=False) as file:
        dtypes = [np.dtype(str(name)) for name in file["dtypes"]]
        arrays = [file[f"arr_{place}"] for place in range(len(dtypes))]
    return [
        array if array.dtype == dtype else array.view(dtype)
        for array, dtype in zip(arrays, dtypes, strict=True)
    ]


def aligned_copy(array: Array) -> Array:
    """A copy at a 64-byte boundary, which every contestant gets alike."""
    copy = aligned_empty(array.shape, array.dtype)
    copy[...] = array
    return copy


def aligned_empty(shape: tuple[int, ...], dtype: Any) -> Array:
    """Uninitialised memory at a 64-byte boundary; on huge pages when it is large."""
    import numpy as np

    kind = np.dtype(dtype)
    size_bytes = int(np.prod(shape, dtype=np.int64)) * kind.itemsize
    raw: Array
    if size_bytes >= 1 << 22:
        raw = _huge(size_bytes)
    else:
        raw = np.empty(size_bytes + 64, np.uint8)
        raw = raw[-raw.ctypes.data % 64 :]
    array: Array = raw[:size_bytes].view(kind).reshape(shape)
    return array


def _huge(size_bytes: int) -> Array:
    import mmap

    import numpy as np

    page = 1 << 21
    memory = mmap.mmap(-1, size_bytes + 2 * page)
    if hasattr(mmap, "MADV_HUGEPAGE"):
        with suppress(OSError):  # a kernel without transparent huge pages
            memory.madvise(mmap.MADV_HUGEPAGE)
    raw: Array = np.frombuffer(memory, np.uint8)
    start = -raw.ctypes.data % page
    return raw[start:]
