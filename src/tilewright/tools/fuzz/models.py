"""One generated ONNX model: imported, compiled, compared with the oracle and third parties.

In: a `Model`. Out: an `Answer`. Invariants: what our compiler computes is judged by the oracle
alone; where a third party differs from the oracle, ONNX's own reference evaluator decides whose
mistake it is, and the model that shows it is kept.
"""

from __future__ import annotations

import base64
import io
from collections.abc import Callable, Iterator, Mapping
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper

from tilewright.errors import TilewrightError
from tilewright.frontend.onnx import import_onnx
from tilewright.ir.binding import ORACLE, bind_sizes, gather_arrays
from tilewright.ir.evaluate import Frame
from tilewright.ir.expr import Expr
from tilewright.ir.interpreter import Runner, run_program
from tilewright.ir.program import Definition, Extern, Program, statement_reads
from tilewright.tools.fuzz.programs import Answer, Options, compiled_outputs, drawn_by
from tilewright.verify.fuzz import Crash, Run, fingerprint, judge_on
from tilewright.verify.models.graph import Model
from tilewright.verify.oracle import compare_outputs
from tilewright.verify.witness import References, references, spreads

__all__ = ["check_model", "model_of", "reduce_model", "text_of"]

Array = np.ndarray[Any, np.dtype[Any]]
_KEY = "inputs"
# Others round numbers that an operator's definition holds, and its attributes, to f32 before they
# compute in f64.
_F32_NUMBERS = 64 * 2.0**-24


def text_of(model: Model) -> bytes:
    """The model with its inputs inside, as one ONNX file."""
    held = io.BytesIO()
    np.savez(held, **model.inputs)  # type: ignore[arg-type]
    proto = onnx.load_model_from_string(model.data)
    del proto.metadata_props[:]
    entry = proto.metadata_props.add()
    entry.key, entry.value = _KEY, base64.b64encode(held.getvalue()).decode()
    data: bytes = proto.SerializeToString()
    return data


def model_of(data: bytes) -> Model:
    """The model that `text_of` wrote."""
    proto = onnx.load_model_from_string(data)
    found = {e.key: e.value for e in proto.metadata_props}
    with np.load(io.BytesIO(base64.b64decode(found[_KEY]))) as held:
        inputs = {n: held[n] for n in held.files}
    return Model(
        data, inputs, len(proto.graph.node), frozenset(n.op_type for n in proto.graph.node)
    )


def check_model(
    model: Model, options: Options, isolate: Callable[[Run], Run] | None = None
) -> Answer:
    """Import, build, run and compare one model; `isolate` wraps the part that may crash."""
    answer = Answer(1, model.nodes, {f"row {r}" for r in model.rows})
    try:
        imported = import_onnx(model.data)
    except TilewrightError as error:
        answer.found = (f"error import {fingerprint(error)}", str(error))
    else:
        program = imported.program
        answer.drawn |= drawn_by(program)
        answer.definitions = len(program.body)
        inputs = {n: model.inputs[o] for n, o in imported.inputs.items()}
        answer.found = _judged(model, program, inputs, options, isolate, answer)
    if answer.found is not None:
        answer.data = text_of(model)
    return answer


def _judged(
    model: Model,
    program: Program,
    inputs: dict[str, Array],
    options: Options,
    isolate: Callable[[Run], Run] | None,
    answer: Answer,
) -> tuple[str, str] | None:
    def run(p: Program, given: dict[str, Array]) -> list[Array]:
        return compiled_outputs(p, {}, given, options, answer)

    try:
        expected = references(program, inputs)
    except TilewrightError as error:
        answer.valid = False
        return f"invalid {fingerprint(error)}", f"the oracle refuses: {error}"
    found = judge_on(isolate(run) if isolate else run, program, inputs, expected, {})
    return found or _third(model, program, inputs, expected, answer, isolate)


def _third(
    model: Model,
    program: Program,
    inputs: dict[str, Array],
    expected: References,
    answer: Answer,
    isolate: Callable[[Run], Run] | None,
) -> tuple[str, str] | None:
    """Compare the oracle with onnxruntime, and where they differ with ONNX's reference."""
    try:
        theirs = _onnxruntime(model) if isolate is None else _apart(model, isolate)
    except Crash as crash:
        answer.others.append("onnxruntime crashed")
        return "third onnxruntime", f"onnxruntime does not survive the model: {crash}"
    if theirs is None:
        answer.others.append("onnxruntime refused")
        return None
    wrong = _differs(program, inputs, expected, theirs)
    if wrong is None:
        answer.others.append("onnxruntime agreed")
        return None
    if _is_undefined(program, inputs):
        answer.others.append("onnxruntime undefined")
        return None
    reference = _reference(model)
    if reference is None:
        return _third_of_parts(model, answer, isolate) or (
            "differs onnxruntime", f"no reference decides: {wrong}",
        )  # fmt: skip
    ours = _differs(program, inputs, expected, reference)
    if ours is None:
        answer.others.append("onnxruntime wrong")
        return "third onnxruntime", f"onnxruntime differs, ONNX's reference agrees with us: {wrong}"
    both = [
        np.array_equal(a, b, equal_nan=a.dtype.kind == "f")
        for a, b in zip(theirs, reference, strict=True)
    ]
    if all(both) or ours == wrong:
        return (
            "wrong importer",
            f"onnxruntime and ONNX's reference agree on something else: {wrong}",
        )
    return _third_of_parts(model, answer, isolate) or (
        "differs both", f"onnxruntime: {wrong}; ONNX's reference: {ours}",
    )  # fmt: skip


