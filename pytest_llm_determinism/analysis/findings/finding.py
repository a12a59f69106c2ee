"""What a finding is, which there are, and how runs and answers are named in one."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

from pytest_llm_determinism.analysis.excerpt import excerpt
from pytest_llm_determinism.analysis.units import WORDS

CODES = (
    "prompt-varies",
    "sampling-on",
    "runs-made-no-call",
    "error-pattern",
    "first-run-differs",
    "changed-midway",
    "load-sensitive",
    "neighbours-failed",
    "backend-varies",
    "cached-by-server",
    "near-tie",
    "formatting-only",
    "not-json",
    "finish-reason-varies",
    "reasoning-varies",
    "usage-varies",
    "degenerate-loop",
    "truncated",
)
"""Every finding there is."""

ALPHA = 0.01
"""The false-alarm rate of a finding that rests on a test: with runs that are exchangeable (see `analysis.chance`), its
code appears in at most one of a hundred results."""


@dataclass(frozen=True, slots=True)
class Finding:
    """A named explanation of why runs differ, or why a pass proves little.

    Attributes:
        code: one of `CODES`.
        message: one line with the evidence in numbers, and what to do.
    """

    code: str
    message: str


def names(outputs: Sequence[str]) -> list[str]:
    """A short name for each of several outputs, cut around the place where they part: ``“…give a refund”``."""
    common = WORDS.common(outputs) if len(outputs) > 1 else 0
    return [f"“{excerpt(output, common, 24)}”" if output else "no text" for output in outputs]


def counted(values: Iterable[str] | Counter[str], shown: int = 4) -> str:
    """``20 × stop, 10 × length``, the most frequent first; of many the first are shown."""
    counts = Counter(values).most_common()
    more = f", {len(counts) - shown} more" if len(counts) > shown else ""
    return ", ".join(f"{count} × {value}" for value, count in counts[:shown]) + more
