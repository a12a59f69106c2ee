"""Prices: who asks them is told by the address, what is counted by the provider, and nothing is guessed."""

from __future__ import annotations

import json
import subprocess
import sys
from decimal import Decimal
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism import pricing
from pytest_llm_determinism.bill import Bill, Charge
from pytest_llm_determinism.pricing import amount, cost, unpriced
from pytest_llm_determinism.report.text import money
from pytest_llm_determinism.results import Cost
from pytest_llm_determinism.shapes import read_answer, recognise

OPENAI = "https://api.openai.com/v1"
ANTHROPIC = "https://api.anthropic.com/v1"
GOOGLE = "https://generativelanguage.googleapis.com/v1beta"
AMAZON = "https://bedrock-runtime.eu-west-1.amazonaws.com"


def charge(url: str, body: dict[str, Any], answer: Any, content_type: str = "application/json") -> Charge:
    """What an answer to a question at an address is charged for."""
    call = recognise("POST", url, json.dumps(body).encode())
    assert call is not None
    content = answer if isinstance(answer, bytes) else json.dumps(answer).encode()
    return Charge.of(call).answered_by(read_answer(call, content, content_type))


def chat(usage: Any, url: str = OPENAI, asked: str = "gpt-4o", **more: Any) -> Charge:
    """A chat completion that is charged for."""
    told = {"choices": [{"message": {"content": "Paris."}, "finish_reason": "stop"}], "usage": usage, **more}
    return charge(f"{url}/chat/completions", {"model": asked, "messages": []}, told)


USED = {"prompt_tokens": 1_000_000, "completion_tokens": 100_000}


# Who is asked


@pytest.mark.parametrize(
    ("model", "base_url", "expected"),
    [
        ("gpt-4o", OPENAI, "0.35"),
        ("gpt-4o", "https://user:secret@api.openai.com:443/v1", "0.35"),
        ("gpt-4o", "https://mine.openai.azure.com/openai/deployments/gpt-4o", "0.35"),
        ("claude-sonnet-4-5", ANTHROPIC, "0.45"),
        ("gemini-2.5-flash", f"{GOOGLE}/openai", "0.055"),
    ],
)
def test_a_call_has_the_list_price_of_who_answers_at_the_address(model: str, base_url: str, expected: str) -> None:
    assert amount(chat({"prompt_tokens": 100_000, "completion_tokens": 10_000}, base_url, model)) == Decimal(expected)


@pytest.mark.parametrize(
    ("model", "base_url"),
    [
        ("gpt-4o", "http://localhost:8000/v1"),
        ("gpt-4o", "http://127.0.0.1:8000/v1"),
        ("gpt-4o", "http://[::1]:8000/v1"),
        ("gpt-4o", "http://ollama/v1"),
        ("gpt-4o", "https://llm.example.com/v1"),
        ("gpt-4o", "https://api.openai.com.proxy.example/v1"),
        ("gpt-4o", "http://api.openai.com/v1"),
        ("gpt-4o", ANTHROPIC),
        ("my-model", OPENAI),
        ("whisper-large-v3", "https://api.groq.com/openai/v1"),
        ("gpt-4o", "https://api.githubcopilot.com"),
        ("davinci", "https://mine.openai.azure.com/openai/v1"),
        ("", OPENAI),
        ("gpt-4o\x00" * 1000, OPENAI),
    ],
)
def test_a_name_makes_no_price(model: str, base_url: str) -> None:
    assert str(amount(chat(USED, base_url, model))).startswith("no price is known for ")


def test_without_the_extra_there_are_no_prices(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pricing, "is_installed", lambda: False)
    bill = Bill()
    bill.sent()
    bill.came(chat(USED))
    assert cost(bill) == (None, None)


# What the providers count

MILLION = 10**6

SAYS = {"content": [{"type": "text", "text": "Paris."}], "type": "message", "stop_reason": "end_turn"}
GEMINI_SAYS = [{"content": {"parts": [{"text": "Paris."}]}, "finishReason": "STOP"}]


