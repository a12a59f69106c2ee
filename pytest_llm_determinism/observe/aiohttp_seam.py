"""The seam at ``ClientSession._request`` of aiohttp, from 3.9 on.

The response given back is always made anew from what was received or stored: aiohttp's own `_request` is called for it,
with a connection on which those bytes arrive, so that everything about the response is aiohttp's own in any version,
and a live answer and a replayed one take the same way. A streamed answer is read to its end before it is handed on.

Mocks and recorders take the place of `_request`, some of them within the body of a test and so above this seam. Their
answers are observed, but neither kept nor replayed: such a stand-in is asked exactly as often as the application asks.
"""

from __future__ import annotations

import asyncio
import contextvars
import http
import io
import time
import types
import uuid
from collections.abc import Callable, Iterator
from typing import Any

from pytest_llm_determinism import fanout
from pytest_llm_determinism.observe import unseen
from pytest_llm_determinism.observe.exchanges import asked, exchange, has_length, is_watched, pieces, received
from pytest_llm_determinism.observe.patching import Seam
from pytest_llm_determinism.sampling import Ask, Received, Sampler
from pytest_llm_determinism.shapes import ModelCall
from pytest_llm_determinism.store import Sample

_TRANSFER_HEADERS = frozenset(("content-encoding", "content-length", "transfer-encoding", "connection", "keep-alive"))

_replaying: contextvars.ContextVar[Sampler | None] = contextvars.ContextVar("replaying", default=None)
"""The experiment that may ask no model, while something that stands in for aiohttp is asked in this context."""


def _wrappers(module: Any) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    library = _Library(module)
    yield module.ClientSession, "_request", library.request
    yield module.ClientSession, "request", library.way_in
    yield module.ClientSession, "post", library.way_in
    yield module.BaseConnector, "connect", _connect


SEAM = Seam(("aiohttp",), _wrappers)


class _Library:
    """aiohttp, and what is put in the place of its `_request`."""

    def __init__(self, module: Any) -> None:
        self.module = module
        self._ours: Any = None

    def request(self, original: Any) -> Any:
        own = _innermost(original)
        if getattr(own, "__globals__", None) is not vars(self.module.client):
            own = None

        async def request(session: Any, method: str, str_or_url: Any, **options: Any) -> Any:
            return await self._request(original, own, session, method, str_or_url, options)

        self._ours = request
        return request

    def way_in(self, original: Any) -> Any:
        """A method that calls `_request`: where a stand-in that was put on top of ours can still be observed."""

        def way_in(session: Any, *arguments: Any, **options: Any) -> Any:
            above = vars(self.module.ClientSession)["_request"]
            if type(session)._request is not above or _innermost(above) is self._ours:
                return original(session, *arguments, **options)

            async def request(method: str, str_or_url: Any, **options: Any) -> Any:
                return await self._request(above, None, session, method, str_or_url, options)

            # Not by setattr: aiohttp warns of attributes that it does not know.
            vars(session)["_request"] = request
            try:
                return original(session, *arguments, **options)
            finally:
                del vars(session)["_request"]

        return way_in

    async def _request(
        self, original: Any, own: Any, session: Any, method: str, address: Any, options: dict[str, Any]
    ) -> Any:
        """One request.

        Args:
            original: the `_request` that is wrapped.
            own: aiohttp's `_request`; None where `original` is something that stands in for it.
        """
        request = _watched(self.module, session, method, address, options)
        if request is not None:
            ask = asked("POST", str(request.url), request.body, request.headers, stored=own is not None)
        if request is None or ask is None:
            return await _of(original, session)(method, address, **options)
        with exchange(ask, request.headers, str(request.url)):
            if own is None:
                return await _ask_stand_in(original, request, ask)
            live: list[Any] = []
            if ask.known is not None:
                answer = Received(ask.known.sample, known=ask.known)
            else:

                async def send(call: ModelCall, is_own_call: bool) -> Received:
                    if not is_own_call:
                        return (await _read(own, request.ahead(call), request))[1]
                    response, received = await _read(original, request.live(call), request)
                    live.append(response)
                    return received

                answer = await fanout.fetch_async(
                    ask, send, _is_ordinary(session), _patience(session, options), _connections(session)
                )
            ask.concluded(answer)
        return await _replay(own, request, answer, live[0] if live else None)


def _connect(original: Any) -> Any:
    async def connect(connector: Any, *arguments: Any, **options: Any) -> Any:
        replaying = _replaying.get()
        if replaying is not None:
            replaying.refuse(
                "something in the place of aiohttp's ClientSession._request went to the network for an answer, which"
                " cannot be stored, and cache=replay asks no model"
            )
        return await original(connector, *arguments, **options)

    return connect


