"""Every setting: its type, default, one-line meaning, and where its value came from.

In: `config(...)` contexts, `TILEWRIGHT_*` variables, `[tool.tilewright]` of a pyproject.toml (the
nearest one upwards of the working folder).
Out: `current()`, a typed value of all settings, and `settings()`, the table that `doctor` prints.
Invariant: an argument of a function wins over a context, a context over a variable, a variable over
the file, the file over the default; a wrong value is a `UserError` U003 that names its origin.
"""

from __future__ import annotations

import os
import re
import sys
from collections.abc import Callable, Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from types import ModuleType

from tilewright.errors import UserError

__all__ = [
    "SETTINGS",
    "Config",
    "Origin",
    "Setting",
    "config",
    "current",
    "parse_duration_s",
    "parse_size_bytes",
    "seconds_of",
    "settings",
    "value",
]

DUMP_STAGES = ("program", "derived", "kernels", "plan", "schedule", "loops", "llvm", "asm")
TARGET_NAMES = ("native", "x86-avx512", "x86-avx2", "x86-sse42", "aarch64")

_DURATION = re.compile(r"\s*(\d+(?:\.\d*)?|\.\d+)\s*(ms|s|m|min|h)?\s*")
_SECONDS = {"ms": 1e-3, "s": 1.0, "m": 60.0, "min": 60.0, "h": 3600.0}
_SIZE = re.compile(r"\s*(\d+(?:\.\d*)?)\s*([kmgt]?)(i?b)?\s*", re.IGNORECASE)


def parse_duration_s(value: object) -> float:
    """Read `30`, `30s`, `1.5m` or `250ms` as seconds.

    Errors: ValueError when it is not a duration of zero or more.
    """
    if isinstance(value, int | float) and not isinstance(value, bool):
        seconds = float(value)
    else:
        match = _DURATION.fullmatch(str(value))
        if match is None:
            raise ValueError("a duration such as 30s, 2m or 250ms")
        seconds = float(match[1]) * _SECONDS[match[2] or "s"]
    if not 0 <= seconds < float("inf"):
        raise ValueError("a duration of zero or more")
    return seconds


def seconds_of(budget: float | str | None) -> float:
    """A tuning budget in seconds: 30, "30s", "2m"; None is no tuning. Errors: U003."""
    try:
        return 0.0 if budget is None else parse_duration_s(budget)
    except ValueError as e:
        raise UserError(
            "U003", f"{budget!r} is no length of time", hint=f"write {e}, such as 30s"
        ) from None


def parse_size_bytes(value: object) -> int:
    """Read `1048576`, `512M` or `2GiB` as bytes; K, M, G, T are powers of 1024.

    Errors: ValueError when it is not a size.
    """
    if isinstance(value, int) and not isinstance(value, bool) and value >= 0:
        return value
    match = _SIZE.fullmatch(str(value))
    if match is None:
        raise ValueError("a size such as 512M or 2GiB")
    return int(float(match[1]) * 1024 ** " kmgt".index(match[2].lower() or " "))


def _boolean(value: object) -> bool:
    if isinstance(value, bool):
        return value
    text = str(value).strip().lower()
    if text in ("1", "true", "yes", "on"):
        return True
    if text in ("0", "false", "no", "off", ""):
        return False
    raise ValueError("one of 1, 0, true, false, yes, no, on, off")


def _integer(low: int, high: int) -> Callable[[object], int]:
    def parse(value: object) -> int:
        wanted = f"a whole number from {low} to {high}"
        if isinstance(value, bool) or not isinstance(value, int | str):
            raise ValueError(wanted)
        try:
            number = int(value)
        except ValueError:
            raise ValueError(wanted) from None
        if not low <= number <= high:
            raise ValueError(wanted)
        return number

    return parse


def _one_of(*choices: str) -> Callable[[object], str]:
    def parse(value: object) -> str:
        if value not in choices:
            raise ValueError("one of " + ", ".join(choices))
        return str(value)

    return parse


def _path(value: object) -> Path:
    if not isinstance(value, str | os.PathLike) or not str(value):
        raise ValueError("a path")
    return Path(value).expanduser()


def _optional(parse: Callable[[object], object]) -> Callable[[object], object]:
    return lambda value: None if value is None or value == "" else parse(value)


def _dump(value: object) -> str:
    text = str(value)
    match = re.fullmatch(r"([a-z]+)(,[^@]+)?(@\S+)?", text) if text else None
    if text and (match is None or match[1] not in (*DUMP_STAGES, "all")):
        stages = ", ".join((*DUMP_STAGES, "all"))
        raise ValueError(f"stage[,kernel][@pass] with a stage of {stages}")
    return text


