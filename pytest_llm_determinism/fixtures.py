"""What the `determinism` fixture does: recording values, and repeating by hand."""

from __future__ import annotations

import json
from collections.abc import Awaitable, Callable
from typing import Any

from pytest_llm_determinism.analysis.groups import runs_in_words
from pytest_llm_determinism.marker import keyword_values
from pytest_llm_determinism.observe import active
from pytest_llm_determinism.outcomes import Inconclusive
from pytest_llm_determinism.repeat import Failure, Repeater
from pytest_llm_determinism.results import Experiment
from pytest_llm_determinism.session import Session
from pytest_llm_determinism.settings import SettingError, check_claim


class Determinism:
    """Recording a run's output by hand, and repeating a callable.

    Args:
        gated: whether the test is marked and the gate is on; a value recorded elsewhere has no run to belong to.
    """

    def __init__(self, session: Session, nodeid: str, ignores_records: bool) -> None:
        self._session = session
        self._nodeid = nodeid
        self._ignores_records = ignores_records

    def record(self, value: Any) -> None:
        """Add a value to the current run's output, for a model that is reached by something that cannot be observed.

        Text is compared as it is; other values are compared as JSON.

        Raises:
            TypeError: the value is neither text nor JSON.
            RuntimeError: no run is active.
        """
        text = value if isinstance(value, str) else _as_json(value)
        if active.sampler is not None:
            active.sampler.record(text)
        elif not self._ignores_records:
            raise RuntimeError(
                f"{self._nodeid}: determinism.record was called outside a run; mark the test with"
                " @pytest.mark.deterministic, or call it within determinism.repeat"
            )

    def repeat(self, function: Callable[..., object], *args: Any, **settings: Any) -> Experiment:
        """Run ``function(*args)`` several times and say what came out, to assert on by hand.

        Args:
            settings: keywords of the marker, such as ``runs=30``.

        Raises:
            SettingError: a keyword or value that cannot be used.
            Exception: what the function itself raised, with a note in which runs.
        """
        repeater = self._repeater(settings)
        repeater.run(lambda: function(*args))
        return self._experiment(repeater)

    async def repeat_async(self, function: Callable[..., Awaitable[object]], *args: Any, **settings: Any) -> Experiment:
        """As `repeat`, for a coroutine function."""
        repeater = self._repeater(settings)
        await repeater.run_async(lambda: function(*args))
        return self._experiment(repeater)

    def _repeater(self, keywords: dict[str, Any]) -> Repeater:
        try:
            settings = self._session.settings(keyword_values(keywords, "determinism.repeat"))
            check_claim(settings)
            comparison = self._session.comparison(settings)
            if len(settings.load) * settings.attempts > 1:
                raise SettingError(
                    f"determinism.repeat makes one experiment, but {settings.quote('load')} with"
                    f" {settings.quote('attempts')} are several; give it one load"
                )
        except SettingError as error:
            raise SettingError(f"{self._nodeid}: {error}") from None
        return Repeater(self._session, settings, comparison, name=self._nodeid)

    def _experiment(self, repeater: Repeater) -> Experiment:
        for failure in repeater.failures.values():
            failure.error.add_note(failure_note(failure, repeater.settings.runs))
            raise failure.error
        if repeater.refusal is not None:
            raise Inconclusive(repeater.refusal)
        return repeater.experiments()[0]


def failure_note(failure: Failure, of: int) -> str:
    """``in 3 of 30 runs (4, 11, 29)``, for each load and attempt where there were several."""
    several = len(failure.runs) > 1
    parts = []
    for (load, attempt), indices in failure.runs.items():
        where = f" under {load}{f', attempt {attempt + 1}' if attempt else ''}" if several else ""
        which = "" if len(indices) == of else f" ({runs_in_words(indices).split(' ', 1)[1]})"
        parts.append(f"in {'all' if len(indices) == of else f'{len(indices)} of'} {of} runs{which}{where}")
    return "; ".join(parts) + (", with a message that varies" if failure.varies else "")


def _as_json(value: Any) -> str:
    try:
        return json.dumps(value, sort_keys=True, ensure_ascii=False)
    except (TypeError, ValueError) as error:
        raise TypeError(
            f"determinism.record takes text or JSON values, not {type(value).__name__} ({error}); record what you"
            " compare by, such as its text"
        ) from None
