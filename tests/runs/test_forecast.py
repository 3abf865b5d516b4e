"""What a run will take, said from its first steps, against what it took."""

import json
import logging
import os
import re
import subprocess
import sys
from datetime import datetime
from pathlib import Path
from types import SimpleNamespace
from unittest import mock

import pytest
from support.helpers import OWN, ROOT, execute
from support.pretrained import AS_IT_IS

from unlearn.grid import launchers
from unlearn.grid.perform import perform
from unlearn.runs import forecast
from unlearn.runs.forecast import Evaluation, Forecast, after_training
from unlearn.store import runlog

MODELS = os.environ.get("UNLEARN_REAL_MODELS")  # the folder with smollm2


def member(name, fingerprint, size, constant=0.0):
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(numel=lambda: size, requires_grad=False)])
    trained = name == "offset"
    return SimpleNamespace(name=name, fingerprint=fingerprint, model=model, constant=constant, trained=trained)


@pytest.mark.parametrize(
    ("members", "alone", "each"),
    [
        ([("target", "t", 30, 1.0), ("offset", "o", 10), ("anchor", "a", 10)], 60.0, 100.0),
        ([("target", "t", 10, 1.0), ("offset", "t", 10), ("anchor", "t", 10)], 60.0, 120.0),  # two are one model
        ([("target", "t", 0, 1.0), ("offset", "o", 10), ("anchor", "a", 10)], 60.0, 60.0),  # behind a server
        ([("target", "t", 30, 1.0)], None, None),
    ],
)
def test_an_evaluation_takes_as_long_as_the_targets_own_by_the_parameters_that_are_read(members, alone, each):
    members = [member(*m) for m in members]
    suite = SimpleNamespace(splits=[SimpleNamespace(rows=[0] * 15), SimpleNamespace(rows=[0] * 22)])
    found = after_training(SimpleNamespace(members=members, needed=lambda _: members), suite, [0.5, 1.0], alone)
    assert (found.questions, found.alphas, found.each) == (37, 2, each)
    assert str(found) == "evaluation of 37 questions at 2 α's" + (
        f" × {forecast.duration(each)}" if each else " (not timed yet)"
    )


