"""The seam at ``Client.send`` and ``AsyncClient.send`` of httpx and httpx2.

Every SDK built on them passes here, whatever its transport. The response given back is always made anew from what was
received or stored, so that a live answer and a replayed one take the same way and the application cannot tell them
apart. A streamed answer is read to its end before it is handed on.
"""

from __future__ import annotations

import contextlib
import contextvars
import datetime
import importlib.abc
import importlib.machinery
import sys
import time
import types
import uuid
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from typing import Any

from pytest_llm_determinism import fanout
from pytest_llm_determinism.observe import active
from pytest_llm_determinism.observe.secrets import credentials, hidden, hidden_bytes
from pytest_llm_determinism.sampling import Ask, Received
from pytest_llm_determinism.shapes import may_be_model_call, recognise
from pytest_llm_determinism.store import Sample

LIBRARIES = ("httpx", "httpx2")
_OWN_PACKAGES = (*LIBRARIES, "httpcore", "httpcore2")

_outer: contextvars.ContextVar[tuple[str, bytes] | None] = contextvars.ContextVar("outer", default=None)
"""The request that is being sent in this context. A call inside it to the same URL with the same body is the same
exchange (one client built on another); any other is a call of its own (an application behind a test client)."""


@contextlib.contextmanager
def installed() -> Iterator[None]:
    """Wrap the clients while open: of the libraries already imported now, of the others when they are."""
    wrapped: list[tuple[type, Any, Any]] = []

    def wrap(module: types.ModuleType) -> None:
        for name, make in (("Client", _sync_send), ("AsyncClient", _async_send)):
            client = getattr(module, name, None)
            # One class may be reachable by two names (an alias of one library for the other).
            if isinstance(client, type) and all(client is not known for known, _, _ in wrapped):
                original = client.__dict__["send"]
                replacement = make(original, _Library(module))
                wrapped.append((client, original, replacement))
                client.send = replacement  # type: ignore[attr-defined]

    for name in LIBRARIES:
        module = sys.modules.get(name)
        if module is not None:
            wrap(module)
    finder = _ImportWatch([name for name in LIBRARIES if name not in sys.modules], wrap)
    sys.meta_path.insert(0, finder)
    try:
        yield
    finally:
        sys.meta_path.remove(finder)
        for client, original, replacement in wrapped:
            # What somebody put on top of ours stays; ours passes everything through when no run is active.
            if client.__dict__.get("send") is replacement:
                client.send = original  # type: ignore[attr-defined]


class _ImportWatch(importlib.abc.MetaPathFinder):
    """Tells when a library is imported. Importing it ourselves would cost time, and break an alias set up later."""

    def __init__(self, names: list[str], imported: Callable[[types.ModuleType], None]) -> None:
        self._names = names
        self._imported = imported

    def find_spec(
        self, name: str, path: Sequence[str] | None, target: types.ModuleType | None = None
    ) -> importlib.machinery.ModuleSpec | None:
        if name not in self._names:
            return None
        for finder in sys.meta_path:
            if finder is self:
                continue
            spec = finder.find_spec(name, path, target)
            if spec is not None:
                if spec.loader is not None:
                    spec.loader = _Watched(spec.loader, self._imported)
                return spec
        return None


class _Watched(importlib.abc.Loader):
    def __init__(self, loader: Any, imported: Callable[[types.ModuleType], None]) -> None:
        self._loader = loader
        self._imported = imported

    def create_module(self, spec: importlib.machinery.ModuleSpec) -> types.ModuleType | None:
        found: types.ModuleType | None = self._loader.create_module(spec)
        return found

    def exec_module(self, module: types.ModuleType) -> None:
        assert module.__spec__ is not None
        module.__spec__.loader = module.__loader__ = self._loader
        self._loader.exec_module(module)
        self._imported(module)


def _sync_send(original: Any, library: _Library) -> Any:
    def send(client: Any, request: Any, **options: Any) -> Any:
        if not may_be_model_call(request.method, request.url.path):
            return original(client, request, **options)
        body = request.read()
        ask = _ask(request, body)
        if ask is None:
            return original(client, request, **options)
        with _exchange(ask, request, body):
            if ask.known is not None:
                for hook in client.event_hooks["request"]:
                    hook(request)
                received = Received(ask.known.sample, known=ask.known)
            else:
                received = fanout.fetch(
                    ask,
                    lambda own: library.send(original, client, request, body, own, options),
                    library.is_ordinary(client, request),
                    _patience(client, request),
                )
            response = library.response(client, request, received)
            if not options.get("stream"):
                response.read()
            if ask.known is not None:
                for hook in client.event_hooks["response"]:
                    hook(response)
            ask.concluded(received)
            return response

    return send


def _async_send(original: Any, library: _Library) -> Any:
    async def send(client: Any, request: Any, **options: Any) -> Any:
        if not may_be_model_call(request.method, request.url.path):
            return await original(client, request, **options)
        body = await request.aread()
        ask = _ask(request, body)
        if ask is None:
            return await original(client, request, **options)
        with _exchange(ask, request, body):
            if ask.known is not None:
                for hook in client.event_hooks["request"]:
                    await hook(request)
                received = Received(ask.known.sample, known=ask.known)
            else:
                received = await fanout.fetch_async(
                    ask,
                    lambda own: library.send_async(original, client, request, body, own, options),
                    library.is_ordinary(client, request),
                    _patience(client, request),
                )
            response = library.response(client, request, received)
            if not options.get("stream"):
                await response.aread()
            if ask.known is not None:
                for hook in client.event_hooks["response"]:
                    await hook(response)
            ask.concluded(received)
            return response

    return send


