"""The commands of ``llm-determinism``, one a module: ``add`` declares a command, which returns an exit code."""

USAGE_ERROR = 2

INTERRUPTED = 130
"""As a shell says it of a command that ended by Ctrl-C."""
