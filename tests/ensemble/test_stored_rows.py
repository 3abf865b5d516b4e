"""Every way of keeping rows: what it gives back, what it may not keep, how much room it takes, what runs say of it."""

import json
from dataclasses import replace

import numpy as np
import pytest
import torch
from support.helpers import FEW, TINY, execute, random_examples, tiny_llama
from support.refusals import check

from unlearn.config.schema import ConfigError
from unlearn.data.encoding import collate
from unlearn.ensemble import rows as rows_size
from unlearn.ensemble.ensemble import Member
from unlearn.ensemble.frozen import rows_of, stored
from unlearn.ensemble.rows import Budget, FrozenRows, HiddenRows, LiveRows, Shape, TopRows, top
from unlearn.grid.inspection import too_large
from unlearn.models.llama import answer_rows, narrow
from unlearn.runs import learner
from unlearn.runs.inputs import Inputs
from unlearn.store.entries import Store

KINDS = {"fp32": FrozenRows, "hidden": HiddenRows, "fp16": FrozenRows, "topk": TopRows}


def target(model=None) -> Member:
    return Member("target", tiny_llama(0) if model is None else model, "print", 1.0, 0.0, False)


def made(config, bench, *overrides):
    """Objective and first draw of a run whose offset is away from its start, where many gradients vanish."""
    cfg = config(*overrides)
    inputs = Inputs(cfg, bench)
    ensemble = learner.members(cfg, bench)
    generator = torch.Generator().manual_seed(0)
    with torch.no_grad():
        for p in ensemble.trained.model.parameters():
            p += 0.05 * torch.randn(p.shape, generator=generator)
    return inputs.objective(ensemble), inputs.sampler.draw(0)


def loss_and_gradient(found, draw):
    model, total = found.ensemble.trained.model, 0.0
    model.zero_grad()
    for micro_batch in found.micro_batches(draw):
        loss, _ = micro_batch()
        loss.backward()
        total += loss.item()
    return total, torch.cat([p.grad.flatten() for p in model.parameters()])


# the largest error of a gradient, relative to its norm
@pytest.mark.parametrize("algo", ["gd", "kl", "npo_kl", "undial"])
@pytest.mark.parametrize(
    ("kind", "error"), [("fp32", 1e-6), ("hidden", 1e-6), ("fp16", 1e-3), ("topk", 1e-5)], ids=lambda v: str(v)
)
def test_loss_and_gradient_with_stored_rows_are_those_of_recomputed_ones(config, bench, algo, kind, error):
    width = len(bench.encoder.tokenizer)
    live, draw = made(config, bench, f"algo={algo}", "trainer.stored_rows_gib=0")
    kept, _ = made(config, bench, f"algo={algo}", f"trainer.stored_rows={kind}", f"trainer.stored_rows_k={width}")
    rows = [group.rows for group in kept.groups.values()]
    assert {type(r["target"]) for r in rows} == {KINDS[kind]}
    exact = {type(r["anchor"]) for r in rows if "anchor" in r}
    assert exact == {HiddenRows if kind == "hidden" else FrozenRows}
    assert {r["anchor"].array.dtype for r in rows} == {np.dtype(np.float32)}
    (loss, gradient), (again, gradient_again) = loss_and_gradient(live, draw), loss_and_gradient(kept, draw)
    assert gradient.norm() > 0.01
    assert again == pytest.approx(loss, rel=error, abs=error)
    assert (gradient_again - gradient).norm() <= error * gradient.norm()


