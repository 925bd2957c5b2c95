"""Saved models: the same bits, nothing compiled, damage refused, little memory."""

from __future__ import annotations

import hashlib
import json
import os
import subprocess
import sys
import threading
import zipfile
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
import pytest

import tilewright as tw
from tilewright.errors import TargetError, UserError
from tilewright.ir import expr as E
from tilewright.ir.dtypes import F64, I64
from tilewright.ir.program import Extern, Program, Tensor, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target
from tilewright.runtime.package import ARTIFACT_FORMAT, LoadedModel
from tilewright.runtime.tensors import read_header, read_tensors, write_tensors

SOURCE = Path(tw.__file__).parents[1]
TEXT = """program net(x: f32[N, 24]):
  dim N in 1 .. 64
  const w: f32[24, 17] @{w}
  const b: f32[17] @{b}
  h: f32[n<N, j<17] = sum(k<24) x[n, k] * w[k, j]
  y: f32[n<N, j<17] = max(h[n, j] + b[j], 0.0)
  m: f32[n<N] = max(j<17) y[n, j]
  return y, m, y
"""


def random(seed: int, *shape: int) -> Any:
    return np.random.default_rng(seed).standard_normal(shape, np.float32)


def network() -> Program:
    w, b = random(1, 24, 17), random(2, 17)
    values = {array_key(a): a for a in (w, b)}
    text = TEXT.format(w=array_key(w), b=array_key(b))
    return replace(tw.program(text), values=values)


@pytest.fixture(scope="module")
def saved(tmp_path_factory: pytest.TempPathFactory) -> tuple[Path, Any]:
    path = tmp_path_factory.mktemp("saved") / "net.twa"
    model = tw.compile(network())
    for n in (3, 8, 3):
        model(random(n, n, 24))
    model.save(path)
    return path, model


def test_every_variant_gives_the_same_bits(saved: tuple[Path, Any]) -> None:
    path, model = saved
    loaded = tw.load(path)
    assert loaded.input_specs == model.input_specs and loaded.output_specs == model.output_specs
    for n in (8, 3, 8):
        x = random(n + 10, n, 24)
        for got, wanted in zip(loaded(x), model(x), strict=True):
            np.testing.assert_array_equal(got, wanted)
        for got, wanted in zip(loaded.run({"x": x}), model.run({"x": x}), strict=True):
            np.testing.assert_array_equal(got, wanted)
        out = [np.empty_like(a) for a in model(x)]
        loaded.bind([x], out)()
        for got, wanted in zip(out, model(x), strict=True):
            np.testing.assert_array_equal(got, wanted)
        given = tuple(np.empty_like(a) for a in out)
        assert loaded(x=x, out=given) is given
        for got, wanted in zip(given, model(x), strict=True):
            np.testing.assert_array_equal(got, wanted)
    assert loaded.stats["kernels_compiled"] == 0
    assert loaded.stats["peak_bytes"] >= 4 * (24 * 17 + 17)


def test_sizes_that_were_not_saved(saved: tuple[Path, Any]) -> None:
    loaded = tw.load(saved[0])
    with pytest.raises(UserError) as caught:
        loaded(random(0, 5, 24))
    assert caught.value.code == "R004"
    assert "N=5" in caught.value.message and "N=3; N=8" in caught.value.hint
    with pytest.raises(UserError) as caught:
        loaded(random(0, 65, 24))
    assert caught.value.code == "R004" and "1 to 64" in caught.value.message


def test_bad_calls_are_typed_as_for_a_compiled_model(saved: tuple[Path, Any]) -> None:
    loaded = tw.load(saved[0])
    for call, code in (
        (lambda: loaded(), "R001"),
        (lambda: loaded(y=random(0, 3, 24)), "R001"),
        (lambda: loaded(random(0, 3, 24).astype(np.float64)), "R002"),
        (lambda: loaded(random(0, 24)), "R003"),
        (lambda: loaded(random(0, 3, 24), out=(1,)), "R006"),
    ):
        with pytest.raises(UserError) as caught:
            call()
        assert caught.value.code == code


def test_equal_models_give_equal_files(saved: tuple[Path, Any], tmp_path: Path) -> None:
    saved[1].save(tmp_path / "again.twa")
    assert (tmp_path / "again.twa").read_bytes() == saved[0].read_bytes()
    assert [p.name for p in tmp_path.iterdir()] == ["again.twa"]


