"""Which examples a step sees: held-out retain rows, other answers, and that draws are what they were."""

import pytest

from unlearn.data.sampling import Sampler, held_out
from unlearn.runs.inputs import Inputs
from unlearn.runs.learner import members
from unlearn.runs.trajectory import probe


def sampler(**changes) -> Sampler:
    settings = dict(forget=7, retain=30, refusals=5, forget_batch=3, retain_batch=4, seed=3)
    return Sampler(**settings | changes)


def test_draws_without_held_out_rows_and_alternates_are_what_they_always_were():
    """Written down from the sampler before it knew of either: finished runs must be found, not repeated otherwise."""
    draws = [sampler().draw(step) for step in (0, 4)]
    assert [d.forget for d in draws] == [[5, 6, 2], [6, 0, 2]]
    assert [d.retain for d in draws] == [[16, 26, 7, 12], [7, 27, 9, 20]]
    assert [d.refusal for d in draws] == [[2, 4, 2], [1, 3, 2]]
    assert [d.retain_refusal for d in draws] == [[2, 4, 0, 1], [2, 0, 1, 3]]
    assert all(d.alternates == [] for d in draws)


def test_the_held_out_share_is_rounded_leaves_a_row_to_train_on_and_is_spread_over_the_set():
    """The first rows of a set belong to a few people; a part of each third stands for the whole."""
    for rows, share, count in ((30, 0.1, 3), (9, 0.1, 1), (9, 0.5, 4), (10, 0.99, 9), (30, 0, 0)):
        found = held_out(rows, share)
        assert len(found) == len(set(found)) == count and set(found) <= set(range(rows))
        assert list(found) == sorted(found)
    thirds = [i // 100 for i in held_out(300, 0.1)]
    assert min(thirds.count(k) for k in range(3)) >= 5


@pytest.mark.parametrize("seed", [0, 1, 2])
def test_held_out_rows_are_never_drawn_all_others_are_and_a_large_batch_takes_all_that_is_left(seed):
    out = held_out(30, 0.2)
    s = sampler(seed=seed, held_out=out)
    drawn = [i for step in range(200) for i in s.draw(step).retain]
    assert set(drawn) == set(range(30)) - set(out) == set(s.trainable.tolist())
    draw = sampler(retain=10, retain_batch=60, held_out=held_out(10, 0.3)).draw(0)
    assert sorted(draw.retain) == sorted(set(range(10)) - set(held_out(10, 0.3)))
    # So that runs with and without them differ in the retain draw alone.
    plain, held = sampler(alternates=(9,) * 7), sampler(alternates=(9,) * 7, held_out=(0, 1, 2))
    for step in range(5):
        assert plain.draw(step).forget == held.draw(step).forget


def test_runs_of_any_seed_hold_out_the_same_rows_and_the_trajectory_looks_at_no_row_that_a_step_sees(config, bench):
    cfgs = [config("algo=gd", "trainer.held_out=0.5", f"seed={seed}") for seed in (0, 5)]
    samplers = [Inputs(cfg, bench).sampler for cfg in cfgs]
    assert samplers[0].held_out == samplers[1].held_out == held_out(9, 0.5)
    assert samplers[0].draw(0) != samplers[1].draw(0)
    rows = bench.data.splits["retain"]
    seen = {rows[i].id for i in samplers[0].trainable.tolist()}
    points = probe(cfgs[0], bench, members(cfgs[0], bench)).points
    shown = {e.id for e in points["held_out"][0]}
    assert shown and not shown & seen
    assert len(shown) == 2  # half of the four rows; the other half is never looked at while a run trains
    without = config("trainer.held_out=0")
    assert "held_out" not in probe(without, bench, members(without, bench)).points


def test_alternates_stay_within_what_each_question_has_and_pairs_name_the_question_they_were_drawn_for():
    counts = (1, 4, 2, 3, 1, 2, 5)
    s = sampler(refusals=0, alternates=counts)
    pairs = [pair for step in range(150) for pair in s.draw(step).named("alternates")]
    assert set(pairs) == {(i, k) for i, n in enumerate(counts) for k in range(n)}
    draw = s.draw(0)
    assert len(draw.alternates) == len(draw.forget) and draw.refusal == []
    draw = sampler(alternates=(9,) * 7).draw(1)
    assert draw.named("refusal") == list(zip(draw.forget, draw.refusal, strict=True))
    assert draw.named("alternates") == list(zip(draw.forget, draw.alternates, strict=True))
    assert draw.named("retain_refusal") == list(zip(draw.retain, draw.retain_refusal, strict=True))
