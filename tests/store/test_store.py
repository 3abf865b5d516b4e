"""The store builds an entry once, under parallel jobs too, and notices damage."""

import json
import subprocess
import sys
from pathlib import Path

import pytest
from support.helpers import ROOT

from unlearn.store.entries import Busy, Store
from unlearn.store.files import DiskError


def writing(text: str, calls: list):
    def build(folder: Path) -> None:
        calls.append(text)
        (folder / "value.txt").write_text(text)
        (folder / "deep").mkdir()
        (folder / "deep" / "more.txt").write_text(text * 2)

    return build


def test_an_entry_is_built_once_and_found_by_its_recipe(tmp_path):
    calls: list[str] = []
    first = Store(tmp_path).get("thing", {"a": 1}, writing("x", calls))
    assert Store(tmp_path).get("thing", {"a": 1}, writing("x", calls)) == first
    other = Store(tmp_path).get("thing", {"a": 2}, writing("y", calls))
    assert calls == ["x", "y"] and other != first
    assert (first / "value.txt").read_text() == "x"
    entry = json.loads((first / "entry.json").read_text())
    assert entry["recipe"] == {"a": 1} and set(entry["files"]) == {"value.txt", "deep/more.txt"}


def test_a_build_that_fails_leaves_nothing_and_the_next_one_succeeds(tmp_path):
    def failing(folder: Path) -> None:
        (folder / "half.txt").write_text("half")
        raise RuntimeError("power cut")

    store = Store(tmp_path)
    with pytest.raises(RuntimeError):
        store.get("thing", {"a": 1}, failing)
    assert not store.folder("thing", {"a": 1}).exists()
    folder = store.get("thing", {"a": 1}, writing("x", []))
    assert not (folder / "half.txt").exists()


def test_a_store_that_does_not_wait_says_that_an_entry_is_being_made(tmp_path):
    one, other, calls = Store(tmp_path), Store(tmp_path), []
    other.waits = False

    def both(folder: Path) -> None:
        with pytest.raises(Busy):
            other.get("thing", {"a": 1}, writing("y", calls))
        other.get("thing", {"a": 2}, writing("z", calls))
        writing("x", calls)(folder)

    made = one.get("thing", {"a": 1}, both)
    assert calls == ["z", "x"]
    assert other.get("thing", {"a": 1}, writing("y", calls)) == made


BUILDER = """
import sys, time
from pathlib import Path
from unlearn.store.entries import Busy, Store
from unlearn.store.files import DiskError
def build(folder):
    with open(sys.argv[2], "a") as log: log.write("built\\n")
    time.sleep(0.2)
    (folder / "value.txt").write_text("done")
print((Store(sys.argv[1]).get("thing", {"a": 1}, build) / "value.txt").read_text())
"""


def test_parallel_jobs_build_an_entry_once(tmp_path):
    log = tmp_path / "log.txt"
    jobs = [
        subprocess.Popen([sys.executable, "-c", BUILDER, str(tmp_path / "store"), str(log)], cwd=ROOT, text=True,
                         stdout=subprocess.PIPE)
        for _ in range(3)
    ]  # fmt: skip
    assert [job.communicate()[0].strip() for job in jobs] == ["done"] * 3
    assert log.read_text() == "built\n"


def test_an_entry_that_another_user_may_not_read_is_named_and_not_built_again(tmp_path, monkeypatch):
    """By injection, as root may read everything."""
    calls: list[str] = []
    Store(tmp_path).get("thing", {"a": 1}, writing("x", calls))

    def shut(self, *arguments, real=Path.open, **more):
        if self.name == "entry.json":
            raise PermissionError(13, "Permission denied", str(self))
        return real(self, *arguments, **more)

    monkeypatch.setattr(Path, "open", shut)
    with pytest.raises(DiskError, match="thing/[0-9a-f]+, which another user made, cannot be read: Permission denied"):
        Store(tmp_path).get("thing", {"a": 1}, writing("x", calls))
    assert calls == ["x"]
