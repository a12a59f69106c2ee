"""The command `llm-determinism probe`: the same question again and again, without a test file."""

from __future__ import annotations

import json
import os
import re
import signal
import subprocess
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import pytest
from conftest import Project
from reports import check_written
from scripted import Call, Reply

from pytest_llm_determinism.cli import main
from pytest_llm_determinism.settings import TABLE

COMMAND = [sys.executable, "-m", "pytest_llm_determinism.cli", "probe"]


class Said(NamedTuple):
    code: int
    out: str
    err: str


Probe = Callable[..., Said]


def without_times(text: str) -> str:
    """What a probe prints, without what differs each time."""
    text = re.sub(r"(?m)^(model .*agreement  errors) +time", r"\1  time", text)
    text = re.sub(r" +\d+\.\d s  ", "  TIME  ", text)
    text = re.sub(r"\d+ seconds?", "AGE", text)
    # Said where genai-prices is installed: nobody sells the answers of a server on loopback.
    text = re.sub(r"(?m)^cost not known of .*\n", "", text)
    return re.sub(r"seed \d+", "seed SEED", text)


@pytest.fixture
def probe(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Probe:
    """Probe in a folder of its own: ``probe("Q?", "--model=m")``."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("OPENAI_API_KEY", "sk-test-secret")
    monkeypatch.delenv("OPENAI_BASE_URL", raising=False)

    def run(*arguments: str) -> Said:
        capsys.readouterr()
        try:
            code: Any = main(["probe", *arguments])
        except SystemExit as stopped:
            code = stopped.code
        check_written("--report", arguments, tmp_path)
        said = capsys.readouterr()
        return Said(code, without_times(said.out), said.err)

    return run


def by_number(**answers: Callable[[int], str | Reply]) -> Callable[[Call], str | Reply]:
    """A script that answers a model's calls by their number, from 0."""
    asked: Counter[str] = Counter()

    def script(call: Call) -> str | Reply:
        model = call.body["model"]
        asked[model] += 1
        return answers[model](asked[model] - 1)

    return script


def test_loads_and_attempts_of_several_models_are_told_in_one_table(probe: Probe, server) -> None:
    # One call at a time, so that the number of a call tells its experiment: three each under solo and under burst,
    # and the same again.
    model = server(
        by_number(
            steady=lambda number: "It is Paris.",
            fickle=lambda number: {5: "It is Lyon.", 10: "It was Paris.", 11: "It is."}.get(number, "It is Paris."),
        )
    )

    said = probe(
        "The capital?",
        f"--endpoint={model.url}",
        "--model=steady,fickle",
        "--load=solo,burst",
        "--runs=3",
        "--attempts=2",
        "--concurrency=1",
        "--max-tokens=16",
    )

    assert said.out == (
        """\
“The capital?”, max_tokens=16, temperature=0

model   load   unique of 3  mean  agreement  errors  time  calls
steady  solo          1, 1  1.00    100.0 %       0  TIME  6 live
        burst         1, 1  1.00    100.0 %       0  TIME  6 live
fickle  solo          1, 1  1.00    100.0 %       0  TIME  6 live
        burst         2, 3  2.50     33.3 %       0  TIME  6 live

answers of steady, 1 unique of 12
  12 × “It is Paris.”
answers of fickle, 4 unique of 12
  9 × “It is Paris.”
  1 × “It is Lyon.”
  1 × “It was Paris.”
  1 × “It is.”

fickle: 4 unique of 12 (9/1/1/1), max_unique=1

under burst: 2 unique of 3 runs, another call agrees at least 2.5 % of the time, at 95 %
  they part after 2 words, “It is”
  ├─ 2 × “Paris.”  (runs 0, 1)
  └─ 1 × “Lyon.”  (run 2)
  3 calls live; seed SEED
  load-sensitive: the answers depend on what shares the server's batch: 1 unique under solo, 4 unique under burst;\
 ask for batch-invariant serving, or judge the load you serve under

verdict     nondeterministic
decided by  max_unique=1 (default)
try next    pin the model's version, ask the provider for batch-invariant serving, or gate on min_agreement

passed            steady  1 unique of 12; another call agrees at least 22.4 % of the time, at 95 %
nondeterministic  fickle  4 unique of 12 (9/1/1/1), max_unique=1; another call agrees at least 0.0 % of the time,\
 at 95 %; load-sensitive
"""
    )
    assert said.err == "".join(
        f"[{number}/8] {experiment}\n"
        for number, experiment in enumerate(
            (
                f"{name} under {load}, attempt {attempt}"
                for name in ("steady", "fickle")
                for attempt in (1, 2)
                for load in ("solo", "burst")
            ),
            1,
        )
    )
    assert said.code == 1
    assert len(model.calls) == 24


def test_what_is_in_the_store_is_not_asked_again(probe: Probe, server) -> None:
    model = server(by_number(m=lambda number: "Paris." if number else "Lyon."))
    arguments = ("The capital?", f"--endpoint={model.url}", "--model=m", "--runs=4", "--report=report.json")

    first, second = probe(*arguments), probe(*arguments)

    assert first.out == (
        """\
“The capital?”, max_tokens=128, temperature=0

model  load   unique of 4  agreement  errors  time  calls
m      burst            2     75.0 %       0  TIME  4 live

answers of m, 2 unique of 4
  3 × “Paris.”
  1 × “Lyon.”

m: 2 unique of 4 (3/1), max_unique=1

under burst: 2 unique of 4 runs, another call agrees at least 13.5 % of the time, at 95 %
  they part at the first word
  ├─ 3 × “Paris.”  (runs 1, 2, 3)
  └─ 1 × “Lyon.”  (run 0)
  4 calls live; seed SEED

verdict     nondeterministic
decided by  max_unique=1 (default)
try next    see whether load matters: --load=solo,burst (company in the server's batch, or not)

nondeterministic  m  2 unique of 4 (3/1), max_unique=1; another call agrees at least 13.5 % of the time, at 95 %
report written to report.json
"""
    )
    assert second.out == first.out.replace("4 live", "4 cached").replace(
        "4 calls live", "4 answers from the store (oldest AGE): a replay is no new evidence"
    ).replace(
        "at 95 %\nreport", "at 95 %; all answers from the store (oldest AGE): a replay is no new evidence\nreport"
    )
    assert (first.code, second.code, len(model.calls)) == (1, 1, 4)
    advice = json.loads(Path("report.json").read_text())["tests"][0]["advice"]
    assert advice == "see whether load matters: --load=solo,burst (company in the server's batch, or not)"
    assert probe(*arguments, "--cache=off").code == 0
    assert len(model.calls) == 8


def test_the_store_knows_a_model_s_samples_by_its_name_in_the_report(
    probe: Probe, server, capsys: pytest.CaptureFixture[str]
) -> None:
    probe("Q?", f"--endpoint={server('Paris.').url}", "--model=m", "--runs=2", "--report=report.json")

    assert main(["cache", "ls", "--json"]) == 0

    (request,) = json.loads(capsys.readouterr().out)
    (test,) = json.loads(Path("report.json").read_text())["tests"]
    assert request["tests"] == [test["nodeid"]] == ["probe::m"]


def test_more_runs_are_added_to_those_in_the_store(probe: Probe, server) -> None:
    model = server("Paris.")
    arguments = ("Q?", f"--endpoint={model.url}", "--model=m")
    probe(*arguments, "--runs=3")

    said = probe(*arguments, "--runs=5")

    assert said.out.splitlines()[3:] == [
        "m      burst            1    100.0 %       0  TIME  2 live, 3 cached",
        "",
        "answers of m, 1 unique of 5",
        "  5 × “Paris.”",
        "",
        "passed  m  1 unique of 5; another call agrees at least 47.3 % of the time, at 95 %",
    ]
    assert len(model.calls) == 5


def test_messages_name_the_options_of_this_command(probe: Probe, server) -> None:
    words = ["one", "two", "three", "four", "five", "six", "seven", "eight", "nine"]
    model = server(
        by_number(
            many=lambda number: f"{' '.join(words[: number % 9])} {number}",
            warm=lambda number: "Paris." if number else "Lyon.",
        )
    )

    said = probe("Q?", f"--endpoint={model.url}", "--model=many,warm", "--runs=120", "--report=report.json")

    assert "more forks: see the JSON report (--report=FILE.json)\n" in said.out
    assert "--load=solo,burst" in said.out
    assert "  first-run-differs: " in said.out
    assert "--determinism-" not in said.out + Path("report.json").read_text()


def shape(value: Any) -> Any:
    """The keys of a JSON value, and the types below them."""
    if isinstance(value, dict):
        return {name: shape(part) for name, part in value.items()}
    if isinstance(value, list):
        return [shape(part) for part in value]
    return type(value)


def test_the_report_is_that_of_pytest_and_so_is_the_store(
    project: Project, probe: Probe, server, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = server(by_number(m=lambda number: "It is Lyon." if number == 2 else "It is Paris."))
    project.write(
        """
        import pytest

        @pytest.mark.deterministic(runs=3, load="solo")
        def test_it(llm):
            llm("The capital?", model="m", max_tokens=16)
        """
    )
    monkeypatch.chdir(project.path)
    endpoint = f"--determinism-endpoint={model.url}"
    ours = project.report(endpoint, "--determinism-model=m", "--determinism-cache=refresh")["whole"]

    said = probe(
        "The capital?",
        f"--endpoint={model.url}",
        "--model=m",
        "--runs=3",
        "--load=solo",
        "--max-tokens=16",
        "--report=probe.json",
    )

    report = json.loads(Path("probe.json").read_text())
    test = report["tests"][0]
    assert (said.code, len(model.calls)) == (1, 3)
    assert test["nodeid"] == "probe::m"
    # What is asked again from the store has a time of its own.
    ours["tests"][0]["experiments"][0]["calls"]["oldest_sample"] = ""
    assert shape(report["tests"]) == shape(ours["tests"])
    assert report.keys() == ours.keys()
    assert report["environment"]["probe"] == {
        "questions": ["The capital?"],
        "api": "chat",
        "completions_models": [],
        "max_tokens": 16,
        "parameters": {},
    }
    for name in ("verdict", "reason", "unique", "counts", "decided_by", "advice"):
        assert test[name] == ours["tests"][0][name]
    for name in ("groups", "divergence", "findings"):
        assert test["experiments"][0][name] == ours["tests"][0]["experiments"][0][name]
    assert test["settings"]["runs"] == {"value": 3, "source": "cli"}
    assert test["settings"]["attempts"] == {"value": 1, "source": "default"}


ALIKE = "Paris."


def one_differs(number: int) -> str:
    return "Lyon." if number == 1 else "Paris."


def refused(number: int) -> Reply:
    return Reply(status=404, raw=b'{"error": {"message": "no such model"}}')


@pytest.mark.parametrize(
    ("models", "code"),
    [
        ("steady", 0),
        ("fickle", 1),
        ("unknown", 3),
        ("steady,fickle", 1),
        ("steady,unknown", 3),
        ("unknown,fickle", 1),
    ],
)
def test_the_exit_code_says_what_the_worst_model_is(probe: Probe, server, models: str, code: int) -> None:
    model = server(by_number(steady=lambda number: "Paris.", fickle=one_differs, unknown=refused))

    assert probe("Q?", f"--endpoint={model.url}", f"--model={models}", "--runs=2", "--cache=off").code == code


def test_a_model_that_cannot_be_asked_is_given_up_after_its_first_run(probe: Probe, server) -> None:
    model = server(by_number(unknown=refused))

    said = probe("Q?", f"--endpoint={model.url}", "--model=unknown", "--load=solo,burst")

    assert said.out == (
        """\
“Q?”, max_tokens=128, temperature=0

model    load   unique of 30  agreement  errors  time  calls
unknown  solo              –          –       1  TIME  1 live
         burst     not asked          –       0  TIME  0

unknown: 1 of 30 runs ended in an API error, max_errors=0: HTTP 404: no such model

under solo: none of 30 runs completed
  1 × HTTP 404: no such model  (run 0)
  1 call live; seed SEED

verdict     inconclusive
decided by  max_errors=0 (default)
try next    look at the error; samples that arrived are kept, so a rerun asks only for the others; nothing more was\
 asked of this model

inconclusive  unknown  1 of 30 runs ended in an API error, max_errors=0: HTTP 404: no such model
"""
    )
    assert len(model.calls) == 1


def test_errors_between_answers_do_not_end_the_asking(probe: Probe, server) -> None:
    model = server(by_number(m=lambda number: refused(number) if number == 1 else "Paris."))

    said = probe("Q?", f"--endpoint={model.url}", "--model=m", "--runs=4", "--load=solo", "--cache=off")

    assert "\nm      solo       1 of 3    100.0 %       1  TIME  4 live\n" in said.out
    assert (said.code, len(model.calls)) == (3, 4)


@pytest.mark.parametrize(
    ("status", "message", "advice"),
    [
        (401, "Incorrect API key provided", "set OPENAI_API_KEY to a key that this endpoint accepts"),
        (
            400,
            "Unsupported parameter: 'max_tokens'. Use 'max_completion_tokens' instead.",
            "--max-tokens none --param max_completion_tokens=128",
        ),
        (
            400,
            "temperature does not support 0",
            (
                "this model may reject temperature: leave it out of the request (llm: temperature=None or"
                " --temperature=none)"
            ),
        ),
    ],
    ids=["key", "max_tokens", "temperature"],
)
def test_a_refusal_of_what_is_asked_comes_with_advice(
    probe: Probe, server, status: int, message: str, advice: str
) -> None:
    model = server(lambda call: Reply(status=status, raw=json.dumps({"error": {"message": message}}).encode()))

    said = probe("Q?", f"--endpoint={model.url}", "--model=m")

    assert f"\ntry next    {advice}; nothing more was asked of this model\n" in said.out
    assert said.code == 3


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ("--runs=1", "runs=1 (from --runs): a gate needs at least 2 runs; write 2 or more"),
        ("--load=storm", "load=storm (from --load): "),
        ("--max-unique=0", "max_unique=0 (from --max-unique): at least one output is always there; write 1 or more"),
        ("--cache=on", "cache=on (from --cache): write one of auto, refresh, replay, off"),
        ("--override=seed", "override=seed (from --override): write NAME=JSON"),
        ("--compare=nope", "compare=nope (from --compare): 'nope' is not a comparison; use exact, "),
        ("--report=report.txt", "report=report.txt (from --report): write a file name that ends in .json"),
        ("--report=.", "report=. (from --report): write a file name that ends in .json"),
        (
            "--min-agreement=0.99 --confidence=0.95",
            (
                "runs=30 (default) can never show min_agreement=0.99 (--min-agreement) at confidence=0.95"
                " (--confidence), not even when all runs agree; write runs=300 or more, or claim less"
            ),
        ),
        ("--model=m", "model=m,m (from --model): name each model once"),
        ("--completions-model=,", "model=, (from --completions-model): write one name"),
        ("--param=seed=1 --override=seed=2", "seed stands in --param and in --override; give it in one of them"),
        ("--param=max_tokens=3", "max_tokens=3 (from --param): set it with --max-tokens"),
        ("--messages=none.json", "none.json (from --messages) cannot be read: No such file or directory"),
        ("--completions-model=m", "a model stands in --model and in --completions-model; name each model once"),
    ],
)
def test_a_bad_value_is_said_before_any_call(probe: Probe, server, arguments: str, message: str) -> None:
    model = server("Paris.")

    said = probe("Q?", f"--endpoint={model.url}", "--model=m", *arguments.split())

    assert (said.code, said.out, model.calls) == (2, "", [])
    assert said.err.startswith(f"llm-determinism probe: {message}")
    assert said.err.count("\n") == 1


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--max-tokens=0"], "--max-tokens: '0' is no number of tokens; write 1 or more, or none"),
        (["--api=grpc"], "--api: 'grpc' is not known; write one of chat, completions, responses"),
        (["", "--model=m"], "the prompt (from PROMPT) is empty; write one, or leave it out"),
        ([], "no model to ask; write --model NAME"),
        (
            ["--endpoint=reference"],
            (
                "no model to ask; write --model NAME, one or several of dense, dense-fp16, moe-dropless, moe-capacity,"
                " loop"
            ),
        ),
        (
            ["--endpoint=localhost"],
            "endpoint=localhost (from --endpoint): write a base URL such as https://host/v1, or reference",
        ),
    ],
)
def test_wrong_usage_is_said(probe: Probe, arguments: list[str], message: str) -> None:
    said = probe(*arguments)

    assert (said.code, said.out) == (2, "")
    assert message in said.err


