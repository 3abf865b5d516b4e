"""Prepare what is missing, train, evaluate, record; with ``-m`` a whole grid: ``python -m unlearn.run``.

A run that is done is recognised by its folder's name, without importing torch. A failing job never stops the
others: it is recorded in its manifest, and the command's exit status says so at the end.
"""

import sys

from omegaconf import DictConfig

from unlearn.data.readers import register
from unlearn.grid import call as grid
from unlearn.grid.perform import perform
from unlearn.grid.together import together

register()


def unlearn(raw: DictConfig) -> None:
    """One job of a grid (or the only one)."""
    perform(grid.Grid.call.job_of(raw))


def main() -> None:
    sys.exit(together(lambda: grid.supervise(unlearn, perform)))


if __name__ == "__main__":
    main()
