"""α chosen without training: on which examples, by which rule, and what is written."""

import dataclasses
import re

import numpy as np
import pytest

from unlearn.calibrate import main
from unlearn.config.schema import ConfigError
from unlearn.data.sampling import held_out
from unlearn.decoding.generation import Decoding, sample
from unlearn.evaluation.groups.leak import CHOOSING, SEED
from unlearn.grid.rerun import open_run
from unlearn.runs import calibration
from unlearn.runs.baselines import suite_of
from unlearn.runs.calibration import FILE, MOST, calibrate_run, keep, reach
from unlearn.runs.goal import FEW, Goal, goal_of, parts
from unlearn.runs.learner import members
from unlearn.store.files import read_json

# --- the search, on functions whose answer is known ---------------------------------------------------------------


def measured(function):
    return lambda alphas: np.array([function(a) for a in alphas])


REACHED = {  # the metric of α, the value asked for, the α, the value there (None: not above what was asked), the note
    "a falling metric": (lambda a: np.exp(-a), 0.15, -np.log(0.15), None, ""),
    "a rising metric": (lambda a: 1 - np.exp(-a), 0.5, np.log(2), 0.5, ""),
    # falls through 0.5 at α = 1, rises again at 2, falls for good at 4
    "the first of several crossings": (lambda a: 0.6 if a < 1 or 2 < a < 4 else 0.4, 0.5, 1, 0.4, ""),
    "the nearest, out of reach": (lambda a: 0.9 - 0.01 * a, 0.1, MOST, 0.9 - 0.16, "not reached"),
    "no offset needed": (lambda a: 0.3 - a, 0.3, 0, 0.3, "the target itself"),
    "the far side of a jump": (lambda a: 1.0 if a < 0.7 else 0.0, 0.4, 0.7, 0, ""),
}


@pytest.mark.parametrize("name", REACHED)
def test_a_value_is_reached_at_the_smallest_alpha_where_the_metric_has_it(name):
    metric, asked, alpha, value, note = REACHED[name]
    choice = reach(measured(metric), asked)
    assert choice.alpha == pytest.approx(alpha, abs=2e-4) and note in choice.note and bool(choice.note) == bool(note)
    assert choice.reached <= asked if value is None else choice.reached == pytest.approx(value, abs=2e-4)


def test_the_largest_alpha_that_keeps_a_metric_stops_before_the_first_loss_if_there_is_one():
    # better at first, then 0.1 below the start at α = 3, and back again later, where it does not count
    def metric(a):
        return 0.9 + 0.05 * a if a < 1 else 0.95 - 0.075 * (a - 1) if a < 5 else 0.95

    choice = keep(measured(metric), 0.1)
    assert choice.alpha == pytest.approx(3, abs=2e-3) and choice.reached >= 0.8 - 1e-9
    choice = keep(measured(lambda a: 0.9), 0.01)
    assert choice.alpha == MOST and "kept up to" in choice.note


# --- the goal ------------------------------------------------------------------------------------------------------


def test_goals_from_the_command_line():
    assert goal_of(["forget/prob=0.15"]) == Goal("forget/prob", value=0.15)
    assert goal_of(["to=retrained"]) == Goal("forget/leak") and goal_of(["to=retrained"]).oracle
    assert "oracle" in str(goal_of(["to=retrained", "metric=forget/exact_memorization"]))
    assert goal_of(["tolerance=0.02"]) == Goal("retain/prob", tolerance=0.02)


