"""Building: order, equal bytes from every path, LLVM's refusals, aborts and hangs."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from tilewright.errors import InternalError, Rejected
from tilewright.machine.target import Target
from tilewright.runtime import build as build_module
from tilewright.runtime.build import (
    BuildOptions,
    build,
    build_many,
    emit_assembly,
    emit_object,
    object_key,
    stop_workers,
)
from tilewright.runtime.cache import ObjectCache

TARGET = Target.native()
ADD = "define i64 @add{0}(i64 %a) nounwind {{ %b = add i64 %a, {0}\n ret i64 %b }}"
ABORTS = 'define void @f() { call void asm sideeffect "no_such_instruction", ""()\n ret void }'


@pytest.fixture
def cache(tmp_path: Path) -> ObjectCache:
    return ObjectCache(tmp_path)


def test_workers_and_this_process_make_the_same_bytes(cache: ObjectCache) -> None:
    texts = [ADD.format(n % 5) for n in range(12)]
    objects = build_many(texts, TARGET, cache=cache)
    assert objects == [emit_object(text, TARGET) for text in texts]
    assert len(list(cache.folder.glob("??/*"))) == 5
    assert build(texts[3], TARGET, cache=cache) == objects[3]


def test_a_refused_text_and_an_abort_cost_only_themselves(cache: ObjectCache) -> None:
    results = build_many(["nonsense", ADD.format(1), ABORTS, ADD.format(2)], TARGET, 2, cache=cache)
    assert [isinstance(result, bytes) for result in results] == [False, True, False, True]
    refused, aborted = results[0], results[2]
    assert isinstance(refused, Rejected) and refused.code == "C001"
    assert "expected top-level entity" in refused.detail
    assert isinstance(aborted, Rejected) and "SIGABRT" in aborted.detail
    with pytest.raises(InternalError, match="expected top-level entity"):
        emit_object("nonsense", TARGET)


def test_a_hanging_worker_is_replaced(cache: ObjectCache) -> None:
    assert isinstance(build_many([ADD.format(7)], TARGET, 1, cache=cache)[0], bytes)
    (worker,) = build_module._pool._idle[("-disable-lsr",)][-1:]
    os.kill(worker.pid, signal.SIGSTOP)
    (result,) = build_many([ADD.format(8)], TARGET, 1, cache=cache, timeout_s=0.3)
    assert result == Rejected("C001", "LLVM took too long")
    assert isinstance(build_many([ADD.format(8)], TARGET, 1, cache=cache)[0], bytes)


def test_options_reach_llvm_only_in_their_own_worker(cache: ObjectCache) -> None:
    loop = """define float @s(ptr %p, i64 %n, i64 %stride) nounwind {
    entry: br label %l
    l: %i = phi i64 [0, %entry], [%j, %l]
       %a = phi float [0.0, %entry], [%c, %l]
       %o = mul i64 %i, %stride
       %q = getelementptr float, ptr %p, i64 %o
       %x = load float, ptr %q
       %o3 = add i64 %o, 77
       %q3 = getelementptr float, ptr %p, i64 %o3
       %y = load float, ptr %q3
       %b = fadd float %a, %x
       %c = fadd float %b, %y
       %j = add i64 %i, 1
       %t = icmp slt i64 %j, %n
       br i1 %t, label %l, label %e
    e: ret float %c }"""
    with_lsr = BuildOptions(disable_lsr=False)
    plain = emit_object(loop, TARGET, with_lsr)
    without = build_many([loop], TARGET, cache=cache)[0]
    assert isinstance(without, bytes) and without != plain
    assert build_many([loop], TARGET, options=with_lsr, cache=cache) == [plain]
    assert emit_object(loop, TARGET, with_lsr) == plain
    assert emit_object(loop, TARGET) == without


def test_a_process_of_ours_compiles_kernels_itself(cache: ObjectCache) -> None:
    """The same bytes as a worker's, without one."""
    program = (
        "import sys\n"
        "from tilewright.runtime import build\n"
        "from tilewright.machine.target import Target\n"
        "build.set_kernel_options()\n"
        "build.set_kernel_options()\n"
        "data = build.emit_object(sys.stdin.read(), Target.native())\n"
        "assert not build._pool._idle\n"
        "sys.stdout.buffer.write(data)\n"
    )
    text = ADD.format(31)
    child = subprocess.run(
        [sys.executable, "-c", program], input=text.encode(), stdout=subprocess.PIPE, check=True
    )
    assert [child.stdout] == build_many([text], TARGET, cache=cache)


def test_what_is_compiled_without_a_worker_is_not_cached(cache: ObjectCache) -> None:
    """Without the options of a worker its bytes are not those that the key stands for."""
    program = (
        "import sys, pathlib\n"
        "from tilewright.machine.target import Target\n"
        "from tilewright.runtime import build\n"
        "from tilewright.runtime.cache import ObjectCache\n"
        "sys.executable = '/nonexistent/python'\n"
        "cache = ObjectCache(pathlib.Path(sys.argv[1]))\n"
        "data, = build.build_many([sys.stdin.read()], Target.native(), cache=cache)\n"
        "assert isinstance(data, bytes)\n"
    )
    text = ADD.format(32)
    command = [sys.executable, "-c", program, str(cache.folder)]
    subprocess.run(command, input=text.encode(), check=True)
    assert cache.get(object_key(text, TARGET)) is None


def test_no_process_can_be_started(cache: ObjectCache, monkeypatch: pytest.MonkeyPatch) -> None:
    stop_workers()
    monkeypatch.setattr("sys.executable", "/nonexistent/python")
    assert build_many([ADD.format(1)], TARGET, cache=cache) == [emit_object(ADD.format(1), TARGET)]


def test_a_forked_child_starts_its_own_workers(cache: ObjectCache) -> None:
    build_many([ADD.format(1)], TARGET, cache=cache)
    child = os.fork()
    if child == 0:
        data = build_many([ADD.format(900), ADD.format(901)], TARGET, cache=cache)
        stop_workers()
        os._exit(0 if all(isinstance(d, bytes) for d in data) else 1)
    assert os.waitpid(child, 0)[1] == 0
    assert isinstance(build_many([ADD.format(902)], TARGET, cache=cache)[0], bytes)


def test_keys_tell_apart_what_changes_the_bytes() -> None:
    text = ADD.format(1)
    keys = {
        object_key(text, TARGET),
        object_key(text + " ", TARGET),
        object_key(text, Target.named("x86-avx2")),
        object_key(text, TARGET, BuildOptions(opt=1)),
        object_key(text, TARGET, BuildOptions(disable_lsr=False)),
    }
    assert len(keys) == 5


@pytest.mark.parametrize("name", ["x86-avx512", "x86-avx2", "x86-sse42", "aarch64"])
def test_every_named_target_compiles(name: str) -> None:
    target = Target.named(name)
    lanes = target.lanes(32)
    text = f"""define void @f(ptr %p) {target.function_attributes()} {{
    %a = load <{lanes} x float>, ptr %p, align 4
    %b = fmul <{lanes} x float> %a, %a
    store <{lanes} x float> %b, ptr %p, align 4
    ret void }}"""
    expected = {512: "%zmm0", 256: "%ymm0", 128: "%xmm0"}[target.vector_bits]
    assert ("v0.4s" if name == "aarch64" else expected) in emit_assembly(text, target)
    assert emit_object(text, target)[:4] == b"\x7fELF"
