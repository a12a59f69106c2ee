"""Money: what a session spends and the store saves, and where `max_cost` ends it."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
from conftest import Project
from scripted import Call, Reply, Script, ScriptedServer

from pytest_llm_determinism.report.text import money

APP = """
import openai

class Plain:
    # A connection that stays as it is where TLS would begin.
    def __init__(self, stream):
        self.stream = stream
    def __getattr__(self, name):
        return getattr(self.stream, name)
    def start_tls(self, *args, **options):
        return self

class Detour:
    # What api.openai.com would get goes to the scripted server. Client, URL and requests are what they would be.
    def __init__(self, network):
        self.network = network
    def connect_tcp(self, host, port, **options):
        assert (host, port) == ("api.openai.com", 443)
        return Plain(self.network.connect_tcp("127.0.0.1", PORT, **options))

client = openai.OpenAI(max_retries=0)
client._client._mounts.clear()
pool = client._client._transport._pool
pool._network_backend = Detour(pool._network_backend)

def ask(prompt, model="gpt-4o", **parameters):
    messages = [{"role": "user", "content": prompt}]
    reply = client.chat.completions.create(model=model, messages=messages, temperature=0, **parameters)
    if parameters.get("stream"):
        return "".join(chunk.choices[0].delta.content or "" for chunk in reply if chunk.choices)
    return reply.choices[0].message.content
"""
"""An application that asks OpenAI, as module ``app``."""

TEST = """
import pytest
from app import ask

@pytest.mark.deterministic(runs=6)
def test_it():
    assert ask("What does it cost?")
"""

FOUR_TESTS = """
import pytest
from app import ask

@pytest.mark.parametrize("topic", ["wine", "cheese", "bread", "jam"])
@pytest.mark.deterministic(runs=20)
def test_it(topic):
    assert ask(topic)
"""

USAGE = {
    "prompt_tokens": 2000,
    "completion_tokens": 100,
    "prompt_tokens_details": {"cached_tokens": 1000},
}
PRICE = 1000 * 2.50e-6 + 1000 * 1.25e-6 + 100 * 10e-6
"""Of such an answer of gpt-4o, in USD: input, cached input, output."""

NO_USAGE = (
    "told no usage that a price could be made of (OpenAI's streams tell it where stream_options.include_usage is set)"
)

Start = Callable[..., ScriptedServer]


def charged(call: Call) -> Reply:
    return Reply("A little.", model="gpt-4o-2024-08-06", usage=USAGE)


@pytest.fixture
def openai(server: Start, project: Project) -> Start:
    """A scripted server in the place of OpenAI's, which the application asks; its answers cost `PRICE`."""

    def start(script: Script = charged) -> ScriptedServer:
        model = server(script)
        port = model.url.removesuffix("/v1").rpartition(":")[2]
        (project.path / "app.py").write_text(APP.replace("PORT", port))
        return model

    return start


def experiments(report: dict[str, Any]) -> list[Any]:
    return [found for test in report["tests"].values() for found in test["experiments"]]


def costs(report: dict[str, Any]) -> list[Any]:
    return [found["cost"] for found in experiments(report)]


def usd(live: float, saved: float = 0.0) -> dict[str, Any]:
    return {"live": pytest.approx(live), "saved": pytest.approx(saved), "currency": "USD"}


def reasons(report: dict[str, Any]) -> set[str]:
    return {test["reason"] for test in report["tests"].values() if test["verdict"] == "inconclusive"}


# What it cost


def test_what_is_spent_live_and_what_the_store_saves(project: Project, openai: Start) -> None:
    model = openai()
    project.write(FOUR_TESTS)

    live = project.report("-k", "wine or jam")
    more = project.report("-n2")

    assert len(model.calls) == 80
    assert costs(live) == [usd(20 * PRICE)] * 2
    assert sorted((cost["live"], cost["saved"]) for cost in costs(more)) == [
        (0.0, pytest.approx(20 * PRICE)),
        (0.0, pytest.approx(20 * PRICE)),
        (pytest.approx(20 * PRICE), 0.0),
        (pytest.approx(20 * PRICE), 0.0),
    ]
    assert "spent about 0.19 USD live (estimated by public list prices)" in live["result"].outlines
    assert (
        "spent about 0.19 USD live, 0.19 USD saved by the store (estimated by public list prices)"
        in more["result"].outlines
    )


def test_a_failure_says_what_it_cost_with_its_neighbours(project: Project, openai: Start) -> None:
    model = openai(lambda call: Reply(f"answer {call.number}", usage=USAGE))
    project.write(TEST)

    found = project.report("--determinism-load=crowd")

    (experiment,) = experiments(found)
    company = experiment["neighbour_calls"]
    assert company == len(model.calls) - 6 > 0
    assert experiment["cost"] == usd(len(model.calls) * PRICE)
    came = f"with {company} neighbour{'' if company == 1 else 's'}"
    paid = f"spent about {money(experiment['cost']['live'])} USD live"
    assert f"  6 calls live {came}; {paid}; seed {experiment['seed']}" in found["result"].outlines


