"""Answer prompts by target, unlearned and retrained model, side by side.

python -m unlearn.generate run=FOLDER [prompt="…"] [alpha=0.5,1] [draft=4]
  Answers are greedy, after the run's own template. Without a prompt it asks for questions until an empty line.
  alpha may list several; the default is every α the run was evaluated at. With draft=4 the trained small model drafts
  4 tokens at a time and the ensemble checks them at once: the same answers, sooner where the target is large.
"""

from __future__ import annotations

import sys
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING

from unlearn.command import verb
from unlearn.config.redaction import visible
from unlearn.config.schema import ConfigError
from unlearn.config.setting import at_least, finite, setting
from unlearn.data.rows import DataError
from unlearn.grid.rerun import open_run
from unlearn.runs.opened import Opened
from unlearn.store import runlog

if TYPE_CHECKING:
    from unlearn.ensemble.ensemble import Ensemble

    Voice = tuple[str, Ensemble, float]  # name, members, α


@dataclass
class Keys:
    run: str
    overrides: list[str]
    prompt: str | None = None
    alpha: list[float] = setting([], finite("must be finite numbers, e.g. alpha=1 or alpha=0.5,1,2"))
    draft: int = setting(0, at_least(0, "must be a whole number of tokens, e.g. draft=4"))


@verb(Keys)
def main(keys: Keys) -> None:
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


def _ask() -> str:
    try:
        return input("question (empty to end): ").strip()
    except EOFError:
        return ""


def _answers(run: Opened, voices: Sequence[Voice], question: str, draft: int) -> Iterator[tuple[str, str]]:
    """Names and answers, one after the other."""
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
