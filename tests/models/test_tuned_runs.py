"""Runs with LoRA and unlearning layers: they start at the target, share its weights, and end as they are loaded."""

import copy
import io
import shutil
from dataclasses import replace

import pandas as pd
import peft
import pytest
import torch
from rich.console import Console
from safetensors.torch import load_file
from support.helpers import TINY, Killed, compose, execute, killed_at, lines, random_examples
from torch import nn

from unlearn import evaluate, export, generate
from unlearn.config.derived import learning_rate
from unlearn.config.pair import GRAM, LAYERS
from unlearn.data.encoding import collate
from unlearn.deploy.requests.private import of_run
from unlearn.evaluation.context import trainable
from unlearn.evaluation.groups.quantised import _parts, rounded
from unlearn.grid.rerun import open_run
from unlearn.grid.table import report
from unlearn.models import layers, llama
from unlearn.models.tuning import has_updates, learnt, merged
from unlearn.runs import job, learner, training
from unlearn.runs.training import idle
from unlearn.runs.trajectory import kept
from unlearn.store import runlog, seal
from unlearn.store.files import write_json

RANK = 2
BATCH = collate(random_examples(), pad_id=0)
FEW = ("algo=npo", "trainer.lr=1e-2", "eval.groups=[]", "eval.resamples=0", "eval.max_examples=3")
HOW = {"lora": ("pair.tuning=lora", f"pair.lora.rank={RANK}", *FEW),
       LAYERS: (f"pair.tuning={LAYERS}", "pair.layers.bottleneck=3", *FEW),
       "eul": ("pair.layers.bottleneck=3", *FEW)}  # fmt: skip
TWINS = {"offset": ("offset", "anchor"), "direct": ("tuned", "target"), "proxy": ("offset", "anchor"),
         "eul": ("student", "target")}  # fmt: skip
CASES = [(how, method) for how in ("lora", LAYERS) for method in ("offset", "direct", "proxy")] + [("eul", "eul")]
CASES = [pytest.param(*case, marks=pytest.mark.nightly if case[1] == "proxy" else ()) for case in CASES]


@torch.no_grad()
def rows(model: nn.Module) -> torch.Tensor:
    return llama.answer_rows(model.eval(), BATCH)


def pointers(model: nn.Module) -> dict[int, int]:
    """Every distinct weight or buffer by its address, with its size."""
    return {t.data_ptr(): t.numel() for t in (*model.parameters(), *model.buffers())}


def member(ensemble, name: str) -> nn.Module:
    return next(m.model for m in ensemble.members if m.name == name)


def start(method: str) -> str:
    return "target" if method in ("direct", "eul") else "small"


@pytest.fixture(scope="module")
def finished(store, tmp_path_factory, bench):
    """Function to the job of a run that is done, and what its trained member gave when it was evaluated."""
    root, found = tmp_path_factory.mktemp("tuned"), {}

    def run(how: str, method: str):
        if (how, method) not in found:
            cfg = compose(*TINY, f"paths.store={store}", f"paths.runs={root}/runs", *HOW[how], f"method={method}")
            seen = {}

            def evaluating(cfg, bench, ensemble, *rest, real=job.evaluate, **named):
                seen["rows"] = rows(ensemble.trained.model)
                return real(cfg, bench, ensemble, *rest, **named)

            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(job, "evaluate", evaluating)
                found[how, method] = execute(cfg), seen["rows"]
        return found[how, method]

    return run


