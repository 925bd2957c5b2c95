"""Programs at sizes that are hard to schedule: 1, 0, primes, one more or less than a vector.

Every entry is (name, text, constants): the named inputs become constants with random values.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any

from tilewright.ir.program import Program, array_key, parse_program
from tilewright.verify.generate import random_inputs

Entry = tuple[str, str, tuple[str, ...]]


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


def _matmul() -> list[Entry]:
    out: list[Entry] = []
    sizes = ((1, 1, 1), (37, 29, 45), (5, 1, 17), (16, 64, 33), (70, 13, 97), (3, 0, 4), (0, 5, 3))
    for k, (m, d, n) in enumerate(sizes):
        for a in ("ik", "ki") if k in (1, 3) else ("ik",):
            for b in ("kj", "jk"):
                shape = {"i": m, "k": d, "j": n}
                x = ", ".join(str(shape[c]) for c in a)
                w = ", ".join(str(shape[c]) for c in b)
                text = f"""(x: f32[{x}], w: f32[{w}], b: f32[{n}]):
  c: f32[i<{m}, j<{n}] = sum(k<{d}) x[{a[0]}, {a[1]}] * w[{b[0]}, {b[1]}]
  y: f32[i<{m}, j<{n}] = max(c[i, j] + b[j], 0.0)
  return y
"""
                out.append((f"mm_{a}_{b}_{m}_{d}_{n}", text, ()))
                out.append((f"mmc_{a}_{b}_{m}_{d}_{n}", text, ("w", "b")))
    out.append(
        (
            "mm_turned",
            """(x: f32[19, 23], w: f32[23, 35]):
  y: f32[j<35, i<19] = sum(k<23) x[i, k] * w[k, j]
  return y
""",
            ("w",),
        )
    )
    out.append(
        (
            "mm_left_constant",
            """(x: f32[40, 23], w: f32[23, 35]):
  y: f32[i<40, j<35] = sum(k<23) x[i, k] * w[k, j]
  return y
""",
            ("x",),
        )
    )
    out.append(
        (
            "mm_residual",
            """(x: f32[19, 23], w: f32[23, 35], r: f32[19, 35]):
  c: f32[i<19, j<35] = sum(k<23) x[i, k] * w[k, j]
  y: f32[i<19, j<35] = c[i, j] * (1.0 / (1.0 + exp(0.0 - c[i, j]))) + r[i, j]
  return y, c
""",
            ("w",),
        )
    )
    out.append(
        (
            "mm_batch",
            """(x: f32[3, 17, 9], w: f32[3, 9, 21]):
  y: f32[b<3, i<17, j<21] = sum(k<9) x[b, i, k] * w[b, k, j]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "mm_batch_heads",
            """(x: f32[2, 13, 3, 8], w: f32[2, 11, 3, 8]):
  y: f32[b<2, h<3, i<13, j<11] = sum(k<8) x[b, i, h, k] * w[b, j, h, k]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "mm_three",
            """(x: f32[9, 11], w: f32[11, 13], v: f32[11]):
  y: f32[i<9, j<13] = sum(k<11) x[i, k] * w[k, j] * v[k]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "mm_cast",
            """(x: f16[9, 31], w: f16[31, 34]):
  y: f32[i<9, j<34] = sum(k<31) f32(x[i, k]) * f32(w[k, j])
  return y
""",
            (),
        )
    )
    out.append(
        (
            "mm_f64",
            """(x: f64[9, 31], w: f64[31, 19]):
  y: f64[i<9, j<19] = sum(k<31) x[i, k] * w[k, j]
  return y
""",
            ("w",),
        )
    )
    out.append(
        (
            "mm_int",
            """(x: u8[9, 31], w: i8[31, 19]):
  y: i32[i<9, j<19] = sum(k<31) i32(x[i, k]) * i32(w[k, j])
  return y
""",
            ("w",),
        )
    )
    out.append(
        (
            "mm_guard",
            """(x: f32[21, 21], w: f32[21, 18]):
  y: f32[i<21, j<18] = sum(k<21 if k <= i) x[i, k] * w[k, j]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "mm_big",
            """(x: f32[150, 70], w: f32[70, 131]):
  y: f32[i<150, j<131] = sum(k<70) x[i, k] * w[k, j]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "mm_gathered",
            """(x: f32[20, 9], w: f32[9, 18], idx: i64[7]):
  y: f32[i<7, j<18] = sum(k<9) x[idx[i], k] * w[k, j]
  return y
""",
            ("w",),
        )
    )
    out.append(
        (
            "gemv",
            """(x: f32[1, 67], w: f32[67, 45]):
  y: f32[i<1, j<45] = sum(k<67) x[i, k] * w[k, j]
  return y
""",
            ("w",),
        )
    )
    out.append(
        (
            "gemv_rows",
            """(w: f32[45, 67], x: f32[67]):
  y: f32[j<45] = sum(k<67) w[j, k] * x[k]
  return y
""",
            (),
        )
    )
    out.append(
        (
            "dot",
            """(x: f32[131], y: f32[131]):
  z: f32[] = sum(k<131) x[k] * y[k]
  return z
""",
            (),
        )
    )
    out.append(
        (
            "outer",
            """(x: f32[17], y: f32[35]):
  z: f32[i<17, j<35] = x[i] * y[j]
  s: f32[i<17, j<35] = sum(k<1) x[i] * y[j]
  return z, s
""",
            (),
        )
    )
    out.append(
        (
            "chain",
            """(x: f32[13, 20], u: f32[20, 33], v: f32[33, 7]):
  a: f32[i<13, j<33] = sum(k<20) x[i, k] * u[k, j]
  h: f32[i<13, j<33] = tanh(a[i, j])
  y: f32[i<13, j<7] = sum(k<33) h[i, k] * v[k, j]
  return y
""",
            ("u", "v"),
        )
    )
    return out


