"""``python -m unlearn.harness run=FOLDER``: general ability by lm-eval, target, unlearned and retrained side by side.

  alpha=0.5,1     α's of the unlearned model (default: that of the run's training)
  tasks=A,B       default: arc_challenge, arc_easy, hellaswag, winogrande, openbookqa; any other that scores likelihoods
  path=FOLDER     questions from this folder's NAME.jsonl (unlearn/choices.py says how they look), not from the hub
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
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn import choices, places
from unlearn.config import Config, ConfigError
from unlearn.config_pair import SourceConfig
from unlearn.files import read_json, sha256, write_json
from unlearn.identity import Job, alpha_key, digest
from unlearn.refusal import REFUSED, refuse, said
from unlearn.rerun import load, split

if TYPE_CHECKING:
    from unlearn.ensemble import Ensemble

FILE = "harness.json"
OWN = ("run", "model", "alpha", "tasks", "path", "limit", "out")
BATCH = 128  # texts at once, where no run's config says how many
PACKAGES = ("lm-eval", "torch", "transformers")
BESIDE = ("n", "right", "unknown")  # in an entry, beside its metrics
Task = str | dict[str, Any]  # a name that lm-eval knows, or a config for it
Found = dict[str, dict[str, Any]]  # by task or subtask: its metrics, n, and which questions were answered right


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


def of_run(job: Job, alphas: Sequence[float], tasks: Mapping[str, tuple[Task, str]], limit: int | None) -> dict:
    """Results of a run's models, joined with those that its folder has of the same questions."""
    from unlearn import sources
    from unlearn.job import members, settle
    from unlearn.world import the_world

    cfg = job.cfg
    if sources.is_remote(cfg.pair, "target"):
        raise ConfigError(
            "pair.target.kind='http': questions are scored here by running all members over whole texts, and the "
            "target is a server"
        )
    settle(cfg)
    world = the_world(cfg)
    unlearned, tokenizer = members(cfg, world, job.folder), world.encoder.tokenizer
    frozen = ["target", *(["retrained"] if sources.lacking(cfg.pair, "retrained") is None else [])]
    results = _before(job.folder / FILE)

    def stored(name: str, task: Task, settings: dict[str, Any]) -> Found:
        """What many runs share is measured once."""
        recipe = {"model": world.fingerprint(name), "tokenizer": digest(tokenizer.get_vocab()), "settings": settings}

        def build(folder: Path) -> None:
            write_json(folder / FILE, measure(world.alone(name), 1.0, tokenizer, task, limit, cfg.eval.batch_size))

        return read_json(world.store.get("harness", recipe, build) / FILE)

    for task, source in tasks.values():
        settings = _settings(source, limit)
        found = {model: stored(model, task, settings) for model in frozen}
        ours = {a: measure(unlearned, a, tokenizer, task, limit, cfg.eval.batch_size) for a in alphas}
        for part in found["target"]:
            before = results.get(part, {})
            known = before.get("alphas", {}) if before.get("settings") == settings else {}
            entries = known | {alpha_key(a): entry[part] for a, entry in ours.items()}
            results[part] = {
                "settings": settings, **{model: entry[part] for model, entry in found.items()},
                "alphas": dict(sorted(entries.items(), key=lambda entry: float(entry[0]))),
            }  # fmt: skip
    return results


def of_model(
    name: str, tasks: Mapping[str, tuple[Task, str]], limit: int | None, overrides: Sequence[str] = ()
) -> dict[str, dict[str, Any]]:
    """Results of one model as it is; ``overrides``: trainer.device=… alone."""
    from unlearn.ensemble import Ensemble, Member
    from unlearn.models import hub, llama, tokenizers
    from unlearn.trainer import device

    own = dict(a.split("=", 1) for a in overrides if a.startswith("trainer.device="))
    if len(own) < len(overrides):
        raise ConfigError(f"{' '.join(overrides)}: with model= only trainer.device may be given")
    folder = hub.locate("model", SourceConfig(name))
    tokenizer = tokenizers.load(folder)
    model = hub.check_head(llama.freeze(llama.load(folder, device(own.get("trainer.device", "auto")))), f"model={name}")
    alone = Ensemble((Member("model", model, "", 1.0, 0.0, False),))
    results = {}
    for task, source in tasks.values():
        found = measure(alone, 1.0, tokenizer, task, limit, BATCH)
        results |= {part: {"settings": _settings(source, limit), "model": entry} for part, entry in found.items()}
    return results


