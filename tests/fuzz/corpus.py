"""Programs at sizes that are hard to schedule: 1, 0, primes, one more or less than a vector.

Every entry is (name, text, constants): the named inputs become constants with random values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from corpus_linear import Entry, convolution_entries, matmul_entries
from corpus_moves import move_entries, recurrence_entries

from tilewright.ir.program import Program, array_key
from tilewright.ir.program_parser import parse_program
from tilewright.verify.generate import random_inputs


def program_of(entry: Entry, seed: int = 0) -> Program:
    """The Program of an entry, its constants filled in."""
    name, text, constants = entry
    p = parse_program(f"program {name}" + text)
    return with_constants(p, constants, seed)


def with_constants(p: Program, names: Sequence[str], seed: int = 0) -> Program:
    """`p` with some inputs turned into constants of random values."""
    if not names:
        return p
    given = random_inputs(p, {}, seed)
    values: dict[str, Any] = {}
    constants = []
    for t in p.inputs:
        if t.name in names:
            key = array_key(given[t.name])
            values[key] = given[t.name]
            constants.append((t, key))
    return replace(
        p,
        inputs=tuple(t for t in p.inputs if t.name not in names),
        constants=tuple(constants),
        values=values,
    )


def _rows() -> list[Entry]:
    out: list[Entry] = []
    for m, n in ((13, 83), (1, 33), (5, 1), (33, 16), (3, 250), (0, 4)):
        out.append(
            (
                f"softmax_{m}_{n}",
                f"""(x: f32[{m}, {n}]):
  m: f32[i<{m}] = max(j<{n}) x[i, j]
  e: f32[i<{m}, j<{n}] = exp(x[i, j] - m[i])
  s: f32[i<{m}] = sum(j<{n}) e[i, j]
  y: f32[i<{m}, j<{n}] = e[i, j] / s[i]
  return y
""",
                (),
            )
        )
        out.append(
            (
                f"norm_{m}_{n}",
                f"""(x: f32[{m}, {n}], g: f32[{n}], b: f32[{n}]):
  s: f32[i<{m}] = sum(j<{n}) x[i, j]
  m: f32[i<{m}] = s[i] / {n}.0
  d: f32[i<{m}, j<{n}] = x[i, j] - m[i]
  q: f32[i<{m}, j<{n}] = d[i, j] * d[i, j]
  v: f32[i<{m}] = sum(j<{n}) q[i, j]
  r: f32[i<{m}] = rsqrt(v[i] / {n}.0 + 0.00001)
  y: f32[i<{m}, j<{n}] = d[i, j] * r[i] * g[j] + b[j]
  return y
""",
                ("g", "b") if m == 13 else (),
            )
        )
    out.append(
        (
            "softmax_columns",
            """(x: f32[40, 21]):
  m: f32[j<21] = max(i<40) x[i, j]
  e: f32[i<40, j<21] = exp(x[i, j] - m[j])
  s: f32[j<21] = sum(i<40) e[i, j]
  y: f32[i<40, j<21] = e[i, j] / s[j]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "softmax_f64",
            """(x: f64[7, 21]):
  m: f64[i<7] = max(j<21) x[i, j]
  e: f64[i<7, j<21] = exp(x[i, j] - m[i])
  s: f64[i<7] = sum(j<21) e[i, j]
  y: f64[i<7, j<21] = e[i, j] / s[i]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "rms",
            """(x: f16[9, 35], g: f16[35]):
  q: f32[i<9] = sum(j<35) f32(x[i, j]) * f32(x[i, j])
  r: f32[i<9] = rsqrt(q[i] / 35.0 + 0.00001)
  y: f16[i<9, j<35] = f16(f32(x[i, j]) * r[i] * f32(g[j]))
  return y
""",
            (),
        )
    )
    out.append(
        (
            "batch_statistics",
            """(x: f32[3, 7, 5, 6]):
  s: f32[c<7] = sum(n<3, h<5, w<6) x[n, c, h, w]
  q: f32[c<7] = sum(n<3, h<5, w<6) x[n, c, h, w] * x[n, c, h, w]
  v: f32[c<7] = q[c] / 90.0 - s[c] / 90.0 * (s[c] / 90.0)
  y: f32[n<3, c<7, h<5, w<6] = (x[n, c, h, w] - s[c] / 90.0) * rsqrt(v[c] + 0.001)
  return y, v
