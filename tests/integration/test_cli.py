"""The command `llm-determinism`, run as a user runs it."""

from __future__ import annotations

import signal
import subprocess
import sys

import openai
import pytest

from pytest_llm_determinism.cli import main

COMMAND = [sys.executable, "-m", "pytest_llm_determinism.cli"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def test_serve_answers_until_it_is_interrupted() -> None:
    with subprocess.Popen([*COMMAND, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[2]
        with openai.OpenAI(base_url=url, api_key="none") as client:
            models = [model.id for model in client.models.list()]
            reply = client.completions.create(model="dense", prompt="A fox", max_tokens=4, temperature=0)
        process.send_signal(signal.SIGINT)

    assert line.startswith("listening on http://127.0.0.1:")
    assert models == ["dense", "dense-fp16", "moe-dropless", "moe-capacity", "loop"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "'99999' is not a port; write a number from 0 to 65535"),
        (["--capacity-factor", "none"], "'none' is not a capacity factor; write a number above 0, such as 2.5"),
    ],
)
def test_a_bad_value_is_said(arguments: list[str], message: str) -> None:
    result = run("serve", *arguments)

    assert result.returncode == 2
    assert message in result.stderr


def test_a_port_in_use_is_said(server) -> None:
    port = server("hi").url.removesuffix("/v1").rpartition(":")[2]

    result = run("serve", "--port", port)

    assert result.returncode == 2
    assert result.stderr.startswith(f"llm-determinism serve: cannot listen on 127.0.0.1:{port}:")
    assert "Traceback" not in result.stderr


PLANS = {
    "": """\
gate: runs=30, max_unique=1
30 identical runs show that another call agrees at least 90.2 % of the time, at 95 %

a model that flips   passes this gate   caught 95 times of 100 with
             0.1 %             97.0 %                     runs=2995
             0.5 %             86.0 %                      runs=598
               1 %             74.0 %                      runs=299
               5 %             21.5 %                       runs=59
              10 %              4.2 %                       runs=29
""",
    "--flip-rate 0.01": """\
gate: runs=30, max_unique=1
30 identical runs show that another call agrees at least 90.2 % of the time, at 95 %

a model that flips 1 % of the time passes this gate 74 % of the time; to catch it 95 times of 100 takes 299 runs
""",
    "--min-agreement 0.99 --flip-rate 0.001 --catch 0.5": """\
gate: runs=30, max_unique=1
30 identical runs show that another call agrees at least 90.2 % of the time, at 95 %
min_agreement=0.99 with confidence=0.95 takes 300 identical runs; runs=30 is refused before the first call

a model that flips 0.1 % of the time passes this gate 97 % of the time; to catch it 50 times of 100 takes 693 runs
""",
    "--runs 30 --min-agreement 0.9 --flip-rate 0.1": """\
gate: runs=30, max_unique=1
30 identical runs show that another call agrees at least 90.2 % of the time, at 95 %
min_agreement=0.9 with confidence=0.95 takes 30 identical runs; runs=30 can show it

a model that flips 10 % of the time passes this gate 4 % of the time; to catch it 95 times of 100 takes 29 runs
""",
    "--runs 100000 --confidence 0.999 --catch 0.999": """\
gate: runs=100000, max_unique=1
100000 identical runs show that another call agrees at least 99.9931 % of the time, at 99.9 %

a model that flips   passes this gate   caught 99.9 times of 100 with
             0.1 %            < 0.1 %                       runs=6905
             0.5 %            < 0.1 %                       runs=1379
               1 %            < 0.1 %                        runs=688
               5 %            < 0.1 %                        runs=135
              10 %            < 0.1 %                         runs=66
""",
    "--runs 100 --max-unique 2": """\
gate: runs=100, max_unique=2
100 identical runs show that another call agrees at least 97.0 % of the time, at 95 %
with 2 different outputs, which pass as well, it may be as little as 40.8 %

a model that flips   passes max_unique=2   caught 95 times of 100 with
             0.1 %                99.5 %                     runs=4742
             0.5 %                91.0 %                      runs=947
               1 %                73.6 %                      runs=473
               5 %                 3.7 %                       runs=93
              10 %               < 0.1 %                       runs=46
each flip is taken for an answer of its own; flips that all give one and the same other answer always pass
""",
    "--runs 500 --max-unique 3 --min-agreement 0.99 --flip-rate 0.01": """\
gate: runs=500, max_unique=3
500 identical runs show that another call agrees at least 99.40 % of the time, at 95 %
min_agreement=0.99 with confidence=0.95 takes 300 identical runs; runs=500 can show it, also with 1 that differs

a model that flips 1 % of the time, each time to an answer of its own, passes this gate 12 % of the time; to catch it\
 95 times of 100 takes 628 runs; flips that give 2 other answers at most always pass
this is max_unique alone; min_agreement may fail what passes it
""",
    "--attempts 3 --load solo,burst --min-agreement 0.9": """\
gate: runs=30, attempts=3, load=solo,burst, max_unique=1: 180 runs in 6 experiments
30 identical runs of one experiment show that another call agrees at least 90.2 % of the time, at 95 %
min_agreement=0.9 with confidence=0.95 takes 30 identical runs in each experiment; runs=30 can show it

a model that flips   passes this gate   caught 95 times of 100 with
             0.1 %             83.5 %        runs=500 (3000 in all)
             0.5 %             40.6 %         runs=100 (600 in all)
               1 %             16.4 %          runs=50 (300 in all)
               5 %            < 0.1 %           runs=10 (60 in all)
              10 %            < 0.1 %            runs=5 (30 in all)
outputs are compared over all 180 runs; what flips under one load only has to be caught by the 90 runs of that load
""",
    "--runs 10 --attempts 2 --flip-rate 0.01": """\
gate: runs=10, attempts=2, load=burst, max_unique=1: 20 runs in 2 experiments
10 identical runs of one experiment show that another call agrees at least 71.7 % of the time, at 95 %

a model that flips 1 % of the time passes this gate 82 % of the time; to catch it 95 times of 100 takes 299 runs
that is runs=150 (300 in all)
""",
}


@pytest.mark.parametrize("arguments", PLANS)
def test_plan_says_what_a_gate_shows_and_lets_pass(arguments: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", *arguments.split()]) == 0
    assert capsys.readouterr().out == PLANS[arguments]


SHARE = "is not a share; write a number above 0 and below 1, such as 0.95"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--runs 1", "--runs: '1': a gate needs at least 2 runs; write 2 or more"),
        ("--runs many", "--runs: 'many': a gate needs at least 2 runs; write 2 or more"),
        ("--runs 1000001", "--runs: '1000001': write 1000000 or less"),
        ("--attempts 0", "--attempts: '0': write 1 or more"),
        ("--max-unique 0", "--max-unique: '0': at least one output is always there; write 1 or more"),
        ("--load solo,solo", "--load: 'solo,solo': name each load once"),
        ("--confidence 95", f"--confidence: '95' {SHARE}"),
        ("--min-agreement 1", f"--min-agreement: '1' {SHARE}"),
        ("--flip-rate 0", f"--flip-rate: '0' {SHARE}"),
        ("--catch nan", f"--catch: 'nan' {SHARE}"),
        ("--catch often", f"--catch: 'often' {SHARE}"),
    ],
)
def test_plan_says_what_is_wrong_with_a_value(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(["plan", *arguments.split()])

    assert stopped.value.code == 2
    said = capsys.readouterr()
    assert said.out == ""
    assert said.err == f"llm-determinism plan: {message}\n"


def test_plan_runs_as_a_command_and_needs_nothing_but_python() -> None:
    code = "import sys; from pytest_llm_determinism.cli import main; main(['plan']); print([*sys.modules])"
    result = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert result.stdout.startswith(PLANS[""])
    assert not {"'openai'", "'httpx'", "'diskcache'", "'numpy'"} & {
        *result.stdout[len(PLANS[""]) :].strip("[]\n").split(", ")
    }


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("", "llm-determinism: the following arguments are required: COMMAND; see llm-determinism --help"),
        ("serev", "llm-determinism: COMMAND: 'serev' is not known; write one of serve, probe, "),
        ("probe --modle=m", "llm-determinism probe: unknown option --modle (did you mean --model?); see"),
        ("probe --run 3", "llm-determinism probe: unknown option --run (did you mean --runs?); see"),
        ("probe --runs", "llm-determinism probe: --runs: expected one argument"),
        ("plan --catch often", "llm-determinism plan: --catch: 'often' is not a share; write a number above 0"),
        ("serve now", "llm-determinism serve: 'now' is more than is wanted; see llm-determinism serve --help"),
        ("report", "llm-determinism report: the following arguments are required: COMMAND; see"),
        ("report shwo", "llm-determinism report: COMMAND: 'shwo' is not known; write one of show, "),
    ],
)
def test_wrong_use_is_told_in_one_line(arguments: str, message: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as stopped:
        main(arguments.split())

    said = capsys.readouterr()
    assert (stopped.value.code, said.out) == (2, "")
    assert said.err.startswith(message)
    assert said.err.count("\n") == 1


def test_help_lists_the_commands() -> None:
    assert "serve" in run("--help").stdout
