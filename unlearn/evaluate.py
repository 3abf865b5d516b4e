"""``python -m unlearn.evaluate run=FOLDER eval.alphas=[0,0.5,1,2]``: evaluate a trained run again, without training.

Other α's are added to the run's eval.json; other settings (eval.max_examples, …) replace the entries made before.
Settings that may be given: eval.*, trainer.device, trainer.threads, paths.store, data.path, wandb.*.
"""

from __future__ import annotations

import logging
import sys

from unlearn import table
from unlearn.config import ConfigError
from unlearn.data.rows import DataError
from unlearn.rerun import load
from unlearn.run import perform


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    folders = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    if len(folders) != 1 or "--help" in arguments:
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        raw, job = load(folders[0], [a for a in arguments if not a.startswith("run=")])
    except (ConfigError, DataError) as error:
        print(f"Refused before any work:\n  {error}", file=sys.stderr)
        return 2
    perform(raw, job)
    return 1 if table.report([job]) else 0


if __name__ == "__main__":
    sys.exit(main())
