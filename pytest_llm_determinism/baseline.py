"""An earlier report that the answers of a session are held against: reading it, keeping it small, comparing."""

from __future__ import annotations

import json
from collections import Counter
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from itertools import zip_longest
from pathlib import Path
from typing import Any

from pytest_llm_determinism.analysis.drift import difference, discoveries
from pytest_llm_determinism.results import (
    AnswerCount,
    CallCount,
    Drift,
    Experiment,
    ReportError,
    Shift,
    TestResult,
    Usage,
    read,
)
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.settings import SettingError, Settings, shown
from pytest_llm_determinism.shapes.request import question
from pytest_llm_determinism.verdict import DRIFTED, PASSED, RENEW, drifted, in_short

COMPARED = ("compare", "load", "override", "ignore")
"""Settings that decide what is asked and which outputs are the same: answers under others are not to be compared."""

COMPARED_WITH_LLM = ("temperature", "model")
"""Those of a test that asks through the fixture `llm`."""

KEPT = (*COMPARED, *COMPARED_WITH_LLM, "runs", "attempts", "max_unique", "min_agreement", "confidence", "max_errors")
"""Settings that stay in a condensed report: with them it says what was asked, and how it was judged."""

SHOWN_ANSWERS = 12
"""Answers of one load in a result, then and now; of a text the first `SHOWN_CHARACTERS`."""

SHOWN_CHARACTERS = 200


class Baseline:
    """The tests of an earlier report, by node id, in as far as they are evidence.

    Args:
        report: as `results.read` gives it, whole or condensed.
        quoted: the setting that named the report, as messages quote it.

    Raises:
        SettingError: the report does not tell what answers are compared by.
    """

    def __init__(self, report: Mapping[str, Any], quoted: str) -> None:
        for test in report["tests"]:
            if any("form" not in group for made in test["experiments"] for group in made["groups"]):
                raise SettingError(
                    f"{quoted}: was made by a version that did not keep what answers are compared by; make it anew"
                )
        self.quoted = quoted
        self._tests = {
            test.nodeid: test for test in map(TestResult.from_json, report["tests"]) if _is_evidence(test.experiments)
        }

    def __contains__(self, nodeid: str) -> bool:
        return nodeid in self._tests

    def check(self, nodeid: str, settings: Settings, asks_with_llm: bool) -> None:
        """See that a test is run under the settings of the baseline, in as far as they matter.

        Raises:
            SettingError: it is not; names the settings, then and now.
        """
        test = self._tests.get(nodeid)
        if test is None:
            return
        now = settings.to_json()
        differences = []
        for name in (*COMPARED, *(COMPARED_WITH_LLM if asks_with_llm else ())):
            then = test.settings.get(name)
            if then is None or _in_any_order(then["value"]) == _in_any_order(now[name]["value"]):
                continue
            # With several models the node id names the one that is asked.
            if name == "model" and _are_several(then["value"]) and _are_several(now[name]["value"]):
                continue
            value = then["value"]
            written = shown(tuple(value) if isinstance(value, list) else value)
            differences.append(f"{name}={written} ({then['source']}) then, {settings.quote(name)} now")
        if differences:
            raise SettingError(
                f"{self.quoted}: was made under other settings: {'; '.join(differences)}; set them as they were, or"
                f" renew the baseline: {RENEW}"
            )

    def in_order(self, nodeid: str, run: Run, requests: Mapping[str, str]) -> Run:
        """The run with its exchanges in the order they have in the baseline, if it is the same ones.

        An application that asks several things at once may start them in another order in each session.

        Args:
            requests: canonical requests by key.
        """
        test = self._tests.get(nodeid)
        if test is None:
            return run
        places = {asked: place for place, asked in enumerate(_numbered(test.experiments[0].requests))}
        asked = _numbered(
            [
                question(requests[exchange.request]) if exchange.request in requests else exchange.request
                for exchange in run.exchanges
            ]
        )
        if places.keys() != set(asked):
            return run
        ordered = sorted(zip(asked, run.exchanges, strict=True), key=lambda exchange: places[exchange[0]])
        return replace(run, exchanges=tuple(exchange for _, exchange in ordered))

    def drift(self, nodeid: str, experiments: Sequence[Experiment]) -> Drift | None:
        """A test's answers beside those of the baseline; None where it has none of this test."""
        test = self._tests.get(nodeid)
        if test is None or not any(found.groups for found in experiments):
            return None
        then, now = _by_load(test.experiments), _by_load(experiments)
        loads = [load for load in now if load in then]
        refused = next(filter(None, (_incomparable(then[load], now[load]) for load in loads)), None)
        if refused is not None:
            return Drift(refused=refused)
        shifts = tuple(_shift(load, then[load], now[load]) for load in loads)
        chance = min((shift.chance for shift in shifts), default=1.0) * len(shifts)
        # Sampling that stopped at an answer (fail_fast) shows that answer more often than the model gives it.
        whole = then.keys() == now.keys() and all(map(_is_whole, experiments))
        return Drift(min(1.0, chance) if whole else 1.0, None, shifts, _backend(test.experiments, experiments))

    def settled(self, results: Mapping[str, TestResult]) -> tuple[dict[str, TestResult], list[str]]:
        """The results of a whole session, and the node ids of tests whose answers only all of them together show to be
        other ones."""
        held = [
            (key, result.drift.chance)
            for key, result in results.items()
            if result.drift is not None and result.drift.chance is not None
        ]
        believed = discoveries([chance for _, chance in held])
        settled = dict(results)
        found = []
        for (key, _), is_drift in zip(held, believed, strict=True):
            result = results[key]
            assert result.drift is not None
            if is_drift and result.verdict == PASSED and not result.drift.overruled:
                verdict = drifted(result.reason, result.drift, self.quoted, of=len(held))
                settled[key] = replace(
                    result,
                    verdict=verdict.verdict,
                    reason=verdict.reason,
                    decided_by=verdict.decided_by,
                    advice=verdict.advice,
                )
                found.append(result.nodeid)
        return settled, found

    def missing(self, nodeids: Collection[str]) -> list[str]:
        """The tests of the baseline that are not among these."""
        return sorted(self._tests.keys() - set(nodeids))


