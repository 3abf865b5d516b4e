"""Checksums of a run's files, so that a truncated, changed or foreign file is refused by name and never used.

Weights are sealed when training ends, the other files when the run is done; both seals stand in the manifest. A run
that was interrupted while it was evaluated again has unsealed results, which the next call makes whole. A checkpoint
has a seal of its own.
"""

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from unlearn.config.pair import GRAM
from unlearn.store.files import FileError, read_json, sha256, write_json

WEIGHTS, RESULTS = "sealed_weights", "sealed_results"  # keys of the manifest
OFFSET, ADAPTER, BEST = "offset", "adapter", "best"
CHECKPOINT = "sealed.json"
MEASURED = ("config.yaml", "metrics.jsonl", "eval.json", "examples.parquet", "references.parquet")


def weights(folder: Path) -> dict[str, str]:
    """Checksums of the trained weights, by path in the run folder."""
    return _sums(folder, [p for name in (OFFSET, ADAPTER, BEST) for p in (folder / name).rglob("*")])


def results(folder: Path) -> dict[str, str]:
    """Checksums of what the run measured and of the config that it was made with."""
    return _sums(folder, [folder / name for name in MEASURED])


def _sums(folder: Path, paths: list[Path]) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(paths) if p.is_file() and p.name[0] != "."}


def check_weights(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ``FileError`` where the weights are not those that training ended with."""
    sealed, found = manifest.get(WEIGHTS, {}), weights(folder)
    _check(folder, sealed, found)
    for foreign in sorted(set(found) - set(sealed)) if sealed else []:
        raise FileError(f"{folder / foreign} is not a file that the run wrote; move it out of the run's folder")


def check_results(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ``FileError`` where a finished run's files are not those it ended with."""
    if manifest.get("status") == "done":
        _check(folder, manifest.get(RESULTS, {}), results(folder))


def _check(folder: Path, sealed: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name, digest in sealed.items():
        if name not in found and name.endswith(f"/{GRAM}"):
            continue  # it holds something of the request, and may be erased
        if found.get(name) != digest:
            what = "was changed or damaged since the run wrote it" if name in found else "is missing"
            raise FileError(f"{folder / name} {what}, by its checksum; remove the folder to run it again")


def seal_checkpoint(folder: Path, step: int, names: Sequence[str]) -> None:
    """Make files of a run's checkpoint the valid ones, all at once, and remove those of before."""
    files = {name: sha256(folder / name) for name in names}
    write_json(folder / CHECKPOINT, {"run": folder.parent.name, "step": step, "files": files})
    for old in folder.iterdir():
        if old.name not in (*names, CHECKPOINT):
            old.unlink()


def checkpoint(folder: Path) -> int | None:
    """The step of a run's checkpoint; None where there is none. ``FileError`` for a damaged one, or another run's."""
    sealed = read_json(folder / CHECKPOINT)
    if sealed is None:
        return None
    again = f"remove {folder} to train from the start"
    if sealed["run"] != folder.parent.name:
        raise FileError(f"{folder} is the checkpoint of another run, {sealed['run']}; {again}")
    for name, digest in sealed["files"].items():
        if not (folder / name).is_file() or sha256(folder / name) != digest:
            raise FileError(f"{folder / name} is missing, or was changed or damaged since the run wrote it; {again}")
    return sealed["step"]
