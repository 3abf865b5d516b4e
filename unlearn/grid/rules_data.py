"""What the settings of real data sets may be; whether their files are usable is the readers' to say."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

from unlearn.config.data import (
    NUMBERED,
    TOFU_SETS,
    BiosConfig,
    DataConfig,
    DialoguesConfig,
    JsonlConfig,
    MuseConfig,
    PeopleConfig,
    ReviewsConfig,
    is_files,
)
from unlearn.config.schema import Config
from unlearn.config.setting import need

MUSE_FORGET = {"books": ("raw/forget", "knowmem/forget_qa")}
MUSE_FORGET["news"] = (*MUSE_FORGET["books"], *(f"{kind}/forget_{n}" for kind in ("scal", "sust") for n in range(1, 5)))


def data(cfg: Config) -> Iterator[str]:
    """The requests of a data set, and what its reader needs."""
    data = cfg.data
    yield from _requests(data)
    if isinstance(data, MuseConfig) and data.corpus in MUSE_FORGET:
        choices = MUSE_FORGET[data.corpus]
        yield from need(data.forget in choices, "data.forget", data.forget, f"must be one of {', '.join(choices)}")
    if isinstance(data, BiosConfig):
        rule = f"the forget set needs at least 1 person and must leave one to retain: 1 to {data.people - 1} with "
        rule += f"data.people={data.people}"
        yield from need(1 <= data.forget_people < data.people, "data.forget_people", data.forget_people, rule)
    if isinstance(data, ReviewsConfig | DialoguesConfig):
        yield from _of_people(data)
    if isinstance(data, PeopleConfig):
        rule = "nobody is recognised in texts here: give data.names=FILE (a name in each line) or data.pattern=REGEX"
        yield from need(
            (data.names is None) != (data.pattern is None), "data.names", data.names, f"{rule}, one of the two"
        )


def _requests(data: DataConfig) -> Iterator[str]:
    """The list of forget sets, each in the form that the data set's reader takes, and which of them is meant."""
    asked, rule = data.requests, "is one of data.requests, and there are none"
    if asked is None:
        for key in ("request", "retained"):
            yield from need(getattr(data, key) is None, f"data.{key}", getattr(data, key), rule)
        return
    if isinstance(data, MuseConfig):
        yield f"data.requests={asked!r}: data sets of every reader but muse have requests"
        return
    yield from need(isinstance(asked, list) and len(asked) > 0, "data.requests", asked, "must be a list of forget sets")
    if not isinstance(asked, list):
        return
    numbers, most = data.request if isinstance(data.request, list) else [data.request], len(asked)
    fine = data.request is None or (
        len(numbers) > 0 and all(_whole(n) and 1 <= n <= most for n in numbers) and len(set(numbers)) == len(numbers)
    )
    rule = f"must be a number from 1 to {most}, a list of different ones, or null: all of data.requests"
    yield from need(fine, "data.request", data.request, rule)
    if isinstance(data, ReviewsConfig | DialoguesConfig | PeopleConfig | JsonlConfig):
        rule = "data.requests names what is to be forgotten: must be null"
        yield from need(data.forget is None, "data.forget", data.forget, rule)
    if isinstance(data, ReviewsConfig | DialoguesConfig):
        yield from need(not data.gone, "data.gone", data.gone, "data.requests names who is asked for: must be empty")
    yield from _people(data, asked) if isinstance(data, NUMBERED) else _named(data, asked)


def _people(data: BiosConfig | ReviewsConfig | DialoguesConfig, asked: list) -> Iterator[str]:
    if all(_whole(n) for n in asked):
        fine = all(n >= 1 for n in asked) and sum(asked) < data.people
        rule = f"numbers of people: each at least 1, and together fewer than data.people={data.people}"
    else:
        lists = [p for p in asked if isinstance(p, list) and p]
        named = [n for people in lists for n in people]
        fine = len(lists) == len(asked) and all(_whole(n) and 0 <= n < data.people for n in named)
        fine = fine and len(set(named)) == len(named) < data.people
        rule = f"must be numbers of people [1,2], or disjoint lists [[3],[4,5]] of some of 0 to {data.people - 1}"
    yield from need(fine, "data.requests", asked, rule)


def _named(data: DataConfig, asked: list) -> Iterator[str]:
    if isinstance(data, JsonlConfig):
        rule = "each must be a file, or a list of files"
        fine = all(request is not None and request != [] and is_files(request) for request in asked)
        yield from need(fine, "data.requests", asked, rule)
    elif isinstance(data, PeopleConfig):
        fine = all(isinstance(some, list) and some and all(isinstance(name, str) for name in some) for some in asked)
        yield from need(fine, "data.requests", asked, "must be lists of names, [[ANNA],[BEN,CARL]]")
    else:
        rule = f"each must be one of {', '.join(TOFU_SETS)}, or a file of questions and answers"
        yield from need(all(isinstance(name, str) and name for name in asked), "data.requests", asked, rule)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


def _of_people(data: ReviewsConfig | DialoguesConfig) -> Iterator[str]:
    """Who is forgotten, and who is gone already."""
    most = data.people - 1 if isinstance(data, ReviewsConfig) else data.people // 2 - 1
    rule = f"must be 1 to {most} with data.people={data.people}: somebody must be left to retain"
    yield from need(1 <= data.forget_people <= most, "data.forget_people", data.forget_people, rule)
    rule = f"must be different numbers from 0 to {data.people - 1}, no more than {most}, none of them in data.gone"
    forget = data.forget if data.forget is not None else []
    here = len(set(forget)) == len(forget) <= most and all(0 <= i < data.people for i in forget)
    apart = not set(forget) & set(data.gone) and (data.forget is None or len(forget) > 0)
    yield from need(here and apart, "data.forget", data.forget, rule)
    rule = f"must be numbers from 0 to {data.people - 1}"
    yield from need(all(0 <= i < data.people for i in data.gone), "data.gone", data.gone, rule)
