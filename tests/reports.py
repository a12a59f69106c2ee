"""JSON reports that tests make, held against the published schema."""

from __future__ import annotations

import json
from collections.abc import Sequence
from importlib.resources import files
from pathlib import Path
from typing import Any

from jsonschema import Draft202012Validator

SCHEMA = json.loads(files("pytest_llm_determinism.report").joinpath("schema.json").read_text("utf-8"))
_VALIDATOR = Draft202012Validator(SCHEMA)


def valid(report: Any) -> Any:
    """The report, which is as the schema says."""
    for error in _VALIDATOR.iter_errors(report):
        raise AssertionError(f"{error.json_path}: {error.message}")
    return report


def check_written(flag: str, arguments: Sequence[str], folder: Path) -> None:
    """See that the JSON reports which these arguments ask for, if they were written, are as the schema says."""
    for argument in arguments:
        name, _, file = argument.partition("=")
        if name == flag and file.endswith(".json") and (folder / file).is_file():
            valid(json.loads((folder / file).read_text()))
