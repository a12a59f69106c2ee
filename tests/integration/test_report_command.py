"""The command `llm-determinism report`: reports that were written are shown, merged, compared and rendered."""

from __future__ import annotations

import json
import re
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import ASK, Project
from reports import valid

from pytest_llm_determinism import results
from pytest_llm_determinism.analysis.divergence import Branch, Divergence
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import Group
from pytest_llm_determinism.analysis.statistics import agreement, agreement_lower
from pytest_llm_determinism.cli import main
from pytest_llm_determinism.results import CallCount, Experiment, Step, TestResult, Usage
from pytest_llm_determinism.settings import Value, resolve
from pytest_llm_determinism.verdict import in_short


class Said(NamedTuple):
    code: int
    out: str
    err: str


Command = Callable[..., Said]


@pytest.fixture
def command(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Run it in a folder of its own: ``command("show", "A.json")``."""
    monkeypatch.chdir(tmp_path)

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        try:
            code: Any = main(["report", *arguments])
        except SystemExit as stopped:
            code = stopped.code
        said = capsys.readouterr()
        return Said(code, re.sub(r"\d{4}-\d\d-\d\dT[\d:.]+\+00:00", "TIME", said.out), said.err)

    return run


def experiment(*answers: tuple[str, int], load: str = "burst", **changes: Any) -> Experiment:
    """Runs that gave these answers, each so often; the answer's text stands for all that is compared."""
    counts = [count for _, count in answers]
    groups = tuple(
        Group(count, text, f"{place:064x}", (place,), (), ("m-1",), (text,), form=f"form of {text}")
        for place, (text, count) in enumerate(answers)
    )
    fork = Divergence(0, 0, "word", "", tuple(Branch(*answer, groups=(n,)) for n, answer in enumerate(answers)))
    made = Experiment(
        load=load,
        attempt=0,
        seed=7,
        neighbour_calls=0,
        runs=sum(counts),
        completed=sum(counts),
        errors=0,
        unique=len(groups),
        unique_raw=len(groups),
        agreement=agreement(counts),
        agreement_lower=agreement_lower(counts, 0.95),
        confidence=0.95,
        groups=groups,
        divergence=fork if len(answers) > 1 else None,
        findings=(),
        steps=(Step(1, len(groups)),),
        calls=CallCount(sum(counts), 0, None),
        usage=Usage(None, None),
        seconds=1.5,
        requests=("asked",),
    )
    return replace(made, **changes)


def result(nodeid: str, verdict: str, *experiments: Experiment, **changes: Any) -> TestResult:
    settings = {name: Value(value, "cli", "") for name, value in changes.pop("settings", {}).items()}
    counts = tuple(group.count for group in experiments[0].groups) if experiments else ()
    return TestResult(
        nodeid=nodeid,
        verdict=verdict,
        reason=changes.pop("reason", None) or in_short(counts),
        unique=len(counts),
        settings=resolve(settings, {}, {}).to_json(),
        experiments=experiments,
        counts=counts,
        **changes,
    )


def write(name: str, *tests: TestResult, python: str = "3.12.1", **more: Any) -> dict[str, Any]:
    made = {**results.report(tests, {"python": python, "platform": "Linux"}), **more}
    made["tool"]["version"] = "0.1.0"
    Path(name).write_text(json.dumps(made))
    whole: dict[str, Any] = json.loads(Path(name).read_text())
    return whole


STABLE = result("a.py::stable", "passed", experiment(("yes", 10)))
UNSTABLE = result("a.py::unstable", "nondeterministic", experiment(("yes", 7), ("no", 3)))
SILENT = result("b.py::silent", "inconclusive", reason="no model call was observed")

# Show


def test_show_prints_what_pytest_printed(command: Command) -> None:
    write("all.json", STABLE, UNSTABLE, SILENT)

    said = command("show", "all.json")

    assert said == (
        1,
        """\
a.py::unstable
2 unique of 10 (7/3)

under burst: 2 unique of 10 runs, another call agrees at least 34.5 % of the time, at 95 %
  they part at the first word
  ├─ 7 × “yes”  (run 0)
  └─ 3 × “no”  (run 1)
  10 calls live; seed 7

verdict     nondeterministic

b.py::silent
no model call was observed

verdict     inconclusive

passed            a.py::stable    1 unique of 10        under burst; another call agrees at least 71.7 % of the time, \
at 95 %; 10 calls live
nondeterministic  a.py::unstable  2 unique of 10 (7/3)  under burst; another call agrees at least 34.5 % of the time, \
at 95 %; 10 calls live
inconclusive      b.py::silent    no model call was observed
with 10 runs, a model that flips 1 % of the time passes this gate 90 % of the time; to catch it 95 times of 100 takes \
299 runs
""",
        "",
    )


@pytest.mark.parametrize(
    ("tests", "code"),
    [
        ([STABLE], 0),
        ([STABLE, UNSTABLE, SILENT], 1),
        ([STABLE, replace(STABLE, nodeid="c", verdict="drifted")], 1),
        ([STABLE, SILENT], 3),
        ([], 3),
    ],
)
def test_show_judges_as_the_gate_does(command: Command, tests: list[TestResult], code: int) -> None:
    write("all.json", *tests)
    assert command("show", "all.json").code == code


def test_show_judges_several_reports_together(command: Command) -> None:
    write("a.json", STABLE)
    write("b.json", SILENT)
    write("none.json")

    said = command("show", "a.json", "b.json", "none.json")

    assert said.code == 3
    titles = ("a.json:", "b.json:", "none.json:", "no test was gated")
    assert [line for line in said.out.splitlines() if line in titles] == list(titles)


def test_show_explains_the_tests_that_are_asked_for(command: Command) -> None:
    write("all.json", STABLE, UNSTABLE, SILENT)

    said = command("show", "all.json", "--test", "::stable")

    assert said.code == 0
    assert said.out.startswith("a.py::stable\n1 unique of 10\n\nunder burst: 1 unique of 10 runs")
    assert "unstable" not in said.out


def test_show_says_that_no_test_is_called_so(command: Command) -> None:
    write("all.json", STABLE)
    said = command("show", "all.json", "--test", "stabel")
    assert said == (2, "", "llm-determinism report show: no test has 'stabel' in its node id\n")


def test_nothing_in_a_report_steers_the_terminal(command: Command) -> None:
    hostile = "\x1b]0;owned\x07\u202e\ud800\n"
    fork = experiment((hostile, 7), ("no" + hostile, 3), findings=(Finding(hostile, hostile),))
    test = replace(
        result(hostile, "nondeterministic", fork, reason=hostile, advice=hostile, decided_by=hostile),
        settings={"max_unique": {"value": 1, "source": hostile}, hostile: {"value": hostile, "source": hostile}},
    )
    write("all.json", test)
    write("other.json", replace(test, reason="other", verdict="passed", experiments=(experiment((hostile, 9)),)))
    Path("odd.json").write_text(json.dumps({"schema_version": 1, hostile: hostile, "tool": hostile}))

    for arguments in (
        ("show", "all.json"),
        ("diff", "all.json", "other.json"),
        ("merge", "all.json", "other.json", "-o", "merged.json"),
        ("show", "merged.json"),
        ("show", "odd.json"),
        ("show", f"none{hostile[:-2]}.json"),
    ):
        said = command(*arguments)
        assert said.out or said.err
        assert (said.out + said.err).replace("\n", "").isprintable(), arguments


# Merge


def test_shards_become_one_report(command: Command) -> None:
    first = write("one.json", STABLE, python="3.11.9", built_by="ci")
    second = write("two.json", UNSTABLE, SILENT, built_by="ci")

    said = command("merge", "one.json", "two.json", "-o", "all.json", "-o", "all.md", "--output", "all.csv")

    assert said == (
        0,
        """\
3 tests of 2 reports: 1 passed, 1 nondeterministic, 1 inconclusive
python 3.11.9 (one.json), 3.12.1 (two.json)
report written to all.json
report written to all.md
report written to all.csv
""",
        "",
    )
    merged = valid(results.read(Path("all.json")))
    assert merged == {
        **first,
        "created_at": merged["created_at"],
        "tool": merged["tool"],
        "environment": {"platform": "Linux"},
        "tests": [
            {**first["tests"][0], "shard": 0},
            {**second["tests"][0], "shard": 1},
            {**second["tests"][1], "shard": 1},
        ],
        "shards": [
            {
                "file": f"{name}.json",
                **{field: whole[field] for field in ("tool", "created_at", "environment", "built_by")},
            }
            for name, whole in (("one", first), ("two", second))
        ],
    }
    assert Path("all.md").read_text().startswith("## Determinism: 1 ")
    assert len(Path("all.csv").read_text().splitlines()) == 4


def test_merging_judges_nothing_and_what_was_merged_can_be_judged(command: Command) -> None:
    write("one.json", STABLE)
    write("two.json", UNSTABLE)
    assert command("merge", "one.json", "two.json", "-o", "all.json").code == 0
    said = command("show", "all.json")
    assert said.code == 1
    assert said.out.startswith("a.py::unstable  (from two.json)\n")


PASSED, FAILED, OPEN, DRIFTED = (
    replace(STABLE, verdict=verdict) for verdict in ("passed", "nondeterministic", "inconclusive", "drifted")
)


@pytest.mark.parametrize(
    ("tests", "taken"),
    [
        ([PASSED, OPEN], 1),
        ([OPEN, DRIFTED, PASSED], 1),
        ([DRIFTED, PASSED, FAILED, OPEN], 2),
        ([FAILED, PASSED], 0),
        # Of the same verdict, what shows least: the terminal and later baselines claim no more than that.
        ([replace(PASSED, experiments=(experiment(("yes", 30)),)), PASSED], 1),
        ([PASSED, replace(PASSED, experiments=(experiment(("yes", 30)),))], 0),
        ([replace(OPEN, experiments=(), counts=()), OPEN], 0),
        # Else the newest.
        ([PASSED, PASSED], 1),
    ],
)
def test_of_a_test_in_several_reports_the_worst_result_is_taken(
    command: Command, tests: list[TestResult], taken: int
) -> None:
    files = [f"{number}.json" for number in range(len(tests))]
    for number, test in enumerate(tests):
        write(files[number], test, created_at=f"2026-01-0{number + 1}T00:00:00+00:00")

    for order in (files, files[::-1]):
        assert command("merge", *order, "-o", "all.json").code == 0
        merged = results.read(Path("all.json"))
        [test] = merged["tests"]
        assert merged["shards"][test["shard"]]["file"] == files[taken]
        assert test["verdict"] == tests[taken].verdict


def test_merging_says_what_was_taken_from_where(command: Command) -> None:
    others = [replace(STABLE, nodeid=f"c.py::{number}") for number in range(3)]
    write("one.json", STABLE, UNSTABLE, *others, created_at="2026-01-01T00:00:00+00:00")
    write("two.json", replace(STABLE, verdict="inconclusive"), *others, created_at="2026-01-02T00:00:00+00:00")

    said = command("merge", "one.json", "two.json", "-o", "one.json")

    assert said == (
        0,
        """\
5 tests of 2 reports: 1 inconclusive, 1 nondeterministic, 3 passed
a.py::stable: inconclusive from two.json, not passed from one.json
3 tests with the same verdict in several reports, of which the one that shows least is taken: 3 from two.json
report written to one.json
""",
        "",
    )
    assert len(results.read(Path("one.json"))["tests"]) == 5


def test_merged_reports_can_be_merged(command: Command) -> None:
    for number, test in enumerate((STABLE, UNSTABLE, SILENT)):
        write(f"{number}.json", test, python=f"3.1{number}")
    assert command("merge", "0.json", "1.json", "2.json", "-o", "at-once.json").code == 0
    assert command("merge", "1.json", "2.json", "-o", "late.json").code == 0
    assert command("merge", "0.json", "late.json", "-o", "by-steps.json").code == 0

    at_once, by_steps = (results.read(Path(name)) for name in ("at-once.json", "by-steps.json"))
    assert {**by_steps, "created_at": ""} == {**at_once, "created_at": ""}


def test_what_other_programs_added_survives(command: Command) -> None:
    whole = write("one.json", STABLE, UNSTABLE, run_url="https://ci.example/1", team="search")
    whole["tests"][0]["owner"] = "ann"
    whole["tests"][0]["experiments"][0]["region"] = "eu"
    Path("one.json").write_text(json.dumps(whole))
    write("two.json", SILENT, run_url="https://ci.example/2", team="search")

    assert command("merge", "one.json", "two.json", "-o", "all.json").code == 0

    merged = results.read(Path("all.json"))
    assert (merged["team"], "run_url" in merged) == ("search", False)
    assert [shard["run_url"] for shard in merged["shards"]] == ["https://ci.example/1", "https://ci.example/2"]
    assert merged["tests"][0]["owner"] == "ann"
    assert merged["tests"][0]["experiments"][0]["region"] == "eu"


def test_a_damaged_shard_is_refused_by_name_and_nothing_is_written(command: Command) -> None:
    write("one.json", STABLE)
    whole = write("two.json", UNSTABLE)
    whole["tests"][0]["unique"] = None
    Path("two.json").write_text(json.dumps(whole))

    said = command("merge", "one.json", "two.json", "-o", "new/all.json", "-o", "one.json")

    assert said == (
        2,
        "",
        "llm-determinism report merge: two.json is damaged: $.tests[0].unique: a whole number is wanted, not null\n",
    )
    assert sorted(path.name for path in Path().iterdir()) == ["one.json", "two.json"]
    assert "shards" not in Path("one.json").read_text().replace('"shards": []', "")


# Render, baseline, schema


def test_a_report_is_rendered_in_any_format(command: Command) -> None:
    whole = write("all.json", STABLE, UNSTABLE, extra=1)
    said = command("render", "all.json", "-o", "new/all.md", "-o", "all.csv", "-o", "copy.json")
    assert said == (
        0,
        "report written to new/all.md\nreport written to all.csv\nreport written to copy.json\n",
        "",
    )
    assert Path("new/all.md").read_text().startswith("## Determinism: ")
    assert Path("all.csv").read_text().startswith("nodeid,verdict,")
    assert json.loads(Path("copy.json").read_text()) == whole


def test_a_baseline_is_made_of_a_report(command: Command) -> None:
    told = replace(STABLE, experiments=(experiment(("yes", 10), findings=(Finding("truncated", ""),)),))
    write("all.json", told, UNSTABLE, SILENT)
    said = command("baseline", "all.json", "-o", "baseline.json")
    assert said == (0, "report written to baseline.json\n", "")
    baseline = valid(results.read(Path("baseline.json")))
    assert [test["nodeid"] for test in baseline["tests"]] == ["a.py::stable", "a.py::unstable"]
    assert command("diff", "baseline.json", "all.json").out.endswith("\n0 vanished, 1 new, 0 changed, 2 the same\n")


def test_a_merged_report_gives_a_baseline_that_can_be_read(command: Command) -> None:
    write("one.json", STABLE)
    assert command("merge", "one.json", "-o", "all.json").code == 0
    assert command("baseline", "all.json", "-o", "baseline.json").code == 0
    assert command("show", "baseline.json").code == 0


def test_the_schema_is_printed(command: Command) -> None:
    said = command("schema")
    assert (said.code, json.loads(said.out)["$schema"]) == (0, "https://json-schema.org/draft/2020-12/schema")


# Wrong usage


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", "none.json"], "report show: none.json cannot be read: No such file or directory"),
        (["show", "text.json"], "report show: text.json is no report, since it is not JSON: Expecting value"),
        (["merge", "all.json", "none.json", "-o", "x.json"], "report merge: none.json cannot be read"),
        (
            ["render", "all.json", "-o", "x.pdf"],
            "report render: report=x.pdf (from -o): write a file name that ends in",
        ),
        (["render", "all.json", "-o", "x.md", "-o", "x.md"], "report=x.md,x.md (from -o): name each file once"),
        (
            ["render", "all.json", "-o", "all.json/x.md"],
            "report render: report=all.json/x.md (from -o): cannot be written: ",
        ),
        (
            ["baseline", "all.json", "-o", "x.md"],
            "report baseline: x.md (from -o) cannot be a baseline; write a file name that ends in .json",
        ),
        (["diff", "all.json", "none.json"], "report diff: none.json cannot be read: No such file or directory"),
        (["render", "all.json"], "-o/--output"),
        ([], "COMMAND"),
    ],
)
def test_wrong_usage_is_said_in_one_line(command: Command, arguments: list[str], message: str) -> None:
    write("all.json", STABLE)
    Path("text.json").write_text("text")

    said = command(*arguments)

    assert (said.code, said.out) == (2, "")
    assert message in said.err
    assert "Traceback" not in said.err
    assert sorted(path.name for path in Path().iterdir()) == ["all.json", "text.json"]


