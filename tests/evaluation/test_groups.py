"""Groups of metrics in a whole run: what they promise, against the run's own table of examples."""

import copy
import json
import math
import re
from dataclasses import fields, replace
from importlib import import_module

import numpy as np
import pandas as pd
import pytest
from support.helpers import TINY, compose, execute

from unlearn import evaluate
from unlearn.config.groups import GROUPS, NEEDS, literal
from unlearn.config.schema import ConfigError, EvalConfig
from unlearn.data.encoding import Encoder, Examples
from unlearn.data.rows import DataError
from unlearn.decoding.generation import Decoding, greedy
from unlearn.evaluation import measures
from unlearn.evaluation.evaluation import evaluate as measure
from unlearn.evaluation.groups.summary import ATTACKS, S_MIA
from unlearn.evaluation.metrics.semantics import SEMANTICS
from unlearn.evaluation.metrics.texts import ANY_SCRIPT
from unlearn.evaluation.metrics.tofu import ratio_scores
from unlearn.evaluation.retrained import Measured
from unlearn.evaluation.scoring import score
from unlearn.evaluation.suite import suite as make_suite
from unlearn.runs.baselines import suite_of
from unlearn.runs.learner import members
from unlearn.runs.workbench import workbench
from unlearn.store import runlog

NAMES = ("leak", "paraphrased", "three_sample", "privacy", "summary")
ASKED = f"eval.groups=[{','.join(NAMES)}]"
# 20 forget and 20 holdout questions: enough to calibrate a false-positive rate; a step large enough to move something
RUN = ("data.questions=20", "eval.max_examples=20", "eval.alphas=[0,1]", "trainer.lr=0.02", "algo=ga")

JUDGE = """
def judge(question, gold, answer):
    return 0.25 if question and gold and isinstance(answer, str) else 0.0
"""


def asked(store, runs, *more: str):
    judge = store.with_name("judge.py")
    judge.write_text(JUDGE)
    more = (f"eval.judge={judge}", f"paths.store={store}", f"paths.runs={runs}", *more)
    return compose(*TINY, *RUN, ASKED, "eval.resamples=20", *more)


@pytest.fixture(scope="module")
def folder(store, tmp_path_factory):
    return execute(asked(store, tmp_path_factory.mktemp("groups"))).folder


@pytest.fixture(scope="module")
def entries(folder) -> dict:
    """Metrics by name: the run at both α's, target and retrained."""
    found = json.loads((folder / "eval.json").read_text())
    return found["alphas"] | found["references"]


@pytest.fixture(scope="module")
def examples(folder) -> dict[str, pd.DataFrame]:
    """The table of each α."""
    return {str(alpha): table for alpha, table in pd.read_parquet(folder / "examples.parquet").groupby("alpha")}


def promised(group: str) -> set[str]:
    """Metrics that the group's docstring names, with its placeholders filled."""
    text = import_module(f"unlearn.evaluation.groups.{group}").__doc__
    names = set(re.findall(r"``([a-z_]+(?:/[^`]+)?)``", text))
    names = {n for n in names if "/" in n or n == "privleak"}
    places = {"<attack>": (*ATTACKS, "reference") if group == "privacy" else (), "<reading>": S_MIA, "@k": ("@1", "@2")}
    for place, values in places.items():
        names = {n.replace(place, v) for n in names for v in (values if place in n else ("",))}
    names -= {n for n in names if "known" in n or "guess" in n}  # rows here name no fact, and ask nothing to guess
    return names - {"privleak/reference"}  # of the four attacks that need no reference model


def test_every_metric_that_a_group_promises_is_there_and_finite(entries):
    for group in NAMES:
        assert len(promised(group)) >= 2
        for alpha in ("0.0", "1.0"):
            assert promised(group) <= set(entries[alpha]), promised(group) - set(entries[alpha])
    for name, entry in entries.items():
        numbers = {k: v for k, v in entry.items() if not isinstance(v, dict)}
        assert all(isinstance(v, int | float) and math.isfinite(v) for v in numbers.values()), name


