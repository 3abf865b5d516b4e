"""What methods and objectives do that are more than a term: proxy, ULD, divergence decoding, distillation, PDU."""

import numpy as np
import pandas as pd
import pytest
import torch
from support.helpers import FEW, execute, killed_at, lines

from unlearn import evaluate
from unlearn.data.encoding import collate, examples_of
from unlearn.grid import table
from unlearn.models import llama
from unlearn.runs.inputs import Inputs
from unlearn.store import runlog

# A tiny world whose models know their answers, so that there is something to forget.
LEARNT = ("pair.target.pretrain.epochs=5", "pair.target.finetune.epochs=30", "pair.small.pretrain.epochs=5",
          "pair.small.general.epochs=10")  # fmt: skip


def rows(bench, models: dict[str, float], split: str, indices: list[int]) -> tuple[torch.Tensor, torch.Tensor]:
    """Logits and labels of some examples' answers, under a weighted sum of models run here and now."""
    examples = examples_of(bench.encoder, bench.data.splits[split])
    batch = collate([examples[i] for i in indices], bench.pad_id)
    with torch.no_grad():
        return sum(w * llama.answer_rows(bench.model(m), batch) for m, w in models.items()), batch.labels


def mean_logp(logits: torch.Tensor, labels: torch.Tensor) -> float:
    return logits.log_softmax(-1)[range(len(labels)), labels].mean().item()


@torch.no_grad()
def prob(bench, *weighted: tuple[float, torch.nn.Module]) -> float:
    """Mean probability that a sum of models gives to the forget answers: the geometric mean over each one's tokens."""
    values = []
    for e in examples_of(bench.encoder, bench.data.splits["forget"]):
        batch = collate([e], bench.pad_id)
        logits = sum(w * llama.answer_rows(model, batch) for w, model in weighted)
        values.append(np.exp(mean_logp(logits, batch.labels)))
    return float(np.mean(values))


# --- proxy --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(("method", "models"), [("proxy", {"small": 1.0}), ("offset", {"target": 1.0})])
def test_proxy_learns_on_the_small_models_own_softmax_and_offset_on_the_ensembles(config, bench, method, models):
    cfg = config("algo=ga", f"method={method}", *FEW)
    log = lines(execute(cfg).folder)
    draw = Inputs(cfg, bench).sampler.draw(0)
    assert log[1]["train/ga"] == pytest.approx(mean_logp(*rows(bench, models, "forget", draw.forget)), rel=1e-5)
    others = {"small", "target"} - set(models)
    assert mean_logp(*rows(bench, {m: 1.0 for m in others}, "forget", draw.forget)) != pytest.approx(
        log[1]["train/ga"], rel=1e-4
    )


def test_proxy_starts_at_its_own_reference_and_what_it_learnt_alone_is_added_to_the_target(config, bench):
    cfg = config("algo=npo_kl", "method=proxy", "eval.alphas=[0,1]", "trainer.lr=1e-2")
    folder = execute(cfg).folder
    log, found = lines(folder), runlog.evaluation(folder)
    assert log[1]["train/kl"] == pytest.approx(0, abs=1e-6) and log[2]["train/kl"] > 1e-6
    # at a log-ratio of 0 an answer's value is (2/β) ln 2, whatever it is worth under target or small model
    assert log[1]["train/npo"] == pytest.approx(2 / cfg.algo.beta * np.log(2), rel=1e-5)
    target = found["references"]["target"]["forget/prob"]
    assert found["alphas"]["0.0"]["forget/prob"] == pytest.approx(target, rel=1e-5)
    target, small = bench.model("target"), bench.model("small")
    expected = prob(bench, (1, target), (1, llama.load(folder / "offset")), (-1, small))
    assert found["alphas"]["1.0"]["forget/prob"] == pytest.approx(expected, rel=1e-4)


# --- ULD ----------------------------------------------------------------------------------------------------------


