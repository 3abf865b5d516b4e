"""Other projects' result files: read, recomputed from their examples, compared with their claims, put beside ours."""

import json
import math

import numpy as np
import pandas as pd
import pytest
from support.helpers import SHARED

from analysis import tradeoff
from analysis.runs import load
from unlearn import compare
from unlearn.config.schema import ConfigError
from unlearn.evaluation import others

LN2 = math.log(2)


def by_index(*fields) -> dict:
    return {"value_by_index": {str(i): f for i, f in enumerate(fields)}}


def loss(*values) -> dict:
    """Entries of a probability metric of OpenUnlearning, from mean NLLs or lists of them."""
    prob = [np.exp(-np.array(v)).tolist() for v in values]
    return by_index(*({"prob": p, "avg_loss": v} for p, v in zip(prob, values, strict=True)))


def attack(forget: list, holdout: list, auc: float) -> dict:
    scores = {k: by_index(*({"score": s} for s in v)) for k, v in (("forget", forget), ("holdout", holdout))}
    return scores | {"auc": auc, "agg_value": auc}


def openunlearning(**other) -> dict:
    """Two forget rows. Probabilities 1/2 and 1/4; of the paraphrase 1/2; of the wrong answers 1/4 in geometric mean."""
    said = {"input": "Who?", "ground_truth": "one two three four", "generation": "one two three", "rougeL_recall": 0.75}
    return {
        "forget_Q_A_Prob": loss(LN2, 2 * LN2) | {"agg_value": 0.375},
        "forget_Q_A_PARA_Prob": loss(LN2, LN2) | {"agg_value": 0.5},
        "forget_Q_A_PERT_Prob": loss([2 * LN2, 2 * LN2], [LN2, 3 * LN2]) | {"agg_value": 0.28125},
        "forget_truth_ratio": by_index({"score": 0.5}, {"score": 0.5}) | {"agg_value": 0.5},
        "forget_Q_A_ROUGE": by_index(said, said) | {"agg_value": 0.75},
        "exact_memorization": by_index({"score": 0.5}, {"score": 1.0}) | {"agg_value": 0.75},
        "mia_min_k": attack([1, 2], [3, 0], 0.5),
        "forget_quality": {"agg_value": None},
    } | other


def write(folder, name: str, content) -> str:
    path = folder / name
    path.write_text(content if isinstance(content, str) else json.dumps(content))
    return str(path)


@pytest.fixture
def result(tmp_path):
    """A file's content, and what it is read with, as a result."""
    return lambda content, *more, name="TOFU_EVAL.json": others.read(write(tmp_path, name, content), *more)


def test_openunlearning_by_hand(result):
    found = result(openunlearning())
    assert (found.kind, found.settings, found.notes) == ("openunlearning", {"semantics": "ou"}, ())
    expected = {
        "forget/prob": 0.375, "forget/paraphrased_prob": 0.5, "forget/wrong_prob": (0.25 + 0.3125) / 2,
        "forget/truth_ratio": 0.5, "forget/truth_ratio_median": 0.5, "forget/rougeL_recall": 0.75,
        "forget/exact_memorization": 0.75, "mia/min_k": 0.5,
    }  # fmt: skip
    assert {k: found.metrics[k] for k in expected} == pytest.approx(expected, abs=1e-8)
    assert "forget_quality" not in found.metrics  # null in the file, and nothing to compare with
    forget = found.examples[found.examples["split"] == "forget"]
    assert list(forget["id"]) == ["forget/0000", "forget/0001"]  # as our reader of TOFU names them
    assert list(forget["prob"]) == pytest.approx([0.5, 0.25]) and list(forget["mia_min_k"]) == [1, 2]
    assert forget[["prompt", "gold", "generation"]].iloc[0].to_list() == ["Who?", "one two three four", "one two three"]
    assert list(found.truth_ratios()) == pytest.approx([0.5, 0.5], abs=1e-8)
    assert list(found.examples[found.examples["split"] == "holdout"]["mia_min_k"]) == [3, 0]