def load(path: Path, quoted: str) -> tuple[Baseline, dict[str, Any]]:
    """The baseline in a file, and its condensed report, for other processes.

    Args:
        quoted: the setting that named it, as messages quote it.

    Raises:
        SettingError: it cannot be read, or is no baseline; says which and why.
    """
    try:
        report = read(path)
    except ReportError as error:
        raise SettingError(f"{quoted}: {error}") from None
    return Baseline(report, quoted), condensed(report)


def condensed(report: Mapping[str, Any]) -> dict[str, Any]:
    """What a comparison needs of a report, itself a valid report: small, and the same for the same answers.

    Tests stand in the order of their node ids, without what differs from session to session: times, seeds, which run
    gave which answer, costs, where the answers came from, settings that do not matter. Texts are cut; what is compared
    is `form`. Tests without evidence are left out.
    """
    tests = [TestResult.from_json(test) for test in report["tests"]]
    kept = [_condensed(test) for test in tests if _is_evidence(test.experiments)]
    return {
        "schema_version": report["schema_version"],
        "tool": report["tool"],
        "created_at": "1970-01-01T00:00:00+00:00",
        "environment": {},
        "tests": [test.to_json() for test in sorted(kept, key=lambda test: test.nodeid)],
    }


def _condensed(test: TestResult) -> TestResult:
    because_of_baseline = test.verdict == DRIFTED or (test.drift is not None and test.drift.refused is not None)
    return replace(
        test,
        verdict=PASSED if because_of_baseline else test.verdict,
        reason=in_short(test.counts) if because_of_baseline else test.reason,
        settings={name: test.settings[name] for name in KEPT if name in test.settings},
        experiments=tuple(
            replace(
                made,
                seed=0,
                neighbour_calls=0,
                unique_raw=made.unique,
                groups=tuple(
                    replace(group, output=_cut(group.output), runs=(), parts=(), reasoning="")
                    for group in sorted(made.groups, key=lambda group: (-group.count, group.form))
                ),
                divergence=None,
                findings=(),
                steps=(),
                calls=CallCount(0, 0, None),
                usage=Usage(None, None),
                seconds=0.0,
                cost=None,
                unpriced=None,
                error_messages=(),
                failures=(),
            )
            for made in test.experiments
        ),
        decided_by=None,
        advice=None,
        drift=None,
        shard=None,
    )


