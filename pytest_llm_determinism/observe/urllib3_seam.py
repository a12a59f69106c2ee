"""The seam at ``HTTPConnectionPool.urlopen`` of urllib3, 1.26 and 2: what requests and botocore send passes here.

The response given back is always made anew from what was received or stored, read by the same parsers as one that comes
from a socket, so that a live answer and a replayed one take the same way. A streamed answer is read to its end before
it is handed on.
"""

from __future__ import annotations

import contextlib
import contextvars
import copy
import io
import socket
import time
import uuid
from collections.abc import Callable, Iterator
from typing import Any
from urllib.parse import urlsplit

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
from pytest_llm_determinism.sampling import Received
from pytest_llm_determinism.shapes import ModelCall

_PARAMETERS = (
    "method",
    "url",
    "body",
    "headers",
    "retries",
    "redirect",
    "assert_same_host",
    "timeout",
    "pool_timeout",
    "release_conn",
    "chunked",
    "body_pos",
    "preload_content",
    "decode_content",
)
"""What may be given by position, in this order in all versions."""

_TRANSFER_HEADERS = frozenset(("content-length", "transfer-encoding", "connection", "keep-alive"))
_DEFAULT_PORTS = {"http": 80, "https": 443}
_OWN_PACKAGES = frozenset(("urllib3", "botocore", "socket", "gevent", "eventlet"))

_sending: contextvars.ContextVar[Any] = contextvars.ContextVar("sending", default=None)
"""The pool that sends a request in this context. It calls itself to try again and to follow a redirect: all of that is
one exchange."""


def _wrappers(module: Any) -> Iterator[tuple[Any, str, Callable[[Any], Any]]]:
    yield module.HTTPConnectionPool, "urlopen", _urlopen


SEAM = Seam(("urllib3.connectionpool",), _wrappers)


def _urlopen(original: Any) -> Any:
    if not hasattr(original, "__get__"):
        return original  # a test's own stand-in, such as a mock object, and no method

    def urlopen(pool: Any, *arguments: Any, **named: Any) -> Any:
        # Bound, since others wrap this method too and ask for what it is bound to.
        send = original.__get__(pool)
        if _sending.get() is pool:
            fanout.sent_again()
            return send(*arguments, **named)
        request = _Request(original, pool, dict(zip(_PARAMETERS, arguments, strict=False)) | named)
        if not is_watched(request.method, urlsplit(request.url).path, request.header("content-type")):
            return send(*arguments, **named)
        is_kept = STAND_INS.isdisjoint(_packages(pool, original))
        ask = asked(request.method, request.url, request.read(), request.headers, stored=is_kept)
        if ask is None:
            return request.pass_on()
        with exchange(ask, request.headers, request.url):
            if ask.known is not None:
                answer = Received(ask.known.sample, known=ask.known)
            else:
                plan = ask.sampler.plan
                with request.pool_for_calls_ahead(plan.concurrency + plan.neighbours) as ahead:
                    answer = fanout.fetch(
                        ask,
                        lambda call, own: request.send(pool, call) if own else request.send_ahead(ahead, call),
                        ahead is not None,
                        request.patience(),
                    )
            response = request.response(answer)
            if response.get_redirect_location():
                ask.abandoned()  # whoever follows it asks again, and that is the exchange
            else:
                ask.concluded(answer)
            return response

    return urlopen


