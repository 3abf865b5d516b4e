"""Locks hold between processes whatever path leads to a folder; where they cannot, that is said before any work."""

import errno
import fcntl
import logging
import os
import subprocess

import pytest
from support.helpers import python

from unlearn.grid import call
from unlearn.store import locks
from unlearn.store.files import DiskError, write_text, write_whole

ASKS = """
import sys; from pathlib import Path; from unlearn.store import locks
for folder in sys.argv[1:]:
    print(locks.free(locks.lock(Path(folder), "run")) is not None)
"""


@pytest.fixture
def unprobed():
    locks._missing.cache_clear()
    yield
    locks._missing.cache_clear()


def test_a_lock_holds_in_another_process_through_another_mount_and_a_link(tmp_path):
    (tmp_path / "a").mkdir()
    (tmp_path / "b").mkdir()
    (tmp_path / "c").symlink_to("a")
    mount = ["mount", "--bind", str(tmp_path / "a"), str(tmp_path / "b")]
    if os.geteuid() != 0 or subprocess.run(mount, capture_output=True).returncode:
        pytest.skip("no folder may be mounted twice here")
    try:
        places = [str(tmp_path / name) for name in "abc"]
        with locks.lock(tmp_path / "a", "run").acquire(timeout=0):
            assert python("-c", ASKS, *places).stdout.split() == ["False"] * 3
        assert python("-c", ASKS, *places).stdout.split() == ["True"] * 3
    finally:
        subprocess.run(["umount", "-l", str(tmp_path / "b")], check=True)


def without(number):
    def flock(descriptor, how):
        if number is not None:
            raise OSError(number, os.strerror(number))

    return flock


@pytest.mark.parametrize(
    ("number", "why"),
    [(errno.ENOSYS, "Function not implemented"), (errno.ENOLCK, "No locks available"), (None, "one is given to two")],
)
def test_a_file_system_without_locks_is_refused_by_name_before_any_work(
    tmp_path, store, config, monkeypatch, unprobed, number, why
):
    monkeypatch.setattr(fcntl, "flock", without(number))
    with pytest.raises(DiskError, match=rf"\.locks: its file system has no locks that hold \({why}\).*mount it with"):
        locks.lock(tmp_path / ".locks", "run")
    assert not [p for p in (tmp_path / ".locks").iterdir()]
    cfg = config("algo=ga")
    problems = call._problems([call.job(cfg, "data")])
    assert len(problems) == 1 and why in problems[0]


MOUNT = "36 35 0:32 / {point} rw,relatime shared:1 - {kind} server:/x rw,vers=4.2,{option}\n"


@pytest.mark.parametrize(
    ("kind", "option", "said"),
    [
        ("nfs4", "local_lock=none", None),
        ("nfs", "nolock", "mounted with nolock, so that locks hold on this machine alone"),
        ("nfs", "local_lock=flock", "mounted with local_lock=flock"),
        ("lustre", "flock", None),
        ("lustre", "localflock", "mounted with localflock"),
        ("fuse.sshfs", "user_id=0", "is fuse.sshfs, whose locks may hold on this machine alone"),
        ("ext4", "discard", None),
    ],
)
def test_locks_that_reach_no_other_machine_are_told_by_the_mount_and_said_once(
    tmp_path, monkeypatch, caplog, unprobed, kind, option, said
):
    point = tmp_path / "a share"
    (tmp_path / "mounts").write_text(
        MOUNT.format(point="/", kind="ext4", option="")
        + MOUNT.format(point=str(point).replace(" ", "\\040"), kind=kind, option=option)
    )
    monkeypatch.setattr(locks, "MOUNTS", tmp_path / "mounts")
    with caplog.at_level(logging.WARNING):
        for name in ("one", "two"):
            locks.lock(point / "runs" / ".locks", name)
    assert len(caplog.messages) == (said is not None) and (said or "") in "".join(caplog.messages)
    assert locks.networked(point / "runs") == (kind != "ext4") and not locks.networked(tmp_path)


def test_two_writers_of_one_file_do_not_meet_even_with_one_process_number(tmp_path):
    def write(path):
        path.write_text("whole")
        write_text(tmp_path / "summary.csv", "of another machine")  # in the middle of it

    write_whole(tmp_path / "summary.csv", write)
    assert (tmp_path / "summary.csv").read_text() == "whole" and len(list(tmp_path.iterdir())) == 1
