"""Files and folders that are whole or absent, also after a power cut."""

import hashlib
import os

import pytest
import torch
from safetensors.torch import save_file

from unlearn.store import files
from unlearn.store.files import noted, sha256, sweep, write_text, write_whole


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


def test_a_file_is_hashed_once_while_it_stays_as_it_is(tmp_path, monkeypatch):
    file, reads = tmp_path / "file", []
    monkeypatch.setattr(hashlib, "file_digest", lambda *a, real=hashlib.file_digest: (reads.append(0), real(*a))[1])

    def long_ago(text: str) -> str:
        file.write_text(text)
        os.utime(file, (1e9, 1e9))
        return sha256(file)

    first = long_ago("one")
    assert sha256(file) == first == hashlib.sha256(b"one").hexdigest() and len(reads) == 1
    assert long_ago("three") != first and len(reads) == 2
    file.write_text("new")
    for text in ("one", "two"):  # so shortly after each other that their times may be equal
        file.write_text(text)
        assert sha256(file) == hashlib.sha256(text.encode()).hexdigest()


def test_what_was_found_out_about_a_file_is_kept_until_it_changes(tmp_path):
    file, notes, looks = tmp_path / "file", tmp_path / "notes", []

    def find(path):
        looks.append(path.read_text())
        return f"found {looks[-1]}"

    file.write_text("one")
    assert [noted(notes, file, find) for _ in range(2)] == ["found one"] * 2 and looks == ["one"]
    assert noted(notes, file, lambda _: "other", "another question ") == "other"
    file.write_text("longer")
    assert noted(notes, file, find) == "found longer"


def test_what_is_written_is_for_whom_the_umask_says_whatever_the_library_that_wrote_it(tmp_path, monkeypatch):
    monkeypatch.setattr(files, "MASK", 0o027)

    def write(folder):
        folder.mkdir()
        save_file({"x": torch.zeros(1)}, folder / "model.safetensors")  # which makes it its owner's alone

    write_whole(tmp_path / "entry", write, durable=False)
    write_whole(tmp_path / "x.safetensors", lambda path: save_file({"x": torch.zeros(1)}, path))
    written = tmp_path / "entry" / "model.safetensors", tmp_path / "x.safetensors"
    assert [path.stat().st_mode & 0o777 for path in written] == [0o640, 0o640]
