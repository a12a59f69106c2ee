"""Writes docs/settings.md from the table in the code: ``python docs/make_settings.py``."""

from pathlib import Path

from pytest_llm_determinism.settings import TABLE, shown

HEAD = """# Settings

Made from the table in `pytest_llm_determinism/settings.py` by `python docs/make_settings.py`.

A flag wins over the marker, the marker closest to the test over other markers (per keyword: function, class, module), any
marker over ini, ini over the default. Settings with several values take the flag several times, or commas.

| setting | marker keyword | flag | ini key | default | meaning |
|---|---|---|---|---|---|
"""

TAIL = """
In a `pytest.toml` or `[tool.pytest]` table numbers and switches may be written as such from pytest 9.2 on, and as strings
with any version. A switch given as a flag without a value (`--determinism-fail-fast`) is on.

`compare` takes a name, a callable (`compare=len` in the marker), or `package.module:function`. A named comparison is applied
to each step's answer; a callable gets the run's whole output, a `str` with the answers as `.parts`, and returns what outputs
are compared by. `json` compares what is not JSON exactly, and says so.

Relative paths: `cache_dir` is relative to rootdir, `report` and `baseline` to the directory pytest was started in as flags,
and to rootdir in an ini file.
"""


def document() -> str:
    """The whole page."""
    rows = [
        f"| `{setting.name}` | {f'`{setting.name}=`' if setting.marker else 'no'} | `{setting.flag}` | `{setting.ini}` |"
        f" `{shown(setting.default)}` | {setting.help.replace('|', chr(92) + '|')} |\n"
        for setting in TABLE.values()
    ]
    return HEAD + "".join(rows) + TAIL


if __name__ == "__main__":
    (Path(__file__).parent / "settings.md").write_text(document(), encoding="utf-8")
