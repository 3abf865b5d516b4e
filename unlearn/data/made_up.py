"""Words and sentences of made-up worlds, from made_up.toml: pools of names and values, every wording of every
attribute, and seeded draws. Changing any word there calls for a new VERSION of the data sets that use it."""

import hashlib
import random
import tomllib
from collections.abc import Collection, Sequence
from dataclasses import dataclass
from pathlib import Path

FILE = tomllib.loads(Path(__file__).with_suffix(".toml").read_text("utf-8"))
POOLS = {name: tuple(pool.split() if isinstance(pool, str) else pool) for name, pool in FILE["pools"].items()}
WOMEN, LAST, CITIES, COUNTRIES = (POOLS[name] for name in ("women", "last", "cities", "countries"))
FIRST = POOLS["first"] = WOMEN + POOLS["men"]
NAMES = len(FIRST) * len(LAST)  # of people, all different


@dataclass(frozen=True)
class Attribute:
    """One fact about a person or country: how it is asked and told, and the pools (``parts``) of its values' words."""

    key: str
    parts: tuple[tuple[str, ...], ...]
    questions: tuple[str, str]
    answers: tuple[str, str, str, str]


PERSON, COUNTRY = (
    tuple(
        Attribute(key, tuple(POOLS[name] for name in a["pools"]), tuple(a["questions"]), tuple(a["answers"]))
        for key, a in FILE[kind].items()
    )
    for kind in ("person", "country")
)


class Draw:
    """Seeded choices made of ``random()`` alone: the one method Python promises to keep the same in every version."""

    def __init__(self, *key: object):
        digest = hashlib.sha256("/".join(str(part) for part in key).encode()).digest()
        self.share = random.Random(int.from_bytes(digest, "big")).random  # from 0 up to, not including, 1

    def one(self, pool: Sequence[str]) -> str:
        return pool[int(self.share() * len(pool))]

    def shuffled(self, items: Sequence) -> list:
        left = list(items)
        return [left.pop(int(self.share() * len(left))) for _ in items]

    def names(self) -> list[str]:
        """All names of people in an order by chance."""
        return self.shuffled([f"{first} {last}" for first in FIRST for last in LAST])

    def value(self, attribute: Attribute, taken: Collection[str]) -> str:
        while True:
            words = [self.one(pool) for pool in attribute.parts]
            value = " ".join(words)
            if value not in taken and words[-1] not in taken:
                return value
