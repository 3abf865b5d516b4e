"""Several requests answered one after another: sums of offsets, where a run begins, fusions, and what is measured."""

import json
import shutil
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from support.helpers import TINY, command, compose, execute, offset_ensemble, random_examples, tiny_llama, weights
from torch.testing import assert_close

from unlearn import sequence as verb
from unlearn.config.schema import BeginConfig, ConfigError
from unlearn.data.encoding import collate
from unlearn.grid.rerun import open_run
from unlearn.models import llama
from unlearn.runs import learner, sequence
from unlearn.runs.sequence import Part, add, summed
from unlearn.runs.workbench import workbench
from unlearn.store import runlog
from unlearn.store.identity import run_folder

TINY3 = (*TINY, "data.people=6", "data.requests=[[5],[2],[3]]", "algo=npo", "trainer.lr=1e-2", "eval.groups=[]")


@pytest.fixture(scope="module")
def settings(store, tmp_path_factory):
    runs = tmp_path_factory.mktemp("sequence")
    return lambda *more: compose(*TINY3, f"paths.store={store}", f"paths.runs={runs}", *more)


@pytest.fixture(scope="module")
def jobs(settings):
    """The runs that answer the three requests."""
    return [execute(settings(f"data.request={n}")) for n in (1, 2, 3)]


FIGURES = ("alpha", "tradeoff", "report")


def rows_of(ensemble, batch):
    return {m.name: llama.answer_rows(m.model, batch) for m in ensemble.members}


@torch.no_grad()
def test_a_sum_is_the_target_and_every_weighted_change():
    target, anchor, other = tiny_llama(0), tiny_llama(1), tiny_llama(4)
    offsets = [tiny_llama(n) for n in (2, 3)]
    parts = [offset_ensemble(target, o, anchor) for o in offsets]
    fixed = [{"name": f"offset_{n}", "fingerprint": f"o{n}", "trained": False} for n in (1, 2)]
    named = [
        replace(e, members=tuple(replace(m, **how) if m.trained else m for m in e.members))
        for e, how in zip(parts, fixed, strict=True)
    ]
    both = add(named, [0.5, 2.0])
    assert [(m.name, m.weight(1.0)) for m in both.members] == [
        ("target", 1.0), ("offset_1", 0.5), ("anchor", -2.5), ("offset_2", 2.0)]  # fmt: skip
    batch = collate(random_examples(), pad_id=0)
    t, a, *o = (llama.answer_rows(m, batch) for m in (target, anchor, *offsets))
    assert_close(both.logits(rows_of(both, batch), 1.0), t + 0.5 * (o[0] - a) + 2.0 * (o[1] - a), atol=1e-4, rtol=1e-5)
    assert torch.equal(both.logits(rows_of(both, batch), 0.0), t)
    strange = offset_ensemble(other, offsets[0], anchor)
    first = replace(strange.members[0], model=other, fingerprint="x")
    strange = replace(strange, members=(first, *strange.members[1:]))
    with pytest.raises(ConfigError, match="offsets of different targets"):
        add([named[0], strange], [1, 1])


def test_a_sum_of_runs_is_evaluated_like_any_ensemble(jobs):
    """One run alone as a sum gives the metrics of its eval.json; a second one changes them."""
    cfg = jobs[0].cfg
    alone = sequence.measure(cfg, [Part(jobs[0], 1.0)], 1)
    logged = runlog.evaluation(jobs[0].folder)["alphas"]["1.0"]
    for name in ("forget/prob", "forget/rougeL_recall", "request_2/prob", "retain/prob", "model_utility"):
        assert alone.metrics[name] == pytest.approx(logged[name], rel=1e-4)
    nothing = sequence.measure(cfg, [Part(jobs[0], 0.0), Part(jobs[1], 0.0)], 1)
    target = runlog.evaluation(jobs[0].folder)["references"]["target"]
    assert nothing.metrics["forget/prob"] == pytest.approx(target["forget/prob"], rel=1e-5)


def test_rows_of_an_offset_that_no_longer_learns_are_found_in_the_store(jobs):
    bench = workbench(jobs[0].cfg)
    ensemble = summed([Part(jobs[0], 1.0), Part(jobs[1], 1.0)], bench)
    assert ensemble.trained is None and len({m.fingerprint for m in ensemble.members}) == 4
    again = summed([Part(jobs[1], 1.0)], bench)
    assert {m.fingerprint for m in again.members} < {m.fingerprint for m in ensemble.members}


