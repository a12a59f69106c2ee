"""From settings and experiments to a verdict: which one, why in one line, which setting decided, what to try next."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pytest_llm_determinism.analysis.chance import p_in_words
from pytest_llm_determinism.analysis.drift import RATE
from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.groups import MissingCall, Outcome, runs_in_words
from pytest_llm_determinism.analysis.statistics import agreement, agreement_lower, percent, runs_needed
from pytest_llm_determinism.results import Drift, Experiment, Shift
from pytest_llm_determinism.settings import Settings

TEMPERATURE_ADVICE = (
    "this model may reject temperature: leave it out of the request (llm: temperature=None or"
    " --determinism-temperature=none)"
)

PASSED = "passed"
NONDETERMINISTIC = "nondeterministic"
INCONCLUSIVE = "inconclusive"
DRIFTED = "drifted"
VERDICTS = (PASSED, NONDETERMINISTIC, INCONCLUSIVE, DRIFTED)

RENEW = "llm-determinism report baseline REPORT.json -o BASELINE.json"
"""How to make a baseline of a session's report."""


@dataclass(frozen=True, slots=True)
class Verdict:
    """A verdict with its one-line reason, the setting that decided, and one line of what to try next."""

    verdict: str
    reason: str
    decided_by: str | None = None
    advice: str | None = None


@dataclass(frozen=True, slots=True)
class Evidence:
    """What the runs of one test showed, over all its experiments.

    Attributes:
        counts: sizes of the groups over all experiments together, the largest first.
        parted: groups left when runs that missed a call are not counted: what no missing call explains.
        missing: runs that made no call where others did.
        silent: runs that got through without any output while others had one.
        refusal: why a call was not made, if one was refused.
        titles: the experiment of an outcome, by its id, where there are several.
        passed: requests that were seen and are no known model call.
        unseen: what was noticed of what cannot be observed, each a clause.
    """

    experiments: Sequence[Experiment]
    counts: Sequence[int]
    parted: int
    missing: MissingCall | None = None
    silent: Sequence[Outcome] = ()
    refusal: str | None = None
    titles: Mapping[int, str] = field(default_factory=dict)
    passed: Sequence[str] = ()
    unseen: Sequence[str] = ()


def judge(settings: Settings, evidence: Evidence) -> Verdict:
    """The verdict on one test. What is shown beats what is missing: runs that part cannot be made one by more runs."""
    shape = in_short(evidence.counts)
    if evidence.parted > settings.max_unique:
        return Verdict(
            NONDETERMINISTIC,
            f"{shape}, max_unique={settings.max_unique}",
            settings.quote("max_unique"),
            _advice(settings, evidence),
        )
    return _no_verdict(settings, evidence) or _too_little_agreement(settings, evidence, shape) or Verdict(PASSED, shape)


def against_baseline(settings: Settings, verdict: Verdict, drift: Drift, compared: int) -> Verdict:
    """The verdict once the answers of a test that passes were held against those of the baseline.

    Drift is told at once where nothing that other tests show can change that: the one stable answer is another, or the
    chance is so small that it stands out whatever the chances of the others are. `Baseline.settled` finds the rest.

    Args:
        compared: tests of the session that the baseline has, at least.
    """
    if verdict.verdict != PASSED:
        return verdict
    quoted = settings.quote("baseline")
    if drift.refused is not None:
        return Verdict(
            INCONCLUSIVE,
            f"{verdict.reason}, but {drift.refused}",
            quoted,
            f"if it is meant, renew the baseline: {RENEW}",
        )
    if drift.replaced or (drift.chance is not None and drift.chance <= RATE / compared):
        return drifted(verdict.reason, drift, quoted)
    return verdict


def drifted(shape: str, drift: Drift, quoted: str, of: int | None = None) -> Verdict:
    """The verdict on a test whose answers are other ones than those of the baseline.

    Args:
        shape: the answers in short, such as ``1 unique of 30``.
        quoted: the setting that named the baseline.
        of: number of tests that were compared, where only all of them together show it.
    """
    worst = min(drift.shifts, key=lambda shift: (not shift.replaced, shift.chance))
    where = f" under {worst.load}" if len(drift.shifts) > 1 else ""
    if worst.replaced:
        then = next(answer for answer in worst.answers if answer.before)
        now = next(answer for answer in worst.answers if answer.after)
        changed = f"another than in the baseline{where}: {_became(then.output, now.output)}"
    else:
        together = "" if of is None else f", which stands out among {of} tests"
        changed = (
            f"distributed otherwise than in the baseline{where}: {_beside(worst)}"
            f" ({p_in_words(drift.chance or 0.0)}{together})"
        )
    return Verdict(
        DRIFTED,
        f"{shape}, {changed}",
        quoted,
        f"look at what became of the answers; if the new ones are right, renew the baseline: {RENEW}",
    )


