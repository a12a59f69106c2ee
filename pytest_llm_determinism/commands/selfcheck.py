"""``llm-determinism selfcheck``: positive and negative controls of the gate, with what is installed here.

pytest runs the tests of `controls` against the reference server, with the plugin as it is installed. What the gate says
is compared with what it has no part in: pytest's own word for each test, and the answers that the bodies were told, by
the ids that the server gave them. A control that holds whatever the gate does would show nothing.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import importlib.util
import json
import os
import platform
import re
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, NamedTuple
from xml.etree import ElementTree

from pytest_llm_determinism.commands import INTERRUPTED, USAGE_ERROR
from pytest_llm_determinism.endpoint import API_KEY, BASE_URL, PLACEHOLDER_KEY
from pytest_llm_determinism.results import PACKAGE
from pytest_llm_determinism.verdict import INCONCLUSIVE, NONDETERMINISTIC, PASSED

RUNS = 30
"""Of each control; docs/selfcheck.md says how seldom an unstable model answers alike in all of them."""

TRIES = 3
"""How often an unstable model is asked while it answers alike in all runs: then there was nothing to catch."""

TIME_LIMIT = 300.0
"""Seconds for one session of pytest, which takes about ten."""

WAYS = {
    "llm": "the llm fixture",
    "openai": "the openai client",
    "openai-async": "the async openai client",
    "httpx": "httpx",
    "httpx2": "httpx2",
    "urllib3": "urllib3",
    "aiohttp": "aiohttp",
}
"""The ways to ask in `controls`, and what they are called; the last ones are libraries that may be missing."""

STABLE = (("dense", "llm"), ("dense", "openai"), ("moe-dropless", "llm"), ("loop", "llm"))
UNSTABLE = (("dense-fp16", "llm"), ("dense-fp16", "openai"), *(("moe-capacity", way) for way in WAYS))
REPLAYED = (("dense", "llm"), ("dense", "openai"), ("dense-fp16", "llm"), ("dense-fp16", "openai"))

# What these set is no part of the question whether the gate works: options, plugins, endpoints, a proxy in front of
# loopback, files in which a CI system collects what is written.
_LEFT_OUT = re.compile(r"(PYTEST|OPENAI|GITHUB)_.*|PYTHONWARNINGS|(http|https|all)_proxy", re.IGNORECASE)

_CHANGES_THE_GATE = ("PYTEST_ADDOPTS", "PYTEST_PLUGINS", "PYTEST_DISABLE_PLUGIN_AUTOLOAD")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    selfcheck = commands.add_parser(
        "selfcheck",
        help="show that the gate can fail: known-stable and known-unstable models through the installed plugin",
        description="Run pytest with the installed plugin on the reference server, in a temporary folder and"
        " independent of any configuration: stable models must pass, unstable ones be caught, and nothing pass without"
        " evidence. Needs the extra 'reference'. Exit code: 0 if all controls hold, 1 if one does not, 2 if they cannot"
        " be run.",
    )
    selfcheck.set_defaults(run=_selfcheck)


@dataclass(frozen=True, slots=True)
class Seen:
    """What is known of one test of a session, from three sides.

    Attributes:
        outcome: pytest's own word for it: ``passed``, ``failed``, ``error``, ``skipped``; None if it was not run.
        error: what it ended with, in one line.
        result: its record in the JSON report, None if the gate has none.
        told: id and text of each answer that its body was told.
    """

    outcome: str | None = None
    error: str = ""
    result: dict[str, Any] | None = None
    told: Sequence[tuple[str, str]] = ()

    @property
    def ids(self) -> set[str]:
        return {id for id, _ in self.told}

    @property
    def texts(self) -> set[str]:
        return {text for _, text in self.told}

    @property
    def answered_alike(self) -> bool:
        """Whether the server made an answer for each run, and these were all the same."""
        return len(self.ids) == RUNS and len(self.texts) == 1


@dataclass(frozen=True, slots=True)
class Session:
    """One session of pytest: its exit code (None if it did not end in time), what it printed, its tests by name."""

    exit_code: int | None
    output: str
    tests: dict[str, Seen] = field(default_factory=dict)
    reported: bool = False

    def seen(self, name: str) -> Seen:
        return self.tests.get(name, Seen())

    def says(self, *words: str) -> bool:
        """Whether one line of what was printed has all of these."""
        return any(all(word in line for word in words) for line in self.output.splitlines())


class Problem(NamedTuple):
    """Why a control does not hold, and what that means."""

    what: str
    meaning: str


class Line(NamedTuple):
    """A control, and what came of it; `good` is what there is to say if there is no problem."""

    control: str
    good: str
    problem: Problem | None = None
    skipped: bool = False

    def shown(self) -> str:
        state = "skipped" if self.skipped else "FAILED" if self.problem else "ok"
        first = f"{state:<9}{self.control:<45}{self.problem.what if self.problem else self.good}"
        return f"{first}\n{'':<9}{self.problem.meaning}" if self.problem else first


def _selfcheck(_: argparse.Namespace) -> int:
    from pytest_llm_determinism.reference.process import ReferenceUnavailable, start_reference_server

    started = time.monotonic()
    try:
        server = start_reference_server()
        try:
            with tempfile.TemporaryDirectory(prefix="llm-determinism-selfcheck-", ignore_cleanup_errors=True) as name:
                return _check(Path(name).resolve(), server.url, started)
        finally:
            server.stop()
    except ReferenceUnavailable as error:
        print(f"llm-determinism selfcheck: {error}", file=sys.stderr)
        return USAGE_ERROR
    except KeyboardInterrupt:
        print("llm-determinism selfcheck: interrupted", file=sys.stderr)
        return INTERRUPTED


def _check(folder: Path, url: str, started: float) -> int:
    version = importlib.metadata.version
    print(
        f"{PACKAGE} {version(PACKAGE)} checks itself, with pytest {version('pytest')} and Python"
        f" {platform.python_version()}: {RUNS} runs each on the reference server",
        flush=True,
    )
    held = failed = skipped = 0
    for line in _lines(folder, url):
        print(line.shown(), flush=True)
        held += not line.problem and not line.skipped
        failed += line.problem is not None
        skipped += line.skipped
    for name in _CHANGES_THE_GATE:
        if os.environ.get(name):
            print(_left_out(name))
    seconds = f"{time.monotonic() - started:.1f} seconds"
    if failed:
        print(f"{failed} of {held + failed} controls do not hold ({seconds}): do not rely on this gate here")
        return 1
    print(f"all {held} controls hold, {skipped} skipped ({seconds})")
    return 0


def _left_out(name: str) -> str:
    if name == "PYTEST_DISABLE_PLUGIN_AUTOLOAD":
        return (
            f"note     {name} is set here, but not for these controls: where it is, pytest loads the plugin only if it"
            " is named\n         (-p llm_determinism); without that, marked tests run once and pass ungated"
        )
    return f"note     {name} is set here, but not for these controls: what it does to the gate was not checked"


def _lines(folder: Path, url: str) -> Iterator[Line]:
    """Every control, as soon as it is known what came of it."""
    shutil.copyfile(Path(__file__).with_name("controls.py"), folder / "test_controls.py")
    absent = {way for way in WAYS if way not in ("llm", "openai-async") and importlib.util.find_spec(way) is None}
    unstable = [_test(model, way) for model, way in UNSTABLE if way not in absent]
    asked = [*(_test(model, way) for model, way in STABLE), *unstable]
    vacuous = "test_without_a_model_call"
    cold = _session(folder, url, "store", [*asked, vacuous])

    yield _loaded(cold)
    for model, way in STABLE:
        yield _stable(model, way, cold.seen(_test(model, way)))
    tries = {name: [cold.seen(name)] for name in unstable}
    for number in range(2, TRIES + 1):
        alike = [name for name, seen in tries.items() if seen[-1].answered_alike and not _not_as_told(seen[-1])]
        if alike:
            again = _session(folder, url, f"store-of-try-{number}", alike)
            for name in alike:
                tries[name].append(again.seen(name))
    for model, way in UNSTABLE:
        if way in absent:
            yield Line(_asked(model, way), "is not installed", skipped=True)
        else:
            yield _unstable(model, way, tries[_test(model, way)])
    yield _vacuous(cold.seen(vacuous))
    yield _no_answer_twice([cold.seen(name) for name in asked])

    poisoned = _poisoned_session(folder, url)
    yield _poisoned(folder, poisoned)
    warm = _session(folder, url, "store", [_test(model, way) for model, way in REPLAYED])
    for model, way in REPLAYED:
        yield _replay(model, way, warm, cold)
    yield _exit_codes(cold, poisoned)


def _asked(model: str, way: str) -> str:
    return f"{model} with {WAYS[way]}"


def _test(model: str, way: str) -> str:
    """The name of a test of `controls`."""
    return f"test_llm[{model}]" if way == "llm" else f"test_application[{model}-{way}]"


# Running pytest


def _session(folder: Path, url: str, store: str, tests: Sequence[str]) -> Session:
    told, report, outcomes = (folder / name for name in ("told.jsonl", "report.json", "outcomes.xml"))
    for path in (told, report, outcomes):
        path.unlink(missing_ok=True)
    # An ini file and no flags: where the plugin is not loaded, a flag of its own would end the session before any test.
    (folder / "pytest.ini").write_text(
        f"[pytest]\ndeterminism_runs = {RUNS}\ndeterminism_cache_dir = {store}\ndeterminism_report = {report.name}\n",
        encoding="utf-8",
    )
    here = [f"--rootdir={folder}", f"--confcutdir={folder}", "-c", "pytest.ini"]
    environment = {name: value for name, value in os.environ.items() if not _LEFT_OUT.fullmatch(name)}
    command = [sys.executable, "-m", "pytest", *here, "--color=no", f"--junitxml={outcomes.name}"]
    try:
        done = subprocess.run(
            [*command, *(f"test_controls.py::{name}" for name in tests)],
            cwd=folder,
            env={**environment, BASE_URL: url, API_KEY: PLACEHOLDER_KEY},
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            encoding="utf-8",
            errors="replace",
            timeout=TIME_LIMIT,
        )
    except subprocess.TimeoutExpired:
        return Session(None, f"pytest did not end within {TIME_LIMIT:g} seconds")
    results = {test["nodeid"].partition("::")[2]: test for test in _json(report).get("tests", ())}
    answers: dict[str, list[tuple[str, str]]] = {}
    for line in told.read_text(encoding="utf-8").splitlines() if told.exists() else ():
        answer = json.loads(line)
        answers.setdefault(answer["test"], []).append((answer["id"], answer["text"]))
    return Session(
        done.returncode,
        done.stdout,
        {
            name: Seen(outcome, error, results.get(name), answers.get(name, ()))
            for name, (outcome, error) in _outcomes(outcomes).items()
        },
        reported=report.exists(),
    )


def _json(path: Path) -> dict[str, Any]:
    return json.loads(path.read_text(encoding="utf-8")) if path.exists() else {}


def _outcomes(path: Path) -> dict[str, tuple[str, str]]:
    """Outcome and error of each test, as pytest writes them for CI systems."""
    found = {}
    for case in ElementTree.parse(path).iter("testcase") if path.exists() else ():
        outcome, error = "passed", ""
        for kind in ("skipped", "failure", "error"):
            for element in case.iter(kind):
                outcome = "failed" if kind == "failure" else kind
                lines = [line[2:] for line in (element.text or "").splitlines() if line.startswith("E ")]
                error = (lines or [element.get("message", "")])[0].strip()[:200]
        found[case.get("name", "")] = outcome, error
    return found


# The controls. Each is a claim about the gate that can turn out wrong.


def _loaded(session: Session) -> Line:
    problem = None
    if not session.reported:
        printed = "\n".join(f"{'':<11}{line}" for line in session.output.splitlines()[-5:])
        problem = Problem("wrote no report", f"blind: pytest runs without it. pytest printed last:\n{printed}")
    return Line("the installed plugin", "is loaded by pytest, and reports", problem)


def _stable(model: str, way: str, seen: Seen) -> Line:
    good = f"passes: 1 unique of {RUNS}"
    problem = _not_as_told(seen)
    if problem is None and len(seen.texts) > 1:
        problem = Problem("the server itself gave different answers", "a fault of the reference server: please report")
    problem = problem or _not_judged(seen, PASSED)
    if model == "loop":
        good += ", which proves little: degenerate-loop"
        if problem is None and "degenerate-loop" not in _codes(seen):
            problem = Problem("passes without the finding degenerate-loop", "a pass that proves little looks like any")
    return Line(_asked(model, way), good, problem)


def _unstable(model: str, way: str, tries: Sequence[Seen]) -> Line:
    """Of several tries the last counts: before it the server gave one answer, so there was nothing to catch."""
    seen = tries[-1]
    problem = _not_as_told(seen)
    if problem is None and seen.answered_alike:
        problem = Problem(
            f"the server answered alike in all {RUNS} runs, {len(tries)} times over",
            "blind: under burst its batch does not change, or the model would have answered differently",
        )
    problem = problem or _not_judged(seen, NONDETERMINISTIC)
    good = "" if problem else f"is caught: {_result(seen)['unique']} unique of {RUNS}"
    if len(tries) > 1:
        good += f", in try {len(tries)} (before, the server answered alike in all runs)"
    return Line(_asked(model, way), good, problem)


def _vacuous(seen: Seen) -> Line:
    return Line("a test that asks no model", "is refused: inconclusive", _not_judged(seen, INCONCLUSIVE))


def _no_answer_twice(tests: Sequence[Seen]) -> Line:
    """A store without the run in its keys gives one answer for all runs, and then everything passes."""
    told = sum(len(seen.told) for seen in tests)
    made = len({id for seen in tests for id in seen.ids})
    wanted = RUNS * len(tests)
    problem = None
    if made < told:
        problem = Problem(f"of {told} answers that were told, the server made {made}", _TOLD_AGAIN)
    elif told != wanted:
        problem = Problem(f"{wanted} runs were told {told} answers", _NOT_SHOWN)
    return Line("runs and calls", f"{wanted} runs were told {made} answers, each made for its run", problem)


def _poisoned_session(folder: Path, url: str) -> Session | None:
    """A session with a store whose rows run code where they are unpickled, as a stranger may leave one in a shared
    cache; None if there is no store to poison.
    """
    if not (folder / "store" / "cache.db").exists():
        return None
    shutil.copytree(folder / "store", folder / "poisoned")
    _poison(folder / "poisoned", folder / "ran")
    return _session(folder, url, "poisoned", [_test(*REPLAYED[0])])


def _poisoned(folder: Path, session: Session | None) -> Line:
    control = "a poisoned store"
    if session is None:
        return Line(control, "", Problem("there is no store to poison", _NOT_SHOWN))
    ran = (folder / "ran").exists()
    seen = session.seen(_test(*REPLAYED[0]))
    problem = None
    if ran:
        problem = Problem("its code was run", "dangerous: whoever can write the store can run code here")
    elif not _goes_off(folder):
        problem = Problem("its code would not be run by diskcache itself", _NOT_SHOWN)
    elif not session.says(f"{RUNS} damaged samples", "were not used"):
        problem = Problem("its damage was not reported", "what a stranger wrote into the store goes unnoticed")
    problem = problem or _not_as_told(seen) or _not_judged(seen, PASSED)
    return Line(control, f"runs nothing: {RUNS} damaged samples were reported and asked again", problem)


class _Bomb:
    """Makes a file where it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Any, ...]:
        return Path.touch, (self.path,)