REFUSED = [
    ([], "give one of METRIC=VALUE"),
    (["to=retrained", "tolerance=0.1"], "give one of METRIC=VALUE"),
    (["tolerance"], "tolerance: give one of METRIC=VALUE"),
    (["forget/prob"], "forget/prob: give one of METRIC=VALUE"),
    (["tolerance=0.1", "metric"], "give one of METRIC=VALUE"),
    (["tolerance=0.1", "tolerance=0.2"], "give one of METRIC=VALUE"),
    (["forget/prob=0.1", "forget/prob=0.2"], "give one of METRIC=VALUE"),
    (["to=retrained", "metric=forget/prob", "metric=retain/prob"], "give one of METRIC=VALUE"),
    (["forget/prob=0.1", "metric=retain/prob"], "metric=SPLIT/METRIC for these two"),
    (["to=target"], "to=target: must be retrained"),
    (["forget/rouge=0.1"], "can be calibrated to forget/prob, forget/exact_memorization"),
    (["forget/prob=2"], "forget/prob=2: must be a number between 0 and 1"),
    (["tolerance=much"], "tolerance=much: must be a number between 0 and 1"),
]


@pytest.mark.parametrize(("arguments", "message"), REFUSED)
def test_an_impossible_goal_is_refused(arguments, message):
    with pytest.raises(ConfigError, match=message):
        goal_of(arguments)


def test_the_command_refuses_a_goal_without_a_value(capsys):
    assert main(["run=runs/study/any", "tolerance"]) == 2
    assert "Refused before any work:\n  tolerance: give one of METRIC=VALUE" in capsys.readouterr().err


# --- on a run ------------------------------------------------------------------------------------------------------

SHARES = ("algo=ga", "trainer.held_out=0.5", "trainer.steps=6", "trainer.lr=0.01")


@pytest.mark.parametrize("split", ["forget", "retain", "real_authors"])
def test_choosing_and_reporting_share_no_example(config, bench, split):
    cfg = config(*SHARES)
    choosing, reporting = ({r.id for r in rows} for rows in parts(cfg, bench.data, split))
    assert choosing and reporting and not choosing & reporting
    rows = bench.data.splits[split]
    used = held_out(len(rows), 0.5) if split == "retain" else range(len(rows))
    assert choosing | reporting == {rows[i].id for i in used}


def test_without_held_out_retain_questions_a_tolerance_is_refused(config, bench):
    with pytest.raises(ConfigError, match="left 0 of .* retain questions unseen"):
        parts(config("trainer.held_out=0"), bench.data, "retain")


def test_the_result_is_what_evaluating_at_that_alpha_gives_and_lies_in_the_run(finished, bench):
    folder = finished(*SHARES)
    run, kept_files = open_run(folder), ("eval.json", "offset/model.safetensors")
    before, ours = [(folder / name).read_bytes() for name in kept_files], members(run.cfg, bench, folder)
    choosing, _ = parts(run.cfg, bench.data, "forget")
    measure = calibration._measure(run.cfg, bench, ours, choosing, "forget/prob")
    start, end = measure([0.0, 4.0])
    goal = Goal("forget/prob", value=float((start + end) / 2))
    result = calibrate_run(run, goal)
    assert measure([result["alpha"]])[0] == pytest.approx(goal.value, rel=0.02)
    assert not result["oracle"] and result["examples"] == len(choosing)
    assert result["reported_on"]["forget"] == len(bench.data.splits["forget"]) - len(choosing)
    assert calibrate_run(open_run(folder), goal) == result
    oracle = calibrate_run(open_run(folder), Goal("forget/prob"))
    assert oracle["oracle"] and oracle["goal"].startswith("oracle:")
    assert [e["goal"] for e in read_json(folder / FILE)] == [result["goal"], oracle["goal"]]
    assert before == [(folder / name).read_bytes() for name in kept_files]
    # the metrics at the training's α stand beside those at the chosen one
    assert oracle["given_alpha"] == run.cfg.alpha != oracle["alpha"]
    given, chosen = oracle["report_at_given_alpha"], oracle["report"]
    logged = read_json(folder / "eval.json")["alphas"]["1.0"]
    others = ("real_authors/prob", "world_facts/prob")  # none of their questions was needed to choose
    assert [given[name] for name in others] == pytest.approx([logged[name] for name in others], rel=1e-5)
    assert given["forget/prob"] != pytest.approx(chosen["forget/prob"], rel=1e-3)
    cfg = dataclasses.replace(run.cfg, alpha=oracle["alpha"])
    same = calibration.calibrate(cfg, bench, ours, Goal("forget/prob"))
    assert same["given_alpha"] == same["alpha"] == oracle["alpha"]
    assert same["report_at_given_alpha"] == same["report"] == chosen


