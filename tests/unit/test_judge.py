"""Which verdict a test gets, in which words, and because of which setting."""

from pathlib import Path

import httpx
import pytest

from pytest_llm_determinism import settings as table
from pytest_llm_determinism.analysis.compare import RunOutput
from pytest_llm_determinism.analysis.findings import Finding
from pytest_llm_determinism.analysis.groups import MissingCall, Outcome, runs_in_words
from pytest_llm_determinism.analysis.statistics import agreement, agreement_lower
from pytest_llm_determinism.observe import active
from pytest_llm_determinism.repeat import Repeater
from pytest_llm_determinism.results import BodyFailure, CallCount, Experiment, Usage
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.session import Session
from pytest_llm_determinism.settings import Value
from pytest_llm_determinism.verdict import Evidence, Verdict, in_short, judge


def settings(**given):
    """Settings of which these are given by the marker."""
    marker = {name: Value(value, "marker", "@pytest.mark.deterministic") for name, value in given.items()}
    return table.resolve({}, marker, {})


def experiment(*counts, errors=(), load="burst", live=30, findings=(), confidence=0.95, completed=None, runs=None):
    """An experiment whose groups have these sizes; `errors` are texts with their runs."""
    failed = sum(len(indices) for _, indices in errors)
    done = sum(counts) if completed is None else completed
    return Experiment(
        load=load,
        attempt=0,
        seed=1,
        neighbour_calls=0,
        runs=done + failed if runs is None else runs,
        completed=done,
        errors=failed,
        unique=len(counts),
        unique_raw=len(counts),
        agreement=agreement(counts),
        agreement_lower=agreement_lower(counts, confidence),
        confidence=confidence,
        groups=(),
        divergence=None,
        findings=tuple(findings),
        steps=(),
        calls=CallCount(live, 0, None),
        usage=Usage(None, None),
        seconds=1.0,
        error_messages=tuple(BodyFailure(text, tuple(indices)) for text, indices in errors),
    )


def evidence(*experiments, counts=None, parted=None, silent=(), **more):
    """What experiments showed; `counts` are the groups over all, needed where there is not one in the first, `silent`
    runs without output."""
    if counts is None:
        counts = [found.completed for found in experiments[:1] if found.unique]
    return Evidence(
        experiments, counts, len(counts) if parted is None else parted, silent=[*map(outcome, silent)], **more
    )


def outcome(index):
    return Outcome(Run(index, ()), (), RunOutput(()))


def missing(step, made, absent):
    return MissingCall(step, tuple(map(outcome, made)), tuple(map(outcome, absent)))


MISSING = missing(0, [0], [1, 2])
MISSING_REASON = "runs 1, 2 made no model call at step 1, where run 0 did, although nothing had parted them"
MISSING_ADVICE = (
    "an application's own response cache (such as functools.cache) hides repeated calls; switch it off or clear it in"
    " the body, so that every run asks"
)
LOAD_ADVICE = "see whether load matters: --determinism-load=solo,burst (company in the server's batch, or not)"


# In words


@pytest.mark.parametrize(
    ("counts", "text"),
    [
        ([], "0 unique of 0"),
        ([30], "1 unique of 30"),
        ([27, 2, 1], "3 unique of 30 (27/2/1)"),
        ([9, 4, 3, 2, 1, 1], "6 unique of 20 (9/4/3/2/1/1)"),
        ([9, 4, 3, 2, 1, 1, 1], "7 unique of 21 (9/4/3/2/1/1/…)"),
    ],
)
def test_groups_in_short(counts, text):
    assert in_short(counts) == text


@pytest.mark.parametrize(
    ("indices", "text"),
    [
        ([4], "run 4"),
        ([4, 11, 29], "runs 4, 11, 29"),
        (range(8), "runs 0, 1, 2, 3, 4, 5, 6, 7"),
        (range(9), "runs 0, 1, 2, 3, 4, 5, 6, 7, …"),
    ],
)
def test_runs_in_words(indices, text):
    assert runs_in_words(indices) == text


