"""A run that ruins its model says so and keeps the best point of its trajectory, by the rule declared before it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.helpers import execute, killed_at, lines, weights

from unlearn import run
from unlearn.data.readers import read
from unlearn.grid import call as grid
from unlearn.learning.answers import Answers, PerToken
from unlearn.learning.loop import Diverged
from unlearn.learning.losses import FORGET
from unlearn.runs import job
from unlearn.runs.trajectory import Watch, kept, score
from unlearn.store import runlog

START = {"forget/prob": 0.8, "retain/prob": 0.9, "real_authors/prob": 0.5, "world_facts/prob": 0.4}


def point(forget: float, *others: float, **more: float) -> dict[str, float]:
    return dict(zip(START, (forget, *others), strict=True)) | {f"{k}/prob": v for k, v in more.items()}


# --- the rule -----------------------------------------------------------------------------------------------------


def test_kept_is_the_mean_share_outside_the_forget_set_and_no_gain_makes_up_for_a_loss():
    assert kept(point(0.0, 0.45, 0.25, 0.1), START) == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert kept(point(0.9, 0.99, 0.9, 0.2), START) == pytest.approx((1 + 1 + 0.5) / 3)


def test_of_the_retain_data_only_what_no_step_sees_counts_where_there_is_such_a_part():
    start = START | {"held_out/prob": 0.6}
    assert kept(point(0.0, 0.0, 0.5, 0.4, held_out=0.3), start) == pytest.approx((1 + 1 + 0.5) / 3)


def test_of_the_targets_values_only_probabilities_count():
    start = START | {"retain/exact_memorization": 0.7, "forget/exact_memorization": 0.9}
    assert kept(point(0.0, 0.45, 0.25, 0.1), start) == kept(point(0.0, 0.45, 0.25, 0.1), START)
    assert score(point(0.2, 0.45, 0.25, 0.2), start) == score(point(0.2, 0.45, 0.25, 0.2), START)


def test_the_score_is_the_harmonic_mean_of_what_is_lost_and_what_is_kept():
    assert score(START, START) == 0  # nothing lost
    assert score(point(0.0, 0.9, 0.5, 0.4), START) == 1  # all lost, all kept
    assert score(point(0.0, 0.0, 0.0, 0.0), START) == 0  # a ruin
    assert score(point(0.2, 0.45, 0.25, 0.2), START) == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert score(point(0.9, 0.9, 0.5, 0.4), START) == 0  # more of the forget set than before is no loss below none


def test_the_watch_keeps_a_copy_of_the_weights_of_the_first_best_point():
    model, watch = torch.nn.Linear(2, 1), Watch(dict(START))
    model.bias.requires_grad_(False)
    probs = [START, point(0.4, 0.9, 0.5, 0.4), point(0.1, 0.9, 0.5, 0.4), point(0.1, 0.9, 0.5, 0.4), START]
    for step, values in enumerate(probs):
        with torch.no_grad():
            model.weight.fill_(step)
        watch.see(step, values | {"forget/exact_memorization": 0.3, "train/loss": 1.0}, model)
    assert watch.step == 2 and watch.score == pytest.approx(2 * 0.875 / 1.875)
    assert watch.weights.keys() == {"weight"} and watch.weights["weight"].eq(2).all()
    assert watch.start == START and watch.kept == 1.0
    watch.load(model)
    assert model.weight.eq(2).all()


def test_points_are_compared_with_the_target_and_not_with_the_first_of_them():
    model, watch = torch.nn.Linear(2, 1), Watch(dict(START))
    watch.see(0, point(0.4, 0.09, 0.05, 0.04), model)  # a method that begins with less than the target knows
    assert watch.start == START and watch.kept == pytest.approx(0.1) and "0.10" in watch.verdict()
    assert watch.score == pytest.approx(2 * 0.5 * 0.1 / 0.6)


def test_a_watch_that_knows_nothing_of_the_target_sees_nothing():
    watch = Watch()
    watch.see(0, START, torch.nn.Linear(2, 1))
    watch.see(1, point(0.0, 0.0, 0.0, 0.0), torch.nn.Linear(2, 1))
    assert vars(watch) == vars(Watch()) | {"last_score": watch.last_score} and math.isnan(watch.last_score)
    assert watch.verdict() is None


def test_a_verdict_names_what_went_wrong():
    model = torch.nn.Linear(2, 1)

    def seen(*points: dict[str, float], losses=(1.0, 1.0)) -> Watch:
        watch = Watch(dict(START))
        for step, values in enumerate(points):
            watch.see(step, values, model)
        for loss in losses:
            watch.see_loss(loss)
        return watch

    good, ruin = point(0.1, 0.5, 0.3, 0.3), point(0.0, 0.09, 0.05, 0.04)
    assert seen(START, good).verdict() is None and seen(START, ruin, good).verdict() is None
    assert seen(START, good, ruin).verdict() == (
        "keeps 0.10 of the target's probability outside the forget set, less than 0.5"
    )
    assert seen(START, good, losses=(-3.0, -50.0, -301.0)).verdict() == "the loss went from -3 to -301"
    assert seen(START, good, losses=(-3.0, -301.0, -299.0)).verdict() is None
    assert seen(START, good, losses=(0.001, 99.0)).verdict() is None  # a small first loss makes no other one large
    broken = seen(START, ruin)
    broken.broken = "step 3: loss nan"
    assert broken.verdict() == "step 3: loss nan"


def test_probabilities_that_are_no_numbers_are_a_ruin():
    """Finite weights can be so large that their logits overflow; after the last step no loss would show it."""
    watch, model, nan = Watch(dict(START)), torch.nn.Linear(2, 1), float("nan")
    watch.see(0, START, model)
    watch.see(1, point(nan, nan, nan, nan), model)
    watch.see_loss(1.0)
    assert watch.step == 0 and watch.verdict() is not None


def test_a_watch_is_restored_as_it_was_saved(tmp_path):
    model, watch = torch.nn.Linear(2, 1), Watch(dict(START))
    for step, values in enumerate([START, point(0.1, 0.8, 0.5, 0.4), point(0.4, 0.4, 0.2, 0.1)]):
        with torch.no_grad():
            model.weight.fill_(step)
        watch.see(step, values, model)
        watch.see_loss(-2.0 - step)
    again = Watch()
    again.restore(tmp_path, watch.save(tmp_path))
    best, restored = watch.weights, again.weights
    assert restored.keys() == best.keys() and all(torch.equal(restored[n], best[n]) for n in best)
    assert again.step == 1 and restored["weight"].eq(1).all()
    assert vars(again) | {"weights": None} == vars(watch) | {"weights": None}


def test_without_a_trajectory_the_losses_are_restored_and_no_weights_are_written(tmp_path):
    watch, again = Watch(), Watch()
    for loss in (-3.0, -50.0, -301.0):
        watch.see_loss(loss)
    again.restore(tmp_path, watch.save(tmp_path))
    assert not list(tmp_path.iterdir()) and not again.weights and not again.start
    assert again.verdict() == watch.verdict() == "the loss went from -3 to -301"


# --- runs ---------------------------------------------------------------------------------------------------------

RUINOUS = ("algo=ga", "trainer.lr=0.3", "trainer.steps=7")  # unbounded ascent in leaps: the first points are the best


@pytest.fixture
def watches(monkeypatch) -> list[Watch]:
    """What the training of each run of the test returned."""
    found: list[Watch] = []

    def remembered(*arguments, train=job.train):
        found.append(train(*arguments))
        return found[-1]

    monkeypatch.setattr(job, "train", remembered)
    return found


def same(found: dict[str, torch.Tensor], watch: Watch) -> bool:
    """Whether saved weights are the watch's; tied weights are saved once, as the parameters name them."""
    return found.keys() == watch.weights.keys() and all(torch.equal(found[n], watch.weights[n]) for n in found)