def test_the_arithmetic_truth_ratio_has_a_name_of_its_own(tmp_path):
    path = write(tmp_path, "TOFU_EVAL.json", openunlearning())
    found = others.read(path, semantics="tofu_arithmetic")
    # wrong answers of the second row: 1/2 and 1/8, arithmetic mean 5/16, so R = 5/8
    assert list(found.truth_ratios()) == pytest.approx([0.5, 0.625])
    assert found.notes == ("forget/truth_ratio: the file says 0.5, its examples give 0.5625",)
    with pytest.raises(ConfigError, match="semantics='old': must be one of default, ou, tofu, tofu_arithmetic"):
        others.read(path, semantics="old")


def test_a_retrained_model_gives_forget_quality_and_privleak(result):
    apart = openunlearning(
        forget_Q_A_PERT_Prob=loss([0.0], [0.0]), forget_truth_ratio=by_index({"score": 2.0}, {"score": 2.0}),
        mia_min_k=attack([1, 4], [3, 0], 0.25), privleak={"agg_value": (0.5 - 0.25) * 200},
    )  # fmt: skip
    retrained = result(apart, name="retain.json")
    assert retrained.notes == ("privleak: the file's 50 is against .5, not a retrained model: left out",)
    assert "privleak" not in retrained.metrics and list(retrained.truth_ratios()) == pytest.approx([2, 2])
    found = result(openunlearning(), retrained)
    assert found.metrics["forget_quality"] == pytest.approx(1 / 3)  # 2 / C(4, 2): two samples of two, far apart
    assert found.metrics["forget_quality_ks"] == 1.0
    assert found.metrics["privleak"] == pytest.approx((0.5 - 0.75) / 0.75 * 100)
    assert found.notes == ()
    del apart["mia_min_k"]  # without the attack there is no PrivLeak, and it says so
    found = result(openunlearning(), result(apart, name="retain.json"))
    assert "privleak" not in found.metrics and "has no mia/min_k to compare with" in found.notes[0]


def test_what_the_file_claims_is_compared_with_its_examples_and_those_without_a_value_are_counted(result):
    raw = openunlearning(forget_quality={"agg_value": 0.02}, model_utility={"agg_value": 0.6})
    raw["forget_Q_A_Prob"]["agg_value"] = 0.4
    raw["exact_memorization"] = by_index({"score": 0.5}, {"score": None}) | {"agg_value": 0.5}
    raw["forget_Q_A_gibberish"] = by_index({"score": 0.25}, {"score": 0.75}) | {"agg_value": 0.5}
    found = result(raw)
    assert found.metrics["forget/prob"] == pytest.approx(0.375)  # the examples', not the claim
    assert (found.metrics["forget_quality"], found.metrics["model_utility"]) == (0.02, 0.6)
    assert found.metrics["forget/exact_memorization"] == found.metrics["forget/Q_A_gibberish"] == 0.5
    assert list(found.examples["Q_A_gibberish"].dropna()) == [0.25, 0.75]  # it keeps its name
    assert found.notes == (
        "forget/exact_memorization: 1 of 2 examples have no value",
        "forget/prob: the file says 0.4, its examples give 0.375",
        "forget_quality, model_utility, forget/Q_A_gibberish: as the file says, "
        "which has no examples to recompute this from",
    )


def test_a_summary_has_rows_but_is_no_reference(result):
    summary = result({"forget_Q_A_Prob": 0.9, "model_utility": 0.5})
    assert summary.metrics == {"forget/prob": 0.9, "model_utility": 0.5} and summary.examples.empty
    with pytest.raises(ConfigError, match="has no truth ratios of the forget set.*splits with examples: none"):
        result(openunlearning(), summary)


# --- TOFU's own logs --------------------------------------------------------------------------------------------------
def tofu_log(right: list[float], wrong: list[list[float]], generation: str = "two three") -> dict:
    def index(values):
        return {str(i): v for i, v in enumerate(values)}

    return {
        "avg_gt_loss": index(right), "avg_paraphrased_loss": index(right), "average_perturb_loss": index(wrong),
        "num_token_gt": index([3] * len(right)), "rougeL_recall": index([0.5] * len(right)),
        "generated_text": index([["[INST] Who? [/INST]", generation, "one two three four"]] * len(right)),
    }  # fmt: skip


