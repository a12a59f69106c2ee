"""The HTML report in a real Chromium: skipped with a reason where there is none."""

from __future__ import annotations

import shutil
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import pytest

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import outcomes
from pytest_llm_determinism.experiment import experiment
from pytest_llm_determinism.report.files import write
from pytest_llm_determinism.results import CallCount, Experiment, TestResult, Usage, report
from pytest_llm_determinism.runs import Exchange, Run

playwright = pytest.importorskip("playwright.sync_api", reason="the HTML report is driven with playwright")

CHROMIUM = next(filter(None, map(shutil.which, ("chromium", "chromium-browser", "google-chrome"))), None)

HOSTILE = "</script></noscript><img src=x onerror=alert(1)>\u202e evil \x00\x1b[31m \ud800 <b>bold</b>\r\nnext line"

SETTINGS = {
    "runs": {"value": 30, "source": "default"},
    "max_unique": {"value": 1, "source": "default"},
    "load": {"value": ["solo", "burst"], "source": "marker"},
}


@pytest.fixture(scope="module")
def browser() -> Iterator[Any]:
    if CHROMIUM is None:
        pytest.skip("no Chromium is installed (chromium, chromium-browser or google-chrome in PATH)")
    with playwright.sync_playwright() as driver:
        chromium = driver.chromium.launch(executable_path=CHROMIUM)
        yield chromium
        chromium.close()


@dataclass
class Visit:
    """A page that was opened, and what the browser said of it."""

    page: Any
    url: str
    said: list[str] = field(default_factory=list)
    requests: list[str] = field(default_factory=list)

    def shown(self) -> list[str]:
        """The names of the tests that are to be seen."""
        return self._names(".test:visible")

    def open_tests(self) -> list[str]:
        return self._names(".test[open]:visible")

    def _names(self, tests: str) -> list[str]:
        # Not inner_text: what is far from the screen is not rendered, and then has none.
        return self.page.locator(f"{tests} .name bdi").all_text_contents()

    def address(self) -> str:
        """What stands after the file's name in the address."""
        return self.page.url.removeprefix(self.url)


@pytest.fixture
def visit(browser: Any, pages: dict[str, Path]) -> Iterator[Callable[..., Visit]]:
    """Open one of the `pages`: ``visit("small", "#verdict=passed", color_scheme="dark")``."""
    contexts = []

    def go(name: str = "small", fragment: str = "", init: str | None = None, **options: Any) -> Visit:
        contexts.append(browser.new_context(**options))
        page = contexts[-1].new_page()
        made = Visit(page, pages[name].as_uri())
        page.on("console", lambda message: made.said.append(message.text))
        page.on("pageerror", lambda error: made.said.append(str(error)))
        page.on("request", lambda request: made.requests.append(request.url))
        if init is not None:
            page.add_init_script(init)
        page.goto(made.url + fragment)
        return made

    yield go
    for context in contexts:
        context.close()


@pytest.fixture(scope="session")
def pages(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """Reports by name: ``small``, of six tests of every kind, and ``large``, of 500 tests with 30 runs each."""
    folder = tmp_path_factory.mktemp("pages")
    made = {"small": report(small(), {"pytest": "9"}), "large": report(large(), {})}
    for name, record in made.items():
        write(folder / f"{name}.html", record)
    return {name: folder / f"{name}.html" for name in made}


def sampled(*outputs: str | tuple[str, ...] | Exception, load: str = "burst", **more: Any) -> Experiment:
    """An experiment with a run for each output; a tuple is what several steps said."""
    runs = [_run(index, output) for index, output in enumerate(outputs)]
    made = experiment(
        load=load,
        attempt=0,
        seed=7,
        neighbour_calls=0,
        wanted=len(runs),
        runs=runs,
        items=outcomes(runs, runs[0]),
        requests={},
        comparison=resolve("exact"),
        confidence=0.95,
        calls=CallCount(len(runs), 0, None),
        seconds=1.0,
        failures=(),
    )
    return replace(made, usage=Usage(300, 90), **more)


def _run(index: int, output: str | tuple[str, ...] | Exception) -> Run:
    if isinstance(output, Exception):
        return Run(index, (), error=str(output))
    steps = (output,) if isinstance(output, str) else output
    return Run(index, tuple(Exchange(f"q{step}", 0, said, "m", "fp", "stop", 10, 3) for step, said in enumerate(steps)))


def judged(name: str, verdict: str, reason: str, *experiments: Experiment, **more: Any) -> TestResult:
    counts = tuple(group.count for made in experiments for group in made.groups)
    return TestResult(
        f"tests/test_it.py::{name}", verdict, reason, len(counts), SETTINGS, experiments, counts=counts, **more
    )


PARTED = ["The order was refunded in full, and the parcel is kept."] * 17 + [
    "The order was refunded in part, since the parcel had been opened."
] * 13


def small() -> list[TestResult]:
    midway = Finding("changed-midway", "the answers changed at run 17")
    return [
        judged("test_stable", "passed", "1 unique of 30", sampled(*["yes"] * 30)),
        judged(
            "test_loads[a b&c=d]",
            "nondeterministic",
            "2 unique of 60 (47/13), max_unique=1",
            sampled(*PARTED[:17] * 2, load="solo"),
            sampled(*PARTED, findings=(midway,)),
            decided_by="max_unique=1 (default)",
            advice="pin the model's version",
        ),
        judged(
            "test_agent",
            "nondeterministic",
            "2 unique of 30 (20/10), max_unique=1",
            sampled(*[("look", "found a", "done")] * 20, *[("look", "found b", "give up")] * 10),
        ),
        judged(
            "test_hostile",
            "nondeterministic",
            HOSTILE,
            sampled(*[HOSTILE] * 20, *["שלום עולם"] * 9, OSError(HOSTILE), findings=(Finding("near-tie", HOSTILE),)),
            advice=HOSTILE,
        ),
        judged("test_silent", "inconclusive", "no model call was observed and nothing was recorded"),
        judged("test_down", "inconclusive", "5 of 5 runs ended in an API error", sampled(*[OSError("HTTP 500")] * 5)),
    ]


def large() -> list[TestResult]:
    said = "one two three four five six seven eight nine ten eleven twelve " * 8
    stable = judged("", "passed", "1 unique of 30", sampled(*[said] * 30))
    parted = judged(
        "", "nondeterministic", "10 unique of 30", sampled(*[f"{said}{run % 10} {said}" for run in range(30)])
    )
    return [
        replace(parted if number % 2 else stable, nodeid=f"tests/test_{number % 20}.py::test_case_{number}")
        for number in range(500)
    ]
