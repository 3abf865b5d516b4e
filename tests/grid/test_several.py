"""Several processes that a launcher starts: what is refused, and true calls (nightly)."""

import json
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
from support.crews import places
from support.helpers import ROOT, TINY, compose, contents

from unlearn import calibrate
from unlearn.grid import together
from unlearn.grid.refusal import STATUS
from unlearn.store import processes

PLACE = {"WORLD_SIZE": "2", "RANK": "0", "MASTER_ADDR": "127.0.0.1", "MASTER_PORT": "1"}


def test_what_several_processes_cannot_do_is_refused_by_name(monkeypatch, capsys):
    assert not list(together.unusable(PLACE | {"ACCELERATE_MIXED_PRECISION": "no", "ACCELERATE_DYNAMO_BACKEND": "NO"}))
    for name, value in {"WORLD_SIZE": "two", "RANK": "2", "MASTER_PORT": "", "MASTER_ADDR": ""}.items():
        (problem,) = together.unusable(PLACE | {name: value})
        assert problem.startswith(f"{name}={value}: must") and "unset WORLD_SIZE" in problem
    for name, value in {
        "ACCELERATE_USE_DEEPSPEED": "true", "ACCELERATE_USE_FSDP": "true", "ACCELERATE_USE_MEGATRON_LM": "true",
        "ACCELERATE_MIXED_PRECISION": "bf16", "ACCELERATE_DYNAMO_BACKEND": "INDUCTOR",
        "ACCELERATE_GRADIENT_ACCUMULATION_STEPS": "4", "ACCELERATE_USE_PARALLELISM_CONFIG": "true",
    }.items():  # fmt: skip
        (problem,) = together.unusable(PLACE | {name: value})
        assert problem.startswith(f"{name}={value}: would change the results of a run; ")
    cfg = compose(*TINY, "pair.target.device_map=auto")
    assert not list(together.problems([cfg], "basic"))  # one process
    monkeypatch.setattr(processes, "_crew", processes.Crew(0, 2, None, print))
    launcher, device = together.problems([cfg], "joblib")
    assert launcher.startswith("hydra/launcher=joblib: ") and device.startswith("pair.target.device_map='auto': ")
    monkeypatch.setattr(processes, "_crew", None)
    for rank, said in (("0", True), ("1", False)):  # a command of one process: said once
        for name, value in (PLACE | {"RANK": rank}).items():
            monkeypatch.setenv(name, value)
        assert calibrate.main(["run=x"]) == STATUS
        assert ("this command is one process" in capsys.readouterr().err) == said


def test_a_process_that_waits_for_the_others_says_so_and_ctrl_c_ends_it_at_once(monkeypatch, capsys):
    for name, value in PLACE.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(together, "LATE", 0.0)
    before = signal.getsignal(signal.SIGINT)
    with together._waiting():
        assert signal.getsignal(signal.SIGINT) == signal.SIG_DFL  # torch's wait sees no KeyboardInterrupt
        time.sleep(0.1)
    assert signal.getsignal(signal.SIGINT) == before
    assert capsys.readouterr().err.startswith("process 0 of 2 waits for the others, at 127.0.0.1:1, 10 minutes")


def call(cwd: Path, *arguments: str, count: int = 2, **more: str) -> list[subprocess.CompletedProcess[str]]:
    """What a launcher starts."""
    found = []
    for place in places(count):
        environment = os.environ | place | {"PYTHONPATH": str(ROOT)} | more
        command = [sys.executable, "-m", "unlearn.run", *arguments]
        found.append(subprocess.Popen(command, cwd=cwd, env=environment, text=True, stdout=subprocess.PIPE,
                                      stderr=subprocess.PIPE))  # fmt: skip
    said = [process.communicate(timeout=300) for process in found]
    return [subprocess.CompletedProcess(p.args, p.returncode, *x) for p, x in zip(found, said, strict=True)]


@pytest.mark.nightly
def test_a_grid_is_done_by_all_and_said_by_the_first_and_a_finished_one_writes_nothing(store, tmp_path):
    asked = ["-m", "algo=ga,npo", *TINY, f"paths.store={store}"]
    first, second = call(tmp_path, *asked)
    assert (first.returncode, second.returncode) == (0, 0) and (second.stdout, second.stderr) == ("", "")
    assert first.stdout.count(" done ") >= 2
    manifests = [json.loads(p.read_text()) for p in tmp_path.glob("runs/default/*/manifest.json")]
    assert [m["hardware"]["processes"] for m in manifests] == [2, 2]
    before = contents(tmp_path)
    first, second = call(tmp_path, *asked)
    assert (first.returncode, second.returncode) == (0, 0) and (second.stdout, second.stderr) == ("", "")
    after = contents(tmp_path)
    assert {k: v for k, v in after.items() if ".grid" not in k} == {k: v for k, v in before.items() if ".grid" not in k}
    first, second = call(tmp_path, "algo=nothing", *TINY)
    assert (first.returncode, second.returncode) == (2, 2) and (second.stdout, second.stderr) == ("", "")
