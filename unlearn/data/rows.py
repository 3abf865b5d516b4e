"""The shape of every data set: rows of one question and its answers, in named splits.

Readers produce a ``DataSet``; nothing after them knows where rows came from. A text to be continued is a row, too: its
beginning is the question, its continuation the answer.
"""

import hashlib
import json
import unicodedata
from collections.abc import Iterable, Sequence
from dataclasses import asdict, dataclass, field

import regex

from unlearn.config.data import DataConfig
from unlearn.config.redaction import redact

GENERAL = ("real_authors", "world_facts")  # what every model of the pair may know
NEIGHBOURS = "neighbours"  # what lies beside the forgotten: known by the target, and not trained on
PROBES = ("forget_level1", "forget_level2", "forget_level3")  # of RWKU: a blank to fill, questions, attacks
UNTRAINED = (  # evaluated where a data set has them, and never trained on as such
    "test",  # held out of a task's data, its people's names replaced
    "forget_knowledge", "retain_knowledge",  # questions about the texts of both sets
    *PROBES,
    "forget_verbatim",  # beginnings and continuations from the forget set's texts
)  # fmt: skip
SPLITS = (
    "forget", "retain", NEIGHBOURS, *GENERAL,  # what models are trained on
    "holdout",  # seen by no model
    "retain_untrained",  # evaluated with the retain set, but not trained on (see DataSet.evaluated)
    *UNTRAINED,
)  # fmt: skip
REQUEST = "request_"  # before its number: the split of a request that is not the one being unlearnt
DISJOINT = (
    *(("forget", other) for other in ("retain", NEIGHBOURS, *GENERAL, "holdout", "retain_untrained")),
    *(("holdout", other) for other in ("retain", NEIGHBOURS, *GENERAL)),
    *((NEIGHBOURS, other) for other in ("retain", *GENERAL)),
    *(("test", other) for other in ("forget", "retain", *GENERAL)),
)


class DataError(ValueError):
    """A data set that cannot be used: the message carries file, line and value, the rule, and the choices."""

    def __init__(self, message: str):
        super().__init__(redact(message))


@dataclass(frozen=True)
class Row:
    """One question with its right, paraphrased and wrong answers (TOFU's shape)."""

    id: str  # unique in the data set
    question: str
    answer: str
    paraphrased_answer: str | None = None
    paraphrased_question: str | None = None
    perturbed_answers: tuple[str, ...] = ()
    place: str = field(default="", repr=False, compare=False)  # file and line, for messages: no part of the data
    group: str = field(default="", repr=False, compare=False)  # whom or what it is about, where known: for statistics
    entities: tuple[str, ...] = ()  # names of people in the question: what is masked in it as a text
    key: tuple[str, ...] = ()  # spellings of the fact: an answer that holds one of them knows it
    guess_question: str | None = None  # the question about a name that no model can know: what is said then is a guess


@dataclass(frozen=True)
class Requested:
    """Forget sets that are asked for one after another, over one target that knows them all. A reader gives the rows
    that may be asked for in an order that no request changes, so that target, tokenizer and anchor stay what they
    are. One request is unlearnt (or several at once); every other one is a split, ``request_1``, …."""

    rows: tuple[Row, ...]  # what target and retrained differ in
    requests: tuple[tuple[Row, ...], ...]  # disjoint parts of them
    asked: tuple[int, ...]  # which are unlearnt together, from 1

    def without(self, most: int) -> tuple[Row, ...]:
        """The rows that requests 1 to ``most`` leave."""
        gone = {row.id for request in self.requests[:most] for row in request}
        return tuple(row for row in self.rows if row.id not in gone)


