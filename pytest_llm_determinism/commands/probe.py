"""``llm-determinism probe``: ask models the same question again and again, without a test file.

Each model is asked and judged as the body of a marked test is: the same repetition, store, settings and verdict.
"""

from __future__ import annotations

import argparse
import contextlib
import datetime
import os
import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.commands import INTERRUPTED, USAGE_ERROR, exit_code
from pytest_llm_determinism.endpoint import BASE_URL
from pytest_llm_determinism.settings import (
    REFERENCE,
    TABLE,
    Override,
    Setting,
    SettingError,
    Settings,
    Value,
    check_claim,
    parse,
    shown,
)

if TYPE_CHECKING:
    from pytest_llm_determinism.commands.question import Question
    from pytest_llm_determinism.llm import Api, Messages
    from pytest_llm_determinism.repeat import Repeater
    from pytest_llm_determinism.report.probe import Asked
    from pytest_llm_determinism.results import TestResult
    from pytest_llm_determinism.session import Session

# The settings by what they are about; a probe is nothing but the gate, which cannot be switched off.
_GROUPS = {
    "what is asked": ("endpoint", "model", "temperature", "override", "ignore"),
    "how often, and beside what": (
        "runs",
        "attempts",
        "load",
        "concurrency",
        "rate",
        "neighbours",
        "fail_fast",
        "max_calls",
        "max_cost",
    ),
    "what passes": ("max_unique", "min_agreement", "confidence", "max_errors", "compare", "baseline"),
    "the store": ("cache", "cache_dir", "cache_ttl"),
    "reports": ("report",),
}
_SETTINGS = tuple(TABLE[name] for names in _GROUPS.values() for name in names)

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
    "max_cost": "money that may be spent, in USD; models that need more end inconclusive (needs the extra cost)",
    "baseline": "an earlier JSON report to compare with: models whose answers are others now end drifted",
    "max_calls": "live calls that may be made; models that need more end inconclusive, and the next probe goes on",
}

# What to do about errors that a question of this form may meet.
_ADVICE = {
    "HTTP 401": "set OPENAI_API_KEY to a key that this endpoint accepts",
    "max_completion_tokens": "--max-tokens none --param max_completion_tokens=128",
}

PUBLISHED_FIGURES = "published"

LISTED_MODELS = 12
"""Models of an endpoint that an error names."""

LISTING_TIME = 10.0
"""Seconds that an endpoint gets to say which models it has."""