def _is_evidence(experiments: Sequence[Experiment]) -> bool:
    """Whether the answers are all those of a model that was asked as often as was wanted."""
    return bool(experiments) and all(made.groups and _is_whole(made) for made in experiments)


def _is_whole(experiment: Experiment) -> bool:
    return experiment.completed + experiment.errors == experiment.runs


def _in_any_order(value: object) -> object:
    return sorted(map(json.dumps, value)) if isinstance(value, list) else value


def _are_several(value: object) -> bool:
    return isinstance(value, list) and len(value) > 1


def _numbered(asked: Sequence[str]) -> list[tuple[str, int]]:
    """Each with how often it came before: the same may be asked several times in a run."""
    times: Counter[str] = Counter()
    numbered = []
    for text in asked:
        numbered.append((text, times[text]))
        times[text] += 1
    return numbered


def _by_load(experiments: Sequence[Experiment]) -> dict[str, list[Experiment]]:
    attempts: dict[str, list[Experiment]] = {}
    for made in experiments:
        attempts.setdefault(made.load, []).append(made)
    return attempts


def _incomparable(then: Sequence[Experiment], now: Sequence[Experiment]) -> str | None:
    """Why the answers under one load cannot be compared; None where they can."""
    if any(not group.form for made in (*then, *now) for group in made.groups):
        return (
            "its comparison returns objects that no other session can recognise, so the answers cannot be compared with"
            " those of the baseline; let it return text, numbers, or tuples, lists, dicts or sets of them"
        )
    first, second = then[0], now[0]
    for step, (asked_then, asked_now) in enumerate(zip_longest(first.requests, second.requests)):
        if asked_then != asked_now:
            various = second.steps[step].requests_unique if step < len(second.steps) else 1
            if various > 1:
                return (
                    f"it sent {various} different requests at step {step + 1}, and others than in the baseline; make it"
                    " send the same in every run and session, or leave what varies out with ignore"
                )
            return f"the question is another than in the baseline at step {step + 1}, so the answers cannot be compared"
        if first.responses[step : step + 1] != second.responses[step : step + 1]:
            return None  # what is asked from here on may follow from what was answered
    return None


def _shift(load: str, then: Sequence[Experiment], now: Sequence[Experiment]) -> Shift:
    before, after = _counts(then), _counts(now)
    texts = {group.form: group.output for made in (*now, *then) for group in made.groups}
    forms = sorted(texts, key=lambda form: (-before[form] - after[form], -before[form], form))
    return Shift(
        load=load,
        chance=difference([before[form] for form in forms], [after[form] for form in forms]),
        replaced=len(before) == len(after) == 1 and before.keys() != after.keys(),
        answers=tuple(AnswerCount(_cut(texts[form]), before[form], after[form]) for form in forms[:SHOWN_ANSWERS]),
        more=max(0, len(forms) - SHOWN_ANSWERS),
    )


def _counts(experiments: Sequence[Experiment]) -> Counter[str]:
    counts: Counter[str] = Counter()
    for made in experiments:
        for group in made.groups:
            counts[group.form] += group.count
    return counts


def _backend(then: Sequence[Experiment], now: Sequence[Experiment]) -> tuple[str, ...]:
    changes = []
    for name, field in (("the returned model name", "models"), ("system_fingerprint", "fingerprints")):
        before, after = (
            sorted({told for made in experiments for group in made.groups for told in getattr(group, field)})
            for experiments in (then, now)
        )
        if before != after:
            changes.append(f"{name} was {_listed(before)}, is {_listed(after)}")
    return tuple(changes)


def _listed(names: Sequence[str]) -> str:
    shown_names = [_cut(name, 60) for name in names[:4]]
    return " or ".join((*shown_names, *([f"{len(names) - 4} more"] if len(names) > 4 else ()))) or "none given"


def _cut(text: str, length: int = SHOWN_CHARACTERS) -> str:
    return text if len(text) <= length else f"{text[:length]}…"
