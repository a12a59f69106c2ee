"""What GitHub Actions shows of a session: the summary of the step, and annotations beside the tests' lines.

https://docs.github.com/en/actions/reference/workflows-and-actions/workflow-commands
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from pytest_llm_determinism.report import markdown
from pytest_llm_determinism.report.text import printable
from pytest_llm_determinism.results import TestResult
from pytest_llm_determinism.verdict import INCONCLUSIVE, PASSED

LONGEST_TITLE = 255
LONGEST_MESSAGE = 4000


def append_summary(path: str, report: dict[str, Any]) -> list[str]:
    """Add the report in Markdown to the file that GitHub shows as the summary of the step.

    Returns:
        Notes for the terminal: none, or why nothing was added. Other steps and tools write to the file, too, and what
        a session found does not depend on it.
    """
    try:
        with open(path, "a", encoding="utf-8") as file:
            file.write("\n" + markdown.render(report))
    except OSError as error:
        return [f"the summary of the GitHub step was not written (GITHUB_STEP_SUMMARY={printable(path)}): {error}"]
    return []


def annotate(results: Iterable[TestResult], places: Mapping[str, tuple[str, int | None]], root: Path) -> list[str]:
    """The annotations, a line each: of those results that did not pass and whose place is known, the worst first.

    GitHub shows ten errors and ten warnings of a step. What is inconclusive is a warning, so that a server that was
    down for many tests does not hide the one that is nondeterministic.

    Args:
        places: by node id the file, relative to `root`, and the line from 0.
        root: pytest's rootdir; annotations name files from the root of the repository.
    """
    lines = []
    for result in markdown.worst_first(results):
        if result.verdict == PASSED or result.nodeid not in places:
            continue
        file, line = places[result.nodeid]
        properties = {"file": _in_repository(root / file)}
        if line is not None:
            properties["line"] = str(line + 1)
        properties["title"] = _cut(printable(f"{result.verdict}: {result.nodeid}"), LONGEST_TITLE)
        level = "warning" if result.verdict == INCONCLUSIVE else "error"
        told = ",".join(f"{name}={_escaped(value, ':,')}" for name, value in properties.items())
        lines.append(f"::{level} {told}::{_escaped(_message(result))}")
    return lines


def _in_repository(file: Path) -> str:
    """The file from the root of the repository, if it is in it."""
    workspace = os.environ.get("GITHUB_WORKSPACE")
    return (file.relative_to(workspace) if workspace and file.is_relative_to(workspace) else file).as_posix()


def _message(result: TestResult) -> str:
    lines = [" ".join(result.reason.split())]
    findings = dict.fromkeys(finding for experiment in result.experiments for finding in experiment.findings)
    lines.extend(f"{finding.code}: {finding.message}" for finding in findings)
    if result.decided_by:
        lines.append(f"decided by {result.decided_by}")
    if result.advice:
        lines.append(f"try next: {result.advice}")
    return _cut("\n".join(map(printable, lines)), LONGEST_MESSAGE)


def _cut(text: str, most: int) -> str:
    return text if len(text) <= most else text[: most - 1] + "…"


def _escaped(text: str, more: str = "") -> str:
    """A text as the value of a command; in a property, `more` must not be there either."""
    return "".join(f"%{ord(character):02X}" if character in f"%\r\n{more}" else character for character in text)