def _poison(store: Path, ran: Path) -> None:
    import contextlib
    import pickle
    import sqlite3

    from diskcache.core import MODE_PICKLE

    with contextlib.closing(sqlite3.connect(store / "cache.db")) as connection, connection:
        values = MODE_PICKLE, pickle.dumps(_Bomb(ran))
        connection.execute("UPDATE Cache SET mode = ?, value = ?, filename = NULL", values)


def _goes_off(folder: Path) -> bool:
    """Whether the poison works where nothing guards against it."""
    import diskcache

    with diskcache.Cache(str(folder / "poisoned")) as cache:
        for key in cache:
            cache.get(key)
    return (folder / "ran").exists()


def _replay(model: str, way: str, warm: Session, cold: Session) -> Line:
    name = _test(model, way)
    seen, before = warm.seen(name), cold.seen(name)
    verdict = PASSED if len(seen.texts) == 1 else NONDETERMINISTIC
    if seen.result is None:
        problem: Problem | None = _no_result(seen)
    elif len(seen.ids) < len(seen.told):
        problem = _told_again(seen)
    elif (calls := _calls(seen))["live"] or seen.ids != before.ids:
        what = f"{calls['live']} calls, {calls['cached']} answers from the store"
        problem = Problem(what, "the answers of the session before were not used again")
    elif calls["oldest_sample"] is None or not warm.says(name, "oldest", "a replay is no new evidence"):
        problem = Problem("looks like a first session", "blind: a pass without new evidence is not said to be one")
    else:
        problem = _not_judged(seen, verdict)
    good = f"makes 0 calls, {'passes' if verdict == PASSED else 'is caught again'}, and is said to be no new evidence"
    return Line(f"replay of {_asked(model, way)}", good, problem)


