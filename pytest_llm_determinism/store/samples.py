"""Reading and writing samples, and keeping the store usable: locked down, set aside when damaged."""

from __future__ import annotations

import contextlib
import datetime
import functools
import os
import sqlite3
from collections.abc import Callable, Iterable, Mapping
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import replace
from pathlib import Path
from typing import Any, TypeVar

from pytest_llm_determinism.refusal import Refusal
from pytest_llm_determinism.store.request import StoredRequest, request_key
from pytest_llm_determinism.store.sample import Sample

T = TypeVar("T")


def _get(key: str, cache: Any) -> object:
    return cache.get(key, retry=True)


def _keep(samples: Mapping[str, Sample], requests: Mapping[str, Callable[[], StoredRequest]], cache: Any) -> None:
    """Keep samples and, by request, what is to be known of them; all or nothing."""
    texts = {key: sample.encode() for key, sample in samples.items()}
    told = {request_key(request): make() for request, make in requests.items()}
    # One transaction is written to the disk once.
    with cache.transact(retry=True) if told else contextlib.nullcontext():
        for key, text in texts.items():
            cache.set(key, text, retry=True)
        for key, request in told.items():
            known = _decoded(key, StoredRequest.decode, cache)
            joined = request if known is None else known.joined(request)
            if joined != known:
                cache.set(key, joined.encode(), retry=True)


def _decoded(key: str, decode: Callable[[object], T], cache: Any) -> T | None:
    """What stands under a key; None for what cannot be used."""
    try:
        text = cache.get(key, retry=True)
        return None if text is None else decode(text)
    # Text that is none in SQLite's eyes is an OperationalError.
    except (ValueError, sqlite3.OperationalError):
        return None


def _add(samples: Mapping[str, Sample], requests: Mapping[str, StoredRequest], cache: Any) -> int:
    with cache.transact(retry=True):
        new = {key: sample for key, sample in samples.items() if _decoded(key, Sample.decode, cache) is None}
        _keep(new, {request: functools.partial(replace, made) for request, made in requests.items()}, cache)
    return len(new)


def _import_all() -> None:
    import pytest_llm_determinism.store.disk  # noqa: F401  # diskcache and sqlite3 come with it


_CACHEDIR_TAG = """Signature: 8a477f597d28d172789f06886806bc55
# This directory holds the cached model responses of pytest-llm-determinism.
# For information about cache directory tags see https://bford.info/cachedir/
"""


