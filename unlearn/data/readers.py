"""Data sets by the name of their reader: a file each in ``unlearn/data/sets``, with its ``Settings`` and ``read``."""

from importlib import import_module
from pathlib import Path

from hydra.core.config_store import ConfigStore

from unlearn.config.schema import Config
from unlearn.data.rows import DataError, DataSet, check

READERS = {
    path.stem: import_module(f"unlearn.data.sets.{path.stem}")
    for path in sorted(Path(__file__).with_name("sets").glob("[a-z]*.py"))
}
SETTINGS = {name: reader.Settings for name, reader in READERS.items()}
_read: dict[str, DataSet] = {}


def register() -> None:
    """Make the schema known to Hydra; group files of `data` name theirs with ``/schema/data@_here_: NAME``."""
    store = ConfigStore.instance()
    store.store(name="schema_config", node=Config)
    for name, node in SETTINGS.items():
        store.store(group="schema/data", name=name, node=node)


def read(cfg: Config) -> DataSet:
    """The data set of a config, once per process. Made-up worlds are made from ``pair.seed``; real data are not."""
    if cfg.data.reader not in READERS:
        raise DataError(f"data.reader={cfg.data.reader!r}: must be one of {', '.join(READERS)}")
    key = repr((cfg.data, cfg.pair.seed))
    if key not in _read:
        _read[key] = check(READERS[cfg.data.reader].read(cfg.data, cfg.pair.seed))
    return _read[key]
