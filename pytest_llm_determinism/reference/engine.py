"""Continuous batching: one thread a model that runs steps, and requests that join and leave at every step.

A step admits the requests that wait (as long as there is room), runs the tokens of all sequences through the
network together (whole prompts of the new ones, one token of each running one) and samples a token for each
sequence. Sequences that are done leave at once, so the batch grows and shrinks with whoever is there.

The engine has no randomness of its own: the same requests admitted at the same steps give the same answers.
"""

from __future__ import annotations

import heapq
import math
import threading
from collections import Counter, deque
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any, NamedTuple

import numpy as np
import numpy.typing as npt

from . import words
from .model import Network, Span, Step

__all__ = ["MAX_BATCH", "BatchLog", "Composition", "Engine", "Generation", "Sampling", "Token"]

MAX_BATCH = 32
"""Most sequences in a step. Those beyond it wait, first come first served."""

_PROMPT_TOKENS = 4096


@dataclass(frozen=True, slots=True)
class Sampling:
    """What a request asks of the sampler, in the words of the OpenAI API."""

    max_tokens: int
    temperature: float = 1.0
    top_p: float = 1.0
    seed: int | None = None
    stop: tuple[str, ...] = ()
    logit_bias: tuple[tuple[int, float], ...] = ()
    presence_penalty: float = 0.0
    frequency_penalty: float = 0.0
    top_logprobs: int | None = None


@dataclass(frozen=True, slots=True)
class Token:
    """A produced token: its text, its log-probability and the likeliest alternatives, where asked for."""

    id: int
    text: str
    logprob: float = 0.0
    top: tuple[tuple[int, str, float], ...] = ()


class Composition(NamedTuple):
    """Who shared a step, and what followed from it.

    Of `sequences` answers in the making `own` belong to the request that looks; together they brought `tokens`
    tokens: whole prompts of those that had just joined, one of every other. `capacity` and `parts` are as in
    `model.Step`.
    """

    sequences: int
    own: int
    tokens: int
    capacity: int | None
    parts: int | None


@dataclass(eq=False, slots=True)
class BatchLog:
    """What a request met in the batch: the steps that any of its answers took part in.

    `stretches` are the compositions in order, each with the number of steps it lasted. `dropped` is how often an
    expert had no room for a token in these steps, whosever it was.
    """

    stretches: list[tuple[Composition, int]] = field(default_factory=list)
    dropped: int = 0

    def add(self, composition: Composition, dropped: int) -> None:
        self.dropped += dropped
        if self.stretches:
            latest, steps = self.stretches[-1]
            if latest == composition:
                self.stretches[-1] = (composition, steps + 1)
                return
        self.stretches.append((composition, 1))


@dataclass(eq=False, slots=True)
class Generation:
    """One answer in the making. The engine's thread writes it, whoever asked reads it.

    `progress` is called from that thread when the answer is finished, and with `every_token` after each of
    its tokens. Of `text` only the first `visible` characters are certain: the rest may turn out to begin a
    stop string. `dropped` says in which of its steps experts had no room for its tokens, as (step, how often):
    step 0 takes the prompt and makes the first token of the answer, step 1 takes that and makes the second. The
    answers to one request share their `log`.
    """

    prompt: Sequence[int]
    sampling: Sampling
    progress: Callable[[], None]
    log: BatchLog = field(default_factory=BatchLog)
    every_token: bool = False
    tokens: list[Token] = field(default_factory=list)
    dropped: list[tuple[int, int]] = field(default_factory=list)
    text: str = ""
    visible: int = 0
    finish_reason: str | None = None
    error: BaseException | None = None
    cancelled: bool = False

    @property
    def done(self) -> bool:
        return self.finish_reason is not None or self.error is not None

    def cancel(self) -> None:
        """Nobody waits for this answer any more; it leaves the batch at the next step."""
        self.cancelled = True


@dataclass(eq=False, slots=True)
class _Sequence:
    generation: Generation
    slot: int
    pending: Sequence[int]
    random: np.random.Generator | None
    cached: int = 0
    counts: Counter[int] = field(default_factory=Counter)


