"""The analysis reads what runs logged and nothing else. Every number in the run folders here is made up."""

import json
import math
from pathlib import Path

import pytest
from support.made_up import MADE_UP_REFERENCES, METRICS, entries, note, two_worlds, write_made_up_run

from analysis import style, tradeoff
from analysis.curves import collapsed
from analysis.runs import StudyError, load


def curve_names(fig) -> list[str]:
    """The legend's entries between the references and the Pareto front, without hypervolumes."""
    names = [text.split("   ")[0] for text in entries(fig)]
    assert names[:2] == ["target", "retrained"] and names[-1].startswith("Pareto front")
    return names[2:-1]


def test_tables_hold_the_numbers_of_eval_json(made_up):
    study = load("made-up", made_up.parent)
    for folder in {f for f in study.runs["folder"] if (Path(f) / "eval.json").exists()}:
        for alpha, entry in json.loads((Path(folder) / "eval.json").read_text())["alphas"].items():
            row = study.runs[(study.runs["folder"] == folder) & (study.runs["eval_alpha"] == float(alpha))]
            assert len(row) == 1
            assert {m: row[m].item() for m in METRICS} == {m: entry[m] for m in METRICS}
    assert study.metrics == list(METRICS)  # not "settings", not booleans, not null
    first = study.runs[study.runs["algo"] == "ga"].iloc[0]
    assert (first["method"], first["pair"], first["data"], first["study"]) == ("offset", "tiny", "bios", "made-up")
    assert (first["alpha"], first["seed"], first["pair_seed"]) == (0.5, 0, 0)
    assert (first["seconds"], first["seconds/train"], first["peak_memory_mb"]) == (5.5, 3.0, 617.0)
    write_made_up_run(made_up.parent / "nan", {1.0: (math.nan, 0.5)})
    assert load("nan", made_up.parent).runs["forget/prob"].isna().all()


def test_failed_running_and_starting_runs_are_kept_and_counted_and_other_folders_are_no_runs(made_up):
    study = load(made_up)
    assert (study.count("done"), study.count("failed"), study.count("running")) == (4, 1, 1)
    failed = study.runs[study.runs["status"] == "failed"].iloc[0]
    assert failed["error"] == "no memory" and math.isnan(failed["forget/prob"])
    fig = tradeoff.figure(study)
    assert "not drawn: 1 running, 1 failed of 6 runs" in note(fig)
    assert "outside the forget set): 1 of 4 done" in note(fig)  # 0.14 is below half of 0.99
    for ax in fig.axes:  # every alpha is written beside its point
        assert sorted(text.get_text() for text in ax.texts[1:]) == ["0.5", "0.5", "1", "1"]
    bare = made_up / "starting"
    bare.mkdir()
    (bare / "config.yaml").write_text((next(made_up.glob("ga-*")) / "config.yaml").read_text())
    for other in ("figures", ".cache"):
        (made_up / other).mkdir()
    (made_up / ".cache" / "config.yaml").write_text("not: [a run")
    study = load(made_up)
    assert study.count("unknown") == 1 and study.runs["folder"].nunique() == 7


def test_references_appear_once_are_averaged_over_pair_seeds_and_their_disagreement_is_told(made_up, tmp_path):
    references = load(made_up).references
    assert references["reference"].tolist() == ["retrained", "target"]
    assert references.set_index("reference")["forget/prob"].to_dict() == {"target": 0.99, "retrained": 0.15}
    assert (references["disagreement"] == 0).all()
    other = {"target": MADE_UP_REFERENCES["target"] | {"retain/prob": 0.90}}
    write_made_up_run(made_up, {1.0: (0.1, 0.9)}, seed=1, references=other)
    study = load(made_up)
    assert len(study.references) == 2
    assert study.references["disagreement"].max() == pytest.approx(0.09)
    assert "differ by up to 0.09" in note(tradeoff.figure(study))
    for pair_seed, forget in ((0, 0.1), (1, 0.3)):
        references = {"retrained": dict.fromkeys(METRICS, forget)}
        write_made_up_run(tmp_path / "s", {1.0: (0.1, 0.9)}, pair_seed=pair_seed, references=references)
    study = load("s", tmp_path)
    assert len(study.references) == 2
    fig = tradeoff.figure(study)
    diamonds = [line.get_xdata().tolist() for line in fig.axes[0].lines if line.get_marker() == "D"]
    assert diamonds == [[pytest.approx(0.2)]]
    assert fig.axes[0].texts[0].get_text() == "aim: as the retrained model"


