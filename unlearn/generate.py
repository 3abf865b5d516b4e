"""``python -m unlearn.generate run=FOLDER [prompt="…"] [alpha=0.5,1]``: target, unlearned and retrained side by side.

Answers are greedy, after the run's own template. Without a prompt it asks for questions until an empty line.
``alpha`` may list several; the default is every α the run was evaluated at. With ``draft=4`` the trained small model
drafts 4 tokens at a time and the ensemble checks them at once: the same answers, sooner where the target is large.
"""

from __future__ import annotations

import math
import sys
from collections.abc import Callable, Sequence
from pathlib import Path

from unlearn.config.schema import ConfigError
from unlearn.grid.refusal import REFUSED, refuse, said
from unlearn.grid.rerun import load
from unlearn.store import runlog
from unlearn.store.identity import Job

OWN = ("run=", "prompt=", "alpha=", "draft=")


def main(arguments: list[str] | None = None) -> int:
    arguments = sys.argv[1:] if arguments is None else arguments
    given = {key: [a.removeprefix(key) for a in arguments if a.startswith(key)] for key in OWN}
    if len(given["run="]) != 1 or "--help" in arguments:
        print(__doc__.strip())
        return 0 if "--help" in arguments else 2
    try:
        _, job = load(given["run="][0], [a for a in arguments if not a.startswith(OWN)])
        answer = _answerer(job, _alphas(given["alpha="], job.folder), _gamma(given["draft="]))
    except REFUSED as error:
        return refuse(said(error), error)
    for prompt in given["prompt="] or iter(_ask, ""):
        try:
            print("\n".join(f"{name:>16}  {text}" for name, text in answer(prompt)))
        except ConfigError as error:
            if given["prompt="]:
                return refuse(said(error), error)
            print(error)
    return 0


def _ask() -> str:
    try:
        return input("question (empty to end): ").strip()
    except EOFError:
        return ""


def _alphas(given: Sequence[str], folder: Path) -> list[float]:
    if not given:
        return sorted(float(a) for a in runlog.evaluation(folder)["alphas"])
    try:
        alphas = [float(a) for text in given for a in text.strip("[]").split(",")]
    except ValueError:
        alphas = [math.nan]
    if not all(math.isfinite(a) for a in alphas):
        raise ConfigError(f"alpha={','.join(given)}: must be finite numbers, e.g. alpha=1 or alpha=0.5,1,2")
    return alphas


def _gamma(given: Sequence[str]) -> int:
    """Tokens that are drafted at a time; 0: none."""
    text = given[-1] if given else "0"
    if not text.isdecimal():
        raise ConfigError(f"draft={text}: must be a whole number of tokens, e.g. draft=4")
    return int(text)


def _answerer(job: Job, alphas: Sequence[float], gamma: int) -> Callable[[str], list[tuple[str, str]]]:
    """A function from a question to (name, answer) pairs; models are loaded here, once."""
    from unlearn.decoding.drafts import greedy_drafted
    from unlearn.decoding.generation import Decoding, greedy
    from unlearn.runs.learner import initialise, members
    from unlearn.runs.workbench import workbench

    cfg = job.cfg
    initialise(cfg)
    bench = workbench(cfg)
    unlearned = members(cfg, bench, job.folder)
    voices = [("target", bench.alone("target"), 1.0), *((f"unlearned α={a:g}", unlearned, a) for a in alphas)]
    if bench.has("retrained"):
        voices.append(("retrained", bench.alone("retrained"), 1.0))
    tokenizer = bench.encoder.tokenizer

    def answer(question: str) -> list[tuple[str, str]]:
        prompt, room = [bench.encoder.prompt(question)], bench.encoder.max_length
        if not question.strip() or not 0 < len(prompt[0]) < room:
            rule = f"must be a question of 1 to {room - 1} tokens (pair.target.max_length, pair.small.max_length)"
            raise ConfigError(f"prompt={question[:60]!r}: {rule}, and has {len(prompt[0])} with its template")
        how = Decoding.by(tokenizer, min(cfg.eval.max_new_tokens, room - len(prompt[0])))
        said = []
        for name, ensemble, alpha in voices:
            asked = ensemble, prompt, alpha, how
            drafter = ensemble.trained if gamma and len(ensemble.members) > 1 else None
            found = greedy(*asked) if drafter is None else greedy_drafted(*asked, drafter, gamma)
            said.append((name, bench.encoder.decode(found[0])))
        return said

    return answer


if __name__ == "__main__":
    sys.exit(main())
