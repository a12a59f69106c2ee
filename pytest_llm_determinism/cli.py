# PYTHON_ARGCOMPLETE_OK
"""The command ``llm-determinism``."""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import sys
from collections.abc import Sequence
from typing import Any, NoReturn

from pytest_llm_determinism.commands import UNREAD, USAGE_ERROR, cache, plan, probe, report, selfcheck, serve
from pytest_llm_determinism.results import PACKAGE
from pytest_llm_determinism.settings import did_you_mean

COMMANDS = (serve, probe, report, cache, plan, selfcheck)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command; returns its exit code (0 done, 2 wrong usage)."""
    parser = _parser()
    if "_ARGCOMPLETE" in os.environ:
        from pytest_llm_determinism.commands.completion import complete

        complete(parser)
    options = parser.parse_args(arguments)
    try:
        code: int = options.run(options)
        sys.stdout.flush()
    except BrokenPipeError:
        # Who read the output had enough of it (head). Python writes what is left at its end, which would fail again.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return UNREAD
    return code


class _Parser(argparse.ArgumentParser):
    """Says what is wrong in one line, and what to write instead: the whole usage would push it off the screen."""

    def __init__(self, *arguments: Any, **keywords: Any) -> None:
        # An abbreviation that is one today may be none with the next option.
        super().__init__(*arguments, **{**keywords, "allow_abbrev": False})

    def error(self, message: str) -> NoReturn:
        message = message.removeprefix("argument ")
        if message.startswith("the following arguments are required"):
            message += f"; see {self.prog} --help"
        self.exit(USAGE_ERROR, f"{self.prog}: {message}\n")

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        """As the base class does, but arguments of which there may be many need not stand together, and what is not
        known is an error, in the name of the command that was given it."""
        found, left = super().parse_known_args(args, namespace)
        several = next(
            (action for action in self._actions if not action.option_strings and action.nargs in ("*", "+")), None
        )
        end = left.index("--") if "--" in left else len(left)
        for text in left[:end]:
            if text.startswith("-"):
                option = text.partition("=")[0]
                near = did_you_mean(option, self._option_string_actions)
                self.error(f"unknown option {option}{near}; see {self.prog} --help")
        more = left[:end] + left[end + 1 :]
        if more and several is None:
            self.error(f"{more[0]!r} is more than is wanted; see {self.prog} --help")
        if several is not None:
            setattr(found, several.dest, [*getattr(found, several.dest), *more])
        return found, []

    def _check_value(self, action: argparse.Action, value: Any) -> None:
        if action.choices is not None and value not in action.choices:
            words = list(map(str, action.choices))
            raise argparse.ArgumentError(
                action, f"{value!r} is not known; write one of {', '.join(words)}{did_you_mean(value, words)}"
            )


def _parser() -> argparse.ArgumentParser:
    parser = _Parser("llm-determinism", description="Gate on the determinism of language models.")
    version = importlib.metadata.version(PACKAGE)
    parser.add_argument("--version", action="version", version=f"{PACKAGE} {version}")
    commands = parser.add_subparsers(title="commands", required=True, metavar="COMMAND")
    for command in COMMANDS:
        command.add(commands)
    return parser


if __name__ == "__main__":
    sys.exit(main())
