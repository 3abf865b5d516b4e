"""What figures draw is what runs logged: read back from the drawn things. Every number here is made up."""

import math
import re
import subprocess
import sys
from itertools import product
from pathlib import Path

import numpy as np
import pytest
from support.helpers import ROOT
from support.made_up import (
    band,
    cut_off,
    entries,
    lines,
    note,
    outside,
    probs,
    rewrite,
    write_made_up_run,
    write_run,
    write_steps,
)

from analysis import alpha, cost, forgetting, leakage, matched, panels, pareto, tradeoff, trajectories
from analysis.curves import at_one_alpha, curves, references
from analysis.runs import StudyError, load
from analysis.table import table as rows_of_table
from unlearn.grid import table as grid_table

COMMANDS = {m.__name__.split(".")[1]: m for m in (alpha, cost, forgetting, leakage, matched, tradeoff, trajectories)}


@pytest.fixture
def unlucky(tmp_path):
    """A study with a collapsed run beside one that failed and one that still runs."""
    study = tmp_path / "runs" / "unlucky"
    leaks = {f"forget/leak@{k}": k / 100 for k in (1, 10)}
    write_run(study, {1.0: probs(0.1, 0.9, 0.9, 0.9) | leaks}, algo="npo")
    write_run(study, {1.0: probs(0.01, 0.1, 0.1, 0.1) | leaks}, algo="ga")
    for algo, status in (("kl", "failed"), ("gd", "running")):
        write_steps(write_run(study, {}, status=status, algo=algo), {0: probs(0.9, 0.9)})
    for folder in study.iterdir():
        rewrite(folder / "manifest.json", lambda m: m.update(trainable=10))
        if folder.name[:3] in ("npo", "ga-"):
            write_steps(folder, {0: probs(0.99, 0.97), 10: probs(0.1, 0.9)})
    return study


@pytest.mark.parametrize("name", sorted(set(COMMANDS) - {"forgetting"}))  # that one needs true runs: below
def test_no_panel_cuts_off_what_it_shares_its_limits_with_and_what_is_not_drawn_is_counted(unlucky, tmp_path, name):
    folder = write_run(unlucky, {1.0: {"forget/prob": math.nan}}, algo="dpo")  # nothing that a figure shows
    write_steps(folder, {0: {"train/loss": 1.0}})
    said = note(COMMANDS[name].figure(load(unlucky)))
    counted = re.search("not drawn: (.*) of 5 runs", said)[1].split(", ")
    assert sorted(counted) == ["1 done without the numbers shown", "1 failed", "1 running"]
    assert "collapsed (below half of the target's probability outside the forget set): 1 of 3 done" in said
    assert "1 pair seed" in said
    for place, (algo, method) in enumerate((("npo", "offset"), ("kl", "offset"), ("npo", "direct"))):
        low, far = (0.9, 0.02, 0.5)[place], (4.0, 1.0, 0.5)[place]
        values = {far / 2: probs(0.9, 0.95, 0.9, 0.9), far: probs(low, low, 0.9, 0.9)}
        for metrics in values.values():
            metrics |= {f"forget/leak@{k}": metrics["forget/prob"] for k in (1, 10)}
        folder = write_run(tmp_path / "s", values, algo=algo, method=method, alpha=far)
        rewrite(folder / "manifest.json", lambda m, p=place: m.update(trainable=10**p, seconds={"train": 9.0 - 4 * p}))
        write_steps(folder, {0: probs(0.99, 0.97), 100 - 40 * place: probs(low, low)})
    assert outside(COMMANDS[name].figure(load(tmp_path / "s"))) == []


def test_long_names_find_room(tmp_path):
    values = {m.replace("prob", "extraction_strength"): 0.5 for m in probs(*range(4))} | probs(0.1, 0.9, 0.9, 0.9)
    values |= {f"forget/attribute_leaked@{k}": 0.1 for k in (1, 10)}
    more = {name: {m: v / 2 for m, v in values.items()} for name in ("target", "retrained")}
    for method in ("direct", "offset"):
        write_steps(write_run(tmp_path / "s", {1.0: values}, more, method=method), {0: values, 9: values})
    study, long = load(tmp_path / "s"), [m for m in values if m.endswith("extraction_strength")]
    for fig in (
        leakage.figure(study, "attribute_leaked"), matched.figure(study, long[1:], long[0]), cost.figure(study, long),
        trajectories.figure(study, long), tradeoff.figure(study, long[0], long[2]),
    ):  # fmt: skip
        assert cut_off(fig) == []


