"""``llm-determinism cache``: what the store holds, and taking it elsewhere."""

from __future__ import annotations

import argparse
import datetime
import functools
import json
import re
import sys
import time
from collections import Counter
from collections.abc import Callable, Collection, Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from pytest_llm_determinism.commands import FAILED, INTERRUPTED, USAGE_ERROR
from pytest_llm_determinism.settings import LOADS, TABLE

if TYPE_CHECKING:
    from pytest_llm_determinism.store import Sample
    from pytest_llm_determinism.store.contents import Contents, Row
    from pytest_llm_determinism.store.portable import Entry
    from pytest_llm_determinism.store.sample import SampleKey
    from pytest_llm_determinism.store.survey import Asked, Survey, Wanted

Command = Callable[["Contents", argparse.Namespace], int]

_UNKNOWN = "–"
_SHORT = 12
_BATCH_ROWS = 200
_BATCH_BYTES = 8 * 2**20


def add(commands: argparse._SubParsersAction[argparse.ArgumentParser]) -> None:
    """Declare the command and those below it."""
    cache = commands.add_parser(
        "cache",
        help="see, clear, check, export and import what the store holds",
        description="See what the store of answers holds, clear, check, export and import it. Asks no model. Exit code:"
        " 0 if done, 2 for wrong usage and a store that is not there or cannot be read.",
    )
    below = cache.add_subparsers(title="commands", required=True, metavar="COMMAND")

    info = _below(below, "info", _info, "say how much the store holds, of which models, and how old it is")
    _add_json(info)

    ls = _below(below, "ls", _ls, "list the requests with samples in the store, the newest first")
    _add_filters(ls)
    _add_json(ls)

    show = _below(below, "show", _show, "show a request and the answers to it")
    show.add_argument("key", metavar="KEY", help="the request, as ls lists it; the beginning is enough")
    show.add_argument(
        "--run", dest="index", type=_run_index, metavar="N", help="show the samples of this run as they were received"
    )
    show.add_argument("--load", action="append", choices=LOADS, default=[], help="only samples under this load")
    _add_json(show)

    clear = _below(
        below,
        "clear",
        _clear,
        "remove samples",
        "Remove the samples that all the options together mean. Without any of them nothing is removed.",
    )
    _add_filters(clear)
    clear.add_argument("--all", action="store_true", help="remove all samples, and what is damaged")
    clear.add_argument("--dry-run", action="store_true", help="only say what would be removed")

    verify = _below(
        below,
        "verify",
        _verify,
        "read everything, and say what is wrong",
        "Read everything in the store, and say what is wrong. Exit code: 0 if nothing is, 1 if something is, 2 if there"
        " is no store.",
    )
    verify.add_argument(
        "--repair",
        action="store_true",
        help="remove what no session can use: damaged rows, and files of values that no row names",
    )

    export = _below(below, "export", _export, "write samples into one file, for another machine")
    export.add_argument("archive", type=Path, metavar="FILE", help="file to write (gzip of JSON lines)")
    _add_filters(export)

    into = _below(
        below,
        "import",
        None,
        "take samples from a file that export wrote",
        "Take samples from a file that export wrote. A sample that is here already stays as it is; of a damaged file"
        " nothing is taken.",
    )
    into.add_argument("archive", type=Path, metavar="FILE", help="file to read")
    into.set_defaults(run=_import)


def _below(
    below: argparse._SubParsersAction[argparse.ArgumentParser],
    name: str,
    command: Command | None,
    help: str,
    description: str = "",
) -> argparse.ArgumentParser:
    parser = below.add_parser(name, help=help, description=description or f"{help[0].upper()}{help[1:]}.")
    setting = TABLE["cache_dir"]
    parser.add_argument(
        "--cache-dir",
        type=_directory,
        default=setting.default,
        metavar=setting.metavar,
        help="directory of the store, relative to the current directory (default: %(default)s)",
    )
    if command is not None:
        parser.set_defaults(run=functools.partial(_on_store, command, name))
    return parser


