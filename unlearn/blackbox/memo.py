"""What a black box has answered, and what was spent on it: appended at once, so that a kill loses nothing.

One SQLite file for each model, ``<store>/answers/<identity>.sqlite``: processes, and machines, share it. Answers are
found by digests of their questions; one with more tokens of a row serves who asks for fewer.
"""

import json
import sqlite3
import threading
import weakref
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from filelock import AcquireReturnProxy

from unlearn.blackbox.questions import NEXT, SAY, Answer, BlackBoxError, Question, rows_of
from unlearn.config.pair import HttpConfig
from unlearn.store.entries import ANSWERS
from unlearn.store.files import DiskError, saving
from unlearn.store.locks import LOCKS, lock, locked, networked

SCHEMA = """
create table if not exists answers (key blob, k integer, value blob, primary key (key, k));
create table if not exists along (key blob primary key, answer blob, place integer);
create table if not exists spent (what text primary key, amount integer);
create table if not exists notes (name text primary key, value text);
insert or ignore into spent values ('requests', 0), ('tokens', 0);
"""
PATIENCE = 60.0  # seconds for another process's transaction


class OverBudget(BlackBoxError):
    """What would have been asked next passes a limit."""


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
            self._db.execute(f"pragma journal_mode={self._journal()}")
            self._db.execute("pragma synchronous=normal")  # a kill loses nothing; a power cut may lose the last seconds
            self._db.executescript(SCHEMA)

    def _journal(self) -> str:
        """A write-ahead log (WAL) needs memory that all readers share, so one machine. A file that others have had
        without one stays so."""
        ((tables,),) = self._db.execute("select count(*) from sqlite_master").fetchall()
        ((mode,),) = self._db.execute("pragma journal_mode").fetchall()
        return "truncate" if networked(self.path.parent) or (tables and mode != "wal") else "wal"

    def turn(self) -> AcquireReturnProxy:
        """Whoever asks holds this lock, so that no two jobs ask the same."""
        return locked(self._lock, f"the answers of a black box ({self.path.name})")

    def get(self, question: Question, k: int) -> Answer | None:
        """None where there is none with ``k`` tokens of each row or more, or it is damaged. To a ``next`` also what a
        greedy continuation gave on its way."""
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
        """Count one request of at most so many tokens before it is sent; ``OverBudget`` where a limit forbids it."""
        with self._transaction():
            self.afford(1, tokens, limits)
            self._add(1, tokens)

    def afford(self, requests: int, tokens: int, limits: HttpConfig) -> None:
        """``OverBudget`` where so much more would pass a limit."""
        spent = self.spent()
        for what, more in (("requests", requests), ("tokens", tokens)):
            most = getattr(limits, f"max_{what}")
            if most is not None and spent[what] + more > most:
                raise OverBudget(
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
