"""What the stored answers to one request say: groups, and where they part, without the tests that asked."""

from __future__ import annotations

import json
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from itertools import groupby
from typing import Any
from urllib.parse import urlsplit

from pytest_llm_determinism.analysis.compare import resolve
from pytest_llm_determinism.analysis.divergence import Divergence, divergence, ways
from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.groups import Group, group, outcomes, runs_in_words
from pytest_llm_determinism.report.text import printable
from pytest_llm_determinism.report.tree import draw, which_runs
from pytest_llm_determinism.runs import Exchange, Run
from pytest_llm_determinism.shapes import FAMILIES, ModelCall, Unreadable, read_answer
from pytest_llm_determinism.store import Sample, StoredRequest
from pytest_llm_determinism.store.sample import SampleKey

SHOWN_GROUPS = 12
_LONGEST_LINE = 1000


@dataclass(slots=True)
class Answers:
    """The answers of one experiment to one request, of several equal requests in a run to one of them.

    Attributes:
        read: whether it is known how to read them; if not they are compared as they were received.
        unreadable: reasons with their runs.
    """

    load: str
    attempt: int
    occurrence: int
    read: bool
    groups: list[Group] = field(default_factory=list)
    parted: Divergence | None = None
    unreadable: dict[str, list[int]] = field(default_factory=dict)

    @property
    def title(self) -> str:
        """``burst, attempt 2, asked the 3rd time in a run``, as far as it is not the first."""
        which = f", attempt {self.attempt + 1}" if self.attempt else ""
        return f"{self.load}{which}" + (f", request {self.occurrence + 1} of a run" if self.occurrence else "")

    def to_json(self) -> dict[str, Any]:
        return {
            "load": self.load,
            "attempt": self.attempt,
            "occurrence": self.occurrence,
            "read": self.read,
            "unique": len(self.groups),
            "groups": [
                {
                    "count": group.count,
                    "output": group.output,
                    "sha256": group.sha256,
                    "runs": group.runs,
                    "fingerprints": group.fingerprints,
                    "models": group.models,
                }
                for group in self.groups
            ],
            "unreadable": [{"error": error, "runs": runs} for error, runs in self.unreadable.items()],
        }

    def lines(self) -> list[str]:
        """For a terminal."""
        heard = sum(group.count for group in self.groups)
        how = "" if self.read else ", as received, since it is not known how to read them"
        lines = [f"under {self.title}: {len(self.groups)} unique of {heard} runs{how}"]
        if self.parted is not None:
            lines.extend(f"  {line}" for line in draw(self.parted, self.groups))
        else:
            width = len(str(max((group.count for group in self.groups), default=0)))
            for group in self.groups[:SHOWN_GROUPS]:
                which = "" if group.count == heard else which_runs(group)
                lines.append(f"  {group.count:>{width}} × “{excerpt(group.output)}”{which}")
            if len(self.groups) > SHOWN_GROUPS:
                lines.append(f"  … and {len(self.groups) - SHOWN_GROUPS} more groups")
        for error, runs in self.unreadable.items():
            lines.append(f"  {len(runs)} × no answer: {printable(error)}  ({runs_in_words(runs)})")
        return lines


def answers(request: StoredRequest | None, samples: Iterable[tuple[SampleKey, Sample]]) -> Iterator[Answers]:
    """Experiment by experiment.

    Args:
        samples: of this request, in any order.
    """
    call = None if request is None else _call(request)
    ordered = ((key[1:4], key.run, sample) for key, sample in samples)
    for (load, attempt, occurrence), found in groupby(ordered, key=lambda item: item[0]):
        made = Answers(load, attempt, occurrence, read=call is not None)
        runs = list(_runs(call, ((run, sample) for _, run, sample in found), made.unreadable))
        if runs:
            comparison = resolve("exact", {})
            items = outcomes(runs, runs[0])
            made.groups = group(items, comparison)
            # What was not read is no text that parts somewhere.
            made.parted = divergence(ways(made.groups, items, comparison)) if made.read else None
        yield made


def _call(request: StoredRequest) -> ModelCall | None:
    """The request as far as reading its answers takes; None where only a hook can read them."""
    family = next((family for family in FAMILIES if family.name == request.api), None)
    if family is None:
        return None
    url, body = (request.canonical or {}).get("url"), (request.canonical or {}).get("body")
    known = isinstance(url, str) and isinstance(body, dict)
    stream = known and family.streams(_path(str(url)), body or {})
    return ModelCall(family, "", "", stream, "", b"")


def _path(url: str) -> str:
    try:
        return urlsplit(url).path
    except ValueError:
        return ""


def _runs(
    call: ModelCall | None, samples: Iterable[tuple[int, Sample]], unreadable: dict[str, list[int]]
) -> Iterator[Run]:
    """Each sample as a run of its own. Equal exchanges are one object, so that many runs cost little."""
    known: dict[Exchange, Exchange] = {}
    for index, sample in samples:
        try:
            exchange = _exchange(call, sample)
        except Unreadable as error:
            unreadable.setdefault(str(error), []).append(index)
            continue
        yield Run(index, (known.setdefault(exchange, exchange),))


def _exchange(call: ModelCall | None, sample: Sample) -> Exchange:
    if call is None:
        return Exchange("", 0, sample.body.decode("utf-8", "replace"), None, None, None, None, None)
    answer = read_answer(call, sample.body, sample.content_type)
    return Exchange(
        "",
        0,
        answer.output,
        answer.model,
        answer.fingerprint,
        answer.finish_reason,
        answer.input_tokens,
        answer.output_tokens,
        answer.reasoning,
        answer.tool_calls,
    )


def told(request: StoredRequest | None) -> list[str]:
    """What is known of a request, for a terminal."""
    if request is None:
        return ["nothing is kept of the request but its answers: a version that kept no more asked it"]
    lines = [f"API      {request.api}", f"model    {request.model or '–'}"]
    lines.extend(f"{'' if number else 'asked by':8} {test}" for number, test in enumerate(request.tests))
    if request.canonical is None:
        lines.append("the request itself is not kept: it is too long, or nested too deep")
    else:
        lines.extend(("", *json.dumps(request.canonical, ensure_ascii=False, indent=2).splitlines()))
    return [_cut(printable(line)) for line in lines]


def sample_lines(key: SampleKey, sample: Sample, arrived: str) -> list[str]:
    """A sample as it was received, for a terminal."""
    title = Answers(key.load, key.attempt, key.occurrence, True).title
    body = sample.body.decode("utf-8", "backslashreplace")
    return [
        f"run {key.run} under {title}: HTTP {sample.status}, {arrived}, took {sample.seconds:.3f} s",
        *(printable(f"{name}: {value}") for name, value in sample.headers),
        "",
        *map(printable, body.splitlines()),
    ]


def _cut(line: str) -> str:
    """A line of a request; an image in it would fill many screens."""
    if len(line) <= _LONGEST_LINE:
        return line
    return f"{line[:_LONGEST_LINE]}… ({len(line)} characters; --json shows all)"
