"""Report files: which format a name asks for, whether it can be written, and writing it whole or not at all."""

from __future__ import annotations

import contextlib
import importlib
import json
import os
import tempfile
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import IO, Any

from pytest_llm_determinism.settings import REPORT_FORMATS, SettingError


def check(paths: Sequence[Path], where: str) -> None:
    """See that reports can be made and written, before any call is paid for.

    Args:
        where: what named the paths, such as a flag.

    Raises:
        SettingError: for the first path to which none can be written, and for a format that wants an extra.
    """
    for path in paths:
        try:
            renderer(path)
            _check_writable(path)
        except OSError as error:
            # Not the name that the system gives: that of a file which only tried it.
            reason = f"{path.parent}: {error.strerror}" if error.strerror else error
            raise SettingError(f"report={path} (from {where}): cannot be written: {reason}") from None
        except ImportError as error:
            name = path.suffix.removeprefix(".")
            raise SettingError(
                f"report={path} (from {where}): needs {error.name}; pip install 'pytest-llm-determinism[{name}]'"
            ) from None


def renderer(path: Path) -> Callable[[dict[str, Any]], str]:
    """What makes the text of a report of the format that a file's name ends in.

    Raises:
        ImportError: the format wants an extra that is not installed.
    """
    if path.suffix == ".json":
        return as_json
    module = importlib.import_module(f"pytest_llm_determinism.report.{REPORT_FORMATS[path.suffix]}")
    render: Callable[[dict[str, Any]], str] = module.render
    return render


def as_json(report: dict[str, Any]) -> str:
    return json.dumps(report, ensure_ascii=False, indent=1) + "\n"


def _check_writable(path: Path) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    with tempfile.NamedTemporaryFile(dir=path.parent):
        pass


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report, in the format that the file's name ends in, whole or not at all: a reader never meets half of
    one."""
    text = renderer(path)(report)
    with replacing(path) as file:
        # A lone surrogate, which some models send, becomes the JSON escape that stands for it.
        file.write(text.encode("utf-8", "backslashreplace"))


@contextlib.contextmanager
def replacing(path: Path) -> Iterator[IO[bytes]]:
    """A file that takes the place of `path` once it is written, and is gone if it cannot be."""
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        with os.fdopen(descriptor, "wb") as file:
            yield file
        # mkstemp makes files that only their owner may read; this one has the rights of any other new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
