"""Answers held against those of an earlier session: what changed is known, and what becomes of it is told."""

from __future__ import annotations

import json

import pytest
from conftest import ASK, Project
from scripted import Reply

WRITTEN = """
import json, pathlib, pytest

@pytest.fixture
def answer(determinism, request):
    "Gives each run the next of the answers that are written for the test."
    left = iter(json.loads(pathlib.Path("answers.json").read_text())[request.node.name])
    return lambda: determinism.record(next(left))
"""
"""A conftest for tests whose answers the test writes, so that no session asks a server."""

RENEW = "llm-determinism report baseline REPORT.json -o BASELINE.json"

BASELINE = "--determinism-baseline=base.json"


def answering(project: Project, **answers: list[str]) -> None:
    (project.path / "answers.json").write_text(json.dumps(answers))


def keep(project: Project, found: dict) -> None:
    """Make a session's report the baseline of later ones."""
    (project.path / "base.json").write_text(json.dumps(found["whole"]))


def verdicts(found: dict) -> dict[str, tuple[str, str]]:
    return {name: (test["verdict"], test["reason"]) for name, test in found["tests"].items()}


def beside(result: pytest.RunResult) -> list[str]:
    """What the summary says of the baseline."""
    lines = result.stdout.lines
    start = next(number for number, line in enumerate(lines) if line.startswith("baseline="))
    end = next(number for number, line in enumerate(lines) if number > start and not line.startswith("  "))
    return lines[start:end]


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_answers_that_change_fail(project: Project, workers: tuple[str, ...]) -> None:
    if workers:
        pytest.importorskip("xdist")
    project.write(
        """
        import pytest
        from pytest_llm_determinism import Drifted
        gated = pytest.mark.deterministic(runs=10, max_unique=2)

        @gated
        def test_same(answer):
            answer()

        @gated
        def test_replaced(answer):
            answer()

        @gated
        def test_shifted(answer):
            answer()

        @gated
        @pytest.mark.xfail(strict=True, raises=Drifted)
        def test_expected(answer):
            answer()

        @gated
        def test_apart(answer):
            answer()
        """,
        conftest=WRITTEN,
    )
    before = {
        "test_same": ["a", "b"] * 5,
        "test_replaced": ["I will refund it."] * 10,
        "test_shifted": ["a"] * 10,
        "test_expected": ["a"] * 10,
        "test_apart": ["a"] * 10,
    }
    answering(project, **before)
    found = project.report("-p", "no:xdist")
    keep(project, found)
    answering(
        project,
        test_same=["b", "a", "a"] * 3 + ["b"],
        test_replaced=["I will replace it."] * 10,
        test_shifted=["a"] + ["b"] * 9,
        test_expected=["b"] * 10,
        test_apart=["a", "b", "c", "d", "e"] * 2,
    )
    found = project.report(BASELINE, "--tb=short", *workers)

    assert verdicts(found) == {
        "test_same": ("passed", "2 unique of 10 (6/4)"),
        "test_replaced": (
            "drifted",
            "1 unique of 10, another than in the baseline: “I will refund it.” became “I will replace it.”",
        ),
        "test_shifted": (
            "drifted",
            "2 unique of 10 (9/1), distributed otherwise than in the baseline: 10/0 then, 1/9 now (p = 0.00012)",
        ),
        "test_expected": ("drifted", "1 unique of 10, another than in the baseline: “a” became “b”"),
        "test_apart": ("nondeterministic", "5 unique of 10 (2/2/2/2/2), max_unique=2"),
    }
    assert found["exit"] == 1
    found["result"].assert_outcomes(passed=1, failed=3, xfailed=1)
    assert beside(found["result"]) == ["baseline=base.json (--determinism-baseline): 5 tests compared, 3 drifted"]
    found["result"].stdout.fnmatch_lines(
        [
            "beside the baseline, under burst: p = 0.00012",
            "  then   now",
            "    10     1  “a”",
            "     0     9  “b”",
            "",
            "verdict     drifted",
            "decided by  baseline=base.json (--determinism-baseline)",
            f"try next    look at what became of the answers; if the new ones are right, renew the baseline: {RENEW}",
        ],
        consecutive=True,
    )


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_what_only_all_tests_together_show_fails_the_session(project: Project, workers: tuple[str, ...]) -> None:
    if workers:
        pytest.importorskip("xdist")
    project.write(
        """
        import pytest

        @pytest.mark.parametrize("number", [1, 2, 3])
        @pytest.mark.deterministic(runs=10, max_unique=2)
        def test_it(answer, number):
            answer()
        """,
        conftest=WRITTEN,
    )
    names = [f"test_it[{number}]" for number in (1, 2, 3)]
    answering(project, **dict.fromkeys(names, ["a"] * 10))
    keep(project, project.report("-p", "no:xdist"))
    # Each has a chance of 3.3 %, and one of 20 wrong discoveries is allowed: alone neither would be one.
    answering(project, **{names[0]: ["a", "b"] * 5, names[1]: ["b", "a"] * 5, names[2]: ["a", "b"] + ["b"] * 8})
    found = project.report(BASELINE, *workers)

    reason = "2 unique of 10 (5/5), distributed otherwise than in the baseline: 10/0 then, 5/5 now"
    assert verdicts(found)[names[0]] == (
        "drifted",
        f"{reason} (p = 0.033, which stands out among 3 tests)",
    )
    assert [test["verdict"] for test in found["tests"].values()] == ["drifted"] * 3
    assert found["exit"] == 1
    found["result"].assert_outcomes(passed=2, failed=1)
    fails = "for them the session fails: test_it.py::test_it[1], test_it.py::test_it[2]"
    assert beside(found["result"]) == [
        "baseline=base.json (--determinism-baseline): 3 tests compared, 3 drifted",
        f"  only all tests together show some of them, which pytest counted as passed; {fails}",
    ]