class _Request:
    """A request as it was handed to a pool.

    Attributes:
        url: absolute, whatever form it was given in.
        headers: as text.
    """

    def __init__(self, original: Any, pool: Any, options: dict[str, Any]) -> None:
        self._original = original
        self._pool = pool
        self._options = options
        self._target = _text(options.get("url", ""))
        self.method = _text(options.get("method", "")).upper()
        self.url = f"{_origin(pool)}{self._target}" if self._target.startswith("/") else self._target
        given = options.get("headers")
        self._given_headers = pool.headers if given is None else given
        self.headers = [(_text(name), _text(value)) for name, value in self._given_headers.items()]
        self._retries = options.get("retries")
        self._unkept: list[tuple[str, str]] = []
        self._missing = 0

    def header(self, name: str) -> str | None:
        return next((value for known, value in self.headers if known.lower() == name), None)

    def read(self) -> bytes:
        """The body. One that can be read only once is replaced by what was read."""
        body = self._options.get("body")
        if body is None:
            return b""
        if isinstance(body, str):
            return body.encode("utf-8", "surrogatepass")
        if hasattr(body, "read"):
            content = _bytes(body.read())
        elif isinstance(body, (bytes, bytearray, memoryview)):
            content = bytes(body)
        else:
            content = b"".join(map(_bytes, body))
        self._options["body"] = content
        return content

    def pass_on(self) -> Any:
        """Send it unobserved."""
        return self._call(self._pool, self._options)

    def patience(self) -> float:
        """Seconds the client waits for an answer: the request's own timeout, else the pool's."""
        timeout = self._options.get("timeout", self._pool.timeout)
        limits = (getattr(timeout, "total", timeout), getattr(timeout, "_read", None))
        return float(min((limit for limit in limits if isinstance(limit, (int, float))), default="inf"))

    @contextlib.contextmanager
    def pool_for_calls_ahead(self, count: int) -> Iterator[Any]:
        """The pool that so many calls at once may use, besides the run's own; None if the application's is no ordinary
        one.

        A pool that is too small for all of them would make them wait for each other and for the application, or throw
        away their connections: one of the same settings stands in for it.
        """
        pool = self._pool
        if not _is_ordinary(pool, self._original):
            yield None
        elif not pool.block and pool.pool.maxsize >= count:
            yield pool
        else:
            roomy = copy.copy(pool)
            roomy.block = False
            roomy.pool = type(pool.pool)(count)
            try:
                yield roomy
            finally:
                roomy.close()

    def send(self, pool: Any, call: ModelCall) -> Received:
        """The application's own call."""
        options = {**self._options, "url": self._target_of(call), "headers": self._headers(call)}
        if call.rewritten:
            options["body"] = call.body
        response, answer, self._missing = self._exchanged(pool, options)
        kept = {name.lower() for name, _ in answer.sample.headers}
        self._retries = response.retries
        self._unkept = [
            (name, value)
            for name, value in response.headers.items()
            if name.lower() not in kept and name.lower() not in _TRANSFER_HEADERS
        ]
        return answer

    def send_ahead(self, pool: Any, call: ModelCall) -> Received:
        """A call for a later run, or a neighbour; an error of it concerns nobody."""
        headers = self._headers(call)
        for name in list(headers):
            if _text(name).lower() == "idempotency-key":
                # The same key would be answered with the answer to the first call.
                headers[name] = str(uuid.uuid4())
        options = {
            **self._options,
            "url": self._target_of(call),
            "body": call.body if call.rewritten else self._options.get("body"),
            "headers": headers,
            "retries": False,
        }
        return self._exchanged(pool, options)[1]

    def response(self, answer: Received) -> Any:
        """A response that reads as the one that was received."""
        from http.client import HTTPResponse as Message

        from urllib3._collections import HTTPHeaderDict
        from urllib3.response import HTTPResponse
        from urllib3.util.retry import Retry

        options = self._options
        wire: Any = _Wire(self._message(answer), _error_of_connection(answer))
        parsed: Any = Message(wire, method="POST")
        parsed.begin()
        checks = {name: options[name] for name in ("enforce_content_length",) if name in options}
        response = HTTPResponse(
            body=parsed,
            headers=HTTPHeaderDict(parsed.msg.items()),
            status=parsed.status,
            version=parsed.version,
            reason=parsed.reason,
            preload_content=options.get("preload_content", True),
            decode_content=options.get("decode_content", True),
            original_response=parsed,
            pool=self._pool,
            retries=Retry.from_int(self._retries, redirect=options.get("redirect", True), default=self._pool.retries),
            request_method=self.method,
            request_url=self._target,
            **checks,
        )
        if hasattr(response, "version_string"):
            response.version_string = "HTTP/1.1"
        return response

    def _message(self, answer: Received) -> bytes:
        """The response as a server would send it, as far as it came."""
        from http.client import responses

        sample = answer.sample
        if self._missing or (_is_whole(answer) and has_length(sample)):
            framing = ("content-length", str(len(sample.body) + self._missing))
            body = sample.body
        else:
            framing = ("transfer-encoding", "chunked")
            body = b"".join(b"%x\r\n%s\r\n" % (len(piece), piece) for piece in pieces(sample) if piece)
            body += b"0\r\n\r\n" if _is_whole(answer) else b""
        lines = [f"HTTP/1.1 {sample.status} {responses.get(sample.status, '')}"]
        lines += [f"{name}: {value}" for name, value in (framing, *sample.headers, *self._unkept)]
        return "\r\n".join(lines).encode("latin-1", "replace") + b"\r\n\r\n" + body

    def _exchanged(self, pool: Any, options: dict[str, Any]) -> tuple[Any, Received, int]:
        """One live call, read to its end: the response, what is kept of it, and how many bytes of it did not come."""
        started = time.perf_counter()
        # A body that the application wants preloaded is read within the call, which may then try again.
        response = self._call(pool, {**options, "decode_content": False})
        arrived: list[bytes] = []
        broken: Exception | None = None
        try:
            if options.get("preload_content", True):
                arrived.append(response.data or b"")
            else:
                _read_as_it_comes(response)
                arrived.extend(response.stream(decode_content=False))
        except Exception as error:
            broken = error
        raw = b"".join(arrived)
        missing = _missing(response, raw)
        if broken is None and missing:
            # Of a connection that ends early not every version of urllib3 makes an error.
            broken = EOFError(f"the connection ended {missing} bytes before the response did")
        body, undecodable = _decoded(response, raw)
        broken = broken or undecodable
        answer = received(response.status, response.headers.items(), body, self.headers, self.url, started, broken)
        return response, answer, missing

    def _call(self, pool: Any, options: dict[str, Any]) -> Any:
        named = dict(options)
        arguments = [named.pop(name) for name in ("method", "url")]
        token = _sending.set(pool)
        try:
            return self._original.__get__(pool)(*arguments, **named)
        finally:
            _sending.reset(token)

    def _target_of(self, call: ModelCall) -> str:
        if not call.rewritten:
            return self._target
        return call.url.removeprefix(_origin(self._pool)) if self._target.startswith("/") else call.url

    def _headers(self, call: ModelCall) -> Any:
        headers = self._given_headers.copy()
        if call.rewritten:
            for name in list(headers):
                if _text(name).lower() == "content-length":
                    headers[name] = str(len(call.body))
        return headers


