"""Makes the figures of docs/in-vitro.md: ``python docs/make_in_vitro.py``, about two minutes on two cores.

The page is written by hand but for its marked parts, which are made anew from real runs: the reference server is started by
``llm-determinism serve``, asked under every load by ``determinism.repeat`` in a pytest session of its own, and by the page's
own commands and examples, whose output is printed below them. When a claim of the page does not hold in these runs, nothing is written.
"""

from __future__ import annotations

import contextlib
import datetime
import io
import json
import os
import re
import shlex
import subprocess
import sys
import tempfile
import threading
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any
from unittest import mock

from pytest_llm_determinism.reference import routing, words
from pytest_llm_determinism.reference.model import DEFAULT_CAPACITY_FACTOR, EXPERTS
from pytest_llm_determinism.settings import LOADS

PAGE = Path(__file__).parent / "in-vitro.md"
MODELS = ("dense", "dense-fp16", "moe-dropless", "moe-capacity")
UNSTABLE = ("dense-fp16", "moe-capacity")
FACTORS = (1.0, 1.5, 2.0, 2.5, 3.0, 3.5, 4.0, 8.0)
PROMPTS = (
    "Write a unique, surprising, extremely randomized story with highly unpredictable changes of events.",
    "Write a short story about a fox who finds a letter by the river.",
    "What is the capital of France?",
)
TOKENS = 128
BATCH = 8

SESSION = """
import json
from pathlib import Path

import openai
import pytest

PLAN = json.loads(Path("plan.json").read_text(encoding="utf-8"))


@pytest.mark.parametrize("number", range(len(PLAN)))
def test_experiment(determinism, number):
    asked = PLAN[number]
    answers = []
    with openai.OpenAI(base_url=asked["url"], api_key="none") as client:

        def ask():
            reply = client.completions.create(**asked["question"])
            answers.append({"texts": [choice.text for choice in reply.choices], "x_reference": reply.x_reference})

        found = determinism.repeat(ask, runs=asked["runs"], load=asked["load"])
    with open("found.jsonl", "a", encoding="utf-8") as file:
        file.write(json.dumps({"number": number, "unique": found.unique, "answers": answers}) + "\\n")
"""


@dataclass(frozen=True)
class Size:
    """How much is asked: how many of `PROMPTS`, in experiments of how many runs.

    Under `burst` there are several experiments for each prompt, `attempts`, under the other loads one.
    """

    prompts: int = len(PROMPTS)
    attempts: int = 2
    runs: int = 30
    batches: int = 10


@dataclass(frozen=True)
class Planned:
    """One experiment to be made. `prompts` has several where they are asked together, in one request."""

    model: str
    factor: float
    load: str
    prompts: tuple[str, ...]
    runs: int

    def question(self) -> dict[str, Any]:
        return {"model": self.model, "prompt": self.prompts, "max_tokens": TOKENS, "temperature": 0}


@dataclass(frozen=True)
class Answer:
    """What one run was told."""

    texts: list[str]
    company: dict[str, Any]

    @property
    def dropped(self) -> int:
        count: int = self.company["dropped"]["own"]
        return count


@dataclass(frozen=True)
class Experiment:
    """What came of a planned one."""

    planned: Planned
    unique: int
    answers: list[Answer]


@dataclass(frozen=True)
class Figures:
    """All that was found: each model under each load, `moe-capacity` with each capacity factor, whole batches alone."""

    size: Size
    loads: list[Experiment]
    factors: list[Experiment]
    batches: list[Experiment]

    def of(self, model: str, load: str) -> list[Experiment]:
        return [found for found in self.loads if (found.planned.model, found.planned.load) == (model, load)]

    def with_factor(self, factor: float) -> list[Experiment]:
        return [found for found in self.factors if found.planned.factor == factor]