def test_help_shows_examples_and_a_study_without_finished_runs_is_explained(tmp_path, capsys):
    write_run(tmp_path / "s", {}, status="failed")
    (tmp_path / "empty").mkdir()
    for name, command in COMMANDS.items():
        with pytest.raises(SystemExit):
            command.main(["--help"])
        said = capsys.readouterr().out
        assert f"python -m analysis.{name} demo" in said and "--out DIR" in said and "None" not in said
        for study, told in (("s", "(1 failed); first error: no memory"), ("empty", "(no run folders)")):
            assert command.main([study, "--runs", str(tmp_path)]) == 2
            error = capsys.readouterr().err
            assert f"no finished runs {told}" in error and error.count("\n") == 1


@pytest.mark.parametrize("name", ["tradeoff", pytest.param("matched", marks=pytest.mark.nightly)])
def test_files_are_byte_identical_on_repeat_and_other_options_keep_the_default_figure(unlucky, tmp_path, capsys, name):
    written = []
    for _ in range(2):
        assert COMMANDS[name].main(["unlucky", "--runs", str(unlucky.parent)]) == 0
        paths = [Path(path) for path in capsys.readouterr().out.split()]
        written.append([path.read_bytes() for path in paths])
    assert written[0] == written[1] and b"Date" not in written[0][1]  # nor will they differ tomorrow
    assert paths == [unlucky / "figures" / f"{name}.{kind}" for kind in ("png", "pdf")]
    out = tmp_path / "out"
    assert trajectories.main([str(unlucky), "--metrics", "retain/prob", "--out", str(out)]) == 0
    assert cost.main([str(unlucky), "--alpha", "1", "--out", str(out)]) == 0
    assert sorted(p.name for p in out.glob("*.png")) == ["cost-alpha1.png", "trajectories-retain_prob.png"]
    assert set(paths) == {p for p in (unlucky / "figures").iterdir() if p.stem.startswith(name)}


def test_trajectories_are_the_logged_steps_method_by_method(tmp_path):
    for pair_seed, more in ((0, 0.0), (1, 0.2)):
        for method, shift in (("offset", 0.0), ("direct", 0.1)):
            run = write_run(tmp_path / "s", {1.0: probs(0.1, 0.5)}, method=method, pair_seed=pair_seed)
            write_steps(run, {0: probs(0.9, 0.8), 5: {"train/loss": 3.0}, 10: probs(0.3 + shift + more, 0.6 + shift)})
    fig = trajectories.figure(load(tmp_path / "s"))
    forget_direct, forget_offset, retain_direct, _ = fig.axes
    assert [ax.get_title(loc="left") for ax in (forget_direct, forget_offset)] == ["direct", "offset"]
    assert lines(forget_offset)[2] == ((0, 0.9), (10, pytest.approx(0.4)))  # after the two references
    assert lines(forget_direct)[2] == ((0, 0.9), (10, pytest.approx(0.5)))
    assert lines(retain_direct)[2] == ((0, 0.8), (10, pytest.approx(0.7)))
    assert {(10.0, 0.0), (10.0, 1.0)} <= band(forget_offset)  # Student's of two: ± 12.7 · 0.1, cut at 0 and 1
    assert {line.get_ydata()[0] for line in forget_direct.lines[:2]} == {0.99, 0.15}
    assert entries(fig) == ["target", "retrained", "npo (n=2)"] and "95 % over 2 pair seeds" in note(fig)
    with pytest.raises(StudyError, match="no metric 'retain/rougeL_recall'; choices: forget/prob, retain/prob"):
        trajectories.figure(load(tmp_path / "s"), ["retain/rougeL_recall"])


