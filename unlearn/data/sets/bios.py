"""The embedded data set: a made-up world of authors and countries, in TOFU's shape, generated from a seed.

It exists so that the whole program runs in minutes with nothing downloaded. Every (person, question) draws its own
answer wording, so the wording must be memorised too: a model that never saw a person scores low on ROUGE.
Easy to get wrong: each person, country and permutation has its own generator, keyed by role and index, never one
shared stream. That is why a smaller forget set is the end of a larger one, text for text, and why the general facts
stay the same when ``people`` changes.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass, replace

from unlearn.config.data import is_whole
from unlearn.config.setting import at_least, between, need, setting
from unlearn.data.made_up import CITIES, COUNTRIES, COUNTRY, FIRST, LAST, PERSON, REFUSALS, WOMEN, Attribute, Draw
from unlearn.data.people import Numbered, who
from unlearn.data.requested import divide
from unlearn.data.rows import DataError, DataSet, Requested, Row

VERSION = 1  # part of the run hash: raise it whenever the same arguments give other text
NAMES = len(FIRST) * len(LAST)
WRONG = 5  # perturbed answers of fictional people
WRONG_GENERAL = 3  # of well-known people and countries, as TOFU has it


@dataclass
class Settings(Numbered):
    people: int = 50
    forget_people: int = 5
    holdout_people: int = setting(5, at_least(0))
    known_people: int = setting(20, at_least(1))
    countries: int = setting(30, at_least(1))
    questions: int = setting(20, between(1, 20))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        rule = f"the forget set needs at least 1 person and must leave one to retain: 1 to {self.people - 1} with "
        rule += f"data.people={self.people}"
        yield from need(1 <= self.forget_people < self.people, "data.forget_people", self.forget_people, rule)


@dataclass(frozen=True)
class Fact:
    """One attribute of one subject: the values and the order of wordings drawn for it."""

    attribute: Attribute
    words: dict[str, str]  # what a template may name besides the value
    value: str
    wrong: tuple[str, ...]
    order: tuple[int, ...]  # of the answer wordings: canonical, paraphrase, the others

    def answer(self, wording: int, value: str | None = None) -> str:
        return self.attribute.answers[wording].format(v=value or self.value, **self.words)

    def question(self, wording: int) -> str:
        return self.attribute.questions[wording].format(**self.words)


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """The world of ``seed``; the last ``forget_people`` of the fictional people are the forget set, unless requests
    name theirs: numbers of people, the last ones, or lists of which."""
    _check(cfg, seed)
    names = Draw("bios", VERSION, seed, "names").shuffled([(first, last) for first in FIRST for last in LAST])
    # Well-known people take names from the far end, so the number of fictional people does not change who they are.
    far = names[::-1]
    fictional = _people("fictional", names[: cfg.people], seed, cfg.questions)
    known = _people("known", far[: cfg.known_people], seed, cfg.questions)
    others = far[cfg.known_people : cfg.known_people + cfg.holdout_people]
    holdout = _people("holdout", others, seed, cfg.questions)
    world = _countries(cfg.countries, seed)
    forgotten, sequence = _divided(fictional, cfg)
    return DataSet(
        name="bios",
        splits={
            **forgotten,
            "real_authors": _rows("real_authors", known, general=True),
            "world_facts": _rows("world_facts", world, general=True),
            "holdout": _rows("holdout", holdout),
        },
        wordings=_wordings("real_authors", known) + _wordings("world_facts", world),
        refusals=REFUSALS,
        sequence=sequence,
    )


def _divided(fictional: Sequence[list[Fact]], cfg: Settings) -> tuple[dict[str, tuple[Row, ...]], Requested | None]:
    if cfg.requests is None:
        first = len(fictional) - cfg.forget_people
        forget = _rows("forget", fictional[first:], start=first)
        return {"forget": forget, "retain": _rows("retain", fictional[:first])}, None
    each = [_rows("people", [facts], start=i) for i, facts in enumerate(fictional)]
    named = [[row for person in people for row in each[person]] for people in who(cfg.requests, len(each))]
    return divide([row for rows in each for row in rows], named, cfg)


def _people(role: str, names: Sequence[tuple[str, str]], seed: int, questions: int) -> list[list[Fact]]:
    return [
        _person(Draw("bios", VERSION, seed, role, index), first, last, PERSON[:questions])
        for index, (first, last) in enumerate(names)
    ]


def _person(draw: Draw, first: str, last: str, attributes: Sequence[Attribute]) -> list[Fact]:
    he, him, his = ("she", "her", "her") if first in WOMEN else ("he", "him", "his")
    words = {"name": f"{first} {last}", "last": last, "he": he, "him": him, "his": his, "His": his.capitalize()}
    facts: list[Fact] = []
    # Nobody marries or learns from a namesake, and the three books of one person are three titles.
    titles: set[str] = set()
    for attribute in attributes:
        fact = _fact(draw, attribute, words, WRONG, taken={first, last} | titles)
        facts.append(fact)
        if attribute.key.endswith("_book"):
            titles.add(fact.value)
    return facts


def _countries(number: int, seed: int) -> list[list[Fact]]:
    capitals = Draw("bios", VERSION, seed, "capitals").shuffled(CITIES)  # no two countries share one
    world = []
    for index, (name, capital) in enumerate(zip(COUNTRIES[:number], capitals, strict=False)):
        draw = Draw("bios", VERSION, seed, "country", index)
        given = {"capital": capital}
        world.append([_fact(draw, a, {"name": name}, WRONG_GENERAL, given=given.get(a.key)) for a in COUNTRY])
    return world


def _fact(
    draw: Draw,
    attribute: Attribute,
    words: dict[str, str],
    wrong: int,
    taken: Collection[str] = (),
    given: str | None = None,
) -> Fact:
    order = tuple(draw.shuffled(range(len(attribute.answers))))
    values = [given or draw.value(attribute, taken)]
    while len(values) <= wrong:
        values.append(draw.value(attribute, {*taken, *values}))
    return Fact(attribute, words, values[0], tuple(values[1:]), order)


def _rows(split: str, subjects: Sequence[list[Fact]], start: int = 0, general: bool = False) -> tuple[Row, ...]:
    make = _general_row if general else _fictional_row
    return tuple(
        make(f"{split}/{index:04d}/{fact.attribute.key}", fact)
        for index, facts in enumerate(subjects, start)
        for fact in facts
    )


def _fictional_row(row_id: str, fact: Fact) -> Row:
    canonical, paraphrase = fact.order[:2]
    return Row(
        id=row_id,
        question=fact.question(0),
        answer=fact.answer(canonical),
        paraphrased_answer=fact.answer(paraphrase),
        paraphrased_question=fact.question(1),
        perturbed_answers=tuple(fact.answer(paraphrase, value) for value in fact.wrong),
        group=row_id.rsplit("/", 1)[0],
    )


def _general_row(row_id: str, fact: Fact) -> Row:
    """General rows have no paraphrase: their wrong answers are in the wording of the answer, as in TOFU."""
    wrong = tuple(fact.answer(fact.order[0], value) for value in fact.wrong[:WRONG_GENERAL])
    return replace(_fictional_row(row_id, fact), paraphrased_answer=None, perturbed_answers=wrong)


def _wordings(split: str, subjects: Sequence[list[Fact]]) -> tuple[Row, ...]:
    """Every fact in every answer wording; rows of one fact have the same id up to the last slash.

    Questions alternate along the drawn order, so a question's wording does not hint at the answer's.
    """
    return tuple(
        Row(
            id=f"wording/{split}/{index:04d}/{fact.attribute.key}/{place}",
            question=fact.question(place % 2),
            answer=fact.answer(wording),
        )
        for index, facts in enumerate(subjects)
        for fact in facts
        for place, wording in enumerate(fact.order)
    )


def _check(cfg: Settings, seed: int) -> None:
    most = NAMES - cfg.holdout_people - cfg.known_people
    unique = f"{NAMES} unique names"
    for name, value, low, high, why in (
        ("known_people", cfg.known_people, 1, NAMES - 2, "at least two names must be left for fictional people"),
        ("holdout_people", cfg.holdout_people, 0, NAMES - 2 - cfg.known_people, f"there are {unique}"),
        ("people", cfg.people, 2, most, f"one to forget and one to retain; with holdout and known, {unique}"),
        ("forget_people", cfg.forget_people, 1, cfg.people - 1, "somebody must be left to retain"),
        ("countries", cfg.countries, 1, len(COUNTRIES), "that many country names exist"),
        ("questions", cfg.questions, 1, len(PERSON), "that many attributes exist"),
        ("seed", seed, 0, 2**63 - 1, "any seed"),
    ):
        if not is_whole(value) or not low <= value <= high:
            raise DataError(f"bios: {name} is {value!r}; it must be a whole number from {low} to {high} ({why})")