@dataclass(frozen=True, slots=True)
class Asking:
    """One question to one model.

    Attributes:
        label: of the question, where there are several.
    """

    question: Question
    label: str
    model: str
    api: Api

    @property
    def name(self) -> str:
        return self.model + self.label

    @property
    def nodeid(self) -> str:
        return f"probe::{self.name}"

    def messages(self) -> str | Messages:
        if self.api != "completions":
            return self.question.messages
        assert self.question.prompt is not None
        return self.question.prompt

    def parameters(self, max_tokens: int | None, given: Mapping[str, Any]) -> dict[str, Any]:
        """What the request has beside the question, the model and its temperature."""
        if max_tokens is None:
            return dict(given)
        return {"max_output_tokens" if self.api == "responses" else "max_tokens": max_tokens, **given}


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    probe = commands.add_parser(
        "probe",
        help="ask models the same question again and again, and count the different answers",
        description="Ask each model the same question again and again, and judge it as a marked test is judged. Exit"
        " code: 0 if all models pass, 1 if one is nondeterministic or drifted, else 3 if one is inconclusive; 2 for"
        " wrong usage.",
    )
    probe.add_argument(
        "prompt",
        nargs="*",
        metavar="PROMPT",
        help="the question; several are asked one after the other (default: the story that the best-known experiment of"
        " this kind asked for)",
    )
    groups = {title: probe.add_argument_group(title) for title in _GROUPS}
    asked = groups["what is asked"]
    asked.add_argument(
        "--prompt-file",
        action="append",
        metavar="FILE",
        help="file with a question, in UTF-8; - reads standard input; may be given several times",
    )
    asked.add_argument(
        "--messages",
        action="append",
        metavar="FILE.json",
        help='file with a question as a list of messages, [{"role": "user", "content": "…"}]; - reads standard input;'
        " may be given several times",
    )
    asked.add_argument("--system", metavar="TEXT", help="system message that goes with each prompt")
    asked.add_argument(
        "--param",
        action="append",
        metavar="NAME=JSON",
        help="parameter of the request, such as seed=7, logprobs=true or top_p=0.9 (JSON, else a string); may be given"
        " several times",
    )
    asked.add_argument(
        "--api", choices=("chat", "completions", "responses"), default="chat", help="how to ask (default: %(default)s)"
    )
    asked.add_argument(
        "--completions-model",
        action="append",
        metavar="NAME",
        help="model to ask through the completions API, beside those of --model; may be given several times",
    )
    asked.add_argument(
        "--max-tokens",
        type=_max_tokens,
        default="128",
        metavar="N",
        help="the longest answer, in tokens; none leaves it out of the request (default: %(default)s)",
    )
    groups["reports"].add_argument(
        "--compare-with",
        choices=(PUBLISHED_FIGURES,),
        help="show the published figures of the best-known experiment beside one's own",
    )
    for title, names in _GROUPS.items():
        for name in names:
            groups[title].add_argument(_flag(name), **_keywords(TABLE[name]))
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
    told: list[Asked] = []
    try:
        return _run(options, told)
    except SettingError as error:
        _say(_own_flags(f"llm-determinism probe: {error}"))
        return USAGE_ERROR
    except KeyboardInterrupt:
        if any(asked.results for asked in told):
            _print(told)
        kept = "nothing is kept" if options.cache == "off" else "what had arrived is kept, and the next probe goes on"
        _say(f"llm-determinism probe: interrupted; {kept}")
        return INTERRUPTED


def _run(options: argparse.Namespace, told: list[Asked]) -> int:
    """Ask all models and print what came of it; returns the exit code.

    Args:
        told: gets one question after the other, with one model's result after the other as soon as it is finished.

    Raises:
        SettingError: something that is needed is missing, or cannot be used.
    """
    from pytest_llm_determinism.commands.question import labels, parameters, read
    from pytest_llm_determinism.report.files import write
    from pytest_llm_determinism.report.probe import Asked
    from pytest_llm_determinism.results import report
    from pytest_llm_determinism.screen import ticker_on
    from pytest_llm_determinism.session import Session

    session = Session(_given(options), {}, Path.cwd())
    session.make_ticker = lambda: ticker_on(sys.stderr)
    settings = session.settings({})
    ways = _ways(options, settings)
    given = parameters(options)
    _check_named_once(given, settings)
    questions = read(options)
    paths = _checked(session, settings)
    with contextlib.closing(session.endpoint):
        session.endpoint.open(settings.endpoint, None)
        ways = ways or [(_only_model(settings), options.api)]
        askings = [
            [Asking(question, label, model, api) for model, api in ways]
            for question, label in zip(questions, labels(questions), strict=True)
        ]
        _load_baseline(session, settings, [asking.nodeid for models in askings for asking in models])
        each = len(settings.load) * settings.attempts
        in_all = len(questions) * len(ways) * each
        try:
            for models in askings:
                question = models[0].question
                beside = _beside(options, settings, question)
                told.append(Asked(_title(options, settings, question, given), models[0].label, [], beside))
                for asking in models:
                    more = asking.parameters(options.max_tokens, given)
                    before = sum(len(asked.results) for asked in told) * each
                    told[-1].results.append(_asked(session, settings, asking, more, (before, in_all)))
        finally:
            notes = session.close()
    notes.extend(_settle(session, told))
    _print(told, notes)
    results = [result for asked in told for result in asked.results]
    for path in paths:
        write(path, report(results, {"probe": _record(options, questions, given)}))
        print(f"report written to {path}")
    return exit_code([result.verdict for result in results])


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