def sse(*events: Any) -> bytes:
    return b"".join(f"data: {json.dumps(event)}\n\n".encode() for event in events)


def claude(url: str, usage: Any) -> Charge:
    body = {"model": "claude-sonnet-4-5", "max_tokens": 9, "messages": []}
    return charge(url, body, {**SAYS, "model": "claude-sonnet-4-5-20250929", "usage": usage})


@pytest.mark.parametrize(
    ("found", "expected"),
    [
        pytest.param(chat(USED), "3.5", id="OpenAI"),
        pytest.param(
            chat({**USED, "prompt_tokens_details": {"cached_tokens": 400_000}}),
            "3.0",
            id="OpenAI: cached input is part of the input",
        ),
        pytest.param(
            chat({**USED, "completion_tokens_details": {"reasoning_tokens": 90_000}}),
            "3.5",
            id="OpenAI: reasoning is part of the output",
        ),
        pytest.param(
            chat({**USED, "completion_tokens_details": {"reasoning_tokens": 100_000}}, "https://api.x.ai/v1", "grok-4"),
            "6.0",
            id="xAI: reasoning comes on top of the output",
        ),
        pytest.param(chat(USED, service_tier="default"), "3.5", id="OpenAI: the usual tier"),
        pytest.param(chat(USED, service_tier="priority"), "5.95", id="OpenAI: a dearer tier"),
        pytest.param(chat(USED, model="gpt-4o-mini-2024-07-18"), "0.21", id="the answer names another model"),
        pytest.param(chat(USED, model="gpt-4o-of-next-year"), "3.5", id="the answer names one without a price"),
        pytest.param(
            chat(USED, "https://mine.openai.azure.com/openai/deployments/ours", "ours", model="gpt-4o-2024-08-06"),
            "3.5",
            id="Azure: only the answer names the model",
        ),
        pytest.param(chat(USED, "https://api.together.xyz/v1", "Gryphe/MythoMax-L2-13b"), "0.33", id="Together"),
        pytest.param(
            charge(
                f"{OPENAI}/chat/completions",
                {"model": "gpt-4o", "messages": [], "stream": True},
                sse(
                    {"choices": [{"delta": {"content": "Paris."}, "finish_reason": "stop"}], "model": "gpt-4o"},
                    {"choices": [], "usage": USED},
                ),
                "text/event-stream",
            ),
            "3.5",
            id="OpenAI: a stream",
        ),
        pytest.param(
            charge(
                f"{OPENAI}/responses",
                {"model": "gpt-4o", "input": "?"},
                {
                    "output": [],
                    "status": "completed",
                    "usage": {
                        "input_tokens": MILLION,
                        "input_tokens_details": {"cached_tokens": 400_000},
                        "output_tokens": 100_000,
                    },
                },
            ),
            "3.0",
            id="OpenAI: Responses",
        ),
        pytest.param(
            charge(
                f"{OPENAI}/embeddings",
                {"model": "text-embedding-3-small", "input": "?"},
                {"data": [{"embedding": [1.0]}], "usage": {"prompt_tokens": MILLION, "total_tokens": MILLION}},
            ),
            "0.02",
            id="OpenAI: embeddings",
        ),
        pytest.param(
            claude(
                f"{ANTHROPIC}/messages",
                {
                    "input_tokens": 10_000,
                    "cache_creation_input_tokens": 20_000,
                    "cache_read_input_tokens": 100_000,
                    "output_tokens": 10_000,
                    "service_tier": "standard",
                },
            ),
            "0.285",  # 0.03 + 0.075 + 0.03 + 0.15
            id="Anthropic: what is read from its cache, and written to it, comes on top of the input",
        ),
        pytest.param(
            charge(
                f"{GOOGLE}/models/gemini-2.5-flash:generateContent?key=secret",
                {"contents": []},
                {
                    "candidates": GEMINI_SAYS,
                    "modelVersion": "gemini-2.5-flash",
                    "usageMetadata": {
                        "promptTokenCount": MILLION,
                        "candidatesTokenCount": 100_000,
                        "thoughtsTokenCount": 300_000,
                    },
                },
            ),
            "1.3",
            id="Gemini: thoughts come on top of the output",
        ),
        pytest.param(
            charge(
                f"{AMAZON}/model/amazon.nova-lite-v1:0/converse",
                {"messages": []},
                {
                    "output": {"message": {"content": [{"text": "Paris."}]}},
                    "stopReason": "end_turn",
                    "usage": {"inputTokens": MILLION, "outputTokens": 100_000},
                },
            ),
            "0.084",
            id="Bedrock",
        ),
        pytest.param(
            charge(
                "https://api.cohere.com/v2/chat",
                {"model": "command-r-plus-08-2024", "messages": []},
                {
                    "message": {"content": [{"type": "text", "text": "Paris."}]},
                    "finish_reason": "COMPLETE",
                    "usage": {
                        "billed_units": {"input_tokens": 1_000_000.0, "output_tokens": 100_000.0},
                        "tokens": {"input_tokens": 1_000_400, "output_tokens": 100_001},
                    },
                },
            ),
            "3.5",
            id="Cohere: by billed units",
        ),
    ],
)
def test_an_answer_costs_what_its_provider_charges_for(found: Charge, expected: str) -> None:
    assert amount(found) == Decimal(expected)


