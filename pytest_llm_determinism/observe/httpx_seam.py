"""The seam at ``Client.send`` and ``AsyncClient.send`` of httpx and httpx2.

Every SDK built on them passes here, whatever its transport. The response given back is always made anew from what was
received or stored, so that a live answer and a replayed one take the same way and the application cannot tell them
apart. A streamed answer is read to its end before it is handed on.
"""

from __future__ import annotations

import datetime
import time
import uuid
from collections.abc import AsyncIterator, Callable, Iterator
from typing import Any

from pytest_llm_determinism import fanout
from pytest_llm_determinism.observe.exchanges import (
    STAND_INS,
    asked,
    exchange,
    has_length,
    is_watched,
    pieces,
    received,
    written_in,
)
from pytest_llm_determinism.observe.patching import Seam
from pytest_llm_determinism.sampling import Ask, Received
from pytest_llm_determinism.shapes import ModelCall

_LIBRARIES = ("httpx", "httpx2")
_OWN_PACKAGES = frozenset((*_LIBRARIES, "httpcore", "httpcore2"))
_OVER_AIOHTTP = frozenset(("httpx_aiohttp", "openai", "litellm"))
"""Packages with a transport over aiohttp, which goes to the network as the library's own does."""


def _wrappers(module: Any) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    library = _Library(module)
    yield module.Client, "send", lambda original: _sync_send(original, library)
    yield module.AsyncClient, "send", lambda original: _async_send(original, library)


SEAM = Seam(_LIBRARIES, _wrappers)


def _sync_send(original: Any, library: _Library) -> Any:
    def send(client: Any, request: Any, **options: Any) -> Any:
        if not is_watched(request.method, request.url.path, request.headers.get("content-type")):
            return original(client, request, **options)
        ask = library.ask(client, request, request.read())
        if ask is None:
            return original(client, request, **options)
        with exchange(ask, request.headers.multi_items(), str(request.url)):
            if ask.known is not None:
                for hook in client.event_hooks["request"]:
                    hook(request)
                answer = Received(ask.known.sample, known=ask.known)
            else:
                answer = fanout.fetch(
                    ask,
                    lambda call, own: library.send(original, client, request, call, own, options),
                    library.is_ordinary(client, request),
                    _patience(client, request),
                    library.connections(client, request),
                )
            response = library.response(client, request, answer)
            if ask.known is not None:
                for hook in client.event_hooks["response"]:
                    hook(response)
            if not options.get("stream"):
                response.read()
            ask.concluded(answer)
            return response

    return send


def _async_send(original: Any, library: _Library) -> Any:
    async def send(client: Any, request: Any, **options: Any) -> Any:
        if not is_watched(request.method, request.url.path, request.headers.get("content-type")):
            return await original(client, request, **options)
        ask = library.ask(client, request, await request.aread())
        if ask is None:
            return await original(client, request, **options)
        with exchange(ask, request.headers.multi_items(), str(request.url)):
            if ask.known is not None:
                for hook in client.event_hooks["request"]:
                    await hook(request)
                answer = Received(ask.known.sample, known=ask.known)
            else:
                answer = await fanout.fetch_async(
                    ask,
                    lambda call, own: library.send_async(original, client, request, call, own, options),
                    library.is_ordinary(client, request),
                    _patience(client, request),
                    library.connections(client, request),
                )
            response = library.response(client, request, answer)
            if ask.known is not None:
                for hook in client.event_hooks["response"]:
                    await hook(response)
            if not options.get("stream"):
                await response.aread()
            ask.concluded(answer)
            return response

    return send


def _patience(client: Any, request: Any) -> float:
    """Seconds the client waits for an answer: the request's own read timeout, else the client's."""
    timeout = request.extensions.get("timeout", {}).get("read", client.timeout.read)
    return float("inf") if timeout is None else float(timeout)


