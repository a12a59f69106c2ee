"""The fixtures `llm` and `determinism`."""

from __future__ import annotations

import json

from conftest import Project
from scripted import Call, Reply


def bodies(calls: list[Call]) -> list[dict]:
    return [call.body for call in calls]


def test_llm_gives_text_with_what_came_along(project: Project, server) -> None:
    def script(call: Call) -> Reply:
        if call.body.get("tools"):
            return Reply(tool_calls=[("weather", '{"city": "Paris"}')])
        return Reply("Paris.", fingerprint="fp-7", model="m-2024")

    model = server(script)
    project.write(
        """
        TOOL = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}

        def test_text(llm):
            reply = llm("capital?", max_tokens=5, seed=7)
            assert isinstance(reply, str) and reply == "Paris." and reply.upper() == "PARIS."
            assert reply.tool_calls == ()
            assert (reply.finish_reason, reply.fingerprint, reply.model) == ("stop", "fp-7", "m-2024")
            assert reply.usage == {"input_tokens": 7, "output_tokens": 3}
            assert reply.raw["choices"][0]["message"]["content"] == "Paris."

        def test_messages(llm):
            llm([{"role": "system", "content": "Be short."}, {"role": "user", "content": "capital?"}], model="other")

        def test_tools(llm):
            reply = llm("weather?", tools=[TOOL])
            (call,) = reply.tool_calls
            assert (reply, reply.finish_reason) == ("", "tool_calls")
            assert (call.name, call.arguments) == ("weather", '{"city": "Paris"}')

        def test_completions(llm):
            assert llm("Paris is", api="completions") == "Paris."

        def test_responses(llm):
            assert llm("capital?", api="responses") == "Paris."

        def test_temperature(llm):
            assert llm("hot", temperature=1.5) == llm("none", temperature=None) == "Paris."
        """
    )
    result = project.pytest("--determinism-model=m", url=model.url)

    result.assert_outcomes(passed=6)
    user = {"role": "user", "content": "capital?"}
    tool = {"type": "function", "function": {"name": "weather", "parameters": {"type": "object"}}}
    assert [(call.path, call.body) for call in model.calls] == [
        ("/v1/chat/completions", {"model": "m", "messages": [user], "temperature": 0, "max_tokens": 5, "seed": 7}),
        (
            "/v1/chat/completions",
            {"model": "other", "messages": [{"role": "system", "content": "Be short."}, user], "temperature": 0},
        ),
        (
            "/v1/chat/completions",
            {"model": "m", "messages": [{"role": "user", "content": "weather?"}], "temperature": 0, "tools": [tool]},
        ),
        ("/v1/completions", {"model": "m", "prompt": "Paris is", "temperature": 0}),
        ("/v1/responses", {"model": "m", "input": "capital?", "temperature": 0}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "hot"}], "temperature": 1.5}),
        ("/v1/chat/completions", {"model": "m", "messages": [{"role": "user", "content": "none"}]}),
    ]


ASKS = """
import pytest

def test_unmarked(llm):
    assert llm("capital?") == "Paris."

@pytest.mark.deterministic(runs=3)
def test_marked(llm):
    assert llm("capital?") == "Paris."
"""


def test_an_unmarked_test_makes_one_call_ever_and_a_marked_one_a_call_for_each_run(project: Project, server) -> None:
    model = server("Paris.")
    project.write(ASKS)

    first = project.report("--determinism-model=m", "--determinism-temperature=none", url=model.url)
    calls = len(model.calls)
    second = project.report("--determinism-model=m", "--determinism-temperature=none", url=model.url)

    assert (first["exit"], second["exit"]) == (0, 0)
    assert set(first["tests"]) == {"test_marked"}
    assert bodies(model.calls) == [{"model": "m", "messages": [{"role": "user", "content": "capital?"}]}] * calls
    # The first run of the marked test finds what the unmarked one has asked.
    assert (calls, len(model.calls)) == (3, 3)
    experiment = second["tests"]["test_marked"]["experiments"][0]
    assert (experiment["calls"]["live"], experiment["calls"]["cached"]) == (0, 3)


