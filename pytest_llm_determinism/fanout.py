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

from pytest_llm_determinism.neighbours import in_company, in_company_async
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.sampling import Ask, Received
from pytest_llm_determinism.shapes import ModelCall
from pytest_llm_determinism.slots import in_event_loop

inside_call: contextvars.ContextVar[tuple[_Batch, int] | None] = contextvars.ContextVar("inside_call", default=None)
"""The call that goes out in this context, and holds a slot: an application served in this process through the same HTTP
library (a test client) calls its model from there, and must not wait for the slot that its caller holds."""


PATIENCE = 10.0
"""Seconds after which no more calls are started ahead within one call of the application. That call returns when the
batch is done, and an application may have a deadline of its own around it."""

NAP = 0.05
"""Seconds after which a worker that waits for its start looks how long calls take by now."""

LONGEST_PAUSE = 0.5
"""Seconds after which a call that waits for its turn looks whether it is still wanted."""


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
        self._span = ask.seconds
        self.delays = ask.starts(min(ask.sampler.plan.concurrency, len(self._queue))) if ahead else [0.0]

    def before_start(self, delay: float, since: float) -> float:
        """Seconds until a worker with this delay starts that is there since then, at most `NAP`; none when it may.

        Delays are spread over the time one call took, and shrink when calls turn out to be quicker: a first call may
        have met a server that was only waking up, and calls spread over its time would travel alone.
        """
        if self._span and self.ask.seconds is not None:
            delay *= min(1.0, self.ask.seconds / self._span)
        return min(NAP, since + delay - time.monotonic())

    def next(self) -> int | None:
        """The next run to ask for; nothing more once fetching ahead proved harmful."""
        with self._lock:
            if not self._queue:
                return None
            run = self._queue.popleft()
            return run if self.is_own(run) or self._goes_on(time.monotonic()) else None

    def is_own(self, run: int) -> bool:
        return run == self.ask.run.index

    def pause(self, run: int) -> float | None:
        """Seconds to wait before asking again whether the call for a run may go out: none when it may, at once; None
        when it is not made any more.

        Raises:
            Refusal: the session may make no call any more, and the run needs this one.
        """
        budget = self.ask.sampler.budget
        if budget is None:
            return 0.0
        now = time.monotonic()
        if not self._is_wanted(run, now):
            return None
        if self.is_own(run):
            seconds = self.ask.sampler.guarded(lambda: budget.take(now))
        else:
            try:
                seconds = budget.take(now)
            except Refusal:
                return None
        if seconds and not self._is_wanted(run, now + seconds):
            return None
        return min(seconds, LONGEST_PAUSE)

    def _is_wanted(self, run: int, at: float) -> bool:
        """Whether the call for a run is to go out if it can at this time."""
        return not self._cancelled and (self.is_own(run) or self._goes_on(at))

    def _goes_on(self, at: float) -> bool:
        """Whether calls ahead are started at this time."""
        return at <= self._until and not self.ask.held and self.refusal is None

    def to_keep(self, received: Received) -> bool:
        return received.broken is None and not self._cancelled

    def received(self, run: int, received: Received) -> None:
        if self.is_own(run):
            self.own = received

    def failed(self, run: int, error: BaseException) -> None:
        if self.is_own(run):
            self.own = error
        elif not isinstance(error, Exception):
            self.refusal = error

    def cancel(self) -> None:
        with self._lock:
            self._cancelled = True
            self._queue.clear()

    def is_interrupted(self) -> bool:
        """Whether the run's own call ended in something that is no error of it, such as Ctrl-C: no time for others."""
        return isinstance(self.own, BaseException) and not isinstance(self.own, (Exception, Refusal))

    def result(self) -> Received:
        if self.refusal is not None:
            raise self.refusal
        if isinstance(self.own, BaseException):
            raise self.own
        assert self.own is not None
        return self.own


def fetch(
    ask: Ask,
    send: Callable[[ModelCall, bool], Received],
    fan_out: bool,
    patience: float,
    connections: float = float("inf"),
) -> Received:
    """Ask for the active run, and ahead, with neighbours where the load wants them.

    Args:
        send: sends a call; its second argument says whether it is the run's own.
        fan_out: whether the client may be used for more than the run's own call.
        patience: seconds that the client itself would wait for an answer; half of them may go into calls ahead.
        connections: the most that the client opens.
    """
    # A call that blocks an event loop whose tasks hold every slot would wait for them, and they for it.
    stuck = ask.sampler.slots.all_taken() and in_event_loop()
    with in_company(ask, lambda call: send(call, False), fan_out, patience, connections):
        batch = _Batch(ask, _ahead(ask) if fan_out and not stuck else [], patience)
        _make(batch, send, stuck)
    return batch.result()


