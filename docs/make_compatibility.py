"""Writes docs/compatibility.md from what the tests in tests/compat/sdks found, a directory of JSON files.

Each environment adds its own, the two groups of SDKs and the lowest versions, as .ci/run does it:

    SDKS_GROUP=clients SDKS_TRIED=tried python -m pytest tests/compat/sdks
    python docs/make_compatibility.py tried
"""

import json
import sys
from collections.abc import Iterable
from pathlib import Path
from typing import Any

HEAD = """# Which SDKs are observed

Made by `python docs/make_compatibility.py` from what the tests in `tests/compat/sdks` found, the last of them on {date}.

Each mark stands for an application that asks with this SDK in this way, against a server on loopback, and for a test of it
that has the marker and nothing else. With stable answers it passed, after as many calls as there were runs and not one
more, and again without a call from the store, with the same answers; with one answer that differs it failed with two groups
of the right sizes; with errors it was inconclusive. A mark names the HTTP library at which the calls are observed. Under
*tools* an agent calls a tool in a first step and answers in a second; ids that the provider makes anew each time do not make
its prompt vary. A way without a mark is one that the SDK does not offer, or that was not tried.

Other versions of these SDKs, and other SDKs on these HTTP libraries, are observed too if they ask at these routes. Text
generation of Hugging Face has no route of its own, and is told by its body.

| SDK | version | route | sync | async | streamed | async streamed | tools |
|---|---|---|---|---|---|---|---|
"""

TAIL = """
## What cannot be observed

A test that reaches its model in one of these ways, and in no other, is `inconclusive` and says what was noticed instead of a
call. It never passes.

| what | what to do |
|---|---|
| dspy's own client, its default without a base URL in the environment | `dspy.LM(…, engine="litellm")`, or an endpoint in the environment (`--determinism-endpoint`, `OPENAI_BASE_URL`), with which dspy takes litellm by itself |
| gRPC, as in some of Google's cloud clients | the client's REST transport, or record the answer |
| WebSockets, as in realtime and live APIs | record the answer |
| `urllib.request`, `http.client`, sockets | httpx, requests or aiohttp, or record the answer |
| other processes: programs, servers, `multiprocessing` | record the answer |
| models inside the process, without HTTP | record the answer |

To record an answer is one line, with the fixture `determinism`: `determinism.record(answer)`. The test is then gated on what
was recorded; nothing is cached, and each run asks.

An API at another route is read by a hook of a few lines: see [hooks](hooks.md).

## Test runners, plugins and mocks

Each is tried in `tests/compat`, those that change how a whole suite runs in `tests/compat/runners`.

| what | under the marker |
|---|---|
| pytest-xdist (`-n`, `--dist loadgroup`, a crashing worker, `--maxfail`) | one report; `concurrency`, `rate` and `max_calls` hold over all workers |
| pytest-asyncio (strict, auto, all loop scopes), anyio (asyncio, trio) | all runs of a test share one event loop |
| `unittest.TestCase`, `IsolatedAsyncioTestCase` | `setUp` and `tearDown` in each run |
| pytest-rerunfailures | what was `nondeterministic` stays so: a rerun asks nothing anew |
| pytest-repeat | the repetitions of a test share their samples: the second finds those of the first |
| pytest-timeout (signal, thread) | the test fails as timed out; samples that had arrived are kept, and the next session asks for the others |
| subtests (pytest's own, `TestCase.subTest`, pytest-subtests) | each is told once, with the runs in which it failed |
| pytest-randomly, pytest-cov | as always |
| doctests | left alone, also in a marked module |
| respx, pytest-httpx, vcrpy, pytest-recording, aioresponses, `unittest.mock` | what they answer is what is observed; asked as often as the application asks, in each session, and nothing of it is kept. A cassette needs an answer for each run, or leave to repeat them |
"""

_WAYS = ("", "async", "streamed", "async_streamed", "tools")


def document(results: Iterable[dict[str, Any]]) -> str:
    """The whole page.

    Args:
        results: ``{"sdk", "version", "date", "ways": {way: {"seam", "route"}}}`` each, a way as ``chat_async``.
    """
    ordered = sorted(results, key=lambda result: (result["sdk"].lower(), _number(result["version"])))
    rows = [
        f"| {result['sdk']} | {result['version']} | {_routes(ways)} | {_marks(ways)} |\n"
        for result in ordered
        for ways in _by_api(result["ways"]).values()
    ]
    return HEAD.format(date=max(result["date"] for result in ordered)) + "".join(rows) + TAIL


def _number(version: str) -> list[int]:
    return [int(part) if part.isdigit() else 0 for part in version.split(".")]


def _by_api(ways: dict[str, dict[str, str]]) -> dict[str, dict[str, dict[str, str]]]:
    """The ways of each API, without its name."""
    apis: dict[str, dict[str, dict[str, str]]] = {}
    for way, found in ways.items():
        api, _, how = way.partition("_")
        apis.setdefault(api, {})[how] = found
    return apis


def _routes(ways: dict[str, dict[str, str]]) -> str:
    return ", ".join(dict.fromkeys(f"`{found['route']}`" for found in ways.values()))


def _marks(ways: dict[str, dict[str, str]]) -> str:
    return " | ".join(ways[how]["seam"] if how in ways else "" for how in _WAYS)


if __name__ == "__main__":
    found = [json.loads(file.read_text(encoding="utf-8")) for file in Path(sys.argv[1]).glob("*.json")]
    (Path(__file__).parent / "compatibility.md").write_text(document(found), encoding="utf-8")
