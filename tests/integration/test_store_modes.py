"""What the store saves: which calls are made again, by mode, age, number of runs and after a sudden end."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import threading
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from conftest import Project
from scripted import Call, Reply

from pytest_llm_determinism.store import Sample, SampleStore

ASK = """
import os
import httpx2
client = httpx2.Client()
def ask(prompt, **parameters):
    body = {"model": "m", "messages": [{"role": "user", "content": prompt}], **parameters}
    reply = client.post(os.environ["OPENAI_BASE_URL"] + "/chat/completions", json=body)
    return reply.raise_for_status().json()["choices"][0]["message"]["content"]
"""
"""A plain client: openai takes longer to import than everything else here."""

ONE_QUESTION = """
import pytest
from app import ask

@pytest.mark.deterministic(runs=6)
def test_it():
    ask("capital?")
"""


def calls(report: dict[str, Any]) -> tuple[int, int]:
    """Live and cached calls of the only test."""
    (test,) = report["tests"].values()
    (experiment,) = test["experiments"]
    return experiment["calls"]["live"], experiment["calls"]["cached"]


def store_of(project: Project) -> Path:
    return project.path / ".pytest_llm_determinism"


def made_older(directory: Path, seconds: float) -> None:
    """Write every sample again as one that arrived earlier."""
    with closing(sqlite3.connect(directory / "cache.db")) as connection:
        keys = [key for (key,) in connection.execute("SELECT key FROM Cache")]
    store = SampleStore(directory)
    for key, sample in store.read(keys, 0).items():
        store.write(key, Sample(sample.status, sample.headers, sample.body, sample.at - seconds, sample.seconds))
    store.close()


# Modes


def test_auto_uses_what_is_there_and_refresh_asks_again_and_off_keeps_nothing(project: Project, server) -> None:
    model = server(lambda call: f"answer {call.number // 6}")
    project.write(ONE_QUESTION, app=ASK)

    without = project.report("--determinism-cache=off", url=model.url)
    assert not store_of(project).exists()
    first = project.report(url=model.url)
    again = project.report("--determinism-cache=refresh", url=model.url)
    stored = project.report(url=model.url)

    assert [calls(report) for report in (without, first, again, stored)] == [(6, 0), (6, 0), (6, 0), (0, 6)]
    assert stored["tests"]["test_it"]["experiments"][0]["groups"][0]["output"] == "answer 2"


def test_replay_needs_no_server_and_raises_no_question_of_age(project: Project, server) -> None:
    model = server("Paris.")
    project.write(ONE_QUESTION, app=ASK)
    project.report(url=model.url)
    made_older(store_of(project), 400 * 86400)
    model.close()

    stored = project.report("--determinism-cache=replay", url=model.url)

    assert (stored["exit"], calls(stored)) == (0, (0, 6))
    stored["result"].stdout.fnmatch_lines(["*6 answers from the store (oldest 400 days)*"])


PATIENT = """
import openai
client = openai.OpenAI(max_retries=5)
asked = 0
def ask(prompt):
    global asked
    asked += 1
    try:
        messages = [{"role": "user", "content": prompt}]
        return client.chat.completions.create(model="m", messages=messages).choices[0].message.content
    except Exception:
        return "no answer"
