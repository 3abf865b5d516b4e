"""Measure requests answered one after another: target + Σ_j α_j (offset_j − anchor), from the folders of several runs.

python -m unlearn.sequence offsets=[FOLDER,FOLDER,…] [alphas=[1,0.5,…]] [out=FILE.json] [state=sum]
  Each folder is a run of one target and pair; with data.requests they are the requests in the order in which they
  were answered, whatever their numbers. After each of them every request is measured, answered or not, and what
  is to be retained.
    alphas=[…]        the weight of each offset (default: the α it was trained at)
    state=alone       the k-th folder alone is the answer to the first k requests (one offset that is trained on)
    state=last        only what there is after the last request
  May be given: eval.*, trainer.device, trainer.threads, trainer.progress, paths.store, data.path.
"""

import sys
from dataclasses import dataclass, replace
from pathlib import Path

from unlearn.command import verb
from unlearn.config.derived import training_alpha
from unlearn.config.schema import ConfigError
from unlearn.config.setting import finite, one_of, setting
from unlearn.grid import table
from unlearn.grid.rerun import open_run
from unlearn.store.files import write_json


@dataclass
class Keys:
    offsets: list[str]
    overrides: list[str]
    alphas: list[float] | None = setting(None, finite("must be finite numbers, one for each of offsets"))
    out: Path | None = None
    state: str = setting("sum", one_of("sum", "alone", "last"))

    def __post_init__(self) -> None:
        if not self.offsets:
            raise ConfigError("offsets=[]: must be a list of one or more, e.g. offsets=[A,B]")
        if self.alphas is not None and len(self.alphas) != len(self.offsets):
            count = len(self.offsets)
            raise ConfigError(f"alphas={self.alphas}: must be {count} finite numbers, one for each of offsets")


@verb(Keys)
def main(keys: Keys) -> None:
    from unlearn.runs.sequence import evaluate, numbers

    jobs = [open_run(folder, keys.overrides).job for folder in keys.offsets]
    steps = evaluate(jobs, keys.alphas or [training_alpha(job.cfg) for job in jobs], keys.state)
    if keys.out is not None:
        shown = ("after", "offsets", "metrics", "references")
        write_json(keys.out, [{name: getattr(step, name) for name in shown} for step in steps])
    last = steps[-1]
    # of every step, each request's answer probability, and what is retained
    requests = sorted({n for step in steps for n in numbers(step)})
    splits = ("retain", "neighbours", "real_authors", "world_facts")
    kept = [split for split in splits if f"{split}/prob" in last.metrics]
    heads = [*(f"request {n}" for n in requests), *(split.replace("_", "\n") for split in kept), "model\nutility"]
    made = table.made(["after"], [*heads, "leak beyond\nretrained"], title="probability of the right answer")
    rows = [(name, replace(last, metrics=entry), "cyan") for name, entry in last.references.items()]
    for name, step, style in rows + [(f"request {step.after}", step, None) for step in steps]:
        values = [step.of_request(n, "prob") for n in requests] + [step.metrics.get(f"{split}/prob") for split in kept]
        values += [step.metrics.get("model_utility"), step.metrics.get("forget/leak_gap")]
        made.add_row(name, *("–" if value is None else f"{value:.3f}" for value in values), style=style)
    table.show(made)
    if keys.out is not None:
        print(f"written: {keys.out}")


if __name__ == "__main__":
    sys.exit(main())