class Engine:
    """The running batch of one network. `close` ends its thread; unfinished answers end with an error."""

    def __init__(self, network: Network, *, max_batch: int = MAX_BATCH, name: str = "engine") -> None:
        self.network = network
        self._max_batch = max_batch
        self._waiting: deque[Generation] = deque()
        self._running: list[_Sequence] = []
        self._slots = list(range(max_batch))
        self._changed = threading.Condition()
        self._closed = False
        # A daemon, so that a process that is told to end does not wait for answers nobody will read.
        self._thread = threading.Thread(target=self._run, name=name, daemon=True)
        self._thread.start()

    def submit(self, generations: Sequence[Generation]) -> None:
        """Hand over answers to be made; those of one call join in the same step, if there is room."""
        with self._changed:
            if self._closed:
                raise RuntimeError("the engine is closed")
            self._waiting.extend(generations)
            self._changed.notify()

    def close(self) -> None:
        with self._changed:
            self._closed = True
            self._changed.notify()
        self._thread.join()

    def _run(self) -> None:
        while True:
            with self._changed:
                while not (self._waiting or self._running or self._closed):
                    self._changed.wait()
                if self._closed:
                    self._fail(RuntimeError("the engine was closed"))
                    return
                self._admit()
            try:
                self._step()
            except Exception as error:
                with self._changed:
                    self._fail(error)

    def _admit(self) -> None:
        tokens = 0
        while self._waiting and self._slots and tokens < _PROMPT_TOKENS:
            generation = self._waiting.popleft()
            if generation.cancelled:
                continue
            tokens += len(generation.prompt)
            sampling = generation.sampling
            self._running.append(
                _Sequence(
                    generation,
                    heapq.heappop(self._slots),
                    generation.prompt,
                    np.random.default_rng(sampling.seed) if sampling.temperature > 0 else None,
                )
            )

    def _fail(self, error: Exception) -> None:
        unfinished = [*(sequence.generation for sequence in self._running), *self._waiting]
        for sequence in self._running:
            heapq.heappush(self._slots, sequence.slot)
        self._running.clear()
        self._waiting.clear()
        for generation in unfinished:
            generation.error = error
            generation.progress()

    def _step(self) -> None:
        self._leave([sequence for sequence in self._running if sequence.generation.cancelled])
        if not self._running:
            return
        step = self.network.forward(
            [
                Span(sequence.slot, sequence.pending, sequence.cached, len(sequence.generation.prompt))
                for sequence in self._running
            ]
        )
        # First, because whoever sees an answer finished may read all of it at once.
        self._log(step)
        best = step.logits.argmax(axis=1).tolist()
        done, moved = [], []
        for row, sequence in enumerate(self._running):
            generation = sequence.generation
            sequence.cached += len(sequence.pending)
            token = self._sample(sequence, step.logits[row], best[row])
            sequence.pending = (token.id,)
            _extend(generation, token)
            if generation.finish_reason is not None:
                done.append(sequence)
            elif generation.every_token:
                moved.append(generation)
        # Out of the batch before anyone hears of it: who asks again on hearing it must not meet the old
        # sequence.
        self._leave(done)
        for generation in (*moved, *(sequence.generation for sequence in done)):
            generation.progress()

    def _log(self, step: Step) -> None:
        tokens = 0
        own: dict[BatchLog, int] = {}
        for sequence in self._running:
            tokens += len(sequence.pending)
            log = sequence.generation.log
            own[log] = own.get(log, 0) + 1
        for log, count in own.items():
            log.add(Composition(len(self._running), count, tokens, step.capacity, step.parts), sum(step.dropped))
        for sequence, times in zip(self._running, step.dropped, strict=False):
            if times:
                sequence.generation.dropped.append((len(sequence.generation.tokens), times))

    def _leave(self, sequences: list[_Sequence]) -> None:
        for sequence in sequences:
            self._running.remove(sequence)
            heapq.heappush(self._slots, sequence.slot)

    def _sample(self, sequence: _Sequence, logits: npt.NDArray[np.float64], best: int) -> Token:
        sampling, generation = sequence.generation.sampling, sequence.generation
        if sampling.logit_bias or sampling.presence_penalty or sampling.frequency_penalty:
            logits = logits.copy()
            for token, bias in sampling.logit_bias:
                logits[token] += bias
            for token, count in sequence.counts.items():
                logits[token] -= sampling.presence_penalty + sampling.frequency_penalty * count
            best = int(logits.argmax())
        chosen = best
        if sequence.random is not None:
            chosen = _draw(logits, sampling, sequence.random)
        sequence.counts[chosen] += 1
        first = not generation.tokens
        text = words.piece(chosen, first=first)
        if sampling.top_logprobs is None:
            return Token(chosen, text)
        logprobs = _log_softmax(logits)
        order = np.argsort(-logits, kind="stable")[: sampling.top_logprobs].tolist()
        top = tuple((other, words.piece(other, first=first), float(logprobs[other])) for other in order)
        return Token(chosen, text, float(logprobs[chosen]), top)


def _log_softmax(logits: npt.NDArray[np.float64]) -> npt.NDArray[Any]:
    shifted = logits - logits.max()
    return np.asarray(shifted - math.log(math.fsum(np.exp(shifted).tolist())))


def _draw(logits: npt.NDArray[np.float64], sampling: Sampling, random: np.random.Generator) -> int:
    """A token from the smallest set of the likeliest whose probabilities reach `top_p`."""
    order = np.argsort(-logits, kind="stable")
    # At tiny temperatures the quotient overflows to -inf, whose exponential is the zero that is meant.
    with np.errstate(over="ignore"):
        mass = np.cumsum(np.exp((logits[order] - logits[order[0]]) / sampling.temperature))
    size = int(np.searchsorted(mass, sampling.top_p * mass[-1])) + 1
    mass = mass[:size]
    place = int(np.searchsorted(mass, random.random() * mass[-1], side="right"))
    return int(order[min(place, len(mass) - 1)])


def _extend(generation: Generation, token: Token) -> None:
    """Add a token to an answer and see whether it ends here."""
    sampling = generation.sampling
    if token.id == words.END_OF_TEXT:
        generation.visible = len(generation.text)
        generation.finish_reason = "stop"
        return
    before = len(generation.text)
    text = generation.text + token.text
    reason = None
    for stop in sampling.stop:
        # Earlier text was searched before; a stop string found now must reach into the new token.
        found = text.find(stop, max(0, before - len(stop) + 1))
        if found >= 0:
            text = text[:found]
            reason = "stop"
    generation.tokens.append(token)
    if reason is None and len(generation.tokens) >= sampling.max_tokens:
        reason = "length"
    generation.text = text
    held = 0 if reason else max((_overlap(text, stop) for stop in sampling.stop), default=0)
    generation.visible = len(text) - held
    # Last, because whoever reads a reason relies on everything else being final.
    generation.finish_reason = reason


def _overlap(text: str, stop: str) -> int:
    """How many characters at the end of the text may be the beginning of the stop string."""
    return next((size for size in range(len(stop) - 1, 0, -1) if text.endswith(stop[:size])), 0)
