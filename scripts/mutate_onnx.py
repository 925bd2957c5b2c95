"""Mutated ONNX files: bit flips, truncations, swapped fields. No crash, no hang, no wrong result.

    python scripts/mutate_onnx.py [--count 10000] [--seed 0] [--state FILE] [--json OUT] [--show K]

Seeds are the models of ONNX's own node tests (those in scope of `bench --suite doors`) and small whole
models. Mutant k of a seed is the same everywhere. Each is loaded, compiled and run in a child with
limits (`verify.sandbox`); what is accepted is compared with `onnx.reference`, and where the two differ,
with onnxruntime. Resumable: `--state` keeps the outcome of every mutant, a line of JSON each.

Outcomes: refused (a typed error); same (as the reference); alone (accepted, and neither the reference
nor onnxruntime can run it); reference_differs (onnxruntime agrees with us). Wrong, and exit status 1:
different, crash, hang, exception, internal.
"""

from __future__ import annotations

import argparse
import collections
import copy
import functools
import json
import random
import sys
import time
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from tilewright.tools.doors.nodes import compare, node_cases
from tilewright.verify.sandbox import Ended, Limits, run_tasks

BAD = ("different", "crash", "hang", "exception", "internal", "memory")
_OF_LARGEST = 1e-6  # 16 unit roundoffs
LIMITS = Limits(wall_s=150, cpu_s=30, memory_bytes=6 << 30, file_bytes=1 << 30)


class Seed:
    """A model and inputs that it takes."""

    def __init__(self, name: str, model: Any, inputs: dict[str, Any]) -> None:
        self.name, self.model, self.inputs = name, model, inputs
        self.rtol, self.atol = 1e-3, 1e-5
        self.data: bytes = model.SerializeToString()


@functools.cache
def seeds() -> list[Seed]:
    """Every seed, small ones only."""
    out = []
    for case in node_cases():
        if len(case.model.SerializeToString()) > 40_000:
            continue
        names = [i.name for i in case.model.graph.input]
        arrays = [
            numpy_helper.to_array(x) if isinstance(x, TensorProto) else np.asarray(x)
            for x in case.data_sets[0][0]
        ]
        if len(names) == len(arrays) and sum(a.size for a in arrays) < 100_000:
            out.append(Seed(case.name, case.model, dict(zip(names, arrays, strict=True))))
    return out + whole_models() * 25


def whole_models() -> list[Seed]:
    """Small networks of several operators."""
    rng = np.random.default_rng(0)

    def weights(name: str, *shape: int) -> Any:
        return numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32) * 0.3, name)

    def model(name: str, nodes: list[Any], held: list[Any], shape: list[int]) -> Seed:
        graph = helper.make_graph(
            nodes, name, [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)], held,
        )  # fmt: skip
        made = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
        return Seed(name, made, {"x": rng.standard_normal(shape).astype(np.float32)})

    node = helper.make_node
    convolutions = [
        node("Conv", ["x", "w", "b"], ["c"], pads=[1, 1, 1, 1], strides=[2, 2]),
        node("BatchNormalization", ["c", "s", "t", "m", "v"], ["n"]),
        node("Relu", ["n"], ["r"]),
        node("MaxPool", ["r"], ["p"], kernel_shape=[2, 2], strides=[2, 2]),
        node("GlobalAveragePool", ["p"], ["g"]), node("Flatten", ["g"], ["f"]),
        node("Gemm", ["f", "fc", "fb"], ["l"], transB=1), node("Softmax", ["l"], ["y"], axis=-1),
    ]  # fmt: skip
    held = [
        weights("w", 8, 3, 3, 3), weights("b", 8), weights("s", 8), weights("t", 8),
        weights("m", 8), numpy_helper.from_array(np.full(8, 0.7, np.float32), "v"),
        weights("fc", 5, 8), weights("fb", 5),
    ]  # fmt: skip
    attention = [
        node("MatMul", ["x", "wq"], ["q"]), node("MatMul", ["x", "wk"], ["k"]),
        node("MatMul", ["x", "wv"], ["v"]), node("Transpose", ["k"], ["kt"], perm=[0, 2, 1]),
        node("MatMul", ["q", "kt"], ["s"]), node("Mul", ["s", "scale"], ["ss"]),
        node("Softmax", ["ss"], ["p"], axis=-1), node("MatMul", ["p", "v"], ["o"]),
        node("Add", ["o", "x"], ["h"]), node("LayerNormalization", ["h", "g", "b"], ["y"], axis=-1),
    ]  # fmt: skip
    more = [
        weights("wq", 16, 16), weights("wk", 16, 16), weights("wv", 16, 16),
        numpy_helper.from_array(np.float32(0.25), "scale"), weights("g", 16), weights("b", 16),
    ]  # fmt: skip
    recurrent = [
        node("LSTM", ["x", "w", "r", "b"], ["ys", "h"], hidden_size=4),
        node("Squeeze", ["h", "zero"], ["hs"]), node("Reshape", ["hs", "shape"], ["f"]),
        node("Gemm", ["f", "fc"], ["e"], transB=1), node("Erf", ["e"], ["y"]),
    ]  # fmt: skip
    states = [
        weights("w", 1, 16, 3), weights("r", 1, 16, 4), weights("b", 1, 32),
        numpy_helper.from_array(np.array([0]), "zero"),
        numpy_helper.from_array(np.array([2, -1]), "shape"), weights("fc", 3, 4),
    ]  # fmt: skip
    return [
        model("convolutions", convolutions, held, [2, 3, 12, 12]),
        model("attention", attention, more, [2, 6, 16]),
        model("recurrent", recurrent, states, [5, 2, 3]),
    ]


