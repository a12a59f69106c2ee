"""Samples on disk: kept whole, without secrets, and safe to read whoever wrote the database."""

from __future__ import annotations

import json
import os
import pickle
import sqlite3
import stat
import subprocess
import sys
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import closing
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.store import Sample, SampleStore, sample_key

PARIS = Sample.of(200, [("content-type", "application/json")], b'{"answer": "Paris."}', at=1000.0, seconds=0.5)
LARGE = Sample.of(200, [("content-type", "text/plain")], b"Paris. " * 10_000, at=1000.0, seconds=0.5)


@pytest.fixture
def directory(tmp_path: Path) -> Path:
    return tmp_path / "store"


@pytest.fixture
def store(directory: Path) -> Iterator[SampleStore]:
    opened = SampleStore(directory)
    yield opened
    opened.close()


def filled(directory: Path, *keys: str, sample: Sample = PARIS) -> None:
    """A store of an earlier session."""
    store = SampleStore(directory)
    for key in keys:
        store.write(key, sample)
    store.close()


def reading(directory: Path, *keys: str) -> tuple[dict[str, Sample], list[str]]:
    """What a new session finds, and what it is told about the store."""
    store = SampleStore(directory)
    found = store.read(keys, 0)
    store.close()
    return found, store.notes


def sql(directory: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / "cache.db")) as connection, connection:
        connection.execute(statement, values)


# One sample


HEADERS = st.lists(st.tuples(st.from_regex(r"\A[a-z-]{1,12}\Z"), st.text(st.characters(codec="latin-1"), max_size=12)))


@given(st.integers(200, 299), HEADERS, st.binary() | st.text().map(str.encode), st.floats(0, 2e9), st.floats(0, 600))
def test_a_sample_is_read_as_it_was_written(
    status: int, headers: list[tuple[str, str]], body: bytes, at: float, seconds: float
) -> None:
    sample = Sample.of(status, headers, body, at, seconds)
    assert Sample.decode(sample.encode()) == sample


def test_headers_that_carry_credentials_or_describe_the_transfer_are_dropped() -> None:
    kept = [("content-type", "application/json"), ("x-request-id", "req-1"), ("openai-version", "2020-10-01")]
    dropped = [
        ("Set-Cookie", "session=secret"),
        ("set-cookie", "__cf_bm=secret"),
        ("Authorization", "Bearer secret"),
        ("WWW-Authenticate", "Bearer secret"),
        ("X-Api-Key", "secret"),
        ("openai-organization", "org-secret"),
        ("OpenAI-Project", "proj-secret"),
        ("Content-Encoding", "gzip"),
        ("Content-Length", "20"),
        ("Transfer-Encoding", "chunked"),
        ("Connection", "keep-alive"),
    ]
    assert Sample.of(200, [*dropped, *kept], b"{}", 0, 0).headers == tuple(kept)


def damaged(**changes: object) -> str:
    return json.dumps({**json.loads(PARIS.encode()), **changes})


@pytest.mark.parametrize(
    "text",
    [
        None,
        b"bytes",
        "",
        "not json",
        "[]",
        "3",
        "[" * 100_000,
        "{}",
        damaged(format=2),
        damaged(status=500),
        damaged(status="200"),
        damaged(status=None),
        damaged(body=None),
        damaged(body={}),
        damaged(body={"text": 3}),
        damaged(body={"base64": "not base64!"}),
        damaged(body={"text": "\ud800"}),
        damaged(headers=None),
        damaged(headers=["content-type"]),
        damaged(headers=[["x-note", "\ud800"]]),
        damaged(at="yesterday"),
        damaged(at=-1),
        damaged(at=1e15),
        damaged(at=10**400),
        damaged(at=float("nan")),
        damaged(at=float("inf")),
        damaged(seconds=-1),
        damaged(seconds=1e9),
        damaged(seconds=float("nan")),
    ],
)
def test_what_no_session_can_have_written_is_no_sample(text: object) -> None:
    with pytest.raises(ValueError):  # noqa: PT011  # the contract is the kind, whatever was wrong
        Sample.decode(text)


def test_each_part_of_the_key_tells_samples_apart() -> None:
    parts = ("abc", "burst", 0, 0, 0)
    others = [("abd", "burst", 0, 0, 0), ("abc", "solo", 0, 0, 0), ("abc", "burst", 1, 0, 0), ("abc", "burst", 0, 1, 0)]
    assert len({sample_key(*one) for one in (parts, *others, ("abc", "burst", 0, 0, 1))}) == 6


# The directory


def test_what_was_written_is_found_by_the_next_session(directory: Path) -> None:
    filled(directory, "a", "b")
    filled(directory, "large", sample=LARGE)
    assert reading(directory, "a", "large", "nothing") == ({"a": PARIS, "large": LARGE}, [])


