"""Result files of other projects as one table of examples: OpenUnlearning's TOFU_EVAL.json, TOFU's own aggregated log.

Both hold, per question, mean NLLs of the right, the paraphrased and the wrong answers, the generation and its ROUGE;
TOFU (arXiv 2401.06121) has no aggregates, so those of its logged per-example values are what its file claims.
"""

from collections import defaultdict
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pandas as pd

from unlearn.config.schema import ConfigError
from unlearn.evaluation.metrics.tofu import aggregates

OPENUNLEARNING, TOFU = "openunlearning", "tofu"
GENERAL = ("real_authors", "world_facts")
BARE = ("model_utility", "forget_quality", "privleak")  # of no split
PREFIXES = {"forget": "forget", "retain": "retain", "ra": "real_authors", "wf": "world_facts"}
# OpenUnlearning's metric without its prefix → the metric of ours that its aggregate is, and what its per-example fields
# are; a field that is not listed keeps its name
METRICS = {
    "Q_A_Prob": ("prob", {"prob": "prob", "avg_loss": "nll"}),
    "Q_A_Prob_normalised": ("prob_options", {"prob": "prob_options"}),
    "Q_A_ROUGE": ("rougeL_recall", {"input": "prompt", "ground_truth": "gold"}),
    "Truth_Ratio": ("truth_ratio", {"score": "truth_ratio"}),
    "truth_ratio": ("truth_ratio", {"score": "truth_ratio"}),
    "Q_A_PARA_Prob": ("paraphrased_prob", {"prob": "paraphrased_prob", "avg_loss": "paraphrased_nll"}),
    "Q_A_PERT_Prob": ("wrong_prob", {"prob": "wrong_prob", "avg_loss": "wrong_nll"}),
}
TOFU_FILES = {
    "eval_log_forget.json": "forget", "eval_log.json": "retain",
    "eval_real_author_wo_options.json": "real_authors", "eval_real_world_wo_options.json": "world_facts",
}  # fmt: skip
TOFU_COLUMNS = {
    "avg_gt_loss": "nll", "avg_paraphrased_loss": "paraphrased_nll", "average_perturb_loss": "wrong_nll",
    "truth_ratio": "truth_ratio", "rougeL_recall": "rougeL_recall", "rouge1_recall": "rouge1_recall",
    "gt_loss": "nll_sum", "paraphrased_loss": "paraphrased_nll_sum", "perturb_loss": "wrong_nll_sum",
    "num_token_gt": "tokens", "num_token_paraphrased": "paraphrased_tokens", "num_token_perturb": "wrong_tokens",
    "normalized_gt_loss": "options_nll",
}  # fmt: skip
TOFU_NEEDED = ("avg_gt_loss", "average_perturb_loss")


# What a file says: one row per question (NaN where the file has no value), and its aggregates by our names.
Logged = tuple[pd.DataFrame, dict[str, float]]


def kind(raw: Any) -> str | None:
    """Whose file this is; None for neither."""
    if not isinstance(raw, dict):
        return None
    if any(name in TOFU_FILES for name in raw):
        return TOFU
    return OPENUNLEARNING if any(_parts(name)[1] in METRICS or name in BARE for name in raw) else None


def openunlearning(raw: Mapping[str, Any], path: Path) -> Logged:
    """OpenUnlearning's TOFU_EVAL.json; also its TOFU_SUMMARY.json, which has aggregates alone."""
    tables, claims = defaultdict(dict), {}
    for name, entry in raw.items():
        place = f"{path}: {name}"
        if name.startswith("mia_"):
            claims |= _number(entry, f"mia/{name.removeprefix('mia_')}", place)
            for split in ("forget", "holdout"):
                if isinstance(entry, dict) and split in entry:
                    tables[split][name] = scores = _by_index(entry[split], f"{place}/{split}")["score"]
                    if name == "mia_loss":  # the score of this attack is the mean NLL itself
                        tables[split].setdefault("nll", scores)
            continue
        split, metric = _parts(name)
        ours, fields = METRICS.get(metric, (metric, {"score": metric}))
        claims |= _number(entry, name if name in BARE else f"{split}/{ours}", place)
        if isinstance(entry, dict) and "value_by_index" in entry:
            for field, values in _by_index(entry, place).items():
                unknown = field if metric in METRICS else f"{metric}_{field}"
                tables[split][fields.get(field, unknown)] = values
    return _table(tables), claims


