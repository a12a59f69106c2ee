"""The commands of ``llm-determinism``, one a module: ``add`` declares a command, which returns an exit code."""

from __future__ import annotations

from collections.abc import Sequence

FAILED = 1
USAGE_ERROR = 2
NOTHING_SHOWN = 3

INTERRUPTED = 130
"""As a shell says it of a command that ended by Ctrl-C."""

UNREAD = 141
"""As a shell says it of a command whose output nobody reads any more."""


def exit_code(verdicts: Sequence[str]) -> int:
    """What a gate says of its tests: 0 if all passed, `FAILED` if one did not pass, else `NOTHING_SHOWN`: one is
    inconclusive, or there is none."""
    from pytest_llm_determinism.verdict import INCONCLUSIVE, PASSED

    if any(verdict not in (PASSED, INCONCLUSIVE) for verdict in verdicts):
        return FAILED
    return 0 if verdicts and INCONCLUSIVE not in verdicts else NOTHING_SHOWN
