"""Conversations of which the provider keeps what was said before, and a request only names it."""

from __future__ import annotations

import json

from conftest import Project
from scripted import Call, Reply, together

APP = """
import openai
client = openai.OpenAI(max_retries=0)
def talk(*prompts):
    previous = None
    for prompt in prompts:
        reply = client.responses.create(model="m", input=prompt, temperature=0, previous_response_id=previous)
        previous = reply.id
    return reply.output_text
"""


class Remembering:
    """Answers with all that was said in a conversation, each answer under an id that no other has."""

    def __init__(self, shown: str = "{said}") -> None:
        self._shown = shown
        self._said: dict[str | None, str] = {None: ""}

    def __call__(self, call: Call) -> Reply:
        said = f"{self._said[call.body.get('previous_response_id')]}/{call.body['input']}"
        name = f"resp_{call.number}"
        self._said[name] = said
        part = {"type": "output_text", "text": self._shown.format(said=said, number=call.number), "annotations": []}
        message = {"id": f"msg_{call.number}", "type": "message", "role": "assistant", "content": [part]}
        rest = {"object": "response", "created_at": 1, "model": "m", "status": "completed", "tools": []}
        return Reply(raw=json.dumps({"id": name, **rest, "output": [{**message, "status": "completed"}]}).encode())


def test_a_stable_conversation_is_one_group_and_is_fetched_ahead(project: Project, server) -> None:
    model = server(together(Remembering(), 3, first=3))
    project.write(
        """
        import pytest
        from app import talk

        @pytest.mark.deterministic(runs=4)
        def test_it():
            assert talk("a", "b", "c") == "/a/b/c"
        """,
        app=APP,
    )

    first = project.report(url=model.url)["tests"]["test_it"]
    again = project.report("--determinism-cache=replay", url=model.url)["tests"]["test_it"]

    assert (first["verdict"], first["experiments"][0]["findings"]) == ("passed", [])
    assert first["experiments"][0]["steps"] == [{"requests_unique": 1, "responses_unique": 1}] * 3
    assert again["verdict"] == "passed"
    assert (len(model.calls), model.peak) == (12, 3)


def test_conversations_that_go_on_with_the_same_words_are_kept_apart(project: Project, server) -> None:
    model = server(Remembering())
    project.write(
        """
        import pytest
        from app import talk

        @pytest.mark.deterministic(runs=3)
        @pytest.mark.parametrize("first", ["a", "b"])
        def test_it(first):
            assert talk(first, "go on") == f"/{first}/go on"

        @pytest.mark.deterministic(runs=3)
        def test_both():
            assert talk("a", "go on") + talk("b", "go on") == "/a/go on/b/go on"
        """,
        app=APP,
    )

    for _ in range(2):
        project.pytest(url=model.url).assert_outcomes(passed=3)
    # What test_both asks is what the other two have asked.
    assert len(model.calls) == 12


def test_what_follows_answers_that_differ_is_another_question(project: Project, server) -> None:
    model = server(Remembering("{number}"))
    project.write(
        """
        import pytest
        from app import talk

        @pytest.mark.deterministic(runs=3)
        def test_it():
            talk("a", "go on")
        """,
        app=APP,
    )

    found = project.report(url=model.url)["tests"]["test_it"]

    assert (found["verdict"], found["unique"], found["experiments"][0]["findings"]) == ("nondeterministic", 3, [])
    assert found["experiments"][0]["steps"] == [
        {"requests_unique": 1, "responses_unique": 3},
        {"requests_unique": 3, "responses_unique": 3},
    ]
