"""The models of the suite `models`, written once and built for every contestant.

In: a name and, for the peers, a framework. Out: an ONNX file, or a function of that framework with
the same weights. Invariants: weights come from a seed, never from a download; a model is written
against `Ops`, so that all contestants compute the same formula. A new model is one function here
and one line in `suites/models.toml`.
"""

from __future__ import annotations

import hashlib
import os
import zlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

if TYPE_CHECKING:
    import numpy as np

    Array = np.ndarray[Any, Any]
else:
    Array = Any

__all__ = ["LONGEST", "ZOO", "Model", "Ops", "onnx_file", "open_bert", "weight"]

Value = Any
LONGEST = 512  # positions that the open BERT has a table for
_FORMAT = 1  # of the files in the cache; moves with every change of a model


def weight(name: str, shape: Sequence[int], kind: str = "normal") -> Array:
    """A weight from its own name: `normal` is scaled by its fan-in, `scale` lies around one,
    `shift` around zero, `table` has rows of unit size, `positive` is 0.5 to 1.5.
    """
    import numpy as np

    stream = np.random.Generator(np.random.PCG64(zlib.crc32(name.encode())))
    if kind == "positive":
        return stream.random(shape, np.float32) + np.float32(0.5)
    array = stream.standard_normal(shape, np.float32)
    match kind:
        case "scale":
            return (array * np.float32(0.1) + np.float32(1.0)).astype(np.float32)
        case "shift":
            return (array * np.float32(0.1)).astype(np.float32)
        case "table":
            return (array * np.float32(0.5)).astype(np.float32)
        case "kernel":  # [out, in, ...]
            fan = float(np.prod(shape[1:]))
        case _:  # [in, out]
            fan = float(shape[0])
    return (array * np.float32(np.sqrt(1.5 / fan))).astype(np.float32)


class Ops(Protocol):
    """What a model is written in. Images are [N, C, H, W]; matrices of weights are [in, out]."""

    def weight(self, name: str, shape: Sequence[int], kind: str = "normal") -> Value: ...
    def conv(self, x: Value, w: Value, stride: int, pad: int, groups: int = 1) -> Value: ...
    def batch_norm(self, x: Value, g: Value, b: Value, mean: Value, var: Value) -> Value: ...
    def relu(self, x: Value) -> Value: ...
    def clip6(self, x: Value) -> Value: ...
    def sigmoid(self, x: Value) -> Value: ...
    def gelu(self, x: Value, tanh: bool = False) -> Value: ...
    def max_pool(self, x: Value, size: int, stride: int, pad: int) -> Value: ...
    def mean_pool(self, x: Value) -> Value: ...
    def add(self, x: Value, y: Value) -> Value: ...
    def scale(self, x: Value, by: float) -> Value: ...
    def matmul(self, x: Value, y: Value) -> Value: ...
    def softmax(self, x: Value) -> Value: ...
    def layer_norm(self, x: Value, g: Value, b: Value) -> Value: ...
    def reshape(self, x: Value, shape: Sequence[int]) -> Value: ...
    def transpose(self, x: Value, order: Sequence[int]) -> Value: ...
    def concat(self, parts: Sequence[Value], axis: int) -> Value: ...
    def part(self, x: Value, axis: int, start: int, stop: int) -> Value: ...
    def take(self, table: Value, ids: Value) -> Value: ...
    def constant(self, array: Array) -> Value: ...


@dataclass(frozen=True)
class Model:
    """inputs: name -> shape, NumPy dtype, and what the values are (as a suite's `inputs` says)."""

    inputs: Mapping[str, tuple[tuple[int, ...], str, str]]
    outputs: tuple[str, ...]
    build: Callable[[Ops, Mapping[str, Value]], Sequence[Value]]


# ---- images ------------------------------------------------------------------------------------