def _became(then: str, now: str) -> str:
    """``“refund” became “replacement”``, about the place where they part."""
    parted = next((place for place, (one, other) in enumerate(zip(then, now, strict=False)) if one != other), 0)
    if then == now:
        return f"what begins with “{excerpt(then, width=24)}” goes on in another way"
    return f"“{excerpt(then, parted, width=24)}” became “{excerpt(now, parted, width=24)}”"


def _beside(shift: Shift) -> str:
    """``30/0 then, 21/9 now``."""
    shown = shift.answers[:6]
    more = "/…" if shift.more or len(shift.answers) > 6 else ""
    then, now = ("/".join(map(str, counts)) for counts in zip(*((a.before, a.after) for a in shown), strict=True))
    return f"{then}{more} then, {now}{more} now"


def in_short(counts: Sequence[int]) -> str:
    """``3 unique of 30 (27/2/1)``; of many groups the first are shown."""
    if len(counts) <= 1:
        return f"{len(counts)} unique of {sum(counts)}"
    shown = "/".join(map(str, counts[:6])) + ("/…" if len(counts) > 6 else "")
    return f"{len(counts)} unique of {sum(counts)} ({shown})"


def _no_verdict(settings: Settings, evidence: Evidence) -> Verdict | None:
    experiments = evidence.experiments
    errors = max((found.errors for found in experiments), default=0)
    if evidence.refusal is not None:
        return Verdict(INCONCLUSIVE, evidence.refusal)
    if errors > settings.max_errors:
        worst = max(experiments, key=lambda found: found.errors)
        where = f" under {worst.title}" if len(experiments) > 1 else ""
        error = max(worst.error_messages, key=lambda kind: len(kind.runs)).error
        return Verdict(
            INCONCLUSIVE,
            f"{errors} of {worst.runs} runs{where} ended in an API error, max_errors={settings.max_errors}: {error}",
            settings.quote("max_errors"),
            _error_advice(settings, error),
        )
    alone = next((found for found in experiments if found.load == "crowd" and _is_alone(found)), None)
    if alone is not None:
        return Verdict(
            INCONCLUSIVE,
            f"under {alone.title} {alone.calls.live} calls had no neighbours: what answers in place of a server (a"
            " mock, a cassette, a test client) is asked for nothing else",
            None,
            "ask a server, or choose load=solo or load=burst",
        )
    if not evidence.counts and (not errors or any(found.completed for found in experiments)):
        return _nothing_observed(evidence)
    if evidence.missing is not None:
        missing = evidence.missing
        return Verdict(
            INCONCLUSIVE,
            f"{_which(missing.missing, evidence)} made no model call at step {missing.step + 1}, where"
            f" {_which(missing.made, evidence)} did, although nothing had parted them",
            None,
            "an application's own response cache (such as functools.cache) hides repeated calls; switch it off or"
            " clear it in the body, so that every run asks",
        )
    if evidence.silent:
        return Verdict(
            INCONCLUSIVE,
            f"{_which(evidence.silent, evidence)} had no output, while others had one",
            None,
            "let every run ask the model, or call determinism.record(value) in every run",
        )
    fewest = min(experiments, key=lambda found: found.completed)
    if fewest.completed < 2:
        return Verdict(
            INCONCLUSIVE,
            f"{fewest.completed} of {fewest.runs} runs completed, and one run shows nothing",
            None,
            "raise runs, or look at the errors",
        )
    return None


def _is_alone(experiment: Experiment) -> bool:
    return bool(experiment.calls.live) and not experiment.neighbour_calls


def _error_advice(settings: Settings, error: str) -> str:
    if "HTTP 400" in error and "temperature" in error:
        return TEMPERATURE_ADVICE
    kept = "samples that arrived are kept, so a rerun asks only for the others"
    if settings.cache == "off":
        kept = f"with {settings.quote('cache')} nothing is kept"
    if "HTTP 429" in error:
        return f"ask less at once than {settings.quote('concurrency')}, or let the client retry; {kept}"
    if "HTTP 401" in error or "HTTP 403" in error:
        return f"the endpoint refused the credentials: set the API key that the client reads; {kept}"
    if "Event loop is closed" in error:
        return "an async client was kept over several event loops: make one for each, or make the test async"
    return f"look at the error; {kept}"


