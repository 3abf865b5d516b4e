"""A result file as the retrained reference of a suite; refused where it was made of other rows, or otherwise."""

from __future__ import annotations

from collections.abc import Callable, Mapping

import pandas as pd

from unlearn.config.schema import ConfigError
from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation import others
from unlearn.evaluation.groups.context import Measured
from unlearn.evaluation.metrics.ou_aggregates import ATTACKS
from unlearn.evaluation.others import Result
from unlearn.evaluation.suite import SCORED, Split, Suite
from unlearn.store.identity import GROUP_SETTINGS


def from_file(path: str, suite: Suite, models: Mapping[str, Callable[[], Ensemble]] | None = None) -> Measured:
    """What ``python -m unlearn.evaluate model=… out=FILE``, OpenUnlearning or TOFU wrote of a retrained model."""
    found = others.read(path, semantics=suite.cfg.semantics)
    _comparable(path, found, suite)
    return Measured(found.metrics, found.examples, models or {})


def _comparable(given: str, found: Result, suite: Suite) -> None:
    """A reference of other rows, or made otherwise, would give differences that mean nothing."""
    for name in ("forget", *SCORED):
        split, theirs = suite.split(name), found.examples[found.examples["split"] == name]
        if split is not None and (len(theirs) or name == "forget"):
            _same_rows(f"retrained={given}: has {len(theirs)} {name} rows", theirs, split)
    for key in ("template", *GROUP_SETTINGS["leak"]):
        theirs, ours = found.settings.get(key), suite.settings.get(key)
        if None not in (theirs, ours) and theirs != ours:
            raise ConfigError(f"retrained={given}: was made with {key} {theirs}, and this is with {ours}")
    attacks = [f"mia/{a}" for a in ATTACKS] if "summary" in suite.cfg.groups else ["mia/min_k"]
    lacking = [a for a in attacks if a not in found.metrics]
    if lacking and "privacy" in suite.cfg.groups:
        raise ConfigError(
            f"retrained={given}: eval.groups privacy and summary compare attacks, and it has no {', '.join(lacking)}; "
            "leave these groups out, or give the retrained model itself"
        )


def _same_rows(begin: str, theirs: pd.DataFrame, split: Split) -> None:
    """Their number, and what they are about: other projects' gold texts may differ in spaces, so most must agree."""
    if len(theirs) != len(split.rows):
        raise ConfigError(
            f"{begin}, and {len(split.rows)} are evaluated; it must be of the same data set with the same data.forget "
            "and eval.semantics"
        )
    if "gold" in theirs and theirs["gold"].notna().all():
        same = [gold.strip() == r.answer.strip() for gold, r in zip(theirs["gold"], split.rows, strict=True)]
        if 2 * sum(same) < len(same):
            at = same.index(False)
            raise ConfigError(
                f"{begin}, but others than are evaluated, or in another order: the first has the answer "
                f"{theirs['gold'].iloc[at]!r} in the place of {split.rows[at].answer!r}"
            )
