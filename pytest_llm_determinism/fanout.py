"""Asking a model: for the active run, and ahead for the runs that will certainly ask the same.

The active run's own call and those fetched ahead are alike in everything but this: what comes of the run's own call
goes back to its client, errors included, while a call fetched ahead that fails is simply forgotten, and the run that
needs it asks again through the user's own client, whose retry policy then applies.
"""

from __future__ import annotations

import contextvars
import threading
import time
from collections import deque
from collections.abc import Awaitable, Callable

from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.sampling import Ask, Received
from pytest_llm_determinism.slots import in_event_loop

inside_call: contextvars.ContextVar[bool] = contextvars.ContextVar("inside_call", default=False)
"""True within a call that holds a slot: an application served in this process through the same HTTP library (a test
client) calls its model from there, and must not wait for the slot that its caller holds."""


PATIENCE = 10.0
"""Seconds after which no more calls are started ahead within one call of the application. That call returns when the
batch is done, and an application may have a deadline of its own around it."""


class _Batch:
    """The calls of one fan-out: the run's own first, then those ahead, shared by several workers."""

    def __init__(self, ask: Ask, ahead: list[int], patience: float) -> None:
        self.ask = ask
        self.own: Received | BaseException | None = None
        self.refusal: BaseException | None = None
        self._queue = deque((ask.run.index, *ahead))
        self._until = time.monotonic() + min(PATIENCE, patience / 2)
        self._cancelled = False
        self._lock = threading.Lock()
        self.delays = ask.starts(min(ask.sampler.plan.concurrency, len(self._queue))) if ahead else [0.0]

    def next(self) -> int | None:
        """The next run to ask for; nothing more once fetching ahead proved harmful."""
        with self._lock:
            if not self._queue:
                return None
            run = self._queue.popleft()
            if run == self.ask.run.index:
                return run
            enough = time.monotonic() > self._until or self.ask.held
            return None if enough or self.refusal else run

    def to_keep(self, received: Received) -> bool:
        return received.broken is None and not self._cancelled

    def received(self, run: int, received: Received) -> None:
        if run == self.ask.run.index:
            self.own = received

    def failed(self, run: int, error: BaseException) -> None:
        if run == self.ask.run.index:
            self.own = error
        elif not isinstance(error, Exception):
            self.refusal = error

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            self._queue.clear()

    def result(self) -> Received:
        if self.refusal is not None:
            raise self.refusal
        if isinstance(self.own, BaseException):
            raise self.own
        assert self.own is not None
        return self.own


def fetch(ask: Ask, send: Callable[[bool], Received], fan_out: bool, patience: float) -> Received:
    """Ask for the active run, and ahead.

    Args:
        send: makes one call; its argument says whether it is the run's own.
        fan_out: whether the client may be used for more than the run's own call.
        patience: seconds that the client itself would wait for an answer; half of them may go into calls ahead.
    """
    # A call that blocks an event loop whose tasks hold every slot would wait for them, and they for it.
    stuck = ask.sampler.slots.all_taken() and in_event_loop()
    batch = _Batch(ask, ask.ahead() if fan_out and not stuck else [], patience)

    def work(delay: float) -> None:
        time.sleep(delay)
        while (run := batch.next()) is not None:
            own = run == ask.run.index
            try:
                received = _call(ask, lambda own=own: send(own), stuck)  # type: ignore[misc]
                received.known = ask.keep(run, received.sample) if batch.to_keep(received) else None
                batch.received(run, received)
            except BaseException as error:
                batch.failed(run, error)

    if len(batch.delays) == 1:
        work(batch.delays[0])
        return batch.result()
    workers = [
        threading.Thread(
            target=contextvars.copy_context().run, args=(work, delay), daemon=True, name="determinism-fanout"
        )
        for delay in batch.delays
    ]
    try:
        for worker in workers:
            worker.start()
        for worker in workers:
            worker.join()
    except BaseException:
        batch.cancel()
        raise
    return batch.result()


async def fetch_async(
    ask: Ask, send: Callable[[bool], Awaitable[Received]], fan_out: bool, patience: float
) -> Received:
    """As `fetch`, on the event loop of the caller."""
    import anyio

    batch = _Batch(ask, ask.ahead() if fan_out else [], patience)

    async def work(delay: float) -> None:
        await anyio.sleep(delay)
        while (run := batch.next()) is not None:
            try:
                received = await _call_async(ask, send, run == ask.run.index)
                received.known = await ask.keep_async(run, received.sample) if batch.to_keep(received) else None
                batch.received(run, received)
            except (Exception, Refusal) as error:
                batch.failed(run, error)

    if len(batch.delays) == 1:
        await work(batch.delays[0])
    else:
        async with anyio.create_task_group() as group:
            for delay in batch.delays:
                group.start_soon(work, delay)
    return batch.result()


def _call(ask: Ask, send: Callable[[], Received], stuck: bool) -> Received:
    nested = stuck or inside_call.get()
    if not nested:
        ask.sampler.slots.acquire()
    token = inside_call.set(True)
    try:
        ask.sent()
        return send()
    finally:
        inside_call.reset(token)
        if not nested:
            ask.sampler.slots.release()


async def _call_async(ask: Ask, send: Callable[[bool], Awaitable[Received]], own: bool) -> Received:
    nested = inside_call.get()
    if not nested:
        await ask.sampler.slots.acquire_async()
    token = inside_call.set(True)
    try:
        ask.sent()
        return await send(own)
    finally:
        inside_call.reset(token)
        if not nested:
            ask.sampler.slots.release()
