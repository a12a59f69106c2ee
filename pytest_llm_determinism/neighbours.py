"""Neighbours: what keeps sampled calls company under ``crowd``.

They are sent by the application's own client to the address and the model that it asks itself, hold no slot, and their
answers are dropped. They come and go while a batch of sampled calls is in flight. Before the first batch, and after a
failure before the next, one of them tries whether neighbours are answered at all.
"""

from __future__ import annotations

import contextlib
import contextvars
import threading
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from typing import NoReturn

from pytest_llm_determinism.crowd import DRAWS, FIRST_GUESS, TRIES, Crowd, Neighbour
from pytest_llm_determinism.sampling import Ask, Received, Sampler, reason_of
from pytest_llm_determinism.shapes import ModelCall, Unreadable, read_answer

FAREWELL = 30.0
"""Seconds that neighbours have for their answers when a batch is done; twice its own time where that is more."""

sending: contextvars.ContextVar[bool] = contextvars.ContextVar("sending", default=False)
"""Whether this context sends a neighbour. What passes a seam in it is no exchange of a run."""


class _Company:
    """The neighbours of one batch of sampled calls, however they are sent.

    Args:
        patience: seconds that the client itself would wait for an answer.
    """

    def __init__(self, ask: Ask, crowd: Crowd, patience: float) -> None:
        self.is_over = False
        self._ask = ask
        self._crowd = crowd
        self._route = crowd.route(ask.call)
        self._patience = patience
        self._started = time.monotonic()

    def first(self) -> float | None:
        """Seconds to wait before a neighbour goes out that tries whether neighbours are answered: 0.0 when it is to go
        out now; None when none is needed.

        Raises:
            Refusal: there is no crowd, or no call may be made any more.
        """
        self.check()
        if self._route.is_open:
            return None
        now = time.monotonic()
        return self._ask.sampler.guarded(lambda: self._crowd.enter_first(self._route, now))

    def enter(self) -> float | None:
        """As `Crowd.enter`."""
        if self.is_over or self._route.failed >= TRIES:
            return None
        now = time.monotonic()
        seconds = self._ask.seconds
        if seconds is None and now - self._started > DRAWS * FIRST_GUESS:
            seconds = now - self._started
        return self._crowd.enter(self._route, now, seconds)

    @contextlib.contextmanager
    def visit(self) -> Iterator[Neighbour]:
        """One neighbour that has a place, from its start to its end; an error of it concerns nobody."""
        token = sending.set(True)
        try:
            neighbour = self._crowd.neighbour(self._route, self._ask.call, self._ask.length)
            self._ask.goes_out()
            try:
                yield neighbour
            except Exception as error:
                self._crowd.failed(self._route, neighbour, None, self._ask.in_words(error))
        finally:
            sending.reset(token)
            self._crowd.leave()

    def received(self, neighbour: Neighbour, received: Received) -> None:
        """Look what a neighbour got, and forget it."""
        if received.broken is not None:
            raise received.broken
        sample = received.sample
        unreadable = ""
        if 200 <= sample.status < 300:
            try:
                answer = read_answer(neighbour.call, sample.body, sample.content_type)
            except Unreadable as error:
                unreadable = str(error)
            else:
                self._ask.charged(answer)
                self._crowd.answered(self._route)
                return
        else:
            self._ask.charged(None)
        self._crowd.failed(self._route, neighbour, sample.status, reason_of(sample, unreadable))

    def farewell(self) -> float:
        """Seconds that the neighbours in flight have for their answers when the batch is done."""
        return min(self._patience, max(FAREWELL, 2 * (time.monotonic() - self._started)))

    def check(self) -> None:
        """
        Raises:
            Refusal: neighbours fail again and again, so there is no crowd.
        """
        if self._route.failed >= TRIES:
            refuse(self._ask.sampler, f"{self._route.failed} neighbours in a row failed: {self._crowd.count.example}")


