"""Prices: what calls cost by the public list prices that the package genai-prices carries (extra ``cost``).

Its data are used as installed, without the network. They are estimates: list prices as of the data's date, without
discounts, taxes and minimum fees. Who asks the price is told by the address alone, never by the model's name: a server
of one's own may call its model as it likes. What has no price there has none here; nothing is guessed.
"""

from __future__ import annotations

import contextlib
import datetime
import functools
import importlib.util
import ipaddress
import json
import re
from collections import Counter
from dataclasses import dataclass
from decimal import Decimal
from typing import TYPE_CHECKING, Any
from urllib.parse import urlsplit

from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.bill import Bill, Charge
from pytest_llm_determinism.results import Cost

if TYPE_CHECKING:
    from genai_prices.data_snapshot import DataSnapshot
    from genai_prices.types import ModelInfo, Provider, Usage

CURRENCY = "USD"
"""Of all prices that genai-prices has."""

SHOWN_REASONS = 3

_LONGEST_NAME = 200
"""Characters of a model's name; no model that has a price has more."""

_DEAREST = 10_000
"""USD for one answer. A usage that comes to more is none: servers may write anything there."""

_LISTED_TIERS = (None, "default", "standard", "auto", "on_demand")
"""Service tiers that the list price is for."""

_READERS = {
    "chat completions": ("chat", "default"),
    "completions": ("chat", "default"),
    "responses": ("responses",),
    "embeddings": ("embeddings",),
    "messages": ("anthropic", "default"),
    "generateContent": ("default",),
    "Cohere chat": ("default",),
    "Cohere chat v1": ("default",),
    "Bedrock converse": ("default",),
    "Bedrock invoke": ("anthropic",),
}
"""How genai-prices names what reads the usage of an API family, the first that a provider has."""

_AS_OPENAI = ("chat completions", "completions", "responses", "embeddings")
"""Families in which providers tell the usage as OpenAI does, unless they have a reader of their own."""


@functools.cache
def is_installed() -> bool:
    """Whether the extra ``cost`` is."""
    return importlib.util.find_spec("genai_prices") is not None


def unpriced(charge: Charge) -> str | None:
    """Why a call has no price, as far as that is known before its answer; None where it should have one."""
    found = _find(charge.endpoint, charge.asked, None)
    return found if isinstance(found, str) else None


@functools.lru_cache(maxsize=4096)
def amount(charge: Charge) -> Decimal | str:
    """What an answer costs, or why that is not known."""
    found = _find(charge.endpoint, charge.answered, charge.asked)
    return found if isinstance(found, str) else found.charges(charge)


def cost(bill: Bill) -> tuple[Cost | None, str | None]:
    """What an experiment cost and what the store saved; where that is not known, why, in words.

    Nothing is said where the extra is not installed.
    """
    if not is_installed():
        return None, None
    reasons = list(dict.fromkeys(why for why in map(amount, (*bill.live, *bill.saved)) if isinstance(why, str)))
    if bill.unanswered:
        calls = "1 live call" if bill.unanswered == 1 else f"{bill.unanswered} live calls"
        reasons.append(f"{calls} ended without an answer, and may have been charged for")
    if reasons:
        more = f" (and {len(reasons) - SHOWN_REASONS} more reasons)" if len(reasons) > SHOWN_REASONS else ""
        return None, "; ".join(reasons[:SHOWN_REASONS]) + more
    return Cost(_total(bill.live), _total(bill.saved), CURRENCY), None


def _total(charges: Counter[Charge]) -> float:
    amounts = ((amount(charge), count) for charge, count in charges.items())
    return float(sum(each * count for each, count in amounts if isinstance(each, Decimal)))


