"""Write what a trained run needs to be deployed, and nothing of its data.

python -m unlearn.export run=FOLDER to=FOLDER
  alpha=1            the α to deploy, one of those the run was evaluated at (default: that of the run, else the first)
  weights=all        also copies frozen models that the hub has (default, auto: names and pins them)
  offset=merged      a run with low-rank updates as a whole model (default, auto: the updates alone, for the model that
                     they were trained on; the card says which)
  tokenizer=no       leaves the tokenizer out: it is the target's, and one that was trained here lists the data's words
  collapsed=yes      exports a run that collapsed, too

  TO gets the trained weights, the frozen models beside them (never the target), the tokenizer, offset.json and a card,
  README.md, with the code that loads them. Every file is searched for the forget set before it gets its final name.
  May be given: trainer.device, trainer.threads, paths.store, data.path.
"""

from __future__ import annotations

import sys

from unlearn.command import verb
from unlearn.config.derived import alpha_key
from unlearn.deploy.export.writing import ExportSettings, export
from unlearn.grid.refusal import Failed
from unlearn.grid.rerun import open_run


@verb(ExportSettings)
def main(keys: ExportSettings) -> None:
    try:
        about = export(open_run(keys.run, keys.overrides), keys)
    except OSError as error:  # a full disk, a folder that may not be written: nothing is left under the final name
        raise Failed(f"Nothing was exported: {error}") from None
    for name, file in about["files"].items():
        print(f"{file['bytes']:>12,}  {name}")
    texts, only = about["searched"]["forget_texts"], about["tokenizer"]["words_of_the_forget_set_alone"]
    words = f"; the tokenizer lists {only} words that occur in the forget set alone" if only else ""
    print(f"written: {keys.to} (α={alpha_key(about['alpha'])}); none of {texts} forget texts is in it, "
          f"no run of 4 of their words{words}")  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