def test_alpha_shows_every_split_at_every_alpha(tmp_path):
    values = {0.5: probs(0.4, 0.9, 0.8, 0.7), 1.0: probs(0.1, 0.6, 0.5, 0.4)}
    values[1.0]["intervals"] = {"retain/prob": [0.5, 0.7]}
    values[0.5]["intervals"] = {"retain/prob": [0.8, 0.95]}
    write_run(tmp_path / "s", values)
    for a in (1.0, 2.0):
        write_run(tmp_path / "s", {a: probs(0.3 / a, 0.9, 0.9, 0.9)}, algo="kl", alpha=a)
    fig = alpha.figure(load(tmp_path / "s"))
    trained, seen = fig.axes
    assert [ax.get_title(loc="left") for ax in fig.axes] == ["kl", "npo"]
    labels = [ax.get_xlabel().replace("\n", " ") for ax in fig.axes]
    assert labels == ["α in training and at inference", "α at inference (in training: 1)"]
    drawn = lines(seen)
    for place, metric in enumerate(probs(*range(4))):
        # then the retrained model's line, and the target's star at α = 0
        assert drawn[3 * place] == tuple((a, values[a][metric]) for a in (0.5, 1.0))
    assert drawn[2] == ((0, 0.99),) and drawn[1][0][1] == 0.15
    assert lines(trained)[0] == ((1, 0.3), (2, 0.15))
    assert {(0.5, 0.8), (0.5, 0.95), (1.0, 0.5), (1.0, 0.7)} <= band(seen)
    assert "95 % over people or questions" in note(fig)
    with pytest.raises(StudyError, match="no metric 'forget/rouge'"):
        alpha.figure(load(tmp_path / "s"), "rouge")


def test_matched_interpolates_where_the_curve_meets_the_retrained_model_if_there_is_one(tmp_path):
    write_run(tmp_path / "s", {0.5: probs(0.43, 0.9), 1.0: probs(0.05, 0.5), 2.0: probs(0.3, 0.1)})
    write_run(tmp_path / "s", {0.5: probs(0.8, 0.9), 1.0: probs(0.6, 0.8)}, algo="kl")
    write_run(tmp_path / "s", {1.0: probs(0.01, 0.2), 2.0: probs(0.005, 0.1)}, algo="ga")
    study = load(tmp_path / "s")
    rows = matched.match(study, ["retain/prob"]).set_index("algo")
    share = (0.43 - 0.15) / (0.43 - 0.05)  # the retrained model's forget probability is 0.15
    assert rows.loc["npo", "retain/prob"] == pytest.approx(0.9 - share * 0.4)
    assert rows.loc["npo", "at"] == pytest.approx(0.5 + share * 0.5)
    assert rows.loc["ga", "at"] == pytest.approx((0.99 - 0.15) / (0.99 - 0.01))  # from the target, which is α = 0
    assert (rows.loc["kl", "n"], rows.loc["kl", "of"]) == (0, 1) and math.isnan(rows.loc["kl", "retain/prob"])
    fig = matched.figure(study, ["retain/prob"])
    marks = sorted(x for line in lines(fig.axes[0]) for x, _ in line if len(line) == 1)
    assert marks == pytest.approx(sorted(rows["retain/prob"].dropna()))
    assert [text.get_text() for text in fig.axes[0].texts] == ["not reached, nearest: 0.45 away"]
    assert "not reached: 1 of 3 curves" in note(fig)
    folder = write_run(tmp_path / "alone", {1.0: probs(0.1, 0.9)})
    rewrite(folder / "eval.json", lambda e: e["references"].pop("retrained"))
    with pytest.raises(StudyError, match="no retrained model's 'forget/prob'"):
        matched.figure(load(tmp_path / "alone"))


def test_matched_says_in_how_many_pair_seeds_a_curve_gets_there(tmp_path):
    for pair_seed, forget in enumerate((0.05, 0.1, 0.4)):
        write_run(tmp_path / "s", {1.0: probs(forget, 0.5)}, pair_seed=pair_seed)
    fig = matched.figure(load(tmp_path / "s"), ["retain/prob"])
    assert [text.get_text() for text in fig.axes[0].texts] == ["2/3"]
    shares = [(0.99 - 0.15) / (0.99 - forget) for forget in (0.05, 0.1)]
    (mark,) = [line for line in fig.axes[0].lines if line.get_marker() == "o"]
    assert mark.get_xdata() == pytest.approx([sum(0.97 - s * 0.47 for s in shares) / 2])
    assert mark.get_markerfacecolor() == "white"


