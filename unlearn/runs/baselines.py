"""Evaluate ensembles beside the models that they are compared with: target and retrained, each as it is."""

import logging
import time
from collections.abc import Sequence
from functools import cache, partial
from pathlib import Path
from typing import Any

import pandas as pd

from unlearn.config.schema import Config
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation import evaluation
from unlearn.evaluation.context import Beside
from unlearn.evaluation.groups import guess
from unlearn.evaluation.retrained import Measured, from_file
from unlearn.evaluation.scoring import Parts
from unlearn.evaluation.suite import Suite, suite
from unlearn.runs.workbench import Workbench
from unlearn.store.entries import BUILDING
from unlearn.store.files import read_json, write_json
from unlearn.store.identity import NO_RETRAINED, digest, eval_settings

log = logging.getLogger(__name__)
SECONDS = "seconds.json"
SHORT = 4  # times the longest answer: so many new tokens are far more than answers need
Found = tuple[dict[float, dict[str, Any]], pd.DataFrame, dict[str, Measured]]  # metrics by α, examples, baselines


def evaluate(
    cfg: Config,
    bench: Workbench,
    ensemble: Ensemble,
    suite: Suite,
    alphas: Sequence[float],
    show: str = "evaluating",
    parts: Parts | None = None,
) -> Found:
    """Metrics and examples of an ensemble, and the baselines; ``show`` names the stage, ``parts``: of a stopped one."""
    beside = baselines(cfg, bench, suite)
    more = Beside(beside.get("guess"), cache(partial(bench.alone, "target")))
    asked = ensemble, suite, alphas, bench.store, beside.get("retrained"), show
    return *evaluation.evaluate(*asked, beside=more, parts=parts), beside


def suite_of(cfg: Config, bench: Workbench) -> Suite:
    settings = eval_settings(cfg, bench.data.fingerprint())
    found = suite(bench.data, bench.encoder, cfg.eval, settings, cfg.trainer.stored_rows_gib)
    if cfg.data.reader == "jsonl" and (advice := length_advice(found)):
        _say(advice)
    return found


def length_advice(suite: Suite) -> str:
    """What ``eval.max_new_tokens`` should be for the answers of one's own data; empty where it fits."""
    lengths = [len(e.answer) - 1 for split in suite.splits if split.generated for e in split.right_answers]
    most, longest, cut = suite.cfg.max_new_tokens, max(lengths), sum(n > suite.cfg.max_new_tokens for n in lengths)
    if cut:
        rule = f"{cut} of {len(lengths)} answers have more tokens, up to {longest}, and are never generated whole"
        return f"eval.max_new_tokens={most}: {rule}; give eval.max_new_tokens={longest + 1}"
    if most >= SHORT * longest:
        rule = (
            f"the longest answer has {longest} tokens; eval.max_new_tokens={2 * longest} would do, and take less time"
        )
        return f"eval.max_new_tokens={most}: {rule}"
    return ""


@cache
def _say(advice: str) -> None:
    log.warning(advice)


def baselines(cfg: Config, bench: Workbench, suite: Suite) -> dict[str, Measured]:
    """The target and, where there are such, the guess level and the retrained model: metrics and examples by name."""
    given, retrained = cfg.eval.retrained, None
    if given is None:
        models = {name: cache(partial(bench.alone, name)) for name in ("target", "retrained")}  # loaded once a job
        retrained = Measured(*_measured(cfg, bench, suite, "retrained", None), models)
    elif given != NO_RETRAINED:
        retrained = from_file(given, suite, {"target": partial(bench.alone, "target")})
    guesses = guess.asked(suite)
    level = None if guesses is None else Measured(*_measured(cfg, bench, guesses, "target", None, "the guess level"))
    found = {"target": Measured(*_measured(cfg, bench, suite, "target", retrained, guess=level))}
    found |= {} if level is None else {"guess": level}
    return found if retrained is None else found | {"retrained": retrained}


def _measured(
    cfg: Config,
    bench: Workbench,
    suite: Suite,
    name: str,
    retrained: Measured | None,
    what: str | None = None,
    guess: Measured | None = None,
) -> tuple[dict[str, Any], pd.DataFrame]:
    """Metrics and examples of one model as it is, computed once and stored."""
    recipe = _recipe(cfg, bench, suite, name)

    def build(folder: Path) -> None:
        log.info("evaluating %s", what or f"the {name} model")
        start, alone = time.perf_counter(), bench.alone(name)
        shown, beside = f"evaluating {what or name}", Beside(guess, partial(bench.alone, "target"))
        parts = Parts(bench.store.root / BUILDING / f"parts-{digest(recipe, 20)}", alone, suite)
        of_one = alone, suite, [1.0], bench.store, retrained, shown, name == "retrained", beside, parts
        metrics, examples = evaluation.evaluate(*of_one)
        write_json(folder / "metrics.json", metrics[1.0])
        examples.drop(columns="alpha").to_parquet(folder / "examples.parquet", index=False)
        write_json(folder / SECONDS, round(time.perf_counter() - start, 3))
        parts.clear()

    folder = bench.store.get("reference", recipe, build)
    return read_json(folder / "metrics.json"), pd.read_parquet(folder / "examples.parquet")


def seconds_alone(cfg: Config, bench: Workbench, suite: Suite) -> float | None:
    """What the evaluation of the target took when it was made; None where it was not timed."""
    return read_json(bench.store.folder("reference", _recipe(cfg, bench, suite, "target")) / SECONDS)


def _recipe(cfg: Config, bench: Workbench, suite: Suite, name: str) -> dict[str, Any]:
    return {
        "model": bench.fingerprint(name), "settings": suite.settings,
        "retrained": bench.fingerprint("retrained") if cfg.eval.retrained is None else None,
        "examples": [split.examples.fingerprint for split in suite.splits],
    }  # fmt: skip