def _ways(options: argparse.Namespace, settings: Settings) -> list[tuple[str, Api]]:
    """Which models to ask, and how; none where the endpoint is to say which it has.

    Raises:
        SettingError: a model is named twice, or none can be found out.
    """
    ways = [(model, options.api) for model in settings.model or ()]
    if options.completions_model:
        models = parse(TABLE["model"], options.completions_model, "--completions-model")
        ways.extend((model, "completions") for model in models or ())
    if len(dict(ways)) < len(ways):
        raise SettingError("a model stands in --model and in --completions-model; name each model once")
    if ways:
        return ways
    if settings.endpoint == REFERENCE:
        from pytest_llm_determinism.reference import MODELS

        raise SettingError(f"no model to ask; write --model NAME, one or several of {', '.join(MODELS)}")
    if (settings.endpoint is None and not os.environ.get(BASE_URL)) or settings.cache == "replay":
        raise SettingError("no model to ask; write --model NAME")
    return []


def _only_model(settings: Settings) -> str:
    """The model of an endpoint that has one.

    Raises:
        SettingError: it has none or several, or does not say; names them.
    """
    import openai

    wanted = "no model to ask; write --model NAME"
    where = settings.endpoint or "OPENAI_BASE_URL"
    try:
        with openai.OpenAI(max_retries=0, timeout=LISTING_TIME) as client:
            names = [str(model.id) for model in client.models.list()]
    except openai.APIStatusError as error:
        raise SettingError(f"{wanted} ({where} does not say which it has: HTTP {error.status_code})") from None
    except openai.APIConnectionError:
        raise SettingError(f"{wanted} ({where} cannot be asked which it has: no connection)") from None
    except Exception as error:
        if type(error) is openai.OpenAIError:
            raise _no_key(error) from None
        # What a server answers that knows no such list can be anything.
        raise SettingError(f"{wanted} ({where} does not say which it has: {type(error).__name__})") from None
    if len(names) == 1:
        return names[0]
    if not names:
        raise SettingError(f"{wanted} ({where} says that it has none)")
    listed = ", ".join(excerpt(name) for name in names[:LISTED_MODELS])
    more = f" and {len(names) - LISTED_MODELS} more" if len(names) > LISTED_MODELS else ""
    raise SettingError(f"{wanted}, one or several of {listed}{more}")


def _check_named_once(given: Mapping[str, Any], settings: Settings) -> None:
    for name in settings.override or ():
        if name.split(".")[0] in given:
            raise SettingError(f"{name} stands in --param and in --override; give it in one of them")


def _load_baseline(session: Session, settings: Settings, nodeids: Sequence[str]) -> None:
    """Hold what is to be asked against an earlier report, if one is named.

    Raises:
        SettingError: it cannot be read, or was made under other settings.
    """
    if settings.baseline is None:
        return
    from pytest_llm_determinism.baseline import load

    session.baseline, _ = load(Path(settings.baseline), settings.quote("baseline"))
    for nodeid in nodeids:
        # The node id names the model, and of what else is asked the question itself tells.
        session.baseline.check(nodeid, settings, asks_with_llm=False)
    session.in_baseline = sum(nodeid in session.baseline for nodeid in nodeids)


def _settle(session: Session, told: Sequence[Asked]) -> list[str]:
    """Hold all results together against the baseline; returns what is to be said of it."""
    if session.baseline is None:
        return []
    from pytest_llm_determinism.report.text import against_baseline

    settled, _ = session.baseline.settled({result.nodeid: result for asked in told for result in asked.results})
    for asked in told:
        asked.results[:] = [settled[result.nodeid] for result in asked.results]
    return against_baseline(session.baseline.quoted, list(settled.values()), [], session.baseline.missing(settled))


def _title(options: argparse.Namespace, settings: Settings, question: Question, given: Override) -> str:
    """What is asked, in one line."""
    parts = [
        f"“{excerpt(question.text)}”",
        question.about,
        f"max_tokens={shown(options.max_tokens)}",
        f"temperature={shown(settings.temperature)}",
        excerpt(", ".join(given.pairs())),
        f"override {shown(settings.override)}" if settings.override else "",
    ]
    return ", ".join(filter(None, parts))


