"""What is done to any model of transformers and comes out as it would of one, or is refused by name."""

import pytest
import torch
from support.engines import adapter, offset, tiny
from transformers import AutoModelForCausalLM

IDS = torch.tensor([[5, 9, 14, 22, 7]])


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Export, target and base of another size; the offset is an adapter."""
    root = tmp_path_factory.mktemp("others")
    target, base = tiny(root / "target", 0, 3, 4), tiny(root / "base", 1, 1, 2)
    return offset(root / "export", target, base, adapter(root / "learnt", base, 2)), target, base


def read(folders, **more):
    folder, target, base = folders
    return AutoModelForCausalLM.from_pretrained(folder, target=target, base=base, **more)


@torch.no_grad()
def test_a_loop_of_ones_own_that_hands_the_cache_on_says_what_generate_says(folders):
    model = read(folders)
    ids, cache, said = IDS, None, []
    for _ in range(6):
        logits, cache, *_ = model(ids, past_key_values=cache, return_dict=False)
        ids = logits[:, -1:].argmax(-1)
        said.append(ids.item())
    assert said == model.generate(IDS, max_new_tokens=6, do_sample=False, eos_token_id=None)[0, 5:].tolist()
    assert model(IDS, use_cache=False).past_key_values is None
    model.config.use_cache = False
    assert model(IDS).past_key_values is None
