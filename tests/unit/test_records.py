"""Dataclasses from JSON, and what is wrong with JSON that is none."""

from __future__ import annotations

import datetime
import json
import math
import time
from dataclasses import dataclass, replace
from typing import Annotated, Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from test_results import RESULT, RICH

from pytest_llm_determinism import results
from pytest_llm_determinism.baseline import condensed
from pytest_llm_determinism.records import RecordError, check, decode, encode
from pytest_llm_determinism.report import csv_file, markdown, text
from pytest_llm_determinism.report.differences import differences
from pytest_llm_determinism.report.merging import merge
from pytest_llm_determinism.results import ReportError, TestResult, report


def _even(number: int) -> None:
    if number % 2:
        raise ValueError("an even number")


@dataclass(frozen=True)
class Leaf:
    name: str
    weight: float = 1.0


@dataclass(frozen=True)
class Tree:
    leaves: tuple[Leaf, ...]
    rings: tuple[int, ...] = ()
    names: tuple[str, ...] = ()
    older: Tree | None = None
    tags: dict[str, Leaf] | None = None
    even: Annotated[int, _even] = 0
    green: bool = True
    nothing: None = None
    anything: Any = None


TREE = Tree(
    (Leaf("a", 0.5), Leaf("b")),
    rings=(1, 2, 0),
    names=("x", "\ud800"),
    older=Tree((), anything={"a": [1, None]}),
    even=4,
    green=False,
)


def test_what_is_written_is_read_again():
    assert decode(Tree, json.loads(json.dumps(encode(TREE)))) == TREE


def test_fields_that_are_not_known_are_passed_over():
    assert decode(Tree, {"leaves": [{"name": "a", "colour": "red"}], "height": [3]}) == Tree((Leaf("a"),))


def test_what_has_a_default_may_be_missing():
    assert decode(Tree, {"leaves": []}) == Tree(())


def test_a_whole_number_is_a_number_too():
    weight = decode(Leaf, {"name": "a", "weight": 2}).weight
    assert (weight, type(weight)) == (2.0, float)


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ([], "$: an object is wanted, not a list"),
        (None, "$: an object is wanted, not null"),
        ({}, "$.leaves: is missing"),
        ({"leaves": {}}, "$.leaves: a list is wanted, not an object"),
        ({"leaves": [{"name": "a"}, {"name": 1}]}, "$.leaves[1].name: a text is wanted, not 1"),
        ({"leaves": [{"weight": 1}]}, "$.leaves[0].name: is missing"),
        ({"leaves": [{"name": "a", "weight": "x"}]}, '$.leaves[0].weight: a number is wanted, not "x"'),
        ({"leaves": [{"name": "a", "weight": True}]}, "$.leaves[0].weight: a number is wanted, not true"),
        ({"leaves": [{"name": "a", "weight": math.nan}]}, "$.leaves[0].weight: a finite number is wanted, not NaN"),
        (
            {"leaves": [{"name": "a", "weight": 10**400}]},
            f"$.leaves[0].weight: a finite number is wanted, not 1{'0' * 59}...",
        ),
        ({"leaves": [], "rings": [0, "x"]}, '$.rings[1]: a whole number is wanted, not "x"'),
        ({"leaves": [], "rings": [0, True]}, "$.rings[1]: a whole number is wanted, not true"),
        ({"leaves": [], "rings": [0, 1.0]}, "$.rings[1]: a whole number is wanted, not 1.0"),
        ({"leaves": [], "rings": [0, -1]}, "$.rings[1]: a whole number from 0 to 2**53 is wanted, not -1"),
        (
            {"leaves": [], "rings": [2**53]},
            "$.rings[0]: a whole number from 0 to 2**53 is wanted, not 9007199254740992",
        ),
        ({"leaves": [], "names": ["a", None]}, "$.names[1]: a text is wanted, not null"),
        ({"leaves": [], "older": {"leaves": 1}}, "$.older.leaves: a list is wanted, not 1"),
        ({"leaves": [], "even": 3}, "$.even: an even number is wanted, not 3"),
        ({"leaves": [], "green": 1}, "$.green: true or false is wanted, not 1"),
        ({"leaves": [], "nothing": 0}, "$.nothing: null is wanted, not 0"),
        ({"leaves": [], "tags": {"a": {"name": 1}}}, "$.tags.a.name: a text is wanted, not 1"),
        (
            {"leaves": [], "tags": {"\x1b[31m a": 1}},
            '$.tags["\\u001b[31m a"]: an object is wanted, not 1',
        ),
        (
            {"leaves": "\x1b[31m\u202e" + "long" * 100},
            '$.leaves: a list is wanted, not "\\u001b[31m\\u202elonglonglonglonglonglonglonglonglonglonglon...',
        ),
    ],
)
def test_what_is_wrong_is_told_with_its_place(data, message):
    with pytest.raises(RecordError) as raised:
        decode(Tree, data)
    assert str(raised.value) == message


