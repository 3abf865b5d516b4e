"""Pareto front and hypervolume by hand, and curves of any metric with what is drawn around them."""

import math

import numpy as np
import pytest
from support.made_up import entries, note, probs, rewrite, write_run, write_steps

from analysis import pareto, tradeoff
from analysis.curves import at_one_alpha, curves, references
from analysis.runs import StudyError, load

LOW_HIGH = ("lower", "higher")


def test_the_front_is_what_no_other_point_beats():
    points = np.array([[0.2, 0.9], [0.1, 0.5], [0.3, 0.9], [0.2, 0.4], [0.5, 0.95], [0.1, 0.5]])
    assert points[pareto.front(points, LOW_HIGH)].tolist() == [[0.1, 0.5], [0.2, 0.9], [0.5, 0.95]]
    assert points[pareto.front(points, ("higher", "higher"))].tolist() == [[0.5, 0.95]]


def test_hypervolume_is_the_area_beaten():
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
    sd = math.sqrt(2 * 0.1**2)
    assert (two["n"], two["forget/prob"]) == (2, pytest.approx(0.3))
    assert (two["low/forget/prob"], two["high/forget/prob"]) == (pytest.approx(0.3 - sd), pytest.approx(0.3 + sd))
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
    assert [t.get_text() for t in fig.axes[0].texts] == ["20"]
    assert "not drawn: 1 failed of 2 runs" in note(fig)
    assert entries(fig)[0].startswith("target   0.010")  # 0.01 × 0.97 beaten


def test_the_tradeoff_marks_the_front_and_says_the_area(tmp_path):
    write_run(tmp_path / "s", {0.5: probs(0.2, 0.9), 1.0: probs(0.1, 0.5)}, algo="npo")
    write_run(tmp_path / "s", {0.5: probs(0.6, 0.8), 1.0: probs(0.05, 0.2)}, algo="ga")
    study = load(tmp_path / "s")
    fig = tradeoff.figure(study, "forget/prob", "retain/prob")
    (stairs,) = [line for line in fig.axes[0].lines if line.get_linewidth() == tradeoff.FRONT["linewidth"]]
    # from the least forget probability to the largest, each step at the lower of two heights
    corners = [[0.05, 0.2], [0.1, 0.2], [0.1, 0.5], [0.2, 0.5], [0.2, 0.9]]
    assert stairs.get_xydata().tolist() == corners
    said = entries(fig)
    assert f"npo   {0.8 * 0.9 + 0.1 * 0.5:.3f}" in said and f"retrained   {0.85 * 0.94:.3f}" in said
    assert "worst point forget/prob = 1, retain/prob = 0" in note(fig)
    found = tradeoff.hypervolumes(study, "forget/prob", "retain/prob")
    assert found["ga", "offset", "tiny", "bios", 1.0] == [pytest.approx(0.4 * 0.8 + 0.55 * 0.2)]


def test_a_metric_without_a_better_side_has_no_front_and_trainable_parameters_are_read(tmp_path):
    folder = write_run(tmp_path / "s", {1.0: probs(0.2, 0.9) | {"forget/fluency": 2.0}})
    rewrite(folder / "manifest.json", lambda m: m.update(trainable=1234))
    study = load(tmp_path / "s")
    assert study.runs["trainable"].tolist() == [1234.0]
    fig = tradeoff.figure(study, "forget/prob", "forget/fluency")
    assert not [line for line in fig.axes[0].lines if line.get_linewidth() == tradeoff.FRONT["linewidth"]]
    assert "hypervolume" not in note(fig) and fig.axes[0].get_ylabel() == "forget/fluency"


def test_many_points_are_labelled_at_the_ends_of_their_curves(tmp_path):
    alphas = [a / 10 for a in range(1, 35)]
    write_run(tmp_path / "s", {a: probs(1 / (1 + a), 0.9 - a / 10) for a in alphas})
    fig = tradeoff.figure(load(tmp_path / "s"))
    assert sorted(text.get_text() for text in fig.axes[0].texts) == ["0.1", "3.4"]
    assert "ends of curves only; all α: 0.1, 0.2, 0.3" in note(fig)
