"""Which verdict a test gets, because of which setting, and how it is told."""

from __future__ import annotations

import re

import pytest
from conftest import ASK, Project
from scripted import Call, Reply

RECORDED = """
import pytest

@pytest.fixture
def put_out(determinism):
    "Gives each run the next of the outputs."
    left = {}
    def put(*outputs):
        determinism.record(next(left.setdefault(outputs, iter(outputs))))
    return put
"""
"""A conftest for tests whose runs put out what is written in them."""


WORTH = (
    "with 30 runs, a model that flips 1 % of the time passes this gate 74 % of the time; to catch it 95 times of 100"
    " takes 299 runs"
)


def summary(result: pytest.RunResult) -> list[str]:
    """The lines of the summary section, with single blanks."""
    lines = result.stdout.lines
    start = next(number for number, line in enumerate(lines) if "= determinism =" in line)
    end = next(number for number, line in enumerate(lines) if number > start and line.startswith("==="))
    return [" ".join(line.split()) for line in lines[start + 1 : end]]


def verdicts(found: dict) -> dict[str, tuple[str, str]]:
    return {name: (test["verdict"], test["reason"]) for name, test in found["tests"].items()}


def test_settings_decide(project: Project) -> None:
    project.write(
        """
        import pytest
        gated = pytest.mark.deterministic

        @gated(runs=4)
        def test_max_unique_by_default(put_out):
            put_out("a", "b", "a", "c")

        @gated(runs=4, max_unique=2)
        def test_max_unique_allows(put_out):
            put_out("a", "b", "a", "a")

        @gated(runs=4, max_unique=2)
        def test_max_unique_is_exceeded(put_out):
            put_out("a", "b", "a", "c")

        @gated(runs=4, max_unique=2, min_agreement=0.75)
        def test_min_agreement_holds(put_out):
            put_out("a", "b", "a", "a")

        @gated(runs=4, max_unique=2, min_agreement=0.8)
        def test_min_agreement_fails(put_out):
            put_out("a", "b", "a", "a")

        @gated(runs=30, min_agreement=0.9, confidence=0.95)
        def test_confidence_holds(put_out):
            put_out(*"a" * 30)

        @gated(runs=30, max_unique=2, min_agreement=0.9, confidence=0.95)
        def test_confidence_fails(put_out):
            put_out(*"a" * 29, "b")
        """,
        conftest=RECORDED,
    )
    found = project.report("--tb=short")

    assert verdicts(found) == {
        "test_max_unique_by_default": ("nondeterministic", "3 unique of 4 (2/1/1), max_unique=1"),
        "test_max_unique_allows": ("passed", "2 unique of 4 (3/1)"),
        "test_max_unique_is_exceeded": ("nondeterministic", "3 unique of 4 (2/1/1), max_unique=2"),
        "test_min_agreement_holds": ("passed", "2 unique of 4 (3/1)"),
        "test_min_agreement_fails": (
            "nondeterministic",
            "2 unique of 4 (3/1), agreement 75.0 %, min_agreement=0.8",
        ),
        "test_confidence_holds": ("passed", "1 unique of 30"),
        "test_confidence_fails": (
            "nondeterministic",
            "2 unique of 30 (29/1), agreement at least 84.7 % at 95.0 %, min_agreement=0.9",
        ),
    }
    found["result"].assert_outcomes(passed=3, failed=4)
    found["result"].stdout.fnmatch_lines(
        [
            "decided by  max_unique=1 (default)",
            "decided by  max_unique=2 (@pytest.mark.deterministic)",
            "decided by  min_agreement=0.8 (@pytest.mark.deterministic)",
            "decided by  min_agreement=0.9 (@pytest.mark.deterministic) with confidence=0.95 (*.deterministic)",
        ]
    )


BOUND = "under burst; another call agrees at least {} of the time, at 95 %; 0 calls live"


def test_the_summary_has_one_line_a_test_and_the_failed_line_the_short_reason(project: Project) -> None:
    project.write(
        """
        import pytest
        gated = pytest.mark.deterministic

        @gated
        def test_stable(put_out):
            put_out(*"a" * 30)

        @gated(runs=3)
        def test_unstable(put_out):
            put_out("a", "b", "a")

        @gated(runs=2)
        def test_silent():
            pass
        """,
        conftest=RECORDED,
    )
    result = project.pytest(url="http://127.0.0.1:9/v1")

    assert summary(result) == [
        f"passed test_it.py::test_stable 1 unique of 30 {BOUND.format('90.2 %')}",
        f"nondeterministic test_it.py::test_unstable 2 unique of 3 (2/1), max_unique=1 {BOUND.format('2.5 %')}",
        "inconclusive test_it.py::test_silent no model call was observed and nothing was recorded",
        WORTH,
    ]
    result.stdout.fnmatch_lines(
        [
            "FAILED test_it.py::test_unstable - Nondeterministic: 2 unique of 3 (2/1)*",
            "FAILED test_it.py::test_silent - Inconclusive: no model call was observed*",
        ]
    )


