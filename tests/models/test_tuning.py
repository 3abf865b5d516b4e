"""LoRA: low-rank updates that start at nothing, learn alone, and end inside the weights."""

import io

import pandas as pd
import pytest
import torch
from rich.console import Console
from support.helpers import execute, killed_at, lines, random_examples, tiny_llama, weights
from transformers import AutoModelForCausalLM

from unlearn.config.pair import LoraConfig
from unlearn.data.encoding import collate
from unlearn.grid.table import report
from unlearn.models import llama
from unlearn.models.tuning import lora, merged
from unlearn.runs import learner
from unlearn.runs.trajectory import kept
from unlearn.store import runlog

RANK = 2
LORA = ("pair.tuning=lora", f"pair.lora.rank={RANK}", "algo=npo", "trainer.lr=1e-2")
BATCH = collate(random_examples(), pad_id=0)


def learnt(seed: int = 0) -> torch.nn.Module:
    """A tiny model with low-rank updates that are not zero any more."""
    model = lora(tiny_llama(0), LoraConfig(rank=RANK), seed)
    with torch.no_grad():
        for n, p in model.named_parameters():
            if p.requires_grad:
                p.add_(0.1 * torch.randn(p.shape, generator=torch.Generator().manual_seed(len(n))))
    return model.eval()


def test_updates_start_at_nothing_and_only_they_learn():
    plain, model = tiny_llama(0), lora(tiny_llama(0), LoraConfig(rank=RANK), seed=0).eval()
    assert torch.equal(llama.answer_rows(model, BATCH), llama.answer_rows(plain, BATCH))
    for name, p in model.named_parameters():
        assert p.requires_grad == ("lora_" in name)
    # seven linear layers in each of two blocks, and neither the head nor the embeddings it shares
    trained = {name.split(".lora_")[0] for name, p in model.named_parameters() if p.requires_grad}
    assert len(trained) == 14 and all(".layers." in name for name in trained)


def test_the_seed_decides_the_random_half_and_nothing_outside_notices():
    torch.manual_seed(5)
    before = torch.rand(1)
    torch.manual_seed(5)
    first, again, other = (lora(tiny_llama(0), LoraConfig(rank=RANK), seed) for seed in (0, 0, 1))
    torch.manual_seed(5)
    third = lora(tiny_llama_without_seeding(), LoraConfig(rank=RANK), 0)
    assert torch.equal(torch.rand(1), before)
    a, b, c, d = (dict(m.named_parameters()) for m in (first, again, other, third))
    assert all(torch.equal(a[n], b[n]) and torch.equal(a[n], d[n]) for n in a if "lora_" in n)
    assert any(not torch.equal(a[n], c[n]) for n in a if "lora_" in n)


def tiny_llama_without_seeding():
    with torch.random.fork_rng(devices=[]):
        return tiny_llama(0)


def test_merging_keeps_the_logits_and_leaves_a_plain_model(tmp_path):
    model, names = learnt(), set(tiny_llama(0).state_dict())
    with torch.no_grad():
        before = llama.answer_rows(model, BATCH)
    assert not torch.allclose(before, llama.answer_rows(tiny_llama(0), BATCH), atol=1e-2)
    plain = merged(model)
    with torch.no_grad():
        torch.testing.assert_close(llama.answer_rows(plain, BATCH), before, rtol=1e-4, atol=1e-5)
        assert torch.equal(llama.answer_rows(model, BATCH), before)  # it is a copy that was merged
    assert set(plain.state_dict()) == names
    plain.save_pretrained(tmp_path)
    again = AutoModelForCausalLM.from_pretrained(tmp_path)
    assert llama.fingerprint(again) == llama.fingerprint(plain)
    assert not (tmp_path / "adapter_config.json").exists()


def test_merging_a_model_without_updates_returns_it_as_it_is():
    model = tiny_llama(0)
    print_before = llama.fingerprint(model)
    assert merged(model) is model and llama.fingerprint(model) == print_before


# --- runs ---------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["offset", "direct", "proxy"])
def test_a_run_with_lora_starts_at_the_target_and_saves_what_it_evaluated(config, bench, monkeypatch, method):
    found = {}

    def merging(model, real=merged):
        """What the trained model says before its updates are merged."""
        found["rows"] = llama.answer_rows(model.eval(), BATCH).detach()
        found["learns"] = {n for n, p in model.named_parameters() if p.requires_grad}
        return real(model)

    monkeypatch.setattr(learner, "merged", merging)
    folder = execute(config(*LORA, f"method={method}")).folder
    target = runlog.evaluation(folder)["references"]["target"]
    assert lines(folder)[0]["forget/prob"] == pytest.approx(target["forget/prob"], rel=1e-5)
    assert lines(folder)[-1]["forget/prob"] != pytest.approx(target["forget/prob"], rel=1e-4)
    assert found["learns"] and all("lora_" in n for n in found["learns"])

    saved = AutoModelForCausalLM.from_pretrained(folder / "offset").eval()
    with torch.no_grad():
        torch.testing.assert_close(llama.answer_rows(saved, BATCH), found["rows"], rtol=1e-4, atol=1e-5)
    assert {p.name for p in (folder / "offset").glob("adapter*")} == set()


