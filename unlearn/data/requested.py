"""Requests: forget sets that are asked for one after another, over one target that knows them all.

A reader gives the rows that may be asked for, in an order that no request changes, and which of them each request
names. So target, tokenizer and anchor stay what they are however many requests there come, and in whatever order.
What is unlearnt is one request (or several at once); every other one is a split of its own, ``request_1``, ….
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from unlearn.config.data import DataConfig
from unlearn.data.rows import REQUEST, DataError, Requested, Row, pair


@dataclass(frozen=True)
class Asked:
    """The settings ``data.requests``, ``data.request`` and ``data.retained``."""

    requests: Sequence[Any]  # each in the form of its reader
    request: int | Sequence[int] | None
    retained: str | None

    @classmethod
    def of(cls, cfg: DataConfig) -> Asked | None:
        return None if cfg.requests is None else cls(cfg.requests, cfg.request, cfg.retained)

    @property
    def numbers(self) -> tuple[int, ...]:
        """The requests that are unlearnt, from 1."""
        if self.request is None:
            return tuple(range(1, len(self.requests) + 1))
        return (self.request,) if isinstance(self.request, int) else tuple(sorted(self.request))


def divide(
    rows: Sequence[Row], named: Sequence[Sequence[Row]], asked: Asked
) -> tuple[dict[str, tuple[Row, ...]], Requested]:
    """The splits ``forget``, ``retain`` and ``request_<n>``, and the sequence that they are one view of.

    ``named``: the rows of each request, all of them among ``rows``. The retain set holds what no request names, and,
    as ``asked.retained`` says, the rows of later or earlier requests or of both. Raises ``DataError`` for requests
    that are empty or share a row.
    """
    place = {row.id: i for i, row in enumerate(rows)}
    requests = tuple(tuple(sorted(request, key=lambda row: place[row.id])) for request in named)
    _disjoint(requests)
    numbers, last = asked.numbers, max(asked.numbers)
    other = [n for n in range(1, len(requests) + 1) if n not in numbers]
    kept = [n for n in other if asked.retained == "others" or asked.retained == ("later" if n > last else "earlier")]
    left_out = {row.id for n, request in enumerate(requests, 1) if n not in kept for row in request}
    wanted = {row.id for n in numbers for row in requests[n - 1]}
    splits = {
        "forget": tuple(row for row in rows if row.id in wanted),
        "retain": tuple(row for row in rows if row.id not in left_out),
    }
    return splits | {f"{REQUEST}{n}": requests[n - 1] for n in other}, Requested(tuple(rows), requests, numbers)


def who(requests: Sequence[int] | Sequence[Sequence[int]], people: int) -> list[list[int]]:
    """The people of each request; of numbers of people the last ones, the first request first."""
    if not all(isinstance(count, int) for count in requests):
        return [list(named) for named in requests]
    ends = [people - sum(requests[i + 1 :]) for i in range(len(requests))]
    return [list(range(end - count, end)) for end, count in zip(ends, requests, strict=True)]


def _disjoint(requests: Sequence[Sequence[Row]]) -> None:
    first: dict[tuple[str, str], int] = {}
    for n, request in enumerate(requests, 1):
        if not request:
            raise DataError(f"data.requests: request {n} names no row that those before it do not; leave it out")
        for row in request:
            other = first.setdefault(pair(row), n)
            if other != n:
                raise DataError(
                    f"data.requests: {row.place or row.id}: {row.question!r} is asked for by request {other} and by "
                    f"request {n}; requests must be disjoint"
                )
