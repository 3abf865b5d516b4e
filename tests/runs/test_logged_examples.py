"""Per-example values come from logged runs alone: the run's own, and the references' of the same questions."""

import json
import math

import pandas as pd
import pytest
from support.helpers import command, execute

from analysis.runs import IDENTITY, StudyError, load
from unlearn.store import runlog, seal


@pytest.fixture
def folder(finished):
    return finished("algo=ga", "eval.alphas=[0,1]")


def test_every_question_has_a_row_per_model_and_alpha_whose_mean_is_in_eval_json(folder):
    table, logged = load(folder.parent).examples, json.loads((folder / "eval.json").read_text())
    assert table.columns[: len(IDENTITY) + 5].tolist() == ["model", *IDENTITY, "folder", "eval_alpha", "split", "id"]
    assert set(table["model"]) == {"run", "target", "retrained"} and set(table["folder"]) == {str(folder)}
    assert table["prompt"].str.len().gt(0).all() and table["algo"].eq("ga").all()
    models = {("run", float(a)): entry for a, entry in logged["alphas"].items()}
    models |= {(name, math.nan): entry for name, entry in logged["references"].items()}
    assert len(models) == 4
    for (model, alpha), entry in models.items():
        rows = table[(table["model"] == model) & (table["eval_alpha"].eq(alpha) | math.isnan(alpha))]
        counts = rows["split"].value_counts().to_dict()
        assert counts == {"forget": 3, "retain": 9, "real_authors": 6, "world_facts": 8}
        for split, of_split in rows.groupby("split"):
            for name in ("prob", "rougeL_recall", "exact_memorization"):
                assert of_split[name].mean() == pytest.approx(entry[f"{split}/{name}"], abs=1e-12)
    same = table[(table["model"] == "target") | table["eval_alpha"].eq(0)]  # α = 0 is the target, row by row
    prob = same.pivot(index=["split", "id"], columns="model", values="prob")
    assert len(prob) == 26 and (prob["run"] - prob["target"]).abs().max() < 1e-5


def test_references_are_written_again_with_other_settings(folder, tmp_path):
    command("unlearn.evaluate", f"run={folder}", "eval.max_examples=2", cwd=tmp_path)
    table = load(folder.parent).examples
    counts = table[table["split"] == "retain"].groupby(["model", "eval_alpha"], dropna=False).size()
    assert counts.tolist() == [2, 2, 2, 2]  # the run at both of its alphas, target, retrained


def test_a_result_file_as_reference_logs_its_examples_too(folder, config, tmp_path):
    examples = pd.read_parquet(folder / "references.parquet")
    theirs = examples[examples["model"] == "retrained"].drop(columns="model")
    theirs.to_parquet(tmp_path / "other.examples.parquet")
    entry = json.loads((folder / "eval.json").read_text())["references"]["retrained"]
    other = {"format": 1, "model": "other", "settings": entry["settings"], "metrics": entry}
    (tmp_path / "other.json").write_text(json.dumps(other))
    again = execute(config("algo=ga", "seed=3", f"eval.retrained={tmp_path}/other.json")).folder
    written = pd.read_parquet(again / "references.parquet")
    kept = written[written["model"] == "retrained"].reset_index(drop=True)
    columns = ["split", "id", "prob", "gold", "generation"]
    pd.testing.assert_frame_equal(kept[columns], theirs.reset_index(drop=True)[columns])


def test_without_a_reference_the_target_alone_is_logged(config):
    folder = execute(config("algo=ga", "eval.retrained=none", "eval.groups=[]")).folder
    assert set(load(folder.parent).examples["model"]) == {"run", "target"}


def test_older_and_unfinished_runs_have_what_they_logged(folder, config):
    (folder / "references.parquet").unlink()
    manifest = runlog.manifest(folder)
    del manifest[seal.RESULTS]  # older runs had neither
    runlog.write_json(folder / "manifest.json", manifest)
    other = folder.with_name("starting")
    other.mkdir()
    (other / "config.yaml").write_text((folder / "config.yaml").read_text())
    study = load(folder.parent)
    assert set(study.examples["model"]) == {"run"} and set(study.examples["folder"]) == {str(folder)}
    assert study.examples is study.examples  # read once
    empty = study.examples_of([str(other)])
    assert empty.empty and empty.columns.tolist() == ["model", *IDENTITY, "folder", "eval_alpha", "split", "id"]


def test_settings_in_which_runs_differ_are_columns_and_one_run_can_be_asked_for(config):
    folders = [execute(config("algo=npo", f"algo.beta={beta}")).folder for beta in (0.1, 0.2)]
    study = load(folders[0].parent)
    assert study.varied == ("algo.beta",)
    assert study.examples.groupby("folder")["algo.beta"].unique().map(list).to_dict() == {
        str(folders[0]): [0.1], str(folders[1]): [0.2]}  # fmt: skip
    assert set(study.examples_of([str(folders[1])])["algo.beta"]) == {0.2}


def test_a_damaged_table_is_named_when_it_is_asked_for(folder):
    (folder / "examples.parquet").write_bytes(b"PAR1 and no more")
    study = load(folder.parent)
    with pytest.raises(StudyError, match=folder.name + "/examples.parquet"):
        _ = study.examples
