"""The live side of one experiment: which run is active, what it asked, what is known, what to fetch ahead.

No HTTP library and no pytest is known here. A seam asks `Sampler.ask` about a request and gets an `Ask`: its sample if
it is known, else the runs to fetch it for.
"""

from __future__ import annotations

import datetime
import json
import os
import random
import threading
import time
from collections import Counter
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import TYPE_CHECKING, Any, NoReturn, TypeVar

from pytest_llm_determinism.bill import Bill, Charge
from pytest_llm_determinism.crowd import Crowd
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.shapes import (
    Answer,
    CannotOverride,
    HookFailed,
    ModelCall,
    NotAModelCall,
    Rules,
    Unreadable,
    model_of,
    read_answer,
    recognise,
)
from pytest_llm_determinism.slots import Slots, finished
from pytest_llm_determinism.store import Sample, SampleStore, StoredRequest, sample_key

if TYPE_CHECKING:
    from pytest_llm_determinism.budget import Budget

T = TypeVar("T")

WINDOW = 512
"""Runs read from the store, or fetched ahead, at once: what is held in memory must not grow with the runs."""

KEPT_REQUESTS = 64
"""Canonical requests kept for `prompt-varies`; two are enough to show what varies."""

Place = tuple[str, int]
"""A request's key and occurrence: what identifies an exchange within its run."""

Told = tuple[str, str]
"""Output and reasoning of an answer."""

Trace = tuple[tuple[Place, Told], ...]
"""The places a run asked, with what it was told."""


@dataclass(frozen=True, slots=True)
class Plan:
    """What one experiment is to do.

    Attributes:
        concurrency: calls in flight, this process's share; 1 under ``solo``, few under ``crowd``.
        neighbours: most unrelated calls in flight besides, this process's share; used under ``crowd``.
        batch: most runs fetched ahead at once.
        cache: ``auto``, ``refresh``, ``replay`` or ``off``.
        not_before: samples that arrived earlier (seconds since the epoch) are asked again.
        rules: what requests are model calls, and what identifies one.
        seed: of the starts' spread, and of the neighbours.
        test: node id of the test that asks.
    """

    load: str
    attempt: int
    runs: int
    concurrency: int
    cache: str
    not_before: float
    seed: int
    neighbours: int = 0
    batch: int = WINDOW
    rules: Rules = field(default_factory=Rules)
    test: str = ""


@dataclass(slots=True)
class Calls:
    """Where the answers came from: asked live in this experiment, or found in the store.

    Attributes:
        answers: of the live calls, those that got one; the first came at `first_answer_at`, as `time.monotonic` tells
            it.
    """

    live: int = 0
    cached: int = 0
    oldest: float | None = None
    answers: int = 0
    first_answer_at: float | None = None

    def oldest_sample(self) -> str | None:
        """Arrival of the oldest sample from the store, ISO 8601 in UTC."""
        if self.oldest is None:
            return None
        return datetime.datetime.fromtimestamp(self.oldest, datetime.UTC).isoformat()


@dataclass(frozen=True, slots=True)
class Known:
    """A sample at hand for a run that has not asked yet: as it was sent, as it was read, and as what the run keeps."""

    sample: Sample
    answer: Answer
    exchange: Exchange
    stored: bool


@dataclass(slots=True)
class Received:
    """What came of one call.

    Attributes:
        sample: the response, whatever its status.
        broken: the error that ended the body early, if one did; the sample then holds what arrived before.
        known: the response as an answer; None if it is none.
    """

    sample: Sample
    broken: Exception | None = None
    known: Known | None = None


@dataclass(slots=True)
class _Shelf:
    """What is at hand for one place: samples of runs to come, by run."""

    known: dict[int, Known] = field(default_factory=dict)
    read_up_to: int = 0
    seconds: float | None = None
    length: int | None = None
    kept: bool = False
    charge: Charge | None = None

    def note(self, sample: Sample, answer: Answer) -> None:
        """See how long a call takes, in seconds, and its answer is, in tokens."""
        self.seconds = sample.seconds
        self.length = answer.output_tokens or len(answer.output) // 4