# ---- mutations ---------------------------------------------------------------------------------


def flip_bits(rng: random.Random, data: bytes) -> bytes:
    out = bytearray(data)
    for _ in range(rng.choice((1, 1, 1, 2, 3, 8))):
        out[rng.randrange(len(out))] ^= 1 << rng.randrange(8)
    return bytes(out)


def truncate(rng: random.Random, data: bytes) -> bytes:
    return data[: rng.randrange(len(data))]


def splice(rng: random.Random, data: bytes) -> bytes:
    """A piece left out, doubled, or moved."""
    a, b = sorted(rng.randrange(len(data) + 1) for _ in range(2))
    b = min(b, a + rng.choice((1, 2, 8, 64)))
    at = rng.randrange(len(data) + 1)
    return rng.choice(
        (data[:a] + data[b:], data[:b] + data[a:], data[:at] + data[a:b] + data[at:])
    )


_OPERATORS = sorted({s.name for s in onnx.defs.get_all_schemas() if s.domain == ""})
_INTEGERS = (-1, 0, 1, 2, 3, -2, 7, 16, 1 << 20, 1 << 31, (1 << 63) - 1, -(1 << 63))


def swap_fields(rng: random.Random, data: bytes) -> bytes:
    """The parsed model with one to three fields changed or exchanged."""
    model = onnx.ModelProto()
    model.ParseFromString(data)
    for _ in range(rng.choice((1, 1, 2, 3))):
        rng.choice(_FIELD_CHANGES)(rng, model)
    return bytes(model.SerializeToString())


def _nodes(model: Any) -> list[Any]:
    return list(model.graph.node)


def _exchange_inputs(rng: random.Random, model: Any) -> None:
    n = rng.choice(_nodes(model))
    if len(n.input) > 1:
        a, b = rng.sample(range(len(n.input)), 2)
        n.input[a], n.input[b] = n.input[b], n.input[a]


def _other_input(rng: random.Random, model: Any) -> None:
    n = rng.choice(_nodes(model))
    names = [x for m in model.graph.node for x in (*m.input, *m.output)] + ["", "nothing"]
    if n.input:
        n.input[rng.randrange(len(n.input))] = rng.choice(names)


def _fewer_or_more(rng: random.Random, model: Any) -> None:
    n = rng.choice(_nodes(model))
    field = rng.choice((n.input, n.output))
    if field and rng.random() < 0.6:
        del field[rng.randrange(len(field))]
    elif field:
        field.append(rng.choice(list(field)))


def _operator(rng: random.Random, model: Any) -> None:
    rng.choice(_nodes(model)).op_type = rng.choice(_OPERATORS)


def _drop_or_double(rng: random.Random, model: Any) -> None:
    k = rng.randrange(len(model.graph.node))
    if rng.random() < 0.5:
        model.graph.node.append(model.graph.node[k])
    elif len(model.graph.node) > 1:
        del model.graph.node[k]


def _attribute(rng: random.Random, model: Any) -> None:
    n = rng.choice(_nodes(model))
    if not n.attribute:
        return
    a = rng.choice(list(n.attribute))
    kind = rng.random()
    if kind < 0.15:
        n.attribute.remove(a)
    elif kind < 0.3:
        a.type = rng.randrange(13)
    elif a.ints:
        if rng.random() < 0.3:
            a.ints.append(rng.choice(_INTEGERS))
        else:
            a.ints[rng.randrange(len(a.ints))] = rng.choice(_INTEGERS)
    elif a.HasField("i"):
        a.i = rng.choice(_INTEGERS)
    elif a.HasField("f"):
        a.f = rng.choice((0.0, -1.0, 1e30, float("nan"), float("inf"), 1e-40))
    elif a.HasField("s"):
        a.s = rng.choice((b"", b"SAME_UPPER", b"linear", b"\xff\xfe", b"reflect"))