def _convolution() -> list[Entry]:
    out: list[Entry] = []
    for name, n, c, o, h, w, kh, kw, s, d, p in (
        ("conv3", 1, 7, 20, 13, 11, 3, 3, 1, 1, 1),
        ("conv_stride", 2, 3, 18, 9, 14, 3, 3, 2, 1, 1),
        ("conv_dilated", 1, 4, 5, 12, 12, 3, 2, 1, 2, 2),
        ("conv1x1", 1, 19, 35, 5, 7, 1, 1, 1, 1, 0),
        ("conv_one", 1, 1, 1, 1, 1, 3, 3, 1, 1, 1),
        ("conv7", 1, 3, 16, 15, 15, 7, 7, 2, 1, 3),
    ):  # fmt: skip
        ho = (h + 2 * p - d * (kh - 1) - 1) // s + 1
        wo = (w + 2 * p - d * (kw - 1) - 1) // s + 1
        text = f"""(x: f32[{n}, {c}, {h}, {w}], k: f32[{o}, {c}, {kh}, {kw}], b: f32[{o}]):
  a: f32[n<{n}, o<{o}, h<{ho}, w<{wo}] = sum(c<{c}, u<{kh}, v<{kw}) (x[n, c, h * {s} + u * {d} - {p}, w * {s} + v * {d} - {p}] else 0.0) * k[o, c, u, v]
  y: f32[n<{n}, o<{o}, h<{ho}, w<{wo}] = max(a[n, o, h, w] + b[o], 0.0)
  return y
"""
        out.append((name, text, ()))
        out.append((f"{name}_constant", text, ("k", "b")))
    out.append(
        (
            "conv_nhwc",
            """(x: f32[1, 9, 10, 6], k: f32[3, 3, 6, 17]):
  y: f32[n<1, h<9, w<10, o<17] = sum(c<6, u<3, v<3) (x[n, h + u - 1, w + v - 1, c] else 0.0) * k[u, v, c, o]
  return y
""",
            ("k",),
        )
    )
    out.append(
        (
            "conv_groups",
            """(x: f32[1, 6, 8, 9], k: f32[8, 3, 3, 3]):
  y: f32[n<1, o<8, h<8, w<9] = sum(c<3, u<3, v<3) (x[n, o // 4 * 3 + c, h + u - 1, w + v - 1] else 0.0) * k[o, c, u, v]
  return y
""",
            ("k",),
        )
    )
    out.append(
        (
            "depthwise",
            """(x: f32[1, 19, 8, 9], k: f32[19, 3, 3]):
  y: f32[n<1, c<19, h<8, w<9] = sum(u<3, v<3) (x[n, c, h + u - 1, w + v - 1] else 0.0) * k[c, u, v]
  return y
""",
            ("k",),
        )
    )
    out.append(
        (
            "conv_stack",
            """(x: f32[1, 3, 10, 11], k: f32[20, 3, 3, 3], d: f32[20, 3, 3], l: f32[7, 20]):
  a: f32[n<1, o<20, h<10, w<11] = sum(c<3, u<3, v<3) (x[n, c, h + u - 1, w + v - 1] else 0.0) * k[o, c, u, v]
  r: f32[n<1, o<20, h<10, w<11] = max(a[n, o, h, w], 0.0)
  s: f32[n<1, o<20, h<5, w<6] = sum(u<3, v<3) (r[n, o, h * 2 + u - 1, w * 2 + v - 1] else 0.0) * d[o, u, v]
  y: f32[n<1, o<7, h<5, w<6] = sum(c<20) s[n, c, h, w] * l[o, c]
  return y
""",
            ("k", "d", "l"),
        )
    )
    out.append(
        (
            "conv1d",
            """(x: f32[2, 5, 33], k: f32[9, 5, 4]):
  y: f32[n<2, o<9, h<15] = sum(c<5, u<4) x[n, c, h * 2 + u] * k[o, c, u]
  return y
""",
            ("k",),
        )
    )
    out.append(
        (
            "conv3d",
            """(x: f32[1, 3, 5, 6, 7], k: f32[4, 3, 2, 3, 3]):
  y: f32[n<1, o<4, t<4, h<6, w<7] = sum(c<3, s<2, u<3, v<3) (x[n, c, t + s, h + u - 1, w + v - 1] else 0.0) * k[o, c, s, u, v]
  return y
""",
            ("k",),
        )
    )
    out.append(
        (
            "conv_back_guard",
            """(x: f32[1, 3, 7], k: f32[3, 5, 4]):
  y: f32[n<1, o<5, h<16] = sum(c<3, u<4 if (h + 1 - u) % 2 == 0) (x[n, c, (h + 1 - u) // 2] else 0.0) * k[c, o, u]
  return y
""",
            ("k",),
        )
    )
    out.append(
        (
            "conv_back_split",
            """(x: f32[1, 3, 7], k: f32[3, 5, 4]):
  y: f32[n<1, o<5, h<14] = sum(c<3, u<2) (x[n, c, h // 2 - u] else 0.0) * k[c, o, h % 2 + 2 * u]
  return y
""",
            ("k",),
        )
    )
    out.append(
        (
            "pool_max",
            """(x: f32[1, 5, 9, 10]):
  y: f32[n<1, c<5, h<5, w<5] = max(u<3, v<3) (x[n, c, h * 2 + u - 1, w * 2 + v - 1] else -inf)
  return y
""",
            (),
        )
    )
    out.append(
        (
            "pool_sum",
            """(x: f32[1, 5, 9, 10]):
  s: f32[n<1, c<5, h<9, w<10] = sum(u<3, v<3) (x[n, c, h + u - 1, w + v - 1] else 0.0)
  y: f32[n<1, c<5, h<9, w<10] = s[n, c, h, w] / 9.0
  return y
""",
            (),
        )
    )
    out.append(
        (
            "pool_of_relu",
            """(x: f32[1, 18, 9, 10]):
  r: f32[n<1, c<18, h<9, w<10] = exp(x[n, c, h, w])
  y: f32[n<1, c<18, h<5, w<5] = max(u<3, v<3) (r[n, c, h * 2 + u - 1, w * 2 + v - 1] else -inf)
  z: f32[n<1, c<18, h<9, w<10] = sum(u<3, v<3) (r[n, c, h + u - 1, w + v - 1] else 0.0)
  return y, z
""",
            (),
        )
    )
    return out


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


