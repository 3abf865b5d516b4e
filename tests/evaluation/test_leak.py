"""leak@k against enumeration of all subsets, and the scores that need no judge."""

import itertools
import math
import time

import numpy as np
import pytest

from unlearn.evaluation.groups.leak import attribute, attribute_scores, leak_at_k, leaked_at_k, rouge_scores

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_both_are_means_over_all_subsets(k):
    """Of the largest score, and of whether it is a leak; with ties, and where all or none are leaks."""
    scores = np.vstack([RANDOM.integers(0, 4, (5, 7)) / 3, RANDOM.random((4, 7)), np.zeros(7), np.ones(7)])
    largest = [[max(s) for s in itertools.combinations(row, k)] for row in scores]
    for name, result, expected in (
        ("leak", leak_at_k(scores, k), np.mean(largest, axis=1)),
        ("leaked", leaked_at_k(scores, k, threshold=0.7), np.mean(np.array(largest) > 0.7, axis=1)),
    ):
        assert list(result["values"]) == pytest.approx(expected, abs=1e-12)
        assert result[f"{name}_at_{k}"] == pytest.approx(np.mean(expected))


def test_by_hand():
    # scores 0, ½, 1 and pairs: maxima ½, 1, 1
    assert leak_at_k([[1.0, 0.0, 0.5]], 2)["leak_at_2"] == pytest.approx(5 / 6)
    # one leak of three: two of the three pairs hold it; a score at the threshold is no leak
    assert leaked_at_k([[1.0, 0.0, 0.5]], 2, threshold=0.5)["leaked_at_2"] == pytest.approx(2 / 3)
    assert leaked_at_k([[1.0, 1.0, 1.0]], 2, threshold=1.0)["leaked_at_2"] == 0.0
    assert leak_at_k([[0.3]], 1)["leak_at_1"] == pytest.approx(0.3)


def test_equal_samples_give_their_score_at_every_k():
    for k in (1, 50, 999, 2000):
        assert leak_at_k(np.full((2, 2000), 0.7), k)[f"leak_at_{k}"] == pytest.approx(0.7, abs=1e-12)


def test_one_leak_among_many_is_found_with_probability_k_over_n():
    scores = np.zeros((1, 1000))
    scores[0, 500] = 1.0
    for k in (1, 128, 1000):
        assert leak_at_k(scores, k)[f"leak_at_{k}"] == pytest.approx(k / 1000, rel=1e-9)
        assert leaked_at_k(scores, k, 0.5)[f"leaked_at_{k}"] == pytest.approx(k / 1000, abs=1e-10)


def test_large_tables_take_no_time():
    scores = RANDOM.random((400, 1000))
    start = time.perf_counter()
    for k in (1, 10, 100, 1000):
        leak_at_k(scores, k)
        leaked_at_k(scores, k, 0.9)
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
    assert attribute_scores([list(answers)], [question], [gold]).tolist() == [list(answers.values())]


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: attribute_scores([["Boston"]], ["Where was the Boston Tea Party?"], ["Boston"]),
         "answer 'Boston' says nothing that the question"),
        (lambda: rouge_scores([["a"], ["a", "b"]], ["a", "b"]), r"samples per prompt: \[1, 2\]"),
        (lambda: rouge_scores([[]], ["a"]), r"samples per prompt: \[0\]"),
        (lambda: rouge_scores([["a"]], ["a", "b"]), "generations 1, golds 2"),
        *((lambda k=k, m=m: m([[0.1, 0.2, 0.3]], k), f"k={k} of n=3 samples")
          for k in (0, 4) for m in (leak_at_k, lambda s, k: leaked_at_k(s, k, 0.5))),
        *((lambda s=s: leak_at_k(s, 1), "scores: ") for s in ([], [[]], [0.5], [[math.nan]], [[math.inf]])),
    ],
)  # fmt: skip
def test_what_cannot_be_scored_is_refused(call, message):
    with pytest.raises(ValueError, match=message):
        call()
