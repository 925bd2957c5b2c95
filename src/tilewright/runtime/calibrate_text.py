"""The probes of the calibration as LLVM text.

In: a Target. Out: text of a module with one function per probe, in the kernel ABI, and how many
operations or bytes one chunk of each is.
Invariant: no probe can be shortened by a compiler: every result depends on a loop-carried value
that is stored at the end, and no pass of LLVM runs on this text.

args: 0 ptr a   8 ptr b   16 ptr c   24 i64 n   32 i64 repeat.  A chunk of a memory probe is n bytes
at chunk * n of each array, gone over `repeat` times; a chunk of a register probe is n turns.
"""

from __future__ import annotations

from collections.abc import Callable

from tilewright.machine.target import Target

__all__ = ["probe_text", "register_operations"]

_CHAIN = 32  # operations per turn in the two latency probes

_ARGS = """
  %a = load ptr, ptr %args
  %pb = getelementptr i8, ptr %args, i64 8
  %b = load ptr, ptr %pb
  %pc = getelementptr i8, ptr %args, i64 16
  %c = load ptr, ptr %pc
  %pn = getelementptr i8, ptr %args, i64 24
  %n = load i64, ptr %pn
  %pr = getelementptr i8, ptr %args, i64 32
  %repeat = load i64, ptr %pr
"""


def accumulators(target: Target) -> int:
    """Independent chains that cover latency times width of any core, and fit the registers."""
    return 24 if target.vector_registers >= 32 else 12


