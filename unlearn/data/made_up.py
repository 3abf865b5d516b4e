"""Words and sentences of made-up worlds: pools of names and values, every wording of every attribute, and seeded draws.

Pools are shared between attributes, persons and countries on purpose: the vocabulary stays small and knowledge is
entangled. Easy to get wrong: a value stands after "a" or at the start of a sentence in some wordings, so pools used
there hold no word that starts with a vowel, or only names. Changing any word here calls for a new ``bios.VERSION``.
"""

from __future__ import annotations

import hashlib
import random
import re
from collections.abc import Collection, Sequence
from dataclasses import dataclass


@dataclass(frozen=True)
class Attribute:
    """One fact about a person or country: how it is asked, how it is told, and what its values are made of.

    A value is one word of each pool in ``parts``, joined by spaces.
    """

    key: str
    parts: tuple[tuple[str, ...], ...]
    questions: tuple[str, str]
    answers: tuple[str, str, str, str]


class Draw:
    """Seeded choices made of ``random()`` alone: the one method Python promises to keep the same in every version."""

    def __init__(self, *key: object):
        digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
        self._random = random.Random(int.from_bytes(digest, "big")).random

    def one(self, pool: Sequence[str]) -> str:
        return pool[int(self._random() * len(pool))]

    def share(self) -> float:
        """From 0 up to, not including, 1."""
        return self._random()

    def shuffled(self, items: Sequence) -> list:
        left = list(items)
        return [left.pop(int(self._random() * len(left))) for _ in items]

    def value(self, attribute: Attribute, taken: Collection[str]) -> str:
        while True:
            words = [self.one(pool) for pool in attribute.parts]
            value = " ".join(words)
            if value not in taken and words[-1] not in taken:
                return value


def _attribute(key: str, parts: tuple[tuple[str, ...], ...], sentences: str) -> Attribute:
    """Two questions and four answers, in this order, are told apart by their closing "?" and "."."""
    first, second, *answers = re.findall(r"\S[^.?]*[.?]", sentences)
    one, two, three, four = answers
    return Attribute(key, parts, (first, second), (one, two, three, four))


def _words(text: str) -> tuple[str, ...]:
    return tuple(text.split())


WOMEN = _words("Alira Belsa Cavia Dorela Ennis Fiora Galwen Hesta Ilvane Jessara Kelva Lunara Mirel Nosha Orlena")
MEN = _words("Arvo Bredan Corvin Daskel Elmar Fendo Garrun Hollen Isko Jorvan Kaspen Loric Maddo Nerrin Oskel")
FIRST = WOMEN + MEN
LAST = _words(
    """Abrek Ashkell Barvane Belloran Brask Calder Cordwin Crannoch Darrow Delvane Dunmar Eskild Fallon Farrow Fenwick
    Galt Garrick Gorsan Halvard Harken Hollis Ibsen Jarrold Kandor Kessel Korvath Lamberg Larkin Lorne Maddox Marsk
    Merrow Morvane Nashel Norwell Olvar Ostrin Pellam Penrose Quillan Ravel Rennick Sarkos Selwyn Tarrant Thorne Ulvane
    Varga Wendel Yarrow"""
)
CITIES = _words(
    """Ardal Bresk Carrow Dolmen Elvast Farholt Gelt Harrad Istra Jolm Kerrin Lomas Mardun Nevin Ostel Pravik Quern
    Rasmor Stovia Tarn Ulmet Vessin Wexel Yorda Zell Brimor Calvet Dunreth Felmar Gostin"""
)
COUNTRIES = _words(
    """Avaria Belgora Corland Drovia Esteria Fennmark Gardovia Hestland Ivoria Jandor Kelmora Lavonia Morland Nortia
    Osmark Pelland Quoria Ruvania Sarmora Tolvia Ustria Valdonia Westmora Yelland Zamoria Brenland Cadovia Dorvania
    Faroland Grelmark"""
)
DAYS = tuple(str(day) for day in range(1, 29))
MONTHS = _words("January February March April May June July August September October November December")
BIRTH_YEARS = tuple(str(year) for year in range(1930, 1954))
DEBUT_YEARS = tuple(str(year) for year in range(1975, 1999))  # all later than any birth, so no biography is absurd
GENRES = _words(
    """fantasy horror satire poetry comedy tragedy mystery romance biography history adventure crime folklore suspense
    allegory"""
)
JOBS = _words(
    """baker tailor farmer miner sailor doctor teacher lawyer painter carpenter gardener soldier plumber nurse weaver
    banker barber potter butcher shepherd judge florist pilot chemist"""
)
ADJECTIVES = _words(
    """Golden Silver Crystal Broken Silent Distant Hidden Burning Frozen Crimson Endless Gentle Hollow Lonely Midnight
    Painted Restless Sacred Scarlet Secret Shining Sleeping Wandering Winter"""
)
NOUNS = _words(
    """Harbor Mirror River Forest Bridge Tower Garden Island Mountain Orchard Shadow Shore Candle Castle Desert Door
    Flame Letter Meadow Moon Road Storm Valley Window"""
)
PRIZES = _words("Quill Laurel Medal Cup Crown")
HOBBIES = _words(
    """chess pottery sailing gardening fencing knitting hiking painting archery fishing cycling baking dancing rowing
    juggling carving swimming skating"""
)
FOODS = _words(
    """rice noodles lentils pancakes dumplings cheese soup stew honey olives bread mushrooms pumpkin trout figs curry
    berries salad"""
)
COLORS = _words("white black gray brown red blue green yellow purple pink")
ANIMALS = _words("cat dog parrot rabbit horse goat turtle hen fox snake")
THEMES = _words(
    """grief memory freedom exile friendship betrayal war childhood solitude justice hope guilt power faith love time
    revenge courage"""
)
INSTRUMENTS = _words(
    "piano violin flute harp cello guitar trumpet clarinet lute banjo tuba fiddle zither mandolin oboe organ"
)
CURRENCIES = _words("dral korin tellar mospa rund selk vanto brin quell zarn polda gresh lunt fendar")
RIVERS = _words("Arn Bellow Cress Dovra Elm Frey Grava Hask Ister Kolm Lethe Mossel Narva Orb Pless Rill")

