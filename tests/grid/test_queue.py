"""One grid that was started on several machines over one folder: each run and entry of the store is made once.

Machines are processes here, in forks of one that has imported the program. What each of them commits to the disk is
counted.
"""

import json
import re
import shutil
import time
from collections import Counter
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pytest
from support.helpers import TINY, command, compose, forked, forked_together, job_of
from support.processes import Ended

from unlearn.grid import launchers, queue
from unlearn.grid.perform import perform
from unlearn.grid.table import report
from unlearn.store import runlog

MODULE = "unlearn.run"
GRID = ("-m", *TINY, "paths.store=store", "eval.resamples=0", "eval.max_examples=3")
SAME = ("metrics.jsonl", "eval.json", "examples.parquet", "references.parquet", "offset/model.safetensors")


def results(cwd: Path) -> dict[str, bytes]:
    runs = sorted(p.parent for p in cwd.glob("runs/default/*/manifest.json"))
    return {f"{run.name}/{name}": (run / name).read_bytes() for run in runs for name in SAME}


def made(machines: list[Ended]) -> Counter[str]:
    """How often each entry of the store got its name, each run its weights and its end, by all machines together."""
    found = Counter(line.removeprefix("replace ") for m in machines for line in set(m.commits))
    wanted = re.compile(r"store/[a-z]+/[0-9a-f]{20}|runs/default/[^/]+/(offset|eval.json)")
    return Counter({name: count for name, count in found.items() if wanted.fullmatch(name)})


def table(machine: Ended) -> list[list[str]]:
    """The lines of the end table, without status, which says what was done before the call began."""
    lines = [line.split() for line in machine.stdout.splitlines() if " offset " in line and line[0] != "["]
    return [line[:-2] if line[-2:] == ["done", "before"] else line[:-1] for line in lines]


def entries(cwd: Path) -> set[str]:
    return {str(p.parent.relative_to(cwd)) for p in cwd.glob("store/*/*/entry.json")}


def made_once(machines: list[Ended], cwd: Path, runs: int) -> None:
    """Each machine that was not killed ended well, with the whole table; and everything there is was made once."""
    alive = [m for m in machines if m.returncode != -9]
    for machine in alive:
        assert machine.returncode == 0, machine.printed
        assert len(table(machine)) == runs and table(machine) == table(alive[0])
    counts = made(machines)
    assert set(counts.values()) == {1}, counts
    assert entries(cwd) == {name for name in counts if name.startswith("store/")}
    assert sum(name.endswith("/offset") for name in counts) == runs
    assert all(runlog.manifest(f.parent)["status"] == "done" for f in cwd.glob("runs/default/*/manifest.json"))


def test_two_machines_that_start_on_a_cold_store_make_everything_once(tmp_path):
    grid = (*GRID, "eval.retrained=none", "algo=ga", "seed=0,1")
    machines = forked_together(MODULE, *grid, cwds=[tmp_path] * 2, late=[0, 0.3])
    made_once(machines, tmp_path, 2)
    assert [m.stdout.count(" done in ") for m in machines] == [1, 1], "one machine did all runs"


@pytest.mark.nightly
def test_four_machines_one_late_and_one_killed_end_a_grid_of_twelve_as_one_does(tmp_path):
    grid = (*GRID, "trainer.save_every=1", "algo=ga,npo,kl", "seed=0,1,2,3")
    (tmp_path / "alone").mkdir()
    alone = forked(MODULE, *grid, cwd=tmp_path / "alone", kill="")
    assert alone.returncode == 0
    (tmp_path / "shared").mkdir()
    first = next(iter(re.findall(r"runs/default/[^/]+/metrics.jsonl 1", "\n".join(alone.commits))))
    kills = [f"after append {first}"] * 2 + ["", "", ""]
    cwds = [tmp_path / "shared"] * 5
    machines = forked_together(MODULE, *grid, cwds=cwds, kill=kills, late=[0, 0.3, 0.6, 0.9, 8])
    killed = [m.returncode for m in machines].count(-9)
    assert killed in (1, 2), "the first run is done by one of two, which is then killed; the other may take it up"
    made_once(machines, tmp_path / "shared", 12)
    assert results(tmp_path / "shared") == results(tmp_path / "alone")
    assert made(machines).keys() == made([alone]).keys()
    assert table(machines[-1])[0][:4] == table(alone)[0][:4]


@pytest.mark.nightly
def test_machines_take_worlds_of_their_own_where_there_are_several(tmp_path):
    grid = (*GRID, "algo=ga", "seed=0,1", "pair.seed=0,1")
    machines = forked_together(MODULE, *grid, cwds=[tmp_path] * 2)
    made_once(machines, tmp_path, 4)
    trained = [re.findall(r"training the target model", m.printed) for m in machines]
    assert [len(found) for found in trained] == [1, 1], "each machine trained the target of one world"


def test_what_killed_a_worker_of_the_call_is_not_done_by_the_call_itself(jobs):
    runlog.fail(jobs[0], launchers.Killed("its process was killed"), "killed")
    assert queue.is_left(jobs[0])  # to another call
    assert launchers.resume(pytest.fail, jobs[:1], began=0.0) == []