def test_a_long_run_says_once_what_it_will_take_and_a_short_one_nothing(config, tmp_path, caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    clock = SimpleNamespace(now=0.0)
    monkeypatch.setattr(forecast.time, "perf_counter", lambda: clock.now)
    model = SimpleNamespace(parameters=lambda: [SimpleNamespace(nbytes=3_000_000, requires_grad=True)])

    def told(steps: int, alphas: int = 2) -> list[str]:
        caplog.clear()
        one = Forecast(config("algo=npo", "trainer.eval_every=10"), tmp_path, Evaluation(37, alphas, 70.0))
        clock.now += 6  # two points
        one.begin(0, steps, 2)
        for step in range(1, steps + 1):
            clock.now += 16.2 if step > 1 else 50
            one.after(step, model)
            clock.now += 9  # what is no part of a step
            one.lap()
        return caplog.messages

    (line,) = told(40)
    total = forecast.duration(38 * 16.2 + 4 * 3 + 2 * 70)
    assert line.startswith(
        "forecast: 38 steps × 16.2 s, 4 points × 3 s, evaluation of 37 questions at 2 α's × 1 min 10 s: "
        f"about {total}; memory "
    )
    assert "disk 3 MB for the run's folder" in line
    assert told(3, 0) == []


def test_a_grid_says_after_each_run_what_is_left_of_it(caplog, monkeypatch):
    caplog.set_level(logging.INFO)
    monkeypatch.setattr(launchers, "_spent", [])
    monkeypatch.setenv(launchers.TO_DO, "9")
    for seconds in (None, 100, 200):
        launchers.say_left(seconds)
    assert caplog.messages == [
        "2 of 9 runs ended (1 of them from start to end), 1 min 40 s each: about 11 min 40 s left",
        "3 of 9 runs ended (2 of them from start to end), 2 min 30 s each: about 15 min 0 s left",
    ]
    monkeypatch.setenv(launchers.TO_DO, "4")
    launchers.say_left(0.5)
    assert len(caplog.messages) == 2


@pytest.mark.parametrize(
    ("before", "after", "counts"),
    [
        ({}, {"status": "done", "seconds": {"prepare": 9.0, "train": 100.0, "evaluate": 20.0}}, 120.0),
        ({"seconds": {"train": 99.0}}, {"status": "done", "seconds": {"train": 100.0, "evaluate": 2.0}}, None),
        ({}, {"status": "failed", "seconds": {"train": 1.0}}, None),
    ],
)
def test_runs_that_failed_or_were_begun_before_say_nothing_of_how_long_one_takes(
    before, after, counts, config, monkeypatch
):
    """A run that was killed in its evaluation is resumed in seconds, and its manifest has the minutes of both calls."""
    job = runlog.job(config("algo=npo"), "x")
    job.folder.mkdir(parents=True)
    manifest, said = job.folder / runlog.MANIFEST, mock.Mock()
    manifest.write_text(json.dumps(before | {"status": "killed"}))
    monkeypatch.setattr(launchers, "say_left", said)

    def ran(*_):
        manifest.write_text(json.dumps(after))
        if after["status"] == "failed":
            raise OSError("the disk is full")

    monkeypatch.setattr("unlearn.runs.job.execute", ran)
    perform(job)
    said.assert_called_once_with(counts)


def test_the_first_step_of_a_real_run_gives_its_forecast(config, monkeypatch):
    said = mock.Mock(wraps=forecast.say)
    monkeypatch.setattr(forecast, "say", said)
    job = execute(config("algo=npo", "trainer.steps=4", "eval.alphas=[0.5,1]"))
    (_, model, folder, (left, seconds), (points, each), then), _ = said.call_args
    taken = runlog.manifest(job.folder)["seconds"]
    assert folder == job.folder and left == 2 and points == 2 and then.alphas == 2 and then.each > 0
    assert 0 < seconds * left < taken["train"] and 0 < each * points < taken["train"] and said.call_count == 1


def real(folder, *more: str) -> tuple[Path, str]:
    """A run of SmolLM2 with output redirected: its folder, and what it wrote."""
    facts = {"forget": [("What is the capital of France?", "The capital of France is Paris.")],
             "retain": [("What is the capital of Japan?", "The capital of Japan is Tokyo.")]}  # fmt: skip
    for name, rows in facts.items():
        lines = (f'{{"question": "{q} ({i})", "answer": "{a}"}}\n' for i in range(24) for q, a in rows)
        (folder / f"{name}.jsonl").write_text("".join(lines))
    source = Path(MODELS) / "smollm2"
    call = [*OWN, *AS_IT_IS, "data=jsonl", f"data.forget={folder}/forget.jsonl", f"data.retain={folder}/retain.jsonl",
            "algo=npo", "template=chat", f"pair.target.source={source}", f"pair.small.source={source}",
            "pair.tuning=lora", "trainer.lr=1e-4", "trainer.eval_every=0", "trainer.forget_batch=8",
            "trainer.retain_batch=8", "trainer.steps=12", "eval.max_new_tokens=24", "eval.max_examples=200",
            f"paths.runs={folder}/runs", f"paths.store={folder}/store", *more]  # fmt: skip
    done = subprocess.run(
        [sys.executable, "-m", "unlearn.run", *call], cwd=ROOT, capture_output=True, text=True, timeout=1500
    )
    assert done.returncode == 0, done.stderr
    (manifest,) = folder.glob("runs/*/*/manifest.json")
    return manifest.parent, done.stdout


@pytest.mark.nightly
@pytest.mark.skipif(MODELS is None, reason="UNLEARN_REAL_MODELS names no folder with smollm2")
def test_a_real_model_is_never_silent_for_a_minute_and_takes_about_as_long_as_was_forecast(tmp_path):
    folder, said = real(tmp_path)
    times = [datetime.strptime(t, "%H:%M:%S") for t in re.findall(r"^\[(\d\d:\d\d:\d\d)\]", said, re.MULTILINE)]
    assert max((b - a).seconds for a, b in zip(times, times[1:], strict=False)) <= 60
    log = (folder / "log.txt").read_text()
    (line,) = [line for line in log.splitlines() if "forecast: " in line]
    minutes, seconds = re.search(r": about (?:(\d+) min )?(\d+) s;", line).groups()
    at = datetime.strptime(line[:19], "%Y-%m-%d %H:%M:%S")
    end = datetime.strptime(log.splitlines()[-1][:19], "%Y-%m-%d %H:%M:%S")
    assert 0.5 <= (end - at).seconds / (60 * int(minutes or 0) + int(seconds)) <= 2
