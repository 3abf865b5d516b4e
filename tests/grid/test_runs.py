"""The true command line: run folders, skipping, failing jobs, exit statuses. Each call is a process of its own."""

import io
import json
import os
import shutil
import sys
import tomllib
from unittest import mock

import pandas as pd
import pytest
import yaml
from support.helpers import ROOT, TINY, broken, command, compose, execute, python
from transformers import AutoModelForCausalLM, AutoTokenizer

from unlearn.grid import table
from unlearn.grid.refusal import printable
from unlearn.store import runlog

MODULE = "unlearn.run"


@pytest.fixture(scope="module")
def grid(tmp_path_factory, store):
    """A finished grid of the tiny world, through the command line: its folder and what it printed."""
    cwd = tmp_path_factory.mktemp("grid")
    options = ["-m", *TINY, f"paths.store={store}", "algo=npo", "alpha=0.5,1"]
    return cwd, options, command(MODULE, *options, cwd=cwd)


def folders(cwd, study="default"):
    return sorted(p.parent for p in (cwd / "runs" / study).glob("*/manifest.json"))


def snapshot(cwd):
    return {p: (p.stat().st_mtime_ns, p.stat().st_size) for f in folders(cwd) for p in f.rglob("*") if p.is_file()}


def test_a_grid_leaves_one_complete_folder_per_job(grid):
    cwd, _, _ = grid
    assert [f.name.rsplit("-", 1)[0] for f in folders(cwd)] == [f"npo-offset-a{alpha}-s0" for alpha in (0.5, 1)]
    for folder in folders(cwd):
        names = {p.name for p in folder.iterdir()}
        assert names >= {"config.yaml", "manifest.json", "metrics.jsonl", "eval.json", "examples.parquet", "offset",
                         "log.txt"} and "checkpoint" not in names  # fmt: skip
    manifest = runlog.manifest(folders(cwd)[0])
    assert manifest["status"] == "done" and manifest["error"] is None and manifest["seed"] == 0
    assert set(manifest["seconds"]) == {"prepare", "rows", "train", "evaluate"}
    assert manifest["versions"]["torch"] and manifest["hardware"]["threads"] == 1 and manifest["peak_memory_mb"] > 100
    assert set(manifest["models"]) == {"target", "offset", "anchor"}
    assert manifest["models"]["offset"] == manifest["models"]["anchor"] != manifest["models"]["target"]
    config = yaml.safe_load((folders(cwd)[0] / "config.yaml").read_text())
    assert [config[k]["name"] for k in ("algo", "method", "pair", "data")] == ["npo", "offset", "bios", "bios"]
    assert config["alpha"] == 0.5 and "hydra" not in config and "${" not in str(config)
    place = folders(cwd)[0] / "offset"
    model, tokenizer = (kind.from_pretrained(place) for kind in (AutoModelForCausalLM, AutoTokenizer))
    assert model.get_output_embeddings().weight.shape[0] == len(tokenizer)
    assert not list(place.glob("*.bin"))