def register_operations(name: str, target: Target) -> int:
    """Operations of one turn of a register probe; 0 when the target lacks the unit."""
    chains, lanes = accumulators(target), target.lanes(32)
    bits = {"bf16_gflops": 16, "vnni_gops": 8}.get(name, 0)
    if target.multiplies_matrices(bits):
        return 4 * 2 * 16 * 16 * 16 * (32 // bits)
    return {
        "fma_gflops": chains * lanes * 2,
        "f64_gflops": chains * target.lanes(64) * 2,
        "bf16_gflops": chains * lanes * 4 if _dot_bf16(target) else 0,
        "vnni_gops": chains * lanes * 8 if _dot_i8(target) else 0,
        "divide_gops": 8 * lanes,
        "shuffle_gops": 8 * lanes,
        "gather_gops": 4 * lanes,
        "fma_ns": _CHAIN,
        "cycle_ns": _CHAIN,
    }[name]


def probe_text(target: Target) -> str:
    """The module. Probes that the target lacks are absent."""
    parts = [_loop(target, name, *spec) for name, spec in _register_probes(target).items()]
    parts += [_memory(name, target) for name in ("read", "copy", "copy_nt", "triad_nt")]
    parts += [_CHASE, _EMPTY, _declarations(target)]
    return "\n".join(parts).replace("#A", target.function_attributes()) + "\n!0 = !{i32 1}\n"


def _declarations(target: Target) -> str:
    wide, half = _f32(target), _f64(target)
    lanes = target.lanes(32)
    # Loaded, not written into the loops, so that they stay in registers on every machine.
    names = [
        f"@half32 = internal constant {wide} {_splat('float', lanes, '0.5')}, align 64",
        f"@half64 = internal constant {half} {_splat('double', target.lanes(64), '0.5')}, align 64",
    ]
    names += [f"declare {wide} @llvm.fma{_suffix(wide)}({wide}, {wide}, {wide})"]
    names += ["declare i64 @llvm.fshl.i64(i64, i64, i64)"]
    names += [f"declare {half} @llvm.fma{_suffix(half)}({half}, {half}, {half})"]
    names += [
        f"declare {wide} @llvm.masked.gather{_suffix(wide)}.v{lanes}p0"
        f"(<{lanes} x ptr>, i32, <{lanes} x i1>, {wide})"
    ]
    if not target.triple.startswith("aarch64"):
        names.append("declare void @llvm.x86.sse.sfence()")
    for dot in (_dot_bf16(target), _dot_i8(target)):
        if dot:
            names.append(dot[1])
    if target.has_feature("amx-tile"):
        shapes = [1, *[0] * 15, *[64, 0] * 8, *[0] * 16, *[16] * 8, *[0] * 8]
        text = ", ".join(f"i8 {x}" for x in shapes)
        names.append(f"@shapes = internal constant [64 x i8] [{text}], align 64")
        names.append("declare void @llvm.x86.ldtilecfg(ptr)")
        names.append("declare void @llvm.x86.tilerelease()")
    for bits, (multiply, _) in _MATRIX.items():
        if target.multiplies_matrices(bits):
            names.append(f"declare void @llvm.x86.{multiply}(i8, i8, i8)")
    return "\n".join(names)


def _suffix(vector: str) -> str:
    lanes, kind = vector.strip("<>").split(" x ")
    return f".v{lanes}{'f32' if kind == 'float' else 'f64'}"


def _f32(target: Target) -> str:
    return f"<{target.lanes(32)} x float>"


def _f64(target: Target) -> str:
    return f"<{target.lanes(64)} x double>"


def _dot_bf16(target: Target) -> tuple[str, str] | None:
    """(intrinsic, declaration) of acc + dot(bf16 pairs)."""
    lanes = target.lanes(32)
    if target.triple.startswith("aarch64") or not target.has_bf16_dot:
        return None
    name = f"@llvm.x86.avx512bf16.dpbf16ps.{target.vector_bits}"
    pairs, wide = f"<{2 * lanes} x bfloat>", _f32(target)
    return name, f"declare {wide} {name}({wide}, {pairs}, {pairs})"


def _dot_i8(target: Target) -> tuple[str, str] | None:
    """(intrinsic, declaration) of acc + dot(u8 quads, i8 quads)."""
    lanes = target.lanes(32)
    if target.triple.startswith("aarch64") or not target.has_vnni:
        return None
    name = f"@llvm.x86.avx512.vpdpbusd.{target.vector_bits}"
    bytes_, wide = f"<{4 * lanes} x i8>", f"<{lanes} x i32>"
    return name, f"declare {wide} {name}({wide}, {bytes_}, {bytes_})"


# (vector type, chains, start value of a chain, text of one chain's turn from %x to %y)
_Spec = tuple[str, int, str, Callable[[str, str], str]]


def _splat(kind: str, lanes: int, value: str) -> str:
    return "<" + ", ".join([f"{kind} {value}"] * lanes) + ">"


def _register_probes(target: Target) -> dict[str, _Spec]:
    lanes, chains = target.lanes(32), accumulators(target)
    f32, f64, i32 = _f32(target), _f64(target), f"<{lanes} x i32>"
    half = _splat("float", lanes, "0.5")
    half64 = _splat("double", target.lanes(64), "0.5")

    def fma(kind: str, constant: str) -> Callable[[str, str], str]:
        def text(x: str, y: str) -> str:
            if target.has_fma:
                call = f"call {kind} @llvm.fma{_suffix(kind)}"
                return f"{y} = {call}({kind} {constant}, {kind} {constant}, {kind} {x})"
            return f"{y}m = fmul {kind} {x}, {constant}\n  {y} = fadd {kind} {y}m, {constant}"

        return text

    def chain(one: Callable[[str, str], str]) -> Callable[[str, str], str]:
        def text(x: str, y: str) -> str:
            names = [x, *(f"{y}c{k}" for k in range(_CHAIN - 1)), y]
            return "\n  ".join(one(names[k], names[k + 1]) for k in range(_CHAIN))

        return text

    def rotate(x: str, y: str) -> str:
        # Two single-cycle operations that no peephole merges; _CHAIN / 2 of them make a turn.
        steps, names = [], [x, *(f"{y}r{k}" for k in range(_CHAIN // 2 - 1)), y]
        for k in range(_CHAIN // 2):
            steps.append(f"{names[k + 1]}x = xor i64 {names[k]}, 1311768467463790320")
            steps.append(
                f"{names[k + 1]} = call i64 @llvm.fshl.i64"
                f"(i64 {names[k + 1]}x, i64 {names[k + 1]}x, i64 7)"
            )
        return "\n  ".join(steps)

    order = ", ".join(f"i32 {(5 * k + 3) % (2 * lanes)}" for k in range(lanes))
    mask = _splat("i1", lanes, "true")

    def shuffle(x: str, y: str) -> str:
        indices = f"<{lanes} x i32> <{order}>"
        return f"{y} = shufflevector {f32} {x}, {f32} {half}, {indices}"

    def gather(x: str, y: str) -> str:
        return (
            f"{y}i = and {i32} {x}, {_splat('i32', lanes, '1020')}\n"
            f"  {y}p = getelementptr float, ptr %a, {i32} {y}i\n"
            f"  {y}g = call {f32} @llvm.masked.gather{_suffix(f32)}.v{lanes}p0"
            f"(<{lanes} x ptr> {y}p, i32 4, <{lanes} x i1> {mask}, {f32} zeroinitializer)\n"
            f"  {y} = bitcast {f32} {y}g to {i32}"
        )

    probes: dict[str, _Spec] = {
        "fma_gflops": (f32, chains, half, fma(f32, "%half32")),
        "f64_gflops": (f64, chains, half64, fma(f64, "%half64")),
        "divide_gops": (f32, 8, half, lambda x, y: f"{y} = fdiv {f32} {half}, {x}"),
        "shuffle_gops": (f32, 8, half, shuffle),
        "gather_gops": (i32, 4, _splat("i32", lanes, "64"), gather),
        "fma_ns": (f32, 1, half, chain(fma(f32, "%half32"))),
        "cycle_ns": ("i64", 1, "88172645463325252", rotate),
    }
    bf16, i8 = _dot_bf16(target), _dot_i8(target)
    if bf16:
        pairs = f"<{2 * lanes} x bfloat> {_splat('bfloat', 2 * lanes, '0xR3E80')}"
        probes["bf16_gflops"] = (
            f32,
            chains,
            half,
            lambda x, y: f"{y} = call {f32} {bf16[0]}({f32} {x}, {pairs}, {pairs})",
        )
    if i8:
        quads = f"<{4 * lanes} x i8> {_splat('i8', 4 * lanes, '3')}"
        probes["vnni_gops"] = (
            i32,
            chains,
            "zeroinitializer",
            lambda x, y: f"{y} = call {i32} {i8[0]}({i32} {x}, {quads}, {quads})",
        )
    for bits, (multiply, name) in _MATRIX.items():
        if target.multiplies_matrices(bits):
            probes[name] = ("i64", 1, "0", _in_matrices(multiply))
    return probes


# Bits of an element -> the instruction for matrix registers, and the rate it is the peak of.
_MATRIX = {16: ("tdpbf16ps", "bf16_gflops"), 8: ("tdpbusd", "vnni_gops")}


def _in_matrices(multiply: str) -> Callable[[str, str], str]:
    """Four products of 16x64 bytes, with accumulators of their own."""
    calls = [
        f"call void @llvm.x86.{multiply}(i8 {2 * i + j}, i8 {4 + i}, i8 {6 + j})"
        for i in range(2)
        for j in range(2)
    ]
    return lambda x, y: "\n  ".join([*calls, f"{y} = add i64 {x}, 1"])


def _loop(
    target: Target, name: str, kind: str, chains: int, start: str, turn: Callable[[str, str], str]
) -> str:
    phis = "\n".join(
        f"  %x{k} = phi {kind} [{start}, %entry], [%y{k}, %loop]" for k in range(chains)
    )
    body = "\n".join("  " + turn(f"%x{k}", f"%y{k}") for k in range(chains))
    stores = "\n".join(f"  store {kind} %y{k}, ptr %scratch, align 8" for k in range(chains))
    constants = ""
    for bits, vector in ((32, _f32(target)), (64, _f64(target))):
        constants += f"  %half{bits} = load volatile {vector}, ptr @half{bits}, align 64\n"
    if "@llvm.x86.tdp" in body:
        constants = "  call void @llvm.x86.ldtilecfg(ptr @shapes)\n"
        stores += "\n  call void @llvm.x86.tilerelease()"
    return f"""
define void @{name}(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {{
entry:{_ARGS}{constants}  %count = sub i64 %hi, %lo
  %turns = mul i64 %count, %n
  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
{phis}
{body}
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %turns
  br i1 %more, label %loop, label %done
done:
{stores}
  ret void
}}"""


def _memory(name: str, target: Target) -> str:
    """One pass over a chunk moves 8 vectors a turn."""
    kind, size = _f32(target), target.vector_bits // 8
    half = _splat("float", target.lanes(32), "0.5")
    hint = ", !nontemporal !0" if name.endswith("_nt") else ""
    phis, body, stores = [], [], []
    for k in range(8):
        body.append(f"  %o{k} = add i64 %o, {k * size}")
        body.append(f"  %pa{k} = getelementptr i8, ptr %a, i64 %o{k}")
        body.append(f"  %va{k} = load {kind}, ptr %pa{k}, align {size}")
        value = f"%va{k}"
        if name == "read":
            # Exclusive or would do too; a float add of zeros shows the same and needs no bitcast.
            phis.append(f"  %s{k} = phi {kind} [zeroinitializer, %pass], [%t{k}, %loop]")
            body.append(f"  %t{k} = fadd {kind} %s{k}, {value}")
            stores.append(f"  store {kind} %t{k}, ptr %scratch, align 8")
            continue
        if name == "triad_nt":
            body.append(f"  %pc{k} = getelementptr i8, ptr %c, i64 %o{k}")
            body.append(f"  %vc{k} = load {kind}, ptr %pc{k}, align {size}")
            body.append(f"  %m{k} = fmul {kind} {value}, {half}")
            body.append(f"  %w{k} = fadd {kind} %m{k}, %vc{k}")
            value = f"%w{k}"
        body.append(f"  %pd{k} = getelementptr i8, ptr %b, i64 %o{k}")
        body.append(f"  store {kind} {value}, ptr %pd{k}, align {size}{hint}")
    fence = "  call void @llvm.x86.sse.sfence()\n" if hint and "x86" in target.triple else ""
    lines = "\n".join
    return f"""
define void @{name}(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {{
entry:{_ARGS}  %first = mul i64 %lo, %n
  %last = mul i64 %hi, %n
  br label %pass
pass:
  %r = phi i64 [0, %entry], [%r1, %after]
  br label %loop
loop:
  %o = phi i64 [%first, %pass], [%next, %loop]
{lines(phis)}
{lines(body)}
  %next = add i64 %o, {8 * size}
  %more = icmp slt i64 %next, %last
  br i1 %more, label %loop, label %after
after:
{lines(stores)}
  %r1 = add i64 %r, 1
  %again = icmp slt i64 %r1, %repeat
  br i1 %again, label %pass, label %done
done:
{fence}  ret void
}}"""


_CHASE = f"""
define void @chase(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {{
entry:{_ARGS}  br label %loop
loop:
  %i = phi i64 [0, %entry], [%i1, %loop]
  %p = phi ptr [%a, %entry], [%q, %loop]
  %q = load ptr, ptr %p
  %i1 = add i64 %i, 1
  %more = icmp slt i64 %i1, %n
  br i1 %more, label %loop, label %done
done:
  store ptr %q, ptr %scratch
  ret void
}}"""
_EMPTY = """
define void @empty(ptr %args, i64 %lo, i64 %hi, ptr %scratch) #A {
  ret void
}"""
