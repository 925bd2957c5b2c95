"""What is put together, what is not, and the reason that is recorded."""

from __future__ import annotations

from dataclasses import replace

import numpy as np

from tilewright.api import CompiledModel
from tilewright.group.groups import Decision
from tilewright.group.plan import plan_program
from tilewright.ir.plan import KernelCall, Plan
from tilewright.ir.program import Program, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.machine.target import Target

TARGET = Target.named("x86-avx512")


def planned(text: str, constants: tuple[str, ...] = ()) -> tuple[Plan, list[Decision]]:
    return plan_program(constant(parse_program(text), constants), TARGET)


def constant(p: Program, names: tuple[str, ...]) -> Program:
    """Some inputs as constants."""
    values = {}
    found = []
    for t in p.inputs:
        if t.name in names:
            shape = tuple(int(str(n)) for n in t.shape)
            array = np.full(shape, 0.5 + len(found), t.dtype.np)
            values[array_key(array)] = array
            found.append((t, array_key(array)))
    inputs = tuple(t for t in p.inputs if t.name not in names)
    return replace(p, inputs=inputs, constants=tuple(found), values=values)


def groups(plan: Plan) -> list[set[str]]:
    """Names of the definitions of each step."""
    return [set(s.names) for s in plan.steps if isinstance(s, KernelCall)]


def reason(decisions: list[Decision], producer: str, consumer: str) -> Decision:
    found = [d for d in decisions if (d.producer, d.consumer) == (producer, consumer)]
    assert found, [(d.producer, d.consumer) for d in decisions]
    return found[-1]


def test_epilogue() -> None:
    plan, decisions = planned("""program p(x: f32[64, 32], w: f32[32, 48], b: f32[48]):
  c: f32[i<64, j<48] = sum(k<32) x[i, k] * w[k, j]
  d: f32[i<64, j<48] = c[i, j] + b[j]
  y: f32[i<64, j<48] = max(d[i, j], 0.0)
  return y
""", ("w", "b"))  # fmt: skip
    assert groups(plan) == [{"c", "d", "y"}]
    assert reason(decisions, "c", "d").fused
    assert "register tile" in reason(decisions, "c", "y").reason


def test_an_epilogue_in_another_axis_order_stays_an_epilogue() -> None:
    plan, _ = planned("""program p(x: f32[64, 32], w: f32[32, 48]):
  c: f32[i<64, j<48] = sum(k<32) x[i, k] * w[k, j]
  y: f32[j<48, i<64] = exp(c[i, j])
  return y
""")
    assert len(plan.steps) == 1


def test_residual_waits_for_both_sides() -> None:
    """The addition joins the later of its two producers; what it adds is there by then."""
    plan, _ = planned("""program p(x: f32[40, 32], u: f32[32, 48], v: f32[48, 48]):
  a: f32[i<40, j<48] = sum(k<32) x[i, k] * u[k, j]
  b: f32[i<40, j<48] = sum(k<48) max(a[i, k], 0.0) * v[k, j]
  y: f32[i<40, j<48] = a[i, j] + b[i, j]
  return y
""", ("u", "v"))  # fmt: skip
    found = groups(plan)
    assert found[-1] >= {"b", "y"}
    done: set[str] = set()
    for step in plan.steps:
        assert isinstance(step, KernelCall)
        kernel = plan.kernels[step.kernel]
        names = dict(zip((n for n, _ in kernel.layouts), step.buffers, strict=True))
        made = {names[n] for n in kernel.program.results}
        needed = set(step.buffers) - made
        assert needed <= done | {b.name for b in plan.buffers if b.place in ("input", "const")}
        done |= made


def test_squeeze_excite_is_not_fused_across_its_reduction() -> None:
    plan, _ = planned("""program p(x: f32[1, 20, 30, 30], u: f32[6, 20], v: f32[20, 6]):
  r: f32[n<1, c<20, h<30, w<30] = exp(x[n, c, h, w])
  s: f32[n<1, c<20] = sum(h<30, w<30) r[n, c, h, w]
  a: f32[n<1, q<6] = sum(c<20) s[n, c] * u[q, c]
  g: f32[n<1, c<20] = sum(q<6) max(a[n, q], 0.0) * v[c, q]
  y: f32[n<1, c<20, h<30, w<30] = r[n, c, h, w] * tanh(g[n, c])
  return y
""", ("u", "v"))  # fmt: skip
    of = {n: k for k, names in enumerate(groups(plan)) for n in names}
    assert of["s"] < of["a"] < of["g"] < of["y"]


