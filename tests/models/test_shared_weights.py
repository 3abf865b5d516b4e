"""With LoRA offset and anchor (or tuned model and target) are one set of weights: the updates lie beside them."""

import copy
import json

import peft
import pytest
import torch
from support.helpers import Killed, execute, random_examples, raw, tiny_llama
from torch import nn
from transformers import LlamaConfig, LlamaForCausalLM

from unlearn.config.pair import LoraConfig
from unlearn.data.encoding import collate
from unlearn.evaluation.context import trainable
from unlearn.evaluation.groups.quantised import rounded
from unlearn.grid.rules import ConfigError, parse
from unlearn.learning.loop import Loop, Optimisation
from unlearn.models import llama
from unlearn.models.tuning import has_updates, lora, merged
from unlearn.runs import job, learner
from unlearn.store import runlog

RANK = 2
LORA = ("pair.tuning=lora", f"pair.lora.rank={RANK}", "algo=npo", "trainer.lr=1e-2")
BATCH = collate(random_examples(), pad_id=0)
METHODS = {"offset": ("offset", "anchor"), "direct": ("tuned", "target"), "proxy": ("offset", "anchor")}


@torch.no_grad()
def rows(model: nn.Module) -> torch.Tensor:
    return llama.answer_rows(model.eval(), BATCH)


def pointers(model: nn.Module) -> dict[int, int]:
    """Every distinct weight or buffer by its address, with its size."""
    return {t.data_ptr(): t.numel() for t in (*model.parameters(), *model.buffers())}


def member(ensemble, name: str) -> nn.Module:
    return next(m.model for m in ensemble.members if m.name == name)


def test_training_moves_the_view_and_not_one_bit_of_the_plain_model():
    plain = llama.freeze(tiny_llama(0))
    before, fingerprint = rows(plain), llama.fingerprint(plain)
    view = lora(plain, LoraConfig(rank=RANK), seed=0)
    assert not has_updates(plain) and torch.equal(rows(plain), before) and torch.equal(rows(view), before)
    loop = Loop(view, Optimisation(1e-2, 5, 0.0, 1.0, "linear", 0.1, (0.9, 0.99), 1.0), "cpu")
    loop.run(lambda step: [lambda: (llama.answer_rows(view, BATCH).square().mean(), {})])
    assert not torch.equal(rows(view), before)
    merged(view)
    assert torch.equal(rows(plain), before) and llama.fingerprint(plain) == fingerprint
    assert not any(p.requires_grad for p in plain.parameters())


@pytest.mark.parametrize("method", METHODS)
def test_the_ensemble_holds_one_set_of_weights_and_the_updates(config, bench, method):
    trained, twin = METHODS[method]
    ensemble = learner.members(config(*LORA, f"method={method}"), bench)
    own, base = pointers(member(ensemble, trained)), pointers(member(ensemble, twin))
    updates = {p.data_ptr(): p.numel() for p in member(ensemble, trained).parameters() if p.requires_grad}
    assert own == base | updates and not set(base) & set(updates)
    everything = {k: v for m in ensemble.members for k, v in pointers(m.model).items()}
    plain = {k: v for m in ensemble.members if not m.trained for k, v in pointers(m.model).items()}
    assert sum(everything.values()) == sum(plain.values()) + sum(updates.values())
    full = learner.members(config(f"method={method}"), bench)
    assert not set(pointers(member(full, trained))) & set(pointers(member(full, twin)))


@pytest.mark.parametrize("method", METHODS)
def test_a_run_leaves_the_plain_models_as_they_were(config, bench, method):
    models = {name: bench.model(name) for name in ("target", "small")}
    before = {name: (rows(m), llama.fingerprint(m)) for name, m in models.items()}
    folder = execute(config(*LORA, f"method={method}")).folder
    for name, m in models.items():
        assert bench.model(name) is m and not has_updates(m)
        assert torch.equal(rows(m), before[name][0]) and llama.fingerprint(m) == before[name][1]
    trained, twin = METHODS[method]
    prints = runlog.manifest(folder)["models"]
    assert prints[trained] == prints[twin] == before["target" if method == "direct" else "small"][1]