def _is_undefined(program: Program, inputs: dict[str, Array]) -> bool:
    """Does NaN take part in an order, or does NaN or a number outside of its range become an
    integer? The standard does not say how.
    """
    found: list[bool] = []

    def probe(e: Expr, k: int, frame: Frame, x: Array) -> Array:
        if e.op == "cast" and not e.dtype.is_float:
            held = np.iinfo(str(e.dtype.np)) if e.dtype.is_int else None
            found.append(bool(np.isnan(x).any()))
            if held is not None:
                found.append(bool(((np.trunc(x) < held.min) | (np.trunc(x) > held.max)).any()))
        return x

    sizes = bind_sizes(program, {n: a.shape for n, a in inputs.items()})
    runner = Runner(gather_arrays(program, inputs, None, ORACLE), sizes, ORACLE)
    runner.probe = probe
    with np.errstate(all="ignore"):
        for s in program.body:
            monoid = s.reduction.monoid if isinstance(s, Definition) and s.reduction else ""
            if isinstance(s, Extern):
                orders = [runner.arrays[a] for a in s.args]
                found += [bool(np.isnan(x).any()) for x in orders if x.dtype.kind == "f"]
            elif monoid in ("max", "min", "argmax", "argmin"):
                read = [runner.arrays[n] for n in statement_reads(s)]
                found += [bool(np.isnan(x).any()) for x in read if x.dtype.kind == "f"]
            runner.statement(s)
    return any(found)


def _third_of_parts(
    model: Model, answer: Answer, isolate: Callable[[Run], Run] | None
) -> tuple[str, str] | None:
    """The verdict on what one output needs, where nobody else is right about all of them."""
    for part in _by_output(onnx.load_model_from_string(model.data), model.inputs):
        if part.nodes == model.nodes:
            continue
        try:
            imported = import_onnx(part.data)
            inputs = {n: part.inputs[o] for n, o in imported.inputs.items()}
            expected = references(imported.program, inputs)
        except TilewrightError:
            continue
        found = _third(part, imported.program, inputs, expected, Answer(), isolate)
        if found is not None:
            if found[0].startswith("third"):
                answer.others.append("onnxruntime wrong")
            return found
    return None


def _differs(
    program: Program, inputs: dict[str, Array], expected: References, got: list[Array]
) -> str | None:
    """How the arrays of a third party differ from the oracle's beyond what rounding explains."""
    moved: list[float] | None = None
    kinds = [program.tensors[n].dtype.np for n in program.results]
    shaped = [np.asarray(a) for a in got]
    for k, o in enumerate(compare_outputs(program, shaped, expected, -1, bilinear=True)):
        if o.verdict.ok or shaped[k].dtype != kinds[k]:
            continue
        if not o.verdict.message.startswith("the ") and np.isfinite(o.verdict.max_err):
            ref = np.abs(expected.ref[k][np.isfinite(expected.ref[k])])
            if o.verdict.max_err <= _F32_NUMBERS * float(np.max(ref, initial=0.0)):
                continue
            if moved is None:
                moved = spreads(program, inputs)
            if o.verdict.max_err <= 16 * moved[k]:
                continue
        return f"output {o.output}: {o.verdict}"
    return None


def _apart(model: Model, isolate: Callable[[Run], Run]) -> list[Array] | None:
    """`_onnxruntime` in a process of its own. Errors: Crash."""

    def run(program: Any, inputs: dict[str, Array]) -> list[Array]:
        found = _onnxruntime(model)
        if found is None:
            raise LookupError
        return found

    try:
        return list(isolate(run)(Program("none", (), (), ()), {}))
    except LookupError:
        return None


def _onnxruntime(model: Model) -> list[Array] | None:
    """Its outputs; None where it is not installed or refuses the model."""
    try:
        import onnxruntime as ort
    except ImportError:
        return None
    settings = ort.SessionOptions()
    settings.log_severity_level = 4
    settings.intra_op_num_threads = 1
    try:
        session = ort.InferenceSession(model.data, settings, providers=["CPUExecutionProvider"])
        return [np.asarray(a) for a in session.run(None, model.inputs)]
    except Exception:  # noqa: BLE001 - its own classes of errors; all mean that it has no answer
        return None