def _innermost(function: Any) -> Any:
    """A function without what instruments of monitoring wrap around it: objects that call it, and no functions."""
    while not isinstance(function, types.FunctionType) and hasattr(function, "__wrapped__"):
        function = function.__wrapped__
    return function


def _of(function: Any, session: Any) -> Any:
    """A function as a method of a session; a mock object is none, and is called without the session."""
    return function.__get__(session, type(session)) if hasattr(function, "__get__") else function


def _is_ordinary(session: Any) -> bool:
    """Whether calls go to the network by aiohttp's own connections. A connector of the application's own may do
    anything: it is asked only as often as the application asks."""
    return type(session.connector).__module__ == "aiohttp.connector"


def _connections(session: Any) -> float:
    """The most connections that a session opens to one server."""
    limits = (getattr(session.connector, name, 0) for name in ("limit", "limit_per_host"))
    return float(min((limit for limit in limits if limit), default="inf"))


def _patience(session: Any, options: dict[str, Any]) -> float:
    """Seconds the application waits for an answer: the call's own timeout, else the session's."""
    timeout = options.get("timeout", session.timeout)
    if timeout is not None and not isinstance(timeout, (int, float, type(session.timeout))):
        timeout = session.timeout  # what aiohttp has for "not given"
    limits = (getattr(timeout, "total", timeout), getattr(timeout, "sock_read", None))
    return float(min((limit for limit in limits if limit), default="inf"))


# The request


class _Request:
    """A request of a session that may be a model call.

    Attributes:
        url: absolute, with the parameters.
        body: its bytes.
        headers: the request's and the session's, all of them.
    """

    def __init__(
        self,
        module: Any,
        session: Any,
        address: Any,
        options: dict[str, Any],
        url: Any,
        headers: list[tuple[str, str]],
        body: _Body,
    ) -> None:
        self.module = module
        self.session = session
        self.address = address
        self.options = options
        self.url = url
        self.body = body.content
        self.headers = headers
        self._body = body

    def live(self, call: ModelCall) -> _Sending:
        """The application's own call."""
        options = self.options | self._content(call.body) | {"raise_for_status": False, "auto_decompress": True}
        return self._readdressed(_Sending(self.session, self.address, options), call)

    def ahead(self, call: ModelCall) -> _Sending:
        """A call for a later run, or a neighbour, of which the application's hooks hear nothing."""
        sending = self.live(call)
        headers = self.session._prepare_headers(sending.options.get("headers"))
        if "Idempotency-Key" in headers:
            # The same key would be answered with the answer to the first call.
            headers["Idempotency-Key"] = str(uuid.uuid4())
        sending.options["headers"] = headers
        sending.options.pop("upload_tracker", None)
        sending.session = _Twin(sending.session, _trace_configs=[])
        return sending

    def to_stand_in(self, call: ModelCall) -> _Sending:
        """The call to something in the place of aiohttp, which may look at what it is given."""
        options = self.options | (self._content(call.body) if call.rewritten else {})
        return self._readdressed(_Sending(self.session, self.address, options), call)

    def replayed(self, connector: Any, was_live: bool) -> _Sending:
        """The call that makes a response. The application's hooks have heard of one that was live."""
        # A response that broke off does not say how long it is.
        options = self.options | self._content(self.body) | {"read_until_eof": True}
        session = _Twin(self.session, _connector=connector, _request_class=self._request_class)
        if was_live:
            session = _Twin(session, _trace_configs=[], _middlewares=())
            for name in ("middlewares", "upload_tracker"):
                options.pop(name, None)
        return _Sending(session, self.address, options)

    def _request_class(self, *arguments: Any, **named: Any) -> Any:
        """A request as it is made for the session itself: hooks ask it for its session."""
        return self.session._request_class(*arguments, **{**named, "session": self.session})

    def _readdressed(self, sending: _Sending, call: ModelCall) -> _Sending:
        """The call at the URL, and with the length, that settings make of it."""
        if not call.rewritten:
            return sending
        headers = [pair for pair in _pairs(sending.options.get("headers")) if pair[0].lower() != "content-length"]
        options = sending.options | {"headers": headers, "params": None}
        address = type(self.url)(call.url, encoded=True)
        return _Sending(_Twin(sending.session, _build_url=lambda address: address), address, options)

    def _content(self, body: bytes) -> dict[str, Any]:
        """Options that send a body as the application's own would be sent.

        What it gave may be read only once, and may be another thing by the time it is sent.
        """
        if self._body.is_file:
            payload = self.module.BytesIOPayload(io.BytesIO(body), content_type=self._body.content_type)
        else:
            payload = self.module.BytesPayload(body, content_type=self._body.content_type)
        return {"json": None, "data": payload}