def test_a_collapsed_run_is_done_says_why_and_keeps_its_best_point_beside_its_last(config, watches):
    folder = execute(config(*RUINOUS)).folder
    manifest, (watch,) = runlog.manifest(folder), watches
    assert manifest["status"] == "done" and manifest["kept"] == "last"
    assert "of the target's probability outside the forget set" in manifest["collapsed"]
    assert 0 < manifest["best"]["step"] < 7 and manifest["best"]["step"] == watch.step
    best = load_file(folder / "best" / "model.safetensors")
    assert same(best, watch) and not same(weights(folder), watch)
    assert (folder / "best" / "tokenizer_config.json").is_file()
    last = lines(folder)[-1]
    assert runlog.evaluation(folder)["alphas"]["1.0"]["forget/prob"] == pytest.approx(last["forget/prob"], abs=1e-6)


def test_a_run_that_did_not_collapse_has_no_second_set_of_weights(config, watches):
    folder = execute(config("algo=npo", "trainer.lr=1e-4")).folder
    manifest = runlog.manifest(folder)
    assert manifest["collapsed"] is None and manifest["kept"] == "last" and manifest["best"]["score"] < 1
    assert not (folder / "best").exists()


def test_keeping_the_best_point_puts_its_weights_into_the_offset_and_its_evaluation(config, watches):
    folder = execute(config(*RUINOUS, "trainer.keep=best")).folder
    manifest, (watch,) = runlog.manifest(folder), watches
    assert manifest["kept"] == "best" and not (folder / "best").exists()
    assert "outside the forget set" in manifest["collapsed"]  # said of the training's end, whatever is kept
    assert same(weights(folder), watch) and 0 < watch.step < 7
    points = {entry["step"]: entry for entry in lines(folder)}
    metrics = runlog.evaluation(folder)["alphas"]["1.0"]
    for split in ("forget", "retain", "real_authors", "world_facts"):
        assert metrics[f"{split}/prob"] == pytest.approx(points[watch.step][f"{split}/prob"], rel=1e-4)
    assert metrics["forget/prob"] != pytest.approx(points[7]["forget/prob"], rel=1e-2)