def _reference(model: Model) -> list[Array] | None:
    """Outputs of ONNX's reference evaluator; None where it fails."""
    from onnx.reference import ReferenceEvaluator

    try:
        with np.errstate(all="ignore"):
            return [np.asarray(a) for a in ReferenceEvaluator(model.data).run(None, model.inputs)]
    except Exception:  # noqa: BLE001 - it has bugs of its own; then it decides nothing
        return None


# ---- reduction -----------------------------------------------------------------------------------


def reduce_model(model: Model, fails: Callable[[Model], bool]) -> Model:
    """The smallest part of the model that fails in the same way: one node on the oracle's values, a
    few neighbours, or what one output needs.
    """
    proto = onnx.load_model_from_string(model.data)
    values = _values(model)
    if values is not None:
        nodes = list(proto.graph.node)
        for width in (1, 2, 3, 5):
            for at in range(len(nodes) - width + 1):
                part = _part(proto, nodes[at : at + width], values)
                if part is not None and fails(part):
                    return part
    for smaller in _by_output(proto, model.inputs):
        if fails(smaller):
            return smaller
    return model


def _values(model: Model) -> dict[str, Array] | None:
    """The oracle's value of everything in the graph; None where it gives none."""
    proto = onnx.load_model_from_string(model.data)
    names = [n for node in proto.graph.node for n in node.output if n]
    try:
        imported = import_onnx(model.data, outputs=names)
        given = {n: model.inputs[o] for n, o in imported.inputs.items()}
        found = run_program(imported.program, given)
    except (TilewrightError, KeyError):
        return None
    dtypes = [imported.program.tensors[n].dtype.np for n in imported.program.results]
    out = dict(model.inputs)
    with np.errstate(all="ignore"):
        out.update((n, a.astype(t)) for n, a, t in zip(names, found, dtypes, strict=True))
    for t in proto.graph.initializer:
        out[t.name] = numpy_helper.to_array(t)
    return out


def _part(proto: Any, nodes: list[Any], values: Mapping[str, Array]) -> Model | None:
    """A model of these nodes alone; what they read has the given values."""
    made = {n for node in nodes for n in node.output}
    inner = {
        n for node in nodes for a in node.attribute if a.HasField("g")
        for x in a.g.node for n in x.input
    }  # fmt: skip
    reads = [n for node in nodes for n in node.input] + sorted(inner)
    wanted = [n for n in dict.fromkeys(reads) if n and n not in made and n in values]
    held = {t.name for t in proto.graph.initializer}
    inputs = {n: values[n] for n in wanted if n not in held}
    results = [n for node in nodes for n in node.output if n and n in values]
    return _model(proto, nodes, inputs, results, [n for n in wanted if n in held])


def _by_output(proto: Any, inputs: Mapping[str, Array]) -> Iterator[Model]:
    """For every output alone the nodes it needs, the smallest first."""
    found = []
    for o in proto.graph.output:
        wanted, nodes = {o.name}, []
        for node in reversed(proto.graph.node):
            if wanted & set(node.output):
                nodes.append(node)
                wanted |= set(node.input)
                wanted |= {
                    n for a in node.attribute if a.HasField("g")
                    for x in a.g.node for n in x.input
                }  # fmt: skip
        found.append((len(nodes), o.name, nodes[::-1], wanted))
    for _, name, nodes, wanted in sorted(found, key=lambda f: f[0]):
        held = [t.name for t in proto.graph.initializer if t.name in wanted]
        model = _model(proto, nodes, {n: a for n, a in inputs.items() if n in wanted}, [name], held)
        if model is not None:
            yield model


def _model(
    proto: Any, nodes: list[Any], inputs: Mapping[str, Array], results: list[str], held: list[str]
) -> Model | None:
    infos = [
        helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), list(a.shape))
        for n, a in inputs.items()
    ]
    initial = [t for t in proto.graph.initializer if t.name in held]
    if proto.ir_version < 4:
        infos += [i for i in proto.graph.input if i.name in held]
    graph = helper.make_graph(
        nodes, "g", infos, [helper.make_empty_tensor_value_info(n) for n in results], initial
    )
    made = helper.make_model(
        graph, opset_imports=list(proto.opset_import), ir_version=proto.ir_version
    )
    try:
        made = onnx.shape_inference.infer_shapes(made, strict_mode=True)
    except (onnx.shape_inference.InferenceError, RuntimeError):
        return None
    rows = frozenset(n.op_type for n in nodes)
    return Model(made.SerializeToString(), dict(inputs), len(nodes), rows)
