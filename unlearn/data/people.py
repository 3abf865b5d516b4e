"""Data of people: whose rows are to be forgotten, and texts in which nobody is named (EUL, arXiv 2310.20150, §4.1)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from unlearn.data.rows import Row


def cut(
    rows: Iterable[Row], forget: Collection[str], gone: Collection[str] = ()
) -> tuple[tuple[Row, ...], tuple[Row, ...]]:
    """Rows to be forgotten, which name one of ``forget``; and rows to be retained, which name nobody of either.

    Rows that name one of ``gone`` are neither: an earlier request has deleted them.
    """
    left = [row for row in rows if not set(row.entities) & set(gone)]
    here = [bool(set(row.entities) & set(forget)) for row in left]
    return (
        tuple(row for row, asked in zip(left, here, strict=True) if asked),
        tuple(row for row, asked in zip(left, here, strict=True) if not asked),
    )


def unnamed(row: Row, words: Sequence[str]) -> Row:
    """The row with a word in the place of each of its names, in question and answers: the first name's is ``words[0]``,
    that of all after the last one ``words[-1]``."""
    by_name = {name: words[min(k, len(words) - 1)] for k, name in enumerate(row.entities)}
    if not by_name:
        return row
    longest = sorted(by_name, key=lambda name: (-len(name), name))
    pattern = re.compile(rf"(?<!\w)(?:{'|'.join(map(re.escape, longest))})(?!\w)")

    def said(text: str) -> str:
        return pattern.sub(lambda match: by_name[match.group()], text)

    others = tuple(map(said, row.perturbed_answers))
    return replace(row, question=said(row.question), answer=said(row.answer), perturbed_answers=others, entities=())
