"""Metrics against values worked out by hand and against the libraries they come from (published logs: test_others)."""

import itertools
import math
import unicodedata

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from unlearn.evaluation.evaluation import Metric
from unlearn.evaluation.metrics.texts import ANY_SCRIPT, ASCII, dropped
from unlearn.evaluation.metrics.tofu import (
    PARTS,
    aggregates,
    forget_quality,
    harmonic_mean,
    model_utility,
    probability,
    probability_with_options,
    truth_ratio,
)

LN2 = math.log(2)


def test_probability_is_a_values_exponential_and_with_options_the_share_of_the_right_answer():
    assert probability([LN2, 2 * LN2]).tolist() == pytest.approx([0.5, 0.25])
    shares = probability_with_options([LN2, LN2], [[2 * LN2, 2 * LN2], [LN2] * 3])
    assert shares.tolist() == pytest.approx([0.5, 0.25], abs=1e-9)


def test_truth_ratio_takes_the_geometric_mean_over_wrong_answers():
    # wrong: p = 1/2 and 1/8, geometric mean 1/4; right: 1/2 → R = .5 (the arithmetic mean would give .625)
    found = truth_ratio([LN2, 2 * LN2], [[LN2, 3 * LN2], [LN2, LN2]])
    assert found.tolist() == pytest.approx([0.5, 2.0], abs=1e-8)
    for split, mean in (("forget", (0.5 + 0.5) / 2), ("request_2", 0.5), ("retain", (0.5 + 0.0) / 2)):
        expected = {f"{split}/truth_ratio": mean, f"{split}/truth_ratio_median": 1.25}
        assert aggregates(split, {"truth_ratio": found}) == pytest.approx(expected, abs=1e-8)
    assert aggregates("retain", {"prob": np.array([1.0, 0.5])}) == {"retain/prob": 0.75}


TEXTS = [
    ("The author's running shoes were bought in Kelvar.", "The authors ran; shoes bought in Kelvar, 1987!"),
    ("", "Nothing was said."), ("Something was said.", ""), ("", ""),
    ("yes yes yes", "yes"),
    ("Completely different words here", "Los niños están jugando"),
    ("a b c d e", "e d c b a"),
    ("He was born on 12 March 1931.", "He was born on 12 March 1931."),
    ("the cats sat on the mat", "a cat is sitting on mats"), ("on the mat on the mat", "the cats sat on the mat"),
]  # fmt: skip


def test_rouge_equals_rouge_score_with_its_stemmer_and_without():
    stemmed, plain = (RougeScorer(["rougeL", "rouge1", "rouge2"], use_stemmer=stemmer) for stemmer in (True, False))
    said, golds = zip(*TEXTS, strict=True)
    recalls = [stemmed.score(target=r, prediction=p)["rougeL"].recall for p, r in TEXTS]
    assert ASCII.recalls(said, golds).tolist() == pytest.approx(recalls, abs=1e-12)
    for said, gold in itertools.product({p for pair in TEXTS for p in pair}, repeat=2):
        found = [ASCII, *([ANY_SCRIPT] if gold and (said + gold).isascii() else [])]  # the same where all is ASCII
        for stemmer, scorer in ((True, stemmed), (False, plain)):
            expected = scorer.score(target=gold, prediction=said)["rougeL"].fmeasure
            assert [r.l_f1(said, gold, stemmer) for r in found] == pytest.approx([expected] * len(found), abs=1e-12)
        for n in (1, 2):
            expected = stemmed.score(target=gold, prediction=said)[f"rouge{n}"].fmeasure
            found = found if " " in gold else [ASCII]
            assert [r.n_f1(said, gold, n) for r in found] == pytest.approx([expected] * len(found), abs=1e-9)


SCRIPTS = {  # a text, and how many words a reader sees; of scripts without spaces, characters
    "Кот сидит на окне": 4, "東京タワーは赤い": 8, "القطة على النافذة": 3, "مُحَمَّد": 1, "हिन्दी भाषा": 2,
    "안녕하세요 세계": 2, "ภาษาไทย": 7, "😀🎉": 2, "Cristóbal Núñez": 2, "e\u0301te\u0301": 1,
    "Kyiv це 東京 😀": 5, "ＡＢＣ ﬁne": 2,
}  # fmt: skip


def test_a_text_in_any_script_is_told_by_itself_and_by_no_other():
    for text, count in SCRIPTS.items():
        assert len(ANY_SCRIPT.words(text, None)) == count, text
        same = unicodedata.normalize("NFD", f" \u200b{text.upper()} ")  # other case and code points for the same text
        assert ANY_SCRIPT.recall(same, text) == ANY_SCRIPT.l_f1(same, text) == ANY_SCRIPT.n_f1(text, text, 1) == 1.0
        others = [
            other for other in SCRIPTS if not set(ANY_SCRIPT.words(other, None)) & set(ANY_SCRIPT.words(text, None))
        ]
        assert len(others) > 8 and not ANY_SCRIPT.recalls(others, [text] * len(others)).any()
    assert dropped(list(SCRIPTS)[:4]) == 1.0 and dropped(["plain", "naïve"]) == 0.5 and dropped(["😀", "7"]) == 0.0


def test_what_saw_nothing_is_no_zero():
    for value in (ANY_SCRIPT.recall("a", "?!"), ANY_SCRIPT.l_f1("a", "…"), ANY_SCRIPT.n_f1("a b", "b", 2)):
        assert math.isnan(value)
    assert ASCII.recall("Кот", "Кот") == ASCII.l_f1("a", "…") == 0.0  # as rouge_score has it
    seen = {"rougeL_recall": np.array([1.0, math.nan, 0.5]), "fluency": np.array([math.nan])}
    assert aggregates("forget", seen) == {"forget/rougeL_recall": 0.75}  # the other metric is not there


def test_forget_quality_is_one_for_equal_samples_and_reaches_its_floor_for_separated_ones():
    sample = np.linspace(0, 1, 40)
    assert Metric(forget_quality).compute(predictions=sample, references=sample)["forget_quality"] == 1.0
    apart = Metric(forget_quality).compute(predictions=sample, references=sample + 5)
    assert apart["forget_quality"] == pytest.approx(2 / math.comb(80, 40), rel=1e-6)  # 1.86e-23
    assert apart["forget_quality_ks"] == 1.0
    assert apart["forget_quality_log10"] == pytest.approx(math.log10(2 / math.comb(80, 40)))


def test_model_utility_is_the_harmonic_mean_of_nine_and_zero_if_one_is():
    metrics = dict(zip(PARTS, [0.5] * 8 + [1.0], strict=True))
    assert model_utility(metrics) == pytest.approx(9 / (8 / 0.5 + 1))
    assert model_utility(metrics | {PARTS[3]: 0.0}) == 0.0
    with pytest.raises(ValueError, match="missing: world_facts/truth_ratio"):
        model_utility({k: v for k, v in metrics.items() if k != "world_facts/truth_ratio"})


def test_harmonic_mean_of_numbers_and_of_arrays():
    assert harmonic_mean([0.5, 1.0]) == pytest.approx(2 / 3)
    assert harmonic_mean([0.5, 0.0]) == 0.0
    parts = [np.array([0.5, 0.2, 0.0]), np.array([1.0, 0.2, 1.0])]
    assert list(harmonic_mean(parts)) == pytest.approx([2 / 3, 0.2, 0.0])
    for values in ([], [0.5, -0.1], [0.5, math.nan]):
        with pytest.raises(ValueError, match="harmonic mean"):
            harmonic_mean(values)