def test_what_a_group_says_at_its_top_is_known():
    """Rules and identities read these literals from the file's text; a misspelt one would be ignored in silence."""
    for name in GROUPS:
        module = import_module(f"unlearn.evaluation.groups.{name}")
        assert set(literal(name, "NEEDS")) <= {*NEEDS, *GROUPS}
        assert set(literal(name, "SETTINGS")) <= {f.name for f in fields(EvalConfig)}
        assert all(literal(name, key) == getattr(module, key, ()) for key in ("NEEDS", "SETTINGS"))


def test_intervals_hold_the_values_they_belong_to(entries):
    for entry in entries.values():
        found = entry["intervals"]
        assert {"forget/prob", "forget/truth_ratio", "model_utility", "mia/min_k", "holdout/prob"} <= set(found)
        for name, (low, high) in found.items():
            assert low <= high, name
            if name != "model_utility":  # a harmonic mean of resamples leans to one side
                assert low - 1e-9 <= entry[name] <= high + 1e-9, name
    gap = entries["1.0"]["intervals"]
    assert gap["forget/leak_gap"] == gap["forget/leak_gap@2"] and "forget/other_question_prob" in gap


def test_distance_is_the_value_minus_the_retrained_models(entries):
    retrained = entries["retrained"]
    for name in ("0.0", "1.0", "target"):
        entry = entries[name]
        shared = {k for k, v in entry.items() if not isinstance(v, dict) and k in retrained}
        assert {"forget/prob", "forget/leak@2", "mia/loss", "ou/mem", "forget_quality"} <= shared
        assert entry["distance"] == {k: entry[k] - retrained[k] for k in shared}


def test_at_alpha_0_every_value_is_the_targets_and_the_retrained_model_is_what_others_are_compared_with(entries):
    at_zero, target, own, moved = (entries[name] for name in ("0.0", "target", "retrained", "1.0"))
    assert abs(moved["forget/prob"] - at_zero["forget/prob"]) > 1e-4  # or what follows says little
    assert moved["forget/js_target"] > 1e-5 and moved["forget/js_retrained"] > 1e-5
    assert at_zero == target | {"settings": at_zero["settings"]}
    assert at_zero["forget/js_target"] == 0 and at_zero["forget/js_retrained"] > 0
    assert [at_zero[f"three_sample/{name}"] for name in ("closer", "p", "share")] == [0, 1, 0]
    assert own["forget_quality"] == 1 and own["forget_quality_ks"] == 0 and own["forget_quality_log10"] == 0
    assert own["forget/leak_gap"] == own["forget/leak_gap@1"] == 0
    compared = ("privleak", "js_", "three_sample", "distance", "vulnerable", "mia/reference")
    assert not [name for name in own if any(part in name for part in compared)]
    assert own["ou/priv/ratio"] == own["ou/priv/clipped"] == own["ou/priv/larger_side"] == 1


def test_the_gap_is_the_leak_beyond_the_retrained_models(entries, examples):
    for alpha, table in examples.items():
        forget = table[table["split"] == "forget"]
        for k in (1, 2):
            gap = forget[f"leak@{k}"].mean() - entries["retrained"][f"forget/leak@{k}"]
            assert entries[alpha][f"forget/leak_gap@{k}"] == pytest.approx(gap, abs=1e-12)
        assert entries[alpha]["forget/leak_gap"] == entries[alpha]["forget/leak_gap@2"]
        assert entries[alpha]["forget/judged_leak@1"] == entries[alpha]["forget/judged_leak@2"] == 0.25
        assert (forget["leak@2"] >= forget["leak@1"]).all() and forget["leak@2"].max() > 0