def _tensors(model: Any) -> list[Any]:
    inside = [a.t for n in model.graph.node for a in n.attribute if a.HasField("t")]
    return list(model.graph.initializer) + inside


def _tensor(rng: random.Random, model: Any) -> None:
    found = _tensors(model)
    if not found:
        return
    t = rng.choice(found)
    kind = rng.random()
    if kind < 0.4 and t.dims:
        t.dims[rng.randrange(len(t.dims))] = rng.choice(_INTEGERS)
    elif kind < 0.6:
        t.data_type = rng.randrange(25)
    elif kind < 0.7:
        t.data_location = TensorProto.EXTERNAL
        where = t.external_data.add()
        where.key, where.value = "location", rng.choice(("../../etc/passwd", "/etc/passwd", "w.bin"))
    elif t.raw_data:
        t.raw_data = flip_bits(rng, t.raw_data)


def _type(rng: random.Random, model: Any) -> None:
    v = rng.choice([*model.graph.input, *model.graph.output])
    t = v.type.tensor_type
    kind = rng.random()
    if kind < 0.4 and t.shape.dim:
        t.shape.dim[rng.randrange(len(t.shape.dim))].dim_value = rng.choice(_INTEGERS)
    elif kind < 0.6:
        t.elem_type = rng.randrange(25)
    elif kind < 0.8:
        t.shape.dim.add().dim_param = rng.choice(("N", "", "x"))
    else:
        v.name = rng.choice(("y", "x", "", "nothing"))


def _version(rng: random.Random, model: Any) -> None:
    if rng.random() < 0.8 and model.opset_import:
        model.opset_import[0].version = rng.choice((*_INTEGERS, *range(6, 25)))
    else:
        model.ir_version = rng.choice(_INTEGERS)


_FIELD_CHANGES = (
    _exchange_inputs, _other_input, _fewer_or_more, _operator, _drop_or_double, _attribute,
    _attribute, _tensor, _type, _version,
)  # fmt: skip
MUTATIONS = {
    "bit flips": flip_bits, "truncation": truncate, "splice": splice, "field swap": swap_fields,
}  # fmt: skip


def mutant(k: int, seed: int) -> tuple[Seed, str, bytes]:
    """Mutant k: what it was made of, how, and its bytes."""
    rng = random.Random(f"{seed}/{k}")
    chosen = rng.choice(seeds())
    how = rng.choices(list(MUTATIONS), (3, 1, 1, 5))[0]
    for _ in range(20):
        data = MUTATIONS[how](rng, chosen.data)
        if data != chosen.data:
            break
    return chosen, how, data


# ---- judging -----------------------------------------------------------------------------------


def ours(data: bytes, inputs: dict[str, Any]) -> list[Any]:
    import tilewright as tw

    model = tw.onnx.load(data)
    names = set(model._inputs()) if model.is_specialised else set(model._imported.inputs.values())
    return model.run({n: a for n, a in inputs.items() if n in names})


def reference(data: bytes, inputs: dict[str, Any]) -> list[Any] | None:
    """None where the standard's own runtime cannot run it."""
    from onnx.reference import ReferenceEvaluator

    try:
        model = onnx.load_from_string(data)
        onnx.checker.check_model(model)
        names = {i.name for i in model.graph.input}
        given = {n: a for n, a in inputs.items() if n in names}
        return list(ReferenceEvaluator(model).run(None, given))
    except MemoryError:
        raise
    except Exception:  # noqa: BLE001 - whatever it raises, it has no answer
        return None


def runtime(data: bytes, inputs: dict[str, Any]) -> list[Any] | None:
    """None where onnxruntime refuses."""
    import onnxruntime as ort

    try:
        options = ort.SessionOptions()
        options.log_severity_level = 4
        options.intra_op_num_threads = 1
        session = ort.InferenceSession(data, options, providers=["CPUExecutionProvider"])
        names = {i.name for i in session.get_inputs()}
        given = {n: a for n, a in inputs.items() if n in names}
        return list(session.run(None, given))
    except Exception:  # noqa: BLE001 - whatever it raises, it has no answer
        return None


