"""A report as one HTML page for people: docs/html-report.md.

The page asks nothing of the network. Its Content-Security-Policy allows the style and the script that stand in it, by
their hashes, and nothing else: what a model, a server or a test wrote could not act even if it were not escaped. It is
escaped twice over: the template escapes markup, and what is not printable is shown, not sent.
"""

from __future__ import annotations

import base64
import datetime
import hashlib
import json
from collections import Counter
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from importlib.resources import files
from typing import Any
from urllib.parse import quote

import jinja2
from markupsafe import Markup

from pytest_llm_determinism.analysis.divergence import Divergence
from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import Group, runs_in_words
from pytest_llm_determinism.analysis.statistics import percent, power_in_words
from pytest_llm_determinism.report import text
from pytest_llm_determinism.report.html.letters import Cell, Letter, fitted, identity, in_order, letter, sequence
from pytest_llm_determinism.report.html.picture import picture
from pytest_llm_determinism.report.html.visible import cut_visible
from pytest_llm_determinism.report.html.words import difference
from pytest_llm_determinism.report.markdown import WORST_FIRST, worst_first
from pytest_llm_determinism.report.tree import draw
from pytest_llm_determinism.results import Experiment, TestResult
from pytest_llm_determinism.settings import shown

__all__ = ["render"]

SHOWN_GROUPS = 8
"""Groups of a test whose outputs are shown; the others are counted."""

SHOWN_TREES = 12
SHOWN_STEPS = 12
SHOWN_ERRORS = 12

_BAR_SEGMENTS = 8
_NARROWEST_SEGMENT, _NARROWEST_LETTER = 0.01, 0.06
"""Shares of a bar from which a group is seen, and from which there is room for its letter."""


def render(report: dict[str, Any]) -> str:
    """The whole page.

    Args:
        report: the JSON report; ages of samples are those at the time it was made.
    """
    now = datetime.datetime.fromisoformat(report["created_at"])
    results = worst_first(TestResult.from_json(test) for test in report["tests"])
    style, script = (_part(name) for name in ("page.css", "page.js"))
    page = _environment().from_string(_part("page.html"))
    return page.render(
        style=Markup(style),
        script=Markup(script),
        policy=f"default-src 'none'; style-src '{_hash(style)}'; script-src '{_hash(script)}'; base-uri 'none';"
        " form-action 'none'",
        report=report,
        shards=report.get("shards", ()),
        environment=[
            (name, value if isinstance(value, str) else json.dumps(value))
            for name, value in report["environment"].items()
        ],
        created=now.strftime("%Y-%m-%d %H:%M %Z"),
        verdicts=_counted(results),
        findings=_codes(results),
        totals=_totals(results, now),
        tests=_told(results, now),
        count=len(results),
    )


def _part(name: str) -> str:
    return files(__name__).joinpath(name).read_text("utf-8")


def _told_value(value: object) -> str:
    return value if isinstance(value, str) else json.dumps(value, ensure_ascii=False)


def _hash(text: str) -> str:
    return "sha256-" + base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()


def _environment() -> jinja2.Environment:
    environment = jinja2.Environment(
        autoescape=True, undefined=jinja2.StrictUndefined, trim_blocks=True, lstrip_blocks=True, finalize=_one_line
    )
    environment.filters.update(percent=percent, output=cut_visible, excerpt=excerpt, counted=_many)
    return environment


def _one_line(value: object) -> object:
    """Every text of the page is printable; an output, which has lines, comes as markup of its own."""
    return text.printable(value) if isinstance(value, str) and not isinstance(value, Markup) else value


def _setting(value: object) -> str:
    return shown(tuple(value) if isinstance(value, list) else value)