class _Library:
    """What differs between httpx and httpx2: the module the classes come from."""

    def __init__(self, module: Any) -> None:
        self._module = module

        class Replayed(module.SyncByteStream, module.AsyncByteStream):  # type: ignore[misc]
            """The body of a response, in the pieces in which a server would have sent it."""

            def __init__(self, answer: Received) -> None:
                self._answer = answer
                self.elapsed = datetime.timedelta(seconds=answer.sample.seconds)

            def __iter__(self) -> Iterator[bytes]:
                yield from pieces(self._answer.sample)
                if self._answer.broken is not None:
                    raise self._answer.broken

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for piece in self:
                    yield piece

        self._stream = Replayed

    def send(
        self, original: Any, client: Any, request: Any, call: ModelCall, own: bool, options: dict[str, Any]
    ) -> Received:
        """One live call, read to its end."""
        started = time.perf_counter()
        sender, sent = self._to_send(client, request, call, own)
        response = original(sender, sent, **{**options, "stream": True})
        arrived: list[bytes] = []
        broken = None
        try:
            arrived.extend(response.iter_bytes())
        except Exception as error:
            broken = error
        finally:
            response.close()
        return self._received(response, arrived, started, broken)

    async def send_async(
        self, original: Any, client: Any, request: Any, call: ModelCall, own: bool, options: dict[str, Any]
    ) -> Received:
        started = time.perf_counter()
        sender, sent = self._to_send(client, request, call, own)
        response = await original(sender, sent, **{**options, "stream": True})
        arrived: list[bytes] = []
        broken = None
        try:
            async for piece in response.aiter_bytes():
                arrived.append(piece)  # noqa: PERF401  # a comprehension would lose what came before an error
        except Exception as error:
            broken = error
        finally:
            await response.aclose()
        return self._received(response, arrived, started, broken)

    def _received(self, response: Any, arrived: list[bytes], started: float, broken: Exception | None) -> Received:
        sent = response.request
        return received(
            response.status_code,
            response.headers.multi_items(),
            b"".join(arrived),
            sent.headers.multi_items(),
            str(sent.url),
            started,
            broken,
        )

    def response(self, client: Any, request: Any, answer: Received) -> Any:
        """A response that reads as the one that was received."""
        sample = answer.sample
        headers = list(sample.headers)
        if has_length(sample):
            headers.append(("content-length", str(len(sample.body))))
        response = self._module.Response(
            sample.status,
            headers=headers,
            stream=self._stream(answer),
            request=request,
            extensions={"http_version": b"HTTP/1.1"},
            default_encoding=getattr(client, "_default_encoding", "utf-8"),
        )
        response.elapsed = datetime.timedelta(seconds=sample.seconds)
        return response

    def ask(self, client: Any, request: Any, body: bytes) -> Ask | None:
        # An application that is reached without a network makes its own calls only when it is run.
        transport = self._transport(client, request)
        inside = (
            isinstance(transport, self._module.MockTransport)
            or hasattr(transport, "app")
            or not STAND_INS.isdisjoint(_packages(transport))
        )
        return asked(request.method, str(request.url), body, request.headers.multi_items(), stored=not inside)

    def is_ordinary(self, client: Any, request: Any) -> bool:
        """Whether calls go to the network by the library's own transport, or by one over aiohttp. A transport of the
        application's own may do anything: it is asked only as often as the application asks."""
        transport = self._transport(client, request)
        packages = _packages(transport)
        if hasattr(transport, "_pool"):
            return packages <= _OWN_PACKAGES
        return bool(packages) and packages <= _OVER_AIOHTTP

    def connections(self, client: Any, request: Any) -> float:
        """The most connections that a client opens; without limit where one carries many requests."""
        pool = getattr(self._transport(client, request), "_pool", None)
        most = getattr(pool, "_max_connections", None)
        return float("inf") if most is None or getattr(pool, "_http2", False) else float(most)

    def _transport(self, client: Any, request: Any) -> Any:
        try:
            return client._transport_for_url(request.url)
        except AttributeError:
            return None

    def _to_send(self, client: Any, request: Any, call: ModelCall, own: bool) -> tuple[Any, Any]:
        if own and not call.rewritten:
            return client, request
        headers = request.headers.copy()
        if call.rewritten:
            headers.pop("content-length", None)
        if not own and "idempotency-key" in headers:
            # The same key would be answered with the answer to the first call.
            headers["idempotency-key"] = str(uuid.uuid4())
        copy = self._module.Request(
            request.method,
            call.url if call.rewritten else request.url,
            headers=headers,
            content=call.body,
            extensions=dict(request.extensions),
        )
        return client if own else self._hookless(client), copy

    def _hookless(self, client: Any) -> Any:
        """The same client without its event hooks: they run once per call of the application, when it is answered."""
        if not any(client.event_hooks.values()):
            return client
        kind = self._module.AsyncClient if isinstance(client, self._module.AsyncClient) else self._module.Client
        # Not a subclass of the application's: its finalizer would close the connections both share.
        twin = object.__new__(kind)
        twin.__dict__.update(client.__dict__)
        twin.event_hooks = {}
        return twin


def _packages(transport: Any) -> set[str]:
    """The packages whose code handles the requests of a transport, whatever was patched into it."""
    layers = [type(layer) for layer in (transport, getattr(transport, "_pool", None)) if layer is not None]
    methods = [
        getattr(layer, name)
        for layer in layers
        for name in ("handle_request", "handle_async_request")
        if hasattr(layer, name)
    ]
    return set(map(written_in, methods))
