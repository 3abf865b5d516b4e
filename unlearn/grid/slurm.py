"""hydra/launcher=submitit_slurm: a Slurm job for each run that has work to do, and a call that waits for all of them.

submitit hands jobs to Slurm and has those that are preempted or out of time put back into the queue. What the plugin
lacks is here: to see the end of jobs on clusters without accounting, to wait for every job whatever became of the
others, to submit again what was lost, and to find the jobs of a call that was killed.
"""

import subprocess
import sys
import time
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import fields
from pathlib import Path
from typing import Any

from hydra.core.singleton import Singleton

from unlearn.config.redaction import redact
from unlearn.config.schema import ConfigError
from unlearn.grid import launchers
from unlearn.grid.refusal import refuse, said
from unlearn.runs import stopping
from unlearn.store import locks, runlog
from unlearn.store.files import read_json, saving, write_json
from unlearn.store.identity import Job
from unlearn.store.progress import progress

try:
    import submitit
    from hydra_plugins.hydra_submitit_launcher.config import BaseQueueConf
    from hydra_plugins.hydra_submitit_launcher.submitit_launcher import SlurmLauncher
    from submitit.core.utils import FailedJobError, FailedSubmissionError
    from submitit.slurm.slurm import SlurmInfoWatcher, SlurmJob
except ImportError as error:
    raise ConfigError(f"hydra/launcher=submitit_slurm: {error}; pip install 'delta-unlearning[launchers]'") from None

ASKING = 30  # seconds between two questions to Slurm at most; the first come after 2, 4, 8
TIMES = 3  # that a call submits a run at most: what killed it may do so again; as often a job may run out of time
GONE = "GONE"  # Slurm forgets a job MinJobAge seconds after its end
LOST = {"TIMEOUT", "PREEMPTED", "NODE_FAIL", "BOOT_FAIL", "OUT_OF_MEMORY"}  # ends that are no fault of the run
ENDED = {*LOST, "CANCELLED", "COMPLETED", "FAILED", "DEADLINE", GONE}
USUAL = {"None", "Priority", "Resources", "BeginTime", "JobArrayTaskLimit", "Dependency", "Cleaning", "Prolog"}


class Watcher(SlurmInfoWatcher):
    """The states of jobs by squeue, which every cluster has.

    submitit asks sacct: without accounting that prints a warning each time, and a job that was killed never ends.
    """

    def __init__(self) -> None:
        super().__init__(delay_s=ASKING)
        self._silent = False
        self._said: set[str] = set()

    def is_done(self, job_id: str, mode: str = "standard") -> bool:
        return self.get_state(job_id, mode) in ENDED

    def update(self) -> None:
        """Ask for all jobs at once."""
        asked = self._registered - self._finished
        if not asked:
            return
        self._num_calls += 1
        self._last_status_check = time.time()
        ids = ",".join(sorted({each.partition("_")[0] for each in asked}))
        command = ["squeue", "--noheader", "--array", "--states=all", "--format=%i|%T|%r", f"--jobs={ids}"]
        done = subprocess.run(command, capture_output=True, text=True, check=False)
        if done.returncode and "Invalid job id" not in done.stderr:  # which it says of one that it has forgotten
            if not self._silent:
                _say(f"squeue does not answer ({_last(done.stderr)}); it is asked again and again")
            self._silent = True
            return
        self._silent = False
        found = {id: (state, why) for id, state, why in (line.split("|", 2) for line in done.stdout.splitlines())}
        for each in asked:
            state, why = found.get(each, (GONE, ""))
            self._info_dict[each] = {"State": state}
            if state in ENDED:
                self._finished.add(each)
            elif state == "PENDING" and why not in USUAL and why not in self._said:
                self._said.add(why)
                _say(f"job {each} waits: {why}; scontrol show job {each} says more")


def install(jobs: Sequence[Job], numbers: Sequence[int]) -> None:
    """Have the plugin launch jobs as ``Waiting`` does: ``numbers`` are those that Hydra gives to ``jobs``.

    Set on the plugin's class, since Hydra takes launchers from no package but hydra_plugins.
    """
    asked = dict(zip(numbers, jobs, strict=True))

    def launch(self: SlurmLauncher, job_overrides: Sequence[Sequence[str]], initial_job_idx: int) -> Sequence[Any]:
        here = {initial_job_idx + k: overrides for k, overrides in enumerate(job_overrides)}
        Waiting(self, {n: (asked[n], o) for n, o in here.items() if n in asked and not asked[n].was_done}).all()
        return []

    SlurmJob.watcher = Watcher()
    SlurmLauncher.launch = launch