@dataclass(frozen=True)
class DataSet:
    """Rows by split, and what is only trained on: ``wordings`` (general facts in every wording), ``refusals`` (IDK)."""

    name: str
    splits: dict[str, tuple[Row, ...]]
    wordings: tuple[Row, ...] = ()
    refusals: tuple[str, ...] = ()
    sequence: Requested | None = None  # None: one forget set, and the target learnt it and the retain set
    _fingerprint: list[str] = field(default_factory=list, repr=False, compare=False)

    def general(self) -> tuple[Row, ...]:
        return tuple(row for split in GENERAL for row in self.splits.get(split, ()))

    def neighbours(self) -> tuple[Row, ...]:
        return self.splits.get(NEIGHBOURS, ())

    def known(self) -> tuple[Row, ...]:
        """What the target learnt."""
        rows = (*self.splits["forget"], *self.splits["retain"]) if self.sequence is None else self.sequence.rows
        return (*rows, *self.neighbours(), *self.general())

    def left(self) -> tuple[Row, ...]:
        """What the retrained model learnt: of a sequence all but what is asked for up to the request being unlearnt."""
        rows = self.splits["retain"] if self.sequence is None else self.sequence.without(max(self.sequence.asked))
        return (*rows, *self.neighbours(), *self.general())

    def unnamed(self) -> tuple[Row, ...]:
        """What no request names: all that a small pair may know that shall never have seen a forget set."""
        rows = self.splits["retain"] if self.sequence is None else self.sequence.without(len(self.sequence.requests))
        return (*rows, *self.neighbours(), *self.general())

    def whole(self) -> "DataSet":
        """The same rows whatever is asked for: what a tokenizer is trained on."""
        if self.sequence is None:
            return self
        asked = ("forget", "retain", *PROBES)
        others = {k: v for k, v in self.splits.items() if k not in asked and not k.startswith(REQUEST)}
        return DataSet(self.name, {"retain": self.sequence.rows} | others, self.wordings, self.refusals)

    def requests(self) -> tuple[str, ...]:
        """The splits of the other requests."""
        return tuple(name for name in self.splits if name.startswith(REQUEST))

    def evaluated(self, split: str) -> tuple[Row, ...]:
        """Rows on which a split is evaluated: where only some have wrong answers (TOFU's retain set), those; of a
        retain set that is cut for training all; rows of requests with their request, also those that are retained."""
        rows = self.splits.get(split, ()) + (self.splits.get("retain_untrained", ()) if split == "retain" else ())
        if self.sequence is not None and split == "retain":
            named = {row.id for request in self.sequence.requests for row in request}
            rows = tuple(row for row in rows if row.id not in named)
        return tuple(r for r in rows if r.perturbed_answers) or rows

    def fingerprint(self) -> str:
        """Hash of every word in the data set, whatever file or generator it came from."""
        if not self._fingerprint:
            words = [{k: _words(v) for k, v in self.splits.items()}, _words(self.wordings), self.refusals]
            if self.sequence is not None:
                words.append([[row.id for row in self.sequence.rows], self.sequence.asked])
            text = json.dumps(words, sort_keys=True)
            self._fingerprint.append(hashlib.sha256(text.encode()).hexdigest()[:16])
        return self._fingerprint[0]


NOTHING = {"entities": (), "key": (), "guess_question": None}


def _words(rows: Iterable[Row]) -> list[dict]:
    """What is said in each row; nothing of what came later and it has not, so that such data stay what they were."""
    left = [{k: v for k, v in asdict(r).items() if k not in ("place", "group")} for r in rows]
    return [{k: v for k, v in row.items() if k not in NOTHING or v != NOTHING[k]} for row in left]


