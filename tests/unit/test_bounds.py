"""The versions that CI tests as the lowest are the lower bounds that are declared."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

ROOT = Path(__file__).parents[2]


def test_the_lowest_versions_tested_are_those_declared() -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]
    declared = [*project["dependencies"], *project["optional-dependencies"]["reference"]]
    declared += (ROOT / "tests" / "requirements.txt").read_text().splitlines()
    bounds = dict(line.split(">=") for line in declared if ">=" in line)
    tested = dict(re.findall(r"^([\w-]+)==(\S+)$", (ROOT / ".ci" / "lowest.txt").read_text(), re.MULTILINE))

    def numbers(version: str) -> list[int]:
        return [int(part) for part in version.split(".")] + [0] * (3 - version.count(".") - 1)

    assert {name: numbers(version) for name, version in tested.items()} == {
        name: numbers(bounds[name]) for name in tested
    }
    assert tested.keys() >= {re.split(">=", line)[0] for line in project["dependencies"]}