def test_with_every_sample_in_the_store_no_sdk_and_no_http_library_is_imported(project: Project, server) -> None:
    project.fresh = True
    model = server("Paris.")
    project.write(
        """
        import sys, pytest

        @pytest.mark.deterministic(runs=3)
        def test_it(llm):
            assert llm("capital?") == "Paris."

        def test_what_is_imported(pytestconfig):
            loaded = {"openai", "httpx", "httpx2"} & set(sys.modules)
            assert loaded == set() or not pytestconfig.getoption("--warm")
        """,
        conftest="""
        def pytest_addoption(parser):
            parser.addoption("--warm", action="store_true")
        """,
    )
    cold = project.pytest("--determinism-model=m", url=model.url)
    warm = project.pytest("--determinism-model=m", "--warm", url=model.url)

    cold.assert_outcomes(passed=2)
    warm.assert_outcomes(passed=2)
    assert len(model.calls) == 3


def test_errors_of_llm_say_what_to_do(project: Project, server) -> None:
    rejected = {"error": {"message": "Unsupported value: 'temperature' does not support 0 with this model."}}
    model = server(lambda call: Reply(status=400, raw=json.dumps(rejected).encode()))
    project.write(
        """
        import pytest

        def test_no_model(llm):
            llm("capital?")

        def test_temperature(llm):
            llm("capital?", model="m")

        @pytest.mark.deterministic(runs=2)
        def test_temperature_in_a_gate(llm):
            llm("capital?", model="m")

        def test_stream(llm):
            llm("capital?", model="m", stream=True)

        def test_api(llm):
            llm("capital?", model="m", api="edits")
        """
    )
    result = project.pytest("--tb=short", url=model.url)

    result.assert_outcomes(failed=5)
    advice = (
        "this model may reject temperature: leave it out of the request (llm: temperature=None or"
        " --determinism-temperature=none)"
    )
    lines = result.stdout.lines
    assert (
        "E   ValueError: llm does not know which model to ask: write llm(…, model='…'), --determinism-model, or"
        " determinism_model in the ini file"
    ) in lines
    assert f"E   {advice}" in lines
    assert f"try next    {advice}" in lines
    assert "E   ValueError: api='edits': write one of chat, completions, responses" in lines
    assert (
        "E   ValueError: llm returns whole answers; leave stream out, or use the SDK's own client to stream"
    ) in lines
    # A request that is refused whoever sends it is not sent for the runs to come.
    assert len(model.calls) == 3