STREAM_ADVICE = " (OpenAI's streams tell it where stream_options.include_usage is set)"


@pytest.mark.parametrize(
    ("found", "why"),
    [
        pytest.param(
            chat(USED, "http://localhost:8000/v1"), "no price is known for gpt-4o at http://localhost:8000", id="local"
        ),
        pytest.param(
            chat(USED, asked="mine", model="ours"), "no price is known for ours at https://api.openai.com", id="model"
        ),
        pytest.param(
            charge(f"{OPENAI}/responses", {"prompt": {"id": "p"}}, {"output": [], "status": "completed"}),
            "no price is known for a model that is not named at https://api.openai.com",
            id="no model",
        ),
        pytest.param(
            chat(None),
            f"an answer of gpt-4o at https://api.openai.com told no usage that a price could be made of{STREAM_ADVICE}",
            id="no usage",
        ),
        pytest.param(
            chat({"prompt_tokens": 7}),
            "an answer of gpt-4o at https://api.openai.com told no usage that a price could be made of",
            id="half a usage",
        ),
        pytest.param(
            chat({"prompt_tokens": 7, "completion_tokens": -1}),
            "an answer of gpt-4o at https://api.openai.com told no usage that a price could be made of",
            id="less than nothing",
        ),
        pytest.param(
            chat({**USED, "prompt_tokens_details": {"cached_tokens": 2_000_000}}),
            "an answer of gpt-4o at https://api.openai.com told no usage that a price could be made of",
            id="more cached than sent",
        ),
        pytest.param(
            chat({"prompt_tokens": 10**400, "completion_tokens": 7}),
            "an answer of gpt-4o at https://api.openai.com told no usage that a price could be made of",
            id="more than there is",
        ),
        pytest.param(
            chat(USED, service_tier="scale"),
            "no price is known for gpt-4o at https://api.openai.com at the service tier “scale”",
            id="tier",
        ),
        pytest.param(
            chat(USED, "https://mine.openai.azure.com/openai/v1", "davinci"),
            "no price is known for the output of davinci at https://mine.openai.azure.com",
            id="output without a price",
        ),
        pytest.param(
            chat(USED, "https://mine.openai.azure.com/openai/v1", service_tier="priority"),
            "no price is known for gpt-4o at https://mine.openai.azure.com at the service tier “priority”",
            id="tier of another provider",
        ),
        pytest.param(
            chat(USED, "http://user:secret@llm.example/v1", "a\x1b[31m\n" + "x" * 1000),
            "no price is known for a\\x1b[31m\\n" + "x" * 48 + "… at http://llm.example",
            id="hostile",
        ),
    ],
)
def test_what_is_not_known_is_said_and_not_guessed(found: Charge, why: str) -> None:
    assert amount(found) == why


