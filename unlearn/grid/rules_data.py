"""What the settings of real data sets may be; whether their files are usable is the readers' to say."""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from unlearn.config.data import (
    NUMBERED,
    RETAINED,
    BiosConfig,
    DataConfig,
    DialoguesConfig,
    JsonlConfig,
    MuseConfig,
    PeopleConfig,
    ReviewsConfig,
    TofuConfig,
    WordsConfig,
)
from unlearn.grid.need import a_file, at_least, need, one_of, share

TOFU_SETS = ("forget01", "forget05", "forget10")
OWN_FILES = ("forget", "retain", "real_authors", "world_facts", "holdout", "refusals")
CORPORA = ("news", "books")
MUSE_RETAIN = ("raw/retain1", "raw/retain2", "knowmem/retain_qa")
MUSE_FORGET = {"books": ("raw/forget", "knowmem/forget_qa")}
MUSE_FORGET["news"] = (*MUSE_FORGET["books"], *(f"{kind}/forget_{n}" for kind in ("scal", "sust") for n in range(1, 5)))


def real_data(data: DataConfig) -> Iterator[str]:
    """A data set that is read, not made; and the requests of any."""
    yield from _requests(data)
    if isinstance(data, TofuConfig):
        yield from one_of("data.forget", data.forget, TOFU_SETS)
        if data.retain_rows is not None:
            yield from at_least("data.retain_rows", data.retain_rows, 1)
    if isinstance(data, JsonlConfig):
        for key in OWN_FILES:
            value = getattr(data, key)
            yield from need(_files(value), f"data.{key}", value, "must be a file, a list of files [A,B], or null")
        yield from _words(data.words)
    if isinstance(data, MuseConfig):
        yield from one_of("data.corpus", data.corpus, CORPORA)
        if data.corpus in CORPORA:
            yield from one_of("data.forget", data.forget, MUSE_FORGET[data.corpus])
        yield from one_of("data.retain", data.retain, MUSE_RETAIN)
        if data.shots is not None:
            yield from at_least("data.shots", data.shots, 0)
        yield from _words(data.words)


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
    if data.retained is not None:
        yield from one_of("data.retained", data.retained, RETAINED)
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
        fine = all(request is not None and request != [] and _files(request) for request in asked)
        yield from need(fine, "data.requests", asked, rule)
    elif isinstance(data, PeopleConfig):
        fine = all(isinstance(some, list) and some and all(isinstance(name, str) for name in some) for some in asked)
        yield from need(fine, "data.requests", asked, "must be lists of names, [[ANNA],[BEN,CARL]]")
    else:
        rule = f"each must be one of {', '.join(TOFU_SETS)}, or a file of questions and answers"
        yield from need(all(isinstance(name, str) and name for name in asked), "data.requests", asked, rule)


def _whole(value: Any) -> bool:
    return isinstance(value, int) and not isinstance(value, bool)


PEOPLE = 1500  # made-up names there are


def of_people(data: DataConfig) -> Iterator[str]:
    """Data whose rows name people: made here, or read."""
    if isinstance(data, ReviewsConfig | DialoguesConfig):
        each = "reviews" if isinstance(data, ReviewsConfig) else "dialogues"
        for key in ("people", each, f"test_{each}", f"general_{each}"):
            yield from at_least(f"data.{key}", getattr(data, key), 3 if key == "people" else 1)
        yield from need(data.people <= PEOPLE, "data.people", data.people, f"there are {PEOPLE} names")
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
    if isinstance(data, ReviewsConfig):
        yield from need(1 <= data.opinions <= 16, "data.opinions", data.opinions, "must lie between 1 and 16")
        yield from share("data.agree", data.agree)
    if isinstance(data, PeopleConfig):
        given = [key for key in ("names", "pattern") if getattr(data, key) is not None]
        rule = "nobody is recognised in texts here: give data.names=FILE (a name in each line) or data.pattern=REGEX"
        yield from need(len(given) == 1, "data.names", data.names, f"{rule}, one of the two")
        if data.names is not None:
            yield from a_file("data.names", data.names)
        if data.pattern is not None:
            rule = "must be a regular expression with a group, which is the name"
            yield from need(_grouped(data.pattern), "data.pattern", data.pattern, rule)
        yield from need(0 < data.share < 1, "data.share", data.share, "must lie between 0 and 1, both excluded")
        yield from need(len(data.words) > 0, "data.words", data.words, "needs a word at least, e.g. [_person_]")
        for key in ("most_words", "rows"):
            if getattr(data, key) is not None:
                yield from at_least(f"data.{key}", getattr(data, key), 2)


def _grouped(pattern: str) -> bool:
    try:
        return re.compile(pattern).groups >= 1
    except re.error:
        return False


def _files(value: Any) -> bool:
    return value is None or all(isinstance(v, str) and v for v in (value if isinstance(value, list) else [value]))


def _words(words: WordsConfig) -> Iterator[str]:
    for key in ("prompt", "answer"):
        yield from at_least(f"data.words.{key}", getattr(words, key), 1)
