"""Where the code under test is pointed at: a URL, or the bundled reference server."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
import uuid
from collections.abc import Callable
from pathlib import Path

import pytest
from conftest import QUIET, Project

AT_IMPORT = """
import os, openai, pytest
client = openai.OpenAI(max_retries=0)     # takes its address from the environment, at import
KEY = os.environ["OPENAI_API_KEY"]

@pytest.mark.deterministic(runs=3)
def test_it():
    reply = client.chat.completions.create(model="{model}", messages=[{{"role": "user", "content": "A fox"}}],
                                           max_tokens={tokens}, temperature=0)
    assert reply.choices[0].message.content
"""


def at_import(model: str = "dense", tokens: int = 4) -> str:
    return AT_IMPORT.format(model=model, tokens=tokens)


@pytest.mark.parametrize("workers", [(), ("-n", "2")], ids=["one process", "xdist"])
def test_a_url_is_exported_before_test_modules_are_imported(project: Project, server, workers: tuple[str, ...]) -> None:
    model = server("Paris.")
    project.write(at_import())

    result = project.pytest(f"--determinism-endpoint={model.url}/", *workers)

    assert (result.ret, len(model.calls)) == (0, 3)


def test_a_key_that_is_set_is_kept_and_a_missing_one_is_replaced(project: Project, server) -> None:
    model = server("Paris.")
    project.write(at_import())

    project.pytest(f"--determinism-endpoint={model.url}", "--determinism-cache=off", key="sk-own-key")
    project.pytest(f"--determinism-endpoint={model.url}", "--determinism-cache=off", key="")

    keys = [call.headers["authorization"] for call in model.calls]
    assert keys == ["Bearer sk-own-key"] * 3 + ["Bearer placeholder-no-key-is-needed"] * 3


def test_the_reference_server_is_stable_or_not_as_it_says(project: Project) -> None:
    project.write(
        """
        import pytest

        @pytest.mark.deterministic
        @pytest.mark.parametrize("model", ["dense", "dense-fp16", "moe-dropless", "moe-capacity", "loop"])
        def test_model(llm, model):
            llm("Write a short story about a fox.", model=model, max_tokens=64)

        @pytest.mark.deterministic(load="solo", runs=5)
        @pytest.mark.parametrize("model", ["dense-fp16", "moe-capacity"])
        def test_alone(llm, model):
            llm("Write a short story about a fox.", model=model, max_tokens=64)
        """
    )

    report = project.report("--determinism-endpoint=reference")

    unique = {name: test["unique"] for name, test in report["tests"].items()}
    unstable = {name: unique.pop(name) for name in ("test_model[dense-fp16]", "test_model[moe-capacity]")}
    assert set(unique.values()) == {1}
    assert min(unstable.values()) > 1
    findings = report["tests"]["test_model[loop]"]["experiments"][0]["findings"]
    assert "degenerate-loop" in [finding["code"] for finding in findings]

    # Another session, another port: the samples are found all the same.
    again = project.report("--determinism-endpoint=reference")
    assert {test["experiments"][0]["calls"]["live"] for test in again["tests"].values()} == {0}


@pytest.fixture
def servers(monkeypatch: pytest.MonkeyPatch) -> Callable[[], list[str]]:
    """The reference servers that this test's sessions started and that are still there, told by their environment."""
    if not Path("/proc/self/environ").exists():
        pytest.skip("needs /proc to tell whose a process is")
    mark = f"STARTED_BY={uuid.uuid4()}"
    monkeypatch.setenv(*mark.split("="))

    def find() -> list[str]:
        found = []
        for process in Path("/proc").glob("[0-9]*"):
            with contextlib.suppress(OSError):
                if (
                    b"reference.process" in (process / "cmdline").read_bytes()
                    and mark.encode() in (process / "environ").read_bytes()
                ):
                    found.append(process.name)
        return found

    return find


def test_one_reference_server_serves_all_workers_and_ends_with_them(
    project: Project, servers: Callable[[], list[str]]
) -> None:
    project.write(
        """
        import os, pytest

        @pytest.mark.deterministic(runs=2)
        @pytest.mark.parametrize("number", range(4))
        def test_it(llm, number):
            llm(f"A fox {number}", model="dense", max_tokens=2)
            print("asked", os.environ["OPENAI_BASE_URL"])
        """
    )

    result = project.pytest("-n2", "-rP", "--determinism-endpoint=reference")

    result.assert_outcomes(passed=4)
    urls = {line.split()[1] for line in result.outlines if line.startswith("asked ")}
    assert len(urls) == 1
    assert servers() == []


@pytest.mark.parametrize("stop", [signal.SIGINT, signal.SIGKILL])
def test_nothing_is_left_behind_when_the_session_is_stopped(
    project: Project, servers: Callable[[], list[str]], stop: signal.Signals
) -> None:
    project.write(at_import(tokens=256).replace("runs=3", "runs=2000, load='solo'"))
    command = [sys.executable, "-m", "pytest", *QUIET, "--determinism-endpoint=reference"]
    with subprocess.Popen(command, stdout=subprocess.DEVNULL, env={**os.environ, "OPENAI_API_KEY": ""}) as process:
        store = project.path / ".pytest_llm_determinism" / "cache.db"
        deadline = time.monotonic() + 60
        while not store.exists() and time.monotonic() < deadline:
            time.sleep(0.02)
        assert len(servers()) == 1
        process.send_signal(stop)

    deadline = time.monotonic() + 30
    while servers() and time.monotonic() < deadline:
        time.sleep(0.02)
    assert servers() == []


def test_without_its_extra_the_reference_server_says_what_to_install(project: Project) -> None:
    project.write(at_import())
    # A finder that knows no numpy, as on a machine where the extra was not installed.
    project.pytester.makepyfile(
        no_numpy="""
        import importlib.util
        known = importlib.util.find_spec
        importlib.util.find_spec = lambda name, *rest: None if name == "numpy" else known(name, *rest)
        """
    )

    result = project.pytest("-p", "no_numpy", "--determinism-endpoint=reference")

    assert result.ret == pytest.ExitCode.USAGE_ERROR
    result.stderr.fnmatch_lines(["*endpoint=reference: *numpy*pip install 'pytest-llm-determinism?reference?'*"])
    assert "INTERNALERROR" not in result.stdout.str() + result.stderr.str()