@pytest.mark.parametrize(("how", "method"), CASES)
def test_a_run_starts_at_the_target_and_ends_as_it_is_loaded_again(finished, bench, how, method):
    models = {name: bench.model(name) for name in ("target", "small")}
    before = {name: (rows(m), llama.fingerprint(m)) for name, m in models.items()}
    done, evaluated = finished(how, method)
    trained, twin = TWINS[method]
    log, target = lines(done.folder), runlog.evaluation(done.folder)["references"]["target"]["forget/prob"]
    assert log[0]["forget/prob"] == pytest.approx(target, rel=1e-5)
    assert log[-1]["forget/prob"] != pytest.approx(target, rel=1e-5)
    assert log[1]["train/lr"] == 1e-2

    for name, m in models.items():  # not one bit of the plain models moved
        assert bench.model(name) is m and not has_updates(m)
        assert torch.equal(rows(m), before[name][0]) and llama.fingerprint(m) == before[name][1]
    manifest = runlog.manifest(done.folder)
    assert manifest["models"][trained] == manifest["models"][twin] == before[start(method)][1]
    assert {n for n in manifest["sealed_weights"] if n.startswith("adapter/")} == {
        f"adapter/{p.name}" for p in (done.folder / "adapter").iterdir()}  # fmt: skip

    again = learner.members(done.cfg, bench, done.folder)
    assert torch.equal(rows(again.trained.model), evaluated)
    assert set(pointers(member(again, twin))) < set(pointers(again.trained.model))
    assert not any(p.requires_grad for p in again.trained.model.parameters())

    names = {p.name for p in (done.folder / "adapter").iterdir()}
    assert not (done.folder / "offset").exists()
    assert names == {"adapter_config.json", "adapter_model.safetensors"} | ({GRAM} if how != "lora" else set())
    if how != "lora":
        width = 16 if start(method) == "target" else 8
        assert manifest["trainable"] == 2 * 2 * 3 * width


@pytest.mark.parametrize("method", ["offset", "direct"])
@pytest.mark.filterwarnings("ignore:.is_gradient_checkpointing. is deprecated:FutureWarning")  # peft's own use of it
def test_weights_change_by_a_low_rank_update_that_peft_itself_reads_or_not_at_all(finished, bench, method):
    done, evaluated = finished("lora", method)
    plain = copy.deepcopy(bench.model(start(method)))
    before, learnable, changed = plain.state_dict(), 0, 0
    after = merged(learnt(plain, done.folder / "adapter")).state_dict()
    assert set(after) <= set(before)
    for name, value in after.items():
        if "_proj" not in name:
            assert torch.equal(value, before[name]), name
            continue
        difference = torch.linalg.svdvals(value.double() - before[name].double())
        # sums in fp32 are rounded: what is beyond the rank is noise
        assert difference[RANK] < 1e-3 * difference[0] or difference[0] < 1e-6, name
        changed += int(difference[0] > 1e-4)
        learnable += RANK * sum(value.shape)
    assert changed == 14 and runlog.manifest(done.folder)["trainable"] == learnable
    theirs = peft.PeftModel.from_pretrained(plain, str(done.folder / "adapter"))
    assert torch.equal(rows(theirs.get_base_model()), evaluated) and theirs.peft_config["default"].r == RANK


@pytest.mark.parametrize("method", TWINS)
def test_the_ensemble_holds_one_set_of_weights_and_what_learns(config, bench, method):
    trained, twin = TWINS[method]
    for how in ["eul"] if method == "eul" else ["lora", LAYERS]:
        ensemble = learner.members(config(*HOW[how], f"method={method}"), bench)
        own, base = pointers(member(ensemble, trained)), pointers(member(ensemble, twin))
        updates = {p.data_ptr(): p.numel() for p in member(ensemble, trained).parameters() if p.requires_grad}
        assert own == base | updates and not set(base) & set(updates)
        everything = {k: v for m in ensemble.members for k, v in pointers(m.model).items()}
        plain = {k: v for m in ensemble.members if not m.trained for k, v in pointers(m.model).items()}
        assert sum(everything.values()) == sum(plain.values()) + sum(updates.values())
    if method != "eul":
        full = learner.members(config(f"method={method}"), bench)
        assert not set(pointers(member(full, trained))) & set(pointers(member(full, twin)))


