"""The reductions that were learned, as data: `table.json`, and how to read it.

In: `table.json` of `scripts/learn_reductions.py`. Out: `Reduction`s by function. Invariant:
nothing is learned here; a test proves every entry anew.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Mapping
from fractions import Fraction
from functools import cache
from pathlib import Path
from typing import Any

from tilewright.verify.reductions.functions import FAMILIES, FUNCTIONS, OTHERS, Family, Function
from tilewright.verify.reductions.learn import Reduction

__all__ = ["TABLE", "family_of", "function_of", "read_table", "to_json"]

TABLE = Path(__file__).with_name("table.json")


def to_json(r: Reduction) -> dict[str, Any]:
    """Plain data; the time that learning took is not part of it."""
    return {
        "function": r.function, "family": r.family, "basis": r.basis,
        "variables": list(r.variables), "queries": r.queries,
        "terms": [[str(c), list(p)] for c, p in r.terms], "is_random": r.is_random,
        "proof_bits": int(r.proof_bits), "residual": float(f"{r.residual:.1e}"), "text": str(r),
    }  # fmt: skip


def _from_json(d: Mapping[str, Any]) -> Reduction:
    terms = tuple((Fraction(c), tuple(p)) for c, p in d["terms"])
    return Reduction(
        d["function"], d["family"], d["basis"], tuple(d["variables"]), d["queries"], terms,
        d["is_random"], d["proof_bits"], d["residual"],
    )  # fmt: skip


@cache
def read_table(path: Path = TABLE) -> dict[str, Reduction]:
    """Every reduction by function; properties that are no reductions under `NAME, property`."""
    entries: Iterable[Mapping[str, Any]] = json.loads(path.read_text())
    return {
        d["function"] + ("" if d["is_random"] else ", property"): _from_json(d) for d in entries
    }


def function_of(r: Reduction) -> Function:
    """The function that a reduction is about."""
    return next(f for f in (*FUNCTIONS, *OTHERS) if f.name == r.function)


def family_of(r: Reduction) -> Family:
    """The family of its queries."""
    domain = function_of(r).domain
    return next(f for f in FAMILIES if f.name == r.family and f.domain == domain)
