"""A diskcache that runs nothing it reads.

A cache directory is shared through CI caches, so its bytes are untrusted. diskcache unpickles rows whose mode says
so (CVE-2025-69872, without a fix release), follows any file name a row gives, and takes settings from the database.
`SafeDisk` knows text and bytes only; `check_database` refuses a database that is not exactly of the known form.
"""

from __future__ import annotations

import re
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import diskcache
from diskcache.core import DBNAME, DEFAULT_SETTINGS, METADATA, MODE_BINARY, MODE_RAW, MODE_TEXT

_FILE_NAME = re.compile(r"[0-9a-f]{2}/[0-9a-f]{2}/[0-9a-f]{28}\.val")
_TRIGGERS = frozenset(
    f"Settings_{name}" for name in ("count_insert", "count_delete", "size_insert", "size_update", "size_delete")
)
_TABLES = frozenset(("Settings", "Cache"))
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
            root = Path(self._directory).resolve()
            path = root / filename
            if not _FILE_NAME.fullmatch(Path(filename).as_posix()) or not path.resolve().is_relative_to(root):
                raise UntrustedRow("a value whose file lies outside the store")
            return super().fetch(mode, filename, None, False)
        raise UntrustedRow(f"a value of mode {mode!r}")

    def remove(self, file_path: str) -> None:
        if _FILE_NAME.fullmatch(Path(file_path).as_posix()):
            super().remove(file_path)


def check_database(directory: Path) -> None:
    """Look at an existing database before diskcache does.

    Raises:
        sqlite3.DatabaseError: damaged, or with tables, triggers or settings that diskcache does not make.
    """
    path = directory / DBNAME
    if not path.exists():
        return
    with closing(sqlite3.connect(path, timeout=60)) as connection:
        connection.execute("PRAGMA trusted_schema = OFF")
        objects = connection.execute(
            "SELECT type, name FROM sqlite_master"
            " WHERE type IN ('table', 'view', 'trigger') AND name NOT LIKE 'sqlite_%'"
        ).fetchall()
        known = {"table": _TABLES, "trigger": _TRIGGERS}
        for kind, name in objects:
            if name not in known.get(kind, ()):
                raise sqlite3.DatabaseError(f"an unknown {kind} {name!r}")
        if ("table", "Settings") not in objects:
            return
        for name, value in connection.execute("SELECT key, value FROM Settings"):
            if name not in _SETTINGS or not isinstance(value, (int, float, str, type(None))):
                raise sqlite3.DatabaseError(f"an unknown setting {name!r}")
