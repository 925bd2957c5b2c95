"""The part `hostile`: files that are made to do harm, and the error that each must give.

In: nothing; files are made in a temporary folder. Out: per file `typed` (refused with one of the
codes listed for it), `accepted`, or `crashed` (another exception). Invariant: every file has its
codes beside it, and a test runs the same list.
"""

from __future__ import annotations

import hashlib
import json
import os
import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import numpy as np

from tilewright.errors import TilewrightError
from tilewright.tools.doors.judge import counted, figure, named

__all__ = ["Hostile", "cases", "figures", "hostile_files", "outcome_of", "page", "trouble"]

_HUGE = 2**40


@dataclass(frozen=True)
class Hostile:
    """A file: `make(folder)` writes it and returns its path. codes: the errors it may give."""

    name: str
    make: Callable[[Path], Path]
    codes: tuple[str, ...]


def hostile_files() -> list[Hostile]:
    """Every file, ONNX first."""
    return [*_onnx_files(), *_artifact_files()]


def outcome_of(file: Hostile, folder: Path) -> tuple[str, str]:
    """What opening the file and running it on ones gives, and the error."""
    import tilewright as tw

    folder.mkdir()
    path = file.make(folder)
    try:
        if path.suffix == ".twa":
            tw.load(path)(np.ones((8, 4), np.float32), np.ones((4, 5), np.float32))
        else:
            tw.onnx.load(path).run({"x": np.ones(4, np.float32)})
    except TilewrightError as error:
        outcome = "typed" if error.code in file.codes else "wrong"
        return outcome, f"[{error.code}] {error.message}"
    except Exception as error:  # noqa: BLE001 - every other end is a finding
        return "crashed", f"{type(error).__name__}: {error}"
    return "accepted", "it was opened and run"


# ---- ONNX --------------------------------------------------------------------------------------


def _model(
    nodes: Sequence[Any],
    shape: Sequence[int | str] = (4,),
    constants: Mapping[str, Any] | None = None,
    outputs: Sequence[str] = ("y",),
) -> Any:
    from onnx import TensorProto, helper, numpy_helper

    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in (constants or {}).items()],
    )  # fmt: skip
    return helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)


def _node(op: str, inputs: str, outputs: str, **attributes: Any) -> Any:
    from onnx import helper

    return helper.make_node(op, inputs.split(), outputs.split(), **attributes)


def _plain() -> Any:
    return _model([_node("Add", "x w", "y")], constants={"w": np.ones(4, np.float32)})


def _bytes(data: bytes) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "m.onnx"
        path.write_bytes(data)
        return path

    return make


