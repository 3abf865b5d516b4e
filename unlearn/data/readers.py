"""Names of readers → functions from a data config to a checked ``DataSet``."""

from __future__ import annotations

from unlearn.config import Config
from unlearn.config_data import (
    BiosConfig,
    DialoguesConfig,
    JsonlConfig,
    MuseConfig,
    PeopleConfig,
    ReviewsConfig,
    TofuConfig,
)
from unlearn.data import bios, dialogues, jsonl, muse, people_files, reviews, tofu
from unlearn.data.requested import Asked
from unlearn.data.rows import DataError, DataSet, check


def _bios(cfg: BiosConfig, seed: int) -> DataSet:
    return bios.build(
        people=cfg.people,
        forget_people=cfg.forget_people,
        holdout_people=cfg.holdout_people,
        known_people=cfg.known_people,
        countries=cfg.countries,
        questions=cfg.questions,
        seed=seed,
        asked=Asked.of(cfg),
    )


def _tofu(cfg: TofuConfig, seed: int) -> DataSet:
    return tofu.read(cfg.path, cfg.forget, cfg.retain_rows, cfg.refusals, Asked.of(cfg))


def _jsonl(cfg: JsonlConfig, seed: int) -> DataSet:
    return jsonl.read(cfg)


def _muse(cfg: MuseConfig, seed: int) -> DataSet:
    return muse.read(cfg)


def _reviews(cfg: ReviewsConfig, seed: int) -> DataSet:
    return reviews.build(
        people=cfg.people,
        reviews=cfg.reviews,
        forget_people=cfg.forget_people,
        forget=cfg.forget,
        gone=cfg.gone,
        test_reviews=cfg.test_reviews,
        general_reviews=cfg.general_reviews,
        opinions=cfg.opinions,
        agree=cfg.agree,
        seed=seed,
        asked=Asked.of(cfg),
    )


def _dialogues(cfg: DialoguesConfig, seed: int) -> DataSet:
    return dialogues.build(
        people=cfg.people,
        dialogues=cfg.dialogues,
        forget_people=cfg.forget_people,
        forget=cfg.forget,
        gone=cfg.gone,
        test_dialogues=cfg.test_dialogues,
        general_dialogues=cfg.general_dialogues,
        seed=seed,
        asked=Asked.of(cfg),
    )


def _people(cfg: PeopleConfig, seed: int) -> DataSet:
    return people_files.read(cfg)


READERS = {
    "bios": _bios, "tofu": _tofu, "jsonl": _jsonl, "muse": _muse, "reviews": _reviews, "dialogues": _dialogues,
    "people": _people,
}  # fmt: skip
_read: dict[str, DataSet] = {}


def read(cfg: Config) -> DataSet:
    """The data set of a config, once per process. The embedded world is made from ``pair.seed``; real data are not."""
    if cfg.data.reader not in READERS:
        raise DataError(f"data.reader={cfg.data.reader!r}: must be one of {', '.join(READERS)}")
    key = repr((cfg.data, cfg.pair.seed))
    if key not in _read:
        _read[key] = check(READERS[cfg.data.reader](cfg.data, cfg.pair.seed))
    return _read[key]
