"""Unlearning layers: where they go in a model, what they compute, how large they are, and their files."""

import json

import peft
import pytest
import torch
from support.helpers import random_examples, tiny_llama
from support.pretrained import KINDS
from test_seq2seq import tiny_t5
from torch import nn
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM, T5Config, T5ForConditionalGeneration

from unlearn.config.pair import LayersConfig
from unlearn.data.encoding import collate
from unlearn.models import layers, llama
from unlearn.models.tuning import has_layers, layer_parameters

BATCH = collate(random_examples(), pad_id=0)


BLOCKS = {"llama": 2, "qwen2": 2, "gpt2": 2, "t5": 5, "t5_gated": 5}  # feed-forward blocks


def made(kind: str) -> nn.Module:
    if kind.startswith("t5"):
        return tiny_t5(0, num_decoder_layers=3, feed_forward_proj="gated-gelu" if kind == "t5_gated" else "relu")
    torch.manual_seed(0)
    return tiny_llama(0) if kind == "llama" else AutoModelForCausalLM.from_config(KINDS[kind](40)).eval()


@torch.no_grad()
def logits(model: nn.Module) -> torch.Tensor:
    if model.config.is_encoder_decoder:
        return model(input_ids=BATCH.ids, attention_mask=BATCH.mask, decoder_input_ids=BATCH.ids.flip(0)).logits
    return model(input_ids=BATCH.ids, attention_mask=BATCH.mask).logits


def moved(model: nn.Module, seed: int = 0) -> nn.Module:
    """The same with layers that say something."""
    generator = torch.Generator().manual_seed(seed)
    for w in layers.weights(model).values():
        w.add_(0.3 * torch.randn(w.shape, generator=generator))
    return model.eval()


@pytest.mark.parametrize("kind", BLOCKS)
def test_a_layer_follows_every_feed_forward_block_or_those_chosen_and_changes_the_view_alone(kind):
    plain = llama.freeze(made(kind))
    before = logits(plain)
    assert len(layers.feed_forward(plain)) == BLOCKS[kind]
    view = layers.add(plain, LayersConfig(bottleneck=3), seed=0).eval()
    assert torch.equal(logits(view), before) and not has_layers(plain)
    assert layer_parameters(view) == BLOCKS[kind] * 2 * 3 * 16
    assert (logits(moved(view)) - before).abs().max() > 1e-3 and torch.equal(logits(plain), before)
    one = layers.add(plain, LayersConfig(bottleneck=3, where=[1]), seed=0)
    assert layer_parameters(one) == (2 if kind.startswith("t5") else 1) * 2 * 3 * 16  # in either stack
    assert all(".1." in name for name in layers.weights(one))
    with pytest.raises(layers.LayerError, match=r"where=\[9\]: .* has the layers 0 to 1"):
        layers.add(plain, LayersConfig(where=[9]), seed=0)


def test_the_layer_is_a_bottleneck_on_the_blocks_output_before_the_residual_sum():
    view = moved(layers.add(tiny_llama(0), LayersConfig(bottleneck=3, activation="tanh"), seed=0))
    layer = view.model.layers[0].mlp
    x = torch.randn(2, 5, 16)
    own = layers.weights(view)
    down, up = (own[f"base_model.model.model.layers.0.mlp.unlearning_{n}.weight"] for n in ("down", "up"))
    y = layer.base_layer(x)
    torch.testing.assert_close(layer(x), y + torch.tanh(y @ down.T) @ up.T)
    with pytest.raises(layers.LayerError, match="has unlearning layers already"):
        layers.add(view, LayersConfig(), seed=0)


def test_a_model_of_another_form_is_refused_by_its_class():
    other = AutoModelForCausalLM.from_config(KINDS["gpt_neox"](40))
    with pytest.raises(layers.LayerError, match="GPTNeoXForCausalLM: no feed-forward .* Llama, Qwen2 .* GPT-2 .* T5"):
        layers.add(other, LayersConfig(), seed=0)


@pytest.mark.parametrize(
    ("shape", "expected"),
    [  # Llama-3.2-1B: .005 · 1,235,814,400 / (2 · 16 · 2,048); T5-base: the 30 of PAPERS.md, in 24 layers
        (LlamaConfig(vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
                     num_key_value_heads=8, intermediate_size=8192, tie_word_embeddings=True), 94),
        (T5Config(vocab_size=32128, d_model=768, d_kv=64, d_ff=3072, num_heads=12, num_layers=12), 30),
    ],
)  # fmt: skip
def test_the_size_that_is_not_given_is_half_a_percent_of_the_parameters(shape, expected):
    kind = T5ForConditionalGeneration if isinstance(shape, T5Config) else LlamaForCausalLM
    with torch.device("meta"):
        model = kind(shape)
        assert layers.bottleneck(model, layers.feed_forward(model)) == expected
    total = sum(p.numel() for p in model.parameters())
    assert 2 * expected * sum(layers.feed_forward(model).values()) / total == pytest.approx(0.005, rel=0.02)


# --- files --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_what_is_saved_is_loaded_by_one_function_and_by_peft(tmp_path, kind):
    plain = llama.freeze(made(kind))
    view = moved(layers.add(plain, LayersConfig(bottleneck=3, activation="gelu", where=[1]), seed=0))
    layers.save(view, tmp_path)
    assert {p.name for p in tmp_path.iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}
    again = layers.load(plain, tmp_path).eval()
    assert torch.equal(logits(again), logits(view))
    theirs = peft.PeftModel.from_pretrained(made(kind), str(tmp_path)).eval()
    assert torch.equal(logits(theirs.get_base_model()), logits(view))
    with theirs.disable_adapter():
        assert torch.equal(logits(theirs.get_base_model()), logits(plain))
    theirs.save_pretrained(str(tmp_path / "peft"))
    back = layers.load(plain, tmp_path / "peft").eval()
    assert torch.equal(logits(back), logits(view))


def test_files_of_other_layers_places_or_activations_are_refused(tmp_path):
    plain = tiny_llama(0)
    with pytest.raises(layers.LayerError, match="has no unlearning layers to save"):
        layers.save(plain, tmp_path)
    layers.save(layers.add(plain, LayersConfig(bottleneck=3), seed=0), tmp_path)
    with pytest.raises(layers.LayerError, match="its layers are not those of this LlamaForCausalLM"):
        layers.load(tiny_llama(0, hidden=8), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for wrong in ({"target_modules": ["model.layers.7.mlp"]}, {"target_modules": ".*"}, {"activation": "exec"},
                  {"target_modules": []}, {"bottleneck": 0}):  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(layers.LayerError, match="has the places model.layers.0.mlp, model.layers.1.mlp"):
            layers.load(plain, tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(layers.LayerError, match="peft_type UNLEARNING_LAYERS.*, found LORA"):
        layers.load(plain, tmp_path)


def test_of_many_layers_the_chosen_ones_alone_are_followed(tmp_path):
    """peft shortens the names of twenty places and more."""
    torch.manual_seed(0)
    config = KINDS["llama"](40)
    config.num_hidden_layers = 24
    deep = llama.freeze(AutoModelForCausalLM.from_config(config))
    chosen = [i for i in range(24) if i not in (1, 11)]
    view = moved(layers.add(deep, LayersConfig(bottleneck=1, where=chosen), seed=0))
    assert sorted({int(n.split(".")[4]) for n in layers.weights(view)}) == chosen
    layers.save(view, tmp_path)
    assert len(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == 22
    assert torch.equal(logits(layers.load(deep, tmp_path).eval()), logits(view))
