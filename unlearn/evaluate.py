"""Evaluate without training: a trained run again, or any causal language model.

python -m unlearn.evaluate run=FOLDER eval.alphas=[0,0.5,1,2]
    Other α's are added to the run's eval.json; other settings (eval.max_examples, …) replace the entries made before.
    May be given: eval.*, trainer.device, trainer.threads, paths.store, data.path, wandb.*.

python -m unlearn.evaluate model=NAME_OR_FOLDER out=FILE [tokenizer=NAME_OR_FOLDER] [retrained=FILE_OR_MODEL] …
    Any model of the hub or a folder, on the data set and with the settings of data=, template=, eval= and their keys.
    FILE gets the metrics, and <FILE's name>.examples.parquet beside it every example. retrained= is what such a call
    made of a model that never saw the forget set, OpenUnlearning's or TOFU's log of one, or such a model itself.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path

from unlearn.config.schema import ConfigError, register
from unlearn.evaluation.foreign import ResultError
from unlearn.grid import places, table
from unlearn.grid.perform import perform
from unlearn.grid.refusal import REFUSED, refuse, said
from unlearn.grid.rerun import load
from unlearn.grid.rules import unknown_overrides

OWN = ("model", "tokenizer", "retrained", "out")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    if "--help" in arguments:
        print(__doc__.strip())
        return 0
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    folders = [a.removeprefix("run=") for a in arguments if a.startswith("run=")]
    try:
        if any(a.startswith("model=") for a in arguments) and not folders:
            return _any_model(arguments)
        if len(folders) != 1:
            print(__doc__.strip())
            return 2
        raw, job = load(folders[0], [a for a in arguments if not a.startswith("run=")])
    except (*REFUSED, ResultError) as error:
        return refuse(said(error), error)
    perform(raw, job)
    return 1 if table.report([job]) else 0


def _any_model(arguments: list[str]) -> int:
    own = dict(a.split("=", 1) for a in arguments if a.split("=")[0] in OWN)
    rest = [a for a in arguments if a.split("=")[0] not in OWN]
    if "out" not in own:
        raise ConfigError("out=FILE: say where the result goes, e.g. out=results/target.json")
    problems = [*unknown_overrides(rest), *places.problems("the folder of out", str(Path(own["out"]).parent))]
    if Path(own["out"]).is_dir():
        problems.append(f"out={own['out']!r}: must be a file, and is a folder")
    if problems:
        raise ConfigError("\n  ".join(problems))
    register()
    from hydra.errors import HydraException

    from unlearn.config.own import OwnFileError
    from unlearn.evaluation.retrained import MissingRetrained
    from unlearn.grid.standalone import Request, run

    asked = Request(own["model"], Path(own["out"]), own.get("tokenizer"), own.get("retrained"), tuple(rest))
    try:
        found = run(asked)
    except (HydraException, MissingRetrained, OwnFileError) as error:
        raise ConfigError(said(error)) from None
    table.show({own["model"] if name == "model" else name: metrics for name, metrics in found.items()})
    print(f"written: {own['out']}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
