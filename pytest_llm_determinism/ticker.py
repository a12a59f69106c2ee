"""Showing how far repetitions are while they go on.

What is shown is looked up a few times a second by one thread of the session, so a test pays for it only where it says
that it begins and that it is over. Where it is shown is an outlet: a row of a terminal, lines of a log, or a slip of
paper for the controller of an xdist session.
"""

from __future__ import annotations

import contextlib
import dataclasses
import json
import os
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any, Protocol, TextIO

from pytest_llm_determinism.report.progress import Progress, line

PAUSE = 30.0
"""Seconds between two lines of a log."""

STALE = 5.0
"""Seconds after which a slip that is not renewed is that of a worker that died."""

Look = Callable[[], Sequence[Progress]]
"""Tells what is under way now; nothing of what is not worth showing yet."""


class Outlet(Protocol):
    """Where progress is shown. No two threads use it at once.

    Attributes:
        every: seconds between two looks.
    """

    every: float

    def show(self, shown: Sequence[Progress]) -> None:
        """Show this, one or more, in place of what was shown before."""

    def clear(self) -> None:
        """Take away what is shown, if anything is."""

    def close(self) -> None:
        """Give back what is held; nothing is shown at this time."""


class Ticker:
    """Shows what is under way in this session.

    Args:
        outlet: None shows nothing.
    """

    def __init__(self, outlet: Outlet | None) -> None:
        self._outlet = outlet
        self._looks: list[Look] = []
        self._lock = threading.RLock()
        self._over = threading.Event()
        self._thread: threading.Thread | None = None
        self._paused = False
        self._pid = os.getpid()

    @contextlib.contextmanager
    def showing(self, look: Look) -> Iterator[None]:
        """Show this while open. When it is closed, nothing of it is on the screen any more."""
        if self._outlet is None or os.getpid() != self._pid:
            yield  # or a child made by fork, in which the thread does not exist
            return
        self.follow(look)
        try:
            yield
        finally:
            with self.cleared():
                self._looks.remove(look)

    def follow(self, look: Look) -> None:
        """Show this until the session ends. Of several the one that came last is looked at."""
        with self._lock:
            self._looks.append(look)
            if self._thread is None and self._outlet is not None:
                self._thread = threading.Thread(
                    target=self._run, args=(self._outlet,), daemon=True, name="determinism-progress"
                )
                self._thread.start()

    @contextlib.contextmanager
    def cleared(self) -> Iterator[None]:
        """Hold what is shown back while something else is written."""
        if self._outlet is None or os.getpid() != self._pid:
            yield
            return
        with self._lock:
            with contextlib.suppress(OSError):
                self._outlet.clear()
            yield

    def pause(self) -> None:
        """Show nothing: a person types."""
        with self.cleared():
            self._paused = True

    def go_on(self) -> None:
        self._paused = False

    def close(self) -> None:
        self._over.set()
        if self._thread is not None and os.getpid() == self._pid:
            self._thread.join()
        if self._outlet is not None:
            with self.cleared(), contextlib.suppress(OSError):
                self._outlet.close()
            self._outlet = None

    def _run(self, outlet: Outlet) -> None:
        # A test must not fail because its progress cannot be shown (a terminal that was closed, a folder that is gone).
        with contextlib.suppress(Exception):
            while not self._over.wait(outlet.every):
                look = self._looks[-1] if self._looks else list
                shown = look()
                with self._lock:
                    if shown and look in self._looks and not self._paused:
                        outlet.show(shown)
                    else:
                        outlet.clear()


_ERASE = "\x1b[J"
"""Erases all from the cursor on: the row, too, where a key that was pressed meanwhile has moved the cursor into it."""


class Row:
    """A row of a terminal: the one below that in which the cursor stands, and stays.

    Args:
        descriptor: of the terminal, closed with this.
        before: called before the row is written.
        own: whether nothing else stands in the cursor's row, so that this is the one.
    """

    every = 0.2

    def __init__(self, descriptor: int, before: Callable[[], object] = lambda: None, own: bool = False) -> None:
        self._descriptor = descriptor
        self._before = before
        # Index and reverse index see to it that there is a row below: nothing may scroll between save and restore.
        self._begin = "\x1b7\r" if own else "\x1bD\x1bM\x1b7\x1b[B\r"
        self._text = ""

    def show(self, shown: Sequence[Progress]) -> None:
        # The last column stays free: terminals differ in what they do when it is filled.
        text = line(shown, self._columns() - 1)
        if text != self._text:
            self._before()
            self._text = text
            _write(self._descriptor, f"{_ERASE}{self._begin}{text}\x1b8")

    def clear(self) -> None:
        if self._text:
            self._text = ""
            _write(self._descriptor, _ERASE)

    def close(self) -> None:
        os.close(self._descriptor)

    def _columns(self) -> int:
        return os.get_terminal_size(self._descriptor).columns or 80


class Lines:
    """Lines of a log, one every half minute.

    Args:
        descriptor: of the log, closed with this.
        before: called before a line is written.
        begun: gives what stands in the last line of the log; that is begun anew.
    """

    every = 1.0

    def __init__(
        self, descriptor: int, before: Callable[[], object] = lambda: None, begun: Callable[[], str] = lambda: ""
    ) -> None:
        self._descriptor = descriptor
        self._before = before
        self._begun = begun
        self._next = time.monotonic() + PAUSE

    def show(self, shown: Sequence[Progress]) -> None:
        now = time.monotonic()
        if now >= self._next:
            self._next = now + PAUSE
            self._before()
            begun = self._begun()
            _write(self._descriptor, f"{begun and chr(10)}{line(shown)}\n{begun}")

    def clear(self) -> None:
        pass

    def close(self) -> None:
        os.close(self._descriptor)


def _write(descriptor: int, text: str) -> None:
    """Write to a terminal or a log past every buffer, in one go."""
    os.write(descriptor, text.encode(errors="backslashreplace"))


class Slip:
    """A file that tells the controller of an xdist session what its worker is about."""

    every = 1.0

    def __init__(self, path: Path) -> None:
        self._path = path
        self._is_there = False

    def show(self, shown: Sequence[Progress]) -> None:
        draft = self._path.with_suffix(".new")
        draft.write_text(json.dumps([dataclasses.asdict(one) for one in shown]), "utf-8")
        draft.replace(self._path)
        self._is_there = True

    def clear(self) -> None:
        if self._is_there:
            self._is_there = False
            self._path.unlink(missing_ok=True)

    def close(self) -> None:
        pass


def read_slips(folder: Path) -> list[Progress]:
    """What the workers that have a slip in a folder are about, by name."""
    shown: list[Progress] = []
    for path in folder.glob("*.json"):
        with contextlib.suppress(OSError):  # it may be gone by now
            if time.time() - path.stat().st_mtime < STALE:
                shown.extend(Progress(**one) for one in json.loads(path.read_text("utf-8")))
    return sorted(shown, key=lambda one: one.name)


class Guarded:
    """A file that a ticker's row gives way to.

    Args:
        file: what is written to it stands where the row would be.
    """

    def __init__(self, file: TextIO, ticker: Ticker) -> None:
        self._file = file
        self._ticker = ticker

    def write(self, text: str) -> int:
        with self._ticker.cleared():
            return self._file.write(text)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._file, name)