def _beside(options: argparse.Namespace, settings: Settings, question: Question) -> tuple[str, ...]:
    """What is to be known of the published figures, if they are wanted."""
    if options.compare_with != PUBLISHED_FIGURES:
        return ()
    from pytest_llm_determinism.commands.question import PUBLISHED
    from pytest_llm_determinism.report.published import conditions

    return conditions(settings, options.max_tokens, question == PUBLISHED)


def _record(options: argparse.Namespace, questions: Sequence[Question], given: Override) -> dict[str, Any]:
    """What was asked, for the report."""
    return {
        "questions": [question.messages for question in questions],
        "api": options.api,
        "completions_models": parse(TABLE["model"], options.completions_model or "none", "--completions-model") or (),
        "max_tokens": options.max_tokens,
        "parameters": dict(given),
    }


def _checked(session: Session, settings: Settings) -> list[Path]:
    """The reports to write, once it is known that no setting is wrong.

    Raises:
        SettingError: for the first that is.
    """
    from pytest_llm_determinism.report.files import check

    check_claim(settings)
    if ":" in settings.compare:
        sys.path.append(os.getcwd())
    paths = [Path(name) for name in settings.report or ()]
    check(paths, _flag("report"))
    return paths


def _announced(settings: Settings, name: str, among: tuple[int, int]) -> Iterator[str]:
    """What is said at the start of each experiment: ``[5/12] moe-capacity under burst, attempt 2``.

    Args:
        among: how many experiments were made before this model's first, and how many are made in all.
    """
    before, in_all = among
    experiments = [(load, attempt) for attempt in range(settings.attempts) for load in settings.load]
    for number, (load, attempt) in enumerate(experiments, before + 1):
        which = f", attempt {attempt + 1}" if settings.attempts > 1 else ""
        yield f"[{number}/{in_all}] {name} under {load}{which}"


def _asked(
    session: Session, settings: Settings, asking: Asking, parameters: Mapping[str, Any], among: tuple[int, int]
) -> TestResult:
    """What came of asking one model one question.

    Args:
        among: as of `_announced`.
    """
    from pytest_llm_determinism.llm import LLM
    from pytest_llm_determinism.repeat import Repeater
    from pytest_llm_determinism.screen import has_rows

    comparison = session.comparison(settings)
    repeater = Repeater(session, settings, comparison, name=asking.nodeid, shown=asking.name, among=among)
    # Where a row shows how far the experiment is, that says which one it is, too.
    announced = _announced(settings, asking.name, among) if not has_rows(sys.stderr) else None
    messages = asking.messages()
    answered = stopped = False
    with (
        contextlib.closing(LLM(session, settings, asking.model)) as llm,
        contextlib.closing(repeater.runs()) as scopes,
    ):
        for scope in scopes:
            if scope.index == 0 and announced is not None:
                _say(next(announced))
            with scope:
                llm(messages, api=asking.api, **parameters)
                answered = True
            if not answered and scope.index >= settings.max_errors:
                stopped = True  # at a wrong address, name or key, whose errors would all be the same
                break
    _raise_failure(repeater)
    return _in_own_words(repeater.result(asking.nodeid), stopped)


def _raise_failure(repeater: Repeater) -> None:
    """Raise what a run ended in that is neither an answer nor an error of the API: the question could not be asked."""
    from pytest_llm_determinism.fixtures import failure_note

    for failure in repeater.failures.values():
        if type(failure.error).__name__ == "OpenAIError":
            raise _no_key(failure.error)
        note = failure_note(failure, repeater.settings.runs)
        raise SettingError(f"the question cannot be asked: {failure.text} ({note})")


def _no_key(error: BaseException) -> SettingError:
    return SettingError(
        "the openai client wants a key: set OPENAI_API_KEY, or name a server that needs none with --endpoint URL, or"
        f" the bundled one with --endpoint {REFERENCE} ({error})"
    )


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


def _print(told: Sequence[Asked], notes: Sequence[str] = ()) -> None:
    from pytest_llm_determinism.report.probe import summary

    lines = [*summary([asked for asked in told if asked.results], datetime.datetime.now(datetime.UTC)), *notes]
    # Where an answer is quoted, it stays as it is.
    print("\n".join(line if "“" in line else _own_flags(line) for line in lines), flush=True)


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)
