"""A diskcache that runs nothing it reads.

A cache directory is shared through CI caches, so its bytes are untrusted. diskcache unpickles rows whose mode says
so (CVE-2025-69872, without a fix release), follows any file name a row gives, and takes settings from the database.
`SafeDisk` knows text and bytes only; `check_database` refuses a database that is not exactly of the known form.
"""

from __future__ import annotations

import os
import re
import sqlite3
import stat
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import DBNAME, DEFAULT_SETTINGS, METADATA, MODE_BINARY, MODE_RAW, MODE_TEXT

FILE_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
_TRIGGERS = frozenset(
    f"Settings_{name}" for name in ("count_insert", "count_delete", "size_insert", "size_update", "size_delete")
)
# Each keeps one count up to date; one that did anything else could change samples as they are written.
_TRIGGER = re.compile(r"CREATE TRIGGER \w+ [\w ]+ BEGIN UPDATE Settings SET value = [^;]+ WHERE key = \"\w+\"; END")
_TABLES = frozenset(("Settings", "Cache"))
_COLUMNS = frozenset(
    (
        "key",
        "raw",
        "store_time",
        "expire_time",
        "access_time",
        "access_count",
        "tag",
        "size",
        "mode",
        "filename",
        "value",
    )
)
_SETTINGS = frozenset((*DEFAULT_SETTINGS, *METADATA))


class UntrustedRow(ValueError):
    """A row that only a stranger can have written."""


class SafeDisk(diskcache.Disk):  # type: ignore[misc]  # diskcache is untyped
    """Stores and reads text and bytes; refuses the pickle mode for keys and for values, and foreign file names."""

    def put(self, key: object) -> Any:
        if not isinstance(key, str):
            raise TypeError(f"a key must be text, not {type(key).__name__}")
        return super().put(key)

    def get(self, key: object, raw: object) -> Any:
        if not raw or not isinstance(key, str):
            raise UntrustedRow("a key that is not text")
        return key

    def store(self, value: object, read: bool, key: object = diskcache.UNKNOWN) -> Any:
        if read or not isinstance(value, (str, bytes)):
            raise TypeError(f"a value must be text or bytes, not {type(value).__name__}")
        return super().store(value, False, key=key)

    def fetch(self, mode: int, filename: str | None, value: object, read: bool) -> Any:
        if mode == MODE_RAW and isinstance(value, (str, bytes)):
            return value
        if mode in (MODE_TEXT, MODE_BINARY) and isinstance(filename, str):
            if not self._is_inside(filename):
                raise UntrustedRow("a value whose file lies outside the store")
            # Opening a pipe would wait for ever.
            if not stat.S_ISREG(os.stat(os.path.join(self._directory, filename)).st_mode):
                raise UntrustedRow("a value in what is no file")
            return super().fetch(mode, filename, None, False)
        raise UntrustedRow(f"a value of mode {mode!r}")

    def remove(self, file_path: str) -> None:
        if self._is_inside(file_path):
            super().remove(file_path)

    def _is_inside(self, filename: str) -> bool:
        root = Path(self._directory).resolve()
        known = FILE_NAME.fullmatch(Path(filename).as_posix()) is not None
        return known and (root / filename).resolve().is_relative_to(root)


def check_database(directory: Path) -> None:
    """Look at an existing database before diskcache does.

    Raises:
        sqlite3.DatabaseError: damaged, or with tables, triggers or settings that diskcache does not make.
    """
    path = directory / DBNAME
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        check_form(connection)


def check_form(connection: sqlite3.Connection) -> bool:
    """As `check_database`, of a connection that stays open; returns whether there is a table of samples yet."""
    connection.execute("PRAGMA trusted_schema = OFF")
    objects = connection.execute(
        "SELECT type, name, sql FROM sqlite_master"
        " WHERE type IN ('table', 'view', 'trigger') AND name NOT LIKE 'sqlite\\_%' ESCAPE '\\'"
    ).fetchall()
    known = {"table": _TABLES, "trigger": _TRIGGERS}
    for kind, name, statement in objects:
        foreign = kind == "trigger" and not _TRIGGER.fullmatch(" ".join(statement.split()))
        if name not in known.get(kind, ()) or foreign:
            raise sqlite3.DatabaseError(f"an unknown {kind} {name!r}")
    tables = {name for kind, name, _ in objects if kind == "table"}
    if "Cache" in tables:
        # Generated columns are left out by this pragma.
        columns = {column[1] for column in connection.execute("PRAGMA table_info(Cache)")}
        if not columns >= _COLUMNS:
            raise sqlite3.DatabaseError("a table of samples of another form")
    if "Settings" in tables:
        for name, value in connection.execute("SELECT key, value FROM Settings"):
            known_form = name in _SETTINGS and isinstance(value, (int, float, str, type(None)))
            # Each connection makes pragmas of them, word for word.
            if known_form and name.startswith("sqlite_"):
                known_form = isinstance(value, int) or value == DEFAULT_SETTINGS.get(name)
            if not known_form:
                raise sqlite3.DatabaseError(f"an unknown setting {name!r}")
    return "Cache" in tables