def test_what_the_file_holds(saved: tuple[Path, Any]) -> None:
    with zipfile.ZipFile(saved[0]) as archive:
        manifest = json.loads(archive.read("manifest.json"))
        infos = archive.infolist()
    assert manifest["format"] == ARTIFACT_FORMAT
    assert set(manifest["members"]) == {i.filename for i in infos} - {"manifest.json"}
    assert all(i.compress_type == zipfile.ZIP_STORED for i in infos)
    (part,) = manifest["parts"]
    assert [v["sizes"] for v in part["variants"]] == [{"N": 3}, {"N": 8}]
    assert Target.parse(part["target"]) == Target.native()
    names = [i.filename for i in infos]
    assert names[0] == "constants.safetensors" and all(n.endswith(".o") for n in names[1:-1])


def test_nothing_is_compiled_or_unpickled_when_loading(
    saved: tuple[Path, Any], tmp_path: Path
) -> None:
    path, model = saved
    x = random(3, 3, 24)
    np.save(tmp_path / "x.npy", x)
    code = """
import sys
import numpy as np
import tilewright as tw
from tilewright.runtime import build, build_worker
def refuse(*_, **__):
    raise AssertionError("something was compiled")
build.emit = build_worker.emit = build._Batch = refuse
model = tw.load(sys.argv[1])
np.save(sys.argv[3], model(np.load(sys.argv[2]))[0])
for name in sys.modules:
    assert not name.startswith(("tilewright.codegen", "tilewright.lower", "tilewright.group")), name
    assert not name.startswith(("tilewright.schedule", "tilewright.frontend", "tilewright.tools")), name
"""
    environment = {
        **os.environ, "PYTHONPATH": str(SOURCE), "TILEWRIGHT_CACHE_DIR": str(tmp_path / "empty"),
    }  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-c", code, str(path), str(tmp_path / "x.npy"), str(tmp_path / "y.npy")],
        env=environment, capture_output=True, text=True, check=False,
    )  # fmt: skip
    assert done.returncode == 0, done.stderr
    np.testing.assert_array_equal(np.load(tmp_path / "y.npy"), model(x)[0])
    assert not (tmp_path / "empty").exists()


# ---- damage ------------------------------------------------------------------------------------


def damaged(path: Path, change: Callable[[bytearray], Any], to: Path) -> Path:
    data = bytearray(path.read_bytes())
    result = change(data)
    to.write_bytes(data if result is None else result)
    return to


def rewritten(path: Path, to: Path, change: Callable[[dict[str, Any]], None]) -> Path:
    """The artifact with another manifest, whose checksum is right."""
    with zipfile.ZipFile(path) as archive:
        members = {i.filename: archive.read(i) for i in archive.infolist()}
        comment = archive.comment
    manifest = json.loads(members["manifest.json"])
    change(manifest)
    members["manifest.json"] = json.dumps(manifest).encode()
    digest = hashlib.sha256(members["manifest.json"]).hexdigest().encode()
    with zipfile.ZipFile(to, "w") as archive:
        for name, data in members.items():
            archive.writestr(name, data)
        archive.comment = comment[: -len(digest)] + digest
    return to


def assert_refused(path: Path, code: str = "R011") -> Any:
    with pytest.raises((UserError, TargetError)) as caught:
        tw.load(path)
    assert caught.value.code == code, caught.value
    assert code == "R012" or str(path) in str(caught.value)
    assert caught.value.hint
    return caught.value


def test_every_flipped_byte_is_noticed(saved: tuple[Path, Any], tmp_path: Path) -> None:
    path = saved[0]
    data = path.read_bytes()
    rng = np.random.default_rng(0)
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    for info in infos:  # inside the content of every member
        start = info.header_offset + 30 + len(info.filename)
        for _ in range(3):
            at = start + int(rng.integers(40, max(41, info.file_size)))

            def flip(bytes_: bytearray, at: int = at) -> None:
                bytes_[at] ^= 0x10

            assert_refused(damaged(path, flip, tmp_path / "flipped.twa"))
    for at in rng.integers(0, len(data), 40):  # anywhere: noticed, or of no consequence

        def flip_any(bytes_: bytearray, at: int = int(at)) -> None:
            bytes_[at] ^= 0x10

        try:
            x = random(3, 3, 24)
            got = tw.load(damaged(path, flip_any, tmp_path / "flipped.twa"))(x)[0]
            np.testing.assert_array_equal(got, saved[1](x)[0])
        except UserError as error:
            assert error.code == "R011"