def _exit_codes(caught: Session, passed: Session | None) -> Line:
    problem = None
    if passed is None:
        problem = Problem("there is no session in which all passed", _NOT_SHOWN)
    elif (caught.exit_code, passed.exit_code) != (1, 0):
        problem = Problem(
            f"{caught.exit_code} where models were caught, {passed.exit_code} where all passed, instead of 1 and 0",
            "blind: what runs the tests, such as a CI system, sees another result than this gate",
        )
    return Line("pytest's exit code", "1 where models were caught, 0 where all passed", problem)


def _not_as_told(seen: Seen) -> Problem | None:
    """Where what the gate saw is not what the body was told, once in each run."""
    if seen.result is None:
        return _no_result(seen)
    if len(seen.told) != RUNS:
        return Problem(f"{RUNS} runs were told {len(seen.told)} answers{_ended(seen)}", _NOT_SHOWN)
    if len(seen.ids) < RUNS:
        return _told_again(seen)
    live = _calls(seen)["live"]
    if live != RUNS:
        return Problem(
            f"the gate saw {live} of {RUNS} calls: {seen.result['reason']}",
            "blind: what asks a model this way is not observed",
        )
    texts = len(seen.texts)
    unique = seen.result["unique"]
    if unique == texts:
        return None
    meaning = "blind: different answers are taken for the same"
    if unique > texts:
        meaning = "false alarm: answers that are the same are taken for different"
    return Problem(f"{unique} unique of {RUNS}, where the body was told {texts}", meaning)


