"""Membership attacks, their AUC, PrivLeak and the per-sample attack, by hand (OpenUnlearning's values: test_others)."""

import math
import zlib as compression

import numpy as np
import pytest
import torch

from unlearn.evaluation.metrics.membership import (
    auc,
    min_k,
    min_k_plus_plus,
    privleak,
    reference,
    vulnerable,
    zlib,
)  # fmt: skip
from unlearn.evaluation.scoring import log_prob_moments

NAN, INF = math.nan, math.inf


# --- scores -------------------------------------------------------------------------------------------------------
def test_zlib_divides_the_mean_nll_by_the_compressed_bytes():
    text = "ä" * 100
    size = len(compression.compress(("ä" * 100).encode("utf-8")))
    assert size < 40  # of 200 bytes
    assert list(zlib([2.0, 2.0], [text, ""])) == pytest.approx([2 / size, 2 / 8])


def test_reference_is_the_difference_of_mean_nlls():
    assert list(reference([1.0, 2.0], [1.5, 0.5])) == [-0.5, 1.5]


def test_min_k_takes_the_lowest_tokens_rounded_down_and_at_least_one():
    # .4 · 5 = 2 tokens: −4 and −3; .4 · 4 = 1.6, one token; one token has nothing to choose
    scores = min_k([[-1.0, -4.0, -2.0, -3.0, -0.5], [-1.0, -2.0, -3.0, -4.0], [-0.25]])
    assert list(scores) == pytest.approx([3.5, 4.0, 0.25])
    assert list(min_k([[-1.0, -2.0, -3.0]], k=1.0)) == pytest.approx([2.0])
    assert list(min_k([[-2.0] * 7])) == [2.0]


def test_min_k_plus_plus_by_hand():
    # z = (−1 − (−2)) / 2 = .5, (−4 + 2) / 1 = −2, (−3 + 1) / 4 = −.5: the lowest one of .4 · 3 is −2
    assert list(min_k_plus_plus([[-1.0, -4.0, -3.0]], [[-2.0, -2.0, -1.0]], [[4.0, 1.0, 16.0]])) == pytest.approx([2.0])
    # no variance: divided by √1e-6
    assert list(min_k_plus_plus([[-0.001]], [[0.0]], [[0.0]])) == pytest.approx([1.0])


def test_moments_of_a_distribution_by_hand():
    p = torch.tensor([[0.5, 0.25, 0.25, 0.0], [1.0, 0.0, 0.0, 0.0], [0.25, 0.25, 0.25, 0.25]])
    mean, variance = log_prob_moments(p.log() + 7)  # logits, up to a constant
    ln2 = math.log(2)
    # log p = −ln 2 with ½ and −2 ln 2 with ½: mean −1.5 ln 2, variance (ln 2 / 2)²
    assert mean.tolist() == pytest.approx([-1.5 * ln2, 0, -2 * ln2], abs=1e-6)
    assert variance.tolist() == pytest.approx([ln2**2 / 4, 0, 0], abs=1e-6)


def test_answers_without_tokens_and_values_that_are_no_numbers_are_refused():
    for call in (
        lambda: min_k([[-1.0], []]), lambda: min_k([[NAN]]), lambda: min_k_plus_plus([[NAN]], [[0.0]], [[1.0]]),
        lambda: auc([], [1.0]), lambda: auc([1.0], []), lambda: auc([NAN], [1.0]), lambda: reference([INF], [INF]),
    ):  # fmt: skip
        with pytest.raises(ValueError, match="at least one value|NaN or infinite"):
            call()


# --- AUC ----------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("forget", "holdout", "expected"),
    [
        ([0, 1], [2, 3], 1.0),
        ([2, 3], [0, 1], 0.0),
        ([1, 1, 1], [1, 1], 0.5),
        ([1, 3], [2], 0.5),
        ([1, 2], [2, 3], 0.875),  # three wins and a tie of four
        ([-math.inf, 0], [math.inf], 1.0),
    ],
)
def test_auc_by_hand(forget, holdout, expected):
    assert auc(forget, holdout) == pytest.approx(expected)


# --- PrivLeak -----------------------------------------------------------------------------------------------------
def test_privleak_by_hand():
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(0.75, 0.5) == pytest.approx(-50)  # (.25 − .5) / .5
    assert privleak(0.25, 0.5) == pytest.approx(50)
    assert privleak(1.0, 0.6) == pytest.approx(-100)


# --- per sample, relative to the retrained model ------------------------------------------------------------------
def test_vulnerable_rows_are_those_above_what_the_holdout_reaches():
    # holdout values r − u = 0 … 18: ⌈.95 · 20⌉ = 19th smallest, their largest
    holdout = np.arange(19.0)
    values = 17.0, 17.5, 18.0, 24.0
    rows = [1.0] * 4, [1 + v for v in values], np.zeros(19), holdout
    assert vulnerable(*rows, 0.05).tolist() == [False, False, False, True]  # a row at the threshold is not above it
    assert vulnerable(*rows, 0.1).tolist() == [False, True, True, True]  # ⌈.9 · 20⌉ = 18th smallest
    with pytest.raises(ValueError, match="18 holdout rows cannot calibrate a false-positive rate of 0.05"):
        vulnerable([1.0], [1.0], *np.zeros((2, 18)), 0.05)


def test_rows_like_the_holdout_are_called_vulnerable_at_the_stated_rate_at_most():
    random = np.random.default_rng(1)
    shares = []
    for _ in range(400):
        u, r, hu, hr = random.normal(size=(4, 30))
        shares.append(vulnerable(u, r, hu, hr, 0.1).mean())
    error = np.std(shares) / math.sqrt(len(shares))
    assert 0.1 - 1 / 31 - 3 * error < np.mean(shares) < 0.1 + 3 * error
