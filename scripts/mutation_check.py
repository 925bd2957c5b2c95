"""Mutation check: are changes of behaviour in the source caught by the default tests?

    python scripts/mutation_check.py reach  WORK              which functions each test calls (one suite run)
    python scripts/mutation_check.py run    WORK [--count 40] [--seed 0] [--json OUT]
    python scripts/mutation_check.py show   WORK [--count 40] [--seed 0]

WORK is an empty folder; it gets a copy of the committed source at HEAD and everything that is
written. `run` draws mutants by seed: folder by folder (lower, codegen, runtime, derive), an operator
that has a place there, a place. Each is put into the copy, one at a time, and the tests run that call
its function, quickest first, until one fails. A mutant that the quick ones do not notice meets all that
call its function, and one that no test calls in its own process the whole default suite. Runs are resumable: what is known is in WORK/results.json.
"""

from __future__ import annotations

import argparse
import json
import os
import random
import shutil
import subprocess
import sys
import time
from dataclasses import asdict
from pathlib import Path
from typing import Any

ROOT = Path(__file__).resolve().parents[1]
HERE = Path(__file__).resolve().parent / "mutation"
sys.path.insert(0, str(HERE))

from operators import Site, apply, sites  # noqa: E402

FOLDERS = ("lower", "codegen", "runtime", "derive")
# Left out of every run: what needs torch, which the default suite does not install.
SKIP = ["--ignore=tests/unit/torch", "--ignore=tests/unit/frontend/torch"]
FIRST_S = 60.0  # seconds of tests that are tried before all others


def copy_source(work: Path) -> Path:
    """The committed source, in WORK/tree."""
    tree = work / "tree"
    if not tree.exists():
        tree.mkdir(parents=True)
        archive = subprocess.run(
            ["git", "archive", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, check=True
        ).stdout
        subprocess.run(["tar", "-x", "-C", tree], input=archive, check=True)
        commit = subprocess.run(
            ["git", "rev-parse", "HEAD"], cwd=ROOT, stdout=subprocess.PIPE, text=True, check=True
        ).stdout.strip()
        (work / "commit").write_text(commit)
        if (ROOT / "build").exists():
            (tree / "build").symlink_to((ROOT / "build").resolve())
    return tree


def draw(tree: Path, count: int, seed: int) -> list[tuple[str, Site]]:
    """`count` different mutants."""
    rng = random.Random(seed)
    table: dict[str, dict[str, list[tuple[str, Site]]]] = {}
    for folder in FOLDERS:
        groups = table.setdefault(folder, {})
        for path in sorted((tree / "src/tilewright" / folder).rglob("*.py")):
            name = str(path.relative_to(tree / "src/tilewright"))
            for site in sites(path.read_text()):
                groups.setdefault(site.operator, []).append((name, site))
    chosen: list[tuple[str, Site]] = []
    while len(chosen) < count:
        groups = table[FOLDERS[len(chosen) % len(FOLDERS)]]
        mutant = rng.choice(groups[rng.choice(sorted(groups))])
        if mutant not in chosen:
            chosen.append(mutant)
    return chosen


def environment(work: Path, **more: str) -> dict[str, str]:
    """A cache of its own, so that no mutant's object outlives it."""
    cache = work / "cache"
    shutil.rmtree(cache, ignore_errors=True)
    kept = {k: v for k, v in os.environ.items() if not k.startswith("TILEWRIGHT_")}
    kept.pop("PYTHONPATH", None)
    return kept | {"XDG_CACHE_HOME": str(cache), "PYTHONDONTWRITEBYTECODE": "1", **more}


def reach(work: Path) -> None:
    """Run the suite once with the plugin `reach`."""
    tree = copy_source(work)
    more = {"TILEWRIGHT_REACH": str(work / "reach.json")}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "reach", "-p", "no:cacheprovider"]
    command += ["--timeout", "1200", *SKIP]
    env = environment(work, **more) | {"PYTHONPATH": f"{HERE}:{tree / 'src'}"}
    raise SystemExit(subprocess.run(command, cwd=tree, env=env).returncode)


def function_line(source: str, site: Site) -> list[int]:
    """First lines of the functions around a site, innermost first."""
    import ast

    around = [
        node for node in ast.walk(ast.parse(source))
        if isinstance(node, ast.FunctionDef | ast.Lambda)
        and node.lineno <= site.line <= (node.end_lineno or 0)
    ]  # fmt: skip
    lines = []
    for node in sorted(around, key=lambda n: -n.lineno):
        first = node.lineno
        for d in getattr(node, "decorator_list", []):
            first = min(first, d.lineno)
        lines.append(first)
    return lines


