"""Folders and files that are replaced: a crash at any line leaves the old one or the new one, whole."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from lit_debias.support import atomic
from lit_debias.support.atomic import new_file, new_folder, write_text

CRASHES = """
import os, sys, types
from pathlib import Path

root, first = Path(sys.argv[1]), sys.argv[2] == "first"
package = sys.modules["lit_debias"] = types.ModuleType("lit_debias")  # without torch, a child is forked in no time
package.__path__ = [sys.argv[3]]
from lit_debias.support import atomic

def step(exchange, out):
    if not exchange:
        atomic._exchange = lambda first, second: False
    with atomic.new_folder(out) as work:
        for name in ("a", "b"):
            (work / name).write_text("new")

def killed_at(number, exchange, out):
    lines = 0
    def watch(frame, event, _):
        nonlocal lines
        if not frame.f_code.co_filename.endswith(("lit_debias/support/atomic.py", "<string>")):
            return None
        if event == "line":
            lines += 1
            if lines == number:
                os._exit(9)
        return watch
    child = os.fork()
    if not child:
        sys.settrace(watch)
        step(exchange, out)
        os._exit(0)
    return os.waitstatus_to_exitcode(os.waitpid(child, 0)[1])

def state(folder):
    return sorted((file.name, file.read_text()) for file in folder.iterdir()) if folder.is_dir() else None

OLD, NEW = [("a", "old"), ("c", "old")], [("a", "new"), ("b", "new")]
for exchange in (True, False):
    seen, number, code = [], 0, 9
    while code == 9:
        number += 1
        place = root / f"{exchange}{number}"
        out = place / "out"
        place.mkdir()
        if not first:
            out.mkdir()
            for name, content in OLD:
                (out / name).write_text(content)
        code = killed_at(number, exchange, out)
        found = state(out)
        if found is None and not first:  # two steps: both are whole beside it
            assert not exchange, number
            beside = [state(folder) for folder in place.iterdir()]
            assert sorted(beside) == [NEW, OLD], (number, beside)
        seen.append("new" if found == NEW else "old" if found in (OLD, None) else f"half: {found}")
    assert code == 0, code
    assert set(seen) == {"old", "new"} and seen == sorted(seen, reverse=True), seen
    assert number > 20, number
print("done")
"""


@pytest.mark.skipif(not sys.platform.startswith("linux"), reason="kills forked processes, and expects one step")
@pytest.mark.parametrize("first", ["first", "again"])
def test_a_crash_at_any_line_leaves_the_old_folder_or_the_new_one(first, tmp_path):
    command = [sys.executable, "-c", CRASHES, str(tmp_path), first, str(Path(atomic.__file__).parents[1])]
    done = subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)
    assert (done.returncode, done.stdout) == (0, "done\n"), done.stderr[-2000:]


@pytest.fixture(params=[True, False], ids=["one step", "two steps"])
def exchange(request, monkeypatch):
    if not request.param:
        monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)


def contents(folder: Path) -> dict[str, str]:
    return {file.name: file.read_text() for file in folder.iterdir()}


@pytest.mark.usefixtures("exchange")
def test_an_error_leaves_what_was_there_and_nothing_else(tmp_path):
    out = tmp_path / "out"
    out.mkdir()
    (out / "a").write_text("old")

    def break_down():
        with new_folder(out) as work:
            (work / "a").write_text("new")
            raise KeyError

    with pytest.raises(KeyError):
        break_down()
    assert contents(out) == {"a": "old"}
    with new_folder(out) as work:
        (work / "b").write_text("new")
    assert contents(out) == {"b": "new"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
    assert out.stat().st_mode & 0o777 == 0o755


def test_where_the_second_step_fails_the_first_is_taken_back(tmp_path, monkeypatch):
    monkeypatch.setattr(atomic, "_exchange", lambda first, second: False)
    out, work = tmp_path / "out", tmp_path / "work"
    for folder, text in ((out, "old"), (work, "new")):
        folder.mkdir()
        (folder / "a").write_text(text)
    rename = Path.rename

    def fail(self, target):
        if self == work:
            raise OSError(5, "broken disk")
        return rename(self, target)

    monkeypatch.setattr(Path, "rename", fail)
    with pytest.raises(OSError, match="broken disk"):
        atomic.replace_folder(out, work)
    assert contents(out) == {"a": "old"}


@pytest.mark.usefixtures("exchange")
def test_what_a_link_names_is_replaced(tmp_path):
    (tmp_path / "real").mkdir()
    link = tmp_path / "link"
    link.symlink_to(tmp_path / "real")
    with new_folder(link) as work:
        (work / "a").write_text("new")
    assert link.is_symlink()
    assert contents(tmp_path / "real") == {"a": "new"}


def test_a_file_is_replaced_whole_or_not_at_all(tmp_path, monkeypatch):
    file = tmp_path / "folder" / "file"
    write_text(file, "old")

    def fail(*_):
        raise OSError(28, "no space")

    monkeypatch.setattr(os, "replace", fail)
    with pytest.raises(OSError, match="no space"):
        write_text(file, "new")
    assert contents(file.parent) == {"file": "old"}


def test_two_processes_that_write_one_file_do_not_meet(tmp_path):
    file = tmp_path / "file"
    with new_file(file) as first, new_file(file) as second:
        first.write(b"first, and longer")
        second.write(b"second")
    assert contents(tmp_path) == {"file": "first, and longer"}  # who ends last


def test_a_work_file_of_a_given_name_is_overwritten_and_never_left(tmp_path):
    work = tmp_path / "work"
    work.write_bytes(b"half of what a killed process wrote")
    with new_file(tmp_path / "file", work) as file:
        assert work.read_bytes() == b""
        file.write(b"new")
    assert contents(tmp_path) == {"file": "new"}


def test_a_folder_that_another_process_has_made_meanwhile_can_stay(tmp_path):
    out = tmp_path / "out"
    with new_folder(out, replace=False) as work:
        (work / "a").write_text("slower")
        out.mkdir()
        (out / "a").write_text("faster")
    assert contents(out) == {"a": "faster"}
    assert [path.name for path in tmp_path.iterdir()] == ["out"]
