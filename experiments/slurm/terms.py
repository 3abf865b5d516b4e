"""Objectives for check.py: gradient ascent, which in a job of Slurm is disturbed as files in its folder ask.

``slow-N``: task N of the array takes its time, so that what disturbs it comes while it trains. ``hungry-N``: it asks,
once, for more memory than its job has.
"""

import os
import time
from pathlib import Path

from unlearn.learning.answers import Answers, PerAnswer


def paced(forget: Answers) -> PerAnswer:
    task = os.environ.get("SLURM_ARRAY_TASK_ID")
    if Path(f"slow-{task}").exists():
        time.sleep(0.5)
    if (hungry := Path(f"hungry-{task}")).exists():
        hungry.unlink()
        _ = b"x" * 8_000_000_000
    return forget.logp_of_answer


def broken(forget: Answers) -> PerAnswer:
    raise ValueError("this objective is wrong")