def test_after_each_request_all_are_measured_in_whatever_order(jobs):
    steps = sequence.evaluate([jobs[2], jobs[0]], [1.0, 1.0])
    assert [s.after for s in steps] == [1, 2] and sequence.numbers(steps[0]) == [1, 2, 3]
    rows = {1: [3], 2: [5], 3: [2]}  # by their number in this order: the people of the runs' own requests 3, 1, 2
    for step in steps:
        for number, people in rows.items():
            split = "forget" if number == step.after else f"request_{number}"
            ids = step.examples[step.examples["split"] == split]["id"]
            assert {int(i.split("/")[1]) for i in ids} == set(people)
            assert step.of_request(number, "prob") == pytest.approx(step.metrics[f"{split}/prob"])
    assert [len(s.offsets) for s in steps] == [1, 2]
    alone = sequence.evaluate([jobs[2], jobs[0]], [1.0, 1.0], "alone")
    assert [len(s.offsets) for s in alone] == [1, 1]
    assert alone[0].of_request(1, "prob") == pytest.approx(steps[0].of_request(1, "prob"))
    assert alone[1].of_request(1, "prob") != pytest.approx(steps[1].of_request(1, "prob"), rel=1e-3)


def test_runs_of_other_lists_or_twice_the_same_make_no_sequence(jobs, settings):
    with pytest.raises(ConfigError, match="each must be there once"):
        sequence.evaluate([jobs[0], jobs[0]], [1.0, 1.0])
    other = settings("data.requests=[[4],[2]]", "data.request=1")
    with pytest.raises(ConfigError, match="different data.requests"):
        sequence.in_order([jobs[0], replace(jobs[0], cfg=other)], 1)


def test_a_list_may_have_grown_since_a_run_was_made(jobs, settings):
    early = execute(settings("data.requests=[[5]]", "data.request=1"))
    cfg = sequence.in_order([early, jobs[1]], 2)
    assert cfg.data.requests == [[5], [2], [3]] and cfg.data.request == 2
    assert sequence.one_list([early.cfg, jobs[1].cfg]) == [[5], [2], [3]]
    step = sequence.evaluate([early, jobs[1]], [1.0, 1.0], "last")[0]
    assert sequence.numbers(step) == [1, 2, 3] and len(step.offsets) == 2


def test_the_verb_prints_and_writes_every_step(jobs, tmp_path, capsys):
    folders = ",".join(str(job.folder) for job in jobs[:2])
    out = tmp_path / "steps.json"
    assert verb.main([f"offsets=[{folders}]", "alphas=[1,0.5]", f"out={out}"]) == 0
    said = capsys.readouterr().out
    assert "after" in said and "request 2" in said and "retrained" in said
    written = json.loads(out.read_text())
    assert [w["after"] for w in written] == [1, 2] and "request_1/prob" in written[1]["metrics"]
    for arguments, message in (
        (["offsets=[nowhere]"], "not the folder of a trained run"),
        ([f"offsets=[{folders}]", "alphas=[1]"], "must be 2 finite numbers"),
        ([f"offsets=[{folders}]", "state=some"], "must be one of sum, alone, last"),
        (["offsets=[]"], "must be a list of one or more"),
    ):
        assert verb.main(arguments) == 2
        assert message in capsys.readouterr().err
    assert "offsets=[FOLDER" in command("unlearn.sequence", "--help", cwd=tmp_path).stdout


@pytest.mark.parametrize("figure", ["table", *(pytest.param(n, marks=pytest.mark.nightly) for n in FIGURES)])
def test_the_analysis_takes_runs_that_measure_requests(jobs, tmp_path, capsys, figure):
    from analysis.runs import load as read_study

    study = Path(shutil.copytree(jobs[0].folder.parent, tmp_path / "runs" / "some"))
    found = read_study(study)
    assert {"forget/prob", "request_1/prob", "request_3/prob"} <= set(found.metrics) and "data.request" in found.varied
    module = import_module(f"analysis.{figure}" + (".__main__" if figure == "report" else ""))
    assert module.main(["some", "--runs", str(tmp_path / "runs")]) == 0, capsys.readouterr().err


# --- where a run begins -----------------------------------------------------------------------------------------------


