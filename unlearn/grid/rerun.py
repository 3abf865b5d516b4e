"""From a run folder back to the job that made it, for commands that use a finished run."""

from collections.abc import Sequence
from pathlib import Path
from typing import Any

from omegaconf import DictConfig, ListConfig, OmegaConf
from omegaconf.errors import OmegaConfBaseException
from yaml import YAMLError

from unlearn.config.pair import HOW_ASKED
from unlearn.config.schema import Config, ConfigError, raise_for
from unlearn.config.setting import unusable
from unlearn.data.readers import SETTINGS, read
from unlearn.grid.refusal import said
from unlearn.grid.rules import as_typed, parse
from unlearn.runs.opened import Opened
from unlearn.store import runlog
from unlearn.store.identity import flatten
from unlearn.store.runlog import job

MAY_CHANGE = (
    "eval.", "trainer.device", "trainer.threads", "trainer.progress", "trainer.stored_rows_gib", "paths.store",
    "wandb.", "data.path", *(f"pair.target.http.{name}=" for name in HOW_ASKED),
)  # fmt: skip
RENAMED = {  # settings in the configs of older runs, and their names now; None: gone
    "method.members.alpha": "slope", "algo.teacher.members.alpha": "slope", "algo.alternate": "interleave",
    "eval.reference": "retrained", "pair.target.device": "device_map", "pair.target.http.tail": None,
    "data.columns.key": "fact",
}  # fmt: skip
OWN_FILES = ("algo.file", "method.file", "eval.judge")  # Python files that are imported


def open_run(folder: str | Path, overrides: Sequence[str] = ()) -> Opened:
    """The run of a folder, with settings changed that do not touch what was trained. ``ConfigError`` for a folder that
    is not a trained run, for other overrides, and where its name no longer follows from its config and data."""
    given, folder = folder, Path(folder)
    if not (folder / runlog.CONFIG).is_file() or not runlog.manifest(folder).get("trained"):
        near = sorted(str(p.parent) for p in Path("runs").glob("*/*/manifest.json"))
        raise ConfigError(f"run={str(given)!r}: not the folder of a trained run; there are {', '.join(near) or 'none'}")
    for override in overrides:
        if not override.startswith(MAY_CHANGE):
            raise ConfigError(f"{override}: a finished run keeps it; what may change: {', '.join(MAY_CHANGE)}")
    raw = _config(folder / runlog.CONFIG)
    _check_foreign(folder, flatten(OmegaConf.to_container(raw, resolve=False)))
    schema = OmegaConf.structured(Config)
    schema.data = OmegaConf.structured(SETTINGS[raw.data.reader])
    place = {"study": folder.resolve().parent.name, "paths": {"runs": str(folder.resolve().parent.parent)}}
    try:
        raw = OmegaConf.merge(schema, raw, place, OmegaConf.from_dotlist([*map(as_typed, overrides)]))
    except (OmegaConfBaseException, YAMLError) as error:
        raise ConfigError(said(error)) from None
    cfg = parse(raw)
    raise_for(unusable("paths.store", cfg.paths.store, write=False))
    found = job(cfg, read(cfg).fingerprint())
    if found.folder.name != folder.resolve().name:
        since = "the data set or the program changed since it was made"
        raise ConfigError(f"{folder}: its config and data now identify {found.folder.name}; {since}")
    return Opened(found)


def _check_foreign(folder: Path, config: dict[str, Any]) -> None:
    """A run folder may be somebody else's. Ours are written resolved, and no code lies in them."""
    for key, value in config.items():
        if "${" in str(value):
            raise ConfigError(f"{folder / runlog.CONFIG}: {key}={value!r}: a run's config is resolved; this is not one")
        own = key in OWN_FILES and value is not None
        if own and Path(value).resolve().is_relative_to(folder.resolve()):
            rule = "code that lies in the run's own folder is not run; put it elsewhere if it is yours"
            raise ConfigError(f"{folder / runlog.CONFIG}: {key}={value!r}: {rule}")


def _rename(raw: DictConfig) -> None:
    """Give the settings of an older run's config the names that they have now."""
    for place, name in RENAMED.items():
        *at, old = place.split(".")
        parts = [raw]
        for key in at:
            found = [part.get(key) for part in parts if isinstance(part, DictConfig)]
            parts = [one for part in found for one in (part if isinstance(part, ListConfig) else [part])]
        for part in parts:
            if isinstance(part, DictConfig) and old in part:
                value = part.pop(old)
                part.update({name: value} if name else {})


def _config(path: Path) -> DictConfig:
    """The config of a run, with the reader that says which settings its data set has."""
    try:
        raw = OmegaConf.load(path)
        _rename(raw)
        reader = raw.data.reader
    except (OmegaConfBaseException, YAMLError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: no config of a run, or damaged: {said(error)}") from None
    if reader not in SETTINGS:
        raise ConfigError(f"{path}: data.reader={reader!r}: must be one of {', '.join(SETTINGS)}")
    return raw
