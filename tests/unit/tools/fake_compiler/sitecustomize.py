"""Put on PYTHONPATH, this replaces the compiler behind `tools/wiring.py` with a few lines of NumPy.

TW_FAKE chooses what it does wrong: crash, hang, wrong, refuse, wrong_untuned, or nothing.
"""

from __future__ import annotations

import os
import signal
import sys
import time
from types import SimpleNamespace

sys.path = [p for p in sys.path if not p.endswith("fake_compiler")]

from tilewright.errors import UserError  # noqa: E402
from tilewright.tools import wiring  # noqa: E402
from tilewright.tune.event import TuningEvent  # noqa: E402

FAULT = os.environ.get("TW_FAKE", "")


def evaluate(program, inputs, dtype):
    import numpy as np

    values = {t.name: program.values[key] for t, key in program.constants}
    values = {n: np.asarray(a, dtype) for n, a in {**values, **inputs}.items()}
    x = values.get("x")
    match program.name:
        case "matmul":
            return [values["a"] @ values["b"]]
        case "softmax":
            e = np.exp(x - x.max(-1, keepdims=True))
            return [e / e.sum(-1, keepdims=True)]
        case "layer_norm":
            u = x.mean(-1, keepdims=True)
            v = ((x - u) ** 2).mean(-1, keepdims=True)
            return [(x - u) / np.sqrt(v + 1e-5) * values["g"] + values["b"]]
        case "conv":
            k = values["k"]
            padded = np.pad(x, ((0, 0), (0, 0), (1, 1), (1, 1)))
            windows = np.lib.stride_tricks.sliding_window_view(padded, (3, 3), (2, 3))
            return [np.einsum("nchwrs,ocrs->nohw", windows, k)]
    raise UserError("F005", f"no fake of {program.name}")


class Model:
    def __init__(self, program, tuned):
        self.program, self.tuned = program, tuned
        shapes = {t.name: tuple(int(str(s)) for s in t.shape) for t in program.inputs}
        self.input_specs = [SimpleNamespace(name=n, dtype="f32", shape=s) for n, s in shapes.items()]
        self.output_specs = [SimpleNamespace(name=n, dtype="f32", shape=()) for n in program.results]
        self.stats = {
            "compile_s": 0.25, "tune_s": 0.5 if tuned else 0.0, "peak_bytes": 1000, "flops": 2e6, "bytes": 3e4,
            "written_bytes": 1e4, "kernels_compiled": 1, "kernels_tuned": int(tuned),
        }  # fmt: skip
        self.calls = 0

    def run(self, inputs):
        import numpy as np

        return evaluate(self.program, inputs, np.float32)

    def bind(self, inputs, outputs):
        named = dict(zip([s.name for s in self.input_specs], inputs, strict=True))

        def call():
            self.calls += 1
            if self.calls == 9 and FAULT == "crash":
                os.kill(os.getpid(), signal.SIGSEGV)
            if self.calls == 9 and FAULT == "hang":
                time.sleep(60)
            outputs[0][...] = self.run(named)[0]
            if FAULT == "wrong" or (FAULT == "wrong_untuned" and not self.tuned):
                outputs[0][..., -1] += 1.0

        return call

    def explain(self, *, kernel=None, memory=False, measure=False):
        return f"explained {kernel} {memory}"

    def dump(self, stage, *, kernel=None, folder=None):
        return f"{stage} of {kernel or 'all'}\n{self.program}"

    def save(self, path, **more):
        path.write_text("saved")


def compile_model(model, example_inputs=None, *, tune=None, on_event=None, frozen=False, **options):
    if FAULT == "refuse":
        raise UserError("F005", "operator Foo has no row", where="node n1", hint="use Bar")
    if FAULT == "bug":
        raise IndexError("tuple index out of range")
    if FAULT == "interrupt":
        raise KeyboardInterrupt
    if on_event is not None:
        state = TuningEvent("k0", 3, 10, 12.5, 1.25, {"hang": 1}, 0.5, 2.0)
        on_event(state)
    return Model(model, bool(tune))


def compare(model, outputs, expected, *, bilinear=False):
    import numpy as np

    verdicts = []
    for output, (reference, naive) in zip(outputs, expected, strict=True):
        error = float(np.max(np.abs(output - reference)))
        size = 2.0**-21 * float(np.max(np.abs(reference)))
        allowed = 4 * max(float(np.max(np.abs(naive - reference))), size)
        detail = "" if error <= allowed else f"error {error}, allowed {allowed}"
        verdicts.append(wiring.Verdict(error <= allowed, error, allowed, detail, "y"))
    return verdicts


def oracle(model, inputs):
    import numpy as np

    pairs = zip(evaluate(model, inputs, np.float64), evaluate(model, inputs, np.float32), strict=True)
    return list(pairs)


def check_model(model, *, seeds, dims, threads, target, db):
    ok = FAULT != "wrong"
    return [wiring.Verdict(ok, 1e-7, 1e-6, "", "y", seed) for seed in range(seeds)]


def load_program(text):
    from tilewright.ir.program_parser import parse_program

    return parse_program(text)


PROBES = {"fma_gflops": 200.0, "f64_gflops": 100.0, "read_gbs": 30.0, "copy_nt_gbs": 50.0, "triad_nt_gbs": 45.0}
_load = wiring.load_model


def load_model(path):
    if path.suffix == ".prog":
        return load_program(path.read_text())
    return _load(path)


def install():
    wiring.compile_model = compile_model
    wiring.compare = compare
    wiring.oracle = oracle
    wiring.program = load_program
    wiring.work = lambda compiled: {}
    wiring.check_model = check_model
    wiring.load_model = load_model
    wiring.probes = lambda threads: dict(PROBES)
    wiring.candidate_cost = lambda: (20.0, 5.0)
    wiring.calibrate = lambda threads: {"threads": list(threads), "fma_gflops": 200.0}


install()
