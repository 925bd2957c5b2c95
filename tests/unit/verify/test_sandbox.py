"""The sandbox: a child that crashes, hangs, eats memory, fills a disk or leaves processes costs one task."""

from __future__ import annotations

import ctypes
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path
from typing import Any

import pytest

from tilewright.errors import InternalError, UserError
from tilewright.verify.sandbox import Limits, run_in_child, run_tasks


def test_values_and_errors_come_back() -> None:
    def refuse() -> None:
        raise UserError("F001", "no model", hint="give one")

    def bug() -> None:
        raise InternalError("X001", "ours")

    assert run_in_child(lambda: {"a": [1, 2]}).value == {"a": [1, 2]}
    assert run_in_child(refuse).kind == "refused"
    assert run_in_child(refuse).detail == "[F001] no model"
    assert run_in_child(bug).kind == "internal"
    ended = run_in_child(lambda: 1 // 0)
    assert ended.kind == "exception" and "ZeroDivisionError" in ended.detail


@pytest.mark.parametrize(
    ("work", "detail"),
    [
        (lambda: os.kill(os.getpid(), signal.SIGSEGV), "SIGSEGV"),
        (lambda: ctypes.string_at(0), "SIGSEGV"),
        (lambda: os.abort(), "SIGABRT"),
        (lambda: os._exit(3), "status 3"),
    ],
)
def test_crashes(work: Any, detail: str) -> None:
    ended = run_in_child(work)
    assert (ended.kind, ended.detail) == ("crash", detail)


def test_hangs_that_sleep_and_hangs_that_work() -> None:
    started = time.monotonic()
    assert run_in_child(lambda: time.sleep(600), Limits(wall_s=1)).kind == "hang"

    def spin() -> None:
        while True:
            pass

    assert run_in_child(spin, Limits(wall_s=300, cpu_s=0.5)).kind == "hang"
    assert time.monotonic() - started < 120


def test_a_signal_that_is_ignored_does_not_keep_a_child_alive() -> None:
    def stubborn() -> None:
        for s in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            signal.signal(s, signal.SIG_IGN)
        time.sleep(600)

    assert run_in_child(stubborn, Limits(wall_s=0.5)).kind == "hang"


def test_memory() -> None:
    def eat() -> int:
        kept = []
        while True:
            kept.append(bytearray(16 << 20))

    assert run_in_child(eat, Limits(memory_bytes=256 << 20)).kind == "memory"


def test_files_are_limited(tmp_path: Path) -> None:
    def fill() -> None:
        with open(tmp_path / "big", "wb") as file:
            for _ in range(1000):
                file.write(bytes(1 << 16))

    ended = run_in_child(fill, Limits(file_bytes=1 << 20))
    assert ended.kind == "exception" and "File too large" in ended.detail
    assert (tmp_path / "big").stat().st_size <= 1 << 20


def test_runaway_threads_and_processes_end_with_the_task(tmp_path: Path) -> None:
    pids = tmp_path / "pids"

    def run_away() -> None:
        for _ in range(20):
            threading.Thread(target=time.sleep, args=(600,)).start()
        for _ in range(3):
            child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
            with open(pids, "a") as file:
                file.write(f"{child.pid}\n")
        time.sleep(600)

    assert run_in_child(run_away, Limits(wall_s=3)).kind == "hang"
    deadline = time.monotonic() + 20
    left = [int(x) for x in pids.read_text().split()]
    while left and time.monotonic() < deadline:
        left = [p for p in left if _runs(p)]
        time.sleep(0.05)
    assert not left


def _runs(pid: int) -> bool:
    try:
        return Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()[0] != "Z"
    except OSError:
        return False


@pytest.mark.skipif(os.getuid() == 0, reason="the limit does not bind root")
def test_processes_are_limited() -> None:
    def fork_often() -> int:
        for k in range(1000):
            try:
                if os.fork() == 0:
                    time.sleep(60)
            except BlockingIOError:
                return k
        return 1000

    assert run_in_child(fork_often, Limits(processes=20)).value <= 21


def test_a_task_that_dies_costs_only_itself() -> None:
    def work(task: int, say: Any) -> int:
        say(f"at {task}")
        if task % 3 == 1:
            os.kill(os.getpid(), signal.SIGKILL)
        if task % 3 == 2:
            raise ValueError(task)
        return task

    ended = list(run_tasks(range(9), work))
    assert [e.kind for e in ended] == ["done", "crash", "exception"] * 3
    assert [e.value for e in ended[::3]] == [0, 3, 6]
    assert ended[1].where == "at 1"


def test_nothing_is_left_open() -> None:
    def open_files() -> int:
        return len(os.listdir("/proc/self/fd"))

    before = open_files()
    for _ in range(5):
        run_in_child(lambda: os._exit(1))
        run_in_child(lambda: None)
    assert open_files() == before