def test_several_models_run_each_test_once_per_model(project: Project, server) -> None:
    model = server(lambda call: f"I am {call.body['model']}.")
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2)
        def test_marked(llm):
            assert llm("who?").startswith("I am")

        def test_unmarked(llm):
            assert llm("who?")

        def test_without_llm():
            pass
        """
    )
    found = project.report("--determinism-model=one", "--determinism-model=two", "-v", url=model.url)

    assert [line.split()[0] for line in found["result"].stdout.lines if " PASSED" in line] == [
        "test_it.py::test_marked[one]",
        "test_it.py::test_marked[two]",
        "test_it.py::test_unmarked[one]",
        "test_it.py::test_unmarked[two]",
        "test_it.py::test_without_llm",
    ]
    assert {name: test["experiments"][0]["groups"][0]["output"] for name, test in found["tests"].items()} == {
        "test_marked[one]": "I am one.",
        "test_marked[two]": "I am two.",
    }


def test_record(project: Project) -> None:
    project.write(
        """
        import pytest
        gated = pytest.mark.deterministic(runs=2)

        @gated
        def test_text_and_values(determinism):
            determinism.record("text")
            determinism.record({"b": [1, None], "a": "ü"})
            determinism.record(3)

        @gated
        def test_in_some_runs_only(determinism, flags=[True, False]):
            if flags.pop(0):
                determinism.record("first")

        @gated
        def test_not_json(determinism):
            determinism.record(object())

        def test_outside_a_run(determinism):
            determinism.record("nowhere")
        """
    )
    found = project.report("--tb=short")

    assert {name: (test["verdict"], test["reason"]) for name, test in found["tests"].items()} == {
        "test_text_and_values": ("passed", "1 unique of 2"),
        "test_in_some_runs_only": ("inconclusive", "run 1 had no output, while others had one"),
        "test_not_json": ("inconclusive", "no model call was observed and nothing was recorded"),
    }
    assert found["tests"]["test_text_and_values"]["experiments"][0]["groups"][0]["output"] == (
        'text\n{"a": "ü", "b": [1, null]}\n3'
    )
    lines = found["result"].stdout.lines
    assert (
        "E   TypeError: determinism.record takes text or JSON values, not object (Object of type object is not JSON"
        " serializable); record what you compare by, such as its text"
    ) in lines
    assert "E   in all 2 runs" in lines
    assert (
        "E   RuntimeError: test_it.py::test_outside_a_run: determinism.record was called outside a run; mark the test"
        " with @pytest.mark.deterministic, or call it within determinism.repeat"
    ) in lines


def test_repeat_gives_an_experiment_to_assert_on(project: Project, server) -> None:
    model = server(lambda call: "Lyon." if call.number == 2 else "Paris.")
    project.write(
        """
        import itertools, pytest

        def test_attributes(determinism, llm):
            e = determinism.repeat(llm, "capital?", runs=5, load="solo")
            assert (e.load, e.attempt, e.runs, e.completed, e.errors) == ("solo", 0, 5, 5, 0)
            assert (e.unique, e.unique_raw, e.agreement, e.confidence) == (2, 2, 0.8, 0.95)
            assert 0 < e.agreement_lower < 0.8
            assert [(g.count, g.output, g.runs) for g in e.groups] == [(4, "Paris.", (0, 1, 3, 4)), (1, "Lyon.", (2,))]
            assert (e.divergence.step, e.divergence.index, e.divergence.prefix) == (0, 0, "")
            assert (e.calls.live, e.calls.cached) == (5, 0)
            assert (e.usage.input_tokens, e.usage.output_tokens) == (35, 15)
            assert [f.code for f in e.findings] == []

        def test_exception(determinism):
            numbers = itertools.count()
            def body():
                determinism.record("x")
                if next(numbers) in (1, 2):
                    raise LookupError("gone")
            with pytest.raises(LookupError, match="gone") as caught:
                determinism.repeat(body, runs=4)
            assert caught.value.__notes__ == ["in 2 of 4 runs (1, 2)"]

        @pytest.mark.parametrize("wrong, message", [
            ({"runs": 1}, "test_it.py::test_settings[wrong0-"),
            ({"rnus": 3}, "unknown keyword 'rnus' in determinism.repeat: did you mean runs?"),
            ({"load": "solo,burst"}, "determinism.repeat makes one experiment, but load=solo,burst"),
            ({"compare": "nope"}, "compare=nope (from determinism.repeat): 'nope' is not a comparison"),
            ({"runs": 30, "min_agreement": 0.99, "confidence": 0.95}, "runs=30 (determinism.repeat) can never show"),
        ])
        def test_settings(determinism, wrong, message):
            def never():
                raise AssertionError("a run was made")
            with pytest.raises(ValueError) as caught:
                determinism.repeat(never, **wrong)
            assert message in str(caught.value)

        @pytest.mark.deterministic(runs=2)
        def test_nested_in_a_marked_test(determinism):
            e = determinism.repeat(lambda: determinism.record("inner"), runs=3)
            assert (e.completed, e.groups[0].output) == (3, "inner")
            determinism.record(f"outer {e.unique}")
        """
    )
    found = project.report("--determinism-model=m", "-rA", "--tb=short", url=model.url)

    found["result"].assert_outcomes(passed=8)
    assert found["tests"]["test_nested_in_a_marked_test"]["experiments"][0]["groups"][0]["output"] == "outer 1"
