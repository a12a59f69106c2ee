"""What a person sees while a gated test samples: on a terminal, in a log, with other plugins and options at work."""

from __future__ import annotations

import fcntl
import os
import re
import signal
import struct
import subprocess
import sys
import termios
import threading
from collections.abc import Callable, Iterator
from pathlib import Path
from select import select

import pytest
from conftest import ASK, QUIET, Project
from scripted import Call, Script

pty = pytest.importorskip("pty", reason="this system has no pseudo-terminals")
pyte = pytest.importorskip("pyte", reason="no terminal emulator is installed")

AT_ONCE = """
from pytest_llm_determinism import ticker, underway

underway.SHOWN_AFTER = 0.0
underway.LONG = 1000.0
ticker.PAUSE = 0.0
for outlet in (ticker.Row, ticker.Lines, ticker.Slip):
    outlet.every = 0.02
"""
"""A conftest under which nothing waits to be shown, and a pace takes as many answers as are in flight."""

SUITE = """
import pytest
from app import ask

def test_before():
    pass

@pytest.mark.deterministic(runs=6)
def test_sea(capfd):
    assert ask("a story of the sea")
    assert capfd.readouterr() == ("", "")

def test_after():
    pass
"""

LINE = "test_it.py::test_sea: 4 of 6 runs, 2 groups, 6 calls live"


def held(go: threading.Event) -> Script:
    """Two answers in turn; from the fifth call on they wait until the person has seen enough."""

    def answer(call: Call) -> str:
        if call.number >= 4:
            assert go.wait(60)
        return ("Waves.", "Foam.")[call.number % 2]

    return answer


# pytest-asyncio warns before the first test, of its own settings.
PYTEST = ("pytest", *QUIET, "-p", "no:asyncio")


class Terminal:
    """A program that runs on a terminal of its own, and what a person sees there."""

    def __init__(self, command: list[str], directory: Path, columns: int = 80, **environment: str) -> None:
        self._end, program = pty.openpty()
        fcntl.ioctl(self._end, termios.TIOCSWINSZ, struct.pack("HHHH", 40, columns, 0, 0))
        self._screen = pyte.Screen(columns, 40)
        self._stream = pyte.ByteStream(self._screen)
        self.written = b""
        without = ("CI", "BUILD_NUMBER", "NO_COLOR", "PY_COLORS")
        kept = {name: value for name, value in os.environ.items() if name not in without}
        self._process = subprocess.Popen(
            command,
            stdin=program,
            stdout=program,
            stderr=program,
            cwd=directory,
            env={**kept, "TERM": "xterm", "OPENAI_API_KEY": "sk-test-secret", **environment},
            start_new_session=True,
        )
        os.close(program)

    @property
    def rows(self) -> list[str]:
        """The screen from its first row to its last that is not empty."""
        return "\n".join(map(str.rstrip, self._screen.display)).rstrip().splitlines()

    def until(self, row: str) -> None:
        """Wait until a row is on the screen."""
        while row not in self.rows:
            assert self._read(60), "\n".join(self.rows)

    def since(self, seconds: float) -> bytes:
        """What is written within so many seconds of silence."""
        before = len(self.written)
        while self._read(seconds):
            pass
        return self.written[before:]

    def type(self, text: str) -> None:
        os.write(self._end, text.encode())

    def interrupt(self) -> None:
        self._process.send_signal(signal.SIGINT)

    def end(self) -> int:
        """Wait for the end of the program; its exit code."""
        while self._read(60):
            pass
        return self._process.wait(60)

    def close(self) -> None:
        if self._process.poll() is None:
            self._process.kill()
            self._process.wait()
        os.close(self._end)

    def _read(self, seconds: float) -> bool:
        if not select([self._end], [], [], seconds)[0]:
            return False
        try:
            data = os.read(self._end, 65536)
        except OSError:  # the program has ended
            return False
        self._stream.feed(data)
        self.written += data
        return bool(data)


@pytest.fixture
def terminal(project: Project) -> Iterator[Callable[..., Terminal]]:
    """Run pytest (or the program of `command`) on a terminal, in the project; ended with the test."""
    started: list[Terminal] = []

    def start(*arguments: str, url: str, command: tuple[str, ...] = PYTEST, **settings: str) -> Terminal:
        whole = [sys.executable, "-m", *command, *arguments]
        started.append(Terminal(whole, project.path, OPENAI_BASE_URL=url, **settings))
        return started[-1]

    yield start
    for running in started:
        running.close()


@pytest.fixture
def go() -> Iterator[threading.Event]:
    """Lets the held answers go."""
    event = threading.Event()
    yield event
    event.set()


def section(rows: list[str]) -> list[str]:
    """The rows from the first test on, up to the first section."""
    first = next(number for number, row in enumerate(rows) if row.startswith(("test_it.py", ".")))
    return list(filter(None, "\n".join(rows[first:]).partition("\n=")[0].splitlines()))


TWO = ("--determinism-concurrency=2",)


def test_a_row_shows_how_far_a_test_is_and_leaves_no_trace(project: Project, server, terminal, go) -> None:
    project.write(SUITE, app=ASK, conftest=AT_ONCE)
    seen = terminal(*TWO, "--junitxml=junit.xml", url=server(held(go)).url)

    seen.until(f"{LINE}, seconds left")
    assert section(seen.rows) == ["test_it.py .", f"{LINE}, seconds left"]
    go.set()

    assert seen.end() == 1
    assert section(seen.rows) == ["test_it.py .F.".ljust(73) + "[100%]"]
    assert "calls live, seconds" not in (project.path / "junit.xml").read_text()


