"""The record that crosses processes and files."""

import datetime
import importlib.metadata
import json
from dataclasses import replace

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from pytest_llm_determinism import settings as table
from pytest_llm_determinism.analysis.divergence import Branch, Divergence
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import Group
from pytest_llm_determinism.results import BodyFailure, CallCount, Experiment, Step, TestResult, Usage, report
from pytest_llm_determinism.settings import Value
from pytest_llm_determinism.shapes import read_answer, recognise

RICH = Experiment(
    load="burst",
    attempt=1,
    seed=3_141_592_653,
    neighbour_calls=0,
    runs=6,
    completed=4,
    errors=2,
    unique=2,
    unique_raw=3,
    agreement=0.75,
    agreement_lower=0.25,
    confidence=0.99,
    groups=(
        Group(3, "Zürich\n的 😀", "0" * 64, (0, 2, 5), ("fp_a", "fp_b"), ("m-1",), ("Zürich", "的 😀")),
        Group(1, "\x1b[31m\u202e\x00\ud83d", "f" * 64, (3,), (), (), ("\x1b[31m\u202e\x00\ud83d",)),
    ),
    divergence=Divergence(
        1,
        0,
        "word",
        "",
        (
            Branch(
                "的", 3, Divergence(1, 1, "token", "的", (Branch(" 😀", 2, groups=(0,)), Branch("", 1, groups=(0,))))
            ),
            Branch("", 1, groups=(1,), missing=True),
        ),
        follows=(2, 3),
    ),
    findings=(Finding("sampling-on", "temperature is 1"), Finding("truncated", "all")),
    steps=(Step(1, 2), Step(2, 1)),
    calls=CallCount(3, 9, "2026-01-02T03:04:05.678900+00:00"),
    usage=Usage(70, None),
    seconds=1.25,
    error_messages=(BodyFailure("HTTP 500: ", (1, 4)),),
    failures=(BodyFailure("AssertionError: \n'", (2,)), BodyFailure("ValueError: ", (3, 5))),
)
BARE = Experiment(
    load="solo",
    attempt=0,
    seed=0,
    neighbour_calls=0,
    runs=2,
    completed=0,
    errors=0,
    unique=0,
    unique_raw=0,
    agreement=0.0,
    agreement_lower=0.0,
    confidence=0.95,
    groups=(),
    divergence=None,
    findings=(),
    steps=(),
    calls=CallCount(0, 0, None),
    usage=Usage(None, None),
    seconds=0.0,
)


def given_settings():
    """The settings of a test with a value of each kind, as a result holds them."""
    marker = {
        name: Value(value, "marker", "@pytest.mark.deterministic")
        for name, value in {
            "compare": len,
            "load": ("solo", "burst"),
            "min_agreement": 0.9,
            "cache_ttl": table.Duration(43200, "12h"),
            "fail_fast": True,
        }.items()
    }
    return table.resolve({"runs": Value(6, "cli", "--determinism-runs")}, marker, {}).to_json()


RESULT = TestResult(
    nodeid="tests/test_it.py::test_ü[a-b]",
    verdict="nondeterministic",
    reason="2 unique of 4 (3/1), max_unique=1",
    unique=2,
    settings=given_settings(),
    experiments=(BARE, RICH),
    counts=(3, 1),
    decided_by="max_unique=1 (default)",
    advice="send temperature=0",
)


def travelled(result):
    return TestResult.from_json(json.loads(json.dumps(result.to_json())))


@pytest.mark.parametrize(
    "result",
    [
        pytest.param(RESULT, id="rich"),
        pytest.param(TestResult("a.py::b", "inconclusive", "refused", 0, {}, ()), id="bare"),
        pytest.param(RESULT.changed("passed"), id="changed"),
    ],
)
def test_a_result_is_the_same_after_it_has_travelled_as_text(result):
    assert travelled(result) == result


texts = st.text()  # without surrogates; a lone one stands in RICH
counts = st.integers(0, 10**9)
shares = st.floats(0, 1)
moments = st.datetimes(timezones=st.just(datetime.UTC)).map(datetime.datetime.isoformat)
many = {"max_size": 3}
groups = st.builds(
    Group,
    counts,
    texts,
    texts,
    *[st.lists(items, **many).map(tuple) for items in (counts, texts, texts, texts)],
)
forks = st.deferred(
    lambda: st.builds(
        Divergence,
        counts,
        counts,
        texts,
        texts,
        st.lists(branches, **many).map(tuple),
        st.none() | texts,
        st.none() | texts,
        st.lists(counts, **many).map(tuple),
    )
)
branches = st.builds(Branch, texts, counts, st.none() | forks, st.lists(counts, **many).map(tuple), st.booleans())
failures = st.lists(st.builds(BodyFailure, texts, st.lists(counts, **many).map(tuple)), **many).map(tuple)
experiments = st.builds(
    Experiment,
    texts,
    *[counts] * 8,
    *[shares] * 3,
    st.lists(groups, **many).map(tuple),
    st.none() | forks,
    st.lists(st.builds(Finding, texts, texts), **many).map(tuple),
    st.lists(st.builds(Step, counts, counts), **many).map(tuple),
    st.builds(CallCount, counts, counts, st.none() | moments),
    st.builds(Usage, st.none() | counts, st.none() | counts),
    shares,
    st.none(),
    failures,
    failures,
)


@settings(deadline=None)
@given(experiments)
def test_any_experiment_is_the_same_after_it_has_travelled_as_text(experiment):
    assert Experiment.from_json(json.loads(json.dumps(experiment.to_json()))) == experiment


