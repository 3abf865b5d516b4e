"""TOFU (arXiv 2401.06121) from a local folder of its JSON-lines files, or from the hub.

The files are what ``locuslab/TOFU`` holds. ``idontknow.jsonl`` is plain text in spite of its name, and
``forgetXX_perturbed`` has the same questions in the same order as ``forgetXX``; both facts are checked.
"""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from unlearn.data.rows import DataError, DataSet, Row

HUB = "locuslab/TOFU"
RETAIN = {"forget01": "retain99", "forget05": "retain95", "forget10": "retain90"}
HOLDOUT = {"forget01": "holdout01", "forget05": "holdout05", "forget10": "holdout10"}
RETAIN_EVALUATED = "retain_perturbed"  # rows 0 … 399 of the full set, with paraphrased and wrong answers


def read(path: str | None, forget: str, retain_rows: int | None) -> DataSet:
    """Forget and retain sets with their perturbed answers, real authors, world facts, holdout and refusals."""
    source = _Folder(path) if path is not None else _Hub()
    retain = _rows(source.table(RETAIN[forget]), "retain")
    perturbed = {(r.question, r.answer): r for r in _rows(source.table(RETAIN_EVALUATED), "retain")}
    # Retain rows with paraphrased and wrong answers where TOFU has them: training reads question and answer alone.
    retain = [_with_alternatives(r, perturbed.get((r.question, r.answer))) for r in retain[:retain_rows]]
    splits = {
        "forget": _rows(source.table(f"{forget}_perturbed"), "forget"),
        "retain": retain,
        "real_authors": _rows(source.table("real_authors_perturbed"), "real_authors"),
        "world_facts": _rows(source.table("world_facts_perturbed"), "world_facts"),
        "holdout": _rows(source.table(HOLDOUT[forget], optional=True), "holdout"),
    }
    _same_questions(source, forget, splits["forget"])
    return DataSet(f"tofu-{forget}", {k: tuple(v) for k, v in splits.items()}, refusals=tuple(source.refusals()))


def _rows(table: list[tuple[str, dict[str, Any]]], split: str) -> list[Row]:
    return [_row(record, f"{split}/{i:04d}", place) for i, (place, record) in enumerate(table)]


def _row(record: dict[str, Any], id: str, place: str) -> Row:
    for key in ("question", "answer"):
        if not isinstance(record.get(key), str):
            raise DataError(
                f"{place}: needs a text in {key!r}, found {record.get(key)!r}; columns: {', '.join(record)}"
            )
    wrong = record.get("perturbed_answer") or ()
    wrong = (wrong,) if isinstance(wrong, str) else tuple(wrong)
    return Row(
        id,
        record["question"],
        record["answer"],
        record.get("paraphrased_answer"),
        record.get("paraphrased_question"),
        wrong,
    )


def _with_alternatives(row: Row, other: Row | None) -> Row:
    if other is None:
        return row
    return Row(
        row.id, row.question, row.answer, other.paraphrased_answer, other.paraphrased_question, other.perturbed_answers
    )


def _same_questions(source: _Folder | _Hub, forget: str, rows: list[Row]) -> None:
    plain = [(r["question"], r["answer"]) for _, r in source.table(forget)]
    if plain != [(r.question, r.answer) for r in rows]:
        raise DataError(
            f"{forget} and {forget}_perturbed hold different questions or answers; "
            "they must be the same rows in the same order"
        )


class _Folder:
    def __init__(self, path: str):
        self.path = Path(path)
        if not self.path.is_dir():
            raise DataError(f"data.path={path!r}: no such folder; give the folder with TOFU's files (forget01.json …)")

    def table(self, name: str, optional: bool = False) -> list[tuple[str, dict[str, Any]]]:
        """Records of one file with the place each came from, for error messages."""
        candidates = [
            self.path / f"{name}.json",
            self.path / f"{name}.jsonl",
            self.path / "holdout" / f"{name}.array.json",
        ]
        file = next((c for c in candidates if c.is_file()), None)
        if file is None:
            if optional:
                return []
            found = ", ".join(sorted(p.name for p in self.path.glob("*.json*"))) or "no JSON file"
            raise DataError(f"data.path={str(self.path)!r}: {name}.json is missing; the folder has {found}")
        text = _text(file)
        if text.lstrip().startswith("["):
            elements = [(f"{file}, element {i + 1}", r) for i, r in enumerate(_json(text, str(file)))]
            return [(place, _record(r, place)) for place, r in elements]
        # split at "\n" alone: splitlines would also cut at U+2028, which JSON allows inside a text
        lines = [(f"{file}, line {i + 1}", line) for i, line in enumerate(text.split("\n")) if line.strip()]
        return [(place, _record(_json(line, place), place)) for place, line in lines]

    def refusals(self) -> list[str]:
        file = self.path / "idontknow.jsonl"
        return [line.strip() for line in _text(file).splitlines() if line.strip()] if file.is_file() else []


class _Hub:
    """The same tables through ``datasets``; needs a network or a filled cache."""

    def table(self, name: str, optional: bool = False) -> list[tuple[str, dict[str, Any]]]:
        import datasets

        try:
            table = datasets.load_dataset(HUB, name, split="train")
        except ValueError:
            if optional:
                return []
            raise
        except (OSError, ConnectionError) as error:
            raise DataError(
                f"{HUB} ({name}) could not be read from the hub: {error}. "
                "Without a network give data.path=FOLDER with TOFU's files"
            ) from error
        return [(f"{HUB}/{name}, row {i}", dict(record)) for i, record in enumerate(table)]

    def refusals(self) -> list[str]:
        from huggingface_hub import hf_hub_download

        return [
            line.strip()
            for line in Path(hf_hub_download(HUB, "idontknow.jsonl", repo_type="dataset"))
            .read_text(encoding="utf-8")
            .splitlines()
            if line.strip()
        ]


def _text(file: Path) -> str:
    try:
        return file.read_text(encoding="utf-8")
    except UnicodeDecodeError as error:
        raise DataError(f"{file}: not UTF-8 (byte {error.start})") from None


def _json(text: str, place: str) -> Any:
    try:
        return json.loads(text)
    except json.JSONDecodeError as error:
        raise DataError(f"{place}: not valid JSON ({error}): {text[:80]!r}") from None


def _record(value: Any, place: str) -> dict[str, Any]:
    if not isinstance(value, dict):
        raise DataError(f"{place}: must be an object with question and answer, found {str(value)[:80]!r}")
    return value