def test_eval_json_examples_table_and_summary_agree(grid):
    cwd, _, done = grid
    for number, folder in enumerate(folders(cwd), 1):
        begun = f"[{number}/2] npo offset α={number / 2:g} seed=0: {folder.relative_to(cwd)}"
        assert begun in done.stdout and begun in (folder / "log.txt").read_text().splitlines()[0]
    for text in ("target", "retrained", "npo", "forget", "utility", "summary: runs/default/summary.csv",
                 "python -m analysis.tradeoff"):  # fmt: skip
        assert text in done.stdout
    summary = pd.read_csv(cwd / "runs" / "default" / "summary.csv").set_index("folder")
    assert len(summary) == 2 and set(summary["status"]) == {"done"}
    for folder in folders(cwd):
        evaluation = json.loads((folder / "eval.json").read_text())
        examples = pd.read_parquet(folder / "examples.parquet")
        assert set(evaluation["references"]) == {"target", "retrained"}
        assert evaluation["references"]["retrained"]["forget_quality"] == 1.0
        (alpha,) = evaluation["alphas"]
        metrics, row = evaluation["alphas"][alpha], summary.loc[folder.name]
        assert set(examples["alpha"]) == {float(alpha)} == {row["eval_alpha"]}
        assert row["retain/prob"] == pytest.approx(metrics["retain/prob"])
        for split, rows in examples.groupby("split"):
            assert len(rows) == {"forget": 3, "retain": 9, "real_authors": 6, "world_facts": 8}[split]
            for name in ("prob", "rougeL_recall", "exact_memorization"):
                assert rows[name].mean() == pytest.approx(metrics[f"{split}/{name}"])
            assert rows["prompt"].str.len().gt(0).all() and rows["gold"].str.len().gt(0).all()
        assert 0 <= metrics["model_utility"] <= 1 and 0 <= metrics["forget_quality"] <= 1


def test_a_second_identical_call_does_nothing_and_another_alpha_is_evaluated_without_training(grid):
    cwd, options, _ = grid
    before = snapshot(cwd)
    done = command(MODULE, *options, cwd=cwd)
    assert snapshot(cwd) == before and done.stdout.count("done before") == 2
    folder = folders(cwd)[0]
    weights, log = ((folder / name).read_bytes() for name in ("offset/model.safetensors", "metrics.jsonl"))
    entries = json.loads((folder / "eval.json").read_text())["alphas"]
    command(MODULE, *options[1:-1], "alpha=0.5", "eval.alphas=[0,0.5,2]", cwd=cwd)
    after = json.loads((folder / "eval.json").read_text())
    assert list(after["alphas"]) == ["0.0", "0.5", "2.0"] and after["alphas"]["0.5"] == entries["0.5"]
    assert len(folders(cwd)) == 2
    assert (folder / "offset/model.safetensors").read_bytes() == weights
    assert (folder / "metrics.jsonl").read_bytes() == log
    target = after["references"]["target"]
    for name in ("forget/prob", "retain/prob", "world_facts/prob_options", "model_utility"):
        assert after["alphas"]["0.0"][name] == pytest.approx(target[name], abs=1e-5)
    assert set(pd.read_parquet(folder / "examples.parquet")["alpha"]) == {0.0, 0.5, 2.0}


def test_a_failing_job_stops_no_other_sets_the_exit_status_and_runs_are_told_apart(tmp_path, store):
    file = broken(tmp_path)
    options = ["-m", *TINY, f"paths.store={store}", "algo=npo", "algo.beta=0.1,0.2", f"method.file=null,{file}"]
    done = command(MODULE, *options, cwd=tmp_path, check=False)
    assert done.returncode == 1
    status = {f: runlog.manifest(f)["status"] for f in folders(tmp_path)}
    assert sorted(status.values()) == ["done", "done", "failed", "failed"]
    failed = next(f for f in status if status[f] == "failed")
    assert "broken on purpose" in runlog.manifest(failed)["error"]
    assert "Traceback" in (failed / "log.txt").read_text() and "Traceback" not in done.stdout + done.stderr
    summary = pd.read_csv(tmp_path / "runs/default/summary.csv")
    assert sorted(summary["status"]) == sorted(status.values())
    assert sorted(summary["algo.beta"]) == [0.1, 0.1, 0.2, 0.2]
    header = next(line.split() for line in done.stdout.splitlines() if "algorithm" in line)
    assert header[:5] == ["algorithm", "method", "α", "beta", "file"]
    for f in status:
        assert (f"{f.name}: ZeroDivisionError" in done.stdout) == (status[f] == "failed")


