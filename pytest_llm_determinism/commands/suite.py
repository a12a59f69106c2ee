"""``llm-determinism plan TESTS``: what gating a suite will ask and cost, found out without asking a model."""

from __future__ import annotations

import json
import os
import shlex
import subprocess
import sys
import tempfile
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from pytest_llm_determinism.analysis.forecast import Forecast, Known, Planned, forecast, known
from pytest_llm_determinism.analysis.statistics import percent, power_in_words
from pytest_llm_determinism.commands.collecting import TOLD
from pytest_llm_determinism.report.text import printable
from pytest_llm_determinism.results import read

SHOWN_TESTS = 20

_COLLECTING = "pytest_llm_determinism.commands.collecting"

_NO_TESTS = 5
"""pytest's exit code where it has collected none."""

_UNKNOWN = "–"


class NotCollected(Exception):
    """pytest could not collect the suite; the message is what it said."""


def collect(arguments: Sequence[str]) -> dict[str, Any]:
    """What pytest would run with these arguments, as `collecting` tells it.

    pytest collects in a process of its own, as the command ``pytest`` would: here modules are imported that it wants to
    rewrite first.

    Raises:
        NotCollected: something is wrong with the suite or the arguments.
    """
    with tempfile.TemporaryDirectory() as folder:
        told = Path(folder, "told.json")
        # -P: as with the command pytest, the current directory is no place to import from.
        process = subprocess.run(
            [sys.executable, "-P", "-m", "pytest", "--collect-only", "-qq", "-p", _COLLECTING, *arguments],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="backslashreplace",
            env={**os.environ, TOLD: str(told), "PYTHONIOENCODING": "utf-8:backslashreplace"},
        )
        if process.returncode == _NO_TESTS:
            raise NotCollected(f"there are no tests: pytest --collect-only {shlex.join(arguments)}")
        if process.returncode != 0 or not told.exists():
            raise NotCollected(process.stdout.strip() or f"pytest ended with exit code {process.returncode}")
        found: dict[str, Any] = json.loads(told.read_text("utf-8"))
    if found["wrong"]:
        raise NotCollected("\n".join(found["wrong"]))
    return found


def earlier(files: Sequence[str]) -> dict[str, Known]:
    """What JSON reports tell of tests, by node id; of one that stands in several, the last report that knows it.

    Raises:
        ReportError: a file cannot be read as a report.
    """
    tests = [test for file in files for test in read(Path(file))["tests"]]
    return {test["nodeid"]: told for test in tests if (told := known(test)) is not None}


def lines(found: Mapping[str, Any], told: Mapping[str, Known], flip_rate: float, catch: float) -> list[str]:
    """All that is printed."""
    tests = [Planned(test["nodeid"], test["settings"]) for test in found["tests"]]
    forecasts = [forecast(test, told.get(test.nodeid)) for test in tests]
    if not forecasts:
        return [f"no test would be gated{_of_others(found)}", *_others(found)]
    return [
        *map(printable, _table(forecasts, bool(told))),
        "",
        *_notes(forecasts, bool(told)),
        *_others(found),
        *_worth(tests, flip_rate, catch),
    ]


def _table(forecasts: Sequence[Forecast], informed: bool) -> list[str]:
    """A line for each test, the most calls first, and one for all of them."""
    more = ("tokens in + out", "time", "price") if informed else ()
    rows = [("test", "runs", "calls", *more, "a pass shows")]
    ordered = sorted(forecasts, key=lambda found: -found.calls)
    rows.extend(_row(found.planned.nodeid, _runs(found.planned), [found], informed) for found in ordered[:SHOWN_TESTS])
    rest = ordered[SHOWN_TESTS:]
    if rest:
        rows.append(_row(f"… and {len(rest)} more tests", _all_runs(rest), rest, informed))
    if len(forecasts) > 1:
        rows.append(_row(f"all {len(forecasts)} tests", _all_runs(forecasts), forecasts, informed))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    aligned = [str.ljust, *[str.rjust] * (len(rows[0]) - 1)]
    return [
        "  ".join(align(cell, width) for align, cell, width in zip(aligned, row, widths, strict=True)) for row in rows
    ]


def _row(what: str, runs: str, forecasts: Sequence[Forecast], informed: bool) -> tuple[str, ...]:
    least = min(found.planned.shown_by_a_pass() for found in forecasts)
    return (what, runs, _calls(forecasts), *(_costs(forecasts) if informed else ()), percent(least))


def _all_runs(forecasts: Sequence[Forecast]) -> str:
    return str(sum(found.planned.runs for found in forecasts))