@dataclass(slots=True)
class _Running:
    index: int
    started: list[Place] = field(default_factory=list)
    busy: set[Place] = field(default_factory=set)
    finished: dict[Place, Exchange] = field(default_factory=dict)
    failures: dict[Place, str] = field(default_factory=dict)
    recorded: list[str] = field(default_factory=list)
    answers: dict[str, tuple[str, str, str]] = field(default_factory=dict)
    """The provider's names of the answers it got → what led to them and what they told: the question's key, output,
    reasoning."""


class Sampler:
    """One experiment under way. Safe to use from any thread."""

    def __init__(self, plan: Plan, store: SampleStore | None, budget: Budget | None = None) -> None:
        self.plan = plan
        self.budget = budget
        self.slots = Slots(plan.concurrency)
        self.crowd = Crowd(plan.neighbours, plan.seed, budget) if plan.load == "crowd" else None
        self.calls = Calls()
        self.bill = Bill(None if budget is None else budget.settle)
        self.random = random.Random(plan.seed)
        self.refusal: str | None = None
        self.requests: dict[str, str] = {}
        self.store = store if plan.cache != "off" else None
        self._lock = threading.RLock()
        self._run: _Running | None = None
        self._shelves: dict[Place, _Shelf] = {}
        self._exchanges: dict[Exchange, Exchange] = {}
        self._texts: dict[str, str] = {}
        self._traces: Counter[Trace] = Counter()
        self._askers: Counter[Place] = Counter()
        self._sequences: dict[tuple[Exchange, ...], tuple[Exchange, ...]] = {}
        self._stocked: set[Place] = set()
        self._pid = os.getpid()
        self._held: set[str] = set()

    # The run

    def start_run(self, index: int) -> None:
        with self._lock:
            self._run = _Running(index)

    def record(self, value: str) -> None:
        with self._lock:
            if self._run is None:
                raise RuntimeError("a value was recorded outside a run")
            self._run.recorded.append(self._texts.setdefault(value, value))

    def finish_run(self, broken_off: bool = False) -> Run:
        """End the active run and say what it left behind."""
        with self._lock:
            running = self._run
            assert running is not None
            self._run = None
            exchanges = tuple(running.finished[place] for place in running.started if place in running.finished)
            exchanges = self._sequences.setdefault(exchanges, exchanges)
            error = next(iter(running.failures.values()), None)
            if error is None:
                self._traces[_trace(running.finished)] += 1
                self._askers.update(running.finished.keys())
            for place in tuple(self._stocked):
                known = self._shelves[place].known
                known.pop(running.index, None)
                if not known:
                    self._stocked.discard(place)
            return Run(running.index, exchanges, tuple(running.recorded), error, broken_off)

    # One request

    def recognise(self, method: str, url: str, body: bytes) -> ModelCall | None:
        """The model call that a request is, or None for every other request.

        Raises:
            Refusal: settings reach into it in a way that it does not allow.
        """
        try:
            return recognise(method, url, body, self.plan.rules)
        except HookFailed as error:
            self.refuse(str(error))
        except CannotOverride as error:
            self.refuse(f"override cannot be set in a request of this test: {error}")

    def ask(self, call: ModelCall, stored: bool = True) -> Ask | None:
        """A request of the active run; None when no run is active in this process.

        Which conversation a request goes on with, where the provider keeps that and the request only names it, is told
        by what led to it: the name itself is another in every run.

        Args:
            stored: whether its answer is kept and replayed: what a mock says is nothing that a model said.

        Raises:
            Refusal: its sample is not known and may not be asked for.
        """
        if os.getpid() != self._pid:
            return None  # a child made by fork: neither the store's thread nor this run exist in it
        with self._lock:
            running = self._run
            if running is None:
                return None
            recognised = call.key
            if call.previous is not None:
                call = call.after("\n".join(running.answers.get(call.previous, (call.previous,))))
            occurrence = 0
            while (call.key, occurrence) in running.busy or (call.key, occurrence) in running.finished:
                occurrence += 1
            place = (call.key, occurrence)
            running.busy.add(place)
            if place not in running.started:
                running.started.append(place)
            if len(self.requests) < KEPT_REQUESTS:
                self.requests.setdefault(call.key, call.canonical)
            asked = Ask(self, call, place, running, recognised, stored)
            try:
                shelf = self._shelf(asked)
                known = shelf.known.pop(running.index, None) if stored else None
                if known is None and stored and self.plan.cache == "replay":
                    self.refuse(
                        "a sample is not in the store and cache=replay asks no model"
                        f" (run {running.index}, {call.family.name}); fill the store with --determinism-cache=auto"
                    )
                if known is None and not asked.is_free and self.budget is not None:
                    budget, charge = self.budget, asked.charge
                    self.guarded(lambda: budget.check(charge))
            except BaseException:
                running.busy.discard(place)
                raise
            asked.known = known
            return asked

    def at_hand(self, place: Place) -> set[Exchange]:
        """What runs to come will be told at a place, as far as that is known."""
        with self._lock:
            shelf = self._shelves.get(place)
            return {known.exchange for known in shelf.known.values()} if shelf else set()

    def refuse(self, message: str) -> NoReturn:
        self.refusal = message
        raise Refusal(message)

    def _shelf(self, asked: Ask) -> _Shelf:
        """The shelf of a place, filled from the store for the active run and those after it."""
        shelf = self._shelves.setdefault(asked.place, _Shelf())
        start = asked.run.index
        if start >= shelf.read_up_to:
            stop = min(start + WINDOW, self.plan.runs)
            store = self.store
            if store is not None:
                keys = {self.key(asked.place, run): run for run in range(start, max(stop, start + 1))}
                found = self.guarded(lambda: store.read(keys, self.plan.not_before))
                for key, sample in found.items():
                    try:
                        answer = read_answer(asked.call, sample.body, sample.content_type)
                    except Unreadable:
                        continue
                    known = Known(sample, answer, self._exchange(asked.place, answer), stored=True)
                    shelf.known.setdefault(keys[key], known)
                    self._stocked.add(asked.place)
                    shelf.note(sample, answer)
            shelf.read_up_to = max(stop, start + 1)
        return shelf

    def guarded(self, use: Callable[[], T]) -> T:
        """Use the store or the budget; a refusal is remembered, whatever the application makes of it."""
        try:
            return use()
        except Refusal as refusal:
            self.refusal = str(refusal)
            raise

    def key(self, place: Place, run: int) -> str:
        """The key of a run's sample in the store."""
        return sample_key(place[0], self.plan.load, self.plan.attempt, place[1], run)

    def _exchange(self, place: Place, answer: Answer) -> Exchange:
        output = self._texts.setdefault(answer.output, answer.output)
        made = Exchange(
            *place,
            output,
            answer.model,
            answer.fingerprint,
            answer.finish_reason,
            answer.input_tokens,
            answer.output_tokens,
            self._texts.setdefault(answer.reasoning, answer.reasoning),
            answer.tool_calls,
            answer.cached_tokens,
            answer.tokens,
        )
        return self._exchanges.setdefault(made, made)


