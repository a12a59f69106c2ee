"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

import pytest

from pytest_llm_determinism.analysis.statistics import (
    agreement_lower,
    pass_probability,
    percent,
    runs_needed,
    runs_to_catch,
)
from pytest_llm_determinism.cli import main

DOCS = Path(__file__).parents[2] / "docs"


def test_the_settings_page_is_made_from_the_table() -> None:
    spec = importlib.util.spec_from_file_location("make_settings", DOCS / "make_settings.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)

    assert (DOCS / "settings.md").read_text(encoding="utf-8") == module.document()


def test_the_table_of_bounds_is_right() -> None:
    page = (DOCS / "what-a-pass-is-worth.md").read_text(encoding="utf-8")
    rows = re.findall(r"^\| (\d+) \| ([\d.]+) % \| ([\d.]+) % \|$", page, re.MULTILINE)

    assert [(int(runs), low, high) for runs, low, high in rows] == [
        (runs, f"{100 * agreement_lower([runs], 0.95):.1f}", f"{100 * agreement_lower([runs], 0.99):.1f}")
        for runs in (2, 5, 10, 30, 100, 300)
    ]
    assert runs_needed(0.99, 0.95) == 300


def test_the_plans_shown_are_what_the_command_says(capsys: pytest.CaptureFixture[str]) -> None:
    page = (DOCS / "what-a-pass-is-worth.md").read_text(encoding="utf-8")
    shown = re.findall(r"^```console\n\$ llm-determinism (plan.*)\n((?:.*\n)*?)```$", page, re.MULTILINE)

    assert len(shown) == 2
    for command, output in shown:
        assert main(command.split()) == 0
        assert capsys.readouterr().out == output


def test_the_figures_in_the_text_are_right() -> None:
    page = " ".join((DOCS / "what-a-pass-is-worth.md").read_text(encoding="utf-8").split())
    stopped = agreement_lower([6, 1], 0.95, 30)

    for text in (
        f"at least {percent(agreement_lower([30]))} of the time, at 95 %",
        f'"at least 99 % at 95 % confidence", {runs_needed(0.99, 0.95)} runs must agree',
        f"passes a gate of 30 runs {percent(pass_probability(0.01, 30), 0)} of the time (0.99³⁰)",
        f"to catch it 95 times of 100 takes {runs_to_catch(0.01)} runs",
        f"Catching a flip rate of 1 % takes {runs_to_catch(0.01)} runs, since of {runs_to_catch(0.01)} at least one",
        f"Showing an agreement of 99 % takes {runs_needed(0.99, 0.95)}, since",
        f"after 7 of 30 runs, 6 of them alike, the bound is that of 5 agreeing of 29, or {percent(stopped)}.",
    ):
        assert text in page


def test_links_between_pages_lead_somewhere() -> None:
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
