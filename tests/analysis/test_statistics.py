"""Intervals and paired differences, against scipy and against arithmetic written by hand."""

import math

import numpy as np
import pandas as pd
import pytest
from scipy import stats

from analysis import goals, statistics


def runs(values: dict[tuple[int, int], float], **settings) -> pd.DataFrame:
    """Made-up runs: {(pair_seed, seed): value}."""
    rows = [{"pair_seed": p, "seed": s, "forget/prob": v} | settings for (p, s), v in values.items()]
    return pd.DataFrame(rows)


def test_the_mean_has_students_interval_one_unit_none_and_no_unit_no_mean():
    values = [0.1, 0.4, 0.3, 0.2]
    found = statistics.mean(values)
    low, high = stats.t.interval(0.95, 3, loc=np.mean(values), scale=stats.sem(values))
    assert (found.mean, found.n) == (pytest.approx(0.25), 4)
    assert (found.low, found.high) == (pytest.approx(low), pytest.approx(high))
    # by hand for two: sd = |a - b| / √2, so the half width is t(0.975, 1) · |a - b| / 2 = 12.706 · 0.1
    assert statistics.mean([0.3, 0.5]).half == pytest.approx(12.7062 * 0.1, rel=1e-4)
    one = statistics.mean([0.3])
    assert (one.mean, one.n) == (0.3, 1) and math.isnan(one.low) and math.isnan(one.half)
    none = statistics.mean([math.nan])
    assert none.n == 0 and math.isnan(none.mean)


def test_seeds_are_averaged_within_a_pair_seed_first():
    table = runs({(0, 0): 0.1, (0, 1): 0.3, (1, 0): 0.6}, algo="npo")
    row = statistics.summary(table, ["algo"], ["forget/prob"]).iloc[0]
    assert (row["n"], row["mean"]) == (2, pytest.approx(0.4))  # worlds; not 1/3 of all
    assert row["high"] - row["mean"] == pytest.approx(stats.t.ppf(0.975, 1) * 0.4 / 2)
    table = runs({(0, 0): 0.1, (1, 0): math.nan, (2, 0): 0.3}, algo="npo")  # a run without the number is not in n
    assert statistics.summary(table, ["algo"], ["forget/prob"])["n"].tolist() == [2]


def test_an_interval_over_three_worlds_covers_the_truth_as_often_as_it_says():
    random, hits = np.random.default_rng(0), 0
    for _ in range(400):
        world = random.normal(scale=0.1, size=3)
        other = runs({(p, 0): v for p, v in enumerate(world)})
        one = runs({(p, 0): v for p, v in enumerate(world + random.normal(0.05, 0.03, 3))})
        found = statistics.paired(one, other, "forget/prob")
        hits += found.low <= 0.05 <= found.high
    assert hits / 400 >= 0.92


def test_differences_are_paired_by_pair_seed_and_by_question():
    other = runs({(p, 0): v for p, v in enumerate((0.1, 0.5, 0.9, 0.3, 0.7))})
    one = runs({(p, 0): v + d for (p, v, d) in zip(range(5), other["forget/prob"], (1, 2, 3, 2, 2), strict=True)})
    found = statistics.paired(one, other, "forget/prob")
    assert (found.mean, found.n, found.separated) == (pytest.approx(2), 5, True)
    half = stats.t.ppf(0.975, 4) * math.sqrt(0.5 / 5)  # unpaired, the worlds' spread would be in it
    assert (found.low, found.high) == (pytest.approx(2 - half), pytest.approx(2 + half))
    without = statistics.paired(one, other[other["pair_seed"] < 2], "forget/prob")
    assert (without.mean, without.n, without.separated) == (pytest.approx(1.5), 2, False)  # t = 12.7 for two
    keys = [(p, i) for p in range(3) for i in range(5)]
    other = pd.DataFrame([{"pair_seed": p, "split": "forget", "id": f"q{i}", "prob": i / 5} for p, i in keys])
    one = other.assign(prob=other["prob"] + 0.25).sample(frac=1, random_state=0)
    found = statistics.paired_examples(one[one["id"] != "q4"], other, "prob")
    assert (found.mean, found.n, found.items) == (pytest.approx(0.25), 3, 12)
    assert found.half == pytest.approx(0, abs=1e-12) and found.separated


def test_worlds_count_once_however_many_questions_they_have_and_one_world_separates_nothing():
    def examples(sizes, values):
        ids = [{"pair_seed": p, "split": "forget", "id": f"q{i}"} for p, n in sizes.items() for i in range(n)]
        return pd.DataFrame(ids).assign(prob=values)

    sizes = {0: 4, 1: 400}
    one, none = examples(sizes, [1.0] * 4 + [2.0] * 400), examples(sizes, 0.0)
    found = statistics.paired_examples(one, none, "prob")
    assert (found.mean, found.n, found.items) == (1.5, 2, 404)  # the mean of worlds, not of questions
    assert found.half == pytest.approx(12.7062 * 0.5, rel=1e-4) and not found.separated
    values = np.random.default_rng(0).normal(loc=1, size=300)
    found = statistics.paired_examples(examples({0: 300}, values), examples({0: 300}, 0.0), "prob")
    assert found.half == pytest.approx(1.97 * values.std() / math.sqrt(300), rel=0.01)
    assert (found.n, found.items, found.separated) == (1, 300, False)


def test_what_is_good_for_a_metric_and_that_forgetting_further_than_the_retrained_model_is_no_better():
    for metric, where, without in (
        ("forget/prob", "retrained", "lower"), ("forget/leak@20", "retrained", "lower"),
        ("forget/leak_gap", "zero", "zero"), ("retain/prob", "higher", "higher"),
        ("forget_quality_ks", "lower", "lower"), ("forget_quality_log10", "higher", "higher"),
        ("forget/truth_ratio", "retrained", "higher"), ("relearn/rougeL_recall", None, None),
        ("forget/fluency", None, None),
    ):  # fmt: skip
        assert (goals.goal(metric), goals.goal(metric, retrained=False)) == (where, without), metric
    assert goals.distance("forget/prob", 0.0, 0.2) > goals.distance("forget/prob", 0.25, 0.2)
    assert goals.distance("retain/prob", 0.9) < goals.distance("retain/prob", 0.8)
    assert goals.distance("forget/leak_gap", -0.3) > goals.distance("forget/leak_gap", 0.1)
