"""A full disk and folders that cannot be written: named, with what to do, and no half file under a final name."""

import errno
import logging
import os
import subprocess
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import Mock

import numpy as np
import pandas as pd
import pytest
import torch
from filelock import FileLock
from matplotlib.figure import Figure
from safetensors.torch import save_file
from support.helpers import TINY, compose, job_of, random_examples, tiny_llama

from analysis import style
from analysis.output import whole
from analysis.runs import StudyError, load
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.frozen import stored
from unlearn.grid import perform as performing
from unlearn.grid import table
from unlearn.grid.refusal import printable
from unlearn.store import files, runlog
from unlearn.store.entries import Store, fault
from unlearn.store.files import DiskError, write_json, write_whole


@contextmanager
def disk(folder: Path, kilobytes: int):
    """A file system of its own in ``folder``; skips where none may be mounted, as by all but root."""
    folder.mkdir()
    mount = ["mount", "-t", "tmpfs", "-o", f"size={kilobytes}k", "tmpfs", str(folder)]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no file system may be mounted here")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "-l", str(folder)], check=True)


@pytest.fixture
def small(tmp_path):
    """A disk of 64 kB."""
    with disk(tmp_path / "disk", 64) as folder:
        yield folder


def content(folder: Path) -> list[str]:
    return sorted(str(p.relative_to(folder)) for p in folder.rglob("*") if p.is_file())


WRITERS = {
    "text": lambda p: p.write_text("x" * 100_000),
    "weights": lambda p: save_file({"w": torch.zeros(50_000)}, p),
    "torch": lambda p: torch.save({"w": torch.zeros(50_000)}, p),
    "table": lambda p: pd.DataFrame({"x": np.random.default_rng(0).random(50_000)}).to_parquet(p),
}


@pytest.mark.parametrize("kind", WRITERS)
def test_a_file_for_which_there_is_no_room_is_named_and_nothing_of_it_is_left(small, kind):
    path = small / "final"
    path.write_text("before")
    with pytest.raises(DiskError, match=r"final could not be written, its disk is full \(.* free; make room there"):
        write_whole(path, WRITERS[kind])
    assert content(small) == ["final"] and path.read_text() == "before"


def test_a_folder_an_entry_of_the_store_and_a_figure_for_which_there_is_no_room_leave_what_was_there(
    small, monkeypatch
):
    figure = Figure(figsize=(20, 20), dpi=200)
    figure.add_subplot().imshow(np.random.default_rng(0).random((300, 300)))
    with pytest.raises(StudyError, match="big.png could not be written: No space left on device; nothing is left"):
        style.save(figure, small, "big")
    assert content(small) == []
    write_whole(small / "offset", lambda f: (f.mkdir(), (f / "a").write_text("before")))
    with pytest.raises(DiskError, match="offset could not be written, its disk is full"):
        write_whole(small / "offset", lambda f: (f.mkdir(), (f / "a").write_text("y"), WRITERS["weights"](f / "b")))
    assert content(small) == ["offset/a"] and (small / "offset" / "a").read_text() == "before"
    store = Store(small)
    with pytest.raises(DiskError, match="rows/[0-9a-f]+ could not be written, its disk is full"):
        store.get("rows", {"of": 1}, lambda f: WRITERS["weights"](f / "w"))
    assert [p for p in content(small) if not p.startswith(".locks")] == ["offset/a"]
    with monkeypatch.context() as patch, pytest.raises(DiskError, match="lock could not be written, its disk is full"):
        patch.setattr(FileLock, "acquire", Mock(side_effect=OSError(errno.ENOSPC, "No space left on device")))
        store.get("rows", {"of": 2}, lambda f: (f / "w").write_text("less"))
    folder = store.get("rows", {"of": 1}, lambda f: (f / "w").write_text("less"))
    assert fault(folder) is None


def test_rows_for_which_there_is_no_room_are_refused_by_name_and_need_before_they_are_mapped(small):
    """Where a disk fills under a memory map, the system ends the process."""
    member = Member("target", tiny_llama(0), "print", 1.0, 0.0, False)
    words = r"rows/\w+ could not be written, its disk is full \(0.\d MB are needed, 0.1 MB are free; make room there"
    for kind, k in (("fp32", 0), ("topk", 20)):
        with pytest.raises(DiskError, match=words):
            stored(Store(small), member, random_examples(300), 0, kind=kind, k=k)
    assert not [p for p in content(small) if not p.startswith(".locks")]


def perform(store: Path, runs: Path):
    """One job in this process, as a grid performs it; its folder, and what the end table says."""
    settings = (*TINY, "trainer.save_every=1", "eval.groups=[]", "eval.resamples=0", "eval.max_examples=3")
    job = job_of(compose(*settings, f"paths.store={store}", f"paths.runs={runs}"))
    performing.perform(job)
    return job, table.report([job])