def _many(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


# The whole report


def _counted(results: Sequence[TestResult]) -> list[tuple[str, int]]:
    counts = Counter(result.verdict for result in results)
    return [(verdict, counts[verdict]) for verdict in WORST_FIRST if counts[verdict]]


def _codes(results: Sequence[TestResult]) -> list[tuple[str, int]]:
    """Each finding with the number of tests that have it, the most frequent first."""
    return Counter(
        code
        for result in results
        for code in {finding.code for experiment in result.experiments for finding in experiment.findings}
    ).most_common()


def _totals(results: Sequence[TestResult], now: datetime.datetime) -> list[str]:
    """What was asked and paid for in all, and what the passes are worth."""
    experiments = [experiment for result in results for experiment in result.experiments]
    if not experiments:
        return []
    asked = "; ".join((text.calls(experiments, now), _usage(experiments), text.cost(experiments)))
    return [asked, *text.worth(results)]


def _usage(experiments: Sequence[Experiment]) -> str:
    known = [experiment.usage for experiment in experiments if experiment.calls.live or experiment.calls.cached]
    sums = []
    for name, told in (
        ("input", [one.input_tokens for one in known]),
        ("output", [one.output_tokens for one in known]),
    ):
        some = [tokens for tokens in told if tokens is not None]
        if some:
            sums.append(f"{'' if len(some) == len(told) else 'at least '}{_count(sum(some))} {name} tokens")
    return ", ".join(sums) or "tokens not told by the provider"


# One test


@dataclass(frozen=True, slots=True)
class _Segment:
    """A part of a bar; `x` and `width` in percent."""

    x: float
    width: float
    kind: str
    name: str


@dataclass(frozen=True, slots=True)
class _Found:
    """A finding, and the experiments that have it, if not all have."""

    finding: Finding
    where: str


@dataclass(frozen=True, slots=True)
class _Step:
    """What a group said at one step; `title` is empty where there is one step only."""

    title: str
    output: Markup | None


@dataclass(frozen=True, slots=True)
class _Group:
    """A group over all experiments of a test."""

    letter: Letter
    count: int
    share: float
    where: str
    group: Group
    steps: list[_Step]
    left_out: int
    backend: str


@dataclass(frozen=True, slots=True)
class _Strip:
    """The runs of an experiment in their order."""

    title: str
    cells: list[Cell]
    each: int
    words: str


@dataclass(frozen=True, slots=True)
class _Tree:
    """Where the runs of an experiment part."""

    title: str
    place: str
    picture: Markup
    lines: list[str]


@dataclass(frozen=True, slots=True)
class _Test:
    """One test as the page tells it."""

    result: TestResult
    anchor: str
    file: str
    name: str
    codes: list[str]
    loads: str
    bar: list[_Segment]
    bar_words: str
    least: float | None
    findings: list[_Found]
    groups: list[_Group]
    backend: str | None
    more_groups: int
    more_runs: int
    strips: list[_Strip]
    trees: list[_Tree]
    more_trees: int
    measures: list[tuple[str, list[str]]]
    errors: list[tuple[str, str, str]]
    more_errors: int
    steps: list[tuple[str, list[str]]]
    words: list[str]
    settings: list[tuple[str, str, str]]
    chosen: int


def _told(results: Sequence[TestResult], now: datetime.datetime) -> Iterator[_Test]:
    """The tests one by one, so that one at a time is in memory as markup."""
    known: Counter[str] = Counter()
    for result in results:
        anchor = quote(result.nodeid, safe="/:", errors="surrogatepass")
        known[anchor] += 1
        yield _test(result, anchor if known[anchor] == 1 else f"{anchor}~{known[anchor]}", now)


def _test(result: TestResult, anchor: str, now: datetime.datetime) -> _Test:
    experiments = result.experiments
    merged = _merged(experiments)
    letters = {identity(found[0]): letter(place) for place, found in enumerate(merged)}
    errors = sum(experiment.errors for experiment in experiments)
    of_each = [[letters[identity(group)] for group in experiment.groups] for experiment in experiments]
    heard = [experiment.agreement_lower for experiment in experiments if experiment.groups]
    parted = [
        (experiment.title, experiment.divergence, experiment.groups, known)
        for experiment, known in zip(experiments, of_each, strict=True)
        if experiment.divergence
    ]
    codes = dict.fromkeys(finding.code for experiment in experiments for finding in experiment.findings)
    file, _, name = result.nodeid.partition("::")
    kinds = list(_errors(experiments))
    settings = [(name, _setting(found["value"]), found["source"]) for name, found in result.settings.items()]
    settings.sort(key=lambda one: one[2] == "default")
    return _Test(
        result=result,
        anchor=anchor,
        file=file if name else "",
        name=name or file,
        codes=list(codes),
        loads=", ".join(dict.fromkeys(experiment.load for experiment in experiments)),
        bar=_bar([sum(group.count for group in found) for found in merged], errors),
        bar_words=_bar_words(merged, errors),
        least=min(heard, default=None),
        findings=_findings(experiments),
        groups=[_group(found, letters, merged, experiments) for found in merged[:SHOWN_GROUPS]],
        backend=backends.pop() if len(backends := {_backend(found) for found in merged}) == 1 else None,
        more_groups=max(0, len(merged) - SHOWN_GROUPS),
        more_runs=sum(group.count for found in merged[SHOWN_GROUPS:] for group in found),
        strips=[_strip(experiment, known) for experiment, known in zip(experiments, of_each, strict=True)],
        trees=[_tree(*one) for one in parted[:SHOWN_TREES]],
        more_trees=max(0, len(parted) - SHOWN_TREES),
        measures=_measures(experiments, now),
        errors=kinds[:SHOWN_ERRORS],
        more_errors=max(0, len(kinds) - SHOWN_ERRORS),
        steps=_steps(experiments),
        words=_in_words(result),
        settings=settings,
        chosen=sum(source != "default" for _, _, source in settings),
    )


def _merged(experiments: Sequence[Experiment]) -> list[list[Group]]:
    """The groups of a test, the same group of several experiments together, the largest first."""
    found: dict[str, list[Group]] = {}
    for experiment in experiments:
        for group in experiment.groups:
            found.setdefault(identity(group), []).append(group)
    return sorted(found.values(), key=lambda groups: -sum(group.count for group in groups))


def _bar(counts: Sequence[int], errors: int) -> list[_Segment]:
    """The groups as parts of one line; the many small ones in the end are one part."""
    runs = sum(counts)
    parts = [
        (count, letter(place))
        for place, count in enumerate(counts[:_BAR_SEGMENTS])
        if count / runs >= _NARROWEST_SEGMENT
    ]
    rest = runs - sum(count for count, _ in parts)
    if rest:
        parts.append((rest, Letter("…", "others")))
    if errors:
        parts.append((errors, Letter("!", "error")))
    whole = runs + errors
    segments, x = [], 0.0
    for count, known in parts:
        width = 100 * count / whole
        segments.append(_Segment(x, width, known.kind, known.name if count / whole >= _NARROWEST_LETTER else ""))
        x += width
    return segments


def _bar_words(merged: Sequence[Sequence[Group]], errors: int) -> str:
    counts = [sum(group.count for group in found) for found in merged]
    told = [f"{letter(place).name} {count}" for place, count in enumerate(counts[:_BAR_SEGMENTS])]
    if len(counts) > _BAR_SEGMENTS:
        told.append(f"{len(counts) - _BAR_SEGMENTS} more groups {sum(counts[_BAR_SEGMENTS:])}")
    if errors:
        told.append(f"errors {errors}")
    return "runs in groups: " + ", ".join(told) if told else "no runs"


def _findings(experiments: Sequence[Experiment]) -> list[_Found]:
    where: dict[Finding, list[str]] = {}
    for experiment in experiments:
        for finding in experiment.findings:
            where.setdefault(finding, []).append(experiment.title)
    return [
        _Found(finding, "" if len(titles) == len(experiments) else f"under {'; '.join(titles)}")
        for finding, titles in where.items()
    ]


def _group(
    found: Sequence[Group],
    letters: dict[str, Letter],
    merged: Sequence[Sequence[Group]],
    experiments: Sequence[Experiment],
) -> _Group:
    group, largest = found[0], merged[0][0]
    number = sum(one.count for one in found)
    where = [
        f"{one.count} under {experiment.title}"
        for experiment in experiments
        for one in experiment.groups
        if identity(one) == identity(group)
    ]
    steps = list(_said(group, None if group is largest else largest))
    return _Group(
        letter=letters[identity(group)],
        count=number,
        share=number / sum(one.count for groups in merged for one in groups),
        where=" · ".join(where) if len(experiments) > 1 else runs_in_words(group.runs),
        group=group,
        steps=steps[:SHOWN_STEPS],
        left_out=max(0, len(steps) - SHOWN_STEPS),
        backend=_backend(found),
    )


def _backend(groups: Sequence[Group]) -> str:
    """What the provider said of itself in the runs of these groups."""
    models = sorted({told for group in groups for told in group.models})
    fingerprints = sorted({told for group in groups for told in group.fingerprints})
    told = [f"model {', '.join(models)}"] if models else []
    return ", ".join([*told, f"fingerprint {', '.join(fingerprints)}"] if fingerprints else told)


def _said(group: Group, largest: Group | None) -> Iterator[_Step]:
    """A group's output step by step, against what the largest group said there."""
    parts = group.parts or (group.output,)
    before = () if largest is None else largest.parts or (largest.output,)
    several = len(parts) > 1 or len(before) > 1
    for step, said in enumerate(parts):
        title = f"step {step + 1}" if several else ""
        if step >= len(before):
            yield _Step(title if largest is None or not several else f"{title}, only here", cut_visible(said))
        elif said == before[step] and several:
            yield _Step(f"{title}, the same as A", None)
        else:
            yield _Step(title, difference(before[step], said))
    if len(before) > len(parts):
        yield _Step(f"no step {len(parts) + 1}, where A had one", None)


def _strip(experiment: Experiment, letters: Sequence[Letter]) -> _Strip:
    turns = in_order(experiment, letters)
    each, cells = fitted(turns)
    return _Strip(experiment.title, cells, each, sequence(turns))


def _tree(title: str, parted: Divergence, groups: Sequence[Group], letters: Sequence[Letter]) -> _Tree:
    lines = draw(parted, groups)
    return _Tree(title, lines[0], picture(parted, groups, letters), lines)


def _measures(experiments: Sequence[Experiment], now: datetime.datetime) -> list[tuple[str, list[str]]]:
    """What was measured, a row each with a cell for each experiment; without rows that say nothing."""
    heard = any(experiment.groups for experiment in experiments)
    rows: list[tuple[str, list[str]]] = [
        ("runs", [_runs(one) for one in experiments]),
        ("errors", [str(one.errors) for one in experiments]),
        ("unique", [str(one.unique) for one in experiments]),
    ]
    if any(one.unique_raw != one.unique for one in experiments):
        rows.append(("unique as written", [str(one.unique_raw) for one in experiments]))
    if heard:
        rows += [
            ("agreement", [percent(one.agreement) for one in experiments]),
            (
                "another call agrees",
                [f"≥ {percent(one.agreement_lower)} (at {one.confidence * 100:g} %)" for one in experiments],
            ),
            ("the next run is new", [percent(one.new_output_chance) for one in experiments]),
            ("two runs disagree", [percent(one.disagreement) for one in experiments]),
            ("entropy", [f"{one.entropy:.2f} bits" for one in experiments]),
        ]
    rows += [
        ("calls live", [str(one.calls.live) for one in experiments]),
        ("from the store", [str(one.calls.cached) for one in experiments]),
    ]
    if any(one.calls.oldest_sample for one in experiments):
        ages = [one.calls.oldest_sample and text.age(one.calls.oldest_sample, now) for one in experiments]
        rows.append(("oldest sample", [age or "–" for age in ages]))
    if any(one.neighbour_calls for one in experiments):
        rows.append(("neighbours", [str(one.neighbour_calls) for one in experiments]))
    rows += [
        ("tokens in", [_count(one.usage.input_tokens) for one in experiments]),
        ("tokens out", [_count(one.usage.output_tokens) for one in experiments]),
        ("cost", [text.cost([one]) for one in experiments]),
        ("time", [f"{one.seconds:.1f} s" for one in experiments]),
        ("seed", [str(one.seed) for one in experiments]),
    ]
    return rows


def _runs(experiment: Experiment) -> str:
    made = experiment.completed + experiment.errors
    return str(made) if made == experiment.runs else f"{made} of {experiment.runs}"


def _count(tokens: int | None) -> str:
    return "–" if tokens is None else f"{tokens:,}".replace(",", " ")


def _errors(experiments: Sequence[Experiment]) -> Iterator[tuple[str, str, str]]:
    """Each kind of error: what it is, how often and where, and its first example."""
    for experiment in experiments:
        where = f" under {experiment.title}" if len(experiments) > 1 else ""
        for kind, found in (("API error", experiment.error_messages), ("the body failed", experiment.failures)):
            for one in sorted(found, key=lambda one: -len(one.runs)):
                yield kind, f"{len(one.runs)} × ({runs_in_words(one.runs)}){where}", one.error


def _steps(experiments: Sequence[Experiment]) -> list[tuple[str, list[str]]]:
    """How many requests and answers there were at each step, where there are several."""
    most = max((len(experiment.steps) for experiment in experiments), default=0)
    if most < 2:
        return []
    return [
        (
            f"step {step + 1}",
            [
                f"{one.steps[step].requests_unique} / {one.steps[step].responses_unique}"
                if step < len(one.steps)
                else "–"
                for one in experiments
            ],
        )
        for step in range(min(most, SHOWN_STEPS))
    ]


def _in_words(result: TestResult) -> list[str]:
    """What the numbers say of the next call, and what a gate of so many runs sees."""
    several = len(result.experiments) > 1
    words = [
        (f"Under {one.title}, " if several else "") + text.bound(one) + "." for one in result.experiments if one.groups
    ]
    runs, allowed = sum(result.counts), result.settings.get("max_unique", {}).get("value")
    if runs and isinstance(allowed, int):
        words.append(f"With {runs} runs, {power_in_words(0.01, runs, allowed)}.")
    return [one[:1].upper() + one[1:] for one in words]
