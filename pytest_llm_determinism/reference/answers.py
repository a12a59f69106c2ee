"""Making the answers: engines, answers on their way, and what the APIs show of them in the same words."""

from __future__ import annotations

import asyncio
import contextlib
import json
import threading
import time
import uuid
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace

from starlette.requests import Request

from . import FINGERPRINT, words
from .engine import MAX_BATCH, BatchLog, Engine, Generation, Token
from .model import CONTEXT, build
from .questions import ApiError, Body, Question

__all__ = [
    "Answers",
    "Delta",
    "Models",
    "Reader",
    "answer_head",
    "chunk_end",
    "failure_event",
    "logprob_entries",
    "server_sent_event",
    "token_counts",
    "usage",
    "usage_chunk",
]


class Models:
    """The engines, each built when its model is first asked for."""

    def __init__(self, capacity_factor: float) -> None:
        self._capacity_factor = capacity_factor
        self._engines: dict[str, Engine] = {}
        self._lock = threading.Lock()

    def engine(self, name: str) -> Engine:
        """The engine of a model, built first if need be, which takes a moment. May be called from any thread."""
        with self._lock:
            engine = self._engines.get(name)
            if engine is None:
                network = build(name, slots=MAX_BATCH, capacity_factor=self._capacity_factor)
                engine = self._engines[name] = Engine(network, name=f"engine-{name}")
            return engine

    def ready(self, name: str) -> Engine | None:
        """The engine of a model if it is built already. Never waits."""
        return self._engines.get(name)

    def fingerprint(self, name: str) -> str:
        """Changes with whatever changes the arithmetic of a model, so with the capacity factor as well."""
        suffix = f"-{self._capacity_factor!r}".removesuffix(".0") if name == "moe-capacity" else ""
        return f"{FINGERPRINT}-{name}{suffix}"

    def close(self) -> None:
        """Close the engines that were built."""
        with self._lock:
            for engine in self._engines.values():
                engine.close()


class Answers:
    """All answers to one question, on their way. Leaving the context takes the unfinished ones out of the
    batch."""

    def __init__(self, question: Question, engine: Engine) -> None:
        loop = asyncio.get_running_loop()
        self._news = asyncio.Event()

        def progress() -> None:
            # The loop may be closed by the time an engine notices that the server stops.
            with contextlib.suppress(RuntimeError):
                loop.call_soon_threadsafe(self._news.set)

        self._network = engine.network
        self._log = BatchLog()
        self.generations: list[Generation] = []
        for prompt in question.prompts:
            for _ in range(question.choices):
                sampling = question.sampling
                if sampling.seed is not None:
                    # Each choice draws from a stream of its own, or all choices were the same.
                    sampling = replace(sampling, seed=sampling.seed % 2**64 + (len(self.generations) << 64))
                limit = min(sampling.max_tokens, CONTEXT - len(prompt))
                sampling = replace(sampling, max_tokens=limit)
                self.generations.append(
                    Generation(
                        prompt or [words.END_OF_TEXT], sampling, progress, self._log, every_token=question.stream
                    )
                )
        engine.submit(self.generations)

    def __enter__(self) -> Answers:
        return self

    def __exit__(self, *_: object) -> None:
        for generation in self.generations:
            generation.cancel()

    async def news(self) -> bool:
        """Wait until something happened; whether all answers are finished. Raises `ApiError` when the engine failed."""
        await self._news.wait()
        self._news.clear()
        for generation in self.generations:
            if generation.error is not None:
                raise ApiError(f"The engine failed: {generation.error!r}", status=500)
        return all(generation.done for generation in self.generations)

    def company(self) -> Body:
        """What every response and the end of every stream carry as `x_reference`: who shared the batch, and what
        experts dropped. The answers must be finished.
        """
        experts = {"experts": self._network.experts, "capacity_factor": self._network.capacity_factor}
        return (experts if self._network.experts else {}) | {
            "batch": [
                {"steps": steps, "sequences": shared.sequences, "own": shared.own, "tokens": shared.tokens}
                | ({} if shared.capacity is None else {"capacity": shared.capacity})
                | ({} if shared.parts is None else {"parts": shared.parts})
                for shared, steps in self._log.stretches
            ],
            "dropped": {
                "own": sum(times for generation in self.generations for _, times in generation.dropped),
                "batch": self._log.dropped,
            },
            "choices": [{"dropped_at": generation.dropped} for generation in self.generations],
        }

    async def finished(self, request: Request) -> bool:
        """Wait for all answers; False when the client went away first. Raises `ApiError` like `news`."""

        async def work() -> None:
            while not await self.news():
                pass

        async def gone() -> None:
            while (await request.receive())["type"] != "http.disconnect":
                pass

        tasks = [asyncio.create_task(work()), asyncio.create_task(gone())]
        try:
            await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            if not tasks[0].done():
                return False
            tasks[0].result()
            return True
        finally:
            for task in tasks:
                task.cancel()


