"""Bad values: an error that names the test, the value, where it came from and what to write, before any call."""

from __future__ import annotations

import pytest
from conftest import ASK, Project

MARKER = "@pytest.mark.deterministic"
TAKES = (
    "It takes runs, attempts, max_unique, min_agreement, confidence, max_errors, compare, load, concurrency,"
    " neighbours, fail_fast, override, ignore"
)
OVERRIDE = 'write NAME=JSON, such as temperature=0, seed=7 or model=gpt-4o (in a marker also a dict: {"seed": 7})'
IGNORE = "write paths in request bodies, such as metadata.trace_id, user or messages[0].name"
COMPARISONS = "exact, stripped, whitespace, casefold, json, a callable, or 'package.module:function'"

BAD_MARKERS = {
    "runs=0": f"runs=0 (from {MARKER}): a gate needs at least 2 runs; write 2 or more",
    "runs=1": f"runs=1 (from {MARKER}): a gate needs at least 2 runs; write 2 or more",
    "runs='x'": f"runs=x (from {MARKER}): a gate needs at least 2 runs; write 2 or more",
    "runs=True": f"runs=True (from {MARKER}): a gate needs at least 2 runs; write 2 or more",
    "runs=2.5": f"runs=2.5 (from {MARKER}): a gate needs at least 2 runs; write 2 or more",
    "runs=None": f"runs=None (from {MARKER}): a gate needs at least 2 runs; write 2 or more",
    "rnus=3": f"unknown keyword 'rnus' in {MARKER}: did you mean runs? {TAKES}",
    "30": f"{MARKER}(30) takes keywords only; write for example {MARKER}(runs=30)",
    "attempts=0": f"attempts=0 (from {MARKER}): write 1 or more",
    "max_unique=0": f"max_unique=0 (from {MARKER}): at least one output is always there; write 1 or more",
    "max_errors=-1": f"max_errors=-1 (from {MARKER}): write 0 or more",
    "concurrency=-1": f"concurrency=-1 (from {MARKER}): write 1 or more",
    "load='storm'": f"load=storm (from {MARKER}): write one or several of solo, burst, crowd",
    "load='crowds'": f"load=crowds (from {MARKER}): write one or several of solo, burst, crowd (did you mean crowd?)",
    "neighbours=0": f"neighbours=0 (from {MARKER}): write 1 or more",
    "load=[]": f"load=[] (from {MARKER}): write one name, or several with commas or as a list",
    "load='solo,solo'": f"load=solo,solo (from {MARKER}): name each load once",
    "compare='nope'": f"compare=nope (from {MARKER}): 'nope' is not a comparison; use {COMPARISONS}",
    "compare='app:xyz'": f"compare=app:xyz (from {MARKER}): comparison 'app:xyz': 'app' has no 'xyz'",
    "compare='nowhere:it'": (
        f"compare=nowhere:it (from {MARKER}): comparison 'nowhere:it': cannot import 'nowhere':"
        " ModuleNotFoundError: No module named 'nowhere'"
    ),
    "compare=3": f"compare=3 (from {MARKER}): write one of {COMPARISONS}",
    "min_agreement=1.5": f"min_agreement=1.5 (from {MARKER}): write a share above 0 and at most 1, such as 0.95",
    "min_agreement=float('nan')": (
        f"min_agreement=nan (from {MARKER}): write a share above 0 and at most 1, such as 0.95"
    ),
    "confidence=1": f"confidence=1 (from {MARKER}): write a level between 0 and 1, such as 0.95",
    "fail_fast='maybe'": f"fail_fast=maybe (from {MARKER}): write on or off",
    "override='seed'": f"override=seed (from {MARKER}): {OVERRIDE}",
    "override={}": f"override={{}} (from {MARKER}): {OVERRIDE}",
    "override={'seed': object}": f"override={{'seed': <class 'object'>}} (from {MARKER}): {OVERRIDE}",
    "override='=7'": f"override==7 (from {MARKER}): {OVERRIDE}",
    "override=['seed=1', 'seed=2']": f"override=seed=1,seed=2 (from {MARKER}): seed is given twice",
    "override={'stream': False}": (
        f"override={{'stream': False}} (from {MARKER}): stream cannot be overridden: the application reads what it"
        " asked for"
    ),
    "ignore='a..b'": f"ignore=a..b (from {MARKER}): {IGNORE}",
    "ignore='messages[x]'": f"ignore=messages[x] (from {MARKER}): {IGNORE}",
    "ignore=['user', 'messages']": (f"ignore=user,messages (from {MARKER}): messages is the question itself; {IGNORE}"),
    "rate='2/s'": f"rate cannot be set in {MARKER}; use --determinism-rate or determinism_rate in the ini file",
    "endpoint='http://host/v1'": (
        f"endpoint cannot be set in {MARKER}; use --determinism-endpoint or determinism_endpoint in the ini file"
    ),
    "cache='off'": f"cache cannot be set in {MARKER}; use --determinism-cache or determinism_cache in the ini file",
    "runs=30, min_agreement=0.99, confidence=0.95": (
        f"runs=30 ({MARKER}) can never show min_agreement=0.99 ({MARKER}) at confidence=0.95 ({MARKER}), not even when"
        " all runs agree; write runs=300 or more, or claim less"
    ),
    "min_agreement=1, confidence=0.95": (
        f"min_agreement=1.0 ({MARKER}) can be shown by no number of runs at confidence=0.95 ({MARKER}); write a share"
        " below 1"
    ),
}

