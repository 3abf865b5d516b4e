"""A Slurm of one machine in a folder of its own (Debian's slurm-wlm and munge; root): started, used, stopped.

    python experiments/slurm/cluster.py COMMAND...

runs a command in it. It has two partitions: jobs of ``urgent`` requeue those of ``low``. Nothing outside the folder is
read or written, and where Slurm is at work or configured already, it is refused.
"""

import os
import secrets
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from pathlib import Path

CPUS, MEMORY = 4, 12_000  # what the node says it has (MB): more cores than it need have, as the jobs are tiny
KILL_WAIT = 5  # seconds from SIGTERM to SIGKILL
PROGRAMS = ("munged", "slurmctld", "slurmd", "sbatch", "srun", "squeue", "scancel", "scontrol")
CONF = """\
ClusterName=check
SlurmctldHost={host}(127.0.0.1)
SlurmctldPort={ctld}
SlurmdPort={slurmd}
SlurmUser=root
AuthInfo=socket={folder}/munge.socket,cred_expire=5
StateSaveLocation={folder}/state
SlurmdSpoolDir={folder}/spool
SlurmctldPidFile={folder}/slurmctld.pid
SlurmdPidFile={folder}/slurmd.pid
SlurmctldLogFile={folder}/slurmctld.log
SlurmdLogFile={folder}/slurmd.log
PlugStackConfig={folder}/plugstack.conf
MailProg=/bin/true
ReturnToService=2
SlurmdParameters=config_overrides
SelectType=select/cons_tres
SelectTypeParameters=CR_CPU_Memory
AccountingStorageType=accounting_storage/none
JobAcctGatherType=jobacct_gather/none
ProctrackType=proctrack/{tracked}
TaskPlugin=task/{task}
PreemptType=preempt/partition_prio
PreemptMode=REQUEUE
KillWait={kill_wait}
SchedulerParameters=sched_interval=5,bf_interval=5
NodeName={host} NodeAddr=127.0.0.1 CPUs={cpus} RealMemory={memory}
PartitionName=low Nodes=ALL Default=YES MaxTime=60 PriorityTier=1
PartitionName=urgent Nodes=ALL MaxTime=60 PriorityTier=10
"""
CGROUP = """\
CgroupMountpoint=/sys/fs/cgroup
CgroupAutomount=no
ConstrainRAMSpace=yes
ConstrainSwapSpace=yes
AllowedSwapSpace=0
"""


def refusal() -> str | None:
    """Why no cluster can be started here, or None."""
    if os.geteuid():
        return "a Slurm daemon needs root: call this as root"
    os.environ["PATH"] += ":/usr/sbin:/sbin"
    if lacking := [name for name in PROGRAMS if shutil.which(name) is None]:
        return f"{', '.join(lacking)}: not found; apt-get install slurm-wlm munge"
    if "SLURM_CONF" in os.environ or any(Path("/etc", name, "slurm.conf").exists() for name in ("slurm", "slurm-llnl")):
        return "this machine has a Slurm configuration (SLURM_CONF or /etc/slurm/slurm.conf); it is left alone"
    at_work = {path.read_text().strip() for path in Path("/proc").glob("[0-9]*/comm") if path.exists()}
    if found := at_work & {"slurmctld", "slurmd"}:
        return f"{', '.join(sorted(found))} is at work on this machine; it is left alone"
    return None


def constrains_memory() -> bool:
    """Whether the kernel's limit of a group's memory (cgroup v1 or v2, writable) can be used."""
    root = Path("/sys/fs/cgroup")
    with suppress(OSError):
        if (root / "memory").is_dir():
            return os.access(root / "memory", os.W_OK)
        return "memory" in (root / "cgroup.controllers").read_text() and os.access(root, os.W_OK)
    return False


