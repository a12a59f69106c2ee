"""Calls in flight, limited over threads and event loops alike."""

from __future__ import annotations

import asyncio
import threading
from collections.abc import Awaitable, Callable
from concurrent.futures import ThreadPoolExecutor
from typing import Any

import anyio
import pytest
import trio

from pytest_llm_determinism.slots import Slots

LONG = 20.0
"""Seconds that a test waits for what must happen; only a failing one waits that long."""


class Gauge:
    """How many hold a slot, and the most that ever did."""

    def __init__(self) -> None:
        self.now = self.most = self.total = 0
        self._lock = threading.Lock()

    def __enter__(self) -> None:
        with self._lock:
            self.now += 1
            self.total += 1
            self.most = max(self.most, self.now)

    def __exit__(self, *_: object) -> None:
        with self._lock:
            self.now -= 1


def waiting(slots: Slots, count: int = 1) -> bool:
    return len(slots._waiting) == count


def until(condition: Callable[[], bool]) -> None:
    pause, waited = threading.Event(), 0.0
    while not condition():
        pause.wait(0.001)
        waited += 0.001
        assert waited < LONG


async def until_async(condition: Callable[[], bool]) -> None:
    with anyio.fail_after(LONG):
        while not condition():
            await anyio.sleep(0)


def all_free(slots: Slots, count: int) -> bool:
    """Whether so many slots can be taken at once, and not one more."""
    return slots._free == count and not slots._waiting


def run_asyncio(main: Callable[[], Awaitable[Any]]) -> Any:
    return asyncio.run(main())  # type: ignore[arg-type]


LOOPS = pytest.mark.parametrize("run", [run_asyncio, trio.run], ids=["asyncio", "trio"])


def hold_in_thread(slots: Slots, gauge: Gauge) -> None:
    slots.acquire()
    with gauge:
        threading.Event().wait(0.002)
    slots.release()


async def hold_in_task(slots: Slots, gauge: Gauge) -> None:
    await slots.acquire_async()
    with gauge:
        await anyio.sleep(0.002)
    slots.release()


async def hold_in_tasks(slots: Slots, gauge: Gauge, count: int) -> None:
    async with anyio.create_task_group() as group:
        for _ in range(count):
            group.start_soon(hold_in_task, slots, gauge)


def test_threads_and_the_tasks_of_several_loops_share_the_slots() -> None:
    slots, gauge = Slots(3), Gauge()
    with ThreadPoolExecutor(10) as pool:
        jobs = [pool.submit(hold_in_thread, slots, gauge) for _ in range(40)]
        jobs += [pool.submit(asyncio.run, hold_in_tasks(slots, gauge, 20)) for _ in range(2)]
        jobs += [pool.submit(trio.run, hold_in_tasks, slots, gauge, 20)]
        for job in jobs:
            job.result(LONG)
    assert (gauge.total, gauge.most) == (100, 3)
    assert all_free(slots, 3)


def test_slots_are_given_in_order_of_arrival() -> None:
    slots, order = Slots(1), []

    async def take(number: int) -> None:
        await slots.acquire_async()
        order.append(number)
        slots.release()

    async def main() -> None:
        slots.acquire()
        tasks = []
        for number in range(5):
            tasks.append(asyncio.create_task(take(number)))
            await until_async(lambda: waiting(slots, len(tasks)))
        slots.release()
        await asyncio.gather(*tasks)

    asyncio.run(main())
    assert order == [0, 1, 2, 3, 4]


@LOOPS
def test_a_task_that_is_cancelled_while_it_waits_takes_no_slot(run: Callable[..., Any]) -> None:
    slots = Slots(1)

    async def main() -> None:
        slots.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(slots.acquire_async)
            await until_async(lambda: waiting(slots))
            group.cancel_scope.cancel()
        assert slots._waiting == type(slots._waiting)()
        slots.release()
        with anyio.fail_after(LONG):
            await slots.acquire_async()
        slots.release()

    run(main)
    assert all_free(slots, 1)


@LOOPS
def test_a_task_that_is_cancelled_as_it_is_given_a_slot_gives_it_back(run: Callable[..., Any]) -> None:
    slots = Slots(1)

    async def main() -> None:
        slots.acquire()
        async with anyio.create_task_group() as group:
            group.start_soon(slots.acquire_async)
            await until_async(lambda: waiting(slots))
            # Both before the task runs again.
            slots.release()
            group.cancel_scope.cancel()

    run(main)
    assert all_free(slots, 1)


def test_a_thread_interrupted_while_it_waits_takes_no_slot(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(1)
    slots.acquire()

    def interrupted(_: threading.Event) -> None:
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slots.acquire()
    slots.release()
    assert all_free(slots, 1)


def test_a_thread_interrupted_as_it_is_given_a_slot_gives_it_back(monkeypatch: pytest.MonkeyPatch) -> None:
    slots = Slots(1)
    slots.acquire()

    def interrupted(_: threading.Event) -> None:
        slots.release()
        raise KeyboardInterrupt

    with monkeypatch.context() as patched:
        patched.setattr(threading.Event, "wait", interrupted)
        with pytest.raises(KeyboardInterrupt):
            slots.acquire()
    assert all_free(slots, 1)


def test_no_slot_is_lost_between_the_giver_and_a_taker_that_gives_up() -> None:
    """The taker gives up after the giver has chosen it and before it is told so."""
    slots, told, given_up = Slots(1), [], threading.Event()
    slots.acquire()

    def grant() -> None:
        thread = threading.Thread(target=lambda: (slots._give_up(grant, lambda: bool(told)), given_up.set()))
        thread.start()
        given_up.wait(0.05)
        told.append(True)

    assert not slots._take_or_wait(grant)
    slots.release()
    assert given_up.wait(LONG)
    assert all_free(slots, 1)


def test_a_taker_whose_loop_is_closed_is_passed_over() -> None:
    slots = Slots(1)
    slots.acquire()
    loop = asyncio.new_event_loop()
    abandoned = loop.create_task(slots.acquire_async())
    abandoned._log_destroy_pending = False  # type: ignore[attr-defined]
    loop.call_soon(loop.stop)
    loop.run_forever()
    assert waiting(slots)
    loop.close()

    taking = threading.Thread(target=slots.acquire, daemon=True)
    taking.start()
    until(lambda: waiting(slots, 2))
    slots.release()
    taking.join(LONG)
    assert not taking.is_alive()
    slots.release()
    assert all_free(slots, 1)
