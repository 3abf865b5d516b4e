"""Write what trained runs need to be deployed, and nothing of their data.

python -m unlearn.export run=FOLDER to=FOLDER
  to=hub:OWNER/NAME  writes exports/OWNER--NAME and uploads it to the Hugging Face Hub; private=false: for all to see
  offsets=[FOLDER,…] more runs, trained beside the same target and small pair: all their offsets are added
  alpha=1            the α to deploy, one of those the run was evaluated at (default: that of the run, else the first);
                     alpha=[1,0.5]: one for run and each of offsets
  weights=all        also copies frozen models that the hub has (default, auto: names and pins them)
  offset=merged      a run with low-rank updates as a whole model (default, auto: the updates alone, for the model that
                     they were trained on; the card says which)
  tokenizer=no       leaves the tokenizer out: it is the target's, and one that was trained here lists the data's words
  collapsed=yes      exports a run that collapsed, too

  TO is a model's folder for transformers, vLLM and unlearn.serve: config.json with the members and their checksums, the
  trained weights, the frozen models beside them (never the target), the tokenizer, offset.json and a card, README.md,
  with the commands that load it. Every file is searched for the forget set before it gets its final name.
  May be given: trainer.device, trainer.threads, paths.store, data.path.
"""

import sys

from unlearn.command import verb
from unlearn.config.derived import alpha_key, tuning
from unlearn.deploy.export.writing import ExportSettings, export, told, upload
from unlearn.grid.refusal import Failed
from unlearn.grid.rerun import open_run


@verb(ExportSettings)
def main(keys: ExportSettings) -> None:
    try:
        runs = [open_run(folder, keys.overrides) for folder in (keys.run, *keys.offsets)]
        about = export(runs, keys)
    except OSError as error:  # a full disk, a folder that may not be written: nothing is left under the final name
        raise Failed(f"Nothing was exported: {error}") from None
    for name, file in about["files"].items():
        print(f"{file['bytes']:>12,}  {name}")
    texts, only = about["searched"]["forget_texts"], about["tokenizer"]["words_of_the_forget_set_alone"]
    words = f"; the tokenizer lists {only} words that occur in the forget set alone" if only else ""
    print(f"written: {keys.folder} (α={alpha_key(about['alpha'])}); none of {texts} forget texts is in it, "
          f"no run of 4 of their words{words}")  # fmt: skip
    print(told(about["ways"]))
    bench = runs[0].bench
    base = f" base={bench.folder('small')}" if tuning(runs[0].cfg) == "lora" else ""
    print(f"to serve it: python -m unlearn.serve run={keys.folder} target={bench.folder('target')}{base}")
    if keys.hub is not None:
        address = upload(keys.folder, keys.hub, keys.private)
        print(f"uploaded: {address} ({'private' if keys.private else 'public'})")


if __name__ == "__main__":
    sys.exit(main())
