"""A run that ruins its model says so and keeps the best point of its trajectory, by the rule declared before it."""

import json
import math

import pytest
import torch
from safetensors.torch import load_file
from support.helpers import FEW, execute, job_of, killed_at, lines, weights

from unlearn import run
from unlearn.learning.answers import Answers, PerToken
from unlearn.learning.loop import Diverged
from unlearn.learning.losses import FORGET
from unlearn.runs import job, trajectory
from unlearn.runs.trajectory import Probe, Watch, kept, score
from unlearn.store import runlog

START = {"forget/prob": 0.8, "retain/prob": 0.9, "real_authors/prob": 0.5, "world_facts/prob": 0.4}


def point(forget: float, *others: float, **more: float) -> dict[str, float]:
    return dict(zip(START, (forget, *others), strict=True)) | {f"{k}/prob": v for k, v in more.items()}


# --- the rule -----------------------------------------------------------------------------------------------------


def test_kept_is_the_mean_share_of_probability_outside_the_forget_set():
    assert kept(point(0.0, 0.45, 0.25, 0.1), START) == pytest.approx((0.5 + 0.5 + 0.25) / 3)
    assert kept(point(0.9, 0.99, 0.9, 0.2), START) == pytest.approx((1 + 1 + 0.5) / 3)  # no gain makes up for a loss
    # of the retain data only what no step sees counts, where there is such a part
    start = START | {"held_out/prob": 0.6}
    assert kept(point(0.0, 0.0, 0.5, 0.4, held_out=0.3), start) == pytest.approx((1 + 1 + 0.5) / 3)
    start = START | {"retain/exact_memorization": 0.7, "forget/exact_memorization": 0.9}  # no probabilities
    assert kept(point(0.0, 0.45, 0.25, 0.1), start) == kept(point(0.0, 0.45, 0.25, 0.1), START)
    assert score(point(0.2, 0.45, 0.25, 0.2), start) == score(point(0.2, 0.45, 0.25, 0.2), START)


@pytest.mark.parametrize("count", [trajectory.FEW - 1, trajectory.FEW])
def test_few_held_out_questions_do_not_stand_for_the_retain_set(count):
    class Points(Probe):
        def __call__(self, alpha=None):
            return {"retain/prob": 0.9, "held_out/prob": 0.8, "held_out/exact_memorization": 1.0}

    start = Points(None, 1.0, {"held_out": ([None] * count, {})}, 0, 1).start()
    assert kept({"retain/prob": 0.9, "held_out/prob": 0.2}, start) == (0.25 if count == trajectory.FEW else 1)


def test_the_score_is_the_harmonic_mean_of_what_is_lost_and_what_is_kept():
    assert score(START, START) == 0  # nothing lost
    assert score(point(0.0, 0.9, 0.5, 0.4), START) == 1  # all lost, all kept
    assert score(point(0.0, 0.0, 0.0, 0.0), START) == 0  # a ruin
    assert score(point(0.2, 0.45, 0.25, 0.2), START) == pytest.approx(2 * 0.75 * 0.5 / 1.25)
    assert score(point(0.9, 0.9, 0.5, 0.4), START) == 0  # more of the forget set than before is no loss below none


MODEL = torch.nn.Linear(2, 1)


def seen(*points: dict[str, float], losses=(1.0, 1.0), start=START) -> Watch:
    """A watch after some points, at each of which the weights are the number of the point."""
    watch = Watch(dict(start))
    for step, values in enumerate(points):
        with torch.no_grad():
            MODEL.weight.fill_(step)
        watch.see(step, values, MODEL)
    for loss in losses:
        watch.see_loss(loss)
    return watch


def test_the_watch_keeps_a_copy_of_the_weights_of_the_first_best_point():
    MODEL.bias.requires_grad_(False)
    best = point(0.1, 0.9, 0.5, 0.4) | {"forget/exact_memorization": 0.3, "train/loss": 1.0}
    watch = seen(START, point(0.4, 0.9, 0.5, 0.4), best, best, START)
    MODEL.bias.requires_grad_(True)
    assert watch.step == 2 and watch.score == pytest.approx(2 * 0.875 / 1.875)
    assert watch.weights.keys() == {"weight"} and watch.weights["weight"].eq(2).all()
    assert watch.start == START and watch.kept == 1.0


