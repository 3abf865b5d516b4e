"""ROUGE-N F1 of texts: shared n-grams of Porter stems, as ``rouge_score`` 0.1.2 computes it."""

from __future__ import annotations

from collections import Counter

from unlearn.evaluation.metrics.rouge import tokens


def rouge_n_f1(prediction: str, reference: str, n: int) -> float:
    """2 PR / (P + R) of the n-grams that both have, each as often as the one that has it less often; 0 where either
    text has none."""
    found, gold = (_grams(tokens(text), n) for text in (prediction, reference))
    both = sum((found & gold).values())
    return 2 * both / (found.total() + gold.total()) if both else 0.0


def _grams(words: list[str], n: int) -> Counter[tuple[str, ...]]:
    return Counter(zip(*(words[k:] for k in range(n)), strict=False))