ONE_BAD = """
@pytest.mark.deterministic({marker})
def test_{number}():
    ask("never asked")
"""

WITH_AND_WITHOUT_XDIST = pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["alone", "xdist"])


def collection_errors(result: pytest.RunResult) -> list[str]:
    """The lines of the errors met in collection, each once: under xdist every worker meets them."""
    text = result.stdout.str()
    assert "INTERNALERROR" not in text + result.stderr.str()
    assert " passed" not in text
    lines = text[text.index("= ERRORS") : text.index("= short test summary")].splitlines()[1:]
    ours = [line for line in lines if line.startswith("test_") and "::" in line]
    return list(dict.fromkeys(ours))


@WITH_AND_WITHOUT_XDIST
def test_every_bad_marker_is_named_before_any_call(project: Project, server, workers: tuple[str, ...]) -> None:
    model = server("never")
    bad = "".join(ONE_BAD.format(marker=marker, number=number) for number, marker in enumerate(BAD_MARKERS))
    good = "\n@pytest.mark.deterministic(runs=2)\ndef test_good():\n    ask('never asked')\n"
    project.write(f"import pytest\nfrom app import ask\n{bad}{good}", app=ASK)

    result = project.pytest(*workers, url=model.url)

    assert collection_errors(result) == [
        f"test_it.py::test_{number}: {message}" for number, message in enumerate(BAD_MARKERS.values())
    ]
    assert result.ret == (pytest.ExitCode.TESTS_FAILED if workers else pytest.ExitCode.INTERRUPTED)
    assert model.calls == []


def test_bad_markers_of_classes_test_cases_and_parameters(project: Project) -> None:
    bad = "pytest.mark.deterministic(runs=0)"
    problem = f"runs=0 (from {MARKER}): a gate needs at least 2 runs; write 2 or more"
    project.write(
        f"""
        import unittest, pytest

        @{bad}
        class TestClass:
            def test_it(self):
                pass

        class TestCase(unittest.TestCase):
            @{bad}
            def test_it(self):
                pass
        """,
        test_parameters=f"""
        import pytest

        @pytest.mark.parametrize("number", [1, pytest.param(2, marks={bad})])
        def test_it(number):
            pass
        """,
    )

    assert collection_errors(project.pytest()) == [
        f"test_it.py::TestClass::test_it: {problem}",
        f"test_it.py::TestCase::test_it: {problem}",
        f"test_parameters.py::test_it[2]: {problem}",
    ]


@WITH_AND_WITHOUT_XDIST
def test_a_bad_marker_added_after_collection_is_an_error_of_its_test(
    project: Project, server, workers: tuple[str, ...]
) -> None:
    model = server("never")
    project.write(
        """
        from app import ask

        def test_it():
            ask("never asked")
        """,
        app=ASK,
        conftest="""
        import pytest

        def pytest_collection_modifyitems(items):
            for item in items:
                item.add_marker(pytest.mark.deterministic(runs=0))
        """,
    )

    result = project.pytest(*workers, url=model.url)

    result.assert_outcomes(errors=1)
    assert collection_errors(result) == [
        f"test_it.py::test_it: runs=0 (from {MARKER}): a gate needs at least 2 runs; write 2 or more"
    ]
    assert "During handling" not in result.stdout.str()
    assert model.calls == []


