"""`llm-determinism cache`: what it says of a store, removes, and carries elsewhere, whoever wrote the store or file."""

from __future__ import annotations

import gzip
import hashlib
import json
import os
import pickle
import sqlite3
import threading
import time
from collections.abc import Callable, Sequence
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pytest_llm_determinism.cli import main
from pytest_llm_determinism.observe.secrets import without_credentials
from pytest_llm_determinism.store import Sample, SampleStore, StoredRequest, portable, sample_key
from pytest_llm_determinism.store.contents import Contents
from pytest_llm_determinism.store.request import MOST_TESTS, request_key
from pytest_llm_determinism.store.sample import SampleKey, parse_key

HOUR, DAY = 3600, 86400
COLORS, PARIS = (hashlib.sha256(name.encode()).hexdigest() for name in ("colors", "Paris"))  # 4e… and 5d…
CHAT = "chat completions"


def said(text: str, age: float = 3 * HOUR) -> Sample:
    """A chat completion that arrived that long ago."""
    choice = {"index": 0, "message": {"role": "assistant", "content": text}, "finish_reason": "stop"}
    body = json.dumps({"id": "chatcmpl-1", "model": "m-1", "choices": [choice]}).encode()
    return Sample.of(200, [("content-type", "application/json")], body, float(int(time.time()) - age), 0.5)


def asked(*tests: str, model: str = "m", prompt: str = "A colour?") -> StoredRequest:
    body = {"model": model, "messages": [{"role": "user", "content": prompt}]}
    canonical = {"schema": 2, "api": CHAT, "method": "POST", "url": "http://host/v1/chat/completions", "body": body}
    return StoredRequest(CHAT, model, canonical, tests)


def keyed(
    request: str, answers: Sequence[str], load: str = "burst", attempt: int = 0, **age: float
) -> dict[str, Sample]:
    return {sample_key(request, load, attempt, 0, run): said(text, **age) for run, text in enumerate(answers)}


def filled(directory: Path, samples: dict[str, Sample], requests: dict[str, StoredRequest] | None = None) -> None:
    store = SampleStore(directory)
    store.add(samples, requests or {})
    store.close()
    assert store.notes == []


def kept(directory: Path) -> dict[str, object]:
    """All that can be used in a store, by key."""
    with Contents(directory) as contents:
        return {str(row.key): row.value for row in contents.rows() if not row.problem}


def sql(directory: Path, statement: str, *values: object) -> None:
    with closing(sqlite3.connect(directory / "cache.db")) as connection, connection:
        connection.execute(statement, values)