@contextmanager
def cluster() -> Iterator[Path]:
    """A running cluster, named by ``SLURM_CONF`` in the environment; its folder, which is gone at the end."""
    folder = Path(tempfile.mkdtemp(prefix="slurm-check-"))
    daemons: list[subprocess.Popen[bytes]] = []
    os.environ["SLURM_CONF"] = str(folder / "slurm.conf")
    try:
        _configure(folder)
        munge = ["--key-file", "munge.key", "--socket", "munge.socket", "--pid-file", "munge.pid"]
        own = [f"{folder}/{value}" if index % 2 else value for index, value in enumerate(munge)]
        log = [f"--log-file={folder}/munge.log", f"--seed-file={folder}/munge.seed", "--force", "--foreground"]
        daemons.append(_start(["munged", *own, *log], folder))
        _wait(lambda: (folder / "munge.socket").exists(), "munged", folder)
        daemons.append(_start(["slurmctld", "-D"], folder))
        _wait(lambda: _says("scontrol", "ping").find("UP") >= 0, "slurmctld", folder)
        daemons.append(_start(["slurmd", "-D"], folder))
        _wait(lambda: "idle" in _says("sinfo", "--noheader", "--format=%T"), "slurmd", folder)
        yield folder
    finally:
        _says("scancel", "--state=PENDING", "--user=root")
        _says("scancel", "--signal=KILL", "--user=root")
        _says("scancel", "--user=root")
        with suppress(TimeoutError):
            _wait(lambda: not _says("squeue", "--noheader").strip(), "squeue", folder)
        for daemon in reversed(daemons):
            daemon.terminate()
            with suppress(subprocess.TimeoutExpired):
                daemon.wait(20)
            daemon.kill()
        for group in Path("/sys/fs/cgroup").glob(f"*/slurm_{socket.gethostname()}"):
            for path in (*sorted(group.rglob("*"), reverse=True), group):
                if path.is_dir():
                    with suppress(OSError):
                        path.rmdir()
        del os.environ["SLURM_CONF"]
        shutil.rmtree(folder, ignore_errors=True)


def _configure(folder: Path) -> None:
    for name in ("state", "spool"):
        (folder / name).mkdir()
    with socket.socket() as one, socket.socket() as two:
        one.bind(("127.0.0.1", 0))
        two.bind(("127.0.0.1", 0))
        ports = {"ctld": one.getsockname()[1], "slurmd": two.getsockname()[1]}
    cgroup = constrains_memory()
    text = CONF.format(
        folder=folder, host=socket.gethostname(), cpus=CPUS, memory=MEMORY, kill_wait=KILL_WAIT, **ports,
        tracked="cgroup" if cgroup else "linuxproc", task="cgroup" if cgroup else "none",
    )  # fmt: skip
    (folder / "slurm.conf").write_text(text)
    (folder / "cgroup.conf").write_text(CGROUP)
    (folder / "plugstack.conf").write_text("")
    (folder / "munge.key").write_bytes(secrets.token_bytes(128))
    (folder / "munge.key").chmod(0o400)


def _start(command: list[str], folder: Path) -> subprocess.Popen[bytes]:
    """A daemon in a session of its own: Ctrl-C is for this process, which ends the jobs first."""
    with (folder / f"{command[0]}.out").open("wb") as out:
        return subprocess.Popen(command, stdout=out, stderr=out, stdin=subprocess.DEVNULL, start_new_session=True)


def _says(*command: str) -> str:
    done = subprocess.run(command, capture_output=True, text=True, check=False)
    return done.stdout if done.returncode == 0 else ""


def _wait(until, what: str, folder: Path, seconds: float = 60) -> None:
    end = time.monotonic() + seconds
    while not until():
        if time.monotonic() > end:
            logs = "\n".join(path.read_text(errors="replace")[-2000:] for path in sorted(folder.glob("*.log")))
            raise TimeoutError(f"{what} is not ready after {seconds:g} s\n{logs}")
        time.sleep(0.2)


def end_by_exception() -> None:
    """Have SIGTERM and SIGHUP end this process as Ctrl-C does, so that the cluster is stopped."""

    def told(number: int, frame: object) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, told)


if __name__ == "__main__":
    if why := refusal():
        sys.exit(why)
    end_by_exception()
    with cluster():
        status = subprocess.run(sys.argv[1:], check=False).returncode
    sys.exit(status)
