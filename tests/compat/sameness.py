"""What an application sees in each of a few runs, to be compared: unobserved, asked live, fetched ahead, replayed."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

from scripted import ScriptedServer

from pytest_llm_determinism.observe import observing
from pytest_llm_determinism.runs import Run
from pytest_llm_determinism.sampling import Plan, Sampler
from pytest_llm_determinism.store import SampleStore

RUNS = 4
"""Run 0 asks alone, run 1 asks and fetches for runs 2 and 3."""

QUESTION: dict[str, Any] = {"model": "m", "messages": [{"role": "user", "content": "Which way?"}]}

View = Any
"""What an application gets to see of one answer."""


def sampler(store: SampleStore | None, **changes: Any) -> Sampler:
    settings = {
        "load": "burst",
        "attempt": 0,
        "runs": RUNS,
        "concurrency": 8,
        "cache": "auto" if store else "off",
        "not_before": 0.0,
        "seed": 1,
    }
    return Sampler(Plan(**(settings | changes)), store)


def sample(body: Callable[[], object], sampling: Sampler) -> list[Run]:
    """The runs of a body that does not raise."""
    runs = []
    with observing(sampling):
        for index in range(sampling.plan.runs):
            sampling.start_run(index)
            body()
            runs.append(sampling.finish_run())
    return runs


def views(body: Callable[[], View], store: SampleStore | None, **changes: Any) -> list[View]:
    """What the body sees in each run; every run made one exchange without an error."""
    seen: list[View] = []
    runs = sample(lambda: seen.append(body()), sampler(store, **changes))
    assert [(run.error, len(run.exchanges)) for run in runs] == [(None, 1)] * len(runs)
    return seen


def alike(view: View) -> str:
    """A view without what differs from answer to answer: numbers within ids and dates."""
    text = json.dumps(view, default=str, ensure_ascii=False)
    return "".join(character for character in text if not character.isdigit())


def looks_the_same(body: Callable[[], View], model: ScriptedServer, store: SampleStore) -> list[View]:
    """What the body sees unobserved, asked live, fetched ahead and from the store is the same; given is what it saw."""
    bare = body()
    live = views(body, store)
    stored = views(body, store, cache="replay")
    assert len(model.calls) == RUNS + 1
    assert [alike(view) for view in live] == [alike(bare)] * RUNS
    assert len({json.dumps(view, default=str) for view in live}) == RUNS  # each run has an answer of its own
    assert stored == live
    return live


def outcome(body: Callable[[], object]) -> str:
    """What an application meets: what it is given, or what is raised."""
    try:
        return repr(body())
    except Exception as error:
        return type(error).__name__