def test_users_configs_and_hydras_own_sweep_syntax_are_listed_and_end_with_a_table(tmp_path, store):
    for group, name, text in (
        ("algo", "gentle", "name: gentle\nforget: npo\nretain: kl\nbeta: 0.5\nlr: {offset: 1e-4}\n"),
        ("experiment", "both", "# @package _global_\nstudy: both\n"
         "hydra: {sweeper: {params: {algo: 'glob(ge*)', seed: '0,1'}}}\n"),
    ):  # fmt: skip
        (tmp_path / "mine" / group).mkdir(parents=True)
        (tmp_path / "mine" / group / f"{name}.yaml").write_text(text)
    options = ["--config-dir", "mine", "-m", *TINY, f"paths.store={store}", "experiment=both"]
    done = command(MODULE, *options, cwd=tmp_path)
    assert [f.name.split("-")[0] for f in folders(tmp_path, "both")] == ["gentle", "gentle"]
    assert "not started" not in done.stdout
    rows = [line.split()[0] for line in done.stdout.splitlines() if " done " in line and "offset " in line]
    assert rows == ["gentle", "gentle"]


def test_an_installed_package_holds_yaml_tree_and_analysis_inside_itself(tmp_path, made_up):
    """A wheel has one name of its own (pyproject.toml): every second user has a folder called analysis."""
    wheel = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["hatch"]["build"]["targets"]["wheel"]
    assert wheel["packages"] == ["unlearn"]
    for source, place in {"unlearn": "unlearn", **wheel["force-include"]}.items():
        assert place.split("/")[0] == "unlearn"
        shutil.copytree(ROOT / source, tmp_path / "site" / place, ignore=shutil.ignore_patterns("__pycache__"))
    (tmp_path / "analysis.py").write_text("raise RuntimeError('a file of the user')\n")
    installed = {"cwd": tmp_path, "PYTHONPATH": str(tmp_path / "site")}
    done = python("-m", "unlearn.analysis.table", str(made_up), **installed)
    assert "retrained" in done.stdout and "npo" in done.stdout
    script = "from unlearn.config.schema import conf_dir; print(conf_dir()); from unlearn.run import main; main()"
    done = python("-c", script, "algo=npo", "--cfg", "job", **installed)
    assert done.stdout.startswith(str(tmp_path / "site")) and "name: npo" in done.stdout


def test_a_torn_line_in_the_log_is_cut_when_a_run_is_resumed(finished):
    folder = finished("algo=ga")
    whole = (folder / "metrics.jsonl").read_text()
    (folder / "metrics.jsonl").write_text(whole + '{"step": 3, "ep')
    log = object.__new__(runlog.RunLog)
    log.folder, log.mirror = folder, runlog.Mirror()
    log.rewind(1)
    kept = (folder / "metrics.jsonl").read_text()
    assert whole.startswith(kept) and [json.loads(line)["step"] for line in kept.splitlines()] == [0, 1]


def test_a_trained_run_is_not_continued_with_other_models(finished, config):
    folder = finished("algo=ga")
    manifest = runlog.manifest(folder)
    manifest["models"]["target"] = "another"
    runlog.write_json(folder / "manifest.json", manifest)
    with pytest.raises(ValueError, match="was trained with the models .*another"):
        execute(config("algo=ga", "eval.alphas=[2]"))


@pytest.fixture
def failed(tmp_path):
    """Two jobs that failed, of templates and with an error that look like rich's markup."""
    texts = ("'{question}'", "'[INST] {question} [/INST]'")
    cfgs = (compose(*TINY, f"paths.runs={tmp_path}", f"data.template.prompt={text}") for text in texts)
    jobs = [runlog.job(cfg, "data") for cfg in cfgs]
    for job in jobs:
        runlog.fail(job, ValueError("expected one of [cpu, cuda] in [/tmp/x]"))
    return jobs