def test_questions_that_change_are_not_compared(project: Project, server) -> None:
    module = """
        import pytest
        from app import ask
        gated = pytest.mark.deterministic(runs=3)
        number = {session} * 100

        @gated
        def test_same():
            ask("France?")

        @gated
        def test_asks_something_else():
            ask("Spain?" + {question!r})

        @gated
        def test_varies():
            global number
            number += 1
            ask(f"Italy, {{number}}?")

        @gated
        def test_steps():
            ask("Go on: " + ask("Start"))

        @gated
        def test_{which}():
            ask("Austria?")
    """
    first = server("Yes.")
    project.write(module.format(session=1, question="", which="old"), app=ASK)
    keep(project, project.report(url=first.url))

    second = server(lambda call: Reply("No." if call.prompt == "Start" else "Yes.", fingerprint="fp-2", model="m-2"))
    project.write(module.format(session=2, question=" Please.", which="new"), app=ASK)
    found = project.report(BASELINE, url=second.url)

    other = "the question is another than in the baseline at step 1, so the answers cannot be compared"
    various = (
        "it sent 3 different requests at step 1, and others than in the baseline; make it send the same in every run"
        " and session, or leave what varies out with ignore"
    )
    assert verdicts(found) == {
        "test_same": ("passed", "1 unique of 3"),
        "test_asks_something_else": ("inconclusive", f"1 unique of 3, but {other}"),
        "test_varies": ("inconclusive", f"1 unique of 3, but {various}"),
        "test_steps": ("drifted", "1 unique of 3, another than in the baseline: “Yes.\\nYes.” became “No.\\nYes.”"),
        "test_new": ("passed", "1 unique of 3"),
    }
    backend = ["the returned model name was m, is m-2", "system_fingerprint was fp-1, is fp-2"]
    assert found["tests"]["test_same"]["drift"]["backend"] == backend
    found["result"].stdout.fnmatch_lines(
        [f"passed * test_it.py::test_same *; as in the baseline; {'; '.join(backend)}"]
    )
    assert beside(found["result"]) == [
        "baseline=base.json (--determinism-baseline): 2 tests compared, 1 drifted",
        "  not in the baseline: test_it.py::test_new",
        "  in the baseline and not in this session: test_it.py::test_old",
    ]

    again = project.report(BASELINE, "-k", "test_same", url=second.url)
    assert len(second.calls) == 5 * 3 + 3
    replay = "a replay is no new evidence of the model as it is now (cache=refresh asks it)"
    assert beside(again["result"])[:2] == [
        "baseline=base.json (--determinism-baseline): 1 test compared, 0 drifted",
        f"  1 of them had all answers from the store: {replay}",
    ]


