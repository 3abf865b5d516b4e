"""``python -m unlearn.calibrate run=FOLDER GOAL``: the inference α of a trained run, found on stored rows.

One goal of three:
  forget/prob=0.15     the smallest α at which a metric has the value you give
  to=retrained         the same with the retrained reference's value: an oracle, there is none in a real deletion
  tolerance=0.02       without any reference: the largest α that costs at most this much of the target's value on
                       retain questions that no training step saw
metric=SPLIT/METRIC changes what is looked at (default forget/prob; retain/prob with tolerance): METRIC is prob or
exact_memorization, SPLIT forget, retain, real_authors or world_facts.

Half of the questions are for choosing; the metrics at the chosen α are reported on others, printed, and written into
the run's calibration.json. Settings that may be given: eval.*, trainer.device, trainer.threads, paths.store, data.path.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.grid.refusal import REFUSED, refuse, said
from unlearn.grid.rerun import load
from unlearn.runs.calibration import FILE, calibrate_run, goal_of

if TYPE_CHECKING:
    pass

OWN = ("to", "tolerance", "metric")
SHOWN = ("prob", "rougeL_recall", "exact_memorization")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    folders = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    if len(folders) != 1 or "--help" in arguments:
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    own = [a for a in arguments if a.split("=")[0] in OWN or ("/" in a.split("=")[0] and not a.startswith("run="))]
    try:
        goal = goal_of(own)
        _, job = load(folders[0], [a for a in arguments if a not in own and not a.startswith("run=")])
        result = calibrate_run(job, goal)
    except REFUSED as error:
        return refuse(said(error), error)
    _print(result, job.folder)
    return 0


def _print(result: dict[str, Any], folder: Path) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    table = Table("on questions not used for choosing", "n", box=box.SIMPLE)
    beside = result["references"]
    named = [
        ("target", beside["target"]), (f"α = {result['given_alpha']:g}", result["report_at_given_alpha"]),
        (f"α = {result['alpha']:.4g}", result["report"]), *((k, v) for k, v in beside.items() if k != "target"),
    ]  # fmt: skip
    for name, _ in named:
        table.add_column(name, justify="right")
    voices = [values for _, values in named]
    for split, count in result["reported_on"].items():
        for name in SHOWN:
            key = f"{split}/{name}"
            table.add_row(key, str(count), *(f"{voice[key]:.3f}" for voice in voices))
    for key in ("model_utility", "forget_quality"):
        if key in result["report"]:
            table.add_row(key, "", *(f"{voice[key]:.3g}" if key in voice else "" for voice in voices))
    print(
        f"{result['goal']}: α = {result['alpha']:.4g}, where {result['metric']} is {result['reached']:.4f} "
        f"(asked: {result['asked']:.4f}) on the {result['examples']} questions for choosing"
    )
    if result["note"]:
        print(result["note"])
    Console().print(table)
    print(f"written: {folder / FILE}")


if __name__ == "__main__":
    sys.exit(main())
