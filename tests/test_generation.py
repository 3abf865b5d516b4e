"""Greedy decoding with one KV cache per member, against an uncached argmax that recomputes everything."""

import pytest
import torch
from helpers import offset_ensemble, random_examples, tiny_llama

from unlearn.generation import greedy


@torch.no_grad()
def uncached(ensemble, prompt, alpha, steps):
    ids = list(prompt)
    for _ in range(steps):
        rows = {m.name: m.model(input_ids=torch.tensor([ids])).logits[0, -1:].float() for m in ensemble.members}
        token = ensemble.logits(rows, alpha).argmax(-1).item()
        if token == 1:
            break
        ids.append(token)
    return ids[len(prompt) :]


@pytest.fixture(scope="module")
def ensemble():
    return offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=12))


PROMPTS = [e.prompt for e in random_examples(12, seed=3)]


@pytest.mark.parametrize("alpha", [0.0, 0.5, 1.0, 2.0])
@pytest.mark.parametrize("batch_size", [1, 5, 12])
def test_cached_batched_decoding_equals_the_uncached_argmax_token_for_token(ensemble, alpha, batch_size):
    answers = greedy(ensemble, PROMPTS, alpha, 0, 1, max_new_tokens=12, batch_size=batch_size)
    assert answers == [uncached(ensemble, p, alpha, 12) for p in PROMPTS]


def test_some_answers_end_before_the_limit_and_some_do_not(ensemble):
    """The test above means something only if rows are dropped from batches at different times."""
    lengths = {len(a) for a in greedy(ensemble, PROMPTS, 1.0, 0, 1, 12, 12)}
    assert min(lengths) < 12 and len(lengths) > 2


def test_a_direct_model_decodes_as_transformers_generate_does():
    from test_ensemble import direct

    ensemble = direct(tiny_llama(3), tiny_llama(0))
    model = ensemble.trained.model
    answers = greedy(ensemble, PROMPTS, 1.0, 0, 1, 10, 4)
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)[0, len(prompt) :].tolist()
        assert answer == [t for t in ids if t != 1]
