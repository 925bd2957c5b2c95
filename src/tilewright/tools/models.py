"""What the commands that take a MODEL do: tune, run, dump, explain, check.

In: a path and options. Out: plain data for `--json`, or text. Invariant: files are read before
anything is compiled, and results are written whole or not at all.
"""

from __future__ import annotations

import os
import time
from collections.abc import Mapping
from contextlib import nullcontext
from pathlib import Path
from typing import TYPE_CHECKING, Any

from tilewright.config import config as settings
from tilewright.config import current
from tilewright.errors import UserError
from tilewright.tools import wiring

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["check", "check_table", "dump", "explain", "run", "summary", "tune"]


def tune(
    path: Path,
    *,
    budget_s: float | None,
    dims: Mapping[str, int],
    threads: int | None,
    target: str | None,
    db: Path | None,
    output: Path | None,
) -> dict[str, Any]:
    """Tune a model within a budget, holding the timing lock; saves the result when asked to."""
    from tilewright.tools.lock import timing_lock
    from tilewright.tools.progress import display

    config = current(budget=budget_s, num_threads=threads, target=target, db=db)
    model = wiring.load_model(path)
    wiring.needs_program(model)
    started = time.monotonic()
    with display(f"tune {path.name}") as shown, timing_lock(f"tune {path.name}", say=shown.note):
        compiled = wiring.compile_model(
            model,
            dims=dims,
            tune=config.budget,
            threads=config.num_threads,
            target=config.target,
            db=config.database_path,
            frozen=config.frozen,
            on_event=shown.update,
        )
    if output is not None:
        compiled.save(output, self_test=True)
    return {
        "model": str(path),
        "seconds": time.monotonic() - started,
        "database": str(config.database_path),
        "saved": None if output is None else str(output),
        "interrupted": wiring.was_interrupted(compiled),
        "stats": dict(compiled.stats),
    }


def summary(result: Mapping[str, Any]) -> str:
    """The closing lines of `tune`, with the line that uses the result."""
    stats = result["stats"]
    end = "interrupted after" if result["interrupted"] else "tuned in"
    lines = [f"{result['model']}: {end} {result['seconds']:.1f} s"]
    for name in ("kernels_tuned", "kernels_compiled"):
        if stats.get(name) is not None:
            lines.append(f"{name.replace('_', ' ')}: {stats[name]}")
    lines.append(f"use it: tilewright run {result['model']} --frozen --db {result['database']}")
    return "\n".join(lines)


def read_arrays(path: Path) -> dict[str, Array]:
    """The arrays of an .npz file.

    Errors: U003 when it cannot be read, R005 for arrays of objects.
    """
    import zipfile

    import numpy as np

    hint = "write it with numpy.savez(path, NAME=array, ...)"
    try:
        opened = np.load(path, allow_pickle=False)
        if not hasattr(opened, "files"):
            raise UserError("U003", f"{path} is not an .npz file", where="--input", hint=hint)
        with opened as file:
            arrays = {}
            for name in file.files:
                try:
                    arrays[name] = file[name]
                except ValueError as error:
                    raise UserError(
                        "R005",
                        f"the array {name} of {path} holds Python objects",
                        where="--input",
                        hint="give numbers: array.astype(numpy.float32)",
                    ) from error
            return arrays
    except (OSError, zipfile.BadZipFile, EOFError, ValueError) as error:
        raise UserError(
            "U003", f"{path} cannot be read: {error}", where="--input", hint=hint
        ) from None


def write_arrays(path: Path, arrays: Mapping[str, Array]) -> None:
    """Write an .npz file. Errors: U003 when it cannot be written."""
    import numpy as np

    temporary = path.with_name(f".{path.name}.{os.getpid()}.npz")
    try:
        np.savez(temporary, **arrays)  # type: ignore[arg-type]
        temporary.replace(path)
    except OSError as error:
        raise UserError(
            "U003", f"{path} cannot be written: {error.strerror}", where="--output"
        ) from error


