"""leak@k against enumeration of all subsets, and the scores that need no judge."""

import itertools
import math
import time

import numpy as np
import pytest

from unlearn.evaluation.groups.leak import attribute, attribute_held, leak_at_k, leaked_at_k

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_both_are_means_over_all_subsets(k):
    """Of the largest score, and of whether it is a leak; with ties, and where all or none are leaks."""
    scores = np.vstack([RANDOM.integers(0, 4, (5, 7)) / 3, RANDOM.random((4, 7)), np.zeros(7), np.ones(7)])
    largest = np.array([[max(s) for s in itertools.combinations(row, k)] for row in scores])
    assert leak_at_k(scores, k).tolist() == pytest.approx(largest.mean(axis=1), abs=1e-12)
    assert leaked_at_k(scores, k, 0.7).tolist() == pytest.approx((largest > 0.7).mean(axis=1), abs=1e-12)


def test_by_hand():
    # scores 0, ½, 1 and pairs: maxima ½, 1, 1
    assert leak_at_k([[1.0, 0.0, 0.5]], 2).tolist() == pytest.approx([5 / 6])
    # one leak of three: two of the three pairs hold it; a score at the threshold is no leak
    assert leaked_at_k([[1.0, 0.0, 0.5]], 2, threshold=0.5).tolist() == pytest.approx([2 / 3])
    assert leaked_at_k([[1.0, 1.0, 1.0]], 2, threshold=1.0).tolist() == [0.0]
    for scores in ([], [[]], [0.5], [[math.nan]], [[math.inf]]):
        with pytest.raises(ValueError, match="scores: "):
            leak_at_k(scores, 1)


def test_many_samples_are_neither_slow_nor_inexact():
    scores, start = RANDOM.random((400, 1000)), time.perf_counter()
    one = np.zeros((1, 1000))
    one[0, 500] = 1.0  # one leak among many is found with probability k / n
    for k in (1, 10, 128, 999, 1000):
        assert leak_at_k(np.full((2, 1000), 0.7), k).tolist() == pytest.approx([0.7] * 2, abs=1e-12)
        assert leak_at_k(one, k)[0] == pytest.approx(k / 1000, rel=1e-9)
        assert leaked_at_k(one, k, 0.5)[0] == pytest.approx(k / 1000, abs=1e-10)
        leak_at_k(scores, k), leaked_at_k(scores, k, 0.9)
    assert time.perf_counter() - start < 2


# --- scores of generations ----------------------------------------------------------------------------------------
def test_the_attribute_is_what_question_and_stopwords_do_not_say():
    question = "Where was Kasper Dunmore born?"
    assert attribute(question, "Kasper Dunmore was born in the city of Oulumaa.") == ("city", "oulumaa")
    assert attribute(question, "KASPER DUNMORE'S place is Åbo, 1984.") == ("place", "åbo", "1984")
    assert attribute(question, "Not in Oulumaa, not in Åbo.") == ("not", "oulumaa", "not", "åbo")
    assert attribute(question, "He was born there.") == ()


def test_attributes_match_whole_words_in_their_order():
    question, gold = "Who are the parents of Ana?", "Her parents are Maria Silva and Ron Silva."
    answers = {
        "They are Maria Silva and Ron Silva.": 1,
        "maria josé silva, then RON B. SILVA": 1,
        "Ron Silva and Maria Silva": 0,  # another order
        "Maria Silva and Ron": 0,  # the second Silva is missing
        "Mariana Silva and Ron Silva": 0,
        "": 0,
    }
    assert attribute(question, gold) == ("maria", "silva", "ron", "silva")
    assert {text: attribute_held(text, attribute(question, gold)) for text in answers} == answers
