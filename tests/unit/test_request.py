"""What settings make of a request: fields that are no part of the question, and fields that are set in it."""

from __future__ import annotations

import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.shapes import CannotOverride, ModelCall, Rules, recognise
from pytest_llm_determinism.shapes.request import path_steps, without

CHAT = "https://api.test/v1/chat/completions"


def call(rules: Rules, url: str = CHAT, /, **body: Any) -> ModelCall:
    found = recognise("POST", url, json.dumps({"messages": [], **body}).encode(), rules)
    assert found is not None
    return found


# ignore


@pytest.mark.parametrize(
    ("path", "steps"),
    [
        ("user", ["user"]),
        ("metadata.trace_id", ["metadata", "trace_id"]),
        ("$.metadata.trace_id", ["metadata", "trace_id"]),
        ("messages[0].name", ["messages", 0, "name"]),
        ("messages[*].content[12]", ["messages", None, "content", 12]),
    ],
)
def test_a_path_is_names_and_indices(path: str, steps: list[object]) -> None:
    assert path_steps(path) == steps


@pytest.mark.parametrize("path", ["", ".", "a.", ".a", "a..b", "[0]", "a[x]", "a[", "a]"])
def test_what_is_no_path_is_refused(path: str) -> None:
    with pytest.raises(ValueError, match="not a path"):
        path_steps(path)


@pytest.mark.parametrize(
    ("path", "left"),
    [
        ("a", {"b": [{"c": 1, "d": 2}, {"c": 3}]}),
        ("a.x", {"a": {"y": 2}, "b": [{"c": 1, "d": 2}, {"c": 3}]}),
        ("b[0]", {"a": {"x": 1, "y": 2}, "b": [{"c": 3}]}),
        ("b[1].c", {"a": {"x": 1, "y": 2}, "b": [{"c": 1, "d": 2}, {}]}),
        ("b[*].c", {"a": {"x": 1, "y": 2}, "b": [{"d": 2}, {}]}),
        ("b[*]", {"a": {"x": 1, "y": 2}, "b": []}),
        ("nowhere", {"a": {"x": 1, "y": 2}, "b": [{"c": 1, "d": 2}, {"c": 3}]}),
        ("a.x.deep", {"a": {"x": 1, "y": 2}, "b": [{"c": 1, "d": 2}, {"c": 3}]}),
        ("b[7].c", {"a": {"x": 1, "y": 2}, "b": [{"c": 1, "d": 2}, {"c": 3}]}),
        ("b.c", {"a": {"x": 1, "y": 2}, "b": [{"c": 1, "d": 2}, {"c": 3}]}),
        ("a[0]", {"a": {"x": 1, "y": 2}, "b": [{"c": 1, "d": 2}, {"c": 3}]}),
    ],
)
def test_what_stands_at_a_path_is_taken_away_and_the_value_is_left_as_it_was(path: str, left: object) -> None:
    value = {"a": {"x": 1, "y": 2}, "b": [{"c": 1, "d": 2}, {"c": 3}]}
    before = json.dumps(value)

    assert without(value, path) == left
    assert json.dumps(value) == before


def test_an_ignored_field_is_still_sent_and_no_part_of_the_question() -> None:
    rules = Rules(ignore=("metadata.trace_id", "messages[*].name"))
    one, other = (
        call(
            rules, messages=[{"role": "user", "content": "a", "name": f"user-{n}"}], metadata={"trace_id": n, "kept": 1}
        )
        for n in (1, 2)
    )

    assert one.key == other.key
    assert json.loads(one.canonical)["body"] == {
        "messages": [{"role": "user", "content": "a"}],
        "metadata": {"kept": 1},
    }
    assert json.loads(one.body)["metadata"] == {"trace_id": 1, "kept": 1}
    assert not one.rewritten
    assert one.key != call(rules, messages=[{"role": "user", "content": "b"}], metadata={"kept": 1}).key


def test_a_body_that_is_nested_deeper_than_can_be_read_has_a_key_of_its_own() -> None:
    keys = set()
    for depth in (10, 700, 701, 900):
        body = b'{"messages": ' + b"[" * depth + b"]" * depth + b"}"
        found = recognise("POST", CHAT, body)
        assert found is not None
        keys.add(found.key)
    assert len(keys) == 4


# override


def test_an_override_is_in_what_is_sent_and_in_what_identifies_it() -> None:
    rules = Rules(override={"seed": 7, "metadata.from": "gate", "temperature": 0})
    found = call(rules, seed=1, model="m")

    assert found.rewritten
    assert json.loads(found.body) == {
        "messages": [],
        "model": "m",
        "seed": 7,
        "metadata": {"from": "gate"},
        "temperature": 0,
    }
    assert found.key == call(Rules(), seed=7, model="m", metadata={"from": "gate"}, temperature=0).key


def test_what_says_already_what_an_override_wants_is_sent_as_it_is() -> None:
    found = call(Rules(override={"seed": 7}), seed=7)
    assert not found.rewritten
    assert found.body == b'{"messages": [], "seed": 7}'


def test_what_is_overridden_can_be_ignored_as_well() -> None:
    rules = Rules(override={"user": "gate"}, ignore=("user",))
    assert call(rules, user="a").key == call(Rules()).key
    assert json.loads(call(rules, user="a").body)["user"] == "gate"


def test_a_model_is_overridden_where_the_api_has_it() -> None:
    rules = Rules(override={"model": "new/one"})
    assert json.loads(call(rules, model="old").body)["model"] == "new/one"

    azure = "https://x.test/openai/deployments/old/chat/completions?api-version=2024-10-21"
    named = call(rules, azure, model="old")
    assert named.url == "https://x.test/openai/deployments/new%2Fone/chat/completions?api-version=2024-10-21"
    assert json.loads(named.body)["model"] == "new/one"
    unnamed = call(rules, azure)
    assert json.loads(unnamed.body) == {"messages": []}
    assert unnamed.key != call(Rules(), azure).key


@pytest.mark.parametrize(
    ("override", "url", "message"),
    [
        ({"model.name": "m"}, CHAT, "model.name cannot be set, since model is no JSON object in it"),
        (
            {"model": 7},
            "https://x.test/openai/deployments/old/chat/completions",
            "the URL names the model, and 7 is no name",
        ),
    ],
)
def test_an_override_that_cannot_be_set_is_refused(override: dict[str, Any], url: str, message: str) -> None:
    with pytest.raises(CannotOverride, match=message):
        call(Rules(override=override), url, model="m")


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner, max_size=3),
    max_leaves=8,
)


@given(st.dictionaries(st.sampled_from("abc"), JSON), JSON)
def test_overriding_twice_is_overriding_once(body: dict[str, Any], value: Any) -> None:
    rules = Rules(override={"b": value})
    once = call(rules, **body)
    again = recognise("POST", CHAT, once.body, rules)
    assert again is not None
    assert (again.key, again.body, again.rewritten) == (once.key, once.body, False)