def test_the_directory_is_made_by_the_first_write_alone(store: SampleStore, directory: Path) -> None:
    assert store.read(["a"], 0) == {}
    assert not directory.exists()

    store.write("a", PARIS)

    assert stat.S_IMODE(directory.stat().st_mode) == 0o700
    assert (directory / ".gitignore").read_text() == "*\n"
    assert (directory / "CACHEDIR.TAG").read_text().startswith("Signature: 8a477f597d28d172789f06886806bc55")


def test_a_store_under_replay_writes_nothing(directory: Path) -> None:
    store = SampleStore(directory, writable=False)
    store.write("a", PARIS)
    assert store.read(["a"], 0) == {}
    store.close()
    assert not directory.exists()


def test_samples_that_arrived_too_early_are_not_given(store: SampleStore) -> None:
    store.write("a", PARIS)
    assert store.read(["a"], PARIS.at) == {"a": PARIS}
    assert store.read(["a"], PARIS.at + 0.001) == {}


def test_a_later_sample_takes_the_place_of_an_earlier_one(store: SampleStore) -> None:
    store.write("a", LARGE)
    store.write("a", PARIS)
    assert store.read(["a"], 0) == {"a": PARIS}


def test_many_threads_share_a_store(store: SampleStore) -> None:
    keys = [f"key-{number}" for number in range(60)]
    with ThreadPoolExecutor(8) as pool:
        list(pool.map(lambda key: store.write(key, PARIS), keys))
        found = list(pool.map(lambda key: store.read([key], 0), keys))
    assert found == [{key: PARIS} for key in keys]


WRITER = """
import sys
from pathlib import Path
from pytest_llm_determinism.store import Sample, SampleStore
directory, name = sys.argv[1:]
store = SampleStore(Path(directory))
for number in range(40):
    store.write(f"{name}-{number}", Sample.of(200, [], name.encode(), 1000.0, 0.5))
store.close()
sys.exit("; ".join(store.notes) or 0)
"""


def test_processes_share_a_store_from_its_making_on(directory: Path) -> None:
    command = [sys.executable, "-W", "error", "-c", WRITER, str(directory)]
    writers = [subprocess.Popen([*command, name], stderr=subprocess.PIPE) for name in "abc"]
    assert [writer.communicate(timeout=60)[1] for writer in writers] == [b"", b"", b""]
    assert [writer.returncode for writer in writers] == [0, 0, 0]
    keys = [f"{name}-{number}" for name in "abc" for number in range(40)]
    found, notes = reading(directory, *keys)
    assert (sorted(found), notes) == (sorted(keys), [])


def test_what_was_written_survives_a_process_that_is_killed(directory: Path) -> None:
    killed = WRITER.replace("store.close()", "import os, signal; os.kill(os.getpid(), signal.SIGKILL)")
    subprocess.run([sys.executable, "-c", killed, str(directory), "a"], check=False)
    found, notes = reading(directory, *(f"a-{number}" for number in range(40)))
    assert (len(found), notes) == (40, [])


def test_nothing_is_left_open_after_closing(directory: Path) -> None:
    program = WRITER.replace("store.close()", "store.read(['a-1'], 0); store.close(); del store").replace(
        '"; ".join(store.notes) or 0', "0"
    )
    process = subprocess.run(
        [sys.executable, "-X", "dev", "-W", "error", "-c", program, str(directory), "a"],
        capture_output=True,
        check=False,
    )
    assert (process.returncode, process.stderr) == (0, b"")


def test_a_closed_store_may_be_used_again(store: SampleStore) -> None:
    store.write("a", PARIS)
    store.close()
    assert store.read(["a"], 0) == {"a": PARIS}


