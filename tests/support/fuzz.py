"""Damaged and random files for every reader: what is read is what the file says, or the reader refuses it by name."""

import hashlib
import io
import json
import random
import struct
import time
import zlib
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pandas as pd
import yaml
from support.damage import changed, damaged, expected_row, json_file, json_text, objects, plain_row, steps, table
from support.helpers import read_tofu
from wandb.proto.wandb_internal_pb2 import Record

from analysis.runs import StudyError, load
from analysis.sources.transaction_log import HEADER, MAGIC, VERSION
from unlearn.data.rows import DataError, check
from unlearn.data.sets import jsonl, muse

ROW = {"question": "Who wrote “Hé”?", "answer": "Ada Ëlle.", "paraphrased_answer": "It was Ada.",
       "perturbed_answer": ["Bob.", "Cy."]}  # fmt: skip
CONFIG = {"algo": {"name": "npo"}, "method": {"name": "offset"}, "pair": {"name": "tiny", "seed": 0},
          "data": {"name": "bios"}, "alpha": 1.0, "seed": 3, "study": "s"}  # fmt: skip
SLOW = 20.0  # seconds that no file may take


class Wrong(AssertionError):
    """A reader that crashed, hung, or gave something else than the file says."""


@dataclass(frozen=True)
class Reader:
    """``write`` fills a folder with a damaged version of good files; ``read`` reads it and judges what it gave."""

    name: str
    write: Callable[[Path, random.Random], None]
    read: Callable[[Path], Any]
    refusals: tuple[type[Exception], ...]


def attempt(reader: Reader, folder: Path, seed: int) -> str:
    """One execution: "read" or "refused"; raises ``Wrong`` for anything else."""
    reader.write(folder, random.Random(seed))
    start = time.monotonic()
    try:
        reader.read(folder)
        end = "read"
    except reader.refusals as error:
        if not str(error).strip():
            raise Wrong(f"{reader.name}, seed {seed}: refused without a message") from error
        end = "refused"
    except Exception as error:
        raise Wrong(f"{reader.name}, seed {seed}: {type(error).__name__}: {str(error)[:300]}") from error
    if time.monotonic() - start > SLOW:
        raise Wrong(f"{reader.name}, seed {seed}: took more than {SLOW:g} s")
    return end


def same(found: Any, expected: Any) -> None:
    if found != expected:
        raise Wrong(f"read {str(found)[:200]}, and the file says {str(expected)[:200]}")


def same_rows(found: Iterable, file: Path) -> None:
    """Questions and answers, against those of a file."""
    same([plain_row(r) for r in found], [expected_row(r) for r in objects(file) if "question" in r])


def jsonl_reader() -> Reader:
    def write(folder: Path, rng: random.Random) -> None:
        plain = {k: ROW[k] for k in (("question", "answer") if rng.random() < 0.6 else ROW)}
        rows = [plain | {"answer": f"{k}."} for k in range(3)]
        retain = [{"text": "one two three four five six"}] if rng.random() < 0.2 else [ROW | {"question": "And?"}]
        (folder / "retain.jsonl").write_text("".join(json.dumps(r) + "\n" for r in retain))
        (folder / "forget.jsonl").write_bytes(table(rows, rng))

    def read(folder: Path) -> None:
        cfg = jsonl.Settings(name="mine", reader="jsonl", forget=str(folder / "forget.jsonl"),
                          retain=str(folder / "retain.jsonl"))  # fmt: skip
        cfg.template.prompt = "{question}"
        data = check(jsonl.read(cfg))
        same_rows([r for r in data.splits["forget"] if r.group == ""], folder / "forget.jsonl")

    return Reader("jsonl", write, read, (DataError,))


def tofu_reader() -> Reader:
    names = ("forget01", "forget01_perturbed", "retain99", "retain_perturbed", "real_authors_perturbed",
             "world_facts_perturbed", "holdout01")  # fmt: skip

    def write(folder: Path, rng: random.Random) -> None:
        hit = rng.choice(names)
        for name in names:
            rows = [ROW | {"question": f"{name[:8]} {k}?"} for k in range(3)]
            content = "".join(json.dumps(r) + "\n" for r in rows).encode()
            (folder / f"{name}.json").write_bytes(table(rows, rng) if name == hit else content)
        (folder / "idontknow.jsonl").write_bytes(damaged(b"I cannot say.\nNo idea.\n", rng))

    def read(folder: Path) -> None:
        data = check(read_tofu(str(folder), "forget01", None))
        for name, split in (("forget01_perturbed", "forget"), ("real_authors_perturbed", "real_authors")):
            same_rows(data.splits[split], folder / f"{name}.json")
        lines = (folder / "idontknow.jsonl").read_text(encoding="utf-8-sig").split("\n")
        same(list(data.refusals), [line.strip() for line in lines if line.strip()])

    return Reader("tofu", write, read, (DataError,))


def muse_reader() -> Reader:
    names = ("raw/forget", "raw/retain1", "privleak/holdout", "verbmem/forget", "knowmem/forget_qa",
             "knowmem/forget_qa_icl", "knowmem/retain_qa", "knowmem/retain_qa_icl")  # fmt: skip

    def write(folder: Path, rng: random.Random) -> None:
        hit = rng.choice(names)
        for name in names:
            words = " ".join(f"{name.replace('/', '')}{k}" for k in range(60))
            rows = [{"text": words, "prompt": words, "gt": "and so on", "question": words, "answer": "yes"}]
            content = json.dumps(rows).encode()
            file = folder / f"{name}.json"
            file.parent.mkdir(exist_ok=True)
            file.write_bytes(table(rows, rng) if name == hit else content)

    def read(folder: Path) -> None:
        cfg = muse.Settings(name="muse", reader="muse", corpus="news", path=str(folder))
        data = check(muse.read(cfg))
        first = objects(folder / "raw/forget.json", "text")[0]["text"].split()
        found = data.splits["forget"]
        if len(first) > 1:
            own = [r for r in found if r.id.startswith("forget/0000.")]
            same(" ".join([*own[0].question.split(), *(w for r in own for w in r.answer.split())]), " ".join(first))

    return Reader("muse", write, read, (DataError,))