# passed


def test_one_output_passes():
    assert judge(settings(), evidence(experiment(30))) == Verdict("passed", "1 unique of 30")


def test_as_many_outputs_as_allowed_pass():
    assert judge(settings(max_unique=2), evidence(experiment(28, 2), counts=[28, 2])) == Verdict(
        "passed", "2 unique of 30 (28/2)"
    )


def test_enough_agreement_passes():
    found = judge(settings(max_unique=3, min_agreement=0.9), evidence(experiment(27, 2, 1), counts=[27, 2, 1]))
    assert found == Verdict("passed", "3 unique of 30 (27/2/1)")


def test_a_bound_that_is_high_enough_passes():
    assert judge(settings(min_agreement=0.9, confidence=0.95), evidence(experiment(30))) == Verdict(
        "passed", "1 unique of 30"
    )


def test_as_many_errors_as_allowed_pass():
    found = judge(settings(max_errors=2), evidence(experiment(28, errors=[("HTTP 500: ", [3, 4])])))
    assert found == Verdict("passed", "1 unique of 28")


# max_unique


@pytest.mark.parametrize(
    ("cli", "marker", "file", "decided_by"),
    [
        ({}, {}, {}, "max_unique=1 (default)"),
        ({}, {"max_unique": (2, "@pytest.mark.deterministic")}, {}, "max_unique=2 (@pytest.mark.deterministic)"),
        (
            {},
            {},
            {"max_unique": (2, "determinism_max_unique in tox.ini")},
            "max_unique=2 (determinism_max_unique in tox.ini)",
        ),
        (
            {"max_unique": (1, "--determinism-max-unique")},
            {"max_unique": (5, "m")},
            {"max_unique": (6, "f")},
            "max_unique=1 (--determinism-max-unique)",
        ),
    ],
)
def test_more_outputs_than_allowed_because_of_a_setting_with_its_source(cli, marker, file, decided_by):
    given = [
        {name: Value(value, source, where) for name, (value, where) in values.items()}
        for source, values in (("cli", cli), ("marker", marker), ("ini", file))
    ]
    found = judge(table.resolve(*given), evidence(experiment(27, 2, 1), counts=[27, 2, 1]))
    allowed = decided_by.partition(" ")[0]
    assert found == Verdict("nondeterministic", f"3 unique of 30 (27/2/1), {allowed}", decided_by, LOAD_ADVICE)


def test_experiments_that_are_each_stable_but_answer_differently():
    both = experiment(30, load="solo"), experiment(30)
    found = judge(settings(load=("solo", "burst")), evidence(*both, counts=[30, 30]))
    assert (found.verdict, found.reason) == ("nondeterministic", "2 unique of 60 (30/30), max_unique=1")


# min_agreement


def test_too_little_agreement():
    found = judge(settings(max_unique=3, min_agreement=0.95), evidence(experiment(27, 2, 1), counts=[27, 2, 1]))
    assert found == Verdict(
        "nondeterministic",
        "3 unique of 30 (27/2/1), agreement 90.0 %, min_agreement=0.95",
        "min_agreement=0.95 (@pytest.mark.deterministic)",
        LOAD_ADVICE,
    )


def test_the_worst_experiment_counts():
    both = experiment(30, load="solo"), experiment(20, 10)
    found = judge(settings(max_unique=2, min_agreement=0.8), evidence(*both, counts=[50, 10]))
    assert found.reason == "2 unique of 60 (50/10), agreement 66.7 %, min_agreement=0.8"


def test_agreement_over_all_experiments_counts():
    both = experiment(30, load="solo"), experiment(30)
    found = judge(settings(max_unique=2, min_agreement=0.8), evidence(*both, counts=[30, 30]))
    assert found.reason == "2 unique of 60 (30/30), agreement 50.0 %, min_agreement=0.8"


