"""`llm-determinism selfcheck` holds where the gate works, and says what is blind where it is broken on purpose."""

from __future__ import annotations

import contextlib
import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Iterator, Mapping
from pathlib import Path

import pytest

COMMAND = [sys.executable, "-m", "pytest_llm_determinism.cli", "selfcheck"]


class Machine:
    """A place of its own to run the command in, where what is installed may be broken."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.folders = path / "tmp"
        self.folders.mkdir()
        self.environment = {
            name: value for name, value in os.environ.items() if not name.startswith(("PYTEST_", "OPENAI_"))
        }
        self.environment["TMPDIR"] = str(self.folders)

    def broken(self, how: str) -> None:
        """Python of every process that is started runs this first."""
        (self.path / "broken").mkdir()
        (self.path / "broken" / "sitecustomize.py").write_text(how)
        before = filter(None, [self.environment.get("PYTHONPATH")])
        self.environment["PYTHONPATH"] = os.pathsep.join([str(self.path / "broken"), *before])

    def selfcheck(self, *arguments: str) -> tuple[int, list[str]]:
        """Exit code, and the lines that were printed."""
        done = subprocess.run(
            [*COMMAND, *arguments],
            cwd=self.path,
            env=self.environment,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=300,
        )
        return done.returncode, normal(done.stdout)


def normal(text: str) -> list[str]:
    """Lines without what differs from time to time and from machine to machine; 1 is not one of many."""
    text = re.sub(r"\d+\.\d seconds", "N seconds", text)
    text = re.sub(r"is caught: ([2-9]|[12]\d|30) unique", "is caught: N unique", text)
    text = re.sub(r"was told ([2-9]|[12]\d|30)\b", "was told N", text)
    return re.sub(r"pytest-llm-determinism \S+ (.*) pytest \S+ and Python \S+:", r"\1:", text).splitlines()


@pytest.fixture
def machine(tmp_path: Path) -> Iterator[Machine]:
    made = Machine(tmp_path)
    yield made
    assert list(made.folders.glob("llm-determinism-*")) == []


HOLDS = """
checks itself, with: 30 runs each on the reference server
ok       the installed plugin                         is loaded by pytest, and reports
ok       dense with the llm fixture                   passes: 1 unique of 30
ok       dense with the openai client                 passes: 1 unique of 30
ok       moe-dropless with the llm fixture            passes: 1 unique of 30
ok       loop with the llm fixture                    passes: 1 unique of 30, which proves little: degenerate-loop
ok       dense-fp16 with the llm fixture              is caught: N unique of 30
ok       dense-fp16 with the openai client            is caught: N unique of 30
ok       moe-capacity with the llm fixture            is caught: N unique of 30
ok       moe-capacity with the openai client          is caught: N unique of 30
ok       moe-capacity with the async openai client    is caught: N unique of 30
ok       moe-capacity with httpx                      is caught: N unique of 30
ok       moe-capacity with httpx2                     is caught: N unique of 30
ok       moe-capacity with urllib3                    is caught: N unique of 30
ok       moe-capacity with aiohttp                    is caught: N unique of 30
ok       a test that asks no model                    is refused: inconclusive
ok       runs and calls                               390 runs were told 390 answers, each made for its run
ok       a poisoned store                             runs nothing: 30 damaged samples were reported and asked again
ok       replay of dense with the llm fixture         makes 0 calls, passes, and is said to be no new evidence
ok       replay of dense with the openai client       makes 0 calls, passes, and is said to be no new evidence
ok       replay of dense-fp16 with the llm fixture    makes 0 calls, is caught again, and is said to be no new evidence
ok       replay of dense-fp16 with the openai client  makes 0 calls, is caught again, and is said to be no new evidence
ok       pytest's exit code                           1 where models were caught, 0 where all passed
"""


FEW = """
from pytest_llm_determinism.commands import selfcheck

