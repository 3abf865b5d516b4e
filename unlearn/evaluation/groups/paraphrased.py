"""The forget questions in other words: what was unlearnt, a wording or a fact?

``forget/other_question_prob``: probability of the right answer to the paraphrased question;
``forget/other_question_rougeL_recall``: ROUGE-L recall of the greedy answer to it.
"""

from collections.abc import Sequence

from unlearn.data.encoding import Examples
from unlearn.data.rows import DataError, DataSet
from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.suite import Split


def check(data: DataSet, splits: Sequence[Split]) -> None:
    without = [r.id for s in splits if s.name == "forget" for r in s.rows if not r.paraphrased_question]
    if without:
        raise DataError(f"eval.groups: paraphrased needs a paraphrased question in each forget row: {without[0]!r}")


def measure(ctx: Context) -> Found:
    split, encode = ctx.suite.split("forget"), ctx.suite.encoder.example
    examples = Examples(encode(r.id, r.paraphrased_question, r.answer) for r in split.rows)
    return Found.of("forget", {
        "other_question_prob": ctx.scored(examples).prob,
        "other_question_rougeL_recall": ctx.recalls([e.prompt for e in examples], split.answers),
    })  # fmt: skip