def _which(items: Sequence[Outcome], evidence: Evidence) -> str:
    """``runs 1, 2``, or where several experiments are judged together, ``run 1 under solo and run 2 under burst``."""
    by_title: dict[str, list[int]] = {}
    for item in items:
        by_title.setdefault(evidence.titles.get(id(item), ""), []).append(item.run.index)
    return " and ".join(
        runs_in_words(indices) + (f" under {title}" if title else "") for title, indices in by_title.items()
    )


def _nothing_observed(evidence: Evidence) -> Verdict:
    """No output at all, with what was there instead of a model call."""
    known = "are no known model calls" if len(evidence.passed) > 1 else "is no known model call"
    noticed = [f"{' and '.join(evidence.passed)} {known}"] if evidence.passed else []
    noticed += evidence.unseen
    if not noticed:
        return Verdict(
            INCONCLUSIVE,
            "no model call was observed and nothing was recorded",
            None,
            "check that the body asks a model, and not a cache; one that is reached by something that cannot be"
            " observed (a subprocess, gRPC, raw sockets) has its answer recorded with the fixture:"
            " determinism.record(answer)",
        )
    how = (
        "read its answer with the hook pytest_determinism_output, or record it"
        if evidence.passed
        else "record its answer"
    )
    return Verdict(
        INCONCLUSIVE,
        f"no model call was observed: {'; '.join(noticed)}",
        None,
        f"if a model is asked that way, {how} with the fixture: determinism.record(answer)",
    )


def _too_little_agreement(settings: Settings, evidence: Evidence, shape: str) -> Verdict | None:
    wanted = settings.min_agreement
    if wanted is None:
        return None
    seen = min(agreement(evidence.counts), *(found.agreement for found in evidence.experiments))
    if seen < wanted:
        return Verdict(
            NONDETERMINISTIC,
            f"{shape}, agreement {percent(seen)}, min_agreement={wanted}",
            settings.quote("min_agreement"),
            _advice(settings, evidence),
        )
    if settings.confidence is None:
        return None
    bound = min(
        agreement_lower(evidence.counts, settings.confidence),
        *(found.agreement_lower for found in evidence.experiments),
    )
    if bound >= wanted:
        return None
    verdict = NONDETERMINISTIC if len(evidence.counts) > 1 else INCONCLUSIVE
    return Verdict(
        verdict,
        f"{shape}, agreement at least {percent(bound)} at {percent(settings.confidence)}, min_agreement={wanted}",
        f"{settings.quote('min_agreement')} with {settings.quote('confidence')}",
        _more_runs(wanted, settings.confidence, evidence.experiments)
        if verdict == INCONCLUSIVE
        else _advice(settings, evidence),
    )


def _more_runs(wanted: float, confidence: float, experiments: Sequence[Experiment]) -> str:
    """Settings that can never show the claim are refused before any call: it is errors that left too few runs."""
    needed = runs_needed(wanted, confidence)
    errors = max((found.errors for found in experiments), default=0)
    return (
        f"{needed} runs that all agree and end in no error show it: rerun, which asks again for the runs that ended in"
        f" one, or set runs={needed + errors}"
    )


def _advice(settings: Settings, evidence: Evidence) -> str:
    if not any(found.calls.live or found.calls.cached for found in evidence.experiments):
        return "what was recorded differs; record only what should be the same in every run"
    codes = {finding.code: finding for found in evidence.experiments for finding in found.findings}
    if "prompt-varies" in codes:
        return "make the test send the same request in every run; until then it is not the model that is tested"
    if "sampling-on" in codes:
        return "send temperature=0"
    if "formatting-only" in codes:
        return codes["formatting-only"].message
    if settings.max_unique == 1 and settings.min_agreement is not None:
        return "min_agreement is judged after max_unique: raise max_unique to let min_agreement alone decide"
    if settings.load == ("burst",):
        return "see whether load matters: --determinism-load=solo,burst (company in the server's batch, or not)"
    return "pin the model's version, ask the provider for batch-invariant serving, or gate on min_agreement"
