"""Files and folders that are whole or absent, also after a power cut."""

import os

import pytest

from unlearn.store.files import sweep, write_text, write_whole


@pytest.fixture
def events(monkeypatch):
    """What was asked of the disk, in order: ("fsync", inode) and ("rename", inode)."""
    found = []

    def noticed(real):
        def moved(source, target):
            found.append(("rename", os.stat(source).st_ino))
            real(source, target)

        return moved

    for name in ("replace", "rename"):
        monkeypatch.setattr(os, name, noticed(getattr(os, name)))
    real = os.fsync
    monkeypatch.setattr(os, "fsync", lambda fd: (found.append(("fsync", os.fstat(fd).st_ino)), real(fd)))
    return found


def test_what_is_renamed_is_on_the_disk_before(tmp_path, events):
    write_text(tmp_path / "file.txt", "text")
    file, here = (tmp_path / "file.txt").stat().st_ino, tmp_path.stat().st_ino
    assert events == [("fsync", file), ("rename", file), ("fsync", here)]
    events.clear()

    def write(folder):
        folder.mkdir()
        (folder / "inside").write_text("text")

    write_whole(tmp_path / "folder", write)
    folder = tmp_path / "folder"
    inside, itself = (folder / "inside").stat().st_ino, folder.stat().st_ino
    assert events == [("fsync", inside), ("fsync", itself), ("rename", itself), ("fsync", here)]


def test_what_a_killed_writer_left_is_swept_and_nothing_else(tmp_path):
    for name in (".eval.json.123.tmp", "eval.json", ".hidden", "notes.tmp"):
        (tmp_path / name).write_text("")
    sweep(tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"eval.json", ".hidden", "notes.tmp"}
