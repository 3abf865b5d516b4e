"""Whether files hold anything of a data set's text: its questions and answers, runs of their words, ids of its rows.

A file is read in several ways, since text may hide in a file that nobody reads: UTF-8, UTF-16 and UTF-32, with JSON,
HTML and URL escapes, as the tokens of byte-level vocabularies, in base64 and in hexadecimal. Words are compared
without case and without what stands between them. A single word is not a trace: a vocabulary holds it.
"""

import base64
import html
import json
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from itertools import accumulate
from pathlib import Path
from urllib.parse import unquote

from safetensors import SafetensorError, safe_open

from unlearn.data.rows import DataSet, Row
from unlearn.data.texts import UNSPACED, words_of

RUN = 4  # words in a row that are a trace
THIRDS = 3
ONE = re.compile(rf"[{UNSPACED}]")
BASE64 = re.compile(rb"[A-Za-z0-9+/]{20,}")
HEX = re.compile(rb"[0-9a-fA-F]{20,}")
HEADER = 8  # bytes that say how long the header of a safetensors file is

Words = tuple[str, ...]


class Traces:
    """What to look for: made once of the rows, then asked of any number of files. ``known`` is text that may be there
    whatever the data say (the words of a form): what it has in common with the rows is not a trace."""

    def __init__(self, rows: Iterable[Row], known: str = ""):
        rows, said = list(rows), words_of(known)
        here = {tuple(said[i : i + n]) for n in range(2, RUN * THIRDS + 1) for i in range(len(said) - n + 1)}
        self.texts = sum(len(texts_of(row)) for row in rows)
        self.runs: dict[Words, dict[Words, str]] = {}  # by their first two words: the row that each is of
        for row in rows:
            for text in texts_of(row):
                for run in runs(words_of(text)):
                    if run not in here:
                        self.runs.setdefault(run[:2], {}).setdefault(run, row.id)
        self.ids = {row.id: row.id for row in rows if not row.id.isdecimal() and row.id not in known}
        some = "|".join(map(re.escape, sorted(self.ids, key=len, reverse=True)))
        self._ids = re.compile(rf"(?<!\w)(?:{some})(?!\w)" if some else r"(?!)")

    @property
    def count(self) -> int:
        """Different runs of words that are looked for."""
        return sum(map(len, self.runs.values()))

    def in_folder(self, folder: Path) -> dict[str, str]:
        """The id of a row of which there is a trace, by file in a folder; the text itself is nobody's to print. Of
        safetensors files the header is read: that the rest is numbers is for ``tensors_fault`` to say."""
        files = sorted(p for p in folder.rglob("*") if p.is_file())
        pairs = ((p, self.in_bytes(header(p) if p.suffix == ".safetensors" else p.read_bytes())) for p in files)
        return {str(p.relative_to(folder)): row for p, row in pairs if row is not None}

    def in_bytes(self, data: bytes) -> str | None:
        """The id of a row that the bytes hold a trace of; None if there is none."""
        return next((row for text in readings(data) if (row := self.in_text(text)) is not None), None)

    def in_text(self, text: str) -> str | None:
        match = self._ids.search(text)
        if match is not None:
            return self.ids[match.group()]
        found = words_of(text)
        for at, begin in enumerate(zip(found, found[1:], strict=False)):
            for run, row in self.runs.get(begin, {}).items():
                if tuple(found[at : at + len(run)]) == run:
                    return row
        return None


def texts_of(row: Row) -> list[str]:
    """Every text of a row: question, answer, and what else there is of them."""
    found = (row.question, row.answer, row.paraphrased_question, row.paraphrased_answer, *row.perturbed_answers)
    return [text for text in found if text]


def forget_rows(data: DataSet) -> list[Row]:
    """All rows that are to be forgotten: the forget set, questions about its texts, and those of other requests."""
    return [row for name, rows in data.splits.items() if name.split("_")[0] in ("forget", "request") for row in rows]


def runs(words: Sequence[str]) -> Iterator[Words]:
    """Every run of ``RUN`` words; of a text that is shorter the whole, unless it is a single word."""
    sizes = [1 if ONE.fullmatch(w) else THIRDS for w in words]
    for start in range(len(words)):
        total = accumulate(sizes[start : start + RUN * THIRDS])
        length = next((n for n, size in enumerate(total, 1) if size >= RUN * THIRDS), None)
        if length is not None:
            yield tuple(words[start : start + length])
        elif not start and len(words) > 1 and sum(sizes) > THIRDS:
            yield tuple(words)


def readings(data: bytes) -> Iterator[str]:
    """The texts that a file's bytes may be."""
    yield from _plain(data)
    # lines of base64, of either alphabet, or of hexadecimal
    joined = re.sub(rb"\\[nrt]|\s", b"", data).translate(bytes.maketrans(b"-_", b"+/"))
    for form, size, read in ((BASE64, 4, base64.b64decode), (HEX, 2, lambda part: bytes.fromhex(part.decode()))):
        for run in form.findall(joined):
            for start in range(size):
                part = run[start:]
                yield from _plain(read(part[: len(part) // size * size]))


def _plain(data: bytes) -> Iterator[str]:
    text = data.decode("utf-8", "ignore")
    yield text
    yield unescaped(text)
    for start in range(2):  # UTF-32 is UTF-16 with zeros between
        for code in ("utf-16-le", "utf-16-be"):
            yield data[start:].decode(code, "ignore").replace("\0", "")


def unescaped(text: str) -> str:
    """Text without JSON, HTML and URL escapes, and without the marks that vocabularies write for white space."""

    def plain(escapes: re.Match) -> str:
        return json.loads(f'"{escapes.group()}"').encode("utf-16", "surrogatepass").decode("utf-16", "ignore")

    text = re.sub(r"(?:\\u[0-9a-fA-F]{4})+", plain, text)
    text = re.sub(r"\\[nrtbf]", " ", text).replace("\\", "")
    return re.sub("[Ġ▁Ċ]", " ", html.unescape(unquote(text.replace("+", " "))))


def header(path: Path) -> bytes:
    """The header of a safetensors file: names, types and shapes of its tensors, and what else was written there."""
    with path.open("rb") as stream:
        return stream.read(int.from_bytes(stream.read(HEADER), "little"))


def tensors_fault(files: Iterable[Path], shapes: Mapping[str, Sequence[int]]) -> str | None:
    """What safetensors files hold besides tensors with these names and shapes; None: nothing. That tensors fill a file,
    without a gap or bytes after them, the library sees to as it opens it."""
    for path in files:
        try:
            with safe_open(path, "pt") as found:
                more = set((found.metadata() or {}).items()) - {("format", "pt")}
                tensors = {name: found.get_slice(name).get_shape() for name in found.keys()}
        except SafetensorError as error:
            return f"{path.name}: {error}"
        if more:
            return f"{path.name} has metadata: {', '.join(sorted(dict(more)))}"
        for name, shape in tensors.items():
            if name not in shapes or list(shapes[name]) != shape:
                return f"{path.name} has a tensor {name!r} of shape {shape} that the model has not"
    return None
