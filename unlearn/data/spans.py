"""Questions as texts: with words masked, for models that have an encoder (T5's span corruption), or word by word.

In a masked text each run of masked words is one sentinel; the answer names them in order, each followed by what it
stands for, and ends with the next one (arXiv 1910.10683, §3.1.4). Masked are names, where a row knows some.
"""

import re
from collections.abc import Iterable
from dataclasses import dataclass
from itertools import pairwise

import numpy as np

from unlearn.config.data import TemplateConfig
from unlearn.data.encoding import Encoder, Example, Examples
from unlearn.data.rows import DataError, Row
from unlearn.data.texts import names_in
from unlearn.store.identity import digest

SENTINEL, SENTINELS = "<extra_id_{}>", 32  # as T5 names them; and how many a text may hold here (T5 has 100)
PREFIX = "Predict the masked word:"  # of EUL's own code for T5 (arXiv 2310.20150)
TEMPLATE = TemplateConfig(prompt=f"{PREFIX} {{question}}", answer=" {answer}")
SHARE, LENGTH = 0.15, 3  # of the words that are masked at random, and how many stand together (arXiv 1910.10683)

Span = tuple[int, int]  # characters of a text, from … to (exclusive)


@dataclass(frozen=True)
class Text:
    """A row's text with what is masked in it."""

    id: str
    text: str
    spans: tuple[Span, ...]  # in order, apart from each other

    @property
    def masked(self) -> str:
        """The text with a sentinel for each span."""
        edges = [0, *(edge for span in self.spans for edge in span), len(self.text)]
        between = [self.text[a:b] for a, b in zip(edges[::2], edges[1::2], strict=True)]
        return between[0] + "".join(f"{SENTINEL.format(k)}{part}" for k, part in enumerate(between[1:]))

    @property
    def answer(self) -> str:
        """What the sentinels stand for."""
        told = [f"{SENTINEL.format(k)} {self.text[a:b]}" for k, (a, b) in enumerate(self.spans)]
        return " ".join([*told, SENTINEL.format(len(self.spans))])


def text_of(row: Row) -> Text | None:
    """A row's text: its question, with their names masked, where people are named in it; else question and answer, with
    random words masked. None where that is too short to mask a word of it."""
    if row.entities:
        found = tuple(match.span() for match in names_in(row.entities).finditer(row.question))
        if not found:
            raise DataError(f"row {row.id!r}: none of its names {row.entities} stands in its question")
        return Text(row.id, row.question, found[: SENTINELS - 1])
    text = f"{row.question} {row.answer}"
    spans = _random(text)
    return Text(row.id, text, spans) if spans else None


def _random(text: str) -> tuple[Span, ...]:
    """Runs of words, ``SHARE`` of all, the same for the same text; words at both ends of a run that touch are one."""
    words = [match.span() for match in re.finditer(r"\S+", text)]
    if len(words) < 2:
        return ()
    random = np.random.default_rng(int(digest(text), 16))
    count = max(1, round(SHARE * len(words) / LENGTH))
    length = max(1, round(SHARE * len(words) / count))
    starts = random.choice(max(1, len(words) - length), size=min(count, SENTINELS - 1), replace=False)
    hidden = sorted({start + k for start in starts.tolist() for k in range(length)})
    breaks = [0, *(i + 1 for i, (one, other) in enumerate(pairwise(hidden)) if other > one + 1), len(hidden)]
    return tuple((words[hidden[a]][0], words[hidden[b - 1]][1]) for a, b in pairwise(breaks))


def examples(encoder: Encoder, rows: Iterable[Row], masks: bool) -> Examples:
    """The texts of rows that have one, as ``<row's id>/text``. ``masks``, for a model with an encoder: the prompt is
    the masked text, the answer what was masked. Else the text's first token is the prompt, the others the answer."""
    texts = [text for row in rows if (text := text_of(row)) is not None]
    if not masks:
        return Examples(_plain(encoder, text)[0] for text in texts)
    if SENTINEL.format(SENTINELS - 1) not in encoder.tokenizer.get_vocab():
        choices = "T5's own, or one that is trained here with pair.target.architecture=t5"
        raise DataError(f"this tokenizer has not all of <extra_id_0> to <extra_id_{SENTINELS - 1}>: take {choices}")
    twin = Encoder(encoder.tokenizer, TEMPLATE, encoder.max_length, marked=True)
    for text in texts:
        if (named := encoder.special(text.text)) is not None:
            raise DataError(f"text of row {text.id!r} holds {named!r}, which this tokenizer reads as a special token")
    return Examples(twin.example(f"{text.id}/text", text.masked, text.answer) for text in texts)


def _plain(encoder: Encoder, text: Text) -> tuple[Example, list[Span]]:
    """The text as a prompt writes it, as one example; and where in it the tokens of its answer stand (without EOS)."""
    said = encoder.template.prompt.format(question=text.text)
    splits, before = encoder.splits(f"text of row {text.id!r}", text.text), said.index(text.text)
    read = encoder.tokenizer(said, return_offsets_mapping=True, split_special_tokens=splits)
    eos = encoder.tokenizer.eos_token_id
    ids, places = list(read["input_ids"]), [(a - before, b - before) for a, b in read["offset_mapping"]]
    if ids[-1] == eos:
        ids, places = ids[:-1], places[:-1]
    if not 2 <= len(ids) < encoder.max_length:
        raise DataError(f"text of row {text.id!r} has {len(ids) + 1} tokens: must be 3 to {encoder.max_length}")
    return Example(f"{text.id}/text", (ids[0],), (*ids[1:], eos)), places[1:]


def of_names(encoder: Encoder, rows: Iterable[Row], masks: bool) -> tuple[Examples, list[list[int]]]:
    """As ``examples`` of rows that name somebody; and which tokens of each answer are of names."""
    rows = [row for row in rows if row.entities]
    if masks:
        found = examples(encoder, rows, masks)
        sentinels = encoder.tokenizer.convert_tokens_to_ids([SENTINEL.format(k) for k in range(SENTINELS)])
        other = {*sentinels, encoder.tokenizer.eos_token_id}
        return found, [[t for t, token in enumerate(e.answer) if token not in other] for e in found]
    found, inside = Examples(), []
    for text in map(text_of, rows):
        example, places = _plain(encoder, text)
        tokens = [t for t, (a, b) in enumerate(places) if any(a < end and start < b for start, end in text.spans)]
        if tokens:  # a name that is the first token is never predicted
            found.append(example)
            inside.append(tokens)
    return found, inside
