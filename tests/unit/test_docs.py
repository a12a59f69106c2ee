"""The documentation says what the code does."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path

from pytest_llm_determinism.analysis.statistics import agreement_lower, runs_needed

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


def test_links_between_pages_lead_somewhere() -> None:
    for page in (*DOCS.glob("*.md"), DOCS.parent / "README.md", DOCS.parent / "CONTRIBUTING.md"):
        for target in re.findall(r"\]\((?!https?:)([^)#]+)", page.read_text(encoding="utf-8")):
            assert (page.parent / target).exists(), f"{page.name} links to {target}"
