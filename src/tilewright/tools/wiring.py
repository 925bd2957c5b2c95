"""The one file of `tools` that calls the compiler: all else goes through these functions.

In: paths, Programs, options as the command line has them. Out: what `tilewright.api` and its
neighbours return. Invariant: importing this file imports nothing of the compiler, so the command
line starts at once; no function here decides anything.
"""

from __future__ import annotations

import dataclasses
import importlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from tilewright.errors import UserError

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = [
    "CompiledModel",
    "TensorSpec",
    "Verdict",
    "calibrate",
    "candidate_cost",
    "check_model",
    "compare",
    "compile_model",
    "is_bilinear",
    "load_model",
    "machine_facts",
    "oracle",
    "probes",
    "program",
    "program_of",
    "version",
    "with_constants",
]


class TensorSpec(Protocol):
    """Name, dtype and shape of an input or output; a symbolic size is a string."""

    @property
    def name(self) -> str: ...
    @property
    def dtype(self) -> object: ...
    @property
    def shape(self) -> Sequence[object]: ...


class CompiledModel(Protocol):
    """What `tilewright.compile` returns, as far as the tools use it."""

    @property
    def input_specs(self) -> Sequence[TensorSpec]: ...
    @property
    def output_specs(self) -> Sequence[TensorSpec]: ...
    @property
    def stats(self) -> Mapping[str, Any]: ...
    def run(self, inputs: Mapping[str, Array]) -> list[Array]: ...
    def bind(self, inputs: Sequence[Array], outputs: Sequence[Array]) -> Callable[[], object]: ...
    def explain(
        self, *, kernel: str | None = None, memory: bool = False, measure: bool = False
    ) -> str: ...
    def dump(
        self, stage: str, *, kernel: str | None = None, folder: Path | None = None
    ) -> str: ...
    def save(self, path: Path | str, *, self_test: bool = False) -> None: ...


@dataclasses.dataclass(frozen=True)
class Verdict:
    """How one output compares with the oracle under the numeric policy."""

    ok: bool
    max_err: float
    allowed_err: float
    detail: str = ""
    name: str = ""
    seed: int = -1


def _public() -> Any:
    """The package's public names, as a user has them."""
    return importlib.import_module("tilewright")


def load_model(path: Path | str) -> Any:
    """Open MODEL of the command line: an ONNX file, index notation, or any printed stage.

    Errors: U003 when there is no such file; else those of the front ends.
    """
    path = Path(path)
    if not path.is_file():
        raise UserError(
            "U003", f"there is no file {path}", where="MODEL", hint="give an ONNX file or a program"
        )
    tw = _public()
    if path.suffix == ".twa":
        return tw.load(path)
    if path.suffix in (".onnx", ".pb", ".ort") or _is_binary(path):
        return tw.onnx.load(path)
    try:
        text = path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return tw.onnx.load(path)
    from tilewright.tools import stages

    held = stages.constants_beside(path)
    printed = stages.load(text, values=held)
    if printed is not None:
        return printed
    found = tw.program(text)
    missing = {key for _, key in found.constants} - set(found.values)
    if missing - set(held):
        return stages.without_constants(found)
    return dataclasses.replace(found, values={**found.values, **held}) if missing else found


def is_compiled(model: Any) -> bool:
    """Does it run as it is, as an artifact does?"""
    return hasattr(model, "input_specs") and hasattr(model, "run")


def is_printed(model: Any) -> bool:
    """Is it a stage below the program, or a program without its constants?"""
    from tilewright.tools.printed import Printed

    return isinstance(model, Printed)


def _is_binary(path: Path) -> bool:
    with path.open("rb") as file:
        return b"\0" in file.read(4096)


def program(text: str) -> Any:
    """Index notation as a Program."""
    return _public().program(text)


def needs_program(model: Any) -> None:
    """Errors: U003 for a stage below the program, and for an artifact."""
    if is_printed(model):
        what = "a program without its constants" if model.program else f"a printed {model.stage}"
        raise UserError(
            "U003",
            f"{what} cannot be tuned or checked",
            where="MODEL",
            hint="give the model, or its program with the constants beside it",
        )
    if is_compiled(model):
        raise UserError(
            "U003",
            "a saved model is compiled already",
            where="MODEL",
            hint="give the model that it was made from",
        )


def compile_model(
    model: Any,
    *,
    example_inputs: Mapping[str, Array] | None = None,
    dims: Mapping[str, int] | None = None,
    tune: float | None = None,
    threads: int | None = None,
    target: str | None = None,
    db: Path | None = None,
    frozen: bool = False,
    on_event: Callable[[Any], None] | None = None,
) -> CompiledModel:
    """Compile; `tune` is seconds; `on_event` is told the state of the search once a second.

    Errors: U003 for a stage that cannot run; those of `tilewright.compile`.
    """
    if is_printed(model):
        model.require_constants()
        machine = model.on(target=target, threads=threads, dims=dims, db=db, frozen=frozen)
        ready: CompiledModel = machine.runnable()
        return ready
    needs_program(model)
    tw = _public()
    extra: dict[str, Any] = {} if on_event is None else {"on_event": on_event}
    compiled: CompiledModel = tw.compile(
        model,
        example_inputs,
        dims=dict(dims) if dims else None,
        tune=tune,
        threads=threads,
        target=target,
        db=db,
        frozen=frozen,
        **extra,
    )
    return compiled


def program_of(model: Any) -> Any:
    """The Program of a loaded ONNX model; a Program is its own."""
    return getattr(model, "program", model)