@dataclass(frozen=True, slots=True)
class _Listed:
    """A model that has a price where it was asked for; `words` name both."""

    provider: Provider
    model: ModelInfo
    words: str

    def charges(self, charge: Charge) -> Decimal | str:
        """What an answer costs, or why that is not known."""
        tier = charge.tier if charge.tier in self._tiers() else None
        if tier is None and charge.tier not in _LISTED_TIERS:
            return f"no price is known for {self.words} at the service tier “{excerpt(str(charge.tier), width=40)}”"
        try:
            usage = self._usage(charge)
            # The calculation, too, raises ValueError: where counts contradict each other.
            found = self.model.calc_price(
                usage,
                self.provider,
                genai_request_timestamp=datetime.datetime.now(datetime.UTC),
                price_context=None if tier is None else {"service_tier": tier},
            )
            if found.total_price > _DEAREST:
                raise ValueError(f"more than {_DEAREST} USD")
        except ValueError:
            streamed = " (OpenAI's streams tell it where stream_options.include_usage is set)"
            hint = streamed if charge.api in ("chat completions", "completions") and not charge.usage else ""
            return f"an answer of {self.words} told no usage that a price could be made of{hint}"
        if found.model_price.output_mtok is None and usage.output_tokens:
            return f"no price is known for the output of {self.words}"
        return found.total_price

    def _tiers(self) -> set[str | None]:
        # For a model that another provider lists, genai-prices passes over the tier.
        own = any(model is self.model for model in self.provider.models)
        return {variant.when.get("service_tier") for variant in self.model.price_variants or ()} if own else set()

    def _usage(self, charge: Charge) -> Usage:
        """
        Raises:
            ValueError: the answer told none, or in an unknown form.
        """
        told: dict[str, Any] = json.loads(charge.usage or "{}")
        openai = _provider("https://api.openai.com/") if charge.api in _AS_OPENAI else None
        for provider in filter(None, (self.provider, openai)):
            names = {reader.api_flavor for reader in provider.extractors or ()}
            name = next((name for name in _READERS.get(charge.api, ()) if name in names), None)
            if name is not None:
                with contextlib.suppress(ValueError):
                    return provider.extract_usage(told, api_flavor=name)[1]
        raise ValueError("no usage")


@functools.lru_cache(maxsize=1024)
def _find(endpoint: str, *names: str | None) -> _Listed | str:
    """The model of the first of these names that has a price at an endpoint, or why there is none.

    Args:
        names: of the model, those not None; others than the first are asked only if it has no price.
    """
    split = urlsplit(endpoint)
    origin = f"{split.scheme}://{split.netloc.rpartition('@')[2]}"
    known = [name for name in names if name]
    words = f"{excerpt(known[0], width=60) if known else 'a model that is not named'} at {excerpt(origin)}"
    provider = None if _is_local(split.hostname or "") else _provider(origin + split.path)
    if provider is not None:
        models = _snapshot().providers
        for name in known:
            model = provider.find_model(name, all_providers=models) if len(name) <= _LONGEST_NAME else None
            # Some models stand in the list without a price, or with one that is not for tokens.
            if model is not None and model.get_prices(datetime.datetime.now(datetime.UTC)).input_mtok is not None:
                return _Listed(provider, model, words)
    return f"no price is known for {words}"


def _is_local(host: str) -> bool:
    """Whether nobody sells answers at a host: found out without reading all prices."""
    try:
        ipaddress.ip_address(host)
    except ValueError:
        return "." not in host
    return True


def _provider(url: str) -> Provider | None:
    """Who sells answers at an address."""
    try:
        found = _snapshot().find_provider(None, None, url)
    except LookupError:
        return None
    # Most patterns end with the host's last letter: api.openai.com.proxy.example is another host.
    matched = re.match(found.api_pattern, url)
    whole = matched is not None and (matched[0].endswith((".", "/")) or url[matched.end() :][:1] in ("", "/", ":"))
    return found if whole else None


def _snapshot() -> DataSnapshot:
    # What is installed: only genai_prices.UpdatePrices would read newer prices from the network.
    from genai_prices.data_snapshot import get_snapshot

    return get_snapshot()
