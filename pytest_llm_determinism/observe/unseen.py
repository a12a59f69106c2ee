"""What runs did that is no model call to any seam: requests, connections, programs.

A test without a model call is told from it what was there instead. It decides nothing, and is not complete: of a
connection that was open before, or is opened by a library written in C, nothing is heard.
"""

from __future__ import annotations

import contextlib
import functools
import os
import re
import socket
import subprocess
import sys
import types
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field
from pathlib import PurePath
from typing import Any

MOST = 4
"""Things of one kind that are kept: a message names a few, and a body may open thousands."""

_OPENERS = frozenset(("anyio._core._sockets", "trio._highlevel_open_tcp_stream"))
_PACKAGES = frozenset(("aiohappyeyeballs", "aiohttp", "httpcore", "httpcore2", "multiprocessing", "urllib3"))
"""Modules and packages whose connections need no mention: requests that go over them are seen by a seam."""

_LOADED = {
    "grpc": "grpc is loaded, whose calls cannot be observed",
    "multiprocessing.popen_forkserver": "multiprocessing is in use, whose processes cannot be observed",
    "multiprocessing.popen_spawn_posix": "multiprocessing is in use, whose processes cannot be observed",
    "multiprocessing.popen_spawn_win32": "multiprocessing is in use, whose processes cannot be observed",
}
"""What leaves no trace but that it was imported."""


@dataclass(slots=True)
class Unseen:
    """What was noted, each kind in order of appearance, at most `MOST` of it.

    Attributes:
        requests: requests that passed a seam and are no known model call, such as ``POST https://host/path``.
        connections: where connections were opened to by something that no seam sees, ``host:port`` or a path.
        programs: names of programs that were started, without their arguments.
        forked: whether this process was forked.
        repeated: whether an experiment was made within this one.
    """

    requests: dict[str, None] = field(default_factory=dict)
    connections: dict[str, None] = field(default_factory=dict)
    programs: dict[str, None] = field(default_factory=dict)
    forked: bool = False
    repeated: bool = False
    _names: dict[int, str] = field(default_factory=dict)
    """The host that was last looked up, by port."""

    def clauses(self) -> tuple[str, ...]:
        """What cannot be observed, each a clause for a message."""
        found = []
        if self.programs:
            found.append(f"the body started the program{_s(self.programs)} {_listed(self.programs)}")
        if self.forked:
            found.append("the body forked a process, in which nothing can be observed")
        if self.repeated:
            found.append("the body called determinism.repeat, whose model calls are no part of its own output")
        if self.connections:
            opened = "connections" if len(self.connections) > 1 else "a connection"
            found.append(f"the body opened {opened} to {_listed(self.connections)} in a way that cannot be observed")
        return (*found, *dict.fromkeys(text for module, text in _LOADED.items() if module in sys.modules))

    def looked_up(self, host: object, port: object, *_: object, **__: object) -> None:
        if isinstance(host, str) and isinstance(port, int):
            self._names[port] = host

    def connected(self, opened: Any, address: Any) -> None:
        where = self._place(opened, address)
        if where is not None and not _is_seen(sys._getframe(1)):
            _note(self.connections, where)

    def started(self, _: object, args: Any, bufsize: int = -1, executable: Any = None, **options: Any) -> None:
        named = executable or ("sh" if options.get("shell") else args if isinstance(args, (str, bytes)) else args[0])
        _note(self.programs, _name(named))

    def spawned(self, path: Any, *_: object, **__: object) -> None:
        _note(self.programs, _name(path))

    def called_system(self, command: str | bytes) -> None:
        named = (command.decode(errors="replace") if isinstance(command, bytes) else command).split()[0]
        _note(self.programs, _name(named) if re.fullmatch(r"[\w./+-]+", named) else "a shell")

    def was_forked(self) -> None:
        self.forked = True

    def _place(self, opened: Any, address: Any) -> str | None:
        if not opened.type & socket.SOCK_STREAM:
            return None
        if not isinstance(address, tuple):
            return str(address) or None
        host, port = address[:2]
        host = str(self._names.get(port, host))
        return f"[{host}]:{port}" if ":" in host else f"{host}:{port}"