# Diff


def test_a_report_is_like_itself_and_like_one_whose_calls_came_another_way(command: Command) -> None:
    write("one.json", STABLE, UNSTABLE, SILENT)
    came = CallCount(0, 10, "2026-01-01T00:00:00+00:00")
    later = replace(STABLE.experiments[0], seed=8, seconds=9.0, calls=came)
    settings = {**STABLE.settings, "cache": {"value": "replay", "source": "cli"}}
    write("two.json", replace(STABLE, experiments=(later,), settings=settings), UNSTABLE, SILENT, python="3.13.0")

    said = command("diff", "one.json", "two.json")

    assert said == (
        0,
        """\
before  one.json: 3 tests, made TIME by version 0.1.0
after   two.json: 3 tests, made TIME by version 0.1.0
python: 3.12.1 → 3.13.0

0 vanished, 0 new, 0 changed, 3 the same
""",
        "",
    )


def test_what_differs_is_told_test_by_test(command: Command) -> None:
    solo = experiment(("yes", 10), load="solo")
    before = result("c.py::both", "passed", experiment(("yes", 10)), solo, settings={"load": ("burst", "solo")})
    groups = (
        Group(8, "yes", "0" * 64, (0,), ("fp",), ("m-2",), ("yes",), form="form of yes"),
        Group(2, "yes, but", "1" * 64, (1,), ("fp",), ("m-2",), ("yes, but",), form="other"),
    )
    burst = replace(
        experiment(("yes", 8), ("yes, but", 2)),
        groups=groups,
        findings=(Finding("near-tie", ""),),
        errors=1,
        requests=("asked otherwise",),
    )
    after = result("c.py::both", "nondeterministic", burst, experiment(("no", 10), load="crowd"), reason="2 unique")
    write("one.json", STABLE, before, SILENT)
    write("two.json", after, replace(SILENT, reason="HTTP 500"), UNSTABLE)

    said = command("diff", "one.json", "two.json")

    assert said == (
        1,
        """\
before  one.json: 3 tests, made TIME by version 0.1.0
after   two.json: 3 tests, made TIME by version 0.1.0

vanished:
  a.py::stable  passed: 1 unique of 10

new:
  a.py::unstable  nondeterministic: 2 unique of 10 (7/3)

c.py::both
  verdict   passed → nondeterministic: 2 unique
  settings  load burst,solo → burst
  under solo: not asked any more
  under burst: errors 0 → 1; unique 1 → 2; agreement 100.0 % → 80.0 %; near-tie is new; asks something else; \
answers differ, p = 0.47, as chance alone may have it; models m-1 → m-2; fingerprints none → fp
    10 → 8 × “yes”
     0 → 2 × “yes, but”
  under crowd: not asked before; 1 unique of 10

b.py::silent
  reason    no model call was observed → HTTP 500

1 vanished, 1 new, 2 changed, 0 the same
""",
        "",
    )