def test_a_place_that_cannot_be_written_to_is_refused_with_advice(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("not a directory")
    store = SampleStore(tmp_path / "file" / "store")
    with pytest.raises(Refusal, match=r"cannot be used: .*--determinism-cache-dir.*--determinism-cache=off"):
        store.write("a", PARIS)
    store.close()


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable for this user")
def test_a_read_only_directory_is_refused_with_advice(directory: Path) -> None:
    directory.mkdir(mode=0o500)
    directory.chmod(0o500)
    with pytest.raises(Refusal, match="make it writable"):
        SampleStore(directory / "store").write("a", PARIS)


# A database that a stranger wrote


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_the_bomb_of_these_tests_does_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


def test_a_pickled_value_is_never_read(directory: Path, tmp_path: Path) -> None:
    filled(directory, "a", "b")
    sql(directory, "UPDATE Cache SET mode = 4, value = ? WHERE key = 'a'", pickle.dumps(Bomb(tmp_path / "ran")))

    found, notes = reading(directory, "a", "b")

    assert (list(found), notes) == (["b"], [f"1 damaged samples in {directory} were not used"])
    assert not (tmp_path / "ran").exists()


def test_a_pickled_value_in_a_file_is_never_read(directory: Path, tmp_path: Path) -> None:
    filled(directory, "a", sample=LARGE)
    (path,) = directory.glob("??/??/*.val")
    path.write_bytes(pickle.dumps(Bomb(tmp_path / "ran")))
    sql(directory, "UPDATE Cache SET mode = 4")
    assert reading(directory, "a")[0] == {}
    assert not (tmp_path / "ran").exists()


def test_a_pickled_key_is_never_read(directory: Path, tmp_path: Path) -> None:
    filled(directory, "a", "b")
    sql(directory, "UPDATE Cache SET raw = 0, key = ? WHERE key = 'a'", pickle.dumps(Bomb(tmp_path / "ran")))
    assert list(reading(directory, "a", "b")[0]) == ["b"]
    filled(directory, "a")
    assert list(reading(directory, "a", "b")[0]) == ["a", "b"]
    assert not (tmp_path / "ran").exists()


def test_rows_of_any_other_form_are_not_used(directory: Path) -> None:
    modes = (2, 3, 4, 5, 99, None, "one", -1, b"1")
    rows = {f"{mode!r} {value!r}": (mode, value) for mode in modes for value in (PARIS.encode(), 3, None, b"\x80N.")}
    rows |= {f"1 {value!r}": (1, value) for value in (3, 2.5, None, b"\x80N.")}
    filled(directory, "a", *rows)
    for key, (mode, value) in rows.items():
        sql(directory, "UPDATE Cache SET mode = ?, value = ? WHERE key = ?", mode, value, key)
    found, notes = reading(directory, "a", *rows)
    assert list(found) == ["a"]
    assert notes == [f"{len(rows)} damaged samples in {directory} were not used"]


@pytest.mark.parametrize("mode", [2, 3])
@pytest.mark.parametrize("kind", ["absolute", "upwards", "inside", "link", "linked directory"])
def test_a_file_outside_the_store_is_never_read_nor_removed(
    directory: Path, tmp_path: Path, mode: int, kind: str
) -> None:
    filled(directory, "a")
    name = f"00/00/{'0' * 28}.val"
    outside = tmp_path / "elsewhere" / name[3:]
    outside.parent.mkdir(parents=True)
    outside.write_text(PARIS.encode())
    if kind == "link":
        (directory / name).parent.mkdir(parents=True)
        (directory / name).symlink_to(outside)
    elif kind == "linked directory":
        (directory / "00").symlink_to(tmp_path / "elsewhere")
    names = {
        "absolute": str(outside),
        "upwards": f"../elsewhere/{name[3:]}",
        "inside": f"00/../../elsewhere/{name[3:]}",
    }
    sql(directory, "UPDATE Cache SET mode = ?, value = NULL, filename = ?", mode, names.get(kind, name))

    found, notes = reading(directory, "a")
    filled(directory, "a")

    assert (found, len(notes)) == ({}, 1)
    assert outside.read_text() == PARIS.encode()
    assert reading(directory, "a") == ({"a": PARIS}, [])


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER later AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE TRIGGER sqliteXlater AFTER INSERT ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE VIEW more AS SELECT * FROM Cache",
        "CREATE TABLE more (key, value)",
        "INSERT INTO Settings VALUES ('unknown', 1)",
        "INSERT INTO Settings VALUES (x'00', 1)",
        "INSERT INTO Settings VALUES ('get', 1)",
        "INSERT INTO Settings VALUES ('close', 1)",
        "INSERT INTO Settings VALUES ('_disk', 1)",
        "INSERT INTO Settings VALUES ('disk_fetch', 1)",
        "INSERT INTO Settings VALUES ('sqlite_writable_schema', 1)",
        "INSERT INTO Settings VALUES ('sqlite_journal_mode = off; --', 'off')",
        "UPDATE Settings SET value = x'00' WHERE key = 'size_limit'",
        "UPDATE Settings SET value = 'off' WHERE key = 'sqlite_journal_mode'",
        "UPDATE Settings SET value = '1; DROP TABLE Cache' WHERE key = 'sqlite_cache_size'",
        "ALTER TABLE Settings RENAME COLUMN value TO other",
        "ALTER TABLE Cache RENAME COLUMN filename TO other",
    ],
)
def test_a_database_of_a_foreign_form_is_set_aside_and_said(directory: Path, statement: str) -> None:
    filled(directory, "a")
    sql(directory, statement)

    found, notes = reading(directory, "a")

    assert found == {}
    assert len(notes) == 1
    assert "was damaged" in notes[0]
    filled(directory, "a")
    assert reading(directory, "a") == ({"a": PARIS}, [])
    (aside,) = directory.glob("damaged-*")
    assert (aside / "cache.db").exists()


