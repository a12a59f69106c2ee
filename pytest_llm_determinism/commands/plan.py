"""``llm-determinism plan``: what a gate can show and what a suite will ask, before anything is spent on it."""

from __future__ import annotations

import argparse
import math
import sys
from bisect import bisect_left
from collections.abc import Callable
from typing import Any

from pytest_llm_determinism.analysis.statistics import (
    agreement_lower,
    pass_probability,
    percent,
    power_in_words,
    runs_needed,
    runs_to_catch,
    unseen_flips,
)
from pytest_llm_determinism.commands import USAGE_ERROR
from pytest_llm_determinism.settings import TABLE, shown

FLIP_RATES = (0.001, 0.005, 0.01, 0.05, 0.1)
FLIP_RATE = 0.01
CONFIDENCE = 0.95
MOST = 1_000_000

_OF_A_GATE = ("runs", "attempts", "load", "max_unique", "min_agreement", "confidence")


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command."""
    plan = commands.add_parser(
        "plan",
        help="how many runs a claim needs, what a gate lets pass, and what a suite will ask and cost",
        description="Say what a gate can show and what it lets pass, and how many runs it takes to show or catch more."
        " With TESTS: collect them with pytest, and say how many runs and calls they make, what that takes, and what a"
        " pass of each shows. Asks no model.",
    )
    plan.add_argument(
        "tests",
        nargs="*",
        metavar="TESTS",
        help="files, folders or node ids, as pytest takes them; after -- its options, too: -- -k refund",
    )
    plan.add_argument(
        "--from",
        dest="from_report",
        action="append",
        metavar="FILE.json",
        help="with TESTS: an earlier JSON report, which tells calls, tokens, time and price of each test; may be given"
        " several times",
    )
    for name, help in (
        ("runs", "runs of the body in each experiment"),
        ("attempts", "repetitions of the runs; each is an experiment of its own"),
        ("load", "one load or several with commas; each is an experiment of its own"),
        ("max_unique", "more different outputs than this fail the test"),
    ):
        setting = TABLE[name]
        plan.add_argument(
            "--" + name.replace("_", "-"),
            type=_setting(name),
            metavar=setting.metavar,
            help=f"{help} (default: {shown(setting.default)}; with TESTS: what each of them says)",
        )
    plan.add_argument(
        "--confidence",
        type=_share,
        metavar="LEVEL",
        help=f"level of the bound on what a pass shows (default: {CONFIDENCE})",
    )
    plan.add_argument(
        "--min-agreement",
        type=_share,
        metavar="SHARE",
        help="also say how many runs it takes to show this agreement; with TESTS: they are to show it",
    )
    plan.add_argument(
        "--flip-rate",
        type=_share,
        metavar="SHARE",
        help=f"share of a model's calls that do not give its common answer (default: several; with TESTS: {FLIP_RATE})",
    )
    plan.add_argument(
        "--catch",
        type=_share,
        default="0.95",
        metavar="SHARE",
        help="how often a model that flips is to be caught (default: %(default)s)",
    )
    plan.set_defaults(run=_plan)


def _setting(name: str) -> Callable[[str], Any]:
    def parse(text: str) -> Any:
        try:
            value = TABLE[name].parse(text)
        except ValueError as error:
            raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None
        if TABLE[name].number and value > MOST:
            raise argparse.ArgumentTypeError(f"{text!r}: write {MOST} or less")
        return value

    return parse


def _share(text: str) -> float:
    try:
        share = float(text)
    except ValueError:
        share = 0.0
    # Beyond this there are hardly any numbers between a share and 1, and never as many runs.
    if not 1e-12 <= share <= 1 - 1e-12:
        raise argparse.ArgumentTypeError(f"{text!r} is not a share; write a number above 0 and below 1, such as 0.95")
    return share


def _plan(options: argparse.Namespace) -> int:
    if options.tests:
        return _plan_suite(options)
    if options.from_report:
        return _refuse("--from tells of tests; name them, too: plan tests --from FILE.json")
    for name in ("runs", "attempts", "load", "max_unique"):
        if getattr(options, name) is None:
            setattr(options, name, TABLE[name].default)
    options.confidence = options.confidence or CONFIDENCE
    claim = [] if options.min_agreement is None else [_claim(options)]
    power = _table(options) if options.flip_rate is None else _sentence(options)
    print("\n".join((_gate(options), *_shown(options), *claim, "", *power, *_notes(options))))
    return 0


def _plan_suite(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.commands.suite import NotCollected, collect, earlier, lines
    from pytest_llm_determinism.results import ReportError

    flags = [
        f"{TABLE[name].flag}={shown(value)}" for name in _OF_A_GATE if (value := getattr(options, name)) is not None
    ]
    try:
        told = earlier(options.from_report or ())
        found = collect([*flags, *options.tests])
    except ReportError as error:
        return _refuse(str(error))
    except NotCollected as error:
        print(error, file=sys.stderr)
        return _refuse("pytest cannot collect these tests, for the reason above")
    print("\n".join(lines(found, told, options.flip_rate or FLIP_RATE, options.catch)))
    return 0


def _refuse(why: str) -> int:
    print(f"llm-determinism plan: {why}", file=sys.stderr)
    return USAGE_ERROR


def _experiments(options: argparse.Namespace) -> int:
    return int(options.attempts * len(options.load))


def _total(options: argparse.Namespace) -> int:
    return int(options.runs * _experiments(options))


def _gate(options: argparse.Namespace) -> str:
    """``gate: runs=30, max_unique=1``, with what multiplies the runs."""
    several = _experiments(options) > 1
    names = ("runs", *(("attempts", "load") if several else ()), "max_unique")
    in_all = f": {_total(options)} runs in {_experiments(options)} experiments" if several else ""
    return f"gate: {', '.join(f'{name}={shown(getattr(options, name))}' for name in names)}{in_all}"


def _shown(options: argparse.Namespace) -> list[str]:
    """What the runs show if the test passes."""
    runs, confidence = options.runs, options.confidence
    level = f"at {100 * confidence:.12g} %"
    where = " of one experiment" if _experiments(options) > 1 else ""
    bound = _in_full(agreement_lower([runs], confidence))
    lines = [f"{runs} identical runs{where} show that another call agrees at least {bound} of the time, {level}"]
    if options.max_unique > 1 and options.min_agreement is None:
        outputs = min(options.max_unique, runs)
        # Of what passes, outputs that are all as frequent show least.
        least = _in_full(agreement_lower([math.ceil(runs / outputs)], confidence, runs))
        lines.append(f"with {outputs} different outputs, which pass as well, it may be as little as {least}")
    return lines


def _in_full(bound: float) -> str:
    """A bound with the digits that tell it from 1: ``90.2 %``, ``99.9970 %``."""
    return percent(bound, max(1, math.ceil(-math.log10(1 - bound)) - 1))


def _claim(options: argparse.Namespace) -> str:
    runs, confidence, wanted = options.runs, options.confidence, options.min_agreement
    needed = runs_needed(wanted, confidence)
    if runs < needed:
        answer = "is refused before the first call"
    else:
        answer = "can show it"
        too_many = bisect_left(
            range(runs), True, key=lambda differing: agreement_lower([runs - differing], confidence, runs) < wanted
        )
        if options.max_unique > 1 and too_many > 1:
            answer += f", also with {too_many - 1} that differ{'s' if too_many == 2 else ''}"
    where = " in each experiment" if _experiments(options) > 1 else ""
    claim = f"min_agreement={wanted} with confidence={confidence} takes {needed} identical runs{where}"
    return f"{claim}; runs={runs} {answer}"


def _sentence(options: argparse.Namespace) -> list[str]:
    words = power_in_words(options.flip_rate, _total(options), options.max_unique, options.catch)
    if _experiments(options) == 1:
        return [words]
    needed = runs_to_catch(options.flip_rate, options.catch, options.max_unique)
    return [words, f"that is {_as_runs(needed, options)}"]


def _table(options: argparse.Namespace) -> list[str]:
    """How often models that flip pass, and what it takes to catch them."""
    gate = "this gate" if options.max_unique == 1 else f"max_unique={options.max_unique}"
    rows = [("a model that flips", f"passes {gate}", f"caught {100 * options.catch:.12g} times of 100 with")]
    for rate in FLIP_RATES:
        passes = percent(pass_probability(rate, _total(options), options.max_unique))
        needed = runs_to_catch(rate, options.catch, options.max_unique)
        rows.append((f"{100 * rate:.12g} %", passes, _as_runs(needed, options)))
    widths = [max(map(len, column)) for column in zip(*rows, strict=True)]
    return ["   ".join(map(str.rjust, row, widths)) for row in rows]


def _as_runs(needed: int, options: argparse.Namespace) -> str:
    """The setting that makes as many runs in all: ``runs=299``."""
    experiments = _experiments(options)
    runs = max(math.ceil(needed / experiments), 2)
    return f"runs={runs}" + (f" ({runs * experiments} in all)" if experiments > 1 else "")


def _notes(options: argparse.Namespace) -> list[str]:
    notes = []
    if options.max_unique > 1 and options.flip_rate is None:
        notes.append(f"each flip is taken for an answer of its own; {unseen_flips(options.max_unique)}")
    if options.max_unique > 1 and options.min_agreement is not None:
        notes.append("this is max_unique alone; min_agreement may fail what passes it")
    if len(options.load) > 1:
        notes.append(
            f"outputs are compared over all {_total(options)} runs; what flips under one load only has to be caught"
            f" by the {options.runs * options.attempts} runs of that load"
        )
    return notes
