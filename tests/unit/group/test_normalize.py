"""Normal form: movement inlined, dead `else` dropped, log-sum-exp written out."""

from __future__ import annotations

from tilewright.group.normalize import normalize
from tilewright.ir.program import Definition, Program, Recurrence
from tilewright.ir.program_parser import parse_program


def normal(text: str) -> Program:
    return normalize(parse_program(text))


def test_movement_goes_into_its_reader() -> None:
    p = normal("""program p(x: f32[6, 35]):
  t: f32[i<35, j<6] = x[j, i]
  s: f32[i<30, j<6] = t[i + 2, j]
  y: f32[i<30, j<6] = s[i, j] * 2.0
  return y
""")
    assert [str(s).splitlines()[0].strip() for s in p.body] == [
        "y: f32[i<30, j<6] = x[j, i + 2] * 2.0"
    ]


def test_movement_with_divisions_stays_out_of_a_reduction() -> None:
    p = normal("""program p(x: f32[6, 35], w: f32[21, 8]):
  r: f32[i<10, j<21] = x[(i * 21 + j) // 35, (i * 21 + j) % 35]
  y: f32[i<10, n<8] = sum(j<21) r[i, j] * w[j, n]
  return y
""")
    assert [s.name for s in p.body if isinstance(s, Definition)] == ["r", "y"]


def test_a_dead_else_is_dropped() -> None:
    p = normal("""program p(x: f32[9]):
  y: f32[i<5] = (x[i + 4] else 0.0)
  z: f32[i<5] = (x[i + 5] else 0.0)
  return y, z
""")
    y, z = (s for s in p.body if isinstance(s, Definition))
    assert str(y.body) == "x[i + 4]"
    assert "else" in str(z.body)


def test_what_nothing_needs_is_gone() -> None:
    p = normal("""program p(x: f32[9]):
  a: f32[i<9] = x[i] + 1.0
  b: f32[i<9] = exp(a[i])
  y: f32[i<9] = a[i] * 2.0
  return y
""")
    assert [s.name for s in p.body if isinstance(s, Definition)] == ["a", "y"]


def test_log_sum_exp_is_three_definitions() -> None:
    p = normal("""program p(x: f32[4, 9]):
  y: f32[i<4] = logsumexp(j<9) x[i, j]
  return y
""")
    found = [s for s in p.body if isinstance(s, Definition)]
    assert [d.reduction.monoid if d.reduction else "" for d in found] == ["max", "sum", ""]
    assert found[-1].name == "y"


def test_log_sum_exp_inside_a_recurrence() -> None:
    p = normal("""program p(x: f32[4, 9]):
  recur t<4:
    s: f32[t<4] = logsumexp(k<9) x[t, k] + (h[t - 1, k] else 0.0)
    h: f32[t<4, k<9] = x[t, k] - s[t]
  return h
""")
    (r,) = p.body
    assert isinstance(r, Recurrence)
    assert len(r.definitions) == 4
    assert not any(d.reduction and d.reduction.monoid == "logsumexp" for d in r.definitions)


def test_a_guard_that_always_holds_is_dropped() -> None:
    p = normal("""program p(x: f32[4, 9]):
  y: f32[i<4] = sum(j<9 if j < 20) x[i, j]
  return y
""")
    (d,) = p.body
    assert isinstance(d, Definition) and d.reduction is not None
    assert d.reduction.guard is None


def test_normal_form_is_stable() -> None:
    p = normal("""program p(x: f32[4, 9]):
  t: f32[i<9, j<4] = x[j, i]
  y: f32[i<9] = sum(j<4) t[i, j]
  return y
""")
    assert normalize(p) == p


def test_a_read_that_only_its_guard_keeps_inside_is_padded() -> None:
    p = normal("""program p(x: f32[16]):
  y: f32[i<20] = sum(k<5 if 0 <= i + k - 4 and i + k - 4 < 16) x[i + k - 4]
  z: f32[i<16] = sum(k<16 if k <= i) x[k]
  return y, z
""")
    y, z = (s for s in p.body if isinstance(s, Definition))
    assert str(y.body) == "(x[i + k - 4] else 0.0)"
    assert str(z.body) == "x[k]"


def test_a_read_that_only_a_where_keeps_inside_is_padded() -> None:
    p = normal("""program p(x: f32[5], y: f32[9]):
  z: f32[i<14] = where(i < 5, x[i], y[i - 5])
  return z
""")
    (z,) = p.body
    assert isinstance(z, Definition)
    assert [str(r) for r in z.body.reads()] == ["(x[i] else 0.0)", "(y[i - 5] else 0.0)"]


def test_reads_inside_subscripts_are_padded_too() -> None:
    p = normal("""program p(x: f32[5], n: i64[9]):
  z: f32[i<14] = where(i < 9, x[n[i]], 1.0)
  return z
""")
    (z,) = p.body
    assert isinstance(z, Definition)
    assert [str(r) for r in z.body.reads()] == ["(n[i] else 0)", "(x[(n[i] else 0)] else 0.0)"]


def test_an_else_is_not_lost_where_the_source_lacks_an_axis() -> None:
    p = normal("""program p(x: f32[1, 4]):
  t: f32[i<3, j<1, k<4] = x[j, k]
  y: f32[i<7, k<4] = (t[i - 2, 0, k] else 1.0)
  u: f32[j<1, k<4] = x[j, k]
  z: f32[i<7, k<4] = (u[i - 2, k] else 1.0)
  return y, z
""")
    assert [s.name for s in p.body if isinstance(s, Definition)] == ["t", "y", "z"]
    assert "(t[i - 2, 0, k] else 1.0)" in str(p)
    assert "(x[i - 2, k] else 1.0)" in str(p)


def test_steps_that_are_not_finished_are_outside() -> None:
    p = normal("""program p(x: f32[7]):
  recur t<7:
    a: f32[t<7] = sum(k<7) (h[k] else 0.25)
    h: f32[t<7] = (h[t - 1] else 0.0) + (h[6 - t] else 0.5) + (a[t] else 0.0) + (a[k0[t]] else 1.0) * x[t]
  return h
""".replace("x: f32[7]", "x: f32[7], k0: i64[7]"))  # fmt: skip
    (r,) = p.body
    assert isinstance(r, Recurrence)
    a, h = (str(d) for d in r.definitions)
    assert "where(k < t, h[k], 0.25)" in a
    assert "(h[t - 1] else 0.0)" in h
    assert "where(t*-1 + 6 < t, h[t*-1 + 6], 0.5)" in h
    assert h.count("where") == 2
    assert "a[t]" in h
