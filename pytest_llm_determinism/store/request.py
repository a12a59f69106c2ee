"""What is kept of a request beside its samples: what was asked, of which model, by which tests."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

FORMAT = 1

MOST_TESTS = 100
"""Tests that are named, the latest to ask."""

LONGEST_REQUEST = 1_000_000
"""Characters of a request that is kept as it was asked; of longer ones only API, model and tests are."""

_LONGEST_NAME = 2000

_KEY = re.compile(r"request:([0-9a-f]{64})")


def request_key(request: str) -> str:
    """Key of what is kept of a request, by the SHA-256 of its canonical form."""
    return f"request:{request}"


def parse_request_key(text: str) -> str | None:
    """The request of a key that `request_key` made; None for every other text."""
    found = _KEY.fullmatch(text)
    return found and found[1]


@dataclass(frozen=True, slots=True)
class StoredRequest:
    """One request.

    Attributes:
        api: the API family.
        model: as the request names it; None where it names none.
        canonical: what the key is the hash of (schema, API, method, URL, body), without credentials; None where it was
            too long.
        tests: node ids of tests that asked it and paid for a sample, the latest last.
    """

    api: str
    model: str | None
    canonical: dict[str, Any] | None
    tests: tuple[str, ...]

    @staticmethod
    def of(api: str, model: str | None, canonical: dict[str, Any] | None, test: str) -> StoredRequest:
        if canonical is not None and len(json.dumps(canonical, ensure_ascii=False)) > LONGEST_REQUEST:
            canonical = None
        tests = (test[:_LONGEST_NAME],) if test else ()
        return StoredRequest(api, None if model is None else model[:_LONGEST_NAME], canonical, tests)

    def joined(self, other: StoredRequest) -> StoredRequest:
        """This with the tests of another of the same request, and what else only that knows."""
        tests = dict.fromkeys((*self.tests, *other.tests))
        return replace(
            self,
            model=other.model if self.model is None else self.model,
            canonical=other.canonical if self.canonical is None else self.canonical,
            tests=tuple(tests)[-MOST_TESTS:],
        )

    def encode(self) -> str:
        # In ASCII: a lone surrogate in a prompt cannot be written as UTF-8.
        return json.dumps(
            {
                "format": FORMAT,
                "api": self.api,
                "model": self.model,
                "canonical": self.canonical,
                "tests": self.tests,
            },
            sort_keys=True,
        )

    @staticmethod
    def decode(text: object) -> StoredRequest:
        """What `encode` wrote.

        Raises:
            ValueError: it is something else.
        """
        if not isinstance(text, str):
            raise ValueError("not text")
        try:
            record = json.loads(text)
            if record["format"] != FORMAT:
                raise ValueError(f"format {record['format']!r}, not {FORMAT}")
            api, model, canonical, tests = (record[name] for name in ("api", "model", "canonical", "tests"))
        except (KeyError, TypeError, RecursionError) as error:
            raise ValueError(f"damaged: {error!r}") from None
        if not isinstance(tests, list) or len(tests) > MOST_TESTS or not _names([api, *tests]):
            raise ValueError("an API or tests of another form")
        if not (model is None or _names([model])) or not (canonical is None or isinstance(canonical, dict)):
            raise ValueError("a model or a request of another form")
        return StoredRequest(api, model, canonical, tuple(tests))


def _names(texts: Sequence[object]) -> bool:
    return all(isinstance(text, str) and len(text) <= _LONGEST_NAME for text in texts)
