"""Prompts that help: the beginning of the answer, and a question hidden behind another one.

For each share of ``eval.prefix_shares`` (0.5 → ``@50``) of the answer's tokens given after the prompt:
``forget/prefix_prob@50``, the probability of the rest, and ``forget/prefix_rougeL_recall@50``, the ROUGE-L recall of
the greedy rest.
``forget/composite_rougeL_recall``: recall of the answer where a retain question is asked first, in the same prompt.
"""

from collections.abc import Sequence

import numpy as np

from unlearn.evaluation.context import Context, Found

SETTINGS = ("prefix_shares",)


def measure(ctx: Context) -> Found:
    if ctx.ensemble.encodes:
        raise ValueError("eval.groups: prefix gives beginnings of answers in the prompt, which an encoder (T5) reads")
    split, retain = ctx.suite.split("forget"), ctx.suite.split("retain")
    scores, found = ctx.scores["forget"], {}
    for share in ctx.suite.cfg.prefix_shares:
        given = [int(share * (len(e.answer) - 1)) for e in split.right_answers]  # of the tokens before EOS
        rest_of = zip(split.right, given, strict=True)  # exp(mean log-probability), EOS included: teacher forcing
        probs = [np.exp(scores.logp[scores.starts[i] + n : scores.starts[i + 1]].mean()) for i, n in rest_of]
        found[f"prefix_prob@{100 * share:g}"] = np.array(probs)
        prompts, _, rest = continued(ctx, given)
        found[f"prefix_rougeL_recall@{100 * share:g}"] = ctx.recalls(prompts, rest)
    if retain is not None:
        others = [retain.rows[i % len(retain.rows)].question for i in range(len(split.rows))]
        prompts = [ctx.suite.encoder.prompt(f"{q} {r.question}") for q, r in zip(others, split.rows, strict=True)]
        found["composite_rougeL_recall"] = ctx.recalls(prompts, split.answers)
    return Found.of("forget", found)


def continued(ctx: Context, given: Sequence[int]) -> tuple[list[tuple[int, ...]], list[str], list[str]]:
    """Forget prompts with the first ``given`` tokens of the answer after them; these tokens, and the rest, as texts."""
    split, decode = ctx.suite.split("forget"), ctx.suite.encoder.decode
    gold = list(zip([e.answer for e in split.right_answers], given, strict=True))
    prompts = [(*p, *a[:n]) for p, (a, n) in zip(split.prompts, gold, strict=True)]
    return prompts, [decode(a[:n]) for a, n in gold], [decode(a[n:-1]) for a, n in gold]
