"""What must always hold for the weighted sum of logits, and for the answer rows that it is made of."""

import copy

import numpy as np
import pytest
import torch
from support.helpers import direct, offset_ensemble, random_examples, same_pair, tiny_llama

from unlearn.config.data import TemplateConfig
from unlearn.config.pair import TokenizerConfig
from unlearn.config.schema import MemberConfig
from unlearn.data.encoding import Encoder, Examples, collate
from unlearn.data.rows import DataError
from unlearn.data.sets import bios
from unlearn.ensemble.combination import SUM, bind_rule
from unlearn.ensemble.ensemble import Ensemble, Member, build
from unlearn.ensemble.frozen import FrozenRows, LiveRows, rows_of, stored
from unlearn.evaluation.scoring import score
from unlearn.models import tokenizers
from unlearn.models.llama import answer_rows
from unlearn.store.entries import Store

ALPHAS = [-1.0, 0.0, 0.3, 0.7, 1.0, 2.0, 7.5]


@pytest.fixture
def batch():
    return collate(random_examples(), pad_id=0)


@pytest.fixture
def ensemble():
    return offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))


def rows(ensemble, batch):
    return {m.name: answer_rows(m.model, batch) for m in ensemble.members}


def test_the_sum_is_target_plus_alpha_times_offset_minus_anchor_and_the_target_where_those_are_equal(ensemble, batch):
    small = tiny_llama(1, hidden=8)
    same = offset_ensemble(tiny_llama(0), copy.deepcopy(small), small)
    r, equal = rows(ensemble, batch), rows(same, batch)
    for alpha in ALPHAS:
        expected = r["target"] + alpha * (r["offset"] - r["anchor"])
        torch.testing.assert_close(ensemble.logits(r, alpha), expected)
        assert torch.equal(same.logits(equal, alpha), equal["target"])


def test_alpha_zero_is_the_target_with_zero_gradient(ensemble, batch):
    r = rows(ensemble, batch)
    logits = ensemble.logits(r, 0.0)
    assert torch.equal(logits, r["target"])
    logits.log_softmax(-1)[:, 3].sum().backward()
    assert all(p.grad is not None and not p.grad.any() for p in ensemble.trained.model.parameters())


def test_only_the_trained_member_gets_gradients_and_they_are_alpha_times_those_of_the_ensemble(ensemble, batch):
    for m in ensemble.members:
        m.model.requires_grad_(m.trained)
    ensemble.logits(rows(ensemble, batch), 1.0).logsumexp(-1).sum().backward()
    for m in ensemble.members:
        assert all((p.grad is not None) == m.trained for p in m.model.parameters())
    target, offset, anchor = (torch.randn(9, 5, dtype=torch.float64) for _ in range(3))
    offset.requires_grad_(True)
    ensemble = offset_ensemble(None, None, None)
    logits = ensemble.logits({"target": target, "offset": offset, "anchor": anchor}, 0.7)
    logits.log_softmax(-1)[:, 0].sum().backward()
    free = logits.detach().requires_grad_(True)
    free.log_softmax(-1)[:, 0].sum().backward()
    torch.testing.assert_close(offset.grad, 0.7 * free.grad)


def test_direct_is_the_tuned_model_itself_at_alpha_one_and_scales_the_change_of_logits_elsewhere(batch):
    ensemble = direct(tiny_llama(0), tiny_llama(1))
    r = {"tuned": answer_rows(ensemble.trained.model, batch)}
    assert torch.equal(ensemble.logits(r, 1.0), r["tuned"])
    assert ensemble.frozen(1.0) == []
    r = rows(ensemble, batch)
    expected = r["target"] + 0.5 * (r["tuned"] - r["target"])
    torch.testing.assert_close(ensemble.logits(r, 0.5), expected)
    assert torch.equal(ensemble.logits(r, 0.0), r["target"])


