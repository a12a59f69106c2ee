"""How many calls may be in flight at once, over all threads and event loops of the process."""

from __future__ import annotations

import contextlib
import sys
import threading
from collections import deque
from collections.abc import Callable
from concurrent.futures import Future
from typing import Any


class Slots:
    """A semaphore that threads and tasks of any event loop may wait for, served in order of arrival."""

    def __init__(self, count: int) -> None:
        self._free = count
        self._lock = threading.RLock()  # a collected task gives up in whatever thread collects it
        self._waiting: deque[Callable[[], None]] = deque()

    def acquire(self) -> None:
        ready = threading.Event()
        if not self._take_or_wait(ready.set):
            try:
                ready.wait()
            except BaseException:
                self._give_up(ready.set, ready.is_set)
                raise

    async def acquire_async(self) -> None:
        import anyio

        ready = anyio.Event()
        wake = _waker(ready.set)
        granted = threading.Event()

        def grant() -> None:
            wake()
            granted.set()

        if not self._take_or_wait(grant):
            try:
                await ready.wait()
            except BaseException:
                self._give_up(grant, granted.is_set)
                raise

    def all_taken(self) -> bool:
        return not self._free

    def release(self) -> None:
        # Chosen and told under one lock: one that gave up in between would be neither waiting nor know of its slot.
        with self._lock:
            while self._waiting:
                try:
                    self._waiting.popleft()()
                except RuntimeError:
                    continue  # its event loop is gone, and it with it
                return
            self._free += 1

    def _take_or_wait(self, grant: Callable[[], None]) -> bool:
        with self._lock:
            if self._free:
                self._free -= 1
                return True
            self._waiting.append(grant)
            return False

    def _give_up(self, grant: Callable[[], None], granted: Callable[[], bool]) -> None:
        with self._lock:
            if grant in self._waiting:
                self._waiting.remove(grant)
                return
        if granted():
            self.release()


async def finished(future: Future[Any]) -> None:
    """Wait for work of another thread without holding up the event loop; what came of it is not looked at."""
    import anyio

    ready = anyio.Event()
    wake = _waker(ready.set)

    def tell(_: Future[Any]) -> None:
        with contextlib.suppress(RuntimeError):  # the loop of a waiter that was cancelled may be gone
            wake()

    future.add_done_callback(tell)
    await ready.wait()


def _waker(set_event: Callable[[], object]) -> Callable[[], None]:
    """A function that sets an event of this task's loop from any thread."""
    token = _trio_token()
    if token is not None:
        return lambda: token.run_sync_soon(set_event)
    import asyncio

    loop = asyncio.get_running_loop()

    def wake() -> None:
        loop.call_soon_threadsafe(set_event)

    return wake


def in_event_loop() -> bool:
    """Whether this thread is running a task of an event loop, which stands still while it waits."""
    if _trio_token() is not None:
        return True
    import asyncio

    try:
        asyncio.get_running_loop()
    except RuntimeError:
        return False
    return True


def _trio_token() -> Any:
    """What wakes up this thread's trio loop, None if there is none. trio is not imported for it."""
    trio: Any = sys.modules.get("trio")
    if trio is None:
        return None
    try:
        return trio.lowlevel.current_trio_token()
    except RuntimeError:
        return None
