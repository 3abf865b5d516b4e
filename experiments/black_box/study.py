"""What is lost when the target is a server that shows its k likeliest tokens:

    python experiments/black_box/study.py [--worlds 0 1 2]

Per world: the runs beside the local target, with all its logits; a server with the same target (unlearn.serve at
α = 0); the same runs over HTTP for every k. Then each trained offset is evaluated
beside the local target, so that rows differ in what was seen while training and in nothing else. Runs that are done
are not repeated, and no question is asked twice. Writes results.csv and table.md of all that is done beside itself.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path

import pandas as pd
import yaml

from analysis.statistics import Interval, mean

HERE = Path(__file__).resolve().parent
STUDY = "black_box"
ALGOS, WORLDS = ("ga", "kl", "npo", "simnpo"), (0, 1, 2)
KS = (100, 20, 5)  # an answer with more tokens serves who asks for fewer
FIXED = (f"study={STUDY}", "eval.groups=[]", "eval.max_examples=100", "trainer.save_every=0", "trainer.eval_every=0",
         "trainer.progress=false", "wandb=disabled")  # fmt: skip
SEEN = ("eval.max_examples=10", "eval.max_new_tokens=16")  # through the server: what counts is evaluated here
METRICS = ("forget/prob", "retain/prob", "retain/rougeL_recall", "model_utility")
SHOWN = {"forget/prob": "forget prob", "retain/prob": "retain prob", "model_utility": "utility",
         "distance/retain/prob": "Δ retain prob", "distance/model_utility": "Δ utility"}  # fmt: skip


def call(*overrides: str) -> None:
    command = [sys.executable, "-m", "unlearn.run", "-m", *FIXED, *overrides]
    subprocess.run(command, stdout=subprocess.DEVNULL, check=False)  # a run that failed is missing below, and named


def listed(values: tuple) -> str:
    return ",".join(map(str, values))


def done(world: int, kind: str) -> list[tuple[Path, dict]]:
    """Folders of a world's finished runs beside one kind of target, with their configs; others are named."""
    found = []
    for path in sorted(Path("runs", STUDY).glob("*/manifest.json")):
        config, manifest = yaml.safe_load((path.parent / "config.yaml").read_text()), json.loads(path.read_text())
        if config["pair"]["seed"] == world and config["pair"]["target"]["kind"] == kind:
            if manifest["status"] == "done":
                found.append((path.parent, config))
            else:
                print(f"{path.parent.name}: {manifest['status']}: {manifest.get('error')}")
    return found


@contextmanager
def server(run: Path) -> Iterator[str]:
    """The target of a run behind HTTP; gives its address."""
    command = [sys.executable, "-m", "unlearn.serve", f"run={run}", "alpha=0", "port=0", "name=bios"]
    said = Path("server.log")
    with said.open("w") as log, subprocess.Popen(command, stderr=log) as process:
        try:
            while (found := re.search(r"http://\S+", said.read_text())) is None:
                if process.poll() is not None:
                    raise SystemExit(f"the server did not start: {said.read_text()}")
                time.sleep(0.2)
            yield found[0]
        finally:
            process.terminate()


def world(seed: int) -> None:
    """All runs of a world."""
    call(f"algo={listed(ALGOS)}", f"pair.seed={seed}")
    local = done(seed, "model")
    if not local:
        raise SystemExit(f"world {seed}: no run beside the local target is done")
    with server(local[0][0]) as url:
        http = (*SEEN, "pair.target.kind=http", f"pair.target.http.url={url}", "pair.target.http.model=bios",
                f"pair.target.http.revision=world-{seed}")  # fmt: skip
        call(f"algo={listed(ALGOS)}", f"pair.seed={seed}", *http, f"pair.target.http.k={listed(KS)}")
        call("algo=simnpo", f"pair.seed={seed}", *http, "pair.target.http.k=0")


def rows(seed: int) -> list[dict]:
    """A world's runs as rows of the table."""
    return [row(folder, config, seed) for kind in ("model", "http") for folder, config in done(seed, kind)]


def row(folder: Path, config: dict, seed: int) -> dict:
    """What a run was trained with, and its offset's values beside the local target."""
    target, found = config["pair"]["target"], {"algo": config["algo"]["name"], "world": seed}
    if target["kind"] == "http":  # earlier versions had a setting for who shares the mass that is left
        found |= {"k": target["http"]["k"], "tail": target["http"].get("tail", "even")}
    else:
        found |= {"k": "local", "tail": ""}
    kept = Path("exact", f"{folder.name}.json")
    if not kept.is_file():
        kept.parent.mkdir(exist_ok=True)
        kept.write_text(json.dumps({name: value for name, value in exact(folder).items() if name in METRICS}))
        print(f"world {seed}: {folder.name}", flush=True)
    return found | json.loads(kept.read_text())


def exact(folder: Path) -> dict:
    """Metrics of a trained offset beside the local target, with all of its logits."""
    from unlearn.evaluation import evaluation
    from unlearn.grid.rerun import open_run
    from unlearn.models import llama
    from unlearn.runs.baselines import suite_of
    from unlearn.runs.workbench import frozen_ensemble, workbench

    cfg = open_run(folder).cfg
    cfg = replace(
        cfg, pair=replace(cfg.pair, target=replace(cfg.pair.target, kind="model")),
        eval=replace(cfg.eval, max_examples=100, max_new_tokens=200),
    )  # fmt: skip
    world = workbench(cfg)
    start = frozen_ensemble(cfg.method.members, world)
    model = llama.freeze(llama.load(folder / "offset", "cpu"))
    members = tuple(replace(m, model=model) if m.trained else m for m in start.members)
    suite = suite_of(cfg, world)
    found, _ = evaluation.evaluate(replace(start, members=members), suite, [1.0], world.store, None)
    return found[1.0]


def table(found: pd.DataFrame) -> str:
    """Means over worlds with 95 % intervals, and differences from the same world's run beside the local target."""
    lines = ["| objective | k | what is left | " + " | ".join(SHOWN.values()) + " | worlds |",
             "|---" * (len(SHOWN) + 4) + "|"]  # fmt: skip
    for (algo, k, tail), rows in found.groupby(["algo", "k", "tail"], sort=False):
        cells = [said(mean(rows[name])) for name in SHOWN]
        lines.append(f"| `{algo}` | {k or 'all'} | {tail} | " + " | ".join(cells) + f" | {len(rows)} |")
    return "\n".join([*lines, ""])


def said(value: Interval) -> str:
    return f"{value.mean:.3f}" + ("" if value.n < 2 else f" ({value.low:.3f} to {value.high:.3f})")


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--worlds", type=int, nargs="+", default=WORLDS, choices=WORLDS)
    asked = parser.parse_args()
    for seed in asked.worlds:
        world(seed)
    found = pd.DataFrame([each for seed in WORLDS for each in rows(seed)])
    local = found[found["k"] == "local"].set_index(["algo", "world"])
    at = pd.MultiIndex.from_frame(found[["algo", "world"]])
    for name in METRICS:
        found[f"distance/{name}"] = found[name].to_numpy() - local[name].reindex(at).to_numpy()
    order = {"local": 1e9, 0: 1e8}  # from all to little
    found = found.sort_values(["algo", "k", "tail", "world"], key=lambda c: c.map(lambda v: -order.get(v, v))
                              if c.name == "k" else c, ignore_index=True)  # fmt: skip
    found.round(5).to_csv(HERE / "results.csv", index=False)
    (HERE / "table.md").write_text(table(found), encoding="utf-8")
    print(table(found))


if __name__ == "__main__":
    main()
