"""The training loop: sampling, accumulation, and two steps of every algorithm and of every method."""

import traceback

import numpy as np
import pytest
import torch
from safetensors.torch import load_file
from support.helpers import ALGOS, FEW, ROOT, TRAINED, Killed, execute, killed_at, lines, weights

from unlearn.data.sampling import Sampler, epoch_batches
from unlearn.learning.answers import Answers, PerToken
from unlearn.learning.loop import Optimisation
from unlearn.learning.losses import FORGET
from unlearn.models.llama import fingerprint
from unlearn.runs import job
from unlearn.runs.workbench import workbench
from unlearn.store import runlog

# --- every algorithm, every method --------------------------------------------------------------------------------


OWN = {"uld": "uld", "rmu": "direct"}  # methods of objectives that do not fit the default one
MORE = ("altpo", "distill", "dpo", "kl", "npo", "pdu", *OWN)  # what needs more than two terms and the two sets
CASES = [pytest.param(a, OWN.get(a, "offset"), marks=[] if a in MORE else pytest.mark.nightly) for a in ALGOS]
CASES += [("npo", m) for m in TRAINED if m not in ("offset", *OWN.values())]


@pytest.mark.parametrize(("algo", "method"), CASES)
def test_every_algorithm_and_every_method_runs_two_steps(config, bench, algo, method):
    soon = ["method.numbers.tau=0"] if method in ("defer", "refuse") else []  # in two steps nothing parts by more
    cfg = config(f"algo={algo}", f"method={method}", *soon, *FEW)
    there = workbench(cfg)
    before = {name: fingerprint(there.model(name)) for name in ("target", "small")}
    folder = execute(cfg).folder
    assert runlog.manifest(folder)["status"] == "done"
    assert before == {name: fingerprint(there.model(name)) for name in before}  # frozen members stay as they were
    log = lines(folder)
    assert [entry["step"] for entry in log] == [0, 1, 2]
    assert all(np.isfinite(v) for entry in log for v in entry.values())
    # At step 0 the unlearned model is the target, whatever the method.
    target = runlog.evaluation(folder)["references"]["target"]
    if method != "uld":  # its assistant is subtracted from the first step on, without an anchor
        assert log[0]["forget/prob"] == pytest.approx(target["forget/prob"], rel=1e-4)
    assert log[2]["forget/prob"] != log[0]["forget/prob"]
    if algo == "kl":
        assert log[1]["train/kl"] == pytest.approx(0, abs=1e-6) and log[2]["train/kl"] > 1e-6
    if method == "eul":  # it has layers, of which one half starts at zero
        layers = load_file(folder / "adapter" / "adapter_model.safetensors")
        assert any(value.any() for name, value in layers.items() if "_up" in name)
        return
    start = bench.model("target" if method == "direct" else "small").state_dict()
    trained = weights(folder)
    assert any(not torch.equal(trained[name], start[name]) for name in trained)


def test_from_a_run_to_a_term_are_four_calls(config, monkeypatch):
    called = []

    def ga(forget: Answers) -> PerToken:
        frames = traceback.extract_stack()
        called.append([f.name for f in frames if f.filename.startswith(f"{ROOT / 'unlearn'}/")])
        return forget.logp

    monkeypatch.setitem(FORGET, "ga", ga)
    execute(config("algo=ga", "trainer.eval_every=0"))
    assert called and all(names == ["execute", "train", "run", "loss"] for names in called)


# --- equal runs ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("algo", ["npo", *(pytest.param(name, marks=pytest.mark.nightly) for name in ("kl", "idk"))])
def test_accumulation_follows_the_trajectory_of_the_large_batch(config, tmp_path, algo):
    runs = {}
    for parts in (1, 3):
        cfg = config(f"algo={algo}", *FEW, "trainer.steps=6", "trainer.log_every=1", "trainer.eval_every=3",
                     f"trainer.accumulate={parts}", f"paths.runs={tmp_path}/{parts}")  # fmt: skip
        runs[parts] = execute(cfg).folder
    for one, three in zip(lines(runs[1]), lines(runs[3]), strict=True):
        assert three == pytest.approx(one, rel=2e-4, abs=1e-6)


def test_another_seed_gives_another_run(finished):
    one, other = (finished("algo=ga", *more) for more in ((), ("seed=1",)))
    assert [e["train/loss"] for e in lines(one)[1:]] != [e["train/loss"] for e in lines(other)[1:]]


def test_a_run_killed_while_evaluating_is_not_trained_again(config, monkeypatch):
    cfg = config("algo=ga")
    with monkeypatch.context() as patch:
        patch.setattr(job, "evaluate", lambda *a, **k: (_ for _ in ()).throw(Killed))
        with pytest.raises(Killed):
            execute(cfg)
    monkeypatch.setattr(job, "train", lambda *a: pytest.fail("trained again"))
    assert runlog.manifest(execute(cfg).folder)["status"] == "done"


