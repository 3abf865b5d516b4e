"""``python -m unlearn.harness run=FOLDER``: general ability by lm-eval, target, unlearned and retrained side by side.

  alpha=0.5,1     α's of the unlearned model (default: that of the run's training)
  tasks=A,B       default: arc_challenge, arc_easy, hellaswag, winogrande, openbookqa; any other that scores likelihoods
  path=FOLDER     questions from this folder's NAME.jsonl (unlearn/evaluation/choices.py), not from the hub
  limit=100       only the first questions of each task
  model=NAME      instead of run=: a model alone, a folder or a name on the hub; out=FILE writes its result

Results go into the run's harness.json. A change is that from the target on the same questions, with its standard error.
Settings that may be given: eval.batch_size, trainer.device, trainer.threads, paths.store, data.path.
Needs the extra:  pip install -c constraints.txt -e .[lm-eval]
"""

from __future__ import annotations

import difflib
import logging
import math
import sys
from collections.abc import Mapping
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from unlearn.config.schema import Config, ConfigError
from unlearn.evaluation import choices
from unlearn.grid import places
from unlearn.grid.refusal import REFUSED, refuse, said
from unlearn.grid.rerun import load, split
from unlearn.runs.harness import FILE, Task, _manager, change, of_model, of_run
from unlearn.store.files import sha256, write_json

OWN = ("run", "model", "alpha", "tasks", "path", "limit", "out")
BESIDE = ("n", "right", "unknown")  # in an entry, beside its metrics


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given, rest = split(arguments, OWN)
    if "--help" in arguments or ("run" in given) == ("model" in given):
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    logging.basicConfig(level=logging.WARNING, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        tasks, limit = tasks_of(given.get("tasks"), given.get("path")), _limit(given.get("limit"))
        if "model" in given:
            place, found = Path(given["out"]) if "out" in given else None, of_model(given["model"], tasks, limit, rest)
        else:
            _, job = load(given["run"], rest)
            place, found = job.folder / FILE, of_run(job, _alphas(given.get("alpha"), job.cfg), tasks, limit)
        problems = list(places.problems("the folder of out", str(Path(given["out"]).parent))) if "out" in given else []
        if problems:
            raise ConfigError(problems[0])
    except REFUSED as error:
        return refuse(said(error), error)
    if place is not None:
        write_json(place, found)
    _print(found)
    print(f"written: {place}" if place else "not written: out=FILE says where")
    return 0


# --- what is asked --------------------------------------------------------------------------------------------------


def tasks_of(names: str | None, path: str | None) -> dict[str, tuple[Task, str]]:
    """By name, what lm-eval is given and where the questions are from. Refuses unknown names with the choices."""
    if find_spec("lm_eval") is None:
        raise ConfigError("python -m unlearn.harness needs lm-eval: pip install -c constraints.txt -e .[lm-eval]")
    asked = [name for name in (names or "").strip("[]").split(",") if name]
    if path is not None:
        files = choices.find(path)
        asked = asked or [name for name in choices.STANDARD if name in files] or list(files)
        for name in asked:
            if name not in files:
                raise ConfigError(f"tasks={name}: path={path} has no such task; it has {', '.join(files)}")
        return {n: (choices.task(n, files[n]), f"{files[n].name} sha256:{sha256(files[n])[:16]}") for n in asked}
    asked = asked or list(choices.STANDARD)
    known = _manager(True).all_tasks
    for name in asked:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 5)) or "none"
            raise ConfigError(
                f"tasks={name}: lm-eval {version('lm-eval')} has no such task; near it: {near}; on general ability: "
                f"{', '.join(choices.STANDARD)}; all: lm-eval ls tasks"
            )
    return {name: (name, f"lm-eval {name}") for name in asked}


def _limit(text: str | None) -> int | None:
    if text is not None and not (text.isdigit() and int(text)):
        raise ConfigError(f"limit={text}: must be a whole number of questions, at least 1")
    return None if text is None else int(text)


def _alphas(text: str | None, cfg: Config) -> list[float]:
    try:
        alphas = [cfg.alpha] if text is None else [float(a) for a in text.strip("[]").split(",")]
    except ValueError:
        alphas = [math.nan]
    if not all(map(math.isfinite, alphas)):
        raise ConfigError(f"alpha={text}: must be finite numbers, e.g. alpha=1 or alpha=0.5,1")
    return alphas


# --- what is measured -----------------------------------------------------------------------------------------------


# --- what is shown --------------------------------------------------------------------------------------------------


def _print(results: Mapping[str, Mapping[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from unlearn.grid.table import WIDTH

    console = Console()
    console.width = max(console.width, WIDTH)
    shown = {task: _models(entry) for task, entry in results.items()}
    names = dict.fromkeys(name for models in shown.values() for name in models)
    table = Table("task", "metric", "n", *names, box=box.SIMPLE, pad_edge=False, header_style="bold")
    for task, models in shown.items():
        first = next(iter(models.values()))
        for metric in (k for k in first if k not in BESIDE):
            cells = [_cell(metric, first, models[n]) if n in models else "" for n in names]
            table.add_row(task, metric, str(first["n"]), *cells)
    console.print(table)
    for task, models in shown.items():
        unknown = max(model["unknown"] for model in models.values())
        if unknown > 0.01:
            print(f"{task}: the tokenizer does not know {unknown:.0%} of the tokens, so these numbers say little")


def _models(entry: Mapping[str, Any]) -> dict[str, Mapping[str, Any]]:
    """Target, every α, retrained; or a model alone."""
    alphas = {f"α={float(a):g}": found for a, found in entry.get("alphas", {}).items()}
    found = {name: entry[name] for name in ("model", "target") if name in entry} | alphas
    return found | ({"retrained": entry["retrained"]} if "retrained" in entry else {})


def _cell(metric: str, first: Mapping[str, Any], model: Mapping[str, Any]) -> str:
    if metric != "acc" or model is first or len(first["right"]) != len(model["right"]) or not first["right"]:
        return f"{model[metric]:.3f}"
    difference, error = change(first["right"], model["right"])
    return f"{model[metric]:.3f} ({difference:+.3f} ± {error:.3f})"


if __name__ == "__main__":
    sys.exit(main())
