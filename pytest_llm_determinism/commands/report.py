"""``llm-determinism report``: read, merge, compare and render JSON reports."""

from __future__ import annotations

import argparse
import datetime
import sys
from collections import Counter
from collections.abc import Callable, Iterable, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llm_determinism.commands import USAGE_ERROR, exit_code
from pytest_llm_determinism.settings import REPORT_FORMATS, TABLE, SettingError, parse

if TYPE_CHECKING:
    from pytest_llm_determinism.report.merging import Choice
    from pytest_llm_determinism.results import TestResult

DIFFERENT = 1


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and those below it."""
    report = commands.add_parser(
        "report",
        help="read, merge, compare and render JSON reports",
        description="Read, merge, compare and render the JSON reports that --determinism-report=FILE.json wrote. Asks"
        " no model.",
    )
    below = report.add_subparsers(title="commands", required=True, metavar="COMMAND")

    show = _below(
        below,
        "show",
        _show,
        "print what pytest printed, and judge",
        "Print the table of all tests and explain those that did not pass, as pytest did. Exit code: 0 if all passed, 1"
        " if one is nondeterministic or drifted, else 3 if one is inconclusive or there is none; 2 for wrong usage.",
    )
    show.add_argument("files", nargs="+", metavar="FILE", help="JSON report")
    show.add_argument(
        "--test",
        metavar="TEXT",
        help="only tests with this text in their node id; these are explained if they passed, too",
    )

    merge = _below(
        below,
        "merge",
        _merge,
        "make one report of several, such as the shards of a CI matrix",
        "Make one report of several. Of a test that stands in several of them the worst result is taken. Merging does"
        " not judge: report show does. Exit code: 0 if merged, 2 for wrong usage and damaged reports.",
    )
    merge.add_argument("files", nargs="+", metavar="FILE", help="JSON report")
    _add_output(merge)

    render = _below(
        below,
        "render",
        _render,
        "write a report in other formats",
        "Write a report in other formats. Exit code: 0 if written, 2 for wrong usage.",
    )
    render.add_argument("file", metavar="FILE", help="JSON report")
    _add_output(render)

    diff = _below(
        below,
        "diff",
        _diff,
        "say what is another in a second report",
        "Say which tests are new or vanished, and which verdicts, settings and answers are others in the second report."
        " Exit code: 0 if there is no difference, 1 if there is one, 2 for wrong usage.",
    )
    diff.add_argument("before", metavar="BEFORE", help="JSON report")
    diff.add_argument("after", metavar="AFTER", help="JSON report")

    baseline = _below(
        below,
        "baseline",
        _baseline,
        "make a small baseline file to commit",
        "Make a file for --determinism-baseline of a report, small enough to commit. Exit code: 0 if written, 2 for"
        " wrong usage.",
    )
    baseline.add_argument("file", metavar="REPORT", help="JSON report")
    baseline.add_argument(
        "-o", "--output", action="append", required=True, metavar="FILE", help="baseline to write (.json)"
    )

    _below(
        below,
        "schema",
        _schema,
        "print the JSON Schema of reports",
        "Print the JSON Schema (draft 2020-12) of JSON reports.",
    )


def _below(
    commands: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    run: Callable[[argparse.Namespace], int],
    help: str,
    description: str,
) -> argparse.ArgumentParser:
    """Declare one of the commands; what it raises for wrong usage is told in one line."""

    def told(options: argparse.Namespace) -> int:
        from pytest_llm_determinism.report.text import printable
        from pytest_llm_determinism.results import ReportError

        try:
            return run(options)
        except (ReportError, SettingError) as error:
            print(printable(f"llm-determinism report {name}: {error}"), file=sys.stderr)
            return USAGE_ERROR

    parser = commands.add_parser(name, help=help, description=description)
    parser.set_defaults(run=told)
    return parser


def _add_output(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "-o",
        "--output",
        action="append",
        required=True,
        metavar="FILE",
        help=f"file to write ({', '.join(REPORT_FORMATS)}); may be given several times",
    )


def _show(options: argparse.Namespace) -> int:
    """Print one report after the other; their tests are judged together."""
    from pytest_llm_determinism.results import read

    wholes = [(file, read(Path(file))) for file in options.files]
    shown = [_Shown(file, whole, options.test) for file, whole in wholes]
    if options.test is not None and not any(report.results for report in shown):
        raise SettingError(f"no test has {options.test!r} in its node id")
    for report in shown:
        if len(shown) > 1:
            _say([f"{report.file}:"])
        report.print(explain_all=options.test is not None)
    verdicts = [result.verdict for report in shown for result in report.results]
    return exit_code(verdicts)


class _Shown:
    """The tests of a report that are to be shown."""

    def __init__(self, file: str, whole: dict[str, Any], text: str | None) -> None:
        from pytest_llm_determinism.results import TestResult

        self.file = file
        self.results = [TestResult.from_json(test) for test in whole["tests"] if (text or "") in test["nodeid"]]
        self._files = [shard["file"] for shard in whole.get("shards", ())]

    def print(self, *, explain_all: bool) -> None:
        from pytest_llm_determinism.report.text import explain, spent, table, worth
        from pytest_llm_determinism.verdict import PASSED

        now = datetime.datetime.now(datetime.UTC)
        for result in self.results:
            if explain_all or result.verdict != PASSED:
                _say([f"{result.nodeid}{self._origin(result)}", *explain(result, now).splitlines(), ""])
        _say([*table(self.results, now), *worth(self.results), *spent(self.results)] or ["no test was gated"])

    def _origin(self, result: TestResult) -> str:
        return "" if result.shard is None else f"  (from {self._files[result.shard]})"


def _merge(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.report.files import write
    from pytest_llm_determinism.report.merging import merge
    from pytest_llm_determinism.results import read

    reports = [(file, read(Path(file))) for file in options.files]
    paths = _outputs(options)
    merged, choices = merge(reports)
    for path in paths:
        write(path, merged)
    counts = Counter(test["verdict"] for test in merged["tests"])
    verdicts = ", ".join(f"{count} {verdict}" for verdict, count in counts.items()) or "no test was gated"
    _say(
        [
            f"{_number(len(merged['tests']), 'test')} of {_number(len(reports), 'report')}: {verdicts}",
            *_chosen(choices),
            *_various("made by version", merged["shards"], lambda shard: shard["tool"]["version"]),
            *(line for name in _names(merged["shards"]) for line in _various(name, merged["shards"], _entry(name))),
            *_written(paths),
        ]
    )
    return 0


def _chosen(choices: Sequence[Choice]) -> list[str]:
    """Which result was taken of the tests that stand in several reports."""
    lines = []
    same: Counter[str] = Counter()
    for choice in choices:
        others = [
            f"{found.verdict} from {found.file}" for found in choice.left if found.verdict != choice.taken.verdict
        ]
        if others:
            nodeid = choice.taken.test["nodeid"]
            lines.append(f"{nodeid}: {choice.taken.verdict} from {choice.taken.file}, not {', '.join(others)}")
        else:
            same[choice.taken.file] += 1
    if same:
        taken = ", ".join(f"{count} from {file}" for file, count in same.items())
        lines.append(
            f"{_number(same.total(), 'test')} with the same verdict in several reports, of which the one that shows"
            f" least is taken: {taken}"
        )
    return lines


def _names(reports: Iterable[dict[str, Any]]) -> list[str]:
    """What is told of the environment."""
    return list(dict.fromkeys(name for report in reports for name in report["environment"]))


def _entry(name: str) -> Callable[[dict[str, Any]], object]:
    return lambda report: report["environment"].get(name)


def _various(what: str, shards: Iterable[dict[str, Any]], value: Callable[[dict[str, Any]], object]) -> list[str]:
    """``made by version 0.1.0 (A.json, C.json), 0.2.0 (B.json)``, if it is not the same everywhere."""
    files: dict[str, list[str]] = {}
    for shard in shards:
        files.setdefault(str(value(shard)), []).append(shard["file"])
    told = ", ".join(f"{value} ({', '.join(found)})" for value, found in files.items())
    return [f"{what} {told}"] if len(files) > 1 else []


def _render(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.report.files import write
    from pytest_llm_determinism.results import read

    whole = read(Path(options.file))
    paths = _outputs(options)
    for path in paths:
        write(path, whole)
    _say(_written(paths))
    return 0


def _diff(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.report.differences import differences
    from pytest_llm_determinism.results import read

    before, after = (read(Path(file)) for file in (options.before, options.after))
    found = differences(before, after)
    lines = [
        f"{name}  {file}: {_number(len(whole['tests']), 'test')}, made {whole['created_at']}"
        f" by version {whole['tool']['version']}"
        for name, file, whole in (("before", options.before, before), ("after ", options.after, after))
    ]
    lines.extend(_environments(before, after))
    for title, tests in (("vanished", found.vanished), ("new", found.new)):
        if tests:
            lines.extend(("", f"{title}:", *(f"  {test}" for test in tests)))
    for nodeid, told in found.changed.items():
        lines.extend(("", nodeid, *(f"  {line}" for line in told)))
    counts = {"vanished": len(found.vanished), "new": len(found.new), "changed": len(found.changed)}
    _say([*lines, "", ", ".join((*(f"{count} {name}" for name, count in counts.items()), f"{found.same} the same"))])
    return DIFFERENT if found else 0


def _environments(before: dict[str, Any], after: dict[str, Any]) -> list[str]:
    """What the tests ran in, where both tell it and it is another; no difference by itself."""
    then, now = before["environment"], after["environment"]
    return [f"{name}: {then[name]} → {now[name]}" for name in then if name in now and then[name] != now[name]]


def _baseline(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.baseline import condensed
    from pytest_llm_determinism.report.files import write
    from pytest_llm_determinism.results import read

    whole = read(Path(options.file))
    paths = _outputs(options)
    for path in paths:
        if path.suffix != ".json":
            raise SettingError(f"{path} (from -o) cannot be a baseline; write a file name that ends in .json")
    small = condensed(whole)
    for path in paths:
        write(path, small)
    _say(_written(paths))
    return 0


def _schema(options: argparse.Namespace) -> int:
    from importlib.resources import files

    print(files("pytest_llm_determinism.report").joinpath("schema.json").read_text("utf-8"), end="")
    return 0


def _outputs(options: argparse.Namespace) -> list[Path]:
    """The files to write, once it is known that they can be.

    Raises:
        SettingError: for the first that cannot.
    """
    from pytest_llm_determinism.report.files import check

    paths = [Path(name) for name in parse(TABLE["report"], options.output, "-o")]
    check(paths, "-o")
    return paths


def _written(paths: Iterable[Path]) -> list[str]:
    return [f"report written to {path}" for path in paths]


def _number(count: int, what: str) -> str:
    return f"{count} {what}{'' if count == 1 else 's'}"


def _say(lines: Iterable[str]) -> None:
    from pytest_llm_determinism.report.text import printable

    print("\n".join(map(printable, lines)))