def test_the_schedule_warms_up_and_decays_to_its_last_value():
    linear = Optimisation(1.0, 100, 0.1, 0.1, "linear", 0, (0.9, 0.99), 1.0)
    assert [linear.factor(s) for s in (0, 4, 9, 10)] == pytest.approx([0.1, 0.5, 1.0, 1.0])
    assert linear.factor(55) == pytest.approx(0.55) and linear.factor(100) == pytest.approx(0.1)
    cosine = Optimisation(1.0, 100, 0.1, 0.1, "cosine", 0, (0.9, 0.99), 1.0)
    assert cosine.factor(55) == pytest.approx(0.55) and cosine.factor(100) == pytest.approx(0.1)


# --- sampling -----------------------------------------------------------------------------------------------------


def test_alternating_runs_log_one_set_at_a_time_and_resume_exactly(config, tmp_path, monkeypatch):
    options = ("algo=npo", "algo.interleave=epochs", "trainer.epochs=2", "trainer.steps=null", "trainer.save_every=2",
               "trainer.retain_batch=3", "trainer.accumulate=2", *FEW)  # fmt: skip
    straight = execute(config(*options, f"paths.runs={tmp_path}/straight")).folder
    log = lines(straight)
    turns = ["r" if "train/nll" in e else "f" for e in log[1:]]
    assert all(("train/nll" in e) != ("train/npo" in e) for e in log[1:])
    cycle = len(turns) // 2
    assert turns == turns[:cycle] * 2 and "".join(turns[:cycle]).lstrip("r").strip("f") == "" and turns[0] == "r"
    assert log[cycle]["epoch"] == 1.0 and log[-1]["epoch"] == 2.0
    cfg = config(*options, f"paths.runs={tmp_path}/killed")
    killed_at(cycle + 1, cfg, monkeypatch)
    resumed = execute(cfg).folder
    for name in ("metrics.jsonl", "eval.json"):
        assert (resumed / name).read_text() == (straight / name).read_text()


def test_a_dual_variable_waits_for_the_retain_set_s_turn(config):
    cfg = config("algo=pdu", "algo.interleave=epochs", "algo.dual.warmup=0", "trainer.steps=30", *FEW)
    log = lines(execute(cfg).folder)
    with_dual = [("train/dual" in e) for e in log[1:]]
    assert with_dual == [("train/nll" in e) for e in log[1:]] and True in with_dual and False in with_dual


def test_an_epoch_visits_every_forget_example_once_and_retain_is_drawn_afresh_by_seed_and_step_alone():
    sampler, again, other = (Sampler(7, 30, 5, forget_batch=3, retain_batch=4, seed=seed) for seed in (0, 0, 1))
    assert sampler.steps_per_epoch == 3
    draws = [sampler.draw(step) for step in range(6)]
    for epoch in (draws[:3], draws[3:]):
        assert sorted(i for d in epoch for i in d.forget) == list(range(7))
    assert [d.forget for d in draws[:3]] != [d.forget for d in draws[3:]]
    assert all(len(set(d.retain)) == 4 for d in draws)
    assert len({tuple(d.retain) for d in draws}) == 6
    assert all(len(d.refusal) == len(d.forget) and set(d.refusal) <= set(range(5)) for d in draws)
    assert sampler.draw(4) == draws[4] == again.draw(4) != other.draw(4)
    small = Sampler(2, 3, 0, 20, 60, seed=0).draw(0)  # no more than a set has is asked for
    assert sorted(small.forget) == [0, 1] and sorted(small.retain) == [0, 1, 2] and small.refusal == []


def test_alternating_epochs_visit_each_set_once_in_turn():
    sampler = Sampler(7, 12, 5, forget_batch=3, retain_batch=4, seed=0, held_out=(2, 5), interleave=True)
    assert sampler.steps_per_epoch == 3 + 3  # ten retain examples by four, seven forget examples by three
    plain = Sampler(7, 12, 5, forget_batch=3, retain_batch=4, seed=0, held_out=(2, 5))
    orders = []
    for epoch in range(2):
        draws = [sampler.draw(6 * epoch + at) for at in range(6)]
        assert [(len(d.forget), len(d.retain)) for d in draws] == [(0, 4), (0, 4), (0, 2), (3, 0), (3, 0), (1, 0)]
        assert sorted(i for d in draws for i in d.retain) == [0, 1, 3, 4, 6, 7, 8, 9, 10, 11]
        assert sorted(i for d in draws for i in d.forget) == list(range(7))
        assert [len(d.refusal) for d in draws] == [0, 0, 0, 3, 3, 1]
        assert [d.forget for d in draws[3:]] == [plain.draw(3 * epoch + at).forget for at in range(3)]
        orders.append([i for d in draws for i in d.retain])
    assert orders[0] != orders[1] and sampler.draw(4) == sampler.draw(4)


def test_training_batches_cover_an_epoch_and_hold_similar_lengths():
    lengths = [int(n) for n in np.random.default_rng(0).integers(5, 60, 200)]
    batches = epoch_batches(lengths, 8, seed=0, epoch=0)
    assert sorted(i for b in batches for i in b) == list(range(200))
    padded = sum(max(lengths[i] for i in b) * len(b) for b in batches)
    assert padded < 1.25 * sum(lengths)
    assert batches == epoch_batches(lengths, 8, 0, 0) != epoch_batches(lengths, 8, 0, 1)