def run_tests(work: Path, tests: list[str], limit_s: float) -> tuple[str, str]:
    """("passed" or "failed" or "timeout", the first failure)."""
    command = [sys.executable, "-m", "pytest", "-x", "-q", "-p", "no:cacheprovider", "--timeout=150"]
    listed = work / "tests.txt"
    listed.write_text("\n".join(tests))
    command += [f"@{listed}"] if tests else SKIP
    env = environment(work, PYTHONPATH=str(work / "tree/src"))
    try:
        done = subprocess.run(
            command, cwd=work / "tree", env=env, timeout=limit_s, text=True,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
        )  # fmt: skip
    except subprocess.TimeoutExpired as error:
        return "timeout", str(error.stdout)[-300:]
    if done.returncode == 0:
        return "passed", ""
    lines = [x for x in done.stdout.splitlines() if x.startswith(("FAILED", "ERROR", "E  "))]
    return "failed", "\n".join(lines[-3:])[:600] or done.stdout[-400:]


def related(work: Path, name: str, site: Site, reached: dict[str, Any]) -> list[str]:
    """The tests that call the function of a site, quickest first; all for the body of a module."""
    functions = function_line((work / "tree/src/tilewright" / name).read_text(), site)
    wanted = f"{name}:{functions[0]}" if functions else None
    found = [
        (entry["seconds"], test) for test, entry in reached.items()
        if wanted is None or wanted in entry["functions"]
    ]  # fmt: skip
    return [test for _, test in sorted(found)]


def test_one(work: Path, name: str, site: Site, tests: list[str], stage: str) -> dict[str, Any]:
    """Put the mutant in, run tests (all of them where none is named), take it out."""
    path = work / "tree/src/tilewright" / name
    source = path.read_text()
    start = time.monotonic()
    path.write_text(apply(source, site))
    try:
        status, detail = run_tests(work, tests, 3600)
    finally:
        path.write_text(source)
    return {
        "file": name, **asdict(site), "caught": status != "passed", "by": stage, "how": status,
        "detail": detail, "tests": len(tests), "seconds": round(time.monotonic() - start, 1),
    }  # fmt: skip


def first_tests(tests: list[str], reached: dict[str, Any]) -> list[str]:
    """As many as fit into FIRST_S."""
    out, total = [], 0.0
    for test in tests:
        total += reached[test]["seconds"]
        if total > FIRST_S and out:
            break
        out.append(test)
    return out


def main() -> None:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("command", choices=["reach", "run", "show"])
    parser.add_argument("work", type=Path)
    parser.add_argument("--count", type=int, default=40)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    work: Path = options.work.resolve()
    work.mkdir(parents=True, exist_ok=True)
    if options.command == "reach":
        reach(work)
    tree = copy_source(work)
    chosen = draw(tree, options.count, options.seed)
    if options.command == "show":
        for name, site in chosen:
            print(f"{name}:{site.line} {site.function} [{site.operator}] {site.old!r} -> {site.text!r}")
        return
    reached = json.loads((work / "reach.json").read_text())
    store = work / "results.json"
    results: dict[str, Any] = json.loads(store.read_text()) if store.exists() else {}
    # First the quick tests of every mutant; then all tests that can see the ones that are left.
    for stage in ("quick related tests", "all related tests"):
        for k, (name, site) in enumerate(chosen):
            key = f"{options.seed}/{k}"
            known = results.get(key)
            if known is not None and (known["caught"] or known["by"] == "all related tests"):
                continue
            if known is not None and stage == "quick related tests":
                continue
            tests = related(work, name, site, reached)
            if stage == "quick related tests":
                tests = first_tests(tests, reached)
                if not tests:
                    continue  # only child processes call it, as far as is known: the whole suite
            results[key] = {"mutant": k, **test_one(work, name, site, tests, stage)}
            store.write_text(json.dumps(results, indent=1))
            r = results[key]
            print(f"{k} {name}:{site.line} {'caught' if r['caught'] else 'SURVIVED'} "
                  f"by {r['by']} in {r['seconds']} s", flush=True)  # fmt: skip
    mine = [results[f"{options.seed}/{k}"] for k in range(options.count)]
    summary = {
        "command": f"python scripts/mutation_check.py run WORK --count {options.count} "
        f"--seed {options.seed}",
        "commit": (work / "commit").read_text(),
        "mutants": len(mine),
        "caught": sum(r["caught"] for r in mine),
        "survivors": [r for r in mine if not r["caught"]],
        "all": mine,
    }
    if options.json:
        options.json.write_text(json.dumps(summary, indent=1) + "\n")
    print(f"{summary['caught']} of {summary['mutants']} caught")


if __name__ == "__main__":
    main()
