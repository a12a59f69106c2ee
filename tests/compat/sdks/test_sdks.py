"""Each SDK, in each way that it offers: the application asks with it, and the test of it has the marker alone."""

from __future__ import annotations

import datetime
import importlib.metadata
import json
import os
import re
import shutil
import threading
from collections import Counter
from pathlib import Path
from typing import Any

import pytest
from conftest import Project
from packaging.requirements import Requirement
from providers import ARGUMENTS, TOOL, Said, answered
from scripted import Call, Reply
from sdks import SDKS, Sdk, requirements

HERE = Path(__file__).parent
GROUP = os.environ.get("SDKS_GROUP")
"""One of `GROUPS`, if the environment is one of its own: its SDKs must be there, and are the only ones to be tried."""

TRIED = Path(os.environ["SDKS_TRIED"]).absolute() if "SDKS_TRIED" in os.environ else None
"""A directory for what is found, of which docs/compatibility.md is made."""

RUNS = 4
"""Run 0 asks alone, run 1 asks and fetches for runs 2 and 3."""

RAIN, SUN = "Rain in Oslo — «7 °C».", "Sun in Oslo — «21 °C»."
SCRIPTS = ("stable", "varied", "broken")


_MODEL = re.compile(r"anthropic\.m-1(:|%3A)0|(?<=/models/)m(?=:)")
"""The model in a path."""


class Model:
    """Answers what a prompt such as ``way=chat script=stable …`` wants.

    Attributes:
        asked: how often, by way and script.
        routes: the path at which a way asked.
        streamed: the ways that asked for a stream.
        strays: requests without such a prompt.
    """

    def __init__(self) -> None:
        self.asked: Counter[str] = Counter()
        self.routes: dict[str, str] = {}
        self.streamed: set[str] = set()
        self.strays: set[str] = set()
        self._concluded: Counter[str] = Counter()
        self._lock = threading.Lock()

    def __call__(self, call: Call) -> Reply:
        body = json.dumps(call.body)
        found = re.search(r"way=(\w+) script=(\w+)", body)
        if found is None:
            self.strays.add(call.path)
            return answered(call, Said("not asked"))
        way, script = found.groups()
        test = f"{way}-{script}"
        concluding = not way.endswith("_tools") or "7 degrees and rain" in body
        with self._lock:
            self.asked[test] += 1
            self.routes[way] = _MODEL.sub("{model}", call.path.partition("?")[0])
            self._concluded[test] += concluding
            other = script == "varied" and self._concluded[test] == 3
        reply = answered(call, self._said(body, concluding, SUN if other else RAIN))
        if reply.content_type != "application/json":
            self.streamed.add(way)
        if script == "broken":
            reply.status = 500  # with a body that would be an answer
        return reply

    @staticmethod
    def _said(body: str, concluding: bool, text: str) -> Said:
        if not concluding:
            return Said(tool=(TOOL, ARGUMENTS))
        if '"name": "Answer"' in body:  # instructor wants its answer in the arguments of a tool
            return Said(tool=("Answer", {"text": text}))
        if "[[ ## answer ## ]]" in body:  # dspy's form
            return Said(f"[[ ## answer ## ]]\n{text}\n\n[[ ## completed ## ]]")
        return Said(text)


TESTS = """
import app, pytest

SCRIPTS = pytest.mark.parametrize("script", {scripts})

def prompt(way, script):
    return f"way={{way}} script={{script}} How is the weather in Oslo?"

@pytest.mark.deterministic(runs={runs})
@SCRIPTS
@pytest.mark.parametrize("way", {ways})
def test_sync(way, script, told):
    answer = getattr(app, way)(prompt(way, script))
    told(answer)
    assert answer in {answers}

@pytest.mark.asyncio(loop_scope="module")
@pytest.mark.deterministic(runs={runs})
@SCRIPTS
@pytest.mark.parametrize("way", {async_ways})
async def test_async(way, script, told):
    answer = await getattr(app, way)(prompt(way, script))
    told(answer)
    assert answer in {answers}
"""

