"""Results of other projects beside ours: as a retrained reference, and as rows of our tables.

Aggregates are computed again from the per-example values with our own metric functions, under the file's own semantics
unless another is named: what differs from the file's aggregates is an error in one of the two, and both are named.
``tofu_arithmetic`` is a dialect of published tables alone: the truth ratio of TOFU's utils.py, an arithmetic mean over
the probabilities of the wrong answers.
"""

import math
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd
from scipy.special import logsumexp

from unlearn.config.schema import ConfigError
from unlearn.data.rows import letters
from unlearn.evaluation import foreign
from unlearn.evaluation.foreign import GENERAL, Logged
from unlearn.evaluation.metrics import tofu
from unlearn.evaluation.metrics.membership import auc, privleak
from unlearn.evaluation.metrics.semantics import SEMANTICS, Semantics
from unlearn.evaluation.metrics.texts import ASCII, dropped
from unlearn.evaluation.metrics.tofu import PARTS, RATIO
from unlearn.store.files import read_json, write_json, write_whole

FORMAT = 1
OURS = "ours"
ARITHMETIC = "tofu_arithmetic"
OWN_SEMANTICS = {foreign.OPENUNLEARNING: "ou", foreign.TOFU: "tofu"}
MEANS = ("exact_memorization", "extraction_strength", "rouge1_recall", "rougeL_f1")  # nothing finer is logged
ATTACK = "mia/min_k"  # whose AUC PrivLeak compares


@dataclass(frozen=True)
class Result:
    """What one file says about one model: ``metrics`` recomputed where the examples allow it, else the file's own;
    ``examples``, a row per question: split, id, prob, rougeL_recall, truth_ratio (R), prompt, gold, generation, …"""

    path: Path
    kind: str
    settings: dict[str, Any]
    metrics: dict[str, float]
    examples: pd.DataFrame
    notes: tuple[str, ...]

    @property
    def source(self) -> dict[str, Any]:
        """Where it is from, and what to know of it: settings of the result where it is written again."""
        return {"source": self.kind, "file": str(self.path), "notes": list(self.notes)}

    def truth_ratios(self) -> pd.Series:
        """R of every forget question by its row: what forget quality compares."""
        forget = self.examples[self.examples["split"] == "forget"]
        if "truth_ratio" not in forget or not forget["truth_ratio"].notna().any():
            there = f"splits with examples: {', '.join(self.examples['split'].unique()) or 'none'}"
            raise ConfigError(f"{self.path}: has no truth ratios of the forget set (forget quality); {there}")
        return forget["truth_ratio"].dropna()


def read(path: str | Path, retrained: Result | None = None, semantics: str | None = None) -> Result:
    """A result file of OpenUnlearning, TOFU or this program, checked against its own examples. ``retrained``: the same
    data's file of a model that never saw the forget set, for forget quality and PrivLeak; ``semantics``: other than the
    file's own. ``ConfigError`` for files that are neither, are damaged, or lack what is asked for."""
    path = Path(path)
    if semantics not in (None, ARITHMETIC, *SEMANTICS):
        raise ConfigError(f"semantics={semantics!r}: must be one of {', '.join(SEMANTICS)}, {ARITHMETIC}")
    if not path.is_file():
        near = ", ".join(sorted(p.name for p in path.parent.glob("*.json"))) if path.parent.is_dir() else ""
        raise ConfigError(f"{path}: no such file; JSON files in that folder: {near or 'none'}")
    try:
        raw = read_json(path)
    except ValueError as error:
        raise ConfigError(str(error)) from None
    kind = OURS if isinstance(raw, dict) and {"format", "metrics"} <= set(raw) else foreign.kind(raw)
    if kind is None:
        found = f"its keys: {', '.join(list(raw)[:4])}" if isinstance(raw, dict) else f"a {type(raw).__name__}"
        ours = "what python -m unlearn.evaluate model=… out=FILE writes"
        known = f"OpenUnlearning's TOFU_EVAL.json, TOFU's eval_log_aggregated.json, or {ours}"
        raise ConfigError(f"{path} ({found}): must be {known}")
    reader = {foreign.OPENUNLEARNING: foreign.openunlearning, foreign.TOFU: foreign.tofu, OURS: _ours}[kind]
    logged, claims = reader(raw, path)
    settings = raw.get("settings") or {} if kind == OURS else {}
    settings = settings | {"semantics": semantics or OWN_SEMANTICS.get(kind) or settings.get("semantics", "default")}
    examples, metrics, notes = _recompute(logged, settings["semantics"])
    if retrained is not None:
        metrics |= _against(Result(path, kind, settings, metrics, examples, ()), retrained, notes)
    metrics |= _claimed(claims, metrics, notes, ours=kind == OURS)
    return Result(path, kind, settings, metrics, examples, tuple(notes))