def test_an_application_with_a_cache_of_its_own_is_inconclusive(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        """
        import functools, pytest
        from app import ask

        cached = functools.cache(ask)

        @pytest.mark.deterministic(runs=3)
        def test_all_cached_but_the_first():
            cached("capital?")

        @pytest.mark.deterministic(runs=3)
        def test_cached_from_the_start():
            cached("capital?")

        @pytest.mark.deterministic(runs=3)
        def test_second_step_cached():
            ask("country?")
            cached("river?")
        """,
        app=ASK,
    )
    found = project.report(url=model.url)

    assert verdicts(found) == {
        "test_all_cached_but_the_first": (
            "inconclusive",
            "runs 1, 2 made no model call at step 1, where run 0 did, although nothing had parted them",
        ),
        "test_cached_from_the_start": ("inconclusive", "no model call was observed and nothing was recorded"),
        "test_second_step_cached": (
            "inconclusive",
            "runs 1, 2 made no model call at step 2, where run 0 did, although nothing had parted them",
        ),
    }
    found["result"].assert_outcomes(failed=3)
    found["result"].stdout.fnmatch_lines(["try next    an application's own response cache (such as functools.cache)*"])


SWALLOWS = """
import openai, pytest
from app import ask

def attempt():
    try:
        ask("capital?")
    except openai.APIError:
        pass
"""


def test_lasting_errors_are_counted_even_when_the_application_swallows_them(project: Project, server) -> None:
    broken = Reply(status=500, raw=b'{"error": {"message": "out of memory"}}')
    model = server(lambda call: broken if call.number % 6 in (2, 4) else "Paris.")
    project.write(
        SWALLOWS
        + """
@pytest.mark.deterministic(runs=6)
def test_none_allowed():
    attempt()

@pytest.mark.deterministic(runs=6, max_errors=2)
def test_two_allowed():
    attempt()

@pytest.mark.deterministic(runs=6, max_errors=1)
def test_raised():
    ask("capital?")
""",
        app=ASK,
    )
    found = project.report("--determinism-load=solo", "--determinism-cache=off", url=model.url)

    error = "HTTP 500: out of memory"
    assert verdicts(found) == {
        "test_none_allowed": (
            "inconclusive",
            f"2 of 6 runs ended in an API error, max_errors=0: {error}",
        ),
        "test_two_allowed": ("passed", "1 unique of 4"),
        "test_raised": (
            "inconclusive",
            f"2 of 6 runs ended in an API error, max_errors=1: {error}",
        ),
    }
    experiment = found["tests"]["test_none_allowed"]["experiments"][0]
    assert (experiment["runs"], experiment["completed"], experiment["errors"]) == (6, 4, 2)
    assert experiment["groups"][0]["runs"] == [0, 1, 3, 5]
    found["result"].stdout.fnmatch_lines([f"  2 × {error}  (runs 2, 4)"])
    found["result"].stdout.fnmatch_lines(["decided by  max_errors=0 (default)"])


def test_an_error_that_a_retry_mended_does_not_count(project: Project, server) -> None:
    model = server(
        lambda call: Reply(status=500, raw=b"{}", headers={"retry-after-ms": "1"}) if call.number == 2 else "a"
    )
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=4)
        def test_it():
            ask("capital?")
        """,
        app=ASK.replace("max_retries=0", "max_retries=1"),
    )
    found = project.report("--determinism-load=solo", url=model.url)

    assert verdicts(found) == {"test_it": ("passed", "1 unique of 4")}
    assert len(model.calls) == 5


def test_two_loads_each_stable_that_answer_differently_are_nondeterministic(project: Project, server) -> None:
    # Under solo the first five calls, one for each run; then come those of burst.
    model = server(lambda call: "alone" if call.number < 5 else "in company")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=5, load=["solo", "burst"])
        def test_it():
            ask("capital?")
        """,
        app=ASK,
    )
    found = project.report(url=model.url)

    test = found["tests"]["test_it"]
    assert [experiment["unique"] for experiment in test["experiments"]] == [1, 1]
    assert (test["verdict"], test["unique"], test["reason"]) == (
        "nondeterministic",
        2,
        "2 unique of 10 (5/5), max_unique=1",
    )
    assert [experiment["findings"] for experiment in test["experiments"]] == [
        [
            {
                "code": "load-sensitive",
                "message": "each load is stable by itself, but they answer differently: 1 unique under solo, 1 unique"
                " under burst, 2 over all; ask for batch-invariant serving, or judge the load you serve under",
            }
        ]
    ] * 2