def test_the_other_wording_is_what_is_asked(store, folder, examples):
    bench = workbench(asked(store, folder.parent.parent))
    target, tokenizer, rows = bench.alone("target"), bench.encoder.tokenizer, bench.data.splits["forget"]
    asked_otherwise = Examples(bench.encoder.example(r.id, r.paraphrased_question, r.answer) for r in rows)
    prompts = [e.prompt for e in asked_otherwise]
    assert prompts != [bench.encoder.prompt(r.question) for r in rows]
    scores = score(target, asked_otherwise, [1.0], {}, tokenizer.pad_token_id, 8)[1.0]
    table = examples["0.0"][examples["0.0"]["split"] == "forget"]
    assert table["other_question_prob"].tolist() == pytest.approx(scores.prob.tolist(), rel=1e-5)
    said = greedy(target, prompts, 1.0, Decoding.by(tokenizer, 16, 8))
    expected = [ANY_SCRIPT.recall(bench.encoder.decode(a), r.answer) for a, r in zip(said, rows, strict=True)]
    assert table["other_question_rougeL_recall"].tolist() == expected


def test_columns_of_the_examples_average_to_their_metrics(entries, examples):
    for alpha, table in examples.items():
        checked = set()
        for split, rows in table.groupby("split"):
            for column in rows.select_dtypes("number"):
                name = f"{split}/{column}"
                if column == "truth_ratio" and rows[column].notna().any():
                    values = ratio_scores(split, rows[column].to_numpy())
                elif name in entries[alpha]:
                    values = rows[column].to_numpy()
                else:
                    continue
                assert entries[alpha][name] == pytest.approx(values.mean(), abs=1e-12), name
                checked.add(name)
        assert {f"forget/{c}" for c in ("prob", "leak@1", "js_target", "other_question_prob", "truth_ratio")} <= checked
        assert {f"{s}/{c}" for s in ("retain", "world_facts") for c in measures.MEANS[:4]} <= checked


def test_attacks_follow_from_the_logged_values_and_aucs_are_counts_of_pairs(entries, examples):
    for alpha, table in examples.items():
        for attack in (*ATTACKS, "reference"):
            forget, holdout = (table.loc[table["split"] == s, f"mia_{attack}"] for s in ("forget", "holdout"))
            assert (len(forget), len(holdout)) == (20, 20)
            wins = [(h > f) + (h == f) / 2 for f in forget for h in holdout]
            assert entries[alpha][f"mia/{attack}"] == pytest.approx(np.mean(wins), abs=1e-12)
        auc, theirs = entries[alpha]["mia/min_k"], entries["retrained"]["mia/min_k"]
        assert entries[alpha]["privleak"] == entries[alpha]["privleak/min_k"]
        assert entries[alpha]["privleak"] == pytest.approx(100 * (theirs - auc) / (1 - theirs))
    rows = examples["1.0"][examples["1.0"]["split"].isin(["forget", "holdout"])]
    assert rows["mia_loss"].tolist() == rows["nll"].tolist()
    assert rows["prob"].tolist() == pytest.approx(np.exp(-rows["nll"]).tolist())
    clean = np.sort(-rows.loc[rows["split"] == "holdout", "mia_reference"])
    told = -rows.loc[rows["split"] == "forget", "mia_reference"] > clean[-1]  # of 20 rows the largest is the threshold
    assert entries["1.0"]["mia/vulnerable"] == told.mean()


# --- asked for later, and refused -----------------------------------------------------------------------------------
def test_groups_asked_for_later_are_added_without_training(folder, store, tmp_path, monkeypatch):
    late = execute(asked(store, tmp_path, "eval.groups=[]", "eval.alphas=[1]")).folder
    assert "forget/leak@1" not in runlog.evaluation(late)["alphas"]["1.0"]
    weights, steps = ((late / name).read_bytes() for name in ("offset/model.safetensors", "metrics.jsonl"))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr("unlearn.runs.job.train", lambda *a: pytest.fail("trained again"))
    assert evaluate.main([f"run={late}", ASKED, "eval.alphas=[0,1]"]) == 0
    assert weights == (late / "offset/model.safetensors").read_bytes()
    assert steps == (late / "metrics.jsonl").read_bytes()
    assert (late / "eval.json").read_text() == (folder / "eval.json").read_text()
    pd.testing.assert_frame_equal(*(pd.read_parquet(f / "examples.parquet") for f in (late, folder)))


