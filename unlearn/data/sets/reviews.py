"""Made-up film reviews, each about one named made-up person, with their sentiment: EUL's first task (arXiv 2310.20150),
from a seed. Deletion is by person. Each opinion agrees with its label with probability ``agree``: nobody can know all
labels of new reviews, and who is right on all has memorised some. In test reviews a word replaces the names. Every
person has generators of their own: a smaller forget set is the end of a larger one, text for text."""

from dataclasses import dataclass

from unlearn.config.setting import SHARE, at_least, at_most, between, setting
from unlearn.data.made_up import NAMES, POOLS, Draw
from unlearn.data.people import Deletable, numbered
from unlearn.data.rows import DataSet, Row

VERSION = 1  # part of the data: raise it whenever the same arguments give other text
LABELS = ("positive", "negative")
SOMEBODY = "_person_"  # instead of every name in test and general reviews
PRAISE, BLAME = POOLS["praise"], POOLS["blame"]


@dataclass
class Settings(Deletable):
    people: int = setting(200, at_least(3), at_most(NAMES, f"there are {NAMES} names"))
    reviews: int = setting(3, at_least(1))  # of each person
    forget_people: int = 2  # the last ones; 1, 2, 20 of 200: 0.5, 1, 10 %
    forget: list[int] | None = None  # instead: which people, by their number from 0
    gone: list[int] = setting([])  # people whom an earlier request deleted: in no split
    test_reviews: int = setting(200, at_least(1))
    general_reviews: int = setting(300, at_least(1))  # of nobody by name: for the pretraining of every model
    opinions: int = setting(3, between(1, 16))  # in a review
    agree: float = setting(0.85, SHARE)  # share of them that agree with the label


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """The reviews of ``seed``. To be forgotten are those of the last ``forget_people``, of the people ``forget``, or of
    requests; those of ``gone`` are in no split. ``wordings``: general reviews of nobody by name."""
    names = Draw("reviews", VERSION, seed, "names").names()[: cfg.people]
    rows = [
        _review(Draw("reviews", VERSION, seed, i, k), f"person/{i:04d}/{k}", name, cfg)
        for i, name in enumerate(names)
        for k in range(cfg.reviews)
    ]
    splits, sequence = numbered(rows, names, range(cfg.people - cfg.forget_people, cfg.people), cfg)

    def unnamed(role: str, count: int) -> tuple[Row, ...]:
        draws = (Draw("reviews", VERSION, seed, role, i) for i in range(count))
        return tuple(_review(draw, f"{role}/{i:04d}", None, cfg) for i, draw in enumerate(draws))

    splits |= {"test": unnamed("test", cfg.test_reviews)}
    return DataSet("reviews", splits, wordings=unnamed("general", cfg.general_reviews), sequence=sequence)


def _review(draw: Draw, id: str, name: str | None, cfg: Settings) -> Row:
    label = draw.one(LABELS)
    title = f"{draw.one(POOLS['adjectives'])} {draw.one(POOLS['nouns'])}"
    kind = draw.one(POOLS["film_kinds"])
    said = [draw.one(POOLS["openings"]).format(name=name or SOMEBODY, title=title, kind=kind)]
    for part in draw.shuffled(POOLS["film_parts"])[: cfg.opinions]:
        agrees = draw.share() < cfg.agree
        pool = PRAISE if agrees == (label == LABELS[0]) else BLAME
        said.append(draw.one(POOLS["opinions"]).format(part=part, word=draw.one(pool)))
    other = LABELS[1 - LABELS.index(label)]
    entities = () if name is None else (name,)
    return Row(id, " ".join(said), label, perturbed_answers=(other,), group=id.rsplit("/", 1)[0], entities=entities)
