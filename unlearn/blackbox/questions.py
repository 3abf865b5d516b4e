"""What a black box is asked, and what an answer is: ids and log-probabilities, whatever the form of the request."""

import hashlib
import json
import sqlite3
import struct
import threading
import weakref
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
from filelock import AcquireReturnProxy

from unlearn.config.pair import HttpConfig
from unlearn.config.schema import ConfigError
from unlearn.ensemble.rows import spread
from unlearn.store.entries import ANSWERS
from unlearn.store.files import DiskError, saving
from unlearn.store.locks import LOCKS, lock, locked, networked

ROWS, NEXT, SAY = "rows", "next", "say"
HEADER = struct.Struct("<IIIiI")  # checksum of all behind it, rows, slots, whether there are ids, tokens said
# What is left where the known tokens have all the mass, as far as fp32 log-probabilities can tell: never nothing, since
# a logit of −∞ would make NaN of a divergence.
LEAST = 1e-7


class BlackBoxError(ConfigError):
    """A server that cannot be used, or did not answer; what it had answered before stays."""


@dataclass(frozen=True)
class Question:
    """``rows``: those that predict ids[first:]. ``next``: that after all. ``say``: ``most`` greedy tokens, and rows."""

    kind: str
    ids: tuple[int, ...]
    first: int = 0
    most: int = 0

    @property
    def key(self) -> bytes:
        """Says nothing of the ids to who does not guess them."""
        total = hashlib.sha256(f"{self.kind} {self.first} {self.most} ".encode())
        total.update(np.array(self.ids, dtype="<i8").tobytes())
        return total.digest()[:20]

    @property
    def tokens(self) -> int:
        """The most that answering it may cost: read and generated."""
        return len(self.ids) + max(1, self.most)


def rows_of(prompt: Sequence[int], answer: Sequence[int]) -> Question:
    return Question(ROWS, (*prompt, *answer), first=len(prompt))


@dataclass(frozen=True)
class Answer:
    """Rows as they were given: the likeliest tokens in order and, in the last slot, the row's own token (the next one
    of the text, or the one that was said); or all tokens in order of their ids."""

    ids: np.ndarray | None  # [n, k + 1] int32; None: all
    logp: np.ndarray  # [n, k + 1] or [n, V'] fp32
    said: tuple[int, ...] = ()  # of ``say``

    def pack(self) -> bytes:
        ids = b"" if self.ids is None else self.ids.astype("<i4").tobytes()
        body = ids + self.logp.astype("<f4").tobytes() + np.array(self.said, dtype="<i4").tobytes()
        return HEADER.pack(zlib.crc32(body), *self.logp.shape, self.ids is not None, len(self.said)) + body

    @classmethod
    def unpack(cls, data: bytes) -> "Answer | None":
        """None where these are not the bytes that were packed."""
        if len(data) < HEADER.size:
            return None
        checksum, n, slots, has_ids, said = HEADER.unpack_from(data)
        body = data[HEADER.size :]
        if zlib.crc32(body) != checksum or len(body) != 4 * (n * slots * (1 + has_ids) + said):
            return None
        parts = np.frombuffer(body, dtype="<i4")
        ids = parts[: n * slots].reshape(n, slots) if has_ids else None
        logp = parts[n * slots * has_ids : n * slots * (1 + has_ids)].view("<f4").reshape(n, slots)
        return cls(ids, logp, tuple(parts[len(parts) - said :].tolist()))

    def entries(self, at: int) -> dict[int, float]:
        """Log-probabilities by token that a row has."""
        ids = range(self.logp.shape[1]) if self.ids is None else self.ids[at].tolist()
        return dict(zip(ids, self.logp[at].tolist(), strict=True))

    def best(self) -> int:
        """The likeliest token of the first row."""
        entries = self.entries(0)
        return max(entries, key=entries.get)

    def row(self, at: int) -> "Answer":
        """One row, as one whose token was not said."""
        return Answer(self.ids[at : at + 1], self.logp[at : at + 1]).unsaid()

    def unsaid(self) -> "Answer":
        """The same, with the last row's likeliest token instead of its own."""
        ids, logp = self.ids.copy(), self.logp.copy()
        ids[-1, -1], logp[-1, -1] = ids[-1, 0], logp[-1, 0]
        return replace(self, ids=ids, logp=logp)


