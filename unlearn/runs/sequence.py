"""The sum of several trained offsets as one ensemble: target + Σ_j α_j (offset_j − anchor).

Every run of one target and pair gives a member; what they share is there once, so m offsets cost m + 2 forward passes
a token, and one offset 3. Evaluated at α = 1; any other α scales all of them.
"""

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import pandas as pd

from unlearn.config.schema import Config, ConfigError
from unlearn.data.people import Numbered, who
from unlearn.data.rows import REQUEST
from unlearn.ensemble.combination import SUM
from unlearn.ensemble.ensemble import Ensemble, add
from unlearn.models import llama
from unlearn.runs import baselines
from unlearn.runs.baselines import suite_of
from unlearn.runs.learner import initialise, members
from unlearn.runs.workbench import Workbench, workbench
from unlearn.store.identity import Job


@dataclass(frozen=True)
class Part:
    job: Job
    alpha: float


def summed(parts: Sequence[Part], bench: Workbench) -> Ensemble:
    """The members of all parts; offsets no longer learn and have the fingerprints of their weights, so that the store
    has their rows. ``ConfigError`` for methods that are not weighted sums or change the target, or other models."""
    frozen = []
    for number, part in enumerate(parts, 1):
        cfg, place = part.job.cfg, part.job.folder
        ensemble = members(cfg, bench, place)
        trained = ensemble.trained
        if ensemble.rule is not SUM:
            raise ConfigError(f"{place}: method.rule={ensemble.rule.func.__name__!r}: only plain sums can be added up")
        if trained is not None and trained.constant:
            raise ConfigError(f"{place}: method={cfg.method.name!r} changes the target: there is no offset to add")
        if trained is not None:
            own = replace(trained, name=f"offset_{number}", fingerprint=llama.fingerprint(trained.model), trained=False)
            ensemble = Ensemble(tuple(own if m.trained else m for m in ensemble.members))
        frozen.append(ensemble)
    return add(frozen, [part.alpha for part in parts])


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


def numbers(step: Step) -> list[int]:
    """The requests that a step measured, by number."""
    others = [int(k.removeprefix(REQUEST).split("/")[0]) for k in step.metrics if k.startswith(REQUEST)]
    return sorted({step.after, *others})


def evaluate(jobs: Sequence[Job], alphas: Sequence[float], state: str = "sum") -> list[Step]:
    """Measure after each request. The k-th of ``jobs`` answers the k-th request, whatever its number in its config."""
    parts = [Part(job, alpha) for job, alpha in zip(jobs, alphas, strict=True)]
    wanted = [len(jobs)] if state == "last" else range(1, len(jobs) + 1)
    return [measure(in_order(jobs, k), parts[k - 1 : k] if state == "alone" else parts[:k], k) for k in wanted]


def measure(cfg: Config, parts: Sequence[Part], after: int) -> Step:
    """What the parts' sum does in the world of a config, with its suite and its references."""
    initialise(cfg)
    bench = workbench(cfg)
    asked = cfg, bench, summed(parts, bench), suite_of(cfg, bench), [1.0], f"after request {after}"
    entries, examples, beside = baselines.evaluate(*asked)
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
    lists = [
        who(data.requests, data.people) if data.requests is not None and isinstance(data, Numbered) else data.requests
        for data in (cfg.data for cfg in configs)
    ]  # of numbers of people, which people
    longest = max((found for found in lists if found is not None), key=len, default=None)
    if any(found is None or found != longest[: len(found)] for found in lists) and longest is not None:
        raise ConfigError("offsets: different data.requests, and a sequence is one list of them, which may have grown")
    return longest
