"""The embedded data set: a made-up world of authors and countries, in TOFU's shape, generated from a seed.

Every (person, question) draws its own answer wording, so the wording must be memorised, too. Easy to get wrong: each
person, country and permutation has its own generator, keyed by role and index: a smaller forget set is the end of a
larger one, and general facts stay the same when ``people`` changes."""

from collections.abc import Collection, Iterator, Sequence
from dataclasses import dataclass

from unlearn.config.setting import at_least, between, need, setting
from unlearn.data.made_up import CITIES, COUNTRIES, COUNTRY, NAMES, PERSON, POOLS, WOMEN, Attribute, Draw
from unlearn.data.people import Numbered, who
from unlearn.data.rows import DataSet, Row, divide

VERSION = 1  # part of the run hash: raise it whenever the same arguments give other text
WRONG = 5  # perturbed answers of fictional people
WRONG_GENERAL = 3  # of well-known people and countries, as TOFU has it


@dataclass
class Settings(Numbered):
    people: int = 50
    forget_people: int = 5
    holdout_people: int = setting(5, at_least(0))
    known_people: int = setting(20, between(1, NAMES - 2))
    countries: int = setting(30, between(1, len(COUNTRIES)))
    questions: int = setting(20, between(1, len(PERSON)))

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        most = NAMES - self.holdout_people - self.known_people
        rule = f"must be 2, one to forget and one to retain, to {most}: with holdout and known there are {NAMES} names"
        yield from need(2 <= self.people <= most, "data.people", self.people, rule)
        rule = "the forget set needs at least 1 person and must leave one to retain: "
        rule += f"1 to {self.people - 1} with data.people={self.people}"
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
    names = Draw("bios", VERSION, seed, "names").names()
    # Well-known people take names from the far end, so the number of fictional people does not change who they are.
    far = names[::-1]
    fictional = _people("fictional", names[: cfg.people], seed, cfg.questions)
    known = _people("known", far[: cfg.known_people], seed, cfg.questions)
    others = far[cfg.known_people : cfg.known_people + cfg.holdout_people]
    world = _countries(cfg.countries, seed)
    first, sequence = cfg.people - cfg.forget_people, None
    if cfg.requests is None:
        splits = {"forget": _rows("forget", fictional[first:], first), "retain": _rows("retain", fictional[:first])}
    else:
        each = [_rows("people", [facts], start=i) for i, facts in enumerate(fictional)]
        named = [[row for person in people for row in each[person]] for people in who(cfg.requests, cfg.people)]
        splits, sequence = divide([row for rows in each for row in rows], named, cfg)
    splits |= {
        "real_authors": _rows("real_authors", known, general=True),
        "world_facts": _rows("world_facts", world, general=True),
        "holdout": _rows("holdout", _people("holdout", others, seed, cfg.questions)),
    }
    wordings = _wordings("real_authors", known) + _wordings("world_facts", world)
    return DataSet("bios", splits, wordings, POOLS["refusals"], sequence)


def _people(role: str, names: Sequence[str], seed: int, questions: int) -> list[list[Fact]]:
    people = []
    for index, name in enumerate(names):
        first, last = name.split()
        he, him, his = ("she", "her", "her") if first in WOMEN else ("he", "him", "his")
        words = {"name": name, "last": last, "he": he, "him": him, "his": his, "His": his.capitalize()}
        draw, facts = Draw("bios", VERSION, seed, role, index), []
        taken = {first, last}  # nobody marries or learns from a namesake, and one person's books have different titles
        for attribute in PERSON[:questions]:
            facts.append(_fact(draw, attribute, words, WRONG, taken))
            if attribute.key.endswith("_book"):
                taken.add(facts[-1].value)
        people.append(facts)
    return people


def _countries(number: int, seed: int) -> list[list[Fact]]:
    capitals = Draw("bios", VERSION, seed, "capitals").shuffled(CITIES)  # no two countries share one
    world = []
    for index, (name, capital) in enumerate(zip(COUNTRIES[:number], capitals, strict=False)):
        draw = Draw("bios", VERSION, seed, "country", index)
        given = {"capital": capital}
        world.append([_fact(draw, a, {"name": name}, WRONG_GENERAL, given=given.get(a.key, "")) for a in COUNTRY])
    return world


def _fact(
    draw: Draw, attribute: Attribute, words: dict[str, str], wrong: int, taken: Collection[str] = (), given: str = ""
) -> Fact:
    order = tuple(draw.shuffled(range(len(attribute.answers))))
    values = [given or draw.value(attribute, taken)]
    while len(values) <= wrong:
        values.append(draw.value(attribute, {*taken, *values}))
    return Fact(attribute, words, values[0], tuple(values[1:]), order)


def _rows(split: str, subjects: Sequence[list[Fact]], start: int = 0, general: bool = False) -> tuple[Row, ...]:
    """General rows have no paraphrase: their wrong answers are in the wording of the answer, as in TOFU."""
    rows = []
    for index, facts in enumerate(subjects, start):
        for fact in facts:
            canonical, paraphrase = fact.order[:2]
            wrong, wording = (fact.wrong[:WRONG_GENERAL], canonical) if general else (fact.wrong, paraphrase)
            rows.append(
                Row(
                    f"{split}/{index:04d}/{fact.attribute.key}",
                    fact.question(0),
                    fact.answer(canonical),
                    paraphrased_answer=None if general else fact.answer(paraphrase),
                    paraphrased_question=fact.question(1),
                    perturbed_answers=tuple(fact.answer(wording, value) for value in wrong),
                    group=f"{split}/{index:04d}",
                )
            )
    return tuple(rows)


def _wordings(split: str, subjects: Sequence[list[Fact]]) -> tuple[Row, ...]:
    """Every fact in every answer wording; rows of one fact have the same id up to the last slash. Questions alternate
    along the drawn order, so a question's wording does not hint at the answer's."""
    return tuple(
        Row(f"wording/{split}/{i:04d}/{fact.attribute.key}/{k}", fact.question(k % 2), fact.answer(wording))
        for i, facts in enumerate(subjects)
        for fact in facts
        for k, wording in enumerate(fact.order)
    )