def test_what_has_no_price_makes_no_sum_of_the_rest(project: Project, openai: Start, server: Start) -> None:
    def answer(call: Call) -> Reply:
        return Reply("A little.", model=None if call.prompt == "known" else "gpt-4o-of-ours", usage=USAGE)

    openai(answer)
    own = server(charged)
    project.write(
        """
    import httpx, pytest
    from app import ask
    pytestmark = pytest.mark.deterministic(runs=2)

    def test_known():
        ask("known")

    def test_no_price():
        ask("known"), ask("?", "mine")

    def test_no_usage():
        ask("known"), ask("?", stream=True)

    def test_a_server_of_ones_own_that_calls_its_model_as_it_likes():
        httpx.post("OWN/chat/completions", json={"model": "gpt-4o", "messages": []}).raise_for_status()
    """.replace("OWN", own.url)
    )

    found = project.report()

    unknown = [
        "no price is known for gpt-4o-of-ours at https://api.openai.com",
        f"an answer of gpt-4o-of-ours at https://api.openai.com {NO_USAGE}",
        f"no price is known for gpt-4o-2024-08-06 at {own.url.removesuffix('/v1')}",
    ]
    assert [(one["cost"], one["unpriced"]) for one in experiments(found)] == [
        (usd(2 * PRICE), None),
        *((None, reason) for reason in unknown),
    ]
    lines = found["result"].outlines
    spent = "spent about 0.0095 USD live (estimated by public list prices, without the tests whose cost is not known)"
    start = lines.index(spent)
    assert lines[start + 1 : start + 4] == [f"cost not known of 1 test: {reason}" for reason in unknown]


# max_cost


def test_the_session_stops_where_its_money_is_spent_and_the_next_goes_on(project: Project, openai: Start) -> None:
    model = openai()
    project.write(FOUR_TESTS)

    first = project.report("--determinism-max-cost=0.2")
    second = project.report("--determinism-max-cost=0.2")

    # 42 answers cost less than 0.20 USD, and the next one reaches it.
    assert len(model.calls) == 80
    assert sum(cost["live"] for cost in costs(first)) == pytest.approx(43 * PRICE)
    assert [test["verdict"] for test in first["tests"].values()] == ["passed", "passed", "inconclusive", "inconclusive"]
    reached = "max_cost=0.2 (--determinism-max-cost) reached"
    advice = "raise it, or run again: samples that arrived are kept, and the next session goes on from there"
    assert reasons(first) == {f"{reached}: about 0.204 USD spent in this session; {advice}"}
    note = f"{reached}: 2 tests ended inconclusive"
    assert first["result"].outlines.count(note) == 1
    assert second["exit"] == 0
    assert sum(cost["live"] for cost in costs(second)) == pytest.approx(37 * PRICE)


def test_workers_spend_out_of_one_purse(project: Project, openai: Start) -> None:
    model = openai()
    project.write(FOUR_TESTS)

    found = project.report("-n2", "--determinism-max-cost=0.08", "--determinism-cache=off")

    # Before the first answer each worker sends one call; after it none goes out that could make more than 0.08 + PRICE.
    assert 0.08 - 8 * PRICE < len(model.calls) * PRICE < 0.08 + 2 * PRICE
    assert sum(cost["live"] for cost in costs(found)) == pytest.approx(len(model.calls) * PRICE)
    assert all(reason.startswith("max_cost=0.08 (--determinism-max-cost) reached: about ") for reason in reasons(found))
    note = "max_cost=0.08 (--determinism-max-cost) reached: 4 tests ended inconclusive"
    assert found["result"].outlines.count(note) == 1


def test_under_a_limit_of_money_nothing_is_asked_that_has_no_price(project: Project, openai: Start) -> None:
    model = openai()
    project.write("""
    import pytest
    from app import ask
    pytestmark = pytest.mark.deterministic(runs=2)

    def test_no_price():
        ask("?", "mine")

    def test_no_usage():
        ask("?", stream=True)

    def test_it():
        ask("?")
    """)

    found = project.report("--determinism-max-cost=5")

    no_price = "no price is known for mine at https://api.openai.com"
    no_usage = f"an answer of gpt-4o-2024-08-06 at https://api.openai.com {NO_USAGE}"
    assert [call.body.get("stream") for call in model.calls] == [True]
    assert [test["reason"] for test in found["tests"].values()] == [
        f"max_cost=5.0 (--determinism-max-cost) cannot be kept: {reason}; ask a model that has a price, or leave"
        " max_cost out"
        for reason in (no_price, no_usage, no_usage)
    ]


def test_what_costs_nothing_is_asked_under_any_limit(project: Project) -> None:
    project.write("""
    import httpx, openai, pytest

    @pytest.mark.deterministic(runs=3)
    def test_bundled_server(llm):
        llm("What does it cost?", model="dense", max_tokens=4)

    def answer(request):
        message = {"role": "assistant", "content": "Nothing."}
        return httpx.Response(200, json={"choices": [{"index": 0, "message": message, "finish_reason": "stop"}]})

    @pytest.mark.deterministic(runs=3)
    def test_mock():
        with httpx.Client(transport=httpx.MockTransport(answer)) as client:
            client.post("https://llm.example/v1/chat/completions", json={"model": "m", "messages": []})
    """)

    found = project.report("--determinism-endpoint=reference", "--determinism-max-cost=0.01")

    assert (found["exit"], costs(found)) == (0, [usd(0.0)] * 2)
    assert "spent" not in found["result"].stdout.str()


# Without the extra

# As if it were not installed.
MISSING = "import sys\nsys.modules['genai_prices'] = None"


def test_without_the_extra_nothing_is_said_until_somebody_asks(project: Project, openai: Start) -> None:
    model = openai()
    project.write(TEST, conftest=MISSING)

    found = project.report()
    refused = project.pytest("--determinism-max-cost=5")

    assert (found["exit"], costs(found)) == (0, [None])
    assert "cost" not in found["result"].stdout.str()
    assert refused.ret == pytest.ExitCode.USAGE_ERROR
    needed = "prices need genai-prices; pip install 'pytest-llm-determinism[cost]'"
    assert refused.stderr.str().strip().endswith(f"max_cost=5.0 (--determinism-max-cost): {needed}")
    assert len(model.calls) == 6