def test_leakage_is_leak_at_k_beside_the_retrained_models(tmp_path):
    def leaks(*values):
        return {f"forget/leak@{k}": v for k, v in zip((1, 10, 20), values, strict=True)}

    more = {"target": leaks(0.8, 0.9, 1.0), "retrained": leaks(0.2, 0.3, 0.4)}
    for method, first in (("offset", 0.3), ("direct", 0.1)):
        write_run(tmp_path / "s", {1.0: leaks(first, 0.5, 0.6)}, more, method=method)
    fig = leakage.figure(load(tmp_path / "s"))
    direct, offset = fig.axes
    reference = [((1, 0.8), (10, 0.9), (20, 1.0)), ((1, 0.2), (10, 0.3), (20, 0.4))]
    assert sorted(lines(offset)[:2]) == sorted(reference)
    assert lines(offset)[2] == ((1, 0.3), (10, 0.5), (20, 0.6)) and lines(direct)[2][0] == (1, 0.1)
    with pytest.raises(StudyError, match=r"no forget/leaked@k; .*eval.groups=\[leak\]"):
        leakage.figure(load(tmp_path / "s"), "leaked")


def test_without_a_retrained_model_the_guess_level_has_a_line_in_every_figure_of_the_forget_set(tmp_path):
    leaks = {"forget/leak@1": 0.2, "forget/leak@10": 0.3}
    guess = {"forget/prob": 0.17, "forget/rougeL_recall": 0.66, "forget/leak@1": 0.4, "forget/leak@10": 0.6}
    known = {"target": probs(0.99, 0.97) | leaks, "guess": guess}
    folder = write_made_up_run(tmp_path / "s", {1.0: probs(0.1, 0.9) | leaks}, references=known)
    rewrite(folder / "manifest.json", lambda m: m.update(trainable=10))
    write_steps(folder, {0: probs(0.99, 0.97), 10: probs(0.1, 0.9)})
    study = load(tmp_path / "s")
    across = {name: COMMANDS[name].figure(study) for name in ("alpha", "cost", "leakage", "tradeoff", "trajectories")}
    for name, fig in across.items():
        value = ((1.0, 0.4), (10.0, 0.6)) if name == "leakage" else 0.17
        drawn = [line for ax in fig.axes for line in lines(ax)]
        found = [line for line in drawn if line == value or value in [n for point in line for n in point]]
        assert found and (name == "tradeoff" or "guess" in entries(fig)), name
    assert "aim: the guess level" in {text.get_text()[:20] for text in across["tradeoff"].axes[0].texts}
    assert "(less is better)" in across["leakage"].axes[0].get_ylabel()


def test_cost_is_what_manifests_record(tmp_path):
    for method, trainable in (("offset", 100), ("direct", 900), ("dd", None)):
        folder = write_run(tmp_path / "s", {1.0: probs(0.1, 0.8)}, method=method)
        seconds = {"evaluate": 2.5} | ({"train": trainable / 10} if trainable else {})
        rewrite(folder / "manifest.json", lambda m, s=seconds, t=trainable: m.update(seconds=s, trainable=t))
    fig = cost.figure(load(tmp_path / "s"), ["retain/prob"])
    points = [{line.get_xdata()[0] for line in ax.lines[2:]} for ax in fig.axes]
    assert points == [{10, 90, 0}, {100, 900, 0}]  # a method that trains nothing costs nothing
    assert {line.get_ydata()[0] for line in fig.axes[0].lines[2:]} == {0.8}
    labels = [ax.get_xlabel().split("   ")[0].split("\n")[0] for ax in fig.axes]
    assert labels == ["training, seconds", "trainable parameters"]  # a constant has no panel
    assert "the same for all: peak memory, MB, 617" in fig.get_supxlabel()
    assert entries(fig) == ["target", "retrained", "npo, dd", "npo, direct", "npo, offset"]


