"""Divergence, three-sample test, bootstrap and distances: by hand, and by simulation where they promise a rate."""

import math
import time

import numpy as np
import pytest
import torch
from support.helpers import SHARED

from unlearn.evaluation import others
from unlearn.evaluation.groups import three_sample as divergence
from unlearn.evaluation.groups.three_sample import jensen_shannon, three_sample
from unlearn.evaluation.metrics.statistics import distances, interval, mean_interval
from unlearn.evaluation.metrics.tofu import PARTS, harmonic_mean, model_utility, ratio_scores

LN2 = math.log(2)


# --- Jensen–Shannon -----------------------------------------------------------------------------------------------
def by_definition(p: torch.Tensor, q: torch.Tensor) -> torch.Tensor:
    """In float64, from the formula with the mixture m."""
    p, q = p.double().softmax(-1), q.double().softmax(-1)
    m = (p + q) / 2
    return ((p * (p / m).log()).sum(-1) + (q * (q / m).log()).sum(-1)) / 2


def test_jensen_shannon_by_hand():
    p = torch.tensor([[0.5, 0.5], [1.0, 0.0], [1.0, 0.0], [0.75, 0.25]])
    q = torch.tensor([[0.5, 0.5], [0.0, 1.0], [0.5, 0.5], [0.25, 0.75]])
    # third: m = (3/4, 1/4), ½ ln(4/3) + ½ (½ ln(2/3) + ½ ln 2); fourth: m = (½, ½), ¾ ln(3/2) + ¼ ln(1/2)
    third = math.log(4 / 3) / 2 + (math.log(2 / 3) + LN2) / 4
    fourth = 0.75 * math.log(1.5) - 0.25 * LN2
    assert jensen_shannon(p.log(), q.log()).tolist() == pytest.approx([0, LN2, third, fourth], abs=1e-6)
    # extreme and masked logits stay finite
    p = torch.tensor([[1e4, 0.0, -1e4], [0.0, -torch.inf, -torch.inf], [0.0, 0.0, -torch.inf]])
    q = torch.tensor([[-1e4, 0.0, 1e4], [-torch.inf, 0.0, -torch.inf], [0.0, 0.0, -torch.inf]])
    assert jensen_shannon(p, q).tolist() == pytest.approx([LN2, LN2, 0], abs=1e-6)


def test_jensen_shannon_equals_its_definition_is_symmetric_and_ignores_constants_and_chunks(monkeypatch):
    torch.manual_seed(0)
    p, q = torch.randn(50, 300) * 3, torch.randn(50, 300) * 3
    found = jensen_shannon(p, q)
    assert found.tolist() == pytest.approx(by_definition(p, q).tolist(), abs=1e-6)
    assert torch.equal(found, jensen_shannon(q, p))
    assert jensen_shannon(p + 40, q - 3).tolist() == pytest.approx(found.tolist(), abs=1e-5)
    assert jensen_shannon(p, p.clone()).tolist() == [0.0] * 50
    rounded = jensen_shannon(p.bfloat16(), q.bfloat16())
    assert rounded.dtype == torch.float32
    assert torch.equal(rounded, jensen_shannon(p.bfloat16().float(), q.bfloat16().float()))
    for elements in (3 * 300, 1):  # the second is less than a row: one row at a time
        monkeypatch.setattr(divergence, "CHUNK_ELEMENTS", elements)
        assert jensen_shannon(p, q).tolist() == pytest.approx(found.tolist(), abs=1e-7)


# --- the three-sample test ----------------------------------------------------------------------------------------
def test_statistic_weighs_examples_not_rows():
    # example 0: rows differ by 1, 3 → 2; example 1: −1
    result = three_sample([0.0, 0.0, 1.0], [1.0, 3.0, 0.0], example=[0, 0, 1])
    # sign patterns of (2, −1): sums 1, 3, −3, −1; two reach the observed 1
    assert result == (pytest.approx(0.5), 0.5, 0.5, False, 2)  # statistic, p, share, closer, groups


def test_p_value_counts_every_pattern_where_they_are_few():
    # all closer by the same: only the observed pattern reaches the sum
    result = three_sample(np.zeros(6), np.full(6, 0.1), example=range(6))
    assert result.p == 1 / 64 and result.closer
    farther = three_sample(np.full(6, 0.1), np.zeros(6), example=range(6))
    assert (farther.p, farther.closer) == (1.0, False) and farther.statistic == pytest.approx(-0.1)
    same = three_sample(np.full(40, 0.2), np.full(40, 0.2), example=range(40))
    assert (same.statistic, same.p, same.share, same.closer) == (0.0, 1.0, 0.0, False)  # no difference is no evidence


def test_random_flips_agree_with_all_of_them():
    random = np.random.default_rng(5)
    near, away = random.random((2, 12)) + [[0.0], [0.15]]
    exact = three_sample(near, away, range(12), flips=5000)
    drawn = three_sample(near, away, range(12), flips=4000, seed=1)
    assert drawn.p == pytest.approx(exact.p, abs=4 * math.sqrt(exact.p * (1 - exact.p) / 4000))
    assert three_sample(near, away, range(12), flips=4000, seed=1) == drawn


def test_groups_flip_as_one():
    # six examples in two groups: only four patterns, so no more evidence than two coins
    result = three_sample(np.zeros(6), np.ones(6), example=range(6), group=["a", "a", "b", "b", "b", "b"])
    assert (result.p, result.groups, result.share, result.closer) == (0.25, 2, 1.0, False)
    # sums 2 and −4 → −2: the patterns give −2, 6, −6, 2, three of which reach it
    mixed = three_sample([0, 0, 1, 1, 1, 1], [1, 1, 0, 0, 0, 0], range(6), group=[7, 7, 3, 3, 3, 3])
    assert mixed.p == 0.75


