"""A task on real texts of people, from local files or the hub: IMDB's sentiment and SAMSum's summaries, as in EUL
(arXiv 2310.20150), or others of the same form.

Nobody is recognised in a text here: who is named is what a file of names, or a regular expression, finds. What they
miss stays in the texts, in training and test alike."""

import re
from collections import Counter
from collections.abc import Collection, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from omegaconf import MISSING

from unlearn.config.data import DataConfig
from unlearn.config.setting import A_FILE, Bound, at_least, need, setting, some
from unlearn.data import texts
from unlearn.data.people import divided, unnamed
from unlearn.data.records import Record, Tables, lines, text
from unlearn.data.rows import DataError, DataSet, Row, pair
from unlearn.store.identity import digest


def _is_pattern(value: str) -> bool:
    try:
        return re.compile(value).groups >= 1
    except re.error:
        return False


A_PATTERN = Bound(_is_pattern, "must be a regular expression with a group, which is the name")
PART = Bound(lambda v: 0 < v < 1, "must lie between 0 and 1, both excluded")


@dataclass
class Settings(DataConfig):
    path: str | None = None  # folder with TRAIN.jsonl and TEST.jsonl (or .json); null: the hub
    hub: str = MISSING  # name of the data set there
    train: str = "train"
    test: str = "test"
    question: str = MISSING  # columns
    answer: str = MISSING
    labels: list[str] = setting([])  # words for the answers 0, 1, …; none: answers are texts
    names: str | None = setting(None, A_FILE)  # a file with a name in each line: who is looked for in the texts
    pattern: str | None = setting(None, A_PATTERN)  # instead: a regular expression whose first group is a name
    forget: list[str] | None = None  # names; null: people by chance of their names, until `share` is reached
    share: float = setting(0.01, PART)  # of the training rows
    words: list[str] = setting(["_person1_", "_person2_"], some("needs a word, e.g. [_person_]"))  # of names in tests
    most_words: int | None = setting(None, at_least(2))  # of a text; null: all
    rows: int | None = setting(None, at_least(2))  # the first n of each file; null: all

    def problems(self) -> Iterator[str]:
        yield from super().problems()
        yield from self.nothing_else(forget="null")
        rule = "nobody is recognised in texts here: give either data.names=FILE (a name in each line) or data.pattern"
        yield from need((self.names is None) != (self.pattern is None), "data.names", self.names, rule)

    def are_requests(self, requests: list[Any]) -> tuple[bool, str]:
        fit = all(isinstance(named, list) and named and all(isinstance(n, str) for n in named) for named in requests)
        return fit, "must be lists of names, [[ANNA],[BEN,CARL]]"


def read(cfg: Settings, seed: int = 0) -> DataSet:
    """Forget and retain rows of the training file, and test rows in which nobody is named."""
    finder = re.compile(cfg.pattern or "") if cfg.names is None else texts.names_in(lines(Path(cfg.names)))
    tables = Tables(cfg.path, cfg.hub, f"the one with {cfg.train}.jsonl")

    def rows(part: str) -> list[Row]:
        table = tables.table((f"{part}.jsonl", f"{part}.json", f"{part}.csv", f"{part}.parquet"), (None, part))
        return texts.distinct(_row(r, i, part, cfg, finder) for i, r in enumerate(table[: cfg.rows]))

    train, test = rows(cfg.train), rows(cfg.test)
    learnt = {pair(row) for row in train}
    held_out = tuple(row for row in (unnamed(row, cfg.words) for row in test) if pair(row) not in learnt)
    key, forget = "data.forget", cfg.forget
    if cfg.requests is not None:
        key, forget = "data.requests", [name for people in cfg.requests for name in people]
    elif forget is None:
        forget = chosen(train, cfg.share)
    known = {name for row in train for name in row.entities}
    for name in forget:
        if name not in known:
            raise DataError(f"{key}: nobody is called {name!r} in the training texts, as they are searched here")
    splits, sequence = divided(train, cfg, forget, cfg.requests)
    return DataSet(cfg.name, splits | {"test": held_out}, sequence=sequence)


def chosen(rows: Collection[Row], share: float) -> list[str]:
    """People in an order by chance (their names' hashes), until their rows are ``share`` of all. Whoever is in more
    rows than that is passed over; ``DataError`` where nobody is left."""
    often = Counter(name for row in rows for name in set(row.entities))
    wanted, found, taken = round(share * len(rows)), [], 0
    for name in sorted(often, key=digest):
        if taken + often[name] <= max(1, wanted):
            found.append(name)
            taken = sum(bool(set(found) & set(row.entities)) for row in rows)
        if taken >= wanted:
            break
    if not found:
        few = f"nobody is named in as few as {wanted} of {len(rows)} training texts"
        raise DataError(f"data.share={share:g}: {few}; give data.forget=[NAME], or a larger share")
    return found


def _row(record: Record, number: int, part: str, cfg: Settings, finder: re.Pattern[str]) -> Row:
    """A text with its answer; of a label its word, and as wrong answers the other labels' words."""
    place, values = record
    said = text(record, cfg.question).replace("\r\n", "\n").strip()
    if cfg.most_words is not None:
        words = list(re.finditer(r"\S+", said))[: cfg.most_words]
        said = said[: words[-1].end()]
    if not cfg.labels:
        answer = text(record, cfg.answer).strip()
    else:
        answer = values.get(cfg.answer)
        if isinstance(answer, int) and not isinstance(answer, bool) and 0 <= answer < len(cfg.labels):
            answer = cfg.labels[answer]
        if answer not in cfg.labels:
            raise DataError(f"{place}: {cfg.answer}={answer!r}: must be one of {', '.join(cfg.labels)}, or its number")
    others = tuple(label for label in cfg.labels if label != answer)
    id = f"{part}/{number:06d}"
    names = dict.fromkeys(match[1] for match in finder.finditer(said) if match[1])  # in the order they come first
    return Row(id, said, answer, perturbed_answers=others, place=place, group=id, entities=tuple(names))
