"""The leaderboard's runs: every row of rows/ in worlds that no choice has seen, each at the α where it leaks no more.

    python experiments/leaderboard/study.py [--jobs 2] [--worlds 20 21 22 23 24] [--rows NAME …]
    python experiments/leaderboard/study.py --tofu FOLDER [--worlds 0 1 2]     # real TOFU at laptop size, fewer rows
    python experiments/leaderboard/study.py --worlds 40 41 42 43 44 45 46 47 --rows defer defer_long direct_npo uld
    python experiments/leaderboard/study.py --seconds     # what each row's training takes, one after another

A row is a YAML file with ``settings`` of ``unlearn.run``; methods and objectives of its own lie in conf/. α is
calibrated to the retrained model's leak on all forget questions (an oracle) by one draw of answers; the leak that is
reported is that of another draw, and what is kept is reported on questions that had no part in the choice. Runs and
results that are there are not made again. Writes results.csv, and curves.csv with what is kept at every α that was
looked at (of TOFU results_tofu.csv and curves_tofu.csv; of worlds 40 and more later.csv);
``experiments/leaderboard/table.py`` makes the tables and the figures from these files.
"""

import argparse
import json
import subprocess
import sys
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import pandas as pd
import yaml

HERE = Path(__file__).resolve().parent
WORLDS, TOFU_WORLDS, RESULT = (20, 21, 22, 23, 24), (0, 1, 2), "matched.json"
LATER = 40  # worlds from here on came after the last choice, and have a file of their own
TOFU_ROWS = ("defer", "direct_npo", "offset_npo", "uld")
FIXED = (f"--config-dir={HERE / 'conf'}", "eval.max_examples=10", "eval.groups=[]",
         "trainer.eval_every=20", "trainer.save_every=0", "trainer.progress=false", "wandb=disabled")  # fmt: skip
REPORTED = ("eval.max_examples=100", "eval.groups=[leak,artefact]", "eval.leak_samples=10", "eval.batch_size=512")
KEPT = ("retain", "real_authors", "world_facts")
SHOWN = (
    "forget/leak_gap", "forget/leak@10", "forget/prob", *(f"{split}/prob" for split in KEPT),
    "model_utility", "forget_quality", "artefact/prob", "artefact/anchor_prob", "artefact/leak@10",
    "artefact/relearnt_prob", "artefact/anchor_relearnt_prob",
)  # fmt: skip


def rows() -> dict[str, list[str]]:
    """Settings of each row, by its name."""
    return {path.stem: yaml.safe_load(path.read_text())["settings"] for path in sorted((HERE / "rows").glob("*.yaml"))}


def runs(tofu: str | None) -> Path:
    return Path("runs", "leaderboard_tofu" if tofu else "leaderboard")


def world(seed: int, names: list[str], tofu: str | None) -> None:
    """Rows in one world, in a process of its own; a file of results each."""
    level = None  # of the retrained model, known after the first
    data = ["experiment=tofu_small", f"data.path={tofu}"] if tofu else []
    for name in names:
        place = runs(tofu) / name / str(seed)
        if (place / RESULT).is_file():
            continue
        if not list(place.glob("*/*/manifest.json")):
            given = [*data, *FIXED, f"paths.runs={place}", f"pair.seed={seed}", *rows()[name]]
            subprocess.run([sys.executable, "-m", "unlearn.run", *given], stdout=subprocess.DEVNULL, check=True)
        (made,) = place.glob("*/*/manifest.json")
        manifest = json.loads(made.read_text())
        row = {"row": name, "world": seed, "collapsed": manifest.get("collapsed") or ""}
        found, curve = matched(made.parent, level)
        level = found["asked"]
        (place / RESULT).write_text(json.dumps({"row": row | found, "curve": curve}))


def seconds() -> pd.DataFrame:
    """Each row trained in one world whose models are there, one after another: seconds of the training alone, and the
    commit of the code. Run it with nothing else beside it."""
    found, store = [], Path("runs", "leaderboard_seconds")
    for name, settings in rows().items():
        place = store / name
        given = [*FIXED, f"paths.runs={place}", f"pair.seed={WORLDS[0]}", "trainer.eval_every=0", *settings]
        subprocess.run([sys.executable, "-m", "unlearn.run", *given], stdout=subprocess.DEVNULL, check=True)
        (made,) = place.glob("*/*/manifest.json")
        manifest = json.loads(made.read_text())
        size, commit = manifest["trainable"], manifest["git"]["commit"][:7]
        found.append({"row": name, "seconds": manifest["seconds"]["train"], "trained": size, "commit": commit})
    return pd.DataFrame(found)


