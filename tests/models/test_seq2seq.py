"""Encoder–decoder members (T5): the same invariants as for causal models, against transformers' own forward pass."""

import numpy as np
import pytest
import torch
from support.helpers import direct, offset_ensemble, random_examples, tiny_llama
from transformers import T5Config, T5ForConditionalGeneration

from unlearn.config.pair import ModelConfig
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Examples, collate
from unlearn.decoding.drafts import greedy_drafted, greedy_from_drafts
from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.engines.live import causal_lm
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.frozen import stored
from unlearn.ensemble.rows import LiveRows
from unlearn.evaluation.scoring import score
from unlearn.models import hub, llama, seq2seq
from unlearn.models.prompts import by_prompt, pays, shared_rows
from unlearn.store.entries import Store


def tiny_t5(seed: int, hidden: int = 16, vocabulary: int = 40, **settings) -> T5ForConditionalGeneration:
    torch.manual_seed(seed)
    shape = {"d_model": hidden, "d_kv": 8, "d_ff": 2 * hidden, "num_layers": 2, "num_heads": 2, "dropout_rate": 0.0,
             "initializer_factor": 1.5, "pad_token_id": 0, "eos_token_id": 1, "decoder_start_token_id": 0}  # fmt: skip
    model = T5ForConditionalGeneration(T5Config(vocab_size=vocabulary, **shape | settings)).eval()
    with torch.no_grad():
        model.shared.weight[1] *= 2  # so that some answers end
    return model


def mixed():
    """A T5 target whose offset and anchor are Llamas: rows are rows."""
    return offset_ensemble(tiny_t5(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=12))


def all_t5():
    return offset_ensemble(tiny_t5(0), tiny_t5(1, hidden=8), tiny_t5(2, hidden=12, num_decoder_layers=1))


EXAMPLES = random_examples(11, seed=4)
PROMPTS = [e.prompt for e in random_examples(8, seed=3)]


def by_hand(model, example):
    """Rows of one answer, from the model's own forward pass over the two texts."""
    asked, said = torch.tensor([[*example.prompt, 1]]), torch.tensor([[0, *example.answer[:-1]]])
    return model(input_ids=asked, decoder_input_ids=said).logits[0]


@torch.no_grad()
@pytest.mark.parametrize("settings", [{}, {"tie_word_embeddings": False}, {"num_decoder_layers": 3}])
def test_rows_are_those_that_predict_the_answer_tokens_and_eos(settings):
    model = tiny_t5(0, **settings)
    assert model.config.scale_decoder_outputs is (settings.get("tie_word_embeddings") is None)
    batch = collate(EXAMPLES, pad_id=0)
    rows = llama.answer_rows(model, batch)
    torch.testing.assert_close(rows, torch.cat([by_hand(model, e) for e in EXAMPLES]), rtol=1e-4, atol=1e-4)
    assert batch.labels.tolist() == [t for e in EXAMPLES for t in e.answer]
    assert torch.equal(rows, llama.answer_rows(model, collate(EXAMPLES, pad_id=17)))


@pytest.mark.parametrize("make", [all_t5, mixed])
def test_padding_batch_order_and_batch_size_change_no_score(make):
    ensemble = make()
    whole = score(ensemble, EXAMPLES, [0.5, 1.0], {}, pad_id=0, batch_size=64)
    for batch_size in (1, 3):
        parts = score(ensemble, Examples(reversed(EXAMPLES)), [0.5, 1.0], {}, pad_id=0, batch_size=batch_size)
        for alpha in (0.5, 1.0):
            np.testing.assert_allclose(parts[alpha].nll[::-1], whole[alpha].nll, rtol=1e-5)
            np.testing.assert_array_equal(parts[alpha].correct[::-1], whole[alpha].correct)


@torch.no_grad()
def uncached(ensemble, prompt, alpha, steps):
    """Every token from models that read everything again."""
    said = []
    while len(said) < steps:
        rows = {}
        for m in ensemble.members:
            if m.kind.encodes:
                given = {"input_ids": torch.tensor([[*prompt, 1]]), "decoder_input_ids": torch.tensor([[0, *said]])}
            else:
                given = {"input_ids": torch.tensor([[*prompt, *said]])}
            rows[m.name] = m.model(**given).logits[0, -1:].float()
        token = ensemble.logits(rows, alpha).argmax(-1).item()
        if token == 1:
            break
        said.append(token)
    return said


@pytest.mark.parametrize("make", [pytest.param(all_t5, marks=pytest.mark.nightly), mixed])
@pytest.mark.parametrize("alpha", [1.0, *(pytest.param(a, marks=pytest.mark.nightly) for a in (0.0, 2.0))])
def test_cached_batched_decoding_equals_the_uncached_argmax_token_for_token(make, alpha):
    ensemble = make()
    expected = [uncached(ensemble, p, alpha, 8) for p in PROMPTS]
    assert alpha != 1.0 or len({len(a) for a in expected}) > 1  # rows leave the batch at different times
    for batch_size in (1, 5):
        assert greedy(ensemble, PROMPTS, alpha, Decoding(0, 1, 8, batch_size)) == expected


