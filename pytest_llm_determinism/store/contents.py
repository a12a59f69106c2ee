"""What a store holds, read without changing it: for people, not for sessions.

As in a session its bytes are not trusted: text alone is read, never pickles, no file outside the directory. A store is
never made by looking at it, and sessions may go on writing to it meanwhile.
"""

from __future__ import annotations

import os
import sqlite3
import time
from collections.abc import Iterable, Iterator
from contextlib import closing, contextmanager
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from types import TracebackType

from diskcache.core import DBNAME, MODE_BINARY, MODE_TEXT

from pytest_llm_determinism.store.disk import FILE_NAME, SafeDisk, UntrustedRow, check_form
from pytest_llm_determinism.store.request import StoredRequest, parse_request_key, request_key
from pytest_llm_determinism.store.sample import Sample, SampleKey, parse_key

STRANGE = "rows that only a stranger can have written"
MISSING = "values whose file is missing"
UNREADABLE = "values whose file cannot be read"
UNKNOWN_KEY = "keys of no known form"
NO_SAMPLE = "damaged samples"
NO_REQUEST = "damaged requests"
LEFT_OVER = "files of values that no row names"
FOREIGN = "foreign files"

REPAIRABLE = frozenset((STRANGE, MISSING, NO_SAMPLE, NO_REQUEST))
"""What no session can use, whichever version it is of."""

_OURS = frozenset((DBNAME, f"{DBNAME}-wal", ".gitignore", "CACHEDIR.TAG"))
_ASIDE = "damaged-"

_PAGE = 100
"""Rows read at once."""

SETTLED = 3600.0
"""Seconds after which a file that no row names is left over: a session names the one that it writes at once."""


class StoreError(ValueError):
    """A store that cannot be read; the message says where it is, why, and what to do."""


@dataclass(frozen=True, slots=True)
class Row:
    """One row of a store.

    Attributes:
        key: a sample's, or the request that `value` tells of; None for neither.
        value: None where there is a problem.
        size: bytes of the value.
        problem: what is wrong, one of the kinds above; empty if nothing is.
        detail: what is wrong in a few words. A stranger may have written them.
        place: finds the row again as long as it is not written anew.
        file: of its value, if that is in one of its own.
    """

    key: SampleKey | str | None
    value: Sample | StoredRequest | None
    size: int
    problem: str
    detail: str
    place: tuple[int, object]
    file: str | None