BAD_FLAGS = {
    "runs=1": "runs=1 (from --determinism-runs): a gate needs at least 2 runs; write 2 or more",
    "runs=x": "runs=x (from --determinism-runs): a gate needs at least 2 runs; write 2 or more",
    "max-unique=0": (
        "max_unique=0 (from --determinism-max-unique): at least one output is always there; write 1 or more"
    ),
    "concurrency=-1": "concurrency=-1 (from --determinism-concurrency): write 1 or more",
    "load=herd": "load=herd (from --determinism-load): write one or several of solo, burst, crowd",
    "neighbours=none": "neighbours=none (from --determinism-neighbours): write 1 or more",
    "gate=maybe": "gate=maybe (from --determinism-gate): write on or off",
    "endpoint=host": (
        "endpoint=host (from --determinism-endpoint): write a base URL such as https://host/v1, or reference"
    ),
    "compare=nope": f"compare=nope (from --determinism-compare): 'nope' is not a comparison; use {COMPARISONS}",
    "temperature=3": (
        "temperature=3 (from --determinism-temperature): write a number from 0 to 2, or none to leave it out of the"
        " request"
    ),
    "cache=replya": (
        "cache=replya (from --determinism-cache): write one of auto, refresh, replay, off (did you mean replay?)"
    ),
    "cache-ttl=1 year": (
        "cache_ttl=1 year (from --determinism-cache-ttl): write a duration such as 90s, 30m, 12h, 7d, or none"
    ),
    "rate=fast": "rate=fast (from --determinism-rate): write calls per time, such as 2/s, 50/min or 1000/h, or none",
    "rate=0/s": "rate=0/s (from --determinism-rate): write calls per time, such as 2/s, 50/min or 1000/h, or none",
    "max-calls=many": "max_calls=many (from --determinism-max-calls): write 0 or more, or none",
    "max-cost=0": "max_cost=0 (from --determinism-max-cost): write an amount in USD above 0, such as 0.50, or none",
    "max-cost=nan": "max_cost=nan (from --determinism-max-cost): write an amount in USD above 0, such as 0.50, or none",
    "override=seed": f"override=seed (from --determinism-override): {OVERRIDE}",
    "ignore=prompt": (f"ignore=prompt (from --determinism-ignore): prompt is the question itself; {IGNORE}"),
    "report=report.pdf": (
        "report=report.pdf (from --determinism-report): write a file name that ends in .json, .html, .md, .csv"
    ),
}


@pytest.mark.parametrize("flag", BAD_FLAGS)
def test_a_bad_flag_is_a_usage_error(pytester: pytest.Pytester, flag: str) -> None:
    result = pytester.runpytest_inprocess(f"--determinism-{flag}")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.lines[0] == f"ERROR: {BAD_FLAGS[flag]}"


@WITH_AND_WITHOUT_XDIST
def test_bad_flag_and_ini_values_end_the_session_before_it_starts(
    project: Project, server, workers: tuple[str, ...]
) -> None:
    model = server("never")
    project.write("import pytest\nfrom app import ask\n" + ONE_BAD.format(marker="runs=2", number=1), app=ASK)

    by_flag = project.pytest(*workers, "--determinism-runs=1", url=model.url)
    (project.path / "pytest.ini").write_text("[pytest]\ndeterminism_runs = 1\n")
    by_ini = project.pytest(*workers, url=model.url)

    for result, where in ((by_flag, "--determinism-runs"), (by_ini, "determinism_runs in pytest.ini")):
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        assert result.stderr.str().strip() == (
            f"ERROR: runs=1 (from {where}): a gate needs at least 2 runs; write 2 or more"
        )
    assert model.calls == []


def test_a_claim_by_flags_that_the_runs_can_never_show_is_a_usage_error(pytester: pytest.Pytester) -> None:
    result = pytester.runpytest_inprocess(
        "--determinism-runs=30", "--determinism-min-agreement=0.99", "--determinism-confidence=0.95"
    )

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    assert result.stderr.lines[0] == (
        "ERROR: runs=30 (--determinism-runs) can never show min_agreement=0.99 (--determinism-min-agreement) at"
        " confidence=0.95 (--determinism-confidence), not even when all runs agree; write runs=300 or more, or claim"
        " less"
    )


def test_a_report_that_cannot_be_written_is_a_usage_error_before_any_call(project: Project, server) -> None:
    model = server("never")
    project.write("import pytest\nfrom app import ask\n" + ONE_BAD.format(marker="runs=2", number=1), app=ASK)
    (project.path / "taken.json").mkdir()
    (project.path / "file").touch()

    for path in ("taken.json", "file/report.json"):
        result = project.pytest(f"--determinism-report={path}", url=model.url)
        assert result.ret == pytest.ExitCode.USAGE_ERROR
        result.stderr.fnmatch_lines([f"ERROR: report=*{path} (from *): cannot be written: *"])
    assert model.calls == []
