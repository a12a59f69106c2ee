"""The gate from end to end: pass, fail, and the whole text of both."""

from __future__ import annotations

import re

from conftest import ASK, Project

FLIP = """
import pytest
from app import ask

@pytest.mark.deterministic(runs=10)
def test_flip():
    assert ask("capital?")
"""


def test_a_stable_model_passes_and_a_rerun_costs_nothing(project: Project, server) -> None:
    model = server("Paris.")
    project.write(FLIP, app=ASK)

    first = project.report(url=model.url)
    again = project.report(url=model.url)

    assert (first["exit"], again["exit"], len(model.calls)) == (0, 0, 10)
    assert first["tests"]["test_flip"]["experiments"][0]["calls"] == {"live": 10, "cached": 0, "oldest_sample": None}
    assert again["tests"]["test_flip"]["experiments"][0]["calls"]["cached"] == 10
    again["result"].stdout.fnmatch_lines(
        ["*10 answers from the store (oldest * second*): a replay is no new evidence*"]
    )


def test_an_unstable_model_fails_with_groups_fork_and_setting(project: Project, server) -> None:
    answers = {0: "Paris, of course.", 4: "Paris, of course.", 7: "Lyon."}
    model = server(lambda call: answers.get(call.number, "Paris is the capital."))
    project.write(FLIP, app=ASK)

    # Under solo the n-th call is the n-th run.
    result = project.pytest("--determinism-load=solo", url=model.url)

    assert result.ret == 1
    text = result.stdout.str()
    failure = text[text.index("3 unique of 10") : text.index("====", text.index("3 unique of 10"))].rstrip("_ =\n")
    assert re.sub(r"seed \d+", "seed N", failure) == (
        "3 unique of 10 (7/2/1), max_unique=1\n"
        "\n"
        "under solo: 3 unique of 10 runs, another call agrees at least 34.5 % of the time, at 95 %\n"
        "  they part at the first word\n"
        "  ├─ 9 × “Paris”, then after 1 word:\n"
        "  │  ├─ 7 × “ is the capital.”  (runs 1, 2, 3, 5, 6, 8, 9)\n"
        "  │  └─ 2 × “, of course.”  (runs 0, 4)\n"
        "  └─ 1 × “Lyon.”  (run 7)\n"
        "  10 calls live; seed N\n"
        "\n"
        "verdict     nondeterministic\n"
        "decided by  max_unique=1 (default)\n"
        "try next    pin the model's version, ask the provider for batch-invariant serving, or gate on min_agreement"
    )
    result.stdout.fnmatch_lines(["FAILED test_it.py::test_flip - Nondeterministic: 3 unique of 10 (7/2/1)*"])