class _Sending:
    """A call of `_request`: session, address and options."""

    def __init__(self, session: Any, address: Any, options: dict[str, Any]) -> None:
        self.session = session
        self.address = address
        self.options = options

    def by(self, function: Any) -> Any:
        return _of(function, self.session)("POST", self.address, **self.options)


class _Twin:
    """An object with some of its attributes replaced. It shares the others, and closes nothing when it goes."""

    def __init__(self, twin: Any, **attributes: Any) -> None:
        vars(self).update(attributes, _twin=twin)

    def __getattr__(self, name: str) -> Any:
        return getattr(self._twin, name)


class _Body:
    """What a request carries, whatever the form it was given in.

    Attributes:
        content_type: what aiohttp says of it, unless the application says something else.
        is_file: whether it was given as a file in memory.
    """

    def __init__(self, content: bytes, content_type: str = "application/octet-stream", is_file: bool = False) -> None:
        self.content = content
        self.content_type = content_type
        self.is_file = is_file


def _watched(module: Any, session: Any, method: str, address: Any, options: dict[str, Any]) -> _Request | None:
    """The request, if it may be an exchange of the active run."""
    try:
        url = session._build_url(address)
        if options.get("params"):
            added = url.with_query(options["params"]).query
            url = url.with_query([*url.query.items(), *added.items()])
    except (TypeError, ValueError, AssertionError):
        return None  # no request: aiohttp says why
    headers = [*_pairs(options.get("headers")), *session.headers.items()]
    content_type = next((value for name, value in headers if name.lower() == "content-type"), None)
    if content_type is None and options.get("json") is not None:
        content_type = "application/json"
    if not is_watched(method.upper(), url.raw_path, content_type):
        return None
    body = _body(module, session, options)
    if body is None:
        unseen.passed("POST", str(url))
        return None
    auth = options.get("auth") or session.auth
    if auth is not None:
        headers.append(("Authorization", auth.encode()))
    return _Request(module, session, address, options, url, headers, body)


def _body(module: Any, session: Any, options: dict[str, Any]) -> _Body | None:
    """The body, where it is at hand in memory; None where reading it could take it away from the application."""
    data, json = options.get("data"), options.get("json")
    if json is not None:
        if data is not None:
            return None
        to_bytes = getattr(session, "_json_serialize_bytes", None)
        content = session.json_serialize(json).encode() if to_bytes is None else to_bytes(json)
        return _Body(content, "application/json")
    if isinstance(data, (bytes, bytearray, memoryview)):
        return _Body(bytes(data))
    if isinstance(data, str):
        return _Body(data.encode(), "text/plain; charset=utf-8")
    if isinstance(data, io.BytesIO):
        return _Body(data.getvalue()[data.tell() :], is_file=True)
    if isinstance(data, module.BytesPayload):
        return _Body(bytes(data._value), data.content_type)
    return None


def _pairs(headers: Any) -> list[tuple[str, str]]:
    """Headers in any form that aiohttp takes."""
    if not headers:
        return []
    pairs = headers.items() if hasattr(headers, "items") else headers
    return [(str(name), str(value)) for name, value in pairs]


# The answer


async def _read(function: Any, sending: _Sending, request: _Request) -> tuple[Any, Received]:
    """One live call, read to its end: the response, and what came of it."""
    started = time.perf_counter()
    response = await sending.by(function)
    arrived: list[bytes] = []
    broken = None
    try:
        async for piece in response.content.iter_any():
            arrived.append(piece)  # noqa: PERF401  # a comprehension would lose what came before an error
    except Exception as error:
        broken = error
    finally:
        response.close()
    sent = [*request.headers, *response.request_info.headers.items()]
    url, headers = str(request.url), response.headers.items()
    return response, received(response.status, headers, b"".join(arrived), sent, url, started, broken)