class Waiting:
    """The runs of a call that are not done, by Hydra's number, and the Slurm jobs that work on them."""

    def __init__(self, launcher: SlurmLauncher, asked: dict[int, tuple[Job, Sequence[str]]]):
        self.launcher, self.asked = launcher, asked
        self.times = dict.fromkeys(asked, 0)  # submitted
        self.left = list(asked)  # to be submitted
        self.jobs: dict[int, SlurmJob] = {}

    def all(self) -> None:
        """Submit, and wait until no job is left. A signal ends the wait, not the jobs."""
        with progress(len(self.asked), "Slurm", unit="job") as bar:
            try:
                while self.left or self.jobs:
                    self._begin()
                    time.sleep(1)
                    for number in [n for n, job in self.jobs.items() if job.done()]:
                        self._ended(number)
                    bar.update(len(self.asked) - len(self.left) - len(self.jobs) - bar.done)
            except KeyboardInterrupt:
                if self.jobs:
                    ids = _arrays(self.jobs.values())
                    _say(f"the jobs continue, and the same command waits for them again; to cancel them: scancel {ids}")
                raise

    def _begin(self) -> None:
        """Find jobs of earlier or other calls that are still there, and submit the rest. One at a time for a run."""
        ready = {self.asked[n][0].folder: n for n in reversed(self.left)}  # of several α's of one run the first
        for number in self.jobs:
            ready.pop(self.asked[number][0].folder, None)
        if not ready:
            return
        lock = locks.lock(next(iter(ready)).parent / locks.LOCKS, "slurm")
        with locks.locked(lock, "the Slurm jobs of this study"), stopping.patiently():
            notes = {folder: read_json(_note(folder)) for folder in ready}
            for folder, job in {folder: SlurmJob(**noted) for folder, noted in notes.items() if noted}.items():
                if not job.done():  # asked for all at once
                    self.jobs[ready.pop(folder)] = job
                    _say(f"waiting for job {job.job_id}, which works on {folder.name}")
            if ready:
                self._submit(sorted(ready.values()))
        self.left = [n for n in self.left if n not in self.jobs]

    def _submit(self, numbers: Sequence[int]) -> None:
        given = [
            (list(self.asked[n][1]), "hydra.sweep.dir", n, f"job_id_for_{n}", Singleton.get_state()) for n in numbers
        ]
        try:
            executor = _executor(self.launcher.params)
            jobs = executor.map_array(self.launcher, *zip(*given, strict=True))
        except (OSError, RuntimeError, ValueError, FailedJobError, FailedSubmissionError) as error:
            why = said(error) if isinstance(error, OSError) else redact(str(error).strip()) or type(error).__name__
            if not self.jobs:
                raise SystemExit(refuse(f"hydra.launcher: no job was submitted: {why}", error)) from None
            _say(f"{len(numbers)} jobs could not be submitted: {why}")
            self.left = [n for n in self.left if n not in numbers]
            return
        for number, job in zip(numbers, jobs, strict=True):
            self.times[number] += 1
            self.jobs[number] = job
            write_json(_note(self.asked[number][0].folder), {"folder": str(executor.folder), "job_id": job.job_id})
        ids, folder = _arrays(jobs), jobs[0].paths.folder.parent
        _say(f"{len(jobs)} jobs submitted (squeue -j {ids}; scancel {ids}); what they print is in {folder}")

    def _ended(self, number: int) -> None:
        """What became of a job: nothing to say where its run is done; a run that was lost is to be submitted again."""
        job, run = self.jobs.pop(number), self.asked[number][0]
        locks.look_again(run.folder)
        launchers.mark_killed(run)
        status, state = runlog.status(run.folder).get("status"), SlurmJob.watcher.get_state(job.job_id, "cache")
        answered = job.paths.result_pickle.exists()
        if runlog.is_done(run):
            return
        if status == "done" and not self.times[number]:  # by another call's job, for other α's
            self.left.append(number)
            return
        about = f"job {job.job_id} ended ({state}), {run.folder.name} is {status or 'not started'}"
        # taken away or killed; a preempted job that has time to end (GraceTime) saves its run, and has failed for Slurm
        taken = state in LOST or status == "killed" or (state == "FAILED" and status == "interrupted")
        lost = taken and not answered and state != "CANCELLED"  # by its user
        if lost and self.times[number] < TIMES:
            _say(f"{about}; it is submitted again")
            self.left.append(number)
        elif status != "failed":  # the table says why
            _say(about + (f"; it was submitted {TIMES} times" if lost else _words(job, state, status)))


def _executor(params: Mapping[str, Any]) -> submitit.AutoExecutor:
    """What submits jobs as the keys of ``hydra.launcher`` say; ``ValueError`` for one that it does not know."""
    params = {key: value for key, value in params.items() if value is not None}
    folder, timeouts = params.pop("submitit_folder"), max(TIMES, params.pop("max_num_timeout"))  # 0 unless it is given
    # where clusters have another default, too; and since Slurm 22.05 a step has one core unless it is told
    params["additional_parameters"] = {"requeue": True} | params["additional_parameters"]
    if cores := params.get("cpus_per_task"):
        params["srun_args"] = [f"--cpus-per-task={cores}", *params.get("srun_args", ())]
    executor = submitit.AutoExecutor(folder=folder, cluster="slurm", slurm_max_num_timeout=timeouts)
    shared = {each.name for each in fields(BaseQueueConf)}
    executor.update_parameters(**{key if key in shared else f"slurm_{key}": value for key, value in params.items()})
    return executor


def _words(job: SlurmJob, state: str, status: str | None) -> str:
    """The last that is known of a job whose run does not say it."""
    if job.paths.result_pickle.exists():
        trace = str(job.exception() or "").split("-" * 22)[-2:][0]  # submitit's frame around it
        return f": {_last(trace)}"
    if status is not None or state == "CANCELLED":
        return ""
    return f"; see {job.paths.stderr}" + "".join(f"\n  {line}" for line in (job.stderr() or "").splitlines()[-8:])


def _note(folder: Path) -> Path:
    """The file that says which job works on a run, for calls that come after a killed one."""
    notes = folder.parent / ".grid" / "slurm"
    with saving(notes):
        notes.mkdir(parents=True, exist_ok=True)
    return notes / f"{folder.name}.json"


def _arrays(jobs: Iterable[SlurmJob]) -> str:
    """Ids as scancel takes them: for all tasks of an array the array's."""
    return " ".join(dict.fromkeys(job.job_id.partition("_")[0] for job in jobs))


def _last(text: str) -> str:
    return next((line for line in reversed(text.splitlines()) if line.strip("- ")), "no reason given")


def _say(text: str) -> None:
    print(f"[{time.strftime('%H:%M:%S')}] Slurm: {text}", file=sys.stderr, flush=True)