def folders_reader() -> Reader:
    entry = {"forget/prob": 0.25, "retain/prob": 0.9, "settings": {"references": "w"},
             "intervals": {"forget/prob": [0.2, 0.3]}}  # fmt: skip
    files = {
        "config.yaml": yaml.safe_dump(CONFIG | {"trainer": {"lr": 0.001, "groups": ["a", "b"]}}),
        "metrics.jsonl": "".join(json.dumps({"step": s, "train/loss": 0.5 * s}) + "\n" for s in range(4)),
        "eval.json": json.dumps({"alphas": {"1.0": entry}, "references": {"target": entry, "retrained": None}}),
    }  # fmt: skip

    parquet = io.BytesIO()
    pd.DataFrame({"split": ["forget"], "id": ["f/0"], "alpha": [1.0], "prob": [0.25]}).to_parquet(parquet)
    whole = {name: text.encode() for name, text in files.items()} | {"examples.parquet": parquet.getvalue()}
    manifest = {"status": "done", "run": {"algo": "npo", "alpha": 1.0}, "seconds": {"train": 3.0}}
    sums = {"sealed_results": {name: hashlib.sha256(content).hexdigest() for name, content in whole.items()}}

    def write(folder: Path, rng: random.Random) -> None:
        run, sealed = folder / "a_run", rng.random() < 0.3
        run.mkdir(exist_ok=True)
        said = whole | {"manifest.json": json.dumps(manifest | (sums if sealed else {})).encode()}
        hit = rng.choice([name for name in said if not (sealed and name == "manifest.json")])
        for name, content in said.items():
            if name == hit:
                content = json_file(content, rng) if name.endswith(".json") else damaged(content, rng)
            (run / name).write_bytes(content)
        (folder / "sealed").touch() if sealed else (folder / "sealed").unlink(missing_ok=True)

    def read(folder: Path) -> None:
        study, run = load(folder), folder / "a_run"
        examples = study.examples
        if (folder / "sealed").exists():
            same({name: (run / name).read_bytes() for name in whole}, whole)
            same(list(examples["prob"]), [0.25])
        said = json.loads((run / "eval.json").read_text(encoding="utf-8"))
        expected = [v.get("forget/prob") for v in (said.get("alphas") or {}).values()]
        expected = [v if type(v) in (int, float) else None for v in expected] or [None]
        found = list(study.runs["forget/prob"]) if "forget/prob" in study.runs else [float("nan")] * len(study.runs)
        same([None if x != x else x for x in found], [None if x is None or x != x else float(x) for x in expected])
        logged = steps(run / "metrics.jsonl")
        same(sorted(study.trajectories["step"]) if logged else [], sorted(logged))

    return Reader("folders", write, read, (StudyError,))


def offline_reader() -> Reader:
    alphas = {"1.0": {"forget/prob": 0.25, "settings": {"references": "w"}}}

    def messages(rng: random.Random | None) -> list[bytes]:
        values = {"config": CONFIG, "alphas": alphas, "manifest": {"status": "done"}, "step": 1}
        if rng is not None:
            values = changed(values, rng)
            values = values if isinstance(values, dict) else {}
        run, row, summary = Record(), Record(), Record()
        run.run.run_id, run.run.run_group, run.run.display_name, run.run.job_type = "ab", "s", "a_run", "unlearn"
        told = values.get("config")
        for key, value in told.items() if isinstance(told, dict) else ():
            item = run.run.config.update.add()
            item.key, item.value_json = key, json_text(value, rng)
        for key in ("step", "_timestamp", "train/loss"):
            item = row.history.item.add()
            item.key, item.value_json = key, json_text(values.get("step", 1), rng)
        for key in ("alphas", "manifest"):
            if key in values:
                item = summary.summary.update.add()
                item.key, item.value_json = key, json_text(values[key], rng)
        return [m.SerializeToString() for m in (run, row, summary)]

    def write(folder: Path, rng: random.Random) -> None:
        place = folder / "offline-run-20260101_000000-ab"
        place.mkdir(exist_ok=True)
        inside = rng.random() < 0.6  # damage below the checksums, which only another writer could do
        content = HEADER.pack(*MAGIC, VERSION)
        for message in messages(rng if inside else None):
            message = damaged(message, rng) if inside and rng.random() < 0.15 else message
            crc = zlib.crc32(message, zlib.crc32(b"\x01"))
            content += struct.pack("<IHB", crc, len(message), 1) + message
        (place / "run-ab.wandb").write_bytes(content if inside else damaged(content, rng))
        (folder / "inside").write_text(str(inside))

    def read(folder: Path) -> None:
        study = load(f"offline:{folder}")
        if (folder / "inside").read_text() == "False" and len(study.runs):  # then a checksum tells every change
            found = study.runs.iloc[0]
            same((found["algo"], found["seed"], len(study.runs)), ("npo", 3, 1))
            if "forget/prob" in study.runs and found["forget/prob"] == found["forget/prob"]:
                same(found["forget/prob"], 0.25)
            elif not study.notes and found["status"] == "done":
                raise Wrong("an entry of a finished run was lost without a note")

    return Reader("offline", write, read, (StudyError,))


READERS = {"jsonl": jsonl_reader, "tofu": tofu_reader, "muse": muse_reader, "folders": folders_reader,
           "offline": offline_reader}  # fmt: skip
