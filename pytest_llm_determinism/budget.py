"""How many live calls a session may make, how fast, and for how much money.

A call is counted, and its turn taken, in one step just before it goes out. So a wait that is cancelled, or a process
that dies waiting, has nothing to give back, and no call goes out that was not counted.

What a call costs is known with its answer. Until then it is taken to cost as much as the dearest answer of the session
so far, and one that never gets an answer stays so.
"""

from __future__ import annotations

import contextlib
import os
import sqlite3
import sys
import threading
import time
from collections.abc import Iterable
from dataclasses import astuple, dataclass, fields
from pathlib import Path
from typing import TYPE_CHECKING

from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.settings import Settings

if TYPE_CHECKING:
    from pytest_llm_determinism.bill import Charge

_FILE = "calls.db"

_BUSY = 0.001
"""Seconds after which a count that another process is using at the moment is tried again."""


_UNIT = 10**12
"""What amounts are counted in, of one dollar: whole numbers add up to the same in any order."""


@dataclass(slots=True)
class _Count:
    """What the session's calls come to so far.

    Attributes:
        made: calls.
        next: when the next one may start, as `time.monotonic` tells it.
        paid: for the answers so far.
        pending: calls of which it is not known yet what they cost.
        dearest: what the dearest answer cost.
        unpriced: why it is not known what an answer cost; empty as long as it is.
    """

    made: int = 0
    next: float = 0.0
    paid: int = 0
    pending: int = 0
    dearest: int = 0
    unpriced: str = ""

    @property
    def committed(self) -> int:
        return self.paid + self.pending * self.dearest


_COLUMNS = ", ".join(part.name for part in fields(_Count))


