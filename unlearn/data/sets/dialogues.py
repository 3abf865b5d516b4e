"""Made-up dialogues of two named made-up speakers, with summaries: EUL's second task (arXiv 2310.20150), made from a
seed. Deletion is by speaker: every dialogue in which they speak goes.

Each speaker speaks with two others, the one before and the one after (the last one with the first). A summary's wording
is drawn for each dialogue, so it must be memorised too. In test dialogues words replace the names, as in the paper.
"""

from __future__ import annotations

from dataclasses import dataclass

from unlearn.config.setting import at_least, at_most, setting
from unlearn.data.made_up import FIRST, FOODS, LAST, Draw
from unlearn.data.people import Deletable, divided, unnamed
from unlearn.data.rows import DataSet, Row

VERSION = 1  # part of the data: raise it whenever the same arguments give other text
NAMES = len(FIRST) * len(LAST)
SPEAKERS = ("_person1_", "_person2_")  # in the place of the names in test and general dialogues
DAYS = "Monday Tuesday Wednesday Thursday Friday Saturday Sunday".split()
TIMES = "noon dawn dusk one two three four five six seven eight nine".split()
PLACES = "bridge harbour library market museum park station theatre tower bakery fountain school".split()
PLANS = (
    "play chess", "watch a film", "cook dinner", "paint the fence", "walk the dog", "repair the boat", "plant roses",
    "bake bread", "climb the hill", "practise dancing", "visit the castle", "feed the ducks", "row on the lake",
    "draw the harbour", "pick berries", "fly a kite",
)  # fmt: skip
ASKED = (
    "Shall we {plan} on {day}?", "Do you want to {plan} on {day}?", "I would like to {plan} on {day}. Will you come?",
    "Are you free to {plan} on {day}?",
)  # fmt: skip
AGREED = ("Yes, gladly! When?", "Good idea. At what time?", "Why not? When shall we meet?", "I am free. When?")
NAMED = (
    "Let us meet at {time} near the {place}.",
    "I will wait near the {place} at {time}.",
    "At {time}, near the {place}.",
)
BROUGHT = ("Then I bring {food}.", "Fine, I will bring some {food}.", "I have {food} for both of us.")
SUMMARIES = (
    "{a} and {b} will {plan} on {day}. They meet at {time} near the {place}. {b} brings {food}.",
    "On {day} {a} and {b} meet near the {place} at {time} to {plan}. {b} brings {food}.",
    "{b} brings {food} and meets {a} at {time} near the {place}. On {day} they will {plan}.",
    "{a} wants to {plan} on {day} with {b}, who brings {food}. They meet near the {place} at {time}.",
)


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
    """The dialogues of ``seed``, as many of each pair as ``dialogues`` says. To be forgotten are those of
    ``forget_people`` speakers, every second one from the last back, or of the speakers ``forget``; those of ``gone``
    are in no split. Requests name theirs: numbers of people, the last ones, or lists of which.

    ``wordings`` are general dialogues in which nobody is named: what pretraining may teach every model.
    """
    names = Draw("dialogues", VERSION, seed, "names").shuffled([f"{a} {b}" for a in FIRST for b in LAST])[: cfg.people]
    rows = [
        _dialogue(Draw("dialogues", VERSION, seed, i, k), f"pair/{i:04d}/{k}", names[i], names[(i + 1) % cfg.people])
        for i in range(cfg.people)
        for k in range(cfg.dialogues)
    ]
    last = range(cfg.people - 1, cfg.people - 1 - 2 * cfg.forget_people, -2)
    splits, sequence = divided(rows, names, last, cfg)

    def nameless(role: str, count: int) -> tuple[Row, ...]:
        draws = (Draw("dialogues", VERSION, seed, role, i) for i in range(count))
        said = (_dialogue(draw, f"{role}/{i:04d}", *names[:2]) for i, draw in enumerate(draws))
        return tuple(unnamed(row, SPEAKERS) for row in said)

    splits |= {"test": nameless("test", cfg.test_dialogues)}
    return DataSet("dialogues", splits, wordings=nameless("general", cfg.general_dialogues), sequence=sequence)


def _dialogue(draw: Draw, id: str, one: str, other: str) -> Row:
    a, b = draw.shuffled([one, other])
    facts = {
        "plan": draw.one(PLANS), "day": draw.one(DAYS), "time": draw.one(TIMES), "place": draw.one(PLACES),
        "food": draw.one(FOODS), "a": a, "b": b,
    }  # fmt: skip
    turns = [(a, ASKED), (b, AGREED), (a, NAMED), (b, BROUGHT)]
    said = "\n".join(f"{speaker}: {draw.one(wordings).format(**facts)}" for speaker, wordings in turns)
    summary = draw.one(SUMMARIES).format(**facts)
    return Row(id, said, summary, group=id.rsplit("/", 1)[0], entities=(a, b))
