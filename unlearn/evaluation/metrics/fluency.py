"""Fluency of generations: do they read like text, or like the same words over and over?

The literature's: n-gram entropy (Meng et al. 2022, ROME, arXiv 2202.05262, after Zhang et al. 2018). Per text, the mean
of bigram and trigram entropy with weights 2/3 and 4/3, in bits. Ours: words by a pattern instead of NLTK's tokeniser,
which needs a download; the answers alone, where ROME's texts begin with their prompt; and ``relative_fluency``, which
brings it to [0, 1] by the gold answers' own entropy. OpenUnlearning's fluency is another thing: a classifier's
probability that a text is no gibberish.

The entropy grows with length: an answer of a few words falls short of a long gold answer however well it reads, so
compare models whose answers are about as long.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Sequence

import numpy as np

from unlearn.evaluation.metrics.arrays import averaged, same_length

WORD = re.compile(r"\w+|[^\w\s]")  # words, and punctuation marks one by one
WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # n → weight; they sum to their number, so the mean stays one in bits


def ngram_entropy(text: str) -> float:
    """½ (2/3 · H_2 + 4/3 · H_3), bits, with H_n the entropy of the text's n-grams; 0 for less than three words."""
    words = WORD.findall(text)
    return sum(weight * _entropy(words, n) for n, weight in WEIGHTS.items()) / len(WEIGHTS)


def fluency(texts: Sequence[str]) -> dict:
    """``fluency`` = mean n-gram entropy, bits; per text under ``values``, [B]."""
    if len(texts) == 0:
        raise ValueError("fluency needs at least one text; there are none")
    return averaged("fluency", np.array([ngram_entropy(t) for t in texts]))


def relative_fluency(generations: Sequence[str], golds: Sequence[str]) -> dict:
    """``relative_fluency`` = mean of min(1, H(generation) / H(gold)); per pair under ``values``, [B], in [0, 1].

    A gold answer without entropy (one or two words, or one word repeated) says nothing: its value is NaN and the mean
    leaves it out. Where none is left, there is no measure, and that is refused.
    """
    same_length(generations=generations, golds=golds)
    found, expected = fluency(generations)["values"], fluency(golds)["values"]
    if not expected.any():
        raise ValueError(f"relative fluency: none of {len(golds)} gold answers has two different word pairs or triples")
    values = np.full(len(golds), np.nan)
    np.divide(found, expected, out=values, where=expected > 0)
    values = np.minimum(values, 1)
    return {"relative_fluency": float(np.nanmean(values)), "values": values}


def _entropy(words: Sequence[str], n: int) -> float:
    counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
    shares = counts / counts.sum() if counts.size else counts
    return abs(float((shares * np.log2(shares)).sum()))  # abs: a single n-gram gives −0
