"""Log handlers, added only when a command or the setting `logs` asks for them.

In: the settings `logs` and `debug`. Out: a handler on standard error for the loggers
`tilewright.*`. Invariant: importing the package adds no handler, and starting twice adds one.
"""

from __future__ import annotations

import logging

from tilewright.config import Config, current

__all__ = ["start"]

_MARK = "tilewright-standard-error"


def start(config: Config | None = None, *, level: int = logging.WARNING) -> None:
    """Show what `logs` names: `tune` from INFO on, `+tune` everything, `-tune` errors only."""
    config = config or current()
    root = logging.getLogger("tilewright")
    if not any(handler.name == _MARK for handler in root.handlers):
        handler = logging.StreamHandler()
        handler.name = _MARK
        handler.setFormatter(logging.Formatter("%(name)s: %(message)s"))
        root.addHandler(handler)
        root.propagate = False
    root.setLevel(logging.INFO if config.debug else level)
    for word in filter(None, config.logs.split(",")):
        name = word.lstrip("+-").removeprefix("tilewright.")
        chosen = {"+": logging.DEBUG, "-": logging.ERROR}.get(word[0], logging.INFO)
        logger = root if name in ("all", "tilewright") else root.getChild(name)
        logger.setLevel(chosen)
