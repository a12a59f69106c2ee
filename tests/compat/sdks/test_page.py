"""docs/compatibility.md says of each SDK what its test tries, and nothing of others."""

from __future__ import annotations

import importlib.util
import re
from pathlib import Path
from types import ModuleType

from sdks import GROUPS, SDKS, requirements

DOCS = Path(__file__).parents[3] / "docs"
HOW = ("", "async", "streamed", "async_streamed", "tools")


def maker() -> ModuleType:
    spec = importlib.util.spec_from_file_location("make_compatibility", DOCS / "make_compatibility.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


def test_the_page_has_rows_for_each_sdk_with_a_mark_for_each_way_that_is_tried() -> None:
    expected = {}
    for sdk in SDKS:
        apis = dict.fromkeys(way.partition("_")[0] for way in sdk.ways)
        expected[sdk.name] = [[(f"{api}_{how}" if how else api) in sdk.ways for how in HOW] for api in apis]

    table = (DOCS / "compatibility.md").read_text(encoding="utf-8").partition("\n## ")[0]
    found: dict[tuple[str, str], list[list[bool]]] = {}
    for row in re.findall(r"^\| (.*) \|$", table, re.MULTILINE)[1:]:
        name, version, _, *marks = (cell.strip() for cell in row.split("|"))
        found.setdefault((name, version), []).append([bool(mark) for mark in marks])

    assert {name for name, _ in found} == set(expected)
    for (name, version), rows in found.items():
        assert rows == expected[name], version


def test_the_page_is_made_of_what_was_found() -> None:
    def found(seam: str, route: str) -> dict[str, str]:
        return {"seam": seam, "route": route}

    newer = {
        "chat": found("httpx2", "/chat"),
        "chat_async_streamed": found("aiohttp", "/chat-stream"),
        "other_tools": found("httpx2", "/other"),
    }
    page = maker().document(
        [
            {"sdk": "b", "version": "1.10.0", "date": "2026-01-02", "ways": newer},
            {"sdk": "b", "version": "1.9.0", "date": "2026-01-03", "ways": {"chat": found("httpx", "/chat")}},
            {"sdk": "A", "version": "3", "date": "2026-01-01", "ways": {"chat": found("urllib3", "/v1/chat")}},
        ]
    )

    head, tail = maker().HEAD, maker().TAIL
    assert (
        page
        == head.format(date="2026-01-03")
        + (
            "| A | 3 | `/v1/chat` | urllib3 |  |  |  |  |\n"
            "| b | 1.9.0 | `/chat` | httpx |  |  |  |  |\n"
            "| b | 1.10.0 | `/chat`, `/chat-stream` | httpx2 |  |  | aiohttp |  |\n"
            "| b | 1.10.0 | `/other` |  |  |  |  | httpx2 |\n"
        )
        + tail
    )


def test_each_sdk_is_in_a_group_that_is_installed_for_its_test() -> None:
    assert {name for group in GROUPS for name in requirements(group)} == {sdk.name for sdk in SDKS}