def test_a_single_model_decodes_as_transformers_generate_does():
    ensemble = direct(tiny_t5(3), tiny_t5(0))
    answers = greedy(ensemble, PROMPTS, 1.0, Decoding(0, 1, 10, 4))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = ensemble.trained.model.generate(torch.tensor([[*prompt, 1]]), max_new_tokens=10, do_sample=False)[0]
        assert answer == [t for t in ids.tolist()[1:] if t != 1]


def test_what_drafts_are_for_takes_the_plain_path_and_what_reads_whole_texts_refuses_an_encoder(tmp_path):
    ensemble = all_t5()
    with pytest.raises(ConfigError, match="has an encoder"):
        causal_lm(ensemble, 1.0)
    asked = ensemble, PROMPTS, 1.0, Decoding(0, 1, 8, 5)
    assert greedy_from_drafts(*asked, Store(tmp_path), 1.0) == greedy(*asked)
    assert greedy_drafted(*asked, ensemble.trained, 3) == greedy(*asked)


def test_answers_to_one_prompt_are_read_whole_and_are_the_same():
    prompt = tuple(range(2, 30))
    examples = Examples(type(EXAMPLES[0])(f"e{i}", prompt, e.answer) for i, e in enumerate(EXAMPLES))
    assert pays(examples)
    model = tiny_t5(0)
    with torch.no_grad():
        for indices in by_prompt(examples, 4):
            chosen = [examples[i] for i in indices]
            torch.testing.assert_close(shared_rows(model, chosen, 0), llama.answer_rows(model, collate(chosen, 0)))


def test_stored_rows_are_the_recomputed_rows(tmp_path):
    member = Member("target", tiny_t5(0), "print", 1.0, 0.0, False)
    for kind in ("fp32", "hidden"):
        rows = stored(Store(tmp_path), member, EXAMPLES, pad_id=0, batch_size=4, kind=kind)
        live = LiveRows(member, EXAMPLES, 0)
        for indices in ([0], [8, 2, 5], list(range(11))):
            with torch.no_grad():
                fresh = llama.answer_rows(member.model, collate([EXAMPLES[i] for i in indices], 0))
            for found in (rows, live):
                torch.testing.assert_close(found.take(indices), fresh, rtol=1e-5, atol=1e-5)
                torch.testing.assert_close(found.reader(indices)(slice(0, 2)), fresh[:2], rtol=1e-5, atol=1e-5)


def test_an_offset_that_is_the_anchor_leaves_the_target_bit_for_bit():
    ensemble = offset_ensemble(tiny_t5(0), tiny_t5(1, hidden=8), tiny_t5(1, hidden=8))
    scores = score(ensemble, EXAMPLES, [0.0, 2.0], {}, pad_id=0, batch_size=4)
    np.testing.assert_array_equal(scores[2.0].logp, scores[0.0].logp)


def test_hidden_states_are_those_of_the_decoder():
    model, batch = tiny_t5(0, num_decoder_layers=3), collate(EXAMPLES[:1], 0)
    example = EXAMPLES[0]
    with torch.no_grad():
        out = model(
            input_ids=torch.tensor([[*example.prompt, 1]]), decoder_input_ids=torch.tensor([[0, *example.answer[:-1]]]),
            output_hidden_states=True,
        )  # fmt: skip
        last, hidden = llama.states_and_hidden(model, batch, 1)
    torch.testing.assert_close(hidden, out.decoder_hidden_states[2][0])
    torch.testing.assert_close(llama.head(model, last), out.logits[0])
    with pytest.raises(ValueError, match="must be a layer of this model but its last, 0 to 1"):
        llama.states_and_hidden(model, batch, 2)


def test_it_is_loaded_by_what_its_config_says_and_its_head_is_checked(tmp_path):
    for name, settings in (("v1", {}), ("v1_1", {"tie_word_embeddings": False})):
        model = tiny_t5(0, **settings)
        model.save_pretrained(tmp_path / name)
        again = hub.check_head(llama.load(tmp_path / name), "x")
        assert hub.has_encoder(tmp_path / name) and type(again) is T5ForConditionalGeneration
        batch = collate(EXAMPLES, 0)
        with torch.no_grad():
            assert torch.equal(llama.answer_rows(again, batch), llama.answer_rows(model, batch))
    tiny_llama(0).save_pretrained(tmp_path / "llama")
    assert not hub.has_encoder(tmp_path / "llama")

    def capped(*args, plain=model.forward, **kwargs):
        out = plain(*args, **kwargs)
        out.logits = out.logits.tanh()
        return out

    model.forward = capped
    with pytest.raises(ConfigError, match="does more to its logits"):
        hub.check_head(model, "x")


def test_from_scratch_the_same_seed_gives_the_same_weights():
    cfg = ModelConfig(architecture="t5", hidden_size=16, heads=2, intermediate_size=32, initializer_range=1.0)
    one, same, other = (seq2seq.fresh(cfg, 40, 0, 1, seed) for seed in (3, 3, 4))
    assert llama.fingerprint(one) == llama.fingerprint(same) != llama.fingerprint(other)
    assert llama.blocks(one) == 2 and one.config.dropout_rate == 0
    assert one.get_output_embeddings().weight.data_ptr() == one.get_input_embeddings().weight.data_ptr()
