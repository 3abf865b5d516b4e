"""bf16 arithmetic, compiled models, and models put aside: what changes, and what must not."""

import ast
import json
from dataclasses import replace

import pytest
import torch
from support.helpers import FEW, ROOT, execute, lines, weights
from torch import nn
from transformers import PreTrainedModel

from unlearn.ensemble.rows import FrozenRows
from unlearn.models.placement import compiled, parked
from unlearn.runs import learner
from unlearn.runs.inputs import Inputs
from unlearn.runs.training import idle
from unlearn.runs.trajectory import probe


def made(config, bench, *overrides):
    cfg = config(*overrides)
    inputs = Inputs(cfg, bench, steps=1)
    return cfg, inputs.objective(learner.members(cfg, bench)), inputs.sampler.draw(0)


def answers_of(found, draw):
    return found.answers(found.indices(draw))


def gap(answers) -> float:
    """Between log P and log P_target, at most."""
    return (answers.logits.log_softmax(-1) - answers.reference.log_softmax(-1)).abs().max().item()


@pytest.mark.parametrize(
    ("pieces", "method", "tuning"),
    [(p, m, t) for p in (False, True) for m, t in (("offset", "full"), ("offset", "lora"), ("proxy", "lora"),
                                                   ("direct", "full"))],
)  # fmt: skip
def test_at_step_0_in_bf16_the_ensemble_is_the_target_and_kl_is_zero(config, bench, in_pieces, pieces, method, tuning):
    in_pieces(pieces)
    how = f"method={method}", f"pair.tuning={tuning}", "trainer.precision=bf16"
    _, found, draw = made(config, bench, "algo=npo_kl", *how)
    for name, answers in answers_of(found, draw).items():
        assert gap(answers) < 1e-5, name
        assert answers.kl.abs().max() < 1e-6 and answers.log_ratio.abs().max() < 1e-4
        assert answers.kl.dtype == answers.logp.dtype == torch.float32


def test_an_anchor_from_the_store_would_not_cancel_an_offset_in_bf16(config, bench):
    """Why it is run beside the offset: rows in bf16 differ from those in fp32, and with the batch they are made in."""
    cfg, found, draw = made(config, bench, "algo=kl", "trainer.precision=bf16")
    assert all("anchor" not in group.rows for group in found.groups.values())
    groups = {
        name: replace(g, rows=Inputs(cfg, bench).rows(found.ensemble.frozen(1.0), g.examples))
        for name, g in found.groups.items()
    }
    apart = replace(found, groups=groups, twin=None)
    assert max(gap(a) for a in answers_of(apart, draw).values()) > 1e-3


@pytest.mark.parametrize("algo", ["npo_kl", "undial"])
def test_loss_and_gradient_in_bf16_are_near_those_in_fp32_in_pieces_or_not(config, bench, in_pieces, algo):
    found = []
    for precision, pieces in (("fp32", False), ("bf16", False), ("bf16", True)):
        in_pieces(pieces)
        _, step, draw = made(config, bench, f"algo={algo}", f"trainer.precision={precision}", "alpha=0.7")
        generator, model = torch.Generator().manual_seed(0), step.ensemble.trained.model
        with torch.no_grad():
            for p in model.parameters():
                p += 0.05 * torch.randn(p.shape, generator=generator)
        loss = sum(loss for loss, _ in (m() for m in step.micro_batches(draw)))
        loss.backward()
        assert {p.grad.dtype for p in model.parameters()} == {torch.float32}
        found.append((loss.item(), torch.cat([p.grad.flatten() for p in model.parameters()])))
    (loss, gradient), *others = found
    for other, other_gradient in others:
        assert other != loss and other == pytest.approx(loss, rel=0.01)
        assert (other_gradient - gradient).norm() < 0.05 * gradient.norm()


def test_a_run_in_bf16_keeps_weights_in_fp32_and_measures_in_fp32(config):
    runs = [execute(config("algo=gd", f"trainer.precision={p}", *FEW)).folder for p in ("fp32", "bf16")]
    plain, half = (weights(folder) for folder in runs)
    assert {w.dtype for w in half.values()} == {torch.float32}
    assert any((w != w.bfloat16().float()).any() for w in half.values())  # they moved by less than bf16 can say
    assert all(torch.allclose(half[k], plain[k], atol=5e-3) for k in plain)
    assert any((half[k] != plain[k]).any() for k in plain)
    start = [{k: v for k, v in lines(folder)[0].items() if "/prob" in k} for folder in runs]
    assert start[0] == start[1]  # before the first step both are the target, measured alike
    assert json.loads((runs[1] / "manifest.json").read_text())["rows"]["retain"].keys() == {"target"}


@pytest.mark.nightly
def test_compiled_models_give_the_same_loss_and_are_themselves_again_afterwards(config, bench, monkeypatch):
    """By the eager backend: what a compiler makes of it is not ours to test, and takes a minute."""
    real = nn.Module.compile
    monkeypatch.setattr(nn.Module, "compile", lambda self, **how: real(self, **how, backend="eager"))
    _, found, draw = made(config, bench, "algo=kl", "trainer.compile=true")
    model = found.ensemble.trained.model
    names = list(model.state_dict())
    before = [m()[0].item() for m in found.micro_batches(draw)]
    with compiled(model):
        assert model.base_model._compiled_call_impl is not None
        assert [m()[0].item() for m in found.micro_batches(draw)] == pytest.approx(before, abs=1e-6)
        assert list(model.state_dict()) == names
    assert model.base_model._compiled_call_impl is None


def test_models_are_idle_where_all_their_rows_are_stored_and_stay_where_they_are_without_a_gpu(config, bench):
    def idle_of(*overrides):
        cfg, found, _ = made(config, bench, *overrides)
        models = {id(m.model): m.name for m in (*found.ensemble.members, found.reference)}
        return sorted(models[id(m)] for m in idle(found, probe(cfg, bench, found.ensemble)))

    assert idle_of("algo=kl") == ["anchor", "target"]
    assert idle_of("algo=kl", "trainer.stored_rows=hidden") == ["anchor", "target"]
    assert idle_of("algo=kl", "trainer.precision=bf16") == ["target"]  # the anchor is run beside the offset
    assert idle_of("algo=kl", "trainer.stored_rows_gib=0") == []
    assert idle_of("algo=rmu", "method=direct") == []
    assert idle_of("algo=distill") == ["anchor"]  # the target is a member of the teacher, too
    model = bench.model("target")
    before = [p.data_ptr() for p in model.parameters()]
    with parked([model]):
        assert [p.data_ptr() for p in model.parameters()] == before
    _, found, _ = made(config, bench, "algo=kl")
    kinds = {type(rows) for group in found.groups.values() for rows in group.rows.values()}
    assert kinds == {FrozenRows} and found.precision is None and found.twin is None


def test_attention_is_the_fused_one_and_neither_flash_attention_nor_deepspeed_is_ever_imported(bench):
    for name in ("target", "small"):
        model = bench.model(name)
        assert isinstance(model, PreTrainedModel) and model.config._attn_implementation == "sdpa"
    for folder in ("unlearn", "analysis", "experiments"):
        for path in (ROOT / folder).rglob("*.py"):
            names = set()
            for node in ast.walk(ast.parse(path.read_text())):
                if isinstance(node, ast.Import):
                    names |= {alias.name for alias in node.names}
                elif isinstance(node, ast.ImportFrom):
                    names.add(node.module or "")
            assert not {n.split(".")[0] for n in names} & {"flash_attn", "deepspeed", "xformers"}, path
