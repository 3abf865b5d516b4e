"""Find the inference α of a trained run, on stored rows.

python -m unlearn.calibrate run=FOLDER GOAL
  One goal of three:
    forget/prob=0.15     the smallest α at which a metric has the value you give
    to=retrained         the α at which drawn answers leak as the retrained reference's do (forget/leak, the worst of
                         eval.leak_samples to a question): an oracle, there is none in a real deletion
    tolerance=0.02       without any reference: the largest α that costs at most this much of the target's value on
                         retain questions that no training step saw
  metric=SPLIT/METRIC changes what is looked at (default forget/leak; retain/prob with tolerance): METRIC is prob or
  exact_memorization, SPLIT forget, retain, neighbours, real_authors or world_facts. A mean probability says less than
  leak: it can be that of the retrained model while some answers are wholly kept and others wholly gone.

  Half of the questions are for choosing; the metrics at the chosen α are reported on others, printed, and written into
  the run's calibration.json. Leak is chosen on all forget questions, and reported on them by answers drawn again.
  May be given: eval.*, trainer.device, trainer.threads, paths.store, data.path.
"""

import sys
from dataclasses import dataclass

from unlearn.command import verb
from unlearn.data.readers import read
from unlearn.grid import table
from unlearn.grid.rerun import open_run
from unlearn.runs.goal import LEAK, goal_of, parts

GOAL = ("to", "tolerance", "metric")  # and SPLIT/METRIC
SHOWN = ("prob", "known", "rougeL_recall", "exact_memorization")


@dataclass
class Keys:
    run: str
    overrides: list[str]


@verb(Keys)
def main(keys: Keys) -> None:
    names = {a: a.split("=")[0] for a in keys.overrides}
    goal = goal_of([a for a, name in names.items() if name in GOAL or "/" in name])
    run = open_run(keys.run, [a for a, name in names.items() if name not in GOAL and "/" not in name])
    if goal.metric != LEAK:  # too few questions are refused before anything heavy is imported
        parts(run.cfg, read(run.cfg), goal.metric.split("/")[0])
    from unlearn.runs.calibration import FILE, calibrate_run

    result = calibrate_run(run, goal)
    beside = result["references"]
    named = {
        "target": beside["target"], f"α = {result['given_alpha']:g}": result["report_at_given_alpha"],
        f"α = {result['alpha']:.4g}": result["report"], **beside,
    }  # fmt: skip
    others = "all forget questions, drawn again" if result["metric"] == LEAK else "questions not used for choosing"
    made = table.made([f"on {others}", "n"], list(named))
    for split, count in result["reported_on"].items():
        for key in (key for name in SHOWN if (key := f"{split}/{name}") in result["report"]):
            made.add_row(key, str(count), *(f"{m[key]:.3f}" if key in m else "–" for m in named.values()))
    for key in ("model_utility", "forget_quality"):
        if key in result["report"]:
            made.add_row(key, "", *(f"{m[key]:.3g}" if key in m else "" for m in named.values()))
    print(
        f"{result['goal']}: α = {result['alpha']:.4g}, where {result['metric']} is {result['reached']:.4f} "
        f"(asked: {result['asked']:.4f}) on the questions for choosing: {result['examples']}"
    )
    if result["note"]:
        print(result["note"])
    table.show(made)
    if spread := result["spread"]:
        print("over the forget questions: " + ", ".join(f"{name} {value:.3f}" for name, value in spread.items()))
    print(f"written: {run.folder / FILE}")


if __name__ == "__main__":
    sys.exit(main())
