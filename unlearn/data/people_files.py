"""A task on real texts of people, from local files or the hub: IMDB's sentiment and SAMSum's summaries, as in EUL
(arXiv 2310.20150), or others of the same form.

Nobody is recognised in a text here: who is named is what a file of names, or a regular expression, finds. What they
miss stays in the texts, in training and test alike. (The paper took AllenNLP's recogniser for IMDB, and the speakers
that SAMSum itself marks.)
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Callable, Collection, Iterable
from pathlib import Path

from unlearn.config.data import PeopleConfig
from unlearn.data.people import cut, requested, unnamed
from unlearn.data.records import Hub, Record, find, lines, listing, records, text
from unlearn.data.requested import Asked
from unlearn.data.rows import DataError, DataSet, Row, pair
from unlearn.store.identity import digest


def read(cfg: PeopleConfig) -> DataSet:
    """Forget and retain rows of the training file, and test rows in which nobody is named."""
    names = _finder(cfg)
    train, test = (_distinct([_row(r, i, part, cfg, names) for i, r in enumerate(_table(cfg, part))])
                   for part in (cfg.train, cfg.test))  # fmt: skip
    learnt = {pair(row) for row in train}
    held_out = tuple(row for row in (unnamed(row, cfg.words) for row in test) if pair(row) not in learnt)
    if cfg.requests is not None:
        _known(train, (name for people in cfg.requests for name in people), "data.requests")
        splits, sequence = requested(train, cfg.requests, Asked.of(cfg))
        return DataSet(cfg.name, splits | {"test": held_out}, sequence=sequence)
    asked = cfg.forget if cfg.forget is not None else chosen(train, cfg.share)
    _known(train, asked, "data.forget")
    forget, retain = cut(train, asked)
    return DataSet(cfg.name, {"forget": forget, "retain": retain, "test": held_out})


def _known(rows: Collection[Row], asked: Iterable[str], key: str) -> None:
    names = {name for row in rows for name in row.entities}
    for name in asked:
        if name not in names:
            raise DataError(f"{key}: nobody is called {name!r} in the training texts, as they are searched here")


def chosen(rows: Collection[Row], share: float) -> list[str]:
    """People in an order by chance (their names' hashes), until their rows are ``share`` of all.

    Whoever is in more rows than that is passed over; ``DataError`` where nobody is left.
    """
    often = Counter(name for row in rows for name in set(row.entities))
    wanted, found, taken = round(share * len(rows)), [], 0
    for name in sorted(often, key=digest):
        if taken + often[name] <= max(1, wanted):
            found.append(name)
            taken = sum(bool(set(found) & set(row.entities)) for row in rows)
        if taken >= wanted:
            break
    if not found:
        raise DataError(
            f"data.share={share:g}: nobody is named in as few as {wanted} of {len(rows)} training texts; give "
            "data.forget=[NAME], or a larger share"
        )
    return found


def _finder(cfg: PeopleConfig) -> Callable[[str], tuple[str, ...]]:
    """From a text to the names in it, in the order in which they come first."""
    if cfg.names is not None:
        longest = sorted(set(lines(Path(cfg.names))), key=lambda name: (-len(name), name))
        whole = re.compile(rf"(?<!\w)({'|'.join(map(re.escape, longest))})(?!\w)")
    else:
        whole = re.compile(cfg.pattern or "")
    return lambda said: tuple(dict.fromkeys(name for match in whole.finditer(said) if (name := match[1])))


def _table(cfg: PeopleConfig, part: str) -> list[Record]:
    if cfg.path is None:
        return Hub(cfg.hub).table(None, part)[: cfg.rows]
    folder = Path(cfg.path)
    if not folder.is_dir():
        raise DataError(f"data.path={cfg.path!r}: no such folder; give the one with {part}.jsonl")
    file = find(folder, f"{part}.jsonl", f"{part}.json")
    if file is None:
        raise DataError(f"data.path={cfg.path!r}: {part}.jsonl is missing (or .json); it has {listing(folder)}")
    return records(file)[: cfg.rows]


def _row(record: Record, number: int, part: str, cfg: PeopleConfig, names: Callable[[str], tuple[str, ...]]) -> Row:
    place, values = record
    said = text(record, cfg.question).replace("\r\n", "\n").strip()
    if cfg.most_words is not None:
        words = list(re.finditer(r"\S+", said))[: cfg.most_words]
        said = said[: words[-1].end()]
    answer, others = _answer(record, cfg)
    id = f"{part}/{number:06d}"
    return Row(id, said, answer, perturbed_answers=others, place=place, group=id, entities=names(said))


def _answer(record: Record, cfg: PeopleConfig) -> tuple[str, tuple[str, ...]]:
    """The answer; of a label its word, and the other labels' words."""
    if not cfg.labels:
        return text(record, cfg.answer).strip(), ()
    place, values = record
    value = values.get(cfg.answer)
    if value in cfg.labels:
        label = value
    elif isinstance(value, int) and not isinstance(value, bool) and 0 <= value < len(cfg.labels):
        label = cfg.labels[value]
    else:
        raise DataError(f"{place}: {cfg.answer!r} is {value!r}: must be one of {', '.join(cfg.labels)}, or its number")
    return label, tuple(other for other in cfg.labels if other != label)


def _distinct(rows: list[Row]) -> list[Row]:
    """Without repetitions, which both data sets have: the first of each text."""
    return list({pair(row): row for row in reversed(rows)}.values())[::-1]
