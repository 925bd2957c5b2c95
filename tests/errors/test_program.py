"""Program text that is wrong: exact messages, carets, and that each is the user's error."""

from __future__ import annotations

import pytest

from tilewright.errors import InternalError, UserError
from tilewright.ir.program_parser import parse_program

HEAD = "program p(x: f32[N], k: i64[N]):\n"

# statement lines, message; the caret must stand where `@` stands.
WITH_CARET = [
    ("  y: f32[i<N] = x[i] +@\n  return y\n", "[F010] expected an expression, found '\\n'"),
    ("  y: f32[i<N] = @foo(x[i])\n  return y\n", "[F010] unknown function 'foo'"),
    ("  y: @f31[i<N] = x[i]\n  return y\n", "[F010] unknown dtype 'f31'"),
    ("  y: f32[i<N] = x[i]\n@", "[F010] the program has no return line"),
    ("  y: f32[i<N] = x[@j]\n  return y\n", "[F011] unknown name 'j'"),
    ("  y: f32[i<@M] = x[i]\n  return y\n", "[F011] unknown name 'M'"),
    ("  y: f32[i<N] = x[i]\n  @y: f32[i<N] = x[i]\n  return y\n", "[F012] 'y' is defined twice"),
    ("  y: f32[i<N] = @x[i, i]\n  return y\n", "[P003] 'x' has 1 axes, 2 subscripts given"),
    ("  y: f32[i<N] = x[i]\n  return @z\n", "[P004] unknown result 'z'"),
    ("  y: f32[i<N] = x[i] @+ k[i]\n  return y\n",
     "[F010] operands of different dtypes, f32 and i64"),
]  # fmt: skip

# statement lines, message, what the place must name
BY_STATEMENT = [
    ("  y: f32[i<N] = k[i]\n  return y\n", "[P002] 'y' is f32, its body i64", "y: f32[i<N]"),
    ("  y: f32[i<N, i<N] = x[i]\n  return y\n", "[P001] 'y' binds an index twice", "y: f32[i<N"),
    ("  y: f32[] = argmax(i<N) x[i]\n  return y\n", "[P002] argmax gives i64, not f32", "y: f32[]"),
    ("  y: f32[] = sum(i<N if k[i]) x[i]\n  return y\n", "[P002] a guard must be bool", "y: f32[]"),
    ("  y: f32[i<N] = scan mid(i) x[i]\n  return y\n",
     "[P001] scan mid(i) names no monoid or no axis", "y: f32[i<N]"),
    ("  y: f32[i<N] = scan sum(j) x[i]\n  return y\n",
     "[P001] scan sum(j) names no monoid or no axis", "y: f32[i<N]"),
    ("  recur t<N:\n    y: f32[s<N] = x[s]\n  return y\n",
     "[P001] the first axis of 'y' must be t", "y: f32[s<N]"),
    ("  y: f32[i<N] = scatter sum(j<N) at (j, j) of x[j] base 0.0\n  return y\n",
     "[P003] scatter into 'y' needs 1 subscripts", "y: f32[i<N]"),
    ("  y: f32[i<N] = scatter sum(j<N) at (j) of k[j] base 0.0\n  return y\n",
     "[P002] scatter into 'y' mixes dtypes", "y: f32[i<N]"),
]  # fmt: skip


@pytest.mark.parametrize(("marked", "message"), WITH_CARET, ids=[c[1] for c in WITH_CARET])
def test_caret(marked: str, message: str) -> None:
    marked = HEAD + marked
    at = marked.index("@")
    source = marked.replace("@", "")
    with pytest.raises(UserError) as caught:
        parse_program(source)
    number, column = source.count("\n", 0, at) + 1, at - source.rfind("\n", 0, at)
    text = str(caught.value)
    assert text.startswith(f"{message}\n  at line {number}, column {column}\n")
    assert text.split("\n")[3] == " " * (column + 3) + "^"


@pytest.mark.parametrize(
    ("lines", "message", "place"), BY_STATEMENT, ids=[c[1] for c in BY_STATEMENT]
)
def test_statement(lines: str, message: str, place: str) -> None:
    with pytest.raises(UserError) as caught:
        parse_program(HEAD + lines)
    assert str(caught.value).startswith(message + "\n  at ")
    assert caught.value.where.startswith(place)
    assert not isinstance(caught.value, InternalError)


def test_format_version() -> None:
    with pytest.raises(UserError) as caught:
        parse_program("program p format 999(x: f32[N]):\n  return x\n")
    assert str(caught.value).startswith("[S002] this is Program text of another format than 1\n")