class Contents:
    """An open store; a context manager.

    Raises:
        FileNotFoundError: there is none.
        StoreError: it cannot be read.
    """

    def __init__(self, directory: Path) -> None:
        self.directory = directory
        self._disk = SafeDisk(str(directory))
        try:
            if not (directory / DBNAME).exists():
                raise FileNotFoundError(directory)
            self._connection, self._has_rows = self._opened()
        except (sqlite3.Error, PermissionError) as error:
            raise self._unusable(error) from None

    def __enter__(self) -> Contents:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, traceback: TracebackType | None
    ) -> None:
        self._connection.close()

    def _opened(self) -> tuple[sqlite3.Connection, bool]:
        address = (self.directory / DBNAME).absolute().as_uri()
        # Opened for reading alone, SQLite leaves files of its own behind. Where it may not write at all, it has to be
        # told that nobody else does.
        ways = ["mode=rw"] if os.access(self.directory, os.W_OK) else ["mode=ro", "mode=ro&immutable=1"]
        for way in ways:
            connection = sqlite3.connect(f"{address}?{way}", uri=True, timeout=60, isolation_level=None)
            try:
                has_rows = check_form(connection)
            except BaseException as error:
                connection.close()
                if way == ways[-1] or not isinstance(error, sqlite3.OperationalError):
                    raise
                continue
            connection.execute("PRAGMA query_only = ON")
            # What is no text comes as bytes, and is refused where text is wanted.
            connection.text_factory = _text
            return connection, has_rows
        raise AssertionError

    def _unusable(self, error: Exception) -> StoreError:
        if isinstance(error, sqlite3.OperationalError) or not isinstance(error, sqlite3.Error):
            return StoreError(f"the store in {self.directory} cannot be read: {error}")
        return StoreError(
            f"the store in {self.directory} is damaged ({error}); the next session that uses it sets it aside and"
            " begins a new one"
        )

    # Rows

    def rows(self, keys: str = "") -> Iterator[Row]:
        """All rows, or those with keys that begin like this, in no order that means anything.

        Raises:
            StoreError: under way, where the database turns out to be damaged.
        """
        condition, bounds = (f" AND {_BEGINS}", _bounds(keys)) if keys else ("", ())
        query = f"SELECT {_COLUMNS} FROM Cache WHERE rowid > ?{condition} ORDER BY rowid LIMIT {_PAGE}"
        last = -(2**63)
        # Page by page: a statement that is not finished would hold the state of the database it began with.
        while self._has_rows:
            with self._telling():
                page = self._connection.execute(query, (last, *bounds)).fetchall()
                rows = list(filter(None, map(self._row, page)))
            yield from rows
            if not page:
                return
            last = page[-1][0]

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.Error as error:
            raise self._unusable(error) from None

    def keys(self, request: str) -> list[SampleKey]:
        """The keys of all samples of the requests that begin like this, in order."""
        found = []
        with self._telling():
            if self._has_rows:
                rows = self._connection.execute(f"SELECT key FROM Cache WHERE {_BEGINS}", _bounds(request))
                found = [key for (text,) in rows if (key := parse_key(text)) is not None]
        return sorted(found)

    def sample(self, key: SampleKey) -> Sample | None:
        """The sample under a key, if it can be used."""
        value = self._one(str(key))
        return value if isinstance(value, Sample) else None

    def request(self, request: str) -> StoredRequest | None:
        """What is kept of a request, if it is."""
        value = self._one(request_key(request))
        return value if isinstance(value, StoredRequest) else None

    def _one(self, key: str) -> Sample | StoredRequest | None:
        with self._telling():
            query = f"SELECT {_COLUMNS} FROM Cache WHERE raw = 1 AND key = ?"
            found = self._connection.execute(query, (key,)).fetchone() if self._has_rows else None
            row = None if found is None else self._row(found)
        return None if row is None else row.value

    def requests(self) -> Iterator[tuple[str, StoredRequest]]:
        """What is kept of each request, with its SHA-256."""
        for row in self.rows(request_key("")):
            if isinstance(row.key, str) and isinstance(row.value, StoredRequest):
                yield row.key, row.value

    def check(self) -> None:
        """Have SQLite check the database itself.

        Raises:
            StoreError: it is damaged.
        """
        with self._telling():
            (state,) = self._connection.execute("PRAGMA quick_check(1)").fetchone()
            if state != "ok":
                raise sqlite3.DatabaseError(" ".join(str(state).split()))

    def _row(self, found: tuple[object, ...]) -> Row | None:
        """A row as it is read; None if it is gone by now."""
        row = self._read(found)
        if row.problem not in (MISSING, UNREADABLE):
            return row
        # A session that writes a sample anew removes the file of the old one.
        again = self._connection.execute(f"SELECT {_COLUMNS} FROM Cache WHERE rowid = ?", (found[0],)).fetchone()
        return None if again is None else self._read(again)

    def _read(self, found: tuple[object, ...]) -> Row:
        rowid, key, raw, stored_at, expires, mode, name, content = found
        size, parsed, value = 0, None, None
        in_file = mode in (MODE_TEXT, MODE_BINARY) and isinstance(name, str) and FILE_NAME.fullmatch(name)
        file = str(name) if in_file else None
        try:
            if expires is not None:
                raise UntrustedRow("a value that expires")
            text = self._disk.get(key, raw)
            content = self._disk.fetch(mode, name, content, False)  # type: ignore[arg-type]  # it refuses others
            size = len(content if isinstance(content, bytes) else content.encode("utf-8", "surrogatepass"))
            parsed = parse_request_key(text) or parse_key(text)
            problem, detail = ("", "") if parsed is not None else (UNKNOWN_KEY, text)
        except UntrustedRow as error:
            problem, detail = STRANGE, str(error)
        except FileNotFoundError:
            problem, detail = MISSING, str(name)
        except OSError as error:
            problem, detail = UNREADABLE, str(error)
        except UnicodeDecodeError:
            problem, detail = NO_SAMPLE, "not text"
        if not problem:
            try:
                value = StoredRequest.decode(content) if isinstance(parsed, str) else Sample.decode(content)
            except ValueError as error:
                problem, detail = NO_REQUEST if isinstance(parsed, str) else NO_SAMPLE, str(error)
        return Row(parsed, value, size, problem, detail, (int(str(rowid)), stored_at), file)

    def remove(self, rows: Iterable[Row]) -> Iterator[Row]:
        """Remove these rows, each unless it was written anew since it was read; gives those that were removed.

        Raises:
            StoreError: the store cannot be written to.
        """
        try:
            with closing(sqlite3.connect(self.directory / DBNAME, timeout=60, isolation_level=None)) as connection:
                check_form(connection)
                waiting = iter(rows)
                while batch := list(islice(waiting, _PAGE)):
                    connection.execute("BEGIN IMMEDIATE")
                    with connection:
                        gone = [row for row in batch if _removed(connection, row)]
                    for row in gone:
                        if row.file is not None:
                            self._disk.remove(row.file)
                    yield from gone
        except sqlite3.Error as error:
            raise StoreError(f"the store in {self.directory} cannot be changed: {error}") from None

    # The directory

    def files(self) -> Iterator[tuple[str, int]]:
        """Names, relative to the directory, and bytes of all files in it, without what was set aside and what is there
        only while the store is open."""
        return (found for found in _files(self.directory, aside=False) if found[0] != f"{DBNAME}-shm")

    def set_aside(self) -> list[tuple[str, int]]:
        """Damaged databases that sessions set aside: names and bytes."""
        found = sorted(path for path in self.directory.glob(f"{_ASIDE}*") if path.is_dir() and not path.is_symlink())
        return [(path.name, sum(size for _, size in _files(path, aside=True))) for path in found]

    def out_of_place(self) -> Iterator[tuple[str, str]]:
        """Kind and name of each file that is not the store's, or no longer."""
        named = set()
        if self._has_rows:
            named = {name for (name,) in self._connection.execute("SELECT filename FROM Cache WHERE filename NOT NULL")}
        for name, _ in self.files():
            path = self.directory / name
            if FILE_NAME.fullmatch(name) and not path.is_symlink():
                if name not in named and _age(path) > SETTLED:
                    yield LEFT_OVER, name
            elif name not in _OURS:
                yield FOREIGN, name

    def remove_left_over(self, names: Iterable[str]) -> None:
        """Remove files that `out_of_place` called left over."""
        for name in names:
            self._disk.remove(name)


