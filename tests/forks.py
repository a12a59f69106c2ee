"""Sessions of pytest without the time that loading takes, which is most of what a small one lasts.

Run as a program, this loads pytest, its plugins and the openai client once, and forks for each session: a process of
its own in all but that. The plugin under test is not loaded before; what is loaded when is tested in `startup`, and
what needs a whole interpreter of its own is run by pytester alone.
"""

from __future__ import annotations

import contextlib
import gc
import json
import os
import runpy
import select
import signal
import subprocess
import sys
from collections.abc import Sequence
from importlib.metadata import entry_points
from typing import Any

CLIENTS = ("openai", "openai.resources.chat.completions", "httpcore", "httpcore2", "diskcache", "asyncio")
OURS = "llm_determinism"


class Forks:
    """The program, for a process that runs tests; it ends with that."""

    def __init__(self) -> None:
        # Unbuffered: a line that is in a buffer already would be waited for in vain.
        self._program = subprocess.Popen(
            [sys.executable, __file__], stdin=subprocess.PIPE, stdout=subprocess.PIPE, bufsize=0
        )

    def popen(self, command: Sequence[str], *, stdout: Any, stderr: Any, **_: Any) -> Fork:
        """As `pytest.Pytester.popen`, for ``python -mpytest …``; there is nothing to read on standard input."""
        self.ask(
            {
                "arguments": list(command)[2:],
                "folder": os.getcwd(),
                "environment": dict(os.environ),
                "output": [stdout.name, stderr.name],
            }
        )
        return Fork(self, int(self.told()))

    def close(self) -> None:
        assert self._program.stdin is not None
        assert self._program.stdout is not None
        self._program.stdin.close()
        self._program.wait()
        self._program.stdout.close()

    def ask(self, what: dict[str, Any]) -> None:
        assert self._program.stdin is not None
        written = memoryview(f"{json.dumps(what)}\n".encode())
        while written:
            written = written[self._program.stdin.write(written) :]

    def told(self, timeout: float | None = None) -> bytes:
        """
        Raises:
            subprocess.TimeoutExpired: nothing was told in that many seconds.
        """
        assert self._program.stdout is not None
        if not select.select([self._program.stdout], [], [], timeout)[0]:
            raise subprocess.TimeoutExpired("a forked session", timeout or 0)
        return self._program.stdout.readline()


class Fork:
    """One session, with what pytester asks of a `subprocess.Popen`."""

    stdin = None

    def __init__(self, forks: Forks, pid: int) -> None:
        self._forks = forks
        self._pid = pid

    def wait(self, timeout: float | None = None) -> int:
        return int(self._forks.told(timeout))

    def kill(self) -> None:
        os.kill(self._pid, signal.SIGKILL)


def _load() -> None:
    from _pytest.assertion.rewrite import AssertionRewritingHook

    # What is loaded before pytest starts is not rewritten, and need not be.
    AssertionRewritingHook._warn_already_imported = lambda *_: None  # type: ignore[method-assign]
    for name in CLIENTS:
        with contextlib.suppress(ImportError):
            __import__(name)
    for found in entry_points(group="pytest11"):
        if found.name not in (OURS, "hypothesispytest"):
            found.load()
    gc.collect()
    gc.freeze()


def _serve() -> None:
    replies = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)
    for line in sys.stdin:
        wanted = json.loads(line)
        pid = os.fork()
        if not pid:
            replies.close()
            _become(**wanted)
            return
        print(pid, file=replies, flush=True)
        print(os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]), file=replies, flush=True)
    os._exit(0)


def _become(arguments: list[str], folder: str, environment: dict[str, str], output: list[str]) -> None:
    """Make of this process what ``python -mpytest`` would be there."""
    os.chdir(folder)
    os.environ.clear()
    os.environ.update(environment)
    with open(os.devnull) as nothing:
        os.dup2(nothing.fileno(), 0)
    for descriptor, name in enumerate(output, 1):
        with open(name, "a") as file:
            os.dup2(file.fileno(), descriptor)
    sys.path[:0] = [folder, *filter(None, environment.get("PYTHONPATH", "").split(os.pathsep))]
    sys.argv[1:] = arguments


if __name__ == "__main__":
    # Not this folder, which a session has nothing to do with.
    del sys.path[0]
    _load()
    _serve()
    runpy.run_module("pytest", run_name="__main__", alter_sys=True)