@pytest.mark.parametrize(
    "kilobytes", [4, 40, 80, *(pytest.param(n, marks=pytest.mark.nightly) for n in (12, 24, 56, 64))]
)
def test_a_run_on_a_full_disk_fails_by_name_and_goes_on_when_there_is_room(tmp_path, store, kilobytes, capsys):
    """The fuller the disk, the earlier it fails: config, manifest, trajectory, checkpoint, weights, tables."""
    with disk(tmp_path / "disk", kilobytes) as runs:
        job, failed = perform(store, runs)
        said = capsys.readouterr().out
        assert failed == 1 and "could not be written, its disk is full" in said and " failed" in said
        assert "Traceback" not in said
        for name in content(runs):
            assert ".tmp" not in name and "/.offset" not in name, name
        for name in ("manifest.json", "eval.json"):  # whole, or not there
            files.read_json(job.folder / name)
        assert load(job.folder.parent).runs["status"].isin(["failed", "running", "unknown"]).all()
        subprocess.run(["mount", "-o", "remount,size=8m", str(runs)], check=True)
        job, failed = perform(store, runs)
        assert failed == 0 and runlog.manifest(job.folder)["status"] == "done"


def test_a_failure_that_cannot_be_recorded_is_told_by_the_end_table(config, monkeypatch, capsys):
    job = job_of(config())
    monkeypatch.setattr(runlog, "write_json", Mock(side_effect=DiskError(errno.ENOSPC, "full")))
    runlog.fail(job, RuntimeError("the reason"))
    assert table.report([job]) == 1
    said = capsys.readouterr().out
    assert "RuntimeError: the reason" in said and "failed" in said
    monkeypatch.undo()
    runlog.fail(job, RuntimeError("again"))
    assert runlog.manifest(job.folder)["error"] == "RuntimeError: again" and job.folder not in runlog.unrecorded


@pytest.mark.parametrize(
    ("place", "number"),
    [(".locks", errno.EROFS), ("-a1-", errno.EACCES), ("log.txt", errno.EPERM), ("manifest.json", errno.EROFS),
     ("metrics.jsonl", errno.EACCES), ("offset", errno.EPERM)],
)  # fmt: skip
def test_a_folder_that_cannot_be_written_fails_the_job_and_no_other(
    tmp_path, store, monkeypatch, capsys, place, number
):
    """By injection, as root may write everywhere."""

    def shut(real):
        def call(self, *arguments, **more):
            mode = more.get("mode", arguments[0] if arguments else "r") if real.__name__ == "open" else "w"
            if place in self.name and mode[0] != "r":
                raise OSError(number, os.strerror(number), str(self))
            return real(self, *arguments, **more)

        return call

    def refused(self, path, **more):
        raise OSError(number, os.strerror(number), str(path))

    for name in ("mkdir", "open", "write_text", "replace"):
        monkeypatch.setattr(Path, name, shut(getattr(Path, name)))
    if place == "log.txt":
        monkeypatch.setattr(performing.logging.FileHandler, "__init__", refused)
    job, failed = perform(store, tmp_path / "runs")
    said = capsys.readouterr().out
    assert failed == 1 and os.strerror(number) in said and "could not be written" in said
    assert not [name for name in content(tmp_path) if ".tmp" in name or "/.offset" in name]
    monkeypatch.undo()
    assert perform(store, tmp_path / "runs")[1] == 0


@pytest.mark.parametrize("after", [0, 5000])
def test_no_room_after_some_bytes_and_another_reason_which_keeps_its_error(tmp_path, after):
    full = OSError(errno.ENOSPC, "No space left on device")

    def write(path, error=full):
        with path.open("wb") as stream:
            stream.write(b"x" * after)
            raise error

    with pytest.raises(DiskError, match="file could not be written, its disk is full"):
        write_whole(tmp_path / "file", write)
    with pytest.raises(StudyError, match="could not be written: No space left on device"):
        with whole(tmp_path / "page") as half:
            write(half)
    with pytest.raises(ValueError, match="not a number"):
        write_whole(tmp_path / "x", lambda path: write(path, ValueError("not a number")))
    assert not content(tmp_path)


def test_json_is_written_whole_or_not_at_all(tmp_path, monkeypatch):
    write_json(tmp_path / "m.json", {"a": 1})
    monkeypatch.setattr(os, "replace", Mock(side_effect=OSError(errno.EROFS, "Read-only file system")))
    with pytest.raises(DiskError, match="m.json could not be written: Read-only file system; let it be written"):
        write_json(tmp_path / "m.json", {"a": 2})
    assert files.read_json(tmp_path / "m.json") == {"a": 1} and content(tmp_path) == ["m.json"]


def test_a_log_for_which_there_is_no_room_says_nothing_line_after_line(capsys, monkeypatch):
    monkeypatch.setattr(logging, "raiseExceptions", True)
    printable()
    handler = logging.StreamHandler(Mock(write=Mock(side_effect=OSError(errno.ENOSPC, "no room"))))
    handler.handle(logging.makeLogRecord({"msg": "of W&B"}))
    assert handler.stream.write.called and not capsys.readouterr().err
