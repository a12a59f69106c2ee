"""How a gated test fails: as pytest's own outcome, without a traceback, told apart by type.

``xfail(strict=True, raises=Nondeterministic)`` expects a gate to catch a model, and is not content with a test that
proved nothing.
"""

from __future__ import annotations

from _pytest.outcomes import Failed


class Nondeterministic(Failed):
    """The runs gave more different outputs than the gate allows."""

    # As pytest does with its own outcomes: the name is shown without the module in front.
    __module__ = "builtins"

    def __init__(self, message: str) -> None:
        super().__init__(message, pytrace=False)


class Drifted(Failed):
    """The answers are other than those of the baseline."""

    __module__ = "builtins"

    def __init__(self, message: str) -> None:
        super().__init__(message, pytrace=False)


class Inconclusive(Failed):
    """The runs prove nothing either way."""

    __module__ = "builtins"

    def __init__(self, message: str) -> None:
        super().__init__(message, pytrace=False)