WAYS = ("urllib3", "aiohttp")
selfcheck.STABLE = [asked for asked in selfcheck.STABLE if asked[0] != "moe-dropless"]
selfcheck.UNSTABLE = [asked for asked in selfcheck.UNSTABLE if asked[0] == "dense-fp16" or asked[1] in WAYS]
"""
"""Fewer controls than in `HOLDS`, for tests of what any of them shows."""

QUICK = f"{FEW}selfcheck.RUNS = 5\n"
"""Fewer runs, too, where no unstable model is to be caught."""


def holds(few: bool = False, but: Mapping[str, str] | None = None) -> list[str]:
    """The lines where all controls hold (of `FEW`, if wanted), but for those that begin as a key does: they have that
    result instead."""
    made = []
    for line in HOLDS.strip("\n").splitlines():
        if few and re.match("ok       (moe-dropless|moe-capacity with (the|httpx))", line):
            continue
        instead = [result for control, result in (but or {}).items() if line[9:].startswith(control)]
        made += f"FAILED   {line[9:54]}{instead[0]}".splitlines() if instead else [line]
    return [line.replace("390", "210") for line in made] if few else made


def of(printed: list[str], *controls: str) -> list[str]:
    """The lines of some controls, with what follows each of them."""
    kept, wanted = [], False
    for line in printed:
        wanted = wanted if line.startswith(" ") else line[9:].startswith(controls)
        kept += [line] if wanted else []
    return kept


def test_a_working_gate_holds_whatever_is_around_it(machine: Machine) -> None:
    nowhere = "http://127.0.0.1:9"
    machine.environment |= {
        "PYTEST_ADDOPTS": "-p no:llm_determinism --of-another-world",
        "PYTEST_PLUGINS": "there_is_no_such_plugin",
        "PYTEST_DISABLE_PLUGIN_AUTOLOAD": "1",
        "OPENAI_BASE_URL": nowhere,
        "OPENAI_API_KEY": "",
        "http_proxy": nowhere,
        "PYTHONWARNINGS": "error",
        "FORCE_COLOR": "1",
    }
    for folder in (machine.path, machine.folders):
        (folder / "conftest.py").write_text("raise Exception('this is not for you')")
        (folder / "pytest.ini").write_text("[pytest]\naddopts = -p no:llm_determinism\ndeterminism_runs = 2\n")

    code, printed = machine.selfcheck()

    assert printed == [
        *holds(),
        "note     PYTEST_ADDOPTS is set here, but not for these controls: what it does to the gate was not checked",
        "note     PYTEST_PLUGINS is set here, but not for these controls: what it does to the gate was not checked",
        (
            "note     PYTEST_DISABLE_PLUGIN_AUTOLOAD is set here, but not for these controls: where it is, pytest loads"
            " the plugin only if it is named"
        ),
        "         (-p llm_determinism); without that, marked tests run once and pass ungated",
        "all 22 controls hold, 0 skipped (N seconds)",
    ]
    assert code == 0


def test_the_page_shows_what_is_printed() -> None:
    page = (Path(__file__).parents[2] / "docs" / "selfcheck.md").read_text(encoding="utf-8")
    (shown,) = re.findall(r"```\n(pytest-llm-determinism \d[^`]*)```", page)

    assert normal(shown) == [*holds(), "all 22 controls hold, 0 skipped (N seconds)"]


# Every way to be blind. What breaks runs in each Python process that the command starts.


def test_an_observer_that_sees_nothing(machine: Machine) -> None:
    machine.broken(
        QUICK
        + """
import contextlib
from pytest_llm_determinism import observe

@contextlib.contextmanager
def observing(sampler):
    yield

observe.observing = observing
"""
    )
    code, printed = machine.selfcheck()

    blind = [
        "the gate saw 0 of 5 calls: no model call was observed and nothing was recorded",
        "         blind: what asks a model this way is not observed",
    ]
    assert of(printed, "dense with the openai", "moe-capacity", "a test", "replay of dense with the openai") == [
        f"FAILED   dense with the openai client                 {blind[0]}",
        blind[1],
        f"FAILED   moe-capacity with urllib3                    {blind[0]}",
        blind[1],
        f"FAILED   moe-capacity with aiohttp                    {blind[0]}",
        blind[1],
        "ok       a test that asks no model                    is refused: inconclusive",
        "FAILED   replay of dense with the openai client       0 calls, 0 answers from the store",
        "         the answers of the session before were not used again",
    ]
    assert printed[-1] == "13 of 16 controls do not hold (N seconds): do not rely on this gate here"
    assert code == 1


def test_a_comparison_for_which_everything_is_the_same(machine: Machine) -> None:
    machine.broken(
        FEW
        + """
from pytest_llm_determinism.analysis import compare

