"""Five deletion requests on a black box, one person each: answered one by one, fused into one offset, or all at once.

    python experiments/requests/study.py [--worlds 3] [--algo simnpo] [--tuning full] [--steps 100] [SETTINGS]

Every answer is trained with as many steps as the others: five offsets that are added up (sum), the same five fused into
one (fused: the sum of their weight changes; with --tuning unlearning_layers the layers' fusion), one offset trained on
and on, in the order of the requests and in the other (continued, reversed), one trained on all five at once (joint).
Measured: the five forget sets together with leak@k, retained and general ability, the distance to a target that never
saw the five, at α = 1 and at matched forgetting; every request after each of them; what a token costs; and a gate by
counts of words, alone and beside the offsets. Runs and measurements that are there are not repeated. Writes
results.csv, returns.csv, gate.csv, cost.csv and tables.md beside itself.
"""

from __future__ import annotations

import argparse
import logging
import time
from collections.abc import Callable, Iterable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import pandas as pd
import table

from unlearn.config.schema import Config
from unlearn.data.readers import read, register
from unlearn.deploy.requests.actions import job_of
from unlearn.grid.perform import perform
from unlearn.runs import sequence as sequences
from unlearn.store import runlog, seal
from unlearn.store.files import read_json, sha256, write_json
from unlearn.store.identity import Job, digest, eval_settings

HERE = Path(__file__).resolve().parent
STUDY = "requests_study"
COUNT = 5
STATES = ("sum", "fused", "continued", "reversed", "joint")
PLAIN = ("eval.groups=[]", "eval.retrained=none", "eval.max_examples=10", "eval.resamples=0")
FULL = ("eval.groups=[leak]", "eval.max_examples=80")
began = time.monotonic()


def say(text: str) -> None:
    print(f"[{time.monotonic() - began:6.0f} s] {text}", flush=True)


class Workbench:
    """One ``pair.seed`` with its runs."""

    def __init__(self, seed: int, asked: argparse.Namespace):
        requests = f"data.requests=[{','.join(['1'] * COUNT)}]"
        self.seed = seed
        self.common = (f"study={STUDY}", f"pair.seed={seed}", f"algo={asked.algo}", f"pair.tuning={asked.tuning}",
                       requests, "trainer.progress=false", "trainer.save_every=0", "trainer.eval_every=0",
                       *asked.settings)  # fmt: skip
        self.steps = asked.steps

    def config(self, *more: str) -> Config:
        return job_of([*self.common, *more]).cfg

    def run(self, *more: str) -> Job:
        job = job_of([*self.common, *PLAIN, *more])
        perform(job)
        if not runlog.is_done(job):
            raise SystemExit(f"{job.folder}: {runlog.manifest(job.folder).get('error')}")
        return job

    def answers(self) -> dict[str, list[Job]]:
        """By state, the runs whose sum it is; of the two that are trained on and on, all links of the chain."""
        single = [self.run(f"data.request={n}", f"trainer.steps={self.steps}") for n in range(1, COUNT + 1)]
        say(f"world {self.seed}: five requests answered")
        folders = ",".join(str(job.folder) for job in single)
        fused = self.run(f"begin.runs=[{folders}]", "trainer.steps=0", "algo.name=fused")
        joint = self.run(f"trainer.steps={COUNT * self.steps}")
        chains = [self.chain(single, range(1, COUNT + 1)), self.chain(single, range(COUNT, 0, -1))]
        say(f"world {self.seed}: fused, trained on, and all at once")
        return dict(zip(STATES, (single, [fused], *chains, [joint]), strict=True))

    def chain(self, single: Sequence[Job], order: Iterable[int]) -> list[Job]:
        """One offset trained on and on; it begins with the run of the first request."""
        first, *rest = order
        found = [single[first - 1]]
        for n in rest:
            found.append(
                self.run(f"begin.runs=[{found[-1].folder}]", f"data.request={n}", f"trainer.steps={self.steps}")
            )
        return found


def _weights(folder: Path) -> dict[str, str]:
    """Checksums of the weights that a run ended with."""
    places = (folder / name for name in (seal.OFFSET, seal.ADAPTER))
    return {f"{p.name}/{f.name}": sha256(f) for p in places for f in sorted(p.glob("*.safetensors"))}