class Ask:
    """One request of the active run, from its start to its answer.

    Attributes:
        known: its sample, if it need not be asked.
        recognised: the call's key by the request alone.
        is_stored: whether its answer is kept and replayed, see `Sampler.ask`.
        in_words: tells of an error of the call, without the credentials in it.
        to_keep: the canonical request as parsed JSON, without the credentials in it; None where nobody knows them.
    """

    def __init__(
        self,
        sampler: Sampler,
        call: ModelCall,
        place: Place,
        run: _Running,
        recognised: str,
        stored: bool,
    ) -> None:
        self.sampler = sampler
        self.is_stored = stored
        self.in_words: Callable[[Exception], str] = named
        self.to_keep: Callable[[str], dict[str, Any] | None] = lambda canonical: None
        self._store = sampler.store if stored else None
        self.call = call
        self.place = place
        self.run = run
        self.recognised = recognised
        self.known: Known | None = None
        self._is_call = True
        self._unreadable = ""
        # What this run had been told when it asked: runs that had been told the same will ask the same.
        self._told = {place: exchange.told for place, exchange in run.finished.items()}

    def starts(self, count: int) -> list[float]:
        """Seconds to wait before each of `count` calls that are made together.

        They are spread over the time one call takes: the server's batch then grows and shrinks under way, while
        requests in lockstep would share every batch and hide what they should show.
        """
        sampler = self.sampler
        with sampler._lock:
            return [sampler.random.uniform(0, self.seconds or 0.0) for _ in range(count)]

    @property
    def seconds(self) -> float | None:
        """How long a call for this request takes; None before there was one."""
        return self.sampler._shelves[self.place].seconds

    @property
    def length(self) -> int | None:
        """How long its answer is, in tokens; None before there was one."""
        return self.sampler._shelves[self.place].length

    @property
    def held(self) -> bool:
        """Whether fetching ahead for this request proved harmful, or there is no company for it."""
        return self.call.key in self.sampler._held or self._is_deserted()

    def _is_deserted(self) -> bool:
        crowd = self.sampler.crowd
        return crowd is not None and crowd.route(self.call).failed > 0

    def ahead(self) -> list[int]:
        """The later runs that will certainly ask the same and whose samples are not at hand.

        Certain is what earlier runs showed: most of those that had been told the same so far asked this next. So
        the first run to come here travels alone, and a prompt that differs in every run is never fetched ahead.
        """
        sampler = self.sampler
        with sampler._lock:
            plan = sampler.plan
            if plan.concurrency == 1 or self.held:
                return []
            alike, asked = self._earlier_runs()
            if 2 * asked <= alike:
                return []
            shelf = sampler._shelves[self.place]
            last = min(plan.runs, self.run.index + plan.batch, shelf.read_up_to)
            return [
                run
                for run in range(self.run.index + 1, last)
                if run not in shelf.known and self._will_be_told_the_same(run)
            ]

    def _earlier_runs(self) -> tuple[int, int]:
        """How many earlier runs had been told the same, and how many of them asked this."""
        traces = self.sampler._traces
        if not self._told:
            return traces.total(), self.sampler._askers[self.place]
        alike = asked = 0
        for trace, count in traces.items():
            told = dict(trace)
            if all(told.get(place) == heard for place, heard in self._told.items()):
                alike += count
                asked += count if self.place in told else 0
        return alike, asked

    def _will_be_told_the_same(self, run: int) -> bool:
        for place, heard in self._told.items():
            shelf = self.sampler._shelves.get(place)
            known = shelf.known.get(run) if shelf else None
            if known is None or known.exchange.told != heard:
                return False
        return True

    def sent(self) -> None:
        """A request goes out to the server."""
        sampler = self.sampler
        self.goes_out()
        with sampler._lock:
            sampler.calls.live += 1
            if sampler.calls.live == 1 and self._store is not None:
                self._store.get_ready()
        if sampler.crowd is not None:
            sampler.crowd.sampled()

    @property
    def is_free(self) -> bool:
        """Whether nobody charges for it: what answers in place of a server, and the bundled one."""
        origins = self.sampler.plan.rules.origins
        return not self.is_stored or any(self.call.url.startswith(f"{origin}/") for origin in origins)

    @property
    def charge(self) -> Charge:
        """What is charged for it, as far as that is known before its answer."""
        shelf = self.sampler._shelves[self.place]
        shelf.charge = shelf.charge or Charge.of(self.call)
        return shelf.charge

    def goes_out(self) -> None:
        """A call to its address and model goes out, its own or that of a neighbour."""
        self.sampler.bill.sent()
        if self.is_free:
            self.sampler.bill.came(None)

    def charged(self, answer: Answer | None) -> None:
        """Such a call has an answer, or one that nobody charges for (None)."""
        if not self.is_free:
            self.sampler.bill.came(None if answer is None else self.charge.answered_by(answer))

    def keep(self, run: int, sample: Sample) -> Known | None:
        """Keep what the server sent for a run; None for what is no answer, which is never kept."""
        known = self._read(run, sample)
        store = self._open_store()
        if known is not None and store is not None:
            self.sampler.guarded(lambda: store.write(self.sampler.key(self.place, run), sample, self._first_kept()))
        return known

    async def keep_async(self, run: int, sample: Sample) -> Known | None:
        """As `keep`, while the event loop goes on."""
        known = self._read(run, sample)
        store = self._open_store()
        if known is not None and store is not None:
            writing = store.start_writing(self.sampler.key(self.place, run), sample, self._first_kept())
            await finished(writing)
            self.sampler.guarded(lambda: store.result(writing))
        return known

    def _first_kept(self) -> Callable[[], StoredRequest] | None:
        """What is to be kept of the request with the first sample of this experiment."""
        with self.sampler._lock:
            shelf = self.sampler._shelves[self.place]
            first, shelf.kept = not shelf.kept, True
        return self._stored_request if first else None

    def _stored_request(self) -> StoredRequest:
        family, test = self.call.family, self.sampler.plan.test
        request = self.to_keep(self.call.canonical)
        model = None if request is None else model_of(family, request["url"], request["body"])
        return StoredRequest.of(family.name, model, request, test)

    def _open_store(self) -> SampleStore | None:
        """Where a sample is kept now: nowhere while neighbours fail, since later sessions would take it for one that
        had company."""
        return None if self._is_deserted() else self._store

    def _read(self, run: int, sample: Sample) -> Known | None:
        sampler = self.sampler
        if 400 <= sample.status < 500:
            # Too many requests, or one that is refused whoever sends it: more of the same helps nobody.
            with sampler._lock:
                sampler._held.add(self.call.key)
        if not 200 <= sample.status < 300:
            self.charged(None)
            return None
        try:
            answer = read_answer(self.call, sample.body, sample.content_type)
        except NotAModelCall:
            self.charged(None)
            self._is_call = False
            return None
        except Unreadable as error:
            # An application behind a test client has routes of its own, and answers of its own form.
            self._is_call = self.is_stored
            if run == self.run.index:
                self._unreadable = str(error)
            return None
        self.charged(answer)
        with sampler._lock:
            known = Known(sample, answer, sampler._exchange(self.place, answer), stored=False)
            shelf = sampler._shelves[self.place]
            shelf.note(sample, answer)
            calls = sampler.calls
            calls.answers += 1
            calls.first_answer_at = calls.first_answer_at or time.monotonic()
            if run != self.run.index:
                shelf.known[run] = known
                sampler._stocked.add(self.place)
        return known

    def concluded(self, received: Received) -> None:
        """The run gets this response."""
        if received.broken is not None:
            self.failed(named(received.broken))
        elif not self._is_call:
            self.abandoned()
        elif received.known is None:
            self.failed(reason_of(received.sample, self._unreadable))
        else:
            self.answered(received.known)

    def answered(self, known: Known) -> None:
        with self.sampler._lock:
            calls = self.sampler.calls
            if known.stored:
                if not self.is_free:
                    self.sampler.bill.found(self.charge.answered_by(known.answer))
                calls.cached += 1
                calls.oldest = min(known.sample.at, calls.oldest or known.sample.at)
            self.run.finished[self.place] = known.exchange
            if known.answer.id is not None:
                self.run.answers[known.answer.id] = (self.place[0], *known.exchange.told)
            self.run.busy.discard(self.place)
            self.run.failures.pop(self.place, None)

    def failed(self, reason: str) -> None:
        """The run gets an error; the client may try again, and what it then gets is this exchange."""
        with self.sampler._lock:
            self.run.busy.discard(self.place)
            self.run.failures[self.place] = reason

    def abandoned(self) -> None:
        """The call was cancelled or refused, or was none: neither an answer nor an API error."""
        with self.sampler._lock:
            self.run.busy.discard(self.place)