@pytest.fixture
def store(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A store of two requests at the default place: colours by two tests under two loads, Paris by another."""
    monkeypatch.chdir(tmp_path)
    directory = Path(".pytest_llm_determinism")
    filled(
        directory,
        {
            **keyed(COLORS, ["red"] * 7 + ["blue"] * 2),
            **keyed(COLORS, ["red"] * 4, load="solo", age=4 * HOUR),
            **keyed(COLORS, ["red"] * 3, attempt=1),
        },
        {COLORS: asked("tests/test_a.py::test_color[1]", "tests/test_a.py::test_color[2]")},
    )
    filled(directory, keyed(PARIS, ["Paris."], age=2 * DAY), {PARIS: asked("tests/test_b.py::test_it", model="n")})
    return directory


Run = Callable[..., tuple[int, str, str]]


@pytest.fixture
def cache(capsys: pytest.CaptureFixture[str]) -> Run:
    """Run ``llm-determinism cache`` and give exit code, output and errors."""

    def run(*arguments: object) -> tuple[int, str, str]:
        try:
            code = main(["cache", *map(str, arguments)])
        except SystemExit as end:
            code = int(end.code or 0)
        printed = capsys.readouterr()
        return code, printed.out, printed.err

    return run


# What is looked at


def test_info(store: Path, cache: Run) -> None:
    on_disk = sum(path.stat().st_size for path in store.rglob("*"))
    assert cache("info") == (
        0,
        (
            f"store    .pytest_llm_determinism ({on_disk / 1000:.1f} kB on disk)\n"
            "samples  17 of 2 requests, 5.2 kB\n"
            "models   m (16), n (1)\n"
            "loads    burst (13 runs), solo (4 runs)\n"
            "age      3 hours – 2 days\n"
            "damaged  none\n"
        ),
        "",
    )
    told = json.loads(cache("info", "--json")[1])
    assert (told["samples"], told["requests"], told["set_aside"], told["damaged"]) == (17, 2, [], 0)
    assert told["models"] == [{"model": "m", "samples": 16}, {"model": "n", "samples": 1}]
    assert told["oldest"] < told["newest"]


def test_info_of_a_store_with_damage_says_what_to_do(store: Path, cache: Run) -> None:
    sql(store, "UPDATE Cache SET value = '{}' WHERE key = ?", sample_key(PARIS, "burst", 0, 0, 0))
    aside = store / "damaged-20260101T000000"
    aside.mkdir()
    (aside / "cache.db").write_bytes(b"x" * 1500)
    lines = cache("info")[1].splitlines()
    assert lines[5:] == [
        "damaged    1 row",
        "set aside  damaged-20260101T000000 (1.5 kB)",
        "try next   llm-determinism cache verify says what is wrong",
    ]


def test_ls(store: Path, cache: Run) -> None:
    assert cache("ls") == (
        0,
        (
            "key           model  API               runs               age                bytes   asked by\n"
            f"{COLORS[:12]}  m      chat completions  burst 9+3, solo 4  3 hours – 4 hours  4.8 kB  "
            "tests/test_a.py::test_color[2] (+1)\n"
            f"{PARIS[:12]}  n      chat completions  burst 1            2 days             306 B   "
            "tests/test_b.py::test_it\n"
        ),
        "",
    )


@pytest.mark.parametrize(
    ("filters", "expected"),
    [
        ([], {COLORS: 16, PARIS: 1}),
        (["--model", "m"], {COLORS: 16}),
        (["--model", "m", "--model", "n"], {COLORS: 16, PARIS: 1}),
        (["--model", "other"], {}),
        (["--load", "solo"], {COLORS: 4}),
        (["--older-than", "1d"], {PARIS: 1}),
        (["--older-than", "200m"], {COLORS: 4, PARIS: 1}),
        (["--older-than", "1h", "--load", "burst", "--model", "m"], {COLORS: 12}),
        (["--test", "tests/test_a.py::test_color[1]"], {COLORS: 16}),
        (["--test", "tests/test_a.py::test_color"], {COLORS: 16}),
        (["--test", "tests/test_a.py::test_colo"], {}),
        (["--test", "tests/test_a.py"], {COLORS: 16}),
        (["--test", "tests/"], {COLORS: 16, PARIS: 1}),
        (["--test", "test"], {}),
    ],
)
def test_ls_and_clear_mean_the_same_samples(
    store: Path, cache: Run, filters: list[str], expected: dict[str, int]
) -> None:
    listed = {entry["request"]: entry["samples"] for entry in json.loads(cache("ls", "--json", *filters)[1])}
    assert listed == expected
    if not filters:
        return
    before = kept(store)
    count = sum(expected.values())
    amount = f"{count} sample{'s' * (count != 1)} of {len(expected)} request{'s' * (len(expected) != 1)}"
    assert cache("clear", "--dry-run", *filters)[1].startswith(f"would remove {amount}, ")
    assert kept(store) == before

    code, text, _ = cache("clear", *filters)

    assert (code, text.startswith(f"removed {amount}, ")) == (0, True)
    left = kept(store)
    assert left.items() <= before.items()
    assert sum(parse_key(key) is not None for key in left) == 17 - count
    # What is kept of a request goes with its last sample, and not before.
    assert {key for key in left if parse_key(key) is None} == {
        key.request for text in left if (key := parse_key(text)) is not None
    }


def test_several_equal_requests_of_a_run_are_one_run(store: Path, cache: Run) -> None:
    filled(store, {sample_key(PARIS, "burst", 0, 1, 0): said("Paris?")})
    (entry,) = json.loads(cache("ls", "--json", "--model", "n")[1])
    assert (entry["samples"], entry["runs"]) == (2, [{"load": "burst", "attempt": 0, "runs": 1}])


def test_ls_says_that_there_is_nothing(store: Path, cache: Run) -> None:
    assert cache("ls", "--model", "x") == (0, "no sample in the store is of this kind\n", "")
    cache("clear", "--all")
    assert cache("ls") == (0, "no sample in the store\n", "")
    assert kept(store) == {}


def test_show(store: Path, cache: Run) -> None:
    filled(store, {sample_key(COLORS, "solo", 0, 1, 2): Sample.of(200, [], b"<html>", time.time(), 0.1)})
    assert cache("show", COLORS[:5]) == (
        0,
        (
            f"request  {COLORS}\n"
            "API      chat completions\n"
            "model    m\n"
            "asked by tests/test_a.py::test_color[1]\n"
            "         tests/test_a.py::test_color[2]\n"
            "\n"
            "{\n"
            '  "api": "chat completions",\n'
            '  "body": {\n'
            '    "messages": [\n'
            "      {\n"
            '        "content": "A colour?",\n'
            '        "role": "user"\n'
            "      }\n"
            "    ],\n"
            '    "model": "m"\n'
            "  },\n"
            '  "method": "POST",\n'
            '  "schema": 2,\n'
            '  "url": "http://host/v1/chat/completions"\n'
            "}\n"
            "\n"
            "under burst: 2 unique of 9 runs\n"
            "  they part at the first word\n"
            "  ├─ 7 × “red”  (runs 0, 1, 2, 3, 4, 5, 6)\n"
            "  └─ 2 × “blue”  (runs 7, 8)\n"
            "\n"
            "under burst, attempt 2: 1 unique of 3 runs\n"
            "  3 × “red”\n"
            "\n"
            "under solo: 1 unique of 4 runs\n"
            "  4 × “red”\n"
            "\n"
            "under solo, request 2 of a run: 0 unique of 0 runs\n"
            "  1 × no answer: not JSON but of no content type: '<html>'  (run 2)\n"
        ),
        "",
    )
    told = json.loads(cache("show", COLORS, "--json", "--load", "burst")[1])
    assert told["canonical"]["body"]["messages"][0]["content"] == "A colour?"
    assert [[(group["count"], group["output"]) for group in found["groups"]] for found in told["experiments"]] == [
        [(7, "red"), (2, "blue")],
        [(3, "red")],
    ]


def test_show_one_run_as_it_was_received(store: Path, cache: Run) -> None:
    code, text, _ = cache("show", COLORS, "--run", "8")
    first, header, empty, body = text.splitlines()
    assert (code, first.partition(", 20")[0]) == (0, "run 8 under burst: HTTP 200")
    assert first.endswith(", took 0.500 s")
    assert (header, empty) == ("content-type: application/json", "")
    assert json.loads(body)["choices"][0]["message"]["content"] == "blue"
    (raw,) = json.loads(cache("show", COLORS, "--run", "8", "--json")[1])
    assert raw["key"] == sample_key(COLORS, "burst", 0, 0, 8)
    assert json.loads(raw["body"]) == json.loads(body)


def test_show_wants_one_request(store: Path, cache: Run) -> None:
    wanted = "llm-determinism cache show: "
    other = COLORS[:3] + "0" * 61
    filled(store, keyed(other, ["x"]))
    assert cache("show", COLORS[:3]) == (
        2,
        "",
        f"{wanted}2 requests begin with {COLORS[:3]}; write more of one ({other[:7]}, {COLORS[:7]})\n",
    )
    assert cache("show", "ffff")[2] == (
        f"{wanted}no request in .pytest_llm_determinism begins with ffff; ls lists them\n"
    )
    assert cache("show", "request:")[2] == f"{wanted}'request:' is no key; write one as ls lists it\n"
    assert cache("show", COLORS, "--run", "99")[0] == 2


def test_a_store_of_an_older_version_has_no_requests(tmp_path: Path, cache: Run) -> None:
    filled(tmp_path, keyed(COLORS, ["red", "red"]))
    arguments = ("--cache-dir", tmp_path)
    assert cache("ls", *arguments)[1].splitlines()[1].split()[1:3] == ["–", "–"]
    assert "models   unknown (2)\n" in cache("info", *arguments)[1]
    assert cache("verify", *arguments)[0] == 0
    lines = cache("show", COLORS, *arguments)[1].splitlines()
    assert lines[1] == "nothing is kept of the request but its answers: a version that kept no more asked it"
    assert lines[3] == "under burst: 1 unique of 2 runs, as received, since it is not known how to read them"


HOSTILE = "\x1b[31m\u202e<b>\r\n\ud800 " + "long " * 2000


def test_nothing_of_what_others_wrote_steers_a_terminal(tmp_path: Path, cache: Run) -> None:
    text = HOSTILE.replace("\ud800", "")
    request = StoredRequest.of(HOSTILE[:99], HOSTILE, {"url": HOSTILE, "body": {"messages": HOSTILE}}, HOSTILE)
    filled(tmp_path, keyed(COLORS, [text, f"{text}!"]), {COLORS: request})
    filled(tmp_path, keyed(PARIS, [text, f"{text}!"]), {PARIS: asked(text[:99], prompt=HOSTILE)})
    filled(tmp_path, {sample_key(PARIS, "solo", 0, 0, 0): Sample.of(200, [("a", text)], text.encode(), 0, 0)})
    sql(tmp_path, "UPDATE Cache SET value = ? WHERE key LIKE '%:1'", json.dumps({"format": text}))
    for arguments in (["info"], ["ls"], ["show", COLORS], ["show", PARIS], ["show", PARIS, "--run", "0"], ["verify"]):
        for more in ([], ["--json"]) if arguments[0] != "verify" else ([],):
            _, printed, errors = cache(*arguments, *more, "--cache-dir", tmp_path)
            assert all(line.isprintable() for line in (*printed.split("\n"), *errors.split("\n"))), arguments
            assert printed


# Stores that are not there, or cannot be read


COMMANDS = (["info"], ["ls"], ["show", "a"], ["clear", "--all"], ["verify"], ["export", "file.gz"])


def test_a_store_that_is_not_there_is_not_made(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, cache: Run) -> None:
    monkeypatch.chdir(tmp_path)
    for name in ("nowhere", "file", "empty"):
        if name == "file":
            Path(name).write_text("")
        if name == "empty":
            Path(name).mkdir()
        for command in COMMANDS:
            code, text, errors = cache(*command, "--cache-dir", name)
            if command == ["info"]:
                assert (code, errors) == (0, "")
                assert text == f"there is no store in {name}; the first session that keeps an answer makes it\n"
            else:
                assert (code, text) == (2, "")
                assert errors == (
                    f"llm-determinism cache {command[0]}: there is no store in {name}; name its directory with"
                    " --cache-dir\n"
                )
    assert json.loads(cache("info", "--json")[1]) == {"directory": ".pytest_llm_determinism", "exists": False}
    assert sorted(path.name for path in tmp_path.rglob("*")) == ["empty", "file"]


@pytest.mark.parametrize(
    "content", [b"this is no database, whatever its name says " * 200, b"SQLite format 3\0" + bytes(4096)]
)
def test_a_damaged_database_is_said_and_left_as_it_is(store: Path, cache: Run, content: bytes) -> None:
    (store / "cache.db").write_bytes(content)
    for command in COMMANDS:
        code, text, errors = cache(*command)
        assert (code, text, errors.count("\n")) == (1 if command == ["verify"] else 2, "", 1)
        assert errors.startswith(f"llm-determinism cache {command[0]}: the store in .pytest_llm_determinism ")
    assert (store / "cache.db").read_bytes() == content
    assert not list(store.glob("damaged-*"))


def test_damaged_pages_are_said(store: Path, cache: Run) -> None:
    filled(store, {sample_key(COLORS, "crowd", 0, 0, run): said("x" * 500) for run in range(500)})
    content = (store / "cache.db").read_bytes()
    (store / "cache.db").write_bytes(content[:20480] + bytes(len(content) - 20480))
    for command in (["info"], ["ls"], ["export", "file.gz"], ["verify"]):
        code, _, errors = cache(*command)
        assert (code, "damaged" in errors) == (1 if command == ["verify"] else 2, True), command
    assert not Path("file.gz").exists()


def test_an_empty_database_is_an_empty_store(tmp_path: Path, cache: Run) -> None:
    (tmp_path / "cache.db").touch()
    assert "samples  0 of 0 requests, 0 B\n" in cache("info", "--cache-dir", tmp_path)[1]
    assert cache("verify", "--cache-dir", tmp_path)[0] == 0
    assert cache("export", tmp_path / "file.gz", "--cache-dir", tmp_path)[0] == 2


def test_looking_changes_nothing(store: Path, cache: Run) -> None:
    def state() -> dict[str, bytes]:
        return {str(path): path.read_bytes() for path in store.rglob("*") if path.is_file()}

    before = state()
    for command in (
        ["info"],
        ["ls"],
        ["show", COLORS],
        ["verify"],
        ["export", "f.gz"],
        ["clear", "--all", "--dry-run"],
    ):
        assert cache(*command)[0] == 0
    assert state() == before


def test_a_session_may_write_meanwhile(store: Path, cache: Run) -> None:
    running = SampleStore(store)
    running.write(sample_key(PARIS, "burst", 0, 0, 1), said("Paris."), lambda: asked("tests/test_c.py::test_it"))
    assert "samples  18 of 2 requests" in cache("info")[1]
    assert cache("clear", "--test", "tests/test_c.py")[1].startswith("removed 2 samples of 1 request, ")
    running.write(sample_key(PARIS, "burst", 0, 0, 2), said("Paris."))
    assert "samples  17 of 2 requests" in cache("info")[1]
    running.close()


def test_what_was_written_anew_since_it_was_listed_is_not_removed(store: Path) -> None:
    with Contents(store) as contents:
        rows = [row for row in contents.rows() if isinstance(row.key, SampleKey)]
        running = SampleStore(store)
        running.write(sample_key(PARIS, "burst", 0, 0, 0), said("Paris!"))
        running.close()
        removed = list(contents.remove(rows))
    assert (len(rows), len(removed)) == (17, 16)
    assert sample_key(PARIS, "burst", 0, 0, 0) in kept(store)


@pytest.mark.skipif(not hasattr(os, "geteuid") or os.geteuid() == 0, reason="everything is writable for this user")
def test_a_store_that_may_only_be_read(store: Path, cache: Run) -> None:
    store.chmod(0o500)
    (store / "cache.db").chmod(0o400)
    try:
        assert cache("ls")[0] == 0
        assert cache("clear", "--all")[0] == 2
    finally:
        store.chmod(0o700)


# Clearing


def test_clear_without_saying_which_is_refused(store: Path, cache: Run) -> None:
    before = kept(store)
    for arguments in ([], ["--dry-run"], ["--all", "--model", "m"]):
        code, text, errors = cache("clear", *arguments)
        assert (code, text, errors.count("\n")) == (2, "", 1)
    assert kept(store) == before


def test_clear_says_when_other_tests_lose_samples_too(store: Path, cache: Run) -> None:
    assert cache("clear", "--test", "tests/test_a.py::test_color[1]")[1].splitlines()[1] == (
        "1 of these requests asked by other tests, too: tests/test_a.py::test_color[2]"
    )


def test_clear_all_removes_what_is_damaged_and_the_files_of_large_samples(store: Path, cache: Run) -> None:
    filled(store, {sample_key(COLORS, "crowd", 0, 0, 0): said("x" * 100_000)})
    sql(store, "UPDATE Cache SET mode = 4 WHERE key = ?", sample_key(PARIS, "burst", 0, 0, 0))
    assert len(list(store.glob("??/??/*.val"))) == 1
    code, text, _ = cache("clear", "--all")
    assert code == 0
    assert text.startswith("removed 17 samples of 1 request, ")
    assert text.endswith(", and 1 damaged row\n")
    assert sorted(path.name for path in store.iterdir()) == [".gitignore", "CACHEDIR.TAG", "cache.db"]
    with closing(sqlite3.connect(store / "cache.db")) as connection:
        assert connection.execute("SELECT count(*) FROM Cache").fetchone() == (0,)


# A store that a stranger wrote


class Bomb:
    """Makes a file when it is unpickled."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[Callable[..., object], tuple[object, ...]]:
        return (Path.touch, (self.path,))


def test_nothing_in_a_store_is_executed_or_read_from_elsewhere(store: Path, cache: Run, tmp_path: Path) -> None:
    bomb = pickle.dumps(Bomb(tmp_path / "ran"))
    outside = tmp_path / "outside"
    outside.write_text(said("secret").encode())
    rows: list[tuple[str, object]] = [
        ("mode = 4, value = ?", bomb),
        ("raw = 0, key = ?", bomb),
        ("mode = 3, value = NULL, filename = ?", "../outside"),
        ("mode = 3, value = NULL, filename = ?", str(outside)),
        ("mode = 3, value = NULL, filename = ?", "00/00/" + "0" * 28 + ".val"),
        ("mode = 3, value = NULL, filename = ?", "00/00/" + "1" * 28 + ".val"),
        ("mode = 3, value = NULL, filename = ?", "00/00/" + "2" * 28 + ".val"),
        ("mode = 99, value = ?", "x"),
        ("expire_time = ?", 1e12),
        ("value = CAST(? AS TEXT)", b"\xff\xfe"),
        ("key = ?", f"{COLORS}:burst:0:0:01"),
        ("key = ?", "what is this"),
        ("value = ?", "{}"),
    ]
    for number, (change, value) in enumerate(rows):
        key = sample_key(PARIS, "crowd", 0, 0, number)
        filled(store, {key: said("x")})
        sql(store, f"UPDATE Cache SET {change} WHERE key = ?", value, key)
    sql(store, "UPDATE Cache SET value = '{\"format\": 1}' WHERE key = ?", request_key(PARIS))
    (store / "00/00").mkdir(parents=True)
    (store / f"00/00/{'1' * 28}.val").symlink_to(outside)
    os.mkfifo(store / f"00/00/{'2' * 28}.val")
    (store / f"00/00/{'3' * 28}.val").write_text("left over")
    os.utime(store / f"00/00/{'3' * 28}.val", (0, 0))
    (store / f"00/00/{'4' * 28}.val").write_text("a session is about to name it")
    (store / "notes.txt").write_text("")
    sql(store, "UPDATE Cache SET store_time = ? WHERE key = ?", b"\xff", sample_key(PARIS, "burst", 0, 0, 0))

    assert "samples   17 of 2 requests" in cache("info")[1]
    assert [entry["samples"] for entry in json.loads(cache("ls", "--json")[1])] == [16, 1]
    for arguments in (["show", PARIS], ["show", PARIS, "--run", "0"], ["export", "file.gz"]):
        code, text, _ = cache(*arguments)
        assert (code, "secret" in text) == (0, False)
    assert cache("import", "file.gz", "--cache-dir", "elsewhere")[1].startswith(
        "imported 17 of 17 samples of 2 requests"
    )
    assert len(kept(Path("elsewhere"))) == 18

    code, text, _ = cache("verify")

    lines = text.splitlines()
    assert code == 1
    assert lines[0].endswith("; what was asked is kept of 1 request")
    assert {line.partition(" (“")[0] for line in lines[1:-1]} == {
        "rows that only a stranger can have written: 8",
        "damaged samples: 2",
        "keys of no known form: 2",
        "values whose file is missing: 1",
        "damaged requests: 1",
        "files of values that no row names: 1",
        "foreign files: 2",
    }
    assert lines[-1] == "sessions do not use damaged rows and ask again; --repair removes them"

    code, text, _ = cache("verify", "--repair")

    assert (code, text.splitlines()[-1]) == (1, "removed 12 rows and 1 file")
    assert {line.partition(" (“")[0] for line in cache("verify")[1].splitlines()[1:]} == {
        "keys of no known form: 2",
        "foreign files: 2",
    }
    assert len([key for key in kept(store) if parse_key(key)]) == 17
    assert outside.exists()
    assert not (tmp_path / "ran").exists()


def test_the_bomb_of_these_tests_does_go_off(tmp_path: Path) -> None:
    pickle.loads(pickle.dumps(Bomb(tmp_path / "ran")))
    assert (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    "statement",
    [
        "CREATE TRIGGER later AFTER DELETE ON Cache BEGIN DELETE FROM Cache; END",
        "CREATE TABLE more (key, value)",
        "INSERT INTO Settings VALUES ('sqlite_writable_schema', 1)",
    ],
)
def test_a_database_of_a_foreign_form_is_refused(store: Path, cache: Run, statement: str) -> None:
    sql(store, statement)
    for command in COMMANDS:
        code, text, errors = cache(*command)
        assert (code, text) == (1 if command == ["verify"] else 2, "")
        assert "an unknown" in errors


# Export and import


def test_what_was_exported_is_imported_elsewhere(store: Path, cache: Run) -> None:
    code, text, _ = cache("export", "file.gz")
    size = Path("file.gz").stat().st_size
    assert (code, text) == (0, f"17 samples of 2 requests, 5.2 kB written to file.gz ({size} B)\n")
    assert cache("import", "file.gz", "--cache-dir", "other") == (
        0,
        "imported 17 of 17 samples of 2 requests into other\n",
        "",
    )
    assert kept(Path("other")) == kept(store)
    assert cache("import", "file.gz") == (
        0,
        ("imported 0 of 17 samples of 2 requests into .pytest_llm_determinism; 17 were here already and not changed\n"),
        "",
    )


def test_the_same_samples_make_the_same_file_whatever_their_order(store: Path, cache: Run) -> None:
    everything = kept(store)
    other = SampleStore(Path("other"))
    for key, value in reversed(everything.items()):
        if isinstance(value, Sample):
            request = everything[key.partition(":")[0]]
            other.write(key, value, lambda request=request: request)
    other.close()
    cache("export", "one.gz")
    cache("export", "other.gz", "--cache-dir", "other")
    assert Path("one.gz").read_bytes() == Path("other.gz").read_bytes()
    assert Path("one.gz").read_bytes()[4:8] == bytes(4)  # where gzip has the time


def test_export_takes_what_is_meant(store: Path, cache: Run) -> None:
    cache("export", "file.gz", "--load", "solo", "--older-than", "1h")
    cache("import", "file.gz", "--cache-dir", "other")
    assert kept(Path("other")).keys() == {COLORS, *(sample_key(COLORS, "solo", 0, 0, run) for run in range(4))}
    assert cache("export", "none.gz", "--model", "x")[0] == 2
    assert not Path("none.gz").exists()


def test_export_that_cannot_be_written_leaves_nothing(store: Path, cache: Run) -> None:
    assert cache("export", "nowhere/file.gz") == (
        2,
        "",
        "llm-determinism cache export: nowhere/file.gz cannot be written: No such file or directory\n",
    )
    assert sorted(path.name for path in Path().iterdir()) == [".pytest_llm_determinism"]


def test_what_is_too_long_for_a_line_is_left_out_and_said(
    store: Path, cache: Run, monkeypatch: pytest.MonkeyPatch
) -> None:
    filled(store, keyed(PARIS, ["x" * 3000], load="solo"))
    monkeypatch.setattr(portable, "LONGEST_LINE", 2000)
    assert cache("export", "file.gz")[1].splitlines()[1] == "1 row of more than 2.0 kB left out"
    assert cache("import", "file.gz", "--cache-dir", "other")[1].startswith("imported 17 of 17 samples")


def test_import_never_replaces_a_sample_that_can_be_used(store: Path, cache: Run) -> None:
    cache("export", "file.gz")
    key, broken = (sample_key(COLORS, "burst", 0, 0, run) for run in (0, 1))
    mine = said("mine", age=9 * DAY)
    running = SampleStore(store)
    running.write(key, mine)
    running.close()
    sql(store, "UPDATE Cache SET value = 'damaged' WHERE key = ?", broken)
    assert cache("import", "file.gz")[1].startswith("imported 1 of 17 samples")
    assert kept(store)[key] == mine
    assert isinstance(kept(store)[broken], Sample)


def test_import_adds_tests_to_what_is_known_of_a_request(store: Path, cache: Run) -> None:
    cache("export", "file.gz")
    filled(Path("other"), keyed(COLORS, ["red"]), {COLORS: asked("mine", prompt="Mine?")})
    cache("import", "file.gz", "--cache-dir", "other")
    known = kept(Path("other"))[COLORS]
    assert isinstance(known, StoredRequest)
    assert known.tests == ("mine", "tests/test_a.py::test_color[1]", "tests/test_a.py::test_color[2]")
    assert known.canonical == asked(prompt="Mine?").canonical


def test_headers_that_are_never_kept_are_not_imported(tmp_path: Path, cache: Run) -> None:
    sample = said("x")
    sneaky = Sample(
        200, (*sample.headers, ("Set-Cookie", "a=b"), ("content-encoding", "gzip")), sample.body, sample.at, 1
    )
    packed(tmp_path / "file.gz", row(sample_key(COLORS, "solo", 0, 0, 0), sneaky.encode()))
    assert cache("import", tmp_path / "file.gz", "--cache-dir", tmp_path / "store")[0] == 0
    (only,) = kept(tmp_path / "store").values()
    assert isinstance(only, Sample)
    assert only.headers == sample.headers


HEAD = {"file": "pytest-llm-determinism samples", "version": 1}
FIRST, SECOND = (sample_key(COLORS, "burst", 0, 0, run) for run in (0, 1))


def row(key: object, value: object) -> dict[str, object]:
    return {"key": key, "value": value}


def packed(path: Path, *lines: object, head: object = HEAD, end: object = None) -> bytes:
    """A file as export writes it; the last line counts the others unless another is given."""
    all_lines = [head, *lines, {"rows": len(lines)} if end is None else end]
    content = gzip.compress(b"".join(json.dumps(line).encode() + b"\n" for line in all_lines))
    path.write_bytes(content)
    return content


GOOD = row(FIRST, said("red").encode())


@pytest.mark.parametrize(
    ("lines", "keywords", "wrong"),
    [
        ([], {"head": {"file": "other"}}, "it is no export of llm-determinism cache"),
        ([], {"head": [1]}, "it is no export of llm-determinism cache"),
        ([], {"head": {**HEAD, "version": 2}}, "it has version 2, and this can read 1; upgrade the package"),
        ([GOOD], {"end": {"rows": 2}}, "line 3: 1 rows, not the 2 that it should have"),
        ([GOOD], {"end": {"rows": "\x1b"}}, "line 3: 1 rows, not the '\\\\x1b' that it should have"),
        ([GOOD, GOOD], {}, "line 3: a row that is not in order, or there twice"),
        ([row(SECOND, said("x").encode()), GOOD], {}, "line 3: a row that is not in order, or there twice"),
        ([GOOD, row(request_key(COLORS), asked().encode())], {}, "line 3: a row that is not in order, or there twice"),
        ([GOOD, {"rows": 1}], {}, "line 3: more lines after the last"),
        ([[]], {}, "line 2: no row"),
        ([{**GOOD, "more": 1}], {}, "line 2: no row"),
        ([row(3, "")], {}, "line 2: no row"),
        ([row("../../etc/passwd", "x")], {}, "line 2: '../../etc/passwd' is no key"),
        ([row(f"{FIRST}\n", "x")], {}, f"line 2: '{FIRST}\\\\n' is no key"),
        ([row(FIRST, {"format": 1})], {}, "line 2: not text"),
        ([row(FIRST, "[" * 100_000)], {}, "line 2: damaged: RecursionError"),
        (
            [row(FIRST, said("x").encode().replace('"status": 200', '"status": 500'))],
            {},
            "line 2: status 500 is no sample",
        ),
        ([row(FIRST, said("x", age=-HOUR).encode())], {}, "line 2: a sample that arrives in the future"),
        ([row(request_key(COLORS), "{}")], {}, "line 2: damaged: KeyError('format')"),
        (
            [row(request_key(COLORS), json.dumps({"format": 1, "api": 1, "model": 1, "canonical": 1, "tests": 1}))],
            {},
            "line 2",
        ),
    ],
)
def test_of_a_file_of_another_form_nothing_is_imported(
    tmp_path: Path, cache: Run, lines: list[object], keywords: dict[str, Any], wrong: str
) -> None:
    path = tmp_path / "file.gz"
    packed(path, *lines, **keywords)
    code, text, errors = cache("import", path, "--cache-dir", tmp_path / "store")
    assert (code, text) == (2, "")
    assert errors.startswith(f"llm-determinism cache import: {path}: {wrong}")
    assert errors.endswith("; nothing was imported\n")
    assert not (tmp_path / "store").exists()


def test_of_a_damaged_file_nothing_is_imported(tmp_path: Path, cache: Run) -> None:
    path = tmp_path / "file.gz"
    content = packed(path, GOOD, row(SECOND, said("x" * 300).encode()))
    broken = [content[:length] for length in range(0, len(content), 7)]
    broken += [content + b"more", content[:-8] + bytes(8), b"no gzip", gzip.compress(b"\xff\xfe\n")]
    broken += [bytes([*content[:at], content[at] ^ 255, *content[at + 1 :]]) for at in range(20, len(content), 11)]
    for damaged in broken:
        path.write_bytes(damaged)
        assert cache("import", path, "--cache-dir", tmp_path / "store")[0] == 2
    assert not (tmp_path / "store").exists()
    path.write_bytes(content)
    assert cache("import", path, "--cache-dir", tmp_path / "store")[0] == 0


@pytest.mark.parametrize(
    ("limit", "value", "wrong"),
    [
        ("LONGEST_LINE", 400, "line 2 is longer than 400 bytes"),
        ("MOST_BYTES", 500, "it has more than 500 bytes"),
        ("MOST_ROWS", 1, "it has more than 1 rows"),
    ],
)
def test_a_file_beyond_the_limits_is_refused(
    tmp_path: Path, cache: Run, monkeypatch: pytest.MonkeyPatch, limit: str, value: int, wrong: str
) -> None:
    packed(tmp_path / "file.gz", GOOD, row(SECOND, said("x").encode()))
    monkeypatch.setattr(portable, limit, value)
    code, _, errors = cache("import", tmp_path / "file.gz", "--cache-dir", tmp_path / "store")
    assert (code, wrong in errors) == (2, True)


def test_a_bomb_is_not_unpacked(tmp_path: Path, cache: Run) -> None:
    with gzip.open(tmp_path / "file.gz", "wb") as file:
        file.write(json.dumps(HEAD).encode() + b"\n")
        for _ in range(64):
            file.write(bytes(2**20))
    code, _, errors = cache("import", tmp_path / "file.gz", "--cache-dir", tmp_path / "store")
    assert (code, "line 2 is longer than 16777216 bytes" in errors) == (2, True)


def test_what_is_no_file_is_not_imported(tmp_path: Path, cache: Run) -> None:
    os.mkfifo(tmp_path / "pipe")
    for name in ("pipe", "nowhere", "."):
        code, text, errors = cache("import", tmp_path / name, "--cache-dir", tmp_path / "store")
        assert (code, text, "cannot be read" in errors) == (2, "", True)


def test_a_place_that_cannot_be_written_to_is_said(store: Path, cache: Run) -> None:
    cache("export", "file.gz")
    Path("file").write_text("")
    code, text, errors = cache("import", "file.gz", "--cache-dir", "file/store")
    assert (code, text) == (2, "")
    assert errors.startswith("llm-determinism cache import: the store in file/store cannot be written to: ")


# What is kept of a request

NAMES = st.text(max_size=20)


@given(NAMES, st.none() | NAMES, st.none() | st.dictionaries(NAMES, NAMES | st.integers() | st.none()), st.lists(NAMES))
def test_a_request_is_read_as_it_was_written(
    api: str, model: str | None, canonical: dict[str, Any] | None, tests: list[str]
) -> None:
    request = StoredRequest(api, model, canonical, tuple(tests[:MOST_TESTS]))
    assert StoredRequest.decode(request.encode()) == request


def test_the_latest_tests_of_a_request_are_named() -> None:
    request = asked("test-0")
    for number in range(1, 150):
        request = request.joined(asked(f"test-{number}"))
    assert request.tests == tuple(f"test-{number}" for number in range(50, 150))
    assert request.joined(asked("test-60")) == request


def test_a_request_that_is_too_long_is_kept_without_its_text() -> None:
    request = StoredRequest.of("a", "m", {"body": {"prompt": "x" * 2_000_000}}, "t")
    assert request == StoredRequest("a", "m", None, ("t",))


@given(st.sampled_from(["solo", "burst", "crowd"]), *[st.integers(0, 999_999_999)] * 3)
def test_a_key_is_told_by_its_parts(load: str, attempt: int, occurrence: int, run: int) -> None:
    key = SampleKey(COLORS, load, attempt, occurrence, run)
    assert parse_key(str(key)) == key


@pytest.mark.parametrize(
    "text",
    [
        "",
        "a",
        f"request:{COLORS}",
        FIRST + " ",
        FIRST.upper(),
        FIRST.replace("burst", "rush"),
        FIRST + "٣",
        "x" + FIRST,
    ],
)
def test_any_other_text_is_no_key(text: str) -> None:
    assert parse_key(text) is None


def test_no_credential_is_kept_of_a_request() -> None:
    body = {
        "model": "m",
        "messages": [{"role": "user", "content": "my key is sk-live-123456789, my password is swordfish"}],
        "api_key": "secret",
        "tools": [
            {
                "type": "mcp",
                "server_url": "https://user:secret@mcp.example/sse?token=secret&room=1",
                "authorization": "secret",
                "headers": {"X-Anything": "secret"},
            },
            {
                "type": "function",
                "parameters": {"properties": {"password": {"type": "string"}, "code": {"type": "string"}}},
            },
        ],
        "mcp_servers": [{"url": "https://[bad/?key=secret", "authorization_token": "secret"}],
        "picture": {"url": "data:image/png;base64,AAAA"},
    }
    canonical = json.dumps({"schema": 2, "url": "http://host/v1", "body": body})
    found = without_credentials(canonical, ["sk-live-123456789"])
    assert found is not None
    assert "secret" not in json.dumps(found).replace("[secret]", "")
    assert found["body"]["messages"][0]["content"] == "my key is [secret], my password is swordfish"
    assert found["body"]["tools"][0] == {
        "type": "mcp",
        "server_url": "https://mcp.example/sse?room=1&token=",
        "authorization": "[secret]",
        "headers": {"X-Anything": "[secret]"},
    }
    assert found["body"]["tools"][1] == body["tools"][1]  # type: ignore[index]
    assert found["body"]["picture"] == body["picture"]


def test_a_request_is_written_with_its_first_sample_and_joined_by_the_next_test(tmp_path: Path) -> None:
    store = SampleStore(tmp_path)
    threads = []

    def make(test: str) -> StoredRequest:
        threads.append(threading.current_thread().name)
        return asked(test)

    store.write(FIRST, said("red"), lambda: make("one"))
    store.write(SECOND, said("red"))
    store.write(sample_key(COLORS, "solo", 0, 0, 0), said("red"), lambda: make("two"))
    store.close()
    known = kept(tmp_path)[COLORS]
    assert isinstance(known, StoredRequest)
    assert known.tests == ("one", "two")
    assert {name.rpartition("_")[0] for name in threads} == {"determinism-store"}


@pytest.mark.parametrize("damage", ["mode = 4, value = x'80'", "value = 'x'", "value = CAST(x'ff' AS TEXT)"])
def test_a_damaged_request_costs_no_sample(tmp_path: Path, damage: str) -> None:
    filled(tmp_path, {FIRST: said("red")}, {COLORS: asked("one")})
    sql(tmp_path, f"UPDATE Cache SET {damage} WHERE key = ?", request_key(COLORS))
    store = SampleStore(tmp_path)
    store.write(SECOND, said("red"), lambda: asked("two"))
    store.close()
    assert store.notes == []
    assert kept(tmp_path).keys() == {COLORS, FIRST, SECOND}
