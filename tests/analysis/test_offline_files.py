"""The reader of ``.wandb`` files: against W&B's own inspector, and on files that are torn, empty or foreign."""

import json
import math
import shutil
import subprocess
import sys
from contextlib import contextmanager
from pathlib import Path

import pytest
from support.helpers import whole

from analysis.runs import StudyError, load, tables
from analysis.sources import offline
from analysis.sources.mirrored import plain
from analysis.sources.transaction_log import Frames
from unlearn.config.schema import WandbConfig
from unlearn.store.mirror import opened

CHOICES = {"study": "s", "algo": "npo", "method": "offset", "pair": "tiny", "data": "bios", "alpha": 1.0, "seed": 0}
CONFIG = {"algo.name": "npo", "method.name": "offset", "pair.name": "tiny", "pair.seed": 0, "data.name": "bios",
          "alpha": 1.0, "seed": 0, "study": "s", "trainer.lr": 1e-3, "eval.alphas": [0.0, 1.5], "algo.numbers": {},
          "algo.beta": None}  # fmt: skip


@contextmanager
def mirrored(folder: Path, id: str | None = None, start: int = 0):
    """An offline run of the program's own mirror; at its end the file is whole (wandb's service takes its time)."""
    with opened(WandbConfig("offline"), folder, CHOICES, CONFIG, id, start) as mirror:
        (path,) = Path(mirror.run.dir).parent.glob("*.wandb")
        yield mirror
    whole(path)


def made_up_run(folder: Path, steps: int = 3, id: str | None = None, start: int = 0, first: int = 0) -> str:
    """An offline run of made-up numbers through the program's own mirror; its id."""
    folder.mkdir(parents=True, exist_ok=True)
    with mirrored(folder, id, start) as mirror:
        for step in range(first, first + steps):
            mirror.log({"step": step, "epoch": step / 2, "train/loss": -float(step), "forget/prob": 1 / (step + 1)})
        mirror.manifest({"status": "running", "run": CHOICES, "seconds": {"train": 2.5}})
        return mirror.id


def file_of(folder: Path) -> Path:
    (path,) = offline.files(folder)
    return path


def read(folder: Path):
    found, notes = offline.read(offline.files(folder))
    return tables("s", folder, found, notes)


@pytest.fixture(scope="module")
def written(tmp_path_factory):
    folder = tmp_path_factory.mktemp("written")
    made_up_run(folder / "run")
    return folder


@pytest.fixture
def folder(written, tmp_path):
    """A copy of one run, the test's own."""
    return Path(shutil.copytree(written, tmp_path / "s", symlinks=True))


def test_it_reads_what_wandbs_own_inspector_reads(folder):
    """A change of the format, or of what wandb writes, shows here."""
    path = file_of(folder)
    asked = [Path(sys.executable).parent / "wandb", "leet", "inspect", "--json", path]
    done = subprocess.run(asked, capture_output=True, text=True, check=True, timeout=60)
    theirs = [json.loads(line) for line in done.stdout.splitlines()]
    (ours,) = offline._joined([offline._part(path)])
    (run,) = (r["run"] for r in theirs if r["type"] == "run")
    assert (ours.id, ours.group, ours.job_type, ours.name) == (
        run["run_id"], run["run_group"], run["job_type"], run["display_name"])  # fmt: skip
    config = {k: v for k, v in run["config"]["update"].items() if k != "_wandb"}
    assert {k: v for k, v in ours.config.items() if k != "_wandb"} == config and config["trainer.lr"] == 1e-3
    rows = [plain(r["history"]["item"]) for r in theirs if r["type"] == "history"]
    kept = [{k: v for k, v in row.items() if k[0] != "_" or k == "_timestamp"} for row in rows]
    assert ours.history == kept and len(kept) == 3
    summary = [r["summary"]["update"] for r in theirs if r["type"] == "summary"]
    assert ours.summary["manifest"] == next(s["manifest"] for s in reversed(summary) if "manifest" in s)
    assert len(list(Frames(path))) == len(theirs)


def test_a_run_is_found_at_any_depth_and_says_what_it_logged(folder):
    study = load(folder.parent)  # no run folders there: W&B's files are read
    assert study.trajectories["step"].tolist() == [0, 1, 2]
    assert study.trajectories["train/loss"].tolist() == [0.0, -1.0, -2.0]
    row = study.runs.iloc[0]
    assert (row["status"], row["seconds"], row["folder"]) == ("running", 2.5, "run") and math.isnan(row["trainable"])
    assert study.records[0].config["eval.alphas"] == "[0, 1.5]" and "algo.numbers" not in study.records[0].config
    assert study.notes == () and study.examples.empty


