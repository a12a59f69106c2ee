"""``llm-determinism probe``: ask models the same question again and again, without a test file.

Each model is asked and judged as the body of a marked test is: the same repetition, store, settings and verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llm_determinism.commands import INTERRUPTED, USAGE_ERROR
from pytest_llm_determinism.settings import (
    REFERENCE,
    TABLE,
    Setting,
    SettingError,
    Settings,
    Value,
    check_claim,
    parse,
    shown,
)

if TYPE_CHECKING:
    from pytest_llm_determinism.llm import Api, Messages
    from pytest_llm_determinism.repeat import Repeater
    from pytest_llm_determinism.results import TestResult
    from pytest_llm_determinism.session import Session

FAILED = 1
NOTHING_SHOWN = 3

PUBLISHED = "Write a unique, surprising, extremely randomized story with highly unpredictable changes of events."
"""What the best-known experiment asked: https://152334h.github.io/blog/non-determinism-in-gpt-4/"""

_SYSTEM = "You are a helpful assistant"

# A probe is nothing but the gate.
_SETTINGS = tuple(setting for setting in TABLE.values() if setting.name != "gate")

# Where the table speaks of tests.
_HELP = {
    "runs": "times the question is asked under each load, in each attempt",
    "max_unique": "more different answers than this fail the model",
    "concurrency": "calls in flight",
    "rate": "live calls started per time, whichever model they are for: 2/s, 50/min",
    "neighbours": "most unrelated requests in flight under crowd, on top of concurrency",
    "endpoint": f"base URL of the model API, or {REFERENCE} for the bundled server; without it OPENAI_BASE_URL counts",
    "model": "model to ask; several are asked one after the other",
    "temperature": "temperature of the question; none leaves it out of the request",
    "cache_dir": "directory of the store, relative to the current directory",
    "max_calls": "live calls that may be made; models that need more end inconclusive, and the next probe goes on",
}

# What to do about errors that a question of this form may meet.
_ADVICE = {
    "HTTP 401": "set OPENAI_API_KEY to a key that this endpoint accepts",
    "max_completion_tokens": "--max-tokens none --override max_completion_tokens=128",
}


@dataclass(frozen=True, slots=True)
class Question:
    """What is asked of a model.

    Attributes:
        prompt: None for the published one.
        max_tokens: the longest answer; None leaves it out of the request.
    """

    model: str
    api: Api
    prompt: str | None
    max_tokens: int | None

    def messages(self) -> str | Messages:
        if self.prompt is not None:
            return self.prompt
        if self.api == "completions":
            return f"[System: {_SYSTEM}]\n\nUser: {PUBLISHED}\n\nAI:"
        return [{"role": "system", "content": f"{_SYSTEM}."}, {"role": "user", "content": PUBLISHED}]

    def parameters(self) -> dict[str, Any]:
        if self.max_tokens is None:
            return {}
        return {"max_output_tokens" if self.api == "responses" else "max_tokens": self.max_tokens}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    probe = commands.add_parser(
        "probe",
        help="ask models the same question again and again, and count the different answers",
        description="Ask each model the same question again and again, and judge it as a marked test is judged. Exit"
        " code: 0 if all models pass, 1 if one is nondeterministic, else 3 if one is inconclusive; 2 for wrong usage.",
    )
    probe.add_argument(
        "prompt",
        nargs="?",
        metavar="PROMPT",
        help="the question (default: the story that the best-known experiment of this kind asked for)",
    )
    probe.add_argument(
        "--api", choices=("chat", "completions", "responses"), default="chat", help="how to ask (default: %(default)s)"
    )
    probe.add_argument(
        "--completions-model",
        action="append",
        metavar="NAME",
        help="model to ask through the completions API, beside those of --model; may be given several times",
    )
    probe.add_argument(
        "--max-tokens",
        type=_max_tokens,
        default="128",
        metavar="N",
        help="the longest answer, in tokens; none leaves it out of the request (default: %(default)s)",
    )
    for setting in _SETTINGS:
        probe.add_argument(_flag(setting.name), **_keywords(setting))
    probe.set_defaults(run=_probe)