def _moves() -> list[Entry]:
    return [
        (
            "transpose",
            """(x: f32[50, 70]):
  y: f32[i<70, j<50] = x[j, i]
  return y
""",
            (),
        ),
        (
            "transpose3",
            """(x: f32[7, 18, 21]):
  y: f32[k<21, i<7, j<18] = x[i, j, k] * 2.0
  z: f32[j<18, i<7, k<21] = x[i, j, k]
  return y, z
""",
            (),
        ),
        (
            "transpose_u8",
            """(x: u8[33, 37]):
  y: f32[i<37, j<33] = f32(x[j, i]) / 255.0
  return y
""",
            (),
        ),
        (
            "slice",
            """(x: f32[20, 31]):
  y: f32[i<7, j<14] = x[i * 2 + 3, j * 2 + 1]
  z: f32[i<20, j<31] = x[19 - i, 30 - j]
  r: f32[i<20] = sum(j<31) x[i, 30 - j] * x[19 - i, j]
  return y, z, r
""",
            (),
        ),
        (
            "pad",
            """(x: f32[5, 9]):
  y: f32[i<8, j<20] = (x[i - 2, j - 3] else 1.5)
  z: f32[i<8, j<20] = (x[i - 2, j - 3] else 0.0) + 1.0
  return y, z
""",
            (),
        ),
        (
            "pad_computed",
            """(x: f32[5, 9]):
  y: f32[i<8, j<20] = (x[i - 2, j - 3] else f32(i * 20 + j))
  return y
""",
            (),
        ),
        (
            "concat",
            """(x: f32[5, 9], y: f32[5, 14]):
  z: f32[i<5, j<23] = where(j < 9, (x[i, j] else 0.0), (y[i, j - 9] else 0.0))
  w: f32[i<5, j<23] = z[i, j] * 2.0
  return w
""",
            (),
        ),
        (
            "tile",
            """(x: f32[5, 9]):
  y: f32[i<15, j<18] = x[i % 5, j % 9] + 1.0
  return y
""",
            (),
        ),
        (
            "reshape",
            """(x: f32[6, 35], w: f32[21, 8]):
  y: f32[i<10, j<21] = x[(i * 21 + j) // 35, (i * 21 + j) % 35] * 2.0
  m: f32[i<10, n<8] = sum(j<21) x[(i * 21 + j) // 35, (i * 21 + j) % 35] * w[j, n]
  return y, m
""",
            ("w",),
        ),
        (
            "shuffle",
            """(x: f32[1, 12, 5, 6]):
  y: f32[n<1, c<12, h<5, w<6] = x[n, c % 3 * 4 + c // 3, h, w]
  d: f32[n<1, c<3, h<10, w<12] = x[n, c * 4 + h % 2 * 2 + w % 2, h // 2, w // 2]
  return y, d
""",
            (),
        ),
        (
            "gather",
            """(x: f32[20, 33], i: i64[7], j: i32[5, 6]):
  a: f32[p<7, q<33] = x[i[p], q]
  b: f32[p<5, q<6] = x[i64(j[p, q]), q]
  c: f32[p<7, q<5, r<6] = x[i[p], i64(j[q, r])] * 2.0
  return a, b, c
""",
            (),
        ),
        (
            "gather_padded",
            """(x: f32[20, 33], i: i64[7]):
  a: f32[p<7, q<33] = (x[i[p], q + 2] else 0.5)
  return a
""",
            (),
        ),
        (
            "scatter",
            """(u: f32[31, 5], i: i64[31], b: f32[11, 5]):
  z: f32[p<11, q<5] = scatter sum(r<31, q<5) at (i[r], q) of u[r, q] base b[p, q]
  m: f32[p<11, q<5] = scatter max(r<31, q<5) at (i[r], q) of u[r, q] base -1.0
  return z, m
""",
            (),
        ),
        (
            "casts",
            """(f: f32[37], h: f16[37], b: bf16[37], d: f64[37], c: i8[37], u: u8[37], i: i32[37], l: i64[37], n: u32[37], t: bool[37]):
  a1: f16[k<37] = f16(f[k] + f32(h[k]))
  a2: bf16[k<37] = bf16(f32(b[k]) * f[k])
  a3: f64[k<37] = f64(f[k]) * d[k]
  a4: f32[k<37] = f32(d[k]) + f32(c[k]) + f32(u[k]) + f32(i[k]) + f32(l[k])
  a5: i32[k<37] = i32(c[k]) + i32(u[k]) + i[k]
  a6: i64[k<37] = i64(i[k]) * l[k] + i64(n[k])
  a7: u8[k<37] = u8(i[k] * 3 + 90)
  a8: bool[k<37] = t[k] and f[k] > 0.0
  a9: f32[k<37] = where(t[k], f[k], f32(n[k]))
  b1: i8[k<37] = i8(round(f[k] * 20.0))
  b2: f16[k<37] = f16(b[k])
  b3: f64[k<37] = f64(l[k]) + f64(t[k])
  return a1, a2, a3, a4, a5, a6, a7, a8, a9, b1, b2, b3
""",
            (),
        ),
        (
            "floats",
            """(x: f32[9, 35]):
  a: f32[i<9, j<35] = exp(x[i, j]) + tanh(x[i, j]) * erf(x[i, j])
  b: f32[i<9, j<35] = log(abs(x[i, j]) + 0.1) + sqrt(abs(x[i, j])) + floor(x[i, j])
  c: bool[i<9, j<35] = isnan(x[i, j]) or x[i, j] < 0.0
  return a, b, c
""",
            (),
        ),
        (
            "scalars",
            """(x: f32[], y: f32[], n: i64[]):
  a: f32[] = x * y + 1.0
  b: f32[i<17] = x + f32(i)
  c: i64[] = n * 2
  return a, b, c
""",
            (),
        ),
        (
            "ones",
            """(x: f32[1, 1, 17, 1], y: f32[1, 9, 1, 1]):
  z: f32[a<1, b<9, c<17, d<1] = x[0, 0, c, 0] + y[0, b, 0, 0]
  s: f32[a<1, d<1] = sum(b<9, c<17) z[a, b, c, d]
  return z, s
""",
            (),
        ),
        (
            "several",
            """(x: f32[11, 34]):
  a: f32[i<11, j<34] = x[i, j] + 1.0
  b: f32[i<11, j<34] = a[i, j] * a[i, j]
  c: f32[i<11] = sum(j<34) b[i, j]
  d: f32[i<11, j<34] = b[i, j] - c[i]
  return a, b, c, d
""",
            (),
        ),
        (
            "symmetric",
            """(x: f32[18, 18]):
  y: f32[i<18, j<18] = x[i, j] + x[j, i]
  t: f32[] = sum(i<18) x[i, i]
  d: f32[i<18, j<18] = where(i == j, x[i, j], 0.0)
  return y, t, d
""",
            (),
        ),
    ]