def test_a_divergence_of_an_earlier_version_can_be_read():
    short = {"step": 1, "index": 2, "unit": "character", "prefix": "Zü", "branches": [{"text": "rich", "count": 3}]}
    data = {**json.loads(json.dumps(RICH.to_json())), "divergence": short}
    assert Experiment.from_json(data).divergence == Divergence(1, 2, "character", "Zü", (Branch("rich", 3),))


def test_a_verdict_changed_by_a_plugin_says_so():
    changed = RESULT.changed("passed")
    assert (changed.verdict, changed.reason) == (
        "passed",
        "2 unique of 4 (3/1), max_unique=1; a plugin changed the verdict from nondeterministic to passed",
    )
    assert changed.experiments is RESULT.experiments


# The JSON report

STEP = {"requests_unique": int, "responses_unique": int}
GROUP = {
    "count": int,
    "output": str,
    "sha256": str,
    "runs": [int],
    "fingerprints": [str],
    "models": [str],
}
EXPERIMENT = {
    "load": str,
    "attempt": int,
    "seed": int,
    "neighbour_calls": int,
    "runs": int,
    "completed": int,
    "errors": int,
    "unique": int,
    "unique_raw": int,
    "agreement": float,
    "agreement_lower": float,
    "confidence": float,
    "groups": [GROUP],
    "divergence": {
        "step": int,
        "index": int,
        "unit": str,
        "prefix": str,
        "branches": [{"text": str, "count": int}],
    },
    "findings": [{"code": str, "message": str}],
    "steps": [STEP],
    "calls": {"live": int, "cached": int, "oldest_sample": (str, type(None))},
    "usage": {"input_tokens": (int, type(None)), "output_tokens": (int, type(None))},
    "cost": type(None),
    "seconds": float,
}
REPORT = {
    "schema_version": int,
    "tool": {"name": str, "version": str},
    "created_at": str,
    "environment": {"python": str, "platform": str},
    "tests": [
        {
            "nodeid": str,
            "verdict": str,
            "reason": str,
            "unique": int,
            "settings": {name: {"value": object, "source": str} for name in table.TABLE},
            "experiments": [EXPERIMENT],
        }
    ],
}


def unlike(value, schema, path="report"):
    """Where a JSON value has not what the schema asks for."""
    if isinstance(schema, dict):
        if not isinstance(value, dict):
            return [path]
        return [
            found
            for name, inner in schema.items()
            for found in (unlike(value[name], inner, f"{path}.{name}") if name in value else [f"{path}.{name}"])
        ]
    if isinstance(schema, list):
        if not isinstance(value, list):
            return [path]
        return [found for number, part in enumerate(value) for found in unlike(part, schema[0], f"{path}[{number}]")]
    # True is an int to Python, and no number to the readers of a report.
    return [] if isinstance(value, schema) and not (isinstance(value, bool) and schema is not object) else [path]


def test_the_report_has_the_fields_that_other_programs_read():
    made = json.loads(json.dumps(report([replace(RESULT, experiments=(RICH,))], {"endpoint": "http://localhost"})))
    assert unlike(made, REPORT) == []
    assert made["schema_version"] == 1
    assert made["tool"] == {
        "name": "pytest-llm-determinism",
        "version": importlib.metadata.version("pytest-llm-determinism"),
    }
    assert made["environment"]["endpoint"] == "http://localhost"


def test_what_is_not_known_is_null():
    made = json.loads(json.dumps(report([RESULT], {})))
    bare = made["tests"][0]["experiments"][0]
    assert (bare["divergence"], bare["cost"]) == (None, None)
    assert bare["calls"] == {"live": 0, "cached": 0, "oldest_sample": None}
    assert bare["usage"] == {"input_tokens": None, "output_tokens": None}


def test_settings_are_told_with_their_sources():
    told = report([RESULT], {})["tests"][0]["settings"]
    assert {setting["source"] for setting in told.values()} <= {"cli", "marker", "ini", "default"}
    assert {
        name: told[name] for name in ("runs", "compare", "load", "cache_ttl", "fail_fast", "max_unique", "model")
    } == {
        "runs": {"value": 6, "source": "cli"},
        "compare": {"value": "builtins:len", "source": "marker"},
        "load": {"value": ["solo", "burst"], "source": "marker"},
        "cache_ttl": {"value": "12h", "source": "marker"},
        "fail_fast": {"value": True, "source": "marker"},
        "max_unique": {"value": 1, "source": "default"},
        "model": {"value": None, "source": "default"},
    }


def test_a_report_says_in_utc_when_it_was_made():
    before = datetime.datetime.now(datetime.UTC)
    made = datetime.datetime.fromisoformat(report([], {})["created_at"])
    assert made.utcoffset() == datetime.timedelta(0)
    assert before <= made <= datetime.datetime.now(datetime.UTC)


# What is in it


def test_an_answer_that_a_stream_cut_within_a_character_travels_in_one_piece():
    """Two halves of a character and the whole are one text in JSON, so they must be one before."""
    body = {"model": "m", "messages": [], "stream": True}
    call = recognise("POST", "http://localhost/v1/chat/completions", json.dumps(body).encode())
    assert call is not None
    events = [{"choices": [{"index": 0, "delta": {"content": text}}]} for text in ("a \ud83d", "\ude00 b \ud83d")]
    events.append({"choices": [{"index": 0, "delta": {}, "finish_reason": "stop"}]})
    stream = "".join(f"data: {json.dumps(event)}\n\n" for event in events) + "data: [DONE]\n\n"
    answer = read_answer(call, stream.encode(), "text/event-stream")

    assert (answer.output, answer.text) == ("a 😀 b \ud83d",) * 2
    assert json.loads(json.dumps(answer.output)) == answer.output