NOTES = """
import collections, json, os, re, sys
import pytest
from pytest_llm_determinism.sampling import Sampler

notes = {"told": collections.defaultdict(list), "outcomes": {}, "seams": {}}

def current():
    return re.search(r"\\[(.*)\\]", os.environ["PYTEST_CURRENT_TEST"])[1]

@pytest.fixture
def told(request):
    "Notes what the application was told in each run."
    return notes["told"][current()].append

def pytest_runtest_logreport(report):
    if report.when == "call":
        notes["outcomes"][re.search(r"\\[(.*)\\]", report.nodeid)[1]] = report.outcome

ask = Sampler.ask

def noted(sampler, *given, **more):
    frame = sys._getframe(1)
    while not frame.f_globals["__name__"].endswith("_seam"):
        frame = frame.f_back
    seam = frame.f_globals["__name__"].rpartition(".")[2].removesuffix("_seam")
    if seam == "httpx":
        seam = type(frame.f_locals["request"]).__module__.partition(".")[0]
    notes["seams"][current().partition("-")[0]] = seam
    return ask(sampler, *given, **more)

Sampler.ask = noted

def pytest_unconfigure():
    with open("notes.json", "w") as file:
        json.dump(notes, file)
"""
"""Notes what the plugin does not report: what the application was told, and at which seam it was observed."""


def version(name: str) -> str:
    """The installed version of an SDK.

    Where it is not installed, or not with its extras, the test is skipped, but fails if it is in the group.
    """
    if GROUP and name not in requirements(GROUP):
        pytest.skip(f"{name} is not in the group {GROUP}")
    wanted = Requirement(name)
    try:
        for needed in map(Requirement, importlib.metadata.requires(wanted.name) or ()):
            if needed.marker and any(needed.marker.evaluate({"extra": extra}) for extra in wanted.extras):
                importlib.metadata.version(needed.name)
        return importlib.metadata.version(wanted.name)
    except importlib.metadata.PackageNotFoundError as missing:
        if GROUP:
            pytest.fail(f"{name} is in the group {GROUP}, and {missing.name} is not installed")
        pytest.skip(f"{missing.name} is not installed")


def shown(found: dict[str, Any], told: dict[str, list[str]]) -> dict[str, Any]:
    """Of each test what is the same however its answers came; outcomes by test."""
    return {
        name: {
            "verdict": test["verdict"],
            "unique": test["unique"],
            "groups": [group["count"] for group in test["experiments"][0]["groups"]],
            "prompt varies": any(f["code"] == "prompt-varies" for f in test["experiments"][0]["findings"]),
            "told": sorted(told.get(name, [])),
        }
        for name, test in found.items()
    }


def expected(sdk: Sdk) -> dict[str, Any]:
    scripts = {
        "stable": {"verdict": "passed", "unique": 1, "groups": [4], "told": [RAIN] * 4},
        "varied": {"verdict": "nondeterministic", "unique": 2, "groups": [3, 1], "told": [RAIN] * 3 + [SUN]},
        "broken": {"verdict": "inconclusive", "unique": 0, "groups": [], "told": []},
    }
    return {
        f"{way}-{script}": {**facts, "prompt varies": False} for way in sdk.ways for script, facts in scripts.items()
    }


