"""One slice of a part of the suite `doors`, in a process of its own.

In: `[module, k, n, settings]` as JSON, the one argument. Out: a line `{"cases": [...]}`.
"""

from __future__ import annotations

import json
import sys
from importlib import import_module


def main() -> int:
    """Run the slice; exit status 0 whatever its cases say."""
    module, k, n, settings = json.loads(sys.argv[1])
    cases = import_module(f"tilewright.tools.doors.{module}").cases(k, n, settings)
    print("\n" + json.dumps({"cases": cases}), flush=True)
    return 0


if __name__ == "__main__":
    sys.exit(main())