@dataclass(frozen=True)
class Top:
    """Next-token distributions of n rows: of the likeliest tokens and the residual mass, or of all tokens."""

    ids: np.ndarray | None  # [n, slots] int32; a slot may repeat a token of its row. None: slot v is token v
    logp: np.ndarray  # [n, slots] fp32 log-probabilities
    residual: np.ndarray | None  # [n] fp32 log of the mass of all other tokens; None: there are none

    def rows(self, width: int, device: torch.device) -> torch.Tensor:
        """Log-probabilities [n, V] of ``width`` tokens."""
        if self.ids is None:
            return torch.from_numpy(self.logp[:, :width]).to(device)
        return spread(
            *(torch.from_numpy(values).to(device) for values in (self.ids, self.logp, self.residual)), width=width
        )


def cut(answer: Answer, own: Sequence[int], k: int, width: int) -> Top:
    """Rows for ensembles of ``width`` tokens from an answer of as many or more; ``own`` [n] are the rows' own. Tokens
    beyond ``width`` are padding of the server's vocabulary and belong to the residual mass."""
    if k == 0:
        return Top(None, answer.logp[:, :width].copy(), None)
    if answer.ids is None:
        likeliest = np.argsort(-answer.logp[:, :width], axis=1, kind="stable")[:, :k]
        ids = np.concatenate([likeliest, np.asarray(own)[:, None]], axis=1)
        answer = Answer(ids.astype(np.int32), np.take_along_axis(answer.logp[:, :width], ids, axis=1))
    ids = np.concatenate([answer.ids[:, :k], answer.ids[:, -1:]], axis=1)
    logp = np.concatenate([answer.logp[:, :k], answer.logp[:, -1:]], axis=1)
    ids, logp = _without_padding(ids, logp, width)
    again = ids[:, :-1] == ids[:, -1:]
    mass = np.exp(logp[:, :-1].astype(np.float64)) * ~again
    left = 1 - mass.sum(1) - np.exp(logp[:, -1].astype(np.float64))
    return Top(ids.astype(np.int32), logp.astype(np.float32), np.log(np.maximum(left, LEAST)).astype(np.float32))


