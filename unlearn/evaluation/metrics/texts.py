"""Metrics of texts alone: ROUGE as ``rouge_score`` 0.1.2 computes it, and fluency.

ROUGE's longest common subsequence is RapidFuzz's and stems are cached: the same values at a twentieth of the time.
Fluency is n-gram entropy in bits (ROME, arXiv 2202.05262, after Zhang et al. 2018), of words by a pattern instead of
NLTK's tokeniser, which needs a download. It grows with length: compare models whose answers are about as long.
OpenUnlearning's fluency is another thing: a classifier's probability that a text is no gibberish.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence
from functools import lru_cache

import numpy as np
from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize

WORD = re.compile(r"\w+|[^\w\s]")  # words, and punctuation marks one by one
WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # n → weight; they sum to their number, so the mean stays one in bits


def recalls_of(generations: Sequence[str], golds: Sequence[str]) -> np.ndarray:
    """``recall`` of each pair, [B]."""
    return np.array([recall(said, gold) for said, gold in zip(generations, golds, strict=True)])


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


def ngram_entropy(text: str) -> float:
    """½ (2/3 · H_2 + 4/3 · H_3), bits, with H_n the entropy of the text's n-grams; 0 for less than three words."""
    words, total = WORD.findall(text), 0.0
    for n, weight in WEIGHTS.items():
        counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
        shares = counts / counts.sum() if counts.size else counts
        total += weight * abs(float((shares * np.log2(shares)).sum()))  # abs: a single n-gram gives −0
    return total / len(WEIGHTS)


def fluency(texts: Sequence[str]) -> np.ndarray:
    """N-gram entropy of each text, bits, [B]."""
    return np.array([ngram_entropy(t) for t in texts])


def relative_fluency(generations: Sequence[str], golds: Sequence[str]) -> np.ndarray:
    """min(1, H(generation) / H(gold)) of the pairs that have one, in [0, 1].

    A gold answer without entropy (one or two words, or one word repeated) says nothing and is left out. Where none is
    left, there is no measure, and that is refused.
    """
    found, expected = fluency(generations), fluency(golds)
    if not expected.any():
        raise ValueError(f"relative fluency: none of {len(golds)} gold answers has two different word pairs or triples")
    return np.minimum(found[expected > 0] / expected[expected > 0], 1)
