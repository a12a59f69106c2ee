"""What all seams share: which requests are exchanges of the active run, how one begins and ends, what is kept of it."""

from __future__ import annotations

import contextlib
import contextvars
import time
from collections.abc import Iterable, Iterator
from urllib.parse import urlsplit

from pytest_llm_determinism import neighbours
from pytest_llm_determinism.observe import active, unseen
from pytest_llm_determinism.observe.secrets import credentials, hidden, hidden_bytes, without_credentials
from pytest_llm_determinism.sampling import Ask, Received, named
from pytest_llm_determinism.shapes import may_be_model_call
from pytest_llm_determinism.shapes.framing import AMAZON, is_lines, is_sse
from pytest_llm_determinism.store import Sample

Headers = Iterable[tuple[str, str]]

STAND_INS = frozenset(("respx", "pytest_httpx", "vcr", "pook", "mocket", "httpretty", "unittest"))
"""Packages that answer in place of a server. What they say is nothing that a model said, and they may count their
calls, so nothing of it is kept."""


def written_in(function: object) -> str:
    """The package with a function's code. Its ``__module__`` is that of what it replaces where functools.wraps was
    used, as vcrpy does."""
    module = getattr(function, "__globals__", {}).get("__name__") or getattr(function, "__module__", "")
    return str(module).partition(".")[0]


_outer: contextvars.ContextVar[str | None] = contextvars.ContextVar("outer", default=None)
"""The key of the request that is being sent in this context. A call inside it of the same method, URL and body is the
same exchange (one client built on another); any other is a call of its own (an application behind a test client)."""


def is_watched(method: str, path: str, content_type: str | None) -> bool:
    """Whether a request may be an exchange of the active run; only then is its body looked at."""
    sampler = active.sampler
    if sampler is None or neighbours.sending.get():
        return False
    if may_be_model_call(method, path, content_type or "", sampler.plan.rules):
        return True
    unseen.passed(method, path)
    return False


def asked(method: str, url: str, body: bytes, headers: Headers, stored: bool = True) -> Ask | None:
    """A request of the active run; None for every other, and for one that is seen already.

    Args:
        stored: whether answers are kept and replayed, see `Sampler.ask`.

    Raises:
        Refusal: it may not be sent.
    """
    sampler = active.sampler
    if sampler is None:
        return None
    call = sampler.recognise(method, url, body)
    if call is None:
        unseen.passed(method, url)
        return None
    if _outer.get() == call.key:
        return None
    if _is_signed(headers):
        signed = f"{call.family.name} requests are signed by the client, body and URL"
        if call.rewritten:
            sampler.refuse(
                f"override cannot be set in a request of this test: {signed}; set the value in the application"
            )
        if sampler.crowd is not None:
            neighbours.refuse(sampler, signed)
    return sampler.ask(call, stored)


def _is_signed(headers: Headers) -> bool:
    return any(name.lower() == "authorization" and value.startswith("AWS4-") for name, value in headers)


@contextlib.contextmanager
def exchange(ask: Ask, headers: Headers, url: str) -> Iterator[None]:
    """One exchange from its start to its answer or failure; headers and URL are the request's."""
    outer = _outer.set(ask.recognised)
    ask.in_words = lambda error: hidden(_with_host(error, url), credentials(headers, url))
    ask.to_keep = lambda request: without_credentials(request, credentials(headers, url))
    try:
        yield
    except Exception as error:
        ask.failed(ask.in_words(error))
        raise
    except BaseException:
        ask.abandoned()
        raise
    finally:
        _outer.reset(outer)


def _with_host(error: Exception, url: str) -> str:
    """What went wrong, and with whom: a connection's own error seldom says."""
    text, split = named(error), urlsplit(url)
    return text if (split.hostname or "") in text else f"{text} (asking {split.netloc.rpartition('@')[2]})"


def received(
    status: int, headers: Headers, body: bytes, sent: Headers, url: str, started: float, broken: Exception | None = None
) -> Received:
    """What came of one call, without the credentials that a server may echo.

    Args:
        headers, body: of the response, the body without content encoding.
        sent, url: headers and URL of the request.
        started: when it was sent, as `time.perf_counter` tells it.
        broken: the error that ended the body early.
    """
    secrets = credentials(sent, url)
    sample = Sample.of(
        status,
        [(name, hidden(value, secrets)) for name, value in headers],
        hidden_bytes(body, secrets),
        at=time.time(),
        seconds=time.perf_counter() - started,
    )
    return Received(sample, broken)


def pieces(sample: Sample) -> Iterator[bytes]:
    """The body in the pieces in which a server would have sent it: event by event, or at once."""
    if is_sse(sample.content_type):
        separator = b"\n\n"
    elif is_lines(sample.content_type):
        separator = b"\n"
    else:
        yield sample.body
        return
    *events, rest = sample.body.split(separator)
    for event in events:
        yield event + separator
    if rest:
        yield rest


def has_length(sample: Sample) -> bool:
    """Whether a response says how long it is; streams do not."""
    return not (is_sse(sample.content_type) or is_lines(sample.content_type) or AMAZON in sample.content_type)