def test_softmax_is_one_kernel() -> None:
    plan, decisions = planned("""program p(x: f32[13, 83]):
  m: f32[i<13] = max(j<83) x[i, j]
  e: f32[i<13, j<83] = exp(x[i, j] - m[i])
  s: f32[i<13] = sum(j<83) e[i, j]
  y: f32[i<13, j<83] = e[i, j] / s[i]
  return y
""")
    assert groups(plan) == [{"m", "e", "s", "y"}]
    (kernel,) = plan.kernels
    assert len(kernel.shared) == 1
    assert kernel.extents[kernel.shared[0]] == 13
    assert any(d.fused and "row stays in cache" in d.reason for d in decisions)


def test_layer_norm_is_one_kernel() -> None:
    plan, _ = planned("""program p(x: f32[17, 70], g: f32[70], b: f32[70]):
  s: f32[i<17] = sum(j<70) x[i, j]
  d: f32[i<17, j<70] = x[i, j] - s[i] / 70.0
  v: f32[i<17] = sum(j<70) d[i, j] * d[i, j]
  y: f32[i<17, j<70] = d[i, j] * rsqrt(v[i] / 70.0 + 0.00001) * g[j] + b[j]
  return y
""", ("g", "b"))  # fmt: skip
    assert len(plan.steps) == 1
    assert plan.kernels[0].shared


def test_a_single_row_is_not_stacked() -> None:
    plan, _ = planned("""program p(x: f32[83]):
  m: f32[] = max(j<83) x[j]
  e: f32[j<83] = exp(x[j] - m[])
  s: f32[] = sum(j<83) e[j]
  y: f32[j<83] = e[j] / s[]
  return y
""")
    assert all(not k.shared for k in plan.kernels)
    assert len(plan.steps) > 1


def test_attention_is_one_kernel() -> None:
    plan, _ = planned("""program p(q: f32[3, 21, 16], k: f32[3, 21, 16], v: f32[3, 21, 16]):
  s: f32[h<3, i<21, j<21] = sum(e<16) q[h, i, e] * k[h, j, e]
  m: f32[h<3, i<21] = max(j<21) s[h, i, j]
  p: f32[h<3, i<21, j<21] = exp(s[h, i, j] - m[h, i])
  l: f32[h<3, i<21] = sum(j<21) p[h, i, j]
  y: f32[h<3, i<21, j<21] = p[h, i, j] / l[h, i]
  o: f32[h<3, i<21, e<16] = sum(j<21) y[h, i, j] * v[h, j, e]
  return o
""")
    assert len(plan.steps) == 1
    assert len(plan.kernels[0].shared) == 2


def test_a_contraction_with_a_constant_is_not_stacked() -> None:
    text = """program p(x: f32[64, 32], w: f32[32, 48]):
  c: f32[i<64, j<48] = sum(k<32) x[i, k] * w[k, j]
  m: f32[i<64] = max(j<48) c[i, j]
  y: f32[i<64, j<48] = exp(c[i, j] - m[i])
  return y
"""
    plan, decisions = planned(text, ("w",))
    assert {"c"} in groups(plan)
    assert any("constant operand" in d.reason and not d.fused for d in decisions)


def test_a_row_that_does_not_fit_in_cache_is_not_stacked() -> None:
    n = TARGET.l2_bytes
    plan, decisions = planned(f"""program p(x: f32[2, {n}]):
  m: f32[i<2] = max(j<{n}) x[i, j]
  y: f32[i<2, j<{n}] = exp(x[i, j] - m[i])
  return y
""")
    assert len(plan.steps) == 2
    assert any("does not fit in half of L2" in d.reason for d in decisions)


def test_cheap_producers_are_recomputed_and_dear_ones_stored() -> None:
    plan, decisions = planned("""program p(x: f32[64, 64], w: f32[64, 64]):
  a: f32[i<64, j<64] = exp(x[i, j])
  y: f32[i<64, j<64] = sum(k<64) a[i, k] * w[k, j]
  return y
""", ("w",))  # fmt: skip
    assert groups(plan) == [{"a"}, {"y"}]
    assert any("many times" in d.reason for d in decisions if d.producer == "a")
    plan, decisions = planned("""program p(x: f32[64, 64]):
  a: f32[i<64, j<64] = x[i, j] + 1.0
  y: f32[i<64] = sum(k<64) a[i, k]
  return y
""")
    assert groups(plan) == [{"y"}]
    assert reason(decisions, "a", "y").fused


def test_every_definition_is_in_one_group_at_most() -> None:
    plan, _ = planned("""program p(x: f32[11, 34]):
  a: f32[i<11, j<34] = x[i, j] + 1.0
  b: f32[i<11, j<34] = a[i, j] * a[i, j]
  c: f32[i<11] = sum(j<34) b[i, j]
  d: f32[i<11, j<34] = b[i, j] - c[i]
  return a, b, c, d
""")
    names = [n for s in plan.steps if isinstance(s, KernelCall) for n in s.names]
    assert len(names) == len(set(names))
    assert {"a", "b", "c", "d"} <= set(names)


