"""``python -m unlearn.export run=FOLDER to=FOLDER``: what a trained run needs to be deployed, and nothing of its data.

  alpha=1            the α to deploy, one of those the run was evaluated at (default: that of the run, else the first)
  weights=all        also copies frozen models that the hub has (default, auto: names and pins them)
  tokenizer=no       leaves the tokenizer out: it is the target's, and one that was trained here lists the data's words
  collapsed=yes      exports a run that collapsed, too

TO gets the trained weights, the frozen models beside them (never the target), the tokenizer, offset.json and a card,
README.md, with the code that loads them. Every file is searched for the forget set before it gets its final name.
May be given: trainer.device, trainer.threads, paths.store, data.path.
"""

from __future__ import annotations

import logging
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Any

from unlearn.config.derived import alpha_key, tuning
from unlearn.config.pair import LAYERS
from unlearn.config.schema import ConfigError
from unlearn.data.rows import DataError
from unlearn.deploy.export.writing import Asked, export
from unlearn.grid.rerun import load, split
from unlearn.store import runlog
from unlearn.store.identity import Job

if TYPE_CHECKING:
    pass

log = logging.getLogger(__name__)
CHOICES = {"weights": ("auto", "all"), "tokenizer": ("yes", "no"), "collapsed": ("no", "yes")}
OWN = ("run", "to", "alpha", *CHOICES)


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given, rest = split(arguments, OWN)
    if "--help" in arguments or not {"run", "to"} <= set(given):
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    logging.basicConfig(level=logging.INFO, format="[%(asctime)s] %(message)s", datefmt="%H:%M:%S")
    try:
        _, job = load(given["run"], rest)
        asked = check(job, given)
        about = export(job, asked)
    except (ConfigError, DataError) as error:
        print(f"Refused:\n  {error}", file=sys.stderr)
        return 2
    except OSError as error:  # a full disk, a folder that may not be written: nothing is left under the final name
        print(f"Nothing was exported: {error}", file=sys.stderr)
        return 1
    print(_summary(asked, about))
    return 0


# --- what is refused ----------------------------------------------------------------------------------------------


def check(job: Job, given: dict[str, str]) -> Asked:
    """The options of a call; refused where they, the run or the folder are not fit for it."""
    options = {key: given.get(key, choices[0]) for key, choices in CHOICES.items()}
    for key, value in options.items():
        if value not in CHOICES[key]:
            raise ConfigError(f"{key}={value!r}: must be one of {', '.join(CHOICES[key])}")
    _finished(job, options["collapsed"] == "yes")
    if job.cfg.pair.target.kind == "http":
        raise ConfigError(
            "pair.target.kind='http': an export is loaded beside the target's weights and checked against them, and "
            f"these are on a server; the offset itself is in {job.folder / runlog.OFFSET}"
        )
    if job.cfg.method.file is not None:
        raise ConfigError(
            f"method.file={job.cfg.method.file!r}: an export holds no code, and this method's rule is a function of "
            "your own; there are exports of the rules sum, plausible and rank"
        )
    if tuning(job.cfg) == LAYERS:
        raise ConfigError(
            f"{job.folder}: its tuning is {LAYERS}, and an export holds plain models that need no code of ours; deploy "
            "the run's adapter/ beside its model (unlearn.models.layers.load, or peft)"
        )
    place, alpha = _place(job, given["to"]), _alpha(job, given.get("alpha"))
    return Asked(place, alpha, options["weights"] == "all", options["tokenizer"] == "yes")


def _finished(job: Job, collapsed: bool) -> None:
    manifest = runlog.manifest(job.folder)
    status = manifest.get("status")
    if status != "done":
        raise ConfigError(f"{job.folder}: its status is {status!r}, and only a run that is done is exported")
    if manifest.get("collapsed") is not None and manifest.get("kept") != "best" and not collapsed:
        raise ConfigError(
            f"{job.folder}: this run collapsed ({manifest['collapsed']}); collapsed=yes exports it all the same, and "
            "trainer.keep=best keeps the best point of such a run"
        )


def _place(job: Job, to: str) -> Path:
    place = Path(to)
    if not to or place.is_file() or (place.is_dir() and any(place.iterdir())):
        raise ConfigError(f"to={to!r}: must be a folder that is not there yet, or an empty one")
    if place.resolve().is_relative_to(job.folder.resolve()):
        raise ConfigError(f"to={to!r}: lies in the run's own folder; must be another place")
    return place


def _alpha(job: Job, text: str | None) -> float:
    known = [float(a) for a in runlog.evaluation(job.folder)["alphas"]]
    if not known:
        raise ConfigError(f"{job.folder}: has no evaluation; make one: python -m unlearn.evaluate run={job.folder}")
    if text is None:
        return job.cfg.alpha if job.cfg.alpha in known else known[0]
    try:
        alpha = float(text)
    except ValueError:
        alpha = None
    if alpha not in known:
        raise ConfigError(
            f"alpha={text}: must be one of those the run was evaluated at, {', '.join(f'{a:g}' for a in known)}; "
            f"another: python -m unlearn.evaluate run={job.folder} eval.alphas=[{text}]"
        )
    return alpha


# --- what is written ----------------------------------------------------------------------------------------------


def _summary(asked: Asked, about: dict[str, Any]) -> str:
    searched, only = about["searched"], about["tokenizer"]["words_of_the_forget_set_alone"]
    lines = [f"{f['bytes']:>12,}  {name}" for name, f in about["files"].items()]
    words = f"; the tokenizer lists {only} words that occur in the forget set alone" if only else ""
    return "\n".join([
        *lines,
        f"written: {asked.to} (α={alpha_key(asked.alpha)}); none of {searched['forget_texts']} forget texts is in it, "
        f"no run of 4 of their words{words}",
    ])  # fmt: skip


if __name__ == "__main__":
    sys.exit(main())
