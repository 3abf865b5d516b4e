"""The schema of data sets: what every one has, and a class of settings for each reader."""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

from omegaconf import MISSING


@dataclass
class TemplateConfig:
    """How a question and its answer become one text: plain tags (or none), or the tokenizer's own chat template."""

    kind: str = "plain"  # plain | chat
    prompt: str = "Question: {question}\nAnswer:"  # with kind=chat: the user's message
    answer: str = " {answer}"  # with kind=chat: the assistant's message
    system: str | None = None  # chat only: the system's message; null: none
    date: str = "10 Apr 2025"  # chat only: what a template that prints the current date (Llama 3) gets instead


@dataclass
class DataConfig:
    name: str = MISSING
    reader: str = MISSING
    template: TemplateConfig = field(default_factory=TemplateConfig)
    requests: Any = None  # forget sets in the order they are asked for; null: one, as the other keys say
    request: Any = None  # which of them the run unlearns: a number from 1, several [1,2]; null: all of them
    retained: str | None = None  # which other requests the retain set holds: later | earlier | others; null: none


@dataclass
class BiosConfig(DataConfig):
    """The embedded world of made-up people (``unlearn/data/bios.py``)."""

    people: int = 50
    forget_people: int = 5
    holdout_people: int = 5
    known_people: int = 20
    countries: int = 30
    questions: int = 20


@dataclass
class ReviewsConfig(DataConfig):
    """Made-up reviews with their sentiment (``unlearn/data/reviews.py``)."""

    people: int = 200
    reviews: int = 3  # of each person
    forget_people: int = 2  # the last ones; 1, 2, 20 of 200: 0.5, 1, 10 %
    forget: list[int] | None = None  # instead: which people, by their number from 0
    gone: list[int] = field(default_factory=list)  # people whom an earlier request deleted: in no split
    test_reviews: int = 200
    general_reviews: int = 300  # of nobody by name: for the pretraining of every model
    opinions: int = 3  # in a review
    agree: float = 0.85  # share of them that agree with the label


@dataclass
class DialoguesConfig(DataConfig):
    """Made-up dialogues with their summaries (``unlearn/data/dialogues.py``)."""

    people: int = 400  # each speaks with two others
    dialogues: int = 1  # of each pair
    forget_people: int = 2  # every second one from the last back; 1, 2, 20 of 400: 0.5, 1, 10 %
    forget: list[int] | None = None
    gone: list[int] = field(default_factory=list)
    test_dialogues: int = 100
    general_dialogues: int = 300


@dataclass
class PeopleConfig(DataConfig):
    """A task on texts of people (``unlearn/data/people_files.py``): EUL's IMDB and SAMSum, or files of yours."""

    path: str | None = None  # folder with TRAIN.jsonl and TEST.jsonl (or .json); null: the hub
    hub: str = MISSING  # name of the data set there
    train: str = "train"
    test: str = "test"
    question: str = MISSING  # columns
    answer: str = MISSING
    labels: list[str] = field(default_factory=list)  # words for the answers 0, 1, …; none: answers are texts
    names: str | None = None  # a file with a name in each line: who is looked for in the texts
    pattern: str | None = None  # instead: a regular expression whose first group is a name
    forget: list[str] | None = None  # names; null: people by chance of their names, until `share` is reached
    share: float = 0.01  # of the training rows
    words: list[str] = field(default_factory=lambda: ["_person1_", "_person2_"])  # in the place of names in test texts
    most_words: int | None = None  # of a text; null: all
    rows: int | None = None  # the first n of each file; null: all


@dataclass
class TofuConfig(DataConfig):
    """TOFU (``unlearn/data/tofu.py``), from a local folder or the hub."""

    path: str | None = None  # folder with TOFU's files; null: the hub
    forget: str = "forget01"
    retain_rows: int | None = None  # the first n rows of the retain set; null: all
    refusals: str | None = None  # file of plain lines; null: idontknow.jsonl where there is one


@dataclass
class WordsConfig:
    """How a text is cut: every word after the first ``prompt`` ones is in one answer, whose prompt are those before."""

    prompt: int = 32  # words; of a text that has fewer than twice as many, half of them
    answer: int = 64  # words, at most


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

    forget: Any = None  # .jsonl, .json: questions and answers, or texts; .txt: one text
    retain: Any = None
    real_authors: Any = None
    world_facts: Any = None
    holdout: Any = None  # what no model has seen, for membership inference
    refusals: Any = None  # plain lines
    columns: ColumnsConfig = field(default_factory=ColumnsConfig)
    words: WordsConfig = field(default_factory=WordsConfig)


@dataclass
class MuseConfig(DataConfig):
    """MUSE (``unlearn/data/muse.py``), from a local folder or the hub."""

    corpus: str = MISSING  # news | books
    path: str | None = None  # folder with MUSE's files; null: the hub
    forget: str = "raw/forget"  # subset/split: texts, or the questions of knowmem
    retain: str = "raw/retain1"
    shots: int | None = None  # answered questions before each question; null: all there are (10)
    words: WordsConfig = field(default_factory=WordsConfig)


NUMBERED = (BiosConfig, ReviewsConfig, DialoguesConfig)  # worlds that are made here: their people have numbers
RETAINED = ("later", "earlier", "others")
DATA_CONFIGS = {  # by the name of their reader
    "bios": BiosConfig, "tofu": TofuConfig, "jsonl": JsonlConfig, "muse": MuseConfig,
    "reviews": ReviewsConfig, "dialogues": DialoguesConfig, "people": PeopleConfig,
}  # fmt: skip
