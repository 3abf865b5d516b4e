"""The leaderboard's tables say what its CSV files say."""

import re
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
    found = pd.read_csv(HERE / "results.csv")
    later = pd.read_csv(HERE / "later.csv")
    after = (made.table(later), *(made.differences(later, base) for base in made.LATER_BASES))
    for lines in (made.table(found), *(made.differences(found, base) for base in made.BASES), *after):
        assert "\n".join(lines) in page
    assert "\n".join(made.front(found)) in (ROOT / "README.md").read_text()
    log = (ROOT / "experiments" / "LOG.md").read_text()
    for name in ("search.csv", "threshold.csv", "defer.csv"):
        assert "\n".join(made.searched(pd.read_csv(HERE / name))) in log


def test_each_interval_of_the_leaderboards_prose_stands_in_its_table():
    page, prose = (HERE / "table.md").read_text(), (HERE / "README.md").read_text()
    said = re.findall(r"(?<![\d.])0?(\.\d{3})\s±\s(\.\d{3})", prose)
    assert len(said) > 8 and [f"{m} ± {h}" for m, h in said if f"0{m} ± 0{h}" not in page] == []
