"""Settings that reach into requests: what is set in them, what is no part of the question; the sweep over models."""

from __future__ import annotations

import json

import pytest
from conftest import ASK, Project
from scripted import Call, Reply, together

ASKS_WITH_TRACE = """
import itertools, openai
numbers = itertools.count()
client = openai.OpenAI(max_retries=0)
def ask(prompt):
    messages = [{"role": "user", "content": prompt}]
    trace = {"trace_id": f"trace-{next(numbers)}", "kept": "same"}
    reply = client.chat.completions.create(model="m", messages=messages, temperature=0, metadata=trace)
    return reply.choices[0].message.content
"""

ONE_QUESTION = """
import pytest
from app import ask

@pytest.mark.deterministic(runs=4)
def test_it():
    assert ask("hm") == "yes"
"""


def codes(report: dict) -> list[str]:
    (test,) = report["tests"].values()
    return [finding["code"] for finding in test["experiments"][0]["findings"]]


# ignore


def test_a_field_that_varies_is_named_with_the_option_that_leaves_it_out(project: Project, server) -> None:
    model = server(lambda call: "yes" if call.number else "no")
    project.write(ONE_QUESTION.replace('assert ask("hm") == "yes"', 'ask("hm")'), app=ASKS_WITH_TRACE)

    found = project.report(url=model.url)

    (test,) = found["tests"].values()
    assert (test["verdict"], test["unique"]) == ("nondeterministic", 2)
    assert test["experiments"][0]["findings"] == [
        {
            "code": "prompt-varies",
            "message": "the test itself sent 4 different requests at step 1 in 4 runs; they first differ at"
            " metadata.trace_id; if that is no part of the question, leave it out with"
            " --determinism-ignore=metadata.trace_id",
        }
    ]


def test_an_ignored_field_is_sent_but_is_no_part_of_the_question(project: Project, server) -> None:
    model = server(together("yes", 3))
    project.write(ONE_QUESTION, app=ASKS_WITH_TRACE)

    first = project.report("--determinism-ignore=metadata.trace_id", url=model.url)
    traces = [call.body["metadata"] for call in model.calls]
    again = project.report("--determinism-ignore=metadata.trace_id", url=model.url)

    assert codes(first) == codes(again) == []
    assert first["tests"]["test_it"]["experiments"][0]["steps"] == [{"requests_unique": 1, "responses_unique": 1}]
    assert {trace["kept"] for trace in traces} == {"same"}
    assert traces[0]["trace_id"] == "trace-0"
    assert (len(traces), model.peak) == (4, 3)  # the first alone, the others fetched ahead
    assert len(model.calls) == 4


@pytest.mark.parametrize("where", ["marker", "ini"])
def test_ignore_stands_in_the_marker_and_in_ini(project: Project, server, where: str) -> None:
    model = server("yes")
    marked = ONE_QUESTION.replace("runs=4", "runs=4, ignore=['user', 'metadata.trace_id']")
    project.write(marked if where == "marker" else ONE_QUESTION, app=ASKS_WITH_TRACE)
    if where == "ini":
        (project.path / "pytest.ini").write_text("[pytest]\ndeterminism_ignore = user metadata.trace_id\n")

    assert codes(project.report(url=model.url)) == []


# override


def test_what_is_overridden_is_sent_kept_apart_and_shown(project: Project, server) -> None:
    model = server(lambda call: "yes" if call.body.get("seed") == 7 else "no")
    project.write(ONE_QUESTION, app=ASK)
    flags = ("--determinism-override=seed=7", '--determinism-override=metadata={"by": "the gate"}')

    plain = project.report(url=model.url)
    overridden = project.report(*flags, url=model.url)
    again = project.report(*flags, url=model.url)

    assert plain["exit"] == pytest.ExitCode.TESTS_FAILED
    assert overridden["exit"] == again["exit"] == pytest.ExitCode.OK
    bodies = [call.body for call in model.calls]
    assert [body.get("seed") for body in bodies] == [None] * 4 + [7] * 4
    assert {json.dumps(body["metadata"]) for body in bodies[4:]} == {'{"by": "the gate"}'}
    assert {call.headers["content-length"] for call in model.calls[4:]} == {str(len(json.dumps(bodies[4])))}
    assert again["tests"]["test_it"]["settings"]["override"] == {
        "value": ["seed=7", 'metadata={"by": "the gate"}'],
        "source": "cli",
    }
    again["result"].stdout.fnmatch_lines(['*under burst; override seed=7, metadata={"by": "the gate"}; another call*'])


def test_a_model_is_swept_over_an_unchanged_application(project: Project, server) -> None:
    model = server(lambda call: f"{call.body['model']} {call.number if call.body['model'] == 'b' else ''}")
    project.write(ONE_QUESTION.replace(' == "yes"', ""), app=ASK)

    stable = project.report("--determinism-override=model=a", url=model.url)["tests"]["test_it"]
    unstable = project.report("--determinism-override=model=b", url=model.url)["tests"]["test_it"]

    assert (stable["verdict"], stable["experiments"][0]["groups"][0]["models"]) == ("passed", ["a"])
    assert (unstable["verdict"], unstable["unique"]) == ("nondeterministic", 4)