def test_a_bound_that_is_too_low():
    found = judge(
        settings(max_unique=2, min_agreement=0.9, confidence=0.99),
        evidence(experiment(29, 1, confidence=0.99), counts=[29, 1]),
    )
    assert found == Verdict(
        "nondeterministic",
        "2 unique of 30 (29/1), agreement at least 79.2 % at 99.0 %, min_agreement=0.9",
        "min_agreement=0.9 (@pytest.mark.deterministic) with confidence=0.99 (@pytest.mark.deterministic)",
        LOAD_ADVICE,
    )


def test_a_bound_that_is_too_low_for_want_of_runs():
    found = judge(
        settings(min_agreement=0.9, confidence=0.95, max_errors=2),
        evidence(experiment(28, errors=[("HTTP 500: ", [3, 4])])),
    )
    assert found == Verdict(
        "inconclusive",
        "1 unique of 28, agreement at least 89.5 % at 95.0 %, min_agreement=0.9",
        "min_agreement=0.9 (@pytest.mark.deterministic) with confidence=0.95 (@pytest.mark.deterministic)",
        "30 runs that all agree and end in no error show it: rerun, which asks again for the runs that ended in one, or"
        " set runs=32",
    )


def test_the_lowest_bound_counts():
    both = experiment(30, load="solo"), experiment(20)
    found = judge(settings(min_agreement=0.9, confidence=0.95), evidence(*both, counts=[50]))
    assert found.reason == "1 unique of 50, agreement at least 85.4 % at 95.0 %, min_agreement=0.9"


def test_the_bound_over_all_experiments_counts():
    both = experiment(30, load="solo"), experiment(30)
    found = judge(settings(max_unique=2, min_agreement=0.5, confidence=0.95), evidence(*both, counts=[30, 30]))
    assert found.verdict == "nondeterministic"
    assert found.reason == "2 unique of 60 (30/30), agreement at least 37.8 % at 95.0 %, min_agreement=0.5"


def test_confidence_alone_decides_nothing():
    assert judge(settings(confidence=0.95), evidence(experiment(3))) == Verdict("passed", "1 unique of 3")


# inconclusive


def test_a_call_that_was_refused():
    reason = "a sample is not in the store and cache=replay asks no model (run 3, chat completions); fill the store"
    assert judge(settings(), evidence(experiment(3), refusal=reason)) == Verdict("inconclusive", reason)
    assert judge(settings(), evidence(refusal=reason)) == Verdict("inconclusive", reason)


def test_more_errors_than_allowed():
    failed = experiment(27, errors=[("HTTP 500: overloaded", [4, 5]), ("TimeoutError: ", [9])])
    assert judge(settings(), evidence(failed)) == Verdict(
        "inconclusive",
        "3 of 30 runs ended in an API error, max_errors=0: HTTP 500: overloaded",
        "max_errors=0 (default)",
        "look at the error; samples that arrived are kept, so a rerun asks only for the others",
    )


def test_the_experiment_with_the_most_errors_is_told():
    both = experiment(9, errors=[("HTTP 500: ", [4])], load="solo"), experiment(8, errors=[("HTTP 429: ", [4, 5])])
    found = judge(settings(max_errors=1), evidence(*both, counts=[17]))
    assert found.reason == "2 of 10 runs under burst ended in an API error, max_errors=1: HTTP 429: "
    assert found.decided_by == "max_errors=1 (@pytest.mark.deterministic)"


def test_a_model_that_rejects_temperature():
    error = "HTTP 400: Unsupported parameter: 'temperature' is not supported with this model."
    found = judge(settings(), evidence(experiment(errors=[(error, range(30))])))
    assert found.reason == f"30 of 30 runs ended in an API error, max_errors=0: {error}"
    assert found.advice == (
        "this model may reject temperature: leave it out of the request (llm: temperature=None or"
        " --determinism-temperature=none)"
    )


