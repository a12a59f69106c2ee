"""The commands of ``llm-determinism``, one a module: ``add`` declares a command, which returns an exit code."""

USAGE_ERROR = 2
