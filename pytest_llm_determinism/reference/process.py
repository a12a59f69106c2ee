"""The reference server as a child process. Only the standard library is imported on the parent's side.

The child lives as long as the pipe to its standard input is open. The operating system closes that pipe
however the parent ends, so nothing stays behind, not even after a `kill -9`.
"""

from __future__ import annotations

import contextlib
import importlib.util
import os
import queue
import subprocess
import sys
import tempfile
import threading
from pathlib import Path
from typing import IO

from . import one_thread_per_matrix

__all__ = ["ReferenceProcess", "ReferenceUnavailable", "start_reference_server"]

_NEEDED = ("numpy", "starlette", "uvicorn")
_STDERR_TAIL = 2000


class ReferenceUnavailable(RuntimeError):
    """The reference server cannot be started; the message says why and what to do."""


class ReferenceProcess:
    """A running reference server. `url` is its base URL, `stop` ends it and may be called again."""

    def __init__(self, url: str, child: subprocess.Popen[bytes], stderr: IO[bytes]) -> None:
        self.url = url
        self._child = child
        self._stderr = stderr

    @property
    def pid(self) -> int:
        return self._child.pid

    def stop(self) -> None:
        _end(self._child)
        self._stderr.close()


def start_reference_server(timeout: float = 30.0, *, capacity_factor: float | None = None) -> ReferenceProcess:
    """Start the server on a free port of loopback and wait, `timeout` seconds at most, until it answers.

    Raises `ReferenceUnavailable`.
    """
    missing = [name for name in _NEEDED if importlib.util.find_spec(name) is None]
    if missing:
        raise ReferenceUnavailable(
            f"the reference server needs {', '.join(missing)}: pip install 'pytest-llm-determinism[reference]'"
        )
    command = [sys.executable, "-m", f"{__package__}.process"]
    if capacity_factor is not None:
        command.append(repr(capacity_factor))
    # A file and not a pipe: nobody has to read it, and it is not the parent's own stderr, which the child
    # would keep open for whoever reads the other end.
    stderr = tempfile.TemporaryFile()  # noqa: SIM115 - open for as long as the child lives
    try:
        child = subprocess.Popen(
            command,
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            stderr=stderr,
            env=_environment(),
            start_new_session=True,
        )
    except OSError as error:
        stderr.close()
        raise ReferenceUnavailable(f"the reference server could not be started: {error}") from error
    lines: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    assert child.stdout is not None
    stdout = child.stdout
    threading.Thread(target=lambda: lines.put(stdout.readline()), daemon=True).start()
    try:
        url = lines.get(timeout=timeout).decode().strip()
        reason = "ended before it was ready"
    except queue.Empty:
        url, reason = "", f"was not ready after {timeout:g} seconds"
    except BaseException:
        _end(child)
        stderr.close()
        raise
    if url:
        return ReferenceProcess(url, child, stderr)
    _end(child)
    stderr.seek(0)
    said = stderr.read()[-_STDERR_TAIL:].decode(errors="replace").strip()
    stderr.close()
    raise ReferenceUnavailable(f"the reference server {reason}" + (f"; it said:\n{said}" if said else ""))


def _environment() -> dict[str, str]:
    """For a child that finds this package even where only the parent's `sys.path` leads to it."""
    environment = dict(os.environ)
    root = Path(__file__).resolve().parents[2]
    if root.name not in ("site-packages", "dist-packages"):
        given = environment.get("PYTHONPATH")
        environment["PYTHONPATH"] = f"{root}{os.pathsep}{given}" if given else str(root)
    return environment


def _end(child: subprocess.Popen[bytes]) -> None:
    if child.stdin is not None and not child.stdin.closed:
        with contextlib.suppress(OSError):
            child.stdin.close()
    try:
        child.wait(timeout=3)
    except subprocess.TimeoutExpired:
        child.kill()
        child.wait()
    if child.stdout is not None:
        child.stdout.close()


def _main(arguments: list[str]) -> None:
    one_thread_per_matrix()
    # Only now: the BLAS library reads its settings while numpy is being imported.
    from .model import DEFAULT_CAPACITY_FACTOR
    from .server import serve

    stop = threading.Event()

    def watch() -> None:
        # The raw descriptor: a thread that holds the lock of sys.stdin would be in the way at interpreter
        # exit.
        while os.read(0, 4096):
            pass
        stop.set()

    def announce(url: str) -> None:
        print(url, flush=True)

    threading.Thread(target=watch, daemon=True).start()
    serve(
        capacity_factor=float(arguments[0]) if arguments else DEFAULT_CAPACITY_FACTOR,
        announce=announce,
        stop=stop,
    )


if __name__ == "__main__":
    _main(sys.argv[1:])
