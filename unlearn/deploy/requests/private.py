"""What of a ledger can be erased: salts, without which no fingerprint can be linked to a text, and what was measured.

A birthday is guessed from a plain hash by trying all there are, and a text from what a model says of it by asking the
model: so the chain holds neither, but HMACs under salts of 32 random bytes. Once a salt is gone, they say nothing.
"""

import hashlib
import hmac
import json
import os
import secrets
import shutil
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

from unlearn.config.derived import tuning
from unlearn.config.pair import GRAM
from unlearn.data.rows import Row, pair
from unlearn.deploy.requests.chain import LedgerError, canonical
from unlearn.runs.opened import Opened
from unlearn.store import runlog, seal, sources
from unlearn.store.files import read_json, saving, sha256, sync, write_text, write_whole
from unlearn.store.identity import digest, run_identity

OF_OFFSET = "@offset"  # no id holds an @
BESIDE = "configs"
NOT_BOUND = {"transformers_version": None, "_name_or_path": None}  # of a model's config: another version writes others


class Salts:
    """One file each, which its owner alone can read."""

    def __init__(self, folder: Path):
        self.folder = folder

    def get(self, id: str) -> bytes:
        """The salt of a request; ``LedgerError`` where it was erased."""
        if not self.has(id):
            raise LedgerError(f"{id}: its salt is not there (erased?): nothing can be compared with its fingerprint")
        return (self.folder / id).read_bytes()

    def has(self, id: str) -> bool:
        return (self.folder / id).is_file()

    def make(self, id: str) -> bytes:
        """The salt of a request, made where there is none: on the disk before anything is hashed with it."""

        def write(path: Path) -> None:
            with open(os.open(path, os.O_WRONLY | os.O_CREAT | os.O_EXCL, 0o600), "wb") as stream:
                stream.write(secrets.token_bytes(32))

        if not self.has(id):
            with saving(self.folder):
                self.folder.mkdir(mode=0o700, parents=True, exist_ok=True)
            write_whole(self.folder / id, write)
        return self.get(id)

    def erase(self, id: str) -> bool:
        """Remove the salt; whether there was one."""
        if not self.has(id):
            return False
        (self.folder / id).unlink()
        sync(self.folder)
        return True


class Values:
    """What was measured of a request, a file for each time: as long as its salt is there."""

    def __init__(self, folder: Path, salts: Salts):
        self.folder, self.salts = folder, salts

    def keep(self, id: str, values: Mapping[str, Any]) -> str | None:
        """Write them; their fingerprint. None for a request that was erased: nothing is written."""
        if not self.salts.has(id):
            return None
        text = canonical(values).decode()
        mark = of_text(text, self.salts.get(id))
        with saving(self.folder):
            (self.folder / id).mkdir(mode=0o700, parents=True, exist_ok=True)
        write_text(self._file(id, mark), text)
        return mark

    def get(self, id: str, mark: str | None) -> dict[str, Any]:
        """Those with a fingerprint; empty where they are gone. ``LedgerError`` for others in their place."""
        if mark is None or not self.salts.has(id) or not self._file(id, mark).is_file():
            return {}
        text = self._file(id, mark).read_text(encoding="utf-8")
        if of_text(text, self.salts.get(id)) != mark:
            raise LedgerError(f"{self._file(id, mark)}: was changed after it was measured")
        return json.loads(text)

    def erase(self, id: str) -> None:
        shutil.rmtree(self.folder / id, ignore_errors=True)

    def _file(self, id: str, mark: str) -> Path:
        return self.folder / id / f"{mark[:16]}.json"


def of_rows(rows: Iterable[Row], salt: bytes) -> str:
    """Fingerprint of a set of questions and answers, in whatever order."""
    return of_text(canonical(sorted(pair(row) for row in rows)).decode(), salt)


def of_text(text: str, salt: bytes) -> str:
    return hmac.new(salt, text.encode(), hashlib.sha256).hexdigest()


def of_run(run: Opened, salt: bytes, beside: bool) -> dict[str, str]:
    """Fingerprints of all that decides what a run's offset does: its files, the settings that it was made with
    (members, α of the training, template), the models beside it (``beside``: their configs, too, from the store), the
    tokenizer. Inner products of unlearning layers may be erased, and decide nothing."""
    places = (run.folder / name for name in (seal.OFFSET, seal.ADAPTER))
    files = [p for place in places for p in sorted(place.rglob("*")) if p.is_file() and p.name != GRAM]
    found = {p.relative_to(run.folder).as_posix(): sha256(p) for p in files} | {
        "settings": digest(run_identity(run.cfg, run.job.data), 64),
        "models": canonical(runlog.manifest(run.folder).get("models")).decode(),
        "tokenizer": _tokenizer(run.bench.encoder.tokenizer),
    }
    if beside:
        lora = tuning(run.cfg) == "lora" and not (run.folder / seal.OFFSET).exists()  # the config is its model's own
        frozen = [m.model for m in run.cfg.method.members if not m.trained or lora]
        local = [model for model in frozen if not sources.is_remote(run.cfg.pair, sources.role(run.cfg.pair, model))]
        configs = {model: read_json(run.bench.folder(model) / "config.json") for model in local}
        found[BESIDE] = canonical({model: how | NOT_BOUND for model, how in configs.items()}).decode()
    return {name: of_text(text, salt) for name, text in found.items()}


def _tokenizer(tokenizer: Any) -> str:
    """What it makes of a text; not how its last call padded."""
    how = json.loads(tokenizer.backend_tokenizer.to_str()) if tokenizer.is_fast else tokenizer.get_vocab()
    return canonical([how | {"padding": None, "truncation": None}, tokenizer.chat_template]).decode()