def test_a_row_below_the_long_form(project: Project, server, terminal, go) -> None:
    project.write(SUITE, app=ASK, conftest=AT_ONCE)
    seen = terminal(*TWO, "-v", url=server(held(go)).url)

    seen.until(f"{LINE}, seconds left")
    go.set()

    assert seen.end() == 1
    assert section(seen.rows) == [
        "test_it.py::test_before PASSED".ljust(73) + "[ 33%]",
        "test_it.py::test_sea FAILED".ljust(73) + "[ 66%]",
        "test_it.py::test_after PASSED".ljust(73) + "[100%]",
    ]


def test_the_row_is_gone_before_anything_else_is_said_of_an_interrupt(project: Project, server, terminal, go) -> None:
    project.write(SUITE, app=ASK, conftest=AT_ONCE)
    seen = terminal(*TWO, url=server(held(go)).url)

    seen.until(f"{LINE}, seconds left")
    seen.interrupt()

    assert seen.end() == 2
    rows = seen.rows
    assert section(rows)[:2] == ["test_it.py .", " KeyboardInterrupt ".center(80, "!")]
    assert not any("of 6 runs" in row for row in rows)


def test_nothing_is_shown_to_a_person_who_debugs(project: Project, server, terminal, go) -> None:
    debugged = "asked.append(0)\n    len(asked) == 2 and breakpoint()\n    assert ask("
    suite = SUITE.replace("assert ask(", debugged)
    project.write(suite + "\nasked = []\n", app=ASK, conftest=AT_ONCE)
    seen = terminal(*TWO, url=server(held(go)).url)

    seen.until("(Pdb)")
    assert seen.since(0.2) == b""
    assert not any("of 6 runs" in row for row in seen.rows)
    seen.type("c\n")
    seen.until(f"{LINE}, seconds left")
    go.set()

    assert seen.end() == 1
    assert not any("of 6 runs," in row for row in section(seen.rows))


def test_the_controller_shows_what_its_workers_are_about(project: Project, server, terminal, go) -> None:
    pytest.importorskip("xdist")
    project.write(
        """
        import pytest
        from app import ask

        @pytest.mark.parametrize("topic", ["sea", "moon"])
        @pytest.mark.deterministic(runs=6)
        def test_it(topic):
            assert ask(topic)
        """,
        app=ASK,
        conftest=AT_ONCE,
    )
    asked = {"sea": 0, "moon": 0}

    def answer(call: Call) -> str:
        asked[call.prompt] += 1
        if asked[call.prompt] > 3:
            assert go.wait(60)
        return "Waves."

    seen = terminal(*TWO, "-n", "2", url=server(answer).url)
    seen.until("2 tests: test_it[moon] 3 of 6, test_it[sea] 3 of 6; 8 calls live, seconds left")
    go.set()

    assert seen.end() == 0
    assert section(seen.rows) == ["..".ljust(73) + "[100%]"]


def test_a_probe_shows_it_too(project: Project, server, terminal, go) -> None:
    project.write("", sitecustomize=AT_ONCE)
    command = ("pytest_llm_determinism.cli", "probe", "A story of the sea.")
    options = ("--model=dense", "--runs=6", "--load=burst,solo", "--concurrency=2")
    seen = terminal(*options, url=server(held(go)).url, command=command, PYTHONPATH=str(project.path))

    seen.until("[1/2] dense under burst: 4 of 6 runs, 2 groups, 6 calls live, seconds left")
    go.set()

    assert seen.end() == 1
    assert seen.rows[0] == "“A story of the sea.”, max_tokens=128, temperature=0"
    assert not any("of 6 runs," in row and "calls live" in row and "left" in row for row in seen.rows)


# Where there is no terminal


@pytest.mark.parametrize("option", ["-s", "--color=no"])
def test_whole_lines_on_a_terminal_that_others_write_to_or_without_colours(
    project: Project, server, terminal, go, option: str
) -> None:
    project.write(SUITE, app=ASK, conftest=AT_ONCE)
    seen = terminal(*TWO, option, url=server(held(go)).url)

    seen.until(f"{LINE}, seconds left")
    go.set()

    assert seen.end() == 1
    assert b"\x1b7" not in seen.written
    assert any(re.match(r"test_it\.py \.F\.", row) for row in seen.rows)


def test_a_log_gets_whole_lines(project: Project, server) -> None:
    project.write(SUITE, app=ASK, conftest=AT_ONCE)
    model = server(lambda call: ("Waves.", "Foam.")[call.number % 2], latency=0.1)

    result = project.pytest(*TWO, url=model.url)

    shown = section(result.outlines)
    assert shown[-1] == "test_it.py .F.".ljust(73) + "[100%]"
    assert {re.sub(r"\d", "N", row).partition(" runs")[0] for row in shown[:-1]} == {
        "test_it.py .",
        "test_it.py::test_sea: N of N",
    }
    assert "\x1b" not in result.stdout.str()


def test_nothing_is_shown_to_those_who_want_it_quiet(project: Project, server) -> None:
    project.write(SUITE, app=ASK, conftest=AT_ONCE)

    result = project.pytest(*TWO, "-q", "-q", url=server("Waves.", latency=0.05).url)

    assert result.ret == 0
    assert "of 6 runs" not in result.stdout.str()
