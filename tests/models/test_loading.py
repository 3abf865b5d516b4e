"""What is loaded is exactly what a folder's files say, and all of it is in its fingerprint."""

import json
import shutil

import pytest
import torch
from peft import LoraConfig, get_peft_model
from safetensors.torch import load_file, save_file
from support.helpers import tiny_llama
from support.pretrained import KINDS
from test_seq2seq import tiny_t5
from transformers import AutoModelForCausalLM

from unlearn.config.pair import LoraConfig as LoraSettings
from unlearn.config.schema import ConfigError
from unlearn.models import hub, llama
from unlearn.models.tuning import LayerError, learnt, lora, save_updates
from unlearn.runs.workbench import workbench
from unlearn.store.files import read_json, write_json


def tensors(folder, change):
    found = load_file(folder / "model.safetensors")
    save_file(change(found), folder / "model.safetensors", metadata={"format": "pt"})


def settings(folder, **more):
    path = folder / "config.json"
    path.write_text(json.dumps(json.loads(path.read_text()) | more))


def renamed(prefix):
    return lambda folder: tensors(folder, lambda found: {prefix + name: t for name, t in found.items()})


def adapter(folder):
    model = AutoModelForCausalLM.from_pretrained(folder)
    get_peft_model(model, LoraConfig(r=2, target_modules=["q_proj"], init_lora_weights=False)).save_pretrained(folder)


def other_weights(folder):
    shutil.copy(folder / "model.safetensors", folder / "other.safetensors")
    tensors(folder, lambda found: {name: 0 * t for name, t in found.items()})
    settings(folder, transformers_weights="other.safetensors")


HEAD = "lm_head.weight"
UNFIT = {
    "compiled": (renamed("_orig_mod."), "21 are missing, e.g. lm_head.weight; 21 are none of its own, e.g. _orig_mod"),
    "adapted": (renamed("base_model.model."), "21 are missing, .*; 21 are none of its own, e.g. base_model.model"),
    "wrapped": (renamed("module."), "21 are missing"),
    "a layer less": (
        lambda f: tensors(f, lambda t: {n: v for n, v in t.items() if "layers.1.mlp" not in n}),
        "a LlamaForCausalLM: 3 are missing, e.g. model.layers.1.mlp.down_proj.weight",
    ),
    "no head": (
        lambda f: tensors(f, lambda t: {n: v for n, v in t.items() if n != HEAD}),
        "1 are missing, e.g. lm_head",
    ),
    "a layer more": (lambda f: settings(f, num_hidden_layers=1), "9 are none of its own, e.g. model.layers.1"),
    "a bias": (
        lambda f: tensors(f, lambda t: t | {"lm_head.bias": torch.ones(40)}),
        "1 are none of its own, e.g. lm_head.b",
    ),
    "another width": (
        lambda f: tensors(f, lambda t: t | {HEAD: t[HEAD][:-1]}),
        "1 have another shape, e.g. lm_head.weight",
    ),
    "an adapter beside it": (adapter, "model holds an adapter, which would change the model beside it"),
    "other weights": (other_weights, "transformers_weights='other.safetensors': must name no other weights"),
}


@pytest.mark.parametrize("kind", UNFIT)
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_weights_that_are_not_all_of_the_model_and_no_more_are_refused_by_name(pair, made, tmp_path, kind):
    change, words = UNFIT[kind]
    folder = tmp_path / "model"
    shutil.copytree(made("llama"), folder)
    change(folder)
    with pytest.raises(ConfigError, match=words):
        workbench(pair(folder)).model("target")


@pytest.mark.parametrize("kind", KINDS)
def test_weights_as_they_were_saved_are_taken_tied_heads_too(tmp_path, kind):
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(KINDS[kind](40))
    model.save_pretrained(tmp_path)
    assert llama.fingerprint(llama.load(tmp_path)) == llama.fingerprint(model)


def capped(kind: str, size: float):
    """A model whose logits are changed behind its head, by little where its weights are small."""
    config = KINDS["gemma2" if kind == "capped" else "llama"](40)
    config.initializer_range = size
    torch.manual_seed(0)
    model = AutoModelForCausalLM.from_config(config).eval()
    if kind == "scaled states":
        model.lm_head.register_forward_pre_hook(lambda module, given: (1.5 * given[0],))
    return model


@pytest.mark.parametrize("size", [1.0, 0.02])
@pytest.mark.parametrize("kind", ["capped", "scaled states"])
def test_a_model_that_does_more_to_its_logits_than_its_head_does_is_refused_however_small_they_are(kind, size):
    with pytest.raises(ConfigError, match="ForCausalLM does more to its logits than its output head does"):
        hub.check_head(capped(kind, size), "x")


def test_models_of_the_usual_kinds_pass_in_any_precision():
    for kind in ("llama", "tied", "qwen2", "qwen3", "gpt2", "phi", "mistral", "gpt_neox"):
        for dtype in (torch.float32, torch.bfloat16, torch.float16):
            torch.manual_seed(0)
            model = AutoModelForCausalLM.from_config(KINDS[kind](40)).eval().to(dtype)
            assert hub.check_head(model, kind) is model
    assert hub.check_head(tiny_t5(0).bfloat16(), "t5")


@pytest.mark.parametrize("change", ["a tensor less", "a tensor more", "another rank"])
def test_updates_that_are_not_those_of_the_model_are_refused(tmp_path, change):
    settings = LoraSettings(rank=2)
    save_updates(lora(tiny_llama(0), settings, 0), settings, tmp_path)
    assert learnt(tiny_llama(0), tmp_path)
    found = load_file(tmp_path / "adapter_model.safetensors")
    first, more = min(found), {"a tensor more": {"x.lora_A.weight": torch.ones(1)}}
    found |= more.get(change, {})
    found = {n: t for n, t in found.items() if n != first or change != "a tensor less"}
    save_file(found, tmp_path / "adapter_model.safetensors")
    how = read_json(tmp_path / "adapter_config.json")
    write_json(tmp_path / "adapter_config.json", how | ({"r": 3} if change == "another rank" else {}))
    with pytest.raises(LayerError, match="its layers are not those of this LlamaForCausalLM: "):
        learnt(tiny_llama(0), tmp_path)
