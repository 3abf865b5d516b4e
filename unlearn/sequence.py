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
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config import Config, ConfigError
from unlearn.config_data import NUMBERED
from unlearn.data.requested import who
from unlearn.data.rows import REQUEST
from unlearn.files import write_json
from unlearn.identity import Job, training_alpha
from unlearn.refusal import REFUSED, refuse, said
from unlearn.rerun import load, split

if TYPE_CHECKING:
    import pandas as pd

    from unlearn.sums import Part

log = logging.getLogger(__name__)
STATES = ("sum", "alone", "last")
OWN = ("offsets", "alphas", "out", "state")


@dataclass(frozen=True)
class Step:
    """What there is after request k = 1, 2, … of a sequence."""

    after: int  # the k
    offsets: tuple[str, ...]  # names of the runs that answer
    metrics: dict[str, Any]  # an entry as in eval.json; the splits ``forget`` (the k-th request) and ``request_<n>``
    examples: pd.DataFrame
    references: dict[str, Any]

    def of_request(self, number: int, metric: str) -> float | None:
        """``prob`` of the request asked for as number 1, 2, …"""
        split = "forget" if number == self.after else f"{REQUEST}{number}"
        return self.metrics.get(f"{split}/{metric}")


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


def evaluate(jobs: Sequence[Job], alphas: Sequence[float], state: str = "sum") -> list[Step]:
    """Measure after each request. The k-th of ``jobs`` answers the k-th request, whatever its number in its config."""
    from unlearn.sums import Part

    parts = [Part(job, alpha) for job, alpha in zip(jobs, alphas, strict=True)]
    wanted = [len(jobs)] if state == "last" else range(1, len(jobs) + 1)
    return [measure(in_order(jobs, k), parts[k - 1 : k] if state == "alone" else parts[:k], k) for k in wanted]


def measure(cfg: Config, parts: Sequence[Part], after: int) -> Step:
    """What the parts' sum does in the world of a config, with its suite and its references."""
    from unlearn import evaluation
    from unlearn.job import references, settle, suite_of
    from unlearn.sums import summed
    from unlearn.world import the_world

    settle(cfg)
    world = the_world(cfg)
    ensemble, suite = summed(parts, world), suite_of(cfg, world)
    beside = references(cfg, world, suite)
    show = f"after request {after}" if cfg.trainer.progress else None
    entries, examples = evaluation.evaluate(ensemble, suite, [1.0], world.store, beside.get("retrained"), show)
    metrics = {name: dict(r.metrics) for name, r in beside.items()}
    return Step(after, tuple(p.job.folder.name for p in parts), entries[1.0], examples, metrics)


def in_order(jobs: Sequence[Job], k: int) -> Config:
    """The config of the k-th job, with the requests numbered in the order in which the jobs answer them; without
    data.requests its own. Raises ``ConfigError`` for jobs of other lists, or that answer one request twice."""
    cfg, requests = jobs[k - 1].cfg, one_list([job.cfg for job in jobs])
    if requests is None:
        return cfg
    numbers = [job.cfg.data.request for job in jobs]
    last = numbers[k - 1]
    if isinstance(last, list) or last is None:  # a sum of weights, or one offset for several: all are asked at once
        return cfg
    if len({repr(n) for n in numbers}) < len(numbers):
        raise ConfigError(f"offsets: these runs answer the requests {numbers}: each must be there once")
    order = [n for n in numbers if isinstance(n, int)]
    order += [n for n in range(1, len(requests) + 1) if n not in order]
    data = replace(cfg.data, requests=[requests[n - 1] for n in order], request=order.index(last) + 1)
    return replace(cfg, data=data)


def one_list(configs: Sequence[Config]) -> list[Any] | None:
    """The requests that all configs have in common: the longest list, of which each other one is the beginning, as it
    was when its request came. None where none has requests; ``ConfigError`` for other lists."""
    lists = [_requests(cfg) for cfg in configs]
    longest = max((found for found in lists if found is not None), key=len, default=None)
    if any(found is None or found != longest[: len(found)] for found in lists) and longest is not None:
        raise ConfigError(
            "offsets: these runs have different data.requests, and a sequence is one list of them, which may have grown"
        )
    return longest


def _requests(cfg: Config) -> list[Any] | None:
    """The requests of a config; of numbers of people, which people."""
    requests = cfg.data.requests
    return who(requests, cfg.data.people) if requests is not None and isinstance(cfg.data, NUMBERED) else requests


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
