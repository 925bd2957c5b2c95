"""Benchmark suites: fixed lists of rows in committed files, and the inputs of a row.

In: `suites/NAME.toml`. Out: `Workload`s, plain data that any worker process rebuilds by itself, and
inputs from a seed. Invariant: the list of rows of a suite is its file; options choose among the
rows or move their sizes, and never add or drop one silently.
"""

from __future__ import annotations

import fnmatch
import random
import tomllib
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from string import Template
from typing import TYPE_CHECKING, Any

from tilewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["Suite", "Workload", "choose", "input_specs", "jitter"]
__all__ += ["aligned_empty", "load_suite", "make_inputs", "output_specs", "suite_names"]

FORMAT = 1
FOLDER = Path(__file__).parent / "suites"


@dataclass(frozen=True)
class Workload:
    """One row of a suite, before anybody has run it."""

    suite: str
    name: str
    category: str
    dims: Mapping[str, int]
    dtype: str = "f32"
    program: str = ""
    model: str = ""
    onnx: tuple[Mapping[str, Any], ...] = ()
    constants: tuple[str, ...] = ()
    fixed: tuple[str, ...] = ()
    rotate: bool = False
    weight: float = 1.0

    @property
    def text(self) -> str:
        """The program with the sizes filled in."""
        return Template(self.program).substitute(self.dims).lstrip()

    def to_json(self) -> dict[str, Any]:
        """Plain data; `from_json` is the inverse."""
        return asdict(self)

    @staticmethod
    def from_json(data: Mapping[str, Any]) -> Workload:
        values = dict(data)
        for name in ("onnx", "constants", "fixed"):
            values[name] = tuple(values.get(name, ()))
        return Workload(**values)


@dataclass(frozen=True)
class Suite:
    """A list of rows, its tuning budget, and the figures that it reports."""

    name: str
    rows: tuple[Workload, ...]
    budget_s: float
    budget_for: str
    figures: tuple[str, ...] = field(default=())


def suite_names() -> list[str]:
    """The suites that this release has."""
    return sorted(path.stem for path in FOLDER.glob("*.toml"))


def input_specs(workload: Workload) -> dict[str, tuple[tuple[int, ...], str]]:
    """Shape and NumPy dtype of every input, constants included."""
    if workload.model:
        from tilewright.tools.wheels import MODELS

        model = MODELS[workload.model]
        shape = tuple(workload.dims[d] if isinstance(d, str) else d for d in model.shape)
        return {model.input_name: (shape, "int32" if model.content == "bytes" else "float32")}
    return {name: spec for name, *spec in _tensors(workload, "inputs")}  # type: ignore[misc]


def output_specs(workload: Workload) -> list[tuple[tuple[int, ...], str]]:
    """Shape and NumPy dtype of every output of a row that is given as a program."""
    return [(shape, dtype) for _, shape, dtype in _tensors(workload, "results")]


def _tensors(workload: Workload, which: str) -> list[tuple[str, tuple[int, ...], str]]:
    import numpy as np

    from tilewright.ir.program import parse_program

    program = parse_program(workload.text)
    if which == "inputs":
        tensors = list(program.inputs)
    else:
        tensors = [program.tensors[name] for name in program.results]
    return [
        (t.name, tuple(int(str(size)) for size in t.shape), str(np.dtype(t.dtype.np)))
        for t in tensors
    ]


def _unknown(kind: str, name: str, known: list[str]) -> UserError:
    import difflib

    near = difflib.get_close_matches(name, known, 1, 0.5)
    hint = (f"did you mean {near[0]}? " if near else "") + "known: " + ", ".join(known)
    return UserError("U001", f"there is no {kind} {name!r}", hint=hint)


def load_suite(name: str) -> Suite:
    """Read a suite. Errors: U001 for an unknown one, with the nearest name."""
    path = FOLDER / f"{name}.toml"
    if name not in suite_names():
        raise _unknown("suite", name, suite_names())
    data = tomllib.loads(path.read_text(encoding="utf-8"))
    if data.get("format") != FORMAT:
        raise UserError(
            "S002", f"suite {name} has format {data.get('format')}; this release knows {FORMAT}"
        )
    rows = tuple(Workload.from_json({"suite": name, **row}) for row in data["row"])
    return Suite(
        name, rows, float(data["budget_s"]), str(data["budget_for"]), tuple(data["figures"])
    )


def choose(
    suite: Suite, *, only: str | None = None, sample: int | None = None, seed: int = 0
) -> Suite:
    """Keep the rows that match a glob, then a random sample of them, in the suite's order.

    Errors: U001 when no row matches.
    """
    rows = suite.rows
    if only is not None:
        patterns = only.split(",")
        rows = tuple(row for row in rows if any(fnmatch.fnmatch(row.name, p) for p in patterns))
        if not rows:
            raise _unknown("workload", only, [row.name for row in suite.rows])
    if sample is not None and sample < len(rows):
        places = sorted(random.Random(seed).sample(range(len(rows)), sample))
        rows = tuple(rows[place] for place in places)
    return replace(suite, rows=rows)


def jitter(workload: Workload, seed: int) -> Workload:
    """Move every free size of 32 or more by +1 to +15; equal names move together."""
    dims = {}
    for name, size in workload.dims.items():
        if size >= 32 and name not in workload.fixed:
            size += random.Random(f"{seed}/{workload.name}/{name}").randint(1, 15)
        dims[name] = size
    return replace(workload, dims=dims)


def _fill(content: str, shape: tuple[int, ...], dtype: str, stream: Any) -> Array:
    import numpy as np

    if content == "bytes":
        return np.asarray(stream.integers(0, 257, shape), np.int32)
    if content == "pixels":  # what open-nsfw gets: BGR values less the mean
        return np.asarray(stream.uniform(-120.0, 140.0, shape), np.float32)
    if content == "image":
        return np.asarray(stream.uniform(-1.0, 1.0, shape), np.float32)
    return np.asarray(stream.standard_normal(shape, np.float32), dtype)


def make_inputs(
    workload: Workload, specs: Mapping[str, tuple[tuple[int, ...], str]], seed: int
) -> dict[str, Array]:
    """Inputs by name, the same in every process for one seed.

    specs: shape and NumPy dtype per input; constants take part with seed 0 whatever `seed` is.
    """
    import numpy as np

    content = "normal"
    if workload.model:
        from tilewright.tools.wheels import MODELS

        content = MODELS[workload.model].content
    inputs = {}
    for name, (shape, dtype) in specs.items():
        own = 0 if name in workload.constants else seed
        label = [ord(character) for character in f"{workload.name}/{name}"]
        stream = np.random.Generator(np.random.PCG64([own, *label]))
        array = _fill(content, shape, dtype, stream)
        if name in workload.constants and len(shape) > 1:
            # Weights scaled as a trained layer has them, so that outputs keep the inputs' size.
            array = array / np.asarray(np.sqrt(np.prod(shape[1:])), array.dtype)
        inputs[name] = aligned(array)
    return inputs


def aligned(array: Array) -> Array:
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
