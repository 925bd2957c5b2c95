"""Corpus: contractions and windows, as (name, text, constants)."""

from __future__ import annotations

Entry = tuple[str, str, tuple[str, ...]]


def matmul_entries() -> list[Entry]:
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
    for left in ("u8", "i8"):
        for right in ("u8", "i8"):
            for constants in ((), ("w",)):
                out.append(
                    (
                        f"dot_{left}_{right}" + ("_constant" if constants else ""),
                        f"""(x: {left}[30, 43], w: {right}[43, 50]):
  y: i32[i<30, j<50] = sum(k<43) i32(x[i, k]) * i32(w[k, j])
  return y
""",
                        constants,
                    )
                )
    out.append(
        (
            "dot_turned",
            """(x: u8[33, 24], w: i8[20, 24]):
  y: i32[i<33, j<20] = sum(k<24) i32(x[i, k]) * i32(w[j, k])
  return y
""",
            (),
        )
    )
    out.append(
        (
            "dot_window",
            """(x: u8[1, 9, 11, 10], w: i8[18, 3, 3, 10]):
  y: i32[n<1, h<9, v<11, o<18] = sum(r<3, s<3, c<10) i32((x[n, h + r - 1, v + s - 1, c] else 7)) * i32(w[o, r, s, c])
  return y
""",
            ("w",),
        )
    )
    for dtype in ("f16", "bf16"):
        out.append(
            (
                f"mm_{dtype}",
                f"""(x: {dtype}[70, 33], w: {dtype}[33, 97]):
  c: f32[i<70, j<97] = sum(k<33) f32(x[i, k]) * f32(w[k, j])
  y: {dtype}[i<70, j<97] = {dtype}(c[i, j])
  return y
""",
                (),
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


def convolution_entries() -> list[Entry]:
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
            "pool_guard",
            """(x: f32[12, 16]):
  n: i64[h<20] = sum(u<5 if 0 <= h + u - 4 and h + u - 4 < 16) 1
  s: f32[c<12, h<20] = sum(u<5 if 0 <= h + u - 4 and h + u - 4 < 16) x[c, h + u - 4]
  y: f32[c<12, h<20] = s[c, h] / f32(n[h])
  return y
""",
            (),
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
    # Windows with steps: one image axis, two, three; taps further apart, cut off, or more than the
    # image has; a window whose two axes both move with the tile.
    for name, axes in {
        "even": (((41, 21, 3, 2, 1, 1),), ((9, 5, 3, 2, 1, 1), (75, 38, 3, 2, 1, 1))),
        "wide": (((7, 5, 11, 3, 1, 7),), ((2, 2, 5, 2, 1, 2), (37, 10, 5, 4, 2, 4))),
        "cut": (((67, 31, 2, 2, 1, -3),), ((5, 2, 2, 2, 1, 0), (71, 23, 2, 3, 1, -1))),
        "deep": (((5, 3, 3, 2, 1, 1), (3, 2, 2, 2, 1, 0), (39, 20, 3, 2, 1, 1)),),
        "none": (((0, 1, 3, 2, 1, 1),), ((3, 2, 3, 2, 1, 1), (1, 17, 3, 1, 1, 9))),
    }.items():
        for image in axes:
            rank = len(image)
            x = ", ".join(str(n) for n, *_ in image)
            points = ", ".join(f"p{d}<{m}" for d, (_, m, *_) in enumerate(image))
            taps = ", ".join(f"t{d}<{k}" for d, (_, _, k, *_) in enumerate(image))
            at = ", ".join(
                f"p{d} * {s} + t{d} * {far} - {pad}".replace("- -", "+ ")
                for d, (_, _, _, s, far, pad) in enumerate(image)
            )
            sizes = ", ".join(str(k) for _, _, k, *_ in image)
            indices = ", ".join(f"t{d}" for d in range(rank))
            types = ", ".join(f"p{d}<{m}" for d, (_, m, *_) in enumerate(image))
            here = ", ".join(f"p{d}" for d in range(rank))
            out.append(
                (
                    f"windows_{name}_{rank}",
                    f"""(x: f32[3, {x}], k: f32[3, {sizes}], b: u8[3, {x}]):
  d: f32[c<3, {points}] = sum({taps}) (x[c, {at}] else 0.0) * k[c, {indices}]
  m: f32[c<3, {points}] = max({taps}) (x[c, {at}] else -inf)
  s: f32[c<3, {points}] = sum({taps}) (x[c, {at}] else 0.0)
  u: u8[c<3, {types}] = max({taps}) (b[c, {at}] else 3)
  a: f32[c<3, {types}] = s[c, {here}] * 0.25
  return d, m, a, u
""",
                    ("k",),
                )
            )
    return out