@pytest.mark.parametrize(
    ("before", "after", "lines"),
    [
        pytest.param(
            [("yes", 30)],
            [("no", 30)],
            ["under burst: answers differ, p < 1e-9", "  30 →  0 × “yes”", "   0 → 30 × “no”"],
            id="replaced",
        ),
        pytest.param([("yes", 30)], [("yes", 60)], ["under burst: runs completed 30 → 60"], id="more runs"),
        pytest.param([("yes", 8), ("no", 2)], [("no", 2), ("yes", 8)], [], id="other order"),
        pytest.param(
            [("yes", 4), ("no", 2)], [("yes", 2), ("no", 1)], ["under burst: runs completed 6 → 3"], id="shares"
        ),
        pytest.param(
            [("yes", 10)],
            [],
            [
                "under burst: runs completed 10 → 0; unique 1 → 0; agreement 100.0 % → 0.0 %; no answer any more",
                "  10 → 0 × “yes”",
            ],
            id="none any more",
        ),
    ],
)
def test_answers_are_compared_by_their_shares(
    command: Command, before: list[tuple[str, int]], after: list[tuple[str, int]], lines: list[str]
) -> None:
    for name, answers in (("one.json", before), ("two.json", after)):
        write(name, result("a", "passed", experiment(*answers), reason="same"))
    said = command("diff", "one.json", "two.json")
    assert said.code == bool(lines)
    told = said.out.split("\n\n")[1:-1]
    assert told == (["\n".join(("a", *(f"  {line}" for line in lines)))] if lines else [])