def _make(batch: _Batch, send: Callable[[ModelCall, bool], Received], stuck: bool) -> None:
    """Make the calls of a batch."""
    ask = batch.ask

    def work(delay: float) -> None:
        since = time.monotonic()
        while (seconds := batch.before_start(delay, since)) > 0:
            time.sleep(seconds)
        while (run := batch.next()) is not None:
            try:
                received = _call(batch, run, send, stuck)
                if received is None:
                    return
                received.known = ask.keep(run, received.sample) if batch.to_keep(received) else None
                batch.received(run, received)
            except BaseException as error:
                batch.failed(run, error)

    if len(batch.delays) == 1:
        work(batch.delays[0])
        if batch.is_interrupted():
            batch.result()
        return
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


async def fetch_async(
    ask: Ask,
    send: Callable[[ModelCall, bool], Awaitable[Received]],
    fan_out: bool,
    patience: float,
    connections: float = float("inf"),
) -> Received:
    """As `fetch`, on the event loop of the caller."""
    try:
        async with in_company_async(ask, lambda call: send(call, False), fan_out, patience, connections):
            batch = _Batch(ask, _ahead(ask) if fan_out else [], patience)
            await _make_async(batch, send)
    except BaseExceptionGroup as group:
        raise _alone(group) from None
    return batch.result()


def _alone(error: BaseException) -> BaseException:
    """An exception without the groups that task groups put around it: pytest ends at a Ctrl-C, and not at a group."""
    while isinstance(error, BaseExceptionGroup) and len(error.exceptions) == 1:
        error = error.exceptions[0]
    return error


async def _make_async(batch: _Batch, send: Callable[[ModelCall, bool], Awaitable[Received]]) -> None:
    import anyio

    ask = batch.ask

    async def work(delay: float) -> None:
        since = time.monotonic()
        while (seconds := batch.before_start(delay, since)) > 0:
            await anyio.sleep(seconds)
        while (run := batch.next()) is not None:
            try:
                received = await _call_async(batch, run, send)
                if received is None:
                    return
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


def _ahead(ask: Ask) -> list[int]:
    """The runs to fetch ahead for, as far as there are calls left."""
    budget = ask.sampler.budget
    ahead = ask.ahead()
    return ahead if budget is None else ahead[: max(0, budget.left - 1)]


def _call(batch: _Batch, run: int, send: Callable[[ModelCall, bool], Received], stuck: bool) -> Received | None:
    """One call, as soon as it may go out; None if it is not made any more.

    Its turn is the last thing it waits for, with its slot in hand: turns waited for first would come to nothing while
    all slots are taken, and then all at once.
    """
    ask = batch.ask
    nested = stuck or inside_call.get() is not None
    if not nested:
        ask.sampler.slots.acquire()
    token = inside_call.set((batch, run))
    try:
        return send(ask.call, batch.is_own(run)) if _goes_out(batch, run) else None
    finally:
        inside_call.reset(token)
        if not nested:
            ask.sampler.slots.release()


def _goes_out(batch: _Batch, run: int) -> bool:
    """Wait until the call for a run may go out; whether it then does."""
    while seconds := batch.pause(run):
        time.sleep(seconds)
    if seconds is None:
        return False
    batch.ask.sent()
    return True


def sent_again() -> None:
    """A library is about to send the call of this context once more by itself, which is one more live call.

    Raises:
        Refusal: no call may be made any more.
    """
    call = inside_call.get()
    if call is not None and not _goes_out(*call):
        raise Refusal("the call is not wanted any more")


async def _call_async(
    batch: _Batch, run: int, send: Callable[[ModelCall, bool], Awaitable[Received]]
) -> Received | None:
    """As `_call`, while the event loop goes on."""
    import anyio

    ask = batch.ask
    nested = inside_call.get() is not None
    if not nested:
        await ask.sampler.slots.acquire_async()
    token = inside_call.set((batch, run))
    try:
        while seconds := batch.pause(run):
            await anyio.sleep(seconds)
        if seconds is None:
            return None
        ask.sent()
        return await send(ask.call, batch.is_own(run))
    finally:
        inside_call.reset(token)
        if not nested:
            ask.sampler.slots.release()
