"""What a deployed pair gives away by itself: its numbers against sums and models asked by hand."""

import json

import numpy as np
import pytest
import torch
from support.helpers import TINY, compose, execute

from unlearn.data.encoding import collate
from unlearn.models.llama import answer_rows
from unlearn.runs.baselines import suite_of
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench

ASKED = ("eval.groups=[artefact]", "eval.resamples=0", "eval.relearn_steps=3", "trainer.lr=0.05", "data.questions=6")
NUMBERS = ("prob", "leak@2", "relearnt_prob", "anchor_prob", "gain", "anchor_relearnt_prob", "beta")


@pytest.fixture(scope="module")
def measured(store, tmp_path_factory):
    """Function from overrides to the config of a run, its folder, and what was measured at α = 1, of the target too."""

    def run(*overrides: str):
        cfg = compose(
            *TINY, *ASKED, f"paths.store={store}", f"paths.runs={tmp_path_factory.mktemp('pair')}", *overrides
        )
        folder = execute(cfg).folder
        found = json.loads((folder / "eval.json").read_text())
        return cfg, folder, found["alphas"]["1.0"], found["references"]

    return run


def probs(cfg, bench, weights: dict) -> np.ndarray:
    """Probability of each right answer to a forget question under a weighted sum of models' logits."""
    examples = list(suite_of(cfg, bench).split("forget").right_answers)
    batch = collate(examples, bench.pad_id)
    with torch.no_grad():
        logits = sum(w * answer_rows(model, batch).double() for model, w in weights.items())
    logp = logits.log_softmax(-1)[range(len(batch.labels)), batch.labels]
    return np.array([logp[batch.owner == i].mean().exp().item() for i in range(len(examples))])


def test_the_best_reading_of_the_pair_is_the_largest_of_those_made_by_hand(measured):
    cfg, folder, found, references = measured("algo=npo", "eval.artefact_betas=[-2,3]")
    bench = workbench(cfg)
    by_name = {m.name: m.model for m in members(cfg, bench, folder).members}
    offset, anchor = by_name["offset"], by_name["anchor"]
    means = {b: probs(cfg, bench, {anchor: 1 - b, offset: b}).mean() for b in (-2.0, 0.0, 1.0, 3.0)}
    best = max(means, key=means.get)
    assert found["artefact/beta"] == best
    assert found["artefact/prob"] == pytest.approx(means[best], rel=1e-5)
    assert found["artefact/anchor_prob"] == pytest.approx(means[0.0], rel=1e-5)
    assert found["artefact/gain"] == pytest.approx(means[best] - means[0.0], abs=1e-6)
    assert len(set(map(lambda v: round(v, 6), means.values()))) == 4
    assert {name.partition("/")[2] for name in found if name.startswith("artefact/")} == set(NUMBERS)
    assert not [name for entry in references.values() for name in entry if name.startswith("artefact/")]


def test_training_on_one_half_is_seen_on_the_other_and_leaves_the_run_s_models_as_they_were(measured):
    cfg, folder, found, _ = measured("algo=npo", "eval.relearn_steps=1", "eval.relearn_lr=1e-9")
    cfg2, _, more, _ = measured("algo=npo", "eval.relearn_steps=10", "eval.relearn_lr=2e-3")
    bench = workbench(cfg)
    anchor = next(m.model for m in members(cfg, bench, folder).members if m.name == "anchor")
    half = [i for i in range(6) if i % 2]  # one person: every second question
    still = probs(cfg, bench, {anchor: 1.0})[half].mean()
    assert found["artefact/anchor_relearnt_prob"] == pytest.approx(still, rel=1e-4)
    assert more["artefact/anchor_relearnt_prob"] > found["artefact/anchor_relearnt_prob"]
    assert more["artefact/anchor_prob"] == pytest.approx(found["artefact/anchor_prob"], rel=1e-6)


def test_an_assistant_that_knows_is_found_to_know_and_a_white_box_is_asked_as_it_is(measured):
    cfg, folder, found, _ = measured("algo=uld", "method=uld", "trainer.steps=20")
    bench = workbench(cfg)
    assistant = next(m.model for m in members(cfg, bench, folder).members if m.trained)
    assert found["artefact/prob"] == pytest.approx(probs(cfg, bench, {assistant: 1.0}).mean(), rel=1e-5)
    assert "artefact/anchor_prob" not in found and found["artefact/beta"] == 1
    cfg, folder, found, references = measured("algo=npo", "method=direct")
    assert found["artefact/prob"] == pytest.approx(found["forget/prob"], rel=1e-5)


def test_members_that_are_read_by_low_rank_updates_count_as_they_are_deployed(measured):
    cfg, folder, found, _ = measured("algo=npo", "pair.tuning=lora", "eval.artefact_betas=[]")
    bench = workbench(cfg)
    by_name = {m.name: m.model for m in members(cfg, bench, folder).members}
    means = [probs(cfg, bench, {by_name[name]: 1.0}).mean() for name in ("offset", "anchor")]
    assert means[0] != pytest.approx(means[1], rel=1e-4)
    assert found["artefact/prob"] == pytest.approx(max(means), rel=1e-5)
