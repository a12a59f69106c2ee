"""Writing the JSON report."""

from __future__ import annotations

import json
import os
import tempfile
from pathlib import Path
from typing import Any


def check_writable(path: Path) -> None:
    """Raise OSError if a report cannot be written to `path`, before any call is paid for."""
    path.parent.mkdir(parents=True, exist_ok=True)
    if path.is_dir():
        raise IsADirectoryError(f"{path} is a directory")
    with tempfile.NamedTemporaryFile(dir=path.parent):
        pass


def write(path: Path, report: dict[str, Any]) -> None:
    """Write a report whole or not at all: a reader never meets half of one."""
    text = json.dumps(report, ensure_ascii=False, indent=1)
    descriptor, name = tempfile.mkstemp(dir=path.parent, prefix=f".{path.name}.")
    try:
        # A lone surrogate, which some models send, becomes the JSON escape that stands for it.
        with os.fdopen(descriptor, "w", encoding="utf-8", errors="backslashreplace") as file:
            file.write(text + "\n")
        # mkstemp makes files that only their owner may read; a report has the rights of any other new file.
        mask = os.umask(0)
        os.umask(mask)
        os.chmod(name, 0o666 & ~mask)
        os.replace(name, path)
    except BaseException:
        os.unlink(name)
        raise