@contextlib.contextmanager
def served(factors: Iterable[float]) -> Iterator[dict[float, str]]:
    """Reference servers as a reader starts them, one for each capacity factor; their base URLs."""
    command = [sys.executable, "-m", "pytest_llm_determinism.cli", "serve", "--port", "0", "--capacity-factor"]
    servers = {
        factor: subprocess.Popen([*command, f"{factor:g}"], stdout=subprocess.PIPE, text=True) for factor in factors
    }

    def end() -> None:
        for server in servers.values():
            server.terminate()

    too_late = threading.Timer(60, end)
    too_late.start()
    try:
        urls = {}
        for factor, server in servers.items():
            assert server.stdout is not None
            said = re.match(r"listening on (\S+)", server.stdout.readline())
            if said is None:
                raise SystemExit(f"the reference server with capacity factor {factor:g} did not start")
            urls[factor] = said[1]
        too_late.cancel()
        yield urls
    finally:
        too_late.cancel()
        end()
        for server in servers.values():
            server.communicate(timeout=20)


def measure(size: Size, urls: dict[float, str]) -> Figures:
    """Ask what the tables are made of."""
    loads, factors, batches = [], [], []
    for prompt in PROMPTS[: size.prompts]:
        for load in LOADS:
            attempts = size.attempts if load == "burst" else 1
            for model in MODELS:
                loads += [Planned(model, DEFAULT_CAPACITY_FACTOR, load, (prompt,), size.runs)] * attempts
        for factor in FACTORS:
            factors += [Planned("moe-capacity", factor, "burst", (prompt,), size.runs)] * size.attempts
        batches += [
            Planned(model, DEFAULT_CAPACITY_FACTOR, "solo", (prompt,) * BATCH, size.batches) for model in MODELS
        ]
    found = iter(_repeated([*loads, *factors, *batches], urls))
    return Figures(size, *([next(found) for _ in planned] for planned in (loads, factors, batches)))


def _repeated(planned: Sequence[Planned], urls: dict[float, str]) -> list[Experiment]:
    plan = [
        {"url": urls[one.factor], "question": one.question(), "load": one.load, "runs": one.runs} for one in planned
    ]
    with tempfile.TemporaryDirectory() as folder:
        (Path(folder) / "plan.json").write_text(json.dumps(plan), encoding="utf-8")
        (Path(folder) / "test_in_vitro.py").write_text(SESSION, encoding="utf-8")
        (Path(folder) / "pytest.ini").write_text("[pytest]\n", encoding="utf-8")
        command = [sys.executable, "-m", "pytest", "-q", "-x", "-p", "no:cacheprovider", "-p", "no:randomly"]
        done = subprocess.run(
            [*command, "--determinism-cache=off"],
            cwd=folder,
            env={name: value for name, value in os.environ.items() if name != "PYTEST_ADDOPTS"},
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            timeout=600,
        )
        if done.returncode:
            raise SystemExit(done.stdout)
        lines = (Path(folder) / "found.jsonl").read_text(encoding="utf-8").splitlines()
    return [
        Experiment(one, line["unique"], [Answer(answer["texts"], answer["x_reference"]) for answer in line["answers"]])
        for one, line in zip(planned, map(json.loads, lines), strict=True)
    ]


# What the page says of these figures


def wrong_claims(figures: Figures) -> list[str]:
    """The claims of the page that do not hold in these figures; none if all is well."""
    claims = {
        "alone every model answers the same": all(
            found.unique == 1 for model in MODELS for found in figures.of(model, "solo")
        ),
        "dense and moe-dropless answer the same under every load": all(
            found.unique == 1 for found in figures.loads if found.planned.model not in UNSTABLE
        ),
        "dense-fp16 and moe-capacity do not in company": all(
            max(found.unique for found in figures.of(model, load)) > 1
            for model in UNSTABLE
            for load in LOADS
            if load != "solo"
        ),
        "an answer is that of moe-dropless up to its first dropped token": all(
            _same_tokens(answer, unlimited) >= _first_drop(answer)
            for _, answer, unlimited in _capacity_answers(figures)
        ),
        "a batch of its own answers the same each time": all(found.unique == 1 for found in figures.batches),
        "the last answers of a batch differ from its first with a limited capacity, and with it alone": all(
            (_different(found) > 1) == (found.planned.model == "moe-capacity") for found in figures.batches
        ),
        "a larger capacity drops less": _dropped(figures.with_factor(FACTORS[0]))
        > _dropped(figures.with_factor(DEFAULT_CAPACITY_FACTOR))
        > 0,
        "nothing is dropped, and all answers are the same, when an expert has a place for every token": all(
            found.unique == 1 and not any(answer.dropped for answer in found.answers)
            for factor in FACTORS
            if factor >= EXPERTS / routing.TOP_K
            for found in figures.with_factor(factor)
        ),
        "the smallest capacity gives the most answers": max(_uniques(figures.with_factor(FACTORS[0])))
        >= max(_uniques(figures.with_factor(DEFAULT_CAPACITY_FACTOR)))
        > 1,
    }
    return [claim for claim, holds in claims.items() if not holds]