@pytest.mark.parametrize("kind", ["hidden", "topk"])
def test_rows_are_read_in_parts_as_they_are_read_whole(tmp_path, kind):
    examples = random_examples(9)
    rows = stored(Store(tmp_path), target(), examples, 0, 4, kind, 5)
    indices = [8, 2, 5]
    whole, read = rows.take(indices), rows.reader(indices)
    for here in (slice(0, 3), slice(3, 7), slice(2, 4), slice(None)):
        torch.testing.assert_close(read(here), whole[here], rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_hidden_states_give_the_rows_of_the_model_whatever_its_precision(tmp_path, dtype):
    model, examples = narrow(tiny_llama(0).to(dtype), 33), random_examples(9, vocabulary=33)
    rows = stored(Store(tmp_path), target(model), examples, 0, 1, "hidden")
    assert rows.array.shape == (examples.starts[-1], 16) and rows.array.itemsize == dtype.itemsize
    for i, example in enumerate(examples):  # one by one, as they were stored: half precision depends on the batch
        with torch.no_grad():
            fresh = answer_rows(model, collate([example], 0))
        torch.testing.assert_close(rows.take([i]), fresh, rtol=1e-6, atol=1e-6)


def test_of_topk_the_likeliest_and_the_label_keep_their_probability_and_the_others_share_the_rest():
    p = torch.tensor([[0.05, 0.5, 0.25, 0.15, 0.05], [0.05, 0.5, 0.25, 0.15, 0.05]])
    ids, logp, rest = top(p.log() + 3.0, torch.tensor([0, 1]), 2)  # a row's constant says nothing
    assert [sorted(row) for row in ids.tolist()] == [[0, 1, 2], [1, 2, 3]]
    torch.testing.assert_close(rest.exp(), torch.tensor([0.20, 0.10]))
    examples = random_examples(1)
    assert len(examples[0].answer) >= 2
    examples[0] = replace(examples[0], answer=examples[0].answer[-2:])
    rows = TopRows(ids.int().numpy(), logp.numpy(), rest.numpy(), examples, 2, 5)
    expected = torch.tensor([[0.05, 0.5, 0.25, 0.1, 0.1], [0.05, 0.5, 0.25, 0.15, 0.05]])
    torch.testing.assert_close(rows.take([0]).exp(), expected)
    found = rows.describe()
    assert found["k"] == 2 and found["missing_mass"]["mean"] == pytest.approx(0.15)
    assert found["missing_mass"]["p95"] == pytest.approx(0.195)


def test_what_must_cancel_another_member_is_never_rounded(tmp_path):
    anchor = Member("anchor", tiny_llama(0), "print", 0.0, -1.0, False)
    for kind in ("fp16", "topk"):
        with pytest.raises(ValueError, match="rows of 'anchor' as .*must cancel another member.*fp32, hidden"):
            stored(Store(tmp_path), anchor, random_examples(), 0, kind=kind, k=5)
    assert not (tmp_path / "rows").exists()
    # Why it is refused: at step 0 the ensemble would not be the target within 1e-5.
    with torch.no_grad():
        rows, base = (answer_rows(tiny_llama(s), collate(random_examples(), 0)) for s in (1, 0))
    moved = (base + rows - rows.half().float()).log_softmax(-1) - base.log_softmax(-1)
    assert moved.abs().max() > 1e-4


@pytest.mark.parametrize("kind", ["auto", "hidden", "fp16", "topk"])
def test_at_step_0_the_ensemble_is_the_target_as_it_is_kept(config, bench, kind):
    cfg = config("algo=npo_kl", f"trainer.stored_rows={kind}", "trainer.stored_rows_k=5")
    inputs = Inputs(cfg, bench, steps=1)
    found = inputs.objective(learner.members(cfg, bench))
    for name, answers in found.answers(found.indices(inputs.sampler.draw(0))).items():
        gap = answers.logits.log_softmax(-1) - answers.reference.log_softmax(-1)
        assert gap.abs().max() < 1e-5, name


def test_rounding_is_for_training_alone(config, bench, store):
    """The trajectory and the evaluation read exact rows, so their values do not depend on what training read."""
    values = []
    for more in ((), ("trainer.stored_rows=topk", "trainer.stored_rows_k=1")):
        folder = execute(config("algo=gd", *FEW, *more)).folder
        first = json.loads((folder / "metrics.jsonl").read_text().splitlines()[0])
        entry = json.loads((folder / "eval.json").read_text())
        values.append((first, entry["references"]["target"]["forget/prob"]))
        rows = json.loads((folder / "manifest.json").read_text())["rows"]
    assert values[0] == values[1]
    assert rows["retain"]["anchor"]["kind"] == "fp32"
    kept = rows["retain"]["target"]
    assert kept["kind"] == "topk" and kept["k"] == 1
    assert 0 < kept["missing_mass"]["mean"] < 1 and kept["missing_mass"]["mean"] <= kept["missing_mass"]["p95"] < 1


BIG = Shape(vocabulary=128_256, hidden=4096, bytes=2)
ROWS = 2**18


def test_sizes_are_counted_by_hand_and_are_those_of_the_files(tmp_path, monkeypatch, caplog):
    assert rows_size.gib("fp32", ROWS, BIG) == pytest.approx(128_256 * 4 / 2**12)
    assert rows_size.gib("fp16", ROWS, BIG) == pytest.approx(128_256 * 2 / 2**12)
    assert rows_size.gib("hidden", ROWS, BIG) == 2.0
    assert rows_size.gib("topk", ROWS, BIG, 100) == pytest.approx((101 * 8 + 4) / 2**12)
    member, examples = target(), random_examples(9)
    for kind in KINDS:
        rows = stored(Store(tmp_path), member, examples, 0, 4, kind, 5)
        arrays = [rows.array, *((rows.ids, rows.residual) if kind == "topk" else ())]
        size = rows_size.gib(kind, examples.starts[-1], member.kind.shape, 5) * 2**30
        assert sum(a.nbytes for a in arrays) == round(size)
    monkeypatch.setattr("unlearn.ensemble.kinds.ANNOUNCED_GIB", 0)
    with caplog.at_level("INFO"):
        stored(Store(tmp_path / "other"), target(), examples, 0, kind="fp16")
    assert "answer rows of the target as fp16: " in caplog.text and "GiB" in caplog.text


def test_auto_keeps_small_logits_then_hidden_states_then_nothing_and_too_many_are_refused(tmp_path, monkeypatch):
    member, examples = target(), random_examples(9)
    assert Budget(most_gib=4).settled(ROWS, BIG) == "hidden" and Budget(most_gib=4).fits(ROWS, BIG)
    assert not Budget(most_gib=1).fits(ROWS, BIG)
    assert type(rows_of(Store(tmp_path), member, examples, 0, 1)) is FrozenRows
    monkeypatch.setattr(rows_size, "FULL_GIB", 0)
    assert type(rows_of(Store(tmp_path), member, examples, 0, 1)) is HiddenRows
    assert type(rows_of(Store(tmp_path), member, examples, 0, 0)) is LiveRows
    refusing = Budget("fp32", 100, 1.0, rough=True, refuse=True)
    message = refusing.refusal(ROWS, "target (retain)", BIG)
    assert message == (
        "262,144 answer rows of the target (retain) are 125 GiB as fp32, over trainer.stored_rows_gib=1, and "
        "trainer.stored_rows_over=refuse. Give trainer.stored_rows=topk (0.198 GiB); or "
        "trainer.stored_rows_gib=125.25; or trainer.stored_rows_over=live: they are computed in every step"
    )
    said = replace(refusing, kind="fp16").refusal(ROWS, "target", BIG)
    assert "trainer.stored_rows=auto with trainer.stored_rows_over=live" in said
    with pytest.raises(ConfigError, match="answer rows of the target are .* over trainer.stored_rows_gib=0, and"):
        rows_of(Store(tmp_path), target(), random_examples(), 0, replace(refusing, most_gib=0.0))


def test_what_is_told_before_there_are_models_is_what_is_stored_and_a_refused_run_makes_none(config, bench, tmp_path):
    for algo, method in (("npo_kl", "offset"), ("idk", "offset"), ("gd", "proxy"), ("gd", "direct")):
        limits = [f"algo={algo}", f"method={method}", "trainer.stored_rows_over=refuse"]
        assert too_large(config(*limits)) == []
        cfg = config(*limits, "trainer.stored_rows_gib=0")
        told = {line.split(",")[0] for line in too_large(cfg)}
        free = replace(cfg, trainer=replace(cfg.trainer, stored_rows_over="live"))
        found = Inputs(free, bench).objective(learner.members(cfg, bench))
        counts = {
            f"{g.examples.starts[-1]} answer rows of the {m} ({name}) are"
            for name, g in found.groups.items()
            for m in g.rows
        }
        assert {line.rsplit(" are", 1)[0] + " are" for line in told} == counts
    # Else whether they fit would change what is trained, and the hash of the run would not know.
    assert too_large(config("trainer.stored_rows_gib=0")) == []
    lines = too_large(config("trainer.stored_rows_gib=0", "trainer.stored_rows=topk"))
    assert lines and all("rows of the target" in line and "would not be rounded" in line for line in lines)
    refused = check(*TINY, "trainer.stored_rows_over=refuse", "trainer.stored_rows_gib=0", cwd=tmp_path)
    assert refused.status == 2
    assert "over trainer.stored_rows_gib=0, and trainer.stored_rows_over=refuse. Give" in refused.err
    assert {file.rsplit("/", 3)[0] for file in refused.left} == {"store"} and "store/model/" not in str(refused.left)


def test_where_steps_draw_less_than_half_of_a_set_only_that_is_stored_and_the_loss_is_the_same(config, bench):
    few = ("algo=npo_kl", "trainer.retain_batch=2", "trainer.forget_batch=1")
    part, draw = made(config, bench, *few, "trainer.steps=1")
    whole, _ = made(config, bench, *few, "trainer.steps=100")
    assert {name: len(g.examples) for name, g in part.groups.items()} == {"forget": 1, "retain": 2}
    assert len(whole.groups["retain"].examples) == len(bench.data.splits["retain"])
    assert all(group.places is None for group in whole.groups.values())
    (loss, gradient), (again, gradient_again) = loss_and_gradient(part, draw), loss_and_gradient(whole, draw)
    assert again == pytest.approx(loss, rel=1e-6)
    torch.testing.assert_close(gradient_again, gradient, rtol=1e-5, atol=1e-6)
