"""Where a session of pytest, or a probe, shows how far its repetitions are."""

from __future__ import annotations

import contextlib
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO

from pytest_llm_determinism.ticker import Guarded, Lines, Row, Slip, Ticker, read_slips

if TYPE_CHECKING:
    import pytest

QUIET = -2
"""The verbosity of ``-q -q``, at which nothing is shown."""


def ticker(config: pytest.Config, shared: Path | None) -> Ticker:
    """What shows it on pytest's terminal or, in an xdist worker, to the controller.

    It may be made while a test is running: pytest's capture is held off for a moment to get at the terminal.

    Args:
        shared: the folder of the workers' slips; None in a session without xdist, and in the controller of one.
    """
    # Without pytest's own reporter there is neither a terminal to show it on nor the option.
    if config.getoption("verbose", 0) <= QUIET:
        return Ticker(None)
    if shared is not None:
        return Ticker(Slip(shared / f"{os.getpid()}.json"))
    reporter: Any = config.pluginmanager.get_plugin("terminalreporter")
    if reporter is None:
        return Ticker(None)
    # No part of pytest's API says which file that is; where another pytest has no such name, nothing is shown.
    writer: Any = config.get_terminal_writer()
    file = getattr(writer, "_file", None)
    if file is None:
        return Ticker(None)
    with _uncaptured(config):
        descriptor = _another(file)
    if descriptor is None:
        return Ticker(None)
    # What the test itself prints would come to stand in the row.
    prints = config.getoption("capture", "no") in ("no", "tee-sys")
    if prints or not (reporter.isatty and reporter.hasmarkup and _is_watched()):
        return Ticker(Lines(descriptor, writer.flush, lambda: getattr(writer, "_current_line", "")))
    made = Ticker(Row(descriptor, writer.flush))
    writer._file = Guarded(file, made)
    return made


def _uncaptured(config: pytest.Config) -> contextlib.AbstractContextManager[None]:
    manager: Any = config.pluginmanager.get_plugin("capturemanager")
    held_off: contextlib.AbstractContextManager[None] = (
        contextlib.nullcontext() if manager is None else manager.global_and_fixture_disabled()
    )
    return held_off


def ticker_on(file: TextIO) -> Ticker:
    """What shows it on a file to which else only whole lines are written, while no repetition is under way."""
    descriptor = _another(file)
    if descriptor is None:
        return Ticker(None)
    return Ticker(Row(descriptor, own=True) if has_rows(file) else Lines(descriptor))


def _another(file: TextIO) -> int | None:
    """A descriptor of its own for a file; None if it has none, such as that of a pytest within pytest."""
    try:
        return os.dup(file.fileno())
    except OSError:
        return None


def has_rows(file: TextIO) -> bool:
    """Whether a file is a terminal in which a row can be written again and again."""
    return file.isatty() and _is_watched()


def _is_watched() -> bool:
    """Whether a terminal, if there is one, has a cursor that can be moved, and a person before it."""
    wanted = not any(map(os.environ.get, ("NO_COLOR", "CI", "BUILD_NUMBER")))
    return wanted and sys.platform != "win32" and os.environ.get("TERM") != "dumb"


def announce(shared: Path) -> None:
    """Tell the controller that there will be something to show from this worker."""
    shared.mkdir(mode=0o700, parents=True, exist_ok=True)


def follow(config: pytest.Config, shared: Path) -> Ticker:
    """Show in the controller what the workers of this machine are about."""
    made = ticker(config, None)
    made.follow(lambda: read_slips(shared))
    return made
