"""Where answer rows are, and that neither padding, order, batch size nor the store changes them."""

import numpy as np
import pytest
import torch
from support.helpers import build, offset_ensemble, random_examples, tiny_llama

from unlearn.config.data import TemplateConfig
from unlearn.config.pair import TokenizerConfig
from unlearn.data.encoding import Encoder, Examples, collate
from unlearn.data.rows import DataError
from unlearn.data.sets import bios
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.frozen import FrozenRows, LiveRows, rows_of, stored
from unlearn.evaluation.scoring import score
from unlearn.models import tokenizers
from unlearn.models.llama import answer_rows
from unlearn.store.entries import Store


@torch.no_grad()
def by_hand(model, example) -> torch.Tensor:
    """Rows of one unpadded example from the whole model's own logits."""
    ids = torch.tensor([example.prompt + example.answer])
    logits = model(input_ids=ids).logits[0]
    return logits[len(example.prompt) - 1 : ids.shape[1] - 1]


@torch.no_grad()
def test_rows_are_those_that_predict_the_answer_tokens_and_eos():
    model, examples = tiny_llama(0), random_examples()
    batch = collate(examples, pad_id=0)
    rows = answer_rows(model, batch)
    torch.testing.assert_close(rows, torch.cat([by_hand(model, e) for e in examples]), rtol=1e-5, atol=1e-5)
    assert batch.labels.tolist() == [t for e in examples for t in e.answer]
    assert batch.owner.tolist() == [i for i, e in enumerate(examples) for _ in e.answer]


def test_padding_batch_order_and_batch_size_change_no_score():
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    examples = random_examples(11)
    whole = score(ensemble, examples, [0.5, 1.0], {}, pad_id=0, batch_size=64)
    for batch_size in (1, 3):
        parts = score(ensemble, Examples(reversed(examples)), [0.5, 1.0], {}, pad_id=0, batch_size=batch_size)
        for alpha in (0.5, 1.0):
            np.testing.assert_allclose(parts[alpha].nll[::-1], whole[alpha].nll, rtol=1e-5)
            np.testing.assert_array_equal(parts[alpha].correct[::-1], whole[alpha].correct)


def test_another_padding_token_changes_no_row():
    model, examples = tiny_llama(0), random_examples()
    with torch.no_grad():
        rows = [answer_rows(model, collate(examples, pad_id=pad)) for pad in (0, 17)]
    assert torch.equal(*rows)


def test_scores_are_written_out_log_probabilities():
    model, examples = tiny_llama(0), random_examples(4)
    ensemble = offset_ensemble(model, tiny_llama(1), tiny_llama(1))
    scores = score(ensemble, examples, [1.0], {}, pad_id=0, batch_size=3)[1.0]
    for i, e in enumerate(examples):
        logp = by_hand(model, e).log_softmax(-1)
        nll = -sum(logp[t, token].item() for t, token in enumerate(e.answer))
        right = [logp[t].argmax().item() == token for t, token in enumerate(e.answer[:-1])]
        assert scores.nll[i] == pytest.approx(nll, rel=1e-5)
        assert scores.tokens[i] == len(e.answer)
        assert scores.prob[i] == pytest.approx(np.exp(-nll / len(e.answer)), rel=1e-5)
        assert scores.correct[i] == pytest.approx(sum(right) / len(right))


def test_stored_rows_are_the_recomputed_rows(tmp_path):
    member, examples = Member("target", tiny_llama(0), "print", 1.0, 0.0, False), random_examples(9)
    rows = stored(Store(tmp_path), member, examples, pad_id=0, batch_size=4)
    for indices in ([0], [8, 2, 5], list(range(9))):
        with torch.no_grad():
            fresh = answer_rows(member.model, collate([examples[i] for i in indices], 0))
        torch.testing.assert_close(rows.take(indices), fresh, rtol=1e-5, atol=1e-5)


def test_scores_from_stored_rows_equal_recomputed_ones_at_every_alpha(tmp_path):
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    examples, alphas = random_examples(9), [0.0, 0.5, 1.0, 2.0]
    frozen = {m.name: stored(Store(tmp_path), m, examples, 0) for m in ensemble.members if not m.trained}
    live = score(ensemble, examples, alphas, {}, 0, 4)
    from_store = score(ensemble, examples, alphas, frozen, 0, 4)
    for alpha in alphas:
        np.testing.assert_allclose(from_store[alpha].nll, live[alpha].nll, rtol=1e-5, atol=1e-5)


def test_stored_offset_equal_to_anchor_gives_the_target_within_1e_5(tmp_path):
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(1, hidden=8))
    examples = random_examples(9)
    frozen = {m.name: stored(Store(tmp_path), m, examples, 0) for m in ensemble.members if not m.trained}
    scores = score(ensemble, examples, [0.0, 2.0], frozen, 0, 3)
    np.testing.assert_allclose(scores[2.0].nll, scores[0.0].nll, rtol=1e-5, atol=1e-5)


def test_rows_over_the_limit_are_computed_when_needed_and_are_the_same(tmp_path, caplog):
    member, examples = Member("target", tiny_llama(0), "print", 1.0, 0.0, False), random_examples(9)
    with caplog.at_level("INFO"):
        live = rows_of(Store(tmp_path), member, examples, 0, 0)
    assert isinstance(live, LiveRows) and "over trainer.stored_rows_gib=0" in caplog.text
    frozen = rows_of(Store(tmp_path), member, examples, 0, 1)
    assert isinstance(frozen, FrozenRows)
    torch.testing.assert_close(live.take([3, 1]), frozen.take([3, 1]), rtol=1e-5, atol=1e-5)


def test_rows_of_other_examples_are_refused():
    with pytest.raises(ValueError, match="stored rows for examples"):
        FrozenRows(np.zeros((3, 4), dtype=np.float32), random_examples())


@pytest.fixture(scope="module")
def tiny_world():
    return build(bios, people=4, forget_people=1, holdout_people=1, known_people=2, countries=2)


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_tokenizers_give_back_the_text_they_were_given(tiny_world, kind):
    template = TemplateConfig(prompt="Question: {question}\nAnswer:", answer=" {answer}")
    tokenizer = tokenizers.train(TokenizerConfig(kind, 600), tiny_world, template)
    encoder = Encoder(tokenizer, template, max_length=200)
    for row in tiny_world.splits["forget"] + tiny_world.splits["holdout"]:
        example = encoder.example(row.id, row.question, row.answer)
        assert tokenizer.decode(example.prompt) == f"Question: {row.question}\nAnswer:"
        assert encoder.decode(example.answer) == row.answer
        assert example.answer[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in example.prompt + example.answer


def test_an_example_longer_than_the_context_is_refused_with_its_id(tiny_world):
    tokenizer = tokenizers.train(TokenizerConfig("words"), tiny_world, TemplateConfig())
    row = tiny_world.splits["forget"][0]
    with pytest.raises(DataError, match=f"example '{row.id}' has .* tokens, the models take at most 5"):
        Encoder(tokenizer, TemplateConfig(), max_length=5).example(row.id, row.question, row.answer)