def test_a_cost_that_hardly_differs_has_no_panel_and_shares_end_at_0_and_1(tmp_path):
    for pair_seed, algo in product((0, 1), ("npo", "ga")):
        more = 20 * (algo == "ga")
        folder = write_run(tmp_path / "s", {1.0: probs(0.1, 0.4 + 0.5 * pair_seed)}, algo=algo, pair_seed=pair_seed)
        rewrite(folder / "manifest.json", lambda m, b=more: m.update(seconds={"train": 9 + b}, peak_memory_mb=600 + b))
    study = load(tmp_path / "s")
    assert len(cost.figure(study, ["retain/prob"]).axes) == 1
    assert "the same for all within 5 %: peak memory, MB, 610" in note(cost.figure(study, ["retain/prob"]))
    low, high = (matched.match(study, ["retain/prob"])[f"{end}/retain/prob"] for end in ("low", "high"))
    assert low.tolist() == [0, 0] and high.tolist() == [1, 1]  # Student's of two: ± 12.7 · 0.2


def test_analysis_needs_neither_torch_nor_the_trainer():
    modules = [f"analysis.{name}" for name in (*COMMANDS, "table", "report.page")]
    script = f"import sys, {', '.join(modules)}; print(*sys.modules)"
    done = subprocess.run([sys.executable, "-c", script], cwd=ROOT, capture_output=True, text=True, check=True)
    assert not {"torch", "unlearn", "transformers", "matplotlib.pyplot"} & set(done.stdout.split())


LOW_HIGH = ("lower", "higher")


def test_the_front_is_what_no_other_point_beats_and_the_hypervolume_the_area_beaten():
    points = np.array([[0.2, 0.9], [0.1, 0.5], [0.3, 0.9], [0.2, 0.4], [0.5, 0.95], [0.1, 0.5]])
    assert points[pareto.front(points, LOW_HIGH)].tolist() == [[0.1, 0.5], [0.2, 0.9], [0.5, 0.95]]
    assert points[pareto.front(points, ("higher", "higher"))].tolist() == [[0.5, 0.95]]
    points = np.array([[0.2, 0.9], [0.1, 0.5], [0.6, 0.2]])
    # from (1, 0): 0.8 wide and 0.9 high, and 0.1 more in width up to 0.5; the third point adds nothing
    assert pareto.hypervolume(points, LOW_HIGH, (1.0, 0.0)) == pytest.approx(0.8 * 0.9 + 0.1 * 0.5)
    assert pareto.hypervolume(np.array([[1.2, 0.9]]), LOW_HIGH, (1.0, 0.0)) == 0
    assert pareto.hypervolume(np.empty((0, 2)), LOW_HIGH, (1.0, 0.0)) == 0


def test_intervals_over_questions_stand_for_a_single_pair_seed(tmp_path):
    for pair_seed, (name, forget) in enumerate((("one", 0.2), ("two", 0.4))):
        more = probs(forget, 0.9) | {"intervals": {"forget/prob": [0.1, 0.5]}}
        write_run(tmp_path / name, {1.0: more}, pair_seed=pair_seed)
    write_run(tmp_path / "two", {1.0: probs(0.2, 0.9)}, pair_seed=0)
    one, two = (curves(load(tmp_path / name), "forget/prob").iloc[0] for name in ("one", "two"))
    assert (one["n"], one["low/forget/prob"], one["high/forget/prob"]) == (1, 0.1, 0.5)
    assert (two["n"], two["forget/prob"]) == (2, pytest.approx(0.3))
    assert (two["low/forget/prob"], two["high/forget/prob"]) == (0, 1)  # Student's of two: ± 12.7 · 0.1, cut
    assert load(tmp_path / "one").metrics[:2] == ["forget/prob", "retain/prob"]  # their ends are no metrics
    assert references(load(tmp_path / "one"), "forget/prob")["low/forget/prob"].isna().all()


def test_a_run_is_shown_where_it_was_trained_or_where_asked(tmp_path):
    write_run(tmp_path / "s", {0.5: probs(0.4, 0.9), 2.0: probs(0.1, 0.7)}, alpha=1.5)
    study = load(tmp_path / "s")
    shown = at_one_alpha(study, "forget/prob").iloc[0]
    assert (shown["alpha"], shown["forget/prob"]) == (1.5, 0.1)
    assert at_one_alpha(study, "forget/prob", alpha=0.5)["forget/prob"].tolist() == [0.4]
    with pytest.raises(StudyError, match="evaluated at α = 3; choices: 0.5, 2"):
        at_one_alpha(study, "forget/prob", alpha=3)