def _capacity_answers(figures: Figures) -> Iterator[tuple[str, Answer, Answer]]:
    """The answers of `moe-capacity`, each with its load and what `moe-dropless` says to the same question."""
    unlimited = {found.planned.prompts: found.answers[0] for found in figures.of("moe-dropless", "solo")}
    for load in LOADS:
        for found in figures.of("moe-capacity", load):
            for answer in found.answers:
                yield load, answer, unlimited[found.planned.prompts]


def _same_tokens(answer: Answer, other: Answer) -> int:
    """How many tokens two answers begin with alike; more than either has when they are equal."""
    (text,), (other_text,) = answer.texts, other.texts
    if text == other_text:
        return TOKENS + 1
    tokens, others = words.encode(text), words.encode(other_text)
    alike = (token == other for token, other in zip(tokens, others, strict=False))
    return next((number for number, same in enumerate(alike) if not same), min(len(tokens), len(others)))


def _first_drop(answer: Answer) -> int:
    """The token of the answer that the first dropped token helped to make; more than it has when none was dropped."""
    (choice,) = answer.company["choices"]
    return choice["dropped_at"][0][0] if choice["dropped_at"] else TOKENS + 1


def _different(found: Experiment) -> int:
    """Different answers within one batch."""
    return len(set(found.answers[0].texts))


def _uniques(experiments: Iterable[Experiment]) -> list[int]:
    return [found.unique for found in experiments]


def _dropped(experiments: Iterable[Experiment]) -> float:
    """Dropped tokens of an answer, on average."""
    counts = [answer.dropped for found in experiments for answer in found.answers]
    return sum(counts) / len(counts)


# The page


def parts(figures: Figures) -> dict[str, str]:
    """The marked parts that are made of the figures, by name."""
    return {
        "how": _how(figures.size),
        "loads": _table(
            ["model", *(f"`{load}`" for load in LOADS)],
            [[f"`{model}`", *(_range(figures.of(model, load)) for load in LOADS)] for model in MODELS],
        ),
        "drops": _table(
            [
                "load",
                "answers",
                "no token dropped",
                "of these, as `moe-dropless`",
                "a token dropped",
                "of these, parted before it",
            ],
            [_drops(figures, load) for load in LOADS],
        ),
        "factors": _table(
            [
                "capacity factor",
                f"places of an expert for {BATCH} tokens",
                f"unique of {figures.size.runs}",
                "dropped tokens, an answer",
            ],
            [
                [
                    f"{factor:g}",
                    str(routing.capacity(factor, BATCH, EXPERTS)),
                    _range(figures.with_factor(factor)),
                    f"{_dropped(figures.with_factor(factor)):.1f}",
                ]
                for factor in FACTORS
            ],
        ),
        "batches": _table(
            ["model", f"different among the {BATCH} answers of one batch", f"unique batches of {figures.size.batches}"],
            [
                [f"`{model}`", _span([_different(one) for one in found]), _range(found)]
                for model in MODELS
                for found in [[one for one in figures.batches if one.planned.model == model]]
            ],
        ),
    }