def test_a_report_that_cannot_be_written_is_said_before_any_call(probe: Probe, server) -> None:
    model = server("Paris.")
    Path("taken.json").mkdir()

    said = probe("Q?", f"--endpoint={model.url}", "--model=m", "--report=taken.json")

    assert (said.code, model.calls) == (2, [])
    assert said.err.startswith(
        "llm-determinism probe: report=taken.json (from --report): cannot be written: taken.json is a directory"
    )


def test_without_a_key_it_says_what_to_set(probe: Probe, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("OPENAI_API_KEY")

    said = probe("Q?", "--model=m")

    assert (said.code, said.out) == (2, "")
    assert (
        "llm-determinism probe: the openai client wants a key: set OPENAI_API_KEY, or name a server that needs none"
        " with --endpoint URL, or the bundled one with --endpoint reference (" in said.err
    )


def test_an_address_that_no_client_takes_is_said(probe: Probe) -> None:
    said = probe("Q?", "--endpoint=http://[::1", "--model=m")

    assert (said.code, said.out) == (2, "")
    assert "llm-determinism probe: the question cannot be asked: " in said.err


def test_a_server_that_needs_no_key_is_asked_without_one(probe: Probe, server, monkeypatch: pytest.MonkeyPatch) -> None:
    model = server("Paris.")
    monkeypatch.delenv("OPENAI_API_KEY")

    assert probe("Q?", f"--endpoint={model.url}", "--model=m", "--runs=2").code == 0
    assert "OPENAI_API_KEY" not in os.environ
    # And what it answered is told again without one, and without the server.
    monkeypatch.setenv("OPENAI_BASE_URL", model.url)
    assert probe("Q?", "--model=m", "--runs=2", "--cache=replay").code == 0
    assert len(model.calls) == 2


STORY = "Write a unique, surprising, extremely randomized story with highly unpredictable changes of events."
CHAT = [{"role": "system", "content": "You are a helpful assistant."}, {"role": "user", "content": STORY}]


@pytest.mark.parametrize(
    ("arguments", "path", "body"),
    [
        (["--model=m"], "/v1/chat/completions", {"messages": CHAT, "max_tokens": 128}),
        (["--model=m", "--api=responses"], "/v1/responses", {"input": CHAT, "max_output_tokens": 128}),
        (
            ["--completions-model=m"],
            "/v1/completions",
            {"prompt": f"[System: You are a helpful assistant]\n\nUser: {STORY}\n\nAI:", "max_tokens": 128},
        ),
        (
            ["--model=m", "Q?", "--max-tokens=none"],
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Q?"}]},
        ),
        (
            ["--model=m", "--api=completions", "--override=seed=7", "Q?", "--max-tokens=9"],
            "/v1/completions",
            {"prompt": "Q?", "max_tokens": 9, "seed": 7},
        ),
        (
            ["--model=m", "--system=Be brief.", "Q?", "--param=top_p=0.5", "--param", 'logit_bias={"7": -100}'],
            "/v1/chat/completions",
            {
                "messages": [{"role": "system", "content": "Be brief."}, {"role": "user", "content": "Q?"}],
                "max_tokens": 128,
                "top_p": 0.5,
                "logit_bias": {"7": -100},
            },
        ),
        (
            ["--model=m", "--max-tokens=none", "--param=max_completion_tokens=5", "--param=stop=END", "Q?"],
            "/v1/chat/completions",
            {"messages": [{"role": "user", "content": "Q?"}], "max_completion_tokens": 5, "stop": "END"},
        ),
    ],
    ids=["chat", "responses", "completions", "own question", "override", "param", "max_completion_tokens"],
)
def test_what_is_asked(probe: Probe, server, arguments: list[str], path: str, body: dict[str, Any]) -> None:
    model = server("Paris.")

    said = probe(f"--endpoint={model.url}", "--runs=2", *arguments)

    assert [(call.path, call.body) for call in model.calls] == [(path, {"model": "m", "temperature": 0, **body})] * 2
    assert said.code == 0
    assert ("seed" in body) == ("temperature=0, override seed=7\n" in said.out)


def test_several_questions_have_a_table_each(probe: Probe, server) -> None:
    model = server(lambda call: f"{call.prompt} {call.number % 2}" if call.prompt == "Two?" else call.prompt)
    Path("talk.json").write_text('[{"role": "user", "content": "Three?"}]')
    Path("prompt.txt").write_text("Two?\n")

    said = probe(
        "One?",
        f"--endpoint={model.url}",
        "--model=m",
        "--runs=2",
        "--load=solo",
        "--prompt-file=prompt.txt",
        "--messages=talk.json",
        "--report=report.json",
    )

    assert said.out.startswith(
        """\
“One?”, max_tokens=128, temperature=0

model  load  unique of 2  agreement  errors  time  calls
m      solo            1    100.0 %       0  TIME  2 live

“Two?”, max_tokens=128, temperature=0

model  load  unique of 2  agreement  errors  time  calls
m      solo            2     50.0 %       0  TIME  2 live

“Three?”, 1 message of talk.json, max_tokens=128, temperature=0

model  load  unique of 2  agreement  errors  time  calls
m      solo            1    100.0 %       0  TIME  2 live

answers of m[One?], 1 unique of 2
  2 × “One?”
answers of m[Two?], 2 unique of 2
  1 × “Two? 0”
  1 × “Two? 1”
answers of m[Three?], 1 unique of 2
  2 × “Three?”

m[Two?]: 2 unique of 2 (1/1), max_unique=1
"""
    )
    assert said.out.splitlines()[-4:-1] == [
        "passed            m[One?]    1 unique of 2; another call agrees at least 5.0 % of the time, at 95 %",
        (
            "nondeterministic  m[Two?]    2 unique of 2 (1/1), max_unique=1; another call agrees at least 0.0 % of the"
            " time, at 95 %"
        ),
        "passed            m[Three?]  1 unique of 2; another call agrees at least 5.0 % of the time, at 95 %",
    ]
    assert said.err.splitlines() == [
        f"[{number}/3] m[{name}?] under solo" for number, name in enumerate(("One", "Two", "Three"), 1)
    ]
    report = json.loads(Path("report.json").read_text())
    assert [test["nodeid"] for test in report["tests"]] == ["probe::m[One?]", "probe::m[Two?]", "probe::m[Three?]"]
    assert report["environment"]["probe"]["questions"] == ["One?", "Two?", [{"role": "user", "content": "Three?"}]]


def test_the_published_figures_stand_beside_ones_own(probe: Probe, server) -> None:
    model = server(lambda call: f"{call.body['model']} {call.number % 2}")

    said = probe(
        f"--endpoint={model.url}",
        "--model=gpt-4",
        "--completions-model=mine",
        "--load=solo,burst",
        "--attempts=3",
        "--runs=2",
        "--concurrency=1",
        "--compare-with=published",
    )

    assert said.out.split("\n\n")[1] == (
        """\
model                  load   unique of 2  mean   published   mean  agreement  errors  time  calls
gpt-4                  solo       2, 2, 2  2.00  12, 11, 12  11.67     50.0 %       0  TIME  6 live
                       burst      2, 2, 2  2.00                        50.0 %       0  TIME  6 live
mine                   solo       2, 2, 2  2.00                        50.0 %       0  TIME  6 live
                       burst      2, 2, 2  2.00                        50.0 %       0  TIME  6 live
gpt-3.5-turbo                           –     –     4, 4, 3   3.67
text-davinci-003                        –     –     3, 2, 4   3.00
text-davinci-001                        –     –     2, 2, 2   2.00
davinci-instruct-beta                   –     –     1, 1, 1   1.00
davinci                                 –     –     1, 1, 1   1.00
published: https://152334h.github.io/blog/non-determinism-in-gpt-4/
  its conditions: 3 attempts of 30 calls, one at a time, max_tokens=128, temperature=0, with a logit_bias against the\
 end of the text
  here: runs=2 (--runs), load=solo,burst (--load)
  davinci and davinci-instruct-beta answered alike because they fell into a repeating loop"""
    )
    assert {call.path for call in model.calls} == {"/v1/chat/completions", "/v1/completions"}


def test_the_list_of_answers_is_bounded_and_shows_where_each_parts(probe: Probe, server) -> None:
    words = " ".join(["word"] * 40)
    model = server(by_number(m=lambda number: f"{words} {'end' if number < 5 else number}" + "\x1b[2J" * 100))

    said = probe("Q?", f"--endpoint={model.url}", "--model=m", "--load=solo", "--runs=30")

    shown = said.out[said.out.index("answers of") : said.out.index("\n\nm: ")].splitlines()
    assert shown[:2] == ["answers of m, 26 unique of 30", f"  5 × “{'word ' * 19}word…”"]
    assert shown[2].startswith("  1 × “…d word word word word word word 5\\x1b[2J\\x1b")
    assert shown[-1] == "  … and 14 more: all are in the JSON report (--report=FILE.json)"
    assert len(shown) == 14
    assert "\x1b" not in said.out


MODELS = {
    "one": (200, {"object": "list", "data": [{"id": "only", "object": "model"}]}),
    "many": (200, {"object": "list", "data": [{"id": f"m{number}\x1b", "object": "model"} for number in range(20)]}),
    "none": (200, {"object": "list", "data": []}),
    "unknown": (404, {"error": {"message": "no such route"}}),
    "odd": (200, ["what?"]),
}


@pytest.mark.parametrize(
    ("there", "message"),
    [
        ("many", ", one or several of " + ", ".join(rf"m{number}\x1b" for number in range(12)) + " and 8 more\n"),
        ("none", " (URL says that it has none)\n"),
        ("unknown", " (URL does not say which it has: HTTP 404)\n"),
        ("odd", " (URL does not say which it has: "),
    ],
)
def test_without_a_model_it_says_which_the_endpoint_has(probe: Probe, server, there: str, message: str) -> None:
    model = server("Paris.")
    model.listing = MODELS[there]

    said = probe("Q?", f"--endpoint={model.url}")

    assert (said.code, said.out, model.calls) == (2, "", [])
    assert said.err.replace(model.url, "URL").startswith(
        f"llm-determinism probe: no model to ask; write --model NAME{message}"
    )


def test_the_only_model_of_an_endpoint_is_asked(probe: Probe, server) -> None:
    model = server("Paris.")
    model.listing = MODELS["one"]

    said = probe("Q?", f"--endpoint={model.url}", "--runs=2")

    assert said.code == 0
    assert {call.body["model"] for call in model.calls} == {"only"}
    assert probe("Q?", f"--endpoint={model.url}", "--cache=replay").err == (
        "llm-determinism probe: no model to ask; write --model NAME\n"
    )


def test_answers_are_held_against_those_of_an_earlier_probe(probe: Probe, server) -> None:
    model = server(by_number(m=lambda number: "Paris." if number < 20 else "Lyon.", gone=lambda number: "Paris."))
    asked = ("Q?", f"--endpoint={model.url}", "--runs=20", "--load=solo", "--cache=off")
    assert probe(*asked, "--model=m,gone", "--report=before.json").code == 0

    said = probe(*asked, "--model=m", "--baseline=before.json", "--report=after.json")

    assert said.code == 1
    assert json.loads(Path("after.json").read_text())["tests"][0]["verdict"] == "drifted"
    assert "\ndrifted  m  1 unique of 20, " in said.out
    assert "\nbaseline=before.json (--baseline): 1 test compared, 1 drifted\n" in said.out
    assert "\n  in the baseline and not in this session: probe::gone\n" in said.out
    other = probe(*asked, "--model=m", "--baseline=before.json", "--compare=casefold")
    assert other.err == (
        "llm-determinism probe: baseline=before.json (--baseline): was made under other settings: compare=exact"
        " (default) then, compare=casefold (--compare) now; set them as they were, or renew the baseline:"
        " llm-determinism report baseline REPORT.json -o BASELINE.json\n"
    )


def test_every_setting_but_the_gate_is_an_option(probe: Probe) -> None:
    said = probe("--help")

    options = set(re.findall(r"^  (--[a-z-]+)", said.out, re.MULTILINE))
    own = {"--api", "--compare-with", "--completions-model", "--max-tokens", "--messages", "--param", "--prompt-file"}
    assert options == {*own, "--system"} | {f"--{name.replace('_', '-')}" for name in TABLE.keys() - {"gate"}}
    for word in ("determinism-", "xdist", "fixture", "rootdir", "session"):
        assert word not in said.out.replace("llm-determinism", "")


def test_fail_fast_stops_at_the_first_answer_that_differs(probe: Probe, server) -> None:
    model = server(by_number(m=one_differs))

    # It is a switch, and what follows is the question.
    said = probe(f"--endpoint={model.url}", "--model=m", "--load=solo,burst", "--attempts=2", "--fail-fast", "Q?")

    assert said.out.splitlines()[:5] == [
        "“Q?”, max_tokens=128, temperature=0",
        "",
        "model  load   unique of 30  mean  agreement  errors  time  calls",
        "m      solo         2 of 2     –     50.0 %       0  TIME  2 live",
        "       burst     not asked     –          –       0  TIME  0",
    ]
    assert len(model.calls) == 2


def test_the_budget_is_that_of_all_models(probe: Probe, server) -> None:
    model = server("Paris.")
    arguments = (f"--endpoint={model.url}", "--model=a,b", "--runs=4", "--load=solo")

    said = probe("Q?", *arguments, "--max-calls=6")

    assert said.code == 3
    assert said.out.endswith(
        "\npassed        a  1 unique of 4; another call agrees at least 36.8 % of the time, at 95 %\n"
        "inconclusive  b  max_calls=6 (--max-calls) reached: 6 live calls made in this session; raise it, or run again:"
        " samples that arrived are kept, and the next session goes on from there\n"
    )
    assert probe("Q?", *arguments).code == 0
    assert len(model.calls) == 8


def test_under_replay_no_model_is_asked(probe: Probe, server) -> None:
    model = server("Paris.")

    said = probe("Q?", f"--endpoint={model.url}", "--model=m", "--cache=replay", "--report=report.json")

    assert (said.code, model.calls) == (3, [])
    for text in (said.out, Path("report.json").read_text()):
        assert "fill the store with --cache=auto" in text
        assert "--determinism-" not in text


def test_a_comparison_of_ones_own_is_found_where_the_probe_is_started(
    probe: Probe, server, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(sys, "path", [*sys.path])
    Path("first_letter_alone.py").write_text("def first(output):\n    return output[:1]\n")
    model = server(by_number(m=lambda number: f"P{number}"))

    said = probe("Q?", f"--endpoint={model.url}", "--model=m", "--runs=3", "--compare=first_letter_alone:first")

    assert said.code == 0
    assert "1 unique of 3" in said.out


def test_what_a_server_says_cannot_steer_the_terminal_and_an_answer_is_not_changed(probe: Probe, server) -> None:
    error = json.dumps({"error": {"message": "\x1b[2J no"}}).encode()
    model = server(
        by_number(
            red=lambda number: f"\x1b[31m--determinism-load={number}",
            broken=lambda number: Reply(status=404, raw=error),
        )
    )

    said = probe("Q?", f"--endpoint={model.url}", "--model=red,broken", "--runs=2", "--load=solo")

    assert "\x1b" not in said.out
    assert "--determinism-load=" in said.out
    assert "HTTP 404: \\x1b[2J no\n" in said.out


def test_the_neighbours_of_a_crowd_are_counted(probe: Probe, server) -> None:
    model = server("Paris.", latency=0.05)

    said = probe("Q?", f"--endpoint={model.url}", "--model=m", "--load=crowd", "--runs=8", "--report=report.json")

    neighbours = json.loads(Path("report.json").read_text())["tests"][0]["experiments"][0]["neighbour_calls"]
    assert neighbours > 0
    assert f"  TIME  8 live, {neighbours} of neighbours\n" in said.out
    assert {call.body["model"] for call in model.calls} == {"m"}


def test_the_reference_server_shows_that_company_changes_answers(probe: Probe) -> None:
    said = probe(
        "--endpoint=reference",
        "--model=dense,moe-capacity",
        "--load=solo,burst",
        "--max-tokens=64",
        "--cache=off",
        "--report=report.json",
    )

    tests = json.loads(Path("report.json").read_text())["tests"]
    unique = {test["nodeid"]: [found["unique"] for found in test["experiments"]] for test in tests}
    assert said.code == 1
    assert unique["probe::dense"] == [1, 1]
    assert unique["probe::moe-capacity"][0] == 1
    assert unique["probe::moe-capacity"][1] > 1
    assert "  load-sensitive: the answers depend on what shares the server's batch: 1 unique under solo, " in said.out
    assert [line.split()[0] for line in said.out.splitlines()[-3:-1]] == ["passed", "nondeterministic"]


def interrupted(arguments: list[str], url: str, when: Callable[[int], None]) -> Said:
    """A probe in a process of its own, which gets a Ctrl-C after `when` has returned; it is told the process's id."""
    environment = {**os.environ, "OPENAI_API_KEY": "sk-test-secret"}
    with subprocess.Popen(
        [*COMMAND, "Q?", f"--endpoint={url}", *arguments],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=environment,
    ) as process:
        try:
            when(process.pid)
            process.send_signal(signal.SIGINT)
            out, err = process.communicate(timeout=60)
        finally:
            process.kill()
    return Said(process.returncode, without_times(out), err)


def test_what_arrived_before_an_interruption_is_told_and_kept(probe: Probe, server) -> None:
    stuck = threading.Event()
    over = threading.Event()

    def second(number: int) -> str:
        if number == 3:
            stuck.set()
            over.wait(60)
        return "Paris."

    model = server(by_number(a=lambda number: "Paris.", b=second))
    arguments = ["--model=a,b", "--runs=5", "--load=solo"]
    try:
        said = interrupted(arguments, model.url, lambda _: stuck.wait(60))
    finally:
        over.set()

    assert said.out == (
        """\
“Q?”, max_tokens=128, temperature=0

model  load  unique of 5  agreement  errors  time  calls
a      solo            1    100.0 %       0  TIME  5 live

answers of a, 1 unique of 5
  5 × “Paris.”

passed  a  1 unique of 5; another call agrees at least 47.3 % of the time, at 95 %
"""
    )
    assert said.err.splitlines() == [
        "[1/2] a under solo",
        "[2/2] b under solo",
        "llm-determinism probe: interrupted; what had arrived is kept, and the next probe goes on",
    ]
    assert said.code == 130
    # Of five samples of b three had arrived.
    assert (
        "b      solo            1    100.0 %       0  TIME  2 live, 3 cached"
        in probe("Q?", f"--endpoint={model.url}", *arguments).out
    )


def test_an_interrupted_probe_leaves_no_server_behind(probe: Probe) -> None:
    servers: list[str] = []

    def started(pid: int) -> None:
        children = Path(f"/proc/{pid}/task/{pid}/children")
        if not children.exists():
            pytest.skip("needs /proc to tell whose a process is")
        deadline = time.monotonic() + 60
        while not Path(".pytest_llm_determinism/cache.db").exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        servers.extend(children.read_text().split())

    said = interrupted(["--model=dense", "--runs=2000", "--load=solo"], "reference", started)

    assert said.code == 130
    assert len(servers) == 1
    deadline = time.monotonic() + 30
    while Path("/proc", servers[0]).exists() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not Path("/proc", servers[0]).exists()