def _company(ask: Ask, crowd: Crowd, fan_out: bool, patience: float, connections: float) -> _Company:
    plan = ask.sampler.plan
    budget = ask.sampler.budget
    needed = plan.concurrency + plan.neighbours
    if not fan_out:
        refuse(
            ask.sampler,
            "the client has a transport of its own making, which is asked only as often as the application asks",
        )
    if ask.call.plainly("?", None) is None:
        refuse(ask.sampler, f"no unrelated question can be made of its requests ({ask.call.family.name})")
    if connections < needed:
        most = connections - plan.concurrency
        advice = f", or set neighbours={most:.0f}" if most >= 1 else ""
        refuse(
            ask.sampler,
            f"the client opens at most {connections:.0f} connections, and {needed} are needed: allow more{advice}",
        )
    if budget is not None and ask.seconds is not None and budget.interval > ask.seconds:
        refuse(ask.sampler, f"with {budget.pace} a call has ended before the next one starts, so none has company")
    return _Company(ask, crowd, patience)


def refuse(sampler: Sampler, why: str) -> NoReturn:
    """
    Raises:
        Refusal: under ``crowd``, for this reason.
    """
    sampler.refuse(f"no crowd is possible for this test: {why}; load=solo and load=burst need none")


@contextlib.contextmanager
def in_company(
    ask: Ask, send: Callable[[ModelCall], Received], fan_out: bool, patience: float, connections: float
) -> Iterator[None]:
    """While this is open, neighbours come and go, if the load is ``crowd``.

    Args:
        send: makes one call.
        fan_out: whether the client may be used for more than the run's own call.
        patience: seconds that the client itself would wait for an answer.
        connections: the most that the client opens.

    Raises:
        Refusal: the load is ``crowd``, and there can be none.
    """
    crowd = ask.sampler.crowd
    if crowd is None or not ask.is_stored:
        yield
        return
    company = _company(ask, crowd, fan_out, patience, connections)
    changed = threading.Event()
    guests: list[threading.Thread] = []

    def visit() -> None:
        with company.visit() as neighbour:
            company.received(neighbour, send(neighbour.call))
        changed.set()

    def start(work: Callable[[], None]) -> threading.Thread:
        context = contextvars.copy_context()
        thread = threading.Thread(target=context.run, args=(work,), daemon=True, name="determinism-neighbour")
        thread.start()
        return thread

    def invite() -> None:
        while (seconds := company.enter()) is not None:
            if seconds:
                changed.wait(seconds)
                changed.clear()
            else:
                guests[:] = [guest for guest in guests if guest.is_alive()]
                guests.append(start(visit))

    while (seconds := company.first()) is not None:
        if seconds:
            time.sleep(seconds)
        else:
            visit()
    host = start(invite)
    try:
        yield
    finally:
        company.is_over = True
        changed.set()
    # Only when all went well: whoever breaks off a test waits for nobody.
    host.join()
    until = time.monotonic() + company.farewell()
    for guest in guests:
        guest.join(max(0.0, until - time.monotonic()))
    company.check()


@contextlib.asynccontextmanager
async def in_company_async(
    ask: Ask, send: Callable[[ModelCall], Awaitable[Received]], fan_out: bool, patience: float, connections: float
) -> AsyncIterator[None]:
    """As `in_company`, on the event loop of the caller."""
    crowd = ask.sampler.crowd
    if crowd is None or not ask.is_stored:
        yield
        return
    import anyio

    company = _company(ask, crowd, fan_out, patience, connections)
    changed = anyio.Event()

    async def visit() -> None:
        with company.visit() as neighbour:
            company.received(neighbour, await send(neighbour.call))
        changed.set()

    async def invite() -> None:
        nonlocal changed
        while (seconds := company.enter()) is not None:
            if not seconds:
                guests.start_soon(visit)
                continue
            with anyio.move_on_after(seconds):
                await changed.wait()
            changed = anyio.Event()

    while (seconds := company.first()) is not None:
        if seconds:
            await anyio.sleep(seconds)
        else:
            await visit()
    async with anyio.create_task_group() as guests:
        guests.start_soon(invite)
        yield
        company.is_over = True
        changed.set()
        guests.cancel_scope.deadline = anyio.current_time() + company.farewell()
    company.check()