def kept(name: str, cfg: Config, jobs: Sequence[Job], make: Callable[[], Any]) -> Any:
    """What was measured before of these very weights under these settings, or is measured now."""
    key = digest([name, [_weights(j.folder) for j in jobs], eval_settings(cfg, read(cfg).fingerprint())], 20)
    path = Path(cfg.paths.runs) / STUDY / ".measured" / f"{name}-{key}.json"
    if not path.is_file():
        path.parent.mkdir(parents=True, exist_ok=True)
        write_json(path, make())
    return read_json(path)


def parts(jobs: Sequence[Job]) -> list:
    from unlearn.runs.sequence import Part

    return [Part(job, 1.0) for job in jobs]


def final(world: Workbench, state: str, jobs: Sequence[Job]) -> dict[str, Any]:
    """All five forget sets at once under one state: at α = 1, and where it forgets as far as the retrained model."""
    cfg = world.config(*FULL)

    def make() -> dict[str, Any]:
        step = sequences.measure(cfg, parts(jobs), COUNT)
        return {"one": step.metrics, "references": step.references, "matched": matched(cfg, jobs)}

    return kept(f"final-{state}", cfg, jobs, make)


def matched(cfg: Config, jobs: Sequence[Job]) -> dict[str, Any]:
    """The scale of the whole change at which half of the forget questions have the retrained model's probability."""
    from unlearn.runs.calibration import calibrate
    from unlearn.runs.goal import Goal
    from unlearn.runs.sequence import summed
    from unlearn.runs.workbench import workbench

    plain = replace(cfg, eval=replace(cfg.eval, groups=[], resamples=0))
    found = calibrate(plain, workbench(plain), summed(parts(jobs), workbench(plain)), Goal("forget/prob"))
    return {"alpha": found["alpha"], "note": found["note"], **found["report"]}


def returns(world: Workbench, name: str, jobs: Sequence[Job], alone: bool) -> list[dict[str, Any]]:
    """The probability of every request after each, and what is retained: one row per step and request.

    ``jobs`` answer one request each; their sum so far is what there is after each, or (``alone``) the latest.
    """
    cfg = world.config(*PLAIN, "eval.max_examples=100")
    order = [job.cfg.data.request for job in jobs]

    def make() -> list[dict[str, Any]]:
        rows = []
        for k in range(1, len(jobs) + 1):
            found = probabilities(cfg, jobs[k - 1 : k] if alone else jobs[:k])
            kept_ = {split: found[split] for split in table.OTHERS}
            rows += [{"after": k, "place": place, "request": number, "prob": found[number], **kept_}
                     for place, number in enumerate(order, 1)]  # fmt: skip
        return rows

    return [{"world": world.seed, "answer": name, **row} for row in kept(f"returns-{name}", cfg, jobs, make)]


def probabilities(cfg: Config, jobs: Sequence[Job]) -> dict[int | str, float]:
    """Mean probability of the right answers, by request and by split, under the sum of some offsets."""
    from unlearn.evaluation.context import Subject
    from unlearn.runs.baselines import suite_of
    from unlearn.runs.learner import initialise
    from unlearn.runs.sequence import summed
    from unlearn.runs.workbench import workbench

    initialise(cfg)
    there = workbench(cfg)
    suite = suite_of(cfg, there)
    subject = Subject(suite, summed(parts(jobs), there), 1.0)
    found = {split: float(subject.probs(suite.split(split)).mean()) for split in table.OTHERS}
    forget = suite.split("forget")
    values = dict(zip((r.id for r in forget.rows), subject.probs(forget), strict=True))
    for number, request in enumerate(there.data.sequence.requests, 1):
        found[number] = float(sum(values[r.id] for r in request) / len(request))
    return found


def gate(world: Workbench, state: str, jobs: Sequence[Job]) -> dict[str, float]:
    cfg = world.config(*PLAIN[1:], "eval.groups=[gate]", "eval.max_examples=80")

    def make() -> dict[str, float]:
        metrics = sequences.measure(cfg, parts(jobs), COUNT).metrics
        return {k: v for k, v in metrics.items() if k.startswith("gate/")}

    return kept(f"gate-{state}", cfg, jobs, make)