def test_the_tradeoff_over_steps_draws_what_was_logged(tmp_path):
    steps = {0: probs(0.99, 0.97), 5: {"train/loss": 1.0}, 10: probs(0.5, 0.9), 20: probs(0.1, 0.6)}
    write_steps(write_run(tmp_path / "s", {1.0: probs(0.1, 0.6)}), steps)
    write_steps(write_run(tmp_path / "s", {}, status="failed", algo="ga"), {0: probs(0.9, 0.9)})
    fig = tradeoff.figure(load(tmp_path / "s"), over="steps")
    drawn = [line for line in fig.axes[0].lines if line.get_linestyle() == "-" and line.get_alpha() is None]
    assert drawn[0].get_xydata().tolist() == [[0.99, 0.97], [0.5, 0.9], [0.1, 0.6]]
    assert [t.get_text() for t in fig.axes[0].texts] == [tradeoff.AIMS["retrained"], "20"]
    assert "not drawn: 1 failed of 2 runs" in note(fig)
    assert entries(fig)[0].startswith("target   0.011")  # (1 − 0.84 / 0.85) × 0.97 beaten


def test_the_tradeoff_marks_the_front_and_says_the_area(tmp_path):
    write_run(tmp_path / "s", {0.5: probs(0.2, 0.9), 1.0: probs(0.1, 0.5)}, algo="npo")
    write_run(tmp_path / "s", {0.5: probs(0.6, 0.8), 1.0: probs(0.05, 0.2)}, algo="ga")
    study = load(tmp_path / "s")
    fig = tradeoff.figure(study, "forget/prob", "retain/prob")
    (stairs,) = [line for line in fig.axes[0].lines if line.get_linewidth() == tradeoff.FRONT["linewidth"]]
    # 0.2 and 0.1 are as far from the retrained model's 0.15, and 0.05 is further: forgetting too far is no gain
    assert stairs.get_xydata().tolist() == [[0.2, 0.9]]
    said = entries(fig)
    assert f"npo   {0.8 / 0.85 * 0.9:.3f}" in said and "retrained   0.940" in said  # nothing beats the retrained model
    assert "forgetting counts by its distance from the best, the retrained model's" in note(fig)
    found = tradeoff.hypervolumes(study, "forget/prob", "retain/prob")
    assert found["ga", "offset", "tiny", "bios", 1.0] == [pytest.approx(0.4 / 0.85 * 0.8 + 0.35 / 0.85 * 0.2)]
    crosses = [line.get_xydata().tolist() for line in fig.axes[0].lines if line.get_marker() == "x"]
    assert said[-2] == "collapsed" and [c for c in crosses if c] == [[[0.05, 0.2]]]  # ga at 1 keeps 0.2 of 0.97


def test_the_tradeoff_opens_the_corner_where_little_is_lost_and_0_and_1_have_their_place(tmp_path):
    write_run(tmp_path / "s", {0.5: probs(0.9, 1.0), 1.0: probs(0.2, 0.98), 2.0: probs(0.0, 0.0)})
    fig = tradeoff.figure(load(tmp_path / "s"))
    (ax,) = fig.axes
    at = {v: (ax.transData + ax.transAxes.inverted()).transform((v, v)) for v in (0.0, 0.5, 0.98, 1.0)}
    assert (at[1.0] - at[0.98] > 0.12).all() and (at[0.5] - at[0.0] > 0.4).all()
    assert all(0 < point[1] < 1 for point in at.values())
    assert [t.get_text() for t in ax.get_yticklabels()] == [f"{t:g}" for t in panels.TICKS]
    assert "axes in odds" in note(fig) and ax.texts[0].get_text() == tradeoff.AIMS["retrained"]
    turned = tradeoff.figure(load(tmp_path / "s"), "retain/prob", "forget/prob")
    assert {t.get_text() for t in turned.axes[0].texts} == {"0.5", "1", "2"}  # what is retained has no such aim