@pytest.mark.parametrize("rule", [SUM, bind_rule("rank", {"k": 6})])
def test_frozen_members_of_one_fingerprint_are_one_member_and_the_sum_is_the_same(batch, rule):
    ensemble = Ensemble(same_pair(tiny_llama(0), tiny_llama(1)).members, rule)
    once, r = ensemble.once, rows(ensemble, batch)
    assert [m.name for m in once.members] == ["target", "offset"] and once.once is once
    for alpha in ALPHAS:
        expected = ensemble.logits(r, alpha)
        if rule is SUM and alpha == 1:  # all that is left is the offset
            assert [m.name for m in once.needed([alpha])] == ["offset"]
            assert once.logits({"offset": r["offset"]}, alpha) is r["offset"]
            torch.testing.assert_close(expected, r["offset"])
        else:
            assert torch.equal(once.logits(r, alpha), expected)
    trained = Ensemble(tuple(Member(m.name, m.model, "t", m.constant, m.slope, m.trained) for m in ensemble.members))
    assert [m.name for m in trained.once.members] == ["target", "offset"]  # what learns is no longer what it was
    unnamed = Ensemble(tuple(Member(str(i), tiny_llama(i), "", 1.0) for i in range(2)))
    assert unnamed.once is unnamed  # a fingerprint that nobody took says nothing


def test_members_of_different_vocabulary_are_refused_with_names_and_sizes():
    members = [MemberConfig("target", "target", 1.0), MemberConfig("offset", "small", 0, 1.0, True)]
    models = {"target": tiny_llama(0), "offset": tiny_llama(1, vocabulary=41)}
    with pytest.raises(ValueError, match="target 40, offset 41"):
        build(members, models, {"target": "", "offset": ""}, {"target": 40, "offset": 41})


def test_a_sweep_over_alphas_gives_the_logits_of_each(batch):
    small = tiny_llama(1, hidden=8)
    models = {"target": tiny_llama(0), "offset": tiny_llama(2, hidden=8), "anchor": small}
    members = {  # weight = constant + slope · α
        "offset": [("target", 1.0, 0.0), ("offset", 0.0, 1.0), ("anchor", 0.0, -1.0)],
        "both": [("target", 1.0, -0.5), ("offset", 0.25, 1.0)],
        "constant": [("target", 0.5, 0.0), ("anchor", 0.5, 0.0)],
        "slope": [("offset", 0.0, 1.0), ("anchor", 0.0, 2.0)],
    }
    for name, weights in members.items():
        for rule in (SUM, bind_rule("plausible", {"rate": 0.1, "top": 0.1}, None)):
            if rule is not SUM and name in ("constant", "slope"):
                continue  # rules join a base and a change
            ensemble = Ensemble(tuple(Member(n, models[n], n, c, s, False) for n, c, s in weights), rule)
            found, alphas = rows(ensemble, batch), [a for a in ALPHAS if name != "slope" or a]
            for alpha, logits in ensemble.sweep(found, alphas):
                torch.testing.assert_close(logits, ensemble.logits(found, alpha), rtol=1e-6, atol=1e-6)
    same = offset_ensemble(models["target"], copy.deepcopy(small), small)
    found = rows(same, batch)
    assert all(torch.equal(logits, found["target"]) for _, logits in same.sweep(found, ALPHAS))


@torch.no_grad()
def by_hand(model, example) -> torch.Tensor:
    """Rows of one unpadded example from the whole model's own logits."""
    ids = torch.tensor([example.prompt + example.answer])
    logits = model(input_ids=ids).logits[0]
    return logits[len(example.prompt) - 1 : ids.shape[1] - 1]


@torch.no_grad()
def test_rows_are_those_that_predict_the_answer_tokens_and_eos_and_scores_are_their_log_probabilities():
    model, examples = tiny_llama(0), random_examples()
    batch = collate(examples, pad_id=0)
    rows = answer_rows(model, batch)
    torch.testing.assert_close(rows, torch.cat([by_hand(model, e) for e in examples]), rtol=1e-5, atol=1e-5)
    assert batch.labels.tolist() == [t for e in examples for t in e.answer]
    assert batch.owner.tolist() == [i for i, e in enumerate(examples) for _ in e.answer]
    assert torch.equal(rows, answer_rows(model, collate(examples, pad_id=17)))
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


