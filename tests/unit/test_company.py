"""What several workers may have in flight together: real processes, with locks of the operating system."""

import queue
import subprocess
import sys
import threading
from pathlib import Path

import pytest

from pytest_llm_determinism.company import Company

LONG = 20.0
"""Seconds that a test waits for what must happen; only a failing one waits that long."""

WORKER = """
import fcntl
import sys
from pathlib import Path
from pytest_llm_determinism.company import Company

def say(word):
    print(word, flush=True)

flock = fcntl.flock

def telling_flock(descriptor, kind):
    try:
        flock(descriptor, kind | fcntl.LOCK_NB)
    except BlockingIOError:
        say("waits")
        flock(descriptor, kind)

fcntl.flock = telling_flock
company = Company(Path(sys.argv[1]), int(sys.argv[2]), int(sys.argv[3]))
for line in iter(sys.stdin.readline, ""):
    load, concurrency = line.split()
    with company.admitted(load, int(concurrency)):
        say("in")
        sys.stdin.readline()
    say("out")
"""
"""A worker that says when it has to wait, when it is admitted, and when it has left."""


class Worker:
    def __init__(self, folder: Path, workers: int, number: int) -> None:
        self._process = subprocess.Popen(
            [sys.executable, "-c", WORKER, str(folder), str(workers), str(number)],
            stdin=subprocess.PIPE,
            stdout=subprocess.PIPE,
            text=True,
        )
        self._said: queue.Queue[str] = queue.Queue()
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        for line in self._process.stdout:
            self._said.put(line.strip())

    def says(self) -> str:
        return self._said.get(timeout=LONG)

    def asks(self, load: str, concurrency: int) -> str:
        """Ask to be admitted; what the worker says then: "in" or "waits"."""
        self._process.stdin.write(f"{load} {concurrency}\n")
        self._process.stdin.flush()
        return self.says()

    def leaves(self) -> str:
        self._process.stdin.write("\n")
        self._process.stdin.flush()
        return self.says()

    def dies(self) -> None:
        self._process.kill()
        self._process.wait(60)

    def close(self) -> None:
        self.dies()
        self._reader.join(60)
        self._process.stdin.close()
        self._process.stdout.close()


@pytest.fixture
def workers(tmp_path):
    """Start the workers of one session: ``workers(3)``."""
    pytest.importorskip("fcntl")
    started = []

    def start(count: int) -> list[Worker]:
        started.extend(Worker(tmp_path / "locks", count, number) for number in range(count))
        return started

    yield start
    for worker in started:
        worker.close()


@pytest.mark.parametrize(
    ("concurrency", "workers", "share"),
    [(8, 1, 8), (8, 2, 4), (8, 3, 2), (8, 8, 1), (8, 9, 1), (1, 4, 1), (7, 2, 3)],
)
def test_the_calls_are_shared(concurrency, workers, share):
    assert Company(Path("locks"), workers, 0).share(concurrency) == share


def test_all_shares_together_are_no_more_than_the_session_may_have():
    for workers in range(1, 20):
        for concurrency in range(workers, 40):
            shares = [Company(Path("locks"), workers, number).share(concurrency) for number in range(workers)]
            assert sum(shares) <= concurrency


def test_experiments_with_calls_enough_are_made_together(workers):
    first, second = workers(2)
    assert first.asks("burst", 2) == "in"
    assert second.asks("burst", 2) == "in"


def test_a_solo_experiment_holds_the_others_off(workers):
    solo, other = workers(2)
    assert solo.asks("solo", 8) == "in"
    assert other.asks("burst", 8) == "waits"
    assert solo.leaves() == "out"
    assert other.says() == "in"


def test_a_solo_experiment_waits_until_all_others_have_left(workers):
    first, second, solo = workers(3)
    assert first.asks("burst", 8) == "in"
    assert second.asks("burst", 8) == "in"
    assert solo.asks("solo", 8) == "waits"
    assert first.leaves() == "out"
    assert second.leaves() == "out"
    assert solo.says() == "in"
    # Had the first to leave been enough, this one would have been inside with it.
    assert first.asks("burst", 8) == "waits"