def cost(world: Workbench, answers: dict[str, list[Job]]) -> list[dict[str, Any]]:
    """Members per token and milliseconds per token, greedy, one prompt at a time; the least of three rounds."""
    from unlearn.decoding.generation import Decoding, greedy
    from unlearn.runs.baselines import suite_of
    from unlearn.runs.learner import initialise
    from unlearn.runs.sequence import summed
    from unlearn.runs.workbench import workbench

    cfg = world.config(*PLAIN)
    initialise(cfg)
    there = workbench(cfg)
    split, how = suite_of(cfg, there).split("retain"), Decoding.by(there.encoder.tokenizer, 12)
    ensembles = {"target": there.alone("target")}
    ensembles |= {state: summed(parts(answers[state]), there) for state in ("sum", "fused")}
    seconds: dict[str, list[float]] = {name: [] for name in ensembles}
    for _ in range(3):
        for name, ensemble in ensembles.items():
            start = time.perf_counter()
            found = greedy(ensemble, split.prompts[:30], 1.0, how)
            seconds[name].append((time.perf_counter() - start) / (sum(map(len, found)) + len(found)))
    return [{"world": world.seed, "answer": name, "members": len(ensembles[name].needed([1.0])),
             "ms_per_token": 1000 * min(values)} for name, values in seconds.items()]  # fmt: skip


def measure(seeds: Sequence[int], asked: argparse.Namespace) -> dict[str, pd.DataFrame]:
    found: dict[str, list[dict[str, Any]]] = {"results": [], "returns": [], "gate": [], "cost": []}
    for seed in seeds:
        world = Workbench(seed, asked)
        answers = world.answers()
        last = {s: jobs[-1:] if s in ("continued", "reversed") else jobs for s, jobs in answers.items()}
        for state, jobs in last.items():
            one = final(world, state, jobs)
            found["results"] += [row(seed, state, "1", one["one"]), row(seed, state, "matched", one["matched"])]
            say(f"world {seed}: {state} measured")
        found["results"] += [row(seed, name, "–", m) for name, m in one["references"].items()]
        for name, jobs, alone in (("sum", answers["sum"], False), ("sum reversed", answers["sum"][::-1], False),
                                  ("continued", answers["continued"], True),
                                  ("continued reversed", answers["reversed"], True)):  # fmt: skip
            found["returns"] += returns(world, name, jobs, alone)
        say(f"world {seed}: after each request")
        for state in ("sum", "joint"):
            found["gate"].append({"world": seed, "answer": state, **gate(world, state, answers[state])})
        found["cost"] += cost(world, answers)
        say(f"world {seed}: gate and cost")
    return {name: pd.DataFrame(rows) for name, rows in found.items()}


def row(seed: int, answer: str, at: str, metrics: dict[str, Any]) -> dict[str, Any]:
    far = {f"distance/{k}": v for k, v in (metrics.get("distance") or {}).items() if k.endswith("/prob")}
    names = [*table.SHOWN, "alpha", *(f"{s}/rougeL_recall" for s in table.SPLITS), "forget/leak@20"]
    return {"world": seed, "answer": answer, "at": at} | {k: metrics[k] for k in names if k in metrics} | far


def main(arguments: Iterable[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, default=3)
    parser.add_argument("--algo", default="simnpo")
    parser.add_argument("--tuning", default="full")
    parser.add_argument("--steps", type=int, default=100, help="of one request; as many for each of five at once")
    parser.add_argument("settings", nargs="*", help="further settings of every run, KEY=VALUE")
    parser.add_argument("--to", type=Path, default=HERE, help="where tables and CSV files go")
    asked = parser.parse_args(arguments)
    logging.basicConfig(level=logging.WARNING)
    register()
    found = measure(range(asked.worlds), asked)
    asked.to.mkdir(parents=True, exist_ok=True)
    for name, frame in found.items():
        frame.round(5).to_csv(asked.to / f"{name}.csv", index=False)
    table.write(asked.to)
    say(f"written: {asked.to}")


if __name__ == "__main__":
    main()
