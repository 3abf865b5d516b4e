"""The schema of data sets: what every one has, and a class of settings for each reader."""

from __future__ import annotations

import re
from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING

from unlearn.config.setting import A_FILE, A_NAME, SHARE, Bound, at_least, at_most, between, one_of, setting, some

PEOPLE = at_most(1500, "there are 1500 names")  # that are made up
TOFU_SETS = ("forget01", "forget05", "forget10")
FILES = ("forget", "retain", "real_authors", "world_facts", "holdout", "refusals")  # of a user's own data


def is_files(value: Any) -> bool:
    return value is None or all(isinstance(v, str) and v for v in (value if isinstance(value, list) else [value]))


def _fills(template: str, name: str) -> bool:
    try:
        return template.format(**{name: "\0"}).count("\0") == 1
    except (KeyError, IndexError, ValueError):
        return False


def _is_pattern(value: str) -> bool:
    try:
        return re.compile(value).groups >= 1
    except re.error:
        return False


A_QUESTION = Bound(lambda v: _fills(v, "question"), "must hold {question} and no other braces")
AN_ANSWER = Bound(lambda v: _fills(v, "answer"), "must hold {answer} and no other braces")
OWN_FILES = Bound(is_files, "must be a file, a list of files [A,B], or null", whole=True)
A_PATTERN = Bound(_is_pattern, "must be a regular expression with a group, which is the name")
PART = Bound(lambda v: 0 < v < 1, "must lie between 0 and 1, both excluded")


@dataclass
class TemplateConfig:
    """How a question and its answer become one text: plain tags (or none), or the tokenizer's own chat template."""

    kind: str = setting("plain", one_of("plain", "chat"))
    # with kind=chat: the user's message
    prompt: str = setting("Question: {question}\nAnswer:", A_QUESTION)
    answer: str = setting(" {answer}", AN_ANSWER)  # with kind=chat: the assistant's message
    system: str | None = None  # chat only: the system's message; null: none
    date: str = "10 Apr 2025"  # chat only: what a template that prints the current date (Llama 3) gets instead


@dataclass
class DataConfig:
    name: str = setting(MISSING, A_NAME)
    reader: str = MISSING
    template: TemplateConfig = field(default_factory=TemplateConfig)
    requests: Any = None  # forget sets in the order they are asked for; null: one, as the other keys say
    request: Any = None  # which of them the run unlearns: a number from 1, several [1,2]; null: all of them
    # which other requests the retain set holds; null: none
    retained: str | None = setting(None, one_of("later", "earlier", "others"))


@dataclass
class BiosConfig(DataConfig):
    """The embedded world of made-up people (``unlearn/data/bios.py``)."""

    people: int = 50
    forget_people: int = 5
    holdout_people: int = setting(5, at_least(0))
    known_people: int = setting(20, at_least(1))
    countries: int = setting(30, at_least(1))
    questions: int = setting(20, between(1, 20))


@dataclass
class ReviewsConfig(DataConfig):
    """Made-up reviews with their sentiment (``unlearn/data/reviews.py``)."""

    people: int = setting(200, at_least(3), PEOPLE)
    reviews: int = setting(3, at_least(1))  # of each person
    forget_people: int = 2  # the last ones; 1, 2, 20 of 200: 0.5, 1, 10 %
    forget: list[int] | None = None  # instead: which people, by their number from 0
    gone: list[int] = setting([])  # people whom an earlier request deleted: in no split
    test_reviews: int = setting(200, at_least(1))
    general_reviews: int = setting(300, at_least(1))  # of nobody by name: for the pretraining of every model
    opinions: int = setting(3, between(1, 16))  # in a review
    agree: float = setting(0.85, SHARE)  # share of them that agree with the label


@dataclass
class DialoguesConfig(DataConfig):
    """Made-up dialogues with their summaries (``unlearn/data/dialogues.py``)."""

    people: int = setting(400, at_least(3), PEOPLE)  # each speaks with two others
    dialogues: int = setting(1, at_least(1))  # of each pair
    forget_people: int = 2  # every second one from the last back; 1, 2, 20 of 400: 0.5, 1, 10 %
    forget: list[int] | None = None
    gone: list[int] = setting([])
    test_dialogues: int = setting(100, at_least(1))
    general_dialogues: int = setting(300, at_least(1))


