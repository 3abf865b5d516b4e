"""Results that are not runs of a study, such as other projects', in the format that evaluations are written in.

``python -m unlearn.evaluate model=… out=FILE`` writes that format, and ``python -m unlearn.compare FILE out=FOLDER``
converts OpenUnlearning's and TOFU's files to it.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import pandas as pd

from .runs import StudyError, numbers, parse_json

FORMAT = 1


def load_others(paths: Sequence[str | Path]) -> pd.DataFrame:
    """One row per file: ``model``, ``file`` and a column per metric."""
    return pd.DataFrame([_row(Path(p)) for p in paths], columns=None if paths else ["model", "file"])


def _row(path: Path) -> dict:
    content = parse_json(path)
    if content.get("format") != FORMAT or not isinstance(content.get("metrics"), dict):
        raise StudyError(
            f"{path} is not an evaluation in this program's format {FORMAT}; for a file of OpenUnlearning or TOFU: "
            f"python -m unlearn.compare {path} out=FOLDER writes one"
        )
    return {"model": str(content.get("model") or path.stem), "file": str(path)} | numbers(content["metrics"])
