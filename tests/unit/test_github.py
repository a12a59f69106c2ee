"""What GitHub Actions shows of a session."""

from __future__ import annotations

import json
import re
from dataclasses import replace
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_text import made, result

from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.report.github import LONGEST_MESSAGE, annotate, append_summary

ROOT = Path("/ci/repository/sub")
PLACES = {"test_it.py::test": ("tests/test_it.py", 41)}


@pytest.fixture(autouse=True)
def workspace(monkeypatch):
    monkeypatch.setenv("GITHUB_WORKSPACE", "/ci/repository")


def parted(**more):
    return result(replace(made("yes", "no"), findings=(Finding("sampling-on", "temperature is 1"),)), **more)


def read(line):
    """A command as GitHub's runner reads it: what, properties, message."""
    command = re.fullmatch(r"::(\w+) ((?:[^:\n\r])*)::([^\n\r]*)", line)
    assert command is not None
    properties = dict(part.split("=", 1) for part in command[2].split(","))

    def unescaped(text, *more):
        for character in (*more, "\r", "\n", "%"):
            text = text.replace(f"%{ord(character):02X}", character)
        return text

    return command[1], {name: unescaped(value, ":", ",") for name, value in properties.items()}, unescaped(command[3])


def test_an_annotation_has_the_reason_the_findings_and_what_to_do() -> None:
    found = parted(decided_by="max_unique=1 (default)", advice="send temperature=0, 100 % of the time")
    (line,) = annotate([found], PLACES, ROOT)
    assert line == (
        "::error file=sub/tests/test_it.py,line=42,title=nondeterministic%3A test_it.py%3A%3Atest::"
        "2 unique of 5 (4/1), max_unique=1%0Asampling-on: temperature is 1%0Adecided by max_unique=1 (default)"
        "%0Atry next: send temperature=0, 100 %25 of the time"
    )


def test_the_worst_come_first_and_what_passed_or_is_expected_to_fail_has_none() -> None:
    names = ("passed", "inconclusive", "nondeterministic", "expected")
    verdicts = ("passed", "inconclusive", "nondeterministic", "nondeterministic")
    results = [replace(parted(verdict=verdict), nodeid=name) for name, verdict in zip(names, verdicts, strict=True)]
    places = {name: ("test_it.py", 0) for name in names if name != "expected"}
    assert [line.partition(" file")[0] for line in annotate(results, places, ROOT)] == ["::error", "::warning"]


def test_a_file_outside_the_repository_keeps_its_whole_name_and_a_line_may_be_unknown(monkeypatch) -> None:
    places = {"test_it.py::test": ("../../other/test_it.py", None)}
    monkeypatch.setenv("GITHUB_WORKSPACE", "/elsewhere")
    ((level, properties, _),) = map(read, annotate([parted()], places, Path("/ci/repository")))
    assert level == "error"
    assert properties == {
        "file": "/ci/repository/../../other/test_it.py",
        "title": "nondeterministic: test_it.py::test",
    }
    monkeypatch.delenv("GITHUB_WORKSPACE")
    assert "file=/ci/repository/" in annotate([parted()], places, Path("/ci/repository"))[0]


@given(st.text(max_size=60), st.text(max_size=60), st.text(max_size=60))
def test_no_text_begins_a_command_or_a_property_of_its_own(nodeid, reason, message) -> None:
    experiment = replace(made("yes", "no"), findings=(Finding(message, message),))
    found = replace(result(experiment, reason=reason, advice=message), nodeid=nodeid)
    (line,) = annotate([found], {nodeid: ("a,b:c%.py", 0)}, ROOT)
    level, properties, _ = read(line)
    assert level == "error"
    assert list(properties) == ["file", "line", "title"]
    assert properties["file"] == "sub/a,b:c%.py"
    assert line.isprintable()


def test_long_texts_are_cut() -> None:
    (line,) = annotate([replace(parted(reason="%" * 9000), nodeid="n" * 900)], {"n" * 900: ("t.py", 0)}, ROOT)
    _, properties, message = read(line)
    assert properties["title"] == "nondeterministic: " + "n" * (254 - len("nondeterministic: ")) + "…"
    assert message == "%" * (LONGEST_MESSAGE - 1) + "…"


# The summary of a step


def test_a_summary_is_added_to_those_of_other_tools(tmp_path) -> None:
    path = tmp_path / "summary.md"
    path.write_text("## Coverage: 100 %", encoding="utf-8")
    record = {"created_at": "2026-01-02T12:00:00+00:00", "tests": [json.loads(json.dumps(parted().to_json()))]}

    assert append_summary(str(path), record) == []

    assert path.read_text(encoding="utf-8").startswith(
        "## Coverage: 100 %\n## Determinism: 1 nondeterministic\n\n2 calls live; `no price known`.\n\n| verdict |"
    )


def test_a_summary_that_cannot_be_written_is_a_note(tmp_path) -> None:
    path = tmp_path / "missing\n" / "summary.md"
    (note,) = append_summary(str(path), {"created_at": "2026-01-02T12:00:00+00:00", "tests": []})
    assert note == (
        f"the summary of the GitHub step was not written (GITHUB_STEP_SUMMARY={tmp_path}/missing\\n/summary.md):"
        f" [Errno 2] No such file or directory: '{tmp_path}/missing\\n/summary.md'"
    )
