"""From folders, of runs or of exports, to the models that are served."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from unlearn.config.schema import ConfigError
from unlearn.data.encoding import Encoder
from unlearn.deploy.export import loading as deployed
from unlearn.deploy.parts import Blend, Part, check_tokens, parts_of
from unlearn.deploy.requests.ledger import opened
from unlearn.deploy.serving.settings import Settings
from unlearn.grid.rerun import open_run
from unlearn.learning.loop import device
from unlearn.runs.opened import Opened

DEVICE = "trainer.device="  # of the settings of a run, that which an export has, too


@dataclass(frozen=True)
class Loaded:
    blend: Blend
    encoder: Encoder  # of the first; the shortest length of all


def load(settings: Settings) -> Loaded:
    """Models and encoder. Raises ``ConfigError`` for folders that cannot be served, or not together."""
    folders = [Path(settings.run), *map(Path, settings.offsets)]
    exports = [(f / deployed.ABOUT).is_file() for f in folders]
    if any(exports) and not all(exports):
        kinds = ", ".join(f"{f}: {'export' if e else 'run'}" for f, e in zip(folders, exports, strict=True))
        raise ConfigError(f"run and offsets must be all runs, or all exports: {kinds}")
    for key in ("target", "base"):
        if getattr(settings, key) is not None and not exports[0]:
            raise ConfigError(f"{key}={getattr(settings, key)!r}: is for exports; a run knows its own")
    found = (_exports if exports[0] else _runs)(folders, settings)
    if any(part.ensemble.encodes for part, _ in found):
        raise ConfigError(f"run={settings.run!r}: its models have an encoder, and what is served continues one text")
    check_tokens(*zip(*found, strict=True))
    first, longest = found[0][1], min(encoder.max_length for _, encoder in found)
    return Loaded(Blend([part for part, _ in found]), Encoder(first.tokenizer, first.template, longest))


def _runs(folders: Sequence[Path], settings: Settings) -> list[tuple[Part, Encoder]]:
    runs = [open_run(folder, settings.overrides) for folder in folders]
    parts = parts_of(_answering(runs, settings), settings.alphas)
    return list(zip(parts, [run.bench.encoder for run in runs], strict=True))


def _answering(runs: Sequence[Opened], settings: Settings) -> Iterator[Opened]:
    """The runs; of a ledger's, each as soon as it is known to be what the ledger says."""
    answering = {}
    if settings.ledger is not None:
        answering = {one.folder.resolve(): one for one in opened(Path(settings.ledger), settings.hmac).active()}
    for run in runs:
        if settings.ledger is not None:
            if run.folder not in answering:
                raise ConfigError(f"ledger={settings.ledger!r}: {run.folder} is no longer in effect; start again")
            answering[run.folder].check(run, beside=True)
        yield run


def _exports(folders: Sequence[Path], settings: Settings) -> list[tuple[Part, Encoder]]:
    others = [o for o in settings.overrides if not o.startswith(DEVICE)]
    if others:
        raise ConfigError(f"{' '.join(others)}: of an export only trainer.device may be given")
    place = device([DEVICE + "auto", *settings.overrides][-1].removeprefix(DEVICE))
    there: dict[str, nn.Module] = {}  # what several of them share is in memory once
    how = settings.target, settings.base
    return [deployed.load(f, *how, alpha, place, there) for f, alpha in zip(folders, settings.alphas, strict=True)]