def test_long_records_are_joined_and_numbers_that_json_lacks_are_kept(tmp_path):
    long = {f"metric/{i}": float(i) for i in range(20_000)}  # ten blocks
    with mirrored(tmp_path) as mirror:
        mirror.log({"step": 0, "train/loss": math.nan, "train/grad_norm": math.inf, "train/low": -math.inf} | long)
        mirror.manifest({"status": "done", "seconds": {}, "peak_memory_mb": math.inf})
    row = read(tmp_path).trajectories.iloc[0]
    assert math.isnan(row["train/loss"]) and (row["train/grad_norm"], row["train/low"]) == (math.inf, -math.inf)
    assert read(tmp_path).runs["peak_memory_mb"].tolist() == [math.inf]
    assert file_of(tmp_path).stat().st_size > 10 * 32768 and all(row[k] == v for k, v in long.items())


def test_a_torn_or_damaged_file_is_read_up_to_where_it_ends_and_this_is_said(folder):
    path = file_of(folder)
    whole, ends, said = path.read_bytes(), set(), []
    for size in (*range(8, len(whole), 97), len(whole)):
        path.write_bytes(whole[:size])
        study = read(folder)
        steps = [] if study.trajectories.empty else study.trajectories["step"].tolist()
        assert steps == [0, 1, 2][: len(steps)]
        ends.add(len(steps))
        said.append(any("left out" in note or "end in the middle" in note for note in study.notes))
    assert ends >= {0, 1, 3} and sum(said) >= len(said) - 3  # a cut between two records cannot be seen
    data = bytearray(whole)
    data[len(data) // 2] ^= 0xFF
    path.write_bytes(data)
    study = read(folder)
    assert "1 W&B files end in the middle" in study.notes[0] and len(study.runs) == 1


def test_an_empty_file_is_no_run_and_foreign_ones_are_left_out_or_named(folder):
    other = folder / "killed" / "wandb" / "offline-run-20261121_000000-abcdefgh" / "run-abcdefgh.wandb"
    other.parent.mkdir(parents=True)
    for content in (b"", b":W&B\xe1\xbe\x00"):
        other.write_bytes(content)
        study = read(folder)
        assert len(study.runs) == 1
        assert study.notes == ("1 W&B files without a run in them (killed in their first second): left out",)
    other.write_bytes(b"something else entirely")
    with pytest.raises(StudyError, match=r"offline-run-.*\.wandb: its first bytes are"):
        read(folder)
    (folder / "none").mkdir()
    with pytest.raises(StudyError, match=r"no offline-run-\*/run-\*.wandb"):
        load(f"offline:{folder}/none")


def test_parts_of_one_id_are_joined_in_the_order_of_their_starts(tmp_path):
    id = made_up_run(tmp_path / "run", steps=4)
    with mirrored(tmp_path / "run", id, 20) as mirror:
        mirror.rewind(1)
        mirror.log({"step": 2, "train/loss": 70.0})
        mirror.manifest({"status": "done"})
    assert len(offline.files(tmp_path)) == 2
    study = read(tmp_path)
    assert study.trajectories["step"].tolist() == [0, 1, 2]  # step 3 was logged after the checkpoint
    assert study.trajectories["train/loss"].tolist() == [0.0, -1.0, 70.0]
    assert math.isnan(study.trajectories["forget/prob"].iloc[2]) and study.runs["status"].tolist() == ["done"]


def test_of_two_runs_of_one_folder_the_later_counts_and_this_is_said(tmp_path):
    made_up_run(tmp_path / "run", steps=4)
    made_up_run(tmp_path / "run", steps=2)
    study = read(tmp_path)
    assert study.trajectories["step"].tolist() == [0, 1]
    assert study.notes == ("1 W&B runs made again later, of which the last counts: left out",)


def test_runs_of_other_programs_are_left_out_and_counted(folder):
    import wandb

    with wandb.init(mode="offline", dir=folder, project="other", reinit="finish_previous") as run:
        run.log({"loss": 1.0})
        path = next(Path(run.dir).parent.glob("*.wandb"))
    wandb.teardown()  # the service would stay for the tests that come after
    whole(path)
    study = read(folder)
    assert len(study.runs) == 1 and study.notes == ("1 W&B runs that were not made by unlearn: left out",)


def test_the_mirror_is_no_more_than_the_folder_when_wandb_breaks(tmp_path, caplog):
    with opened(WandbConfig("offline"), tmp_path, CHOICES, CONFIG, None) as mirror:
        shutil.rmtree(mirror.run.dir)
        mirror.evaluated({"alphas": {}}, None, None, [], [tmp_path / "none"])
        mirror.log({"step": 0})
    assert caplog.text.count("W&B stopped working") == 1