def write(
    path: Path, model: str, settings: Mapping[str, Any], metrics: Mapping[str, Any], examples: pd.DataFrame
) -> None:
    """A result in this program's own format: ``path`` and the table of examples beside it."""
    path.parent.mkdir(parents=True, exist_ok=True)
    write_whole(examples_of(path), lambda p: examples.to_parquet(p, index=False))
    write_json(path, {"format": FORMAT, "model": model, "settings": settings, "metrics": metrics})


def examples_of(path: Path) -> Path:
    """Where the table of examples of an evaluation in our format lies."""
    return path.with_name(f"{path.stem}.examples.parquet")


def _ours(raw: dict[str, Any], path: Path) -> Logged:
    if raw["format"] != FORMAT or not isinstance(raw["metrics"], dict):
        raise ConfigError(f"{path}: format {raw['format']!r}; this program reads {FORMAT}, with a mapping of metrics")
    table = examples_of(path)
    if not table.is_file():
        raise ConfigError(f"{path}: its table of examples is missing; it must lie beside it, as {table.name}")
    numbers = {k: float(v) for k, v in raw["metrics"].items() if isinstance(v, int | float) and not isinstance(v, bool)}
    return pd.read_parquet(table), numbers


def _recompute(examples: pd.DataFrame, semantics: str) -> tuple[pd.DataFrame, dict[str, float], list[str]]:
    """The table with every per-example value that follows from others, the aggregates, and what is incomplete."""
    dialect = SEMANTICS.get(semantics, SEMANTICS["tofu"])  # of the published tables, too
    epsilon, tables, metrics, notes = dialect.epsilon, {}, {}, []
    for split, table in examples.groupby("split", sort=False):
        found = _values(str(split), table, semantics, dialect)
        if "rougeL_recall" in found and "gold" in table and dialect.rouge is ASCII:
            if share := dropped(list(table["gold"].dropna()) or [""]):
                notes.append(f"{split}: {share:.0%} of the answers have letters that ROUGE of {semantics} drops")
        metrics |= tofu.aggregates(str(split), {k: v.map(np.mean).to_numpy() for k, v in found.items()}, epsilon)
        tables[split] = table.assign(**{name: values.reindex(table.index) for name, values in found.items()})
        for name, values in found.items():
            if len(values) < len(table):
                notes.append(f"{split}/{name}: {len(table) - len(values)} of {len(table)} examples have no value")
    if "holdout" in tables and "forget" in tables:
        for name in (c for c in examples.columns if c.startswith("mia_")):
            scores = [tables[split][name].dropna() for split in ("forget", "holdout")]
            if all(map(len, scores)):
                metrics[f"mia/{name.removeprefix('mia_')}"] = auc(*scores)
    if all(name in metrics for name in PARTS):
        metrics["model_utility"] = tofu.model_utility(metrics)
    return pd.concat(tables.values()) if tables else examples, metrics, notes


def _values(split: str, table: pd.DataFrame, semantics: str, dialect: Semantics) -> dict[str, pd.Series]:
    """Values of the examples that have any, by metric: computed where the file allows it, else as it has them."""
    if "nll" not in table and "prob" in table:
        table = table.assign(nll=-np.log(table["prob"]))
    epsilon = dialect.epsilon
    ratio = partial(_arithmetic if semantics == ARITHMETIC else tofu.truth_ratio, epsilon=epsilon)
    compared = "nll" if split in GENERAL and "paraphrased_nll" not in table else "paraphrased_nll"
    sources = {
        "prob": (tofu.probability, "nll"), "paraphrased_prob": (tofu.probability, "paraphrased_nll"),
        "rougeL_recall": (dialect.rouge.recalls, "generation", "gold"),
        RATIO: (ratio, compared, "wrong_nll"),
    }  # fmt: skip
    if split in GENERAL:
        sources["prob_options"] = (partial(tofu.probability_with_options, epsilon=epsilon), "nll", "wrong_nll")
    found = {}
    for name, (function, *columns) in sources.items():
        if len(rows := _with(table, *columns)):
            values = pd.Series(function(*(list(rows[column]) for column in columns)), index=rows.index).dropna()
            found |= {name: values} if len(values) else {}
    for name in (*sources, "prob_options", "wrong_prob", *MEANS):
        if name not in found and len(rows := _with(table, name)):
            found[name] = rows[name]
            if name == RATIO and semantics == ARITHMETIC:
                raise ConfigError(f"semantics={semantics}: needs the NLL of every wrong answer, and {split} has none")
    return found