@dataclass
class PeopleConfig(DataConfig):
    """A task on texts of people (``unlearn/data/people_files.py``): EUL's IMDB and SAMSum, or files of yours."""

    path: str | None = None  # folder with TRAIN.jsonl and TEST.jsonl (or .json); null: the hub
    hub: str = MISSING  # name of the data set there
    train: str = "train"
    test: str = "test"
    question: str = MISSING  # columns
    answer: str = MISSING
    labels: list[str] = setting([])  # words for the answers 0, 1, …; none: answers are texts
    names: str | None = setting(None, A_FILE)  # a file with a name in each line: who is looked for in the texts
    # instead: a regular expression whose first group is a name
    pattern: str | None = setting(None, A_PATTERN)
    forget: list[str] | None = None  # names; null: people by chance of their names, until `share` is reached
    share: float = setting(0.01, PART)  # of the training rows
    # in the place of names in test texts
    words: list[str] = setting(["_person1_", "_person2_"], some("needs a word at least, e.g. [_person_]"))
    most_words: int | None = setting(None, at_least(2))  # of a text; null: all
    rows: int | None = setting(None, at_least(2))  # the first n of each file; null: all


@dataclass
class TofuConfig(DataConfig):
    """TOFU (``unlearn/data/tofu.py``), from a local folder or the hub."""

    path: str | None = None  # folder with TOFU's files; null: the hub
    forget: str = setting("forget01", one_of(*TOFU_SETS))
    retain_rows: int | None = setting(None, at_least(1))  # the first n rows of the retain set; null: all
    refusals: str | None = None  # file of plain lines; null: idontknow.jsonl where there is one


@dataclass
class WordsConfig:
    """How a text is cut: every word after the first ``prompt`` ones is in one answer, whose prompt are those before."""

    prompt: int = setting(32, at_least(1))  # words; of a text that has fewer than twice as many, half of them
    answer: int = setting(64, at_least(1))  # words, at most


@dataclass
class ColumnsConfig:
    """What the columns of a record are called; those after `answer` may be missing."""

    question: str = "question"
    answer: str = "answer"
    paraphrased_answer: str = "paraphrased_answer"
    paraphrased_question: str = "paraphrased_question"
    perturbed_answers: str = "perturbed_answer"  # wrong ones: a text, or a list of texts
    text: str = "text"  # instead of question and answer: a text that is cut by `words`
    id: str | None = None  # null: rows are numbered


@dataclass
class JsonlConfig(DataConfig):
    """A user's own files (``unlearn/data/jsonl.py``): each key one file, or a list of files."""

    forget: Any = setting(None, OWN_FILES)  # .jsonl, .json: questions and answers, or texts; .txt: one text
    retain: Any = setting(None, OWN_FILES)
    real_authors: Any = setting(None, OWN_FILES)
    world_facts: Any = setting(None, OWN_FILES)
    holdout: Any = setting(None, OWN_FILES)  # what no model has seen, for membership inference
    refusals: Any = setting(None, OWN_FILES)  # plain lines
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    words: WordsConfig = field(default_factory=WordsConfig)


@dataclass
class MuseConfig(DataConfig):
    """MUSE (``unlearn/data/muse.py``), from a local folder or the hub."""

    corpus: str = setting(MISSING, one_of("news", "books"))
    path: str | None = None  # folder with MUSE's files; null: the hub
    forget: str = "raw/forget"  # subset/split: texts, or the questions of knowmem
    retain: str = setting("raw/retain1", one_of("raw/retain1", "raw/retain2", "knowmem/retain_qa"))
    shots: int | None = setting(None, at_least(0))  # answered questions before each question; null: all there are (10)
    words: WordsConfig = field(default_factory=WordsConfig)


NUMBERED = (BiosConfig, ReviewsConfig, DialoguesConfig)  # worlds that are made here: their people have numbers
DATA_CONFIGS = {  # by the name of their reader
    "bios": BiosConfig, "tofu": TofuConfig, "jsonl": JsonlConfig, "muse": MuseConfig,
    "reviews": ReviewsConfig, "dialogues": DialoguesConfig, "people": PeopleConfig,
}  # fmt: skip
