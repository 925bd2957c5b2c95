"""Learn and prove self-reductions of the 80 functions; write the table that the package carries.

    python scripts/learn_reductions.py [--check] [--json docs/figures/trust/self-reductions.json]

Writes src/tilewright/verify/reductions/table.json, and with --json the figures. --check writes nothing
and exits 1 where what is learned differs from the table.
"""

from __future__ import annotations

import argparse
import json
import sys
import time
from pathlib import Path
from typing import Any

from tilewright.verify.reductions.functions import FUNCTIONS, OTHERS
from tilewright.verify.reductions.learn import learn
from tilewright.verify.reductions.table import TABLE, to_json


def main() -> int:
    """Parse the command line."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--check", action="store_true")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    started = time.perf_counter()
    entries: list[dict[str, Any]] = []
    figures: list[dict[str, Any]] = []
    for f in FUNCTIONS:
        at = time.perf_counter()
        r = learn(f)
        spent = round(time.perf_counter() - at, 2)
        figures.append({"function": f.name, "note": f.note, "found": r is not None,
                        "solved_for": None if r is None else r.solved_for, "seconds": spent})  # fmt: skip
        if r is not None:
            entries.append(to_json(r))
            figures[-1] |= {k: v for k, v in entries[-1].items() if k in
                            ("family", "basis", "text", "proof_bits", "residual")}  # fmt: skip
        print(f"{f.name}: {entries[-1]['text'] if r is not None else 'nothing'} ({spent} s)", flush=True)
    seconds = time.perf_counter() - started
    found = len(entries)
    for f in OTHERS:
        if (r := learn(f)) is not None:
            entries.append(to_json(r))
    for f in FUNCTIONS:
        p = learn(f, random_only=False) if not any(e["function"] == f.name for e in entries) else None
        if p is not None:
            entries.append(to_json(p))
    print(f"{found} of {len(FUNCTIONS)} found and proved in {seconds:.0f} s")
    text = "[\n" + ",\n".join(json.dumps(e) for e in entries) + "\n]\n"
    if options.check:
        return int(TABLE.read_text() != text)
    TABLE.write_text(text)
    if options.json:
        result = {
            "command": "python scripts/learn_reductions.py --json docs/figures/trust/self-reductions.json",
            "functions": len(FUNCTIONS), "found": found, "seconds": round(seconds, 1),
            "properties": [e["text"] for e in entries if not e["is_random"]], "all": figures,
        }  # fmt: skip
        options.json.write_text(json.dumps(result, indent=1) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main())