def _ask(request: Any, body: bytes) -> Ask | None:
    sampler = active.sampler
    url = str(request.url)
    if sampler is None or _outer.get() == (url, body):
        return None
    call = recognise(request.method, url, body, sampler.plan.origins)
    return sampler.ask(call) if call is not None else None


@contextlib.contextmanager
def _exchange(ask: Ask, request: Any, body: bytes) -> Iterator[None]:
    """One exchange from its start to its answer or failure."""
    outer = _outer.set((str(request.url), body))
    try:
        yield
    except Exception as error:
        secrets = credentials(request.headers.multi_items(), str(request.url))
        ask.failed(hidden(f"{type(error).__name__}: {error}", secrets))
        raise
    except BaseException:
        ask.abandoned()
        raise
    finally:
        _outer.reset(outer)


def _patience(client: Any, request: Any) -> float:
    """Seconds the client waits for an answer: the request's own read timeout, else the client's."""
    timeout = request.extensions.get("timeout", {}).get("read", client.timeout.read)
    return float("inf") if timeout is None else float(timeout)


class _Library:
    """What differs between httpx and httpx2: the module the classes come from."""

    def __init__(self, module: types.ModuleType) -> None:
        self._module: Any = module

        class Replayed(module.SyncByteStream, module.AsyncByteStream):  # type: ignore[misc,name-defined]
            """The body of a response, in the pieces in which a server would have sent it."""

            def __init__(self, received: Received) -> None:
                self._received = received
                self.elapsed = datetime.timedelta(seconds=received.sample.seconds)

            def __iter__(self) -> Iterator[bytes]:
                yield from _pieces(self._received.sample)
                if self._received.broken is not None:
                    raise self._received.broken

            async def __aiter__(self) -> AsyncIterator[bytes]:
                for piece in self:
                    yield piece

        self._stream = Replayed

    def send(
        self, original: Any, client: Any, request: Any, body: bytes, own: bool, options: dict[str, Any]
    ) -> Received:
        """One live call, read to its end."""
        started = time.perf_counter()
        sender, sent = (client, request) if own else (self._hookless(client), self._copy(request, body))
        response = original(sender, sent, **{**options, "stream": True})
        pieces: list[bytes] = []
        broken = None
        try:
            pieces.extend(response.iter_bytes())
        except Exception as error:
            broken = error
        finally:
            response.close()
        return self._received(response, pieces, started, broken)

    async def send_async(
        self, original: Any, client: Any, request: Any, body: bytes, own: bool, options: dict[str, Any]
    ) -> Received:
        started = time.perf_counter()
        sender, sent = (client, request) if own else (self._hookless(client), self._copy(request, body))
        response = await original(sender, sent, **{**options, "stream": True})
        pieces: list[bytes] = []
        broken = None
        try:
            async for piece in response.aiter_bytes():
                pieces.append(piece)  # noqa: PERF401  # a comprehension would lose what came before an error
        except Exception as error:
            broken = error
        finally:
            await response.aclose()
        return self._received(response, pieces, started, broken)

    def _received(self, response: Any, pieces: list[bytes], started: float, broken: Exception | None) -> Received:
        sent = response.request
        secrets = credentials(sent.headers.multi_items(), str(sent.url))
        sample = Sample.of(
            response.status_code,
            [(name, hidden(value, secrets)) for name, value in response.headers.multi_items()],
            hidden_bytes(b"".join(pieces), secrets),
            at=time.time(),
            seconds=time.perf_counter() - started,
        )
        return Received(sample, broken)

    def response(self, client: Any, request: Any, received: Received) -> Any:
        """A response that reads as the one that was received."""
        sample = received.sample
        headers = list(sample.headers)
        if not _is_event_stream(sample):
            headers.append(("content-length", str(len(sample.body))))
        response = self._module.Response(
            sample.status,
            headers=headers,
            stream=self._stream(received),
            request=request,
            extensions={"http_version": b"HTTP/1.1"},
            default_encoding=getattr(client, "_default_encoding", "utf-8"),
        )
        response.elapsed = datetime.timedelta(seconds=sample.seconds)
        return response

    def is_ordinary(self, client: Any, request: Any) -> bool:
        """Whether calls go to the network by the library's own transport. A mock counts its calls, and a transport of
        the application's own may do anything: they are asked only as often as the application asks."""
        try:
            transport = client._transport_for_url(request.url)
            methods = [
                getattr(type(layer), name)
                for layer in (transport, transport._pool)
                for name in ("handle_request", "handle_async_request")
                if hasattr(type(layer), name)
            ]
        except AttributeError:
            return False
        return bool(methods) and all(
            str(getattr(method, "__module__", "")).split(".")[0] in _OWN_PACKAGES for method in methods
        )

    def _copy(self, request: Any, body: bytes) -> Any:
        headers = request.headers.copy()
        if "idempotency-key" in headers:
            # The same key would be answered with the answer to the first call.
            headers["idempotency-key"] = str(uuid.uuid4())
        return self._module.Request(
            request.method, request.url, headers=headers, content=body, extensions=dict(request.extensions)
        )

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


def _is_event_stream(sample: Sample) -> bool:
    return "event-stream" in sample.content_type


def _pieces(sample: Sample) -> Iterator[bytes]:
    if not _is_event_stream(sample):
        yield sample.body
        return
    *events, rest = sample.body.split(b"\n\n")
    for event in events:
        yield event + b"\n\n"
    if rest:
        yield rest