@pytest.mark.parametrize("error", ["HTTP 400: max_tokens is too large", "HTTP 500: temperature of the GPU"])
def test_another_error_is_not_taken_for_that(error):
    found = judge(settings(), evidence(experiment(errors=[(error, [0])])))
    assert found.advice == "look at the error; samples that arrived are kept, so a rerun asks only for the others"


def test_the_most_frequent_error_is_told():
    failed = experiment(27, errors=[("TimeoutError", [9]), ("HTTP 500: overloaded", [4, 5])])
    assert judge(settings(), evidence(failed)).reason.endswith("max_errors=0: HTTP 500: overloaded")


KEPT = "samples that arrived are kept, so a rerun asks only for the others"


@pytest.mark.parametrize(
    ("error", "advice"),
    [
        ("HTTP 429: slow down", f"ask less at once than concurrency=8 (default), or let the client retry; {KEPT}"),
        (
            "HTTP 401: Incorrect API key provided",
            f"the endpoint refused the credentials: set the API key that the client reads; {KEPT}",
        ),
        ("HTTP 500: sorry", f"look at the error; {KEPT}"),
        (
            "RuntimeError: Event loop is closed (asking api.test)",
            "an async client was kept over several event loops: make one for each, or make the test async",
        ),
    ],
)
def test_what_to_do_about_an_error(error, advice):
    assert judge(settings(), evidence(experiment(errors=[(error, [0])]))).advice == advice


SILENCE = Verdict(
    "inconclusive",
    "no model call was observed and nothing was recorded",
    None,
    "check that the body asks a model, and not a cache; one that is reached by something that cannot be observed (a"
    " subprocess, gRPC, raw sockets) has its answer recorded with the fixture: determinism.record(answer)",
)


def test_no_output_at_all():
    assert judge(settings(), evidence(experiment(completed=30, live=0))) == SILENCE
    assert judge(settings(), evidence()) == SILENCE


RECORD = "if a model is asked that way, record its answer with the fixture: determinism.record(answer)"
READ = (
    "if a model is asked that way, read its answer with the hook pytest_determinism_output, or record it with the"
    " fixture: determinism.record(answer)"
)


@pytest.mark.parametrize(
    ("noticed", "reason", "advice"),
    [
        ({"unseen": ["grpc is loaded"]}, "grpc is loaded", RECORD),
        ({"passed": ["POST /a"]}, "POST /a is no known model call", READ),
        ({"passed": ["POST /a", "GET /b"]}, "POST /a and GET /b are no known model calls", READ),
        (
            {"passed": ["POST /a"], "unseen": ["this", "that"]},
            "POST /a is no known model call; this; that",
            READ,
        ),
    ],
)
def test_what_was_there_instead_of_a_model_call(noticed, reason, advice):
    found = judge(settings(), evidence(experiment(completed=30, live=0), **noticed))
    assert found == Verdict("inconclusive", f"no model call was observed: {reason}", None, advice)


def test_what_was_noticed_beside_an_output_is_not_told():
    assert judge(settings(), evidence(experiment(30), passed=["POST /a"], unseen=["this"])).verdict == "passed"


def test_runs_of_several_experiments_are_told_apart():
    made, here, there = map(outcome, (0, 1, 0))
    titles = {id(made): "solo", id(here): "solo", id(there): "burst, attempt 2"}
    absent = evidence(experiment(1), missing=MissingCall(1, (made,), (here, there)), titles=titles)
    assert judge(settings(), absent).reason == (
        "run 1 under solo and run 0 under burst, attempt 2 made no model call at step 2, where run 0 under solo did,"
        " although nothing had parted them"
    )


def test_no_output_in_the_runs_that_ended_in_no_error():
    failed = experiment(completed=28, errors=[("HTTP 500: ", [0, 1])])
    assert judge(settings(max_errors=2), evidence(failed, silent=range(2, 30))) == SILENCE


def test_runs_that_made_no_call():
    found = judge(settings(), evidence(experiment(3), missing=MISSING))
    assert found == Verdict("inconclusive", MISSING_REASON, None, MISSING_ADVICE)


