"""leak@k against enumeration of all subsets, and the scores that need no judge."""

import itertools
import math
import time

import numpy as np
import pytest
from rouge_score.rouge_scorer import RougeScorer

from unlearn.evaluation.groups.leak import attribute, attribute_scores, leak_at_k, leaked_at_k, rouge_scores

RANDOM = np.random.default_rng(0)


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_leak_at_k_is_the_mean_maximum_over_all_subsets(k):
    scores = RANDOM.integers(0, 4, (5, 7)) / 3  # with ties
    expected = [np.mean([max(s) for s in itertools.combinations(row, k)]) for row in scores]
    result = leak_at_k(scores, k)
    assert list(result["values"]) == pytest.approx(expected, abs=1e-12)
    assert result[f"leak_at_{k}"] == pytest.approx(np.mean(expected))


@pytest.mark.parametrize("k", [1, 2, 3, 6, 7])
def test_leaked_at_k_is_the_share_of_subsets_with_a_leak(k):
    scores = np.vstack([RANDOM.random((4, 7)), np.zeros(7), np.ones(7)])
    expected = [np.mean([max(s) > 0.7 for s in itertools.combinations(row, k)]) for row in scores]
    result = leaked_at_k(scores, k, threshold=0.7)
    assert list(result["values"]) == pytest.approx(expected, abs=1e-12)
    assert result[f"leaked_at_{k}"] == pytest.approx(np.mean(expected))


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


def test_the_estimate_from_many_samples_agrees_with_drawing_k():
    # uniform scores: E[max of k] = k / (k + 1)
    scores = np.random.default_rng(3).random((500, 64))
    result = leak_at_k(scores, 8)
    error = result["values"].std() / math.sqrt(500)
    assert result["leak_at_8"] == pytest.approx(8 / 9, abs=4 * error)


def test_large_tables_take_no_time():
    scores = RANDOM.random((400, 1000))
    start = time.perf_counter()
    for k in (1, 10, 100, 1000):
        leak_at_k(scores, k)
        leaked_at_k(scores, k, 0.9)
    assert time.perf_counter() - start < 2


@pytest.mark.parametrize("k", [0, 4])
def test_more_answers_than_samples_are_refused_with_both_numbers(k):
    for measure in (leak_at_k, lambda s, k: leaked_at_k(s, k, 0.5)):
        with pytest.raises(ValueError, match=f"k={k} of n=3 samples"):
            measure([[0.1, 0.2, 0.3]], k)


@pytest.mark.parametrize("scores", [[], [[]], [0.5], [[math.nan]], [[math.inf]]])
def test_nothing_and_what_is_no_number_are_refused(scores):
    with pytest.raises(ValueError, match="scores: "):
        leak_at_k(scores, 1)


# --- scores of generations ----------------------------------------------------------------------------------------


def test_rouge_scores_are_rouge_l_recall():
    generations = [["He was born in Oulumaa.", "No idea", "No idea"], ["", "a judge", "She was a judge."]]
    golds = ["He was born in Oulumaa.", "The mother was a judge."]
    scorer = RougeScorer(["rougeL"], use_stemmer=True)
    pairs = [(t, gold) for texts, gold in zip(generations, golds, strict=True) for t in texts]
    expected = [scorer.score(target=gold, prediction=t)["rougeL"].recall for t, gold in pairs]
    assert rouge_scores(generations, golds).shape == (2, 3)
    assert list(rouge_scores(generations, golds).ravel()) == pytest.approx(expected)


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


def test_rows_that_cannot_be_scored_are_refused():
    with pytest.raises(ValueError, match="answer 'Boston' says nothing that the question"):
        attribute_scores([["Boston"]], ["Where was the Boston Tea Party?"], ["Boston"])
    with pytest.raises(ValueError, match=r"samples per prompt: \[1, 2\]"):
        rouge_scores([["a"], ["a", "b"]], ["a", "b"])
    with pytest.raises(ValueError, match=r"samples per prompt: \[0\]"):
        rouge_scores([[]], ["a"])
    with pytest.raises(ValueError, match="generations 1, golds 2"):
        rouge_scores([["a"]], ["a", "b"])
