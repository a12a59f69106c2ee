"""A pytest plugin that gates on the determinism of language models."""

from __future__ import annotations

from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pytest_llm_determinism.llm import LLM, Reply
    from pytest_llm_determinism.outcomes import Drifted, Inconclusive, Nondeterministic
    from pytest_llm_determinism.results import Experiment

__all__ = ["LLM", "Drifted", "Experiment", "Inconclusive", "Nondeterministic", "Reply"]

_HOMES = {
    "LLM": "llm",
    "Reply": "llm",
    "Drifted": "outcomes",
    "Experiment": "results",
    "Inconclusive": "outcomes",
    "Nondeterministic": "outcomes",
}


def __getattr__(name: str) -> Any:
    # Lazily: pytest imports this package in every session that has it installed, gated tests or not.
    if name not in _HOMES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    import importlib

    return getattr(importlib.import_module(f"{__name__}.{_HOMES[name]}"), name)