def test_headers_of_members_are_checked(saved: tuple[Path, Any], tmp_path: Path) -> None:
    """A change of what nothing is read by is a damaged file too."""
    path, _ = saved
    with zipfile.ZipFile(path) as archive:
        begins = [(m.header_offset, len(m.filename)) for m in archive.infolist()]
    for begin, name_bytes in begins:
        for at in range(begin, begin + 30 + name_bytes):

            def flip(data: bytearray, at: int = at) -> None:
                data[at] ^= 0x41

            assert_refused(damaged(path, flip, tmp_path / "flipped.twa"))


def test_truncated_and_foreign_files(saved: tuple[Path, Any], tmp_path: Path) -> None:
    path = saved[0]
    size = path.stat().st_size
    for keep in (0, 1, 22, 100, size // 2, size - 1):
        assert_refused(damaged(path, lambda d, keep=keep: d[:keep], tmp_path / "cut.twa"))
    (tmp_path / "text.twa").write_text("not an artifact at all")
    assert_refused(tmp_path / "text.twa")
    with zipfile.ZipFile(tmp_path / "zip.twa", "w") as archive:
        archive.writestr("manifest.json", "{}")
    assert "no artifact" in assert_refused(tmp_path / "zip.twa").message
    with pytest.raises(UserError) as caught:
        tw.load(tmp_path / "none.twa")
    assert caught.value.code == "U003" and "none.twa" in caught.value.message
    with pytest.raises(UserError) as caught:
        tw.load(tmp_path)
    assert caught.value.code == "U003"


def test_unknown_versions(saved: tuple[Path, Any], tmp_path: Path) -> None:
    for key in ("format", "abi"):

        def newer(m: dict[str, Any], key: str = key) -> None:
            m[key] = 99

        error = assert_refused(rewritten(saved[0], tmp_path / "newer.twa", newer))
        assert "99" in error.message and "save the model anew" in error.hint


def test_a_cpu_without_a_feature(saved: tuple[Path, Any], tmp_path: Path) -> None:
    target = Target.native()
    features = ",".join(sorted({*filter(None, target.features.split(",")), "+amx-unheard-of"}))
    other = replace(target, features=features)

    def change(m: dict[str, Any]) -> None:
        m["parts"][0]["target"] = str(other)

    assert "amx-unheard-of" in assert_refused(rewritten(saved[0], tmp_path / "amx.twa", change), "R012").message

    def arm(m: dict[str, Any]) -> None:
        m["parts"][0]["target"] = str(Target.named("aarch64"))

    assert_refused(rewritten(saved[0], tmp_path / "arm.twa", arm), "R012")

    def elsewhere(m: dict[str, Any]) -> None:
        m["os"] = "darwin"

    with pytest.raises(TargetError) as caught:
        tw.load(rewritten(saved[0], tmp_path / "mac.twa", elsewhere))
    assert caught.value.code == "R013" and "darwin" in caught.value.message


def test_the_previous_format(saved: tuple[Path, Any], tmp_path: Path) -> None:
    def older(m: dict[str, Any]) -> None:
        (part,) = m.pop("parts")
        m.update(format=1, target=part["target"], variants=part["variants"])
        m["shared_objects"] = {n: n for n in m["shared_objects"].values()}  # other keys then

    loaded = tw.load(rewritten(saved[0], tmp_path / "older.twa", older))
    for n in (3, 8):
        x = random(n, n, 24)
        for got, wanted in zip(loaded(x), saved[1](x), strict=True):
            np.testing.assert_array_equal(got, wanted)


# ---- several targets in one file ---------------------------------------------------------------

LEVELS = ["x86-sse42", "x86-avx512", "x86-avx2"]


@pytest.fixture(scope="module")
def several(tmp_path_factory: pytest.TempPathFactory) -> Path:
    if Target.native().isa == "aarch64":
        pytest.skip("levels of x86-64")
    path = tmp_path_factory.mktemp("several") / "net.twa"
    model = tw.compile(network(), dims={"N": 5})
    model.save(path, targets=LEVELS)
    assert model.variants[0].binding is model.variants[0].binding
    return path


@pytest.mark.parametrize("name", LEVELS)
def test_a_file_holds_code_for_several_cpus(several: Path, name: str) -> None:
    if Target.named(name).lacks(Target.native()):
        pytest.skip(f"this CPU is less than {name}")
    loaded = tw.load(several, target=name)
    assert loaded.target == Target.named(name)
    with tw.config(target=name):
        assert tw.load(several).target == loaded.target
    x = random(4, 5, 24)
    model = tw.compile(network(), dims={"N": 5}, target=name)
    for got, wanted in zip(loaded(x), model(x), strict=True):
        np.testing.assert_array_equal(got, wanted)
    y = np.maximum(x.astype(float) @ random(1, 24, 17) + random(2, 17), 0)
    np.testing.assert_allclose(loaded(x)[0], y, rtol=1e-4, atol=1e-5)


def test_the_best_code_for_this_cpu_is_taken(several: Path) -> None:
    assert tw.load(several).target.name == Target.native().isa


def test_one_target_costs_the_memory_of_one(several: Path, tmp_path: Path) -> None:
    tw.compile(network(), dims={"N": 5}, target="x86-sse42").save(tmp_path / "one.twa")
    one, best = tw.load(tmp_path / "one.twa"), tw.load(several, target="x86-sse42")
    assert one.stats["constant_bytes"] == best.stats["constant_bytes"]


def test_a_file_for_several_cpus_without_this_one(several: Path, tmp_path: Path) -> None:
    def beyond(m: dict[str, Any]) -> None:
        for part, feature in zip(m["parts"], ("amx-unheard-of", "amx-unknown", "avx10.2"), strict=True):
            target = Target.parse(part["target"])
            features = ",".join(sorted({*filter(None, target.features.split(",")), f"+{feature}"}))
            part["target"] = str(replace(target, features=features))

    error = assert_refused(rewritten(several, tmp_path / "beyond.twa", beyond), "R012")
    assert all(f in error.message for f in ("amx-unheard-of", "amx-unknown", "avx10.2"))
    assert "x86-avx2" in error.where and "x86-sse42" in error.hint

    def all_but_one(m: dict[str, Any]) -> None:
        kept = m["parts"][0]
        beyond(m)
        kept["target"] = str(Target.named("x86-sse42"))

    loaded = tw.load(rewritten(several, tmp_path / "falls.twa", all_but_one))
    assert loaded.target.name == "x86-sse42"
    model = tw.compile(network(), dims={"N": 5}, target="x86-sse42")
    x = random(4, 5, 24)
    np.testing.assert_array_equal(loaded(x)[0], model(x)[0])


def test_a_limit_below_what_the_file_holds(saved: tuple[Path, Any]) -> None:
    if not Target.native().lacks(Target.portable()):
        pytest.skip("this CPU is the least one")
    with pytest.raises(TargetError) as caught:
        tw.load(saved[0], target=Target.portable())
    assert caught.value.code == "R012"
    assert f"{Target.portable().name} lacks " in caught.value.message


def test_targets_that_cannot_be_saved(tmp_path: Path) -> None:
    model = tw.compile("y[i] = 2.0 * x[i]", dims={"I": 5})
    foreign = "x86-avx2" if Target.native().isa == "aarch64" else "aarch64"
    for name in (foreign, "pentium"):
        with pytest.raises((UserError, TargetError)) as caught:
            model.save(tmp_path / "m.twa", targets=["native", name])
        assert caught.value.code == "U003" and name in caught.value.message
    assert not (tmp_path / "m.twa").exists()


@pytest.mark.parametrize(
    "change",
    [
        lambda m: m["parts"][0]["variants"].clear(),
        lambda m: m["parts"][0]["variants"][0]["steps"][0].update(object=99),
        lambda m: m["parts"][0]["variants"][0]["steps"][0]["arguments"].append(["const", 99]),
        lambda m: m["parts"][0]["variants"][0]["steps"][0]["arguments"].append(["arena", -64]),
        lambda m: m["parts"][0]["variants"][0]["steps"][0]["arguments"].append(["file", 0]),
        lambda m: m["parts"][0]["variants"][0]["steps"][0].update(extern="os.system"),
        lambda m: m["parts"][0]["variants"][0]["constants"].append("0" * 64),
        lambda m: m["parts"][0]["variants"][0].update(fills=[[1 << 40, "float32", 4, "0000803f"]]),
        lambda m: m.pop("order"),
        lambda m: m["inputs"][0].update(dtype="object"),
        lambda m: m["members"].update({"objects/none.o": "0" * 64}),
        lambda m: m["members"].pop(m["parts"][0]["variants"][0]["objects"][0]),
        lambda m: m["parts"][0].update(target="pentium"),
        lambda m: m["parts"].clear(),
        lambda m: m["parts"][0].update(constants="manifest.json"),
    ],
)
def test_a_manifest_that_does_not_fit(
    saved: tuple[Path, Any], tmp_path: Path, change: Callable[[dict[str, Any]], None]
) -> None:
    assert_refused(rewritten(saved[0], tmp_path / "odd.twa", change))


# ---- other contents ----------------------------------------------------------------------------


def test_externs_are_saved_by_name(tmp_path: Path) -> None:
    x = Tensor("x", F64, (E.const(6), E.const(9)))
    results = tuple(Tensor(n, t, (E.const(6), E.const(3))) for n, t in (("v", F64), ("i", I64)))
    top = Extern(results, "topk", ("x",), (("axis", -1), ("k", 3), ("largest", True)))
    model = tw.compile(Program("top", (x,), (top,), ("v", "i")))
    model.save(tmp_path / "top.twa")
    loaded = tw.load(tmp_path / "top.twa")
    a = random(5, 6, 9).astype(np.float64)
    values, places = loaded(a)
    np.testing.assert_array_equal(values, -np.sort(-a, -1)[:, :3])
    np.testing.assert_array_equal(places, np.argsort(-a, -1, kind="stable")[:, :3])


def test_halos_that_hold_something_else_than_zero(tmp_path: Path) -> None:
    text = """program pool(x: f32[1, 20, 20, 16], w: f32[16]):
  a: f32[n<1, i<20, j<20, c<16] = exp(x[n, i, j, c] * w[c])
  y: f32[n<1, i<20, j<20, c<16] = max(p<3, q<3) (a[n, i + p - 1, j + q - 1, c] else -inf)
  return y
"""
    model = tw.compile(tw.program(text))
    model.save(tmp_path / "pool.twa")
    x, w = random(1, 1, 20, 20, 16), random(2, 16)
    got = tw.load(tmp_path / "pool.twa")(x, w)
    np.testing.assert_array_equal(got, model(x, w))
    a = np.pad(np.exp(x * w), ((0, 0), (1, 1), (1, 1), (0, 0)), constant_values=-np.inf)
    windows = np.lib.stride_tricks.sliding_window_view(a, (3, 3), (1, 2))
    np.testing.assert_allclose(got, windows.max((-1, -2)), rtol=1e-5)


def test_a_model_without_constants_or_sizes(tmp_path: Path) -> None:
    model = tw.compile("y[i] = 2.0 * x[i]", dims={"I": 5})
    model.save(tmp_path / "m.twa")
    np.testing.assert_array_equal(
        tw.load(tmp_path / "m.twa")(np.ones(5, "f4")), np.full(5, 2, "f4")
    )
    unknown = tw.compile("y[i] = 2.0 * x[i]")
    with pytest.raises(UserError) as caught:
        unknown.save(tmp_path / "n.twa")
    assert caught.value.code == "R004" and not (tmp_path / "n.twa").exists()
    with pytest.raises(UserError) as caught:
        model.save(tmp_path / "no" / "m.twa")
    assert caught.value.code == "U003" and caught.value.hint


def test_a_file_may_be_replaced_while_its_model_is_used(
    saved: tuple[Path, Any], tmp_path: Path
) -> None:
    path, model = saved
    copy = tmp_path / "net.twa"
    copy.write_bytes(path.read_bytes())
    loaded = tw.load(copy)
    copy.write_bytes(b"gone")
    x = random(3, 3, 24)
    np.testing.assert_array_equal(loaded(x)[0], model(x)[0])


def test_eight_threads_and_thread_counts(saved: tuple[Path, Any]) -> None:
    path, model = saved
    loaded = tw.load(path, threads=2)
    xs = [random(k, 8 if k % 2 else 3, 24) for k in range(8)]
    wanted = [model(x)[0] for x in xs]
    wrong: list[int] = []

    def work(k: int) -> None:
        for _ in range(30):
            if not np.array_equal(loaded(xs[k])[0], wanted[k]):
                wrong.append(k)

    threads = [threading.Thread(target=work, args=(k,)) for k in range(8)]
    for t in threads:
        t.start()
    for t in threads:
        t.join()
    assert not wrong


# ---- memory ------------------------------------------------------------------------------------

GROWTH = """
import sys
import numpy as np
import tilewright as tw

def resident():
    for line in open("/proc/self/smaps_rollup"):
        if line.startswith("Rss:"):
            return int(line.split()[1]) * 1024

def peak():
    for line in open("/proc/self/status"):
        if line.startswith("VmHWM:"):
            return int(line.split()[1]) * 1024

small = tw.load(sys.argv[1])
small(np.zeros((3, 24), np.float32))
x = np.zeros((4, 1024), np.float32)
before = resident()
open("/proc/self/clear_refs", "w").write("5")
big = tw.load(sys.argv[2])
y = big(x)
print(resident() - before, peak() - before, big.stats["arena_bytes"], big.stats["constant_bytes"])
"""


def test_loading_costs_the_weights_and_the_arena(saved: tuple[Path, Any], tmp_path: Path) -> None:
    layers, width = 6, 1024
    body, names, values = [], "x", {}
    lines = []
    for k in range(layers):
        w = random(k, width, width)
        values[array_key(w)] = w
        lines.append(f"  const w{k}: f32[{width}, {width}] @{array_key(w)}")
        body.append(f"  h{k}: f32[i<4, j<{width}] = sum(k<{width}) {names}[i, k] * w{k}[k, j]")
        names = f"h{k}"
    text = "\n".join([f"program deep(x: f32[4, {width}]):", *lines, *body, f"  return {names}"])
    model = tw.compile(replace(tw.program(text + "\n"), values=values))
    path = tmp_path / "deep.twa"
    model.save(path)
    done = subprocess.run(
        [sys.executable, "-c", GROWTH, str(saved[0]), str(path)], capture_output=True, text=True,
        env={**os.environ, "PYTHONPATH": str(SOURCE)}, check=True,
    )  # fmt: skip
    now, most, arena, constants = map(int, done.stdout.split())
    weights = 4 * layers * width * width
    assert weights <= constants <= 1.1 * weights
    assert now <= 1.3 * weights + arena, (now, weights, arena)
    assert most <= 1.3 * weights + arena, (most, weights, arena)


# ---- safetensors -------------------------------------------------------------------------------


def test_arrays_of_every_dtype(tmp_path: Path) -> None:
    rng = np.random.default_rng(3)
    arrays = {
        f"{dtype}{list(shape)}": rng.integers(0, 2, shape).astype(dtype)
        for dtype in (
            bool,
            "i1",
            "u1",
            "i2",
            "u2",
            "i4",
            "u4",
            "i8",
            "u8",
            "f2",
            "f4",
            "f8",
            ml_dtypes.bfloat16,
        )
        for shape in ((), (3,), (2, 0), (5, 7))
    }
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        write_tensors(file, arrays)
    found = read_tensors(path)
    assert list(found) == list(arrays)
    for name, array in arrays.items():
        assert found[name].dtype == array.dtype and found[name].shape == array.shape
        np.testing.assert_array_equal(found[name], array)
    with path.open("rb") as file:
        entries, begin = read_header(file, path.stat().st_size)
    assert begin % 64 == 0 and all(e.start % 64 == 0 for e in entries.values())


def test_damaged_arrays(tmp_path: Path) -> None:
    path = tmp_path / "a.safetensors"
    with path.open("wb") as file:
        write_tensors(file, {"a": np.ones(100, np.float32)})
    data = path.read_bytes()
    for broken in (
        b"",
        data[:7],
        data[:50],
        data[:-1],
        b"\xff" * 8 + data[8:],
        data.replace(b"F32", b"Q99"),
    ):
        path.write_bytes(broken)
        with pytest.raises(UserError) as caught:
            read_tensors(path)
        assert caught.value.code == "R011" and str(path) in caught.value.where


def test_a_loaded_model_is_one(saved: tuple[Path, Any]) -> None:
    assert isinstance(tw.load(str(saved[0])), LoadedModel)


def test_sizes_that_no_axis_tells_are_those_that_were_given(tmp_path: Path) -> None:
    """An axis of N*M elements says neither; nor does a file of one variant need to be told."""
    text = """program p format 1(x: f32[N*M]):
  dim N in 1 .. 8
  dim M in 1 .. 8
  y: f32[i<N, j<M] = x[i*M + j] * 2.0
  return y
"""
    model = tw.compile(parse_program(text), dims={"N": 2, "M": 3})
    x = np.arange(6, dtype=np.float32)
    np.testing.assert_array_equal(model(x), 2 * x.reshape(2, 3))
    model.save(tmp_path / "m.twa")
    loaded = tw.load(tmp_path / "m.twa")
    np.testing.assert_array_equal(loaded(x), 2 * x.reshape(2, 3))
    for made in (model, loaded):
        with pytest.raises(UserError, match="R003"):
            made(np.arange(8, dtype=np.float32))
    with pytest.raises(UserError, match=r"R004.*nothing tells the size 'N'"):
        tw.compile(parse_program(text))(x)