def tofu(raw: Mapping[str, Any], path: Path) -> Logged:
    tables = {}
    for name, log in raw.items():
        if name not in TOFU_FILES:
            continue
        absent = [key for key in TOFU_NEEDED if key not in log] if isinstance(log, dict) else list(TOFU_NEEDED)
        if absent:
            raise ConfigError(f"{path}: {name} lacks {', '.join(absent)}; it must have {', '.join(TOFU_NEEDED)}")
        columns = {ours: _series(log[key], f"{path}: {name}/{key}") for key, ours in TOFU_COLUMNS.items() if key in log}
        if "generated_text" in log:
            texts = _series(log["generated_text"], f"{path}: {name}/generated_text")
            if not texts.map(lambda said: isinstance(said, list) and len(said) == 3).all():
                raise ConfigError(f"{path}: {name}/generated_text: must be [prompt, generation, gold] per index")
            columns |= {ours: texts.str[at] for at, ours in enumerate(("prompt", "generation", "gold"))}
        if "options_nll" in columns:
            columns["prob_options"] = np.exp(-columns.pop("options_nll"))
        tables[TOFU_FILES[name]] = columns
    examples, claims = _table(tables), {}
    for split, table in examples.groupby("split", sort=False):
        for column in ("rougeL_recall", "rouge1_recall", "prob_options", "truth_ratio"):
            values = table[column].dropna() if column in table else ()
            if len(values):
                claims[f"{split}/{column}"] = aggregates(str(split), {column: values})[f"{split}/{column}"]
    return examples, claims


def _parts(name: str) -> tuple[str, str]:
    """OpenUnlearning's metric as split and rest; what has no prefix (exact_memorization, …) is of the forget set."""
    prefix, _, rest = name.partition("_")
    return (PREFIXES[prefix], rest) if prefix in PREFIXES else ("forget", name)


def _number(entry: Any, ours: str, place: str) -> dict[str, float]:
    """The aggregate of an entry; nothing where the file says null."""
    value = entry.get("agg_value") if isinstance(entry, dict) else entry
    if value is None:
        return {}
    if isinstance(value, bool) or not isinstance(value, int | float):
        raise ConfigError(f"{place}: the aggregate must be a number or null, found {value!r:.60}")
    return {ours: float(value)}


def _by_index(entry: Any, place: str) -> dict[str, pd.Series]:
    """Per-example fields of an entry, each by index; null for a whole example means that it has none of them."""
    values = entry.get("value_by_index") if isinstance(entry, dict) else None
    if not isinstance(values, dict) or not all(isinstance(v, dict | None) for v in values.values()):
        raise ConfigError(f"{place}/value_by_index: must be a mapping from index to fields, found {values!r:.60}")
    fields = dict.fromkeys(field for value in values.values() for field in value or {})
    return {field: _series({i: (v or {}).get(field) for i, v in values.items()}, place) for field in fields}


def _series(values: Any, place: str) -> pd.Series:
    """One column by index: numbers as floats; lists of numbers, and texts, as they are."""
    if not isinstance(values, dict) or not values:
        raise ConfigError(f"{place}: must be a mapping from index to value, with at least one; found {values!r:.60}")
    known = [v for v in values.values() if v is not None]
    for v in known:
        if isinstance(v, list) and not (v and all(isinstance(x, int | float | str) for x in v)):
            raise ConfigError(f"{place}: a list must hold numbers or texts, at least one; found {v!r:.60}")
    same = next((t for t in (int | float, str, list) if all(isinstance(v, t) for v in known)), None)
    if same is None:
        raise ConfigError(f"{place}: values must be all numbers, texts or lists; found {known[0]!r:.30} and others")
    return pd.Series(list(values.values()), index=list(values), dtype="float64" if same == int | float else "object")


def _table(tables: Mapping[str, Mapping[str, pd.Series]]) -> pd.DataFrame:
    """All splits below each other, rows in the order of their indices; ids are those that our TOFU reader gives."""
    frames = []
    for split, columns in tables.items():
        table = pd.DataFrame(dict(columns))
        order = sorted(table.index, key=lambda i: (0, int(i), "") if i.isdigit() else (1, 0, i))
        ids = [f"{split}/{int(i):04d}" if i.isdigit() else f"{split}/{i}" for i in order]
        frames.append(pd.DataFrame({"split": split, "id": ids}, index=order).join(table))
    return pd.concat(frames, ignore_index=True) if frames else pd.DataFrame(columns=["split", "id"])
