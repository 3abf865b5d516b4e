"""Write what a trained run needs to be deployed, and nothing of its data.

python -m unlearn.export run=FOLDER to=FOLDER
  alpha=1            the α to deploy, one of those the run was evaluated at (default: that of the run, else the first)
  weights=all        also copies frozen models that the hub has (default, auto: names and pins them)
  tokenizer=no       leaves the tokenizer out: it is the target's, and one that was trained here lists the data's words
  collapsed=yes      exports a run that collapsed, too

  TO gets the trained weights, the frozen models beside them (never the target), the tokenizer, offset.json and a card,
  README.md, with the code that loads them. Every file is searched for the forget set before it gets its final name.
  May be given: trainer.device, trainer.threads, paths.store, data.path.
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from unlearn.command import verb
from unlearn.config.derived import alpha_key
from unlearn.config.schema import ConfigError
from unlearn.config.setting import finite, one_of, setting
from unlearn.deploy.export.writing import ExportSettings, export
from unlearn.grid.refusal import Failed
from unlearn.grid.rerun import open_run


@dataclass
class Keys:
    run: str
    to: str
    overrides: list[str]
    alpha: float | None = setting(None, finite("must be one of those the run was evaluated at"))
    weights: str = setting("auto", one_of("auto", "all"))
    tokenizer: str = setting("yes", one_of("yes", "no"))
    collapsed: str = setting("no", one_of("no", "yes"))


@verb(Keys)
def main(keys: Keys) -> None:
    run = open_run(keys.run, keys.overrides)
    if not keys.to:
        raise ConfigError("to='': must be a folder that is not there yet, or an empty one")
    tokenizer, collapsed = keys.tokenizer == "yes", keys.collapsed == "yes"
    try:
        about = export(run, ExportSettings(Path(keys.to), keys.alpha, keys.weights == "all", tokenizer, collapsed))
    except OSError as error:  # a full disk, a folder that may not be written: nothing is left under the final name
        raise Failed(f"Nothing was exported: {error}") from None
    for name, file in about["files"].items():
        print(f"{file['bytes']:>12,}  {name}")
    texts, only = about["searched"]["forget_texts"], about["tokenizer"]["words_of_the_forget_set_alone"]
    words = f"; the tokenizer lists {only} words that occur in the forget set alone" if only else ""
    print(f"written: {Path(keys.to)} (α={alpha_key(about['alpha'])}); none of {texts} forget texts is in it, "
          f"no run of 4 of their words{words}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
