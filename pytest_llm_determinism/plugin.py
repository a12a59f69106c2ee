"""pytest hooks and fixtures, nothing else.

This module is imported in every pytest session that has the package installed, so what only gated tests need is
imported where it is first used.
"""

from __future__ import annotations

import json
import os
from collections.abc import AsyncIterator, Generator, Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest

from pytest_llm_determinism import marker
from pytest_llm_determinism.collected import Collected
from pytest_llm_determinism.session import Session
from pytest_llm_determinism.settings import (
    TABLE,
    Setting,
    SettingError,
    Value,
    check_claim,
    from_text,
    shown,
)

if TYPE_CHECKING:
    from pytest_llm_determinism.company import Company
    from pytest_llm_determinism.fixtures import Determinism
    from pytest_llm_determinism.llm import LLM
    from pytest_llm_determinism.settings import Settings
    from pytest_llm_determinism.shapes.hooked import Hook
    from pytest_llm_determinism.ticker import Ticker

SESSION = pytest.StashKey[Session]()
COLLECTED = pytest.StashKey[Collected]()
SETTINGS = pytest.StashKey["Settings | None"]()
RESULT = pytest.StashKey[str | None]()
BASELINE = pytest.StashKey[dict[str, Any]]()
"""The condensed baseline, for xdist workers: they may be on hosts that do not have the file."""
SHOWN_WRONG = 3
"""Tests of one file that are named with what is wrong with their settings, if it is the same with all."""
NOBODY = "http://127.0.0.1:9/v1"
"""Where the bundled server would be, while tests are only collected: it is not started for that."""
REPORT_ATTRIBUTE = "llm_determinism"
PROGRESS = "progress"
"""In the folder that xdist workers share, that of what the controller shows."""


# Options and configuration


def pytest_addoption(parser: pytest.Parser, pluginmanager: pytest.PytestPluginManager) -> None:
    group = parser.getgroup("determinism", "determinism of language models")
    for setting in TABLE.values():
        default = f"default: {shown(setting.default)}"
        shared: dict[str, Any] = {
            "dest": setting.ini,
            "default": None,
            "metavar": setting.metavar,
            "help": f"{setting.help} ({default})",
        }
        if setting.several:
            group.addoption(setting.flag, action="append", **shared)
        elif isinstance(setting.default, bool):
            group.addoption(setting.flag, nargs="?", const="on", **shared)
        else:
            group.addoption(setting.flag, **shared)
        parser.addini(setting.ini, f"{setting.help} ({default})", default=None, type=_ini_type(setting))


def _ini_type(setting: Setting) -> Any:
    """How pytest reads a setting from a configuration file. Native TOML is not coerced, so numbers and switches
    may also be written as such where pytest knows options of several types."""
    if setting.name == "override":
        return "linelist"  # JSON has quotes, which "args" would take away
    if setting.several:
        return "args"
    if pytest.version_tuple < (9, 2):
        return "string"
    if isinstance(setting.default, bool):
        return bool | str
    return int | float | str if setting.number else str


def pytest_addhooks(pluginmanager: pytest.PytestPluginManager) -> None:
    from pytest_llm_determinism import hookspecs

    pluginmanager.add_hookspecs(hookspecs)


@pytest.hookimpl(tryfirst=True)
def pytest_configure(config: pytest.Config) -> None:
    config.addinivalue_line(
        "markers",
        f"{marker.NAME}({', '.join(f'{name}={_in_python(name)}' for name in marker.KEYWORDS)}): run the test"
        " body several times, observe every model call, and fail if the runs gave more than max_unique different"
        " outputs",
    )
    try:
        config.stash[SESSION] = _session(config)
    except SettingError as error:
        raise pytest.UsageError(str(error)) from None
    if not hasattr(config, "workerinput"):
        config.stash[COLLECTED] = Collected()
        in_junit = bool(config.getoption("xmlpath", None))
        config.pluginmanager.register(_Collecting(config.stash[COLLECTED], in_junit), "llm-determinism-collecting")
        _check_reports(config)
    try:
        _load_baseline(config, config.stash[SESSION])
    except SettingError as error:
        raise pytest.UsageError(str(error)) from None


def _in_python(name: str) -> str:
    default = TABLE[name].default
    return repr(default[0] if isinstance(default, tuple) else default)


def _session(config: pytest.Config) -> Session:
    flags = {name: config.getoption(setting.ini) for name, setting in TABLE.items()}
    ini = {name: config.getini(setting.ini) for name, setting in TABLE.items()}
    cli, file = from_text(flags, ini, config.inipath.name if config.inipath else "an -o option")
    session = Session(cli, file, config.rootpath, _company(getattr(config, "workerinput", None)))
    session.output = lambda: _output_hook(config)
    session.make_ticker = lambda: _ticker(config, session.company)
    _check_given(config, session)
    return session