class Same(compare.Comparison):
    def key(self, output):
        return 0

known = compare.resolve
compare.resolve = lambda *given: Same(**vars(known(*given)))
"""
    )
    code, printed = machine.selfcheck()

    blind = "1 unique of 30, where the body was told N\n         blind: different answers are taken for the same"
    passes = "passed instead of nondeterministic: 1 unique of 30\n         blind: a test passes that should not"
    assert printed == [
        *holds(few=True, but={"dense-fp16": blind, "moe-capacity": blind, "replay of dense-fp16": passes}),
        "6 of 16 controls do not hold (N seconds): do not rely on this gate here",
    ]
    assert code == 1


def test_a_reader_that_takes_the_answer_s_id_for_its_text(machine: Machine) -> None:
    machine.broken(
        QUICK
        + """
import dataclasses
from pytest_llm_determinism import sampling

known = sampling.read_answer

def read(*given):
    answer = known(*given)
    return dataclasses.replace(answer, output=f"{answer.output} {answer.id}")

sampling.read_answer = read
"""
    )
    code, printed = machine.selfcheck()

    assert of(printed, "dense with", "pytest's") == [
        "FAILED   dense with the llm fixture                   5 unique of 5, where the body was told 1",
        "         false alarm: answers that are the same are taken for different",
        "FAILED   dense with the openai client                 5 unique of 5, where the body was told 1",
        "         false alarm: answers that are the same are taken for different",
        (
            "FAILED   pytest's exit code                           1 where models were caught, 1 where all passed,"
            " instead of 1 and 0"
        ),
        "         blind: what runs the tests, such as a CI system, sees another result than this gate",
    ]
    assert code == 1


def test_a_plugin_that_is_not_loaded(machine: Machine) -> None:
    machine.broken("import os; os.environ['PYTEST_ADDOPTS'] = '-p no:llm_determinism'")

    code, printed = machine.selfcheck()

    assert of(printed, "the installed")[:2] == [
        "FAILED   the installed plugin                         wrote no report",
        "         blind: pytest runs without it. pytest printed last:",
    ]
    assert of(printed, "dense with", "a test", "runs and calls", "pytest's") == [
        (
            "FAILED   dense with the llm fixture                   was not gated, pytest says error:"
            " fixture 'llm' not found"
        ),
        "         blind: the marker does nothing, whatever the model answers",
        "FAILED   dense with the openai client                 was not gated, pytest says passed",
        "         blind: the marker does nothing, whatever the model answers",
        "FAILED   a test that asks no model                    was not gated, pytest says passed",
        "         blind: the marker does nothing, whatever the model answers",
        "FAILED   runs and calls                               390 runs were told 8 answers",
        "         not shown: whether this works here",
        "FAILED   pytest's exit code                           there is no session in which all passed",
        "         not shown: whether this works here",
    ]
    assert printed[-1] == "22 of 22 controls do not hold (N seconds): do not rely on this gate here"
    assert code == 1


def test_a_store_that_gives_all_runs_the_answer_of_one(machine: Machine) -> None:
    machine.broken(
        FEW
        + """
from pytest_llm_determinism.store import SampleStore

known = SampleStore.read

def read(store, keys, not_before):
    keys = list(keys)
    found = known(store, keys, not_before)
    return dict.fromkeys(keys, next(iter(found.values()))) if found else {}

SampleStore.read = read
"""
    )
    code, printed = machine.selfcheck()

    blind = (
        "30 runs share 1 of the server's answers\n"
        "         blind: an answer that is told again in other runs always agrees with itself"
    )
    assert printed == [
        *holds(few=True, but={"replay": blind}),
        "4 of 16 controls do not hold (N seconds): do not rely on this gate here",
    ]
    assert code == 1


def test_a_first_session_that_gives_all_runs_one_answer(machine: Machine) -> None:
    machine.broken(
        FEW
        + """
from pytest_llm_determinism.sampling import Ask

known = Ask._read

def read(ask, run, sample):
    found = known(ask, run, sample)
    shelf = ask.sampler._shelves[ask.place]
    shelf.known.update(dict.fromkeys(range(run + 1, ask.sampler.plan.runs), found))
    return found

