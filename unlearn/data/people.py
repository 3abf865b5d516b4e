"""Data of people: who is to be forgotten, whose rows these are, and texts that name nobody (EUL, arXiv 2310.20150)."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import replace
from typing import Any

from unlearn.config.data import DataConfig, is_whole
from unlearn.config.setting import need
from unlearn.data.rows import Requested, Row, divide
from unlearn.data.texts import names_in


class Numbered(DataConfig):
    """Settings of a data set of made-up people, who have numbers: 0 to ``people`` − 1."""

    people: int

    def are_requests(self, requests: list[Any]) -> tuple[bool, str]:
        if all(is_whole(n) for n in requests):
            rule = f"numbers of people: each at least 1, and together fewer than data.people={self.people}"
            return all(n >= 1 for n in requests) and sum(requests) < self.people, rule
        rule = f"must be numbers of people [1,2], or disjoint lists [[3],[4,5]] of some of 0 to {self.people - 1}"
        if not all(isinstance(named, list) and named for named in requests):
            return False, rule
        named = [n for some in requests for n in some]
        known = all(is_whole(n) and 0 <= n < self.people for n in named)
        return known and len(set(named)) == len(named) < self.people, rule


class Deletable(Numbered):
    """Settings of made-up people: the last ``forget_people``, or ``forget``, or requests go; ``gone`` are nowhere."""

    forget_people: int
    forget: list[int] | None
    gone: list[int]

    def most(self) -> int:
        """How many can be forgotten."""
        return self.people - 1

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.nothing_else(forget="null", gone="empty")
        most, last = self.most(), self.people - 1
        rule = f"must be 1 to {most} with data.people={self.people}: somebody must be left to retain"
        yield from need(1 <= self.forget_people <= most, "data.forget_people", self.forget_people, rule)
        rule = f"must be different numbers from 0 to {last}, no more than {most}, none of them in data.gone"
        forget = self.forget or []
        known = self.forget != [] and len(set(forget)) == len(forget) <= most and all(0 <= i <= last for i in forget)
        yield from need(known and not set(forget) & set(self.gone), "data.forget", self.forget, rule)
        rule = f"must be numbers from 0 to {last}"
        yield from need(all(0 <= i <= last for i in self.gone), "data.gone", self.gone, rule)


def who(requests: Sequence[int] | Sequence[Sequence[int]], people: int) -> list[list[int]]:
    """The people of each request; of numbers of people the last ones, the first request first."""
    if not all(isinstance(count, int) for count in requests):
        return [list(named) for named in requests]
    ends = [people - sum(requests[i + 1 :]) for i in range(len(requests))]
    return [list(range(end - count, end)) for end, count in zip(ends, requests, strict=True)]


def numbered(
    rows: Sequence[Row], names: Sequence[str], last: Sequence[int], cfg: Deletable
) -> tuple[dict[str, tuple[Row, ...]], Requested | None]:
    """The splits of people by their number: ``cfg.forget``, or else the ``last``, are to be forgotten, or requests."""
    forget = [names[i] for i in (last if cfg.forget is None else cfg.forget)]
    requests = None if cfg.requests is None else [[names[i] for i in some] for some in who(cfg.requests, len(names))]
    return divided(rows, cfg, forget, requests, [names[i] for i in cfg.gone])


def divided(
    rows: Sequence[Row],
    cfg: DataConfig,
    forget: Collection[str],
    requests: Sequence[Collection[str]] | None,
    gone: Collection[str] = (),
) -> tuple[dict[str, tuple[Row, ...]], Requested | None]:
    """Rows to be forgotten, which name one of ``forget``, and to be retained, which name nobody of it; in neither are
    those that name one of ``gone``. Or the splits of ``requests``: a row that names several belongs to the first."""
    if requests is None:
        left = [row for row in rows if not set(row.entities) & set(gone)]
        named = {row.id for row in left if set(row.entities) & set(forget)}
        kept = tuple(row for row in left if row.id not in named)
        return {"forget": tuple(row for row in left if row.id in named), "retain": kept}, None
    asked, taken = [], set()
    for people in requests:
        asked.append([row for row in rows if row.id not in taken and set(row.entities) & set(people)])
        taken |= {row.id for row in asked[-1]}
    return divide(rows, asked, cfg)


def unnamed(row: Row, words: Sequence[str]) -> Row:
    """The row with words instead of its names, in question and answers; ``words[-1]`` for all after the last."""
    by_name = {name: words[min(k, len(words) - 1)] for k, name in enumerate(row.entities)}
    if not by_name:
        return row
    pattern = names_in(by_name)
    question, answer, *others = (
        pattern.sub(lambda match: by_name[match.group()], text)
        for text in (row.question, row.answer, *row.perturbed_answers)
    )
    return replace(row, question=question, answer=answer, perturbed_answers=tuple(others), entities=())