def _how(size: Size) -> str:
    return (
        f"Made on {datetime.date.today()}: {size.prompts} prompts, answers of at most {TOKENS} tokens, {size.runs} runs an"
        f" experiment. Under `burst` there were {size.attempts} experiments for each prompt, under the other loads one; where"
        " they differ, the lowest and the highest figure are told.\n"
    )


def _drops(figures: Figures, load: str) -> list[str]:
    answers = [(answer, unlimited) for at, answer, unlimited in _capacity_answers(figures) if at == load]
    whole = [(answer, unlimited) for answer, unlimited in answers if not answer.dropped]
    parted = [pair for pair in answers if pair[0].dropped and _same_tokens(*pair) < _first_drop(pair[0])]
    alike = sum(answer.texts == unlimited.texts for answer, unlimited in whole)
    counts = (len(answers), len(whole), alike, len(answers) - len(whole), len(parted))
    return [f"`{load}`", *map(str, counts)]


def _range(experiments: Iterable[Experiment]) -> str:
    return _span(_uniques(experiments))


def _span(counts: Sequence[int]) -> str:
    low, high = min(counts), max(counts)
    return str(low) if low == high else f"{low}–{high}"


def _table(head: Sequence[str], rows: Iterable[Sequence[str]]) -> str:
    return "".join(f"| {' | '.join(row)} |\n" for row in (head, ["---"] * len(head), *rows))


def examples(page: str, url: str) -> dict[str, str]:
    """What the page's own examples print, each after those before it, by name."""
    printed = {}
    shared: dict[str, Any] = {}
    with mock.patch.dict(os.environ, {"OPENAI_BASE_URL": url, "OPENAI_API_KEY": "none"}):
        for name, code in re.findall(r"<!-- example: (\w+) -->\n```python\n(.*?)```\n", page, re.DOTALL):
            with contextlib.redirect_stdout(io.StringIO()) as output:
                exec(compile(code, f"{PAGE.name}, example {name}", "exec"), shared)
            printed[name] = f"```\n{output.getvalue()}```\n"
    return printed


def commands(page: str, urls: dict[float, str], *more: str) -> dict[str, str]:
    """What the page's own probes print, in short, by name. `more` is added to each of them."""
    printed = {}
    for name, command in re.findall(r"<!-- command: (\w+) -->\n```bash\nllm-determinism (.*)\n```\n", page):
        arguments = shlex.split(command.replace("http://127.0.0.1:8081/v1", urls[4.0]))
        with tempfile.TemporaryDirectory() as folder:
            done = subprocess.run(
                [sys.executable, "-m", "pytest_llm_determinism.cli", *arguments, *more],
                cwd=folder,
                env={name: value for name, value in os.environ.items() if not name.startswith("OPENAI_")},
                capture_output=True,
                text=True,
                timeout=300,
            )
        if not done.stdout:
            raise SystemExit(done.stderr)
        printed[name] = f"```\n{in_short(done.stdout)}\n```\n"
    return printed


def in_short(printed: str) -> str:
    """Of what a probe prints the question, the table, what it says of the load, and the verdict."""
    question, table, *explained, verdict = printed.strip().split("\n\n")
    found = re.findall(r"^ +load-sensitive:.*$", "\n".join(explained), re.MULTILINE)
    return "\n\n".join([question, table, *(f"  …\n{line}\n  …" for line in found), verdict])


def rewritten(page: str, made: dict[str, str]) -> str:
    """The page with its marked parts made anew. Every marked part must be among those that were made."""
    return re.sub(
        r"(<!-- made: (\w+) -->\n).*?(?=<!-- end -->)", lambda found: found[1] + made[found[2]], page, flags=re.DOTALL
    )


if __name__ == "__main__":
    page = PAGE.read_text(encoding="utf-8")
    with served(FACTORS) as urls:
        figures = measure(Size(), urls)
        printed = examples(page, urls[DEFAULT_CAPACITY_FACTOR]) | commands(page, urls)
    wrong = wrong_claims(figures)
    if wrong:
        raise SystemExit("\n".join(["not written, because in these runs it is wrong that", *wrong]))
    PAGE.write_text(rewritten(page, parts(figures) | printed), encoding="utf-8")