def test_a_call_is_looked_up_before_it_is_made() -> None:
    def asked(url: str, model: str) -> str | None:
        call = recognise("POST", f"{url}/chat/completions", json.dumps({"model": model, "messages": []}).encode())
        assert call is not None
        return unpriced(Charge.of(call))

    assert asked(OPENAI, "gpt-4o") is None
    assert asked(OPENAI, "mine") == "no price is known for mine at https://api.openai.com"
    assert asked("http://127.0.0.1:8000/v1", "gpt-4o") == "no price is known for gpt-4o at http://127.0.0.1:8000"


# A whole experiment


def test_an_experiment_costs_what_its_answers_do() -> None:
    bill = Bill()
    for _ in range(3):
        bill.sent()
        bill.came(chat(USED))
    bill.sent()
    bill.came(None)
    bill.found(chat(USED))
    bill.found(chat({**USED, "completion_tokens": 0}))

    assert cost(bill) == (Cost(10.5, 6.0, "USD"), None)


def test_one_answer_without_a_price_makes_all_unknown() -> None:
    bill = Bill()
    bill.sent()
    bill.came(chat(USED))
    bill.found(chat(USED, asked="mine"))
    bill.found(chat({**USED, "completion_tokens": 1}, asked="mine"))
    assert cost(bill) == (None, "no price is known for mine at https://api.openai.com")


def test_a_call_without_an_answer_makes_all_unknown() -> None:
    bill = Bill()
    bill.sent()
    assert cost(bill) == (None, "1 live call ended without an answer, and may have been charged for")
    for number in range(5):
        bill.sent()
        bill.found(chat(USED, asked=f"m{number}"))
    assert cost(bill) == (
        None,
        "; ".join(f"no price is known for m{number} at https://api.openai.com" for number in range(3))
        + " (and 3 more reasons)",
    )


def test_how_long_an_answer_took_makes_no_charge_of_its_own() -> None:
    assert chat({**USED, "total_time": 0.1, "queue_time": 0.25}) == chat({**USED, "total_time": 0.2})


OFFLINE = """
import socket, sys
def no(*_): raise AssertionError("the network")
socket.socket.connect = socket.getaddrinfo = socket.create_connection = no
from pytest_llm_determinism.bill import Charge
from pytest_llm_determinism.pricing import unpriced
for origin in "http://localhost", "https://api.openai.com":
    why = unpriced(Charge(origin + "/v1/chat/completions", "chat completions", "gpt-4o"))
    print(why, "genai_prices" in sys.modules)
import threading
print(threading.active_count())
"""


def test_nothing_is_asked_of_the_network_and_a_local_server_needs_no_list() -> None:
    told = subprocess.run([sys.executable, "-c", OFFLINE], capture_output=True, text=True, check=True).stdout
    assert told == "no price is known for gpt-4o at http://localhost False\nNone True\n1\n"


# Amounts


@pytest.mark.parametrize(
    ("number", "text"),
    [
        (0.0, "0.00"),
        (1234567.891, "1234567.89"),
        (12.3456, "12.35"),
        (1.0, "1.00"),
        (0.9999, "1.00"),
        (0.45, "0.45"),
        (0.123456, "0.123"),
        (0.0123, "0.0123"),
        (0.00000123456, "0.00000123"),
    ],
)
def test_an_amount_is_told_to_three_digits(number: float, text: str) -> None:
    assert money(number) == text


@given(st.floats(min_value=1e-12, max_value=1e9))
def test_an_amount_is_never_told_as_nothing(number: float) -> None:
    assert float(money(number)) == pytest.approx(number, rel=0.005)
