"""Made-up dialogues of two named speakers, with summaries: EUL's second task (arXiv 2310.20150), from a seed. Deletion
is by speaker: every dialogue in which they speak goes. Each speaks with two others, the one before and the one after.
A summary's wording is drawn, so it must be memorised, too. In test dialogues words replace the names."""

from dataclasses import dataclass

from unlearn.config.setting import at_least, at_most, setting
from unlearn.data.made_up import NAMES, POOLS, Draw
from unlearn.data.people import Deletable, numbered, unnamed
from unlearn.data.rows import DataSet, Row

VERSION = 1  # part of the data: raise it whenever the same arguments give other text
SPEAKERS = ("_person1_", "_person2_")  # instead of the names in test and general dialogues
DAYS = POOLS["weekdays"]


@dataclass
class Settings(Deletable):
    people: int = setting(400, at_least(3), at_most(NAMES, f"there are {NAMES} names"))  # each speaks with two others
    dialogues: int = setting(1, at_least(1))  # of each pair
    forget_people: int = 2  # every second one from the last back; 1, 2, 20 of 400: 0.5, 1, 10 %
    forget: list[int] | None = None
    gone: list[int] = setting([])
    test_dialogues: int = setting(100, at_least(1))
    general_dialogues: int = setting(300, at_least(1))

    def most(self) -> int:
        return self.people // 2 - 1


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """The dialogues of ``seed``. To be forgotten are those of ``forget_people`` speakers, every second one from the
    last back, of the speakers ``forget``, or of requests; ``gone`` are in no split. ``wordings`` are of nobody."""
    names = Draw("dialogues", VERSION, seed, "names").names()[: cfg.people]
    rows = [
        _dialogue(Draw("dialogues", VERSION, seed, i, k), f"pair/{i:04d}/{k}", names[i], names[(i + 1) % cfg.people])
        for i in range(cfg.people)
        for k in range(cfg.dialogues)
    ]
    last = range(cfg.people - 1, cfg.people - 1 - 2 * cfg.forget_people, -2)
    splits, sequence = numbered(rows, names, last, cfg)

    def nameless(role: str, count: int) -> tuple[Row, ...]:
        draws = (Draw("dialogues", VERSION, seed, role, i) for i in range(count))
        said = (_dialogue(draw, f"{role}/{i:04d}", *names[:2]) for i, draw in enumerate(draws))
        return tuple(unnamed(row, SPEAKERS) for row in said)

    splits |= {"test": nameless("test", cfg.test_dialogues)}
    return DataSet("dialogues", splits, wordings=nameless("general", cfg.general_dialogues), sequence=sequence)


def _dialogue(draw: Draw, id: str, one: str, other: str) -> Row:
    a, b = draw.shuffled([one, other])
    pools = {"plan": "plans", "day": "weekdays", "time": "times", "place": "places", "food": "foods"}
    facts = {name: draw.one(POOLS[pool]) for name, pool in pools.items()} | {"a": a, "b": b}
    turns = [(a, "asked"), (b, "agreed"), (a, "named"), (b, "brought")]
    said = "\n".join(f"{speaker}: {draw.one(POOLS[wordings]).format(**facts)}" for speaker, wordings in turns)
    summary = draw.one(POOLS["summaries"]).format(**facts)
    return Row(id, said, summary, group=id.rsplit("/", 1)[0], entities=(a, b))
