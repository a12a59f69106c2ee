"""Where runs part, from what real clients were told over HTTP to the JSON report and the terminal."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from conftest import Project
from scripted import Call, Reply

AGENT = """
import openai
client = openai.OpenAI(max_retries=0)

def agent(question):
    messages = [{"role": "user", "content": question}]
    while True:
        answer = client.chat.completions.create(model="m", messages=messages, temperature=0).choices[0].message
        if not answer.tool_calls:
            return answer.content
        messages.append(answer.model_dump(exclude_none=True))
        for call in answer.tool_calls:
            messages.append({"role": "tool", "tool_call_id": call.id, "content": f"for {call.function.arguments}"})
"""

ONE_QUESTION = """
import pytest
from app import agent

@pytest.mark.deterministic(runs=10, load="solo")
def test_it():
    agent("What will the weather be?")
"""


def told(project: Project, server: Callable[..., Any], script: Callable[[Call], str | Reply], *flags: str) -> Any:
    """The divergence in the JSON report, and the lines of the tree."""
    model = server(script)
    project.write(ONE_QUESTION, app=AGENT)
    report = project.report(*flags, url=model.url)
    lines = [line[2:] for line in report["result"].outlines]
    start = next(number for number, line in enumerate(lines) if line.startswith("they part"))
    end = next(number for number, line in enumerate(lines) if number > start and "calls live; seed" in line)
    return report["tests"]["test_it"]["experiments"][0]["divergence"], lines[start:end]


def test_an_agent_parts_at_an_argument_and_then_at_a_later_step(project: Project, server) -> None:
    runs = 0

    def script(call: Call) -> str | Reply:
        nonlocal runs
        if len(call.body["messages"]) == 1:
            runs += 1
            city = "Lyon" if runs in (3, 7) else "Paris"
            return Reply(tool_calls=[("get_weather", json.dumps({"days": 2, "city": city}))])
        return "It will rain, I am afraid." if runs == 5 else f"It will rain in {json.loads(call.prompt[4:])['city']}."

    found, lines = told(project, server, script)

    assert lines == [
        "they part at step 1, at get_weather.city",
        '├─ 8 × "Paris", then at step 2, after 3 words, “It will rain”:',
        "│  ├─ 7 × “ in Paris.”  (runs 0, 1, 3, 5, 7, 8, 9)",
        "│  └─ 1 × “, I am afraid.”  (run 4)",
        '└─ 2 × "Lyon"  (runs 2, 6)',
        "that they differ at step 2, too, follows from it",
    ]
    assert {name: found[name] for name in ("step", "path", "within", "follows")} == {
        "step": 0,
        "path": "get_weather.city",
        "within": None,
        "follows": [1],
    }
    assert [(branch["text"], branch["count"], branch["groups"]) for branch in found["branches"]] == [
        ('"Paris"', 8, []),
        ('"Lyon"', 2, [1]),
    ]
    assert [branch["groups"] for branch in found["branches"][0]["then"]["branches"]] == [[0], [2]]


def test_answers_in_json_part_at_a_path(project: Project, server) -> None:
    def script(call: Call) -> str:
        price = 4 if call.number in (2, 5) else 3.5
        # What is written otherwise is the same value to this comparison.
        return json.dumps({"items": [{"name": "tea"}, {"price": price}]}, indent=call.number % 2 or None)

    found, lines = told(project, server, script, "--determinism-compare=json")

    assert lines == [
        "they part at $.items[1].price",
        "├─ 8 × 3.5  (runs 0, 1, 3, 4, 6, 7, 8, 9)",
        "└─ 2 × 4  (runs 2, 5)",
    ]
    assert (found["step"], found["path"]) == (0, "$.items[1].price")


def test_answers_part_at_a_token_where_the_model_tells_its_tokens(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=24)
        def test_it(llm):
            assert llm("I want my money back", model="dense-fp16", max_tokens=48, logprobs=True).raw["choices"]
        """
    )
    report = project.report("--determinism-endpoint=reference")
    (experiment,) = report["tests"]["test_it"]["experiments"]
    found = experiment["divergence"]
    assert found["unit"] == "token"
    # Each token of the reference server is a word with the space before it, or a sign of its own.
    assert found["index"] == len(found["prefix"].split()) + sum(map(found["prefix"].count, ",.;!?"))
    assert sum(branch["count"] for branch in found["branches"]) == 24
    for branch in found["branches"]:
        for group in branch["groups"]:
            assert experiment["groups"][group]["output"].startswith(found["prefix"] + branch["text"])
