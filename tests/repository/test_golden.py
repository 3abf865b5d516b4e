"""Results of the demo are what they were when its golden file was written: what shows that a redesign changed nothing.

The files hold every number of the runs' eval.json. Write them anew only for a change that is meant to change numbers:

    python tests/repository/test_golden.py RUNS/STUDY tests/golden/NAME.json
"""

import json
import math
import sys
from pathlib import Path

import pytest

GOLDEN = Path(__file__).resolve().parents[1] / "golden"


def numbers(study: Path) -> dict[str, dict[str, float]]:
    """Run (without its hash) → "alphas/1.0/forget/prob" and so on → value."""
    return {
        path.parent.name.rsplit("-", 1)[0]: dict(_flat(json.loads(path.read_text()), ""))
        for path in sorted(study.glob("*/eval.json"))
    }


def _flat(value, name):
    if isinstance(value, dict):
        for key, inner in value.items():
            if key != "settings":
                yield from _flat(inner, f"{name}/{key}" if name else key)
    elif isinstance(value, int | float) and not isinstance(value, bool):
        yield name, value


def same(found: dict, golden: dict) -> None:
    assert found.keys() == golden.keys()
    for run, expected in golden.items():
        assert found[run].keys() == expected.keys()
        off = {k: (found[run][k], v) for k, v in expected.items() if not _close(found[run][k], v)}
        assert not off, f"{run}: {off}"


def _close(one: float, two: float) -> bool:
    return math.isclose(one, two, rel_tol=1e-6, abs_tol=1e-6) or (math.isnan(one) and math.isnan(two))


def test_a_tiny_run_has_the_golden_numbers(config):
    from support.helpers import execute

    golden = json.loads((GOLDEN / "tiny.json").read_text())
    options = ("trainer.steps=4", "trainer.eval_every=2", "eval.groups=[leak]", "eval.max_new_tokens=16")
    folders = [execute(config(f"algo={algo}", *options)).folder for algo in ("ga", "npo")]
    assert golden.keys() == {folder.name.rsplit("-", 1)[0] for folder in folders}
    same(numbers(folders[0].parent), golden)


@pytest.mark.nightly
def test_the_demo_has_the_golden_numbers(tmp_path):
    from support.helpers import command

    command("unlearn.run", "-m", "algo=ga,kl,npo", "alpha=0.5,1,2", "wandb=disabled", cwd=tmp_path, fresh=True)
    same(numbers(tmp_path / "runs" / "default"), json.loads((GOLDEN / "demo.json").read_text()))


if __name__ == "__main__":
    Path(sys.argv[2]).write_text(json.dumps(numbers(Path(sys.argv[1])), indent=0, sort_keys=True) + "\n")
