"""A report file is written whole or not at all."""

import json
import os

import pytest

from pytest_llm_determinism.report import files as report_files
from pytest_llm_determinism.report.files import check, write
from pytest_llm_determinism.settings import SettingError


@pytest.fixture
def path(tmp_path):
    """Where an older report stands, alone in its folder."""
    path = tmp_path / "report.json"
    path.write_text("older")
    return path


def files(path):
    """All there is in the folder of a file, by name."""
    return {found.name: found.read_text(encoding="utf-8") for found in path.parent.iterdir()}


def test_a_report_replaces_the_older_one(path):
    write(path, {"tests": [{"output": "Zürich — 的 😀"}]})
    assert files(path) == {"report.json": '{\n "tests": [\n  {\n   "output": "Zürich — 的 😀"\n  }\n ]\n}\n'}


def test_a_report_is_written_where_there_was_none(tmp_path):
    write(tmp_path / "report.json", {"schema_version": 1})
    assert files(tmp_path / "report.json") == {"report.json": '{\n "schema_version": 1\n}\n'}


def test_what_is_no_json_leaves_the_older_report(path):
    with pytest.raises(TypeError, match="not JSON serializable"):
        write(path, {"fine": 1, "added by a hook": object()})
    assert files(path) == {"report.json": "older"}


@pytest.mark.parametrize("function", ["chmod", "replace"])
def test_an_error_while_writing_leaves_the_older_report_and_nothing_else(path, monkeypatch, function):
    def fail(*_):
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(report_files.os, function, fail)
    with pytest.raises(OSError, match="No space left on device"):
        write(path, {"schema_version": 1})
    assert files(path) == {"report.json": "older"}


@pytest.mark.parametrize("error", [OSError(28, "No space left on device"), KeyboardInterrupt()])
def test_a_file_that_cannot_be_written_to_its_end_is_thrown_away(path, monkeypatch, error):
    fdopen = os.fdopen

    def half(*arguments, **keywords):
        file = fdopen(*arguments, **keywords)
        write_all = file.write

        def write_half(text):
            write_all(text[: len(text) // 2])
            file.flush()
            # It is the half-written file that must go, so it must be there.
            assert len(files(path)) == 2
            raise error

        file.write = write_half
        return file

    monkeypatch.setattr(report_files.os, "fdopen", half)
    with pytest.raises(type(error)):
        write(path, {"schema_version": 1})
    assert files(path) == {"report.json": "older"}


def test_a_reader_meets_the_older_report_until_the_new_one_is_whole(path, monkeypatch):
    replace = os.replace
    met = []

    def looked_at(source, target):
        with open(source, encoding="utf-8") as file:
            met.append((path.read_text(), json.load(file)))
        replace(source, target)

    monkeypatch.setattr(report_files.os, "replace", looked_at)
    write(path, {"schema_version": 1})
    assert met == [("older", {"schema_version": 1})]


@pytest.mark.parametrize(
    "text", ["\ud83d", "a\udc00b", "\ude00\ud83d", "\\\ud800", '"\udfff', "\x1b[31m\u202e\x00\u2028"]
)
def test_any_text_gives_valid_json(path, text):
    write(path, {"output": text, text: 1})
    assert json.loads(path.read_bytes()) == {"output": text, text: 1}


@pytest.mark.skipif(os.name != "posix", reason="rights of files as POSIX has them")
def test_a_report_has_the_rights_of_any_other_new_file(path):
    mask = os.umask(0o027)
    try:
        write(path, {"schema_version": 1})
        assert os.umask(0o027) == 0o027
    finally:
        os.umask(mask)
    assert path.stat().st_mode & 0o777 == 0o640


# Before any call is paid for


def test_a_path_that_can_be_written_is_left_as_it_is(path):
    check([path, path.with_name("new.json")], "--report")
    assert files(path) == {"report.json": "older"}


def test_folders_that_are_missing_are_made(tmp_path):
    path = tmp_path / "reports" / "of today" / "report.json"
    check([path], "--report")
    write(path, {"schema_version": 1})
    assert list(files(path)) == ["report.json"]


def refused(path):
    with pytest.raises(SettingError) as raised:
        check([path], "--report")
    return str(raised.value)


def test_a_directory_is_no_file_to_write(tmp_path):
    path = tmp_path / "report.json"
    path.mkdir()
    assert refused(path) == f"report={path} (from --report): cannot be written: {path} is a directory"


def test_a_file_is_no_folder_to_write_in(path):
    inside = path / "report.json"
    assert refused(inside) == f"report={inside} (from --report): cannot be written: {path}: File exists"


def test_a_folder_that_takes_no_file_is_refused(path, monkeypatch):
    def refuse(**_):
        raise PermissionError(13, "Permission denied", str(path.parent))

    monkeypatch.setattr(report_files.tempfile, "NamedTemporaryFile", refuse)
    assert refused(path) == f"report={path} (from --report): cannot be written: {path.parent}: Permission denied"
