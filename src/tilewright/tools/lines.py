"""Code lines per folder, as CI prints them.

In: the package folder. Out: a table of files, code lines, and documentation per code line.
Invariant: a code line is one that holds a token other than a comment or a docstring.
"""

from __future__ import annotations

import ast
import io
import sys
import tokenize
from pathlib import Path

__all__ = ["count_file", "main"]

_LAYOUT = {
    tokenize.NL,
    tokenize.NEWLINE,
    tokenize.INDENT,
    tokenize.DEDENT,
    tokenize.ENDMARKER,
    tokenize.ENCODING,
}


def count_file(text: str) -> tuple[int, int]:
    """Return (code lines, comment and docstring lines) of one Python source text."""
    docstring: set[int] = set()
    for node in ast.walk(ast.parse(text)):
        if isinstance(node, ast.Module | ast.ClassDef | ast.FunctionDef | ast.AsyncFunctionDef):
            first = node.body[0] if node.body else None
            if (
                isinstance(first, ast.Expr)
                and isinstance(first.value, ast.Constant)
                and isinstance(first.value.value, str)
            ):
                docstring.update(range(first.lineno, (first.end_lineno or first.lineno) + 1))
    code: set[int] = set()
    comments: set[int] = set()
    for token in tokenize.generate_tokens(io.StringIO(text).readline):
        lines = range(token.start[0], token.end[0] + 1)
        if token.type == tokenize.COMMENT:
            comments.update(lines)
        elif token.type not in _LAYOUT:
            code.update(lines)
    code -= docstring
    return len(code), len((comments | docstring) - code)


def main() -> int:
    """Print the table; files over 600 code lines are named."""
    root = Path(__file__).resolve().parents[1]
    folders: dict[str, list[int]] = {}
    long_files: list[str] = []
    for path in sorted(root.rglob("*.py")):
        relative = path.relative_to(root)
        folder = relative.parts[0] if len(relative.parts) > 1 else "."
        code, documentation = count_file(path.read_text(encoding="utf-8"))
        row = folders.setdefault(folder, [0, 0, 0])
        row[0] += 1
        row[1] += code
        row[2] += documentation
        if code > 600:
            long_files.append(f"{relative}: {code} code lines")
    total = [sum(column) for column in zip(*folders.values(), strict=True)]
    print(f"{'folder':<12}{'files':>7}{'code':>8}{'doc/code':>10}")
    for name, (files, code, documentation) in [*folders.items(), ("total", total)]:
        share = documentation / code if code else 0.0
        print(f"{name:<12}{files:>7}{code:>8}{share:>10.2f}")
    for line in long_files:
        print("long file:", line)
    return 0


if __name__ == "__main__":
    sys.exit(main())