"""


def test_replay_without_a_sample_ends_at_once_with_advice_and_without_a_call(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        """
        import app, pytest

        @pytest.mark.deterministic(runs=6)
        def test_it():
            app.ask("capital?")

        def test_how_often_it_asked():
            assert app.asked == 1
        """,
        app=PATIENT,
    )
    report = project.report("--determinism-cache=replay", url=model.url)

    assert report["tests"]["test_it"]["verdict"] == "inconclusive"
    assert (report["exit"], model.calls) == (1, [])
    report["result"].assert_outcomes(passed=1, failed=1)
    report["result"].stdout.fnmatch_lines(
        ["*sample is not in the store and cache=replay asks no model*fill the store with --determinism-cache=auto*"]
    )
    assert not store_of(project).exists()


def test_replay_ends_at_the_first_run_whose_sample_is_missing(project: Project, server) -> None:
    model = server("Paris.")
    project.write(ONE_QUESTION, app=ASK)
    project.report(url=model.url)
    report = project.report("--determinism-cache=replay", "--determinism-runs=8", url=model.url)
    assert report["tests"]["test_it"]["verdict"] == "inconclusive"
    assert "run 6" in report["tests"]["test_it"]["reason"]
    assert len(model.calls) == 6


# Age


def test_samples_older_than_the_ttl_are_asked_again_and_younger_ones_are_not(project: Project, server) -> None:
    model = server("Paris.")
    project.write(ONE_QUESTION, app=ASK)
    project.report(url=model.url)
    made_older(store_of(project), 3 * 3600)

    young = project.report("--determinism-cache-ttl=4h", url=model.url)
    old = project.report("--determinism-cache-ttl=2h", url=model.url)

    assert [calls(report) for report in (young, old)] == [(0, 6), (6, 0)]
    young["result"].stdout.fnmatch_lines(["*oldest 3 hours*"])


# What is asked anew


def test_more_runs_ask_for_the_new_ones_alone_and_nothing_is_left_open(project: Project, server) -> None:
    model = server("Paris.", latency=0.01)
    project.write(ONE_QUESTION, app=ASK)
    strict = ("-W", "error", "-o", "asyncio_default_fixture_loop_scope=function")
    reports = [project.report(f"--determinism-runs={runs}", *strict, url=model.url) for runs in (6, 14)]
    assert [calls(report) for report in reports] == [(6, 0), (8, 6)]
    assert len(model.calls) == 14
    assert [(report["exit"], report["result"].stderr.str()) for report in reports] == [(0, "")] * 2


def test_another_prompt_or_parameter_is_asked_anew(project: Project, server) -> None:
    model = server("Paris.")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.parametrize("parameters", [{}, {"max_tokens": 5}, {"temperature": 0}, {"temperature": 0.0}])
        @pytest.mark.parametrize("prompt", ["capital?", "the capital?"])
        @pytest.mark.deterministic(runs=3)
        def test_it(prompt, parameters):
            ask(prompt, **parameters)
        """,
        app=ASK,
    )
    assert project.pytest(url=model.url).ret == 0
    assert len(model.calls) == 3 * 2 * 3


# A sudden end


@pytest.mark.parametrize("load", ["solo", "burst"])
def test_after_kill_9_what_arrived_is_not_asked_again(project: Project, server, load: str) -> None:
    concurrency, runs = 3, 20
    enough, released = threading.Event(), threading.Event()

    def answer(call: Call) -> str:
        if call.number >= 9 and not released.is_set():
            enough.set()
            released.wait(30)
        return "Paris."

    model = server(answer)
    project.write(ONE_QUESTION, app=ASK)
    settings = [f"--determinism-load={load}", f"--determinism-concurrency={concurrency}", f"--determinism-runs={runs}"]
    environment = {**os.environ, "OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": "sk-test"}
    session = subprocess.Popen(
        [sys.executable, "-m", "pytest", *settings], cwd=project.path, env=environment, stdout=subprocess.DEVNULL
    )
    try:
        assert enough.wait(30)
    finally:
        session.send_signal(signal.SIGKILL)
        session.wait(60)
    released.set()
    before = len(model.calls)

    report = project.report(*settings, url=model.url)

    live, cached = calls(report)
    assert (report["exit"], live + cached) == (0, runs)
    in_flight = 1 if load == "solo" else concurrency
    assert cached >= before - in_flight >= 9 - in_flight
    assert len(model.calls) <= runs + in_flight


# Damage


