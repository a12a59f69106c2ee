"""Where other plugins and ``conftest.py`` may step in."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import TYPE_CHECKING, Any

import pytest

if TYPE_CHECKING:
    from pytest_llm_determinism.results import Experiment
    from pytest_llm_determinism.shapes.hooked import HTTPExchange


@pytest.hookspec(firstresult=True)
def pytest_determinism_client(config: pytest.Config) -> Any:
    """Build the client that the `llm` fixture uses: an ``openai.OpenAI``, or an ``openai.AsyncOpenAI`` for async tests.

    Called once a test, when it first uses `llm`; the first plugin that returns a client wins. The client is the
    plugin's own to close.
    """


@pytest.hookspec(firstresult=True)
def pytest_determinism_output(exchange: HTTPExchange) -> str | None:
    """Read the output of an API that the plugin does not know: return it as text, or None for every other request.

    Called for each POST of a run that is no known model call: once before it is sent, when reading anything of the
    response (``exchange.body``, ``.text``, ``.json()``, ``.content_type``) tells that the request is a model call, and
    once for each response. So look at ``exchange.url`` or ``exchange.request_json()`` first, and return None for what
    is not yours. Calls come from any thread.
    """


@pytest.hookspec
def pytest_determinism_comparisons(config: pytest.Config) -> Mapping[str, Callable[[str], object]]:
    """Add named comparisons: a name, and a function from one part of an output to its normal form.

    Called when the first marked test is collected.
    """
    return {}


@pytest.hookspec
def pytest_determinism_verdict(item: pytest.Item, experiments: tuple[Experiment, ...], verdict: str) -> str | None:
    """See or change a verdict: return ``passed``, ``nondeterministic``, ``inconclusive`` or ``drifted``, or None to
    leave it.

    Called once a marked test, after its runs. The first answer that is not None stands (a ``conftest.py`` is asked
    before plugins), and the report says that the verdict was changed.
    """


@pytest.hookspec
def pytest_determinism_report(config: pytest.Config, report: dict[str, Any]) -> None:
    """See or extend the JSON report, before it is written. Called once a session, in the controlling process only."""
