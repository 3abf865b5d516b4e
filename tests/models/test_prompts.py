"""Answers that share a prompt are scored from one pass over it, and their rows are those of the whole texts."""

import numpy as np
import pytest
import torch
from support.helpers import offset_ensemble, tiny_llama
from support.pretrained import KINDS
from transformers import AutoModelForCausalLM

from unlearn.data.encoding import Example, Examples, by_length, collate
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.frozen import stored
from unlearn.evaluation.scoring import score
from unlearn.models import prompts
from unlearn.models.llama import answer_rows
from unlearn.models.prompts import by_prompt, pays, shared_rows
from unlearn.store.entries import Store

ARCHITECTURES = ("llama", "qwen2", "mistral", "phi", "gpt2", "gpt_neox")


def questions(count: int = 6, short: int = 16, long: int = 24, seed: int = 0) -> Examples:
    """Prompts of different lengths with 2 to 5 answers each, one of them EOS alone; questions are interleaved."""
    generator = torch.Generator().manual_seed(seed)

    def tokens(low: int, high: int) -> tuple[int, ...]:
        n = int(torch.randint(low, high, (1,), generator=generator))
        return tuple(torch.randint(2, 40, (n,), generator=generator).tolist())

    asked = [tokens(short, long) for _ in range(count)]
    return Examples(
        Example(f"{q}/{k}", prompt, (*(tokens(1, 9) if k != 1 else ()), 1))
        for k in range(5)
        for q, prompt in enumerate(asked)
        if k < 2 + q % 4
    )


def nll(rows: torch.Tensor, examples) -> np.ndarray:
    batch = collate(examples, 0)
    each = torch.nn.functional.cross_entropy(rows, batch.labels, reduction="none").double()
    return torch.zeros(len(examples), dtype=torch.double).index_add(0, batch.owner, each).numpy()


@torch.no_grad()
@pytest.mark.parametrize("name", ARCHITECTURES)
def test_shared_rows_are_those_of_the_whole_texts_in_any_architecture(name):
    torch.manual_seed(3)
    model, examples = AutoModelForCausalLM.from_config(KINDS[name](40)).eval(), questions()
    assert pays(examples)
    for precision, tolerance in ((torch.float32, 1e-6), (torch.float64, 1e-7)):  # rows are fp32 in either
        model = model.to(precision)
        one_by_one = torch.cat([answer_rows(model, collate([e], 0)) for e in examples])
        shared = shared_rows(model, examples, 0)
        torch.testing.assert_close(shared, one_by_one, rtol=1e-5, atol=2e-5)
        np.testing.assert_allclose(nll(shared, examples), nll(one_by_one, examples), rtol=tolerance)


def test_each_prompt_is_read_once_per_batch(monkeypatch):
    model, examples = tiny_llama(0), questions()
    read = []
    model.base_model.register_forward_pre_hook(
        lambda module, args, kwargs: read.append(tuple(kwargs["input_ids"].shape)), with_kwargs=True
    )
    shared_rows(model, examples, 0)
    longest = max(len(e.answer) for e in examples) - 1
    assert read == [(6, max(len(e.prompt) for e in examples)), (len(examples), longest)]
    read.clear()
    shared_rows(model, [e for e in examples if e.answer == (1,)] * 3, 0)  # EOS alone: the prompt says it all
    assert [shape[0] for shape in read] == [6]


def test_batches_keep_to_their_limits_hold_everything_once_and_families_together():
    examples = questions(20)
    for batch_size, most_rows in ((64, None), (7, None), (64, 30), (2, 5)):
        found = by_prompt(examples, batch_size, most_rows)
        assert sorted(i for b in found for i in b) == list(range(len(examples)))
        assert all(len(b) <= batch_size for b in found)
        rows = [sum(len(examples[i].answer) for i in b) for b in found]
        assert all(most_rows is None or r <= most_rows or len(b) == 1 for r, b in zip(rows, found, strict=True))
    for prompt in {e.prompt for e in examples}:  # a family of at most five
        assert sum(any(examples[i].prompt == prompt for i in b) for b in by_prompt(examples, 7)) == 1


def test_short_prompts_and_single_answers_are_read_whole():
    assert not pays(questions(short=3, long=8))
    single = Examples(e for e in questions() if e.id.endswith("/0"))
    assert not pays(single)
    assert by_prompt(single, 4) == by_length(single, 4)
    long_answers = Examples(Example(f"{k}", tuple(range(2, 22)), tuple([5] * 80 + [1])) for k in range(5))
    assert not pays(long_answers)  # a fifth of the positions


def test_scores_and_stored_rows_do_not_depend_on_sharing(tmp_path, monkeypatch):
    ensemble, examples = offset_ensemble(tiny_llama(0), tiny_llama(1, 8), tiny_llama(2, 8)), questions()
    member = Member("target", ensemble.members[0].model, "print", 1.0, 0.0, False)
    alphas = [0.0, 0.5, 2.0]
    shared = score(ensemble, examples, alphas, {}, 0, 7)
    rows = stored(Store(tmp_path / "a"), member, examples, 0).take(range(len(examples)))
    monkeypatch.setattr(prompts, "pays", lambda examples: False)
    whole = score(ensemble, examples, alphas, {}, 0, 7)
    for alpha in alphas:
        np.testing.assert_allclose(shared[alpha].nll, whole[alpha].nll, rtol=1e-6)
        np.testing.assert_array_equal(shared[alpha].right, whole[alpha].right)
    apart = stored(Store(tmp_path / "b"), member, examples, 0).take(range(len(examples)))
    torch.testing.assert_close(rows, apart, rtol=1e-5, atol=1e-5)
    assert not torch.equal(rows, apart)  # or nothing was shared above


def test_hidden_padding_tokens_are_read_in_whole_texts(monkeypatch):
    """OpenUnlearning's accident hides tokens in the middle of a text: a cache would not have them hidden alike."""
    ensemble, examples = offset_ensemble(tiny_llama(0), tiny_llama(1, 8), tiny_llama(2, 8)), questions()
    pad = examples[0].prompt[3]  # a token that occurs in texts
    whole = score(ensemble, examples, [1.0], {}, pad, 5, mask_pad=True)[1.0]
    monkeypatch.setattr(prompts, "pays", lambda examples: False)
    again = score(ensemble, examples, [1.0], {}, pad, 5, mask_pad=True)[1.0]
    np.testing.assert_array_equal(whole.logp, again.logp)
