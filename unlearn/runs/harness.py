"""General ability of an ensemble, measured by lm-eval."""

from __future__ import annotations

import difflib
import logging
import math
from collections.abc import Mapping, Sequence
from functools import lru_cache
from importlib.metadata import version
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.derived import alpha_key
from unlearn.config.pair import SourceConfig
from unlearn.config.schema import ConfigError
from unlearn.evaluation import choices
from unlearn.runs.opened import Opened
from unlearn.store import sources
from unlearn.store.files import read_json, sha256, write_json
from unlearn.store.identity import digest

if TYPE_CHECKING:
    from unlearn.ensemble.ensemble import Ensemble

FILE = "harness.json"
BATCH = 128  # texts at once, where no run's config says how many
PACKAGES = ("lm-eval", "torch", "transformers")
Task = str | dict[str, Any]  # a name that lm-eval knows, or a config for it
Results = dict[str, dict[str, Any]]  # by task or subtask: its settings, and what each model did
Found = dict[str, dict[str, Any]]  # by task or subtask: its metrics, n, and which questions were answered right


def tasks_of(names: Sequence[str], path: str | None) -> dict[str, tuple[Task, str]]:
    """By name, what lm-eval is given and where the questions are from. Refuses unknown names with the choices."""
    if find_spec("lm_eval") is None:
        raise ConfigError("python -m unlearn.harness needs lm-eval: pip install -c constraints.txt -e .[lm-eval]")
    if path is not None:
        files = choices.find(path)
        names = names or [name for name in choices.STANDARD if name in files] or list(files)
        for name in names:
            if name not in files:
                raise ConfigError(f"tasks={name}: path={path} has no such task; it has {', '.join(files)}")
        return {n: (choices.task(n, files[n]), f"{files[n].name} sha256:{sha256(files[n])[:16]}") for n in names}
    names, known = names or choices.STANDARD, _manager(True).all_tasks
    for name in names:
        if name not in known:
            near = ", ".join(difflib.get_close_matches(name, known, 5)) or "none"
            others = f"near it: {near}; on general ability: {', '.join(choices.STANDARD)}; all: lm-eval ls tasks"
            raise ConfigError(f"tasks={name}: lm-eval {version('lm-eval')} has no such task; {others}")
    return {name: (name, f"lm-eval {name}") for name in names}


def of_run(run: Opened, alphas: Sequence[float], tasks: Mapping[str, tuple[Task, str]], limit: int | None) -> Results:
    """Results of a run's models, joined with those that its folder has of the same questions."""
    pair, size = run.cfg.pair, run.cfg.eval.batch_size
    if sources.is_remote(pair, "target"):
        how = "questions are scored here by running all members over whole texts, and the target is a server"
        raise ConfigError(f"pair.target.kind='http': {how}")
    bench, tokenizer = run.bench, run.bench.encoder.tokenizer
    frozen = [name for name in ("target", "retrained") if bench.has(name)]
    try:
        results = read_json(run.folder / FILE) or {}
    except ValueError as error:
        raise ConfigError(f"{error}; remove it to measure again") from None

    def stored(name: str, task: Task, settings: dict[str, Any]) -> Found:
        """What many runs share is measured once."""
        recipe = {"model": bench.fingerprint(name), "tokenizer": digest(tokenizer.get_vocab()), "settings": settings}

        def build(folder: Path) -> None:
            write_json(folder / FILE, measure(bench.alone(name), 1.0, tokenizer, task, limit, size))

        return read_json(bench.store.get("harness", recipe, build) / FILE)

    for task, source in tasks.values():
        settings = _settings(source, limit)
        found = {model: stored(model, task, settings) for model in frozen}
        ours = {a: measure(run.ensemble, a, tokenizer, task, limit, size) for a in alphas}
        for part in found["target"]:
            before = results.get(part, {})
            known = before.get("alphas", {}) if before.get("settings") == settings else {}
            entries = known | {alpha_key(a): entry[part] for a, entry in ours.items()}
            alphas_of = {"alphas": dict(sorted(entries.items(), key=lambda entry: float(entry[0])))}
            results[part] = {"settings": settings} | {m: entry[part] for m, entry in found.items()} | alphas_of
    return results


def of_model(
    name: str, tasks: Mapping[str, tuple[Task, str]], limit: int | None, overrides: Sequence[str] = ()
) -> Results:
    """Results of one model as it is; ``overrides``: trainer.device=… alone."""
    from unlearn.ensemble.ensemble import Ensemble, Member
    from unlearn.learning.loop import device
    from unlearn.models import hub, llama, tokenizers

    own = dict(a.split("=", 1) for a in overrides if a.startswith("trainer.device="))
    if len(own) < len(overrides):
        raise ConfigError(f"{' '.join(overrides)}: with model= only trainer.device may be given")
    folder = hub.locate("model", SourceConfig(name))
    tokenizer, place = tokenizers.load(folder), device(own.get("trainer.device", "auto"))
    model = hub.check_head(llama.freeze(llama.load(folder, place)), f"model={name}")
    alone, results = Ensemble((Member("model", model, "", 1.0, 0.0, False),)), {}
    for task, source in tasks.values():
        found = measure(alone, 1.0, tokenizer, task, limit, BATCH)
        results |= {part: {"settings": _settings(source, limit), "model": entry} for part, entry in found.items()}
    return results


def _settings(source: str, limit: int | None) -> dict[str, Any]:
    return {"source": source, "limit": limit, "versions": {name: version(name) for name in PACKAGES}}


def measure(ensemble: Ensemble, alpha: float, tokenizer, task: Task, limit: int | None, batch_size: int) -> Found:
    """lm-eval's results of one task, or of every part of a group."""
    from lm_eval import simple_evaluate

    manager = _manager(isinstance(task, str))
    try:
        parts = manager.load([task])["tasks"].values()
    except (OSError, ValueError) as error:
        lacking = f"its questions could not be loaded from the hub: {error}"
        raise ConfigError(f"tasks={task}: {lacking}; without a network give path=FOLDER with NAME.jsonl") from None
    for part in parts:
        if part.OUTPUT_TYPE == "generate_until":
            raise ConfigError(f"tasks={part.task_name}: is about generated text, and only likelihoods are scored here")
    lm = language_model(ensemble, alpha, tokenizer, batch_size)
    found = simple_evaluate(lm, tasks=[task], task_manager=manager, limit=limit, bootstrap_iters=0)
    samples = found["samples"]
    return {part: _entry(values, samples.get(part, []), tokenizer) for part, values in found["results"].items()}


def language_model(ensemble: Ensemble, alpha: float, tokenizer, batch_size: int):
    """The ensemble as a model of lm-eval. Memory holds [B, S, V] logits, so large vocabularies get smaller batches."""
    from lm_eval.models.huggingface import HFLM

    from unlearn.data.encoding import most_rows
    from unlearn.ensemble.engines.live import causal_lm

    model = causal_lm(ensemble, alpha)
    length = model.config.max_position_embeddings or HFLM._DEFAULT_MAX_LENGTH
    fits = max(1, most_rows(model.config.vocab_size, model.device) // length)
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
