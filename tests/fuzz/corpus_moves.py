"""Corpus: moving, casting, scanning and recurring, as (name, text, constants)."""

from __future__ import annotations

from corpus_linear import Entry


def move_entries() -> list[Entry]:
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
            "concat_plain",
            """(x: f32[5, 9], y: f32[5, 14], k: i64[9]):
  t: f32[i<5, j<9] = exp(x[i, j])
  z: f32[i<5, j<23] = where(j < 9, t[i, j], y[i, j - 9])
  s: f32[i<5] = sum(j<23) where(j < 14, y[4 - i, j], x[i, j - 14])
  g: f32[j<23] = where(j < 9, x[2, k[j]], 1.0)
  return z, s, g
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
            "scatter_runs",
            """(u: f32[31, 70], i: i64[31], b: f16[11, 70], h: f16[40, 3], k: i32[40], w: f32[2, 31, 37]):
  z: f32[p<11, q<70] = scatter sum(r<31, q<70) at (i[r] * 2 - 1, q) of u[r, q] base 0.5
  g: f16[p<11, q<70] = scatter sum(r<40, q<3) at (i64(k[r]), q) of h[r, q] base b[p, q]
  l: f32[p<11, q<70] = scatter last(r<31, q<70) at (i[r], q) of u[r, q] base 1.0
  m: f32[p<11, s<2, q<40] = scatter max(s<2, r<31, q<37) at (i[30 - r], s, q) of w[s, r, q] base -inf
  o: f16[p<4] = scatter sum(r<40, q<3) at (i64(k[r])) of h[r, q] base 0.25
  return z, g, l, m, o
""",
            (),
        ),
        (
            "gather_rows",
            """(x: f32[20, 33], i: i64[7], j: i32[5, 6]):
  a: f32[p<7, q<33] = x[i[p], q] + 1.0
  s: f32[p<7] = sum(q<33) x[i[p], q]
  c: f32[p<5, q<6, r<33] = x[i64(j[p, q]), r] * x[i64(j[p, 5 - q]), r]
  return a, s, c
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
            "turned_epilogue",
            """(x: f32[18, 18, 7], z: f32[18, 18]):
  c: f32[i<18, j<18] = sum(k<7) x[i, j, k]
  d: f32[i<18, j<18] = exp(c[i, j]) + z[i, j]
  y: f32[i<18, j<18] = c[i, j] + d[j, i] + d[i, j % 5]
  w: f32[i<18, j<18] = y[i, j] * y[j, i]
  return y, w
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


def recurrence_entries() -> list[Entry]:
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
            "rnn_f16",
            """(x: f16[40, 19], u: f16[19, 19], z: bf16[19]):
  recur t<40:
    a: f16[t<40, j<19] = sum(k<19) (h[t - 1, k] else 0.5) * u[k, j] * 0.2
    h: f16[t<40, j<19] = tanh(a[t, j] + x[t, j] + f16(z[j])) + 0.5 * (h[t - 1, j] else 0.5)
  return h
""",
            (),
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
            "all_steps_before",
            """(x: f32[7, 5], w: f32[7, 7]):
  recur t<7:
    a: f32[t<7, j<5] = sum(k<7) w[t, k] * (h[k, j] else 0.25)
    m: f32[t<7] = max(k<7, j<5) (a[k, j] else -1.0)
    h: f32[t<7, j<5] = tanh(a[t, j] + x[t, j] + m[t] + (h[6 - t, j] else 0.5))
  return h
""",
            ("w",),
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
