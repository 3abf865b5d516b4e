"""Show results of other projects as rows of our table.

python -m unlearn.compare FILE [FILE …]
  A FILE is OpenUnlearning's TOFU_EVAL.json (or TOFU_SUMMARY.json), TOFU's eval_log_aggregated.json, or an evaluation of
  this program (python -m unlearn.evaluate model=… out=FILE). Every aggregate is computed again from the examples in it.
    retrained=FILE   the result of a model that never saw the forget set: forget quality and PrivLeak against it
    beside=FOLDER    first the rows of a run, or of all runs of a study (runs/default)
    semantics=NAME   another dialect of the metrics than the file's own: default, ou, tofu, tofu_arithmetic
    out=FOLDER       write each result in our own format, for python -m analysis.tradeoff STUDY --others FOLDER/*.json
"""

import sys
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from unlearn.command import verb
from unlearn.config.schema import ConfigError
from unlearn.config.setting import unusable
from unlearn.grid import table
from unlearn.store import runlog


@dataclass
class Keys:
    words: list[str]
    retrained: str | None = None
    beside: Path | None = None
    semantics: str | None = None
    out: str | None = None


@verb(Keys)
def main(keys: Keys) -> None:
    from unlearn.evaluation.others import read, write

    if not keys.words:
        raise ConfigError("FILE: give one result at least")
    retrained = read(keys.retrained, semantics=keys.semantics) if keys.retrained else None
    others = [read(f, retrained, keys.semantics) for f in dict.fromkeys(keys.words) if f != keys.retrained]
    results = [*([retrained] if retrained else []), *others]
    # named by the ends of their paths, as far as it takes to distinguish them: a project's files are all called alike
    parts, depth = [r.path.resolve().with_suffix("").parts for r in results], 2
    while len({p[-depth:] for p in parts}) < len(set(parts)):
        depth += 1
    named = {"/".join(p[-depth:]): result for p, result in zip(parts, results, strict=True)}
    beside = dict(_beside(keys.beside)) if keys.beside else {}
    for problem in unusable("out", keys.out) if keys.out is not None else ():
        raise ConfigError(problem)
    table.show_metrics(beside | {name: result.metrics for name, result in named.items()})
    for name, result in named.items():
        if "privleak" in result.metrics:
            print(f"{name}: PrivLeak {result.metrics['privleak']:.1f}")
        for note in result.notes:
            print(f"{name}: {note}")
    for name, result in named.items() if keys.out is not None else ():
        path = Path(keys.out) / f"{name.replace('/', '-')}.json"
        write(path, name, result.settings | result.source, result.metrics, result.examples)
        print(f"written: {path}")


def _beside(folder: Path) -> Iterator[tuple[str, Mapping[str, Any]]]:
    """Rows of a run's folder, or of every run in a study's: the references first, once for every world."""
    runs = sorted(f.parent for f in (*folder.glob(runlog.EVAL), *folder.glob(f"*/{runlog.EVAL}")))
    if not runs:
        raise ConfigError(f"beside={folder}: must be the folder of an evaluated run, or of a study with one")
    try:
        found = {run.name: runlog.evaluation(run) for run in runs}
    except ValueError as error:
        raise ConfigError(str(error)) from None
    references: dict[tuple[str, Any], tuple[str, Mapping[str, Any]]] = {}
    for run, entries in found.items():
        for name, metrics in entries["references"].items():
            world = metrics.get("settings", {}).get("references")
            references.setdefault((name, world), (f"{name} of {run}", metrics))
    worlds = len({world for _, world in references})
    yield from ((long if worlds > 1 else name, metrics) for (name, _), (long, metrics) in references.items())
    for name, entries in found.items():
        yield from ((f"{name} α={float(alpha):g}", metrics) for alpha, metrics in entries["alphas"].items())


if __name__ == "__main__":
    sys.exit(main())
