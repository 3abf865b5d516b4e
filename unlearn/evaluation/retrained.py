"""The retrained model's results, which metrics compare with; those of other rows, or made otherwise, are refused."""

import logging
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import pandas as pd

from unlearn.config.groups import literal
from unlearn.config.schema import ConfigError
from unlearn.data.rows import letters
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation import others
from unlearn.evaluation.metrics.membership import ATTACKS
from unlearn.evaluation.suite import SCORED, Split, Suite

log = logging.getLogger(__name__)


@dataclass(frozen=True)
class Measured:
    """The retrained model's metrics and examples, and the models themselves where they are at hand."""

    metrics: Mapping[str, Any]
    examples: pd.DataFrame
    models: Mapping[str, Callable[[], Ensemble]] = field(default_factory=dict)  # target, retrained; loaded when asked

    def has(self, split: str, name: str) -> bool:
        """Whether examples of the split have values; NaN are those of which the metric saw nothing."""
        rows = self.examples[self.examples["split"] == split]
        return name in rows and bool(rows[name].notna().any())

    def column(self, split: str, name: str) -> np.ndarray:
        """Per-example values of one split; a reference without them is refused with what it has."""
        rows = self.examples[self.examples["split"] == split]
        if not self.has(split, name):
            has = ", ".join(c for c in rows if rows[c].notna().any()) or "nothing"
            raise ConfigError(f"the retrained reference has no {name} of the {split} split; it has {has}")
        return rows[name].to_numpy()

    def of(self, name: str, split: Split) -> np.ndarray:
        """Per-example values of the rows of a split, by their ids; NaN where there is none."""
        rows = self.examples[self.examples["split"] == split.name].set_index("id")
        return rows[name].reindex([row.id for row in split.rows]).to_numpy()


def from_file(path: str, suite: Suite, models: Mapping[str, Callable[[], Ensemble]] | None = None) -> Measured:
    """What ``unlearn.evaluate out=FILE``, OpenUnlearning or TOFU wrote of a retrained model; refused if not alike."""
    found = others.read(path, semantics=suite.cfg.semantics)
    for name in ("forget", *SCORED):
        split, theirs = suite.split(name), found.examples[found.examples["split"] == name]
        if split is not None and (len(theirs) or name == "forget"):
            _same_rows(f"retrained={path}: has {len(theirs)} {name} rows", theirs, split)
    for key in ("template", *literal("leak", "SETTINGS")):
        theirs, ours = found.settings.get(key), suite.settings.get(key)
        if None not in (theirs, ours) and theirs != ours:
            raise ConfigError(f"retrained={path}: was made with {key} {theirs}, and this is with {ours}")
    attacks = [f"mia/{a}" for a in ATTACKS] if "summary" in suite.cfg.groups else ["mia/min_k"]
    lacking = [a for a in attacks if a not in found.metrics]
    if lacking and "privacy" in suite.cfg.groups:
        rule = "leave the groups privacy and summary out, or give the retrained model itself"
        raise ConfigError(f"retrained={path}: has no {', '.join(lacking)}; {rule}")
    return Measured(found.metrics, found.examples, models or {})


def _same_rows(begin: str, theirs: pd.DataFrame, split: Split) -> None:
    """Their number, and what they are about: other projects' gold texts may differ in spaces, so most must agree."""
    if len(theirs) != len(split.rows):
        rule = "must be of the same data set with the same data.forget and eval.semantics"
        raise ConfigError(f"{begin}, and {len(split.rows)} are evaluated; {rule}")
    if "gold" in theirs and theirs["gold"].notna().all():
        same = [letters(gold) == letters(r.answer) for gold, r in zip(theirs["gold"], split.rows, strict=True)]
        if 2 * sum(same) < len(same):
            at = same.index(False)
            first = f"the first has the answer {theirs['gold'].iloc[at]!r} instead of {split.rows[at].answer!r}"
            raise ConfigError(f"{begin}, but others than are evaluated, or in another order: {first}")
        if not all(same):
            log.warning("%s, %d of them with other answers than are evaluated", begin, len(same) - sum(same))
