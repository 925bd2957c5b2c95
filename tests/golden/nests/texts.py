"""Six kernels written by hand as nests, with their sizes as parameters.

In: sizes. Out: nest text. They are the targets of the general lowering: loop orders, packed layouts, where tails, guards
and prefetches stand.
"""

from __future__ import annotations


def up(n: int, m: int) -> int:
    return -(-n // m) * m


def fma_peak(rows: int = 12, trips: int = 20000) -> str:
    """Independent fused multiply-adds on registers: the speed of light of this core."""
    return f"""\
nest fma_peak format 1:
  arg X: f32[32]
  arg Y: f32[{rows * 32}]
  phase:
    a: f32[] = load X[0]
    b: f32[n:32*] = load X[0] by (n=1)
    z: f32[m:{rows}, n:32*] = fill 1.0
    for k in 0 .. {trips} step 1 carry (acc = z) -> (r):
      s: f32[m:{rows}, n:32*] = contract acc, a, b
      yield s
    store Y[0] by (m=32, n=1) = r
"""


def copy(size: int, nontemporal: bool = True) -> str:
    """Y = X: the bandwidth of one read and one write stream."""
    word = "store nt" if nontemporal else "store"
    return f"""\
nest copy format 1:
  arg X: f32[{size}]
  arg Y: f32[{size}]
  phase:
    parallel for i in 0 .. {size} step 128 grain 1024:
      x: f32[u:8, n:16*] = load X[i] by (u=16, n=1)
      {word} Y[i] by (u=16, n=1) = x
"""


def matmul(M: int, N: int, K: int, MC: int = 252, KC: int = 256, MR: int = 14, NR: int = 32) -> str:
    """C = A B. B packed in panels of NR columns (a phase of its own), A in panels of MR rows (scratch)."""
    return f"""\
nest matmul format 1:
  arg A: f32[{M * K}]
  arg B: f32[{K * N}]
  arg C: f32[{M * N}]
  arena BP: f32[{up(N, NR) * K}]
  scratch AP: f32[{up(MC, MR) * KC}]
  phase:
    parallel for j in 0 .. {N} step {NR}:
      for k in 0 .. {K} step 8:
        b: f32[k:8, n:{NR}*] = load B[k*{N} + j] by (k={N}, n=1) within (k: 0 .. {K} - k, n: 0 .. {N} - j) else 0.0
        store BP[j*{K} + k*{NR}] by (k={NR}, n=1) within (k: 0 .. {K} - k) = b
  phase:
    parallel for i in 0 .. {M} step {MC}:
      for q in 0 .. {K} step {KC}:
        for p in i .. min(i + {MC}, {M}) step {MR}:
          for k in q .. min(q + {KC}, {K}) step 16:
            r: f32[m:{MR}, k:16*] = load A[p*{K} + k] by (m={K}, k=1) within (m: 0 .. {M} - p, k: 0 .. {K} - k) else 0.0
            t: f32[m:{MR}*, k:16] = relayout r
            store AP[(p - i)*{KC} + (k - q)*{MR}] by (m=1, k={MR}) = t
        for j in 0 .. {N} step {NR}:
          for p2 in i .. min(i + {MC}, {M}) step {MR}:
            z: f32[m:{MR}, n:{NR}*] = fill 0.0
            for k2 in 0 .. min({KC}, {K} - q) step 1 carry (acc = z) -> (s):
              a: f32[m:{MR}] = load AP[(p2 - i)*{KC} + k2*{MR}] by (m=1)
              w: f32[n:{NR}*] = load BP[j*{K} + q*{NR} + k2*{NR}] by (n=1)
              acc2: f32[m:{MR}, n:{NR}*] = contract acc, a, w
              yield acc2
            if 0 < q -> (total):
              c: f32[m:{MR}, n:{NR}*] = load C[p2*{N} + j] by (m={N}, n=1) within (m: 0 .. {M} - p2, n: 0 .. {N} - j) else 0.0
              sum: f32[m:{MR}, n:{NR}*] = add c, s
              yield sum
            else:
              yield s
            store C[p2*{N} + j] by (m={N}, n=1) within (m: 0 .. {M} - p2, n: 0 .. {N} - j) = total
"""


def convolution(H: int, W: int, C: int, O: int, WR: int = 14, R: int = 3) -> str:
    """RxR convolution, stride 1, zero padding R//2; activations channels-last, weights [O/32][R][R][C][32]."""
    P = R // 2
    return f"""\
nest convolution format 1:
  arg X: f32[{H * W * C}]
  const V: f32[{up(O, 32) * C * R * R}]
  const b: f32[{O}]
  arg Y: f32[{H * W * O}]
  phase:
    parallel for g in 0 .. {H * (up(O, 32) // 32)} step 1:
      for w in 0 .. {W} step {WR}:
        for o in 32*(g // {H}) .. 32*(g // {H}) + 32 step 32:
          bias: f32[o:32*] = load b[o] by (o=1) within (o: 0 .. {O} - o) else 0.0
          z: f32[w:{WR}, o:32*] = fill 0.0
          first: f32[w:{WR}, o:32*] = add z, bias
          for y in max(0, {P} - g % {H}) .. min({R}, {H + P} - g % {H}) step 1 carry (a1 = first) -> (r1):
            for x in 0 .. {R} step 1 carry (a2 = a1) -> (r2):
              for c in 0 .. {C} step 1 carry (a3 = a2) -> (r3):
                p: f32[w:{WR}] = load X[(g % {H} + y - {P})*{W * C} + (w + x - {P})*{C} + c] by (w={C}) within (w: {P} - w - x .. {W + P} - w - x) else 0.0
                v: f32[o:32*] = load V[o*{C * R * R} + y*{R * C * 32} + x*{C * 32} + c*32] by (o=1)
                a4: f32[w:{WR}, o:32*] = contract a3, p, v
                yield a4
              yield r3
            yield r2
          q: f32[w:{WR}, o:32*] = fill 0.0
          y2: f32[w:{WR}, o:32*] = max r1, q
          store Y[(g % {H})*{W * O} + w*{O} + o] by (w={O}, o=1) within (w: 0 .. {W} - w, o: 0 .. {O} - o) = y2
"""


def softmax(R: int, N: int, U: int = 8, ahead: int = 1, nontemporal: bool = True) -> str:
    """Softmax of each row. The next row is prefetched inside the exp pass, a line a vector."""
    T = f"f32[u:{U}, n:16*]"
    S = 16 * U
    word = "store nt" if nontemporal else "store"
    prefetches = "\n".join(
        f"        prefetch X[(i + {ahead})*{N} + {'k' if u == 0 else f'k + {16 * u}'}] bytes 64 level 1"
        for u in range(U)
    )
    return f"""\
nest softmax format 1:
  arg X: f32[{R * N}]
  arg Y: f32[{R * N}]
  scratch E: f32[{N}]
  phase:
    parallel for i in 0 .. {R} step 1 grain 16:
      low: {T} = fill -inf
      for j in 0 .. {N} step {S} carry (m = low) -> (m1):
        x: {T} = load X[i*{N} + j] by (u=16, n=1) within (n: 0 .. {N} - j) else -inf
        m2: {T} = max m, x
        yield m2
      m3: f32[n:16*] = reduce max u m1
      top: f32[] = reduce max n m3
      z: {T} = fill 0.0
      for k in 0 .. {N} step {S} carry (s = z) -> (s1):
{prefetches}
        x2: {T} = load X[i*{N} + k] by (u=16, n=1)
        d: {T} = sub x2, top
        e: {T} = exp d
        store E[k] by (u=16, n=1) = e
        s2: {T} = add s, e
        yield s2
      s3: f32[n:16*] = reduce add u s1
      total: f32[] = reduce add n s3
      one: f32[] = fill 1.0
      scale: f32[] = div one, total
      for l in 0 .. {N} step {S}:
        e2: {T} = load E[l] by (u=16, n=1)
        y: {T} = mul e2, scale
        {word} Y[i*{N} + l] by (u=16, n=1) = y
"""


def layer_norm(R: int, N: int, U: int = 8, nontemporal: bool = True) -> str:
    """(x - mean) / sqrt(variance + eps) of each row, two sums in one pass, the next row prefetched in the last."""
    T = f"f32[u:{U}, n:16*]"
    S = 16 * U
    word = "store nt" if nontemporal else "store"
    prefetches = "\n".join(
        f"        prefetch X[(i + 1)*{N} + {'l' if u == 0 else f'l + {16 * u}'}] bytes 64 level 1"
        for u in range(U)
    )
    return f"""\
nest layer_norm format 1:
  arg X: f32[{R * N}]
  arg Y: f32[{R * N}]
  phase:
    parallel for i in 0 .. {R} step 1 grain 16:
      z: {T} = fill 0.0
      z1: {T} = fill 0.0
      for j in 0 .. {N} step {S} carry (s = z, v = z1) -> (s1, v1):
        x: {T} = load X[i*{N} + j] by (u=16, n=1)
        s2: {T} = add s, x
        v2: {T} = contract v, x, x
        yield s2, v2
      s3: f32[n:16*] = reduce add u s1
      s4: f32[] = reduce add n s3
      v3: f32[n:16*] = reduce add u v1
      v4: f32[] = reduce add n v3
      size: f32[] = fill {float(N)}
      mean: f32[] = div s4, size
      square: f32[] = div v4, size
      mm: f32[] = mul mean, mean
      variance: f32[] = sub square, mm
      eps: f32[] = fill 1e-05
      safe: f32[] = add variance, eps
      scale: f32[] = rsqrt safe
      for l in 0 .. {N} step {S}:
{prefetches}
        x2: {T} = load X[i*{N} + l] by (u=16, n=1)
        d: {T} = sub x2, mean
        y: {T} = mul d, scale
        {word} Y[i*{N} + l] by (u=16, n=1) = y
"""


def transpose(R: int, C: int, rows: int = 32, cols: int = 256, nontemporal: bool = True) -> str:
    """Y[c, r] = X[r, c] by 16x16 tiles in registers, down blocks of `rows` lines that are `cols` wide.

    More than 32 rows at a stride of a power of two fall out of the cache before their second half line is used.
    """
    word = "store nt" if nontemporal else "store"
    across = up(C, cols) // cols
    return f"""\
nest transpose format 1:
  arg X: f32[{R * C}]
  arg Y: f32[{R * C}]
  phase:
    parallel for b in 0 .. {up(R, rows) // rows * across} step 1:
      for c in {cols}*(b % {across}) .. min({C}, {cols}*(b % {across}) + {cols}) step 16:
        for r in {rows}*(b // {across}) .. min({R}, {rows}*(b // {across}) + {rows}) step 16:
          x: f32[r:16, c:16*] = load X[r*{C} + c] by (r={C}, c=1) within (r: 0 .. {R} - r, c: 0 .. {C} - c) else 0.0
          y: f32[r:16*, c:16] = relayout x
          {word} Y[c*{R} + r] by (c={R}, r=1) within (r: 0 .. {R} - r, c: 0 .. {C} - c) = y
"""


def attention(
    heads: int, T: int, QB: int = 64, KB: int = 128, QR: int = 8, causal: bool = True
) -> str:
    """softmax(Q K^T / 8, causal) V for head width 64, streaming over blocks of keys.

    Keys of a block are packed with the key index in lanes once per chunk; scores stay in scratch between the passes.
    """
    D = 64
    S = f"f32[q:{QR}, j:32*]"
    A = f"f32[q:{QR}, d:{32}*]"
    stop = f"min({T}, i + {QB})" if causal else f"{T}"
    return f"""\
nest attention format 1:
  arg Q: f32[{heads * T * D}]
  arg K: f32[{heads * T * D}]
  arg V: f32[{heads * T * D}]
  arg Y: f32[{heads * T * D}]
  arena KT: f32[{heads * up(T, KB) * D}]
  scratch SC: f32[{QB * KB}]
  scratch O: f32[{QB * D}]
  scratch M: f32[{up(QB, 16)}]
  scratch L: f32[{up(QB, 16)}]
  phase:
    parallel for g in 0 .. {heads * (up(T, 16) // 16)} step 1 grain 8:
      for d in 0 .. {D} step 16:
        k0: f32[j:16, d:16*] = load K[(g // {up(T, 16) // 16})*{T * D} + (g % {up(T, 16) // 16})*{16 * D} + d] by (j={D}, d=1) within (j: 0 .. {T} - (g % {up(T, 16) // 16})*16) else 0.0
        k1: f32[j:16*, d:16] = relayout k0
        store KT[(g // {up(T, 16) // 16})*{up(T, KB) * D} + ((g % {up(T, 16) // 16}) // 2)*{32 * D} + ((g % {up(T, 16) // 16}) % 2)*16 + d*32] by (j=1, d=32) = k1
  phase:
    parallel for h in 0 .. {heads * (up(T, QB) // QB)} step 1:
      for i in (h % {up(T, QB) // QB})*{QB} .. (h % {up(T, QB) // QB})*{QB} + {QB} step {QB}:
        for r0 in 0 .. {QB} step 16:
          m0: f32[q:16*] = fill -inf
          store M[r0] by (q=1) = m0
          l0: f32[q:16*] = fill 0.0
          store L[r0] by (q=1) = l0
        for r1 in 0 .. {QB} step 1:
          o0: f32[d:{D}*] = fill 0.0
          store O[r1*{D}] by (d=1) = o0
        for jb in 0 .. {stop} step {KB}:
          for r2 in 0 .. {QB} step {QR}:
            for j in jb .. min(jb + {KB}, {f"i + r2 + {QR}" if causal else T}) step 32:
              s0: {S} = fill 0.0
              for d2 in 0 .. {D} step 1 carry (s1 = s0) -> (s2):
                q: f32[q:{QR}] = load Q[(h // {up(T, QB) // QB})*{T * D} + (i + r2)*{D} + d2] by (q={D}) within (q: 0 .. {T} - i - r2) else 0.0
                k: f32[j:32*] = load KT[(h // {up(T, QB) // QB})*{up(T, KB) * D} + j*{D} + d2*32] by (j=1)
                s3: {S} = contract s1, q, k
                yield s3
              store SC[r2*{KB} + j - jb] by (q={KB}, j=1) = s2
            for r3 in r2 .. r2 + {QR} step 1:
              low: f32[j:32*] = fill -inf
              lim: f32[] = fill 0.125
              for j3 in jb .. min(jb + {KB}, {"i + r3 + 1" if causal else T}) step 32 carry (t0 = low) -> (t1):
                x0: f32[j:32*] = load SC[r3*{KB} + j3 - jb] by (j=1) within (j: 0 .. {"i + r3 + 1" if causal else T} - j3) else -inf
                t2: f32[j:32*] = max t0, x0
                yield t2
              t3: f32[] = reduce max j t1
              t4: f32[] = mul t3, lim
              old: f32[] = load M[r3]
              new: f32[] = max old, t4
              none: f32[] = fill -inf
              zero: f32[] = fill 0.0
              isnone: bool[] = eq new, none
              safe: f32[] = select isnone, zero, new
              dold: f32[] = sub old, safe
              fix: f32[] = exp dold
              z0: f32[j:32*] = fill 0.0
              for j4 in jb .. min(jb + {KB}, {f"i + r2 + {QR}" if causal else T}) step 32 carry (u0 = z0) -> (u1):
                x1: f32[j:32*] = load SC[r3*{KB} + j4 - jb] by (j=1) within (j: 0 .. {"i + r3 + 1" if causal else T} - j4) else -inf
                x2: f32[j:32*] = mul x1, lim
                x3: f32[j:32*] = sub x2, safe
                x4: f32[j:32*] = exp x3
                store SC[r3*{KB} + j4 - jb] by (j=1) = x4
                u2: f32[j:32*] = add u0, x4
                yield u2
              u3: f32[] = reduce add j u1
              l1: f32[] = load L[r3]
              l2: f32[] = mul l1, fix
              l3: f32[] = add l2, u3
              store L[r3] = l3
              store M[r3] = new
              o1: f32[d:{D}*] = load O[r3*{D}] by (d=1)
              o2: f32[d:{D}*] = mul o1, fix
              store O[r3*{D}] by (d=1) = o2
            for d3 in 0 .. {D} step 32:
              a0: {A} = load O[r2*{D} + d3] by (q={D}, d=1)
              for j5 in jb .. min(min(jb + {KB}, {T}), {f"i + r2 + {QR}" if causal else T}) step 1 carry (a1 = a0) -> (a2):
                p: f32[q:{QR}] = load SC[r2*{KB} + j5 - jb] by (q={KB})
                v: f32[d:32*] = load V[(h // {up(T, QB) // QB})*{T * D} + j5*{D} + d3] by (d=1)
                a3: {A} = contract a1, p, v
                yield a3
              store O[r2*{D} + d3] by (q={D}, d=1) = a2
        for r4 in 0 .. {QB} step 1:
          l4: f32[] = load L[r4]
          o3: f32[d:{D}*] = load O[r4*{D}] by (d=1)
          y: f32[d:{D}*] = div o3, l4
          store Y[(h // {up(T, QB) // QB})*{T * D} + (i + r4)*{D}] by (d=1) within (d: 0 .. {D}*({T} - i - r4)) = y
"""


def lstm(T: int, B: int, H: int, BR: int = 12) -> str:
    """LSTM over T steps: X[T, B, I] with I = H, weights packed as [H/16][2][2H][2][16]: gate pairs outside, input part
    before the recurrent part.

    The input part of all steps is a phase of its own; the recurrent phase keeps h and c of BR rows in scratch, h twice.
    Gate order: input, forget, cell, output.
    """
    G = f"f32[b:{BR}, g:2, n:16*]"
    S = f"f32[b:{BR}, n:16*]"
    gates = []
    for k, x in enumerate("ifgo"):
        gates.append(f"          {x}0: {S} = load GS[{16 * k}] by (b=64, n=1)")
        gates.append(f"          {x}1: {S} = {'tanh' if x == 'g' else 'sigmoid'} {x}0")
    activations = "\n".join(gates)
    return f"""\
nest lstm format 1:
  arg X: f32[{T * B * H}]
  const W: f32[{2 * H * 4 * H}]
  const bias: f32[{4 * H}]
  arg Y: f32[{T * B * H}]
  arena PRE: f32[{T * B * 4 * H}]
  scratch GS: f32[{BR * 64}]
  scratch HS: f32[{2 * BR * H}]
  scratch CS: f32[{BR * H}]
  phase:
    parallel for p in 0 .. {T * B} step {BR} grain 4:
      for n in 0 .. {H} step 16:
        for g in 0 .. 2 step 1:
          bg: f32[g:2, n:16*] = load bias[n + g*{2 * H}] by (g={H}, n=1)
          zero: {G} = fill 0.0
          start: {G} = add zero, bg
          for k in 0 .. {H} step 1 carry (acc = start) -> (pre):
            x: f32[b:{BR}] = load X[p*{H} + k] by (b={H}) within (b: 0 .. {T * B} - p)
            w: f32[g:2, n:16*] = load W[n*{8 * H} + g*{64 * H} + k*32] by (g=16, n=1)
            acc2: {G} = contract acc, x, w
            yield acc2
          store PRE[p*{4 * H} + n*4 + g*32] by (b={4 * H}, g=16, n=1) within (b: 0 .. {T * B} - p) = pre
  phase:
    parallel for b0 in 0 .. {B} step {BR}:
      for j in 0 .. {H} step 16:
        none: {S} = fill 0.0
        store HS[j] by (b={H}, n=1) = none
        store CS[j] by (b={H}, n=1) = none
      for t in 0 .. {T} step 1:
        for n2 in 0 .. {H} step 16:
          for g2 in 0 .. 2 step 1:
            start2: {G} = load PRE[t*{B * 4 * H} + b0*{4 * H} + n2*4 + g2*32] by (b={4 * H}, g=16, n=1) within (b: 0 .. {B} - b0) else 0.0
            for k2 in 0 .. {H} step 1 carry (acc3 = start2) -> (all):
              h: f32[b:{BR}] = load HS[(t % 2)*{BR * H} + k2] by (b={H})
              w2: f32[g:2, n:16*] = load W[n2*{8 * H} + g2*{64 * H} + {H * 32} + k2*32] by (g=16, n=1)
              acc4: {G} = contract acc3, h, w2
              yield acc4
            store GS[g2*32] by (b=64, g=16, n=1) = all
{activations}
          c0: {S} = load CS[n2] by (b={H}, n=1)
          c1: {S} = mul f1, c0
          c2: {S} = mul i1, g1
          c3: {S} = add c1, c2
          store CS[n2] by (b={H}, n=1) = c3
          c4: {S} = tanh c3
          h1: {S} = mul o1, c4
          store HS[((t + 1) % 2)*{BR * H} + n2] by (b={H}, n=1) = h1
          store Y[t*{B * H} + b0*{H} + n2] by (b={H}, n=1) within (b: 0 .. {B} - b0) = h1
"""
