"""One stored response, and the key it is stored under."""

from __future__ import annotations

import base64
import json
import re
from dataclasses import dataclass
from typing import NamedTuple

FORMAT = 1

# Of a response's headers these never reach the disk: they carry sessions and credentials, or describe the transfer
# of a body that is stored decoded.
_DROPPED_HEADERS = frozenset(
    (
        "set-cookie",
        "set-cookie2",
        "authorization",
        "proxy-authorization",
        "proxy-authenticate",
        "www-authenticate",
        "authentication-info",
        "x-api-key",
        "openai-organization",
        "openai-project",
        "content-encoding",
        "content-length",
        "transfer-encoding",
        "connection",
        "keep-alive",
    )
)


_LATEST = 253402300799  # the end of the year 9999, the last that a date can be made of
_LONGEST = 24 * 3600


def sample_key(request: str, load: str, attempt: int, occurrence: int, run: int) -> str:
    """Key of the sample of one run: without the run in it, one answer would be replayed for all of them."""
    return f"{request}:{load}:{attempt}:{occurrence}:{run}"


class SampleKey(NamedTuple):
    """What stands in a sample's key; sorts by request, experiment and run."""

    request: str
    load: str
    attempt: int
    occurrence: int
    run: int

    def __str__(self) -> str:
        return sample_key(*self)


_KEY = re.compile(r"([0-9a-f]{64}):(solo|burst|crowd):(0|[1-9]\d{0,8}):(0|[1-9]\d{0,8}):(0|[1-9]\d{0,8})", re.ASCII)


def parse_key(text: str) -> SampleKey | None:
    """The parts of a key that `sample_key` made; None for every other text."""
    found = _KEY.fullmatch(text)
    return found and SampleKey(found[1], found[2], int(found[3]), int(found[4]), int(found[5]))


@dataclass(frozen=True, slots=True)
class Sample:
    """The response of one exchange for one run.

    Attributes:
        body: decoded bytes (no content encoding).
        at: when it arrived, seconds since the epoch.
        seconds: how long the call took.
    """

    status: int
    headers: tuple[tuple[str, str], ...]
    body: bytes
    at: float
    seconds: float

    @staticmethod
    def of(status: int, headers: list[tuple[str, str]], body: bytes, at: float, seconds: float) -> Sample:
        kept = tuple((name, value) for name, value in headers if name.lower() not in _DROPPED_HEADERS)
        return Sample(status, kept, body, at, seconds)

    @property
    def content_type(self) -> str:
        return next((value for name, value in self.headers if name.lower() == "content-type"), "")

    def encode(self) -> str:
        try:
            body = {"text": self.body.decode("utf-8")}
        except UnicodeDecodeError:
            body = {"base64": base64.b64encode(self.body).decode("ascii")}
        return json.dumps(
            {
                "format": FORMAT,
                "status": self.status,
                "headers": self.headers,
                "at": self.at,
                "seconds": self.seconds,
                "body": body,
            },
            ensure_ascii=False,
        )

    @staticmethod
    def decode(text: object) -> Sample:
        """The sample that `encode` wrote.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(text, str):
            raise ValueError("not text")
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r}, not {FORMAT}")
            body = record["body"]
            content = body["text"].encode() if "text" in body else base64.b64decode(body["base64"], validate=True)
            sample = Sample(
                record["status"],
                tuple((str(name), str(value)) for name, value in record["headers"]),
                content,
                float(record["at"]),
                float(record["seconds"]),
            )
            "".join(text for header in sample.headers for text in header).encode()
        except (KeyError, TypeError, AttributeError, OverflowError, RecursionError) as error:
            raise ValueError(f"damaged: {error!r}") from None
        if not isinstance(sample.status, int) or not 200 <= sample.status < 300:
            raise ValueError(f"status {sample.status!r} is no sample")
        if not 0 <= sample.at <= _LATEST or not 0 <= sample.seconds <= _LONGEST:
            raise ValueError(f"a sample of {sample.at!r} that took {sample.seconds!r} seconds")
        return sample
