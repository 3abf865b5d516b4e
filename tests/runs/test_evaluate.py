"""``python -m unlearn.evaluate``: a trained run again, at other α's or settings, without training."""

import copy
import json
import re
from unittest import mock

import pandas as pd
import pytest
from omegaconf import OmegaConf
from support.helpers import command, execute

from unlearn import generate
from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Example
from unlearn.evaluation import evaluation
from unlearn.grid.rerun import _config, open_run
from unlearn.runs import baselines
from unlearn.store import runlog


@pytest.fixture
def folder(finished):
    return finished("algo=ga")


def test_other_alphas_are_added_as_if_evaluated_after_training_and_nothing_is_trained(folder, config, tmp_path):
    weights = (folder / "offset" / "model.safetensors").read_bytes()
    done = command("unlearn.evaluate", f"run={folder}", "eval.alphas=[0,2]", cwd=tmp_path)
    found = json.loads((folder / "eval.json").read_text())
    assert list(found["alphas"]) == ["0.0", "1.0", "2.0"]
    target = found["references"]["target"]["retain/prob"]
    assert found["alphas"]["0.0"]["retain/prob"] == pytest.approx(target, abs=1e-5)
    assert (folder / "offset" / "model.safetensors").read_bytes() == weights
    assert runlog.manifest(folder)["status"] == "done" and len(runlog.manifest(folder)["evaluations"]) == 1
    assert "target" in done.stdout and done.stdout.count("ga ") >= 2
    straight = execute(config("algo=ga", "eval.alphas=[0,1,2]", f"paths.runs={tmp_path}/other")).folder
    assert (folder / "eval.json").read_text() == (straight / "eval.json").read_text()


def test_what_was_trained_cannot_be_changed_and_foreign_folders_are_refused(folder, tmp_path):
    for overrides, message in (
        (["algo.beta=2"], "a finished run keeps it"),
        (["eval.max_examples=0"], "eval.max_examples=0"),
        (["eval.nonsense=1"], "nonsense"),
    ):
        with pytest.raises(ConfigError, match=message):
            open_run(folder, overrides)
    with pytest.raises(ConfigError, match="not the folder of a trained run"):
        open_run(tmp_path)
    assert open_run(folder, ["wandb.project=3e8"]).cfg.wandb.project == "3e8"  # a text is what was typed


def test_the_evaluation_is_complete_when_all_is_evaluated_and_not_before(config, monkeypatch):
    stages = mock.MagicMock()
    monkeypatch.setattr(evaluation, "progress", stages)
    execute(config("algo=ga", "eval.groups=[leak]", "eval.max_examples=2", "eval.alphas=[0,1]"))
    total, updates = stages.call_args.args[0], stages.return_value.__enter__.return_value.update.call_count
    assert total == 12 and updates % total == 0  # four splits, means and leak, at two α's


def write_aged(raw, path):
    """Write a config as it was before its settings were renamed."""
    raw = copy.deepcopy(raw)
    for member in (*raw.method.members, *(raw.algo.teacher.members if raw.algo.teacher else ())):
        member.alpha = member.pop("slope")
    raw.algo.alternate, raw.eval.reference = raw.algo.pop("interleave"), raw.eval.pop("retrained")
    raw.pair.target.http.tail = "even"
    OmegaConf.save(raw, path)


def test_runs_from_before_settings_were_renamed_are_opened(folder, config, tmp_path):
    path, cfg = folder / "config.yaml", open_run(folder).cfg
    write_aged(OmegaConf.load(path), path)
    assert open_run(folder).cfg == cfg and "reference: " in path.read_text()
    other = config("algo=distill", "algo.interleave=epochs", "eval.retrained=none")
    raw = OmegaConf.create(OmegaConf.to_yaml(OmegaConf.structured(other)))
    write_aged(raw, tmp_path / "old.yaml")
    assert _config(tmp_path / "old.yaml") == raw


def test_a_run_whose_config_was_edited_is_refused(folder):
    path = folder / "config.yaml"
    path.write_text(path.read_text().replace("retain_batch: 4", "retain_batch: 5"))
    with pytest.raises(ConfigError, match="now identify"):
        open_run(folder)


def test_a_failed_evaluation_leaves_a_complete_run_done(folder, config, tmp_path):
    manifest = runlog.manifest(folder)
    manifest["models"]["target"] = "another"
    runlog.write_json(folder / "manifest.json", manifest)
    done = command("unlearn.evaluate", f"run={folder}", "eval.alphas=[2]", cwd=tmp_path, check=False)
    assert done.returncode == 1 and "was trained with the models" in done.stdout
    assert runlog.manifest(folder)["status"] == "done" and list(runlog.evaluation(folder)["alphas"]) == ["1.0"]


def test_generate_shows_target_unlearned_and_retrained_side_by_side_whoever_drafts(folder, tmp_path, bench):
    row = bench.data.splits["forget"][0]
    asked = "unlearn.generate", f"run={folder}", f"prompt={row.question}", "alpha=0,1"
    done = command(*asked, cwd=tmp_path)
    said = dict(line.strip().split("  ", 1) if "  " in line.strip() else (line.strip(), "")
                for line in done.stdout.splitlines())  # fmt: skip
    assert list(said) == ["target", "unlearned α=0", "unlearned α=1", "retrained"]
    assert said["unlearned α=0"] == said["target"]
    examples = pd.read_parquet(folder / "examples.parquet").set_index("id")
    assert said["unlearned α=1"].strip() == examples.loc[row.id, "generation"]
    assert command(*asked, "draft=3", cwd=tmp_path).stdout == done.stdout


@pytest.mark.parametrize(
    ("given", "said"),
    [("alpha=high", "alpha=high: must be finite numbers"), ("draft=few", "draft=few: must be a whole number")],
)
def test_generate_refuses_what_is_no_number(tmp_path, capsys, given, said):
    assert generate.main(["run=any", "prompt=Who?", given]) == 2
    assert said in capsys.readouterr().err


@pytest.mark.parametrize(
    ("most", "lengths", "advice"),
    [
        (32, (3, 58), "1 of 2 answers have more tokens, up to 58, and are never generated whole; give .*=59"),
        (32, (3, 6), "the longest answer has 6 tokens; eval.max_new_tokens=12 would do"),
        (32, (3, 12), None),
    ],
)
def test_lengths_of_ones_own_answers_that_do_not_fit_the_new_tokens_are_named(most, lengths, advice):
    answers = [Example(str(n), (5,), tuple(range(n + 1))) for n in lengths]  # with their end
    split = mock.Mock(generated=True, right_answers=answers)
    said = baselines.length_advice(mock.Mock(splits=[split], cfg=mock.Mock(max_new_tokens=most)))
    assert re.search(advice, said) if advice else said == ""
