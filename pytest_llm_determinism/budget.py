"""How many live calls a session may make, and how fast.

A call is counted, and its turn taken, in one step just before it goes out. So a wait that is cancelled, or a process
that dies waiting, has nothing to give back, and no call goes out that was not counted.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
from collections.abc import Iterable
from pathlib import Path

from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.settings import Settings

_FILE = "calls.db"

_BUSY = 0.001
"""Seconds after which a count that another process is using at the moment is tried again."""


class Budget:
    """The live calls of one session, over all its threads, event loops and processes.

    Args:
        settings: of the session; ``max_calls``, ``rate`` or both are given.
        folder: where `share` made the count that the workers of a session have in common; None where this process is
            the only one.

    Attributes:
        interval: seconds from the start of one call to that of the next, 0.0 without a rate.
    """

    def __init__(self, settings: Settings, folder: Path | None = None) -> None:
        self._settings = settings
        self._most: int = sys.maxsize if settings.max_calls is None else settings.max_calls
        self.interval: float = 0.0 if settings.rate is None else 1 / settings.rate
        # With a shared count, what this process knows of it. Both only grow.
        self._made = 0
        self._next = 0.0
        self._path = None if folder is None else folder / _FILE
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def left(self) -> int:
        """Calls that may still be made; under pytest-xdist fewer if other workers made some meanwhile."""
        return self._most - self._made

    @property
    def pace(self) -> str:
        """The setting that spaces calls, with where it comes from."""
        return self._settings.quote("rate")

    def take(self, now: float, free_for: float = 0.0) -> float:
        """Count one call, which may then go out at once, or say in how many seconds to try again.

        Args:
            now: seconds as `time.monotonic` tells them, which is one clock for all processes of a machine.
            free_for: seconds for which nobody must have taken the turn: whoever waits for it comes first.

        Returns:
            0.0 when the call is counted.

        Raises:
            Refusal: no call may be made any more.
        """
        if os.getpid() != self._pid:
            raise Refusal(
                f"{self._given()} cannot be kept in a process made by fork, whose calls nobody else can count"
            )
        with self._lock:
            if not self.left:
                raise Refusal(self._spent())
            if now < self._next + free_for:
                return self._next + free_for - now
            # Without a rate there are no turns: a thread that looked at the clock earlier is not late.
            after = now + self.interval if self.interval else 0.0
            if self._path is None:
                self._made, self._next = self._made + 1, after
                return 0.0
            return self._take_shared(self._path, now, after, free_for)

    def note(self, reasons: Iterable[str]) -> str | None:
        """What the summary says when tests ended for these reasons; None if the budget stopped none of them."""
        stopped = sum(reason == self._spent() for reason in reasons)
        if not stopped:
            return None
        tests = f"{stopped} test{'' if stopped == 1 else 's'}"
        return f"{self._settings.quote('max_calls')} reached: {tests} ended inconclusive"

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _take_shared(self, path: Path, now: float, after: float, free_for: float) -> float:
        try:
            if self._connection is None:
                self._connection = _connect(path)
            taken = self._connection.execute(
                "UPDATE calls SET made = made + 1, next = ? WHERE made < ? AND next <= ?",
                (after, self._most, now - free_for),
            )
            if taken.rowcount:
                self._made += 1
                return 0.0
            self._made, self._next = self._connection.execute("SELECT made, next FROM calls").fetchone()
        except sqlite3.Error as error:
            # Tried again by the caller, who waits without holding up an event loop.
            if getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY:
                return _BUSY
            raise Refusal(
                f"{self._given()} cannot be kept: the count of live calls in {path}, which the workers of one machine"
                f" share, cannot be used: {error}"
            ) from error
        if not self.left:
            raise Refusal(self._spent())
        return self._next + free_for - now

    def _given(self) -> str:
        given = [name for name in ("max_calls", "rate") if self._settings.origin(name).value is not None]
        return " with ".join(map(self._settings.quote, given))

    def _spent(self) -> str:
        settings = self._settings
        made = f"{self._most} live call{'' if self._most == 1 else 's'} made in this session"
        advice = "raise it, or run again: samples that arrived are kept, and the next session goes on from there"
        if settings.cache == "refresh":
            advice = advice.replace("run again", "run again with --determinism-cache=auto")
        elif settings.cache == "off":
            advice = f"raise it: with {settings.quote('cache')} nothing is kept, and the next session starts anew"
        return f"{settings.quote('max_calls')} reached: {made}; {advice}"


def share(folder: Path) -> None:
    """Make the count that the workers of a session have in common, unless it is there already."""
    if (folder / _FILE).exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / _FILE, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute("CREATE TABLE calls (made INTEGER NOT NULL, next REAL NOT NULL)")
        connection.execute("INSERT INTO calls VALUES (0, 0.0)")


def _connect(path: Path) -> sqlite3.Connection:
    # Never made here: a count that is missing (on another machine, say) must not start again at nothing.
    connection = sqlite3.connect(
        f"{path.as_uri()}?mode=rw", uri=True, timeout=0, isolation_level=None, check_same_thread=False
    )
    try:
        connection.execute("PRAGMA synchronous = OFF")
    except BaseException:
        connection.close()
        raise
    return connection
