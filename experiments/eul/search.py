"""Learning rates of the study, searched in a world that it does not use:  python experiments/eul/search.py

Rule of ``experiments/presets``: the harmonic mean of the share of the target's forget probability that is lost and of
the share of its probability that is kept on held-out retain questions, at the last step. 10 % of the reviews, one
world. Writes search.csv beside itself.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from study import SHARES, WAYS
from tqdm import tqdm
from worlds import StudyWorld, of_run, run

from unlearn import runlog

HERE = Path(__file__).resolve().parent
WORLD = 100
RATES = {
    "reverse gradient": (3e-4, 1e-3, 3e-3, 1e-2),
    "EUL": (3e-3, 1e-2, 3e-2),
    "bounded EUL": (3e-3, 1e-2, 3e-2),
}


def _without_rate(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(o for o in overrides if not o.startswith("trainer.lr"))


def main() -> None:
    world = StudyWorld("reviews", WORLD)
    asked = list(range(world.people - 1, world.people - 1 - SHARES["10 %"], -1))
    rows = []
    for what, lr in tqdm([(what, lr) for what, rates in RATES.items() for lr in rates]):
        found = run(world.unlearning(asked, (), *_without_rate(WAYS[what]), f"trainer.lr={lr}"))
        manifest = runlog.manifest(found.folder)
        rows.append({"what": what, "lr": lr, "score": manifest["score"]} | of_run(found))
        pd.DataFrame(rows).round(4).to_csv(HERE / "search.csv", index=False)


if __name__ == "__main__":
    main()