def tofu(forget_wrong: float) -> dict:
    """p = 1/2 for every right answer, 1/8 for every wrong one: R = 1/4, share among two options 4/5, ROUGE 1/2."""
    general = tofu_log([LN2], [[3 * LN2]])
    return {
        "eval_log.json": general, "eval_real_author_wo_options.json": general,
        "eval_real_world_wo_options.json": general, "eval_log_forget.json": tofu_log([LN2] * 2, [[forget_wrong]] * 2),
    }  # fmt: skip


def test_tofu_by_hand(result):
    retrained = result(tofu(0.0), name="retain.json")
    found = result(tofu(2 * LN2), retrained)
    assert (found.kind, found.settings, found.notes) == ("tofu", {"semantics": "tofu"}, ())
    # probability 1/2 once and 4/5 twice, ROUGE 1/2 three times, truth ratio 3/4 three times
    assert found.metrics["model_utility"] == pytest.approx(9 / (1 / 0.5 + 2 / 0.8 + 3 / 0.5 + 3 / 0.75))
    assert found.metrics["forget/truth_ratio"] == pytest.approx(0.5)  # R = (1/4) / (1/2)
    assert found.metrics["forget_quality"] == pytest.approx(1 / 3)
    row = found.examples[found.examples["split"] == "world_facts"].iloc[0]
    assert (row["id"], row["gold"], row["generation"]) == ("world_facts/0000", "one two three four", "two three")


def test_rows_are_matched_by_index_not_by_order_and_those_in_both_are_compared(result):
    raw = tofu(2 * LN2)
    log = raw["eval_log_forget.json"] = tofu_log([LN2, 2 * LN2], [[LN2], [LN2]])
    log["avg_gt_loss"] = dict(reversed(log["avg_gt_loss"].items()))
    found = result(raw)
    assert list(found.truth_ratios()) == pytest.approx([1, 2])
    assert list(found.examples.query("split == 'forget'")["prob"]) == pytest.approx([0.5, 0.25])
    few = tofu(0.0) | {"eval_log_forget.json": tofu_log([LN2], [[LN2]])}
    found = result(tofu(2 * LN2), result(few, name="b.json"))
    assert found.metrics["forget_quality_ks"] == 1.0 and found.metrics["forget_quality"] == 1.0  # of one question
    assert any("on the 1 questions in both: 2 here, 1 in" in note for note in found.notes)


def test_questions_are_joined_by_what_they_say_not_by_where_they_stand(result):
    def logged(wrong: list[float], asked: list[str], gold: str = "it is {}") -> dict:
        log = tofu_log([LN2] * len(asked), [[w] for w in wrong])
        log["generated_text"] = {
            str(i): [f"[INST] Where is {a}? [/INST]", "", gold.format(a)] for i, a in enumerate(asked)
        }
        return tofu(0.0) | {"eval_log_forget.json": log}

    # R = ½, ¼, ⅛ of three questions, and in another order, with another template and two other questions ½, ¼, ⅛
    ours = result(logged([2 * LN2, 3 * LN2, 4 * LN2], ["a", "b", "c"]), name="a.json")
    theirs = logged([0.0, 4 * LN2, 0.0, 3 * LN2, 2 * LN2], ["x", "C", "y", "b", "a"], gold="It  is {}")
    found = others.read(ours.path, result(theirs, name="b.json"))
    assert (found.metrics["forget_quality"], found.metrics["forget_quality_ks"]) == (1.0, 0.0)
    assert "forget_quality: on the 3 questions in both: 3 here, 5 in" in found.notes[0]
    apart = others.read(ours.path, result(logged([0.0] * 3, ["x", "y", "z"]), name="c.json"))
    assert "forget_quality" not in apart.metrics and "on the 0 questions in both" in apart.notes[0]
    for log in (other := logged([0.0] * 3, ["x", "y", "z"])).values():
        log.pop("generated_text", None)
    blind = others.read(ours.path, result(other, name="d.json"))
    assert "forget_quality" in blind.metrics and "rows are compared by their index" in blind.notes[0]