def _flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def _keywords(setting: Setting) -> dict[str, Any]:
    text = _HELP.get(setting.name, setting.help).replace("%", "%%")
    keywords: dict[str, Any] = {"help": f"{text} (default: {shown(setting.default)})"}
    if isinstance(setting.default, bool):
        # It takes no value: the prompt may follow.
        return {"action": "store_const", "const": "on", **keywords}
    return {"action": "append" if setting.several else "store", "metavar": setting.metavar, **keywords}


def _max_tokens(text: str) -> int | None:
    if text == "none":
        return None
    if text.isdecimal() and int(text) > 0:
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no number of tokens; write 1 or more, or none")


def _probe(options: argparse.Namespace) -> int:
    results: list[TestResult] = []
    try:
        return _run(options, results)
    except SettingError as error:
        _say(f"llm-determinism probe: {error}")
        return USAGE_ERROR
    except KeyboardInterrupt:
        if results:
            _print(options, results)
        kept = "nothing is kept" if options.cache == "off" else "what had arrived is kept, and the next probe goes on"
        _say(f"llm-determinism probe: interrupted; {kept}")
        return INTERRUPTED


def _run(options: argparse.Namespace, results: list[TestResult]) -> int:
    """Ask all models and print what came of it; returns the exit code.

    Args:
        results: gets one model after the other, as soon as it is finished.

    Raises:
        SettingError: something that is needed is missing, or cannot be used.
    """
    from pytest_llm_determinism.report.json_file import write
    from pytest_llm_determinism.results import report
    from pytest_llm_determinism.session import Session
    from pytest_llm_determinism.verdict import INCONCLUSIVE, NONDETERMINISTIC

    session = Session(_given(options), {}, Path.cwd())
    settings = session.settings({})
    questions = _questions(options, settings)
    paths = _checked(session, settings)
    with contextlib.closing(session.endpoint):
        session.endpoint.open(settings.endpoint, None)
        try:
            for number, question in enumerate(questions):
                results.append(_asked(session, settings, question, _announced(settings, question, number, questions)))
        finally:
            notes = session.close()
    _print(options, results, notes)
    for path in paths:
        write(path, report(results, {"prompt": options.prompt or PUBLISHED, "max_tokens": options.max_tokens}))
        print(f"report written to {path}")
    verdicts = {result.verdict for result in results}
    return FAILED if NONDETERMINISTIC in verdicts else NOTHING_SHOWN if INCONCLUSIVE in verdicts else 0


def _given(options: argparse.Namespace) -> dict[str, Value]:
    """The settings that are given.

    Raises:
        SettingError: for the first value that cannot be used.
    """
    given = {}
    for setting in _SETTINGS:
        written = getattr(options, setting.name)
        if written is not None:
            flag = _flag(setting.name)
            given[setting.name] = Value(parse(setting, written, flag), "cli", flag)
    return given


def _questions(options: argparse.Namespace, settings: Settings) -> list[Question]:
    if options.prompt is not None and not options.prompt.strip():
        raise SettingError("the prompt is empty; write one, or leave it out to ask the published one")
    ways = [(model, options.api) for model in settings.model or ()]
    if options.completions_model:
        models = parse(TABLE["model"], options.completions_model, "--completions-model")
        ways.extend((model, "completions") for model in models or ())
    if not ways:
        raise SettingError(f"no model to ask; write --model NAME{_reference_models(settings)}")
    if len(dict(ways)) < len(ways):
        raise SettingError("a model stands in --model and in --completions-model; name each model once")
    return [Question(model, api, options.prompt, options.max_tokens) for model, api in ways]


def _reference_models(settings: Settings) -> str:
    if settings.endpoint != REFERENCE:
        return ""
    from pytest_llm_determinism.reference import MODELS

    return f", one or several of {', '.join(MODELS)}"


