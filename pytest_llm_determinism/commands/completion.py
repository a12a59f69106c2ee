"""Completion in the shell, by argcomplete where that is installed: what can stand for an argument."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any

from pytest_llm_determinism.reference import MODELS
from pytest_llm_determinism.settings import CACHE_MODES, COMPARISONS, LOADS, REFERENCE, REPORT_FORMATS

Completer = Callable[..., Iterable[str]]
"""Called with ``prefix`` and ``parsed_args`` among others."""

_READ = ("baseline", "messages", "from_report", "file", "files", "before", "after")
"""Arguments that name JSON files to read."""

_WRITTEN = ("report", "output")


def complete(parser: argparse.ArgumentParser) -> None:
    """Answer the shell, and exit; without argcomplete there is no completion."""
    try:
        import argcomplete
    except ImportError:
        sys.exit(1)
    for action in _actions(parser):
        action.completer = _completer(action)  # type: ignore[attr-defined]
    argcomplete.autocomplete(parser)


def _actions(parser: argparse.ArgumentParser) -> Iterator[argparse.Action]:
    """Those that take a value and do not list what it may be."""
    for action in parser._actions:
        if isinstance(action, argparse._SubParsersAction):
            for below in action.choices.values():
                yield from _actions(below)
        elif action.choices is None and action.nargs != 0:
            yield action


def _completer(action: argparse.Action) -> Completer:
    from argcomplete.completers import DirectoriesCompleter, FilesCompleter

    if action.dest in _READ:
        return FilesCompleter(("json",))
    if action.dest in _WRITTEN:
        return FilesCompleter([ending.removeprefix(".") for ending in REPORT_FORMATS])
    if action.dest == "tests":
        return FilesCompleter(("py",))
    if action.metavar == "FILE":
        return FilesCompleter()
    if action.metavar == "DIR":
        return DirectoriesCompleter()
    if action.metavar in _WORDS:
        return _WORDS[action.metavar]
    if action.dest in ("model", "completions_model"):
        return _models
    return lambda **_: ()


def _any_of(words: Sequence[str]) -> Completer:
    return lambda **_: words


def _some_of(words: Sequence[str]) -> Completer:
    """Several with commas, each once."""

    def completer(prefix: str, **_: Any) -> list[str]:
        *given, _last = prefix.split(",")
        return [",".join((*given, word)) for word in words if word not in given]

    return completer


def _models(prefix: str, parsed_args: argparse.Namespace, **_: Any) -> Iterable[str]:
    """Those of the bundled server, unless another is asked."""
    if getattr(parsed_args, "endpoint", None) not in (None, REFERENCE):
        return ()
    return _some_of(MODELS)(prefix)


_WORDS: dict[str | tuple[str, ...] | None, Completer] = {
    "LOAD": _some_of(LOADS),
    "HOW": _any_of(COMPARISONS),
    "MODE": _any_of(CACHE_MODES),
    "URL": _any_of((REFERENCE,)),
}
