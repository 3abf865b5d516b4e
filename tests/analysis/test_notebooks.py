"""The notebooks run on a tiny study as they are, and are kept without outputs."""

import json

import nbformat
import numpy as np
import pandas as pd
import pytest
from nbclient import NotebookClient
from support.helpers import ROOT
from support.made_up import write_made_up_run

NOTEBOOKS = sorted((ROOT / "analysis" / "notebooks").glob("*.ipynb"))


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


def test_there_are_the_three_notebooks():
    assert [path.stem for path in NOTEBOOKS] == ["alpha", "examples", "tradeoff"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_runs_on_a_tiny_study(path, study, tmp_path, monkeypatch):
    monkeypatch.setenv("IPYTHONDIR", str(tmp_path))
    monkeypatch.setenv("JUPYTER_PLATFORM_DIRS", "1")
    notebook = nbformat.read(path, as_version=4)
    first = next(cell for cell in notebook.cells if cell.cell_type == "code")
    assert first.source.startswith('study = "default"')  # the study of the README's demo
    first.source = f"study, runs = {str(study)!r}, 'nowhere'"
    NotebookClient(notebook, timeout=120, resources={"metadata": {"path": str(path.parent)}}).execute()
    shown = [kind for cell in notebook.cells for out in cell.get("outputs", []) for kind in out.get("data", {})]
    assert "image/png" in shown and "text/html" in shown
    assert not [out for cell in notebook.cells for out in cell.get("outputs", []) if out.get("name") == "stderr"]


@pytest.mark.parametrize("path", NOTEBOOKS, ids=lambda path: path.stem)
def test_a_notebook_is_kept_without_outputs(path):
    cells = [cell for cell in json.loads(path.read_text())["cells"] if cell["cell_type"] == "code"]
    assert cells and all(cell["outputs"] == [] and cell["execution_count"] is None for cell in cells)