def test_groups_that_change_weights_change_a_merged_copy_and_leave_layers_in(config, bench):
    for how, method in (("lora", "offset"), ("lora", "direct"), (LAYERS, "offset"), ("eul", "eul")):
        ensemble = learner.members(config(*HOW[how], f"method={method}"), bench)
        model = ensemble.trained.model
        for p in model.parameters():
            if p.requires_grad:
                p.data.add_(0.1)
        said, attacker = rows(model), trainable(ensemble, 1.0).trained.model
        assert not has_updates(attacker) and not set(pointers(attacker)) & set(pointers(model))
        torch.testing.assert_close(rows(attacker), said, rtol=1e-4, atol=1e-4)
        assert all(p.requires_grad for p in attacker.parameters())
        assert not set(pointers(rounded(merged(model), 4))) & set(pointers(model))
        if how != "lora":
            assert merged(model) is model and torch.equal(rows(attacker), said)
            assert not torch.equal(rows(rounded(model, 4)), said) and torch.equal(rows(model), said)
        # target and tuned model are of one size: no pair
        plain = tuple(replace(m, model=merged(m.model)) for m in ensemble.members)  # as they are rounded
        parts = set(_parts(replace(ensemble, members=plain)))
        assert parts == ({"all"} if method in ("direct", "eul") else {"target", "pair", "all"})


@pytest.mark.parametrize("how", [LAYERS, "lora", "full"])
def test_a_model_whose_weights_the_learner_reads_never_leaves_the_gpu(config, bench, how):
    from unlearn.runs.inputs import Inputs

    cfg = config(f"pair.tuning={how}", "algo=npo")
    ensemble = learner.members(cfg, bench)
    found = idle(Inputs(cfg, bench, steps=1).objective(ensemble), None)
    names = {m.name for m in ensemble.members if any(m.model is model for model in found)}
    assert names == ({"target", "anchor"} if how == "full" else {"target"})


def test_a_run_that_also_holds_its_merged_model_as_runs_once_did_is_read_by_its_updates(finished, bench, tmp_path):
    done, evaluated = finished("lora", "offset")
    folder = tmp_path / "runs" / done.folder.parent.name / done.folder.name
    shutil.copytree(done.folder, folder)
    merged(learner.members(done.cfg, bench, folder).trained.model).save_pretrained(folder / "offset")
    manifest = runlog.manifest(folder)
    write_json(folder / "manifest.json", manifest | {seal.WEIGHTS: seal.weights(folder)})
    again = open_run(folder)
    assert torch.equal(rows(again.ensemble.trained.model), evaluated) and again.job.was_done
    assert set(of_run(again, b"salt", True)) > {"offset/config.json", "adapter/adapter_model.safetensors"}
    assert export.main([f"run={folder}", f"to={tmp_path}/out", "collapsed=yes"]) == 0
    assert not (tmp_path / "out" / "offset" / "model.safetensors").exists()


# --- runs that are interrupted, collapse, or are asked again ------------------------------------------------------


def test_a_run_that_is_killed_before_its_evaluation_ends_as_any_other(finished, config, monkeypatch):
    straight, cfg = finished("lora", "offset")[0].folder, config(*HOW["lora"], "method=offset")

    def dying(*arguments, **named):
        raise Killed

    with monkeypatch.context() as patch, pytest.raises(Killed):
        patch.setattr(job, "evaluate", dying)
        execute(cfg)
    assert (execute(cfg).folder / "eval.json").read_text() == (straight / "eval.json").read_text()


def test_a_run_that_checkpoints_ends_as_one_that_does_not(finished, config, monkeypatch):
    calls, straight = [], finished("lora", "offset")[0].folder

    def counted(model, real=training.checkpointed):
        calls.append(model)
        return real(model)

    monkeypatch.setattr(training, "checkpointed", counted)
    folder = execute(config(*HOW["lora"], "method=offset", "trainer.checkpointing=true")).folder
    assert len(calls) == 1 and folder.name == straight.name and lines(folder) == lines(straight)
    name = "adapter/adapter_model.safetensors"
    assert (folder / name).read_bytes() == (straight / name).read_bytes()


