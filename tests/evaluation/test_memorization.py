"""Extraction strength, MUSE's memorisation, the aggregates of them, and fluency, against arithmetic by hand."""

import math
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest

from unlearn.evaluation.groups import muse, summary
from unlearn.evaluation.groups.summary import ATTACKS, S_MIA, truth_ratio_share
from unlearn.evaluation.measures import extraction_strength
from unlearn.evaluation.metrics.semantics import SEMANTICS
from unlearn.evaluation.metrics.texts import fluency, ngram_entropy, relative_fluency

T, F = True, False


# --- extraction strength ------------------------------------------------------------------------------------------
def test_extraction_strength_is_the_share_of_the_right_end():
    table = [
        ([F, T, F, T, T], 2 / 5, 2 / 5),  # k = 3
        ([T, T, T, T], 1.0, 1.0),  # k = 0
        ([T, T, T, F], 0.0, 1 / 4),  # no right suffix: k = 4, where OpenUnlearning stops at 3
        ([F, F, T], 1 / 3, 1 / 3),
        ([T], 1.0, 1.0),
        ([F], 0.0, 1.0),  # the quirk at its worst
    ]
    right, strengths, as_ou = zip(*table, strict=True)
    assert extraction_strength(right).tolist() == pytest.approx(strengths)
    assert extraction_strength(right, ou=True).tolist() == pytest.approx(as_ou)
    with pytest.raises(ValueError, match="answer 1 has no tokens"):
        extraction_strength([[T], []])


# --- MUSE ---------------------------------------------------------------------------------------------------------
class Words:
    """A tokenizer of numbered words."""

    def encode(self, text: str, split_special_tokens: bool) -> list[int]:
        return [int(word[1:]) for word in text.split()]

    def decode(self, ids: list[int], skip_special_tokens: bool) -> str:
        return " ".join(f"w{i}" for i in ids)


def test_muse_sees_the_first_128_gold_tokens_and_an_answer_up_to_the_next_question():
    words = [f"w{i}" for i in range(200)]
    answers = ["Oulumaa\n\nQuestion: Who?", "Oulumaa\nQuestion: Who?", "Oulumaa Question: Who?", "in Oulumaa"]
    table = pd.DataFrame({
        "split": ["forget_verbatim"] * 3 + ["retain_knowledge"] * 4,
        "generation": [" ".join(words[:128]), " ".join(words[:64]), "w1 w2", *answers],
        "gold": [" ".join(words)] * 2 + ["w1 w2"] + ["Oulumaa"] * 4,
    })  # fmt: skip
    suite = SimpleNamespace(
        split=lambda name: name if name in set(table["split"]) else None, semantics=SEMANTICS["default"],
        encoder=SimpleNamespace(tokenizer=Words()),
    )  # fmt: skip
    found = muse.measure(SimpleNamespace(suite=suite, examples=table)).values
    # 64 of 64 words found, of 128 gold: P = 1, R = 1/2; one of two words is Oulumaa: P = 1/2, R = 1
    assert {name: values.tolist() for name, values in found.items()} == {
        "forget_verbatim/verbmem": pytest.approx([1.0, 2 / 3, 1.0]),
        "retain_knowledge/knowmem": pytest.approx([1, 1, 1, 2 / 3]),
    }


# --- OpenUnlearning's aggregates ----------------------------------------------------------------------------------
def summed_up(**other: float) -> dict[str, float]:
    """Of a model whose complements are ½, ½, ¼ and (R = 0, 3, in the mean ⅝) ⅜, and whose s_MIA are 1, 1, ½, ½."""
    parts = {"forget/extraction_strength": 0.5, "forget/exact_memorization": 0.5, "forget/paraphrased_prob": 0.75,
             "model_utility": 0.6, "forget/truth_ratio": 0.0}  # fmt: skip
    metrics = parts | {f"mia/{a}": auc for a, auc in zip(ATTACKS, [0.4, 0.4, 0.6, 0.6], strict=True)} | other
    gold = "one two three four five six"
    examples = pd.DataFrame({"split": ["forget", "forget", "retain", "retain"], "truth_ratio": [0.0, 3.0, 0.0, 0.0],
                             "generation": ["", "", gold, "one " * 50], "gold": [gold] * 4})  # fmt: skip
    retrained = SimpleNamespace(metrics={f"mia/{a}": 0.4 for a in ATTACKS})
    ctx = SimpleNamespace(metrics=metrics, examples=examples, retrained=retrained, itself=False)
    return summary.measure(ctx).metrics


def test_the_four_aggregates_are_harmonic_means():
    found = summed_up()
    mem, util, priv = 4 / (1 / 0.5 + 1 / 0.5 + 1 / 0.25 + 1 / 0.375), 2 / (1 / 0.6 + 1 / 0.5), 4 / (1 + 1 + 2 + 2)
    expected = {"ou/mem": mem, "ou/util": util, "ou/fluency": 0.5, "ou/priv/clipped": priv,
                "ou/agg/clipped": 3 / (1 / mem + 1 / util + 1 / priv)}  # fmt: skip
    assert {name: found[name] for name in expected} == pytest.approx(expected)
    assert summed_up(**{"forget/exact_memorization": 1.0})["ou/mem"] == 0.0
    assert summed_up(**{"mia/loss": 1.0})["ou/priv/clipped"] == 0.0
    # R = p_wrong / p: 0 → 1, 1 → 1/2, 3 → 1/4: high where the answer is remembered
    assert truth_ratio_share(np.array([0.0, 1.0, 3.0])) == pytest.approx(1.75 / 3)


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
    found = {name: s_mia(auc, retrained) for name, s_mia in S_MIA.items()}
    assert found == pytest.approx({"clipped": clipped, "larger_side": larger_side, "ratio": ratio})


# --- fluency ------------------------------------------------------------------------------------------------------
def test_ngram_entropy_by_hand():
    # a b a b: bigrams ab ab ba, trigrams aba bab
    bigrams = -(2 / 3 * math.log2(2 / 3) + 1 / 3 * math.log2(1 / 3))
    assert ngram_entropy("a b a b") == pytest.approx((2 / 3 * bigrams + 4 / 3 * 1) / 2)
    # five different words: 4 bigrams, 3 trigrams, all different; the mark is a word of its own
    assert ngram_entropy("one two three four!") == pytest.approx((2 / 3 * 2 + 4 / 3 * math.log2(3)) / 2)
    # two bigrams, one trigram: ½ · 2/3 · 1; short and repeating texts have none
    assert fluency(["a b c", "", "word", "two words", "la la la la"]).tolist() == pytest.approx([1 / 3, 0, 0, 0, 0])


def test_relative_fluency_is_bounded_pair_by_pair():
    gold = "one two three four five six"
    found = relative_fluency([gold, "one " * 50, "a b c", gold * 3, "anything"], [gold, gold, gold, gold, "Paris"])
    whole = (2 / 3 * math.log2(5) + 4 / 3 * 2) / 2
    # longer than gold earns no more; a gold answer of one word says nothing
    assert found.tolist() == pytest.approx([1, 0, 1 / 3 / whole, 1])
    with pytest.raises(ValueError, match="none of 2 gold answers"):
        relative_fluency(["a b c", "d e f"], ["Paris", "yes"])
