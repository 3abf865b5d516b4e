"""Unlearning layers: the model itself at the start, one set of weights, alone in learning, alone in their files."""

import json

import peft
import pytest
import torch
from safetensors.torch import load_file
from support.helpers import execute, killed_at, lines, random_examples, raw, tiny_llama
from torch import nn
from transformers import (
    GPT2Config,
    GPT2LMHeadModel,
    GPTNeoXConfig,
    GPTNeoXForCausalLM,
    LlamaConfig,
    LlamaForCausalLM,
    Qwen2Config,
    Qwen2ForCausalLM,
    T5Config,
    T5ForConditionalGeneration,
)

from unlearn import evaluate, export, generate
from unlearn.config.pair import LAYERS, LayersConfig
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import collate
from unlearn.evaluation.context import trainable
from unlearn.evaluation.groups.quantised import _parts, rounded
from unlearn.grid.rules import parse
from unlearn.learning.loop import Loop, Optimisation
from unlearn.models import layers, llama
from unlearn.models.tuning import has_layers, layer_parameters, merged
from unlearn.runs import job, learner
from unlearn.runs.job import idle
from unlearn.store import runlog

SIZE = dict(vocab_size=40, hidden_size=16, intermediate_size=32, num_attention_heads=2, num_hidden_layers=2)
BATCH = collate(random_examples(), pad_id=0)
ON = (f"pair.tuning={LAYERS}", "pair.layers.bottleneck=3", "algo=npo", "trainer.lr=1e-2")


def made(kind: str) -> nn.Module:
    torch.manual_seed(0)
    if kind == "llama":
        return tiny_llama(0)
    if kind == "qwen2":
        return Qwen2ForCausalLM(Qwen2Config(**SIZE, num_key_value_heads=2)).eval()
    if kind == "gpt2":
        return GPT2LMHeadModel(GPT2Config(vocab_size=40, n_embd=16, n_head=2, n_layer=2, n_positions=64)).eval()
    gated = "gated-gelu" if kind == "t5_gated" else "relu"
    return T5ForConditionalGeneration(
        T5Config(vocab_size=40, d_model=16, d_kv=8, d_ff=32, num_heads=2, num_layers=2, num_decoder_layers=3,
                 feed_forward_proj=gated, decoder_start_token_id=0)
    ).eval()  # fmt: skip


KINDS = {"llama": 2, "qwen2": 2, "gpt2": 2, "t5": 5, "t5_gated": 5}  # feed-forward blocks


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


@pytest.mark.parametrize("kind", KINDS)
def test_fresh_layers_change_no_bit_and_moved_ones_only_the_view(kind):
    plain = llama.freeze(made(kind))
    before = logits(plain)
    view = layers.add(plain, LayersConfig(bottleneck=3), seed=0).eval()
    assert torch.equal(logits(view), before) and not has_layers(plain)
    moved(view)
    after = logits(view)
    assert (after - before).abs().max() > 1e-3
    assert torch.equal(logits(plain), before)


@pytest.mark.parametrize("kind", KINDS)
def test_a_layer_follows_every_feed_forward_block_or_those_chosen(kind):
    model = made(kind)
    assert len(layers.feed_forward(model)) == KINDS[kind]
    view = layers.add(model, LayersConfig(bottleneck=3), seed=0)
    assert layer_parameters(view) == KINDS[kind] * 2 * 3 * 16
    one = layers.add(model, LayersConfig(bottleneck=3, where=[1]), seed=0)
    assert layer_parameters(one) == (2 if kind.startswith("t5") else 1) * 2 * 3 * 16  # in either stack
    assert all(".1." in name for name in layers.weights(one))
    with pytest.raises(layers.LayerError, match=r"where=\[9\]: .* has the layers 0 to 1"):
        layers.add(model, LayersConfig(where=[9]), seed=0)


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
    other = GPTNeoXForCausalLM(GPTNeoXConfig(**SIZE))
    with pytest.raises(layers.LayerError, match="GPTNeoXForCausalLM: no feed-forward .* Llama, Qwen2 .* GPT-2 .* T5"):
        layers.add(other, LayersConfig(), seed=0)


@pytest.mark.parametrize("kind", ["llama", "gpt2", "t5"])
def test_weights_are_shared_and_only_layers_learn(kind):
    plain = llama.freeze(made(kind))
    view = layers.add(plain, LayersConfig(bottleneck=3), seed=0)
    own = {p.data_ptr() for p in plain.parameters()}
    assert {p.data_ptr() for p in view.parameters() if not p.requires_grad} == own
    assert {n for n, p in view.named_parameters() if p.requires_grad} == {
        n for n, _ in view.named_parameters() if ".unlearning_" in n}  # fmt: skip
    fingerprint = llama.fingerprint(plain)
    loop = Loop(view, Optimisation(1e-2, 5, 0.0, 1.0, "linear", 0.1, (0.9, 0.99), 1.0), "cpu")

    def loss():
        given = {"decoder_input_ids": BATCH.ids} if kind == "t5" else {}
        return view(input_ids=BATCH.ids, attention_mask=BATCH.mask, **given).logits.square().mean(), {}

    loop.run(lambda step: [loss])
    assert llama.fingerprint(plain) == fingerprint
    assert not torch.equal(logits(view.eval()), logits(plain))