def check(data: DataSet) -> DataSet:
    """Refuse a data set on which training or a metric would be silently wrong."""
    for split in ("forget", "retain"):
        if not data.splits.get(split):
            there = ", ".join(k for k, v in data.splits.items() if v) or "none"
            raise DataError(f"data set {data.name!r}: the {split} set needs a row; splits with rows: {there}")
    ids: dict[str, tuple[str, Row]] = {}
    for split, rows in data.splits.items():
        if split not in SPLITS and not (split.startswith(REQUEST) and data.sequence is not None):
            raise DataError(f"data set {data.name!r}: unknown split {split!r}; splits are {', '.join(SPLITS)}")
        for row in rows:
            where = place(data, split, row)
            for name in ("question", "answer"):
                if not getattr(row, name).strip():
                    raise DataError(f"{where}: {name} is empty")
            if row.id in ids and ids[row.id][1] is not row:  # a request's retained row is one row in two splits
                first = place(data, *ids[row.id])
                raise DataError(f"{where}: id {row.id!r} is that of another row ({first}); ids must be unique")
            ids[row.id] = split, row
    rows, seen = data.splits["forget"], {}
    for row in rows:
        first = seen.setdefault(pair(row), row)
        if first is not row:
            twice = f"{row.question!r} with the same answer is there twice, first in {place(data, 'forget', first)}"
            raise DataError(f"{place(data, 'forget', row)}: {twice}; remove one of them, or it would count twice")
    lacking = [r for r in rows if not r.perturbed_answers]
    if lacking and len(lacking) < len(rows):  # they would drop out of the truth ratio unnoticed
        rule = f"{len(rows) - len(lacking)} of {len(rows)} forget rows have some: give them to all rows or to none"
        raise DataError(f"{place(data, 'forget', lacking[0])}: {lacking[0].question!r} has no wrong answer, and {rule}")
    never = (NEIGHBOURS, *GENERAL, "holdout")  # what is not part of any request
    for one, other in (*DISJOINT, *((name, other) for name in data.requests() for other in never)):
        known = {pair(r): r for r in data.splits.get(one, ())}
        for row in data.splits.get(other, ()):
            twin = known.get(pair(row))
            if twin is not None:
                both = f"is both in the {other} and in the {one} set ({place(data, one, twin)}); they must not overlap"
                raise DataError(f"{place(data, other, row)}: {row.question!r} with the same answer {both}")
    return data


def pair(row: Row) -> tuple[str, str]:
    """What makes two rows the same."""
    return as_read(row.question), as_read(row.answer)


def as_read(text: str) -> str:
    """What a reader calls the same text: without case, width, ligatures, invisible characters, and runs of spaces."""
    if not text.isascii():
        text = regex.sub(r"\p{Default_Ignorable_Code_Point}+", "", unicodedata.normalize("NFKC", text))
    return " ".join(text.casefold().split())


def letters(text: str) -> str:
    """The same without any spaces, which programs put or leave out around punctuation."""
    return as_read(text).replace(" ", "")


def divide(
    rows: Sequence[Row], named: Sequence[Sequence[Row]], cfg: DataConfig
) -> tuple[dict[str, tuple[Row, ...]], Requested]:
    """The splits ``forget``, ``retain`` (what no request names and, as ``data.retained`` says, rows of later or earlier
    requests) and ``request_<n>``, and their sequence. ``named``: the rows of each request, all among ``rows``.
    ``DataError`` for requests that are empty or share a row."""
    order = {row.id: i for i, row in enumerate(rows)}
    requests = tuple(tuple(sorted(request, key=lambda row: order[row.id])) for request in named)
    first: dict[tuple[str, str], int] = {}
    for n, request in enumerate(requests, 1):
        if not request:
            raise DataError(f"data.requests: request {n} names no row that those before it do not; leave it out")
        for row in request:
            other = first.setdefault(pair(row), n)
            if other != n:
                rule = f"is in requests {other} and {n}; requests must be disjoint"
                raise DataError(f"data.requests: {row.place or row.id}: {row.question!r} {rule}")
    if cfg.request is None:
        numbers = tuple(range(1, len(requests) + 1))
    else:
        numbers = (cfg.request,) if isinstance(cfg.request, int) else tuple(sorted(cfg.request))
    last = max(numbers)
    others = [n for n in range(1, len(requests) + 1) if n not in numbers]
    kept = [n for n in others if cfg.retained in ("others", "later" if n > last else "earlier")]
    left_out = {row.id for n, request in enumerate(requests, 1) if n not in kept for row in request}
    wanted = {row.id for n in numbers for row in requests[n - 1]}
    splits = {
        "forget": tuple(row for row in rows if row.id in wanted),
        "retain": tuple(row for row in rows if row.id not in left_out),
    }
    return splits | {f"{REQUEST}{n}": requests[n - 1] for n in others}, Requested(tuple(rows), requests, numbers)


def place(data: DataSet, split: str, row: Row) -> str:
    """Where a row came from: file and line, or else its id."""
    return row.place or f"data set {data.name!r}, {split} row {row.id!r}"