_COLUMNS = "rowid, key, raw, store_time, expire_time, mode, filename, value"
_BEGINS = "raw = 1 AND key >= ? AND key < ?"


def _bounds(keys: str) -> tuple[str, str]:
    """The first key that begins like this, and the first after them that does not."""
    return keys, keys[:-1] + chr(ord(keys[-1]) + 1)


def _text(content: bytes) -> str | bytes:
    try:
        return content.decode()
    except UnicodeDecodeError:
        return content


def _removed(connection: sqlite3.Connection, row: Row) -> bool:
    return connection.execute("DELETE FROM Cache WHERE rowid = ? AND store_time IS ?", row.place).rowcount > 0


def _files(directory: Path, aside: bool) -> Iterator[tuple[str, int]]:
    for folder, folders, names in os.walk(directory):
        if not aside and Path(folder) == directory:
            folders[:] = [name for name in folders if not name.startswith(_ASIDE)]
        folders.sort()
        # Links to directories are no files of the store either.
        linked = [name for name in folders if (Path(folder) / name).is_symlink()]
        for name in sorted((*names, *linked)):
            path = Path(folder) / name
            try:
                yield path.relative_to(directory).as_posix(), path.lstat().st_size
            except FileNotFoundError:
                continue  # a session removed it


def _age(path: Path) -> float:
    try:
        return time.time() - path.lstat().st_mtime
    except FileNotFoundError:
        return 0.0
