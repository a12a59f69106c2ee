"""Findings in whole sessions: scripted servers with a known defect, asked through the real client."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from typing import Any

import pytest
from conftest import ASK, Project
from scripted import Call, Reply, ScriptedServer

Start = Callable[..., ScriptedServer]

ONE_CALL = """
import pytest
from app import ask

@pytest.mark.deterministic
def test_it():
    ask("refund or replacement?")
"""


def told(project: Project, server: ScriptedServer, *arguments: str, test: str = ONE_CALL) -> list[dict[str, str]]:
    """Code and message of the findings of each experiment."""
    project.write(test, app=ASK)
    (result,) = project.report(*arguments, url=server.url)["tests"].values()
    return [{one["code"]: one["message"] for one in found["findings"]} for found in result["experiments"]]


def completion(text: str, tokens: tuple[tuple[str, float, str, float], ...] = (), **usage: Any) -> Reply:
    """A chat completion with tokens (each with an alternative) and usage."""

    def entry(token: str, chance: float) -> dict[str, Any]:
        return {"token": token, "logprob": chance, "bytes": list(token.encode())}

    content = [
        {**entry(token, chance), "top_logprobs": [entry(token, chance), entry(other, less)]}
        for token, chance, other, less in tokens
    ]
    choice = {
        "index": 0,
        "message": {"role": "assistant", "content": text},
        "finish_reason": "stop",
        "logprobs": {"content": content, "refusal": None} if content else None,
    }
    body = {"id": "c", "object": "chat.completion", "created": 1, "model": "m", "choices": [choice], "usage": usage}
    return Reply(raw=json.dumps(body).encode())


@pytest.mark.parametrize("load", ["solo", "burst"])
def test_a_model_that_is_changed_while_the_runs_are_made(project: Project, server: Start, load: str) -> None:
    changing = server(lambda call: "refund" if call.number < 15 else "replacement", latency=0.005)
    (found,) = told(project, changing, f"--determinism-load={load}")
    assert list(found) == ["changed-midway"]
    if load == "solo":
        assert found["changed-midway"].startswith(
            "runs 0–14 gave “refund” (15 of 15), runs 15–29 gave “replacement” (15 of 15) (p = 1.3e-08): something was"
            " changed while the runs were made"
        )


def test_a_model_that_was_changed_since_the_answers_in_the_store(project: Project, server: Start) -> None:
    changing = server(lambda call: "refund" if call.number < 14 else "replacement")
    assert told(project, changing, "--determinism-runs=14") == [{}]
    (found,) = told(project, changing, "--determinism-runs=30")
    assert len(changing.calls) == 30
    assert found["changed-midway"].endswith(
        "14 answers are from the store, exactly those before the change, so the model was probably changed since they"
        " were asked; ask all anew with --determinism-cache=refresh"
    )


def test_fail_fast_makes_no_change(project: Project, server: Start) -> None:
    odd = server(lambda call: "replacement" if call.number == 250 else "refund")
    arguments = ("--determinism-runs=300", "--determinism-load=solo", "--determinism-fail-fast")
    assert told(project, odd, *arguments) == [{}]
    assert len(odd.calls) == 251


def test_a_server_whose_first_call_differs(project: Project, server: Start) -> None:
    cold = server(lambda call: "refund" if call.number == 0 else "replacement")
    (found,) = told(project, cold, "--determinism-runs=100")
    assert list(found) == ["first-run-differs"]
    assert found["first-run-differs"].startswith("run 0 gave “refund”, 99 of the 99 others “replacement” (p = 0.01): ")


def test_first_calls_that_differ_in_each_attempt(project: Project, server: Start) -> None:
    cold = server(lambda call: "refund" if call.number % 15 == 0 else "replacement")
    found = told(project, cold, "--determinism-runs=15", "--determinism-attempts=2", "--determinism-load=solo")
    assert [list(one) for one in found] == [["first-run-differs"]] * 2
    assert "in 2 of 2 experiments (p = 0.0044)" in found[0]["first-run-differs"]


def test_backends_with_answers_of_their_own(project: Project, server: Start) -> None:
    def replicas(call: Call) -> Reply:
        return Reply("replacement", fingerprint="fp_b") if call.number % 3 == 0 else Reply("refund", fingerprint="fp_a")

    (found,) = told(project, server(replicas))
    assert list(found) == ["backend-varies"]
    assert "fp_a: 20 × “refund”; fp_b: 10 × “replacement”" in found["backend-varies"]


def test_a_prompt_cache_that_changes_the_answer(project: Project, server: Start) -> None:
    def cached(call: Call) -> Reply:
        hit = call.number % 3 != 0
        details = {"cached_tokens": 64 if hit else 0}
        return completion("refund" if hit else "replacement", prompt_tokens=70, prompt_tokens_details=details)

    (found,) = told(project, server(cached))
    assert list(found) == ["cached-by-server"]
    assert "64 cached tokens: 20 × “refund”; 0 cached tokens: 10 × “replacement”" in found["cached-by-server"]


def test_token_counts_that_vary_beneath_a_stable_answer(project: Project, server: Start) -> None:
    counts = server(lambda call: completion("refund", prompt_tokens=7, completion_tokens=2 + call.number % 2))
    (found,) = told(project, counts)
    assert list(found) == ["usage-varies"]
    assert "output tokens (15 × 2, 15 × 3)" in found["usage-varies"]


@pytest.mark.parametrize("stream", [False, True])
def test_a_near_tie_in_the_log_probabilities(project: Project, server: Start, stream: bool) -> None:
    def tied(call: Call) -> Reply:
        same = ("I give a", -0.01, "I", -5.0)
        if call.number % 2:
            return completion("I give a refund", (same, (" refund", -0.697, " replacement", -0.699)))
        return completion("I give a replacement", (same, (" replacement", -0.698, " refund", -0.698)))

    test = ONE_CALL.replace('replacement?"', 'replacement?", logprobs=True, top_logprobs=2')
    if stream:
        reply = tied

        def streamed(call: Call) -> Reply:
            whole = json.loads(reply(call).raw or b"")
            (choice,) = whole["choices"]
            delta = {"index": 0, "delta": choice["message"], "logprobs": choice["logprobs"], "finish_reason": None}
            end = {"index": 0, "delta": {}, "finish_reason": "stop"}
            events = [{**whole, "object": "chat.completion.chunk", "choices": [one]} for one in (delta, end)]
            lines = [f"data: {json.dumps(event)}\n\n".encode() for event in events]
            return Reply(raw=b"".join([*lines, b"data: [DONE]\n\n"]), content_type="text/event-stream")

        test = test.replace("top_logprobs=2", "top_logprobs=2, stream=True")
        project.write(test, app=ASK.replace("    return reply.choices[0].message.content", "    return list(reply)"))
        (result,) = project.report(url=server(streamed).url)["tests"].values()
        (found,) = [{one["code"]: one["message"] for one in seen["findings"]} for seen in result["experiments"]]
    else:
        (found,) = told(project, server(tied), test=test)
    assert list(found) == ["near-tie"]
    assert re.match(
        r"at token 1 “ (refund|replacement)” \(49\.\d %\) and “ (refund|replacement)” \(49\.\d %\) are almost equally",
        found["near-tie"],
    )


def test_a_rate_limit_that_is_reached(project: Project, server: Start) -> None:
    def limited(call: Call) -> str | Reply:
        return "refund" if call.number < 20 else Reply(status=429, raw=b'{"error": {"message": "slow down"}}')

    (found,) = told(project, server(limited), "--determinism-load=solo")
    assert list(found) == ["error-pattern"]
    assert found["error-pattern"].startswith(
        "0 of 20 failed with HTTP 429 in runs 0–19, 10 of 10 in runs 20–29 (p = 6.7e-08): the provider's rate or quota"
        " was used up"
    )


def test_a_replica_that_is_broken(project: Project, server: Start) -> None:
    def broken(call: Call) -> str | Reply:
        return Reply(status=500, raw=b"{}") if call.number % 4 == 3 else "refund"

    (found,) = told(project, server(broken), "--determinism-load=solo")
    assert list(found) == ["error-pattern"]
    assert found["error-pattern"].startswith("7 of 7 that failed with HTTP 500 are every 4th run from run 3 on")


def test_an_application_with_a_cache_of_its_own(project: Project, server: Start) -> None:
    test = ONE_CALL.replace("from app import ask", "import functools, app\nask = functools.cache(app.ask)")
    assert told(project, server("refund"), "--determinism-runs=5", test=test) == [
        {
            "runs-made-no-call": "runs 1, 2, 3, 4 made no model call at step 1, where 1 of 5 runs did, although nothing"
            " had parted them: an application's own cache (such as functools.cache) hides repeated calls; switch it off"
            " or clear it in the body"
        }
    ]


@pytest.mark.parametrize("arguments", [(), ("--determinism-attempts=2", "--determinism-load=solo,burst")])
def test_a_stable_model_has_no_finding(project: Project, server: Start, arguments: tuple[str, ...]) -> None:
    assert not any(told(project, server("refund"), *arguments))
