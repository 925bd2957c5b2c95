"""Every way index notation can be wrong, with the exact message, and where the caret stands."""

from __future__ import annotations

import pytest

from tilewright.errors import InternalError, UserError
from tilewright.frontend.notation import from_einsum, parse_notation

# source, message, hint. The caret must stand where `@` stands in the source.
TABLE: list[tuple[str, str, str]] = [
    ("@", "[F010] there is no definition", "write one, as in y[i] = x[i] + 1.0"),
    ("y[i] = x[i@", "[F010] expected ',', found end of text", ""),
    ("y[i] = x[i] +@", "[F010] expected an expression, found end of text", ""),
    ("y[i] @== 3", "[F010] expected '=', found '=='", ""),
    ("y[@0] = x[1]", "[F010] expected a name, found '0'", ""),
    ("y[i] = x[i] @$ 2", "[F010] unexpected character '$'", ""),
    ("y[i] = x[i] @z[i]", "[F010] unexpected 'z' at the end of a statement", ""),
    ("@sum[i] = x[i]", "[F010] 'sum' cannot be the name of a tensor", ""),
    ("y[@if] = x[0]", "[F010] expected ']', found 'if'", ""),
    ("y[@max] = x[max]", "[F010] 'max' cannot be an index", ""),
    ("y[i] = @foo(x[i])", "[F010] unknown function 'foo'", "see docs/notation.md for the list"),
    ("y[i] = @exp(x[i], 2)", "[F010] exp takes 1 operands, 2 given", ""),
    ("k: i32[N]; y[i] = @relu(k[i])", "[F010] relu takes a float, found i32", ""),
    ("y: @f3[i] = x[i]", "[F010] unknown dtype 'f3'", "did you mean 'f32'?"),
    ("y[i] = sum(j<@i) x[j]", "[F010] a bound is a size, 'i' is an index",
     "write a range that depends on an index as a guard: sum(j if j < i)"),
    ("y[i<@2.5] = x[i]", "[F010] a size must be an integer, found f32", ""),
    ("k: i32[N]; y[i] = k[i] @* x[i]", "[F010] operands of different dtypes, i32 and f32",
     "write a cast, as in f32(...)"),
    ("y[i] = @(x[i] + 1.0 else 0.0)",
     "[F010] 'else' belongs to a plain read, as in (x[i - 1] else 0.0)", ""),
    ("y[i] = scan @argmax(i) x[i]", "[F010] scan of an unknown monoid 'argmax'", ""),
    ("recur t<3:\n  h[@i, t] = x[t]", "[F010] the first axis must be the step of the recurrence",
     ""),
    ("recur t<3:\n@y[i] = x[i]", "[F010] the recurrence is empty", ""),
    ("y[i] = x[i]; return y @z", "[F010] unexpected 'z' at the end of a statement", ""),
    ("y[i<3] = scatter @med(n) at (n) of x[n] base 0.0",
     "[F010] scatter by an unknown monoid 'med'", ""),
    ("@x: f32[...]\ny[i] = z[i]", "[F010] 'x' is declared without a shape and never read", ""),
    ("k: i32[N]; y = @mean(i) k[i]", "[F010] mean takes floats, found i32", ""),
    ("y = @mean(i if i > 2) x[i]", "[F010] mean takes no `if`", ""),
    ("y = @any(i) x[i]", "[F010] any takes bools, found f32", ""),
    # F011: an index that nothing binds, or that runs nobody knows how far
    ("C[i,j] = sum(k) A[i,@kk] * B[k,j]", "[F011] index 'kk' is used but never bound",
     "did you mean 'k'? bound here: i, j, k; put it on the left side or reduce over it"),
    ("y[i] = x[i,@j]", "[F011] index 'j' is used but never bound",
     "bound here: i; put it on the left side or reduce over it"),
    ("y = x[@q]", "[F011] index 'q' is used but never bound",
     "no index is bound here; put it on the left side or reduce over it"),
    ("y[i] = (sum(k) x[i,k]) * z[@k]", "[F011] index 'k' is used but never bound",
     "bound here: i; put it on the left side or reduce over it"),
    ("y[@h] = (x[2*h] else 0.0)", "[F011] nothing determines how far 'h' runs",
     "give it a bound, as in h<N"),
    ("y[i] = sum(@j if j <= i) x[i]", "[F011] nothing determines how far 'j' runs",
     "give it a bound, as in j<N"),
    # F012: the same name twice
    ("C[i,@i] = A[i,i]", "[F012] index 'i' is bound twice", ""),
    ("y[i] = sum(@i) x[i]", "[F012] index 'i' is bound twice", ""),
    ("y[i] = x[i]; @y[i] = x[i]", "[F012] 'y' is defined twice", ""),
    ("y[i] = x[i]; @x: f32[N]", "[F012] 'x' is declared after its first use", ""),
    ("x: f32[N]; y[@N] = x[N]", "[F012] 'N' is a size and cannot be an index", ""),
    # F006: sizes
    ("A: f32[N]; B: f32[M]; y[i] = A[i] + @B[i]",
     "[F006] axis 0 of 'B' is M and axis 0 of 'A' is N, but they must be equal",
     "give both the same size, or the index a bound"),
    ("y[i<@N] = 1.0", "[F006] the size 'N' appears in no input",
     "declare the tensor that has it, as in x: f32[N]"),
    ("y[i] = @x[i+1] - x[i]", "[F006] axis 0 of 'x' is read 1 past its end, I",
     "give the index a smaller bound, as in i<N-1, or the read an `else`"),
    # P002: dtypes that only the whole shows
    ("k: i64[T]\nrecur t<T:\n  @n[t] = k[t]", "[P002] 'n' is i64, read as f32",
     "declare it on the left: n: i64[...]"),
    # P003: subscripts
    ("C[i,j] = A[i] * @A[i,j]", "[P003] 'A' has 1 axis, 2 subscripts given", ""),
    ("x: f32[N, M]; y[i] = @x[i]", "[P003] 'x' has 2 axes, 1 subscript given", ""),
    ("y[i<3] = scatter @sum(n) at (n, n) of x[n] base 0.0",
     "[P003] scatter into 'y' needs 1 subscripts", ""),
    # P004: order
    ("y[i] = x[i]; @x[i] = y[i]", "[P004] 'x' is read before it is defined",
     "a definition that reads itself is a recurrence: recur t<T:"),
    ("y[i] = x[i]; return @yy", "[P004] unknown result 'yy'", "did you mean 'y'?"),
    ("v: f32[5] = extern topk(@x)", "[P004] unknown result 'x'", ""),
]  # fmt: skip


@pytest.mark.parametrize(("marked", "message", "hint"), TABLE, ids=[r[0] for r in TABLE])
def test_message(marked: str, message: str, hint: str) -> None:
    at = marked.index("@")
    source = marked.replace("@", "")
    with pytest.raises(UserError) as caught:
        parse_notation(source)
    start = source.rfind("\n", 0, at) + 1
    line = source[start:].split("\n")[0]
    number = source.count("\n", 0, at) + 1
    expected = f"{message}\n  at line {number}, column {at - start + 1}"
    expected += f"\n    {line}\n    {' ' * (at - start)}^"
    expected += f"\n  next: {hint}" if hint else ""
    assert str(caught.value) == expected
    assert not isinstance(caught.value, InternalError)


@pytest.mark.parametrize("spec", ["ij,jk->", "i1->i", "ij->ii", "ij->k", "i...->i"])
def test_einsum(spec: str) -> None:
    if spec == "ij,jk->":
        assert from_einsum(spec).results == ("y",)
        return
    with pytest.raises(UserError) as caught:
        from_einsum(spec)
    assert caught.value.code == "F010" and repr(spec) in caught.value.message