def test_the_seed_decides_the_random_half_and_nothing_outside_notices():
    plain = tiny_llama(0)
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    a, b, c = (layers.weights(layers.add(plain, LayersConfig(), seed)) for seed in (0, 0, 1))
    assert torch.equal(torch.rand(1), before)
    assert all(torch.equal(a[n], b[n]) for n in a)
    assert all(torch.equal(a[n], c[n]) == ("_up" in n) for n in a)  # up is zero whatever the seed


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


def test_files_of_other_layers_are_refused(tmp_path):
    layers.save(layers.add(tiny_llama(0), LayersConfig(bottleneck=3), seed=0), tmp_path)
    with pytest.raises(layers.LayerError, match="its layers are not those of this LlamaForCausalLM"):
        layers.load(tiny_llama(0, hidden=8), tmp_path)
    (tmp_path / "adapter_config.json").write_text(json.dumps({"peft_type": "LORA"}))
    with pytest.raises(layers.LayerError, match="peft_type UNLEARNING_LAYERS.*, found LORA"):
        layers.load(tiny_llama(0), tmp_path)
    with pytest.raises(layers.LayerError, match="has no unlearning layers to save"):
        layers.save(tiny_llama(0), tmp_path)


def test_configs_that_name_other_places_or_activations_are_refused(tmp_path):
    plain = tiny_llama(0)
    layers.save(layers.add(plain, LayersConfig(bottleneck=3), seed=0), tmp_path)
    config = json.loads((tmp_path / "adapter_config.json").read_text())
    for wrong in ({"target_modules": ["model.layers.7.mlp"]}, {"target_modules": ".*"}, {"activation": "exec"},
                  {"target_modules": []}, {"bottleneck": 0}):  # fmt: skip
        (tmp_path / "adapter_config.json").write_text(json.dumps(config | wrong))
        with pytest.raises(layers.LayerError, match="has the places model.layers.0.mlp, model.layers.1.mlp"):
            layers.load(plain, tmp_path)


def test_of_many_layers_the_chosen_ones_alone_are_followed(tmp_path):
    """peft shortens the names of twenty places and more."""
    torch.manual_seed(0)
    deep = llama.freeze(LlamaForCausalLM(LlamaConfig(**SIZE | {"num_hidden_layers": 24, "num_key_value_heads": 2})))
    chosen = [i for i in range(24) if i not in (1, 11)]
    view = moved(layers.add(deep, LayersConfig(bottleneck=1, where=chosen), seed=0))
    assert sorted({int(n.split(".")[4]) for n in layers.weights(view)}) == chosen
    layers.save(view, tmp_path)
    assert len(json.loads((tmp_path / "adapter_config.json").read_text())["target_modules"]) == 22
    assert torch.equal(logits(layers.load(deep, tmp_path).eval()), logits(view))


# --- runs ---------------------------------------------------------------------------------------------------------

METHODS = {"offset": ("offset", "anchor", ON), "direct": ("tuned", "target", ON), "proxy": ("offset", "anchor", ON),
           "eul": ("student", "target", (*ON[1:], "pair.tuning=full"))}  # fmt: skip


def rows(model: nn.Module) -> torch.Tensor:
    with torch.no_grad():
        return llama.answer_rows(model.eval(), BATCH)


@pytest.mark.parametrize("method", METHODS)
def test_a_run_starts_at_the_target_and_leaves_the_layers_alone(config, bench, monkeypatch, method):
    trained, twin, how = METHODS[method]
    found = {}

    def evaluating(cfg, bench, ensemble, *rest, real=job.evaluate):
        found["rows"], found["plain"] = rows(ensemble.trained.model), llama.fingerprint(bench.model(START[method]))
        return real(cfg, bench, ensemble, *rest)

    START = {"direct": "target", "eul": "target", "offset": "small", "proxy": "small"}
    before = llama.fingerprint(bench.model(START[method]))
    monkeypatch.setattr(job, "evaluate", evaluating)
    cfg = config(*how, f"method={method}")
    folder = execute(cfg).folder
    target = runlog.evaluation(folder)["references"]["target"]
    assert lines(folder)[0]["forget/prob"] == pytest.approx(target["forget/prob"], rel=1e-5)
    assert lines(folder)[-1]["forget/prob"] != pytest.approx(target["forget/prob"], rel=1e-5)
    assert found["plain"] == before  # not one bit of the plain model moved
    assert not (folder / "offset").exists()
    assert {p.name for p in (folder / "adapter").iterdir()} == {
        "adapter_config.json", "adapter_model.safetensors", "gram.safetensors"}  # fmt: skip
    manifest, width = runlog.manifest(folder), 16 if START[method] == "target" else 8
    assert manifest["trainable"] == 2 * 2 * 3 * width
    assert manifest["models"][trained] == manifest["models"][twin] == before
    assert set(manifest["sealed_weights"]) == {f"adapter/{p.name}" for p in (folder / "adapter").iterdir()}
    again = learner.members(cfg, bench, folder)
    assert torch.equal(rows(again.trained.model), found["rows"])
    assert not any(p.requires_grad for p in again.trained.model.parameters())


