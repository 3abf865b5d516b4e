"""Packages import one way along the data flow (pyproject: import-linter)."""

import ast

from support.helpers import ROOT, python


def imported(path) -> set[str]:
    found = set()
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            found |= {alias.name for alias in node.names}
        elif isinstance(node, ast.ImportFrom) and node.module:
            found |= {node.module} | {f"{node.module}.{alias.name}" for alias in node.names}
    return {name.removeprefix("unlearn.") for name in found if name.startswith("unlearn.")}


def test_packages_import_one_way_and_no_command_imports_another():
    code = "from importlinter.cli import lint_imports_command; lint_imports_command()"  # it sets logging up anew
    done = python("-c", code, "--no-cache", check=False)
    assert done.returncode == 0, done.stdout


def test_losses_know_neither_models_nor_config():
    learning = ROOT / "unlearn" / "learning"
    assert {name.split(".")[1] for name in imported(learning / "losses.py")} == {"answers"}
    assert imported(learning / "answers.py") == set()
