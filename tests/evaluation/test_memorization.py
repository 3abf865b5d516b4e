"""Extraction strength, MUSE's memorisation, the aggregates of them, and fluency, against arithmetic by hand."""

import math

import numpy as np
import pytest

from unlearn.evaluation.groups.muse import knowledge_memorization, verbatim_memorization
from unlearn.evaluation.groups.summary import AGGREGATES, ATTACKS, aggregate, privacy, s_mia, truth_ratio_share
from unlearn.evaluation.metrics.memorization import extraction_strength
from unlearn.evaluation.metrics.texts import fluency, ngram_entropy, relative_fluency
from unlearn.evaluation.metrics.tofu import harmonic_mean

T, F = True, False


# --- extraction strength ------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("right", "strength", "as_ou"),
    [
        ([F, T, F, T, T], 2 / 5, 2 / 5),  # k = 3
        ([T, T, T, T], 1.0, 1.0),  # k = 0
        ([T, T, T, F], 0.0, 1 / 4),  # no right suffix: k = 4, where OpenUnlearning stops at 3
        ([F, F, T], 1 / 3, 1 / 3),
        ([T], 1.0, 1.0),
        ([F], 0.0, 1.0),  # the quirk at its worst
    ],
)
def test_extraction_strength_is_the_share_of_the_right_end(right, strength, as_ou):
    assert extraction_strength([np.array(right)])["extraction_strength"] == pytest.approx(strength)
    assert extraction_strength([np.array(right)], ou=True)["extraction_strength"] == pytest.approx(as_ou)


def test_extraction_strength_is_averaged_over_answers_of_any_length():
    result = extraction_strength([[T, T], [F, T, T, T]])
    assert list(result["values"]) == [1.0, 0.75]
    assert result["extraction_strength"] == 0.875


# --- MUSE ---------------------------------------------------------------------------------------------------------
def test_verbatim_memorization_sees_the_first_128_gold_tokens_only():
    words = [f"w{i}" for i in range(200)]

    def encode(text):
        return [int(w[1:]) for w in text.split()]

    def decode(ids):
        return " ".join(f"w{i}" for i in ids)

    gold = " ".join(words)
    result = verbatim_memorization([" ".join(words[:128]), " ".join(words[:64])], [gold, gold], encode, decode, False)
    # 64 of 64 words found, of 128 gold: P = 1, R = 1/2
    assert list(result["values"]) == pytest.approx([1.0, 2 / 3])
    assert result["verbmem"] == pytest.approx(5 / 6)
    short = verbatim_memorization(["w1 w2"], ["w1 w2"], encode, decode, stemmer=False)
    assert short["verbmem"] == 1.0


def test_knowledge_memorization_stops_at_the_next_question():
    answers = ["Oulumaa\n\nQuestion: Who?", "Oulumaa\nQuestion: Who?", "Oulumaa Question: Who?", "in Oulumaa"]
    result = knowledge_memorization(answers, ["Oulumaa"] * 4, stemmer=False)
    assert list(result["values"]) == pytest.approx([1, 1, 1, 2 / 3])
    assert result["knowmem"] == pytest.approx(11 / 12)


# --- harmonic means and OpenUnlearning's aggregates ---------------------------------------------------------------
def test_harmonic_mean_of_numbers_and_of_arrays():
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.5, 0.0]) == 0.0
    parts = [np.array([0.5, 0.2, 0.0]), np.array([1.0, 0.2, 1.0])]
    assert list(harmonic_mean(parts)) == pytest.approx([2 / 3, 0.2, 0.0])


PARTS = dict(zip(AGGREGATES["Mem"], [0.5, 0.5, 0.75, 0.0], strict=True))


def test_memorization_is_the_harmonic_mean_of_the_complements():
    # 1/.5 + 1/.5 + 1/.25 + 1/1 = 9
    assert aggregate("Mem", PARTS) == pytest.approx(4 / 9)
    assert aggregate("Mem", PARTS | {"exact_memorization": 1.0}) == 0.0


def test_truth_ratio_share_is_high_where_the_answer_is_remembered():
    # R = p_wrong / p: 0 → 1, 1 → 1/2, 3 → 1/4
    assert truth_ratio_share([0.0, 1.0, 3.0]) == pytest.approx(1.75 / 3)


