"""Fill the store and nothing else: models, frozen rows, the references' evaluation.

python -m unlearn.prepare SETTINGS
  Useful before a grid is spread over machines that share the store, and to look at a world before unlearning in it.
  SETTINGS are those of python -m unlearn.run:
"""

import sys

from omegaconf import DictConfig

from unlearn.data.readers import register
from unlearn.grid import call as grid
from unlearn.grid import launchers
from unlearn.grid.rules import parse

register()


def prepare(raw: DictConfig) -> None:
    """Build what is missing for one config and show what there is."""
    cfg = launchers.quiet(parse(raw))
    from unlearn.grid import table
    from unlearn.models import llama
    from unlearn.runs.baselines import baselines, suite_of
    from unlearn.runs.inputs import Inputs
    from unlearn.runs.learner import initialise, members
    from unlearn.runs.workbench import workbench

    initialise(cfg)
    bench = workbench(cfg)
    ensemble = members(cfg, bench)
    if ensemble.trained is not None:
        Inputs(cfg, bench).objective(ensemble)  # reads the rows that training will
    beside = baselines(cfg, bench, suite_of(cfg, bench))
    heads = ["forget set\nprobability", "retain set\nprobability", "model\nutility"]
    made = table.made(["model", "parameters", "weights"], heads)
    for name in (n for n in ("target", "retrained", "small") if bench.has(n)):
        m = beside[name].metrics if name in beside else {}
        numbers = [f"{m[k]:.3f}" if k in m else "" for k in ("forget/prob", "retain/prob", "model_utility")]
        count = llama.parameters(bench.model(name))  # a black box has none here
        made.add_row(name, f"{count:,}" if count else "", bench.fingerprint(name), *numbers)
    table.show(made)
    rows = ", ".join(f"{len(v)} {k}" for k, v in bench.data.splits.items())
    print(f"data:  {bench.data.name} ({rows})\nstore: {bench.store.root}")


def main() -> None:
    sys.exit(grid.supervise(prepare, report=False, about=f"{__doc__.strip()}\n\n"))


if __name__ == "__main__":
    main()
