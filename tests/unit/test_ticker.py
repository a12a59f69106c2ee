"""Where progress is shown, and that it gives way to whatever else is written."""

from __future__ import annotations

import contextlib
import fcntl
import io
import os
import pty
import struct
import termios
import threading
import time
from collections.abc import Iterator, Sequence
from pathlib import Path

import pytest
from test_progress import progress

from pytest_llm_determinism import ticker
from pytest_llm_determinism.report.progress import Progress
from pytest_llm_determinism.ticker import Guarded, Lines, Row, Slip, Ticker, read_slips

TEXT = "tests/test_triage.py::test_refund: 12 of 30 runs, 2 groups, 16 calls live, 4 cached, about 2 min left"


class Recorder:
    """An outlet that writes down what it is told, and looks as often as it can."""

    every = 0.001

    def __init__(self) -> None:
        self.told: list[str] = []
        self.shown = threading.Event()

    def show(self, shown: Sequence[Progress]) -> None:
        self.told.append("show")
        self.shown.set()

    def clear(self) -> None:
        if self.told[-1:] == ["show"]:
            self.told.append("clear")

    def close(self) -> None:
        self.told.append("close")

    def wait(self) -> None:
        self.shown.clear()
        assert self.shown.wait(10)


@pytest.fixture
def recorder() -> Recorder:
    return Recorder()


@pytest.fixture
def ticking(recorder: Recorder) -> Iterator[Ticker]:
    made = Ticker(recorder)
    yield made
    made.close()


def test_what_is_under_way_is_shown_until_it_is_over(recorder: Recorder, ticking: Ticker) -> None:
    with ticking.showing(lambda: [progress()]):
        recorder.wait()
    told = list(recorder.told)
    time.sleep(0.02)
    assert (told[-2:], recorder.told) == (["show", "clear"], told)


def test_an_error_takes_it_away_too(recorder: Recorder, ticking: Ticker) -> None:
    def body() -> None:
        with ticking.showing(lambda: [progress()]):
            recorder.wait()
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        body()
    assert recorder.told[-1] == "clear"


def test_a_repetition_within_another_is_shown_meanwhile(recorder: Recorder, ticking: Ticker) -> None:
    looked: list[str] = []

    def look(name: str) -> list[Progress]:
        looked.append(name)
        return [progress()]

    with ticking.showing(lambda: look("outer")):
        recorder.wait()
        with ticking.showing(lambda: look("inner")):
            recorder.wait()
            recorder.wait()
            assert looked[-1] == "inner"
        recorder.wait()
        recorder.wait()
        assert looked[-1] == "outer"


def test_nothing_is_shown_while_a_person_types(recorder: Recorder, ticking: Ticker) -> None:
    with ticking.showing(lambda: [progress()]):
        recorder.wait()
        ticking.pause()
        told = list(recorder.told)
        time.sleep(0.02)
        assert (told[-1], recorder.told) == ("clear", told)
        ticking.go_on()
        recorder.wait()


def test_all_tests_of_a_session_share_one_thread_which_ends_with_it(recorder: Recorder) -> None:
    made = Ticker(recorder)

    def threads() -> int:
        return sum(thread.name == "determinism-progress" for thread in threading.enumerate())

    for _ in range(3):
        with made.showing(list):
            assert threads() == 1
    made.close()
    assert (threads(), recorder.told) == (0, ["close"])
    with made.showing(list):
        assert threads() == 0


def test_what_cannot_be_shown_hurts_nobody(recorder: Recorder, ticking: Ticker) -> None:
    def broken() -> list[Progress]:
        raise OSError("gone")

    with ticking.showing(broken):
        time.sleep(0.02)
    assert recorder.told == []


