"""Texts of the unlearned model in transformers: by ``unlearn.generate``'s own decoding, by hand, by brute force."""

import itertools
import os
from pathlib import Path

import pytest
import torch
from support.engines import adapter, offset, tiny
from transformers import AutoModelForCausalLM, AutoTokenizer, DynamicCache, pipeline
from transformers.modeling_utils import PreTrainedModel

from unlearn.decoding.generation import Decoding, greedy
from unlearn.ensemble.engines.modeling_unlearned import UnlearnedForCausalLM
from unlearn.ensemble.ensemble import Ensemble, Member

MODELS = os.environ.get("UNLEARN_REAL_MODELS")  # the folder with smollm2
PROMPTS = [torch.randint(2, 40, (1 + n % 7,), generator=torch.Generator().manual_seed(n)).tolist() for n in range(50)]
MOST = 8  # new tokens
STRAIGHT = {"do_sample": False, "max_new_tokens": MOST}


def ensemble_of(target: Path, base: Path, whole: PreTrainedModel) -> Ensemble:
    """What a run would have in memory."""
    target, base = (AutoModelForCausalLM.from_pretrained(f) for f in (target, base))
    return Ensemble((Member("target", target, "t"), Member("offset", whole, "", 0.0, 1.0, True),
                     Member("anchor", base, "a", 0.0, -1.0)))  # fmt: skip


def padded(prompts: list[list[int]], pad: int = 0) -> dict[str, torch.Tensor]:
    """On the left."""
    width = max(map(len, prompts))
    ids = torch.tensor([[pad] * (width - len(p)) + p for p in prompts])
    return {"input_ids": ids, "attention_mask": torch.tensor([[0] * (width - len(p)) + [1] * len(p) for p in prompts])}


