"""Drafting by a small member: greedy answers those of plain decoding, samples from the same distribution."""

import itertools

import pytest
import torch
from support.helpers import offset_ensemble, tiny_llama
from test_drafts import PROMPTS, RULES, near_ensemble, plain, positions
from transformers import AutoModelForCausalLM, Gemma2Config, GPT2Config

from unlearn.decoding.generation import greedy
from unlearn.decoding.speculative import accept, greedy_drafted, sample_drafted
from unlearn.ensemble.ensemble import Ensemble

STEPS = 12


def drafted(ensemble, alpha, gamma, batch_size=5, steps=STEPS, drafter=1):
    return greedy_drafted(ensemble, PROMPTS, alpha, 0, 1, steps, batch_size, ensemble.members[drafter], gamma)


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
        said = greedy_drafted(ensemble, few, 1.0, 0, 1, STEPS, 5, ensemble.members[1], 3)
        assert said == greedy(ensemble, few, 1.0, 0, 1, STEPS, 5)


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


# --- sampling -----------------------------------------------------------------------------------------------------


def test_what_is_accepted_and_drawn_again_is_distributed_as_it_should_be():
    """Every case of two drafted tokens over three words, weighed by its probability."""
    random = torch.Generator().manual_seed(0)
    words, p1, q1 = range(3), *(torch.rand(3, generator=random).double().softmax(-1) for _ in range(2))
    p2, q2 = (torch.rand(3, 3, generator=random).double().mul(4).softmax(-1) for _ in range(2))
    p3 = torch.rand(3, 3, 3, generator=random).double().mul(4).softmax(-1)
    first, second, third = torch.zeros(3), torch.zeros(3, 3), torch.zeros(3, 3, 3)
    n = 400
    grid = (torch.arange(n) + 0.5).double() / n
    for x, y in itertools.product(words, words):
        p = torch.stack([p1, p2[x], p3[x, y]]).expand(n * n, 3, 3)
        q, drafted = torch.stack([q1, q2[x]]).expand(n * n, 2, 3), torch.tensor([[x, y]]).expand(n * n, 2)
        right, then = accept(p, q, drafted, torch.cartesian_prod(grid, grid))
        weight = q1[x] * q2[x, y] / n**2
        first += weight * then[right == 0].sum(0)
        first[x] += weight * (right > 0).sum()
        second[x] += weight * then[right == 1].sum(0)
        second[x, y] += weight * (right == 2).sum()
        third[x, y] += weight * then[right == 2].sum(0)
    torch.testing.assert_close(first, p1.float(), atol=5e-3, rtol=0)
    seen = torch.stack([torch.minimum(p1, q1)[x] for x in words])[:, None]  # that the second is decided in this round
    torch.testing.assert_close(second, (seen * p2).float(), atol=5e-3, rtol=0)
    both = seen * torch.minimum(p2, q2)
    torch.testing.assert_close(third, (both[..., None] * p3).float(), atol=5e-3, rtol=0)


def test_equal_distributions_accept_everything_and_disjoint_ones_nothing():
    p = torch.tensor([[[0.5, 0.5, 0.0], [0.0, 0.0, 1.0]]]).double()
    right, then = accept(p, p[:, :1], torch.tensor([[1]]), torch.tensor([[0.999]]))
    assert right.tolist() == [1] and then.tolist() == [[0.0, 0.0, 1.0]]
    right, then = accept(p, p[:, 1:], torch.tensor([[2]]), torch.tensor([[0.0]]))
    assert right.tolist() == [0] and then.tolist() == [[0.5, 0.5, 0.0]]


def small(seed):
    return tiny_llama(seed, hidden=8, vocabulary=5)


def exact(ensemble, prompt, alpha, temperature, steps):
    """Probability of every answer of at most ``steps`` tokens, by running the members on every beginning."""
    found, open_ = {}, {(): 1.0}
    for _ in range(steps):
        longer = {}
        for said, p in open_.items():
            ids = torch.tensor([[*prompt, *said]])
            rows = {m.name: m.model(input_ids=ids).logits[0, -1:] for m in ensemble.members}
            for t, q in enumerate((ensemble.logits(rows, alpha) / temperature).softmax(-1)[0].tolist()):
                if t == 1:
                    found[said] = found.get(said, 0.0) + p * q
                else:
                    longer[*said, t] = p * q
        open_ = longer
    return found | open_


@pytest.mark.parametrize(("gamma", "rule"), [(1, "sum"), (2, "sum"), (4, "sum"), (2, "plausible"), (2, "rank")])
@torch.no_grad()
def test_whole_answers_come_as_often_as_the_ensemble_says(gamma, rule):
    """χ² over all answers of up to three tokens from a vocabulary of five."""
    models = offset_ensemble(small(0), small(1), small(2)).members
    numbers = {"sum": RULES["sum"], "plausible": RULES["plausible"], "rank": RULES["rank"]}[rule]
    ensemble, prompt, n, temperature = Ensemble(models, numbers), (2, 3), 6000, 3.0
    drawn = sample_drafted(ensemble, [prompt] * n, 1.0, 0, 1, 3, 2000, temperature, 0, models[1], gamma)
    probability = exact(ensemble, prompt, 1.0, temperature, 3)
    assert abs(sum(probability.values()) - 1) < 1e-5 and max(probability.values()) < 0.5
    counts = {a: 0 for a in probability}
    for a in drawn:
        counts[tuple(a)] += 1
    often = [a for a, p in probability.items() if n * p >= 5]
    terms = [(counts[a] - n * probability[a]) ** 2 / (n * probability[a]) for a in often]
    rest, expected = n - sum(counts[a] for a in often), n * (1 - sum(probability[a] for a in often))
    terms.append((rest - expected) ** 2 / max(expected, 1.0))
    freedom = len(terms) - 1
    assert freedom > 10 and sum(terms) < freedom + 4 * (2 * freedom) ** 0.5


def test_neither_batch_size_nor_the_other_prompts_change_what_is_drawn():
    ensemble = near_ensemble(0.1)

    def sampled(prompts, batch_size):
        return sample_drafted(ensemble, prompts, 1.0, 0, 1, STEPS, batch_size, 1.0, 0, ensemble.members[0], 3)

    found = sampled(PROMPTS, 12)
    assert sampled(PROMPTS, 5) == found and sampled(PROMPTS[:4], 1) == found[:4]


def test_at_a_vanishing_temperature_the_likeliest_token_is_drawn():
    ensemble = near_ensemble(0.1)
    drawn = sample_drafted(ensemble, PROMPTS, 1.0, 0, 1, STEPS, 5, 1e-6, 0, ensemble.members[0], 3)
    assert drawn == plain(ensemble, 1.0)
