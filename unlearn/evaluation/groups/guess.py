"""The guess level: what asking gives where nobody can know, for want of a retrained model.

Each forget row may have a ``guess_question``, the same question about a name that no model can know. The target is
asked it, and what it says is measured against the row's own answer: probability, ROUGE, ``known``, and with the group
leak its drawn answers. That is the entry ``guess`` among the references of eval.json. The group leak then gives
``forget/leak_gap_guess``, leak@k minus the guess level's, of the largest k. It is a lower bar than a retrained model: a
made-up name tells less than a true one, whose language or title may give the answer away.
"""

from dataclasses import replace

from unlearn.evaluation.context import Context, Found
from unlearn.evaluation.suite import Suite, encoded

MEASURED = ("leak",)  # the other groups that are measured of it


def measure(ctx: Context) -> Found:
    return Found()  # the level is a reference of its own (runs/baselines.py)


def asked(suite: Suite) -> Suite | None:
    """The forget questions as guesses; None where no row has one, or the group is not asked for."""
    forget = suite.split("forget")
    rows = [replace(row, question=row.guess_question) for row in forget.rows if row.guess_question]
    if "guess" not in suite.cfg.groups or not rows:
        return None
    groups = [name for name in MEASURED if name in suite.cfg.groups]
    return replace(suite, splits=[encoded("forget", rows, suite.encoder)], cfg=replace(suite.cfg, groups=groups))
