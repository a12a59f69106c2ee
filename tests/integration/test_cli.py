"""The command `llm-determinism`, run as a user runs it."""

from __future__ import annotations

import signal
import subprocess
import sys

import openai
import pytest

COMMAND = [sys.executable, "-m", "pytest_llm_determinism.cli"]


def run(*arguments: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([*COMMAND, *arguments], capture_output=True, text=True, timeout=60)


def test_serve_answers_until_it_is_interrupted() -> None:
    with subprocess.Popen([*COMMAND, "serve", "--port", "0"], stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        url = line.split()[2]
        with openai.OpenAI(base_url=url, api_key="none") as client:
            models = [model.id for model in client.models.list()]
            reply = client.completions.create(model="dense", prompt="A fox", max_tokens=4, temperature=0)
        process.send_signal(signal.SIGINT)

    assert line.startswith("listening on http://127.0.0.1:")
    assert models == ["dense", "dense-fp16", "moe-dropless", "moe-capacity", "loop"]
    assert reply.usage is not None
    assert reply.usage.completion_tokens == 4
    assert process.returncode == 0


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--port", "99999"], "'99999' is not a port; write a number from 0 to 65535"),
        (["--capacity-factor", "none"], "'none' is not a capacity factor; write a number above 0, such as 2.5"),
    ],
)
def test_a_bad_value_is_said(arguments: list[str], message: str) -> None:
    result = run("serve", *arguments)

    assert result.returncode == 2
    assert message in result.stderr


def test_a_port_in_use_is_said(server) -> None:
    port = server("hi").url.removesuffix("/v1").rpartition(":")[2]

    result = run("serve", "--port", port)

    assert result.returncode == 2
    assert result.stderr.startswith(f"llm-determinism serve: cannot listen on 127.0.0.1:{port}:")
    assert "Traceback" not in result.stderr


def test_without_a_command_the_usage_is_shown() -> None:
    assert run().returncode == 2
    assert "serve" in run("--help").stdout