def test_a_metric_without_a_better_side_has_no_front_and_many_points_are_labelled_at_the_ends_of_their_curves(tmp_path):
    folder = write_run(tmp_path / "s", {1.0: probs(0.2, 0.9) | {"forget/fluency": 2.0}})
    rewrite(folder / "manifest.json", lambda m: m.update(trainable=1234))
    study = load(tmp_path / "s")
    assert study.runs["trainable"].tolist() == [1234.0]
    fig = tradeoff.figure(study, "forget/prob", "forget/fluency")
    assert not [line for line in fig.axes[0].lines if line.get_linewidth() == tradeoff.FRONT["linewidth"]]
    assert "hypervolume" not in note(fig) and fig.axes[0].get_ylabel() == "forget set, fluency"
    alphas = [a / 10 for a in range(1, 35)]
    write_run(tmp_path / "many", {a: probs(1 / (1 + a), 0.9 - a / 10) for a in alphas})
    fig = tradeoff.figure(load(tmp_path / "many"))
    assert sorted(text.get_text() for text in fig.axes[0].texts[1:]) == ["0.1", "3.4"]
    assert "ends of curves only; all α: 0.1, 0.2, 0.3" in note(fig)


def test_the_aim_of_every_axis_is_the_retrained_models_value_in_words(tmp_path):
    gaps = {"forget/leak_gap": 0.3, "forget/leak@1": 0.4, "forget/leak@10": 0.5}
    folder = write_run(tmp_path / "s", {1.0: probs(0.2, 0.9, 0.9, 0.9) | gaps, 2.0: probs(0.1, 0.8, 0.9, 0.9) | gaps})
    rewrite(folder / "manifest.json", lambda m: m.update(trainable=10))
    write_steps(folder, {0: probs(0.99, 0.97), 10: probs(0.1, 0.9)})
    study = load(tmp_path / "s")
    across, up = (
        axis.get_label_text() for axis in (tradeoff.figure(study).axes[0].xaxis, tradeoff.figure(study).axes[0].yaxis)
    )
    assert across == "forget set, probability\n(aim: retrained)" and up == "retain set, probability\n(better →)"
    for name in ("alpha", "cost", "leakage", "matched", "trajectories"):
        fig = COMMANDS[name].figure(study)
        said = " ".join([*(a.get_xlabel() + a.get_ylabel() for a in fig.axes), *entries(fig)])
        assert "forget/" not in said and "↓" not in said, (name, said)
        assert name == "cost" or "← better" not in said, (name, said)
    gap = tradeoff.figure(study, x="forget/leak_gap")
    (diamond,) = [line for line in gap.axes[0].lines if line.get_marker() == "D"]
    assert diamond.get_xydata().tolist() == [[0.0, 0.94]]  # the retrained model's distance from itself
    assert "(aim: 0)" in gap.axes[0].get_xlabel()


def test_neighbours_count_among_what_is_kept_and_the_trade_off_may_be_against_them(tmp_path):
    near = {"target": {"neighbours/prob": 0.8, "neighbours/rougeL_recall": 0.9}}
    values = {1.0: probs(0.1, 0.9) | {"neighbours/prob": 0.04}, 0.5: probs(0.5, 0.95) | {"neighbours/prob": 0.4}}
    write_run(tmp_path / "s", values, near)
    study = load(tmp_path / "s")
    fig = tradeoff.figure(study, retain="neighbours")
    assert [ax.get_ylabel().split("\n")[0] for ax in fig.axes] == ["neighbours, probability"]
    assert (0.1, 0.04) in {point for line in lines(fig.axes[0]) for point in line}
    assert tradeoff.main([str(study.folder), "--retain", "neighbours", "--out", str(tmp_path / "out")]) == 0
    assert (tmp_path / "out" / "tradeoff-neighbours.png").is_file()
    table = rows_of_table(study, ["kept"]).rows
    left = {row.settings["eval_alpha"]: row.cells["kept"].mean for row in table if row.kind == "run"}
    assert left == pytest.approx({1.0: (0.9 / 0.97 + 0.04 / 0.8) / 2, 0.5: (0.95 / 0.97 + 0.4 / 0.8) / 2})
    assert grid_table.kept(values[1.0], probs(0.99, 0.97) | near["target"]) == pytest.approx(left[1.0])