def test_a_method_that_does_not_begin_with_the_target_is_compared_with_the_target_all_the_same(config, watches):
    folder = execute(config("method=uld", "algo=uld")).folder
    (watch,), points = watches, lines(folder)
    target = runlog.evaluation(folder)["references"]["target"]["forget/prob"]
    assert watch.start["forget/prob"] == pytest.approx(target, rel=1e-4)
    assert points[0]["forget/prob"] != pytest.approx(target, rel=1e-3)
    assert runlog.manifest(folder)["score"] == pytest.approx(score(points[-1], watch.start))


def test_the_best_point_is_the_best_of_the_logged_ones(config, watches):
    folder = execute(config(*RUINOUS, "trainer.eval_every=2")).folder
    points = [{k: v for k, v in e.items() if k.endswith("/prob")} for e in lines(folder) if "forget/prob" in e]
    steps = [e["step"] for e in lines(folder) if "forget/prob" in e]
    assert steps == [0, 2, 4, 6, 7]
    scores = [score(p, points[0]) for p in points]
    manifest = runlog.manifest(folder)
    assert manifest["best"]["step"] == steps[scores.index(max(scores))]
    assert manifest["best"]["score"] == pytest.approx(max(scores), abs=1e-4)


@pytest.fixture
def broken(monkeypatch):
    """Gradient ascent whose values are no numbers from its fourth step on."""
    calls = []

    def ga(forget: Answers) -> PerToken:
        calls.append(1)
        return forget.logp * (torch.nan if len(calls) >= 4 else 1.0)

    monkeypatch.setitem(FORGET, "ga", ga)


DIVERGING = ("algo=ga", "trainer.steps=9", "trainer.lr=1e-2")


def test_a_loss_that_is_no_number_ends_training_at_the_best_point_where_that_is_to_be_kept(config, watches, broken):
    folder = execute(config(*DIVERGING, "trainer.keep=best")).folder
    manifest, (watch,) = runlog.manifest(folder), watches
    assert manifest["status"] == "done" and manifest["kept"] == "best"
    assert manifest["collapsed"].startswith("step 4: loss nan")
    assert same(weights(folder), watch) and all(w.isfinite().all() for w in watch.weights.values())
    assert [entry["step"] for entry in lines(folder)] == [0, 1, 2, 3]
    assert 0 < manifest["best"]["step"] <= 3
    metrics = runlog.evaluation(folder)["alphas"]["1.0"]
    assert metrics["forget/prob"] == pytest.approx(lines(folder)[watch.step]["forget/prob"], rel=1e-4)


