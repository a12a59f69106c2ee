"""What the tests share: a scripted server, and pytest run on a project written as text."""

from __future__ import annotations

import functools
import json
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

sys.path.insert(0, str(Path(__file__).parent))

from forks import Forks
from reports import check_written
from scripted import Script, ScriptedServer

pytest_plugins = ["pytester"]

# On GitHub the processes that tests start would write what they find into the summary of the step that runs the tests.
for _name in ("GITHUB_ACTIONS", "GITHUB_STEP_SUMMARY"):
    os.environ.pop(_name, None)

# hypothesis's plugin imports all of hypothesis in each of these processes, and none of their tests uses it.
QUIET = ("-p", "no:cacheprovider", "-p", "no:hypothesispytest")

LIMIT = 120
"""Seconds a session of such a project may last; half of it, and it says where its threads are."""


forks = functools.cache(Forks)


def pytest_unconfigure() -> None:
    if forks.cache_info().currsize:
        forks().close()


def _python() -> dict[str, str]:
    """What an interpreter reads as it starts."""
    return {name: value for name, value in os.environ.items() if name.startswith("PYTHON") and name != "PYTHONPATH"}


PYTHON = _python()


@pytest.fixture
def server() -> Iterator[Callable[..., ScriptedServer]]:
    """Start scripted servers: ``server("the answer")`` or ``server(script, latency=0.02)``; stopped with the test."""
    started: list[ScriptedServer] = []

    def start(script: Script | str, latency: float = 0.0) -> ScriptedServer:
        started.append(ScriptedServer((lambda call: script) if isinstance(script, str) else script, latency))
        return started[-1]

    yield start
    for running in started:
        running.close()


class Project:
    """A project with one test module, on which pytest runs in a process of its own.

    Attributes:
        fresh: whether that process also has an interpreter of its own, for tests of what is imported when.
    """

    def __init__(self, pytester: pytest.Pytester) -> None:
        self.pytester = pytester
        self.path = pytester.path
        self.fresh = False

    def write(self, test_module: str, **files: str) -> None:
        """Write ``test_it.py`` and other modules (``conftest=…``, ``app=…``)."""
        self.pytester.makepyfile(test_it=test_module, **files)

    def pytest(self, *arguments: str, url: str | None = None, key: str = "sk-test-secret") -> pytest.RunResult:
        """Run pytest with the endpoint in the environment, as the SDK's own users have it."""
        environment = {"OPENAI_API_KEY": key}
        if url is not None:
            environment["OPENAI_BASE_URL"] = url
        # On CI pytest does not cut its lines, and what is compared with them would depend on where the tests run.
        names = ("OPENAI_API_KEY", "OPENAI_BASE_URL", "CI", "BUILD_NUMBER")
        before = {name: os.environ.pop(name, None) for name in names}
        os.environ.update(environment)
        own = self.pytester.popen
        if hasattr(os, "fork") and not self.fresh and _python() == PYTHON:
            self.pytester.popen = forks().popen  # type: ignore[method-assign,assignment]
        try:
            result = self.pytester.runpytest_subprocess(
                *QUIET, "-o", f"faulthandler_timeout={LIMIT // 2}", *arguments, timeout=LIMIT
            )
        except pytest.Pytester.TimeoutExpired:
            print((self.path / "stderr").read_text())
            raise
        finally:
            self.pytester.popen = own  # type: ignore[method-assign]
            for name, value in before.items():
                if value is None:
                    os.environ.pop(name, None)
                else:
                    os.environ[name] = value
        check_written("--determinism-report", arguments, self.path)
        return result

    def report(self, *arguments: str, url: str | None = None) -> dict[str, Any]:
        """Run pytest and give the JSON report, as ``{"exit": …, "tests": {name: …}, "whole": …}``."""
        result = self.pytest("--determinism-report=report.json", *arguments, url=url)
        whole = json.loads((self.path / "report.json").read_text())
        tests = {test["nodeid"].partition("::")[2]: test for test in whole["tests"]}
        return {"exit": result.ret, "tests": tests, "whole": whole, "result": result}


@pytest.fixture
def project(pytester: pytest.Pytester) -> Project:
    return Project(pytester)


ASK = """
import openai
client = openai.OpenAI(max_retries=0)
def ask(prompt, **parameters):
    messages = [{"role": "user", "content": prompt}]
    reply = client.chat.completions.create(model="m", messages=messages, temperature=0, **parameters)
    return reply.choices[0].message.content
"""
"""An application that asks with the openai client, as module ``app``."""
