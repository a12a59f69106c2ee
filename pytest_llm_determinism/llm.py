"""The `llm` fixture: the short way to ask a model.

Live calls go through the `openai` SDK, so they pass the same seam as an application's. When the sample is at hand the
SDK is not even imported.
"""

from __future__ import annotations

import contextlib
import json
import os
from collections.abc import Callable, Iterator, Sequence
from typing import Any, Literal

from pytest_llm_determinism.observe import active, observing
from pytest_llm_determinism.outcomes import Inconclusive
from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.sampling import Sampler
from pytest_llm_determinism.session import Session
from pytest_llm_determinism.settings import Settings
from pytest_llm_determinism.shapes import Answer, ModelCall
from pytest_llm_determinism.shapes.answer import ToolCall
from pytest_llm_determinism.verdict import TEMPERATURE_ADVICE

Api = Literal["chat", "completions", "responses"]
Messages = Sequence[dict[str, Any]]

_PATHS = {"chat": "/chat/completions", "completions": "/completions", "responses": "/responses"}
_DEFAULT_BASE_URL = "https://api.openai.com/v1"
_UNSET: Any = object()


class Reply(str):
    """A model's answer as text, with what came along.

    Attributes:
        tool_calls: the tools the model wants called, by name and arguments (JSON text).
        finish_reason: as the provider names it.
        fingerprint: the backend's ``system_fingerprint``, where it tells one.
        model: the model that answered, as the backend names it.
        usage: tokens, as ``{"input_tokens": …, "output_tokens": …}``; None where the provider does not count.
        raw: the response as parsed JSON.
    """

    tool_calls: tuple[ToolCall, ...]
    finish_reason: str | None
    fingerprint: str | None
    model: str | None
    usage: dict[str, int | None]
    raw: Any

    @staticmethod
    def of(answer: Answer) -> Reply:
        reply = Reply(answer.text)
        reply.tool_calls = answer.tool_calls
        reply.finish_reason = answer.finish_reason
        reply.fingerprint = answer.fingerprint
        reply.model = answer.model
        reply.usage = {"input_tokens": answer.input_tokens, "output_tokens": answer.output_tokens}
        reply.raw = answer.raw
        return reply