def _arithmetic(right: Sequence[float], wrong: Sequence[Sequence[float]], epsilon: float) -> np.ndarray:
    """R over the NLL of the wrong answers' mean probability: the geometric mean of one is that one."""
    return tofu.truth_ratio(right, [[-logsumexp(-np.asarray(w), b=1 / np.size(w))] for w in wrong], epsilon)


def _with(table: pd.DataFrame, *columns: str) -> pd.DataFrame:
    """The rows that have all of these; none where a column is missing."""
    return table.dropna(subset=list(columns)) if set(columns) <= set(table.columns) else table.iloc[:0]


def _against(result: Result, retrained: Result, notes: list[str]) -> dict[str, float]:
    """Forget quality and PrivLeak against the retrained model's file; notes what makes the two files unequal."""
    theirs, found = retrained.truth_ratios(), {}
    dialects = [r.settings["semantics"] for r in (result, retrained)]
    if dialects[0] != dialects[1] and ARITHMETIC in dialects:
        raise ConfigError(f"{result.path}: semantics {dialects[0]}, but {retrained.path}: {dialects[1]}")
    if "forget/truth_ratio" in result.metrics:
        own = result.truth_ratios()
        pairs, said = _same_questions(result.examples.loc[own.index], retrained.examples.loc[theirs.index])
        if not said:
            notes.append(f"forget_quality: no texts here or in {retrained.path}: rows are compared by their index")
        if len(pairs) < max(len(own), len(theirs)):
            counts = f"on the {len(pairs)} questions in both: {len(own)} here, {len(theirs)} in {retrained.path}"
            notes.append(f"forget_quality: {counts}; p-values of other numbers of questions are not comparable")
        if pairs:
            here, there = zip(*pairs, strict=True)
            found |= tofu.forget_quality(list(own[list(here)]), list(theirs[list(there)]))
    aucs = [r.metrics.get(ATTACK) for r in (result, retrained)]
    if None not in aucs:
        found["privleak"] = privleak(*aucs)
    elif aucs[0] is not None:
        notes.append(f"privleak: left out, as {retrained.path} has no {ATTACK} to compare with")
    return found


def _same_questions(own: pd.DataFrame, theirs: pd.DataFrame) -> tuple[list[tuple[int, int]], bool]:
    """Rows of the same question and answer in both tables, and whether both say what was asked: one prompt holds the
    other, since a template may stand around it. Without texts: rows of one index."""
    if not all({"prompt", "gold"} <= set(t) and t[["prompt", "gold"]].notna().all(axis=None) for t in (own, theirs)):
        places = dict(zip(theirs["id"], theirs.index, strict=True))
        return [(row, places[id]) for row, id in own["id"].items() if id in places], False
    left = defaultdict(dict)
    for row, asked, gold in theirs[["prompt", "gold"]].itertuples():
        left[letters(gold)][row] = letters(asked)
    pairs = []
    for row, asked, gold in own[["prompt", "gold"]].itertuples():
        asked, known = letters(asked), left[letters(gold)]
        same = next((other for other, prompt in known.items() if asked in prompt or prompt in asked), None)
        if same is not None:
            pairs.append((row, same))
            del known[same]
    return pairs, True


def _claimed(claims: dict[str, float], metrics: dict[str, float], notes: list[str], ours: bool) -> dict[str, float]:
    """What the file alone says; notes where it says something else than its own examples give."""
    for name, claim in claims.items():
        # equal but for rounding: models are often evaluated in half precision; a p-value has no absolute scale
        near = {"rel_tol": 1e-3, "abs_tol": 0 if name == "forget_quality" else 1e-4}
        if name in metrics and not math.isclose(claim, metrics[name], **near):
            notes.append(f"{name}: the file says {claim:.6g}, its examples give {metrics[name]:.6g}")
    kept = {name: claim for name, claim in claims.items() if name not in metrics}
    auc = (metrics | kept).get(ATTACK, 1.0)
    # OpenUnlearning silently takes .5 for the retrained model's AUC where it has none; at 1 any AUC gives −100.
    if "privleak" in kept and auc < 1 and math.isclose(kept["privleak"], (0.5 - auc) * 200, abs_tol=1e-3):
        against = f"privleak: the file's {kept.pop('privleak'):.6g} is against .5, not a retrained model: left out"
        notes += [] if ours else [against]
    if kept and not ours:
        notes.append(f"{', '.join(kept)}: as the file says, which has no examples to recompute this from")
    return kept