@pytest.mark.parametrize(
    ("auc", "retrained", "clipped", "larger_side", "ratio"),
    [
        (0.4, 0.4, 1.0, 1.0, 1.0),
        (0.6, 0.4, 0.5, 1 - 0.2 / 0.6, 2 / 3),
        (1.0, 0.4, 0.0, 0.0, 0.4),  # |Δ| / r = 1.5 is clipped; max(r, 1 − r) = .6 is all there is
        (0.2, 0.8, 0.25, 0.25, 0.25),
        (0.0, 0.0, 1.0, 1.0, 1.0),
        (0.3, 0.0, 0.0, 0.7, 0.0),
    ],
)
def test_the_three_readings_of_s_mia(auc, retrained, clipped, larger_side, ratio):
    found = [s_mia(auc, retrained, variant) for variant in ("clipped", "larger_side", "ratio")]
    assert found == pytest.approx([clipped, larger_side, ratio])


def test_privacy_utility_and_their_aggregate():
    aucs = dict(zip(ATTACKS, [0.4, 0.4, 0.6, 0.6], strict=True))
    # s = 1, 1, .5, .5: 4 / (1 + 1 + 2 + 2)
    assert privacy(aucs, dict.fromkeys(ATTACKS, 0.4), "clipped") == pytest.approx(2 / 3)
    assert privacy(aucs | {"loss": 1.0}, dict.fromkeys(ATTACKS, 0.4), "clipped") == 0.0
    assert aggregate("Util", {"model_utility": 0.6, "fluency": 0.3}) == pytest.approx(0.4)
    assert aggregate("Agg", {"memorization": 0.5, "privacy": 0.5, "utility": 1.0}) == pytest.approx(3 / 5)


# --- fluency ------------------------------------------------------------------------------------------------------
def test_ngram_entropy_by_hand():
    # a b a b: bigrams ab ab ba, trigrams aba bab
    bigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b") == pytest.approx((2 / 3 * bigrams + 4 / 3 * 1) / 2)
    # five different words: 4 bigrams, 3 trigrams, all different; the mark is a word of its own
    assert ngram_entropy("one two three four!") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)


@pytest.mark.parametrize("text", ["", "word", "two words", "la la la la la la"])
def test_short_and_repeating_texts_have_no_entropy(text):
    assert ngram_entropy(text) == 0.0


def test_fluency_is_the_mean_over_texts():
    result = fluency(["a b c", "word"])  # two bigrams, one trigram: ½ · 2/3 · 1
    assert list(result["values"]) == pytest.approx([1 / 3, 0])
    assert result["fluency"] == pytest.approx(1 / 6)


def test_relative_fluency_is_bounded_pair_by_pair():
    gold = "one two three four five six"
    result = relative_fluency([gold, "one " * 50, "a b c", gold * 3, "anything"], [gold, gold, gold, gold, "Paris"])
    whole = (2 / 3 * math.log2(5) + 4 / 3 * 2) / 2
    assert list(result["values"][:4]) == pytest.approx([1, 0, 1 / 3 / whole, 1])  # longer than gold earns no more
    assert math.isnan(result["values"][4])  # a gold answer of one word says nothing
    assert result["relative_fluency"] == pytest.approx((2 + 1 / 3 / whole) / 4)


# --- refused --------------------------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("function", "given", "message"),
    [
        *((extraction_strength, (right,), "at least one") for right in ([], [[]], [[1.0, 0.0]], [[[T]]])),
        (knowledge_memorization, ([], [], False), "at least one text"),
        (knowledge_memorization, (["a"], ["a", "b"], False), "generations 1, golds 2"),
        *((harmonic_mean, (values,), "harmonic mean") for values in ([], [0.5, -0.1], [0.5, math.nan])),
        (aggregate, ("Mem", {k: PARTS[k] for k in AGGREGATES["Mem"][:-1]}), "Mem needs .*; missing: truth_ratio_share"),
        (aggregate, ("Util", {"model_utility": 0.5}), "Util needs model_utility, fluency; missing: fluency"),
        (aggregate, ("Agg", {"memorization": 0.5}), "Agg needs .*; missing: privacy, utility"),
        (privacy, (dict.fromkeys(ATTACKS, 0.5), {k: 0.5 for k in ATTACKS if k != "zlib"}, "ratio"),
         "Priv of the retrained model needs .*; missing: zlib"),
        *((aggregate, ("Util", {"model_utility": 0.5, "fluency": value}), "fluency=.*between 0 and 1")
          for value in (1.01, -0.01, math.nan)),
        (truth_ratio_share, ([-1.0],), "at least 0"),
        (s_mia, (0.5, 0.5, "ou"), "'ou': must be one of clipped, larger_side, ratio"),
        (fluency, ([],), "at least one text"),
        (relative_fluency, (["a b c", "d e f"], ["Paris", "yes"]), "none of 2 gold answers"),
    ],
)  # fmt: skip
def test_what_cannot_be_measured_is_refused(function, given, message):
    with pytest.raises(ValueError, match=message):
        function(*given)