def was_interrupted(compiled: Any) -> bool:
    """Did Ctrl-C end the search early? What was measured until then is kept and used."""
    tuning = getattr(getattr(compiled, "latest", None), "tuning", None)
    return bool(getattr(tuning, "interrupted", False))


def work(compiled: Any) -> dict[str, float]:
    """Operations and unique bytes of the program at the sizes that were compiled last."""
    from tilewright.tools.work import work_of

    counted = work_of(compiled.latest.program)
    return {
        "flops": counted.flops,
        "bytes": counted.bytes,
        "written_bytes": counted.written_bytes,
    }


def with_constants(program: Any, values: Mapping[str, Array]) -> Any:
    """The Program with some of its inputs turned into constants of the given values."""
    from tilewright.ir.program import array_key

    moved = [tensor for tensor in program.inputs if tensor.name in values]
    kept = tuple(tensor for tensor in program.inputs if tensor.name not in values)
    keys = {tensor.name: array_key(values[tensor.name]) for tensor in moved}
    return dataclasses.replace(
        program,
        inputs=kept,
        constants=(*program.constants, *((tensor, keys[tensor.name]) for tensor in moved)),
        values={**program.values, **{keys[name]: values[name] for name in keys}},
    )


def oracle(model: Any, inputs: Mapping[str, Array]) -> Any:
    """What the outputs for these inputs should be: everything that `compare` needs."""
    witness = importlib.import_module("tilewright.verify.witness")
    return witness.references(program_of(model), inputs)


def is_bilinear(model: Any, sizes: Mapping[str, int] | None, target: str = "native") -> bool:
    """Does the model hold convolutions that are computed in a form with fewer multiplications?

    target: the name of the machine that it is compiled for.
    """
    config = importlib.import_module("tilewright.config")
    derive = importlib.import_module("tilewright.derive")
    machine = importlib.import_module("tilewright.machine.target").Target.named(target)
    program = program_of(model)
    if sizes:
        program = program.bind(sizes)
    blind = dataclasses.replace(program, values={})  # the form does not depend on values
    strict = config.current().numerics == "strict"
    return any(d.rule == "bilinear" for d in derive.derived(blind, machine, strict)[1])


def compare(
    model: Any, outputs: Sequence[Array], expected: Any, *, bilinear: bool = False
) -> list[Verdict]:
    """Apply the numeric policy to every output."""
    verify = importlib.import_module("tilewright.verify.oracle")
    found = verify.compare_outputs(program_of(model), outputs, expected, bilinear=bilinear)
    return [_verdict(outcome) for outcome in found]


def _verdict(outcome: Any) -> Verdict:
    verdict = outcome.verdict
    return Verdict(
        bool(verdict.ok),
        float(verdict.max_err),
        float(verdict.allowed_err),
        str(verdict),
        outcome.output,
        outcome.seed,
    )


def check_model(
    model: Any,
    *,
    seeds: int,
    dims: Mapping[str, int] | None,
    threads: int | None,
    target: str | None,
    db: Path | None,
) -> list[Verdict]:
    """Compile, and compare every output with the oracle for `seeds` inputs."""
    verify = importlib.import_module("tilewright.verify.oracle")
    generate = importlib.import_module("tilewright.verify.generate")
    needs_program(model)
    program = program_of(model)
    sizes = {**generate.default_sizes(program), **(dims or {})}
    compiled = compile_model(model, dims=sizes, tune=0.0, threads=threads, target=target, db=db)
    bilinear = is_bilinear(model, sizes if program.dims else None)
    report = verify.check(compiled, program, seeds, sizes=sizes, bilinear=bilinear)
    return [_verdict(outcome) for outcome in report.outcomes]


def probes(threads: int) -> dict[str, float]:
    """Measure the peaks of the machine now; takes well under a second."""
    module = importlib.import_module("tilewright.runtime.calibrate")
    return {name: float(value) for name, value in module.probe(threads).items()}


def use_threads(threads: int) -> None:
    """Run with so many threads from the next call on, whatever a model was compiled for.

    Models that were compiled with a number of threads of their own keep it.
    """
    importlib.import_module("tilewright.runtime.pool").set_num_threads(threads)


def calibrate(threads: Sequence[int]) -> dict[str, Any]:
    """Measure and store the hardware descriptor; returns it as plain data."""
    module = importlib.import_module("tilewright.runtime.calibrate")
    return dict(module.calibrate(threads=tuple(threads)))


def candidate_cost() -> tuple[float, float]:
    """CPU milliseconds of one matmul candidate (lowered, built, linked) and Python's part of it."""
    from tilewright.tools.candidate import measure

    return measure()


def version() -> str:
    """The release that runs; `source` where the package is not installed."""
    from importlib import metadata

    try:
        return metadata.version("tilewright")
    except metadata.PackageNotFoundError:
        return "source"


def machine_facts() -> dict[str, Any]:
    """CPU name, features, caches and usable CPUs of this machine, as the compiler sees them.

    Errors: R012, R013 when the machine is not supported.
    """
    from tilewright.machine.target import Target, available_cpus

    target = Target.native()
    return {
        "target": target.name,
        "cpu": target.cpu,
        "vector_bits": target.vector_bits,
        "l1_bytes": target.l1_bytes,
        "l2_bytes": target.l2_bytes,
        "l3_bytes": target.l3_bytes,
        "cores": target.cores,
        "usable_cpus": available_cpus(),
    }
