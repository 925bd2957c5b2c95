"""What a person sees while a search or a benchmark runs.

In: states of a search (any object with the attributes of `State`) and one-line notes. Out: a
live table on a terminal, else one plain line a second; always on standard error, so that standard
output holds results only. Invariant: showing progress never raises and never decides anything.
"""

from __future__ import annotations

import os
import sys
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from typing import IO, TYPE_CHECKING, Protocol

if TYPE_CHECKING:
    from rich.console import Console
    from rich.live import Live
    from rich.table import Table

__all__ = ["Display", "State", "bar", "console", "display", "format_time_us"]

_LINE_EVERY_S = 1.0


class State(Protocol):
    """The attributes that a search reports; see `TuningEvent`."""

    @property
    def task(self) -> str: ...
    @property
    def done(self) -> int: ...
    @property
    def total(self) -> int | None: ...
    @property
    def best_us(self) -> float | None: ...
    @property
    def ratio(self) -> float | None: ...
    @property
    def rejected(self) -> Mapping[str, int]: ...
    @property
    def elapsed_s(self) -> float: ...
    @property
    def left_s(self) -> float | None: ...
    @property
    def finished(self) -> bool: ...


def format_time_us(microseconds: float | None) -> str:
    """Three significant digits with a unit: `1.23 ms`."""
    if microseconds is None:
        return "-"
    for unit, scale in (("s", 1e6), ("ms", 1e3), ("us", 1.0)):
        if microseconds >= scale:
            value = microseconds / scale
            digits = 2 if value < 10 else 1 if value < 100 else 0
            return f"{value:.{digits}f} {unit}"
    return f"{microseconds * 1e3:.0f} ns"


def console(file: IO[str] | None = None) -> Console:
    """A rich console on standard error that honours NO_COLOR and a dumb terminal."""
    from rich.console import Console

    stream = file or sys.stderr
    return Console(
        file=stream,
        no_color=bool(os.environ.get("NO_COLOR")) or None,
        highlight=False,
        soft_wrap=not stream.isatty(),
    )


def _line(state: State) -> str:
    total = "" if state.total is None else f"/{state.total}"
    parts = [f"{state.task}: {state.done}{total} tried", f"best {format_time_us(state.best_us)}"]
    if state.ratio is not None:
        parts.append(f"{state.ratio:.2f}x of default")
    if state.rejected:
        reasons = ", ".join(f"{count} {code}" for code, count in sorted(state.rejected.items()))
        parts.append(f"rejected {reasons}")
    if state.left_s is not None:
        parts.append(f"{max(0.0, state.left_s):.0f} s left")
    return ", ".join(parts)


class Display:
    """Shows states and notes; made by `display`."""

    def __init__(self, title: str, output: Console, live: Live | None) -> None:
        self.title = title
        self.states: dict[str, State] = {}
        self._output = output
        self._live = live
        self._next_line_s = 0.0

    def update(self, state: State) -> None:
        """Show the newest state of a task; cheap enough to be called for every candidate."""
        known = self.states.get(state.task)
        self.states[state.task] = state
        now = time.monotonic()
        urgent = state.finished and not (known is not None and known.finished)
        if now < self._next_line_s and not urgent:
            return
        self._next_line_s = now + (0.1 if self._live is not None else _LINE_EVERY_S)
        if self._live is not None:
            self._live.update(self._table())
        else:
            self._output.print(_line(state), markup=False)

    def note(self, line: str) -> None:
        """Print one line above the live table, or among the plain lines."""
        self._output.print(line, markup=False)

    def _table(self) -> Table:
        from rich.table import Table

        table = Table(title=self.title, title_justify="left", box=None, pad_edge=False)
        table.add_column("task")
        for name in ("tried", "best", "of default", "rejected", "time"):
            table.add_column(name, justify="right")
        height = max(4, self._output.size.height - 6)
        for state in list(self.states.values())[-height:]:
            total = "" if state.total is None else f"/{state.total}"
            table.add_row(
                state.task,
                f"{state.done}{total}",
                format_time_us(state.best_us),
                "-" if state.ratio is None else f"{state.ratio:.2f}x",
                str(sum(state.rejected.values())) if state.rejected else "",
                f"{state.elapsed_s:.1f} s",
                style="dim" if state.finished else None,
            )
        newest = next(reversed(self.states.values()))
        if newest.left_s is not None:
            table.caption = f"{max(0.0, newest.left_s):.0f} s left; Ctrl-C keeps what was measured"
            table.caption_justify = "left"
        return table


@contextmanager
def bar(title: str) -> Iterator[Callable[[float | None, str], None]]:
    """A progress bar on a terminal, one plain line every ten seconds elsewhere; takes the share
    that is done (None: not known) and a line of facts.
    """
    output = console()
    if not output.is_terminal or output.is_dumb_terminal:
        last = time.monotonic()

        def say(share: float | None, facts: str) -> None:
            nonlocal last
            if time.monotonic() - last >= 10.0:
                last = time.monotonic()
                done = "" if share is None else f"{min(share, 1.0):.0%}, "
                output.print(f"{title}: {done}{facts}", markup=False)

        yield say
        return
    from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

    columns = (
        TextColumn(title),
        BarColumn(),
        TimeRemainingColumn(),
        TextColumn("{task.fields[facts]}"),
    )
    with Progress(*columns, console=output) as progress:
        task = progress.add_task(title, total=1.0, facts="")

        def show(share: float | None, facts: str) -> None:
            progress.update(task, completed=min(share or 0.0, 1.0), facts=facts)

        yield show


@contextmanager
def display(title: str, *, output: Console | None = None, quiet: bool = False) -> Iterator[Display]:
    """A live table on a terminal, plain lines elsewhere, nothing when `quiet`."""
    output = output or console()
    if quiet:
        output.quiet = True
    if quiet or not output.is_terminal or output.is_dumb_terminal:
        yield Display(title, output, None)
        return
    from rich.live import Live

    with Live(console=output, refresh_per_second=4, transient=False) as live:
        shown = Display(title, output, live)
        yield shown
        if shown.states:
            live.update(shown._table())