# --- files that cannot be read ----------------------------------------------------------------------------------------
@pytest.mark.parametrize(
    ("content", "message"),
    [
        ('{"forget_Q_A_Prob": ', "not valid JSON"),
        ({"accuracy": 0.5}, "its keys: accuracy.*must be OpenUnlearning's TOFU_EVAL.json, TOFU's eval_log_aggregated"),
        ([1, 2], "a list"),
        ({"forget_Q_A_Prob": {"agg_value": "high"}}, "must be a number or null, found 'high'"),
        ({"forget_Q_A_Prob": {"agg_value": 1, "value_by_index": [1]}}, "must be a mapping from index to fields"),
        ({"forget_Q_A_PERT_Prob": loss([1.0], []) | {"agg_value": 1}}, r"a list must hold numbers .* found \[\]"),
        ({"eval_log.json": {"avg_gt_loss": {"0": 1.0}}}, "eval_log.json lacks average_perturb_loss"),
        ({"format": 2, "metrics": {}}, "format 2; this program reads 1"),
        ({"format": 1, "metrics": {}}, "must lie beside it, as file.examples.parquet"),
    ],
)
def test_files_that_cannot_be_used_are_refused_with_the_rule(result, tmp_path, content, message):
    with pytest.raises(ConfigError, match=message):
        result(content, name="file.json")
    with pytest.raises(ConfigError, match="no such file; JSON files in that folder: file.json"):
        others.read(tmp_path / "EVAL.json")


# --- beside ours ------------------------------------------------------------------------------------------------------
def test_our_own_format_says_the_same_and_the_table_has_a_row_per_file_and_the_rows_of_a_study(tmp_path, capsys):
    (tmp_path / "npo").mkdir()
    foreign = write(tmp_path / "npo", "TOFU_EVAL.json", openunlearning())
    assert compare.main([foreign, f"out={tmp_path / 'others'}"]) == 0
    shown, path = capsys.readouterr().out, tmp_path / "others" / "npo-TOFU_EVAL.json"
    written, again = others.read(foreign), others.read(path)
    assert again.kind == "ours" and again.settings["source"] == "openunlearning" and again.notes == ()
    assert again.metrics == pytest.approx(written.metrics)
    columns = ["split", "id", "prob", "truth_ratio", "gold"]
    pd.testing.assert_frame_equal(again.examples[columns], written.examples[columns], check_dtype=False)
    row = next(line.split() for line in shown.splitlines() if "npo/TOFU_EVAL" in line)
    assert row[1:3] == ["0.375", "0.750"]  # forget probability and ROUGE
    run = tmp_path / "study" / "npo-1"
    run.mkdir(parents=True)
    ours = {"alphas": {"0.5": {"forget/prob": 0.125}}, "references": {"target": {"forget/prob": 0.875}}}
    (run / "eval.json").write_text(json.dumps(ours))
    assert compare.main([str(path), f"beside={tmp_path / 'study'}"]) == 0
    rows = [line.split() for line in capsys.readouterr().out.splitlines()]
    assert ["target", "0.875"] in [r[:2] for r in rows] and ["npo-1", "α=0.5", "0.125"] in [r[:3] for r in rows]
    assert compare.main([str(path), f"beside={tmp_path}/nowhere"]) == 2
    assert "must be the folder of an evaluated run" in capsys.readouterr().err


def test_the_command_compares_with_a_reference_and_names_files_by_as_much_as_tells_them_apart(tmp_path, capsys):
    (tmp_path / "x").mkdir()
    reference = write(tmp_path / "x", "retain.json", tofu(0.0))
    assert compare.main([write(tmp_path / "x", "full.json", tofu(2 * LN2)), f"retrained={reference}"]) == 0
    lines = [line.split() for line in capsys.readouterr().out.splitlines() if "x/" in line]
    found = {cells[0]: cells[-1] for cells in lines}
    assert found == {"x/retain": "–", "x/full": "0.333"}  # the reference has no forget quality of its own
    assert compare.main([str(tmp_path / "nowhere.json")]) == 2
    assert "no such file" in capsys.readouterr().err
    folders = [tmp_path / run / "evals" for run in ("npo", "dpo")]
    for folder in folders:
        folder.mkdir(parents=True)
    assert compare.main([write(folder, "TOFU_EVAL.json", tofu(LN2)) for folder in folders]) == 0
    shown = [line.split()[0] for line in capsys.readouterr().out.splitlines() if "TOFU_EVAL" in line and "0." in line]
    assert shown == ["npo/evals/TOFU_EVAL", "dpo/evals/TOFU_EVAL"]


