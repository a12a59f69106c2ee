"""What the order of the runs shows: a first run that stands alone, a change midway, errors with a pattern.

Runs are looked at in the order of their indices, attempts one after the other, which is the order in which their
calls were started, but for a few that are in flight at once. A run knows no time; that is why a change is told by runs.
Where samples of an earlier session were topped up, the older ones come first.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Hashable, Mapping, Sequence
from dataclasses import dataclass

from pytest_llm_determinism.analysis.chance import all_in_one_class, at_least, change_point, p_in_words
from pytest_llm_determinism.analysis.compare import Comparison, RunOutput
from pytest_llm_determinism.analysis.findings.finding import ALPHA, Finding, names
from pytest_llm_determinism.analysis.groups import Outcome
from pytest_llm_determinism.runs import Run

NEARLY_ALL = 0.9
"""Share of the other runs that must agree for the first one to be called the odd one."""

LONGEST_PERIOD = 10
"""Most replicas behind one endpoint that are looked for."""

KINDS = 3
"""Kinds of errors that are looked at one by one, the most frequent first."""


@dataclass(frozen=True, slots=True)
class Observed:
    """What one experiment of a test gave.

    Attributes:
        runs: all that were made, in order.
        items: those that got through, in order.
        in_flight: most calls in flight at once.
        live, cached: how many answers were asked, and how many found in the store.
    """

    load: str
    attempt: int
    runs: Sequence[Run]
    items: Sequence[Outcome]
    in_flight: int = 1
    live: int = 0
    cached: int = 0

    @property
    def heard(self) -> list[Outcome]:
        """The runs with an output."""
        return [item for item in self.items if item.output.parts]


Labels = Mapping[int, Hashable]
"""What the runs gave, by the id of their output: equal for the same group."""


def labels_of(observed: Sequence[Observed], comparison: Comparison) -> Labels:
    """What the runs of all experiments gave, as the comparison sees it."""
    outputs = {id(item.output): item.output for one in observed for item in one.heard}
    return {key: comparison.key(output) for key, output in outputs.items()}


def first_run_differs(observed: Sequence[Observed], labels: Labels) -> dict[int, Finding]:
    """First runs that gave another answer than all the others of their experiment, which (nearly) agree.

    The null hypothesis is that the runs of each experiment are exchangeable. Given the sizes of its groups, each of its
    K runs is then equally likely to be the first, so the first one is alone in its group with the chance (groups of one
    run) / K. That is more than 1 % for less than 100 runs: one experiment of 30 runs shows nothing, however clean it
    looks, and is passed over in silence. Over several experiments (loads, attempts) the tests are joined: the chance
    that so many first runs stand alone, or more, each with the chance it has in its experiment. Two of two experiments
    of 30 runs have 1/900.

    At most 1 % false alarms, all experiments of a test together.

    Returns:
        by place of the experiment: the finding, for those where it was so.
    """
    chances = []
    odd: dict[int, str] = {}
    for place, one in enumerate(observed):
        heard = one.heard
        sizes = Counter(labels[id(item.output)] for item in heard)
        (most, agreeing), *_ = sizes.most_common(1) or [(None, 0)]
        others = len(heard) - 1
        clear = agreeing > 1 and agreeing >= NEARLY_ALL * others
        chances.append(sum(size == 1 for size in sizes.values()) / len(heard) if clear else 0.0)
        if clear and heard[0].run.index == 0 and sizes[labels[id(heard[0].output)]] == 1:
            usual = next(item.output for item in heard if labels[id(item.output)] == most)
            answer, other = names([str(heard[0].output), str(usual)])
            odd[place] = f"run 0 gave {answer}, {agreeing} of the {others} others {other}"
    chance = at_least(len(odd), chances)
    if not odd or chance > ALPHA:
        return {}
    often = f", in {len(odd)} of {len(observed)} experiments" if len(observed) > 1 else ""
    return {
        place: Finding(
            "first-run-differs",
            f"{seen}{often} ({p_in_words(chance)}): the first call travels alone, and meets a server whose caches may"
            " be cold; --determinism-load=solo, where every call travels alone, shows which of the two it is; if it is"
            " the caches, warm the model up before the runs",
        )
        for place, seen in odd.items()
    }


def changed_midway(observed: Sequence[Observed], labels: Labels) -> dict[int, Finding]:
    """One place in the order of the runs under a load, before and after which they answered differently.

    The largest group of all these runs against the rest, by `change_point`: exact, under the null hypothesis that the
    runs are exchangeable. At most 1 % false alarms over all places of all loads together; with several loads each has
    its share of that. A change after the very first run is left to `first_run_differs`.

    Where several calls are in flight and what shares the batch changes the answers, runs are not exchangeable although
    nothing was changed: the batch fills up at first and drains at last, and neighbours in time share it. So more is
    asked for there: as many runs as are in flight at once lie on either side of the change, and on each side nearly all
    agree.

    Returns:
        by place of the experiment: the finding of its load.
    """
    by_load = _by_load(observed)
    found = {}
    for members in by_load.values():
        items = [(observed[place], item) for place in members for item in observed[place].heard]
        answers = [labels[id(item.output)] for _, item in items]
        if len(set(answers)) < 2:
            continue
        largest = Counter(answers).most_common(1)[0][0]
        at, chance = change_point([answer == largest for answer in answers])
        in_flight = max(observed[place].in_flight for place in members)
        if chance > ALPHA / len(by_load) or at == 1 or (in_flight > 1 and not _is_clean(answers, at, in_flight)):
            continue
        finding = Finding(
            "changed-midway",
            f"{_change(items, answers, at)} ({p_in_words(chance)}): {_what_changed(items, members, at, observed)}",
        )
        found.update(dict.fromkeys(members, finding))
    return found


def _is_clean(answers: Sequence[Hashable], at: int, least: int) -> bool:
    """Whether each side of a change has at least so many answers, of which nearly all agree."""
    return all(
        len(side) >= least and Counter(side).most_common(1)[0][1] >= NEARLY_ALL * len(side)
        for side in (answers[:at], answers[at:])
    )


def _change(items: Sequence[tuple[Observed, Outcome]], answers: Sequence[Hashable], at: int) -> str:
    sides = (slice(0, at), slice(at, len(items)))
    usual = [Counter(answers[side]).most_common(1)[0] for side in sides]
    outputs: dict[Hashable, RunOutput] = {}
    for answer, (_, item) in zip(answers, items, strict=True):
        outputs.setdefault(answer, item.output)
    # If the most common answer stays the same, it has one name.
    named = names([str(outputs[answer]) for answer in dict.fromkeys(answer for answer, _ in usual)])
    spans = []
    for side, (_, count), name in zip(sides, usual, (named[0], named[-1]), strict=True):
        (one, first), (other, last) = items[side][0], items[side][-1]
        span = _span((one, first.run), (other, last.run))
        spans.append(f"{span} gave {name} ({count} of {len(answers[side])})")
    return ", ".join(spans)


def _span(first: tuple[Observed, Run], last: tuple[Observed, Run]) -> str:
    """``runs 0–13``, or across attempts ``attempt 1 run 0 – attempt 2 run 13``."""
    (start, one), (end, other) = first, last
    if start.attempt != end.attempt:
        return f"attempt {start.attempt + 1} run {one.index} – attempt {end.attempt + 1} run {other.index}"
    which = f"attempt {start.attempt + 1} " if start.attempt else ""
    return which + (f"run {one.index}" if one is other else f"runs {one.index}–{other.index}")


def _what_changed(
    items: Sequence[tuple[Observed, Outcome]], members: Sequence[int], at: int, observed: Sequence[Observed]
) -> str:
    cached = sum(observed[place].cached for place in members)
    live = sum(observed[place].live for place in members)
    if cached and live:
        # With one call a run, and the older samples first.
        which = "exactly those before the change" if cached == at and cached + live == len(items) else "others are new"
        return (
            f"{cached} answers are from the store, {which}, so the model was probably changed since they were asked;"
            " ask all anew with --determinism-cache=refresh"
        )
    return (
        "something was changed while the runs were made (a new version, another replica, a server that got busy); run"
        " again with --determinism-cache=refresh, and pin the model's version"
    )


def error_pattern(observed: Sequence[Observed]) -> dict[int, Finding]:
    """API errors that are not spread over the runs under a load at random.

    Looked for are first runs that alone failed (as in `first_run_differs`), a place before and after which runs fail
    differently often (`change_point`), and a period of at most 10 runs (`all_in_one_class`); for all errors and, where
    there are several kinds, for each of the three most frequent ones. Each of these tests has its share of 1 %, which
    is the false-alarm rate of all of them together.

    Returns:
        by place of the experiment: the finding of its load.
    """
    by_load = _by_load(observed)
    found = {}
    for members in by_load.values():
        experiments = [observed[place] for place in members]
        kinds = Counter(_kind(run) for one in experiments for run in one.runs if run.error is not None)
        if not kinds:
            continue
        looked_at = [tuple(kinds), *((kind,) for kind, _ in kinds.most_common(KINDS) if len(kinds) > 1)]
        share = ALPHA / (3 * len(looked_at) * len(by_load))
        patterns = [
            pattern
            for errors in (_Errors(experiments, these) for these in looked_at)
            for pattern in (errors.in_first_runs(), errors.from_a_place_on(), errors.by_period())
        ]
        chance, message = min(patterns, key=lambda pattern: pattern[0])
        if chance <= share:
            found.update(dict.fromkeys(members, Finding("error-pattern", message)))
    return found


def _kind(run: Run) -> str:
    """``HTTP 429``, or the name of the exception; empty without an error."""
    return (run.error or "").partition(":")[0]


class _Errors:
    """The errors of some kinds in the runs under one load. Each pattern comes as its chance, and what to say of it."""

    def __init__(self, experiments: Sequence[Observed], kinds: Sequence[str]) -> None:
        self._experiments = experiments
        self._kinds = kinds
        self._runs = [(one, run) for one in experiments for run in one.runs]
        self._failed = [_kind(run) in kinds for _, run in self._runs]
        self._name = " or ".join(sorted(kinds)[:KINDS])

    def in_first_runs(self) -> tuple[float, str]:
        failed = [[_kind(run) in self._kinds for run in one.runs] for one in self._experiments]
        alone = sum(flags[:1] == [True] and sum(flags) == 1 for flags in failed)
        chance = at_least(alone, (1 / len(flags) if sum(flags) == 1 else 0.0 for flags in failed))
        where = f"run 0 alone failed with {self._name}, in {alone} of {len(failed)} experiments"
        return chance if alone else 1.0, f"{where} ({p_in_words(chance)}): {self._was_not_ready}"

    def from_a_place_on(self) -> tuple[float, str]:
        at, chance = change_point(self._failed)
        if not at:
            return 1.0, ""
        parts = (slice(0, at), slice(at, len(self._runs)))
        (few, early), (many, late) = ((sum(self._failed[part]), len(self._failed[part])) for part in parts)
        before, after = (_span(self._runs[part][0], self._runs[part][-1]) for part in parts)
        where = f"{few} of {early} failed with {self._name} in {before}, {many} of {late} in {after}"
        why = self._ran_out if many / late > few / early else self._was_not_ready
        return chance, f"{where} ({p_in_words(chance)}): {why}"

    def by_period(self) -> tuple[float, str]:
        period, place, chance = all_in_one_class(self._failed, LONGEST_PERIOD)
        found, ordinal = sum(self._failed[place::period]), {2: "2nd", 3: "3rd"}.get(period, f"{period}th")
        where = (
            f"{found} of {sum(self._failed)} that failed with {self._name} are every {ordinal} run from run {place} on"
        )
        return chance, (
            f"{where} ({p_in_words(chance)}): one of several replicas behind the endpoint may be broken; ask whoever"
            " runs it"
        )

    _was_not_ready = "the server was not ready yet; warm it up before the runs, then rerun: what arrived is kept"

    @property
    def _ran_out(self) -> str:
        if "HTTP 429" in self._kinds:
            return (
                "the provider's rate or quota was used up; ask more slowly (--determinism-rate,"
                " --determinism-concurrency): what arrived is kept, so a rerun asks for the rest only"
            )
        return "the server failed under way; look at its log: what arrived is kept, so a rerun asks for the rest only"


def _by_load(observed: Sequence[Observed]) -> dict[str, list[int]]:
    """The places of the experiments under each load, in the order of their attempts."""
    places: dict[str, list[int]] = {}
    for place, one in enumerate(observed):
        places.setdefault(one.load, []).append(place)
    return places
