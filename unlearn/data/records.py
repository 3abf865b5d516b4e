"""Records with the place each came from: JSON, CSV or Parquet of a file, a table of the hub; and rows of them.

What a record cannot be used for is refused with file, line (or element) and value.
"""

import csv
import io
import json
from collections.abc import Callable, Iterator, Sequence
from contextlib import suppress
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

from unlearn.data.facts import sayable, told
from unlearn.data.rows import DataError, Row

WHOLE = ("paraphrased_answer", "paraphrased_question", "perturbed_answers")  # all rows of a file have them, or none
OPTIONAL = (*WHOLE, "fact", "guess_question")  # of a row, and of a record

Record = tuple[str, dict[str, Any]]  # place ("FILE, line 3"), and values by column


@dataclass
class ColumnsConfig:
    """What the columns of a record are called; those after `answer` may be missing."""

    question: str = "question"
    answer: str = "answer"
    paraphrased_answer: str = "paraphrased_answer"
    paraphrased_question: str = "paraphrased_question"
    perturbed_answers: str = "perturbed_answer"  # wrong ones: a text, or a list of texts
    fact: str = "key"  # the fact, in one or several spellings: a text, or a list of texts
    guess_question: str = "guess_question"  # the same question about a name that no model can know
    text: str = "text"  # instead of question and answer: a text that is cut by `words`
    id: str | None = None  # null: rows are numbered


def records(file: Path, bare: str | None = None) -> list[Record]:
    """Objects of JSON lines or of one JSON array, rows of a .csv or .parquet file, at least one. ``bare``: the column
    that a text stands for which is in no object, or is a whole .txt file; None: both are refused."""
    if file.suffix == ".txt" and bare is not None:
        return [(str(file), {bare: text_of(file)})]
    found = []
    for place, value in TABLES.get(file.suffix, _of_json)(file):
        if bare is not None and isinstance(value, str):
            value = {bare: value}
        if not isinstance(value, dict):
            raise DataError(f"{place}: must be an object with a text in each column, found {str(value)[:80]!r}")
        found.append((place, value))
    if not found:
        raise DataError(f"{file}: the file is empty, it needs at least one row")
    return found


def _of_json(file: Path) -> Iterator[tuple[str, Any]]:
    content = text_of(file)
    if content.lstrip().startswith("["):
        yield from ((f"{file}, element {i}", value) for i, value in enumerate(_json(content, str(file)), 1))
        return
    whole = None
    if "\n" in content.strip():
        with suppress(ValueError, RecursionError):
            whole = json.loads(content)  # of rows, each in a line, only the first is read here
    if isinstance(whole, dict):
        lists = [key for key, value in whole.items() if isinstance(value, list)]
        where = f"; it has lists in {', '.join(lists)}" if lists else ""
        raise DataError(f"{file}: is one object over several lines: must be an array, or a row in each line{where}")
    # split at "\n" alone: splitlines would also cut at U+2028, which JSON allows inside a text
    places = ((f"{file}, line {i}", line) for i, line in enumerate(content.split("\n"), 1) if line.strip())
    yield from ((place, _json(line, place)) for place, line in places)