def test_no_text_is_markup_and_what_a_terminal_cannot_show_is_replaced(failed, tmp_path, monkeypatch):
    out = io.TextIOWrapper(io.BytesIO(), encoding="latin-1")
    monkeypatch.setattr(sys, "stdout", out)
    printable()
    assert table.report(failed) == 2
    said = out.buffer.getvalue().decode("latin-1")
    assert "expected one of [cpu, cuda] in [/tmp/x]" in said and "[INST] {question} [/INST]" in said and "?" in said


@pytest.mark.parametrize("error", [None, UnicodeEncodeError("latin-1", "α", 0, 1, "not in it")])
def test_results_are_written_before_anything_is_printed_and_whether_or_not_anybody_reads_it(failed, monkeypatch, error):
    reader, writer = os.pipe()
    os.close(reader)
    with monkeypatch.context() as patch, os.fdopen(writer, "w") as out:
        patch.setattr(sys, "stdout", out)
        if error is None:
            assert table.report(failed) == 2
        else:
            patch.setattr(table, "_table", mock.Mock(side_effect=error))
            with pytest.raises(UnicodeEncodeError):
                table.report(failed)
    assert len(pd.read_csv(failed[0].folder.parent / "summary.csv")) == 2


def test_answers_longer_than_the_generation_limit_are_refused(config):
    with pytest.raises(ValueError, match="eval.max_new_tokens=3 would cut generations short"):
        execute(config("eval.max_new_tokens=3"))


def test_what_jobs_share_is_made_once(config, monkeypatch, store, tmp_path):
    """Baselines and rows are shared by algorithms, α's and seeds."""
    from unlearn.evaluation import evaluation

    private = shutil.copytree(store, tmp_path / "store")
    execute(config("algo=npo", f"paths.store={private}"))
    rows, calls = {p.name for p in (private / "rows").iterdir()}, []

    def counting(ensemble, *a, run=evaluation.evaluate, **k):
        calls.append([m.name for m in ensemble.members])
        return run(ensemble, *a, **k)

    monkeypatch.setattr(evaluation, "evaluate", counting)
    for options in (["algo=kl"], ["algo=simnpo", "alpha=2"], ["algo=npo", "seed=5"]):
        execute(config(*options, f"paths.store={private}"))
    assert {p.name for p in (private / "rows").iterdir()} == rows
    assert calls == 3 * [["target", "offset", "anchor"]]


def test_prepare_fills_the_store_and_trains_nothing(tmp_path):
    options = [*TINY, "paths.store=store"]
    done = command("unlearn.prepare", *options, cwd=tmp_path)
    assert all(name in done.stdout for name in ("target", "retrained", "small", "3 forget, 9 retain"))
    assert not folders(tmp_path)
    entries = {p.parent.parent.name for p in (tmp_path / "store").glob("*/*/entry.json")}
    assert entries == {"draft", "model", "reference", "rows", "tokenizer"}
    before = sorted((tmp_path / "store").glob("model/*"))
    command(MODULE, *options, "algo=kl", cwd=tmp_path)
    assert sorted((tmp_path / "store").glob("model/*")) == before and len(folders(tmp_path)) == 1


def test_two_processes_give_the_same_run_to_the_last_bit(tmp_path, store, monkeypatch):
    files = []
    for seed in ("1", "3"):  # of Python's hashes; under them a set of two words comes in different orders
        monkeypatch.setenv("PYTHONHASHSEED", seed)
        if seed == "3":  # what another project left there
            monkeypatch.setenv("ACCELERATE_GRADIENT_ACCUMULATION_STEPS", "4")
            monkeypatch.setenv("ACCELERATE_MIXED_PRECISION", "bf16")
        options = (f"paths.store={store}", f"paths.runs=runs{seed}", "algo=kl", "trainer.steps=5")
        command(MODULE, *TINY, *options, cwd=tmp_path)
        (folder,) = (tmp_path / f"runs{seed}" / "default").glob("kl-*")
        files.append([(folder / name).read_bytes() for name in ("metrics.jsonl", "eval.json")])
    assert files[0] == files[1]