def test_a_tree_that_is_too_deep_is_an_error():
    data: dict[str, Any] = {"leaves": []}
    for _ in range(100_000):
        data = {"leaves": [], "older": data}
    with pytest.raises(RecordError, match=r"^\$: is nested too deep$"):
        decode(Tree, data)


def test_an_annotation_without_a_json_form_is_an_error_of_the_program():
    @dataclass
    class Odd:
        sizes: set

    Odd.__annotations__ = {"sizes": set[int]}
    with pytest.raises(TypeError, match="no JSON form is known of set"):
        decode(Odd, {"sizes": []})


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"a": [1, {"b c": math.inf}]}, '$.a[1]["b c"]: a finite number is wanted, not Infinity'),
        (math.nan, "$: a finite number is wanted, not NaN"),
        ([[1, 2], [1, -math.inf]], "$[1][1]: a finite number is wanted, not -Infinity"),
    ],
)
def test_numbers_that_are_none_are_found_wherever_they_are(data, message):
    with pytest.raises(RecordError) as raised:
        check(data)
    assert str(raised.value) == message


def test_what_is_nested_deeper_than_a_report_ever_is_is_refused():
    def nested(levels: int) -> Any:
        return [nested(levels - 1)] if levels else "core"

    check(nested(100))
    with pytest.raises(RecordError, match="is nested deeper than 100 levels"):
        check(nested(101))


def test_reading_takes_hardly_any_time():
    """It happens for each test that reports to the controller; the bounds are ten times what it takes."""
    normal = json.loads(json.dumps(RESULT.to_json()))
    groups = (replace(RICH.groups[0], runs=tuple(range(100_000))),)
    large = json.loads(json.dumps(replace(RESULT, experiments=(replace(RICH, groups=groups),)).to_json()))

    def seconds(data: Any) -> float:
        times = []
        for _ in range(5):
            start = time.perf_counter()
            TestResult.from_json(data)
            times.append(time.perf_counter() - start)
        return min(times)

    assert seconds(normal) < 0.002
    assert seconds(large) < 0.1


# Report files


@pytest.fixture
def file(tmp_path):
    """Write a report file and read it: ``file(content)``."""

    def written(content: str | bytes):
        path = tmp_path / "report.json"
        path.write_bytes(content if isinstance(content, bytes) else content.encode())
        return results.read(path)

    return written


def made() -> dict[str, Any]:
    whole: dict[str, Any] = json.loads(json.dumps(report([RESULT, RESULT], {"endpoint": "http://localhost"})))
    return whole


def put(path: str, value: Any) -> str:
    """The text of a report with another value at a place: ``put("tests.0.verdict", "odd")``."""
    whole: Any = made()
    *steps, last = [int(step) if step.isdecimal() else step for step in path.split(".")]
    inner = whole
    for step in steps:
        inner = inner[step]
    inner[last] = value
    return json.dumps(whole)


def test_a_report_is_read_with_all_its_fields(file):
    whole = {**made(), "made by a hook": [1]}
    whole["tests"][0]["owner"] = "team"
    assert file(json.dumps(whole)) == whole


@pytest.mark.parametrize("encoding", ["utf-8-sig", "utf-16"])
def test_a_report_may_have_gone_through_a_shell_that_marks_its_encoding(file, encoding):
    assert file(put("environment.endpoint", "ü").encode(encoding))["environment"]["endpoint"] == "ü"


