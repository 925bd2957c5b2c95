"""kill -9 at random times while several processes tune into one database and one object cache.

    python scripts/kill_campaign.py [--kills 1000] [--writers 3] [--tuners 0.1] [--seed 0] [--json OUT] [--folder DIR]

Keeps `--writers` children alive. A share `--tuners` of them are the tuner itself, compiling a small
program with a budget; the others write what a tuner writes, as fast as they can: batches of timings and
rejections to the database, objects to the cache. Every child says on a pipe what was committed *after*
the call that commits it returned. One child after the other is killed at a random time and replaced.

Afterwards, and in between: every record that was said to be committed is there, batches are whole or
absent, SQLite's integrity check passes, nothing was quarantined, every stored object has its bytes, and
no helper process of a killed tuner is left. Exit status 1 if anything of this fails.
"""

from __future__ import annotations

import argparse
import hashlib
import json
import os
import random
import select
import signal
import sqlite3
import sys
import tempfile
import time
from collections.abc import Callable
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from tilewright.config import config
from tilewright.runtime.cache import ObjectCache
from tilewright.tune.database import Database, Record

PROGRAM = """program p(a: f32[96, 128], b: f32[128, 80], c: f32[80]):
  h: f32[i<96, j<80] = sum(k<128) a[i, k] * b[k, j]
  y: f32[i<96, j<80] = max(h[i, j] + c[j], 0.0)
  return y
"""


@dataclass
class Child:
    """A writer: its process, the pipe on which it says what it committed, and what was said."""

    pid: int
    pipe: int
    is_tuner: bool
    not_before: float = 0.0  # a tuner gets time to measure something
    text: bytes = b""


@dataclass
class Books:
    """What was committed, as far as was said."""

    records: set[str] = field(default_factory=set)
    objects: dict[str, str] = field(default_factory=dict)
    by_tuners: int = 0

    def read(self, c: Child) -> None:
        """Note what a child has said so far."""
        text, c.text = c.text, b""
        end = text.rfind(b"\n") + 1
        c.text = text[end:]
        for line in text[:end].decode().split("\n")[:-1]:
            kind, *words = line.split(" ")
            if kind == "object":
                self.objects[words[0]] = words[1]
            else:
                self.records |= set(words)
                self.by_tuners += len(words) if c.is_tuner else 0


def say(pipe: int, *words: str) -> None:
    os.write(pipe, (" ".join(words) + "\n").encode())


def write_records(folder: Path, pipe: int, rng: random.Random) -> None:
    """Batches like those of a tuner, until killed."""
    cache = ObjectCache(folder)
    with Database(folder / "t.sqlite") as db:
        while True:
            batch = f"{rng.random():.12f}"
            count = rng.choice((1, 2, 3, 8, 20))
            records = [
                Record(
                    f"task{rng.randrange(5)}", {"M": 96}, "x86-avx512", 2, 1, "e", "cpu",
                    f'{{"tile":{k}}}', (rng.random(),) if k % 3 else (), 1.0 if k % 3 else None,
                    "ok" if k % 3 else "rejected", "" if k % 3 else "T100", f"{batch}/{count}",
                )
                for k in range(count)
            ]  # fmt: skip
            db.add_many(records)
            say(pipe, "records", *(r.key for r in records))
            payload = rng.randbytes(rng.choice((100, 5000, 40000)))
            key = hashlib.sha256(payload[:50]).hexdigest()
            if cache.put(key, payload):
                say(pipe, "object", key, hashlib.sha256(payload).hexdigest())
            time.sleep(rng.expovariate(1 / 0.01))
            if rng.random() < 0.2:
                db.best(
                    "task1", {"M": 96}, target="x86-avx512", threads=2, space_version=1,
                    codegen_epoch="e", fingerprint="cpu", confirmed=False,
                )  # fmt: skip


def tune(folder: Path, pipe: int, rng: random.Random) -> None:
    """The tuner itself, until killed."""
    import tilewright as tw

    add_many: Callable[..., int] = Database.add_many

    def said(self: Database, records: Any) -> int:
        kept = list(records)
        added = add_many(self, kept)
        say(pipe, "records", *(r.key for r in kept))
        return added

    Database.add_many = said  # type: ignore[method-assign]
    for number in range(1000):
        text = PROGRAM.replace("128", str(32 + (rng.randrange(64) + number) % 200))
        with config(db=str(folder / "t.sqlite"), cache_dir=str(folder)):
            tw.compile(tw.program(text), tune="2s")


def start(folder: Path, rng: random.Random, share: float) -> Child:
    seed, is_tuner = rng.random(), rng.random() < share
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        status = 1
        try:
            os.close(reader)
            signal.signal(signal.SIGINT, signal.SIG_DFL)
            (tune if is_tuner else write_records)(folder, writer, random.Random(seed))
            status = 0
        except BaseException:
            import traceback

            traceback.print_exc()
        finally:
            os._exit(status)
    os.close(writer)
    return Child(pid, reader, is_tuner, time.monotonic() + rng.uniform(0, 30) * is_tuner)