class Budget:
    """The live calls of one session, over all its threads, event loops and processes.

    Args:
        settings: of the session; at least one of ``max_calls``, ``rate`` and ``max_cost`` is given.
        folder: where `share` made the count that the workers of a session have in common; None where this process is
            the only one.

    Attributes:
        interval: seconds from the start of one call to that of the next, 0.0 without a rate.
    """

    def __init__(self, settings: Settings, folder: Path | None = None) -> None:
        self._settings = settings
        self._most: int = sys.maxsize if settings.max_calls is None else settings.max_calls
        self.interval: float = 0.0 if settings.rate is None else 1 / settings.rate
        self._money: int = sys.maxsize
        if settings.max_cost is not None:
            self._money = min(sys.maxsize, round(settings.max_cost * _UNIT))
        # With a shared count, what this process knows of it.
        self._count = _Count()
        self._path = None if folder is None else folder / _FILE
        self._connection: sqlite3.Connection | None = None
        self._lock = threading.Lock()
        self._pid = os.getpid()

    @property
    def left(self) -> int:
        """Calls that may still be made; under pytest-xdist fewer if other workers made some meanwhile."""
        return self._most - self._count.made

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
            count = self._count
            if not self.left:
                raise Refusal(self._spent())
            if now < count.next + free_for:
                return count.next + free_for - now
            # Without a rate there are no turns: a thread that looked at the clock earlier is not late.
            after = now + self.interval if self.interval else 0.0
            if self._path is not None:
                return self._take_shared(self._path, now, after, free_for)
            self._check_money()
            count.made, count.next, count.pending = count.made + 1, after, count.pending + 1
            return 0.0

    def check(self, charge: Charge) -> None:
        """See that a call will have a price, where money is limited.

        Raises:
            Refusal: it has none, so the limit could not be kept.
        """
        if self._settings.max_cost is not None:
            from pytest_llm_determinism.pricing import unpriced

            reason = unpriced(charge)
            if reason is not None:
                raise Refusal(self._unpriced(reason))

    def settle(self, charge: Charge | None) -> None:
        """It is known what is charged for one of the calls; None stands for nothing."""
        if self._settings.max_cost is None:
            return
        from pytest_llm_determinism.pricing import amount

        found = amount(charge) if charge is not None else 0
        paid, unpriced = (0, found) if isinstance(found, str) else (round(found * _UNIT), "")
        with self._lock:
            if self._path is None:
                count = self._count
                count.paid, count.pending = count.paid + paid, count.pending - 1
                count.dearest, count.unpriced = max(count.dearest, paid), count.unpriced or unpriced
            else:
                self._settle_shared(self._path, paid, unpriced)

    def note(self, reasons: Iterable[str]) -> str | None:
        """What the summary says when tests ended for these reasons; None if the budget stopped none of them."""
        told = list(reasons)
        notes = []
        for reached in map(self._reached, ("max_calls", "max_cost")):
            stopped = sum(reason.startswith(reached) for reason in told)
            if stopped:
                notes.append(f"{reached}: {stopped} test{'' if stopped == 1 else 's'} ended inconclusive")
        return "; ".join(notes) or None

    def close(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None

    def _check_money(self) -> None:
        """
        Raises:
            Refusal: no call may be paid for any more.
        """
        count = self._count
        if count.unpriced:
            raise Refusal(self._unpriced(count.unpriced))
        if count.committed >= self._money:
            raise Refusal(self._too_dear())

    def _take_shared(self, path: Path, now: float, after: float, free_for: float) -> float:
        try:
            taken = self._connected(path).execute(
                "UPDATE calls SET made = made + 1, next = ?, pending = pending + 1"
                " WHERE made < ? AND next <= ? AND unpriced = '' AND paid + pending * dearest < ?",
                (after, self._most, now - free_for, self._money),
            )
            if taken.rowcount:
                self._count.made += 1
                return 0.0
            self._count = self._shared(path)
        except sqlite3.Error as error:
            # Tried again by the caller, who waits without holding up an event loop.
            if _is_busy(error):
                return _BUSY
            raise self._unusable(path, error) from error
        if not self.left:
            raise Refusal(self._spent())
        self._check_money()
        return max(_BUSY, self._count.next + free_for - now)

    def _settle_shared(self, path: Path, paid: int, unpriced: str) -> None:
        while True:
            try:
                self._connected(path).execute(
                    "UPDATE calls SET paid = paid + ?, pending = pending - 1, dearest = max(dearest, ?),"
                    " unpriced = CASE unpriced WHEN '' THEN ? ELSE unpriced END",
                    (paid, paid, unpriced),
                )
                return
            except sqlite3.Error as error:
                if not _is_busy(error):
                    raise self._unusable(path, error) from error
                time.sleep(_BUSY)

    def _connected(self, path: Path) -> sqlite3.Connection:
        if self._connection is None:
            self._connection = _connect(path)
        return self._connection

    def _shared(self, path: Path) -> _Count:
        return _Count(*self._connected(path).execute(f"SELECT {_COLUMNS} FROM calls").fetchone())

    def _unusable(self, path: Path, error: sqlite3.Error) -> Refusal:
        return Refusal(
            f"{self._given()} cannot be kept: the count of live calls in {path}, which the workers of one machine"
            f" share, cannot be used: {error}"
        )

    def _given(self) -> str:
        given = [name for name in ("max_calls", "rate", "max_cost") if self._settings.origin(name).value is not None]
        return " with ".join(map(self._settings.quote, given))

    def _reached(self, name: str) -> str:
        return f"{self._settings.quote(name)} reached"

    def _spent(self) -> str:
        made = f"{self._most} live call{'' if self._most == 1 else 's'} made in this session"
        return f"{self._reached('max_calls')}: {made}; {self._advice()}"

    def _too_dear(self) -> str:
        from pytest_llm_determinism.report.text import money

        count = self._count
        spent = f"about {money(count.paid / _UNIT)} USD spent in this session"
        if count.paid < self._money:
            calls = "1 call that has no answer" if count.pending == 1 else f"{count.pending} calls that have no answer"
            spent += f", and {calls} may take the rest"
        return f"{self._reached('max_cost')}: {spent}; {self._advice()}"

    def _advice(self) -> str:
        settings = self._settings
        advice = "raise it, or run again: samples that arrived are kept, and the next session goes on from there"
        if settings.cache == "refresh":
            return advice.replace("run again", "run again with --determinism-cache=auto")
        if settings.cache == "off":
            return f"raise it: with {settings.quote('cache')} nothing is kept, and the next session starts anew"
        return advice

    def _unpriced(self, reason: str) -> str:
        return (
            f"{self._settings.quote('max_cost')} cannot be kept: {reason}; ask a model that has a price, or leave"
            " max_cost out"
        )


def share(folder: Path) -> None:
    """Make the count that the workers of a session have in common, unless it is there already."""
    if (folder / _FILE).exists():
        return
    folder.mkdir(mode=0o700, parents=True, exist_ok=True)
    with contextlib.closing(sqlite3.connect(folder / _FILE, isolation_level=None)) as connection:
        connection.execute("PRAGMA journal_mode = WAL")
        connection.execute(f"CREATE TABLE calls ({_COLUMNS})")
        connection.execute("INSERT INTO calls VALUES (?, ?, ?, ?, ?, ?)", astuple(_Count()))


def _is_busy(error: sqlite3.Error) -> bool:
    return getattr(error, "sqlite_errorcode", 0) & 0xFF == sqlite3.SQLITE_BUSY


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