def run(
    path: Path,
    source: Path,
    output: Path | None,
    *,
    frozen: bool | None,
    threads: int | None,
    target: str | None,
    db: Path | None,
) -> dict[str, Any]:
    """Run a model once; without --frozen the database is only read as well, nothing is timed."""
    config = current(frozen=frozen, num_threads=threads, target=target, db=db)
    inputs = read_arrays(source)
    model = wiring.load_model(path)
    if wiring.is_compiled(model):
        compiled = model
    else:
        compiled = wiring.compile_model(
            model,
            example_inputs=inputs,
            tune=0.0,
            threads=config.num_threads,
            target=config.target,
            db=config.database_path,
            frozen=config.frozen,
        )
    with settings(num_threads=config.num_threads) if config.num_threads else nullcontext():
        results = compiled.run(inputs)  # an artifact has no threads of its own
    names = [spec.name for spec in compiled.output_specs]
    outputs = dict(zip(names, results, strict=True))
    if output is not None:
        write_arrays(output, outputs)
    return {
        "model": str(path),
        "output": None if output is None else str(output),
        "outputs": {
            name: {"dtype": str(array.dtype), "shape": list(array.shape)}
            for name, array in outputs.items()
        },
        "stats": dict(compiled.stats),
    }


def _compiled(
    path: Path,
    dims: Mapping[str, int],
    threads: int | None,
    target: str | None,
    db: Path | None,
) -> Any:
    """The model compiled; a printed stage as it is. Errors: U003 for an artifact."""
    config = current(num_threads=threads, target=target, db=db)
    model = wiring.load_model(path)
    if wiring.is_compiled(model):
        raise UserError(
            "U003",
            f"{path.name} is a saved model: it holds code, and no stages",
            where="MODEL",
            hint="give the model that it was made from",
        )
    if wiring.is_printed(model):
        return model.on(
            target=config.target,
            threads=config.num_threads,
            dims=dims,
            db=config.database_path,
            frozen=config.frozen,
        )
    return wiring.compile_model(
        model,
        dims=dims,
        tune=0.0,
        threads=config.num_threads,
        target=config.target,
        db=config.database_path,
        frozen=config.frozen,
    )


def dump(
    path: Path,
    stage: str,
    *,
    kernel: str | None,
    output: Path | None,
    dims: Mapping[str, int],
    threads: int | None,
    target: str | None,
    db: Path | None,
) -> str:
    """The text of one stage; with `output` also written there, its constants beside it."""
    compiled = _compiled(path, dims, threads, target, db)
    text: str = compiled.dump(stage, kernel=kernel, folder=output)
    return text


def explain(
    path: Path,
    *,
    kernel: str | None,
    memory: bool,
    measure: bool = False,
    dims: Mapping[str, int],
    threads: int | None,
    target: str | None,
    db: Path | None,
) -> str:
    """The compiler's reasons, as text."""
    compiled = _compiled(path, dims, threads, target, db)
    text: str = compiled.explain(kernel=kernel, memory=memory, measure=measure)
    return text


def check(
    path: Path,
    *,
    seeds: int,
    dims: Mapping[str, int],
    threads: int | None,
    target: str | None,
    db: Path | None,
) -> dict[str, Any]:
    """Compare the compiled model with the oracle on `seeds` inputs."""
    config = current(num_threads=threads, target=target, db=db)
    found = wiring.check_model(
        wiring.load_model(path),
        seeds=seeds,
        dims=dims,
        threads=config.num_threads,
        target=config.target,
        db=config.database_path,
    )
    rows = [
        {
            "output": verdict.name,
            "seed": verdict.seed,
            "ok": verdict.ok,
            "max_err": verdict.max_err,
            "allowed_err": verdict.allowed_err,
            "detail": verdict.detail,
        }
        for verdict in found
    ]
    return {"model": str(path), "ok": bool(rows) and all(row["ok"] for row in rows), "rows": rows}


def check_table(result: Mapping[str, Any]) -> Any:
    """The reports as a rich table."""
    from rich.table import Table

    table = Table(box=None, pad_edge=False)
    for name in ("output", "seed", "verdict", "error", "allowed"):
        table.add_column(name)
    for row in result["rows"]:
        verdict = "right" if row["ok"] else "WRONG"
        cells = (f"{row['max_err']:.3g}", f"{row['allowed_err']:.3g}")
        table.add_row(row["output"], str(row["seed"]), verdict, *cells)
    return table
