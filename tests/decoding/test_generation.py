"""Decoding with one KV cache per member, against an uncached argmax that recomputes everything; and sampling."""

import pytest
import torch
from support.helpers import direct, offset_ensemble, random_examples, same_pair, tiny_llama

from unlearn.decoding.generation import Decoding, greedy, sample
from unlearn.models import seen


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


def made():
    return offset_ensemble(tiny_llama(0), tiny_llama(1, hidden=8), tiny_llama(2, hidden=12))


ensemble = pytest.fixture(made, scope="module", name="ensemble")


PROMPTS = [e.prompt for e in random_examples(12, seed=3)]


@pytest.mark.parametrize("alpha", [1.0, *(pytest.param(a, marks=pytest.mark.nightly) for a in (0.0, 0.5, 2.0))])
def test_cached_batched_decoding_equals_the_uncached_argmax_token_for_token(ensemble, alpha):
    said = [uncached(ensemble, p, alpha, 12) for p in PROMPTS]
    for batch_size in (1, 5, 12):
        assert greedy(ensemble, PROMPTS, alpha, Decoding(0, 1, 12, batch_size)) == said
    lengths = {len(a) for a in said}
    assert alpha != 1 or (min(lengths) < 12 and len(lengths) > 2)  # else rows would leave batches at one time


def test_a_direct_model_decodes_as_transformers_generate_does():
    ensemble = direct(tiny_llama(3), tiny_llama(0))
    model = ensemble.trained.model
    answers = greedy(ensemble, PROMPTS, 1.0, Decoding(0, 1, 10, 4))
    for prompt, answer in zip(PROMPTS, answers, strict=True):
        ids = model.generate(torch.tensor([prompt]), max_new_tokens=10, do_sample=False)[0, len(prompt) :].tolist()
        assert answer == [t for t in ids if t != 1]


def test_a_model_that_is_target_and_anchor_is_run_once_and_at_alpha_one_not_at_all():
    ensemble, runs = same_pair(tiny_llama(0), tiny_llama(5)), []
    ensemble.members[0].model.base_model.register_forward_pre_hook(lambda *_: runs.append(1))
    for alpha, each in ((0.0, 1), (0.5, 1), (1.0, 0), (2.0, 1)):
        said = [uncached(ensemble, p, alpha, 6) for p in PROMPTS[:4]]
        runs.clear()
        assert greedy(ensemble, PROMPTS[:4], alpha, Decoding(0, 1, 6, 4)) == said
        assert each * max(map(len, said)) <= len(runs) <= each * 6


def sampled(ensemble, prompts, batch_size, seed=0, temperature=1.0, steps=12):
    return sample(ensemble, prompts, 1.0, Decoding(0, 1, steps, batch_size), temperature, seed)


def test_neither_batch_size_nor_the_other_prompts_change_what_is_drawn(ensemble):
    found = sampled(ensemble, PROMPTS, 12)
    for batch_size in (1, 5):
        assert sampled(ensemble, PROMPTS, batch_size) == found
    others = [e.prompt for e in random_examples(12, seed=8)]
    mixed = [p if i % 3 else o for i, (p, o) in enumerate(zip(PROMPTS, others, strict=True))]
    again = sampled(ensemble, mixed, 5)
    assert [a for i, a in enumerate(again) if i % 3] == [a for i, a in enumerate(found) if i % 3]
    assert sampled(ensemble, PROMPTS[:4], 12) == found[:4]


def test_a_prompt_is_read_once_for_all_that_is_drawn(ensemble, monkeypatch):
    found, read = sampled(ensemble, PROMPTS[:3] * 4, 12), []
    monkeypatch.setattr(seen, "WORTH", 0)
    base = ensemble.members[0].model.base_model
    hook = base.register_forward_pre_hook(lambda m, a, kwargs: read.append(kwargs["input_ids"].shape), with_kwargs=True)
    with seen.remembered(1.0):
        assert sampled(ensemble, PROMPTS[:3] * 4, 12) == found
    hook.remove()
    assert all(width == 1 for texts, width in read if texts > 3)


def test_another_seed_or_place_draws_anew_and_the_global_stream_of_random_numbers_is_left_alone(ensemble):
    assert sampled(ensemble, PROMPTS, 12) != sampled(ensemble, PROMPTS, 12, seed=1)
    assert len({tuple(a) for a in sampled(ensemble, [PROMPTS[0]] * 6, 6, temperature=3.0)}) > 1
    torch.manual_seed(3)
    expected = torch.rand(1)
    torch.manual_seed(3)
    sampled(ensemble, PROMPTS[:2], 2)
    assert torch.equal(torch.rand(1), expected)
    assert sampled(ensemble, PROMPTS, 5, temperature=1e-6) == greedy(ensemble, PROMPTS, 1.0, Decoding(0, 1, 12, 5))


@pytest.mark.parametrize("temperature", [1.0, 4.0])
def test_first_tokens_come_as_often_as_the_softmax_says(ensemble, temperature):
    n, prompt = 4000, PROMPTS[3]
    drawn = torch.tensor([a[0] if a else 1 for a in sampled(ensemble, [prompt] * n, 500, 0, temperature, steps=1)])
    with torch.no_grad():
        rows = {m.name: m.model(input_ids=torch.tensor([prompt])).logits[0, -1:].float() for m in ensemble.members}
    p = (ensemble.logits(rows, 1.0) / temperature).softmax(-1)[0]
    share = torch.bincount(drawn, minlength=40) / n
    assert ((share - p).abs() <= 4 * (p * (1 - p) / n).sqrt() + 1 / n).all()
    assert p.max() < 0.95  # else nearly any rule of choosing would pass


def test_an_answer_ends_at_every_token_that_the_model_says_ends_one():
    """Chat models have several ends of sequence; the tokenizer knows one of them."""
    ensemble = made()
    before = greedy(ensemble, PROMPTS, 1.0, Decoding(0, 1, 12, 4))
    other = next(a[3] for a in before if len(a) > 3)
    ensemble.members[0].model.generation_config.eos_token_id = [1, other]
    after = greedy(ensemble, PROMPTS, 1.0, Decoding(0, 1, 12, 4))
    assert after != before
    assert after == [a[: a.index(other)] if other in a else a for a in before]
