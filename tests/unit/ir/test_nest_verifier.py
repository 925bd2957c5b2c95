"""Each rule of the nest verifier, with a nest that breaks it."""

from __future__ import annotations

import pytest

from tilewright.errors import UserError
from tilewright.ir.nest import parse_nest
from tilewright.ir.nest_verifier import verify_nest

_HEAD = """nest bad format 1:
  dim N
  arg X: f32[N]
  arg I: i64[N]
  arg B: bool[N]
  phase:
"""


def problem(body: str) -> str:
    lines = "".join(f"    {line}\n" for line in body.strip("\n").split("\n"))
    with pytest.raises(UserError) as caught:
        verify_nest(parse_nest(_HEAD + lines))
    assert caught.value.code == "L001"
    assert "phase 0" in caught.value.where
    return caught.value.message


@pytest.mark.parametrize(
    ("body", "message"),
    [
        ("store X[0] = a", "tile 'a' is not defined here"),
        ("a: f32[] = fill 0.0\na: f32[] = fill 1.0", "tile 'a' is defined twice in this phase"),
        ("a: f32[] = load I[0]", "buffer I holds i64, the tile f32"),
        ("a: f32[n:4] = load X[0] by (m=1)", "stride for axis 'm', which f32[n:4] has not"),
        (
            "a: f32[n:4] = fill 0.0\nstore X[0] = a",
            "all positions of axis n are stored to one place",
        ),
        (
            "a: f32[n:4*] = fill 0.0\nb: f32[n:4] = neg a",
            "the lane axis of a is n, that of the result None",
        ),
        (
            "a: f32[n:4] = fill 0.0\nb: f32[n:4*] = neg a",
            "a has the result's lane axis n in rows: relayout it first",
        ),
        ("a: f32[n:4] = fill 0.0\nb: f32[] = neg a", "a has axis n:4, the result f32[] has not"),
        ("a: f32[] = fill 0.0\nb: f32[] = not a", "not has no meaning for f32"),
        ("a: i64[] = fill 0\nb: i64[] = exp a", "exp has no meaning for i64"),
        ("a: f32[] = fill 0.0\nb: bool[] = add a, a", "add of f32 gives f32, not bool"),
        ("a: f32[] = fill 0.0\nb: f32[] = add a", "add takes 2 operands, 1 given"),
        ("a: f32[] = fill 0.0\nb: f32[] = frob a", "unknown operation 'frob'"),
        ("a: f32[n:4*] = fill 0.0\nb: f32[] = reduce and n a", "and has no meaning for f32"),
        ("a: f32[n:4*] = fill 0.0\nb: f32[] = reduce add m a", "f32[n:4*] has no axis 'm'"),
        (
            "a: f32[n:4*] = fill 0.0\nb: f32[n:4*] = reduce add n a",
            "reduce: f32[] and f32[n:4*] differ",
        ),
        ("a: i64[n:4, m:2] = iota", "iota gives i64 along one axis"),
        ("a: f32[n:4, n:2] = fill 0.0", "f32[n:4, n:2] names an axis twice"),
        (
            "for i in 0 .. N step 1:\n  parallel for j in 0 .. N step 1:\n    pass",
            "a parallel loop stands at the top of its phase",
        ),
        (
            "parallel for i in 0 .. N step 1:\n  pass\na: f32[] = fill 0.0",
            "a parallel loop must be the last statement of its phase",
        ),
        (
            "for i in 0 .. N step 1:\n  for i in 0 .. N step 1:\n    pass",
            "'i' hides an outer loop variable or dim",
        ),
        (
            "a: f32[] = fill 0.0\nfor i in 0 .. N step 1 carry (c = a) -> (r):\n"
            "  d: f32[n:2] = fill 0.0\n  yield d",
            "carry c: f32[n:2] and f32[] differ",
        ),
        (
            "for i in 0 .. N step 1:\n  a: f32[] = fill 0.0\nstore X[0] = a",
            "tile 'a' is not defined here",
        ),
        (
            "a: i64[] = position 1\nb: f32[] = gather X[0] at a if a",
            "a must be bool, found i64",
        ),
        (
            "a: f32[m:2] = fill 0.0\nb: f32[k:3] = fill 0.0\nc: f32[k:4] = fill 0.0\n"
            "z: f32[m:2] = contract a, b, c",
            "contracted axis k has two extents",
        ),
    ],
)
def test_rule(body: str, message: str) -> None:
    assert problem(body) == message


def test_statement_is_shown() -> None:
    with pytest.raises(UserError) as caught:
        verify_nest(parse_nest(_HEAD + "    store X[N - 1] = a\n"))
    assert caught.value.where == "nest bad, phase 0\n    store X[N - 1] = a"
