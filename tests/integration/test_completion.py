"""Completion of the command in bash, through the protocol of argcomplete."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("argcomplete")

COMMAND = Path(sys.executable).with_name("llm-determinism")

# Each line is completed at its end, as by the key; what there is to choose from is printed in one line.
SCRIPT = """
eval "$("$PYTHON" -m argcomplete.scripts.register_python_argcomplete llm-determinism)"
while IFS= read -r line; do
    COMP_LINE=$line COMP_POINT=${#line} COMP_TYPE=9 COMPREPLY=()
    _python_argcomplete llm-determinism
    echo "${COMPREPLY[@]}"
done
"""

COMPLETED = {
    "llm-determinism pla": "plan",
    "llm-determinism probe --comp": "--compare --compare-with --completions-model",
    "llm-determinism probe --load so": "solo",
    "llm-determinism probe --load solo,": "solo,burst solo,crowd",
    "llm-determinism probe --compare c": "casefold",
    "llm-determinism probe --cache re": "refresh replay",
    "llm-determinism probe --api c": "chat completions",
    "llm-determinism probe --endpoint r": "reference",
    "llm-determinism probe --model moe-": "moe-dropless moe-capacity",
    "llm-determinism probe --endpoint http://localhost/v1 --model moe-": "",
    "llm-determinism probe --messages ": "folder/ a.json",
    "llm-determinism probe --report ": "folder/ a.json b.md",
    "llm-determinism probe --cache-dir ": "folder/",
    "llm-determinism plan --from ": "folder/ a.json",
    "llm-determinism report render ": "--help --output -h -o folder/ a.json",
    "llm-determinism cache import ": "--cache-dir --help -h folder/ a.json b.md c.txt",
    "llm-determinism plan --runs ": "",
}


@pytest.mark.skipif(shutil.which("bash") is None or not COMMAND.exists(), reason="needs bash and the installed command")
def test_bash_completes_commands_options_and_values(tmp_path: Path) -> None:
    for name in ("a.json", "b.md", "c.txt"):
        (tmp_path / name).touch()
    (tmp_path / "folder").mkdir()

    told = subprocess.run(
        ["bash", "-c", SCRIPT],
        input="\n".join(COMPLETED) + "\n",
        capture_output=True,
        text=True,
        cwd=tmp_path,
        env={**os.environ, "PATH": f"{COMMAND.parent}:{os.environ['PATH']}", "PYTHON": sys.executable},
        timeout=60,
    )

    found = dict(zip(COMPLETED, told.stdout.splitlines(), strict=True))
    assert {line: sorted(words.split()) for line, words in found.items()} == {
        line: sorted(words.split()) for line, words in COMPLETED.items()
    }


def test_without_being_asked_nothing_of_it_is_imported() -> None:
    code = (
        "import sys; from pytest_llm_determinism.cli import main; main(['plan']); print('argcomplete' in sys.modules)"
    )

    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60)

    assert told.stdout.endswith("\nFalse\n")
