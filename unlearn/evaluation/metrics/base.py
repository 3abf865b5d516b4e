"""A function that compares two samples as a metric of Hugging Face's ``evaluate``, loaded from no hub."""

import tempfile
from collections.abc import Callable, Sequence
from pathlib import Path

import datasets
import evaluate


class Metric(evaluate.Metric):
    """``Metric(f).compute(predictions=[…], references=[…])`` is ``f([…], […])``, kept in memory."""

    def __init__(self, function: Callable[[Sequence[float], Sequence[float]], dict[str, float]]):
        self._compute = function
        # evaluate makes a folder even for metrics kept in memory; a read-only home must not stop a run
        super().__init__(keep_in_memory=True, cache_dir=str(Path(tempfile.gettempdir()) / "unlearn-metrics"))

    def _info(self) -> evaluate.MetricInfo:
        features = datasets.Features(dict.fromkeys(("predictions", "references"), datasets.Value("float64")))
        return evaluate.MetricInfo(
            description=self._compute.__doc__, citation="", inputs_description="", features=features
        )