def test_a_run_that_made_no_call_at_a_later_step():
    found = judge(settings(), evidence(experiment(4), missing=missing(2, [0, 1, 3], [2])))
    assert found.reason == (
        "run 2 made no model call at step 3, where runs 0, 1, 3 did, although nothing had parted them"
    )


def test_runs_that_recorded_nothing():
    assert judge(settings(), evidence(experiment(3), silent=[1, 2])) == Verdict(
        "inconclusive",
        "runs 1, 2 had no output, while others had one",
        None,
        "let every run ask the model, or call determinism.record(value) in every run",
    )


@pytest.mark.parametrize(
    ("found", "counts", "reason"),
    [
        (experiment(1, runs=30), [1], "1 of 30 runs completed, and one run shows nothing"),
        (experiment(1, errors=[("HTTP 500: ", range(29))]), [1], "1 of 30 runs completed, and one run shows nothing"),
        (experiment(errors=[("HTTP 500: ", range(30))]), [], "0 of 30 runs completed, and one run shows nothing"),
    ],
)
def test_too_few_runs_completed(found, counts, reason):
    assert judge(settings(max_errors=30), evidence(found, counts=counts)) == Verdict(
        "inconclusive", reason, None, "raise runs, or look at the errors"
    )


def test_the_experiment_with_the_fewest_runs_completed_is_told():
    found = judge(settings(), evidence(experiment(30), experiment(1, runs=30), counts=[31]))
    assert found.reason == "1 of 30 runs completed, and one run shows nothing"


# Precedence

FAILED = experiment(20, 5, errors=[("HTTP 500: ", range(5))])


def everything(counts=(20, 5), parted=2):
    """Evidence in which everything is wrong at once."""
    return evidence(FAILED, counts=list(counts), parted=parted, missing=MISSING, silent=[7], refusal="refused")


def test_what_is_shown_beats_what_is_missing():
    found = judge(settings(min_agreement=0.99), everything())
    assert (found.verdict, found.reason) == ("nondeterministic", "2 unique of 25 (20/5), max_unique=1")


def test_what_a_missing_call_explains_is_not_shown():
    found = judge(settings(), evidence(experiment(20, 10), counts=[20, 10], parted=1, missing=MISSING))
    assert (found.verdict, found.reason) == ("inconclusive", MISSING_REASON)


def test_what_is_missing_beats_too_little_agreement():
    """More runs, or runs that ask, could raise the agreement."""
    gate = settings(max_unique=2, min_agreement=0.99)
    for wrong in ({"refusal": "refused"}, {"missing": MISSING}, {"silent": [7]}):
        assert judge(gate, evidence(experiment(20, 5), counts=[20, 5], **wrong)).verdict == "inconclusive"
    assert judge(gate, evidence(FAILED, counts=[20, 5])).verdict == "inconclusive"
    assert judge(gate, evidence(experiment(20, 5), counts=[20, 5])).verdict == "nondeterministic"


def test_the_order_of_what_is_missing():
    gate = settings(max_unique=2)
    few = experiment(1, errors=[("HTTP 500: ", range(5))])
    order = [
        (evidence(few, counts=[1], missing=MISSING, silent=[7], refusal="refused"), "refused"),
        (evidence(few, counts=[1], missing=MISSING, silent=[7]), "5 of 6 runs ended in an API error"),
        (evidence(experiment(1), counts=[], missing=MISSING, silent=[7]), "no model call was observed"),
        (evidence(experiment(1), counts=[1], missing=MISSING, silent=[7]), "runs 1, 2 made no model call"),
        (evidence(experiment(1), counts=[1], silent=[7]), "run 7 had no output"),
        (evidence(experiment(1), counts=[1]), "1 of 1 runs completed"),
    ]
    for found, reason in order:
        verdict = judge(gate, found)
        assert verdict.verdict == "inconclusive"
        assert verdict.reason.startswith(reason)


# What to try next


