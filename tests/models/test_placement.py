"""Memory while a model learns: what a step recomputes, and what is given back, changes nothing that is learnt."""

import gc
import os
import re
from contextlib import nullcontext
from pathlib import Path

import pytest
import torch
from support.helpers import tiny_llama
from test_tuned_runs import BATCH

from unlearn.config.pair import LAYERS, LayersConfig, LoraConfig
from unlearn.data.encoding import Example, collate
from unlearn.learning.loop import Loop, Optimisation
from unlearn.models import layers, llama, placement
from unlearn.models.placement import OWN_PAGES, _glibc, checkpointed, in_parts, returned
from unlearn.models.tuning import lora

MODELS = os.environ.get("UNLEARN_REAL_MODELS")  # a folder with smollm2
STEPS = Optimisation(1e-2, 3, 0.0, 1.0, "linear", 0.1, (0.9, 0.99), 1.0)


def learning(model, how: str):
    """What learns beside the frozen model, or a model that learns itself."""
    if how == LAYERS:
        return layers.add(llama.freeze(model), LayersConfig(bottleneck=3), 0)
    return lora(llama.freeze(model), LoraConfig(rank=2), 0) if how == "lora" else model


def learnt(model, batch, on: bool, steps: Optimisation = STEPS):
    """Losses and trained weights after a few steps, the first gradients, and how often a block was computed."""
    losses, gradients, computed = [], {}, []
    block = next(m for m in model.modules() if type(m).__name__.endswith("MLP"))
    hook = block.register_forward_pre_hook(lambda *_: computed.append(1))  # the second time ends where all is known

    def loss():
        value = llama.answer_rows(model, batch).log_softmax(-1).gather(1, batch.labels[:, None]).mean()
        losses.append(value.item())
        return value, {}

    loop = Loop(model, steps, "cpu")

    def seen(*_) -> None:
        found = {name: p.grad.clone() for name, p in model.named_parameters() if p.grad is not None}
        gradients.setdefault(len(losses), found)

    loop.optimizer.register_step_pre_hook(seen)
    with checkpointed(model) if on else nullcontext():
        loop.run(lambda step: [loss])
    hook.remove()
    weights = {name: p.detach() for name, p in model.named_parameters() if p.requires_grad}
    return losses, gradients[1], weights, len(computed)


@pytest.mark.parametrize("how", ["lora", "full", LAYERS])
def test_checkpointing_computes_blocks_twice_and_changes_no_bit_of_losses_gradients_and_weights(how):
    plain, found = (learnt(learning(tiny_llama(0), how), BATCH, on) for on in (False, True))
    losses, gradients, weights, once = plain
    assert losses == found[0] and len(set(losses)) == STEPS.steps
    assert gradients and gradients.keys() == found[1].keys()
    assert all(torch.equal(g, found[1][name]) for name, g in gradients.items())
    assert all(torch.equal(w, found[2][name]) for name, w in weights.items())
    assert found[3] == 2 * once
    if how == "lora":
        ends = [name for name in found[2] if "lora_B" in name]
        assert len(ends) >= 14 and all(found[2][name].any() for name in ends), "every update moved from zero"


@pytest.mark.parametrize("how", ["lora", "full"])
def test_a_step_is_read_in_as_many_parts_as_what_it_keeps_asks_for(how, monkeypatch):
    model = learning(tiny_llama(0), how)  # two blocks; q, k, v, o: 16 in, 16 out; gate, up: 16 in, 32 out; down: 32, 16
    kept = 4 * 2 * (4 * 32 + 3 * 48)  # bytes of a token
    assert in_parts(model, 10_000) == 1
    monkeypatch.setattr(placement, "AT_ONCE", 100 * kept)
    assert [in_parts(model, tokens) for tokens in (0, 100, 101, 1000)] == [1, 1, 2, 10]
    with checkpointed(model):
        assert in_parts(model, 1000) == 1
    assert in_parts(model.to("meta"), 1000) == 1  # a GPU, too, reads the step at once


def resident() -> float:
    """Of this process, in bytes, without what is mapped from files."""
    return 1e3 * int(re.search(r"RssAnon:\s+(\d+)", Path("/proc/self/status").read_text())[1])


@pytest.mark.skipif(_glibc() is None, reason="memory is glibc's to give back")
def test_what_a_step_frees_goes_back_to_the_system():
    gc.collect()  # nothing of other tests is freed meanwhile
    with returned(tiny_llama(0)):
        before = resident()
        kept = [torch.ones(2 * OWN_PAGES) for _ in range(30)]  # 8 MiB each
        assert resident() - before > 200 * 2**20
        between = kept[::2]  # what lies between others goes back, too
        del kept
        assert resident() - before < 160 * 2**20
        del between
    assert resident() - before < 40 * 2**20


@pytest.mark.nightly
@pytest.mark.skipif(MODELS is None, reason="UNLEARN_REAL_MODELS names no folder with smollm2")
def test_every_update_of_a_real_model_moves_with_and_without_checkpointing():
    model = llama.freeze(llama.load(Path(MODELS) / "smollm2"))
    batch = collate([Example(f"e{i}", (1, 5 + i, 9, 33), (40 + i, 77, 2)) for i in range(4)], pad_id=2)
    two = Optimisation(1e-3, 2, 0.0, 1.0, "linear", 0.0, (0.9, 0.99), 1.0)
    plain, found = (learnt(lora(model, LoraConfig(), 0), batch, on, two) for on in (False, True))
    assert plain[0] == found[0] and found[3] == 2 * plain[3]
    assert all(torch.equal(g, found[1][name]) for name, g in plain[1].items())
    ends = [name for name in found[2] if "lora_B" in name]
    assert len(ends) == 7 * 30 and all(found[2][name].any() for name in ends)
