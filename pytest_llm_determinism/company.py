"""What the workers of one xdist session may have in flight together.

Each worker takes its share of `concurrency`, and of `neighbours`. With more workers than that, as many experiments run
at a time as there are calls to share; and while one worker samples under ``solo``, no other samples at all: company
would change what it shows.
The locks are the operating system's, so a worker that dies gives back what it held.
"""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path


@dataclass(frozen=True, slots=True)
class Company:
    """One worker among others.

    Attributes:
        folder: holds the locks; the same for all workers of the session.
        workers: how many there are.
        number: which of them this is, from 0.
    """

    folder: Path
    workers: int
    number: int

    def share(self, concurrency: int) -> int:
        """Calls that this worker may have in flight."""
        return max(1, concurrency // self.workers)

    @contextlib.contextmanager
    def admitted(self, load: str, concurrency: int) -> Iterator[None]:
        """Wait until an experiment under this load may be made, and hold the others off as far as needed."""
        try:
            import fcntl
        except ImportError:  # no such locks on this system; the workers' shares alone bound what is in flight
            yield
            return
        seats = min(self.workers, concurrency)
        with _locked(self.folder / "solo", fcntl.LOCK_EX if load == "solo" else fcntl.LOCK_SH):
            if load == "solo" or seats == self.workers:
                yield
                return
            with _locked(self.folder / f"seat-{self.number % seats}", fcntl.LOCK_EX):
                yield


@contextlib.contextmanager
def _locked(path: Path, kind: int) -> Iterator[None]:
    import fcntl

    path.parent.mkdir(mode=0o700, parents=True, exist_ok=True)
    descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o600)
    try:
        fcntl.flock(descriptor, kind)
        yield
    finally:
        # Closing gives the lock back only when no process that the body forked meanwhile has it open, too.
        fcntl.flock(descriptor, fcntl.LOCK_UN)
        os.close(descriptor)
