"""The CSV report: one row an experiment, and nothing that a spreadsheet would compute."""

from __future__ import annotations

import csv
import io
import json
from dataclasses import replace

import pytest
from hypothesis import given
from hypothesis import strategies as st
from test_text import made, result

from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.report.csv_file import render
from pytest_llm_determinism.results import Usage

SETTINGS = {
    "max_unique": {"value": 1, "source": "default"},
    "min_agreement": {"value": 0.9, "source": "ini"},
    "max_errors": {"value": 0, "source": "default"},
    "compare": {"value": "json", "source": "marker"},
    "override": {"value": ["seed=7", "temperature=0"], "source": "cli"},
}


def rendered(*results):
    return render({"created_at": "2026-01-02T12:00:00+00:00", "tests": [found.to_json() for found in results]})


def rows(*results):
    """What a reader of RFC 4180 finds, by column."""
    return list(csv.DictReader(io.StringIO(rendered(*results), newline=""), strict=True))


def test_a_whole_report() -> None:
    solo = made("yes", "yes", load="solo", cached=2, live=0, oldest="2026-01-01T00:00:00+00:00")
    burst = replace(
        made("yes", "no", "yes", OSError("down"), attempt=1),
        findings=(Finding("sampling-on", "…"), Finding("error-pattern", "…")),
        usage=Usage(28, 12),
    )
    parted = result(solo, burst, reason="2 unique of 5\n(4/1), max_unique=1", settings=SETTINGS)
    nothing = replace(result(verdict="inconclusive", reason="stopped"), nodeid="test_it.py::test[a, b]", unique=0)

    assert (
        rendered(parted, nothing)
        == """\
nodeid,verdict,reason,unique_in_test,load,attempt,seed,runs,completed,errors,unique,unique_raw,group_sizes,agreement,\
agreement_lower,confidence,disagreement,new_output_chance,entropy,findings,live,cached,oldest_sample,neighbour_calls,\
input_tokens,output_tokens,cost_live,cost_saved,cost_currency,seconds,setting_max_unique,setting_min_agreement,\
setting_max_errors,setting_compare,setting_override,created_at\r
test_it.py::test,nondeterministic,"2 unique of 5 (4/1), max_unique=1",2,solo,0,7,2,2,0,1,1,2,1.0,\
0.050000000000000044,0.95,0.0,0.0,0.0,,0,2,2026-01-01T00:00:00+00:00,0,\
2,2,,,,1.0,1,0.9,0,json,"seed=7, temperature=0",2026-01-02T12:00:00+00:00\r
test_it.py::test,nondeterministic,"2 unique of 5 (4/1), max_unique=1",2,burst,1,7,4,3,1,2,2,2 1,0.6666666666666666,\
0.025320565519103652,0.95,0.6666666666666666,0.3333333333333333,0.9182958340544893,sampling-on error-pattern,4,0,,0,\
28,12,,,,1.0,1,0.9,0,json,"seed=7, temperature=0",2026-01-02T12:00:00+00:00\r
"test_it.py::test[a, b]",inconclusive,stopped,0,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,,2026-01-02T12:00:00+00:00\r
"""
    )


@pytest.mark.parametrize(
    ("text", "cell"),
    [
        ("=1+1", "'=1+1"),
        ("+1", "'+1"),
        ("-1", "'-1"),
        ("@SUM(A1)", "'@SUM(A1)"),
        ("\t=1+1", "\\t=1+1"),
        ("\r=1+1", "\\r=1+1"),
        ("\ud800\x00\x1b[31m\u202e", "\\ud800\\x00\\x1b[31m\\u202e"),
        ("1=1", "1=1"),
        ('a,"b"', 'a,"b"'),
    ],
)
def test_text_is_never_a_formula_and_has_no_control_characters(text, cell) -> None:
    (row,) = rows(replace(result(), nodeid=text))
    assert row["nodeid"] == cell


@given(st.text())
def test_any_text_is_one_cell_of_its_row(text) -> None:
    found = result(made("yes"), settings={"compare": {"value": text, "source": "cli"}}, reason=text)
    (row,) = rows(replace(found, nodeid=text))
    assert None not in row  # no cell more than there are columns
    assert row["created_at"] == "2026-01-02T12:00:00+00:00"
    for cell in (row["nodeid"], row["reason"], row["setting_compare"]):
        assert cell.isprintable()
        assert not cell.startswith(("=", "+", "-", "@"))


def test_a_session_without_gated_tests_is_a_header() -> None:
    assert rendered().count("\r\n") == 1


def test_numbers_come_back_as_they_are_in_the_json_report() -> None:
    experiment = made("yes", "no", "yes", "yes", "yes", "no", "no")
    (row,) = rows(result(experiment))
    whole = experiment.to_json()
    for name in ("agreement", "agreement_lower", "new_output_chance", "entropy", "runs", "seed", "attempt"):
        assert json.loads(row[name]) == whole[name]
