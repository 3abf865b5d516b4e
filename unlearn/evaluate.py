"""Evaluate without training: a trained run again, or any causal language model.

python -m unlearn.evaluate run=FOLDER eval.alphas=[0,0.5,1,2]
  Other α's are added to the run's eval.json; other settings (eval.max_examples, …) replace the entries made before.
  May be given: eval.*, trainer.device, trainer.threads, paths.store, data.path, wandb.*.

python -m unlearn.evaluate model=NAME_OR_FOLDER out=FILE [tokenizer=NAME_OR_FOLDER] [retrained=FILE_OR_MODEL] …
  Any model of the hub or a folder, on the data set and with the settings of data=, template=, eval= and their keys.
  FILE gets the metrics, and <FILE's name>.examples.parquet beside it every example. retrained= is what such a call
  made of a model that never saw the forget set, OpenUnlearning's or TOFU's log of one, or such a model itself.
"""

import sys
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

from unlearn.command import verb
from unlearn.config.schema import ConfigError, raise_for
from unlearn.config.setting import need, unusable
from unlearn.grid import table
from unlearn.grid.perform import perform
from unlearn.grid.queue import share
from unlearn.grid.rerun import open_run
from unlearn.grid.rules import unknown_overrides
from unlearn.grid.together import together
from unlearn.store import processes


@dataclass
class Keys:
    overrides: list[str]
    run: str | None = None
    model: str | None = None
    out: Path | None = None
    tokenizer: str | None = None  # the model's own where it is left out
    retrained: str | None = None  # a result file, or a model that never saw the forget set

    def __post_init__(self) -> None:
        if (self.run is None) == (self.model is None):
            raise ConfigError("run=FOLDER or model=NAME_OR_FOLDER: one of both must be given")
        if self.run is not None and (self.out or self.tokenizer or self.retrained):
            raise ConfigError("out, tokenizer, retrained: are for model=; a run has its own (eval.retrained)")


def main(arguments: Sequence[str] | None = None) -> int:
    return together(lambda: _main(arguments))


@verb(Keys)
def _main(keys: Keys) -> int | None:
    if keys.run is not None:
        job = open_run(keys.run, keys.overrides).job
        share(perform, [job])
        return 1 if table.report([job]) else 0
    if processes.together():
        raise ConfigError("model=…: is evaluated by one process; start this command without accelerate or torchrun")
    if keys.out is None:
        raise ConfigError("out=FILE: say where the result goes, e.g. out=results/target.json")
    raise_for([
        *unknown_overrides(keys.overrides), *unusable("the folder of out", str(keys.out.parent)),
        *need(not keys.out.is_dir(), "out", str(keys.out), "must be a file, and is a folder"),
    ])  # fmt: skip
    from unlearn.grid import standalone

    found = standalone.run(keys.model, keys.out, keys.tokenizer, keys.retrained, keys.overrides)
    table.show_metrics({keys.model if name == "model" else name: metrics for name, metrics in found.items()})
    print(f"written: {keys.out}")
    return 0


if __name__ == "__main__":
    sys.exit(main())