def matched(folder: Path, level: float | None) -> tuple[dict, list[dict]]:
    """What a trained run is at the α of the retrained model's leak (``level``, if it is known), and what it keeps at
    each α that was looked at."""
    from unlearn.grid.rerun import open_run
    from unlearn.runs.baselines import evaluate
    from unlearn.runs.calibration import choose, parted, suite_with
    from unlearn.runs.goal import LEAK, Goal

    run = open_run(folder, REPORTED)
    cfg, bench, ensemble, goal = run.cfg, run.bench, run.ensemble, Goal(LEAK, level)
    choosing, splits = parted(cfg, bench.data, goal)
    choice = choose(cfg, bench, ensemble, goal, choosing)
    suite = suite_with(cfg, bench, splits)
    found, _, beside = evaluate(cfg, bench, ensemble, suite, [choice.alpha])
    sources = {"": found[choice.alpha], **{f"{of}/": each.metrics for of, each in beside.items()}}
    row = {"alpha": choice.alpha, "asked": choice.asked, "reached": choice.reached, "note": choice.note}
    row |= {f"{of}{metric}": v[metric] for of, v in sources.items() for metric in SHOWN if metric in v}
    return row, curve(ensemble, suite, choice.looked)


def curve(ensemble, suite, looked) -> list[dict]:
    """Leak as it was looked at, and the probability of the answers to keep, by α."""
    from unlearn.evaluation.scoring import score

    found = [{"alpha": alpha, "leak": leak} for alpha, leak in looked]
    for split in map(suite.split, KEPT):
        alphas = [alpha for alpha, _ in looked]
        scores = score(ensemble.once, split.right_answers, alphas, {}, suite.pad_id, suite.cfg.batch_size, argmax_of=())
        for point in found:
            point[split.name] = float(scores[point["alpha"]].prob.mean())
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--jobs", type=int, default=2, help="worlds at a time")
    parser.add_argument("--worlds", type=int, nargs="+")
    parser.add_argument("--rows", nargs="+")
    parser.add_argument("--tofu", help="folder of TOFU's files")
    parser.add_argument("--seconds", action="store_true", help="only what training takes, into seconds.csv")
    parser.add_argument("--world", type=int, help="only this world, and no tables")
    asked = parser.parse_args()
    if asked.seconds:
        return seconds().round(2).to_csv(HERE / "seconds.csv", index=False)
    names, worlds = asked.rows or (TOFU_ROWS if asked.tofu else list(rows())), asked.worlds
    if asked.world is not None:
        return world(asked.world, names, asked.tofu)
    given = [sys.executable, __file__, *(["--tofu", asked.tofu] if asked.tofu else []), "--rows", *names]
    with ThreadPoolExecutor(asked.jobs) as pool:
        own = [[*given, "--world", str(seed)] for seed in worlds or (TOFU_WORLDS if asked.tofu else WORLDS)]
        list(pool.map(lambda command: subprocess.run(command, check=True), own))
    made = [json.loads(path.read_text()) for path in sorted(runs(asked.tofu).glob(f"*/*/{RESULT}"))]
    found = pd.DataFrame(each["row"] for each in made)
    named = [{"row": each["row"]["row"], "world": each["row"]["world"]} for each in made]
    curves = [name | point for name, each in zip(named, made, strict=True) for point in each["curve"]]
    ending = "_tofu.csv" if asked.tofu else ".csv"
    after = found["world"] >= LATER
    for part, name in ((found[~after], f"results{ending}"), (found[after], "later.csv")):
        if len(part):
            part.round(5).to_csv(HERE / name, index=False)
            print(f"{len(part)} runs, {part['world'].nunique()} worlds: {HERE / name}")
    if not after.all():
        points = pd.DataFrame(point for point in curves if point["world"] < LATER)
        points.round(5).to_csv(HERE / f"curves{ending}", index=False)


if __name__ == "__main__":
    main()