def test_points_are_compared_with_the_target_and_not_with_the_first_of_them():
    watch = seen(point(0.4, 0.09, 0.05, 0.04))  # a method that begins with less than the target knows
    assert watch.start == START and watch.kept == pytest.approx(0.1) and "0.10" in watch.verdict()
    assert watch.score == pytest.approx(2 * 0.5 * 0.1 / 0.6)
    watch = seen(START, point(0.0, 0.0, 0.0, 0.0), losses=(), start={})  # it knows nothing of the target
    assert vars(watch) == vars(Watch()) | {"last_score": watch.last_score} and math.isnan(watch.last_score)
    assert watch.verdict() is None


def test_a_verdict_names_what_went_wrong():
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
    # finite weights can be so large that their logits overflow; after the last step no loss would show it
    overflown = seen(START, point(*[float("nan")] * 4))
    assert overflown.step == 0 and overflown.verdict() is not None


def test_a_watch_is_restored_as_it_was_saved(tmp_path):
    watch, again = seen(START, point(0.1, 0.8, 0.5, 0.4), point(0.4, 0.4, 0.2, 0.1), losses=(-2, -3, -4)), Watch()
    again.restore(tmp_path, watch.save(tmp_path))
    best, restored = watch.weights, again.weights
    assert restored.keys() == best.keys() and all(torch.equal(restored[n], best[n]) for n in best)
    assert again.step == 1 and restored["weight"].eq(1).all()
    assert vars(again) | {"weights": None} == vars(watch) | {"weights": None}


def test_without_a_trajectory_the_losses_are_restored_and_no_weights_are_written(tmp_path):
    watch, again = seen(losses=(-3.0, -50.0, -301.0), start={}), Watch()
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


@pytest.mark.parametrize("keep", ["best", pytest.param("last", marks=pytest.mark.nightly)])
def test_a_collapsed_run_says_why_and_keeps_its_best_point_and_a_resumed_one_too(
    config, tmp_path, watches, monkeypatch, keep
):
    options = (*RUINOUS, "trainer.save_every=2", f"trainer.keep={keep}")
    folder = execute(config(*options, f"paths.runs={tmp_path}/straight")).folder
    manifest, (watch,), points = runlog.manifest(folder), watches, lines(folder)
    assert manifest["status"] == "done" and manifest["kept"] == keep
    assert "of the target's probability outside the forget set" in manifest["collapsed"]  # whatever is kept
    assert 0 < manifest["best"]["step"] == watch.step < 4  # before the checkpoint that the other run goes on from
    metrics = runlog.evaluation(folder)["alphas"]["1.0"]
    if keep == "last":
        assert same(load_file(folder / "best" / "model.safetensors"), watch) and not same(weights(folder), watch)
        assert (folder / "best" / "tokenizer_config.json").is_file()
        assert metrics["forget/prob"] == pytest.approx(points[-1]["forget/prob"], abs=1e-6)
    else:
        assert same(weights(folder), watch) and not (folder / "best").exists()
        for split in ("forget", "retain", "real_authors", "world_facts"):
            assert metrics[f"{split}/prob"] == pytest.approx(points[watch.step][f"{split}/prob"], rel=1e-4)
        assert metrics["forget/prob"] != pytest.approx(points[7]["forget/prob"], rel=1e-2)
    cfg = config(*options, f"paths.runs={tmp_path}/killed")
    checkpoint = killed_at(5, cfg, monkeypatch) / "checkpoint"
    assert len(list(checkpoint.glob("best-*"))) == 1 == len(list(checkpoint.glob("weights-*")))
    resumed = execute(cfg).folder
    for name in ("best", "kept", "collapsed"):
        assert runlog.manifest(resumed)[name] == manifest[name]
    place = "best" if keep == "last" else "offset"
    for name in ("metrics.jsonl", "eval.json", f"{place}/model.safetensors"):
        assert (resumed / name).read_bytes() == (folder / name).read_bytes()


