"""Requests answered one after another: target + Σ_j α_j (offset_j − anchor), from the folders of several runs.

python -m unlearn.sequence offsets=[FOLDER,FOLDER,…] [alphas=[1,0.5,…]] [out=FILE.json] [state=sum]
    Each folder is a run of one target and pair; with data.requests they are the requests in the order in which they
    were answered, whatever their numbers. After each of them every request is measured, answered or not, and what
    is to be retained.
      alphas=[…]        the weight of each offset (default: the α it was trained at)
      state=alone       the k-th folder alone is the answer to the first k requests (one offset that is trained on)
      state=last        only what there is after the last request
    May be given: eval.*, trainer.device, trainer.threads, trainer.progress, paths.store, data.path.
"""

from __future__ import annotations

import logging
import math
import sys
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from unlearn.config.derived import training_alpha
from unlearn.config.schema import ConfigError
from unlearn.data.rows import REQUEST
from unlearn.grid.refusal import REFUSED, refuse, said
from unlearn.grid.rerun import load, split
from unlearn.runs.sequence import Step, evaluate
from unlearn.store.files import write_json
from unlearn.store.identity import Job

log = logging.getLogger(__name__)
STATES = ("sum", "alone", "last")
OWN = ("offsets", "alphas", "out", "state")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given, rest = split(arguments, OWN)
    if "--help" in arguments or "offsets" not in given:
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        state = given.get("state", STATES[0])
        if state not in STATES:
            raise ConfigError(f"state={state!r}: must be one of {', '.join(STATES)}")
        jobs = [load(folder, rest)[1] for folder in listed("offsets", given["offsets"])]
        steps = evaluate(jobs, weights(jobs, given.get("alphas")), state)
    except REFUSED as error:
        return refuse(said(error), error)
    show(steps)
    if "out" in given:
        write_json(Path(given["out"]), [_written(step) for step in steps])
        print(f"written: {given['out']}")
    return 0


def listed(key: str, text: str) -> list[str]:
    """The parts of ``[A,B]``, at least one."""
    found = [part.strip() for part in text.strip("[]").split(",") if part.strip()]
    if not found:
        raise ConfigError(f"{key}={text!r}: must be a list of one or more, e.g. {key}=[A,B]")
    return found


def weights(jobs: Sequence[Job], given: str | None) -> list[float]:
    """One for each job: as given, or the α that it was trained at."""
    if given is None:
        return [training_alpha(job.cfg) for job in jobs]
    try:
        found = [float(text) for text in listed("alphas", given)]
    except ValueError:
        found = [math.nan]
    if len(found) != len(jobs) or not all(map(math.isfinite, found)):
        raise ConfigError(f"alphas={given}: must be {len(jobs)} finite numbers, one for each of offsets")
    return found


def show(steps: Sequence[Step]) -> None:
    """Print, of every step, each request's answer probability, and what is retained."""
    from rich import box
    from rich.console import Console
    from rich.table import Table

    requests = sorted({n for step in steps for n in numbers(step)})
    table = Table("after", *(f"request {n}" for n in requests), box=box.SIMPLE, title="probability of the right answer")
    kept = [split for split in ("retain", "real_authors", "world_facts") if f"{split}/prob" in steps[-1].metrics]
    for column in (*kept, "utility", "leak − retr."):
        table.add_column(column, justify="right")
    for name, entry in steps[-1].references.items():
        step = replace(steps[-1], metrics=entry)
        table.add_row(name, *_cells(step, requests, kept), style="cyan")
    for step in steps:
        table.add_row(f"request {step.after}", *_cells(step, requests, kept))
    console = Console()
    console.width = max(console.width, console.measure(table, options=console.options.update(max_width=10**4)).maximum)
    console.print(table)


def numbers(step: Step) -> list[int]:
    """The requests that a step measured, by number."""
    others = [int(k.removeprefix(REQUEST).split("/")[0]) for k in step.metrics if k.startswith(REQUEST)]
    return sorted({step.after, *others})


def _cells(step: Step, requests: Sequence[int], kept: Sequence[str]) -> list[str]:
    values = [step.of_request(n, "prob") for n in requests] + [step.metrics.get(f"{split}/prob") for split in kept]
    values += [step.metrics.get("model_utility"), step.metrics.get("forget/leak_gap")]
    return ["–" if value is None else f"{value:.3f}" for value in values]


def _written(step: Step) -> dict[str, Any]:
    return {name: getattr(step, name) for name in ("after", "offsets", "metrics", "references")}


if __name__ == "__main__":
    sys.exit(main())
