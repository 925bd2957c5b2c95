"""`tilewright check --self`: a model tested by relations between its own results.

In: a saved model with the self-test that was kept with it, or any other MODEL, whose relations are
learned from its meaning. Out: plain data, a table. Invariant: what is judged is the output of the
emitted code; nothing that is judged is compared with a reference.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np

from tilewright.config import current
from tilewright.errors import UserError
from tilewright.machine.target import Target, available_cpus
from tilewright.tools import wiring
from tilewright.verify.reductions.mathtest import check_math
from tilewright.verify.reductions.models import (
    Outcome,
    Run,
    SelfTest,
    learn_model,
    run_self_test,
    same_bits,
)

__all__ = ["self_check", "table"]


def self_check(
    path: Path, *, seeds: int, dims: Mapping[str, int], threads: int | None, target: str | None,
    db: Path | None,
) -> dict[str, Any]:  # fmt: skip
    """Every relation on `seeds` inputs, and the math functions of the target.

    Errors: U003 for a saved model that holds no self-test.
    """
    config = current(num_threads=threads, target=target, db=db)
    model = wiring.load_model(path)
    rows: list[dict[str, Any]] = []
    if wiring.is_compiled(model):
        pairs = _saved(path, model)
    else:
        pairs = _learned(model, dims, config.num_threads, config.target, config.database_path)
    for name, runs, test in pairs:
        rows += [_row(name, o) for o in run_self_test(runs[0], test, seeds)]
        rows += [_row(name, o) for o in same_bits(runs, test, seeds)]
    made_for = Target.named(config.target or "native")
    level = {512: "avx512", 256: "avx2", 128: "sse42"}.get(made_for.vector_bits)
    if made_for.triple.startswith("x86") and level is not None:
        rows += [_row("math", o) for o in check_math(level=level)]
    return {"model": str(path), "ok": all(r["ok"] for r in rows), "rows": rows}


def _row(part: str, o: Outcome) -> dict[str, Any]:
    share = o.share if np.isfinite(o.share) else None
    return {"part": part, "relation": o.relation, "ok": o.ok, "share": share, "detail": o.detail}


def _by_position(model: Any) -> Run:
    names = [s.name for s in model.input_specs]
    return lambda arrays: model.run(dict(zip(names, arrays, strict=True)))


def _saved(path: Path, model: Any) -> Iterator[tuple[str, list[Run], SelfTest]]:
    """Each variant of a saved model, with one thread and with all."""
    from tilewright.runtime.package import load

    if not any(data for _, data in model.self_tests):
        raise UserError(
            "U003", f"{path.name} holds no self-test", where="MODEL",
            hint="save the model with self_test=True, or `tilewright tune MODEL -o FILE`",
        )  # fmt: skip
    runs = [_by_position(load(path, threads=n)) for n in dict.fromkeys((1, available_cpus()))]
    for sizes, data in model.self_tests:
        try:
            test = SelfTest.from_json(data)
            shapes = [
                tuple(n if isinstance(n, int) else sizes[n] for n in s.shape)
                for s in model.input_specs
            ]
            if shapes != [s.shape for s in test.inputs]:
                raise ValueError("its inputs have other shapes")
        except (KeyError, TypeError, ValueError, IndexError, AttributeError) as error:
            raise UserError(
                "R011", f"the self-test is damaged ({error})", where=str(path),
                hint="copy it again, or save the model anew with this release",
            ) from None  # fmt: skip
        yield ", ".join(f"{n}={v}" for n, v in sizes.items()) or "model", runs, test


def _learned(
    model: Any, dims: Mapping[str, int], threads: int | None, target: str | None, db: Path
) -> Iterator[tuple[str, list[Run], SelfTest]]:
    """A model compiled now; its relations come from what its Program means."""
    from tilewright.verify.generate import default_sizes

    wiring.needs_program(model)
    program = wiring.program_of(model)
    sizes = {**default_sizes(program), **dims}
    meaning = _meaning(program, sizes)
    test = learn_model(meaning, program, sizes)
    counts = (threads,) if threads else tuple(dict.fromkeys((1, available_cpus())))
    runs = []
    for n in counts:
        compiled = wiring.compile_model(
            model, dims=sizes, tune=0.0, threads=n, target=target, db=db
        )
        runs.append(_by_position(compiled))
    yield "model", runs, test


def _meaning(program: Any, sizes: Mapping[str, int]) -> Run:
    from tilewright.ir.interpreter import run_program

    names = [t.name for t in program.inputs]

    def run(arrays: Sequence[Any]) -> list[Any]:
        found = run_program(program, dict(zip(names, arrays, strict=True)), dims=sizes)
        return [np.asarray(y) for y in found]

    return run


def table(result: Mapping[str, Any]) -> Any:
    """One line per relation: the worst of its inputs."""
    from rich.table import Table

    out = Table(box=None, pad_edge=False)
    for name in ("part", "relation", "verdict", "of what is allowed"):
        out.add_column(name)
    worst: dict[tuple[str, str], dict[str, Any]] = {}
    for row in result["rows"]:
        key = (row["part"], row["relation"])
        kept = worst.get(key)
        if kept is None or (kept["ok"], -(kept["share"] or 0)) > (row["ok"], -(row["share"] or 0)):
            worst[key] = row
    for row in worst.values():
        share = "" if row["share"] is None else f"{100 * row['share']:.0f} %"
        out.add_row(row["part"], row["relation"], "holds" if row["ok"] else "BROKEN", share)
    return out