def test_repeated_blocks_are_one_kernel() -> None:
    """Equal work has equal text, whatever the names of tensors and axes."""
    plan, _ = planned("""program p(x: f32[24, 32], y: f32[24, 32]):
  a: f32[i<24] = sum(k<32) exp(x[i, k])
  b: f32[i<24] = tanh(a[i])
  c: f32[row<24] = sum(column<32) exp(y[row, column])
  d: f32[row<24] = tanh(c[row])
  return b, d
""")
    assert len(plan.steps) == 2
    assert len(plan.kernels) == 1


def test_blocks_with_constants_share_their_task() -> None:
    plan, _ = planned("""program p(x: f32[24, 32], u: f32[32, 32], v: f32[32, 32]):
  a: f32[i<24, j<32] = sum(k<32) x[i, k] * u[k, j]
  r: f32[i<24, j<32] = max(a[i, j], 0.0)
  b: f32[row<24, col<32] = sum(z<32) r[row, z] * v[z, col]
  s: f32[row<24, col<32] = max(b[row, col], 0.0)
  return s
""", ("u", "v"))  # fmt: skip
    assert len({k.task_key for k in plan.kernels}) == 1


def test_a_prefix_is_a_stage_of_its_own() -> None:
    """A prefix walks its axis in its own loop, so it cannot be computed tile by tile."""
    plan, _ = planned("""program p(x: f32[8, 6, 40]):
  c: f32[i<8, j<6, k<40] = scan sum(i) x[i, j, k]
  m: f32[i<8, j<6] = max(k<40) c[i, j, k]
  e: f32[i<8, j<6, k<40] = exp(c[i, j, k] - m[i, j])
  s: f32[i<8, j<6] = sum(k<40) e[i, j, k]
  y: f32[i<8, j<6, k<40] = e[i, j, k] / s[i, j]
  return y
""")
    for kernel in plan.kernels:
        for stage in kernel.stages:
            scans = [m for m in stage.members if kernel.definitions[m].scan is not None]
            assert scans in ([], [stage.anchor])


def test_an_epilogue_reads_the_stage_at_its_own_point_only() -> None:
    plan, decisions = planned("""program p(x: f32[18, 18, 7], z: f32[18, 18]):
  c: f32[i<18, j<18] = sum(k<7) x[i, j, k]
  d: f32[i<18, j<18] = exp(c[i, j]) + z[i, j]
  y: f32[i<18, j<18] = c[i, j] + d[j, i]
  return y
""")
    assert len(plan.steps) == 2
    assert "other elements" in reason(decisions, "c", "y").reason


def test_a_reduction_that_reads_its_operand_elsewhere_too_is_a_stage_of_its_own() -> None:
    """Its tiles would read what another tile makes; found by fuzzing."""
    text = """program p(x: f32[5, 5, 2]):
  y: f32[i<5, j<5, k<2] = max(x[i, j, k], x[i, j, k])
  z: f32[i<5, k<2] = sum(j<5) (y[i, j, k] + f32(j) * 0.0625) * y[i, i, k]
  return z, y
"""
    plan, _ = planned(text)
    for kernel in plan.kernels:
        for s in kernel.stages:
            reads = {r.attr[0] for m in s.members for r in kernel.definitions[m].reads()}
            assert len(s.members) == 1 or not reads & set(s.members)
    x = np.random.default_rng(5).standard_normal((5, 5, 2)).astype(np.float32)
    diagonal = np.stack([x[i, i] for i in range(5)])[:, None]
    wanted = ((x + np.arange(5, dtype=np.float32)[:, None] * 0.0625) * diagonal).sum(1)
    for name in ("x86-avx512", "x86-avx2", "x86-sse42"):
        model = CompiledModel(parse_program(text), target=Target.named(name), threads=2)
        for _ in range(3):
            z, y = model.run({"x": x})
            np.testing.assert_allclose(z, wanted, rtol=1e-5, atol=1e-6)
            np.testing.assert_array_equal(y, x)


def test_products_of_rows_by_rows_pack_one_operand() -> None:
    """Stages of one loop do not pack, so what only moves its operand is a kernel of its own."""
    text = """program p(a: f32[64, {m}, 64], b: f32[64, {m}, 64]):
  x: f32[n<64, i<(2*{m}), k<64] = where(i < {m}, (a[n, i, k] else 0.0), (b[n, i - {m}, k] else 0.0))
  y: f32[n<64, i<(2*{m}), j<(2*{m})] = sum(k<64) x[n, i, k] * x[n, j, k]
  return y
"""
    plan, decisions = planned(text.replace("{m}", "14"))
    assert groups(plan) == [{"x"}, {"y"}]
    assert "is packed first" in reason(decisions, "x", "y").reason
    few, _ = planned(text.replace("{m}", "3"))
    assert groups(few) == [{"x", "y"}]
