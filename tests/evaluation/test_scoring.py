"""Scores token by token, against a plain log-softmax in float64 of the whole model's logits."""

import numpy as np
import pytest
import torch
from support.helpers import offset_ensemble, random_examples, tiny_llama

from unlearn.data.encoding import Example, Examples
from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.frozen import FrozenRows
from unlearn.evaluation.scoring import Scores, score
from unlearn.models.llama import vocabulary

ALPHA = 0.5


@pytest.fixture(scope="module")
def ensemble():
    return offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=12))


@pytest.fixture(scope="module")
def examples(ensemble):
    """Answers of different lengths: random ones, EOS alone, and those that the ensemble gives itself."""
    prompts = [e.prompt for e in random_examples(4, seed=6)]
    said = greedy(ensemble, prompts, ALPHA, Decoding(0, 1, 6, 1))
    own = [Example(f"own {i}", p, (*a, 1)) for i, (p, a) in enumerate(zip(prompts, said, strict=True))]
    return Examples([*random_examples(5, seed=4), Example("short", (5, 6, 7), (1,)), *own])


@torch.no_grad()
def plain(ensemble, example) -> torch.Tensor:
    """log P of every answer row, [n, V]: one text at a time, no padding, logits joined and normalised in float64."""
    ids = torch.tensor([example.prompt + example.answer])
    target, offset, anchor = (m.model(input_ids=ids).logits[0].double() for m in ensemble.members)
    logits = target + ALPHA * (offset - anchor)
    return logits[len(example.prompt) - 1 : -1].log_softmax(-1)


@pytest.fixture(scope="module")
def found(ensemble, examples) -> Scores:
    return score(ensemble, examples, [ALPHA], {}, pad_id=0, batch_size=3, moments=True)[ALPHA]


def test_every_token_has_its_log_probability_and_whether_it_is_the_likeliest(ensemble, examples, found):
    for i, example in enumerate(examples):
        logp = plain(ensemble, example)
        tokens = slice(found.starts[i], found.starts[i + 1])
        expected = [logp[t, token].item() for t, token in enumerate(example.answer)]
        np.testing.assert_allclose(found.logp[tokens], expected, atol=2e-5)
        right = [r.argmax().item() == t for r, t in zip(logp, example.answer, strict=True)]
        assert found.right[tokens].tolist() == right
    assert 0 < found.right.sum() < len(found.right)  # or the line above says little


def test_moments_are_those_of_the_rows_own_distribution(ensemble, examples, found):
    logp = torch.cat([plain(ensemble, e) for e in examples])
    mean = (logp.exp() * logp).sum(-1)
    variance = (logp.exp() * logp**2).sum(-1) - mean**2
    np.testing.assert_allclose(found.mean, mean, rtol=1e-4, atol=1e-5)
    np.testing.assert_allclose(found.variance, variance, rtol=1e-4, atol=1e-4)
    without = score(ensemble, examples, [ALPHA], {}, pad_id=0, batch_size=3)[ALPHA]
    assert np.isnan(without.mean).all() and np.isnan(without.variance).all()
    np.testing.assert_array_equal(without.logp, found.logp)


def test_sums_means_and_shares_of_an_answer():
    """Three answers of 3, 1 and 2 tokens: the last of each is its EOS."""
    scores = Scores(
        np.array([0, 3, 4, 6]), np.array([-1.0, -2.0, -0.5, -4.0, -0.25, -0.75]),
        np.array([True, False, True, True, False, True]), np.zeros(6), np.zeros(6),
    )  # fmt: skip
    assert scores.tokens.tolist() == [3, 1, 2]
    assert scores.nll.tolist() == [3.5, 4.0, 1.0]
    assert scores.mean_nll.tolist() == pytest.approx([3.5 / 3, 4.0, 0.5])
    assert scores.prob.tolist() == pytest.approx(np.exp([-3.5 / 3, -4.0, -0.5]).tolist())
    assert scores.correct.tolist() == [0.5, 0.0, 0.0]  # without EOS: one of two, none, and not the one
    assert [piece.tolist() for piece in scores.before_eos(scores.logp)] == [[-1.0, -2.0], [], [-0.25]]


def test_one_pass_gives_every_alpha_what_it_gets_alone_and_only_answers_asked_for_an_argmax(ensemble, examples, found):
    how = {"pad_id": 0, "batch_size": 4, "moments": True}
    for alpha, scores in score(ensemble, examples, [0.0, 1.0, 2.0], {}, **how).items():
        alone = score(ensemble, examples, [alpha], {}, **how)[alpha]
        for name in ("logp", "right", "mean", "variance"):
            np.testing.assert_array_equal(getattr(scores, name), getattr(alone, name))
    some = score(ensemble, examples, [ALPHA], {}, 0, 3, argmax_of=[1, 4])[ALPHA]
    np.testing.assert_array_equal(some.logp, found.logp)
    for i in range(len(examples)):
        here = slice(examples.starts[i], examples.starts[i + 1])
        if i in (1, 4):
            np.testing.assert_array_equal(some.right[here], found.right[here])
        else:
            assert np.isnan(some.right[here]).all()
            assert np.isnan(some.correct[i]) or examples[i].id == "short"  # EOS alone: 0 by definition


def test_nan_in_a_model_is_refused_with_the_examples_and_a_probability_of_0_is_not(ensemble, examples):
    rows = {m.name: FrozenRows.__new__(FrozenRows) for m in ensemble.members}
    for m, held in zip(ensemble.members, rows.values(), strict=True):
        held.examples = examples
        held.array = np.zeros((examples.starts[-1], vocabulary(m.model)), dtype=np.float32)
    target = rows[ensemble.members[0].name].array
    target[examples.starts[2], :] = -np.inf
    target[examples.starts[2], 0] = 0.0  # all probability on one token
    assert np.isneginf(score(ensemble, examples, [1.0], rows, 0, 3)[1.0].logp).sum() <= 1
    target[examples.starts[2], 1] = np.nan
    with pytest.raises(ValueError, match=f"α=1: 1 of .* in 1 examples .'{examples[2].id}'."):
        score(ensemble, examples, [1.0], rows, 0, 3)
