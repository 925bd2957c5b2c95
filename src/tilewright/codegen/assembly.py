"""Facts about emitted assembly that the cost model and the tests look at.

In: x86-64 or aarch64 assembly text (AT&T syntax on x86). Out: counts. Invariant: text only, nothing
is run.
"""

from __future__ import annotations

import re

__all__ = ["innermost_loops", "stack_references"]

_LABEL = re.compile(r"^(\.?[A-Za-z_][\w.$]*):")
_JUMP = re.compile(r"^\s+(?:j[a-z]+|b(?:\.[a-z]+)?|cbn?z\s+\w+,|tbn?z\s+\w+,\s*#?\d+,)\s+(\.L\w+)")
_X86 = re.compile(
    r"%[xyz]mm\d+.*\(%rsp|\(%rsp[^)]*\).*%[xyz]mm\d+"
)  # kernels keep no frame pointer
_ARM = re.compile(r"^\s+(?:ld|st)[rpu]+\s+[qd]\d+.*\[(?:sp|x29)")


def innermost_loops(assembly: str) -> list[list[str]]:
    """Instructions of each innermost loop: from the target of a backward jump to the jump, with no
    other inside.
    """
    lines = assembly.splitlines()
    at: dict[str, int] = {}
    spans: list[tuple[int, int]] = []
    for i, line in enumerate(lines):
        label = _LABEL.match(line)
        if label:
            at[label.group(1)] = i
            continue
        jump = _JUMP.match(line)
        if jump and jump.group(1) in at:
            spans.append((at[jump.group(1)], i))
    inner = [s for s in spans if not any(o != s and s[0] <= o[0] and o[1] <= s[1] for o in spans)]
    return [[x for x in lines[a : b + 1] if x.startswith(("\t", " "))] for a, b in inner]


def stack_references(assembly: str) -> int:
    """Vector loads and stores of the stack in innermost loops: spilled tile registers."""
    pattern = _ARM if "q0" in assembly and "%rsp" not in assembly and "%r" not in assembly else _X86
    return sum(1 for loop in innermost_loops(assembly) for line in loop if pattern.search(line))
