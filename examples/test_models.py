"""The five models of the reference server: which of them the gate lets pass, and which it catches.

The unstable ones are expected to be caught, and to be caught by the gate: the suite is green because the gate fails.
"""

import pytest

from pytest_llm_determinism import Nondeterministic

PROMPT = "Write a short story about a fox who finds a letter."

caught = pytest.mark.xfail(strict=True, raises=Nondeterministic, reason="its answers depend on what shares the batch")


@pytest.mark.deterministic(runs=30)
@pytest.mark.parametrize(
    "model",
    [
        "dense",
        pytest.param("dense-fp16", marks=caught),
        "moe-dropless",
        pytest.param("moe-capacity", marks=caught),
        "loop",
    ],
)
def test_story(llm, model):
    assert llm(PROMPT, model=model, max_tokens=64)


@pytest.mark.deterministic(runs=10, load="solo")
@pytest.mark.parametrize("model", ["dense-fp16", "moe-capacity"])
def test_story_alone(llm, model):
    """With one request in flight the same two models are stable: it is the company that changes their answers."""
    assert llm(PROMPT, model=model, max_tokens=64)