def test_a_child_made_by_fork_shows_nothing(recorder: Recorder, ticking: Ticker, monkeypatch) -> None:
    parent = os.getpid()
    with ticking.showing(lambda: [progress()]):
        recorder.wait()
        with monkeypatch.context() as patch, ticking._lock:
            # As in the child: the lock may be held by a thread that is not there.
            patch.setattr(ticker.os, "getpid", lambda: parent + 1)
            told = list(recorder.told)
            other = threading.Thread(target=lambda: contextlib.ExitStack().enter_context(ticking.showing(list)))
            other.start()
            other.join(10)
            assert (other.is_alive(), recorder.told) == (False, told)


# The row of a terminal


@pytest.fixture
def terminal() -> Iterator[tuple[int, int]]:
    """Both ends of a terminal of 80 columns: that of the person, and that of the program."""
    ends = pty.openpty()
    fcntl.ioctl(ends[0], termios.TIOCSWINSZ, struct.pack("HHHH", 24, 80, 0, 0))
    yield ends
    os.close(ends[0])


def test_a_row_is_written_below_the_cursor_which_stays(terminal: tuple[int, int]) -> None:
    row = Row(terminal[1])
    row.show([progress()])
    written = os.read(terminal[0], 1000).decode()
    row.show([progress()])
    row.clear()
    row.clear()
    cleared = os.read(terminal[0], 1000).decode()
    row.close()

    text = "….py::test_refund: 12 of 30 runs, 2 groups, 16 live, 4 cached, about 2 min left"
    assert (written, cleared) == (f"\x1b[J\x1bD\x1bM\x1b7\x1b[B\r{text}\x1b8", "\x1b[J")


def test_a_row_of_its_own_is_written_where_the_cursor_is(terminal: tuple[int, int]) -> None:
    row = Row(terminal[1], own=True)
    row.show([progress(name="dense", seconds_left=None)])
    row.close()
    assert os.read(terminal[0], 1000).decode() == (
        "\x1b[J\x1b7\rdense: 12 of 30 runs, 2 groups, 16 calls live, 4 cached\x1b8"
    )


def test_what_is_written_elsewhere_takes_the_row_away_first(recorder: Recorder, ticking: Ticker) -> None:
    file = io.StringIO()
    guarded = Guarded(file, ticking)
    with ticking.showing(lambda: [progress()]):
        recorder.wait()
        guarded.write("F")
        guarded.flush()
        assert "clear" in recorder.told
    assert (file.getvalue(), guarded.isatty()) == ("F", False)


# The lines of a log


def test_a_log_gets_a_line_every_half_minute(monkeypatch: pytest.MonkeyPatch) -> None:
    now = [0.0]
    monkeypatch.setattr(ticker.time, "monotonic", lambda: now[0])
    begun = ["test_it.py .."]
    out, into = os.pipe()
    lines = Lines(into, begun=lambda: begun[0])
    for now[0] in (1.0, 29.0, 30.0, 31.0, 59.0):
        lines.show([progress()])
        lines.clear()
    begun[0] = ""
    now[0] = 61.0
    lines.show([progress(name="test_it[\udcff]", seconds_left=None)])
    lines.close()
    with open(out, encoding="utf-8") as log:
        assert log.read() == (
            f"\n{TEXT}\ntest_it.py ..test_it[\\udcff]: 12 of 30 runs, 2 groups, 16 calls live, 4 cached\n"
        )


# The slips of workers


def test_the_controller_reads_what_its_workers_are_about(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    mine, other = Slip(tmp_path / "7.json"), Slip(tmp_path / "8.json")
    mine.show([progress(name="b", groups=None)])
    other.show([progress(name="a", done=1)])
    other.show([progress(name="a", done=2)])
    assert read_slips(tmp_path) == [progress(name="a", done=2), progress(name="b", groups=None)]

    mine.clear()
    mine.clear()
    assert [path.name for path in tmp_path.iterdir()] == ["8.json"]

    later = time.time() + ticker.STALE + 1
    monkeypatch.setattr(ticker.time, "time", lambda: later)
    assert read_slips(tmp_path) == []  # the worker died
    assert read_slips(tmp_path / "none") == []
