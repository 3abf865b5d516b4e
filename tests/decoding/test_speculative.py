"""Drafting by a small member: answers are those of plain greedy decoding."""

import pytest
import torch
from support.helpers import offset_ensemble, tiny_llama
from test_drafts import PROMPTS, RULES, near_ensemble, plain, positions
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from unlearn.decoding.drafts import greedy_drafted
from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.ensemble import Ensemble

STEPS = 12


def drafted(ensemble, alpha, gamma, batch_size=5, steps=STEPS, drafter=1):
    return greedy_drafted(ensemble, PROMPTS, alpha, Decoding(0, 1, steps, batch_size), ensemble.members[drafter], gamma)


@pytest.mark.parametrize("rule", RULES)
@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize(("gamma", "batch_size"), [(1, 12), (3, 5)])
def test_greedy_answers_are_those_of_plain_decoding_token_for_token(rule, alpha, gamma, batch_size):
    ensemble = Ensemble(near_ensemble(0.1).members, RULES[rule])
    for drafter in (0, 1):  # the target drafts well, the offset badly
        assert drafted(ensemble, alpha, gamma, batch_size, drafter=drafter) == plain(ensemble, alpha, batch_size)


@pytest.mark.parametrize(("gamma", "batch_size"), [(3, 1), (20, 12)])
def test_so_they_are_one_prompt_at_a_time_and_when_drafts_are_longer_than_answers(gamma, batch_size):
    ensemble = near_ensemble(0.1)
    assert drafted(ensemble, 1.0, gamma, batch_size) == plain(ensemble, 1.0, batch_size)


@pytest.mark.parametrize("steps", [1, 4])
def test_answers_are_cut_at_the_limit(steps):
    ensemble = near_ensemble(0.1)
    assert drafted(ensemble, 1.0, 3, steps=steps) == plain(ensemble, 1.0, steps=steps)


def test_prompts_of_one_token_have_nothing_to_read_before():
    ensemble, prompts = near_ensemble(0.1), [(5,), (9,), (9, 3)]
    for few in (prompts, prompts[:2]):
        said = greedy_drafted(ensemble, few, 1.0, Decoding(0, 1, STEPS, 5), ensemble.members[1], 3)
        assert said == greedy(ensemble, few, 1.0, Decoding(0, 1, STEPS, 5))


KINDS = {
    "window": Gemma2Config(vocab_size=40, hidden_size=16, num_hidden_layers=2, num_attention_heads=2,
                           num_key_value_heads=1, intermediate_size=32, head_dim=8, sliding_window=4,
                           initializer_range=1.0, max_position_embeddings=64, pad_token_id=0, eos_token_id=1),
    "learned positions": GPT2Config(vocab_size=40, n_positions=8 + STEPS, n_embd=16, n_layer=2, n_head=2,
                                    initializer_range=0.5, eos_token_id=1, bos_token_id=1),
}  # fmt: skip


@pytest.mark.parametrize("kind", KINDS)
@pytest.mark.parametrize("batch_size", [1, 12])
def test_models_that_see_a_window_and_models_whose_positions_end(kind, batch_size):
    torch.manual_seed(0)
    target = AutoModelForCausalLM.from_config(KINDS[kind]).eval()
    ensemble = offset_ensemble(target, tiny_llama(1, hidden=8), tiny_llama(2, hidden=8))
    said = plain(ensemble, 0.2, batch_size)
    assert len({t for a in said for t in a}) > 5
    for drafter in (0, 1):
        assert drafted(ensemble, 0.2, 6, batch_size, drafter=drafter) == said


def test_a_good_drafter_lets_the_target_run_less_often():
    ensemble = near_ensemble(0.005)
    with positions(ensemble.members[2].model) as few:
        drafted(ensemble, 1.0, 5, 12, drafter=0)
    with positions(ensemble.members[2].model) as many:
        plain(ensemble, 1.0, 12)
    assert 2 * len(few) < len(many)


def test_no_token_drafted_is_refused():
    with pytest.raises(ValueError, match="gamma=0: must be at least 1"):
        drafted(near_ensemble(), 1.0, 0)
