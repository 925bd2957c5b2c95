"""The command line: what each command takes; what it does is in the other files of this folder.

In: argv. Out: results on standard output, progress and errors on standard error, JSON on request,
and the exit status of `outcome.py`. Invariant: this file imports only click; a command imports what
it needs when it runs.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from tilewright.config import DUMP_STAGES, TARGET_NAMES, parse_duration_s
from tilewright.errors import InternalError, TilewrightError
from tilewright.tools import outcome

if TYPE_CHECKING:
    from rich.console import Console

__all__ = ["cli"]

Command = TypeVar("Command", bound=Callable[..., Any])


@dataclass
class State:
    """What the options shared by all commands leave for the end of the command."""

    json_path: str | None = None


class Root(click.Group):
    """The group of all commands; it turns every end of a command into an exit status."""

    def main(
        self,
        args: Sequence[str] | None = None,
        prog_name: str | None = None,
        complete_var: str | None = None,
        standalone_mode: bool = True,
        **extra: Any,
    ) -> Any:
        state = extra.pop("obj", None) or State()
        try:
            status = super().main(args, prog_name, complete_var, False, obj=state, **extra)
            status = status if isinstance(status, int) else outcome.DONE
        except click.ClickException as error:
            error.show()
            status = outcome.WRONG_USE
        except (click.Abort, KeyboardInterrupt):
            click.echo("interrupted; what was measured is kept", err=True)
            status = outcome.INTERRUPTED
        except BrokenPipeError:  # the reader of our output went away; that is its right
            os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
            status = outcome.DONE
        except TilewrightError as error:
            status = _fail(error, state)
        except Exception as error:
            if os.environ.get("TILEWRIGHT_DEBUG", "0") != "0":
                raise
            status = _fail(outcome.as_internal(error), state)
        if standalone_mode:
            sys.exit(status)
        return status


def _fail(error: TilewrightError, state: State) -> int:
    kind = "internal error" if isinstance(error, InternalError) else "error"
    click.echo(f"{kind} {error}", err=True)
    if state.json_path is not None:
        try:
            outcome.write_json(outcome.error_json(error), state.json_path)
        except TilewrightError as second:
            click.echo(f"error {second}", err=True)
    return outcome.exit_status(error)


# ---- shared options ----------------------------------------------------------------------------


class Duration(click.ParamType[float]):
    """`30s`, `2m`, `250ms`, or seconds."""

    name = "duration"

    def convert(self, value: Any, param: Any, ctx: Any) -> float:
        try:
            return parse_duration_s(value)
        except ValueError as error:
            self.fail(f"{value!r} is not {error}", param, ctx)


def _keep_json_path(context: click.Context, _: click.Parameter, value: str | None) -> str | None:
    context.ensure_object(State).json_path = value
    return value


def json_option(command: Command) -> Command:
    return click.option(
        "--json",
        "json_path",
        metavar="PATH",
        is_eager=True,
        callback=_keep_json_path,
        help="Write the result as JSON; - is standard output.",
    )(command)


def machine_options(command: Command) -> Command:
    for option in (
        click.option("--db", type=click.Path(path_type=Path), help="The tuning database."),
        click.option("--target", type=click.Choice(TARGET_NAMES), help="Machine to compile for."),
        click.option("--threads", type=click.IntRange(1), metavar="N", help="Threads to run with."),
    ):
        command = option(command)
    return command


def dims_option(command: Command) -> Command:
    return click.option(
        "--dim", "dims", multiple=True, metavar="NAME=SIZE", help="Size of a symbolic dimension."
    )(command)


MODEL = click.argument("model", type=click.Path(path_type=Path))


def _dims(pairs: Sequence[str]) -> dict[str, int]:
    sizes = {}
    for pair in pairs:
        name, _, size = pair.partition("=")
        if not name or not size.isdigit():
            raise click.BadParameter(f"{pair!r} is not NAME=SIZE", param_hint="--dim")
        sizes[name] = int(size)
    return sizes


def _output() -> Console:
    """Where results go for people; nothing when JSON goes to standard output."""
    from tilewright.tools.progress import console

    output = console(sys.stdout)
    state = click.get_current_context().find_object(State)
    output.quiet = state is not None and state.json_path == "-"
    return output


def _json(data: Any) -> None:
    state = click.get_current_context().find_object(State)
    if state is not None and state.json_path is not None:
        outcome.write_json(data, state.json_path)


@click.group(cls=Root, context_settings={"help_option_names": ["-h", "--help"]})
@click.version_option(package_name="tilewright", prog_name="tilewright")
def cli() -> None:
    """Make tensor programs fast on the machine they run on, and prove that they are still right.

    Exit status: 0 done, 1 a check failed, 2 wrong use, 3 unsupported input or machine,
    4 internal error, 130 interrupted.
    """
    from tilewright.tools import logs

    logs.start()


# ---- models ------------------------------------------------------------------------------------


@cli.command()
@MODEL
@click.option("--budget", type=Duration(), help="Wall-clock time to spend; 0 means no tuning.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Save the compiled model.")
@dims_option
@machine_options
@json_option
def tune(
    model: Path,
    budget: float | None,
    output: Path | None,
    dims: Sequence[str],
    threads: int | None,
    target: str | None,
    db: Path | None,
    json_path: str | None,
) -> int:
    """Search for faster schedules of MODEL and keep them in the database."""
    from tilewright.tools import models

    result = models.tune(
        model,
        budget_s=budget,
        dims=_dims(dims),
        threads=threads,
        target=target,
        db=db,
        output=output,
    )
    _output().print(models.summary(result), markup=False)
    _json(result)
    return outcome.INTERRUPTED if result["interrupted"] else outcome.DONE


@cli.command()
@MODEL
@click.option("--input", "source", required=True, type=click.Path(path_type=Path), help=".npz")
@click.option("--output", type=click.Path(path_type=Path), help="Write the results: .npz")
@click.option("--frozen", is_flag=True, default=None, help="Time nothing; use what is recorded.")
@machine_options
@json_option
def run(
    model: Path,
    source: Path,
    output: Path | None,
    frozen: bool | None,
    threads: int | None,
    target: str | None,
    db: Path | None,
    json_path: str | None,
) -> None:
    """Run MODEL on the arrays of an .npz file; their names are the names of its inputs."""
    from tilewright.tools import models

    result = models.run(model, source, output, frozen=frozen, threads=threads, target=target, db=db)
    shown = _output()
    for name, facts in result["outputs"].items():
        shown.print(f"{name}: {facts['dtype']}{facts['shape']}", markup=False)
    _json(result)


@cli.command()
@MODEL
@click.option("--stage", required=True, type=click.Choice(DUMP_STAGES))
@click.option("--kernel", help="One kernel, by number or name.")
@click.option("-o", "--output", type=click.Path(path_type=Path), help="Folder: text + constants.")
@dims_option
@machine_options
@json_option
def dump(
    model: Path,
    stage: str,
    kernel: str | None,
    output: Path | None,
    dims: Sequence[str],
    threads: int | None,
    target: str | None,
    db: Path | None,
    json_path: str | None,
) -> None:
    """Print one stage of the compilation of MODEL; any printed stage but asm can be fed back in."""
    from tilewright.tools import models

    text = models.dump(
        model,
        stage,
        kernel=kernel,
        output=output,
        dims=_dims(dims),
        threads=threads,
        target=target,
        db=db,
    )
    if json_path != "-":
        click.echo(text, nl=not text.endswith("\n"))
    _json({"stage": stage, "kernel": kernel, "text": text})


@cli.command()
@MODEL
@click.option("--kernel", help="One kernel, by number or name.")
@click.option("--memory", is_flag=True, help="Buffers, lifetimes, and the peak.")
@click.option("--measure", is_flag=True, help="Run the model; times of kernels against bounds.")
@dims_option
@machine_options
@json_option
def explain(
    model: Path,
    kernel: str | None,
    memory: bool,
    measure: bool,
    dims: Sequence[str],
    threads: int | None,
    target: str | None,
    db: Path | None,
    json_path: str | None,
) -> None:
    """Say why definitions were or were not fused, which schedule was taken, and what bounds it."""
    from tilewright.tools import models

    text = models.explain(
        model,
        kernel=kernel,
        memory=memory,
        measure=measure,
        dims=_dims(dims),
        threads=threads,
        target=target,
        db=db,
    )
    if json_path != "-":
        click.echo(text, nl=not text.endswith("\n"))
    _json({"kernel": kernel, "text": text})


@cli.command()
@MODEL
@click.option("--seeds", type=click.IntRange(1), default=3, show_default=True, help="Inputs.")
@click.option("--self", "is_self", is_flag=True, help="Test it by its own results, no reference.")
@dims_option
@machine_options
@json_option
def check(
    model: Path,
    seeds: int,
    is_self: bool,
    dims: Sequence[str],
    threads: int | None,
    target: str | None,
    db: Path | None,
    json_path: str | None,
) -> int:
    """Compare what the compiled MODEL computes with the meaning of its Program.

    With --self, which also takes a saved model: test relations between its own results, and the
    math functions of this machine.
    """
    from tilewright.tools import models

    if is_self:
        from tilewright.tools import selfcheck

        found = selfcheck.self_check(
            model, seeds=seeds, dims=_dims(dims), threads=threads, target=target, db=db
        )
        _output().print(selfcheck.table(found))
        _json(found)
        return outcome.DONE if found["ok"] else outcome.CHECK_FAILED
    result = models.check(
        model, seeds=seeds, dims=_dims(dims), threads=threads, target=target, db=db
    )
    _output().print(models.check_table(result))
    _json(result)
    return outcome.DONE if result["ok"] else outcome.CHECK_FAILED


# ---- measuring ---------------------------------------------------------------------------------


@cli.group(invoke_without_command=True)
@click.option("--suite", default="spine", show_default=True)
@click.option("--only", metavar="GLOB", help="Only rows whose name or class matches.")
@click.option("--sample", type=click.IntRange(1), metavar="N", help="N rows, over all classes.")
@click.option("--seed", type=int, default=0, show_default=True, help="Of --sample.")
@click.option("--peers", metavar="NAME,...", help="Frameworks to compare with; none for none.")
@click.option("--budget", type=Duration(), help="Tuning time, as the suite counts it.")
@click.option("--jitter", type=int, metavar="SEED", help="Move the sizes of the rows a little.")
@click.option("--peers-from", type=click.Path(path_type=Path), help="Times of peers from a JSON.")
@click.option("--rounds", type=click.IntRange(11), help="Rounds a row; default: the suite's.")
@click.option("--resume", is_flag=True, help="Carry on an interrupted run of the same options.")
@machine_options
@json_option
@click.pass_context
def bench(
    context: click.Context,
    suite: str,
    only: str | None,
    sample: int | None,
    seed: int,
    peers: str | None,
    budget: float | None,
    jitter: int | None,
    peers_from: Path | None,
    rounds: int | None,
    resume: bool,
    threads: int | None,
    target: str | None,
    db: Path | None,
    json_path: str | None,
) -> int:
    """Time a suite against its peers, in interleaved rounds, every result verified."""
    if context.invoked_subcommand is not None:
        return outcome.DONE
    from tilewright.tools import bench as harness
    from tilewright.tools.progress import display

    named = None
    if peers is not None:
        named = tuple(peer for peer in peers.split(",") if peer not in ("", "none"))
    options = harness.Options(
        suite=suite,
        only=only,
        sample=sample,
        seed=seed,
        jitter=jitter,
        peers=named,
        threads=threads or 1,
        budget_s=budget,
        db=db,
        target=target,
        peers_from=peers_from,
        rounds=rounds,
        resume=resume,
    )
    with display(f"bench {suite}") as shown:
        result = harness.run(options, shown)
    output = _output()
    output.print(harness.table(result))
    for name, figure in result["figures"].items():
        value = figure["value"]
        shown_value = figure["how"] if value is None else f"{value:.4g} {figure['unit']}"
        output.print(f"{name}: {shown_value}", markup=False)
    _json(result)
    verified = result["figures"]["unverified_rows"]["value"] == 0
    return outcome.DONE if verified else outcome.CHECK_FAILED


@bench.command()
@click.argument("first", type=click.Path(path_type=Path))
@click.argument("second", type=click.Path(path_type=Path))
@json_option
def compare(first: Path, second: Path, json_path: str | None) -> None:
    """Compare two JSON files that `bench` wrote."""
    from tilewright.tools import compare as comparison

    result = comparison.compare(comparison.read(first), comparison.read(second))
    _output().print(comparison.table(result))
    _json(result)


@cli.command()
@click.option("--threads", type=click.IntRange(1), metavar="N", help="Measure 1 and N threads.")
@json_option
def calibrate(threads: int | None, json_path: str | None) -> None:
    """Measure the hardware descriptor of this machine and store it."""
    from tilewright.config import current
    from tilewright.machine.target import available_cpus
    from tilewright.tools import wiring
    from tilewright.tools.lock import timing_lock

    count = threads or current().num_threads or available_cpus()
    with timing_lock("calibrate"):
        facts = wiring.calibrate(sorted({1, count}))
    output = _output()
    for name, value in facts.items():
        output.print(f"{name}: {value}", markup=False)
    _json(facts)


@cli.command()
@click.argument("door", type=click.Choice(["onnx", "torch"]), default="onnx")
@click.option("--markdown", is_flag=True, help="The whole page, as the documentation has it.")
@json_option
def coverage(door: str, markdown: bool, json_path: str | None) -> None:
    """What a front end takes: its operators, from its table."""
    from tilewright.errors import TargetError
    from tilewright.tools import coverage as covered

    try:
        page = covered.DOORS[door][1]()
    except ModuleNotFoundError as error:
        raise TargetError(
            "U002", f"this needs the package {error.name}", hint=f"pip install 'tilewright[{door}]'"
        ) from None
    text = page if markdown else covered.counts(page)
    if json_path != "-":
        click.echo(text, nl=not text.endswith("\n"))
    _json({"door": door, "counts": covered.counts(page), "page": page})


@cli.command()
@json_option
def doctor(json_path: str | None) -> int:
    """Show every setting and its origin, what is installed, and what is missing."""
    from tilewright.tools import doctor as clinic

    facts = clinic.examine()
    clinic.show(facts, _output())
    _json(facts)
    return outcome.CHECK_FAILED if facts["problems"] else outcome.DONE


# ---- fuzzing -----------------------------------------------------------------------------------


@cli.command()
@click.option("--seed", type=click.IntRange(0), default=0, show_default=True)
@click.option("--seconds", type=Duration(), help="How long to run.  [default: 60s]")
@click.option("--count", type=click.IntRange(1), metavar="N", help="Cases to run, instead.")
@click.option("--corpus", type=click.Path(path_type=Path), help="Folder to carry on in.")
@click.option(
    "--kind", "kinds", multiple=True, type=click.Choice(("programs", "onnx", "schedules", "nests"))
)
@click.option("--target", "targets", multiple=True, type=click.Choice(TARGET_NAMES))
@click.option("--threads", type=click.IntRange(1, 64), default=2, show_default=True)
@json_option
def fuzz(
    seed: int,
    seconds: float | None,
    count: int | None,
    corpus: Path | None,
    kinds: Sequence[str],
    targets: Sequence[str],
    threads: int,
    json_path: str | None,
) -> int:
    """Run generated programs, models and schedules against the oracle, in children.

    --kind and --target may be given several times; by default all kinds and all targets that this
    machine runs are drawn. --threads: schedules are made for up to so many. Failing cases are
    reduced and kept in the folder of --corpus. Ctrl-C keeps what was counted.
    """
    from tilewright.tools import fuzz as harness

    result = harness.run(
        seed=seed,
        seconds=seconds,
        count=count,
        corpus=corpus,
        kinds=kinds,
        targets=targets,
        threads=threads,
    )
    output = _output()
    output.print(harness.table(result))
    for line in harness.lines(result):
        output.print(line, markup=False)
    _json(result)
    if result["interrupted"]:
        return outcome.INTERRUPTED
    return outcome.DONE if result["ok"] else outcome.CHECK_FAILED


# ---- the database ------------------------------------------------------------------------------


@cli.group()
def db() -> None:
    """The tuning database."""


def _database(path: Path | None, *, read_only: bool) -> Any:
    from tilewright.config import current
    from tilewright.tune.database import Database

    config = current(db=path)
    return Database(config.database_path, read_only=read_only or config.frozen)


DB_OPTION = click.option("--db", "path", type=click.Path(path_type=Path), help="The database.")


@db.command("list")
@DB_OPTION
@json_option
def db_list(path: Path | None, json_path: str | None) -> None:
    """List the tasks and how far each was tuned."""
    from dataclasses import asdict

    from tilewright.tools.progress import format_time_us

    with _database(path, read_only=True) as database:
        tasks = [asdict(task) for task in database.tasks()]
        rejected = database.rejections()
        where = str(database.path)
    output = _output()
    for task in tasks:
        best = "-" if task["best_ns"] is None else format_time_us(task["best_ns"] * 1e-3)
        ratio = "" if task["best_ratio"] is None else f", {task['best_ratio']:.2f}x of default"
        output.print(
            f"{task['label'] or task['task_key'][:12]} {task['dims']} {task['target']} "
            f"{task['threads']} threads: best {best}{ratio}, {task['timed']} timed, "
            f"{task['rejected']} rejected",
            markup=False,
        )
    output.print(f"{len(tasks)} tasks in {where}", markup=False)
    _json({"path": where, "tasks": tasks, "rejected": rejected})


@db.command("export")
@click.argument("file", type=click.Path(path_type=Path))
@DB_OPTION
@json_option
def db_export(file: Path, path: Path | None, json_path: str | None) -> None:
    """Write every record to FILE as JSON lines."""
    with _database(path, read_only=True) as database:
        count = database.export_jsonl(file)
    _output().print(f"{count} records written to {file}", markup=False)
    _json({"records": count, "file": str(file)})


@db.command("import")
@click.argument("file", type=click.Path(path_type=Path))
@DB_OPTION
@json_option
def db_import(file: Path, path: Path | None, json_path: str | None) -> None:
    """Merge the records of FILE, without duplicates."""
    with _database(path, read_only=False) as database:
        count = database.import_jsonl(file)
        total = len(database)
    _output().print(f"{count} new records of {file}, {total} in all", markup=False)
    _json({"new": count, "records": total})


@db.command("prune")
@click.option("--trials", type=click.IntRange(0), metavar="N", help="Keep N trials per task.")
@click.option("--older-than", type=Duration(), help="Remove records of that age.")
@DB_OPTION
@json_option
def db_prune(
    trials: int | None, older_than: float | None, path: Path | None, json_path: str | None
) -> None:
    """Remove old trials; confirmed results stay unless they are too old."""
    with _database(path, read_only=False) as database:
        count = database.prune(trials_per_task=trials, older_than_s=older_than)
        total = len(database)
    _output().print(f"{count} records removed, {total} left", markup=False)
    _json({"removed": count, "records": total})