def test_a_loss_that_is_no_number_fails_a_run_that_keeps_its_last_point_and_leaves_it_the_best(config, watches, broken):
    cfg = config(*DIVERGING, "trainer.keep=last")
    asked = grid.job(cfg, read(cfg).fingerprint())
    run.perform(asked)
    folder, (watch,) = asked.folder, watches
    manifest = runlog.manifest(folder)
    assert manifest["status"] == "failed" and not grid.job(cfg, asked.data).was_done
    assert manifest["error"].startswith("Diverged: step 4: loss nan")
    assert f"best/ holds step {watch.step}" in manifest["error"] and 0 < watch.step <= 3
    assert manifest["best"]["step"] == watch.step and manifest["collapsed"].startswith("step 4: loss nan")
    best = load_file(folder / "best" / "model.safetensors")
    assert same(best, watch) and all(w.isfinite().all() for w in best.values())
    assert not (folder / "offset").exists() and not (folder / "eval.json").exists()


def test_without_a_trajectory_there_is_nothing_to_go_back_to_and_the_run_fails(config, broken):
    with pytest.raises(Diverged, match="step 4: loss nan"):
        execute(config(*DIVERGING, "trainer.eval_every=0"))


@pytest.mark.parametrize("keep", ["last", "best"])
def test_before_any_point_that_is_better_than_the_first_there_is_nothing_to_go_back_to_either(config, broken, keep):
    cfg = config(*DIVERGING, "trainer.eval_every=5", f"trainer.keep={keep}")
    with pytest.raises(Diverged, match="step 4: loss nan") as error:
        execute(cfg)
    folder = grid.job(cfg, read(cfg).fingerprint()).folder
    assert [entry["step"] for entry in lines(folder) if "forget/prob" in entry] == [0]
    assert "best" not in str(error.value) and not any((folder / name).exists() for name in ("best", "offset"))


def test_a_manifest_without_a_trajectory_is_plain_json(config):
    """NaN is no JSON: jq and browsers refuse the whole file."""
    folder = execute(config("algo=ga", "trainer.eval_every=0")).folder
    text = (folder / "manifest.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in manifest.json"))
    assert found["best"] is None and found["collapsed"] is None


# --- resume -------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("keep", ["last", "best"])
def test_a_resumed_run_remembers_the_best_point_of_before(config, tmp_path, monkeypatch, keep):
    options = (*RUINOUS, "trainer.save_every=2", f"trainer.keep={keep}")
    straight = execute(config(*options, f"paths.runs={tmp_path}/straight")).folder
    assert 0 < runlog.manifest(straight)["best"]["step"] < 4  # before the checkpoint that the other run goes on from
    cfg = config(*options, f"paths.runs={tmp_path}/killed")
    checkpoint = killed_at(5, cfg, monkeypatch) / "checkpoint"
    assert len(list(checkpoint.glob("best-*"))) == 1 == len(list(checkpoint.glob("weights-*")))
    resumed = execute(cfg).folder
    for name in ("best", "kept", "collapsed"):
        assert runlog.manifest(resumed)[name] == runlog.manifest(straight)[name]
    for name in ("metrics.jsonl", "eval.json"):
        assert (resumed / name).read_text() == (straight / name).read_text()
    place = "best" if keep == "last" else "offset"
    files = [(folder / place / "model.safetensors").read_bytes() for folder in (straight, resumed)]
    assert files[0] == files[1]


def test_a_run_that_was_killed_without_a_trajectory_can_go_on_with_one(config, watches, monkeypatch):
    """trainer.eval_every is no part of what a run is, so it may differ from call to call."""
    options = ("algo=npo", "trainer.steps=6", "trainer.save_every=2", "trainer.log_every=1")
    folder = killed_at(5, config(*options, "trainer.eval_every=0"), monkeypatch)
    assert not list((folder / "checkpoint").glob("best-*"))
    assert execute(config(*options, "trainer.eval_every=1")).folder == folder
    manifest, (watch,) = runlog.manifest(folder), watches
    assert manifest["status"] == "done" and manifest["best"] is None
    losses = {entry["step"]: entry["train/loss"] for entry in lines(folder)}
    assert (watch.first_loss, watch.last_loss) == (losses[1], losses[6])  # the first one is that of before the kill
