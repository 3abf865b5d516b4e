"""Measure general ability by lm-eval, of target, unlearned and retrained model side by side.

python -m unlearn.harness run=FOLDER
  alpha=0.5,1     α's of the unlearned model (default: that of the run's training)
  tasks=A,B       default: arc_challenge, arc_easy, hellaswag, winogrande, openbookqa; any other that scores likelihoods
  path=FOLDER     questions from this folder's NAME.jsonl (unlearn/evaluation/choices.py), not from the hub
  limit=100       only the first questions of each task
  model=NAME      instead of run=: a model alone, a folder or a name on the hub; out=FILE writes its result

  Results go into the run's harness.json. A change is that from the target on the same questions, with its standard
  error.
  May be given: eval.batch_size, trainer.device, trainer.threads, paths.store, data.path.
  Needs the extra:  pip install -c constraints.txt -e .[lm-eval]
"""

import logging
import sys
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.command import verb
from unlearn.config.schema import ConfigError, raise_for
from unlearn.config.setting import at_least, finite, setting, unusable
from unlearn.grid import table
from unlearn.grid.rerun import open_run
from unlearn.runs import harness
from unlearn.store.files import write_json

BESIDE = ("n", "right", "unknown")  # in an entry, beside its metrics


@dataclass
class Keys:
    overrides: list[str]
    run: str | None = None
    model: str | None = None
    alpha: list[float] = setting([], finite("must be finite numbers, e.g. alpha=1 or alpha=0.5,1"))
    tasks: list[str] = setting([])
    path: str | None = None
    limit: int | None = setting(None, at_least(1, "must be a whole number of questions, at least 1"))
    out: Path | None = None

    def __post_init__(self) -> None:
        if (self.run is None) == (self.model is None):
            raise ConfigError("run=FOLDER or model=NAME: one of both must be given")


@verb(Keys)
def main(keys: Keys) -> None:
    logging.getLogger().setLevel(logging.WARNING)  # lm-eval and what it loads say much
    tasks = harness.tasks_of(keys.tasks, keys.path)
    raise_for(unusable("the folder of out", str(keys.out.parent)) if keys.out else ())
    if keys.model is not None:
        place, found = keys.out, harness.of_model(keys.model, tasks, keys.limit, keys.overrides)
    else:
        run = open_run(keys.run, keys.overrides)
        place, found = run.folder / harness.FILE, harness.of_run(run, keys.alpha or [run.cfg.alpha], tasks, keys.limit)
    if place is not None:
        write_json(place, found)
    show(found)
    print(f"written: {place}" if place else "not written: out=FILE says where")


def show(found: Mapping[str, Mapping[str, Any]]) -> None:
    """Print a table with a row for each task and metric, and what makes its numbers say little."""
    shown: dict[str, dict[str, Any]] = {}
    for task, entry in found.items():  # target, every α, retrained; or a model alone
        alphas = {f"α={float(a):g}": one for a, one in entry.get("alphas", {}).items()}
        first, last = ({n: entry[n] for n in some if n in entry} for some in (("model", "target"), ("retrained",)))
        shown[task] = first | alphas | last
    names = dict.fromkeys(name for models in shown.values() for name in models)
    made = table.made(["task", "metric"], ["n", *names])
    for task, models in shown.items():
        first = next(iter(models.values()))
        for metric in (k for k in first if k not in BESIDE):
            cells = [_cell(metric, first, models[n]) if n in models else "" for n in names]
            made.add_row(task, metric, str(first["n"]), *cells)
    table.show(made)
    for task, models in shown.items():
        unknown = max(model["unknown"] for model in models.values())
        if unknown > 0.01:
            print(f"{task}: the tokenizer does not know {unknown:.0%} of the tokens, so these numbers say little")


def _cell(metric: str, first: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    if metric != "acc" or model is first or len(first["right"]) != len(model["right"]) or not first["right"]:
        return f"{model[metric]:.3f}"
    difference, error = harness.change(first["right"], model["right"])
    return f"{model[metric]:.3f} ({difference:+.3f} ± {error:.3f})"


if __name__ == "__main__":
    sys.exit(main())
