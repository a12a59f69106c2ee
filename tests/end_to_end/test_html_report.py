"""The HTML report as a person meets it, in a real Chromium: skipped with a reason where there is none."""

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
axe = pytest.importorskip("axe_playwright_python.sync_playwright", reason="what is accessible is checked with axe-core")

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


LOADS = "tests/test_it.py::test_loads%5Ba%20b%26c%3Dd%5D"
WORST_FIRST = ["test_loads[a b&c=d]", "test_agent", "test_hostile", "test_silent", "test_down", "test_stable"]


def test_it_opens_under_its_policy_and_asks_nothing_of_the_network(visit) -> None:
    shown = visit()
    shown.page.wait_for_selector("noscript", state="detached")
    assert shown.said == []
    assert shown.requests == [shown.url]
    assert shown.page.title() == "3 nondeterministic, 2 inconclusive, 1 passed, determinism report"
    assert shown.shown() == WORST_FIRST
    assert shown.page.locator("img, b >> text=bold").count() == 0


def test_what_a_test_showed_stands_behind_its_line(visit) -> None:
    shown = visit(fragment=f"#test={LOADS}")
    test = shown.page.locator(".test[open]")
    assert test.locator(".strip").all_text_contents() == ["A" * 34, "A" * 17 + "B" * 13]
    assert test.locator(".sequence").all_text_contents() == ["A ×34", "A ×17, B ×13"]
    assert test.locator(".groups del").all_text_contents() == ["full, and the parcel is kept"]
    assert test.locator(".groups ins").all_text_contents() == ["part, since the parcel had been opened"]
    assert test.locator("svg.tree .letter").all_text_contents() == ["A", "B"]
    settings = test.locator(".settings summary")
    settings.click()
    first = test.locator(".settings tbody tr").first
    assert first.locator("th, td").all_text_contents() == ["load", "solo,burst", "marker"]


def test_nothing_a_model_wrote_acts(visit) -> None:
    shown = visit(fragment="#test=tests/test_it.py::test_hostile")
    said = shown.page.locator(".test[open] .output").first
    assert said.text_content() == (
        "</script></noscript><img src=x onerror=alert(1)>\\u202e evil \\x00\\x1b[31m \\ud800 <b>bold</b>\\r\nnext line"
    )
    assert shown.said == []


def test_verdicts_findings_and_words_filter_and_the_address_tells_it(visit) -> None:
    shown = visit()
    shown.page.get_by_role("button", name="inconclusive").click()
    assert shown.shown() == ["test_silent", "test_down"]
    shown.page.get_by_role("button", name="nondeterministic").click()
    assert shown.shown() == WORST_FIRST[:-1]
    shown.page.get_by_role("combobox").select_option("changed-midway")
    assert shown.shown() == ["test_loads[a b&c=d]"]
    shown.page.get_by_role("combobox").select_option("")
    shown.page.get_by_role("searchbox").fill("API down")
    assert shown.shown() == ["test_down"]
    assert shown.page.get_by_role("status").inner_text() == "1 of 6 tests"
    address = shown.address()
    assert address == "#verdict=nondeterministic,inconclusive&search=API%20down"
    shown.page.get_by_role("searchbox").fill("nowhere")
    assert shown.page.get_by_text("No test is like that.").is_visible()
    shown.page.get_by_role("button", name="show all").click()
    assert shown.shown() == WORST_FIRST
    assert shown.address() == ""

    again = visit(fragment=address)
    assert again.shown() == ["test_down"]
    assert again.page.get_by_role("button", name="inconclusive").get_attribute("aria-pressed") == "true"


def test_a_test_has_an_address_of_its_own(visit) -> None:
    shown = visit()
    shown.page.locator(".test", has_text="test_loads").locator("summary").first.click()
    shown.page.wait_for_selector(".test[open] .body")
    assert shown.address() == f"#test={LOADS}"
    shown.page.evaluate("location.hash = '#test=tests/test_it.py::test_agent'")
    shown.page.wait_for_selector(".test[open] >> text=found a")
    # What a filter hides is shown to whom a link leads there.
    typed = visit(fragment="#test=tests/test_it.py::test_loads[a b%26c%3Dd]")
    assert typed.open_tests() == ["test_loads[a b&c=d]"]
    linked = visit(fragment=f"#test={LOADS}&verdict=passed")
    assert linked.open_tests() == ["test_loads[a b&c=d]"]
    assert linked.shown() == ["test_loads[a b&c=d]", "test_stable"]