def difference(seed: Seed, got: list[Any], expected: list[Any] | None) -> str | None:
    """What differs, or None."""
    if expected is None:
        return "no answer"
    if len(got) != len(expected):
        return f"{len(got)} outputs instead of {len(expected)}"
    arrays = [np.asarray(e) for e in expected]
    for g, e in zip(got, arrays, strict=True):
        if np.asarray(g).dtype != e.dtype:
            return f"element type {np.asarray(g).dtype} instead of {e.dtype}"
    # Sums that cancel, as those of a Fourier transform, are off by a share of the largest one.
    floats = [e[np.isfinite(e)] for e in arrays if e.dtype.kind == "f"]
    largest = max([float(np.max(np.abs(e), initial=0.0)) for e in floats], default=0.0)
    allowed = copy.copy(seed)
    allowed.atol = max(seed.atol, _OF_LARGEST * largest)
    found = compare(allowed, [np.asarray(g) for g in got], arrays)
    return None if found is None else found.detail


def judge(task: tuple[int, int], say: Any) -> dict[str, str]:
    """The outcome of one mutant."""
    k, seed = task
    chosen, _, data = mutant(k, seed)
    say("ours")
    with warnings.catch_warnings(), np.errstate(all="ignore"):
        warnings.simplefilter("ignore")
        got = ours(data, chosen.inputs)
        say("reference")
        expected = reference(data, chosen.inputs)
        found = difference(chosen, got, expected)
        if found is None:
            return {"outcome": "same"}
        say("onnxruntime")
        third = difference(chosen, got, runtime(data, chosen.inputs))
    if third is None:
        kind = "runtime_agrees" if expected is None else "reference_differs"
        return {"outcome": kind, "detail": found}
    if expected is None and third == "no answer":
        return {"outcome": "alone"}
    return {"outcome": "different", "detail": f"reference: {found}; onnxruntime: {third}"}


def record(k: int, seed: int, ended: Ended) -> dict[str, Any]:
    chosen, how, _ = mutant(k, seed)
    out: dict[str, Any] = {"mutant": k, "of": chosen.name, "how": how}
    if ended.kind == "done":
        return out | ended.value
    if ended.kind in ("crash", "hang", "memory") and ended.where in ("reference", "onnxruntime"):
        return out | {"outcome": "alone", "detail": f"{ended.where}: {ended.kind} {ended.detail}"}
    return out | {"outcome": ended.kind, "detail": ended.detail}


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--count", type=int, default=10_000)
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--state", type=Path)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--show", type=int, metavar="K", help="run mutant K alone and print it")
    options = parser.parse_args()
    if options.show is not None:
        chosen, how, data = mutant(options.show, options.seed)
        print(chosen.name, how)
        try:
            print(onnx.printer.to_text(onnx.load_from_string(data)))
        except Exception as error:  # noqa: BLE001
            print("cannot be printed:", error)
        ended = next(iter(run_tasks([(options.show, options.seed)], judge, LIMITS)))
        print(json.dumps(record(options.show, options.seed, ended), indent=1).replace("\\n", "\n"))
        return 0
    known: dict[int, dict[str, Any]] = {}
    if options.state and options.state.exists():
        for line in options.state.read_text().splitlines():
            known[json.loads(line)["mutant"]] = json.loads(line)
    import onnx.reference  # noqa: F401 - children start with it
    import onnxruntime  # noqa: F401

    import tilewright.api  # noqa: F401

    todo = [k for k in range(options.count) if k not in known]
    started = time.monotonic()
    tasks = [(k, options.seed) for k in todo]
    for k, ended in zip(todo, run_tasks(tasks, judge, LIMITS), strict=True):
        known[k] = record(k, options.seed, ended)
        if options.state:
            with open(options.state, "a") as file:
                file.write(json.dumps(known[k]) + "\n")
        if known[k]["outcome"] in BAD:
            print(json.dumps(known[k])[:600], flush=True)
    mine = [known[k] for k in range(options.count)]
    counts = collections.Counter(r["outcome"] for r in mine)
    result = {
        "command": f"python scripts/mutate_onnx.py --count {options.count} --seed {options.seed}",
        "mutants": len(mine), "seeds": len({s.name for s in seeds()}),
        "by_mutation": dict(collections.Counter(r["how"] for r in mine)),
        "outcomes": dict(sorted(counts.items())),
        "refused_by_code": dict(collections.Counter(
            r["detail"][1:5] for r in mine if r["outcome"] == "refused").most_common()),
        "wrong": [r for r in mine if r["outcome"] in BAD],
        "seconds": round(time.monotonic() - started, 1),
    }  # fmt: skip
    text = json.dumps(result, indent=1)
    if options.json:
        options.json.write_text(text + "\n")
    print(text)
    return int(bool(result["wrong"]))


if __name__ == "__main__":
    sys.exit(main())