class LLM:
    """Asks a model: ``llm("prompt")`` or ``llm(messages)``, and ``await llm.ask_async(…)`` in async tests.

    Keyword arguments are sent as they are (``max_tokens=``, ``seed=``, ``tools=``, …). In a marked test each run asks
    for itself; elsewhere each call is made once and answered from the store in the next session.

    Args:
        client: builds the SDK's client instead of the default one, or None.
        test: node id of the test that asks.
    """

    def __init__(
        self,
        session: Session,
        settings: Settings,
        model: str | None,
        client: Callable[[], Any] | None = None,
        test: str = "",
    ) -> None:
        self._session = session
        self._settings = settings
        self._model = model
        self._make_client = client
        self._test = test
        self._client: Any = None
        self._alone: Sampler | None = None

    def __call__(
        self,
        prompt: str | Messages,
        *,
        model: str | None = None,
        api: Api = "chat",
        temperature: float | None = _UNSET,
        **parameters: Any,
    ) -> Reply:
        body = self._body(prompt, model, api, temperature, parameters)
        with self._observed() as sampler:
            call = self._call(sampler, api, body)
            known = self._known(sampler, call)
            if known is not None:
                return known
            with _temperature_advice():
                content = self._sync_client().post(_PATHS[api], cast_to=object, body=body)
            return Reply.of(call.family.read(content))

    async def ask_async(
        self,
        prompt: str | Messages,
        *,
        model: str | None = None,
        api: Api = "chat",
        temperature: float | None = _UNSET,
        **parameters: Any,
    ) -> Reply:
        """As calling the fixture, without blocking the event loop."""
        body = self._body(prompt, model, api, temperature, parameters)
        with self._observed() as sampler:
            call = self._call(sampler, api, body)
            known = self._known(sampler, call)
            if known is not None:
                return known
            with _temperature_advice():
                content = await self._post_async(_PATHS[api], body)
            return Reply.of(call.family.read(content))

    def close(self) -> None:
        """Close the client that was opened for the test."""
        if self._client is not None and self._make_client is None:
            self._client.close()
        self._client = None

    def _body(
        self,
        prompt: str | Messages,
        model: str | None,
        api: Api,
        temperature: float | None,
        parameters: dict[str, Any],
    ) -> dict[str, Any]:
        if api not in _PATHS:
            raise ValueError(f"api={api!r}: write one of {', '.join(_PATHS)}")
        if parameters.get("stream"):
            raise ValueError("llm returns whole answers; leave stream out, or use the SDK's own client to stream")
        chosen = model or self._model
        if chosen is None:
            raise ValueError(
                "llm does not know which model to ask: write llm(…, model='…'), --determinism-model, or"
                " determinism_model in the ini file"
            )
        body: dict[str, Any] = {"model": chosen}
        if api == "chat":
            body["messages"] = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else list(prompt)
        else:
            body["prompt" if api == "completions" else "input"] = prompt if isinstance(prompt, str) else list(prompt)
        degree = self._settings.temperature if temperature is _UNSET else temperature
        if degree is not None:
            body["temperature"] = degree
        return {**body, **parameters}

    @contextlib.contextmanager
    def _observed(self) -> Iterator[Sampler]:
        """The active run, or one of our own: outside a marked body each question has one answer."""
        if active.sampler is not None:
            yield active.sampler
            return
        if self._alone is None:
            # One answer is no experiment, and no neighbours are paid for it.
            load = next((load for load in self._settings.load if load != "crowd"), "solo")
            plan = self._session.plan(self._settings, load, attempt=0, runs=1, seed=0, test=self._test)
            self._alone = Sampler(plan, self._session.store(self._settings), self._session.budget)
            self._alone.start_run(0)
        try:
            with observing(self._alone):
                yield self._alone
        except Refusal as refusal:
            raise Inconclusive(str(refusal)) from None

    def _known(self, sampler: Sampler, call: ModelCall) -> Reply | None:
        if self._make_client is not None:
            return None  # only that client knows its address; the seam finds the sample
        ask = sampler.ask(call)
        if ask is None:
            return None
        if ask.known is None:
            ask.abandoned()
            return None
        ask.answered(ask.known)
        return Reply.of(ask.known.answer)

    def _call(self, sampler: Sampler, api: Api, body: dict[str, Any]) -> ModelCall:
        url = (os.environ.get("OPENAI_BASE_URL") or _DEFAULT_BASE_URL).rstrip("/") + _PATHS[api]
        call = sampler.recognise("POST", url, json.dumps(body).encode())
        if call is None:
            raise ValueError(f"not a question the {api} API knows: {sorted(body)}")
        return call

    def _sync_client(self) -> Any:
        if self._client is None:
            if self._make_client is not None:
                self._client = self._make_client()
            else:
                import openai

                self._client = openai.OpenAI()
        return self._client

    async def _post_async(self, path: str, body: dict[str, Any]) -> Any:
        import openai

        if self._make_client is None:
            # One for each live call: a client of an event loop that is gone can neither be used nor closed.
            async with openai.AsyncOpenAI() as client:
                return await client.post(path, cast_to=object, body=body)
        client = self._sync_client()
        if isinstance(client, openai.AsyncOpenAI):
            return await client.post(path, cast_to=object, body=body)
        import anyio.to_thread

        return await anyio.to_thread.run_sync(lambda: client.post(path, cast_to=object, body=body))


@contextlib.contextmanager
def _temperature_advice() -> Iterator[None]:
    try:
        yield
    except Exception as error:
        if getattr(error, "status_code", None) == 400 and "temperature" in str(error):
            error.add_note(TEMPERATURE_ADVICE)
        raise