def answers(
    model: UnlearnedForCausalLM, prompts: list[list[int]], size: int, ends: list[int], **how
) -> list[list[int]]:
    """Greedy answers, so many prompts at a time."""
    found = []
    for start in range(0, len(prompts), size):
        asked = padded(prompts[start : start + size])
        said = model.generate(**asked, **STRAIGHT | how)[:, asked["input_ids"].shape[1] :].tolist()
        found += [list(itertools.takewhile(lambda t: t not in ends, row)) for row in said]
    return found


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Export, target and base of another size; the offset is an adapter."""
    root = tmp_path_factory.mktemp("generate")
    target, base = tiny(root / "target", 0, 3, 4), tiny(root / "base", 1, 1, 2)
    return offset(root / "export", target, base, adapter(root / "learnt", base, 2)), target, base


@pytest.fixture(scope="module")
def model(folders):
    folder, target, base = folders
    return AutoModelForCausalLM.from_pretrained(folder, target=target, base=base, alpha=0.7)


@pytest.mark.parametrize("alpha", [0.5, 1.0, 1.7])
def test_greedy_answers_to_50_prompts_are_those_of_unlearn_generate(folders, alpha):
    folder, target, base = folders
    model = AutoModelForCausalLM.from_pretrained(folder, target=target, base=base, alpha=alpha)
    ensemble = ensemble_of(target, base, model.members[1])
    expected = greedy(ensemble, PROMPTS, alpha, Decoding(0, 1, MOST, 16))
    assert len({len(a) for a in expected}) > 1  # some end before the others
    for size in (9, 50):
        assert answers(model, PROMPTS, size, [1]) == expected


@pytest.mark.parametrize(
    "how",
    [{"cache_implementation": "static"}, {"use_cache": False}, {"past_key_values": DynamicCache()},
     {"prompt_lookup_num_tokens": 2}, {"assistant_model": "base"}],
    ids=str,
)  # fmt: skip
def test_no_way_of_computing_changes_a_greedy_answer(model, folders, how):
    if "assistant_model" in how:
        how = {"assistant_model": AutoModelForCausalLM.from_pretrained(folders[2])}
    one = "assistant_model" in how or "prompt_lookup_num_tokens" in how  # which transformers does for single texts
    prompts = PROMPTS[5:6] if one else PROMPTS[:6]
    assert answers(model, prompts, 6, [1], **how) == answers(model, prompts, 6, [1])


@pytest.mark.parametrize("cache", [None, "static"])
def test_beams_find_the_likeliest_of_all_texts(tmp_path, cache):
    target, base = (tiny(tmp_path / n, seed, layers, width=6) for n, seed, layers in (("t", 3, 2), ("b", 4, 1)))
    folder = offset(tmp_path / "e", target, base, tiny(tmp_path / "o", 5, 1, width=6), vocab_size=6)
    model = AutoModelForCausalLM.from_pretrained(folder, target=target, base=base)
    asked = padded([[2, 3, 4], [5]])
    found = model.generate(
        **asked, num_beams=36, num_return_sequences=4, max_new_tokens=3, do_sample=False, eos_token_id=None,
        cache_implementation=cache, return_dict_in_generate=True, output_scores=True,
    )  # fmt: skip
    every = torch.tensor(list(itertools.product(range(6), repeat=3)))
    for row, prompt in enumerate([[2, 3, 4], [5]]):
        ids = torch.cat([torch.tensor([prompt]).expand(len(every), -1), every], 1)
        logp = model(ids, logits_to_keep=4).logits[:, :-1].log_softmax(-1)
        total = logp.gather(-1, every[..., None]).sum((1, 2))
        best = total.topk(4)
        assert torch.equal(found.sequences[4 * row : 4 * row + 4, 3:], every[best.indices])
        torch.testing.assert_close(found.sequences_scores[4 * row : 4 * row + 4], best.values / 3)


def test_draws_are_from_the_softmax_of_the_sum(model):
    prompt, n = padded([[5, 9, 14]]), 4000
    torch.manual_seed(0)
    drawn = model.generate(**prompt, do_sample=True, temperature=1.5, top_k=0, max_new_tokens=1, num_return_sequences=n)
    expected = (model(**prompt).logits[0, -1] / 1.5).softmax(-1)
    share = drawn[:, -1].bincount(minlength=40) / n
    assert ((share - expected).abs() <= 4 * (expected * (1 - expected) / n).sqrt() + 1 / n).all()


def test_members_of_several_families_one_with_a_window_share_one_cache(made, tmp_path):
    target, base = made("mistral", 0), made("gpt2", 1)
    width = AutoTokenizer.from_pretrained(target).vocab_size
    folder = offset(tmp_path / "e", target, base, made("gpt2", 2), vocab_size=width)
    model = AutoModelForCausalLM.from_pretrained(folder, target=target, base=base)
    asked = {"max_new_tokens": 12, "eos_token_id": None}  # past the window of 8
    plain = answers(model, PROMPTS[:5], 5, [], use_cache=False, **asked)
    for how in ({}, {"cache_implementation": "static"}):
        assert answers(model, PROMPTS[:5], 5, [], **asked, **how) == plain


def test_the_pipeline_of_transformers_takes_the_folder(made, tmp_path):
    target, base = made("llama", 0), made("tied", 1)
    tokenizer = AutoTokenizer.from_pretrained(target)
    folder = offset(tmp_path / "e", target, base, made("tied", 2), vocab_size=tokenizer.vocab_size)
    tokenizer.save_pretrained(folder)
    say = pipeline("text-generation", model=str(folder), model_kwargs={"target": target, "base": base}, device="cpu")
    assert isinstance(say.model, UnlearnedForCausalLM)
    text = tokenizer.decode([5, 9, 14])
    said = say(text, max_new_tokens=5, return_full_text=False)[0]["generated_text"]  # greedy: the export says so
    asked = tokenizer(text, return_tensors="pt")
    ids = say.model.generate(**asked, max_new_tokens=5, do_sample=False)[0, asked["input_ids"].shape[1] :]
    assert said.split() == tokenizer.decode(ids, skip_special_tokens=True).split() and len(ids) == 5


@pytest.mark.nightly
@pytest.mark.skipif(MODELS is None, reason="UNLEARN_REAL_MODELS names no folder with smollm2")
def test_real_answers_to_50_prompts_are_those_of_unlearn_generate(tmp_path):
    target = Path(MODELS) / "smollm2"
    learnt = adapter(tmp_path / "learnt", target, 0, 0.04)
    width = AutoModelForCausalLM.from_pretrained(target).config.vocab_size
    folder = offset(tmp_path / "export", target, target, learnt, vocab_size=width)
    tokenizer = AutoTokenizer.from_pretrained(target, padding_side="left")
    asked = [f"Question: What is {a} times {b}?\nAnswer:" for a in range(3, 8) for b in range(11, 21)]
    prompts = tokenizer(asked)["input_ids"]
    ends, said = [tokenizer.eos_token_id], []
    for alpha in (0.5, 1.0, 1.5):
        model = AutoModelForCausalLM.from_pretrained(folder, target=target, alpha=alpha)
        ensemble = ensemble_of(target, target, model.members[-1])
        said.append(greedy(ensemble, prompts, alpha, Decoding(tokenizer.pad_token_id, ends[0], MOST, 25)))
        for size in (7, 50):
            how = {"eos_token_id": ends, "pad_token_id": tokenizer.pad_token_id}
            assert answers(model, prompts, size, ends, **how) == said[-1]
    assert said[0] != said[1] != said[2]