@pytest.mark.parametrize("how", ["lora", pytest.param(LAYERS, marks=pytest.mark.nightly)])
def test_a_resumed_run_ends_as_an_uninterrupted_one(config, tmp_path, monkeypatch, how):
    options = (*HOW[how], "trainer.steps=5", "trainer.save_every=2", "trainer.eval_every=5")
    dropout = [f"pair.lora.dropout={p}" for p in ((0.3, 0) if how == "lora" else ())]
    straight = execute(config(*options, *dropout[:1], f"paths.runs={tmp_path}/straight")).folder
    if dropout:
        without = execute(config(*options, *dropout[1:], f"paths.runs={tmp_path}/without")).folder
        assert (straight / "metrics.jsonl").read_text() != (without / "metrics.jsonl").read_text()
    cfg = config(*options, *dropout[:1], f"paths.runs={tmp_path}/killed")
    killed_at(3, cfg, monkeypatch)
    resumed = execute(cfg).folder
    for name in ("metrics.jsonl", "eval.json", "adapter/adapter_config.json"):
        assert (resumed / name).read_text() == (straight / name).read_text()
    for path in straight.glob("*/*.safetensors"):
        one, other = (load_file(folder / path.relative_to(straight)) for folder in (resumed, straight))
        assert one.keys() == other.keys() and all(torch.equal(one[k], other[k]) for k in other)
    assert {p.parent.name for p in straight.glob("*/*.safetensors")} == {"adapter"}


@pytest.mark.parametrize("how", ["lora", LAYERS])
def test_a_run_that_collapsed_keeps_its_start_beside_its_end(config, bench, monkeypatch, how):
    for place in ("runs.trajectory", "evaluation.collapse"):  # by this, any change is a collapse …
        monkeypatch.setattr(f"unlearn.{place}.KEPT", 1.0)
    monkeypatch.setattr("unlearn.runs.trajectory.score", kept)  # … and the start is the best point
    folder = execute(config(*HOW[how], "algo=ga", "trainer.steps=3")).folder
    manifest = runlog.manifest(folder)
    assert manifest["collapsed"] is not None and manifest["best"]["step"] == 0
    best, last = (load_file(folder / place / "adapter_model.safetensors") for place in ("best", "adapter"))
    zero = "lora_B" if how == "lora" else layers.UP
    assert not any(w.any() for n, w in best.items() if zero in n)
    assert any(w.any() for n, w in last.items() if zero in n)


def test_a_run_with_layers_is_evaluated_and_asked_again_and_not_exported(finished, tmp_path, capsys):
    done, _ = finished("eul", "eul")
    folder = tmp_path / "runs" / done.folder.parent.name / done.folder.name
    shutil.copytree(done.folder, folder)
    assert evaluate.main([f"run={folder}", "eval.alphas=[0,1]", "trainer.progress=false"]) == 0
    found = runlog.evaluation(folder)
    assert set(found["alphas"]) == {"0.0", "1.0"}
    target = found["references"]["target"]["forget/prob"]
    assert found["alphas"]["0.0"]["forget/prob"] == pytest.approx(target, rel=1e-6)
    assert generate.main([f"run={folder}", "prompt=Where was", "alpha=1"]) == 0
    assert "unlearned α=1" in capsys.readouterr().out
    assert export.main([f"run={folder}", f"to={tmp_path}/out"]) == 2
    assert "its tuning is unlearning_layers" in capsys.readouterr().err and not (tmp_path / "out").exists()


def test_a_call_with_both_tunings_shows_them_side_by_side(finished, config):
    low = finished("lora", "offset")[0]
    rate = learning_rate(config("algo=npo", "pair.tuning=lora", "pair.lora.lr_factor=7"))
    assert rate == pytest.approx(7 * low.cfg.algo.lr["offset"])
    full = execute(replace(low.cfg, pair=replace(low.cfg.pair, tuning="full")))
    stream = io.StringIO()
    assert report([full, low], Console(file=stream, width=80)) == 0
    found = stream.getvalue().splitlines()
    assert any(line.split()[:4] == ["algorithm", "method", "α", "tuning"] for line in found)
    assert [line.split()[0] for line in found if line.strip().endswith("reference")] == ["target", "retrained"]
    table = [line.split() for line in found if line.strip().endswith("done")]
    assert [(r[0], r[3]) for r in table] == [("npo", "full"), ("npo", "lora")]
    summary = pd.read_csv(low.folder.parent / "summary.csv").query("method == 'offset'")
    share = summary.groupby("pair.tuning")["trainable_share"]
    assert share.min()["full"] == 1 and share.max()["lora"] < 0.5