def _runs(planned: Planned) -> str:
    """``180 in 6 experiments``, or ``30``."""
    return str(planned.runs) + (f" in {planned.experiments} experiments" if planned.experiments > 1 else "")


def _calls(forecasts: Sequence[Forecast]) -> str:
    """``≥ 30 + 12 neighbours``."""
    least = "≥ " if any(found.assumed for found in forecasts) else ""
    text = f"{least}{sum(found.calls for found in forecasts)}"
    if any(found.neighbours is None for found in forecasts):
        return f"{text} + neighbours"
    neighbours = sum(found.neighbours or 0 for found in forecasts)
    return f"{text} + {neighbours} neighbours" if neighbours else text


def _costs(forecasts: Sequence[Forecast]) -> tuple[str, str, str]:
    """Tokens, time and price; of several tests the sum over those of which it is known, as at least that."""
    tokens = [
        (found.input_tokens, found.output_tokens)
        for found in forecasts
        if found.input_tokens is not None and found.output_tokens is not None
    ]
    seconds = [found.seconds for found in forecasts if found.seconds is not None]
    prices: dict[str, float] = {}
    priced = 0
    for found in forecasts:
        if found.price is not None and found.currency is not None:
            prices[found.currency] = prices.get(found.currency, 0.0) + found.price
            priced += 1
    return (
        _at_least(len(tokens), forecasts, f"{sum(into for into, _ in tokens)} + {sum(out for _, out in tokens)}"),
        _at_least(len(seconds), forecasts, _duration(sum(seconds))),
        _at_least(priced, forecasts, " + ".join(f"{price:.4f} {currency}" for currency, price in prices.items())),
    )


def _at_least(number: int, forecasts: Sequence[Forecast], text: str) -> str:
    if number == 0:
        return _UNKNOWN
    return text if number == len(forecasts) else f"≥ {text}"


def _duration(seconds: float) -> str:
    for unit, length in (("h", 3600), ("min", 60)):
        if seconds >= length:
            return f"{seconds / length:.1f} {unit}"
    return f"{seconds:.1f} s"


def _notes(forecasts: Sequence[Forecast], informed: bool) -> list[str]:
    """What the figures rest on."""
    assumed = sum(found.assumed for found in forecasts)
    several = len(forecasts) > 1
    notes = []
    if not informed:
        notes.append(
            "calls: one a run is assumed, and there may be more; they, tokens, time and price are known from an earlier"
            " report: --from FILE.json"
        )
    elif assumed:
        notes.append(f"calls: of {_tests(assumed)} no report tells them; one a run is assumed, and there may be more")
    notes.append("calls are those with an empty store: what is there already is not asked again")
    if informed:
        notes.append(
            f"time is that of an earlier session whose answers were all live{', one test after the other' * several}"
        )
        unpriced = [found for found in forecasts if found.price is None]
        if unpriced:
            reasons = dict.fromkeys(found.unpriced for found in unpriced if found.unpriced)
            why = next(iter(reasons), "no report has it, which takes the extra 'cost' in the session that is reported")
            more = f" (and {len(reasons) - 1} more reasons)" if len(reasons) > 1 else ""
            notes.append(printable(f"price: of {_tests(len(unpriced))} none is known: {why}{more}"))
    if any(found.neighbours != 0 for found in forecasts):
        unknown = "" if informed else "; how many is known from an earlier report"
        notes.append(f"neighbours under crowd come on top of the calls and the tokens{unknown}")
    return notes


def _others(found: Mapping[str, Any]) -> list[str]:
    """What is known of tests that are not gated."""
    notes = []
    if found["skipped"]:
        notes.append(f"{_tests(found['skipped'])} marked to be skipped")
    if found["ungated"]:
        notes.append(f"gate=off: {_tests(found['ungated'])} marked, and would run once without being gated")
    if found["with_llm"]:
        notes.append(f"{_tests(found['with_llm'])} not marked and using llm: one call for each thing that is asked")
    return notes


def _of_others(found: Mapping[str, Any]) -> str:
    if found["skipped"] or found["ungated"]:
        return ""
    return f": none of {_tests(found['unmarked'])} is marked with @pytest.mark.deterministic"


def _tests(number: int) -> str:
    return f"{number} test{'' if number == 1 else 's'}"


def _worth(tests: Sequence[Planned], flip_rate: float, catch: float) -> list[str]:
    """What the test of the fewest runs lets pass."""
    fewest = min(tests, key=lambda test: test.runs)
    words = power_in_words(flip_rate, fewest.runs, fewest.settings["max_unique"], catch)
    return [f"with {fewest.runs} runs{', the fewest' if len(tests) > 1 else ''}, {words}"]