def test_without_forms_answers_are_compared_as_they_were_written(command: Command) -> None:
    for name, counts in (("one.json", (7, 3)), ("two.json", (3, 7))):
        made = experiment(("yes", counts[0]), ("no", counts[1]))
        bare = replace(made, groups=tuple(replace(group, form="") for group in made.groups))
        write(name, result("a", "passed", bare, reason="same"))
    lines = command("diff", "one.json", "two.json").out.splitlines()
    assert lines[5:7] == ["    7 → 3 × “yes”", "    3 → 7 × “no”"]


# With pytest


def test_two_sessions_of_a_suite_become_one_report(command: Command, project: Project, server: Any) -> None:
    project.write(
        """
import pytest
from app import ask

@pytest.mark.deterministic(runs=3)
def test_yes():
    ask("yes?")

@pytest.mark.deterministic(runs=3)
def test_varied():
    ask("varied?")
""",
        app=ASK,
    )
    model = server(lambda call: f"{call.number}" if "varied" in str(call.body) else "yes")
    for name in ("yes", "varied"):
        project.pytest(f"-k={name}", f"--determinism-report={name}.json", url=model.url)
    files = [str(project.path / f"{name}.json") for name in ("yes", "varied")]

    assert command("merge", *files, "-o", "all.json").code == 0
    assert command("show", "all.json").code == 1
    merged = valid(results.read(Path("all.json")))
    assert [(test["nodeid"], test["verdict"]) for test in merged["tests"]] == [
        ("test_it.py::test_yes", "passed"),
        ("test_it.py::test_varied", "nondeterministic"),
    ]
    assert merged["environment"] == results.read(Path(files[0]))["environment"]


def test_who_reads_the_output_may_stop(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    write("all.json", *(replace(UNSTABLE, nodeid=f"a.py::{number}") for number in range(2000)))
    arguments = [sys.executable, "-m", "pytest_llm_determinism.cli", "report", "show", "all.json"]
    with subprocess.Popen(arguments, stdout=subprocess.PIPE, stderr=subprocess.PIPE) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        assert process.stdout.readline() == b"a.py::0\n"
        process.stdout.close()
        errors = process.stderr.read()

    assert (process.returncode, errors) == (141, b"")
