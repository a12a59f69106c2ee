"""Embeddings: which requests, and how vectors are compared."""

from __future__ import annotations

import base64
import contextlib
import json
import struct
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import Answer, ModelCall, Rules, Unreadable, read_answer, recognise

HOST = "https://api.test"
URL = f"{HOST}/v1/embeddings"


def call(url: str = URL, rules: Rules | None = None, /, **body: Any) -> ModelCall | None:
    return recognise("POST", url, json.dumps(body or {"input": "x", "model": "e"}).encode(), rules or Rules())


def answer(content: object, content_type: str = "application/json") -> Answer:
    body = content if isinstance(content, bytes) else json.dumps(content).encode()
    return read_answer(call(), body, content_type)


def vectors(*embeddings: object, **fields: Any) -> dict[str, Any]:
    data = [{"object": "embedding", "index": n, "embedding": value} for n, value in enumerate(embeddings)]
    return {"object": "list", "data": data, "model": "e-1", **fields}


def packed(*numbers: float) -> str:
    return base64.b64encode(struct.pack(f"<{len(numbers)}f", *numbers)).decode()


@pytest.mark.parametrize(
    ("url", "body"),
    [
        (URL, {"model": "e", "input": "x", "encoding_format": "base64"}),
        (URL, {"model": "e", "input": ["x", "y"], "dimensions": 3, "encoding_format": "float"}),
        (URL, {"model": "e", "input": [[1, 2]]}),
        (f"{HOST}/openai/deployments/dep/embeddings?api-version=2024-10-21", {"model": "dep", "input": "x"}),
    ],
)
def test_a_request_is_recognised_by_route_and_body(url: str, body: dict[str, Any]) -> None:
    found = call(url, **body)
    assert (found.family.name, found.stream) == ("embeddings", False)


@pytest.mark.parametrize(
    ("url", "body"),
    [(URL, {"prompt": "x"}), (URL, {"data": []}), (f"{HOST}/v1/embeddings/jobs", {"input": "x"})],
)
def test_what_asks_for_no_vector_is_no_model_call(url: str, body: dict[str, Any]) -> None:
    assert call(url, **body) is None


def test_the_order_of_inputs_is_part_of_the_question() -> None:
    assert call(input=["x", "y"]).key != call(input=["y", "x"]).key


def test_the_model_of_an_azure_path_is_overridden_there_and_in_the_body() -> None:
    url = f"{HOST}/openai/deployments/dep/embeddings"
    found = call(url, Rules(override={"model": "other", "dimensions": 8}), input="x", model="dep")
    assert found.url == url.replace("/dep/", "/other/")
    assert json.loads(found.body) == {"input": "x", "model": "other", "dimensions": 8}


def test_an_answer_is_the_list_of_its_vectors() -> None:
    found = answer(vectors([0.1, -0.25], [1, 2e-7], usage={"prompt_tokens": 2, "total_tokens": 2}))
    text = "[[0.1,-0.25],[1,2e-07]]"
    assert found == Answer(text, text, (), None, "e-1", None, 2, None)
    assert json.loads(found.output) == [[0.1, -0.25], [1, 2e-7]]


def test_vectors_are_in_the_order_of_their_index() -> None:
    content = vectors([1.5], [2.5])
    turned = {**content, "data": content["data"][::-1]}
    assert answer(turned).output == answer(content).output == "[[1.5],[2.5]]"


def test_base64_is_the_numbers_that_the_client_makes_of_it() -> None:
    assert answer(vectors(packed(0.1, -0.25))).output == "[[0.10000000149011612,-0.25]]"


FLOATS = st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=4)


@given(FLOATS)
def test_base64_and_the_same_numbers_as_json_are_the_same(numbers: list[float]) -> None:
    assert answer(vectors(packed(*numbers))) == answer(vectors(numbers))


@given(FLOATS, FLOATS)
def test_vectors_that_differ_in_a_bit_differ(one: list[float], other: list[float]) -> None:
    assert (answer(vectors(packed(*one))) == answer(vectors(packed(*other)))) == (packed(*one) == packed(*other))


@pytest.mark.parametrize(
    "value",
    [
        [1, -128, 127],
        {"float": [0.5], "int8": [1]},
        [[0.5, 1.5], [2.5, 3.5]],
        "not base64!",
        base64.b64encode(b"three").decode(),
        packed(float("nan"), 1.0),
        packed(float("inf")),
    ],
)
def test_what_is_no_vector_of_floats_is_compared_as_it_is(value: object) -> None:
    assert json.loads(answer(vectors(value)).output) == [value]


def test_numbers_that_are_none_are_told_apart_by_their_bits() -> None:
    bits = [base64.b64encode(struct.pack("<I", 0x7FC00000 + extra)).decode() for extra in (0, 1)]
    assert answer(vectors(bits[0])).output != answer(vectors(bits[1])).output


@pytest.mark.parametrize(
    ("body", "content_type"),
    [
        (b"", "application/json"),
        (b"[]", "application/json"),
        (b"{}", "application/json"),
        (b"null", "application/json"),
        (b"<html>", "text/html"),
        (b'{"data": []}', "application/json"),
        (b'{"data": [[0.5]]}', "application/json"),
        (b'{"data": [{"index": 0}]}', "application/json"),
        (b'{"data": [{"embedding": null}]}', "application/json"),
        (b'{"data": [{"embedding": []}]}', "application/json"),
        (b'{"data": [{"embedding": ""}]}', "application/json"),
        (b'{"error": {"message": "overloaded"}, "data": [{"embedding": [0.5]}]}', "application/json"),
        (b'data: {"data": [{"embedding": [0.5]}]}\n\n', "text/event-stream"),
    ],
)
def test_errors_and_fragments_are_never_answers(body: bytes, content_type: str) -> None:
    with pytest.raises(Unreadable):
        answer(body, content_type)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(JSON)
def test_no_json_whatever_it_is_breaks_the_reading(content: Any) -> None:
    for body in (content, {"data": content}, {"data": [content], "usage": content}, vectors(content, content)):
        with contextlib.suppress(Unreadable):
            answer(body)
