"""Answer prompts by any model, or by target, unlearned and retrained model of a run, side by side.

python -m unlearn.generate run=FOLDER [prompt="…"] [alpha=0.5,1] [draft=4]
  Answers are greedy, after the run's own template. Without a prompt it asks for questions until an empty line.
  alpha may list several; the default is every α the run was evaluated at. With draft=4 the trained small model drafts
  4 tokens at a time and the ensemble checks them at once: the same answers, sooner where the target is large.

python -m unlearn.generate model=FOLDER_OR_NAME prompts=FILE out=FILE [tokenizer=FOLDER_OR_NAME] [template=chat] …
python -m unlearn.generate model=http://HOST:PORT/v1 name=NAME tokenizer=FOLDER_OR_NAME prompts=FILE out=FILE …
  What does a model know? Its greedy answers to the questions of a file, as JSON lines with question, answer and prob,
  the answer's probability per token: data.forget=FILE takes them. prompts= is a .txt file with a question in each line,
  or .jsonl, .json, .csv, .parquet with a column question (data=jsonl data.columns.question=NAME). Other columns are
  carried over. Where a row names the fact in key, an answer that does not hold it is written to OUT.unknown.jsonl: what
  a model does not know it cannot forget. What is in these files is not asked again. Without template= it is the model's
  chat template, or question_answer where it has none. Further settings: eval.max_new_tokens, trainer.device,
  pair.target.dtype, pair.target.http.max_requests …
"""

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from unlearn.command import verb
from unlearn.config.redaction import visible
from unlearn.config.schema import ConfigError, raise_for
from unlearn.config.setting import at_least, finite, need, setting, unusable
from unlearn.data.rows import DataError
from unlearn.grid.rerun import open_run
from unlearn.grid.rules import unknown_overrides
from unlearn.runs.opened import Opened
from unlearn.store import runlog

if TYPE_CHECKING:
    from unlearn.ensemble.ensemble import Ensemble

    Voice = tuple[str, Ensemble, float]  # name, members, α


@dataclass
class Keys:
    overrides: list[str]
    run: str | None = None
    model: str | None = None
    name: str | None = None  # of a model on a server
    tokenizer: str | None = None  # the model's own where it is left out
    prompts: Path | None = None
    out: Path | None = None
    prompt: str | None = None
    alpha: list[float] = setting([], finite("must be finite numbers, e.g. alpha=1 or alpha=0.5,1,2"))
    draft: int = setting(0, at_least(0, "must be a whole number of tokens, e.g. draft=4"))

    def __post_init__(self) -> None:
        served = any(o.startswith("pair") for o in self.overrides)  # a pair's target, as its settings say
        if (self.run is None) is (self.model is None and not served):
            raise ConfigError("run=FOLDER or model=FOLDER_OR_NAME_OR_URL: one of both must be given")
        here = {"prompt": self.prompt, "alpha": self.alpha or None, "draft": self.draft or None}
        there = {"prompts": self.prompts, "out": self.out, "name": self.name, "tokenizer": self.tokenizer}
        of, wrong = ("model=", here) if self.run is None else ("run=", there)
        if given := [f"{key}=" for key, value in wrong.items() if value is not None]:
            raise ConfigError(f"{', '.join(given)}: not with {of}")
        if self.run is None and (self.prompts is None or self.out is None):
            raise ConfigError("prompts=FILE out=FILE: both must be given with model=")


@verb(Keys)
def main(keys: Keys) -> None:
    if keys.run is None:
        _write(keys)
        return
    run = open_run(keys.run, keys.overrides)
    alphas = keys.alpha or sorted(float(a) for a in runlog.evaluation(run.folder)["alphas"])
    bench = run.bench
    voices = [("target", bench.alone("target"), 1.0), *((f"unlearned α={a:g}", run.ensemble, a) for a in alphas)]
    voices += [("retrained", bench.alone("retrained"), 1.0)] if bench.has("retrained") else []
    for prompt in iter(_ask, "") if keys.prompt is None else [keys.prompt]:
        try:
            for name, text in _answers(run, voices, prompt, keys.draft):
                print(f"{name:>16}  {visible(text)}")
        except (ConfigError, DataError) as error:
            if keys.prompt is not None:
                raise
            print(error)


def _write(keys: Keys) -> None:
    """What is wrong with the call is said before anything heavy is imported."""
    out, prompts, known = str(keys.out), str(keys.prompts), (".txt", ".jsonl", ".json", ".csv", ".parquet")
    raise_for([
        *unknown_overrides(keys.overrides), *unusable("the folder of out", str(keys.out.parent)),
        *need(not keys.out.is_dir(), "out", out, "must be a file, and is a folder"),
        *need(keys.out.suffix == ".jsonl", "out", out, "must end in .jsonl, as data.forget reads it"),
        *need(keys.prompts.is_file(), "prompts", prompts, "no such file"),
        *need(keys.prompts.suffix in known, "prompts", prompts, f"must be one of {', '.join(known)}"),
    ])  # fmt: skip
    from unlearn.grid import questions

    model = [] if keys.model is None else questions.settings(keys.model, keys.name, keys.tokenizer)
    call = questions.call(model, keys.prompts, keys.out, keys.overrides)
    from unlearn.grid import asking  # and with it torch

    asking.run(call)


def _ask() -> str:
    try:
        return input("question (empty to end): ").strip()
    except EOFError:
        return ""


def _answers(run: Opened, voices: "Sequence[Voice]", question: str, draft: int) -> Iterator[tuple[str, str]]:
    from unlearn.decoding.drafts import greedy_drafted
    from unlearn.decoding.generation import Decoding, greedy

    encoder = run.bench.encoder
    prompt, longest = [encoder.prompt(question)], encoder.max_length
    if not question.strip() or not 0 < len(prompt[0]) < longest:
        rule = f"must be a question of 1 to {longest - 1} tokens (pair.target.max_length, pair.small.max_length)"
        raise ConfigError(f"prompt={question[:60]!r}: {rule}, and has {len(prompt[0])} with its template")
    how = Decoding.by(encoder.tokenizer, min(run.cfg.eval.max_new_tokens, longest - len(prompt[0])))
    for name, ensemble, alpha in voices:
        asked = ensemble, prompt, alpha, how
        drafted = draft and len(ensemble.members) > 1
        found = greedy_drafted(*asked, ensemble.trained, draft) if drafted else greedy(*asked)
        yield name, encoder.decode(found[0])


if __name__ == "__main__":
    sys.exit(main())