def test_padding_batch_order_and_batch_size_change_no_score():
    ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    examples = random_examples(11)
    whole = score(ensemble, examples, [0.5, 1.0], {}, pad_id=0, batch_size=64)
    for batch_size in (1, 3):
        parts = score(ensemble, Examples(reversed(examples)), [0.5, 1.0], {}, pad_id=0, batch_size=batch_size)
        for alpha in (0.5, 1.0):
            np.testing.assert_allclose(parts[alpha].nll[::-1], whole[alpha].nll, rtol=1e-5)
            np.testing.assert_array_equal(parts[alpha].correct[::-1], whole[alpha].correct)


def test_scores_from_stored_rows_equal_recomputed_ones_and_an_offset_equal_to_its_anchor_is_the_target(tmp_path):
    examples, alphas = random_examples(9), [0.0, 0.5, 1.0, 2.0]
    for anchor in (2, 1):
        small = tiny_llama(anchor, hidden=8)
        ensemble = offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), small)
        store = Store(tmp_path / str(anchor))
        frozen = {m.name: stored(store, m, examples, 0) for m in ensemble.members if not m.trained}
        live = score(ensemble, examples, alphas, {}, 0, 4)
        from_store = score(ensemble, examples, alphas, frozen, 0, 4)
        for alpha in alphas:
            np.testing.assert_allclose(from_store[alpha].nll, live[alpha].nll, rtol=1e-5, atol=1e-5)
    np.testing.assert_allclose(from_store[2.0].nll, from_store[0.0].nll, rtol=1e-5, atol=1e-5)


def test_stored_rows_are_the_recomputed_rows_and_over_the_limit_they_are_computed_when_needed(tmp_path, caplog):
    member, examples = Member("target", tiny_llama(0), "print", 1.0, 0.0, False), random_examples(9)
    rows = stored(Store(tmp_path), member, examples, pad_id=0, batch_size=4)
    for indices in ([0], [8, 2, 5], list(range(9))):
        with torch.no_grad():
            fresh = answer_rows(member.model, collate([examples[i] for i in indices], 0))
        torch.testing.assert_close(rows.take(indices), fresh, rtol=1e-5, atol=1e-5)
    with caplog.at_level("INFO"):
        live = rows_of(Store(tmp_path), member, examples, 0, 0)
    assert isinstance(live, LiveRows) and "over trainer.stored_rows_gib=0" in caplog.text
    frozen = rows_of(Store(tmp_path), member, examples, 0, 1)
    assert isinstance(frozen, FrozenRows)
    torch.testing.assert_close(live.take([3, 1]), frozen.take([3, 1]), rtol=1e-5, atol=1e-5)


def test_rows_of_other_examples_are_refused():
    with pytest.raises(ValueError, match="stored rows for examples"):
        FrozenRows(np.zeros((3, 4), dtype=np.float32), random_examples())


@pytest.mark.parametrize("kind", ["words", "bpe"])
def test_tokenizers_give_back_the_text_they_were_given_and_what_is_too_long_is_refused_with_its_id(kind):
    world = bios.read(bios.Settings(people=4, forget_people=1, holdout_people=1, known_people=2, countries=2))
    template = TemplateConfig(prompt="Question: {question}\nAnswer:", answer=" {answer}")
    tokenizer = tokenizers.train(TokenizerConfig(kind, 600), world, template)
    encoder = Encoder(tokenizer, template, max_length=200)
    for row in world.splits["forget"] + world.splits["holdout"]:
        example = encoder.example(row.id, row.question, row.answer)
        assert tokenizer.decode(example.prompt) == f"Question: {row.question}\nAnswer:"
        assert encoder.decode(example.answer) == row.answer
        assert example.answer[-1] == tokenizer.eos_token_id
        assert tokenizer.unk_token_id not in example.prompt + example.answer
    said = f"example '{row.id}' has .* tokens, the models take at most 5"
    with pytest.raises(DataError, match=said):
        Encoder(tokenizer, template, max_length=5).example(row.id, row.question, row.answer)