def test_trajectories_carry_their_run_a_step_logged_twice_is_one_row_and_half_a_line_is_none(made_up, tmp_path):
    trajectories = load(made_up).trajectories
    assert len(trajectories) == 6 * 2
    row = trajectories[(trajectories["algo"] == "kl") & (trajectories["step"] == 20)].iloc[0]
    assert (row["status"], row["train/loss"], row["forget/prob"], row["epoch"]) == ("failed", -20.0, 0.05, 4.0)
    path = write_made_up_run(tmp_path / "s", {}, status="running") / "metrics.jsonl"
    with path.open("a") as log:
        log.write('{"step": 20, "train/loss": 7.0}\n{"step": 30, "tra')
    trajectories = load("s", tmp_path).trajectories
    assert trajectories["step"].tolist() == [10, 20]
    assert trajectories["train/loss"].tolist() == [-10.0, 7.0] and trajectories["forget/prob"].tolist() == [0.1, 0.05]


def test_values_are_averaged_over_seeds_within_a_pair_seed_first_and_never_over_another_setting(tmp_path):
    for pair_seed, seed, forget in ((0, 0, 0.1), (0, 1, 0.3), (1, 0, 0.6)):
        write_made_up_run(tmp_path / "s", {1.0: (forget, 0.9)}, seed=seed, pair_seed=pair_seed)
    point = tradeoff.curves(load("s", tmp_path), "forget/prob", "retain/prob").iloc[0]
    assert point["n"] == 2  # worlds, not runs
    assert point["forget/prob"] == pytest.approx((0.2 + 0.6) / 2)
    assert (point["low/forget/prob"], point["high/forget/prob"]) == (0, 1)  # Student's of two: ± 12.7 · 0.2, cut
    for lr in (1e-3, 2e-3):
        write_made_up_run(tmp_path / "lr", {1.0: (100 * lr, 0.9)}, lr=lr)
    study = load("lr", tmp_path)
    table = tradeoff.curves(study, "forget/prob", "retain/prob")
    assert study.varied == ("trainer.lr",)
    assert table["forget/prob"].tolist() == [0.1, 0.2]


def test_curves_run_over_inference_alpha_when_runs_have_several(tmp_path):
    for alpha in (1.0, 2.0):
        write_made_up_run(tmp_path / "s", {2.0: (0.1, 0.7), 0.5: (0.5 * alpha / 2, 0.9)}, alpha=alpha)
    study = load("s", tmp_path)
    table = tradeoff.curves(study, "forget/prob", "retain/prob")
    assert table[["alpha", "along"]].to_numpy().tolist() == [[1, 0.5], [1, 2], [2, 0.5], [2, 2]]
    assert curve_names(tradeoff.figure(study)) == ["npo, trained at α=1", "npo, trained at α=2"]


def test_training_alpha_is_the_manifests(tmp_path):
    folder = write_made_up_run(tmp_path / "s", {2.0: (0.1, 0.9)}, method="direct", alpha=2.0)
    write_made_up_run(tmp_path / "s", {2.0: (0.3, 0.9)}, method="direct", alpha=1.0, lr=2e-3)
    study = load("s", tmp_path)
    assert study.runs["alpha"].tolist() == [1.0, 1.0] and study.trajectories["alpha"].eq(1).all()
    assert study.varied == ("trainer.lr",)  # not the alpha that was asked for last
    (folder / "manifest.json").write_text('{"status": "done"}')
    assert load("s", tmp_path).runs["alpha"].tolist() == [1.0, 2.0]