def _edited(change: Callable[[Any], None]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        model = _plain()
        change(model)
        return _bytes(model.SerializeToString())(folder)

    return make


def _of(*nodes: Any, shape: Sequence[int | str] = (4,), **constants: Any) -> Callable[[Path], Path]:
    return _bytes(_model(nodes, shape, constants).SerializeToString())


def _external(
    location: str, prepare: Callable[[Path], None] = lambda _: None, **fields: str
) -> Callable[[Path], Path]:
    """A model whose weights lie in another file, `location` as the file says it."""

    def make(folder: Path) -> Path:
        from onnx import TensorProto

        inner = folder / "model"
        inner.mkdir()
        (folder / "w.bin").write_bytes(np.ones(4, np.float32).tobytes())
        prepare(inner)
        model = _plain()
        t = model.graph.initializer[0]
        t.ClearField("raw_data")
        t.data_location = TensorProto.EXTERNAL
        for key, value in {"location": location, **fields}.items():
            entry = t.external_data.add()
            entry.key, entry.value = key, value
        return _bytes(model.SerializeToString())(inner)

    return make


def _onnx_files() -> Iterator[Hostile]:
    data = _plain().SerializeToString()
    for name, content in {
        "empty": b"", "text": b"not a model", "zeros": bytes(64), "zip": b"PK\x03\x04" + b"x" * 50,
        "pickle": b"\x80\x04K\x01.",
    }.items():  # fmt: skip
        yield Hostile(f"onnx.{name}", _bytes(content), ("F001",))
    for length in range(1, len(data) - 1, max(1, len(data) // 12)):
        codes = ("F001", "F002", "F003", "F004", "F005", "F006")
        yield Hostile(f"onnx.truncated_{length}", _bytes(data[:length]), codes)
    for location in (
        "../w.bin", "/etc/passwd", "a/../../w.bin", "", "C:\\w.bin", "\\w.bin", "..\\w.bin",
        "w\0.bin",
    ):  # fmt: skip
        yield Hostile(f"onnx.escape {location!r}", _external(location), ("F002",))
    links: dict[str, tuple[str, Callable[[Path], None]]] = {
        "symbolic_link": ("l", lambda f: (f / "l").symlink_to(f.parent / "w.bin")),
        "linked_folder": ("l/w.bin", lambda f: (f / "l").symlink_to(f.parent)),
        "hard_link": ("l", lambda f: os.link(f.parent / "w.bin", f / "l")),
        "fifo": ("l", lambda f: os.mkfifo(f / "l")),
        "folder": ("l", lambda f: (f / "l").mkdir()),
        "missing": ("l", lambda _: None),
        "short": ("l", lambda f: _none((f / "l").write_bytes(bytes(15)))),
    }
    for name, (location, prepare) in links.items():
        yield Hostile(f"onnx.external_{name}", _external(location, prepare), ("F002",))
    whole = lambda f: _none((f / "l").write_bytes(bytes(16)))  # noqa: E731
    for field, value in (
        ("offset", "-1"), ("offset", str(10**20)), ("length", "1e9"), ("length", str(2**62)),
    ):  # fmt: skip
        yield Hostile(
            f"onnx.external_{field}_{value}", _external("l", whole, **{field: value}), ("F002",)
        )

    def sized(size: int) -> Callable[[Any], None]:
        return lambda m: _none(m.graph.initializer[0].dims.__setitem__(0, size))

    for size in (-4, 2**60, 5):
        yield Hostile(f"onnx.weight_of_{size}", _edited(sized(size)), ("F001",))
    yield Hostile(
        "onnx.cycle",
        _of(_node("Add", "x b", "a"), _node("Relu", "a", "b"), _node("Exp", "b", "y")), ("F004",),
    )  # fmt: skip
    yield Hostile("onnx.reads_itself", _of(_node("Add", "x y", "y")), ("F004",))
    yield Hostile("onnx.undefined", _of(_node("Add", "x q", "y")), ("F004",))
    yield Hostile(
        "onnx.defined_twice", _of(_node("Relu", "x", "y"), _node("Exp", "x", "y")), ("F004",)
    )
    yield Hostile("onnx.unknown_operator", _of(_node("Fancy", "x", "y")), ("F005",))
    yield Hostile("onnx.newer_opset", _edited(_newer), ("F003",))
    yield Hostile("onnx.function_calls_itself", _recursive, ("F001", "F004", "F005"))
    yield Hostile("onnx.nested_branches", _nested, ("F001", "F004"))
    for op, names, sizes in (
        ("Expand", "x s", [_HUGE, 4]), ("Tile", "x s", [_HUGE]), ("Pad", "x s", [_HUGE, _HUGE]),
        ("ConstantOfShape", "s", [_HUGE, _HUGE]), ("Reshape", "x s", [_HUGE, -1]),
        ("ConstantOfShape", "s", [-3]),
    ):  # fmt: skip
        yield Hostile(
            f"onnx.{op}_to_{sizes}", _of(_node(op, names, "y"), s=np.array(sizes)),
            ("F001", "F005", "F006", "R014"),
        )  # fmt: skip


def _none(_: object) -> None:
    return None


def _newer(model: Any) -> None:
    model.opset_import[0].version = 10_000


def _recursive(folder: Path) -> Path:
    """A function whose body calls the function."""
    from onnx import helper

    model = _model([_node("F", "x", "y", domain="d")])
    opsets = [helper.make_opsetid("", 21), helper.make_opsetid("d", 1)]
    body = [_node("F", "a", "b", domain="d")]
    model.functions.append(helper.make_function("d", "F", ["a"], ["b"], body, opsets))
    model.opset_import.append(helper.make_opsetid("d", 1))
    return _bytes(model.SerializeToString())(folder)


def _nested(folder: Path) -> Path:
    """If inside If inside If, as deep as the format carries it, over a name that nobody defines."""
    from onnx import TensorProto, helper

    out = [helper.make_tensor_value_info("z", TensorProto.FLOAT, [4])]
    plain = helper.make_graph([_node("Relu", "x", "z")], "b", [], out)
    block = plain
    for _ in range(28):
        branch = _node("If", "c", "z", then_branch=block, else_branch=plain)
        block = helper.make_graph([branch], "b", [], out)
    node = _node("If", "c", "y", then_branch=block, else_branch=plain)
    return _bytes(_model([node]).SerializeToString())(folder)


# ---- artifacts ---------------------------------------------------------------------------------

_SAVED: dict[str, bytes] = {}


def _saved() -> bytes:
    """A small model, saved."""
    if "data" not in _SAVED:
        import tilewright as tw

        text = "x: f32[8, 4]; w: f32[4, 5]; y[i, j] = sum(k) x[i, k] * w[k, j]"
        with TemporaryDirectory() as name:
            tw.compile(text).save(Path(name) / "m.twa")
            _SAVED["data"] = (Path(name) / "m.twa").read_bytes()
    return _SAVED["data"]


def _artifact(change: Callable[[bytes], bytes]) -> Callable[[Path], Path]:
    def make(folder: Path) -> Path:
        path = folder / "m.twa"
        path.write_bytes(change(_saved()))
        return path

    return make


def _rebuilt(
    change: Callable[[dict[str, Any], dict[str, bytes]], None],
    compression: int = zipfile.ZIP_STORED,
    honest: bool = True,
) -> Callable[[Path], Path]:
    """The archive with its manifest and members changed, and checksums that fit (`honest`)."""

    def make(folder: Path) -> Path:
        source, path = folder / "s.zip", folder / "m.twa"
        source.write_bytes(_saved())
        with zipfile.ZipFile(source) as archive:
            members = {n: archive.read(n) for n in archive.namelist()}
            comment = archive.comment
        manifest = json.loads(members.pop("manifest.json"))
        change(manifest, members)
        if honest:
            sums = {n: hashlib.sha256(d).hexdigest() for n, d in members.items()}
            manifest["members"] = {n: sums.get(n, d) for n, d in manifest["members"].items()}
        text = json.dumps(manifest).encode()
        with zipfile.ZipFile(path, "w", compression) as archive:
            for n, d in members.items():
                archive.writestr(n, d)
            archive.writestr("manifest.json", text)
            digest = hashlib.sha256(text).hexdigest().encode()
            archive.comment = comment[: comment.rindex(b" ") + 1] + digest
        return path

    return make


def _artifact_files() -> Iterator[Hostile]:
    damaged = ("R011",)
    size = len(_saved())
    for length in (0, 1, 30, size // 4, size // 2, size - 70, size - 1):
        yield Hostile(f"artifact.truncated_{length}", _cut(length), damaged)
    for part in range(8):
        yield Hostile(f"artifact.flipped_{part}", _flipped(size * part // 8 + 250), damaged)
    yield Hostile("artifact.text", _artifact(lambda _: b"these are notes"), damaged)
    yield Hostile("artifact.pickle", _artifact(lambda _: b"\x80\x04K\x01."), damaged)

    def edit(name: str, change: Callable[[dict[str, Any]], None], *codes: str) -> Hostile:
        return Hostile(f"artifact.{name}", _rebuilt(lambda m, _: change(m)), codes or damaged)

    yield edit("newer_format", lambda m: m.update(format=999))
    yield edit("newer_abi", lambda m: m.update(abi=999))
    yield edit("other_system", lambda m: m.update(os="plan9"), "R013")
    yield edit("other_byte_order", lambda m: m.update(byte_order="middle"), "R013")
    yield edit("no_variant", lambda m: m["parts"][0].update(variants=[]))
    yield edit("unknown_target", lambda m: m["parts"][0].update(target="quantum"))
    yield edit("huge_arena", lambda m: _variant(m, arena_bytes=2**62))
    yield edit("negative_arena", lambda m: _variant(m, arena_bytes=-64))
    yield edit("huge_scratch", lambda m: _variant(m, scratch_bytes=2**62))
    yield edit("missing_object", lambda m: _variant(m, objects=["objects/none.o"]))
    yield edit("escaping_object", lambda m: _variant(m, objects=["../../etc/passwd"]))
    yield edit("missing_constant", lambda m: _variant(m, constants=["0" * 64]))
    yield edit("unknown_extern", lambda m: _step(m, extern="os.system", attributes=[], args=[],
                                                 results=0))  # fmt: skip
    yield edit("unknown_symbol", lambda m: _step(m, symbol="system"))
    yield edit("no_such_object", lambda m: _step(m, object=99))
    yield edit("negative_chunks", lambda m: _step(m, chunks=-1))
    yield edit("no_such_input", lambda m: _step(m, arguments=[["input", 99]]))
    yield edit("outside_the_arena", lambda m: _step(m, arguments=[["arena", 2**40]]))
    yield edit("fill_outside_the_arena", lambda m: _variant(m, fills=[[2**40, "float32", 8,
                                                                       "00000000"]]))  # fmt: skip
    yield edit("no_manifest_keys", _emptied)
    yield Hostile("artifact.constants_changed", _rebuilt(_patched, honest=False), damaged)
    yield Hostile(
        "artifact.compressed_bomb", _rebuilt(_bomb, zipfile.ZIP_DEFLATED, honest=False), damaged
    )
    yield Hostile("artifact.object_is_no_object", _rebuilt(_junk), (*damaged, "R012"))


def _cut(length: int) -> Callable[[Path], Path]:
    return _artifact(lambda data: data[:length])


def _flipped(at: int) -> Callable[[Path], Path]:
    return _artifact(lambda data: data[:at] + bytes([data[at] ^ 0x41]) + data[at + 1 :])


def _variant(manifest: dict[str, Any], **new: Any) -> None:
    manifest["parts"][0]["variants"][0].update(new)


def _step(manifest: dict[str, Any], **new: Any) -> None:
    manifest["parts"][0]["variants"][0]["steps"][0].update(new)


def _constants_of(members: Mapping[str, bytes]) -> str:
    return next(n for n in members if n.endswith(".safetensors"))


def _emptied(manifest: dict[str, Any]) -> None:
    manifest.clear()
    manifest["members"] = {}


def _patched(_: dict[str, Any], members: dict[str, bytes]) -> None:
    name = _constants_of(members)
    members[name] = members[name][:-1] + b"\x7f" if members[name] else b"\x7f"


def _bomb(_: dict[str, Any], members: dict[str, bytes]) -> None:
    members[_constants_of(members)] = bytes(1 << 26)


def _junk(_: dict[str, Any], members: dict[str, bytes]) -> None:
    name = next(n for n in members if n.endswith(".o"))
    members[name] = b"\x7fELF" + bytes(200)


# ---- the part ----------------------------------------------------------------------------------


def cases(k: int, n: int, settings: Mapping[str, Any]) -> list[dict[str, Any]]:
    """Every n-th file from the k-th on."""
    out = []
    with TemporaryDirectory(prefix="tilewright-hostile-") as name:
        for place, file in enumerate(hostile_files()[k::n]):
            outcome, detail = outcome_of(file, Path(name) / str(place))
            detail = detail.replace(name, "")
            out.append({"name": file.name, "outcome": outcome, "detail": detail[:200]})
    return out


def figures(found: Sequence[Mapping[str, Any]]) -> dict[str, dict[str, Any]]:
    """Files that give a typed error."""
    how = f"of {len(found)} hostile files give the typed error that is listed for them"
    return {"hostile_typed": figure(counted(found, "typed"), "files", how)}


def trouble(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """What must not be."""
    return named(found, "wrong", "crashed", "accepted")


def page(found: Sequence[Mapping[str, Any]]) -> list[str]:
    """Nothing beyond the figures."""
    return []
