"""Metrics of texts alone: ROUGE as ``rouge_score`` 0.1.2 computes it, and of words in any script; and fluency.

ROUGE's longest common subsequence is RapidFuzz's and stems are cached: the same values at a twentieth of the time.
Fluency is n-gram entropy in bits (ROME, arXiv 2202.05262, after Zhang et al. 2018), of words by a pattern instead of
NLTK's tokeniser, which needs a download. It grows with length: compare models whose answers are about as long.
OpenUnlearning's fluency is another thing: a classifier's probability that a text is not gibberish.
"""

import math
from collections import Counter
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from functools import lru_cache

import numpy as np
import regex
from nltk.stem.porter import PorterStemmer
from rapidfuzz.distance import LCSseq
from rouge_score.tokenize import tokenize

from unlearn.data.texts import WORD, words_of

PIECE = regex.compile(rf"{WORD.pattern}|[^\w\s]")  # words, and punctuation marks one by one
WEIGHTS = {2: 2 / 3, 3: 4 / 3}  # n → weight; they sum to their number, so the mean stays one in bits
OTHER_LETTER = regex.compile(r"(?V1)[\p{L}--\p{ASCII}]")


class CachedStemmer:
    """Porter's stemmer with a memory: answers repeat their words, and stemming is most of ROUGE's cost."""

    stem = staticmethod(lru_cache(maxsize=100_000)(PorterStemmer().stem))


def words(text: str, stemmer: type[CachedStemmer] | None) -> list[str]:
    """A text's words in any script, as stems of those of more than three letters where there is a stemmer."""
    found = words_of(text)
    return found if stemmer is None else [stemmer.stem(word) if len(word) > 3 else word for word in found]


@dataclass(frozen=True)
class Rouge:
    """ROUGE over the words into which one dialect splits a text."""

    words: Callable[[str, type[CachedStemmer] | None], list[str]]
    nothing: float = math.nan  # of a gold text without words: no value

    @property
    def seeing(self) -> "Rouge":
        """The same without a value where it sees nothing: of metrics that are not the dialect's own."""
        return replace(self, nothing=math.nan)

    def recall(self, said: str, gold: str) -> float:
        """ROUGE-L recall: share of the gold text's Porter stems in the longest common subsequence."""
        found, wanted = (self.words(text, CachedStemmer) for text in (said, gold))
        return LCSseq.similarity(found, wanted) / len(wanted) if wanted else self.nothing

    def recalls(self, said: Sequence[str], golds: Sequence[str]) -> np.ndarray:
        """``recall`` of each pair, [B]."""
        return np.array([self.recall(*pair) for pair in zip(said, golds, strict=True)])

    def l_f1(self, said: str, gold: str, stemmer: bool = True) -> float:
        """2 PR / (P + R) of the longest common subsequence of words; 0 where nothing was said."""
        found, wanted = (self.words(text, CachedStemmer if stemmer else None) for text in (said, gold))
        # with P = c / |found| and R = c / |wanted|
        return 2 * LCSseq.similarity(found, wanted) / (len(found) + len(wanted)) if wanted else self.nothing

    def n_f1(self, said: str, gold: str, n: int) -> float:
        """2 PR / (P + R) of the n-grams of stems that both have, each as often as the one that has it less often."""
        stems = (self.words(text, CachedStemmer) for text in (said, gold))
        found, wanted = (Counter(zip(*(w[k:] for k in range(n)), strict=False)) for w in stems)
        both = (found & wanted).total()
        return 2 * both / (found.total() + wanted.total()) if wanted else self.nothing


ANY_SCRIPT = Rouge(words)
ASCII = Rouge(tokenize, nothing=0.0)  # of rouge_score: any other letter ends a word, and is dropped


def dropped(texts: Sequence[str]) -> float:
    """Share of the texts with letters that ``ASCII`` does not see."""
    return sum(OTHER_LETTER.search(text) is not None for text in texts) / len(texts)


def ngram_entropy(text: str) -> float:
    """½ (2/3 · H_2 + 4/3 · H_3), bits, with H_n the entropy of the text's n-grams; 0 for less than three words."""
    pieces, total = PIECE.findall(text), 0.0
    for n, weight in WEIGHTS.items():
        counts = np.array(list(Counter(zip(*(pieces[i:] for i in range(n)), strict=False)).values()), dtype=np.float64)
        shares = counts / counts.sum() if counts.size else counts
        total += weight * abs(float((shares * np.log2(shares)).sum()))  # abs: a single n-gram gives −0
    return total / len(WEIGHTS)


def fluency(texts: Sequence[str]) -> np.ndarray:
    """N-gram entropy of each text, bits, [B]."""
    return np.array([ngram_entropy(t) for t in texts])


def relative_fluency(generations: Sequence[str], golds: Sequence[str]) -> np.ndarray:
    """min(1, H(generation) / H(gold)) of the pairs that have one, in [0, 1]. A gold answer without entropy (one or two
    words, or one word repeated) is left out; where none is left, that is refused."""
    found, expected = fluency(generations), fluency(golds)
    if not expected.any():
        raise ValueError(f"relative fluency: none of {len(golds)} gold answers has two different word pairs or triples")
    return np.minimum(found[expected > 0] / expected[expected > 0], 1)