class SampleStore:
    """Samples in a directory, made at the first write.

    All work on the database is done by one thread of the store's own: applications ask from many threads, and each
    would open a connection that nobody closes.

    Args:
        directory: where the store is or will be.
        writable: False never writes and never makes the directory (``cache=replay``).

    Attributes:
        notes: what a person should be told about the store, such as that a damaged one was set aside.
    """

    def __init__(self, directory: Path, writable: bool = True) -> None:
        self.directory = directory
        self.notes: list[str] = []
        self._writable = writable
        self._cache: Any = None
        self._thread: ThreadPoolExecutor | None = None
        self._damaged_rows = 0

    def read(self, keys: Iterable[str], not_before: float) -> dict[str, Sample]:
        """The samples under these keys that arrived at `not_before` (seconds since the epoch) or later."""
        if self._cache is None and not (self.directory / "cache.db").exists():
            return {}
        return self.result(self._submit(lambda: self._read(list(keys), not_before)))

    def write(self, key: str, sample: Sample, request: Callable[[], StoredRequest] | None = None) -> None:
        """Keep a sample; when this returns it survives the end of the process.

        Args:
            request: makes, on the store's thread, what is to be kept of the sample's request.
        """
        self.result(self.start_writing(key, sample, request))

    def start_writing(
        self, key: str, sample: Sample, request: Callable[[], StoredRequest] | None = None
    ) -> Future[None]:
        """Begin to keep a sample, for a caller whose event loop goes on meanwhile; `result` says what came of it."""
        requests = {} if request is None else {key.partition(":")[0]: request}
        return self._submit(
            lambda: self._guarded(functools.partial(_keep, {key: sample}, requests)) if self._writable else None
        )

    def add(self, samples: Mapping[str, Sample], requests: Mapping[str, StoredRequest]) -> int:
        """Keep samples where there are none that can be used, and what is known of their requests; all or nothing.

        Returns:
            How many samples were added.
        """
        return self.result(self._submit(lambda: self._guarded(functools.partial(_add, samples, requests)))) or 0

    def get_ready(self) -> None:
        """Import what writing needs, on the store's own thread and without waiting: while the first call is out."""
        if self._writable and self._cache is None:
            self._submit(_import_all)

    def close(self) -> None:
        if self._thread is not None:
            if self._cache is not None:
                self._thread.submit(self._cache.close).result()
                self._cache = None
            self._thread.shutdown()
            self._thread = None
        if self._damaged_rows:
            self.notes.append(f"{self._damaged_rows} damaged samples in {self.directory} were not used")
            self._damaged_rows = 0

    def _submit(self, job: Callable[[], T]) -> Future[T]:
        if self._thread is None:
            self._thread = ThreadPoolExecutor(1, thread_name_prefix="determinism-store")
        return self._thread.submit(job)

    def result(self, future: Future[T]) -> T:
        """What came of work on the store.

        Raises:
            Refusal: the store cannot be used.
        """
        try:
            return future.result()
        except (OSError, sqlite3.Error) as error:
            raise Refusal(
                f"the store in {self.directory} cannot be used: {error}; make it writable, choose another with"
                " --determinism-cache-dir, or do without it with --determinism-cache=off"
            ) from error

    def _read(self, keys: list[str], not_before: float) -> dict[str, Sample]:
        found: dict[str, Sample] = {}
        for key in keys:
            text = self._guarded(functools.partial(_get, key))
            if text is None:
                continue
            try:
                sample = Sample.decode(text)
            except ValueError:
                self._damaged_rows += 1
                continue
            if sample.at >= not_before:
                found[key] = sample
        return found

    def _guarded(self, use: Callable[[Any], T]) -> T | None:
        """Use the cache; a database that turns out to be damaged is set aside and the use tried on a new one."""
        from pytest_llm_determinism.store.disk import UntrustedRow

        for last in (False, True):
            try:
                if self._cache is None:
                    self._cache = self._open()
                return use(self._cache) if self._cache is not None else None
            except (UntrustedRow, UnicodeDecodeError):
                self._damaged_rows += 1
                return None
            except sqlite3.DatabaseError as error:
                if "could not decode" in str(error).lower():
                    self._damaged_rows += 1
                    return None
                # Locked, full or read-only: nothing is wrong with the data, so nothing may be set aside.
                usable = isinstance(error, sqlite3.OperationalError) and not str(error).startswith("no such")
                if usable or last:
                    raise
                self._set_aside(error)
        return None

    def _open(self) -> Any:
        import diskcache

        from pytest_llm_determinism.store.disk import SafeDisk, check_database

        if not self._writable and not (self.directory / "cache.db").exists():
            return None
        if self._writable:
            self._prepare()
        check_database(self.directory)
        return diskcache.Cache(
            str(self.directory),
            disk=SafeDisk,
            # Paid answers are never thrown away, and a foreign database chooses nothing: every setting is given.
            **{**diskcache.DEFAULT_SETTINGS, "eviction_policy": "none", "cull_limit": 0, "disk_pickle_protocol": 0},
        )

    def _prepare(self) -> None:
        self.directory.mkdir(mode=0o700, parents=True, exist_ok=True)
        with contextlib.suppress(OSError):
            os.chmod(self.directory, 0o700)
        for name, content in ((".gitignore", "*\n"), ("CACHEDIR.TAG", _CACHEDIR_TAG)):
            path = self.directory / name
            if not path.exists():
                path.write_text(content, encoding="utf-8")

    def _set_aside(self, error: Exception) -> None:
        """Move a damaged database out of the way, unless another process has done so already."""
        from pytest_llm_determinism.store.disk import check_database

        if self._cache is not None:
            with contextlib.suppress(Exception):
                self._cache.close()
            self._cache = None
        try:
            check_database(self.directory)
            with contextlib.closing(sqlite3.connect(self.directory / "cache.db", timeout=60)) as connection:
                (state,) = connection.execute("PRAGMA quick_check(1)").fetchone()
            if state == "ok":
                return
        except sqlite3.DatabaseError:
            pass
        stamp = datetime.datetime.now(datetime.UTC).strftime("%Y%m%dT%H%M%S.%f")
        aside = self.directory / f"damaged-{stamp}"
        aside.mkdir(mode=0o700)
        for path in self.directory.glob("cache.db*"):
            with contextlib.suppress(FileNotFoundError):
                path.rename(aside / path.name)
        self.notes.append(f"the store in {self.directory} was damaged ({error}); it was set aside as {aside.name}")