def _without_padding(ids: np.ndarray, logp: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Slots of tokens beyond ``width`` repeat the row's own token; where that lies beyond it, too, the likeliest."""
    foreign = ids >= width
    if foreign.all(1).any():
        rule = "the server reads another vocabulary, or a larger pair.target.http.k is needed"
        raise BlackBoxError(f"all {ids.shape[1] - 1} tokens of a row lie beyond the pair's {width:,}: {rule}")
    best = foreign.argmin(1)[:, None]  # the first that is not; they are in order
    own = np.where(foreign[:, -1:], best, ids.shape[1] - 1)
    ids[:, -1:], logp[:, -1:] = np.take_along_axis(ids, own, 1), np.take_along_axis(logp, own, 1)
    return np.where(ids >= width, ids[:, -1:], ids), np.where(ids >= width, logp[:, -1:], logp)


# --- what was answered and spent --------------------------------------------------------------------------------------


SCHEMA = """
create table if not exists answers (key blob, k integer, value blob, primary key (key, k));
create table if not exists along (key blob primary key, answer blob, place integer);
create table if not exists spent (what text primary key, amount integer);
create table if not exists notes (name text primary key, value text);
insert or ignore into spent values ('requests', 0), ('tokens', 0);
"""
PATIENCE = 60.0  # seconds for another process's transaction


class Memo:
    """Safe to share between threads and processes."""

    def __init__(self, root: Path, name: str):
        """``root`` is the store's folder; ``name`` identifies the model."""
        self.path = root / ANSWERS / f"{name}.sqlite"
        self._lock = lock(root / LOCKS, f"{ANSWERS}-{name}")
        self._one = threading.RLock()
        self.own = {"requests": 0, "tokens": 0}  # spent by this process
        with saving(self.path):
            self.path.parent.mkdir(parents=True, exist_ok=True)
        with self._telling():
            self._db = sqlite3.connect(self.path, timeout=PATIENCE, isolation_level=None, check_same_thread=False)
            weakref.finalize(self, self._db.close)
            ((tables,),) = self._db.execute("select count(*) from sqlite_master").fetchall()
            ((mode,),) = self._db.execute("pragma journal_mode").fetchall()
            # a write-ahead log (WAL) needs memory that all readers share, so one machine; and what is without stays so
            wal = not networked(self.path.parent) and (mode == "wal" or not tables)
            self._db.execute(f"pragma journal_mode={'wal' if wal else 'truncate'}")
            self._db.execute("pragma synchronous=normal")  # a kill loses nothing; a power cut may lose the last seconds
            self._db.executescript(SCHEMA)

    def turn(self) -> AcquireReturnProxy:
        """Whoever asks holds this lock, so that no two jobs ask the same."""
        return locked(self._lock, f"the answers of a black box ({self.path.name})")

    def get(self, question: Question, k: int) -> Answer | None:
        """None where none has ``k`` tokens of each row, or it is damaged. To a ``next`` also from greedy answers."""
        found = self._kept(question.key, k)
        if found is None and question.kind == NEXT and k:
            for key, place in self._rows("select answer, place from along where key = ?", question.key):
                whole = self._kept(key, k)
                return None if whole is None else whole.row(place)
        return found

    def _kept(self, key: bytes, k: int) -> Answer | None:
        query = "select value from answers where key = ? and (k = 0 or (? > 0 and k >= ?)) order by k = 0, k limit 1"
        found = self._rows(query, key, k, k)
        return Answer.unpack(found[0][0]) if found else None

    def put(self, question: Question, k: int, answer: Answer) -> None:
        """Of a continuation also its rows, as those of an answer and one by one."""
        packed = answer.pack()
        with self._transaction() as db:  # what is asked again was damaged
            db.execute("insert or replace into answers values (?, ?, ?)", (question.key, k, packed))
            if question.kind == SAY and len(answer.said) == len(answer.logp):
                rows = rows_of(question.ids, answer.said)
                db.execute("insert or ignore into answers values (?, ?, ?)", (rows.key, k, packed))
                for place in range(len(answer.said)):
                    before = Question(NEXT, (*question.ids, *answer.said[:place]))
                    db.execute("insert or ignore into along values (?, ?, ?)", (before.key, question.key, place))

    def reserve(self, tokens: int, limits: HttpConfig) -> None:
        """Count one request of at most so many tokens before it is sent; ``BlackBoxError`` where a limit forbids it."""
        with self._transaction():
            self.afford(1, tokens, limits)
            self._add(1, tokens)

    def afford(self, requests: int, tokens: int, limits: HttpConfig) -> None:
        """``BlackBoxError`` where so much more would pass a limit."""
        spent = self.spent()
        for what, more in (("requests", requests), ("tokens", tokens)):
            most = getattr(limits, f"max_{what}")
            if most is not None and spent[what] + more > most:
                raise BlackBoxError(
                    f"pair.target.http.max_{what}={most}: {spent[what]:,} {what} were spent on {limits.model!r} so "
                    f"far; the next request needs {more:,}\nWhat was fetched stays: with max_{what}="
                    f"{spent[what] + more} or more the same command resumes"
                )

    def settle(self, reserved: int, used: int) -> None:
        """Give back what a request turned out not to need."""
        with self._transaction():
            self._add(0, used - reserved)

    def spent(self) -> dict[str, int]:
        """Requests and tokens, in all calls together."""
        return dict(self._rows("select what, amount from spent"))

    def _add(self, requests: int, tokens: int) -> None:
        for what, more in (("requests", requests), ("tokens", tokens)):
            self._db.execute("update spent set amount = amount + ? where what = ?", (more, what))
            self.own[what] += more

    def note(self, name: str, value: Any) -> None:
        with self._transaction() as db:
            db.execute("insert or replace into notes values (?, ?)", (name, json.dumps(value)))

    def noted(self, name: str) -> Any:
        found = self._rows("select value from notes where name = ?", name)
        return json.loads(found[0][0]) if found else None

    def _rows(self, query: str, *values: Any) -> list[tuple]:
        with self._one, self._telling():
            return self._db.execute(query, values).fetchall()

    @contextmanager
    def _transaction(self) -> Iterator[sqlite3.Connection]:
        with self._one, self._telling():
            self._db.execute("begin immediate")
            with self._db:  # commits, or rolls back
                yield self._db

    @contextmanager
    def _telling(self) -> Iterator[None]:
        try:
            yield
        except sqlite3.OperationalError as error:
            raise DiskError(f"{self.path} could not be read or written: {error}") from error
        except sqlite3.DatabaseError as error:
            raise BlackBoxError(f"{self.path}: damaged ({error}); move it away to ask for all again") from error
