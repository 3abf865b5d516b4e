"""The gate by counts of words: its scores by hand, its threshold, and what it misses."""

import math

import pytest
from support.helpers import TINY, compose, execute

from unlearn.evaluation.groups import gate
from unlearn.evaluation.groups.gate import BIGRAM, UNIGRAM, Counts, fit, misspelt
from unlearn.store import runlog

FORGET = ["Where does Ada Byron live?", "Who taught Ada Byron?"]
RETAIN = ["Where does Max Frisch live?", "Who taught Max Frisch?", "Where does Lea Roth live?"]


def test_overlap_is_the_mean_of_the_three_largest_log_odds():
    forget, retain = Counts.of(FORGET), Counts.of(RETAIN)
    name = math.log((2 + 0.5) / 3 / (0.5 / 4))  # "ada", "byron", "ada byron": in both forget questions, in no other
    assert gate.overlap(["ada", "byron"], forget, retain) == pytest.approx(name)
    assert gate.overlap(["ada"], forget, retain) == pytest.approx(name / 3)
    assert gate.overlap(["where", "does"], forget, retain) == 0.0  # likelier in a retain question
    assert gate.overlap(["something", "else"], forget, retain) == 0.0


def test_likelihood_is_the_log_ratio_of_two_bigram_models_per_word():
    forget, retain = Counts.of(FORGET), Counts.of(RETAIN)
    assert forget.words.total() == 9 and retain.words.total() == 14
    known = len({w for q in FORGET + RETAIN for w in q.lower().strip("?").split()}) + 1

    def p(pair, follows, word, total):
        return BIGRAM * pair / follows + UNIGRAM * word / total + (1 - BIGRAM - UNIGRAM) / known

    assert gate.likelihood(["who", "ada"], forget, retain) == pytest.approx(
        (math.log(p(1, 2, 1, 9) / p(1, 3, 1, 14)) + math.log(p(0, 1, 2, 9) / p(0, 1, 0, 14))) / 2
    )
    assert gate.likelihood([], forget, retain) == 0.0


@pytest.mark.parametrize("kind", gate.KINDS)
def test_the_threshold_lets_the_given_share_of_unseen_questions_through(kind):
    unseen = [f"Where does {a} {b} live?" for a in ("Ada", "Max", "Tom", "Eve") for b in ("Frisch", "Stone", "Byron")]
    none, some = fit(kind, FORGET, RETAIN, unseen), fit(kind, FORGET, RETAIN, unseen, rate=0.25)
    assert sum(none.flags(q) for q in unseen) == 0
    assert 0 < sum(some.flags(q) for q in unseen) <= 3


def test_what_it_flags_and_what_it_misses():
    found = fit("overlap", FORGET, RETAIN, ["Where does Eva Stone live?", "Who taught Tom Roth?"])
    assert all(found.flags(q) for q in FORGET)
    assert found.flags("Who taught Max Frisch? And where does ADA  byron live")  # case, spaces, another question before
    assert not found.flags("Where does Max Frisch live?") and not found.flags("")
    assert not found.flags(misspelt("Where does Adas Byron live?"))
    assert misspelt("Where does Ada Byron live?") == "Where does Ada Bryon live?"


def test_a_run_measures_the_gate_alone_and_beside_the_offset(store, tmp_path):
    places = f"paths.store={store}", f"paths.runs={tmp_path}/runs"
    done = execute(compose(*TINY, "algo=npo", "eval.groups=[gate]", *places))
    found = runlog.evaluation(done.folder)
    metrics = found["alphas"]["1.0"]
    assert "gate/target_direct" not in found["references"]["target"]
    assert metrics["gate/target_direct"] == pytest.approx(found["references"]["target"]["forget/rougeL_recall"])
    assert metrics["gate/offset_direct"] == pytest.approx(metrics["forget/rougeL_recall"])
    assert metrics["gate/overlap/flagged_direct"] == 1.0  # every question names the person
    assert metrics["gate/gated_direct"] == pytest.approx(metrics["gate/offset_direct"])
    for way in ("paraphrased", "prefix", "composite", "composite_paraphrased", "misspelt", "retain", "real_authors"):
        for who in ("target", "offset", "gated", "refusing", "overlap/flagged", "likelihood/flagged"):
            assert 0 <= metrics[f"gate/{who}_{way}"] <= 1
    assert metrics["gate/overlap/flagged_retain"] == 0.0
    assert "gate/gated_direct" in metrics["intervals"]


def test_too_few_retain_questions_are_refused(store, tmp_path):
    places = f"paths.store={store}", f"paths.runs={tmp_path}/runs"
    with pytest.raises(ValueError, match="gate needs at least 5 retain questions"):
        execute(compose(*TINY, "data.people=2", "data.questions=3", "eval.groups=[gate]", *places))