def test_what_is_evaluated_is_what_learnt_and_what_is_loaded_again(config, bench, monkeypatch):
    found = {}

    def evaluating(cfg, bench, ensemble, *rest, real=job.evaluate):
        found["rows"] = rows(ensemble.trained.model)
        return real(cfg, bench, ensemble, *rest)

    monkeypatch.setattr(job, "evaluate", evaluating)
    cfg = config(*LORA, "eval.alphas=[0.5,1]")
    folder = execute(cfg).folder
    again = learner.members(cfg, bench, folder)
    assert torch.equal(rows(again.trained.model), found["rows"])
    assert set(pointers(member(again, "anchor"))) < set(pointers(again.trained.model))
    assert not any(p.requires_grad for p in again.trained.model.parameters())
    # evaluated once more from the folder, nothing changes
    before = (folder / "eval.json").read_text()
    (folder / "eval.json").unlink()
    runlog.write_json(folder / "manifest.json", runlog.manifest(folder) | {"status": "running"})  # killed before it
    execute(cfg)
    assert (folder / "eval.json").read_text() == before


def test_a_run_that_is_killed_before_its_evaluation_ends_as_any_other(config, tmp_path, monkeypatch):
    straight = execute(config(*LORA, f"paths.runs={tmp_path}/straight")).folder
    cfg = config(*LORA, f"paths.runs={tmp_path}/killed")

    def dying(*arguments):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(job, "evaluate", dying)
        execute(cfg)
    resumed = execute(cfg).folder
    assert (resumed / "eval.json").read_text() == (straight / "eval.json").read_text()


@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_peft_itself_reads_the_updates_that_a_run_leaves(config, bench):
    cfg = config(*LORA)
    folder = execute(cfg).folder
    ours = rows(learner.members(cfg, bench, folder).trained.model)
    plain = copy.deepcopy(bench.model("small"))
    theirs = peft.PeftModel.from_pretrained(plain, str(folder / "adapter")).get_base_model()
    assert torch.equal(rows(theirs), ours)
    assert json.loads((folder / "adapter" / "adapter_config.json").read_text())["r"] == RANK
    assert {p.name for p in (folder / "adapter").iterdir()} == {"adapter_config.json", "adapter_model.safetensors"}


def test_groups_that_change_weights_change_a_merged_copy(config, bench):
    for method in ("offset", "direct"):
        ensemble = learner.members(config(*LORA, f"method={method}"), bench)
        for p in ensemble.trained.model.parameters():
            if p.requires_grad:
                p.data.add_(0.1)
        model = ensemble.trained.model
        attacker = trainable(ensemble, 1.0).trained.model
        assert not has_updates(attacker) and not set(pointers(attacker)) & set(pointers(model))
        torch.testing.assert_close(rows(attacker), rows(model), rtol=1e-4, atol=1e-4)
        assert all(p.requires_grad for p in attacker.parameters())
        assert not set(pointers(rounded(merged(model), 4))) & set(pointers(model))


def test_a_tuned_target_is_rounded_as_one_part(config):
    folder = execute(config(*LORA, "method=direct", "eval.groups=[quantised]")).folder
    entry = runlog.evaluation(folder)["alphas"]["1.0"]
    parts = {name.split("/")[1] for name in entry if name.startswith("quantised/")}
    assert parts == {"int8_all", "int4_all"}  # target and tuned model are of one size: no pair


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


def test_a_target_that_lies_elsewhere_cannot_be_shared():
    with pytest.raises(ConfigError, match="reads the target's own weights"):
        parse(raw("method=direct", "pair.tuning=lora", "pair.target.device=cpu"))
    parse(raw("method=offset", "pair.tuning=lora", "pair.target.device=cpu"))