def _load_baseline(config: pytest.Config, session: Session) -> None:
    found = session.settings({}).origin("baseline")
    if found.value is None or not session.settings({}).gate:
        return
    from pytest_llm_determinism.baseline import Baseline, load

    quoted = session.settings({}).quote("baseline")
    worker = getattr(config, "workerinput", None)
    if worker is not None:
        session.baseline = Baseline(json.loads(worker["determinism_baseline"]), quoted)
        return
    session.baseline, config.stash[BASELINE] = load(_path_of(config, found, found.value), quoted)


def _output_hook(config: pytest.Config) -> Hook | None:
    hook = config.hook.pytest_determinism_output
    return (lambda exchange: hook(exchange=exchange)) if hook.get_hookimpls() else None


def _ticker(config: pytest.Config, company: Company | None) -> Ticker:
    from pytest_llm_determinism.screen import ticker

    return ticker(config, None if company is None else company.folder / PROGRESS)


def _company(worker: dict[str, Any] | None) -> Company | None:
    if worker is None:
        return None
    from pytest_llm_determinism.company import Company

    number = int("".join(filter(str.isdigit, worker["workerid"])) or 0)
    return Company(Path(worker["determinism_locks"]), worker["workercount"], number)


def _check_given(config: pytest.Config, session: Session) -> None:
    """What can be wrong with flags and ini although each value by itself is right."""
    if {"runs", "min_agreement", "confidence"} <= session.cli.keys():
        check_claim(session.settings({}))
    if "compare" in {**session.cli, **session.file}:
        _add_comparisons(config, session)
        session.comparison(session.settings({}))


def _add_comparisons(config: pytest.Config, session: Session) -> None:
    if session.comparisons is None:
        added = config.hook.pytest_determinism_comparisons(config=config)
        session.comparisons = {name: function for names in reversed(added) for name, function in names.items()}


def _report_paths(config: pytest.Config) -> list[Path]:
    if config.option.collectonly:
        return []
    found = config.stash[SESSION].settings({}).origin("report")
    return [_path_of(config, found, name) for name in found.value or ()]


def _path_of(config: pytest.Config, found: Value, name: str) -> Path:
    # As pytest does: what was typed is meant from where it was typed, what stands in a file from where that is.
    base = config.invocation_params.dir if found.source == "cli" else config.rootpath
    return base / name


def _check_reports(config: pytest.Config) -> None:
    paths = _report_paths(config)
    if paths:
        from pytest_llm_determinism.report.files import check

        try:
            check(paths, config.stash[SESSION].settings({}).origin("report").where)
        except SettingError as error:
            raise pytest.UsageError(str(error)) from None


class _Collecting:
    """Takes results from reports. A plugin object of its own, since the hook does not tell which session it is of."""

    def __init__(self, collected: Collected, in_junit: bool) -> None:
        self._collected = collected
        self._in_junit = in_junit

    @pytest.hookimpl(wrapper=True)
    def pytest_runtest_logreport(self, report: pytest.TestReport) -> Generator[None, object, object]:
        record = getattr(report, REPORT_ATTRIBUTE, None)
        if record is not None and report.when == "call":
            self._collected.add(report.nodeid, record, None if hasattr(report, "wasxfail") else report.location[:2])
        result = self._collected.results.get(report.nodeid)
        if not self._in_junit or result is None or report.when == "setup":
            return (yield)
        from pytest_llm_determinism.report.junit import explained

        with explained(report.sections, result):
            return (yield)


def pytest_unconfigure(config: pytest.Config) -> None:
    if SESSION in config.stash:
        config.stash[SESSION].endpoint.close()
    if COLLECTED in config.stash:
        config.stash[COLLECTED].close()


@pytest.hookimpl(tryfirst=True)
def pytest_sessionstart(session: pytest.Session) -> None:
    """Make the endpoint known before test modules are imported, and before xdist starts its workers."""
    config = session.config
    state = config.stash[SESSION]
    given = getattr(config, "workerinput", {}).get("determinism_endpoint")
    if config.option.collectonly:
        given = NOBODY
    try:
        state.endpoint.open(state.value("endpoint"), given)
    except SettingError as error:
        raise pytest.UsageError(str(error)) from None


@pytest.hookimpl(optionalhook=True)
def pytest_configure_node(node: Any) -> None:
    node.workerinput["determinism_endpoint"] = node.config.stash[SESSION].endpoint.url
    locks = node.config.stash[COLLECTED].locks()
    node.workerinput["determinism_locks"] = locks
    if BASELINE in node.config.stash:
        node.workerinput["determinism_baseline"] = json.dumps(node.config.stash[BASELINE])
    if node.config.stash[SESSION].budget is not None:
        from pytest_llm_determinism.budget import share

        share(Path(locks))


