"""The groups of metrics beside the core: a file each in ``unlearn/evaluation/groups``, known here by its text.

Rules and identities ask what a group needs long before anything runs, and importing its file would import torch. So a
file says it in literals at its top: ``NEEDS`` and ``SETTINGS``, both tuples of words.
"""

import ast
from collections.abc import Sequence
from functools import cache
from pathlib import Path

FOLDER = Path(__file__).resolve().parents[1] / "evaluation" / "groups"
GROUPS = tuple(sorted(path.stem for path in FOLDER.glob("[a-z]*.py")))
NEEDS = {  # what a group may need; beside these the name of a group whose metrics it reads
    "holdout": "rows that no model saw",
    "moments": "of the log-probability of forget and holdout rows, under the model's own distribution",
    "weights": "of every model that is evaluated: a server has none here",
    "models": "target and retrained themselves: a result file has none",
    "excerpts": "answers cut at eval.max_new_tokens",
}


@cache
def literal(group: str, name: str) -> tuple[str, ...]:
    """``NEEDS``, or ``SETTINGS`` (the keys of ``eval`` that decide its values), of a group; empty where it has none."""
    if group not in GROUPS:  # refused elsewhere
        return ()
    for statement in ast.parse((FOLDER / f"{group}.py").read_text("utf-8")).body:
        if isinstance(statement, ast.Assign) and ast.unparse(statement.targets[0]) == name:
            return ast.literal_eval(statement.value)
    return ()


def needing(groups: Sequence[str], need: str) -> list[str]:
    """Those of the groups that need something."""
    return [group for group in groups if need in literal(group, "NEEDS")]
