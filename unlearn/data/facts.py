"""Whether a text tells a fact, as a reader would say: the rule behind the metric ``known``.

A fact is a text in one or several spellings, and a text tells it where the words of one of them stand in it, side by
side and in order. Not distinguished: capital and small letters; accents and other marks on letters that readers omit
(é and e, ё and е, ø and o, Arabic and Hebrew vowel points, the hamza on a letter; й is a letter of its own);
widths, ligatures, and the digits of all scripts (١٩٦٩ and 1969); what stands between words (Jean-Luc and Jean Luc, U.S.
and U S). Words are whole: "Paris" is neither in "Parisian" nor in "comparison", but in "Paris's"; and C++ is not C.
Where a script puts no spaces between words (Chinese, Japanese, Thai …), or hangs particles on names (Korean), any place
counts. Other forms of a word ("Париже"), translations, abbreviations are spellings of their own: a key may have them.
"""

import math
import unicodedata
from collections.abc import Collection, Iterable

import regex

from unlearn.data.rows import as_read
from unlearn.data.texts import UNSPACED

HANGUL = "\uac00-\ud7a3"
# one letter of a script without spaces, a word, or a symbol that distinguishes names (C and C++, 5 and $5)
PIECE = regex.compile(
    rf"(?V1)[{UNSPACED}{HANGUL}]\p{{M}}*|[[\p{{L}}\p{{N}}\p{{M}}]--[{UNSPACED}{HANGUL}]]+"
    r"(?:(?<=\p{L})[+#]+(?![\p{L}\p{N}]))?|[\p{S}#%&@]"
)
# marks of Latin, Greek, Cyrillic, Hebrew and Arabic letters, with the stroke that lengthens a word; not those of kana
MARKS = regex.compile(r"[\u0300-\u0305\u0307-\u036f\u0591-\u05c7\u0610-\u061a\u0640\u064b-\u065f\u0670]|(?<!и)\u0306")
DIGIT = regex.compile(r"[\p{Nd}--[0-9]]", regex.V1)
READ_AS = str.maketrans({
    "ł": "l", "ø": "o", "đ": "d", "ħ": "h", "ŧ": "t", "ð": "d", "ı": "i", "æ": "ae", "œ": "oe",
    "・": " ", "ʼ": " ", "ʻ": " ",  # signs between words, which Unicode calls letters
})  # fmt: skip


def told(text: str, spellings: Iterable[str]) -> bool:
    said = _pieces(text)
    return any(_pieces(spelling) in said for spelling in spellings)


def tells(text: str, key: Collection[str]) -> float:
    """Whether the text tells the key of a row, 1 or 0; NaN where the row has none."""
    return float(told(text, key)) if key else math.nan


def sayable(spelling: str) -> bool:
    """Whether there is anything in a spelling that could be found."""
    return bool(_pieces(spelling).strip())


def _pieces(text: str) -> str:
    """The words of a text with a space around each."""
    read = as_read(text)
    if not read.isascii():
        read = DIGIT.sub(lambda digit: str(unicodedata.digit(digit[0])), read)
        read = unicodedata.normalize("NFC", MARKS.sub("", unicodedata.normalize("NFD", read.translate(READ_AS))))
    return f" {' '.join(PIECE.findall(read))} "