@pytest.mark.nightly
def test_joblibs_workers_leave_what_another_machine_has_and_the_call_does_it_at_the_end(tmp_path, store):
    settings = (*TINY, f"paths.store={store}", "algo=ga")
    options = ("-m", "hydra/launcher=joblib", "hydra.launcher.n_jobs=2", *settings, "seed=0,1")
    first, second = (
        job_of(compose(*settings, f"paths.runs={tmp_path}/runs", f"seed={seed}")).folder for seed in (0, 1)
    )
    with ThreadPoolExecutor(1) as pool:
        held = launchers.lock(first).acquire(timeout=0)
        call = pool.submit(command, MODULE, *options, cwd=tmp_path, fresh=True)
        while runlog.status(second).get("status") != "done":
            assert not call.done(), call.result()
            time.sleep(0.2)
        assert not first.exists()
        held.lock.release()
        ended = call.result()
    assert len(table(ended)) == 2 and runlog.status(first)["status"] == "done"


@pytest.fixture
def jobs(config, tmp_path):
    """With a store of their own: in the session's other workers of the tests hold the same worlds."""
    asked = [(f"seed={seed}", f"pair.seed={world}") for seed in (0, 1) for world in (0, 1)]
    return [job_of(config("algo=ga", f"paths.store={tmp_path}/store", *each)) for each in asked]


@pytest.fixture
def call(jobs):
    queue.begin(jobs)
    yield jobs
    queue.end()


def test_what_failed_before_the_call_is_tried_again_and_what_failed_elsewhere_since_is_not(jobs, monkeypatch):
    runlog.fail(jobs[0], OSError("before"))
    queue.begin(jobs)
    runlog.fail(jobs[1], OSError("on another machine"))
    tried = []
    monkeypatch.setattr("unlearn.grid.perform._execute", tried.append)
    assert [perform(job) for job in jobs[:2]] == [False, False]
    assert tried == [jobs[0]]
    queue.end()
    assert not perform(jobs[1]) and tried == [jobs[0], jobs[1]], "outside a call"


def test_a_run_that_kills_who_takes_it_is_put_off_and_has_failed_after_three_that_came_no_further(call, monkeypatch):
    tried, job = [], call[0]

    def taken(dead: bool = True) -> bool:
        if dead:
            runlog.fail(job, OSError(), "running")  # as it is left where nobody holds its lock
        return perform(job)

    monkeypatch.setattr("unlearn.grid.perform._execute", tried.append)
    assert taken() and not tried, "the others of the call come first"
    assert [taken(dead=False), taken(), launchers.deaths(job)] == [False, False, 2] and len(tried) == 2
    (job.folder / "checkpoint").mkdir()
    (job.folder / "checkpoint" / "model-8.pt").touch()
    assert [taken(), launchers.deaths(job), taken(), taken()] == [False, 1, False, False] and len(tried) == 4
    found = runlog.manifest(job.folder)
    assert found["status"] == "failed" and "it has killed 3 processes, one after another" in found["error"]
    queue.begin(call)
    assert taken(dead=False) and not taken(dead=False) and len(tried) == 5, "the same command tries it again, last"
    assert not taken() and runlog.manifest(job.folder)["status"] == "failed" and len(tried) == 5


def test_a_run_that_another_process_holds_is_left_and_done_when_it_is_free(call, monkeypatch):
    tried, naps = [], []
    monkeypatch.setattr("unlearn.grid.perform._execute", tried.append)
    held = launchers.lock(call[0].folder).acquire()

    def sleep(seconds):
        naps.append(seconds)
        if len(naps) == 3:
            held.lock.release()

    monkeypatch.setattr(queue.time, "sleep", sleep)
    queue.share(perform, call[:2])
    assert tried == [call[1], call[0]] and len(naps) == 3 and naps == sorted(naps)


def test_a_run_that_is_done_has_not_failed_where_another_user_keeps_its_lock(call, monkeypatch, caplog):
    held = launchers.lock(call[0].folder)
    Path(held.lock_file).mkdir()  # as root, too, cannot open it
    caplog.set_level("INFO")
    monkeypatch.setattr(runlog, "is_done", lambda job: job is call[0])
    assert not perform(call[0]) and "skipped" in caplog.text and not call[0].folder.exists()


def test_a_world_that_another_process_is_at_work_on_is_left_while_there_is_another(call, monkeypatch):
    tried = []
    monkeypatch.setattr("unlearn.grid.perform._execute", lambda job: tried.append(call.index(job)))
    with queue.world(call[0]) as first:
        assert first
        assert [perform(job) for job in call[:2]] == [True, False], "the other world is free"
        with queue.world(call[1]):
            assert [perform(job) for job in call[2:]] == [False, False], "none is"
    assert tried == [1, 2, 3]


def test_a_run_whose_folder_is_removed_while_it_is_at_work_ends_by_name_and_touches_no_other(
    config, monkeypatch, capsys
):
    """The lock went with it, so that another machine may be at work in a folder of the same name."""
    job, logged = job_of(config("algo=ga", "seed=9")), runlog.RunLog.log

    def removed(self, step, epoch, values):
        if step == 1:
            shutil.rmtree(self.folder)
            self.folder.mkdir()
            (self.folder / "manifest.json").write_text('{"format": 1, "status": "running", "run": {}}')
        logged(self, step, epoch, values)

    monkeypatch.setattr(runlog.RunLog, "log", removed)
    assert not perform(job) and report([job]) == 1
    assert "was removed while it was worked on; rerun the same command" in capsys.readouterr().out
    assert runlog.manifest(job.folder)["status"] == "running" and len(list(job.folder.iterdir())) == 1


def test_a_mark_changes_with_every_manifest_and_with_no_clock(jobs):
    runlog.fail(jobs[0], OSError("x"))
    first = queue._mark(jobs[0])
    assert queue._mark(jobs[0]) == first != queue._mark(jobs[1])
    runlog.fail(jobs[0], OSError("x"))
    assert json.loads((jobs[0].folder / "manifest.json").read_text())["status"] == "failed"
    assert queue._mark(jobs[0]) != first
