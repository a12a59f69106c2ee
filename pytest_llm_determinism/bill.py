"""What the calls of one experiment are charged for, before anybody asks for prices."""

from __future__ import annotations

import json
import threading
from collections import Counter
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple
from urllib.parse import urlsplit

from pytest_llm_determinism.shapes import Answer, ModelCall, model_of

_USAGE = {"usage": "usage", "usageMetadata": "usageMetadata", "meta": "usage"}
"""Where the APIs have what an answer is charged for, with the name under which it is kept."""


class Charge(NamedTuple):
    """One answer, as far as its price depends on it.

    Attributes:
        endpoint: the URL that was asked, without credentials and parameters.
        api: the name of its family.
        asked: the model that the request names, in its body or its URL.
        answered: the model that the answer names.
        usage: what the provider counted, in its own form, as JSON; empty where it told nothing.
        tier: the service tier that the answer names.
    """

    endpoint: str
    api: str
    asked: str | None
    answered: str | None = None
    usage: str = ""
    tier: str | None = None

    @staticmethod
    def of(call: ModelCall) -> Charge:
        """What is known of a call before its answer."""
        split = urlsplit(call.url)
        try:
            body = json.loads(call.body)
        except (ValueError, RecursionError):
            body = None
        model = model_of(call.family, call.url, body if isinstance(body, dict) else {})
        host = split.netloc.rpartition("@")[2]
        return Charge(f"{split.scheme}://{host}{split.path}", call.family.name, model)

    def answered_by(self, answer: Answer) -> Charge:
        raw = answer.raw if isinstance(answer.raw, dict) else {}
        told = {kept: _counts(raw[name]) for name, kept in _USAGE.items() if isinstance(raw.get(name), dict)}
        tiers = (part["service_tier"] for part in (raw, *told.values()) if isinstance(part.get("service_tier"), str))
        usage = json.dumps(told) if any(told.values()) else ""
        return self._replace(answered=answer.model, usage=usage, tier=next(tiers, None))


def _counts(value: Mapping[str, Any]) -> dict[str, Any]:
    """What is counted, without how long it took: that is another in each answer, and costs nothing."""
    return {name: part for name, part in value.items() if not isinstance(part, float) or part.is_integer()}


class Bill:
    """The charges of one experiment. Safe to use from any thread.

    Args:
        settled: told of each call that went out once it is known what is charged for it; None stands for nothing.

    Attributes:
        live, saved: answers that were asked for live, and those that the store had, by what they are charged for.
        unanswered: calls that went out and have no answer.
    """

    def __init__(self, settled: Callable[[Charge | None], None] | None = None) -> None:
        self.live: Counter[Charge] = Counter()
        self.saved: Counter[Charge] = Counter()
        self.unanswered = 0
        self._settled = settled
        self._lock = threading.Lock()

    def sent(self) -> None:
        """A call goes out."""
        with self._lock:
            self.unanswered += 1

    def came(self, charge: Charge | None) -> None:
        """It has an answer, or one that nobody charges for (None): an HTTP error, or that of the bundled server."""
        with self._lock:
            self.unanswered -= 1
            if charge is not None:
                self.live[charge] += 1
        if self._settled is not None:
            self._settled(charge)

    def found(self, charge: Charge) -> None:
        """An answer was in the store."""
        with self._lock:
            self.saved[charge] += 1