def test_ulds_assistant_learns_the_forget_set_and_is_subtracted(config):
    from unlearn.runs.workbench import workbench

    cfg = config("method=uld", "algo=uld", *LEARNT, "trainer.steps=30", "trainer.lr=1e-2", "trainer.eval_every=30",
                 "eval.alphas=[0,0.5,1,2]", *FEW)  # fmt: skip
    folder = execute(cfg).folder
    bench, assistant = workbench(cfg), llama.load(folder / "offset")
    draw = Inputs(cfg, bench).sampler.draw(0)
    alone = -mean_logp(*rows(bench, {"small": 1.0}, "forget", draw.forget))  # on its own softmax, by no weight
    assert lines(folder)[1]["train/memorize"] == pytest.approx(alone, rel=1e-5)
    assert prob(bench, (1, assistant)) > 2 * prob(bench, (1, bench.model("small")))
    found = runlog.evaluation(folder)
    forget, retain = (
        [found["alphas"][str(a)][f"{s}/prob"] for a in (0.0, 0.5, 1.0, 2.0)] for s in ("forget", "retain")
    )
    assert forget[0] == pytest.approx(found["references"]["target"]["forget/prob"], rel=1e-5)
    assert forget[0] > forget[1] > forget[2] > forget[3] and forget[3] < 0.6 * forget[0]
    assert retain[3] / retain[0] > forget[3] / forget[0]  # what the assistant does not know, it cannot take away


# --- divergence decoding ------------------------------------------------------------------------------------------


@pytest.mark.parametrize("method", ["dd", pytest.param("dd_rank", marks=pytest.mark.nightly)])
def test_a_method_that_trains_nothing_is_done_without_weights_of_its_own(config, bench, tmp_path, method):
    folder = execute(config(f"method={method}", "eval.alphas=[0,2]")).folder
    manifest, found = runlog.manifest(folder), runlog.evaluation(folder)
    assert manifest["status"] == "done" and set(manifest["models"]) == {"target", "small_retain", "small_full"}
    assert {p.name for p in folder.iterdir()} == {
        "config.yaml", "manifest.json", "eval.json", "examples.parquet", "references.parquet"}  # fmt: skip
    assert pd.read_csv(table.summarise(folder.parent))["trainable"].tolist() == [0, 0]
    target = found["references"]["target"]
    for name in ("forget/prob", "forget/rougeL_recall", "retain/prob", "model_utility"):
        assert found["alphas"]["0.0"][name] == pytest.approx(target[name], rel=1e-5, abs=1e-7)
    assert found["alphas"]["2.0"]["forget/prob"] != pytest.approx(target["forget/prob"], rel=1e-5)
    if method == "dd":  # the sum that its YAML says
        weighted = (("target", 1), ("small_retain", 2), ("small_full", -2))
        expected = prob(bench, *((w, bench.model(n)) for n, w in weighted))
        assert found["alphas"]["2.0"]["forget/prob"] == pytest.approx(expected, rel=1e-4)
    # evaluated again at other α's; objective and seed make no other run
    assert evaluate.main([f"run={folder}", "eval.alphas=[0.5]"]) == 0
    whole = config(f"method={method}", "eval.alphas=[0,0.5,2]", f"paths.runs={tmp_path}/straight", "algo=ga", "seed=4")
    straight = execute(whole).folder
    assert straight.name == folder.name and runlog.manifest(folder)["status"] == "done"
    assert (folder / "eval.json").read_text() == (straight / "eval.json").read_text()


# --- objectives ---------------------------------------------------------------------------------------------------