Ask._read = read
"""
    )
    code, printed = machine.selfcheck()

    told_again = "         blind: an answer that is told again in other runs always agrees with itself"
    blind = f"30 runs share 1 of the server's answers\n{told_again}"
    models = dict.fromkeys(("dense", "moe-", "loop"), blind)
    total = f"of 210 answers that were told, the server made 7\n{told_again}"
    assert of(printed, *models, "runs and calls") == of(
        holds(few=True, but={**models, "runs and calls": total}), *models, "runs"
    )
    assert code == 1


UNCAUGHT_AGAIN = (
    "ok       replay of dense-fp16 with the llm fixture    makes 0 calls, passes, and is said to be no new evidence"
)


def test_a_burst_that_is_none(machine: Machine) -> None:
    machine.broken(
        QUICK
        + """
from pytest_llm_determinism.settings import TABLE

TABLE["concurrency"].default = 1
selfcheck.TRIES = 2
"""
    )
    code, printed = machine.selfcheck()

    assert of(printed, "dense", "moe-capacity with aiohttp", "replay of dense-fp16 with the llm") == [
        "ok       dense with the llm fixture                   passes: 1 unique of 5",
        "ok       dense with the openai client                 passes: 1 unique of 5",
        "FAILED   dense-fp16 with the llm fixture              the server answered alike in all 5 runs, 2 times over",
        "         blind: under burst its batch does not change, or the model would have answered differently",
        "FAILED   dense-fp16 with the openai client            the server answered alike in all 5 runs, 2 times over",
        "         blind: under burst its batch does not change, or the model would have answered differently",
        "FAILED   moe-capacity with aiohttp                    the server answered alike in all 5 runs, 2 times over",
        "         blind: under burst its batch does not change, or the model would have answered differently",
        UNCAUGHT_AGAIN,
    ]
    assert code == 1


def test_a_control_that_did_not_come_about_is_tried_again_and_that_is_said(machine: Machine) -> None:
    # In the first session the server's batch does not change.
    machine.broken(
        FEW
        + """
import os
from pytest_llm_determinism.settings import TABLE

selfcheck.RUNS = 10
selfcheck.UNSTABLE = selfcheck.UNSTABLE[:2]
if os.path.exists("pytest.ini") and "try" not in open("pytest.ini").read():
    TABLE["concurrency"].default = 1
"""
    )
    code, printed = machine.selfcheck()

    caught = "is caught: N unique of 10, in try 2 (before, the server answered alike in all runs)"
    assert of(printed, "dense-fp16", "replay of dense-fp16 with the llm") == [
        f"ok       dense-fp16 with the llm fixture              {caught}",
        f"ok       dense-fp16 with the openai client            {caught}",
        UNCAUGHT_AGAIN,
    ]
    assert code == 0


def test_each_broken_part_has_its_line_and_a_library_that_is_missing_is_skipped(machine: Machine) -> None:
    machine.broken(
        FEW
        + """
import importlib.util
import diskcache
from pytest_llm_determinism import experiment, observe, repeat
from pytest_llm_determinism.observe import urllib3_seam
from pytest_llm_determinism.report import text
from pytest_llm_determinism.store import disk
from pytest_llm_determinism.verdict import PASSED, Verdict

observe.SEAMS = [seam for seam in observe.SEAMS if seam is not urllib3_seam.SEAM]
findings = experiment.findings
experiment.findings = lambda *given: tuple(found for found in findings(*given) if found.code != "degenerate-loop")
judge = repeat.judge
repeat.judge = lambda settings, evidence: (
    judge(settings, evidence) if evidence.counts else Verdict(PASSED, "nothing differs")
)
disk.SafeDisk = diskcache.Disk
calls = text.calls
text.calls = lambda *given: calls(*given).removesuffix(": a replay is no new evidence")
known = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "aiohttp" else known(name, *rest)
"""
    )
    code, printed = machine.selfcheck()

    expected = holds(
        few=True,
        but={
            "loop": "passes without the finding degenerate-loop\n         a pass that proves little looks like any",
            "moe-capacity with urllib3": "the gate saw 0 of 30 calls: nothing differs\n"
            "         blind: what asks a model this way is not observed",
            "a test that asks no model": "passed instead of inconclusive: nothing differs\n"
            "         blind: a test passes that should not",
            "a poisoned store": "its code was run\n         dangerous: whoever can write the store can run code here",
            "replay": "looks like a first session\n         blind: a pass without new evidence is not said to be one",
        },
    )
    skipped = "skipped  moe-capacity with aiohttp                    is not installed"
    expected = [skipped if "aiohttp" in line else line.replace("210", "180") for line in expected]
    assert printed == [
        *expected,
        "8 of 15 controls do not hold (N seconds): do not rely on this gate here",
    ]
    assert code == 1


def test_a_verdict_without_consequences_and_damage_that_is_not_said(machine: Machine) -> None:
    machine.broken(
        FEW
        + """
