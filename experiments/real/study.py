"""How far does a 0.5B offset make a 1.5B language model forget a topic, and what goes with it?

    python -m experiments.real.study MODELS [--plan first|all] [--stage …] [--only …]

MODELS holds qwen15 and qwen05 (Qwen2.5-Coder-Instruct, 1.5B and 0.5B). The 1.5B is a black box: only its logits are
read. All steps are ordinary commands (run, calibrate, evaluate, harness); what is done is not repeated, and a killed
call goes on. First all runs are trained, without evaluation (α = 0 is the target); then α is calibrated twice: without
any reference (TOLERANCE of the target's probability on held-out retain questions), and at a fixed forgetting (FIXED);
then α = 1 and both are evaluated. cost.csv says what each step took. ``python -m experiments.real.table`` makes
results.csv, answers.csv, tables and figure.
"""

from __future__ import annotations

import argparse
import csv
from pathlib import Path
from typing import NamedTuple

from experiments.real.common import HERE, TOPICS, called, pair, runs
from unlearn.store.files import read_json

STUDY, JUDGED = "real", ("novels", "japan")
TOLERANCE, FIXED = 0.1, 0.3
GOALS = {f"forget/prob={FIXED}": f"forget/prob={FIXED:g}",
         f"tolerance={TOLERANCE}": f"largest α that keeps retain/prob within {TOLERANCE:g} of the target"}  # fmt: skip
TRAINER = ("trainer.steps=6", "trainer.forget_batch=4", "trainer.retain_batch=6", "trainer.held_out=0.375",
           "trainer.eval_every=0", "trainer.save_every=2", "trainer.progress=false", "wandb=disabled")  # fmt: skip
SMALL = ("eval.groups=[]", "eval.max_examples=1", "eval.max_new_tokens=24", "eval.resamples=0")  # not what is reported
ALONE = ("algo.retain=kl", "trainer.steps=24", "trainer.lr=0.001")  # found on the topic europe, which judges nothing
FULL = ("eval.groups=[fluency,guess]", "eval.max_examples=12", "eval.max_new_tokens=24", "eval.resamples=1000")


class Cell(NamedTuple):
    """What is run: a topic, an objective, and whether a part of the neighbours is trained as retain data."""

    topic: str
    algo: str
    method: str = "offset"
    near: bool = False
    seed: int = 0

    @property
    def name(self) -> str:
        return f"{self.topic}_near" if self.near else self.topic

    def settings(self, models: Path) -> list[str]:
        folder = TOPICS / self.topic
        retain = [folder / "retain.jsonl", *([folder / "neighbours_trained.jsonl"] if self.near else [])]
        white = self.method == "direct"  # the small model alone
        return [
            *pair(models, "qwen05" if white else "qwen15", "qwen05"),
            f"pair.target.dtype={'float32' if white else 'auto'}",
            f"algo={self.algo}", f"method={self.method}", f"seed={self.seed}", "data=jsonl", f"data.name={self.name}",
            f"data.forget={folder / 'forget.jsonl'}", f"data.retain=[{','.join(map(str, retain))}]",
            f"data.neighbours={folder / 'neighbours.jsonl'}", f"data.world_facts={folder / 'others.jsonl'}",
            f"data.refusals={TOPICS / 'refusals.txt'}",
        ]  # fmt: skip

    def folder(self) -> Path | None:
        """Where its run is; None before it is trained."""
        mine = {"data": self.name, "algo": self.algo, "method": self.method, "seed": self.seed}
        found = [folder for folder, m in runs(STUDY) if {k: m["run"][k] for k in mine} == mine]
        return found[0] if found else None


FIRST = [Cell(t, a, near=near) for t in JUDGED for near in (False, True) for a in ("npo", "simnpo", "idk")]
FIRST += [Cell(t, "kl") for t in JUDGED] + [Cell(t, "uld", "uld") for t in JUDGED]
FIRST += [Cell(t, "npo", "direct", near) for t in JUDGED for near in (False, True)]
FIRST += [Cell(t, "idk", "refuse", near) for near in (True, False) for t in JUDGED]
FIRST += [Cell(t, "idk", "proxy", near=True) for t in JUDGED]  # the same offset, added
PLANS = {"first": FIRST, "all": [*FIRST, *(c._replace(seed=s) for s in (1, 2) for c in FIRST if c.near)]}


def spend(what: str, verb: str, *settings: str) -> None:
    """Call a command and write down what it took."""
    seconds, file = called(verb, *settings), HERE / "cost.csv"
    new = not file.is_file()
    with file.open("a", newline="", encoding="utf-8") as out:
        csv.writer(out, lineterminator="\n").writerows(
            [*([["what", "command", "cpu_seconds"]] if new else []), [what, verb, seconds]]
        )


def train(cells: list[Cell], models: Path) -> None:
    """Train cells that differ in their objective alone in one call, which loads the models once."""
    cells = [cell for cell in cells if cell.folder() is None]  # those that are there would be evaluated again, and less
    if cells:
        algos = f"algo={','.join(cell.algo for cell in cells)}"
        fixed = [s for s in cells[0].settings(models) if not s.startswith("algo=")]
        alone = ALONE if cells[0].method in ("refuse", "proxy") else ()
        how = [*fixed, algos, *TRAINER, *alone, *SMALL, "eval.alphas=[0]"]
        spend(f"{label(cells[0])} {algos}", "run", "-m", f"study={STUDY}", *how)


def calibrate(cell: Cell) -> None:
    folder = cell.folder()
    done = {entry["goal"] for entry in read_json(folder / "calibration.json") or []}
    for goal, said in GOALS.items():
        if said not in done:
            spend(label(cell), "calibrate", f"run={folder}", goal, *SMALL)


def evaluate(cell: Cell) -> None:
    folder = cell.folder()
    alphas = sorted({1.0, *(round(entry["alpha"], 2) for entry in read_json(folder / "calibration.json") or [])})
    done = read_json(folder / "eval.json")["alphas"]
    if any(done.get(str(a), {}).get("settings", {}).get("max_examples") != 12 for a in alphas):
        spend(label(cell), "evaluate", f"run={folder}", f"eval.alphas={alphas}".replace(" ", ""), *FULL)


def ability(cell: Cell) -> None:
    """Multiple-choice questions by lm-eval, of target and unlearned model (needs the extra lm-eval)."""
    folder = cell.folder()
    if not (folder / "harness.json").is_file():
        spend(label(cell), "harness", f"run={folder}", "alpha=1", f"path={HERE / 'ability'}")


def label(cell: Cell) -> str:
    return " ".join(map(str, (cell.name, cell.algo, cell.method, cell.seed)))


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("models", type=Path, help="the folder with qwen15 and qwen05")
    parser.add_argument("--plan", choices=sorted(PLANS), default="first", help="all: with two more seeds")
    parser.add_argument("--stage", default="train,calibrate,evaluate", help="ability, too, where lm-eval is installed")
    parser.add_argument("--only", default="", help="only runs whose name (TOPIC ALGO METHOD SEED) has this in it")
    arguments = parser.parse_args()
    stages = {"calibrate": calibrate, "evaluate": evaluate, "ability": ability}
    plan = [cell for cell in PLANS[arguments.plan] if arguments.only in label(cell)]
    for stage in arguments.stage.split(","):
        if stage == "train":
            for group in dict.fromkeys(cell._replace(algo="") for cell in plan):
                train([cell for cell in plan if cell._replace(algo="") == group], arguments.models)
        for cell in plan if stage != "train" else ():
            if cell.folder() is not None:
                stages[stage](cell)


if __name__ == "__main__":
    main()