def advice(*findings, live=30, **given):
    found = [Finding(code, f"about {code}") for code in findings]
    return judge(settings(**given), evidence(experiment(20, 10, findings=found, live=live), counts=[20, 10])).advice


def test_what_to_try_next():
    assert advice("formatting-only", "sampling-on", "prompt-varies") == (
        "make the test send the same request in every run; until then it is not the model that is tested"
    )
    assert advice("formatting-only", "sampling-on") == "send temperature=0"
    assert advice("formatting-only") == "about formatting-only"
    assert advice(min_agreement=0.5) == (
        "min_agreement is judged after max_unique: raise max_unique to let min_agreement alone decide"
    )
    assert advice("degenerate-loop") == LOAD_ADVICE
    assert advice(load=("solo", "burst")) == (
        "pin the model's version, ask the provider for batch-invariant serving, or gate on min_agreement"
    )
    assert advice(live=0) == "what was recorded differs; record only what should be the same in every run"


# From runs to a verdict


def result(body, tmp_path: Path, **given):
    """The result of a body that is given the number of its call, over all experiments."""
    session = Session({"cache": Value("off", "cli", "--determinism-cache")}, {}, tmp_path)
    gate = session.settings(
        {name: Value(value, "marker", "@pytest.mark.deterministic") for name, value in given.items()}
    )
    repeater = Repeater(session, gate, session.comparison(gate))
    numbers = iter(range(1000))
    repeater.run(lambda: body(next(numbers)))
    return repeater.result("test_it.py::test")


def record(value):
    active.sampler.record(value)


def ask(prompt, answer):
    def respond(request):
        return httpx.Response(200, json={"choices": [{"message": {"content": answer}, "finish_reason": "stop"}]})

    with httpx.Client(transport=httpx.MockTransport(respond)) as client:
        client.post(
            "http://localhost/v1/chat/completions",
            json={"model": "m", "temperature": 0, "messages": [{"role": "user", "content": prompt}]},
        )


def test_experiments_that_are_stable_but_differ_depend_on_the_load(tmp_path):
    found = result(lambda number: record("ab"[number // 3]), tmp_path, runs=3, load=("solo", "burst"))
    assert (found.verdict, found.reason, found.counts) == (
        "nondeterministic",
        "2 unique of 6 (3/3), max_unique=1",
        (3, 3),
    )
    message = (
        "each load is stable by itself, but they answer differently: 1 unique under solo, 1 unique under burst,"
        " 2 over all; ask for batch-invariant serving, or judge the load you serve under"
    )
    assert [experiment.findings for experiment in found.experiments] == [(Finding("load-sensitive", message),)] * 2


def test_attempts_that_differ_under_each_load_do_not_depend_on_the_load(tmp_path):
    found = result(lambda number: record("ab"[number // 6]), tmp_path, runs=3, attempts=2, load=("solo", "burst"))
    assert [(one.load, one.attempt, one.unique) for one in found.experiments] == [
        ("solo", 0, 1),
        ("burst", 0, 1),
        ("solo", 1, 1),
        ("burst", 1, 1),
    ]
    assert [experiment.findings for experiment in found.experiments] == [()] * 4


def test_runs_that_miss_different_calls_show_no_difference(tmp_path):
    def body(number):
        for prompt in "ABC":
            if number == 0 or number - 1 != "ABC".index(prompt):
                ask(prompt, f"about {prompt}")

    found = result(body, tmp_path, runs=5)
    assert (found.verdict, found.unique) == ("inconclusive", 4)
    assert found.reason == (
        "run 1 made no model call at step 1, where runs 0, 2, 3, 4 did, although nothing had parted them"
    )


def test_a_missing_call_does_not_hide_a_difference(tmp_path):
    found = result(lambda number: number == 2 or ask("A", "yes" if number else "no"), tmp_path, runs=4)
    assert (found.verdict, found.reason) == ("nondeterministic", "2 unique of 3 (2/1), max_unique=1")