def pytest_sessionfinish(session: pytest.Session) -> None:
    config = session.config
    notes = config.stash[SESSION].close()
    if hasattr(config, "workeroutput"):
        config.workeroutput["determinism_notes"] = notes
        return
    collected = config.stash[COLLECTED]
    collected.notes.extend(notes)
    budget = config.stash[SESSION].budget
    stopped = budget and budget.note(result.reason for result in collected.results.values())
    if stopped:
        collected.notes.append(stopped)
    baseline = config.stash[SESSION].baseline
    if baseline is not None and collected.settle(baseline) and session.exitstatus == pytest.ExitCode.OK:
        session.exitstatus = pytest.ExitCode.TESTS_FAILED
    paths = _report_paths(config)
    github_summary = os.environ.get("GITHUB_STEP_SUMMARY") if collected.results else None
    if paths or github_summary:
        from pytest_llm_determinism.report.files import write
        from pytest_llm_determinism.results import report

        record = report(list(collected.results.values()), {"pytest": pytest.__version__})
        config.hook.pytest_determinism_report(config=config, report=record)
        for path in paths:
            write(path, record)
            collected.notes.append(f"report written to {path}")
        if github_summary:
            from pytest_llm_determinism.report.github import append_summary

            collected.notes.extend(append_summary(github_summary, record))


@pytest.hookimpl(optionalhook=True)
def pytest_testnodedown(node: Any, error: object) -> None:
    node.config.stash[COLLECTED].notes.extend(getattr(node, "workeroutput", {}).get("determinism_notes", ()))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_finish(session: pytest.Session) -> None:
    state = session.config.stash[SESSION]
    if state.baseline is not None:
        from pytest_llm_determinism.gate import nodeid

        state.in_baseline = sum(nodeid(item) in state.baseline for item in session.items)
    company = state.company
    if company is not None and any(map(_is_ours, session.items)):
        from pytest_llm_determinism.screen import announce

        announce(company.folder / PROGRESS)


def _is_ours(item: pytest.Item) -> bool:
    return item.get_closest_marker(marker.NAME) is not None or "determinism" in getattr(item, "fixturenames", ())


@pytest.hookimpl(optionalhook=True)
def pytest_xdist_node_collection_finished(node: Any) -> None:
    state = node.config.stash[SESSION]
    folder = Path(node.config.stash[COLLECTED].locks()) / PROGRESS
    if state.ticker is None and folder.is_dir():
        from pytest_llm_determinism.screen import follow

        state.ticker = follow(node.config, folder)


def pytest_enter_pdb(config: pytest.Config) -> None:
    ticker = config.stash[SESSION].ticker
    if ticker is not None:
        ticker.pause()


def pytest_leave_pdb(config: pytest.Config) -> None:
    ticker = config.stash[SESSION].ticker
    if ticker is not None:
        ticker.go_on()


# Collection: every wrong marker is an error before any call is made


@pytest.hookimpl(wrapper=True)
def pytest_make_collect_report(
    collector: pytest.Collector,
) -> Generator[None, pytest.CollectReport, pytest.CollectReport]:
    report = yield
    wrong: dict[str, list[str]] = {}
    for item in report.result or ():
        if isinstance(item, pytest.Item) and (error := _wrong_settings(item)) is not None:
            wrong.setdefault(error, []).append(item.nodeid)
    if wrong:
        lines: list[str] = []
        for error, nodeids in wrong.items():
            lines.extend(f"{nodeid}: {error}" for nodeid in dict.fromkeys(nodeids[:SHOWN_WRONG]))
            if len(nodeids) > SHOWN_WRONG:
                lines.append(f"… and the same of {len(nodeids) - SHOWN_WRONG} more tests")
        try:
            pytest.fail("\n".join(lines), pytrace=False)
        except pytest.fail.Exception as failure:
            report.longrepr = collector.repr_failure(pytest.ExceptionInfo.from_exception(failure))
        report.outcome = "failed"
        report.result = []
    return report


def _wrong_settings(item: pytest.Item) -> str | None:
    try:
        read_settings(item)
    except SettingError as error:
        return str(error)
    return None


def pytest_generate_tests(metafunc: pytest.Metafunc) -> None:
    models = metafunc.config.stash[SESSION].value("model")
    if "llm" in metafunc.fixturenames and models is not None and len(models) > 1:
        metafunc.parametrize("llm", models, indirect=True, ids=models)