@pytest.mark.parametrize("workers", [(), ("-n2",)], ids=["alone", "xdist"])
def test_a_baseline_of_other_settings_is_refused_before_any_call(
    project: Project, server, workers: tuple[str, ...]
) -> None:
    if workers:
        pytest.importorskip("xdist")
    model = server("Paris.")
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2, compare="json")
        @pytest.mark.parametrize("number", range(5))
        def test_it(number, llm):
            llm("France?", model="m")

        @pytest.mark.deterministic(runs=2)
        def test_without_llm(determinism):
            determinism.record("a")
        """
    )
    keep(project, project.report("-p", "no:xdist", url=model.url))
    calls = len(model.calls)
    result = project.pytest(
        BASELINE, "--determinism-compare=exact", "--determinism-temperature=0.5", *workers, url=model.url
    )

    assert len(model.calls) == calls
    assert result.ret == (1 if workers else 2)
    wrong = (
        "baseline=base.json (--determinism-baseline): was made under other settings: compare=json (marker) then,"
        " compare=exact (--determinism-compare) now; temperature=0 (default) then, temperature=0.5"
        f" (--determinism-temperature) now; set them as they were, or renew the baseline: {RENEW}"
    )
    result.stdout.fnmatch_lines(
        [
            *(f"test_it.py::test_it[[]{number}[]]: {wrong}" for number in range(3)),
            "… and the same of 2 more tests",
        ],
        consecutive=True,
    )
    assert "test_without_llm: " not in result.stdout.str()


@pytest.mark.parametrize(
    ("content", "why"),
    [
        (None, "{path} cannot be read: No such file or directory"),
        ('{"schema_version": 1, "tests": [', "{path} is no report, since it is not JSON: *"),
        ('{"a": 1}', "{path} is no report: it has no schema_version; *"),
    ],
    ids=["missing", "damaged", "foreign"],
)
def test_a_file_that_is_no_baseline_is_an_error_of_use(project: Project, content: str | None, why: str) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=2)
        def test_it(determinism):
            determinism.record("a")
        """
    )
    path = project.path / "base.json"
    if content is not None:
        path.write_text(content)
    pytest.importorskip("xdist")
    result = project.pytest(BASELINE, "-n2")

    assert result.ret == 4
    result.stderr.fnmatch_lines(["ERROR: baseline=base.json (--determinism-baseline): " + why.format(path=path)])
    assert result.stdout.str() == ""


def test_trying_again_and_hooks(project: Project) -> None:
    pytest.importorskip("pytest_rerunfailures")
    project.write(
        """
        import pytest
        gated = pytest.mark.deterministic(runs=10)

        @gated
        def test_is_tried_again(answer):
            answer()

        @gated
        def test_is_let_pass(answer):
            answer()

        @gated
        def test_is_refused(answer):
            answer()
        """,
        conftest=WRITTEN
        + """
def pytest_determinism_verdict(item, verdict):
    return {"test_is_let_pass": "passed", "test_is_refused": "drifted"}.get(item.name)
""",
    )
    names = ("test_is_tried_again", "test_is_let_pass", "test_is_refused")
    answering(project, **dict.fromkeys(names, ["a"] * 10))
    keep(project, project.report())
    # A second try would get the old answer.
    answering(project, **{names[0]: ["b"] * 10 + ["a"] * 10, names[1]: ["b"] * 10, names[2]: ["a"] * 10})
    found = project.report(BASELINE, "--reruns=1")

    replaced = "1 unique of 10, another than in the baseline: “a” became “b”"
    assert verdicts(found) == {
        "test_is_tried_again": ("drifted", replaced),
        "test_is_let_pass": ("passed", f"{replaced}; a plugin changed the verdict from drifted to passed"),
        "test_is_refused": ("drifted", "1 unique of 10; a plugin changed the verdict from passed to drifted"),
    }
    found["result"].stdout.fnmatch_lines(["*= 2 failed, 1 passed, 2 rerun in *"])
