"""A real session fills the store, and `llm-determinism cache` tells of it and carries it to another project."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

from conftest import Project
from scripted import Reply

APP = """
import os
import httpx2
client = httpx2.Client(headers={"Authorization": "Bearer sk-very-secret"})
def ask(prompt, model="m"):
    body = {"model": model, "messages": [{"role": "user", "content": prompt}], "api_key": "body-secret"}
    reply = client.post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json=body)
    return reply.raise_for_status().json()["choices"][0]["message"]["content"]
"""

TESTS = """
import pytest
from app import ask

@pytest.mark.deterministic(runs=4, attempts=2)
@pytest.mark.parametrize("name", ["one", "two"])
def test_marked(name):
    ask("my key is sk-very-secret")

@pytest.mark.deterministic(runs=3, load="solo", max_unique=9)
def test_that_varies(request):
    ask("vary", model="n")

def test_by_hand(determinism):
    determinism.repeat(ask, "by hand", runs=2)

def test_not_marked(llm):
    llm("not marked", model="m")
"""


def cache(project: Project, *arguments: str, code: int = 0) -> str:
    command = [sys.executable, "-m", "pytest_llm_determinism.cli", "cache", *arguments]
    done = subprocess.run(command, cwd=project.path, capture_output=True, text=True, check=False)
    assert (done.returncode, done.stderr) == (code, "")
    return done.stdout


def listed(project: Project, *arguments: str) -> list[dict[str, Any]]:
    entries = json.loads(cache(project, "ls", "--json", *arguments))
    return sorted(
        (
            {
                "model": entry["model"],
                "tests": entry["tests"],
                "runs": {(runs["load"], runs["attempt"]): runs["runs"] for runs in entry["runs"]},
            }
            for entry in entries
        ),
        key=lambda entry: entry["tests"],
    )


def test_a_session_fills_it_and_another_project_replays_what_was_exported(project: Project, server) -> None:
    model = server(lambda call: Reply(f"{call.number if call.prompt == 'vary' else 'Yes.'}"))
    project.write(TESTS, app=APP)
    first = project.report("-p", "no:randomly", url=model.url)
    assert first["exit"] == 0

    everything = listed(project)
    assert everything == [
        {"model": "m", "tests": ["test_it.py::test_by_hand"], "runs": {("burst", 0): 2}},
        {"model": "m", "tests": ["test_it.py::test_marked[one]"], "runs": {("burst", 0): 4, ("burst", 1): 4}},
        {"model": "m", "tests": ["test_it.py::test_not_marked"], "runs": {("burst", 0): 1}},
        {"model": "n", "tests": ["test_it.py::test_that_varies"], "runs": {("solo", 0): 3}},
    ]
    assert listed(project, "--test", "test_it.py::test_marked") == everything[1:2]
    (varied,) = json.loads(cache(project, "ls", "--json", "--model", "n"))
    assert "under solo: 3 unique of 3 runs\n  they part at the first word\n" in cache(
        project, "show", varied["request"][:8]
    )
    assert cache(project, "verify").endswith("; what was asked is kept of 4 requests\nnothing is wrong\n")
    for path in (project.path / ".pytest_llm_determinism").rglob("*"):
        assert b"secret" not in path.read_bytes().replace(b"[secret]", b"")

    cache(project, "export", "samples.gz")
    elsewhere = project.path / "elsewhere"
    cache(project, "import", "samples.gz", "--cache-dir", "elsewhere")
    calls = len(model.calls)
    again = project.report("--determinism-cache-dir=elsewhere", "--determinism-cache=replay", url=model.url)

    assert len(model.calls) == calls
    assert again["exit"] == 0
    assert verdicts(again) == verdicts(first)
    assert listed(project, "--cache-dir", "elsewhere") == everything
    assert (elsewhere / ".gitignore").exists()

    # What was cleared is asked again, and nothing else.
    cache(project, "clear", "--test", "test_it.py::test_that_varies")
    project.report(url=model.url)
    assert [call.prompt for call in model.calls[calls:]] == ["vary"] * 3


def verdicts(report: dict[str, Any]) -> dict[str, Any]:
    """What tests came to, without when and how long."""
    return {
        name: (test["verdict"], test["unique"], [found["groups"] for found in test["experiments"]])
        for name, test in report["tests"].items()
    }


def test_a_store_under_replay_learns_nothing_new(project: Project, server) -> None:
    model = server("Yes.")
    project.write(TESTS, app=APP)
    project.report("-k", "one", url=model.url)
    before = {path: path.read_bytes() for path in Path(project.path, ".pytest_llm_determinism").iterdir()}
    project.report("-k", "marked and not not", "--determinism-cache=replay", url=model.url)
    assert {path: path.read_bytes() for path in before} == before