def _add_json(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--json", action="store_true", help="as JSON")


def _add_filters(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--model", action="append", default=[], metavar="NAME", help="only requests of this model; several are possible"
    )
    parser.add_argument(
        "--test",
        action="append",
        default=[],
        metavar="NODEID",
        help="only requests that this test asked, or the tests of this file, class or directory; several are possible",
    )
    parser.add_argument("--load", action="append", choices=LOADS, default=[], help="only samples under this load")
    parser.add_argument(
        "--older-than", type=_duration, metavar="AGE", help="only samples older than this, such as 12h or 7d"
    )


def _directory(text: str) -> Path:
    try:
        return Path(TABLE["cache_dir"].parse(text)).expanduser()
    except (ValueError, RuntimeError) as error:
        raise argparse.ArgumentTypeError(f"{text!r}: {error}") from None


def _duration(text: str) -> float:
    try:
        seconds = TABLE["cache_ttl"].parse(text)
    except ValueError:
        seconds = None
    if seconds is None:
        raise argparse.ArgumentTypeError(f"{text!r} is no age; write one such as 30m, 12h or 7d")
    return float(seconds)


def _run_index(text: str) -> int:
    if text.isdecimal() and text.isascii():
        return int(text)
    raise argparse.ArgumentTypeError(f"{text!r} is no run; write 0 for the first one")


def _on_store(command: Command, name: str, options: argparse.Namespace) -> int:
    """Run a command on an open store; returns its exit code."""
    from pytest_llm_determinism.store.contents import Contents, StoreError

    directory: Path = options.cache_dir
    opened = None
    try:
        opened = Contents(directory)
        with opened as contents:
            return command(contents, options)
    except FileNotFoundError as error:
        if opened is not None:
            return _wrong(name, str(error))
        if command is _info:
            return _nothing(directory, options)
        return _wrong(name, f"there is no store in {directory}; name its directory with --cache-dir")
    except StoreError as error:
        code = _wrong(name, str(error))
        return FAILED if command is _verify else code
    except OSError as error:
        return _wrong(name, str(error))
    except KeyboardInterrupt:
        _say(f"llm-determinism cache {name}: interrupted")
        return INTERRUPTED


def _wrong(name: str, message: str) -> int:
    from pytest_llm_determinism.report.text import printable

    _say(printable(f"llm-determinism cache {name}: {message}"))
    return USAGE_ERROR


def _say(line: str) -> None:
    print(line, file=sys.stderr, flush=True)


def _wanted(options: argparse.Namespace) -> Wanted:
    from pytest_llm_determinism.store.survey import Wanted

    before = None if options.older_than is None else time.time() - options.older_than
    return Wanted(options.model, options.test, options.load, before)


# info


def _nothing(directory: Path, options: argparse.Namespace) -> int:
    if options.json:
        _print_json({"directory": str(directory), "exists": False})
    else:
        _print(f"there is no store in {directory}; the first session that keeps an answer makes it")
    return 0


def _info(contents: Contents, options: argparse.Namespace) -> int:
    from pytest_llm_determinism.analysis.excerpt import excerpt
    from pytest_llm_determinism.store.survey import Wanted, survey

    found = survey(contents, Wanted())
    requests = found.requests.values()
    models: Counter[str | None] = Counter()
    loads: Counter[str] = Counter()
    for asked in requests:
        models[asked.model] += asked.samples
        for (load, _), runs in asked.runs.items():
            loads[load] += runs
    oldest = min((asked.oldest for asked in requests), default=None)
    newest = max((asked.newest for asked in requests), default=None)
    aside = contents.set_aside()
    on_disk = sum(size for _, size in contents.files())
    if options.json:
        _print_json(
            {
                "directory": str(contents.directory),
                "exists": True,
                "bytes_on_disk": on_disk,
                "samples": found.samples,
                "sample_bytes": found.size,
                "requests": len(found.requests),
                "models": [{"model": model, "samples": count} for model, count in models.most_common()],
                "loads": [{"load": load, "runs": count} for load, count in loads.most_common()],
                "oldest": oldest and _moment(oldest),
                "newest": newest and _moment(newest),
                "damaged": found.problems.total(),
                "set_aside": [{"name": name, "bytes": size} for name, size in aside],
            }
        )
        return 0
    rows = [
        ("store", f"{contents.directory} ({_size(on_disk)} on disk)"),
        ("samples", f"{found.samples} of {_count(len(found.requests), 'request')}, {_size(found.size)}"),
        (
            "models",
            ", ".join(f"{excerpt(model or 'unknown', width=40)} ({count})" for model, count in models.most_common())
            or _UNKNOWN,
        ),
        ("loads", ", ".join(f"{load} ({_count(count, 'run')})" for load, count in loads.most_common()) or _UNKNOWN),
        ("age", _UNKNOWN if oldest is None or newest is None else _ages(oldest, newest)),
        ("damaged", _count(found.problems.total(), "row") if found.problems else "none"),
    ]
    if aside:
        rows.append(("set aside", ", ".join(f"{name} ({_size(size)})" for name, size in aside)))
    if found.problems:
        rows.append(("try next", "llm-determinism cache verify says what is wrong"))
    _print_table(rows)
    return 0


# ls


def _ls(contents: Contents, options: argparse.Namespace) -> int:
    from pytest_llm_determinism.store.survey import survey

    found = survey(contents, _wanted(options))
    requests = sorted(found.requests.values(), key=lambda asked: (-asked.newest, asked.request))
    if options.json:
        _print_json([_in_json(asked) for asked in requests])
        return 0
    if not requests:
        print("no sample in the store" if _wanted(options).is_all else "no sample in the store is of this kind")
        return 0
    rows = [("key", "model", "API", "runs", "age", "bytes", "asked by"), *map(_cells, requests)]
    _print_table(rows)
    return 0


def _in_json(asked: Asked) -> dict[str, Any]:
    return {
        "request": asked.request,
        "api": asked.api,
        "model": asked.model,
        "tests": list(asked.tests),
        "samples": asked.samples,
        "runs": [
            {"load": load, "attempt": attempt, "runs": runs} for (load, attempt), runs in sorted(asked.runs.items())
        ],
        "bytes": asked.size,
        "oldest": _moment(asked.oldest),
        "newest": _moment(asked.newest),
    }


def _cells(asked: Asked) -> tuple[str, ...]:
    from pytest_llm_determinism.analysis.excerpt import excerpt

    tests = excerpt(asked.tests[-1], width=60) if asked.tests else _UNKNOWN
    return (
        asked.request[:_SHORT],
        excerpt(asked.model, width=40) if asked.model else _UNKNOWN,
        excerpt(asked.api, width=24) if asked.api else _UNKNOWN,
        _runs(asked),
        _ages(asked.oldest, asked.newest),
        _size(asked.size),
        tests + (f" (+{len(asked.tests) - 1})" if len(asked.tests) > 1 else ""),
    )


def _runs(asked: Asked) -> str:
    """``burst 30+30, solo 30``: runs with a sample, by load, attempt after attempt."""
    loads: dict[str, list[int]] = {}
    for (load, _), runs in sorted(asked.runs.items()):
        loads.setdefault(load, []).append(runs)
    return ", ".join(f"{load} {'+'.join(map(str, runs))}" for load, runs in loads.items())


# show


def _show(contents: Contents, options: argparse.Namespace) -> int:
    request = _only(contents, options.key)
    if request is None:
        return USAGE_ERROR
    keys = [
        key
        for key in contents.keys(f"{request}:")
        if (not options.load or key.load in options.load) and options.index in (None, key.run)
    ]
    if not keys:
        return _wrong("show", f"no sample of {request[:_SHORT]} is of this kind; ls lists what there is")
    if options.index is not None:
        return _show_samples(contents, keys, options)
    from pytest_llm_determinism.report.stored import answers, told

    known = contents.request(request)
    experiments = answers(known, _samples(contents, keys))
    if options.json:
        _print_json(
            {
                "request": request,
                "api": known and known.api,
                "model": known and known.model,
                "tests": [] if known is None else known.tests,
                "canonical": known and known.canonical,
                "experiments": [found.to_json() for found in experiments],
            }
        )
        return 0
    print("\n".join((f"request  {request}", *told(known))))
    for found in experiments:
        print("\n".join(("", *found.lines())))
    return 0


def _samples(contents: Contents, keys: Iterable[SampleKey]) -> Iterator[tuple[SampleKey, Sample]]:
    """The samples under these keys, as far as they are there and can be used."""
    return ((key, sample) for key in keys if (sample := contents.sample(key)) is not None)


def _show_samples(contents: Contents, keys: Iterable[SampleKey], options: argparse.Namespace) -> int:
    from pytest_llm_determinism.report.stored import sample_lines

    samples = list(_samples(contents, keys))
    if options.json:
        _print_json(
            [
                {
                    "key": str(key),
                    "status": sample.status,
                    "headers": sample.headers,
                    "at": _moment(sample.at),
                    "seconds": sample.seconds,
                    "body": sample.body.decode("utf-8", "backslashreplace"),
                }
                for key, sample in samples
            ]
        )
        return 0
    print("\n\n".join("\n".join(sample_lines(key, sample, _moment(sample.at))) for key, sample in samples))
    return 0


def _only(contents: Contents, key: str) -> str | None:
    """The one request that begins like this; None, said, where there is none or there are several."""
    if not re.fullmatch("[0-9a-f]{1,64}", key):
        _wrong("show", f"{key[:80]!r} is no key; write one as ls lists it")
        return None
    found = sorted({sample.request for sample in contents.keys(key)})
    if not found:
        _wrong("show", f"no request in {contents.directory} begins with {key}; ls lists them")
    elif len(found) > 1:
        some = ", ".join(request[: len(key) + 4] for request in found[:4]) + (", …" if len(found) > 4 else "")
        _wrong("show", f"{len(found)} requests begin with {key}; write more of one ({some})")
    return found[0] if len(found) == 1 else None


# clear


def _clear(contents: Contents, options: argparse.Namespace) -> int:
    from pytest_llm_determinism.store.survey import rows_of, survey

    wanted = _wanted(options)
    if wanted.is_all and not options.all:
        return _wrong("clear", "nothing says which samples; write --older-than, --model, --test or --load, or --all")
    if options.all and not wanted.is_all:
        return _wrong("clear", "--all means every sample; leave it out, or the other options")
    found = survey(contents, wanted)
    if options.dry_run:
        _print(f"would remove {_amount(found.samples, found.requests, found.size)}{_damaged_too(found, options)}")
        _tell_others(found, wanted)
        return 0
    rows = contents.rows() if options.all else rows_of(contents, found.requests, wanted)
    removed = list(_sizes(contents.remove(rows)))
    # What is kept of a request goes with its last sample.
    bare = {request for request in found.requests if not contents.keys(f"{request}:")}
    list(contents.remove(row for row in contents.rows("request:") if row.key in bare))
    requests = {key.request for key, _ in removed}
    _print(f"removed {_amount(len(removed), requests, sum(size for _, size in removed))}{_damaged_too(found, options)}")
    _tell_others(found, wanted)
    return 0


def _sizes(rows: Iterable[Row]) -> Iterator[tuple[SampleKey, int]]:
    """Of rows that are samples their keys and sizes: of many not all the rest is held."""
    for row in rows:
        if row.key is not None and not isinstance(row.key, str) and not row.problem:
            yield row.key, row.size


def _damaged_too(found: Survey, options: argparse.Namespace) -> str:
    damaged = found.problems.total()
    return f", and {_count(damaged, 'damaged row')}" if options.all and damaged else ""


def _tell_others(found: Survey, wanted: Wanted) -> None:
    """Whether other tests lose samples, too."""
    if not wanted.tests:
        return
    shared = [asked for asked in found.requests.values() if not all(map(wanted.has_test, asked.tests))]
    if shared:
        others = sorted({test for asked in shared for test in asked.tests if not wanted.has_test(test)})
        from pytest_llm_determinism.analysis.excerpt import excerpt

        some = ", ".join(excerpt(test) for test in others[:3]) + (", …" if len(others) > 3 else "")
        _print(f"{_count(len(shared), 'of these requests', 'of these requests')} asked by other tests, too: {some}")


# verify


def _verify(contents: Contents, options: argparse.Namespace) -> int:
    from pytest_llm_determinism.analysis.excerpt import excerpt
    from pytest_llm_determinism.store.contents import LEFT_OVER, REPAIRABLE
    from pytest_llm_determinism.store.survey import Wanted, survey

    contents.check()
    found = survey(contents, Wanted())
    left_over = []
    for kind, name in contents.out_of_place():
        found.problems[kind] += 1
        found.examples.setdefault(kind, name)
        if kind == LEFT_OVER:
            left_over.append(name)
    amount = _amount(found.samples, found.requests, found.size)
    _print(f"{amount}; what was asked is kept of {_count(found.known, 'request')}")
    for kind, count in found.problems.most_common():
        _print(f"{kind}: {count} (“{excerpt(found.examples[kind])}”)")
    if not found.problems:
        print("nothing is wrong")
        return 0
    if options.repair:
        rows = list(contents.remove(row for row in contents.rows() if row.problem in REPAIRABLE))
        contents.remove_left_over(left_over)
        _print(f"removed {_count(len(rows), 'row')} and {_count(len(left_over), 'file')}")
    remaining = [kind for kind in found.problems if not options.repair or kind not in (*REPAIRABLE, LEFT_OVER)]
    if not remaining:
        return 0
    if any(kind in REPAIRABLE for kind in remaining):
        print("sessions do not use damaged rows and ask again; --repair removes them")
    return FAILED


# export and import


def _export(contents: Contents, options: argparse.Namespace) -> int:
    from pytest_llm_determinism.report.files import replacing
    from pytest_llm_determinism.store.portable import LONGEST_LINE, write
    from pytest_llm_determinism.store.survey import survey

    wanted = _wanted(options)
    found = survey(contents, wanted)
    if not found.requests:
        return _wrong("export", f"no sample in {contents.directory} is of this kind; nothing was written")
    try:
        with replacing(options.archive) as file:
            left_out = write(file, _entries(contents, found, wanted))
        size = options.archive.stat().st_size
    except OSError as error:
        return _wrong("export", f"{options.archive} cannot be written: {error.strerror or error}")
    _print(f"{_amount(found.samples, found.requests, found.size)} written to {options.archive} ({_size(size)})")
    if left_out:
        _print(f"{_count(left_out, 'row')} of more than {_size(LONGEST_LINE)} left out")
    return 0


def _entries(contents: Contents, found: Survey, wanted: Wanted) -> Iterator[Entry]:
    for request in sorted(found.requests):
        known = contents.request(request)
        if known is not None:
            yield request, known
        for key, sample in _samples(contents, contents.keys(f"{request}:")):
            if wanted.has_sample(key, sample):
                yield key, sample


def _import(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.analysis.excerpt import excerpt
    from pytest_llm_determinism.refusal import Refusal
    from pytest_llm_determinism.store.portable import BadFile

    try:
        return _imported(options)
    except BadFile as error:
        return _wrong("import", f"{options.archive}: {excerpt(str(error), width=200)}; nothing was imported")
    except OSError as error:
        return _wrong("import", f"{options.archive} cannot be read: {error.strerror or error}")
    except Refusal as error:
        return _wrong("import", f"the store in {options.cache_dir} cannot be written to: {error.__cause__}")
    except KeyboardInterrupt:
        _say("llm-determinism cache import: interrupted; what was imported stays, and the same command goes on")
        return INTERRUPTED


def _imported(options: argparse.Namespace) -> int:
    from pytest_llm_determinism.store import Sample, SampleStore, StoredRequest
    from pytest_llm_determinism.store.portable import read

    if options.archive.exists() and not options.archive.is_file():
        raise OSError("it is no file")
    samples = 0
    requests: set[str] = set()
    # All of it is read before the first row is written: of a damaged file nothing is taken.
    for key, _ in read(options.archive):
        if not isinstance(key, str):
            samples += 1
            requests.add(key.request)
    store = SampleStore(options.cache_dir)
    added = 0
    try:
        for batch in _batches(read(options.archive)):
            added += store.add(
                {str(key): value for key, value in batch if isinstance(value, Sample)},
                {str(key): value for key, value in batch if isinstance(value, StoredRequest)},
            )
    finally:
        store.close()
    here = samples - added
    stay = f"; {_count(here, 'was', 'were')} here already and not changed" if here else ""
    amount = f"{added} of {_count(samples, 'sample')} of {_count(len(requests), 'request')}"
    _print(f"imported {amount} into {options.cache_dir}{stay}")
    for note in store.notes:
        _print(note)
    return 0


def _batches(entries: Iterable[Entry]) -> Iterator[list[Entry]]:
    """Entries as many as are written at once."""
    batch: list[Entry] = []
    size = 0
    for entry in entries:
        batch.append(entry)
        size += len(entry[1].encode())
        if len(batch) == _BATCH_ROWS or size > _BATCH_BYTES:
            yield batch
            batch, size = [], 0
    if batch:
        yield batch


# In words


def _amount(samples: int, requests: Collection[str], size: int) -> str:
    """``30 samples of 1 request, 12.3 kB``."""
    return f"{_count(samples, 'sample')} of {_count(len(requests), 'request')}, {_size(size)}"


def _count(count: int, one: str, several: str | None = None) -> str:
    return f"{count} {one if count == 1 else several or one + 's'}"


def _size(count: float) -> str:
    """Bytes in the largest unit of which there is one: ``812 B``, ``12.3 kB``."""
    if count < 1000:
        return f"{count:.0f} B"
    for unit in ("kB", "MB", "GB"):
        count /= 1000
        if count < 999.95 or unit == "GB":
            break
    return f"{count:.1f} {unit}"


def _moment(at: float) -> str:
    """ISO 8601 in UTC."""
    return datetime.datetime.fromtimestamp(at, datetime.UTC).isoformat()


def _ages(oldest: float, newest: float) -> str:
    from pytest_llm_determinism.report.text import age

    now = datetime.datetime.now(datetime.UTC)
    first, last = age(_moment(newest), now), age(_moment(oldest), now)
    return first if first == last else f"{first} – {last}"


def _print_json(record: object) -> None:
    # In ASCII: no character in it steers a terminal.
    print(json.dumps(record, indent=1))


def _print_table(rows: Sequence[Sequence[str]]) -> None:
    from pytest_llm_determinism.analysis.excerpt import columns
    from pytest_llm_determinism.report.text import printable

    rows = [[printable(cell) for cell in row] for row in rows]
    widths = [max(map(columns, column)) for column in zip(*rows, strict=True)]
    for row in rows:
        cells = (cell + " " * (width - columns(cell)) for cell, width in zip(row, widths, strict=True))
        print("  ".join(cells).rstrip())


def _print(line: str) -> None:
    """A line that cannot steer a terminal: others wrote the names in it."""
    from pytest_llm_determinism.report.text import printable

    print(printable(line))
