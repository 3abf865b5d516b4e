"""What tests of deletion requests share: three people who ask one after another."""

import shutil
from pathlib import Path

from support.helpers import TINY

from unlearn.deploy.requests.ledger import Ledger, opened

TINY3 = (*TINY, "data.people=6", "data.requests=[[5],[2],[3]]", "algo=npo", "trainer.lr=1e-2", "eval.groups=[leak]")
EASY = ("forget/prob<=1",)  # a rule that every run meets


def copied(made: Path, to: Path) -> Ledger:
    """A copy of a ledger, with links to the same runs."""
    found = opened(Path(shutil.copytree(made, to)))
    for link in (made / "links").iterdir():
        found.link(link.stem, opened(made).run_of(link.stem))
    return found