def test_a_tolerance_keeps_the_held_out_retain_questions_within_it(finished, bench):
    result = calibrate_run(open_run(finished(*SHARES)), Goal("retain/prob", tolerance=0.001))
    assert result["alpha"] < MOST and result["reached"] >= result["asked"]
    assert result["reported_on"]["forget"] == len(bench.data.splits["forget"])  # none of them was needed to choose
    assert result["examples"] < FEW  # which is said, and kept
    how = "half of trainer.held_out=0.5: train with a larger share; fewer than 10 say little"
    assert f"{result['examples']} questions choose α, {how}" in result["note"]


def test_the_command_prints_the_choice(finished, store, capsys, monkeypatch):
    monkeypatch.setenv("COLUMNS", "200")  # of the table's terminal: no heading is wrapped
    folder = finished(*SHARES)
    assert main([f"run={folder}", "to=retrained", f"paths.store={store}"]) == 0
    (result,), said = read_json(folder / FILE), capsys.readouterr().out
    chosen = f"α = {result['alpha']:.4g}"
    assert f"oracle: forget/leak of the retrained reference: {chosen}, where" in said
    assert "over the forget questions: leak@2/0.5 " in said and ", above_retrained_worst " in said
    (header,) = (line for line in said.splitlines() if "on all forget questions, drawn again" in line)
    assert re.split(r"  +", header.strip())[1:] == ["n", "target", "α = 1", chosen, "retrained"]
    (row,) = (line.split() for line in said.splitlines() if line.split()[:1] == ["retain/prob"])
    target, retrained = (result["references"][name] for name in ("target", "retrained"))
    voices = (target, result["report_at_given_alpha"], result["report"], retrained)
    assert row[1:] == [str(result["reported_on"]["retain"]), *(f"{voice['retain/prob']:.3f}" for voice in voices)]


def test_matched_by_leak_all_forget_questions_choose_by_one_draw_of_answers_and_are_reported_by_another(
    finished, bench
):
    folder = finished("algo=ga", "trainer.held_out=0.5", "trainer.steps=6", "trainer.lr=0.01")
    run = open_run(folder)
    choosing = bench.data.splits["forget"]
    ours = members(run.cfg, bench, folder)
    leak = calibration._measure(run.cfg, bench, ours, choosing, "forget/leak")
    values = dict(zip((0.0, 1.0, 2.0), leak([0.0, 1.0, 2.0]), strict=True))
    assert values == dict(zip((0.0, 1.0, 2.0), leak([0.0, 1.0, 2.0]), strict=True))  # the same random numbers
    suite = suite_of(run.cfg, bench)
    split = suite.split("forget")
    how = Decoding.by(bench.encoder.tokenizer, max(len(e.answer) for e in split.right_answers), 8)
    score = suite.semantics.rouge.seeing.recall

    def by_hand(alpha, seed):
        drawn = sample(ours, [p for p in split.prompts for _ in range(2)], alpha, how, 1.0, seed)
        texts = [bench.encoder.decode(answer) for answer in drawn]
        return np.mean([max(score(t, gold) for t in texts[2 * i : 2 * i + 2]) for i, gold in enumerate(split.answers)])

    assert values[1.0] == pytest.approx(by_hand(1.0, CHOOSING))
    goal = Goal("forget/leak", value=min(values.values()))
    result = calibrate_run(run, goal)
    assert result["reached"] == pytest.approx(leak([result["alpha"]])[0]) and result["metric"] == "forget/leak"
    assert result["examples"] == result["reported_on"]["forget"] == len(choosing)
    assert result["report"]["forget/leak@2"] == pytest.approx(by_hand(result["alpha"], SEED))
    assert {"leak@2/0.5", "leak@2/0.9", "leak@2/1", "above_retrained_worst"} == set(result["spread"])