@pytest.mark.parametrize(
    "body",
    [
        "DELETE FROM Cache;",
        'UPDATE Cache SET value = "same for all" WHERE key = "a";',
        'UPDATE Settings SET value = value + 1 WHERE key = "count"; DELETE FROM Cache;',
    ],
)
def test_a_known_trigger_that_does_something_else_is_foreign(directory: Path, body: str) -> None:
    filled(directory, "a")
    sql(directory, "DROP TRIGGER Settings_count_insert")
    sql(directory, f"CREATE TRIGGER Settings_count_insert AFTER INSERT ON Cache FOR EACH ROW BEGIN {body} END")
    filled(directory, "b", "c")
    assert list(reading(directory, "b", "c")[0]) == ["b", "c"]
    assert len(list(directory.glob("damaged-*"))) == 1


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("sqlite_synchronous", 0),
        ("eviction_policy", "least-recently-stored"),
        ("cull_limit", 1000),
        ("size_limit", 1),
        ("disk_min_file_size", "small"),
        ("disk_pickle_protocol", 4),
    ],
)
def test_a_foreign_database_chooses_no_setting(directory: Path, name: str, value: object) -> None:
    filled(directory, "a")
    sql(directory, "UPDATE Settings SET value = ? WHERE key = ?", value, name)
    filled(directory, "b")
    assert list(reading(directory, "a", "b")[0]) == ["a", "b"]
    with closing(sqlite3.connect(directory / "cache.db")) as connection:
        assert connection.execute("SELECT value FROM Settings WHERE key = ?", (name,)).fetchone() != (value,)


# A damaged database


def garbage(path: Path) -> None:
    path.write_bytes(b"this is no database, whatever its name says " * 200)


def cut(path: Path) -> None:
    path.write_bytes(path.read_bytes()[: path.stat().st_size // 2])


def empty_pages(path: Path) -> None:
    content = path.read_bytes()
    path.write_bytes(content[:4096] + bytes(len(content) - 4096))


@pytest.mark.parametrize("damage", [garbage, cut, empty_pages])
def test_a_damaged_database_is_set_aside_and_said_and_the_store_works(
    directory: Path, damage: Callable[[Path], None]
) -> None:
    filled(directory, *(f"key-{number}" for number in range(200)))
    damage(directory / "cache.db")

    store = SampleStore(directory)
    assert store.read(["key-1"], 0) in ({}, {"key-1": PARIS})
    store.write("new", PARIS)
    assert store.read(["new"], 0) == {"new": PARIS}
    store.close()

    assert len(store.notes) == 1
    assert f"the store in {directory} was damaged" in store.notes[0]
    assert len(list(directory.glob("damaged-*/cache.db"))) == 1
    assert reading(directory, "new") == ({"new": PARIS}, [])


def test_an_empty_database_file_is_a_new_store(directory: Path) -> None:
    directory.mkdir()
    (directory / "cache.db").touch()
    filled(directory, "a")
    assert reading(directory, "a") == ({"a": PARIS}, [])


def test_samples_whose_file_is_gone_are_missing_and_nothing_else(directory: Path) -> None:
    filled(directory, "large", sample=LARGE)
    filled(directory, "a")
    for path in directory.glob("??/??/*.val"):
        path.unlink()
    assert reading(directory, "large", "a")[0] == {"a": PARIS}


@pytest.mark.parametrize("content", [b"\xff\xfe", b"", b"{}", b'{"format": 1'])
def test_a_sample_that_cannot_be_read_is_counted_and_said(directory: Path, content: bytes) -> None:
    filled(directory, "large", sample=LARGE)
    for path in directory.glob("??/??/*.val"):
        path.write_bytes(content)
    assert reading(directory, "large") == ({}, [f"1 damaged samples in {directory} were not used"])


def test_a_text_that_is_not_utf8_is_counted_and_said(directory: Path) -> None:
    filled(directory, "a", "b")
    sql(directory, "UPDATE Cache SET value = CAST(x'ff' AS TEXT) WHERE key = 'a'")
    found, notes = reading(directory, "a", "b")
    assert (list(found), notes) == (["b"], [f"1 damaged samples in {directory} were not used"])


def test_a_busy_database_is_waited_for_and_not_set_aside(directory: Path, store: SampleStore) -> None:
    filled(directory, "a")
    with closing(sqlite3.connect(directory / "cache.db", isolation_level=None)) as other:
        other.execute("BEGIN IMMEDIATE")
        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(store.write, "b", PARIS)
            assert store.notes == []
            other.execute("COMMIT")
            writing.result()
    assert store.read(["a", "b"], 0) == {"a": PARIS, "b": PARIS}
    assert store.notes == []
