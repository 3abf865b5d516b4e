"""Checksums of a run's files, so that a truncated, changed or foreign file is refused by name and never evaluated.

Weights are sealed when training ends, the other files when the run is done; both seals stand in the manifest. A run
that was interrupted while it was evaluated again has unsealed results, which the next call makes whole.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from unlearn.config.pair import GRAM
from unlearn.store.files import FileError, sha256

WEIGHTS, RESULTS = "sealed_weights", "sealed_results"  # keys of the manifest
OFFSET, ADAPTER, BEST = "offset", "adapter", "best"
MEASURED = ("config.yaml", "metrics.jsonl", "eval.json", "examples.parquet", "references.parquet")


class SealError(FileError):
    """A run folder that does not hold what its manifest says."""


def weights(folder: Path) -> dict[str, str]:
    """Checksums of the trained weights, by path in the run folder."""
    return _sums(folder, [p for name in (OFFSET, ADAPTER, BEST) for p in (folder / name).rglob("*")])


def results(folder: Path) -> dict[str, str]:
    """Checksums of what the run measured and of the config that it was made with."""
    return _sums(folder, [folder / name for name in MEASURED])


def _sums(folder: Path, paths: list[Path]) -> dict[str, str]:
    return {str(p.relative_to(folder)): sha256(p) for p in sorted(paths) if p.is_file() and p.name[0] != "."}


def check_weights(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ``SealError`` where the weights are not those that training ended with."""
    sealed, found = manifest.get(WEIGHTS, {}), weights(folder)
    _check(folder, sealed, found)
    for foreign in sorted(set(found) - set(sealed)) if sealed else []:
        raise SealError(f"{folder / foreign} is not a file that the run wrote; move it out of the run's folder")


def check_results(folder: Path, manifest: Mapping[str, Any]) -> None:
    """Raise ``SealError`` where a finished run's files are not those it ended with."""
    if manifest.get("status") == "done":
        _check(folder, manifest.get(RESULTS, {}), results(folder))


def _check(folder: Path, sealed: Mapping[str, str], found: Mapping[str, str]) -> None:
    for name, digest in sealed.items():
        if name not in found and name.endswith(f"/{GRAM}"):
            continue  # it holds something of the request, and may be erased
        if found.get(name) != digest:
            what = "was changed or damaged since the run wrote it" if name in found else "is missing"
            raise SealError(
                f"{folder / name} {what}: its checksum is in manifest.json; remove the folder to run it again"
            )