def _logs(value: object) -> str:
    text = str(value)
    if text and not re.fullmatch(r"[+-]?[a-z_.]+(,[+-]?[a-z_.]+)*", text):
        raise ValueError("names of packages such as +tune,runtime,-codegen")
    return text


def _default_cache_dir() -> Path:
    import platformdirs

    return Path(platformdirs.user_cache_dir("tilewright", appauthor=False))


@dataclass(frozen=True)
class Config:
    """The value of every setting; the field names are the names of the settings."""

    cache_dir: Path
    cache_max_bytes: int
    num_threads: int | None
    pool: str
    target: str
    db: Path | None
    dump: str
    dump_dir: Path
    logs: str
    debug: int
    frozen: bool
    numerics: str
    symbolic: str
    budget: float
    seed: int
    wheels_dir: Path

    @property
    def database_path(self) -> Path:
        """The tuning database: `db`, or `tuning.sqlite` in the cache folder."""
        return self.db if self.db is not None else self.cache_dir / "tuning.sqlite"


@dataclass(frozen=True)
class Setting:
    """One setting: what it means, how its text is read, and what holds when nobody sets it."""

    name: str
    kind: str
    doc: str
    parse: Callable[[object], object]
    default: object
    default_text: str

    @property
    def variable(self) -> str:
        """The environment variable."""
        return "TILEWRIGHT_" + self.name.upper()


@dataclass(frozen=True)
class Origin:
    """One row of the table of `doctor`: a setting, its value, and what set it."""

    name: str
    value: object
    origin: str
    variable: str
    doc: str


def _table(
    *rows: tuple[str, str, object, str, Callable[[object], object], str],
) -> dict[str, Setting]:
    return {
        name: Setting(name, kind, doc, parse, default, default_text)
        for name, kind, default, default_text, parse, doc in rows
    }


SETTINGS: Mapping[str, Setting] = _table(
    ("cache_dir", "path", _default_cache_dir, "the user's cache folder", _path,
     "Folder of built objects, the tuning database and the machine's descriptor."),
    ("cache_max_bytes", "size", 2 << 30, "2GiB", parse_size_bytes,
     "Built objects beyond this total are removed, the longest unused first."),
    ("num_threads", "integer or empty", None, "CPUs that affinity and cgroup quota allow",
     _optional(_integer(1, 4096)), "Threads that a compiled model runs with."),
    ("pool", "name", "auto", "auto", _one_of("auto", "own", "openmp"),
     "Whose threads models run on: our own, or those of the OpenMP runtime that is loaded; `auto` "
     "shares that of PyTorch where PyTorch is imported."),
    ("target", "name", "native", "native", _one_of(*TARGET_NAMES),
     "Machine to compile for, and the most that the code of a loaded file may need: "
     + ", ".join(TARGET_NAMES) + "."),
    ("db", "path or empty", None, "tuning.sqlite in cache_dir", _optional(_path),
     "The tuning database."),
    ("dump", "stage[,kernel][@pass]", "", "nothing", _dump,
     "Stage to write to dump_dir: " + ", ".join((*DUMP_STAGES, "all")) + "."),
    ("dump_dir", "path", Path("tilewright-dump"), "tilewright-dump", _path,
     "Folder that dump writes to."),
    ("logs", "names", "", "nothing", _logs,
     "Packages whose log is shown, such as `+tune,runtime`; `+` shows details, `-` hides one."),
    ("debug", "integer", 0, "0", _integer(0, 7),
     "0 quiet, 1 summary, 2 kernels, 3 grouping, 4 schedules, 5 loops, 6 code, 7 rewrites."),
    ("frozen", "boolean", False, "0", _boolean,
     "Time nothing: use the records of the database, else the default schedule."),
    ("numerics", "name", "default", "default", _one_of("default", "strict"),
     "`strict` switches off what changes rounding beyond the order of a sum: convolutions in fewer "
     "multiplications, dropped denormal weights, products in matrix registers, where denormals "
     "count as zero and f32 is taken in pieces."),
    ("symbolic", "name", "auto", "auto", _one_of("auto", "always", "never"),
     "Which dims one build serves in a whole range of sizes: `auto` those of which a second size "
     "is asked for (the first one gets a build of its own), `always` all, `never` none."),
    ("budget", "duration", 60.0, "60s", parse_duration_s,
     "Wall-clock time that `tune` may spend when none is given; 0 means no tuning."),
    ("seed", "integer", 0, "0", _integer(0, 2**63 - 1),
     "Seed of search and of generated inputs."),
    ("wheels_dir", "path", Path("build/wheels"), "build/wheels", _path,
     "Folder of the wheels that hold the models of the demo and the benchmark suites."),
)  # fmt: skip