def _checked(session: Session, settings: Settings) -> list[Path]:
    """The reports to write, once it is known that no setting is wrong.

    Raises:
        SettingError: for the first that is.
    """
    from pytest_llm_determinism.report.json_file import check_writable

    check_claim(settings)
    if ":" in settings.compare:
        sys.path.append(os.getcwd())
    paths = [Path(name) for name in settings.report or ()]
    for path in paths:
        try:
            check_writable(path)
        except OSError as error:
            raise SettingError(f"report={path} (from {_flag('report')}): cannot be written: {error}") from None
    return paths


def _announced(settings: Settings, question: Question, number: int, questions: Sequence[Question]) -> Iterator[str]:
    """What is said at the start of each experiment: ``[5/12] moe-capacity under burst, attempt 2``."""
    experiments = [(load, attempt) for attempt in range(settings.attempts) for load in settings.load]
    for index, (load, attempt) in enumerate(experiments, number * len(experiments) + 1):
        which = f", attempt {attempt + 1}" if settings.attempts > 1 else ""
        yield f"[{index}/{len(questions) * len(experiments)}] {question.model} under {load}{which}"


def _asked(session: Session, settings: Settings, question: Question, announced: Iterator[str]) -> TestResult:
    """What came of asking one model."""
    from pytest_llm_determinism.llm import LLM
    from pytest_llm_determinism.repeat import Repeater

    repeater = Repeater(session, settings, session.comparison(settings))
    messages, parameters = question.messages(), question.parameters()
    answered = stopped = False
    with (
        contextlib.closing(LLM(session, settings, question.model)) as llm,
        contextlib.closing(repeater.runs()) as scopes,
    ):
        for scope in scopes:
            if scope.index == 0:
                _say(next(announced))
            with scope:
                llm(messages, api=question.api, **parameters)
                answered = True
            if not answered and scope.index >= settings.max_errors:
                stopped = True  # at a wrong address, name or key, whose errors would all be the same
                break
    _raise_failure(repeater)
    return _in_own_words(repeater.result(f"probe::{question.model}"), stopped)


def _raise_failure(repeater: Repeater) -> None:
    """Raise what a run ended in that is neither an answer nor an error of the API: the question could not be asked."""
    from pytest_llm_determinism.fixtures import failure_note

    for failure in repeater.failures.values():
        if type(failure.error).__name__ == "OpenAIError":
            raise SettingError(
                "the openai client wants a key: set OPENAI_API_KEY, or name a server that needs none with"
                f" --endpoint URL, or the bundled one with --endpoint {REFERENCE} ({failure.error})"
            )
        note = failure_note(failure, repeater.settings.runs)
        raise SettingError(f"the question cannot be asked: {failure.text} ({note})")


def _in_own_words(result: TestResult, stopped: bool) -> TestResult:
    """The result with advice for this command, whose flags have shorter names than pytest's.

    Args:
        stopped: whether nothing more was asked after errors.
    """
    advice = next((advice for sign, advice in _ADVICE.items() if sign in result.reason), result.advice)
    if stopped and advice:
        advice = f"{advice}; nothing more was asked of this model"
    experiments = tuple(
        replace(
            experiment,
            findings=tuple(replace(found, message=_own_flags(found.message)) for found in experiment.findings),
        )
        for experiment in result.experiments
    )
    return replace(
        result, reason=_own_flags(result.reason), advice=advice and _own_flags(advice), experiments=experiments
    )


def _own_flags(text: str) -> str:
    return text.replace("--determinism-", "--")


def _print(options: argparse.Namespace, results: Sequence[TestResult], notes: Sequence[str] = ()) -> None:
    from pytest_llm_determinism.analysis.excerpt import excerpt
    from pytest_llm_determinism.report.probe import summary

    question = f"“{excerpt(options.prompt or PUBLISHED)}”, max_tokens={shown(options.max_tokens)}"
    lines = [*summary(question, results, datetime.datetime.now(datetime.UTC)), *notes]
    # Where an answer is quoted, it stays as it is.
    print("\n".join(line if "“" in line else _own_flags(line) for line in lines), flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