""",
            (),
        )
    )
    for name, mask in (
        ("plain", ""),
        ("causal", " if j <= i"),
        ("windowed", " if j <= i and i - j < 5"),
    ):
        out.append(
            (
                f"attention_{name}",
                f"""(q: f32[1, 3, 21, 16], k: f32[1, 3, 21, 16], v: f32[1, 3, 21, 16]):
  s: f32[b<1, h<3, i<21, j<21] = sum(e<16) q[b, h, i, e] * k[b, h, j, e]
  t: f32[b<1, h<3, i<21, j<21] = s[b, h, i, j] * 0.25
  m: f32[b<1, h<3, i<21] = max(j<21{mask}) t[b, h, i, j]
  p: f32[b<1, h<3, i<21, j<21] = exp(t[b, h, i, j] - m[b, h, i])
  l: f32[b<1, h<3, i<21] = sum(j<21{mask}) p[b, h, i, j]
  o: f32[b<1, h<3, i<21, e<16] = sum(j<21{mask}) p[b, h, i, j] / l[b, h, i] * v[b, h, j, e]
  r: f32[b<1, i<21, c<48] = o[b, c // 16, i, c % 16]
  return r
""",
                (),
            )
        )
    out.append(
        (
            "attention_mask",
            """(q: f32[2, 9, 7], k: f32[2, 34, 7], v: f32[2, 34, 5], z: f32[9, 34]):
  s: f32[h<2, i<9, j<34] = sum(e<7) q[h, i, e] * k[h, j, e]
  t: f32[h<2, i<9, j<34] = s[h, i, j] * 0.3 + z[i, j]
  m: f32[h<2, i<9] = max(j<34) t[h, i, j]
  p: f32[h<2, i<9, j<34] = exp(t[h, i, j] - m[h, i])
  l: f32[h<2, i<9] = sum(j<34) p[h, i, j]
  y: f32[h<2, i<9, j<34] = p[h, i, j] / l[h, i]
  o: f32[h<2, i<9, e<5] = sum(j<34) y[h, i, j] * v[h, j, e]
  return o
""",
            ("z",),
        )
    )
    out.append(
        (
            "stream_causal",
            """(q: f32[2, 75, 7], k: f32[2, 75, 7], v: f32[2, 75, 17]):
  s: f32[h<2, i<75, j<75] = sum(e<7) q[h, i, e] * k[h, j, e]
  t: f32[h<2, i<75, j<75] = where(j <= i, s[h, i, j] * 0.3, -inf)
  m: f32[h<2, i<75] = max(j<75) t[h, i, j]
  p: f32[h<2, i<75, j<75] = exp(t[h, i, j] - m[h, i])
  l: f32[h<2, i<75] = sum(j<75) p[h, i, j]
  y: f32[h<2, i<75, j<75] = p[h, i, j] / l[h, i]
  o: f32[h<2, i<75, e<17] = sum(j<75) y[h, i, j] * v[h, j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "stream_guarded",
            """(q: f32[3, 37, 5], k: f32[3, 53, 5], v: f32[3, 53, 4]):
  s: f32[h<3, i<37, j<53] = sum(e<5) q[h, i, e] * k[h, j, e]
  m: f32[h<3, i<37] = max(j<53 if j <= i + 3) s[h, i, j]
  p: f32[h<3, i<37, j<53] = exp(s[h, i, j] - m[h, i])
  l: f32[h<3, i<37] = sum(j<53 if j <= i + 3) p[h, i, j]
  o: f32[h<3, i<37, e<4] = sum(j<53 if j <= i + 3) p[h, i, j] / l[h, i] * v[h, j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "stream_nothing",
            """(q: f32[2, 19, 5], k: f32[2, 41, 5], v: f32[2, 41, 3]):
  s: f32[h<2, i<19, j<41] = sum(e<5) q[h, i, e] * k[h, j, e]
  t: f32[h<2, i<19, j<41] = s[h, i, j] + where(j + 4 <= i, 0.0, -inf)
  m: f32[h<2, i<19] = max(j<41) t[h, i, j]
  z: f32[h<2, i<19] = where(m[h, i] == -inf, 0.0, m[h, i])
  p: f32[h<2, i<19, j<41] = exp(t[h, i, j] - z[h, i])
  l: f32[h<2, i<19] = sum(j<41) p[h, i, j]
  y: f32[h<2, i<19, j<41] = where(l[h, i] == 0.0, 0.0, p[h, i, j] / l[h, i])
  o: f32[h<2, i<19, e<3] = sum(j<41) y[h, i, j] * v[h, j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "stream_no_scores",
            """(q: f32[2, 19, 5], k: f32[2, 41, 5], v: f32[2, 41, 3]):
  s: f32[h<2, i<19, j<41] = sum(e<5) q[h, i, e] * k[h, j, e]
  t: f32[h<2, i<19, j<41] = where(j + 4 <= i, s[h, i, j], -inf)
  m: f32[h<2, i<19] = max(j<41) t[h, i, j]
  p: f32[h<2, i<19, j<41] = exp(t[h, i, j] - m[h, i])
  o: f32[h<2, i<19, e<3] = sum(j<41) p[h, i, j] * v[h, j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "stream_window",
            """(q: f32[67, 6], k: f32[67, 6], v: f32[67, 20]):
  s: f32[i<67, j<67] = sum(e<6) q[i, e] * k[j, e]
  t: f32[i<67, j<67] = where(j <= i and i - j < 9, s[i, j], -inf)
  m: f32[i<67, u<1] = max(j<67) t[i, j]
  p: f32[i<67, j<67] = exp(t[i, j] - m[i, 0])
  l: f32[i<67, u<1] = sum(j<67) p[i, j]
  y: f32[i<67, j<67] = p[i, j] / l[i, 0]
  o: f32[i<67, e<20] = sum(j<67) y[i, j] * v[j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "stream_one_row",
            """(q: f32[6, 1, 8], k: f32[3, 131, 8], v: f32[3, 131, 9]):
  s: f32[h<6, i<1, j<131] = sum(e<8) q[h, i, e] * k[h // 2, j, e]
  m: f32[h<6, i<1] = max(j<131) s[h, i, j]
  p: f32[h<6, i<1, j<131] = exp(s[h, i, j] - m[h, i])
  l: f32[h<6, i<1] = sum(j<131) p[h, i, j]
  y: f32[h<6, i<1, j<131] = p[h, i, j] / l[h, i]
  o: f32[i<1, h<6, e<9] = sum(j<131) y[h, i, j] * v[h // 2, j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "stream_wide",
            """(q: f64[2, 35, 3], k: f64[1, 200, 3], v: f64[1, 200, 18], b: f64[35, 200]):
  s: f64[h<2, i<35, j<200] = sum(e<3) q[h, i, e] * k[0, j, e]
  t: f64[h<2, i<35, j<200] = s[h, i, j] + b[i, j]
  m: f64[h<2, i<35] = max(j<200) t[h, i, j]
  p: f64[h<2, i<35, j<200] = exp(t[h, i, j] - m[h, i])
  l: f64[h<2, i<35] = sum(j<200) p[h, i, j]
  y: f64[h<2, i<35, j<200] = p[h, i, j] / l[h, i]
  o: f64[i<35, h<2, e<18] = sum(j<200) y[h, i, j] * v[0, j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "attention_no_rows",
            """(q: f32[2, 0, 7], k: f32[2, 34, 7], v: f32[2, 34, 5]):
  s: f32[h<2, i<0, j<34] = sum(e<7) q[h, i, e] * k[h, j, e]
  m: f32[h<2, i<0] = max(j<34) s[h, i, j]
  p: f32[h<2, i<0, j<34] = exp(s[h, i, j] - m[h, i])
  o: f32[h<2, i<0, e<5] = sum(j<34) p[h, i, j] * v[h, j, e]
  return o
""",
            (),
        )
    )
    out.append(
        (
            "squeeze_excite",
            """(x: f32[1, 20, 5, 7], u: f32[6, 20], v: f32[20, 6]):
  s: f32[n<1, c<20] = sum(h<5, w<7) x[n, c, h, w]
  a: f32[n<1, r<6] = sum(c<20) s[n, c] / 35.0 * u[r, c]
  b: f32[n<1, r<6] = max(a[n, r], 0.0)
  g: f32[n<1, c<20] = sum(r<6) b[n, r] * v[c, r]
  k: f32[n<1, c<20] = 1.0 / (1.0 + exp(0.0 - g[n, c]))
  y: f32[n<1, c<20, h<5, w<7] = x[n, c, h, w] * k[n, c]
  return y
""",
            ("u", "v"),
        )
    )
    return out


def _reductions() -> list[Entry]:
    out: list[Entry] = []
    for k, (outer, inner) in enumerate(
        (("i, k", "j"), ("j", "i, k"), ("", "i, j, k"), ("k", "i, j"), ("i, j", "k"))
    ):
        extents = {"i": 5, "j": 19, "k": 33 if k != 4 else 3}
        axes = ", ".join(f"{a}<{extents[a]}" for a in outer.split(", ") if a)
        over = ", ".join(f"{a}<{extents[a]}" for a in inner.split(", "))
        shape = f"5, 19, {extents['k']}"
        out.append(
            (
                f"reduce_{k}",
                f"""(x: f32[{shape}]):
  s: f32[{axes}] = sum({over}) x[i, j, k]
  p: f32[{axes}] = prod({over}) x[i, j, k] * 0.01 + 1.0
  h: f32[{axes}] = max({over}) x[i, j, k]
  l: f32[{axes}] = min({over}) abs(x[i, j, k])
  a: i64[{axes}] = argmax({over}) x[i, j, k]
  b: i64[{axes}] = argmin({over}) x[i, j, k]
  e: f32[{axes}] = logsumexp({over}) x[i, j, k]
  y: bool[{axes}] = any({over}) x[i, j, k] > 2.5
  z: bool[{axes}] = all({over}) x[i, j, k] > -2.5
  g: f32[{axes}] = sum({over} if i + j > 3) x[i, j, k]
  return s, p, h, l, a, b, e, y, z, g
""",
                (),
            )
        )
    out.append(
        (
            "reduce_ints",
            """(x: i8[7, 37], u: u32[7, 37], w: i64[7, 37]):
  a: i32[i<7] = sum(j<37) i32(x[i, j])
  b: i8[i<7] = max(j<37) x[i, j]
  c: u32[j<37] = sum(i<7) u[i, j]
  d: i64[] = sum(i<7, j<37) w[i, j]
  e: i64[i<7] = argmin(j<37) w[i, j]
  f: i8[j<37] = min(i<7) x[i, j]
  return a, b, c, d, e, f
""",
            (),
        )
    )
    out.append(
        (
            "reduce_empty",
            """(x: f32[4, 0]):
  s: f32[i<4] = sum(j<0) x[i, j]
  m: f32[i<4] = max(j<0) x[i, j]
  p: f32[i<4] = prod(j<0) x[i, j]
  y: f32[i<4, j<0] = x[i, j] + 1.0
  return s, m, p, y
""",
            (),
        )
    )
    out.append(
        (
            "reduce_constant_body",
            """(x: f32[3]):
  n: i64[i<3] = sum(j<37 if j > i) 1
  f: f32[i<3] = sum(j<37, k<5) x[i]
  return n, f
""",
            (),
        )
    )
    for axis in "ijk":
        out.append(
            (
                f"scan_{axis}",
                f"""(x: f32[5, 19, 9]):
  s: f32[i<5, j<19, k<9] = scan sum({axis}) x[i, j, k]
  m: f32[i<5, j<19, k<9] = scan max({axis}) x[i, j, k] * 2.0
  y: f32[i<5, j<19, k<9] = s[i, j, k] + m[i, j, k]
  return y, s
""",
                (),
            )
        )
    for axis in "ijk":
        text = f"""(x: f32[8, 6, 40]):
  c: f32[i<8, j<6, k<40] = scan sum({axis}) sin(x[i, j, k])
  m: f32[i<8, j<6] = max(k<40) c[i, j, k]
  e: f32[i<8, j<6, k<40] = exp(c[i, j, k] - m[i, j])
  s: f32[i<8, j<6] = sum(k<40) e[i, j, k]
  y: f32[i<8, j<6, k<40] = e[i, j, k] / s[i, j]
  return y
"""
        out.append((f"scan_softmax_{axis}", text, ()))
    for n in (1, 16, 17, 131):
        text = f"""(x: f32[3, {n}], k: i32[3, {n}], d: f64[{n}]):
  s: f32[i<3, j<{n}] = scan sum(j) x[i, j]
  p: f32[i<3, j<{n}] = scan prod(j) x[i, j] * 0.5
  e: f32[i<3, j<{n}] = p[i, j] + x[i, j]
  m: i32[i<3, j<{n}] = scan min(j) k[i, j]
  c: f64[j<{n}] = scan sum(j) d[j]
  o: f32[j<{n}] = scan sum(j) 1.0
  return s, e, m, c, o
"""
        out.append((f"scan_lanes_{n}", text, ()))
    text = """(x: f32[37, 131], h: f16[37, 131], y: f32[3, 19, 67]):
  s: f32[i<37, j<131] = scan sum(i) x[i, j]
  m: f32[j<131] = max(i<37) x[i, j]
  a: f32[j<131] = sum(i<37) x[i, j] * x[i, j]
  b: f32[j<131] = a[j] / 37.0
  g: f32[j<131] = sum(i<37 if i < j) x[i, j]
  t: f16[j<131] = sum(i<37) h[i, j]
  u: f16[i<37, j<131] = scan sum(i) h[i, j]
  c: f32[k<67] = sum(i<3, j<19) y[i, j, k]
  f: f32[i<3, k<67] = sum(j<19) y[i, j, k]
  v: f32[i<3, j<19, k<67] = scan max(j) y[i, j, k]
  return s, m, b, g, t, u, c, f, v
"""
    out.append(("strips", text, ()))
    text = """(x: f32[37], w: f32[37, 131], z: f32[131]):
  a: f32[j<131] = sum(k<37) x[k] * w[k, j]
  b: f32[k<37] = sum(j<131) w[k, j] * z[j]
  return a, b
"""
    out.append(("matrix_vector", text, ()))
    text = """(x: f32[5, 131], k: i32[37, 3, 19], h: f16[33], e: f32[1, 1], z: f32[4, 37]):
  a: i64[i<5] = argmax(j<131) x[i, j]
  b: i64[j<131] = argmin(i<5) x[i, j]
  c: i64[] = argmax(i<5, j<131) x[i, j] * x[i, j]
  d: i64[i<37] = argmin(j<3, l<19) k[i, j, l]
  f: i64[j<3] = argmax(i<37, l<19) k[i, j, l]
  g: i64[] = argmax(i<33) h[i]
  m: i64[] = argmax(i<1, j<1) e[i, j]
  o: i64[i<5] = argmax(j<131 if j > i) x[i, j]
  t: i64[i<4] = argmax(j<37) where(z[i, j] > 0.0, 1.0, -inf)
  return a, b, c, d, f, g, m, o, t
"""
    out.append(("args", text, ()))
    text = """(x: f32[3, 11003], h: f16[11003], k: i64[40000], y: f32[1100, 33]):
  a: f32[] = sum(i<3, j<11003) x[i, j]
  b: f32[i<3] = max(j<11003) x[i, j]
  e: f32[i<3] = b[i] * 2.0
  c: f16[] = sum(j<11003) h[j] * h[j]
  d: i64[] = sum(j<40000) k[j]
  f: f32[j<33] = sum(i<1100) y[i, j]
  g: bool[i<3] = any(j<11003) x[i, j] > 3.9
  return a, e, c, d, f, g
"""
    out.append(("parts", text, ()))
    return out


def _narrow() -> list[Entry]:
    out: list[Entry] = []
    for t in ("f16", "bf16"):
        out.append(
            (
                f"sums_{t}",
                f"""(x: {t}[5, 190], w: {t}[190, 37]):
  s: {t}[i<5, j<37] = sum(k<190) x[i, k] * w[k, j]
  u: {t}[i<5] = sum(j<190) x[i, j]
  v: {t}[i<5, j<190] = scan sum(j) x[i, j]
  l: {t}[i<5, j<190] = scan logsumexp(j) x[i, j]
  g: {t}[i<5] = sum(j<190 if j > i) x[i, j]
  m: {t}[i<5] = max(j<190) x[i, j]
  p: {t}[j<190] = prod(i<5) x[i, j]
  return s, u, v, g, m, p, l
""",
                (),
            )
        )
    out.append(
        (
            "scan_logsumexp",
            """(x: f32[5, 19]):
  s: f32[i<5, j<19] = scan logsumexp(i) x[i, j]
  u: f32[i<5, j<19] = scan logsumexp(j) log(abs(x[i, j]))
  return s, u
""",
            (),
        )
    )
    out.append(
        (
            "scatter_logsumexp",
            """(u: f32[31, 5], i: i64[31], b: f32[11, 5]):
  z: f32[p<11, q<5] = scatter logsumexp(r<31, q<5) at (i[r], q) of u[r, q] base b[p, q]
  return z
""",
            (),
        )
    )
    out.append(
        (
            "recurrent_logsumexp",
            """(x: f32[4, 18]):
  recur t<4:
    s: f32[t<4] = logsumexp(k<18) x[t, k] + (h[t - 1, k] else 0.0)
    h: f32[t<4, j<18] = tanh(x[t, j] + s[t])
  return h
""",
            (),
        )
    )
    return out


CORPUS: list[Entry] = [
    *matmul_entries(), *convolution_entries(), *_rows(), *_reductions(), *_narrow(),
    *move_entries(), *recurrence_entries(),
]  # fmt: skip