_context: ContextVar[dict[str, object] | None] = ContextVar("tilewright_config", default=None)
_files: dict[str, tuple[tuple[str, int] | None, dict[str, object]]] = {}


def _parse(setting: Setting, value: object, origin: str) -> object:
    try:
        return setting.parse(value)
    except ValueError as error:
        raise UserError(
            "U003",
            f"setting {setting.name}: expected {error}, got {value!r}",
            where=origin,
            hint=f"set {setting.variable} or tilewright.config({setting.name}=...)",
        ) from None


def _check_names(names: Mapping[str, object], origin: str) -> None:
    for name in names:
        if name not in SETTINGS:
            import difflib

            near = difflib.get_close_matches(name, SETTINGS, 1)
            hint = f"did you mean {near[0]}?" if near else "`tilewright doctor` lists the settings"
            raise UserError("U003", f"there is no setting {name!r}", where=origin, hint=hint)


def _nearest_pyproject(folder: Path) -> Path | None:
    for parent in (folder, *folder.parents):
        candidate = parent / "pyproject.toml"
        if candidate.is_file():
            return candidate
    return None


def _file_values() -> tuple[str, dict[str, object]]:
    """Return (path, [tool.tilewright]) of the nearest pyproject.toml, read when it changes."""
    try:
        folder = os.getcwd()
    except OSError:  # the working folder was removed
        return "", {}
    path = _nearest_pyproject(Path(folder))
    if path is None:
        return "", {}
    try:
        stamp = (str(path), path.stat().st_mtime_ns)
        cached = _files.get(folder)
        if cached is not None and cached[0] == stamp:
            return str(path), cached[1]
        text = path.read_text(encoding="utf-8")
    except OSError:
        return "", {}
    table: dict[str, object] = {}
    if "tilewright" in text:
        import tomllib

        try:
            tools = tomllib.loads(text).get("tool", {})
        except tomllib.TOMLDecodeError:
            tools = {}  # the file is broken for every tool; it is not ours to report
        found = tools.get("tilewright", {})
        if isinstance(found, dict):
            table = found
    _check_names(table, str(path))
    _files[folder] = (stamp, table)
    return str(path), table


def _resolve(name: str, file: tuple[str, dict[str, object]]) -> tuple[object, str]:
    setting = SETTINGS[name]
    stacked = _context.get()
    if stacked is not None and name in stacked:
        return stacked[name], "tilewright.config(...)"
    text = os.environ.get(setting.variable)
    if text is not None:
        return _parse(setting, text, setting.variable), setting.variable
    path, table = file
    if name in table:
        value = _parse(setting, table[name], path)
        if isinstance(value, Path) and not value.is_absolute():
            value = Path(path).parent / value
        return value, path
    value = setting.default
    return (value() if callable(value) else value), "default"


def current(**arguments: object) -> Config:
    """Return the value of every setting now; `arguments` that are not None win over all else.

    Errors: U003 for an unknown setting or a wrong value, wherever it was set.
    """
    _check_names(arguments, "argument")
    file = _file_values()
    values: dict[str, object] = {}
    for name, setting in SETTINGS.items():
        given = arguments.get(name)
        if given is not None:
            values[name] = _parse(setting, given, "argument")
        else:
            values[name] = _resolve(name, file)[0]
    return Config(**values)  # type: ignore[arg-type]


def value(name: str) -> object:
    """The value of one setting now. Errors: as `current`."""
    _check_names({name: None}, "argument")
    return _resolve(name, _file_values())[0]


@contextmanager
def config(**values: object) -> Iterator[Config]:
    """Set `values` inside a `with` block, for this thread and the tasks it starts.

    Example: `with tilewright.config(num_threads=1, debug=2): ...`
    Errors: U003 for an unknown setting or a wrong value, before the block is entered.
    """
    _check_names(values, "tilewright.config(...)")
    parsed = {
        name: _parse(SETTINGS[name], value, "tilewright.config(...)")
        for name, value in values.items()
    }
    token = _context.set({**(_context.get() or {}), **parsed})
    try:
        yield current()
    finally:
        _context.reset(token)


def settings() -> list[Origin]:
    """Return every setting with its value and what set it, in the order of the table."""
    file = _file_values()
    rows = []
    for name, setting in SETTINGS.items():
        value, origin = _resolve(name, file)
        rows.append(Origin(name, value, origin, setting.variable, setting.doc))
    return rows


class _CallableModule(ModuleType):
    """`tilewright.config` is this module and, called, the context manager: importing the module
    binds its name in the package, so both have to be one object."""

    def __call__(self, **values: object) -> AbstractContextManager[Config]:
        return _context_manager(**values)


_context_manager = config
sys.modules[__name__].__class__ = _CallableModule
globals()["config"] = sys.modules[__name__]