def test_a_damaged_store_is_said_and_the_test_is_made_anew(project: Project, server) -> None:
    model = server("Paris.")
    project.write(ONE_QUESTION, app=ASK)
    project.report(url=model.url)
    database = store_of(project) / "cache.db"
    database.write_bytes(b"no database at all" * 1000)
    for path in store_of(project).glob("cache.db-*"):
        path.unlink()

    report = project.report(url=model.url)

    assert (report["exit"], calls(report)) == (0, (6, 0))
    report["result"].stdout.fnmatch_lines(["*was damaged*set aside as damaged-*"])


def test_a_store_that_cannot_be_made_is_inconclusive_with_advice(project: Project, server) -> None:
    model = server("Paris.")
    project.write(ONE_QUESTION, app=ASK)
    (project.path / "file").write_text("")
    report = project.report("--determinism-cache-dir=file/store", url=model.url)
    assert (report["exit"], report["tests"]["test_it"]["verdict"]) == (1, "inconclusive")
    report["result"].stdout.fnmatch_lines(["*cannot be used*--determinism-cache-dir*--determinism-cache=off*"])


# Secrets

SECRETS = """
import httpx2, openai
client = openai.OpenAI(organization="org-secret", project="proj-secret", max_retries=0,
                       default_headers={"x-internal": "header-secret", "cookie": "cookie-secret"},
                       default_query={"api_key": "query-secret"})
plain = httpx2.Client(auth=("user", "password-secret"))
def ask(prompt):
    messages = [{"role": "user", "content": prompt}]
    client.chat.completions.create(model="m", messages=messages)
    client.chat.completions.create(model="m", messages=messages, stream=True).close()
    url = str(client.base_url).replace("http://", "http://user:url-secret@") + "chat/completions?key=key-secret"
    assert plain.post(url, json={"messages": messages}).status_code == 200
"""


def test_nothing_confidential_is_in_the_store_the_report_or_the_output(project: Project, server) -> None:
    model = server(
        lambda call: Reply(
            f"answer {call.number}",
            headers={"set-cookie": "session=session-secret", "openai-organization": "org-secret"},
        )
    )
    project.write(ONE_QUESTION, app=SECRETS)
    result = project.pytest("--determinism-report=report.json", "-v", url=model.url, key="sk-very-secret")

    assert result.ret == 1
    result.stdout.fnmatch_lines(["*6 unique of 6*"])
    headers = [call.headers for call in model.calls]
    assert {"Bearer sk-very-secret"} < {found["authorization"] for found in headers}
    assert any(found.get("openai-organization") == "org-secret" for found in headers)
    written = [path for path in project.path.rglob("*") if path.is_file() and path.suffix not in (".py", ".pyc")]
    assert {"cache.db", "report.json"} <= {path.name for path in written}
    for content in (
        *(path.read_bytes() for path in written),
        result.stdout.str().encode(),
        result.stderr.str().encode(),
    ):
        assert b"secret" not in content


# Together


def test_two_sessions_at_once_share_the_store(project: Project, server) -> None:
    model = server("Paris.", latency=0.01)
    project.write(ONE_QUESTION, app=ASK)
    environment = {**os.environ, "OPENAI_BASE_URL": model.url, "OPENAI_API_KEY": "sk-test"}
    command = [sys.executable, "-m", "pytest", "-q", "-p", "no:cacheprovider"]
    sessions = [
        subprocess.Popen(command, cwd=project.path, env=environment, stdout=subprocess.PIPE, text=True)
        for _ in range(2)
    ]
    outputs = [session.communicate(timeout=60)[0] for session in sessions]
    assert [session.returncode for session in sessions] == [0, 0], outputs
    assert 6 <= len(model.calls) <= 12
    assert "damaged" not in "".join(outputs)
    with closing(sqlite3.connect(store_of(project) / "cache.db")) as connection:
        assert connection.execute("SELECT count(*) FROM Cache WHERE key LIKE '%:%:%'").fetchone() == (6,)