_PLACES: tuple[tuple[Any, str, Callable[..., None]], ...] = (
    (socket, "getaddrinfo", Unseen.looked_up),
    (socket.socket, "connect", Unseen.connected),
    (socket.socket, "connect_ex", Unseen.connected),
    (subprocess.Popen, "__init__", Unseen.started),
    (os, "posix_spawn", Unseen.spawned),
    (os, "posix_spawnp", Unseen.spawned),
    (os, "system", Unseen.called_system),
    (os, "fork", Unseen.was_forked),
)
"""What is listened at, and what then is told, with the arguments of the call.

Not by an audit hook, which hears more: while one in Python is told that a thread gets a trace function (coverage and
debuggers give one to each new thread), CPython 3.11 refuses it to every other thread, and the refused thread dies."""

_current: Unseen | None = None


@contextlib.contextmanager
def noting(unseen: Unseen) -> Iterator[None]:
    """While open, note what this process does. A second one nests in the first."""
    global _current
    if _current is not None:
        _current.repeated = True
    outer, _current = _current, unseen
    try:
        with _listening() if outer is None else contextlib.nullcontext():
            yield
    finally:
        _current = outer


@contextlib.contextmanager
def _listening() -> Iterator[None]:
    wrapped: list[tuple[Any, str, Any, Any]] = []
    for owner, name, tell in _PLACES:
        original = getattr(owner, name, None)
        if original is None:
            continue  # not on this system
        replacement = _telling(original, tell)
        wrapped.append((owner, name, vars(owner).get(name), replacement))
        setattr(owner, name, replacement)
    try:
        yield
    finally:
        for owner, name, before, replacement in wrapped:
            # What somebody put on top of ours stays; ours passes everything through when nothing is noted.
            if vars(owner).get(name) is not replacement:
                continue
            if before is None:
                delattr(owner, name)
            else:
                setattr(owner, name, before)


def _telling(original: Callable[..., Any], tell: Callable[..., None]) -> Callable[..., Any]:
    @functools.wraps(original)
    def telling(*arguments: Any, **options: Any) -> Any:
        if _current is not None:
            with contextlib.suppress(Exception):  # what it raised would be raised in the application
                tell(_current, *arguments, **options)
        return original(*arguments, **options)

    return telling


def passed(method: str, url: str) -> None:
    """A request passed a seam and is no model call that is known.

    Args:
        url: with or without its origin; what follows the path is not kept, nor what looks like a secret in the path.
    """
    if _current is not None and len(_current.requests) < MOST:
        place = re.split(r"[?#]", url, maxsplit=1)[0]
        _note(_current.requests, f"{method} {_TOKEN.sub('…', re.sub('//[^/]*@', '//', place))}")


_TOKEN = re.compile(r"(?<=/)(?=[^/]*[a-z])(?=[^/]*[A-Z])(?=[^/]*\d)[^/]{20,}")
"""A long part of a path that mixes capitals, small letters and digits, as secrets in the addresses of webhooks do."""


def _is_seen(frame: types.FrameType | None) -> bool:
    """Whether a connection is opened by a library that a seam watches, or by Python for itself."""
    while frame is not None:
        module = str(frame.f_globals.get("__name__"))
        if module in _OPENERS or module.partition(".")[0] in _PACKAGES:
            return True
        if module == "socket" and frame.f_code.co_name.endswith("socketpair"):
            return True
        frame = frame.f_back
    return False


def _name(program: str | bytes | os.PathLike[str]) -> str:
    """The name of a program alone: its arguments, and what stands before it in a command, may be secret."""
    return PurePath(os.fsdecode(program)).name


def _note(noted: dict[str, None], text: str) -> None:
    if len(noted) < MOST:
        noted[text] = None


def _listed(noted: dict[str, None]) -> str:
    return ", ".join(noted)


def _s(noted: dict[str, None]) -> str:
    return "s" if len(noted) > 1 else ""
