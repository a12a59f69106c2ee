"""The published JSON Schema of reports says what the code does."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import MISSING, fields, is_dataclass, replace
from typing import Any, get_args, get_type_hints

import pytest
from jsonschema import Draft202012Validator
from reports import SCHEMA, valid
from test_results import RESULT

from pytest_llm_determinism.results import Report, report
from pytest_llm_determinism.settings import TABLE
from pytest_llm_determinism.verdict import VERDICTS


def dataclasses_in(hint: Any) -> Iterator[type]:
    if isinstance(hint, type) and is_dataclass(hint):
        yield hint
    for part in get_args(hint):
        yield from dataclasses_in(part)


def reached(kind: type, known: dict[str, type]) -> dict[str, type]:
    """All dataclasses that a report is made of, by name."""
    if kind.__name__ not in known:
        known[kind.__name__] = kind
        for hint in get_type_hints(kind).values():
            for inner in dataclasses_in(hint):
                reached(inner, known)
    return known


RECORDS = reached(Report, {})


def described(name: str) -> dict[str, Any]:
    found: dict[str, Any] = SCHEMA if name == "Report" else SCHEMA["$defs"][name]
    return found


def test_it_is_a_schema():
    Draft202012Validator.check_schema(SCHEMA)


def test_it_describes_exactly_the_records_there_are():
    # A setting is no record: `Settings.to_json` makes it.
    assert SCHEMA["$defs"].keys() - {"Setting"} == RECORDS.keys() - {"Report"}


@pytest.mark.parametrize("name", RECORDS)
def test_it_names_exactly_the_fields_of_each_record(name):
    assert list(described(name)["properties"]) == [part.name for part in fields(RECORDS[name])]


@pytest.mark.parametrize("name", RECORDS)
def test_it_requires_what_cannot_be_read_without(name):
    needed = [part.name for part in fields(RECORDS[name]) if part.default is MISSING]
    assert described(name).get("required", []) == needed


def objects(schema: Any) -> Iterator[dict[str, Any]]:
    """The schema and all those within it."""
    yield schema
    for inner in (*schema.get("properties", {}).values(), *schema.get("$defs", {}).values()):
        yield from objects(inner)


def test_every_field_has_a_description_and_more_fields_are_allowed():
    for schema in objects(SCHEMA):
        assert schema["description"].endswith(".")
        assert schema.get("additionalProperties", True) is not False


def test_it_knows_all_verdicts():
    assert sorted(SCHEMA["$defs"]["TestResult"]["properties"]["verdict"]["enum"]) == sorted(VERDICTS)


def test_a_report_is_as_it_says():
    whole = json.loads(json.dumps(report([RESULT, replace(RESULT, nodeid="b", experiments=())], {"pytest": "9"})))
    valid({**whole, "more": 1})
    assert whole["tests"][0]["settings"].keys() == TABLE.keys()


def test_a_report_that_is_not_is_told_where():
    whole = json.loads(json.dumps(report([RESULT], {})))
    whole["tests"][0]["experiments"][1]["groups"][0]["count"] = "x"
    with pytest.raises(AssertionError, match=r"\$\.tests\[0\]\.experiments\[1\]\.groups\[0\]\.count: 'x' is not"):
        valid(whole)