def arrange(project: Project, model: Any, application: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put an application into the project, which asks `model`, a scripted server."""
    monkeypatch.setenv("MODEL_ORIGIN", model.url.removesuffix("/v1"))
    # A plugin of LangChain's takes longer to import than its tests take, and so does to rewrite its asserts.
    monkeypatch.setenv("PYTEST_ADDOPTS", "-p no:langsmith_plugin --assert=plain --tb=short")
    project.pytester.makeini("[pytest]\nasyncio_default_fixture_loop_scope = function")
    for source, name in ((application, "app"), ("weather", "weather")):
        shutil.copy(HERE / "applications" / f"{source}.py", project.path / f"{name}.py")


@pytest.mark.parametrize("sdk", SDKS, ids=lambda sdk: sdk.name)
def test_sdk(sdk: Sdk, project: Project, server: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    tried = version(sdk.name)
    model = Model()
    running = server(model)
    arrange(project, running, sdk.application, monkeypatch)
    project.write(
        TESTS.format(
            runs=RUNS,
            scripts=SCRIPTS,
            answers=(RAIN, SUN),
            ways=[way for way in sdk.ways if "async" not in way.split("_")],
            async_ways=[way for way in sdk.ways if "async" in way.split("_")],
        ),
        conftest=NOTES,
    )
    outcomes = {
        f"{way}-{script}": "passed" if script == "stable" else "failed" for way in sdk.ways for script in SCRIPTS
    }

    def run() -> tuple[dict[str, Any], Counter[str]]:
        """The notes of a run that went as expected, and how often it asked for answers."""
        model.asked.clear()
        found = project.report(url=running.url)
        notes: dict[str, Any] = json.loads((project.path / "notes.json").read_text())
        tests = {name.partition("[")[2].removesuffix("]"): test for name, test in found["tests"].items()}
        assert shown(tests, notes["told"]) == expected(sdk)
        assert notes["outcomes"] == outcomes
        assert set(notes["seams"]) == set(sdk.ways)
        return notes, Counter({name: count for name, count in model.asked.items() if not name.endswith("-broken")})

    live, asked = run()
    steps = {way: 2 if way.endswith("_tools") else 1 for way in sdk.ways}
    assert asked == {f"{way}-{script}": steps[way] * RUNS for way in sdk.ways for script in ("stable", "varied")}
    replayed, asked_again = run()
    assert asked_again == {}
    assert replayed["told"] == live["told"]
    assert model.streamed == {way for way in sdk.ways if way.endswith("_streamed")}
    assert model.strays == set()
    keep(sdk, tried, {way: {"seam": live["seams"][way], "route": model.routes[way]} for way in sdk.ways})


def keep(sdk: Sdk, tried: str, ways: dict[str, Any]) -> None:
    if TRIED:
        TRIED.mkdir(parents=True, exist_ok=True)
        result = {"sdk": sdk.name, "version": tried, "date": datetime.date.today().isoformat(), "ways": ways}
        (TRIED / f"{sdk.name}-{tried}.json").write_text(json.dumps(result, indent=1), encoding="utf-8")


def test_dspys_own_client_is_not_observed_and_its_test_says_so(
    project: Project, server: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Its default engine asks over sockets of its own. Recorded, its answers are gated as any others are."""
    version("dspy")
    model = Model()
    running = server(model)
    arrange(project, running, "with_dspy_alone", monkeypatch)
    project.write(
        f"""
        import app, pytest

        @pytest.mark.deterministic(runs={RUNS})
        def test_silent():
            assert app.chat("way=chat script=stable") == {RAIN!r}

        @pytest.mark.deterministic(runs={RUNS})
        def test_recorded(determinism):
            determinism.record(app.chat("way=chat script=varied"))
        """
    )
    tests = project.report()["tests"]

    silent, recorded = tests["test_silent"], tests["test_recorded"]
    assert silent["verdict"] == "inconclusive"
    origin = running.url.removeprefix("http://").removesuffix("/v1")
    assert silent["reason"].startswith(f"no model call was observed: the body opened a connection to {origin}")
    assert "determinism.record(answer)" in silent["advice"]
    assert (recorded["verdict"], recorded["unique"]) == ("nondeterministic", 2)
    assert recorded["experiments"][0]["calls"]["live"] == 0
    assert model.asked == {"chat-stable": RUNS, "chat-varied": RUNS}

    # With an endpoint in the environment it asks through litellm of its own accord.
    assert project.report("-k", "silent", url=running.url)["tests"]["test_silent"]["verdict"] == "passed"