@pytest.mark.parametrize(("evaluated", "said"), [(None, "in training, too"), (3.0, "α in training (at inference: 3)")])
def test_a_grid_over_alpha_is_one_offset_curve_and_one_direct_curve(tmp_path, evaluated, said):
    for algo in ("ga", "npo"):
        for alpha in (0.5, 1.0, 2.0):
            write_made_up_run(tmp_path / "s", {evaluated or alpha: (0.5 / alpha, 0.9)}, algo=algo, alpha=alpha)
        three = {0.5: (0.8, 0.9), 1.0: (0.4, 0.8), 2.0: (0.1, 0.5)}
        write_made_up_run(tmp_path / "s", three, algo=algo, method="direct", alpha=2.0)
    study = load("s", tmp_path)
    table = tradeoff.curves(study, "forget/prob", "retain/prob")
    assert table.groupby(["algo", "method"])["along"].apply(list).tolist() == [[0.5, 1.0, 2.0]] * 4
    fig = tradeoff.figure(study)
    assert curve_names(fig) == ["ga, direct", "ga, offset", "npo, direct", "npo, offset"]
    looks = [(h.get_color(), h.get_linestyle()) for h in fig.legends[0].legend_handles[2:6]]
    assert len(set(looks)) == 4 and len({line for _, line in looks}) == 2  # colour: algorithm, line: method
    title = fig.legends[0].get_title().get_text()
    assert title.startswith("numbers: α at inference;") and said in title


def test_every_world_keeps_its_references(tmp_path):
    study = load(two_worlds(tmp_path / "s"))
    assert sorted(study.references["forget/prob"]) == pytest.approx([0.1, 0.18, 0.5, 0.9])
    assert study.references["disagreement"].eq(0).all() and study.metrics == list(METRICS[:2])
    assert study.runs["world"].tolist() == ["world 0 1", "world 0 2"]
    assert collapsed(study) == 1  # 0.4 is below half of 0.9, not below half of 0.5
    fig = tradeoff.figure(study)
    stars = [line.get_xdata().tolist() for line in fig.axes[0].lines if line.get_marker() == "*"]
    assert [sorted(x) for x in stars] == [[0.5, 0.9]]
    assert "vertical line" not in note(fig) and "once per world" in note(fig)


def test_one_panel_of_other_metrics_keeps_the_default_figure_and_series_are_told_apart_without_colour(
    made_up, tmp_path
):
    assert tradeoff.main([str(made_up), "--y", "retain/rougeL_recall", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tradeoff-retain_rougeL_recall.png").exists()
    assert len(tradeoff.figure(load(made_up), y="retain/rougeL_recall").axes) == 1
    looks = [style.series(i) for i in range(7)]
    assert len({look["marker"] for look in looks}) == len({look["color"] for look in looks}) == 7
    assert not {look["marker"] for look in looks} & {look["marker"] for look in style.REFERENCES.values()}


def test_wrong_words_and_damaged_files_are_named(made_up, capsys):
    for arguments, said in (
        (["made-down"], ["'made-down'", "made-up"]), (["made-up", "--y", "forget/prob"], ["two metrics"]),
        (["made-up", "--y", "retain/probe"], ["'retain/probe'", "retain/prob,"]),
    ):  # fmt: skip
        assert tradeoff.main([*arguments, "--runs", str(made_up.parent)]) == 2
        error = capsys.readouterr().err
        assert all(word in error for word in said) and error.count("\n") == 1
    run = next(made_up.glob("ga-*"))
    for file, text in DAMAGED:
        good = (run / file).read_text()
        (run / file).write_text(text)
        with pytest.raises(StudyError, match=f"{run.name}/{file}"):
            load(made_up)
        (run / file).write_text(good)


DAMAGED = (("config.yaml", "algo: [npo"), ("config.yaml", "alpha: 1.0"), ("manifest.json", "[]"),
           ("eval.json", '{"alphas": {"one": {}}}'), ("metrics.jsonl", "5\n"))  # fmt: skip
