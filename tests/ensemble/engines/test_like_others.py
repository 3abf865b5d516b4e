"""What is done to any model of transformers and comes out as it would of one, or is refused by name."""

import json
import shutil
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.engines import adapter, described, export, offset, tiny
from transformers import AutoConfig, AutoModelForCausalLM

from unlearn.ensemble.engines import configuration_unlearned
from unlearn.ensemble.engines.configuration_unlearned import INDEX, located
from unlearn.store.sources import checksums

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
    with pytest.raises(ValueError, match="must be chosen when the model is loaded, as from_pretrained.*model.alpha"):
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


def sharded(folder: Path, model: Path) -> Path:
    AutoModelForCausalLM.from_pretrained(model).save_pretrained(folder, max_shard_size="20KB")
    assert (folder / INDEX).is_file()
    return folder


@pytest.mark.parametrize("index", ["listed", "not listed"])
def test_a_target_in_several_files_is_loaded_by_its_index(folders, tmp_path, index):
    target = sharded(tmp_path / "target", folders[1])
    about = described(target)
    files = checksums(target, None) if index == "not listed" else about["files"]  # as an export writes them
    assert (INDEX in files) == (index == "listed")
    folder = Path(shutil.copytree(folders[0], tmp_path / "export"))
    of = json.loads((folder / "config.json").read_text())
    of["members"][0] |= {"files": files}
    (folder / "config.json").write_text(json.dumps(of))
    here = (folder, target, folders[2])
    assert torch.equal(read(here)(IDS).logits, read(folders)(IDS).logits)
    of = json.loads((target / INDEX).read_text())
    some = {name: file for name, file in of["weight_map"].items() if "00002" not in file}  # these would be random
    for changed in (of | {"weight_map": some}, of | {"weight_map": of["weight_map"] | {"x": "../base/x"}}, {}):
        (target / INDEX).write_text(json.dumps(changed))
        with pytest.raises(ValueError, match="must name the weights that the export lists|its files are not those of"):
            read(here)


def test_the_index_of_a_target_in_several_files_is_fetched_with_them(folders, tmp_path, monkeypatch):
    target, asked = sharded(tmp_path / "target", folders[1]), []

    def fetched(name, revision, allow_patterns):
        asked.extend(allow_patterns)
        return target

    monkeypatch.setattr(configuration_unlearned, "snapshot_download", fetched)
    config = AutoConfig.from_pretrained(folders[0], base=folders[2])
    config.members[0] |= {"files": checksums(target, None), "source": "me/large", "revision": "main"}
    assert located(folders[0], config)["target"].folder == target
    assert INDEX in asked and len(asked) == len(config.members[0]["files"]) + 1


@pytest.mark.parametrize("by", ["adapter", "index"])
def test_a_whole_model_that_leads_to_weights_outside_the_export_is_refused(folders, tmp_path, by):
    outside, place = tiny(tmp_path / "outside", 7, 1, 2), tmp_path / "export" / "offset"
    if by == "adapter":
        adapter(place, outside, 5)
        of = json.loads((place / "adapter_config.json").read_text()) | {"base_model_name_or_path": str(outside)}
        (place / "adapter_config.json").write_text(json.dumps(of | {"task_type": "CAUSAL_LM"}))
    else:
        place.mkdir(parents=True)
        names = dict.fromkeys(load_file(outside / "model.safetensors"), "../../outside/model.safetensors")
        (place / INDEX).write_text(json.dumps({"metadata": {}, "weight_map": names}))
    shutil.copy(outside / "config.json", place)
    members = [("target", 1.0, 0.0, described(folders[1])), ("offset", 0.0, 1.0, described(place, "offset"))]
    folder = export(tmp_path / "export", members)
    with pytest.raises(ValueError, match="lists adapter_config.json as a whole|must name the weights that the export"):
        AutoModelForCausalLM.from_pretrained(folder, target=folders[1])


@pytest.mark.parametrize("where", ["all", "layers"])
@pytest.mark.parametrize("learnt", ["adapter", "whole"])
def test_members_whose_weights_wait_on_the_disk_say_the_same(folders, tmp_path, where, learnt):
    if learnt == "whole":
        folders = (offset(tmp_path / "export", *folders[1:], tiny(tmp_path / "learnt", 3, 1, 2)), *folders[1:])
    rest = ("model.embed_tokens", "model.norm", "model.rotary_emb", "lm_head")
    places = {"": "disk"} if where == "all" else dict.fromkeys(rest, "cpu") | {"model.layers": "disk"}
    model, plain = read(folders, device_map=places, offload_folder=tmp_path / "waiting"), read(folders)
    assert any(p.is_meta for p in model.parameters())
    assert torch.equal(model(IDS).logits, plain(IDS).logits)
    assert torch.equal(*(m.generate(IDS, max_new_tokens=4, do_sample=False) for m in (model, plain)))
