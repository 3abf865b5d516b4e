"""LoRA: low-rank updates beside weights that are shared, that start at nothing, learn alone, and can be merged."""

import pytest
import torch
from support.helpers import raw, tiny_llama
from test_seq2seq import tiny_t5
from test_tuned_runs import BATCH, RANK, pointers, rows
from transformers import AutoModelForCausalLM, LlamaConfig, LlamaForCausalLM

from unlearn.config.pair import LAYERS, LayersConfig, LoraConfig
from unlearn.config.schema import ConfigError
from unlearn.grid.rules import parse
from unlearn.learning.loop import Loop, Optimisation
from unlearn.models import layers, llama
from unlearn.models.tuning import has_updates, lora, merged
from unlearn.runs import learner


def view(model, how: str, seed: int = 0):
    if how == "lora":
        return lora(model, LoraConfig(rank=RANK), seed)
    return layers.add(model, LayersConfig(bottleneck=3), seed)


def makes(kind: str):
    return tiny_t5(0) if kind == "t5" else tiny_llama(0)


@pytest.mark.parametrize("how", ["lora", LAYERS])
@pytest.mark.parametrize("kind", ["llama", "t5"])
def test_only_what_is_added_learns_and_not_one_bit_of_the_shared_weights_moves(how, kind):
    plain = llama.freeze(makes(kind))
    before, fingerprint = rows(plain), llama.fingerprint(plain)
    seen = view(plain, how)
    assert not has_updates(plain) and torch.equal(rows(plain), before) and torch.equal(rows(seen), before)
    learning = {name for name, p in seen.named_parameters() if p.requires_grad}
    assert learning == {name for name, _ in seen.named_parameters() if "lora_" in name or ".unlearning_" in name}
    frozen = {p.data_ptr() for p in seen.parameters() if not p.requires_grad}
    assert frozen == {p.data_ptr() for p in plain.parameters()}
    if (how, kind) == ("lora", "llama"):
        # seven linear layers in each of two blocks, and neither the head nor the embeddings it shares
        places = {name.split(".lora_")[0] for name in learning}
        assert len(places) == 14 and all(".layers." in name for name in places)
    loop = Loop(seen, Optimisation(1e-2, 5, 0.0, 1.0, "linear", 0.1, (0.9, 0.99), 1.0), "cpu")
    loop.run(lambda step: [lambda: (llama.answer_rows(seen, BATCH).square().mean(), {})])
    assert not torch.equal(rows(seen), before)
    merged(seen)
    assert torch.equal(rows(plain), before) and llama.fingerprint(plain) == fingerprint
    assert not any(p.requires_grad or p.grad is not None for p in plain.parameters())


@pytest.mark.parametrize("how", ["lora", LAYERS])
def test_the_seed_decides_the_random_half_and_nothing_outside_notices(how):
    models = [tiny_llama(0) for _ in range(3)]
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (
        {name: p for name, p in view(m, how, seed).named_parameters() if p.requires_grad}
        for m, seed in zip(models, (0, 0, 1), strict=True)
    )
    assert torch.equal(torch.rand(1), before)
    assert all(torch.equal(a[name], b[name]) for name in a)
    zero = "lora_B" if how == "lora" else layers.UP  # this half is zero whatever the seed
    assert all(torch.equal(a[name], c[name]) == (zero in name) for name in a)


def test_merging_keeps_the_logits_and_leaves_a_plain_model(tmp_path):
    plain, model = tiny_llama(0), lora(tiny_llama(0), LoraConfig(rank=RANK), 0)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))))
    before = rows(model)
    assert not torch.allclose(before, rows(plain), atol=1e-2)
    found = merged(model)
    torch.testing.assert_close(rows(found), before, rtol=1e-4, atol=1e-5)
    assert torch.equal(rows(model), before) and not set(pointers(found)) & set(pointers(model)), "a copy is merged"
    assert set(found.state_dict()) == set(plain.state_dict())
    found.save_pretrained(tmp_path)
    assert llama.fingerprint(AutoModelForCausalLM.from_pretrained(tmp_path)) == llama.fingerprint(found)
    assert not (tmp_path / "adapter_config.json").exists()
    assert merged(plain) is plain and llama.fingerprint(plain) == llama.fingerprint(tiny_llama(0))


@pytest.mark.parametrize(
    ("shape", "share"),
    [
        # Llama-3.2-1B; rank 8 in seven layers of each block: 16 · 8 · (2 · 4,096 + 2 · 2,560 + 3 · 10,240) = 5,636,096
        (dict(vocab_size=128256, hidden_size=2048, num_hidden_layers=16, num_attention_heads=32,
              num_key_value_heads=8, intermediate_size=8192), 5_636_096 / (1_235_814_400 + 5_636_096)),
        # the embedded world's small model: 2 · 8 · (4 · 128 + 3 · 224) = 18,944, more than the 2 %
        (dict(vocab_size=724, hidden_size=64, num_hidden_layers=2, num_attention_heads=4, num_key_value_heads=4,
              intermediate_size=160), 18_944 / (46_336 + 2 * (4 * 64**2 + 3 * 64 * 160 + 128) + 64 + 18_944)),
    ],
)  # fmt: skip
def test_the_share_that_learns_at_the_default_rank(shape, share):
    with torch.device("meta"):
        model = LlamaForCausalLM(LlamaConfig(**shape, tie_word_embeddings=True))
        found = learner.trainable(lora(model.requires_grad_(False), LoraConfig(), seed=0))
    assert found["trainable_share"] == pytest.approx(share, rel=1e-3)
    assert (share <= 0.02) == (shape["hidden_size"] == 2048)


REFUSED = [
    (("pair.layers.bottleneck=0",), "must be a finite number of at least 1"),
    (("pair.layers.activation=mish",), "must be one of relu, gelu, silu, tanh"),
    (("pair.layers.where=[]",), "one or more of them"),
    (("pair.layers.where=[0,0]",), "each once"),
    (("pair.layers.where=[2]", f"pair.tuning={LAYERS}"), "has the layers 0 to 1"),
    (("pair.layers.lr_factor=0",), "must be a finite number above 0"),
    (("method.tuning=half",), "must be one of full, lora, unlearning_layers"),
    (("method=eul", "pair.target.device_map=cpu"), "reads the target's own weights"),
    (("method=direct", "pair.tuning=lora", "pair.target.device_map=cpu"), "reads the target's own weights"),
    (("algo.interleave=steps",), "must be one of none, epochs"),
    (("algo.interleave=epochs", "algo.retain=none"), "needs a retain term"),
]


@pytest.mark.parametrize(("overrides", "message"), REFUSED)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ConfigError) as error:
        parse(raw(*overrides))
    assert message in str(error.value)


def test_a_target_that_is_not_shared_may_lie_elsewhere():
    parse(raw("method=offset", "pair.tuning=lora", "pair.target.device_map=cpu"))