def _trace(finished: Mapping[Place, Exchange]) -> Trace:
    return tuple((place, exchange.told) for place, exchange in finished.items())


def named(error: Exception) -> str:
    """An exception in one line: its type, and its text if it has one."""
    # urllib3 wraps the error of the last try in one that tells of the tries.
    reason = getattr(error, "reason", None)
    if isinstance(reason, Exception):
        error = reason
    return ": ".join(filter(None, (type(error).__name__, _in_short(str(error)))))


def reason_of(sample: Sample, unreadable: str) -> str:
    """An HTTP error, or a response that is no answer, in one line."""
    if sample.status < 300:
        return _in_short(unreadable) or "no answer"
    return ": ".join(filter(None, (f"HTTP {sample.status}", _in_short(_complaint(sample.body)))))


def _complaint(body: bytes) -> str:
    """What a server says in an error: its message where that is found, else all of it."""
    text = body.decode("utf-8", "replace")
    try:
        content = json.loads(text)
    except (ValueError, RecursionError):
        return text
    if isinstance(content, list) and content:
        content = content[0]
    if isinstance(content, dict):
        content = content.get("error", content)
    if isinstance(content, dict):
        content = content.get("message", content.get("detail"))
    return content if isinstance(content, str) else text


def _in_short(text: str) -> str:
    return " ".join(text.split())[:200]


def seed_of(*parts: object) -> int:
    """A seed that is new in each session and stands in the report."""
    return random.Random(f"{time.time_ns()}{parts}").getrandbits(32)
