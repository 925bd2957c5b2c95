"""Every exception type and the table of error codes.

In: nothing. Out: `TilewrightError` and its three kinds, `Rejected` (a value, not an exception),
`CODES`. Invariant: every error that reaches a user carries a code of `CODES`, one sentence, and a
next step.
"""

from __future__ import annotations

from dataclasses import dataclass

__all__ = ["CODES", "InternalError", "Rejected", "TargetError", "TilewrightError", "UserError"]

# Code -> one-line meaning. F front end, P program, G grouping, S schedule, L lowering, C code
# generation, R runtime, T tuning, V verification, U command line and settings. docs/errors.md is
# generated from this table.
CODES: dict[str, str] = {
    "F001": "the file is not a readable ONNX model",
    "F002": "an external data file is missing, too short, or outside the model's folder",
    "F003": "the model's opset is newer than the importer",
    "F004": "the graph has a cycle or reads a value that nothing defines",
    "F005": "an operator, or a form of it, has no importer row",
    "F006": "shape inference found contradicting or unresolvable sizes",
    "F010": "index notation could not be parsed",
    "F011": "an index is used but never bound",
    "F012": "the same name is defined twice",
    "P001": "a Program is malformed",
    "P002": "a dtype does not fit its operation",
    "P003": "a subscript has the wrong number of axes",
    "P004": "a name is read before it is defined",
    "P005": "what a block hands out does not fit its branch or loop",
    "S001": "a schedule does not belong to the kernel's Space",
    "S002": "text of an unknown format version",
    "L001": "a LoopNest is malformed",
    "C001": "LLVM refused the emitted code",
    "R001": "an input is missing or its name is unknown",
    "R002": "an input has the wrong dtype",
    "R003": "an input has the wrong rank or a fixed size differs",
    "R004": "a symbolic size is out of its range, or two inputs disagree on it",
    "R005": "the kind of array is not supported",
    "R006": "out= does not fit the result",
    "R007": "a size that a value defines is outside its bounds",
    "R010": "the cache folder cannot be written",
    "R011": "an artifact is damaged or of an unknown version",
    "R012": "this CPU lacks a feature that the code needs",
    "R013": "this operating system is not supported yet",
    "R014": "the system has not as much memory as a model needs",
    "R020": "a candidate crashed while it was measured",
    "R021": "a candidate did not finish in time while it was measured",
    "R022": "a candidate wrote outside its outputs while it was measured",
    "T001": "the tuning database is damaged or of an unknown version",
    "T002": "frozen mode found no record",
    "T003": "the budget ended before a kernel was timed",
    "V001": "an output differs from the oracle by more than the policy allows",
    "U001": "an unknown peer, suite or workload",
    "U002": "an optional dependency is not installed",
    "U003": "a setting has a wrong value",
    "X001": "an internal invariant does not hold",
}


class TilewrightError(Exception):
    """Base of all errors: `code`, one sentence, `where`, and a next step (`hint`).

    Errors: KeyError (a bug) when `code` is not in `CODES`.
    """

    def __init__(self, code: str, message: str, *, where: str = "", hint: str = "") -> None:
        CODES[code]
        self.code = code
        self.message = message
        self.where = where
        self.hint = hint
        text = f"[{code}] {message}"
        if where:
            text += f"\n  at {where}"
        if hint:
            text += f"\n  next: {hint}"
        super().__init__(text)

    def __reduce__(self) -> tuple[object, ...]:
        return (_rebuild, (type(self), self.code, self.message, self.where, self.hint))


def _rebuild(
    kind: type[TilewrightError], code: str, message: str, where: str, hint: str
) -> TilewrightError:
    return kind(code, message, where=where, hint=hint)


class UserError(TilewrightError):
    """The model, an option or an input is at fault."""


class TargetError(TilewrightError):
    """The machine lacks something; the hint says what to install or choose."""


class InternalError(TilewrightError):
    """A bug of ours."""


@dataclass(frozen=True)
class Rejected:
    """A schedule or candidate that was refused: a value that search counts, never an exception."""

    code: str
    detail: str