def _recurrences() -> list[Entry]:
    return [
        (
            "rnn",
            """(x: f32[6, 37], u: f32[37, 37]):
  recur t<6:
    a: f32[t<6, j<37] = sum(k<37) (h[t - 1, k] else 0.0) * u[k, j]
    h: f32[t<6, j<37] = tanh(a[t, j] + x[t, j])
  return h
""",
            ("u",),
        ),
        (
            "lstm",
            """(x: f32[5, 2, 36], u: f32[9, 36]):
  recur t<5:
    g: f32[t<5, b<2, j<36] = sum(k<9) (h[t - 1, b, k] else 0.0) * u[k, j]
    c: f32[t<5, b<2, k<9] = (c[t - 1, b, k] else 0.0) / (1.0 + exp(0.0 - g[t, b, k] - x[t, b, k])) + tanh(g[t, b, k + 9] + x[t, b, k + 9]) / (1.0 + exp(0.0 - g[t, b, k + 18]))
    h: f32[t<5, b<2, k<9] = tanh(c[t, b, k]) / (1.0 + exp(0.0 - g[t, b, k + 27]))
  return h, c
""",
            ("u",),
        ),
        (
            "gru",
            """(x: f32[4, 3, 20], u: f32[20, 20]):
  recur t<4:
    z: f32[t<4, b<3, j<20] = sum(k<20) (h[t - 1, b, k] else 0.0) * u[j, k]
    h: f32[t<4, b<3, j<20] = 0.5 * tanh(z[t, b, j] + x[t, b, j]) + 0.5 * (h[t - 1, b, j] else 0.0)
  return h
""",
            (),
        ),
        (
            "cumulate_back",
            """(x: f32[9, 18]):
  recur t<9:
    h: f32[t<9, j<18] = x[8 - t, j] + 0.5 * (h[t - 1, j] else 0.0)
  y: f32[t<9, j<18] = h[8 - t, j]
  return y
""",
            (),
        ),
        (
            "triangular_solve",
            """(l: f32[11, 11], b: f32[11, 5]):
  recur i<11:
    s: f32[i<11, j<5] = sum(k<11 if k < i) l[i, k] * (y[k, j] else 0.0)
    y: f32[i<11, j<5] = (b[i, j] - 0.1 * s[i, j]) / 2.0
  return y
""",
            (),
        ),
    ]


CORPUS: list[Entry] = [
    *_matmul(), *_convolution(), *_rows(), *_reductions(), *_narrow(), *_moves(), *_recurrences(),
]  # fmt: skip