def test_override_in_the_marker_and_in_ini(project: Project, server) -> None:
    model = server(lambda call: json.dumps({name: call.body.get(name) for name in ("seed", "stop")}))
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=2, override={"stop": ["."], "seed": None})
        def test_marker():
            assert ask("hm") == '{"seed": null, "stop": ["."]}'

        @pytest.mark.deterministic(runs=2, override=["seed=8", 'stop=["!"]'])
        def test_pairs():
            assert ask("hm") == '{"seed": 8, "stop": ["!"]}'

        @pytest.mark.deterministic(runs=2)
        def test_ini():
            assert ask("hm") == '{"seed": 9, "stop": ["a b", "c"]}'
        """,
        app=ASK,
    )
    (project.path / "pytest.ini").write_text('[pytest]\ndeterminism_override =\n  seed=9\n  stop=["a b", "c"]\n')

    project.pytest(url=model.url).assert_outcomes(passed=3)


def test_the_llm_fixture_is_overridden_too_live_and_from_the_store(project: Project, server) -> None:
    model = server(lambda call: str(call.body.get("seed")))
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3, override="seed=7")
        def test_marked(llm):
            assert llm("hm", model="m") == "7"

        def test_unmarked(llm):
            assert llm("hm", model="m") == "5"
        """
    )

    for _ in range(2):
        project.pytest("-k", "test_marked", url=model.url).assert_outcomes(passed=1)
        project.pytest("-k", "unmarked", "--determinism-override=seed=5", url=model.url).assert_outcomes(passed=1)
    assert [call.body["seed"] for call in model.calls] == [7, 7, 7, 5]


def test_an_override_that_a_request_cannot_take_ends_inconclusive(project: Project, server) -> None:
    model = server("never")
    with_llm = """
@pytest.mark.deterministic(runs=4)
def test_llm(llm):
    llm("hm", model="m")
"""
    project.write(ONE_QUESTION + with_llm, app=ASK)

    found = project.report("--determinism-override=model.name=x", url=model.url)["tests"]

    assert {test["verdict"] for test in found.values()} == {"inconclusive"}
    (reason,) = {test["reason"] for test in found.values()}
    assert reason == (
        "override cannot be set in a request of this test: model.name cannot be set, since model is no JSON object in"
        " it"
    )
    assert model.calls == []


SIGNED = """
import httpx, os
def ask(prompt):
    headers = {"Authorization": "AWS4-HMAC-SHA256 Credential=x, SignedHeaders=host, Signature=y"}
    body = {"messages": [{"role": "user", "content": prompt}]}
    reply = httpx.post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json=body, headers=headers)
    return reply.json()["choices"][0]["message"]["content"]
"""


def test_a_request_that_its_client_has_signed_is_not_changed(project: Project, server) -> None:
    model = server("yes")
    project.write(ONE_QUESTION, app=SIGNED)

    found = project.report("--determinism-override=seed=7", url=model.url)["tests"]["test_it"]
    assert found["verdict"] == "inconclusive"
    assert found["reason"] == (
        "override cannot be set in a request of this test: chat completions requests are signed by the client, body and"
        " URL; set the value in the application"
    )
    assert model.calls == []
    assert project.report(url=model.url)["tests"]["test_it"]["verdict"] == "passed"


# Sweep


def test_each_test_that_uses_llm_runs_once_per_model(project: Project, server) -> None:
    model = server(lambda call: call.body["model"])
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2)
        def test_it(llm, request):
            assert f"[{llm('hm')}]" in request.node.name

        @pytest.mark.deterministic(runs=2)
        @pytest.mark.parametrize("prompt", ["x", "y"])
        def test_parameters(llm, prompt):
            llm(prompt)

        def test_without():
            pass
        """
    )

    found = project.report("--determinism-model=org/a-1", "--determinism-model=b", url=model.url)

    assert sorted(found["tests"]) == sorted(
        [
            *("test_it[org/a-1]", "test_it[b]"),
            *(f"test_parameters[{name}]" for name in ("org/a-1-x", "org/a-1-y", "b-x", "b-y")),
        ]
    )
    assert {test["verdict"] for test in found["tests"].values()} == {"passed"}
    found["result"].assert_outcomes(passed=7)
    only = project.pytest("--determinism-model=org/a-1,b", "-k", "b-x or b-y", url=model.url)
    only.assert_outcomes(passed=2, deselected=5)


def rejects_temperature(call: Call) -> Reply:
    if "temperature" not in call.body:
        return Reply("yes")
    error = {"message": "Unsupported parameter: 'temperature' is not supported with this model.", "code": None}
    return Reply(status=400, raw=json.dumps({"error": error}).encode())


def test_a_model_that_rejects_temperature_comes_with_advice(project: Project, server) -> None:
    model = server(rejects_temperature)
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2)
        def test_rejected(llm):
            llm("hm", model="m")

        @pytest.mark.deterministic(runs=2)
        def test_left_out(llm):
            llm("hm", model="m", temperature=None)
        """
    )

    found = project.report(url=model.url)

    assert found["tests"]["test_left_out"]["verdict"] == "passed"
    rejected = found["tests"]["test_rejected"]
    assert rejected["verdict"] == "inconclusive"
    assert rejected["advice"] == (
        "this model may reject temperature: leave it out of the request (llm: temperature=None or"
        " --determinism-temperature=none)"
    )
    project.pytest("--determinism-temperature=none", url=model.url).assert_outcomes(passed=2)