@dataclass
class Delta:
    """What became certain of one answer since the last look."""

    index: int
    text: str
    tokens: list[Token]
    finish_reason: str | None


class Reader:
    """Follows the answers of a stream and cuts them into deltas: one for each token, one for the end.

    Tokens that came while nobody looked are not merged, so that the same answer is always the same stream.
    """

    def __init__(self, generations: Sequence[Generation]) -> None:
        self._generations = generations
        self._seen = [(0, 0) for _ in generations]
        self._ended = [False for _ in generations]

    @property
    def ended(self) -> bool:
        """Whether the last delta of all was handed out."""
        return all(self._ended)

    def deltas(self) -> Iterator[Delta]:
        """What is new since the last call, answer by answer, each in order. The last delta of an answer has its
        `finish_reason` and nothing else.
        """
        for index, generation in enumerate(self._generations):
            if self._ended[index]:
                continue
            # Read first what the engine's thread writes last.
            reason = generation.finish_reason
            visible = generation.visible
            count, start = self._seen[index]
            for token in generation.tokens[count:]:
                end = start + len(token.text)
                if end > visible and reason is None:
                    break
                yield Delta(index, generation.text[start : min(end, visible)], [token], None)
                count, start = count + 1, end
            self._seen[index] = (count, start)
            if reason is not None:
                self._ended[index] = True
                yield Delta(index, "", [], reason)


def token_counts(question: Question, generations: Sequence[Generation]) -> tuple[int, int]:
    """How many tokens the prompts have, each counted once whatever its choices, and how many the answers have."""
    return sum(map(len, question.prompts)), sum(len(generation.tokens) for generation in generations)


def usage(question: Question, generations: Sequence[Generation]) -> Body:
    """The `usage` of chat completions and completions."""
    prompt, answer = token_counts(question, generations)
    return {"prompt_tokens": prompt, "completion_tokens": answer, "total_tokens": prompt + answer}


def _entry(text: str, logprob: float) -> Body:
    return {"token": text, "logprob": logprob, "bytes": list(text.encode())}


def logprob_entries(tokens: Sequence[Token]) -> list[Body]:
    """The log-probabilities of chat completions and responses: an entry for each token."""
    return [
        _entry(token.text, token.logprob) | {"top_logprobs": [_entry(text, logprob) for _, text, logprob in token.top]}
        for token in tokens
    ]


def server_sent_event(data: Body, name: str | None = None) -> str:
    """One event of a stream, ready to be sent."""
    head = f"event: {name}\n" if name else ""
    return f"{head}data: {json.dumps(data, separators=(',', ':'), ensure_ascii=False)}\n\n"


def chunk_end(question: Question, answers: Answers, reader: Reader) -> Body:
    """What a chunk of chat completions and completions ends with. The last of a stream that has no chunk for the
    usage has `x_reference`."""
    if question.include_usage:
        return {"usage": None}
    return {"x_reference": answers.company()} if reader.ended else {}


def usage_chunk(head: Body, question: Question, answers: Answers) -> str:
    """The last chunk of a stream that was asked to end with the usage."""
    return server_sent_event(
        head | {"choices": [], "usage": usage(question, answers.generations), "x_reference": answers.company()}
    )


def failure_event(error: ApiError) -> str:
    """The event that ends a stream whose answer has failed: its status was sent long ago."""
    return server_sent_event(
        {"error": {"message": str(error), "type": "server_error", "param": None, "code": None}}, "error"
    )


def answer_head(prefix: str, kind: str, question: Question, fingerprint: str) -> Body:
    """What chat completions, completions and the chunks of both begin with. Each call makes a new id."""
    return {
        "id": f"{prefix}-{uuid.uuid4().hex}",
        "object": kind,
        "created": int(time.time()),
        "model": question.model,
        "system_fingerprint": fingerprint,
    }