async def _ask_stand_in(function: Any, request: _Request, ask: Ask) -> Any:
    """The response of something that stands in for aiohttp, as it gives it."""
    given: list[Any] = []

    async def send(call: ModelCall, _: bool) -> Received:
        started = time.perf_counter()
        response = await request.to_stand_in(call).by(function)
        given.append(response)
        if not isinstance(response, request.module.ClientResponse):
            return received(0, (), b"", (), "", started)
        url, headers = str(request.url), response.headers.items()
        return received(response.status, headers, await response.read(), request.headers, url, started)

    sampler = ask.sampler
    token = _replaying.set(sampler if sampler.plan.cache == "replay" else None)
    try:
        answer = await fanout.fetch_async(ask, send, False, _patience(request.session, request.options))
    finally:
        _replaying.reset(token)
    response = given[0]
    if not isinstance(response, request.module.ClientResponse):
        ask.abandoned()
        return response
    ask.concluded(answer)
    body = await response.read()
    if body:
        # What was read is there once more, for an application that reads the body as a stream.
        loop = asyncio.get_running_loop()
        protocol = request.module.base_protocol.BaseProtocol(loop)
        content = request.module.StreamReader(protocol, max(len(body), 2**16), loop=loop)
        content.feed_data(body)
        content.feed_eof()
        response.content = content
    return response


async def _replay(function: Any, request: _Request, answer: Received, live: Any) -> Any:
    """A response that reads as the one that was received.

    Args:
        function: aiohttp's `_request`.
        live: the response, if it was this call that received it.
    """
    lost: list[tuple[str, str]] = []
    if live is not None:
        kept = {name.lower() for name, _ in answer.sample.headers} | _TRANSFER_HEADERS
        lost = [(name, value) for name, value in live.headers.items() if name.lower() not in kept]
    connector = _Twin(request.session.connector)

    async def connect(asking: Any, traces: Any = (), timeout: Any = None) -> Any:
        for trace in traces:
            await trace.send_connection_reuseconn()
        loop = asyncio.get_running_loop()
        protocol = request.module.client_proto.ResponseHandler(loop)
        wire = _Wire(loop, protocol, _message(answer, lost), answer.broken)
        protocol.connection_made(wire)
        wire.start()
        return request.module.connector.Connection(connector, asking.connection_key, protocol, loop)

    def release(key: Any, protocol: Any, *, should_close: bool = False) -> None:
        protocol.close()

    vars(connector).update(connect=connect, _release=release)
    response = await request.replayed(connector, live is not None).by(function)
    if live is not None:
        response._traces = live._traces
    return response


def _message(answer: Received, lost: list[tuple[str, str]]) -> Iterator[bytes]:
    """The response as a server would send it, in pieces.

    Args:
        lost: headers of the response that are never kept.
    """
    sample = answer.sample
    framing = []
    chunked = False
    if answer.broken is None:
        chunked = not has_length(sample)
        framing = [("Transfer-Encoding", "chunked") if chunked else ("Content-Length", str(len(sample.body)))]
    lines = [f"HTTP/1.1 {sample.status} {_reason(sample)}"]
    lines += [f"{name}: {' '.join(value.splitlines())}" for name, value in (*framing, *sample.headers, *lost)]
    head = "\r\n".join(lines).encode("utf-8", "surrogateescape") + b"\r\n\r\n"
    for piece in filter(None, pieces(sample)):
        yield head + (b"%x\r\n%s\r\n" % (len(piece), piece) if chunked else piece)
        head = b""
    yield head + (b"0\r\n\r\n" if chunked else b"")


def _reason(sample: Sample) -> str:
    try:
        return http.HTTPStatus(sample.status).phrase
    except ValueError:
        return ""


class _Wire(asyncio.Transport):
    """A connection on which a response arrives, and then its end or an error.

    Each piece arrives in its own turn of the event loop: an application that waits for pieces gets them one by one.
    """

    def __init__(
        self, loop: asyncio.AbstractEventLoop, protocol: Any, message: Iterator[bytes], error: Exception | None
    ) -> None:
        super().__init__()
        self._loop = loop
        self._protocol = protocol
        self._message = message
        self._error = error
        self._closed = False

    def start(self) -> None:
        # The turn after the next: the request is written in that.
        self._loop.call_soon(self._loop.call_soon, self._arrive)

    def _arrive(self) -> None:
        if self._closed:
            return
        piece = next(self._message, None)
        if piece is not None:
            self._protocol.data_received(piece)
            self._loop.call_soon(self._arrive)
        elif self._error is not None:
            self._protocol._payload.set_exception(self._error)
            self.close()

    def write(self, data: Any) -> None:
        """The request: it was sent where it belongs."""

    def is_closing(self) -> bool:
        return self._closed

    def close(self) -> None:
        if not self._closed:
            self._closed = True
            self._loop.call_soon(self._protocol.connection_lost, None)

    def abort(self) -> None:
        self.close()