def fused(settings, jobs, *more):
    runs = ",".join(str(job.folder) for job in jobs)
    return execute(settings(f"begin.runs=[{runs}]", "trainer.steps=0", "data.request=[1,2]", *more))


def test_a_fused_offset_is_the_anchor_and_the_sum_of_the_changes(jobs, settings):
    one = fused(settings, jobs[:2], "begin.alphas=[1,0.5]")
    anchor = load_file(workbench(jobs[0].cfg).folder("small_general") / "model.safetensors")
    first, second, found = (weights(job.folder) for job in (jobs[0], jobs[1], one))
    for name, start in anchor.items():
        assert_close(found[name], start + (first[name] - start) + 0.5 * (second[name] - start))
    manifest = runlog.manifest(one.folder)
    assert manifest["status"] == "done" and manifest["trained"] and "train" not in manifest["seconds"]
    assert [json.loads(line)["step"] for line in (one.folder / "metrics.jsonl").read_text().splitlines()] == [0]
    assert open_run(one.folder).folder == one.folder


def test_a_fusion_of_one_run_answers_as_that_run(jobs, settings):
    one = execute(settings(f"begin.runs=[{jobs[0].folder}]", "trainer.steps=0", "data.request=1"))
    assert one.folder != jobs[0].folder
    a, b = (runlog.evaluation(job.folder)["alphas"]["1.0"] for job in (one, jobs[0]))
    for name in ("forget/prob", "retain/prob", "request_2/prob"):
        assert a[name] == pytest.approx(b[name], rel=1e-5)


def test_a_run_that_goes_on_begins_where_the_other_ended(jobs, settings):
    going = execute(settings(f"begin.runs=[{jobs[0].folder}]", "data.request=2"))
    first = json.loads((going.folder / "metrics.jsonl").read_text().splitlines()[0])
    before = runlog.evaluation(jobs[0].folder)["alphas"]["1.0"]
    assert first["step"] == 0 and first["forget/prob"] == pytest.approx(before["request_2/prob"], rel=1e-4)
    plain = runlog.manifest(jobs[1].folder)
    assert going.folder.name != jobs[1].folder.name and plain["models"] == runlog.manifest(going.folder)["models"]


def test_what_identifies_a_run_is_what_it_began_with_and_not_where_that_lies(jobs, settings, tmp_path):
    copied = Path(shutil.copytree(jobs[0].folder, tmp_path / "elsewhere"))
    runs = (jobs[0].folder, ()), (copied, ()), (jobs[1].folder, ()), (copied, ("begin.alphas=[0.5]",))
    names = [run_folder(settings(f"begin.runs=[{place}]", *more), "data").name for place, more in runs]
    assert names[0] == names[1] and len(set(names)) == 3
    sums = {run_folder(settings(f"begin.runs=[{copied}]", "trainer.steps=0", *o), "data").name.rsplit("-", 1)[1]
            for o in ((), ("trainer.lr=1",), ("algo=ga",))}  # fmt: skip
    assert len(sums) == 1


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        (["trainer.steps=0"], "trainer.steps=0: must be a finite number of at least 1"),
        (["begin.alphas=[1]"], "begin.alphas=[1.0]: are weights of begin.runs"),
        (["begin.runs=[]"], "must be different run folders"),
        (["begin.runs=[nowhere]"], "not the folder of a run"),
        (["begin.runs=[ONE]", "begin.alphas=[1,2]"], "must be 1 finite numbers"),
        (["begin.runs=[ONE,ONE]"], "must be different run folders"),
        (["begin.runs=[ONE]", "method=dd"], "trains no member that could begin there"),
        (["begin.runs=[ONE]", "pair.tuning=lora"], "low-rank updates begin at zero"),
    ],
)
def test_where_a_run_cannot_begin(jobs, settings, overrides, message):
    with pytest.raises(ConfigError) as error:
        settings("data.request=2", *(o.replace("ONE", str(jobs[0].folder)) for o in overrides))
    assert message in str(error.value)


def test_changes_of_another_model_are_refused(jobs):
    model = tiny_llama(0)
    with pytest.raises(ConfigError, match="its change is the change of another model"):
        learner.take_over(model, BeginConfig([str(jobs[0].folder)]), llama.fingerprint(model))
    began = runlog.manifest(jobs[0].folder)["models"]["anchor"]
    with pytest.raises(ConfigError, match="it is another model"):
        learner.take_over(model, BeginConfig([str(jobs[0].folder)]), began)