def _conv_norm(
    o: Ops, x: Value, name: str, c: int, out: int, k: int, stride: int = 1, groups: int = 1
) -> Value:
    w = o.weight(f"{name}.w", (out, c // groups, k, k), "kernel")
    y = o.conv(x, w, stride, k // 2, groups)
    g, b = o.weight(f"{name}.g", (out,), "scale"), o.weight(f"{name}.b", (out,), "shift")
    mean, var = o.weight(f"{name}.m", (out,), "shift"), o.weight(f"{name}.v", (out,), "positive")
    return o.batch_norm(y, g, b, mean, var)


def _classify(o: Ops, x: Value, c: int) -> list[Value]:
    y = o.reshape(o.mean_pool(x), (1, c))
    logits = o.matmul(y, o.weight("head.w", (c, 1000)))
    return [o.add(logits, o.weight("head.b", (1000,), "shift"))]


def _resnet(blocks: Sequence[int], bottleneck: bool) -> Callable[..., list[Value]]:
    def build(o: Ops, given: Mapping[str, Value]) -> list[Value]:
        x = o.relu(_conv_norm(o, given["x"], "stem", 3, 64, 7, 2))
        x = o.max_pool(x, 3, 2, 1)
        c = 64
        for stage, count in enumerate(blocks):
            width = 64 << stage
            out = width * (4 if bottleneck else 1)
            for k in range(count):
                stride = 2 if stage and not k else 1
                name = f"s{stage}.{k}"
                if bottleneck:
                    y = o.relu(_conv_norm(o, x, f"{name}.a", c, width, 1))
                    y = o.relu(_conv_norm(o, y, f"{name}.b", width, width, 3, stride))
                    y = _conv_norm(o, y, f"{name}.c", width, out, 1)
                else:
                    y = o.relu(_conv_norm(o, x, f"{name}.a", c, width, 3, stride))
                    y = _conv_norm(o, y, f"{name}.b", width, out, 3)
                if stride != 1 or c != out:
                    x = _conv_norm(o, x, f"{name}.d", c, out, 1, stride)
                x, c = o.relu(o.add(y, x)), out
        return _classify(o, x, c)

    return build


# Growth, channels, blocks, stride of the first.
_MOBILE = (
    (1, 16, 1, 1), (6, 24, 2, 2), (6, 32, 3, 2), (6, 64, 4, 2), (6, 96, 3, 1),
    (6, 160, 3, 2), (6, 320, 1, 1),
)  # fmt: skip


def _mobilenet(o: Ops, given: Mapping[str, Value]) -> list[Value]:
    x = o.clip6(_conv_norm(o, given["x"], "stem", 3, 32, 3, 2))
    c = 32
    for stage, (grow, out, count, first) in enumerate(_MOBILE):
        for k in range(count):
            name, wide, stride = f"s{stage}.{k}", c * grow, first if not k else 1
            y = x if grow == 1 else o.clip6(_conv_norm(o, x, f"{name}.a", c, wide, 1))
            y = o.clip6(_conv_norm(o, y, f"{name}.b", wide, wide, 3, stride, wide))
            y = _conv_norm(o, y, f"{name}.c", wide, out, 1)
            x = o.add(x, y) if stride == 1 and c == out else y
            c = out
    x = o.clip6(_conv_norm(o, x, "last", c, 1280, 1))
    return _classify(o, x, 1280)


# ---- language ----------------------------------------------------------------------------------


def _linear(o: Ops, x: Value, name: str, k: int, n: int) -> Value:
    y = o.matmul(x, o.weight(f"{name}.w", (k, n)))
    return o.add(y, o.weight(f"{name}.b", (n,), "shift"))


def _norm(o: Ops, x: Value, name: str, n: int) -> Value:
    g, b = o.weight(f"{name}.g", (n,), "scale"), o.weight(f"{name}.b", (n,), "shift")
    return o.layer_norm(x, g, b)


def _heads(o: Ops, x: Value, s: int, heads: int, d: int) -> Value:
    return o.transpose(o.reshape(x, (1, s, heads, d)), (0, 2, 1, 3))


def _attend(o: Ops, q: Value, k: Value, v: Value, mask: Value | None, s: int, n: int) -> Value:
    scores = o.scale(o.matmul(q, o.transpose(k, (0, 1, 3, 2))), 0.125)
    if mask is not None:
        scores = o.add(scores, mask)
    y = o.matmul(o.softmax(scores), v)
    return o.reshape(o.transpose(y, (0, 2, 1, 3)), (1, s, n))


def _bert(layers: int, s: int, n: int = 768, heads: int = 12) -> Callable[..., list[Value]]:
    def build(o: Ops, given: Mapping[str, Value]) -> list[Value]:
        x = o.take(o.weight("words", (30522, n), "table"), given["ids"])
        x = o.add(x, o.weight("places", (s, n), "table"))
        x = _norm(o, x, "first", n)
        for layer in range(layers):
            name = f"l{layer}"
            q, k, v = (_heads(o, _linear(o, x, f"{name}.{p}", n, n), s, heads, 64) for p in "qkv")
            a = _linear(o, _attend(o, q, k, v, None, s, n), f"{name}.o", n, n)
            x = _norm(o, o.add(a, x), f"{name}.n1", n)
            h = o.gelu(_linear(o, x, f"{name}.up", n, 4 * n))
            x = _norm(o, o.add(_linear(o, h, f"{name}.down", 4 * n, n), x), f"{name}.n2", n)
        return [x]

    return build


def _gpt2(
    layers: int, s: int, past: int, n: int = 768, heads: int = 12, vocabulary: int = 50257
) -> Callable[..., list[Value]]:
    """past: positions in the cache; then one step of `s` positions that returns its own part."""

    def build(o: Ops, given: Mapping[str, Value]) -> list[Value]:
        import numpy as np

        x = o.take(o.weight("words", (vocabulary, n), "table"), given["ids"])
        places = o.part(o.weight("places", (1024, n), "table"), 0, past, past + s)
        x = o.add(x, places)
        mask = None
        if s > 1:
            low = np.where(np.tri(s, dtype=np.bool_), np.float32(0), np.float32(-1e9))
            mask = o.constant(low)
        states = []
        for layer in range(layers):
            name = f"l{layer}"
            qkv = _linear(o, _norm(o, x, f"{name}.n1", n), f"{name}.qkv", n, 3 * n)
            q, k, v = (
                _heads(o, o.part(qkv, 2, p * n, (p + 1) * n), s, heads, n // heads)
                for p in range(3)
            )
            if past:
                states += [k, v]
                k = o.concat([given[f"k{layer}"], k], 2)
                v = o.concat([given[f"v{layer}"], v], 2)
            a = _linear(o, _attend(o, q, k, v, mask, s, n), f"{name}.o", n, n)
            x = o.add(x, a)
            h = _linear(o, _norm(o, x, f"{name}.n2", n), f"{name}.up", n, 4 * n)
            x = o.add(x, _linear(o, o.gelu(h, True), f"{name}.down", 4 * n, n))
        last = _norm(o, o.part(x, 1, s - 1, s), "last", n)
        return [o.matmul(last, o.weight("head", (n, vocabulary))), *states]

    return build


# ---- recommendation, recurrence ----------------------------------------------------------------


def _dlrm(batch: int, tables: int = 26, rows: int = 10000, d: int = 64) -> Callable[..., Any]:
    def build(o: Ops, given: Mapping[str, Value]) -> list[Value]:
        x, k = given["dense"], 13
        for place, n in enumerate((512, 256, d)):
            x, k = o.relu(_linear(o, x, f"bottom{place}", k, n)), n
        parts = [o.reshape(x, (batch, 1, d))]
        for t in range(tables):
            ids = o.reshape(o.part(given["ids"], 1, t, t + 1), (batch,))
            row = o.take(o.weight(f"table{t}", (rows, d), "table"), ids)
            parts.append(o.reshape(row, (batch, 1, d)))
        z = o.concat(parts, 1)
        products = o.matmul(z, o.transpose(z, (0, 2, 1)))
        y = o.concat([x, o.reshape(products, (batch, (tables + 1) ** 2))], 1)
        k = d + (tables + 1) ** 2
        for place, n in enumerate((512, 256)):
            y, k = o.relu(_linear(o, y, f"top{place}", k, n)), n
        return [o.sigmoid(_linear(o, y, "top", k, 1))]

    return build


_IMAGE = {"x": ((1, 3, 224, 224), "float32", "normal")}
_CACHE = {
    f"{p}{layer}": ((1, 12, 256, 64), "float32", "normal") for layer in range(12) for p in "kv"
}

ZOO: dict[str, Model] = {
    "resnet18": Model(_IMAGE, ("y",), _resnet((2, 2, 2, 2), False)),
    "resnet50": Model(_IMAGE, ("y",), _resnet((3, 4, 6, 3), True)),
    "mobilenet_v2": Model(_IMAGE, ("y",), _mobilenet),
    "bert_12_128": Model({"ids": ((1, 128), "int64", "below:30522")}, ("y",), _bert(12, 128)),
    "gpt2_prefill_256": Model(
        {"ids": ((1, 256), "int64", "below:50257")}, ("y",), _gpt2(12, 256, 0)
    ),
    "gpt2_decode_256": Model(
        {"ids": ((1, 1), "int64", "below:50257"), **_CACHE},
        ("y", *(f"new_{name}" for name in _CACHE)),
        _gpt2(12, 1, 256),
    ),
    "dlrm_128": Model(
        {"dense": ((128, 13), "float32", "normal"), "ids": ((128, 26), "int64", "below:10000")},
        ("y",),
        _dlrm(128),
    ),
}


# ---- ONNX --------------------------------------------------------------------------------------


class _OnnxOps:
    """Writes nodes; a value is a name."""

    def __init__(self) -> None:
        self.nodes: list[Any] = []
        self.initializers: dict[str, Any] = {}

    def node(self, op: str, *inputs: str, **attributes: Any) -> str:
        from onnx import helper

        out = f"t{len(self.nodes)}"
        self.nodes.append(helper.make_node(op, list(inputs), [out], **attributes))
        return out

    def whole(self, *numbers: int) -> str:
        import numpy as np

        return self.constant(np.array(numbers, np.int64))

    def constant(self, array: Array) -> str:
        digest = hashlib.sha256(array.tobytes() + str(array.dtype).encode()).hexdigest()[:12]
        name = f"c_{digest}_{'x'.join(map(str, array.shape))}"
        self.initializers[name] = array
        return name

    def weight(self, name: str, shape: Sequence[int], kind: str = "normal") -> str:
        self.initializers[name] = weight(name, shape, kind)
        return name

    def conv(self, x: str, w: str, stride: int, pad: int, groups: int = 1) -> str:
        return self.node(
            "Conv", x, w, strides=[stride, stride], pads=[pad] * 4, group=groups
        )

    def batch_norm(self, x: str, g: str, b: str, mean: str, var: str) -> str:
        return self.node("BatchNormalization", x, g, b, mean, var, epsilon=1e-5)

    def relu(self, x: str) -> str:
        return self.node("Relu", x)

    def clip6(self, x: str) -> str:
        import numpy as np

        limits = [self.constant(np.array(v, np.float32)) for v in (0.0, 6.0)]
        return self.node("Clip", x, *limits)

    def sigmoid(self, x: str) -> str:
        return self.node("Sigmoid", x)

    def gelu(self, x: str, tanh: bool = False) -> str:
        return self.node("Gelu", x, approximate="tanh" if tanh else "none")

    def max_pool(self, x: str, size: int, stride: int, pad: int) -> str:
        return self.node(
            "MaxPool", x, kernel_shape=[size, size], strides=[stride, stride], pads=[pad] * 4
        )

    def mean_pool(self, x: str) -> str:
        return self.node("GlobalAveragePool", x)

    def add(self, x: str, y: str) -> str:
        return self.node("Add", x, y)

    def scale(self, x: str, by: float) -> str:
        import numpy as np

        return self.node("Mul", x, self.constant(np.array(by, np.float32)))

    def matmul(self, x: str, y: str) -> str:
        return self.node("MatMul", x, y)

    def softmax(self, x: str) -> str:
        return self.node("Softmax", x, axis=-1)

    def layer_norm(self, x: str, g: str, b: str) -> str:
        return self.node("LayerNormalization", x, g, b, axis=-1, epsilon=1e-5)

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        return self.node("Reshape", x, self.whole(*shape))

    def transpose(self, x: str, order: Sequence[int]) -> str:
        return self.node("Transpose", x, perm=list(order))

    def concat(self, parts: Sequence[str], axis: int) -> str:
        return self.node("Concat", *parts, axis=axis)

    def part(self, x: str, axis: int, start: int, stop: int) -> str:
        return self.node("Slice", x, self.whole(start), self.whole(stop), self.whole(axis))

    def take(self, table: str, ids: str) -> str:
        return self.node("Gather", table, ids, axis=0)


_OPEN_LENGTH = 509  # stands for the length while the open model is written; no other size is it


class _OpenOps(_OnnxOps):
    """Writes a model of batch 1 and length `_OPEN_LENGTH` for every batch and length."""

    def weight(self, name: str, shape: Sequence[int], kind: str = "normal") -> str:
        if shape[0] != _OPEN_LENGTH:
            return super().weight(name, shape, kind)
        table = super().weight(name, (LONGEST, *shape[1:]), kind)
        length = self.node("Shape", "ids", start=1, end=2)
        return self.node("Slice", table, self.whole(0), length, self.whole(0))

    def reshape(self, x: str, shape: Sequence[int]) -> str:
        # 0 keeps the size that the axis has.
        kept = [0 if n in (1, _OPEN_LENGTH) and k < 2 else n for k, n in enumerate(shape)]
        return self.node("Reshape", x, self.whole(*kept))


def open_bert(layers: int = 12, width: int = 768) -> bytes:
    """A BERT encoder as ONNX for ids of [B, S], any B, S up to `LONGEST`; heads are 64 wide."""
    fixed = ZOO["bert_12_128"]
    _, dtype, values = fixed.inputs["ids"]
    model = replace(
        fixed,
        inputs={"ids": (("B", "S"), dtype, values)},  # type: ignore[dict-item]
        build=_bert(layers, _OPEN_LENGTH, width, width // 64),
    )
    return _onnx_bytes("bert", model, _OpenOps())


def _onnx_bytes(name: str, model: Model, ops: _OnnxOps) -> bytes:
    import numpy as np
    from onnx import helper, numpy_helper

    results = model.build(ops, {given: given for given in model.inputs})

    def value(tensor: str, dtype: str, shape: Sequence[int] | None) -> Any:
        kind = helper.np_dtype_to_tensor_dtype(np.dtype(dtype))
        return helper.make_tensor_value_info(tensor, kind, shape)

    for result, wanted in zip(results, model.outputs, strict=True):
        ops.nodes.append(helper.make_node("Identity", [result], [wanted]))
    graph = helper.make_graph(
        ops.nodes,
        name,
        [value(given, dtype, shape) for given, (shape, dtype, _) in model.inputs.items()],
        [value(wanted, "float32", None) for wanted in model.outputs],
        [numpy_helper.from_array(array, given) for given, array in ops.initializers.items()],
    )
    made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)], ir_version=10)
    data: bytes = made.SerializeToString()
    return data


def onnx_file(name: str) -> Path:
    """The model as an ONNX file in the cache folder; written once, whole."""
    from tilewright.config import current

    path = current().cache_dir / "bench" / f"{name}-{_FORMAT}.onnx"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        temporary = path.with_name(f".{path.name}.{os.getpid()}")
        temporary.write_bytes(_onnx_bytes(name, ZOO[name], _OnnxOps()))
        temporary.replace(path)
    return path