def _not_judged(seen: Seen, verdict: str) -> Problem | None:
    """Where the verdict is another one, or is not what pytest says."""
    if seen.result is None:
        return _no_result(seen)
    found = seen.result["verdict"]
    if found != verdict:
        return Problem(
            f"{found} instead of {verdict}: {seen.result['reason']}",
            "blind: a test passes that should not" if found == PASSED else "the gate judges wrongly",
        )
    outcome = "passed" if verdict == PASSED else "failed"
    if seen.outcome != outcome:
        return Problem(f"{verdict}, but pytest says {seen.outcome}", "blind: the verdict does not decide the test")
    return None


def _no_result(seen: Seen) -> Problem:
    if seen.outcome is None:
        return Problem("was not run", _NOT_SHOWN)
    what = f"was not gated, pytest says {seen.outcome}{_ended(seen)}"
    return Problem(what, "blind: the marker does nothing, whatever the model answers")


def _told_again(seen: Seen) -> Problem:
    return Problem(f"{len(seen.told)} runs share {len(seen.ids)} of the server's answers", _TOLD_AGAIN)


def _ended(seen: Seen) -> str:
    return f": {seen.error}" if seen.error else ""


_NOT_SHOWN = "not shown: whether this works here"
_TOLD_AGAIN = "blind: an answer that is told again in other runs always agrees with itself"


def _result(seen: Seen) -> dict[str, Any]:
    assert seen.result is not None
    return seen.result


def _calls(seen: Seen) -> dict[str, Any]:
    calls: dict[str, Any] = _result(seen)["experiments"][0]["calls"]
    return calls


def _codes(seen: Seen) -> list[str]:
    return [finding["code"] for finding in _result(seen)["experiments"][0]["findings"]]
