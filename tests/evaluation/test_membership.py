"""Membership attacks, their AUC, PrivLeak and the per-sample attack, by hand and against OpenUnlearning's values."""

import json
import math
import zlib as compression

import numpy as np
import pytest
import torch
from support.helpers import SHARED

from unlearn.evaluation.metrics import membership
from unlearn.evaluation.metrics.membership import (
    auc,
    gradnorm,
    loss,
    min_k,
    min_k_plus_plus,
    privleak,
    reference,
    vulnerability,
    zlib,
)
from unlearn.evaluation.scoring import log_prob_moments

# --- scores -------------------------------------------------------------------------------------------------------


def test_loss_and_gradnorm_are_what_is_given():
    assert list(loss([0.5, 2.0])) == [0.5, 2.0]
    assert list(gradnorm([3.0, 1.0])) == [3.0, 1.0]


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


@pytest.mark.parametrize("attack", [min_k, lambda lp: min_k_plus_plus(lp, lp, lp)])
@pytest.mark.parametrize("log_probs", [[], [[-1.0], []], [[-1.0, math.nan]]])
def test_per_token_attacks_refuse_nothing_and_nan(attack, log_probs):
    with pytest.raises(ValueError, match="at least one|NaN"):
        attack(log_probs)


def test_attacks_refuse_unequal_lengths_and_impossible_shares():
    with pytest.raises(ValueError, match="mean_nll 2, texts 1"):
        zlib([1.0, 2.0], ["a"])
    with pytest.raises(ValueError, match="log_probs 2, means 1"):
        min_k_plus_plus([[-1.0, -1.0]], [[0.0]], [[1.0, 1.0]])
    with pytest.raises(ValueError, match="k=1.5: must lie between 0 and 1"):
        min_k([[-1.0]], k=1.5)
    with pytest.raises(ValueError, match="infinite"):
        reference([math.inf], [math.inf])


# --- AUC ----------------------------------------------------------------------------------------------------------


def pairs(forget, holdout) -> float:
    """The definition: wins of the holdout, ties counted half."""
    return float(np.mean([(h > f) + (h == f) / 2 for f in forget for h in holdout]))


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


def test_auc_is_the_share_of_won_pairs():
    random = np.random.default_rng(0)
    forget, holdout = random.integers(0, 6, 37), random.integers(1, 8, 23)  # many ties, groups of unequal size
    assert auc(forget, holdout) == pytest.approx(pairs(forget, holdout))


@pytest.mark.parametrize(("forget", "holdout"), [([], [1.0]), ([1.0], []), ([math.nan], [1.0])])
def test_auc_refuses_nothing_and_nan(forget, holdout):
    with pytest.raises(ValueError, match="at least one value|NaN"):
        auc(forget, holdout)


# --- PrivLeak -----------------------------------------------------------------------------------------------------


def test_privleak_by_hand():
    assert privleak(0.5, 0.5) == 0.0
    assert privleak(0.75, 0.5) == pytest.approx(-50)  # (.25 − .5) / .5
    assert privleak(0.25, 0.5) == pytest.approx(50)
    assert privleak(1.0, 0.6) == pytest.approx(-100)


def test_privleak_without_the_retrained_model_says_how_to_make_one():
    with pytest.raises(ValueError, match="python -m unlearn.prepare trains it"):
        privleak(0.5, None)
    with pytest.raises(ValueError, match="auc=1.2: must lie between 0 and 1"):
        privleak(1.2, 0.5)


# --- per sample, relative to the retrained model ------------------------------------------------------------------


def test_vulnerable_rows_are_those_above_what_the_holdout_reaches():
    # holdout values r − u = 0 … 18: ⌈.95 · 20⌉ = 19th smallest, their largest
    holdout = np.arange(19.0)
    result = vulnerability([1.0, 1.0, 1.0], [18.9, 19.0, 25.0], np.zeros(19), holdout)
    assert result.threshold == 18.0
    assert list(result.values) == pytest.approx([17.9, 18.0, 24.0])
    assert list(result.vulnerable) == [False, False, True]  # a row at the threshold is not above it
    assert result.share == pytest.approx(1 / 3)
    # ⌈.9 · 20⌉ = 18th smallest
    assert vulnerability([1.0], [18.9], np.zeros(19), holdout, false_positive_rate=0.1).threshold == 17.0


def test_rows_like_the_holdout_are_called_vulnerable_at_the_stated_rate_at_most():
    random = np.random.default_rng(1)
    shares = []
    for _ in range(400):
        u, r, hu, hr = random.normal(size=(4, 30))
        shares.append(vulnerability(u, r, hu, hr, false_positive_rate=0.1).share)
    error = np.std(shares) / math.sqrt(len(shares))
    assert 0.1 - 1 / 31 - 3 * error < np.mean(shares) < 0.1 + 3 * error