def _of_csv(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    """Rows of a file with a header; an empty field is nothing."""
    reader = csv.DictReader(io.StringIO(text_of(file), newline=""), strict=True)
    try:
        _once_each(reader.fieldnames or (), file)
        for row in reader:
            if None in row or None in row.values():
                raise DataError(f"{file}, line {reader.line_num}: must have {len(reader.fieldnames)} fields")
            yield f"{file}, line {reader.line_num}", {key: value or None for key, value in row.items()}
    except csv.Error as error:
        raise DataError(f"{file}, line {reader.line_num + 1}: not valid CSV ({error})") from None


def _of_parquet(file: Path) -> Iterator[tuple[str, dict[str, Any]]]:
    from pyarrow import ArrowException, parquet

    try:
        table = parquet.read_table(file)
        _once_each(table.column_names, file)
        rows = table.to_pylist()
    except (ArrowException, OSError) as error:
        raise DataError(f"{file}: not valid Parquet ({error})") from None
    yield from ((f"{file}, row {i}", row) for i, row in enumerate(rows))


def _once_each(columns: Sequence[str], file: Path) -> None:
    """Refuse a column that is there twice: of two values the second would be kept, unnoticed."""
    twice = next((name for name in columns if list(columns).count(name) > 1), None)
    if twice is not None:
        raise DataError(f"{file}: it has the column {twice!r} twice")


TABLES = {".csv": _of_csv, ".parquet": _of_parquet}
LISTED = 20  # files that a message names
KINDS = (".json", ".jsonl", *TABLES, ".txt")  # of data files


def _json(content: str, place: str) -> Any:
    try:
        return json.loads(content, object_pairs_hook=_once)
    except json.JSONDecodeError as error:
        near = content[max(0, error.pos - 40) : error.pos + 40]
        raise DataError(f"{place}: not valid JSON ({error}): {near!r}") from None
    except (ValueError, RecursionError) as error:  # a key twice, a number of thousands of digits, thousands of brackets
        raise DataError(f"{place}: not usable JSON ({error}): {content[:80]!r}") from None


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    """An object; of two values under one key JSON would keep the second, unnoticed."""
    found = dict(pairs)
    if len(found) < len(pairs):
        twice = next(key for i, (key, _) in enumerate(pairs) if key in dict(pairs[:i]))
        raise ValueError(f"it has {twice!r} twice")
    return found


def text_of(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8-sig")  # with or without the mark that some editors put first
    except UnicodeDecodeError as error:
        line = error.object.count(b"\n", 0, error.start) + 1
        near = error.object[max(0, error.start - 10) : error.start + 10]
        raise DataError(f"{file}, line {line}: not UTF-8: {near!r}") from None
    except OSError as error:
        raise DataError(f"{file}: cannot be read ({error.strerror})") from None


def lines(file: Path) -> list[str]:
    """Plain lines of a file that are not empty, at least one: refusals."""
    found = []
    for i, line in enumerate(text_of(file).split("\n"), 1):
        if line.lstrip().startswith("{"):
            raise DataError(f"{file}, line {i}: must be plain text, one answer in a line, found {line[:80]!r}")
        if line.strip():
            found.append(line.strip())
    if not found:
        raise DataError(f"{file}: the file is empty, it needs at least one line")
    return found


@dataclass(frozen=True)
class Tables:
    """Tables of a data set: files of its folder, or without one of the hub, which needs a network or a filled cache."""

    folder: str | None
    hub: str  # name of the data set there
    give: str  # for messages: which folder is meant
    more: str = ""  # likewise: what to do without a table

    def __post_init__(self) -> None:
        if self.folder is not None and not Path(self.folder).is_dir():
            raise DataError(f"data.path={self.folder!r}: no such folder; give {self.give}")

    def table(
        self, files: Sequence[str], there: tuple[str | None, str], optional: bool = False, bare: str | None = None
    ) -> list[Record]:
        """Records of the first of ``files`` that there is; of the hub those of ``there``: configuration (None: the
        only one) and split. Of a table that is missing and ``optional`` none. ``bare`` as for ``records``."""
        if self.folder is None:
            return self._of_hub(*there, optional)
        file = self.file(*files)
        if file is not None:
            return records(file, bare)
        if optional:
            return []
        others = [e for e in dict.fromkeys(Path(name).suffix for name in files) if not files[0].endswith(e)]
        missing = f"{files[0]} is missing (or {', '.join(others)})"
        raise DataError(f"data.path={self.folder!r}: {missing}; there are {listing(Path(self.folder))}{self.more}")

    def _of_hub(self, config: str | None, split: str, optional: bool) -> list[Record]:
        import datasets

        try:
            table = datasets.load_dataset(self.hub, config, split=split)
        except (OSError, ValueError, datasets.exceptions.DatasetsError) as error:
            if optional and "BuilderConfig" in str(error):
                return []
            offline = "Without a network give data.path=FOLDER with its files"
            raise DataError(f"{self.hub} ({config}, {split}): not read from the hub: {error}. {offline}") from error
        return [(f"{self.hub}/{config or split}, {split} row {i}", dict(record)) for i, record in enumerate(table)]

    def file(self, *names: str) -> Path | None:
        """The first of these files that there is."""
        if self.folder is not None:
            return next((file for name in names if (file := Path(self.folder) / name).is_file()), None)
        from huggingface_hub import hf_hub_download
        from huggingface_hub.errors import EntryNotFoundError

        try:
            return Path(hf_hub_download(self.hub, names[0], repo_type="dataset"))
        except EntryNotFoundError:
            return None


def listing(folder: Path) -> str:
    """The data files of a folder and of the folders in it, for messages; hidden ones aside."""
    files = [p for pattern in ("[!.]*", "[!.]*/[!.]*") for p in folder.glob(pattern) if p.suffix in KINDS]
    names = sorted(str(p.relative_to(folder)) for p in files)
    more = [f"and {len(names) - LISTED} more"] if len(names) > LISTED else []
    return ", ".join([*names[:LISTED], *more]) or f"no {', '.join(KINDS)} file"


# --- from records to rows -----------------------------------------------------------------------------------------


def has(values: dict[str, Any], column: str) -> bool:
    """Whether a record has something in a column; null and an empty list are nothing."""
    return values.get(column) is not None and values[column] != []


def text(record: Record, column: str) -> str:
    place, values = record
    value = values.get(column)
    if not isinstance(value, str):
        found = f"found {str(value)[:80]!r} ({type(value).__name__})" if column in values else "there is none"
        raise DataError(f"{place}: needs a text in {column!r}, {found}; columns: {', '.join(values) or 'none'}")
    return _full(value, place, column)


def _texts(record: Record, column: str) -> tuple[str, ...]:
    place, values = record
    found = values[column]
    found = [found] if isinstance(found, str) else found
    if not isinstance(found, list) or not all(isinstance(value, str) for value in found):
        raise DataError(f"{place}: needs a text or a list of texts in {column!r}, found {str(found)[:80]!r}")
    return tuple(_full(value, place, column) for value in found)


def spellings(record: Record, column: str) -> tuple[str, ...]:
    """The spellings of a fact; each has a word that could be found."""
    found = _texts(record, column)
    if (empty := next((spelling for spelling in found if not sayable(spelling)), None)) is not None:
        raise DataError(f"{record[0]}: {column!r} has no word in {empty!r}")
    return found


def _key(record: Record, column: str, answer: str) -> tuple[str, ...]:
    """The spellings of a fact, one of which the row's own answer tells: else right answers would count as wrong."""
    found = spellings(record, column)
    if not told(answer, found):
        rule = f"must hold a spelling that stands in the row's answer {answer!r}, whole words of it"
        raise DataError(f"{record[0]}: {column!r} {rule}; found {', '.join(map(repr, found))}")
    return found


def _full(value: str, place: str, column: str) -> str:
    if not value.strip():
        raise DataError(f"{place}: {column!r} is empty, found {value!r}")
    try:
        value.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{place}: {column!r} holds half a character ({value[error.start]!r})") from None
    return value


def row(record: Record, id: str, columns: ColumnsConfig) -> Row:
    """A question with its answers; paraphrased and wrong ones where the record has them."""

    def optional(column: str, read: Callable[[Record, str], Any] = text) -> Any:
        return read(record, column) if has(record[1], column) else None

    answer = text(record, columns.answer)
    return Row(
        id,
        text(record, columns.question),
        answer,
        optional(columns.paraphrased_answer),
        optional(columns.paraphrased_question),
        optional(columns.perturbed_answers, _texts) or (),
        place=record[0],
        key=() if columns.fact == columns.id else optional(columns.fact, partial(_key, answer=answer)) or (),
        guess_question=optional(columns.guess_question),
    )