@pytest.mark.parametrize(
    ("content", "message"),
    [
        pytest.param("", "is no report, since it is not JSON: Expecting value: line 1 column 1 (char 0)", id="empty"),
        pytest.param(b"\xff\xfe\xff", "is no report, since it is not JSON: 'utf-16-le'", id="bytes"),
        pytest.param("[" * 100_000, "is no report: its JSON is nested too deep", id="nested"),
        pytest.param("9" * 5000, "is no report, since it is not JSON: Exceeds the limit", id="digits"),
        pytest.param("[]", "is no report: it has no schema_version; name a file that", id="list"),
        pytest.param("{}", "is no report: it has no schema_version; name a file that", id="other"),
        pytest.param(
            put("schema_version", 2),
            "has schema_version 2, and this version of pytest-llm-determinism reads 1; read it with the version that"
            " wrote it, or make the report again with this one",
            id="newer",
        ),
        pytest.param(
            put("schema_version", "1"), 'is damaged: $.schema_version: a whole number is wanted, not "1"', id="text"
        ),
        pytest.param(put("tests.1.unique", "x"), 'is damaged: $.tests[1].unique: a whole number is wanted, not "x"'),
        pytest.param(
            put("tests.1.verdict", "\x1b[31m"),
            "is damaged: $.tests[1].verdict: one of passed, nondeterministic, inconclusive, drifted is wanted, not"
            ' "\\u001b[31m"',
        ),
        pytest.param(
            put("created_at", "yesterday"),
            'is damaged: $.created_at: a time in ISO 8601 with its zone is wanted, not "yesterday"',
        ),
        pytest.param(
            put("created_at", "2026-01-01T00:00:00"),
            'is damaged: $.created_at: a time in ISO 8601 with its zone is wanted, not "2026-01-01T00:00:00"',
        ),
        pytest.param(
            put("tests.0.settings.runs", 3),
            "is damaged: $.tests[0].settings.runs: an object with value and source is wanted",
        ),
        pytest.param(
            put("tests.0.settings.max_unique.value", 0),
            "is damaged: $.tests[0].settings.max_unique.value: a whole number from 1 to 2**53 is wanted",
        ),
        pytest.param(
            put("tests.0.settings.override.value", [{}]),
            "is damaged: $.tests[0].settings.override.value: null or a list of texts is wanted",
        ),
        pytest.param(put("tests.0.settings", {}), "is damaged: $.tests[0].settings.max_unique: is missing"),
        pytest.param(put("tests.0.experiments", []), "is damaged: $.tests[0].counts: there are no experiments"),
        pytest.param(put("tests.0.shard", 0), "is damaged: $.tests[0].shard: there are 0 shards"),
        pytest.param(
            put("tests.0.experiments.1.groups.1.count", 0),
            "is damaged: $.tests[0].experiments[1].groups[1].count: a group has runs",
        ),
        pytest.param(
            put("tests.0.experiments.1.divergence.branches.0.then.branches", []),
            "is damaged: $.tests[0].experiments[1].divergence.branches[0].then.branches: a fork has branches",
        ),
        pytest.param(
            put("tests.0.experiments.1.divergence.branches.1.count", 0),
            "is damaged: $.tests[0].experiments[1].divergence.branches[1].count: a branch has runs",
        ),
        pytest.param(
            put("tests.0.experiments.1.divergence.branches.1.groups", [2]),
            "is damaged: $.tests[0].experiments[1].divergence.branches[1].groups: there are 2 groups",
        ),
        pytest.param(put("odd", [math.nan]), "is damaged: $.odd[0]: a finite number is wanted, not NaN", id="nan"),
    ],
)
def test_a_file_that_is_no_report_is_refused_by_name(file, tmp_path, content, message):
    with pytest.raises(ReportError) as raised:
        file(content)
    assert str(raised.value).startswith(f"{tmp_path / 'report.json'} {message}")


def test_a_file_that_is_not_there_is_refused_by_name(tmp_path):
    for path, why in ((tmp_path / "none.json", "No such file or directory"), (tmp_path, "Is a directory")):
        with pytest.raises(ReportError) as raised:
            results.read(path)
        assert str(raised.value) == f"{path} cannot be read: {why}"


# Whoever uses a report that was read need not fear what is in it


def places(value: Any, path: tuple[Any, ...] = ()) -> Any:
    yield path
    inner = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for name, part in inner:
        yield from places(part, (*path, name))


GOOD = json.loads(json.dumps(report([replace(RESULT, verdict="passed", experiments=(RICH,))], {})))
ODD = (None, True, -1, 0, 2**52, 10**30, 1.5, "", "\x1b[31m\ud800", [], {}, ["x"], [5])


@settings(deadline=None, max_examples=300)
@given(st.sampled_from([place for place in places(GOOD) if place]), st.sampled_from(ODD))
def test_a_damaged_report_is_refused_or_can_be_used(tmp_path_factory, place, odd):
    whole = json.loads(json.dumps(GOOD))
    *steps, last = place
    inner = whole
    for step in steps:
        inner = inner[step]
    inner[last] = odd
    path = tmp_path_factory.mktemp("damaged") / "report.json"
    path.write_text(json.dumps(whole))
    try:
        read = results.read(path)
    except ReportError:
        return
    now = datetime.datetime.now(datetime.UTC)
    tests = [TestResult.from_json(test) for test in read["tests"]]
    for line in (*text.table(tests, now), *text.worth(tests), *(text.explain(test, now) for test in tests)):
        assert line.replace("\n", "").isprintable()
    for module in (markdown, csv_file):
        module.render(read).encode()
    merge([("good", GOOD), ("odd", read)])
    differences(GOOD, read)
    condensed(read)
