"""The command ``llm-determinism``."""

from __future__ import annotations

import argparse
import importlib.metadata
import sys
from collections.abc import Sequence

from pytest_llm_determinism.commands import plan, probe, selfcheck, serve
from pytest_llm_determinism.results import PACKAGE

COMMANDS = (serve, probe, plan, selfcheck)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 wrong usage)."""
    options = _parser().parse_args(arguments)
    code: int = options.run(options)
    return code


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser("llm-determinism", description="Gate on the determinism of language models.")
    version = importlib.metadata.version(PACKAGE)
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {version}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
