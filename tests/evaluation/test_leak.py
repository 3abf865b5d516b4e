"""leak@k against enumeration of all subsets, and the scores that need no judge."""

import itertools
import math
import time
from collections.abc import Callable

import numpy as np
import pytest
from support.helpers import tiny_llama
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedTokenizerFast

from unlearn.config.data import TemplateConfig
from unlearn.config.schema import EvalConfig
from unlearn.data.encoding import Encoder
from unlearn.data.rows import DataSet, Row
from unlearn.ensemble.ensemble import Ensemble, Member
from unlearn.evaluation import evaluation
from unlearn.evaluation.groups import leak
from unlearn.evaluation.groups.leak import attribute, attribute_held, leak_at_k, leaked_at_k
from unlearn.evaluation.retrained import Measured
from unlearn.evaluation.suite import suite
from unlearn.grid import table

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
    found = leak_at_k([[1.0, 0.0], [math.nan] * 2], 1), leaked_at_k([[1.0, 0.0], [math.nan] * 2], 1, 0.5)
    for values in found:  # of a prompt whose answer has nothing to tell nothing is said
        assert values[0] == 0.5 and math.isnan(values[1])
    for scores in ([], [[]], [0.5], [[math.nan, 1.0]], [[math.inf]]):
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
    assert attribute(question, "He was born there.") == () and math.isnan(attribute_held("He was born.", ()))
    assert attribute("Где родился Каспер?", "Каспер родился в Турку.") == ("в", "турку")
    assert attribute("首都は？", "首都は東京") == ("東", "京")


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


@pytest.fixture
def any_script(monkeypatch):
    """Function from a dialect, and from what is said for each answer, to what an evaluation of all scripts measures."""
    answers = ["Кот сидит на окне", "東京タワーは赤い", "القطة على النافذة", "😀 🎉", "Kyiv це 東京 😀"]
    rows = [Row(f"forget/{i}", f"q {i}", answer) for i, answer in enumerate(answers)]
    data = DataSet("scripts", {"forget": tuple(rows), "retain": (Row("retain/0", "q", "an answer"),)})
    own = Tokenizer(models.BPE())
    own.pre_tokenizer, own.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    own.train_from_iterator([], trainers.BpeTrainer(special_tokens=["<pad>", "</s>"], initial_alphabet=alphabet))
    tokenizer = PreTrainedTokenizerFast(tokenizer_object=own, pad_token="<pad>", eos_token="</s>", padding_side="left")
    model = tiny_llama(0, vocabulary=len(tokenizer))
    model.config.max_position_embeddings = 256
    ensemble = Ensemble((Member("model", model, "", 1.0, 0.0, False),))

    def run(semantics: str, said: Callable[[str], str], retrained: Measured | None = None, **more):
        cfg = EvalConfig(semantics=semantics, groups=["leak"], leak_samples=2, resamples=0, max_new_tokens=128, **more)
        made = suite(data, Encoder(tokenizer, TemplateConfig("plain", "{question}", " {answer}"), 256), cfg, {}, 1.0)
        answer = {p: said(r.answer) for split in made.splits for p, r in zip(split.prompts, split.rows, strict=True)}

        def told(ensemble, prompts, *rest):
            return [tokenizer(answer[p])["input_ids"] for p in prompts]

        monkeypatch.setattr(evaluation, "greedy", told)
        monkeypatch.setattr(leak, "sample", told)
        found, examples = evaluation.evaluate(ensemble, made, [1.0], None, retrained, itself=retrained is None)
        return Measured(found[1.0], examples)

    return run


def test_rows_in_any_script_that_are_memorised_have_rouge_1_and_a_leak_gap_that_tells_it(any_script, capsys):
    # OpenUnlearning's ROUGE sees one word, Kyiv, and is 0 elsewhere; what is not its own is missing there
    for semantics, rouge in (("default", 1.0), ("ou", 0.2)):
        retrained = any_script(semantics, lambda answer: "nothing at all")
        found = any_script(semantics, lambda answer: answer, retrained).metrics
        assert retrained.metrics["forget/leak_gap"] == retrained.metrics["forget/rougeL_recall"] == 0
        assert found["forget/rougeL_recall"] == found["forget/rougeL_f1"] == pytest.approx(rouge)
        names = "leak@2", "leaked@2", "leak_gap", "attribute_leaked@1"
        assert [found[f"forget/{name}"] for name in names] == [1.0] * 4
        assert found.get("forget/rouge_unread") == (0.8 if semantics == "ou" else None)
        assert "retain/rouge_unread" not in found
        table.show_metrics({"model": found})
        assert ("80% of forget" in capsys.readouterr().out) == (semantics == "ou")


@pytest.mark.parametrize("value", ["2.0", "-0.1", "float('nan')", "float('inf')"])
def test_a_judge_that_gives_no_share_is_refused_with_what_it_gave(any_script, tmp_path, value):
    file = tmp_path / "mine.py"
    file.write_text(f"def judge(question, gold, answer):\n    return {value} if 'Kyiv' in gold else 1.0\n")
    with pytest.raises(ValueError, match=r"mine.py'?: gave .* of 'Kyiv це 東京 😀' to 'forget/4'; must be from 0 to 1"):
        any_script("default", lambda answer: answer, judge=str(file))
