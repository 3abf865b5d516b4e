"""Divergence, three-sample test, intervals and distances: by hand, and by simulation where they promise a rate."""

import math
import time

import numpy as np
import pytest
import torch
from scipy.stats import t
from support.helpers import SHARED

from unlearn.evaluation import others
from unlearn.evaluation.groups import three_sample as divergence
from unlearn.evaluation.groups.privacy import weighted_aucs
from unlearn.evaluation.groups.three_sample import jensen_shannon, three_sample
from unlearn.evaluation.metrics.membership import auc
from unlearn.evaluation.metrics.statistics import distances, ends, interval, mean_interval
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


# --- intervals ----------------------------------------------------------------------------------------------------
RANDOM = np.random.default_rng(0)
PEOPLE = np.repeat(np.arange(5), 20)  # whom each of 100 questions is about


def spread(icc: float) -> np.ndarray:
    """Deviations of 100 questions, of which a share of the variance is their person's."""
    return math.sqrt(icc) * RANDOM.normal(size=5)[PEOPLE] + math.sqrt(1 - icc) * RANDOM.normal(size=100)


def answered(share: float, icc: float) -> np.ndarray:
    """100 questions answered or not: each person knows a share of them, beta distributed where people differ."""
    known = RANDOM.beta(share * (1 / icc - 1), (1 - share) * (1 / icc - 1), 5)[PEOPLE] if icc else share
    return (RANDOM.random(100) < known).astype(float)


@pytest.mark.parametrize(
    ("sample", "truth", "people"),
    [
        *((lambda icc=icc: (0.5 + 0.15 * spread(icc)).clip(0, 1), 0.5, PEOPLE) for icc in (0, 0.1, 0.3)),
        *((lambda p=p, icc=icc: answered(p, icc), p, PEOPLE) for p in (0.5, 0.05) for icc in (0, 0.1, 0.3)),
        *((lambda p=p: (RANDOM.random(20) < p).astype(float), p, [""] * 20) for p in (0.02, 0.05, 0.5, 0.95)),
        *((lambda a=a, b=b: RANDOM.beta(a, b, 20), a / (a + b), [""] * 20)  # near 0 and near 1, ever more skewed
          for a, b in ((2, 2), (0.5, 10), (0.3, 6), (0.1, 2), (0.05, 1), (6, 0.3), (2, 0.1))),
    ],
)  # fmt: skip
def test_an_interval_covers_the_truth_for_few_people_and_few_questions_and_near_0_and_1(sample, truth, people):
    found = [mean_interval(sample(), 200, [str(who) for who in people]) for _ in range(300)]
    assert all(0 <= low <= high <= 1 for low, high in found)
    assert sum(low <= truth <= high for low, high in found) / 300 >= 0.92
    assert np.mean([high - low for low, high in found]) < 0.7  # and it says something


def test_questions_that_are_all_answered_alike_are_no_certainty_and_a_single_one_has_no_interval():
    low, high = mean_interval(np.zeros(20), 100)
    assert low == 0 and 0.1 < high < 0.3  # of 20 misses Clopper and Pearson's is 0.17
    assert mean_interval(np.ones(20), 100) == pytest.approx((1 - high, 1))
    assert mean_interval([0.7], 100, ["Ada"]) is None
    of_one = mean_interval([0.2, 0.8] * 5, 100, ["Ada"] * 10)  # of one person: over questions
    assert of_one == mean_interval([0.2, 0.8] * 5, 100) and of_one[0] > 0.2


def test_metrics_without_ends_have_students_interval_and_differences_reach_from_minus_1_to_1():
    values = RANDOM.normal(7, 2, 40)
    half = t.ppf(0.975, 39) * values.std(ddof=1) / math.sqrt(40)
    found = mean_interval(values, 4000, within=ends("forget/fluency"))
    assert found == pytest.approx((values.mean() - half, values.mean() + half), abs=0.1 * half)
    low, high = mean_interval(np.full(10, -1.0), 100, within=ends("forget/leak_gap@20"))
    assert low == -1 and -0.9 < high < 0
    assert ends("relearn/gain") == (-1, 1) and ends("quantised/int4_all/forget/prob") == ends("mia/loss") == (0, 1)


def test_the_interval_of_model_utility_is_that_of_a_plain_bootstrap_and_fast():
    sizes = dict.fromkeys(("retain", "real_authors", "world_facts"), 400)
    arrays = {name: RANDOM.random(sizes[name.split("/")[0]]) for name in PARTS}
    start = time.perf_counter()
    found = interval(utility(arrays), {split: [""] * n for split, n in sizes.items()}, 2000)
    assert time.perf_counter() - start < 1
    loop = []
    for _ in range(2000):
        items = {split: RANDOM.integers(0, n, n) for split, n in sizes.items()}
        loop.append(model_utility({name: array[items[name.split("/")[0]]].mean() for name, array in arrays.items()}))
    assert found == pytest.approx(np.quantile(loop, [0.025, 0.975]), abs=0.15 * (found[1] - found[0]))


def utility(arrays):
    def weighted(weights):
        means = [w @ arrays[name] / w.sum(-1) for name in PARTS for w in [weights[name.split("/")[0]]]]
        return harmonic_mean(np.broadcast_arrays(*means))

    return weighted


def test_the_interval_of_tofu_s_published_model_utility():
    path = SHARED / "data" / "tofu_eval_logs" / "llama2-7b_full_wd0.01.eval_log_aggregated.json"
    if not path.is_file():
        pytest.skip(f"the published TOFU logs are not at {path}")
    examples = others.read(path).examples
    arrays = {name: examples.loc[examples["split"] == name.split("/")[0], name.split("/")[1]] for name in PARTS}
    arrays |= {name: ratio_scores("retain", ratios) for name, ratios in arrays.items() if name.endswith("truth_ratio")}
    arrays = {name: array.to_numpy() for name, array in arrays.items()}
    people = {name.split("/")[0]: [""] * len(array) for name, array in arrays.items()}
    assert harmonic_mean([arrays[name].mean() for name in PARTS]) == pytest.approx(0.622677, abs=1e-6)
    found = interval(utility(arrays), people, 2000)
    assert found == pytest.approx((0.592, 0.652), abs=0.004)  # ± .03: smaller differences are item noise


def test_an_auc_of_weighted_rows_is_that_of_rows_that_occur_as_often():
    forget, holdout = RANDOM.integers(0, 5, 6), RANDOM.integers(0, 5, 7)
    weights = {"forget": RANDOM.integers(0, 3, (4, 6)), "holdout": np.ones((1, 7), dtype=int)}
    expected = [auc(np.repeat(forget, w), holdout) for w in weights["forget"]]
    assert weighted_aucs(forget, holdout)(weights).tolist() == pytest.approx(expected)


# --- distances ----------------------------------------------------------------------------------------------------
def test_distances_are_signed_and_of_what_both_have():
    found = distances({"forget/prob": 0.1, "model_utility": 0.6, "y": 2}, {"forget/prob": 0.25, "model_utility": 0.5})
    assert found == pytest.approx({"forget/prob": -0.15, "model_utility": 0.1})


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: three_sample([], [], []), "at least one value"),
        (lambda: three_sample(np.ones(2), [1.0, math.nan], [0, 1]), "d_target: 1 of 2 values are NaN"),
        (lambda: mean_interval([], 9), "values: shape"),
        (lambda: mean_interval([0.5, math.nan], 9), "values: 1 of 2 values are NaN"),
    ],
)
def test_what_cannot_be_read_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
