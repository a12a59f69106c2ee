"""An API that only a hook knows: how its calls are told, and what its answers say."""

from __future__ import annotations

import json

import pytest

from pytest_llm_determinism.shapes import (
    CannotOverride,
    HookFailed,
    HTTPExchange,
    NotAModelCall,
    Rules,
    Unreadable,
    may_be_model_call,
    read_answer,
    recognise,
)

URL = "https://models.test/predict"


def said(exchange: HTTPExchange) -> str | None:
    if not exchange.url.endswith("/predict"):
        return None
    return exchange.json()["said"]


RULES = Rules(output=said)


def test_what_the_hook_wants_to_read_is_a_model_call() -> None:
    found = recognise("POST", URL, b'{"ask": "x", "n": 1.0}', RULES)
    other = recognise("POST", URL, b'{"n": 1, "ask": "x"}', RULES)
    assert found is not None
    assert other is not None
    assert found.key == other.key
    assert read_answer(found, b'{"said": "yes"}', "application/json").output == "yes"


def test_what_it_is_not_interested_in_is_none() -> None:
    assert recognise("POST", "https://models.test/telemetry", b"{}", RULES) is None
    assert recognise("GET", URL, b"", RULES) is None
    assert recognise("POST", URL, b"{}") is None


def test_with_a_hook_every_post_is_looked_at() -> None:
    assert may_be_model_call("POST", "/predict", "", RULES)
    assert not may_be_model_call("POST", "/predict", "")
    assert not may_be_model_call("GET", "/predict", "", RULES)


def test_an_api_that_is_known_is_not_the_hooks() -> None:
    found = recognise("POST", "https://x.test/v1/chat/completions", b'{"messages": []}', RULES)
    assert found is not None
    assert found.hook is None


def test_bodies_that_are_no_json_objects_are_told_apart_by_their_bytes() -> None:
    keys = {recognise("POST", URL, body, RULES).key for body in (b"\x00\x01", b"\x00\x02", b"[1]", b"[2]", b"")}
    assert len(keys) == 5
    with pytest.raises(CannotOverride, match="its body is no JSON object"):
        recognise("POST", URL, b"[1]", Rules(output=said, override={"seed": 7}))


def test_override_and_ignore_hold_for_it_too() -> None:
    rules = Rules(output=said, override={"seed": 7}, ignore=("trace",))
    found = recognise("POST", URL, b'{"ask": "x", "trace": 1}', rules)
    assert json.loads(found.body) == {"ask": "x", "trace": 1, "seed": 7}
    assert json.loads(found.canonical)["body"] == {"ask": "x", "seed": 7}


def test_the_hook_sees_all_of_an_exchange() -> None:
    seen = []

    def look(exchange: HTTPExchange) -> str:
        seen.append((exchange.method, exchange.url, exchange.request, exchange.request_json()))
        return f"{exchange.content_type} {exchange.text} {exchange.body!r}"

    found = recognise("POST", URL, b"{}", Rules(output=look))
    assert read_answer(found, b"hm", "text/plain").output == "text/plain hm b'hm'"
    assert seen == [("POST", URL, b"{}", {})] * 2
    assert HTTPExchange(URL, b"no json").request_json() is None


def test_a_hook_that_finds_nothing_says_that_it_was_no_model_call() -> None:
    found = recognise("POST", URL, b"{}", Rules(output=lambda exchange: exchange.json().get("said")))
    with pytest.raises(NotAModelCall):
        read_answer(found, b"{}", "application/json")


@pytest.mark.parametrize(
    ("body", "message"),
    [
        (b"<html>", "pytest_determinism_output raised JSONDecodeError: Expecting value"),
        (b"{}", "pytest_determinism_output raised KeyError: 'said'"),
        (b'{"said": 7}', "pytest_determinism_output returned int, not text: 7"),
    ],
)
def test_a_response_that_the_hook_cannot_read_is_no_answer(body: bytes, message: str) -> None:
    found = recognise("POST", URL, b"{}", RULES)
    with pytest.raises(Unreadable, match=message):
        read_answer(found, body, "application/json")


def test_a_hook_that_fails_on_a_request_says_so() -> None:
    with pytest.raises(HookFailed, match="pytest_determinism_output raised ZeroDivisionError: division by zero"):
        recognise("POST", URL, b"{}", Rules(output=lambda exchange: str(1 / 0)))