def test_comparisons_by_name_and_by_path(project: Project) -> None:
    tests = "".join(
        f"""
@pytest.mark.parametrize("one, other", PAIRS)
@pytest.mark.deterministic(runs=2, compare={compare})
def test_{number}(put_out, one, other):
    put_out(one, other)
"""
        for number, compare in enumerate(
            (
                '"exact"',
                '"stripped"',
                '"whitespace"',
                '"casefold"',
                '"json"',
                '"rules:Rules.same_length"',
                "len",
                '"added"',
            )
        )
    )
    project.write(
        f"""
import pytest

PAIRS = [
    pytest.param("a", "a ", id="end"),
    pytest.param("a b", "a  b", id="within"),
    pytest.param("a b", "A  B", id="case"),
    pytest.param('{{"a": 1, "b": 2}}', '{{"b":2,"a":1.0}}', id="form"),
    pytest.param("abc", "xyz", id="length"),
]
{tests}""",
        rules="""
        class Rules:
            @staticmethod
            def same_length(output):
                return len(output)
        """,
        conftest=RECORDED
        + """
def pytest_determinism_comparisons(config):
    return {"added": lambda part: part[:1]}
""",
    )
    tests = project.report()["tests"]

    equal: dict[str, list[str]] = {}
    for name, test in tests.items():
        function, pair = name.removesuffix("]").split("[")
        equal.setdefault(function, []).extend([pair] if test["verdict"] == "passed" else [])
    assert equal == {
        "test_0": [],
        "test_1": ["end"],
        "test_2": ["end", "within"],
        "test_3": ["end", "within", "case"],
        "test_4": ["form"],
        "test_5": ["length"],
        "test_6": ["length"],
        "test_7": ["end", "within", "form"],
    }
    assert tests["test_6[length]"]["settings"]["compare"] == {"value": "builtins:len", "source": "marker"}
    assert tests["test_6[length]"]["experiments"][0]["unique_raw"] == 2


def test_hooks_see_and_change_verdict_and_report(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2)
        def test_forgiven(put_out):
            put_out("a", "b")

        @pytest.mark.deterministic(runs=2)
        def test_condemned(put_out):
            put_out("a", "a")

        @pytest.mark.deterministic(runs=2)
        def test_left_alone(put_out):
            put_out("a", "a")
        """,
        conftest=RECORDED
        + """
def pytest_determinism_verdict(item, experiments, verdict):
    assert [experiment.completed for experiment in experiments] == [2]
    return {"test_forgiven": "passed", "test_condemned": "nondeterministic"}.get(item.name)

def pytest_determinism_report(config, report):
    report["team"] = config.rootpath.name and "ours"
""",
    )
    found = project.report()

    assert verdicts(found) == {
        "test_forgiven": (
            "passed",
            "2 unique of 2 (1/1), max_unique=1; a plugin changed the verdict from nondeterministic to passed",
        ),
        "test_condemned": (
            "nondeterministic",
            "1 unique of 2; a plugin changed the verdict from passed to nondeterministic",
        ),
        "test_left_alone": ("passed", "1 unique of 2"),
    }
    found["result"].assert_outcomes(passed=2, failed=1)
    assert found["whole"]["team"] == "ours"


def test_the_client_hook_builds_the_client_that_llm_uses(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3)
        def test_it(llm):
            assert llm("capital?", model="m") == "Paris."

        @pytest.mark.deterministic(runs=3)
        def test_same(llm):
            assert llm("capital?", model="m") == "Paris."
        """,
        conftest=f"""
        import openai

        def pytest_determinism_client(config):
            return openai.OpenAI(base_url="{model.url}", default_headers={{"X-Team": "ours"}})
        """,
    )
    found = project.report(url="http://127.0.0.1:9/v1")

    assert verdicts(found) == {"test_it": ("passed", "1 unique of 3"), "test_same": ("passed", "1 unique of 3")}
    assert [call.headers["x-team"] for call in model.calls] == ["ours"] * 3


def test_fail_fast_stops_as_soon_as_the_gate_cannot_pass(project: Project, server) -> None:
    answers = {3: "Lyon."}
    model = server(lambda call: answers.get(call.number, "Paris."))
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.deterministic(runs=20, fail_fast=True, load="solo")
        def test_it():
            ask("capital?")
        """,
        app=ASK,
    )
    found = project.report(url=model.url)

    assert verdicts(found) == {"test_it": ("nondeterministic", "2 unique of 4 (3/1), max_unique=1")}
    assert len(model.calls) == 4


def test_prompts_that_vary_are_found_and_named(project: Project, server) -> None:
    def script(call: Call) -> str:
        return re.sub(r"\d+", "", call.prompt)

    model = server(script)
    project.write(
        """
        import itertools, pytest
        from app import ask
        numbers = itertools.count()

        @pytest.mark.deterministic(runs=4)
        def test_it():
            ask(f"capital? ({next(numbers)})")
        """,
        app=ASK,
    )
    test = project.report(url=model.url)["tests"]["test_it"]

    assert (test["verdict"], test["unique"]) == ("passed", 1)
    assert test["experiments"][0]["findings"] == [
        {
            "code": "prompt-varies",
            "message": "the test itself sent 4 different requests at step 1 in 4 runs; they first differ at"
            " messages[0].content; send the same in every run",
        }
    ]
    assert len(model.calls) == 4