def simulated(effect: float, runs: int, grouped: bool, seed: int) -> float:
    """How often the verdict is "closer", with rows that share their example's and their author's noise."""
    random = np.random.default_rng(seed)
    author, example = np.repeat(np.arange(20), 12), np.repeat(np.arange(60), 4)
    closer = 0
    for _ in range(runs):
        shared = random.standard_t(3, 20)[author] + random.normal(size=60)[example]  # heavy tails, symmetric
        difference = effect + shared + random.normal(size=240)
        near = 20 + np.abs(difference)
        result = three_sample(near, near + difference, example, author if grouped else None, flips=199, seed=seed)
        closer += result.closer
    return closer / runs


def test_the_false_positive_rate_is_the_level_at_most_when_dependent_examples_are_grouped():
    runs = 600
    rate = simulated(0.0, runs, grouped=True, seed=0)
    assert rate <= 0.05 + 3 * math.sqrt(0.05 * 0.95 / runs)
    assert rate > 0.02  # and it is not merely blind
    # three examples of one author taken for three witnesses: the level no longer holds
    assert simulated(0.0, 200, grouped=False, seed=1) > 0.1


def test_the_power_is_high_where_the_model_is_closer():
    assert simulated(2.0, 100, grouped=True, seed=2) > 0.95
    assert simulated(-2.0, 100, grouped=True, seed=3) == 0.0


# --- bootstrap ----------------------------------------------------------------------------------------------------
def test_equal_values_and_a_single_item_have_no_width_and_a_seed_repeats():
    assert mean_interval(np.full(30, 0.4)) == pytest.approx((0.4, 0.4))
    assert mean_interval([0.7]) == pytest.approx((0.7, 0.7))
    values = np.random.default_rng(0).random(20)
    assert mean_interval(values, seed=3) == mean_interval(values, seed=3) != mean_interval(values, seed=4)


def test_the_interval_of_a_mean_is_that_of_the_normal_approximation_and_covers_the_truth():
    random = np.random.default_rng(0)
    values = random.random(400)
    half = 1.96 * values.std() / 20
    expected = values.mean() - half, values.mean() + half
    assert mean_interval(values, resamples=4000) == pytest.approx(expected, abs=0.1 * half)
    hits = sum(low < 0.5 < high for low, high in (mean_interval(random.random(50), 300) for _ in range(400)))
    assert 0.90 < hits / 400 < 0.98


def test_arrays_of_a_split_are_drawn_together_and_splits_apart():
    values = np.random.default_rng(0).random(50)

    def spread(names):
        first, second = names
        return interval(dict(zip(names, (values, -values), strict=True)), lambda d: (d[first] + d[second]).mean(-1))

    assert spread(("retain/a", "retain/b")) == pytest.approx((0, 0), abs=1e-12)  # x − x, item by item
    low, high = spread(("retain/a", "forget/b"))
    assert low < -0.05 and high > 0.05

    def of_a(drawn):
        return drawn["a/b"].mean(-1)

    # other splits and the order of names do not change the draws
    arrays = {f"{s}/{m}": np.random.default_rng(i).random(30) for i, (s, m) in enumerate(["ab", "cd", "ae"])}
    alone = interval({"a/b": arrays["a/b"]}, of_a)
    assert interval(arrays, of_a) == interval(dict(reversed(arrays.items())), of_a) == alone


def utility(drawn):
    return harmonic_mean([drawn[name].mean(-1) for name in PARTS])


def test_the_interval_of_model_utility_is_that_of_a_plain_loop_and_fast():
    random = np.random.default_rng(2)
    sizes = dict.fromkeys(("retain", "real_authors", "world_facts"), 400)
    arrays = {name: random.random(sizes[name.split("/")[0]]) for name in PARTS}

    start = time.perf_counter()
    found = interval(arrays, utility)
    assert time.perf_counter() - start < 1

    loop = []
    for _ in range(2000):
        items = {split: random.integers(0, n, n) for split, n in sizes.items()}
        loop.append(model_utility({name: array[items[name.split("/")[0]]].mean() for name, array in arrays.items()}))
    assert found == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.15 * (found.high - found.low))


def test_the_interval_of_tofu_s_published_model_utility():
    path = SHARED / "data" / "tofu_eval_logs" / "llama2-7b_full_wd0.01.eval_log_aggregated.json"
    if not path.is_file():
        pytest.skip(f"the published TOFU logs are not at {path}")
    examples = others.read(path).examples
    arrays = {name: examples.loc[examples["split"] == name.split("/")[0], name.split("/")[1]] for name in PARTS}
    arrays |= {name: ratio_scores("retain", ratios) for name, ratios in arrays.items() if name.endswith("truth_ratio")}
    low, high = interval(arrays, utility)
    assert harmonic_mean([arrays[name].mean() for name in PARTS]) == pytest.approx(0.622677, abs=1e-6)
    assert (low, high) == pytest.approx((0.592, 0.649), abs=0.004)  # ± .03: smaller differences are item noise


# --- distances ----------------------------------------------------------------------------------------------------
def test_distances_are_signed_and_of_what_both_have():
    found = distances({"forget/prob": 0.1, "model_utility": 0.6, "y": 2}, {"forget/prob": 0.25, "model_utility": 0.5})
    assert found == pytest.approx({"forget/prob": -0.15, "model_utility": 0.1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: three_sample([], [], []), "at least one value"),
        (lambda: three_sample(np.ones(2), [1.0, math.nan], [0, 1]), "d_target: 1 of 2 values are NaN"),
        (lambda: mean_interval([]), "values: shape"),
        (lambda: mean_interval([0.5, math.nan]), "values: 1 of 2 values are NaN"),
    ],
)
def test_what_cannot_be_read_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
