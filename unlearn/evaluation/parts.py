"""What an evaluation has measured so far, split by split and α by α: one that is killed resumes there.

A part is a file of what took the time, scores and answers; the metrics of them are taken again. It is bound to all that
it depends on by its folder's name, and removed when the evaluation is whole.
"""

import json
import shutil
import zipfile
from pathlib import Path
from typing import Any

import numpy as np

from unlearn.ensemble.ensemble import Ensemble
from unlearn.evaluation.scoring import Scores
from unlearn.evaluation.suite import Split, Suite
from unlearn.store.files import saving, write_whole
from unlearn.store.identity import digest

Part = tuple[Scores, list[str] | None]  # of one split at one α: scores, and the answers where there are any


class Parts:
    """In ``folder``, of one ensemble and suite; ``weights`` identify the member that was trained, if any."""

    def __init__(self, folder: Path, ensemble: Ensemble, suite: Suite, weights: Any = None):
        members = [(m.name, m.fingerprint, m.constant, m.slope, m.trained) for m in ensemble.members]
        examples = [(split.name, split.examples.fingerprint, split.right, split.prompts) for split in suite.splits]
        rule = ensemble.rule.func.__name__, ensemble.rule.keywords
        self._all, self._of = folder, folder / digest([members, rule, weights, suite.settings, examples], 20)

    def get(self, split: Split, alpha: float) -> Part | None:
        """What was kept; None where nothing was, or it cannot be read."""
        try:
            # np.load leaves a damaged file open
            with self._file(split, alpha).open("rb") as stream, np.load(stream, allow_pickle=False) as found:
                arrays = [found[name] for name in ("starts", "logp", "right", "mean", "variance")]
                return Scores(*arrays), json.loads(found["texts"].tobytes())
        except (OSError, ValueError, KeyError, EOFError, zipfile.BadZipFile):
            return None

    def keep(self, split: Split, alpha: float, part: Part) -> None:
        """Keep a part, whole or not at all."""
        scores, texts = part
        with saving(self._of):
            self._of.mkdir(parents=True, exist_ok=True)
        told = np.frombuffer(json.dumps(texts).encode(), dtype=np.uint8)

        def write(path: Path) -> None:
            with path.open("wb") as stream:
                np.savez(stream, texts=told, starts=scores.starts, logp=scores.logp, right=scores.right,
                         mean=scores.mean, variance=scores.variance)  # fmt: skip

        write_whole(self._file(split, alpha), write, durable=False)

    def clear(self) -> None:
        """Remove all parts, also those of other settings."""
        shutil.rmtree(self._all, ignore_errors=True)

    def _file(self, split: Split, alpha: float) -> Path:
        return self._of / f"{split.name}-{alpha!r}.npz"
