"""A call with nothing to do is quick: nothing heavy is imported, and jobs that share their files are composed once."""

import hashlib
import os
import time
from pathlib import Path

import pytest
from hydra import compose, initialize_config_dir
from hydra._internal.core_plugins.basic_sweeper import BasicSweeper
from hydra.core.global_hydra import GlobalHydra
from hydra.core.override_parser.overrides_parser import OverridesParser
from omegaconf import OmegaConf, open_dict
from support import refusals
from support.helpers import TINY, python, raw

from unlearn.config.schema import conf_dir
from unlearn.grid import call as grid
from unlearn.grid.call import _sweep
from unlearn.grid.perform import perform
from unlearn.grid.rules import as_typed
from unlearn.store import files, seal

HEAVY = {"torch", "transformers", "pandas", "scipy", "wandb", "evaluate", "datasets", "matplotlib", "accelerate"}


def test_a_grid_of_finished_runs_imports_nothing_heavy_and_no_file_of_the_user(finished, store, tmp_path):
    for name in ("yaml", "rich", "evaluate", "analysis", "torch"):
        (tmp_path / f"{name}.py").write_text("raise SystemExit('a file of the user')\n")
    for alpha in (0.5, 1):
        finished("algo=ga", f"alpha={alpha}")
    given = ("-m", *TINY, f"paths.store={store}", f"paths.runs={tmp_path}/runs", "algo=ga", "alpha=0.5,1")
    done = python("-X", "importtime", "-m", "unlearn.run", *given, cwd=tmp_path)
    names = [line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert done.stdout.count("done before") == 2
    assert not {name.split(".")[0] for name in names} & HEAVY


def test_a_refusal_that_the_data_alone_tell_imports_nothing_heavy(tmp_path):
    for name in ("forget", "retain"):
        (tmp_path / f"{name}.jsonl").write_text(f'{{"question": "{name}?", "answer": "Yes."}}\n')
    given = ("data=jsonl", "data.forget=forget.jsonl", "data.retain=retain.jsonl")
    done = python("-X", "importtime", "-m", "unlearn.run", *given, cwd=tmp_path, check=False)
    names = [line.rsplit("|", 1)[-1].strip() for line in done.stderr.splitlines() if line.startswith("import time:")]
    assert done.returncode == 2 and "has no general facts" in done.stderr
    assert not {name.split(".")[0] for name in names} & HEAVY


@pytest.mark.parametrize(
    "overrides",
    [
        pytest.param(["algo=ga,npo", "alpha=0.5,1,2"], marks=pytest.mark.nightly),
        ["alpha=0.5,1", "trainer.lr=1e-3", "experiment=tofu_small", "+algo.numbers.x=1", "algo.numbers.x=3"],
        ["method=offset,dd", "pair.offset_init=full", "~algo.lr.offset", "eval.alphas=[0,1]", "data=tofu"],
        ["alpha=1", "algo=npo", "algo={retain: kl}", "algo.retain=nll", "template=chat,own"],
        ["trainer={lr: 1e-3, clip: 2}", "trainer=default", "seed=range(0,2)"],
        ["study=${algo.name}_${alpha}", "algo=ga,npo", "alpha=0.5,1"],
    ],
)
def test_jobs_that_share_their_files_are_what_hydra_composes_one_by_one(overrides):
    with initialize_config_dir(conf_dir(), version_base="1.3"):
        master = compose("config", return_hydra_config=True)
        with open_dict(master):
            master.hydra.overrides.task = overrides
        loader, found = GlobalHydra.instance().config_loader(), _sweep(master)
        parsed = OverridesParser.create(config_loader=loader).parse_overrides(overrides)
        jobs = [job for batch in BasicSweeper.split_arguments(parsed, None) for job in batch]
        real = [loader.load_sweep_config(master, list(job)) for job in jobs]
    for config in real:
        with open_dict(config):
            config.pop("hydra")
    assert len(real) > 1
    assert [OmegaConf.to_yaml(c) for c in found] == [OmegaConf.to_yaml(c) for c in real]
    assert [c.study for c in found] == [c.study for c in real]


@pytest.mark.parametrize(
    ("typed", "taken"),
    [
        ("study=3e8", "study='3e8'"), ("study=a,true,1.50", "study=a,'true','1.50'"), ("data.path=x7", "data.path=x7"),
        ("wandb.entity=null", "wandb.entity=null"), ("alpha=3e8", "alpha=3e8"), ("algo=ga", "algo=ga"),
        ("pair.small.source=1e5", "pair.small.source='1e5'"), ("study='3e8'", "study='3e8'"), ("-m", "-m"),
        ("data.path=12", "data.path='12'"),
    ],
)  # fmt: skip
def test_a_text_is_what_was_typed(typed, taken):
    assert as_typed(typed) == taken
    if typed.startswith("study=3"):
        assert raw(taken).study == "3e8"


def test_a_value_that_is_typed_in_several_ways_is_one_job(tiny, tmp_path):
    call, paths = grid.Call(), {"runs": str(tmp_path), "store": str(tmp_path)}
    call.begin([OmegaConf.merge(tiny, {"alpha": value, "paths": paths}) for value in (0.5, 0.5, 1.0)])
    assert [job.cfg.alpha for job in call.jobs] == [0.5, 1.0]


def test_a_finished_run_is_hashed_once_per_call_and_the_summary_of_others_hashes_nothing(
    finished, config, tmp_path, monkeypatch
):
    asked, other = (finished("algo=ga", f"alpha={alpha}") for alpha in (0.5, 1))
    for path in (p for folder in (asked, other) for p in folder.rglob("*") if p.is_file()):
        os.utime(path, (time.time() - 60, time.time() - 60))  # long finished
    read: list[Path] = []

    def counted(stream, algorithm, real=hashlib.file_digest):
        read.append(Path(stream.name))
        return real(stream, algorithm)

    monkeypatch.setattr(hashlib, "file_digest", counted)
    monkeypatch.setattr(refusals, "_worked", perform)
    settings = (*TINY, f"paths.store={config().paths.store}", f"paths.runs={tmp_path}/runs", "algo=ga", "alpha=0.5")
    for mode in ([], ["-m"]):
        files._digests.clear()  # as in a process of its own
        called = refusals.call("unlearn.run", *mode, *settings, cwd=tmp_path)
        assert called.status == 0 and "done before" in called.out, called.err
        assert sorted(p.name for p in read) == sorted(seal.MEASURED)
        assert {p.parent for p in read} == {asked}
        read.clear()
    content = (asked / "eval.json").read_bytes()
    (asked / "eval.json").write_bytes(content.replace(b"0.", b"1.", 1))  # in the same process, of the same size
    called = refusals.call("unlearn.run", "-m", *settings, cwd=tmp_path)
    assert called.status == 1 and "eval.json was changed or damaged" in called.out
    assert len((asked.parent / "summary.csv").read_text().splitlines()) == 3
