"""Rates and lengths of the study, searched in a world that it does not use:  python experiments/eul/search.py

Rule of ``experiments/presets``: the harmonic mean of the share of the target's forget probability that is lost and of
the share of its probability that is kept on held-out retain questions, at the last step. 10 % of the reviews, one
world. Writes search.csv beside itself; rows that are there are not made again.
"""

from __future__ import annotations

from pathlib import Path

import pandas as pd
from study import SHARES, WAYS
from tqdm import tqdm
from worlds import StudyWorld, of_run, run

from unlearn.store import runlog

HERE = Path(__file__).resolve().parent
WORLD = 100
SEARCHED = {  # rates and steps
    "reverse gradient": ((3e-4, 1e-3, 3e-3, 1e-2), (150,)),
    "EUL": ((1e-3, 3e-3, 1e-2, 3e-2), (150, 600, 1200, 2400)),
    "bounded EUL": ((1e-3, 3e-3, 1e-2, 3e-2), (150, 600, 1200, 2400)),
}


def _without(overrides: tuple[str, ...]) -> tuple[str, ...]:
    return tuple(o for o in overrides if not o.startswith(("trainer.lr", "trainer.steps")))


def main() -> None:
    world = StudyWorld("reviews", WORLD)
    asked = list(range(world.people - 1, world.people - 1 - SHARES["10 %"], -1))
    path = HERE / "search.csv"
    rows = pd.read_csv(path).to_dict("records") if path.is_file() else []
    done = {(row["what"], row["lr"], row["steps"]) for row in rows}
    tried = [(what, lr, steps) for what, (rates, some) in SEARCHED.items() for steps in some for lr in rates]
    for what, lr, steps in tqdm([one for one in tried if one not in done]):
        given = *_without(WAYS[what]), f"trainer.lr={lr}", f"trainer.steps={steps}"
        found = run(world.unlearning(asked, (), *given))
        manifest = runlog.manifest(found.folder)
        rows.append({"what": what, "lr": lr, "steps": steps, "score": manifest["score"]} | of_run(found))
        pd.DataFrame(rows).sort_values(["what", "steps", "lr"]).round(4).to_csv(path, index=False)


if __name__ == "__main__":
    main()