def test_two_solo_experiments_are_made_one_after_the_other(workers):
    first, second = workers(2)
    assert first.asks("solo", 8) == "in"
    assert second.asks("solo", 8) == "waits"
    assert first.leaves() == "out"
    assert second.says() == "in"


def test_with_more_workers_than_calls_as_many_experiments_are_made_as_there_are_calls(workers):
    first, second, third = workers(3)
    assert first.asks("burst", 2) == "in"
    assert second.asks("burst", 2) == "in"
    assert third.asks("burst", 2) == "waits"
    assert first.leaves() == "out"
    assert third.says() == "in"
    assert first.asks("burst", 2) == "waits"


def test_with_one_call_experiments_are_made_one_after_the_other(workers):
    first, second = workers(2)
    assert first.asks("burst", 1) == "in"
    assert second.asks("burst", 1) == "waits"
    assert first.leaves() == "out"
    assert second.says() == "in"


def test_a_solo_experiment_holds_the_others_off_with_more_workers_than_calls_too(workers):
    solo, other = workers(2)
    assert solo.asks("solo", 1) == "in"
    assert other.asks("burst", 1) == "waits"
    assert solo.leaves() == "out"
    assert other.says() == "in"
    assert solo.asks("solo", 1) == "waits"


@pytest.mark.parametrize(("load", "concurrency"), [("solo", 8), ("burst", 1)])
def test_a_worker_that_dies_gives_back_what_it_held(workers, load, concurrency):
    first, second = workers(2)
    assert first.asks(load, concurrency) == "in"
    assert second.asks("burst", concurrency) == "waits"
    first.dies()
    assert second.says() == "in"


FORKING = """
import fcntl
import os
import sys
from pathlib import Path
from pytest_llm_determinism.company import Company

folder = Path(sys.argv[1])
open_end, end = os.pipe()
with Company(folder, 2, 0).admitted("burst", 1):
    child = os.fork()
    if not child:
        os.close(end)
        os.read(open_end, 1)  # until the parent is done
        os._exit(0)
for name in ("solo", "seat-0"):
    with open(folder / name) as file:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
print("nothing is held", flush=True)
os.close(end)
os.waitpid(child, 0)
"""


def test_a_process_that_the_body_forked_holds_nothing_when_the_experiment_is_over(tmp_path):
    pytest.importorskip("fcntl")
    done = subprocess.run(
        [sys.executable, "-c", FORKING, str(tmp_path)], capture_output=True, text=True, timeout=LONG, check=False
    )
    assert (done.stdout, done.stderr) == ("nothing is held\n", "")


def free(path: Path) -> bool:
    import fcntl

    with path.open() as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            return False
    return True


def test_an_experiment_that_ends_in_an_error_gives_back_what_it_held(tmp_path):
    pytest.importorskip("fcntl")

    def body():
        with Company(tmp_path, 2, 1).admitted("burst", 1):
            assert not free(tmp_path / "solo")
            assert not free(tmp_path / "seat-0")
            raise ValueError("of the body")

    with pytest.raises(ValueError, match="of the body"):
        body()
    assert free(tmp_path / "solo")
    assert free(tmp_path / "seat-0")


def test_the_folder_is_made_for_its_owner_alone(tmp_path):
    pytest.importorskip("fcntl")
    folder = tmp_path / "session" / "locks"
    with Company(folder, 2, 0).admitted("solo", 8):
        assert folder.stat().st_mode & 0o777 == 0o700
        assert {found.name: found.stat().st_mode & 0o777 for found in folder.iterdir()} == {"solo": 0o600}


def test_without_locks_of_the_system_experiments_are_made_all_the_same(tmp_path, monkeypatch):
    monkeypatch.setitem(sys.modules, "fcntl", None)
    with Company(tmp_path, 2, 0).admitted("solo", 8), Company(tmp_path, 2, 1).admitted("burst", 8):
        pass
    assert list(tmp_path.iterdir()) == []
