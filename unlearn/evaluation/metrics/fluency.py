"""Fluency of generations: n-gram entropy in bits (ROME, arXiv 2202.05262, after Zhang et al. 2018).

Words by a pattern instead of NLTK's tokeniser, which needs a download, and the answers alone, where ROME's texts begin
with their prompt. The entropy grows with length: compare models whose answers are about as long. OpenUnlearning's
fluency is another thing: a classifier's probability that a text is no gibberish.
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
    words, total = WORD.findall(text), 0.0
    for n, weight in WEIGHTS.items():
        counts = np.array(list(Counter(zip(*(words[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
        shares = counts / counts.sum() if counts.size else counts
        total += weight * abs(float((shares * np.log2(shares)).sum()))  # abs: a single n-gram gives −0
    return total / len(WEIGHTS)


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