def test_too_few_holdout_rows_are_refused():
    with pytest.raises(ValueError, match="18 holdout rows .* rate of 0.05: it takes at least 19"):
        vulnerability([1.0], [1.0], np.zeros(18), np.zeros(18))
    with pytest.raises(ValueError, match="unlearned 2, retrained 1"):
        vulnerability([1.0, 2.0], [1.0], np.zeros(19), np.zeros(19))
    with pytest.raises(ValueError, match="false_positive_rate=0"):
        vulnerability([1.0], [1.0], np.zeros(19), np.zeros(19), false_positive_rate=0)


# --- OpenUnlearning's values --------------------------------------------------------------------------------------

GOLDEN = SHARED / "golden" / "openunlearning_chat"


@pytest.fixture(scope="module")
def golden():
    """What OpenUnlearning computed, and the same model's log-probabilities of each row of forget and holdout."""
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden values are not at {GOLDEN}")
    from transformers import AutoTokenizer, LlamaForCausalLM

    model = LlamaForCausalLM.from_pretrained(GOLDEN / "model").eval()
    tokenizer = AutoTokenizer.from_pretrained(GOLDEN / "model")
    rows = [json.loads(line) for line in (GOLDEN / "prompts_chat.jsonl").read_text().splitlines()]
    found = {}
    for split, name in (("forget", "forget10_perturbed"), ("holdout", "holdout10")):
        split_rows = [r for r in rows if r["set"] == name]
        with torch.no_grad():
            logits = [model(torch.tensor([r["full_ids"]])).logits[0, r["first_label_pos"] - 1 : -1] for r in split_rows]
        labels = [r["full_ids"][r["first_label_pos"] :] for r in split_rows]
        moments = [log_prob_moments(lg[:-1]) for lg in logits]
        log_probs = [lg.log_softmax(-1)[range(len(ids)), ids].numpy() for lg, ids in zip(logits, labels, strict=True)]
        mean_nll = [-lp.mean() for lp in log_probs]
        without_eos = [lp[:-1] for lp in log_probs]
        texts = [tokenizer.decode(ids, skip_special_tokens=True) for ids in labels]
        found[split] = {
            "mia_loss": loss(mean_nll),
            "mia_zlib": zlib(mean_nll, texts),
            "mia_min_k": min_k(without_eos),
            "mia_min_k_plus_plus": min_k_plus_plus(without_eos, *zip(*moments, strict=True)),
        }
    return json.loads((GOLDEN / "TOFU_EVAL.json").read_text()), found


@pytest.mark.parametrize("attack", ["mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"])
def test_attacks_give_openunlearning_s_scores(golden, attack):
    expected, found = golden
    for split in ("forget", "holdout"):
        scores = [v["score"] for v in expected[attack][split]["value_by_index"].values()]
        assert list(found[split][attack]) == pytest.approx(scores, abs=2e-4)
    assert auc(found["forget"][attack], found["holdout"][attack]) == expected[attack]["auc"]


def test_aucs_and_privleak_from_openunlearning_s_scores():
    if not GOLDEN.is_dir():
        pytest.skip(f"the golden values are not at {GOLDEN}")
    model, retrained = (json.loads((GOLDEN / f"{n}TOFU_EVAL.json").read_text()) for n in ("", "retain_"))
    aucs = {}
    for attack in ("mia_loss", "mia_zlib", "mia_min_k", "mia_min_k_plus_plus"):  # the retrained model's are between
        logged = [retrained[attack][split]["value_by_index"].values() for split in ("forget", "holdout")]
        aucs[attack] = auc(*([v["score"] for v in values] for values in logged))
        assert aucs[attack] == pytest.approx(retrained[attack]["auc"], abs=1e-12)
    assert privleak(model["mia_min_k"]["auc"], aucs["mia_min_k"]) == pytest.approx(model["privleak"]["agg_value"])
    assert privleak(aucs["mia_min_k"], 0.5) == pytest.approx(retrained["privleak"]["agg_value"])  # its silent default


def test_higher_is_less_like_training_data_in_every_attack():
    assert membership.K == 0.4
    known, unknown = [[-0.1, -0.2, -0.1]], [[-3.0, -4.0, -5.0]]
    means, variances = [[-1.0] * 3], [[1.0] * 3]
    assert min_k(unknown) > min_k(known)
    assert min_k_plus_plus(unknown, means, variances) > min_k_plus_plus(known, means, variances)
    assert zlib([4.0], ["text"]) > zlib([0.1], ["text"])
    assert reference([4.0], [2.0]) > reference([0.1], [2.0])
