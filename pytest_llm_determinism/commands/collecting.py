"""A plugin for the pytest of ``llm-determinism plan TESTS``: tells which tests would be gated, and by what settings."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

import pytest

from pytest_llm_determinism.plugin import SESSION, read_settings

TOLD = "LLM_DETERMINISM_PLAN"
"""The environment variable that names the file to write."""


def pytest_collection_finish(session: pytest.Session) -> None:
    Path(os.environ[TOLD]).write_text(json.dumps(_told(session)), encoding="utf-8")


def _told(session: pytest.Session) -> dict[str, Any]:
    """``tests`` with node id and settings, how many tests of other kinds there are, and what is ``wrong``."""
    from pytest_llm_determinism.gate import nodeid
    from pytest_llm_determinism.settings import SettingError

    told: dict[str, Any] = {"tests": [], "skipped": 0, "ungated": 0, "unmarked": 0, "with_llm": 0, "wrong": []}
    if SESSION not in session.config.stash:
        told["wrong"].append(
            "the plugin is not loaded: it is switched off by -p no:llm_determinism, or by"
            " PYTEST_DISABLE_PLUGIN_AUTOLOAD without -p pytest_llm_determinism.plugin"
        )
        return told
    for item in session.items:
        try:
            settings = read_settings(item)
        except SettingError as error:
            told["wrong"].append(f"{item.nodeid}: {error}")
            continue
        if settings is None:
            told["unmarked"] += 1
            told["with_llm"] += "llm" in getattr(item, "fixturenames", ())
        elif item.get_closest_marker("skip") is not None:
            told["skipped"] += 1
        elif not settings.gate:
            told["ungated"] += 1
        else:
            values = {name: value["value"] for name, value in settings.to_json().items()}
            told["tests"].append({"nodeid": nodeid(item), "settings": values})
    return told
