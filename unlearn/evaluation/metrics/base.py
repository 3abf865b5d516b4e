"""Any metric function as a metric of Hugging Face's ``evaluate``: described by its signature, loaded from no hub."""

from __future__ import annotations

import tempfile
from collections.abc import Callable
from pathlib import Path

import datasets
import evaluate

NUMBER = datasets.Value("float64")
FEATURES = {
    "Sequence[float]": NUMBER,
    "Sequence[str]": datasets.Value("string"),
    "Sequence[Sequence[float]]": datasets.Sequence(NUMBER),
}


class Metric(evaluate.Metric):
    """``Metric(probability).compute(predictions=[…])`` is ``probability([…])``, kept in memory.

    The function takes ``predictions`` and, if it compares, ``references``, annotated as in ``FEATURES``; its other
    parameters are settings of ``compute``.
    """

    def __init__(self, function: Callable[..., dict]):
        self._compute = function
        # evaluate makes a folder even for metrics kept in memory; a read-only home must not stop a run
        super().__init__(keep_in_memory=True, cache_dir=str(Path(tempfile.gettempdir()) / "unlearn-metrics"))

    def _info(self) -> evaluate.MetricInfo:
        kinds = self._compute.__annotations__
        features = {name: FEATURES[kinds[name]] for name in ("predictions", "references") if name in kinds}
        described = {"description": self._compute.__doc__ or "", "citation": "", "inputs_description": ""}
        return evaluate.MetricInfo(**described, features=datasets.Features(features))
