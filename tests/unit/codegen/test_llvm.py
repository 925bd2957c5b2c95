"""Properties of the emitted text: no allocas, no fast-math flags, sizes and chunk counts."""

from __future__ import annotations

from tilewright.codegen.assembly import innermost_loops, stack_references
from tilewright.codegen.llvm import chunk_count, emit_llvm, function_name, scratch_bytes
from tilewright.ir.nest import parse_nest
from tilewright.machine.target import Target

NEST = parse_nest("""nest k format 1:
  dim N
  arg X: f32[N]
  scratch S: f32[N]
  scratch T: u8[3]
  phase:
    parallel for i in 0 .. N step 16 grain 3:
      x: f32[n:16*] = load X[i] by (n=1) within (n: 0 .. N - i)
      y: f32[n:16*] = max x, x
      store X[i] by (n=1) within (n: 0 .. N - i) = y
  phase:
    a: f32[] = load X[0] within ()
    b: f32[] = add a, a
    store X[0] = b
""")


def test_sizes() -> None:
    assert chunk_count(NEST, 0, {"N": 100}) == 3
    assert chunk_count(NEST, 0, {"N": 0}) == 0
    assert chunk_count(NEST, 1, {"N": 0}) == 1
    assert scratch_bytes(NEST, {"N": 17}) == 128 + 64
    assert function_name(NEST, 1) == "k_p1"


def test_text_is_plain_and_stable() -> None:
    for name in ("x86-avx512", "x86-avx2", "x86-sse42", "aarch64"):
        text = emit_llvm(NEST, Target.named(name))
        assert text == emit_llvm(NEST, Target.named(name))
        assert "alloca" not in text
        assert not any(
            f" {flag} " in text for flag in ("fast", "nnan", "ninf", "reassoc", "contract")
        )
        nan_by = ("@llvm.minimum", "fcmp uno", "fixupimm")
        assert any(x in text for x in nan_by) == (name != "aarch64")


def test_assembly_facts() -> None:
    text = "a:\n.L1:\n\tvmovups 8(%rsp), %zmm1\n\taddq $1, %rax\n\tjl .L1\n.L2:\n\tnop\n\tjne .L2\n"
    assert [len(x) for x in innermost_loops(text)] == [3, 2]
    assert stack_references(text) == 1