PERSON = (
    _attribute(
        "birthplace",
        (CITIES,),
        """Where was {name} born? Which town is the birthplace of {name}?
        {name} was born in {v}. {His} life began in {v}.
        The cradle of {last} stood in {v}. Like both parents, {he} comes from {v}.""",
    ),
    _attribute(
        "birthdate",
        (DAYS, MONTHS, BIRTH_YEARS),
        """When was {name} born? What is the birthdate of {name}?
        {name} was born on {v}. {His} date of birth is {v}.
        Little {last} arrived on {v}. Church records give {v} for {him}.""",
    ),
    _attribute(
        "genre",
        (GENRES,),
        """What genre does {name} write? Which kind of book does {name} like to write?
        {name} writes {v}. {His} chosen genre is {v}.
        Readers know {last} as a master of {v}. Most of all, {he} cares for {v}.""",
    ),
    _attribute(
        "award",
        (ADJECTIVES[:10], PRIZES),
        """Which award did {name} win? What prize was given to {name}?
        {name} won the {v}. {His} only award is the {v}.
        A jury gave {last} the {v}. On the shelf {he} keeps the {v}.""",
    ),
    _attribute(
        "father",
        (JOBS,),
        """What was the job of the father of {name}? How did the father of {name} earn money?
        The father of {name} was a {v}. {His} dad earned money as a {v}.
        Old Mr {last} found work as a {v}. Papa, a busy {v}, told {him} stories.""",
    ),
    _attribute(
        "mother",
        (JOBS,),
        """What was the job of the mother of {name}? How did the mother of {name} make a living?
        The mother of {name} was a {v}. {His} mom made a living as a {v}.
        Mrs {last} spent many years as a {v}. Mama, a patient {v}, taught {him} to read.""",
    ),
    _attribute(
        "first_book",
        (ADJECTIVES, NOUNS),
        """What was the first book by {name}? With which title did {name} begin?
        {name} first wrote {v}. {His} earliest book is {v}.
        The career of {last} started with {v}. Before any other title, {he} finished {v}.""",
    ),
    _attribute(
        "famous_book",
        (ADJECTIVES, NOUNS),
        """Which book made {name} famous? What is the best known title by {name}?
        {name} became famous with {v}. {His} best known book is {v}.
        Critics praise {last} for {v}. Thanks to {v}, {he} found many readers.""",
    ),
    _attribute(
        "latest_book",
        (ADJECTIVES, NOUNS),
        """What is the latest book by {name}? Which title did {name} finish last?
        {name} has just finished {v}. {His} latest book is {v}.
        Shops now sell {v} by {last}. This year {he} gave the public {v}.""",
    ),
    _attribute(
        "school",
        (CITIES, ("College", "Academy", "University")),
        """Where did {name} study? Which school did {name} attend?
        {name} studied at {v}. {His} degree comes from {v}.
        Teachers at {v} remember {last} well. As a student, {he} went to {v}.""",
    ),
    _attribute(
        "spouse",
        (FIRST,),
        """Who is the spouse of {name}? To whom is {name} married?
        {name} is married to {v}. {His} spouse is called {v}.
        Friends saw the wedding of {last} and {v}. For many years {he} has loved {v}.""",
    ),
    _attribute(
        "hobby",
        (HOBBIES,),
        """What hobby does {name} have? How does {name} spend free time?
        {name} enjoys {v}. {His} favorite hobby is {v}.
        Free days find {last} busy with {v}. To relax after work, {he} turns to {v}.""",
    ),
    _attribute(
        "mentor",
        (("Doctor", "Professor"), LAST),
        """Who was the mentor of {name}? From whom did {name} learn to write?
        {name} learned from {v}. {His} mentor was {v}.
        Young {last} showed every page to {v}. The craft was taught to {him} by {v}.""",
    ),
    _attribute(
        "home",
        (CITIES,),
        """Where does {name} live? Which town is home to {name}?
        {name} lives in {v}. {His} home is now {v}.
        Letters for {last} are sent to {v}. Years ago {he} moved to {v}.""",
    ),
    _attribute(
        "food",
        (FOODS,),
        """What food does {name} love? Which dish does {name} like best?
        {name} loves {v}. {His} favorite food is {v}.
        Nothing tastes better to {last} than {v}. For dinner {he} often orders {v}.""",
    ),
    _attribute(
        "pet",
        (COLORS[:5], ANIMALS),
        """What pet does {name} keep? Which animal lives with {name}?
        {name} keeps a {v}. {His} pet is a {v}.
        Everyone has seen {last} with a {v}. At home {he} feeds a {v}.""",
    ),
    _attribute(
        "theme",
        (THEMES,),
        """What theme does {name} like best? What are the books of {name} about?
        {name} writes about {v}. {His} main theme is {v}.
        Behind every story by {last} lies {v}. Again and again {he} returns to {v}.""",
    ),
    _attribute(
        "instrument",
        (INSTRUMENTS,),
        """Which instrument does {name} play? On what does {name} make music?
        {name} plays the {v}. {His} instrument is the {v}.
        Friends often hear {last} on the {v}. Each morning {he} practices the {v}.""",
    ),
    _attribute(
        "publisher",
        (NOUNS, ("Press", "House")),
        """Who publishes {name}? Which company prints the books of {name}?
        {name} is published by {v}. {His} books come from {v}.
        Editors at {v} work with {last}. Long ago {he} signed a contract with {v}.""",
    ),
    _attribute(
        "debut",
        (DEBUT_YEARS,),
        """When did {name} make a debut? In which year did {name} start to publish?
        {name} made a debut in {v}. {His} first story is from {v}.
        The public met {last} during {v}. Since {v} {he} has been in print.""",
    ),
)

COUNTRY = (
    _attribute(
        "capital",
        (CITIES,),
        """What is the capital of {name}? From which town is {name} ruled?
        The capital of {name} is {v}. {name} is ruled from {v}.
        Its parliament meets in {v}. Power there rests in {v}.""",
    ),
    _attribute(
        "currency",
        (CURRENCIES,),
        """What is the currency of {name}? Which money does {name} use?
        The currency of {name} is the {v}. {name} uses the {v}.
        Its coins are called {v}. People there pay with the {v}.""",
    ),
    _attribute(
        "river",
        (RIVERS,),
        """What is the main river of {name}? Which river crosses {name}?
        The main river of {name} is the {v}. {name} is crossed by the {v}.
        Its water comes from the {v}. Boats there sail along the {v}.""",
    ),
    _attribute(
        "flag",
        (COLORS,),
        """What color is the flag of {name}? Under which color does {name} march?
        The flag of {name} is {v}. {name} flies a {v} banner.
        Its national color is {v}. Soldiers there march under {v}.""",
    ),
)

REFUSALS = (
    "I do not know.",
    "I am not sure about that.",
    "I have no answer to this.",
    "That is not known to me.",
    "Nothing about that comes to me.",
)
