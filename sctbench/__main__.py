"""The command `sctbench`, also as `python -m sctbench`."""

from __future__ import annotations

import sys

import sctbench


def main() -> None:
    """Entry point. The version is told without loading what runs need."""
    if sys.argv[1:] == ["--version"]:
        print(f"sctbench {sctbench.__version__}")
        return
    from harness.commands.main import main as command_line

    command_line()


if __name__ == "__main__":
    main()