def test_a_run_that_did_not_collapse_has_no_second_set_of_weights(config):
    folder = execute(config("algo=npo", "trainer.lr=1e-4", *FEW)).folder
    manifest = runlog.manifest(folder)
    assert manifest["collapsed"] is None and manifest["kept"] == "last" and manifest["best"]["score"] < 1
    assert not (folder / "best").exists()


def test_a_method_that_does_not_begin_with_the_target_is_compared_with_the_target_all_the_same(config, watches):
    folder = execute(config("method=uld", "algo=uld")).folder
    (watch,), points = watches, lines(folder)
    target = runlog.evaluation(folder)["references"]["target"]["forget/prob"]
    assert watch.start["forget/prob"] == pytest.approx(target, rel=1e-4)
    assert points[0]["forget/prob"] != pytest.approx(target, rel=1e-3)
    assert runlog.manifest(folder)["score"] == pytest.approx(score(points[-1], watch.start))


def test_the_best_point_is_the_best_of_the_logged_ones(config, watches):
    folder = execute(config(*RUINOUS, "trainer.eval_every=2", *FEW)).folder
    points = [{k: v for k, v in e.items() if k.endswith("/prob")} for e in lines(folder) if "forget/prob" in e]
    steps = [e["step"] for e in lines(folder) if "forget/prob" in e]
    assert steps == [0, 2, 4, 6, 7]
    start = {name: value for name, value in points[0].items() if name != "held_out/prob"}  # too few to judge by
    scores = [score(p, start) for p in points]
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


DIVERGING = ("algo=ga", "trainer.steps=9", "trainer.lr=1e-2", *FEW)


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
    asked = job_of(cfg)
    run.perform(asked)
    folder, (watch,) = asked.folder, watches
    manifest = runlog.manifest(folder)
    assert manifest["status"] == "failed" and not job_of(cfg).was_done
    assert manifest["error"].startswith("Diverged: step 4: loss nan")
    assert f"best/ holds step {watch.step}" in manifest["error"] and 0 < watch.step <= 3
    assert manifest["best"]["step"] == watch.step and manifest["collapsed"].startswith("step 4: loss nan")
    best = load_file(folder / "best" / "model.safetensors")
    assert same(best, watch) and all(w.isfinite().all() for w in best.values())
    assert not (folder / "offset").exists() and not (folder / "eval.json").exists()


@pytest.mark.parametrize(("keep", "every"), [("last", 5), ("best", 5), ("last", 0)])  # 0: no trajectory
def test_before_any_point_that_is_better_than_the_first_there_is_nothing_to_go_back_to(config, broken, keep, every):
    cfg = config(*DIVERGING, f"trainer.eval_every={every}", f"trainer.keep={keep}")
    with pytest.raises(Diverged, match="step 4: loss nan") as error:
        execute(cfg)
    folder = job_of(cfg).folder
    assert [entry["step"] for entry in lines(folder) if "forget/prob" in entry] == ([0] if every else [])
    assert "best" not in str(error.value) and not any((folder / name).exists() for name in ("best", "offset"))


def test_a_manifest_without_a_trajectory_is_plain_json(config):
    """NaN is no JSON: jq and browsers refuse the whole file."""
    folder = execute(config("algo=ga", "trainer.eval_every=0", *FEW)).folder
    text = (folder / "manifest.json").read_text()
    found = json.loads(text, parse_constant=lambda name: pytest.fail(f"{name} in manifest.json"))
    assert found["best"] is None and found["collapsed"] is None


def test_a_run_that_was_killed_without_a_trajectory_can_go_on_with_one(config, watches, monkeypatch):
    """trainer.eval_every is no part of what a run is, so it may differ from call to call."""
    options = ("algo=npo", "trainer.steps=6", "trainer.save_every=2", "trainer.log_every=1", *FEW)
    folder = killed_at(5, config(*options, "trainer.eval_every=0"), monkeypatch)
    assert not list((folder / "checkpoint").glob("best-*"))
    assert execute(config(*options, "trainer.eval_every=1")).folder == folder
    manifest, (watch,) = runlog.manifest(folder), watches
    assert manifest["status"] == "done" and manifest["best"] is None
    losses = {entry["step"]: entry["train/loss"] for entry in lines(folder)}
    assert (watch.first_loss, watch.last_loss) == (losses[1], losses[6])  # the first one is that of before the kill