class _Wire(io.RawIOBase):
    """A connection on which a response arrives, and then its end or an error."""

    def __init__(self, message: bytes, error: Exception | None) -> None:
        self._message = io.BytesIO(message)
        self._error = error
        # Where botocore finds the socket when a timeout is set for the rest of a response.
        self._sock = self

    def makefile(self, mode: str) -> io.BufferedReader:
        return _Reader(self)

    def settimeout(self, seconds: float | None) -> None:
        """Everything is there already."""

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any) -> int:
        count = self._message.readinto(buffer)
        if not count and self._error is not None:
            raise self._error
        return count


class _Reader(io.BufferedReader):
    def flush(self) -> None:
        """Nothing: the garbage collector may close this before the response that flushes it once more."""


class _AsItComes:
    """A connection's message of which each read takes what is there, so that an error loses nothing that came before.

    It does not show its connection, so that chunks are not read whole either.
    """

    def __init__(self, message: Any) -> None:
        self.read = message.read1
        self.close = message.close
        self.isclosed = message.isclosed


def _read_as_it_comes(response: Any) -> None:
    message = getattr(response, "_fp", None)
    if hasattr(message, "read1") and hasattr(message, "isclosed"):
        response._fp = _AsItComes(message)


def _decoded(response: Any, body: bytes) -> tuple[bytes, Exception | None]:
    """The body without its content encoding, and without the header that names it; as it came where that fails, with
    the error: the application may decode it, or meet the error, by itself."""
    from urllib3.response import HTTPResponse

    encoding = response.headers.get("content-encoding")
    if not encoding:
        return body, None
    try:
        decoded = HTTPResponse(io.BytesIO(body), {"content-encoding": encoding}, preload_content=False).read(
            decode_content=True
        )
    except Exception as error:
        return body, error
    if decoded != body:
        del response.headers["content-encoding"]
    return decoded, None


def _is_ordinary(pool: Any, urlopen: Any) -> bool:
    """Whether calls go to the network by the library's own means. A pool or a connection of the application's own may
    do anything: it is asked only as often as the application asks."""
    return pool.pool is not None and _packages(pool, urlopen) <= _OWN_PACKAGES


def _packages(pool: Any, urlopen: Any) -> set[str]:
    """The packages whose code handles the requests of a pool, whatever was patched into it."""
    classes = (type(pool), pool.ConnectionCls, socket.socket)
    found = {str(part.__module__).partition(".")[0].lstrip("_") for part in classes}
    return found | {written_in(urlopen)}


def _is_whole(answer: Received) -> bool:
    """Whether the body came to its end, even if it cannot be decoded."""
    from urllib3.exceptions import DecodeError

    return answer.broken is None or isinstance(answer.broken, DecodeError)


def _error_of_connection(answer: Received) -> Exception | None:
    """What broke the body off, unless the connection just ended: reading what came then gives the error."""
    from urllib3.exceptions import ProtocolError

    if _is_whole(answer) or isinstance(answer.broken, EOFError):
        return None
    if isinstance(answer.broken, ProtocolError) and not any(isinstance(part, OSError) for part in answer.broken.args):
        return None
    return answer.broken


def _missing(response: Any, body: bytes) -> int:
    """Bytes that a response announced and that did not come; 0 where it did not say how many there would be."""
    announced = response.headers.get("content-length", "")
    return max(0, int(announced) - len(body)) if announced.isdecimal() else 0


def _origin(pool: Any) -> str:
    host = f"[{pool.host}]" if ":" in pool.host else pool.host
    port = "" if pool.port in (None, _DEFAULT_PORTS.get(pool.scheme)) else f":{pool.port}"
    return f"{pool.scheme}://{host}{port}"


def _text(value: Any) -> str:
    return value.decode("latin-1") if isinstance(value, bytes) else str(value)


def _bytes(value: str | bytes) -> bytes:
    return value.encode() if isinstance(value, str) else value
