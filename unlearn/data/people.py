"""Data of people: whose rows are to be forgotten, and texts in which nobody is named (EUL, arXiv 2310.20150, §4.1)."""

from __future__ import annotations

import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import replace

from unlearn.data.requested import Asked, divide, who
from unlearn.data.rows import Requested, Row


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


def divided(
    rows: Sequence[Row], names: Sequence[str], forget: Sequence[int], gone: Sequence[int], asked: Asked | None
) -> tuple[dict[str, tuple[Row, ...]], Requested | None]:
    """The splits of people by their number: as ``cut`` makes them, or those of requests."""
    if asked is not None:
        return requested(rows, [[names[i] for i in some] for some in who(asked.requests, len(names))], asked)
    to_forget, retain = cut(rows, [names[i] for i in forget], [names[i] for i in gone])
    return {"forget": to_forget, "retain": retain}, None


def requested(
    rows: Sequence[Row], requests: Sequence[Collection[str]], asked: Asked
) -> tuple[dict[str, tuple[Row, ...]], Requested]:
    """The splits of requests by people: a row that names several belongs to the first request of one of them."""
    named, taken = [], set()
    for people in requests:
        mine = [row for row in rows if row.id not in taken and set(row.entities) & set(people)]
        taken |= {row.id for row in mine}
        named.append(mine)
    return divide(rows, named, asked)


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