def drain(children: list[Child], seconds: float) -> None:
    """Read what the children say for so long."""
    until = time.monotonic() + seconds
    while (left := until - time.monotonic()) > 0:
        ready, _, _ = select.select([c.pipe for c in children], [], [], left)
        for c in children:
            if c.pipe in ready:
                c.text += os.read(c.pipe, 1 << 16)


def finish(c: Child) -> None:
    """Read the rest after the end of the child."""
    while data := os.read(c.pipe, 1 << 16):
        c.text += data
    os.close(c.pipe)


def check(folder: Path, books: Books) -> list[str]:
    """What is wrong."""
    wrong = []
    with Database(folder / "t.sqlite") as db:
        if db.quarantined is not None:
            wrong.append(f"the database was set aside as {db.quarantined}")
        found = db.records()
    keys = {r.key for r in found}
    lost = books.records - keys
    if lost:
        wrong.append(f"{len(lost)} committed records are lost")
    batches: dict[str, int] = {}
    for r in found:
        if r.target == "x86-avx512" and "/" in r.detail and r.codegen_epoch == "e":
            batches[r.detail] = batches.get(r.detail, 0) + 1
    torn = [b for b, n in batches.items() if n != int(b.split("/")[1])]
    if torn:
        wrong.append(f"{len(torn)} batches are incomplete")
    raw = sqlite3.connect(folder / "t.sqlite")
    verdict = raw.execute("PRAGMA integrity_check").fetchone()[0]
    raw.close()
    if verdict != "ok":
        wrong.append(f"integrity check: {verdict}")
    if aside := list(folder.glob("*.damaged-*")):
        wrong.append(f"quarantined: {aside[0].name}")
    cache = ObjectCache(folder)
    for key, digest in books.objects.items():
        data = cache.get(key)
        if data is None or hashlib.sha256(data).hexdigest() != digest:
            wrong.append(f"object {key} is lost or damaged")
    return wrong


def left_over(folder: Path) -> list[int]:
    """Processes that still run with this campaign's folder in their environment."""
    out = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and int(entry.name) != os.getpid():
            with suppress(OSError):
                if str(folder).encode() in (entry / "environ").read_bytes():
                    out.append(int(entry.name))
    return out


def campaign(folder: Path, kills: int, writers: int, share: float, seed: int) -> dict[str, Any]:
    """Run it; the figures."""
    os.environ["KILL_CAMPAIGN"] = str(folder)  # marks the helpers of our children
    rng, books = random.Random(seed), Books()
    wrong: list[str] = []
    started = time.monotonic()
    children = [start(folder, rng, share) for _ in range(writers)]
    killed_tuners = failed = 0
    for number in range(kills):
        drain(children, rng.expovariate(1 / 0.25))
        now = time.monotonic()
        while not (ripe := [c for c in children if c.not_before <= now]):
            drain(children, 0.1)
            now = time.monotonic()
        victim = rng.choice(ripe)
        os.kill(victim.pid, signal.SIGKILL)
        _, status = os.waitpid(victim.pid, 0)
        failed += not os.WIFSIGNALED(status)
        finish(victim)
        books.read(victim)
        killed_tuners += victim.is_tuner
        children.remove(victim)
        # One tuner at a time: it measures, and measuring is exclusive on a machine.
        children.append(start(folder, rng, 0 if any(c.is_tuner for c in children) else share))
        if number % 50 == 49:
            for c in children:
                books.read(c)
            wrong += check(folder, books)
            if wrong:
                break
    for c in children:
        os.kill(c.pid, signal.SIGKILL)
        os.waitpid(c.pid, 0)
        finish(c)
        books.read(c)
    wrong += check(folder, books)
    deadline = time.monotonic() + 30
    while (left := left_over(folder)) and time.monotonic() < deadline:
        time.sleep(0.5)
    if left:
        wrong.append(f"{len(left)} helper processes are left")
        for pid in left:
            with suppress(OSError):
                os.kill(pid, signal.SIGKILL)
    if failed:
        wrong.append(f"{failed} writers ended by themselves")
    return {
        "command": f"python scripts/kill_campaign.py --kills {kills} --writers {writers} "
        f"--tuners {share} --seed {seed}",
        "kills": kills, "writers": writers, "killed_tuners": killed_tuners,
        "committed_records": len(books.records), "of_tuners": books.by_tuners,
        "committed_objects": len(books.objects),
        "lost_records": sum("records are lost" in w for w in wrong), "wrong": wrong,
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--kills", type=int, default=1000)
    parser.add_argument("--writers", type=int, default=3)
    parser.add_argument("--tuners", type=float, default=0.2)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--folder", type=Path)
    options = parser.parse_args()
    with tempfile.TemporaryDirectory(dir=options.folder) as name:
        result = campaign(
            Path(name), options.kills, options.writers, options.tuners, options.seed
        )
    text = json.dumps(result, indent=1)
    print(text)
    if options.json:
        options.json.write_text(text + "\n")
    return int(bool(result["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
