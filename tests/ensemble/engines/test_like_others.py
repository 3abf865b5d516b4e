"""What is done to any model of transformers and comes out as it would of one, or is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from support.engines import adapter, offset, tiny
from transformers import AutoConfig, AutoModelForCausalLM

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


@pytest.mark.parametrize("place", ["config", "model"])
def test_another_alpha_than_that_of_the_weights_that_were_loaded_is_refused(folders, place):
    model = read(folders, alpha=1)
    (model.config if place == "config" else model).alpha = 0.5
    with pytest.raises(ValueError, match="must be chosen when the model is loaded, as from_pretrained.*loaded at "):
        model.generate(IDS, max_new_tokens=1)


def test_one_config_may_be_given_to_several_models(folders):
    config = AutoConfig.from_pretrained(folders[0])
    models = [read(folders, config=config, alpha=alpha) for alpha in (0.5, 1)]
    assert [m.config.alpha for m in models] == [0.5, 1] and config.alpha == 1
    assert not torch.equal(*(m(IDS).logits for m in models))


def test_an_export_that_names_no_alpha_is_refused_unless_one_is_given(folders, tmp_path):
    folder = Path(shutil.copytree(folders[0], tmp_path / "export"))
    about = json.loads((folder / "config.json").read_text())
    (folder / "config.json").write_text(json.dumps(about | {"alpha": None}))
    with pytest.raises(ValueError, match="alpha=None: must be a finite number"):
        read((folder, *folders[1:]))
    assert read((folder, *folders[1:]), alpha=0.5).alpha == 0.5


def test_embeddings_beside_ids_are_refused(folders):
    with pytest.raises(ValueError, match="embeddings of its own; give ids, not inputs_embeds"):
        read(folders)(IDS, inputs_embeds=torch.zeros(1, 5, 32))