def _before(path: Path) -> dict[str, Any]:
    try:
        return read_json(path) or {}
    except ValueError as error:
        raise ConfigError(f"{error}; remove it to measure again") from None


def _settings(source: str, limit: int | None) -> dict[str, Any]:
    return {"source": source, "limit": limit, "versions": {name: version(name) for name in PACKAGES}}


def measure(ensemble: Ensemble, alpha: float, tokenizer, task: Task, limit: int | None, batch_size: int) -> Found:
    """lm-eval's results of one task, or of every part of a group."""
    from lm_eval import simple_evaluate

    manager = _manager(isinstance(task, str))
    try:
        parts = manager.load([task])["tasks"].values()
    except (OSError, ValueError) as error:
        raise ConfigError(
            f"tasks={task}: its questions could not be had from the hub: {error}; without a network give path=FOLDER "
            "with NAME.jsonl"
        ) from None
    for part in parts:
        if part.OUTPUT_TYPE == "generate_until":
            raise ConfigError(f"tasks={part.task_name}: is about generated text, and only likelihoods are scored here")
    lm = language_model(ensemble, alpha, tokenizer, batch_size)
    found = simple_evaluate(lm, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0)
    return {
        part: _entry(values, found["samples"].get(part, []), tokenizer) for part, values in found["results"].items()
    }


def language_model(ensemble: Ensemble, alpha: float, tokenizer, batch_size: int):
    """The ensemble as a model of lm-eval. Memory holds [B, S, V] logits, so large vocabularies get smaller batches."""
    from lm_eval.models.huggingface import HFLM

    from unlearn.causal_lm import EnsembleLM
    from unlearn.data.encoding import most_rows
    from unlearn.models.llama import vocabulary

    model = EnsembleLM(ensemble, alpha)
    length = model.max_length or HFLM._DEFAULT_MAX_LENGTH
    fits = max(1, most_rows(vocabulary(model.members[0].model), model.device) // length)
    return HFLM(pretrained=model, tokenizer=tokenizer, max_length=length, batch_size=min(batch_size, fits))


@lru_cache
def _manager(own: bool):
    """lm-eval's index of tasks; reading its ``own`` takes half a minute, and a config needs none of them."""
    from lm_eval.tasks import TaskManager

    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns of models and questions that are objects
    return TaskManager(include_defaults=own)


def _entry(values: Mapping[str, Any], samples: Sequence[Mapping[str, Any]], tokenizer) -> dict[str, Any]:
    """Metrics without their filter's name; the number of questions; ``right`` with a 1 for every right answer and a 0
    for a wrong one; the share of tokens that the tokenizer does not know."""
    metrics = {k.split(",")[0]: v for k, v in values.items() if isinstance(v, int | float) and "," in k}
    samples = sorted(samples, key=lambda s: s["doc_id"])
    right = "".join(str(int(s["acc"])) for s in samples if "acc" in s)
    ids = [i for s in samples for text in s["arguments"] for i in tokenizer("".join(text))["input_ids"]]
    unknown = ids.count(tokenizer.unk_token_id) / max(1, len(ids))
    return metrics | {"n": len(samples), "right": right, "unknown": round(unknown, 4)}


def change(before: str, after: str) -> tuple[float, float]:
    """Difference of two accuracies on the same questions, and its standard error."""
    steps = [int(b) - int(a) for a, b in zip(before, after, strict=True)]
    mean = sum(steps) / len(steps)
    variance = sum((s - mean) ** 2 for s in steps) / max(1, len(steps) - 1)
    return mean, math.sqrt(variance / len(steps))


# --- what is shown --------------------------------------------------------------------------------------------------


def _print(results: Mapping[str, Mapping[str, Any]]) -> None:
    from rich import box
    from rich.console import Console
    from rich.table import Table

    from unlearn.table import WIDTH

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