def test_what_does_not_exist_is_refused_with_the_choices_before_training(config, monkeypatch):
    for setting, message in (
        ("eval.groups=[leak,nonsense]", f"eval.groups='nonsense': must be one of {', '.join(GROUPS)}"),
        ("eval.semantics=nonsense", f"eval.semantics='nonsense': must be one of {', '.join(SEMANTICS)}"),
        ("eval.groups=[summary]", "summary reads what privacy finds: list privacy before it"),
        ("eval.groups=[summary,privacy]", "list privacy before it"),
        ("eval.leak_samples=0", "eval.leak_samples=0"),
        ("eval.judge=nowhere.py", "eval.judge='nowhere.py': no such file"),
        ("eval.leak_temperature=0", "eval.leak_temperature=0"),
    ):
        with pytest.raises(ConfigError, match=re.escape(message)):
            compose(*TINY, setting)
    monkeypatch.setattr("unlearn.runs.job.train", lambda *a: pytest.fail("trained"))
    with pytest.raises(DataError, match="compare with a holdout set, and data set 'bios' has none"):
        execute(config("eval.groups=[privacy]", "data.holdout_people=0"))


def test_forget_rows_without_another_wording_are_refused_before_any_work(bench):
    *rows, last = bench.data.splits["forget"][:3]
    cfg = compose(*TINY, "eval.groups=[paraphrased]").eval
    for lacking, message in (
        ("paraphrased_question", f"paraphrased needs a paraphrased question .* {last.id!r}"),
        ("paraphrased_answer", f"forget row {last.id!r} has no paraphrased_answer"),
    ):
        forget = (*rows, replace(last, **{lacking: None}))
        with pytest.raises(DataError, match=message):
            make_suite(replace(bench.data, splits=bench.data.splits | {"forget": forget}), bench.encoder, cfg, {}, 1.0)


# --- what must change nothing ---------------------------------------------------------------------------------------
def test_batches_order_and_padding_change_no_value_and_no_word(folder, store):
    """Drawn answers are keyed by their prompt, so they too stay what they were."""
    cfg = asked(store, folder.parent.parent, "eval.groups=[leak,paraphrased,three_sample,privacy]", "eval.resamples=0")
    bench = workbench(cfg)
    ensemble = members(cfg, bench, folder)
    assert suite_of(cfg, bench).encoder is bench.encoder

    def run(batch_size: int, backwards: bool, side: str) -> pd.DataFrame:
        """Examples of the trained ensemble by split and id."""
        tokenizer = copy.deepcopy(bench.encoder.tokenizer)
        tokenizer.padding_side = side
        splits = {k: v[:8] for k, v in bench.data.splits.items()}
        data = replace(bench.data, splits={k: v[::-1] for k, v in splits.items()} if backwards else splits)
        encoder = Encoder(tokenizer, bench.encoder.template, bench.encoder.max_length)
        found = make_suite(data, encoder, replace(cfg.eval, batch_size=batch_size, max_examples=None), {}, 1.0)
        _, retrained = measure(bench.alone("retrained"), found, [1.0], bench.store, None, itself=True)
        models = {name: lambda name=name: bench.alone(name) for name in ("target", "retrained")}
        metrics = {f"mia/{a}": 0.5 for a in ATTACKS}
        _, table = measure(ensemble, found, [0.5], bench.store, Measured(metrics, retrained, models))
        return table.set_index(["split", "id"]).sort_index()

    once, again = run(128, False, "left"), run(3, True, "right")
    assert list(again.index) == list(once.index) and set(again) == set(once)
    assert {"leak@2", "js_retrained", "mia_min_k_plus_plus", "other_question_rougeL_recall"} <= set(once)
    for column in once:
        if pd.api.types.is_numeric_dtype(once[column]):
            near = 2e-5 if column == "mia_min_k_plus_plus" else 1e-6  # of scores over their small deviation
            np.testing.assert_allclose(again[column], once[column], atol=near, rtol=near, err_msg=column)
        else:
            assert again[column].equals(once[column]), column
