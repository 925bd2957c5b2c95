"""`python -m tilewright` and the console script `tilewright`."""

from __future__ import annotations

__all__ = ["main"]


def main() -> None:
    """Run the command line; ends the process with the exit status."""
    from tilewright.tools.cli import cli

    cli(prog_name="tilewright")


if __name__ == "__main__":
    main()