def test_distillation_starts_from_the_divergence_of_its_teacher_and_lowers_it(config, bench):
    cfg = config("algo=distill", "trainer.steps=12", "trainer.forget_batch=3", "trainer.lr=1e-2", *FEW)
    log = lines(execute(cfg).folder)
    temperature, alpha = cfg.algo.numbers["temperature"], cfg.algo.teacher.alpha
    teacher, _ = rows(bench, {"target": 1.0, "small_retain": alpha, "small_full": -alpha}, "forget", [0, 1, 2])
    target, _ = rows(bench, {"target": 1.0}, "forget", [0, 1, 2])
    taught, mine = ((x / temperature).log_softmax(-1) for x in (teacher, target))
    divergence = temperature**2 * (taught.exp() * (taught - mine)).sum(-1).mean().item()
    assert log[1]["train/distill"] == pytest.approx(divergence, rel=1e-4)
    assert log[-1]["train/distill"] < 0.7 * log[1]["train/distill"]


DISTILLED = ("algo=distill", "trainer.steps=4", "trainer.save_every=1", *FEW)


def test_a_teachers_models_are_among_those_that_a_run_was_made_with(config, bench):
    folder = execute(config(*DISTILLED)).folder
    models = runlog.manifest(folder)["models"]
    teacher = {name: bench.fingerprint(name) for name in ("target", "small_retain", "small_full")}
    assert models.items() >= {f"teacher/{k}": v for k, v in teacher.items()}.items()
    assert set(models) == {"target", "offset", "anchor", *(f"teacher/{name}" for name in teacher)}
    execute(config(*DISTILLED, "eval.alphas=[2]"))  # an evaluation needs no teacher, and forgets none
    assert runlog.manifest(folder)["models"] == models and "2.0" in runlog.evaluation(folder)["alphas"]


@pytest.mark.parametrize("changed", [True, False])
def test_an_unfinished_run_starts_again_if_its_teacher_changed_and_goes_on_if_not(config, monkeypatch, caplog, changed):
    cfg = config(*DISTILLED)
    folder = killed_at(3, cfg, monkeypatch)
    manifest = runlog.manifest(folder)
    assert "teacher/small_retain" in manifest["models"] and (folder / "checkpoint" / "sealed.json").is_file()
    if changed:
        manifest["models"]["teacher/small_retain"] = "another"
        runlog.write_json(folder / "manifest.json", manifest)
    with caplog.at_level("INFO", logger="unlearn"):
        execute(cfg)
    assert ("it starts again" in caplog.text) == changed == ("resuming at step 3" not in caplog.text)
    assert runlog.manifest(folder)["models"]["teacher/small_retain"] != "another"


def test_rmu_moves_hidden_states_of_the_forget_set_and_bounds_those_of_the_rest(config):
    log = lines(execute(config("algo=rmu", "method=direct", "trainer.steps=12", "trainer.lr=1e-2", *FEW)).folder)
    assert log[1]["train/stay"] == 0 and log[-1]["train/stay"] > 0
    assert log[-1]["train/rmu"] < log[1]["train/rmu"]


def test_the_dual_variable_follows_the_retain_term_and_a_resumed_run_goes_on_with_it(config, tmp_path, monkeypatch):
    options = ("algo=pdu", "algo.dual.warmup=0", "trainer.steps=7", "trainer.save_every=2", *FEW)
    straight, weight = execute(config(*options, f"paths.runs={tmp_path}/straight")).folder, 1.0
    for entry in lines(straight)[1:]:
        assert entry["train/dual"] == pytest.approx(weight)
        assert entry["train/loss"] == pytest.approx(
            0.01 * entry["train/margin"] + weight * entry["train/nll"], rel=1e-5
        )
        weight = max(0.0, weight + entry["train/nll"] - 0.1)
    assert weight > 2
    cfg = config(*options, f"paths.runs={tmp_path}/killed")
    folder = killed_at(5, cfg, monkeypatch)
    assert runlog.manifest(folder)["status"] == "running"
    assert [entry["step"] for entry in lines(folder)] == [0, 1, 2, 3, 4, 5]
    assert execute(cfg).folder == folder and not (folder / "checkpoint").exists()
    for name in ("metrics.jsonl", "eval.json", "offset/model.safetensors"):
        assert (folder / name).read_bytes() == (straight / name).read_bytes()
