"""The hook that reads the output of an API which the plugin does not know: the documentation's example, and more."""

from __future__ import annotations

import json
import re
from pathlib import Path

import pytest
from conftest import Project
from scripted import Call, Reply, together

HOOKS = Path(__file__).parents[2] / "docs" / "hooks.md"

APP = """
import os
import httpx

def ask(prompt, path="/predict"):
    reply = httpx.post(os.environ["OPENAI_BASE_URL"] + path, json={"instances": [{"text": prompt}]})
    reply.raise_for_status()
    return reply.json()["predictions"][0]["text"]
"""

ONE_QUESTION = """
import pytest
from app import ask

@pytest.mark.deterministic(runs=4)
def test_it():
    assert "yes" in ask("hm")
"""


def example() -> str:
    """The conftest.py of the documentation's worked example."""
    found = re.search(r"```python\n(# conftest\.py\n[^`]*def pytest_determinism_output[^`]*)```", HOOKS.read_text())
    assert found is not None
    return found[1]


def predicts(text: str) -> Reply:
    return Reply(raw=json.dumps({"predictions": [{"text": text, "latency": 0.5}]}).encode())


def test_the_example_gates_on_an_api_that_nobody_knows(project: Project, server) -> None:
    model = server(together(lambda call: predicts("yes"), 3))
    project.write(ONE_QUESTION, app=APP, conftest=example())

    first = project.report(url=model.url)["tests"]["test_it"]
    assert (first["verdict"], first["experiments"][0]["groups"][0]["output"]) == ("passed", "yes")
    assert first["experiments"][0]["calls"]["live"] == 4
    assert model.peak == 3  # the first alone, the others fetched ahead

    again = project.report("--determinism-cache=replay", url=model.url)["tests"]["test_it"]
    assert (again["verdict"], again["experiments"][0]["calls"]["cached"]) == ("passed", 4)
    assert len(model.calls) == 4


def test_answers_that_differ_are_seen(project: Project, server) -> None:
    model = server(lambda call: predicts("yes" if call.number else "yes, sir"))
    project.write(ONE_QUESTION, app=APP, conftest=example())

    found = project.report(url=model.url)["tests"]["test_it"]

    assert (found["verdict"], found["unique"]) == ("nondeterministic", 2)


def test_without_the_hook_nothing_is_observed(project: Project, server) -> None:
    model = server(lambda call: predicts("yes"))
    project.write(ONE_QUESTION, app=APP)

    assert project.report(url=model.url)["tests"]["test_it"]["verdict"] == "inconclusive"


def test_errors_of_such_an_api_are_errors(project: Project, server) -> None:
    model = server(lambda call: predicts("yes") if call.number else Reply(status=500, raw=b"down"))
    project.write(ONE_QUESTION, app=APP, conftest=example())

    found = project.report(url=model.url)["tests"]["test_it"]

    assert found["verdict"] == "inconclusive"
    assert found["experiments"][0]["error_messages"] == [{"error": "HTTP 500: down", "runs": [0]}]


def test_a_hook_that_wants_to_see_every_answer_takes_none_that_is_not_its_own(project: Project, server) -> None:
    def answers(call: Call) -> Reply:
        return predicts("yes") if call.path.endswith("/predict") else Reply(raw=b'{"predictions": [{"text": "ok"}]}')

    model = server(answers)
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=3)
        def test_it():
            ask("hm", "/telemetry")
            ask("hm")
        """,
        app=APP,
        conftest="""
        def pytest_determinism_output(exchange):
            found = exchange.json()["predictions"][0]
            return found["text"] if "latency" in found else None
        """,
    )

    found = project.report(url=model.url)["tests"]["test_it"]

    assert (found["verdict"], found["unique"]) == ("passed", 1)
    assert found["experiments"][0]["steps"] == [{"requests_unique": 1, "responses_unique": 1}]
    assert [call.path for call in model.calls].count("/v1/telemetry") == 3


@pytest.mark.parametrize(
    ("hook", "reason"),
    [
        (
            "return exchange.url.nonsense",
            "pytest_determinism_output raised AttributeError: 'str' object has no attribute 'nonsense'",
        ),
        ("return exchange.json()['nothing']", "4 of 4 runs ended in an API error, max_errors=0: *"),
        ("return 7 if exchange.body else None", "4 of 4 runs ended in an API error, max_errors=0: *"),
    ],
)
def test_a_hook_that_fails_is_said_and_never_passes(project: Project, server, hook: str, reason: str) -> None:
    model = server(lambda call: predicts("yes"))
    project.write(ONE_QUESTION, app=APP, conftest=f"def pytest_determinism_output(exchange):\n    {hook}\n")

    found = project.report(url=model.url)

    assert found["tests"]["test_it"]["verdict"] == "inconclusive"
    found["result"].stdout.fnmatch_lines([f"*{reason}"])
