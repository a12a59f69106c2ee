"""Samples in one file that goes from machine to machine.

The file is gzip of lines, each a JSON document in UTF-8: a first line that says what this is, then one line for each
row of a store (``{"key": …, "value": …}``, both text, as they stand there), in the order of requests, of each what is
known of it and then its samples, and a last line with the number of rows. The same rows make the same bytes.

A stranger may have written it: it is read line by line within the limits below, nothing in it is executed, and each
line is of the known form or the file is refused.
"""

from __future__ import annotations

import gzip
import json
import time
import zlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import IO

from pytest_llm_determinism.store.request import StoredRequest, parse_request_key, request_key
from pytest_llm_determinism.store.sample import Sample, SampleKey, parse_key

VERSION = 1
_HEAD = {"file": "pytest-llm-determinism samples", "version": VERSION}

LONGEST_LINE = 16 * 2**20
"""Bytes of one row."""

MOST_BYTES = 4 * 2**30
"""Bytes of a file, unpacked."""

MOST_ROWS = 2_000_000

_CLOCKS = 300.0
"""Seconds by which the clock of another machine may be ahead of this one's."""

Entry = tuple[SampleKey, Sample] | tuple[str, StoredRequest]
"""A sample with its key, or a request (SHA-256) with what is known of it."""


class BadFile(ValueError):
    """A file of which nothing is imported; the message says in which line, and why."""


def write(file: IO[bytes], entries: Iterable[Entry]) -> int:
    """Write entries, which come in the order of `place`; returns how many were left out because they are too long."""
    rows = left_out = 0
    # Without a name and a time in it, the same content has the same bytes.
    with gzip.GzipFile(filename="", mode="wb", fileobj=file, mtime=0) as packed:
        packed.write(_line(_HEAD))
        for key, value in entries:
            text = request_key(key) if isinstance(key, str) else str(key)
            line = _line({"key": text, "value": value.encode()})
            if len(line) > LONGEST_LINE:
                left_out += 1
                continue
            packed.write(line)
            rows += 1
        packed.write(_line({"rows": rows}))
    return left_out


def _line(record: object) -> bytes:
    return json.dumps(record, ensure_ascii=False).encode() + b"\n"


def place(key: SampleKey | str) -> SampleKey:
    """What entries are sorted by: a request comes before its samples."""
    return SampleKey(key, "", 0, 0, 0) if isinstance(key, str) else key


def read(path: Path) -> Iterator[Entry]:
    """The entries of a file; it is good only when the last was given.

    Raises:
        BadFile: it is damaged, not of this form, or too large.
        OSError: it cannot be read.
    """
    latest = time.time() + _CLOCKS
    before = SampleKey("", "", 0, 0, 0)
    rows = 0
    with path.open("rb") as file:
        lines = _lines(file)
        number, head = next(lines, (1, None))
        if not isinstance(head, dict) or head.get("file") != _HEAD["file"]:
            raise BadFile("it is no export of llm-determinism cache")
        if head.get("version") != VERSION:
            raise BadFile(f"it has version {head.get('version')!r}, and this can read {VERSION}; upgrade the package")
        for number, record in lines:
            if isinstance(record, dict) and record.keys() == {"rows"}:
                if record["rows"] != rows:
                    raise BadFile(f"line {number}: {rows} rows, not the {record['rows']!r} that it should have")
                if next(lines, None) is not None:
                    raise BadFile(f"line {number}: more lines after the last")
                return
            try:
                key, value = _entry(record)
                if isinstance(value, Sample) and value.at > latest:
                    raise ValueError("a sample that arrives in the future")
                if place(key) <= before:
                    raise ValueError("a row that is not in order, or there twice")
            except ValueError as error:
                raise BadFile(f"line {number}: {error}") from None
            before = place(key)
            rows += 1
            if rows > MOST_ROWS:
                raise BadFile(f"it has more than {MOST_ROWS} rows")
            yield (key, value)  # type: ignore[misc]  # they are of one kind
        raise BadFile("it ends too early")


def _lines(file: IO[bytes]) -> Iterator[tuple[int, object]]:
    """The parsed lines with their numbers, from 1."""
    total = number = 0
    try:
        with gzip.GzipFile(fileobj=file, mode="rb") as packed:
            while line := packed.readline(LONGEST_LINE + 1):
                total += len(line)
                number += 1
                if len(line) > LONGEST_LINE:
                    raise BadFile(f"line {number} is longer than {LONGEST_LINE} bytes")
                if total > MOST_BYTES:
                    raise BadFile(f"it has more than {MOST_BYTES} bytes")
                yield number, _parsed(line, number)
    except (gzip.BadGzipFile, zlib.error, EOFError) as error:
        raise BadFile(f"it is damaged, or no gzip file ({error})") from None


def _parsed(line: bytes, number: int) -> object:
    try:
        parsed: object = json.loads(line)
    except (ValueError, RecursionError):
        raise BadFile(f"line {number}: not JSON") from None
    return parsed


def _entry(record: object) -> Entry:
    if not isinstance(record, dict) or record.keys() != {"key", "value"} or not isinstance(record["key"], str):
        raise ValueError("no row")
    key, value = record["key"], record["value"]
    sample = parse_key(key)
    if sample is not None:
        read = Sample.decode(value)
        # Without the headers that are never kept.
        return sample, Sample.of(read.status, list(read.headers), read.body, read.at, read.seconds)
    request = parse_request_key(key)
    if request is None:
        raise ValueError(f"{key[:100]!r} is no key")
    return request, StoredRequest.decode(value)