@pytest.mark.parametrize("method", ["offset", "direct"])
def test_weights_change_by_a_low_rank_update_or_not_at_all(config, bench, method):
    folder = execute(config(*LORA, f"method={method}")).folder
    start = bench.model("target" if method == "direct" else "small").state_dict()
    after, learnable, changed = weights(folder), 0, 0
    assert set(after) <= set(start)
    for name, value in after.items():
        if "_proj" not in name:
            assert torch.equal(value, start[name]), name
            continue
        difference = torch.linalg.svdvals(value.double() - start[name].double())
        # sums in fp32 are rounded: what is beyond the rank is noise
        assert difference[RANK] < 1e-3 * difference[0] or difference[0] < 1e-6, name
        changed += int(difference[0] > 1e-4)
        learnable += RANK * sum(value.shape)
    assert changed == 14
    assert runlog.manifest(folder)["trainable"] == learnable


def test_a_resumed_run_with_lora_and_dropout_ends_as_an_uninterrupted_one(config, tmp_path, monkeypatch):
    options = (*LORA, "pair.lora.dropout=0.3", "trainer.steps=7", "trainer.save_every=2")
    straight = execute(config(*options, f"paths.runs={tmp_path}/straight")).folder
    without = execute(config(*LORA, "trainer.steps=7", f"paths.runs={tmp_path}/without")).folder
    assert (straight / "metrics.jsonl").read_text() != (without / "metrics.jsonl").read_text()  # there was dropout
    cfg = config(*options, f"paths.runs={tmp_path}/killed")
    killed_at(5, cfg, monkeypatch)
    resumed = execute(cfg).folder
    for name in ("metrics.jsonl", "eval.json"):
        assert (resumed / name).read_text() == (straight / name).read_text()
    for name, value in weights(straight).items():
        assert torch.equal(weights(resumed)[name], value)


def test_a_run_with_lora_that_collapsed_keeps_two_plain_models(config, bench, monkeypatch):
    monkeypatch.setattr("unlearn.runs.trajectory.KEPT", 1.0)  # by this, any change is a collapse …
    monkeypatch.setattr(
        "unlearn.runs.trajectory.score", kept
    )  # … and the start, with updates of nothing, is the best point
    folder = execute(config(*LORA, "algo=ga", "trainer.steps=4")).folder
    manifest, start = runlog.manifest(folder), bench.fingerprint("small")
    assert manifest["collapsed"] is not None and manifest["best"]["step"] == 0
    last, best = (AutoModelForCausalLM.from_pretrained(folder / place) for place in ("offset", "best"))
    assert llama.fingerprint(best) == start != llama.fingerprint(last)


def test_a_call_with_both_tunings_shows_them_side_by_side(config, tmp_path):
    jobs = [execute(config(*LORA, f"algo={a}", f"pair.tuning={t}")) for a in ("ga", "npo") for t in ("full", "lora")]
    stream = io.StringIO()
    assert report(jobs, Console(file=stream, width=80)) == 0
    found = stream.getvalue().splitlines()
    assert any(line.split()[:4] == ["algorithm", "method", "α", "tuning"] for line in found)
    assert [line.split()[0] for line in found if line.strip().endswith("reference")] == ["target", "retrained"]
    rows = [line.split() for line in found if line.strip().endswith("done")]
    assert [(r[0], r[3]) for r in rows] == [("ga", "full"), ("ga", "lora"), ("npo", "full"), ("npo", "lora")]
    summary = pd.read_csv(jobs[0].folder.parent / "summary.csv")
    assert set(summary["pair.tuning"]) == {"full", "lora"}
    share = summary.set_index("pair.tuning")["trainable_share"]
    assert (share["full"] == 1).all() and (share["lora"] < 0.5).all()


def test_a_learning_rate_that_is_not_given_is_the_algorithms_times_the_factor(config):
    log = lines(execute(config("algo=npo", "pair.tuning=lora", "pair.lora.lr_factor=7")).folder)
    assert log[1]["train/lr"] == pytest.approx(7 * config("algo=npo").algo.lr["offset"])