def test_the_figure_marks_them(tmp_path, capsys):
    from support.made_up import write_made_up_run

    study = tmp_path / "study"
    write_made_up_run(study, {1.0: (0.2, 0.9, 0.3, 0.9)})
    metrics = {"forget/prob": 0.4, "retain/prob": 0.8}
    path = write(tmp_path, "eval.json", {"format": 1, "model": "theirs", "settings": {}, "metrics": metrics})
    assert tradeoff.main([str(study), "--others", path]) == 0
    fig = tradeoff.figure(load(study), others=tradeoff.load_others([path]))
    assert "theirs" in [t.get_text() for t in fig.legends[0].get_texts()]
    assert [0.4, 0.8] in [[*line.get_xdata(), *line.get_ydata()] for line in fig.axes[0].get_lines()]
    foreign = write(tmp_path, "TOFU_EVAL.json", openunlearning())
    assert tradeoff.main([str(study), "--others", foreign]) == 2
    assert f"python -m unlearn.compare {foreign} out=FOLDER" in capsys.readouterr().err
    assert tradeoff.main([str(study), "--y", "model_utility", "--others", path]) == 2


# --- published files --------------------------------------------------------------------------------------------------
def published(*parts: str):
    path = SHARED.joinpath(*parts)
    if not path.is_file():
        pytest.skip(f"the published file is not at {path}")
    return path


@pytest.mark.parametrize(
    ("semantics", "full", "retain90"), [(None, 0.622677, 0.613745), ("tofu_arithmetic", 0.5859, 0.5752)]
)
def test_the_published_logs_of_tofu(semantics, full, retain90):
    logs = [
        published("data", "tofu_eval_logs", f"llama2-7b_{name}_wd0.01.eval_log_aggregated.json")
        for name in ("retain90", "full")
    ]
    retrained = others.read(logs[0], semantics=semantics)
    found = others.read(logs[1], retrained, semantics)
    precise = 1e-6 if semantics is None else 5e-5
    assert retrained.metrics["model_utility"] == pytest.approx(retain90, abs=precise)
    assert found.metrics["model_utility"] == pytest.approx(full, abs=precise)
    if semantics is None:
        assert found.metrics["forget_quality"] == pytest.approx(1.834066e-21, rel=1e-5)
        assert found.metrics["forget_quality_ks"] == pytest.approx(0.396667, abs=1e-6)
        # ROUGE, truth ratios and options as the authors logged them; some names have letters that their ROUGE drops
        assert all("letters that ROUGE of tofu drops" in note for note in found.notes + retrained.notes)
        assert found.examples["split"].value_counts().to_dict() == {
            "forget": 300, "retain": 300, "world_facts": 117, "real_authors": 100
        }  # fmt: skip


def test_the_golden_values_of_openunlearning():
    golden = [published("golden", "openunlearning_chat", f"{name}.json") for name in ("retain_TOFU_EVAL", "TOFU_EVAL")]
    retrained = others.read(golden[0])
    found = others.read(golden[1], retrained)
    assert found.notes == () and len(retrained.notes) == 1  # its PrivLeak is against .5
    summary = others.read(published("golden", "openunlearning_chat", "TOFU_SUMMARY.json"))
    assert len(summary.metrics) == 12
    assert {k: found.metrics[k] for k in summary.metrics} == pytest.approx(summary.metrics, abs=1e-7)
    assert found.metrics["model_utility"] == pytest.approx(0.459640, abs=1e-6)
    assert found.metrics["forget_quality"] == pytest.approx(6.5769e-05, rel=1e-4)
    assert found.metrics["privleak"] == pytest.approx(-100, abs=1e-6)