from pytest_llm_determinism import gate
from pytest_llm_determinism.store import SampleStore

gate._conclude = lambda repeater, result: None
close = SampleStore.close

def quietly(store):
    close(store)
    store.notes.clear()

SampleStore.close = quietly
"""
    )
    code, printed = machine.selfcheck()

    undecided = "but pytest says passed\n         blind: the verdict does not decide the test"
    unstable = ("dense-fp16", "moe-capacity", "replay of dense-fp16")
    assert printed == [
        *holds(
            few=True,
            but={
                **dict.fromkeys(unstable, f"nondeterministic, {undecided}"),
                "a test that asks no model": f"inconclusive, {undecided}",
                "a poisoned store": "its damage was not reported\n"
                "         what a stranger wrote into the store goes unnoticed",
                "pytest's": "0 where models were caught, 0 where all passed, instead of 1 and 0\n"
                "         blind: what runs the tests, such as a CI system, sees another result than this gate",
            },
        ),
        "9 of 16 controls do not hold (N seconds): do not rely on this gate here",
    ]
    assert code == 1


def test_a_session_that_does_not_end_in_time(machine: Machine) -> None:
    machine.broken(
        """
import time
from pytest_llm_determinism import gate
from pytest_llm_determinism.commands import selfcheck

selfcheck.TIME_LIMIT = 4.0
gate._run_once = lambda *given: time.sleep(60)
"""
    )
    code, printed = machine.selfcheck()

    assert of(printed, "the installed", "dense with the llm") == [
        "FAILED   the installed plugin                         wrote no report",
        "         blind: pytest runs without it. pytest printed last:",
        "           pytest did not end within 4 seconds",
        "FAILED   dense with the llm fixture                   was not run",
        "         not shown: whether this works here",
    ]
    assert code == 1


# Whether it can run at all


def test_without_its_extra_it_says_what_to_install(machine: Machine) -> None:
    # A finder that knows no numpy, as on a machine where the extra was not installed.
    machine.broken(
        """
import importlib.util
known = importlib.util.find_spec
importlib.util.find_spec = lambda name, *rest: None if name == "numpy" else known(name, *rest)
"""
    )
    assert machine.selfcheck() == (
        2,
        [
            (
                "llm-determinism selfcheck: the reference server needs numpy:"
                " pip install 'pytest-llm-determinism[reference]'"
            )
        ],
    )


def test_an_argument_is_wrong_usage(machine: Machine) -> None:
    code, printed = machine.selfcheck("everything")

    assert code == 2
    assert printed[-1] == (
        "llm-determinism selfcheck: 'everything' is more than is wanted; see llm-determinism selfcheck --help"
    )


@pytest.mark.parametrize("to_all", [True, False], ids=["from the terminal", "to the command alone"])
def test_nothing_is_left_behind_when_it_is_interrupted(machine: Machine, to_all: bool) -> None:
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to tell whose a process is")
    mark = f"STARTED_BY={machine.path}"
    machine.environment |= dict([mark.split("=")])

    def started() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if mark.encode() in (process / "environ").read_bytes():
                    found.append((process / "cmdline").read_bytes().replace(b"\0", b" ").decode())
        return found

    def wait_until(there: bool) -> None:
        deadline = time.monotonic() + 30
        while time.monotonic() < deadline and bool(list(machine.folders.glob("*/told.jsonl"))) != there:
            time.sleep(0.02)

    with subprocess.Popen(
        COMMAND,
        cwd=machine.path,
        env=machine.environment,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
    ) as process:
        wait_until(there=True)
        assert len(started()) == 3  # the command, pytest, the server
        (os.killpg if to_all else os.kill)(process.pid, signal.SIGINT)
        _, errors = process.communicate(timeout=30)

    assert (process.returncode, errors) == (130, "llm-determinism selfcheck: interrupted\n")
    assert started() == []