def test_keys_lead_through_the_tests(visit) -> None:
    shown = visit()
    focused = "document.activeElement.querySelector('.name bdi')?.textContent"
    press = shown.page.keyboard.press
    met = []
    for key in ("j", "j", "ArrowDown", "k", "ArrowUp"):
        press(key)
        met.append(shown.page.evaluate(focused))
    assert met == [WORST_FIRST[place] for place in (0, 1, 2, 1, 0)]
    press("Enter")
    assert shown.open_tests() == [WORST_FIRST[0]]
    press("Escape")
    assert shown.open_tests() == []
    press("/")
    shown.page.keyboard.type("jkj")
    assert shown.page.get_by_role("searchbox").input_value() == "jkj"
    press("Escape")
    assert shown.shown() == WORST_FIRST
    press("/")
    shown.page.keyboard.type("agent")
    press("Enter")
    assert shown.page.evaluate(focused) == "test_agent"


@pytest.mark.parametrize("scheme", ["light", "dark"])
def test_axe_finds_nothing_to_object_to(visit, scheme) -> None:
    shown = visit(color_scheme=scheme)
    shown.page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    shown.page.wait_for_selector("noscript", state="detached")
    shown.page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    found = axe.Axe().run(shown.page)
    assert found.violations_count == 0, found.generate_report()
    back = shown.page.evaluate("getComputedStyle(document.body).backgroundColor")
    assert back == ("rgb(255, 255, 255)" if scheme == "light" else "rgb(20, 23, 27)")


def test_a_phone_has_no_need_to_scroll_sideways(visit) -> None:
    shown = visit(viewport={"width": 360, "height": 740})
    shown.page.wait_for_selector("noscript", state="detached")
    shown.page.locator("details").evaluate_all("all => all.forEach(one => { one.open = true; })")
    assert shown.page.evaluate("document.documentElement.scrollWidth") == 360
    over = "all => all.filter(one => one.getBoundingClientRect().right > 361).map(one => one.className)"
    assert shown.page.locator("summary *, .why *, .findings *, .strip *, .output, .wide").evaluate_all(over) == []


def test_everything_is_open_on_paper_and_closed_again(visit) -> None:
    shown = visit()
    shown.page.evaluate(
        "addEventListener('beforeprint', () => {"
        " window.closed = [...document.querySelectorAll('details')].filter(one => !one.open).length;"
        " window.held = document.querySelectorAll('noscript').length; })"
    )
    shown.page.pdf()
    assert shown.page.evaluate("[closed, held]") == [0, 0]
    assert shown.open_tests() == []


def test_without_javascript_all_is_there_to_read(visit) -> None:
    shown = visit(java_script_enabled=False)
    assert not shown.page.get_by_role("searchbox").is_visible()
    shown.page.locator(".test", has_text="test_agent").locator("summary").first.click()
    said = shown.page.locator(".test[open] .output")
    assert said.all_text_contents()[:3] == ["look", "found a", "done"]
    assert said.nth(1).is_visible()


def test_a_large_report_is_read_piece_by_piece(visit) -> None:
    count = "addEventListener('DOMContentLoaded', () => { window.elements = document.querySelectorAll('*').length; })"
    shown = visit("large", init=count)
    assert shown.page.locator(".test").count() == 500
    # What takes time is what is in the page when it opens: the lines of the tests, and nothing of what is behind them.
    assert shown.page.evaluate("elements") < 500 * 30
    shown.page.get_by_role("searchbox").fill("case_77")
    assert shown.shown() == ["test_case_77"]


def test_a_link_leads_to_its_test_however_far_down_it_stands(visit) -> None:
    shown = visit("large", "#test=tests/test_17.py::test_case_477")
    top = shown.page.evaluate(
        "new Promise(done => { let frames = 20; const look = () => frames-- ? requestAnimationFrame(look)"
        " : done(document.querySelector('.test[open]').getBoundingClientRect().top); look(); })"
    )
    assert 0 < top < 100
