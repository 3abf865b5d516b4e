"""What our ``evaluate.Metric`` subclasses share: they are instantiated directly, never loaded from a hub.

A metric's ``compute`` returns the aggregate under the metric's name and the per-example values under ``values``.
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import datasets
import evaluate

NUMBERS = datasets.Value("float64")
TEXTS = datasets.Value("string")
LISTS = datasets.Sequence(NUMBERS)


class LocalMetric(evaluate.Metric):
    """An ``evaluate.Metric`` that keeps its inputs in memory and describes itself by its docstring."""

    predictions: datasets.Features = NUMBERS
    references: datasets.Features | None = None

    def __init__(self, **kwargs):
        # evaluate makes a folder even for metrics kept in memory; a read-only home must not stop a run
        kwargs.setdefault("cache_dir", str(Path(tempfile.gettempdir()) / "unlearn-metrics"))
        super().__init__(keep_in_memory=True, **kwargs)

    def _info(self) -> evaluate.MetricInfo:
        features = {"predictions": self.predictions}
        if self.references is not None:
            features["references"] = self.references
        return evaluate.MetricInfo(
            description=self.__doc__ or "", citation="", inputs_description="", features=datasets.Features(features)
        )