def read_settings(item: pytest.Item) -> Settings | None:
    """The settings of a marked test, None for one that is not marked.

    Raises:
        SettingError: a marker that cannot be used, or settings that do not go together.
    """
    marks = [(mark.args, mark.kwargs) for mark in item.iter_markers(marker.NAME)]
    # A module's marker is not meant for the examples in its docstrings.
    if not marks or type(item).__name__ == "DoctestItem":
        return None
    session = item.config.stash[SESSION]
    _add_comparisons(item.config, session)
    settings = session.settings(marker.read(marks))
    check_claim(settings)
    session.comparison(settings)
    if session.baseline is not None:
        from pytest_llm_determinism.gate import nodeid

        session.baseline.check(nodeid(item), settings, "llm" in getattr(item, "fixturenames", ()))
    return settings


# Running


@pytest.hookimpl(tryfirst=True)
def pytest_runtest_setup(item: pytest.Item) -> None:
    # A test may be run again (pytest-rerunfailures): nothing of the last time may be taken for this one's.
    item.stash[RESULT] = None
    item.stash[SETTINGS] = None
    wrong = None
    try:
        settings = read_settings(item)
    except SettingError as error:
        # A marker may have been added after collection.
        settings, wrong = None, f"{item.nodeid}: {error}"
    if wrong is not None:
        pytest.fail(wrong, pytrace=False)
    if settings is None:
        return
    item.stash[SETTINGS] = settings
    if settings.gate and isinstance(item, pytest.Function) and "anyio_backend" in item.fixturenames:
        item.fixturenames.insert(0, "_one_event_loop")


@pytest.hookimpl(wrapper=True)
def pytest_runtest_call(item: pytest.Item) -> Generator[None, object, object]:
    settings = item.stash.get(SETTINGS, None)
    if settings is None:
        return (yield)
    if not settings.gate:
        from pytest_llm_determinism.collected import UNGATED

        item.stash[RESULT] = UNGATED
        return (yield)
    from pytest_llm_determinism.gate import gate

    def keep(result: str) -> None:
        item.stash[RESULT] = result

    with gate(item, item.config.stash[SESSION], settings, keep):
        return (yield)


@pytest.hookimpl(wrapper=True)
def pytest_runtest_makereport(
    item: pytest.Item, call: pytest.CallInfo[None]
) -> Generator[None, pytest.TestReport, pytest.TestReport]:
    report = yield
    result = item.stash.get(RESULT, None)
    if call.when == "call" and result is not None:
        setattr(report, REPORT_ATTRIBUTE, result)
    return report


def pytest_terminal_summary(terminalreporter: pytest.TerminalReporter, config: pytest.Config) -> None:
    lines = config.stash[COLLECTED].summary() if COLLECTED in config.stash else []
    if lines:
        terminalreporter.write_sep("=", "determinism")
        for line in (*lines, *config.stash[COLLECTED].annotations(config.rootpath)):
            terminalreporter.write_line(line)


# Fixtures


@pytest.fixture
def llm(request: pytest.FixtureRequest) -> Iterator[LLM]:
    """Ask a model: llm("prompt") or llm(messages), with any keyword the API takes; in async tests llm.ask_async.

    Returns the answer as a str with .tool_calls, .finish_reason, .fingerprint, .model, .usage and .raw. In a test
    marked with @pytest.mark.deterministic each run asks for itself; elsewhere each call is made once and then answered
    from the store.
    """
    from pytest_llm_determinism.llm import LLM

    config = request.config
    session = config.stash[SESSION]
    settings = request.node.stash.get(SETTINGS, None) or session.settings({})
    models = session.value("model")
    model = getattr(request, "param", None) or (models[0] if models else None)
    hook = config.hook.pytest_determinism_client
    client = (lambda: hook(config=config)) if hook.get_hookimpls() else None
    asked = LLM(session, settings, model, client, request.node.nodeid)
    yield asked
    asked.close()


@pytest.fixture
def determinism(request: pytest.FixtureRequest) -> Determinism:
    """Record outputs by hand with determinism.record(value), or repeat a callable with determinism.repeat(f, runs=30).

    determinism.repeat and await determinism.repeat_async return an Experiment to assert on: .unique, .agreement,
    .agreement_lower, .groups, .findings, …
    """
    from pytest_llm_determinism.fixtures import Determinism

    settings = request.node.stash.get(SETTINGS, None)
    ungated = settings is not None and not settings.gate
    return Determinism(request.config.stash[SESSION], request.node.nodeid, ignores_records=ungated)


@pytest.fixture
async def _one_event_loop(anyio_backend: object) -> AsyncIterator[None]:
    # anyio opens a new event loop for each execution of a test unless something holds its runner, as an async generator
    # fixture does: all runs of one test share one loop, so that a client opened in the first run is alive in the next.
    yield  # noqa: PT022  # the yield is what holds the runner