def test_a_resumed_run_with_layers_ends_as_an_uninterrupted_one(config, tmp_path, monkeypatch):
    options = (*ON, "trainer.steps=7", "trainer.save_every=2")
    straight = execute(config(*options, f"paths.runs={tmp_path}/straight")).folder
    cfg = config(*options, f"paths.runs={tmp_path}/killed")
    killed_at(5, cfg, monkeypatch)
    resumed = execute(cfg).folder
    for name in ("metrics.jsonl", "eval.json", "adapter/adapter_config.json"):
        assert (resumed / name).read_text() == (straight / name).read_text()
    for name in ("adapter_model", "gram"):
        one, other = (load_file(f / "adapter" / f"{name}.safetensors") for f in (resumed, straight))
        assert all(torch.equal(one[k], other[k]) for k in other)


def test_a_run_with_layers_that_collapsed_keeps_both_sets(config, monkeypatch):
    monkeypatch.setattr("unlearn.runs.trajectory.KEPT", 1.0)  # by this, any change is a collapse …
    monkeypatch.setattr("unlearn.runs.trajectory.score", lambda *_: 0.0)  # … and the start is the best point
    folder = execute(config(*ON, "algo=ga", "trainer.steps=4")).folder
    assert runlog.manifest(folder)["best"]["step"] == 0
    best, last = (load_file(folder / place / "adapter_model.safetensors") for place in ("best", "adapter"))
    assert not any(w.any() for n, w in best.items() if "_up" in n)
    assert any(w.any() for n, w in last.items() if "_up" in n)


def test_finished_runs_are_evaluated_and_asked_again_and_not_exported(config, tmp_path, capsys):
    folder = execute(config(*ON, "method=eul")).folder
    assert evaluate.main([f"run={folder}", "eval.alphas=[0,1,2]", "trainer.progress=false"]) == 0
    found = runlog.evaluation(folder)
    assert set(found["alphas"]) == {"0.0", "1.0", "2.0"}
    target = found["references"]["target"]["forget/prob"]
    assert found["alphas"]["0.0"]["forget/prob"] == pytest.approx(target, rel=1e-6)
    assert generate.main([f"run={folder}", "prompt=Where was", "alpha=1"]) == 0
    assert "unlearned α=1" in capsys.readouterr().out
    assert export.main([f"run={folder}", f"to={tmp_path}/out"]) == 2
    assert "its tuning is unlearning_layers" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_groups_that_change_weights_leave_the_layers_in(config, bench):
    for method in ("offset", "eul"):
        ensemble = learner.members(config(*ON, f"method={method}"), bench)
        model = moved(ensemble.trained.model)
        said = rows(model)
        attacker = trainable(ensemble, 1.0).trained.model
        assert torch.equal(rows(attacker), said) and all(p.requires_grad for p in attacker.parameters())
        assert not {p.data_ptr() for p in attacker.parameters()} & {p.data_ptr() for p in model.parameters()}
        assert merged(model) is model and torch.equal(rows(model), said)
        assert not torch.equal(rows(rounded(model, 4)), said) and torch.equal(rows(model), said)
        expected = {"all"} if method == "eul" else {"target", "pair", "all"}
        assert set(_parts(ensemble)) == expected


@pytest.mark.parametrize("how", [LAYERS, "lora", "full"])
def test_a_model_whose_weights_the_learner_reads_never_leaves_the_gpu(config, bench, how):
    from unlearn.runs.inputs import Inputs

    cfg = config(f"pair.tuning={how}", "algo=npo")
    ensemble = learner.members(cfg, bench)
    found = idle(Inputs(cfg, bench, steps=1).objective(ensemble), None)
    names = {m.name for m in ensemble.members if any(m.model is model for model in found)}
    assert names == ({"target", "anchor"} if how == "full" else {"target"})


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (("pair.layers.bottleneck=0",), "must be a finite number of at least 1"),
        (("pair.layers.activation=mish",), "must be one of relu, gelu, silu, tanh"),
        (("pair.layers.where=[]",), "one or more of them"),
        (("pair.layers.where=[0,0]",), "each once"),
        (("pair.layers.where=[2]", f"pair.tuning={LAYERS}"), "has the layers 0 to 1"),
        (("pair.layers.lr_factor=0",), "must be a finite number above 0"),
        (("method.tuning=half",), "must be one of full, lora, unlearning_layers"),
        (("method=eul", "pair.target.device=cpu"), "reads the target's own weights"),
        (("algo.interleave=steps",), "must be one of none, epochs"),
        (("algo.interleave=epochs", "algo.retain=none"), "needs a retain term"),
    ],
)
def test_settings_that_cannot_be_are_refused(overrides, message):
    with pytest.raises(ConfigError) as error:
        parse(raw(*overrides))
    assert message in str(error.value)
