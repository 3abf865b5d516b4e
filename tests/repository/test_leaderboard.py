"""The leaderboard's tables say what its CSV files say."""

import sys
from importlib.util import module_from_spec, spec_from_file_location
from pathlib import Path

import pandas as pd

ROOT = Path(__file__).resolve().parents[2]
HERE = ROOT / "experiments" / "leaderboard"


def table():
    spec = spec_from_file_location("leaderboard_table", HERE / "table.py")
    module = sys.modules.setdefault(spec.name, module_from_spec(spec))
    spec.loader.exec_module(module)
    return module


def test_the_tables_of_the_leaderboard_and_of_its_search_are_those_of_the_files():
    made, page = table(), (HERE / "table.md").read_text()
    found, later = made.parted(pd.read_csv(HERE / "results.csv"))
    after = [made.table(later), *(made.differences(later, base) for base in made.LATER_BASES)]
    for lines in (made.table(found), *(made.differences(found, base) for base in made.BASES), *after):
        assert "\n".join(lines) in page
    assert "\n".join(made.front(found)) in (ROOT / "README.md").read_text()
    log = (ROOT / "experiments" / "LOG.md").read_text()
    for name in ("search.csv", "threshold.csv", "defer.csv"):
        assert "\n".join(made.searched(pd.read_csv(HERE / name))) in log
