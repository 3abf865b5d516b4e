"""The notebooks run on a tiny study as they are, and are kept without outputs."""

import ast
import json
import re

import nbformat
import numpy as np
import pandas as pd
import pytest
from matplotlib.figure import Figure
from nbclient import NotebookClient
from support.helpers import ROOT
from support.made_up import write_made_up_run

NOTEBOOKS = {path.stem: path for path in (ROOT / "analysis" / "notebooks").glob("*.ipynb")}


@pytest.fixture(scope="module")
def study(tmp_path_factory):
    """Two algorithms at two alphas, with examples of runs and references."""
    folder = tmp_path_factory.mktemp("runs") / "tiny"
    rng = np.random.default_rng(0)

    def questions(**columns) -> pd.DataFrame:
        rows = [{"split": s, "id": f"{s}/{i}", "prompt": "who?", "gold": "she", "generation": "he"}
                for s in ("forget", "retain") for i in range(6)]  # fmt: skip
        numbers = {"prob": rng.uniform(size=len(rows)), "truth_ratio": rng.uniform(0.5, 2, size=len(rows))}
        return pd.DataFrame(rows).assign(**numbers, **columns)

    for algo in ("ga", "npo"):
        where = write_made_up_run(folder, {0.5: (0.4, 0.95, 0.5, 0.9), 1.0: (0.1, 0.9, 0.2, 0.8)}, algo=algo)
        pd.concat([questions(alpha=a) for a in (0.5, 1.0)]).to_parquet(where / "examples.parquet")
        pd.concat([questions(model=m) for m in ("target", "retrained")]).to_parquet(where / "references.parquet")
    return folder


def opened(name: str, study):
    """A notebook whose first cell names the tiny study."""
    notebook = nbformat.read(NOTEBOOKS[name], as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith('study = "default"')  # the study of the README's demo
    first.source = f"study, runs = {str(study)!r}, 'nowhere'"
    return notebook


@pytest.mark.nightly
def test_a_notebook_runs_in_jupyter(study, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = opened("tradeoff", study)
    place = {"metadata": {"path": str(NOTEBOOKS["tradeoff"].parent)}}
    NotebookClient(notebook, timeout=120, resources=place).execute()
    outputs = [out for cell in notebook.cells for out in cell.get("outputs", [])]
    assert {"image/png", "text/html"} <= {kind for out in outputs for kind in out.get("data", {})}
    assert not [out for out in outputs if out.get("name") == "stderr"]


@pytest.mark.parametrize("name", ["alpha", "examples", "tradeoff"])
def test_the_cells_of_a_notebook_run_on_a_tiny_study(name, study, capsys):
    names, shown = {}, []
    for cell in (c for c in opened(name, study).cells if c.cell_type == "code"):
        tree = ast.parse(re.sub(r"^%.*", "", cell.source, flags=re.MULTILINE))
        if isinstance(tree.body[-1], ast.Expr):  # what a notebook shows
            tree.body[-1] = ast.parse(f"_ = {ast.unparse(tree.body[-1])}").body[0]
        exec(compile(tree, name, "exec"), names)
        shown.append(names.pop("_", None))
    assert any(isinstance(value, Figure) for value in shown) and any(hasattr(value, "_repr_html_") for value in shown)
    assert capsys.readouterr().err == ""


def test_notebooks_are_kept_without_outputs():
    assert sorted(NOTEBOOKS) == ["alpha", "examples", "tradeoff"]
    for path in NOTEBOOKS.values():
        cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
        assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
