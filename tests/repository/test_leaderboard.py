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
    after = [made.table(later), *(made.differences(later, base) for base in made.LATER_BASES)]
    whole = made.together(found, later)
    after += [made.table(whole), *(made.differences(whole, base) for base in made.LATER_BASES)]
    timed = pd.read_csv(HERE / "seconds.csv", index_col="row", dtype={"commit": str})
    for lines in (made.table(found, timed), *(made.differences(found, base) for base in made.BASES), *after):
        assert "\n".join(lines) in page
    assert "\n".join(made.front(found)) in (ROOT / "README.md").read_text()
    log = (ROOT / "experiments" / "LOG.md").read_text()
    for name in ("search.csv", "threshold.csv", "defer.csv"):
        assert "\n".join(made.searched(pd.read_csv(HERE / name))) in log
    assert "\n".join(made.unhelpful(pd.read_csv(HERE / "no_help.csv"))) in log


def test_each_interval_of_the_leaderboards_prose_stands_in_its_table():
    page, prose = (HERE / "table.md").read_text(), (HERE / "README.md").read_text()
    said = re.findall(r"(?<![\d.])0?(\.\d{3})\s±\s(\.\d{3})", prose)
    assert len(said) > 8 and [f"{m} ± {h}" for m, h in said if f"0{m} ± 0{h}" not in page] == []


def test_what_matching_the_methods_by_leak_changes_is_what_the_files_say():
    study = ROOT / "experiments" / "methods"
    prose = re.sub(r"\s+", " ", (study / "README.md").read_text())
    by_leak, by_prob = (pd.read_csv(study / f"{name}.csv", keep_default_na=False) for name in ("leak", "results"))

    def kept(found: pd.DataFrame, algo: str, method: str, *splits: str) -> list[str]:
        own = found[(found["algo"] == algo) & (found["method"] == method)]
        own = own[(own["chosen_reached"] - own["chosen_asked"]).abs() <= 0.02]
        return [f"{own[f'matched/{split}/prob'].mean():.3f}".removeprefix("0") for split in splits]

    every = "retain", "real_authors", "world_facts"
    dd, rank = ([kept(of, "none", m, "retain")[0] for of in (by_leak, by_prob)] for m in ("dd", "dd_rank"))
    ga = [kept(by_leak, "ga", m, "retain")[0] for m in ("direct", "offset, general")]
    kl = [kept(by_leak, "kl", m, "real_authors")[0] for m in ("proxy", "direct", "offset, general")]
    said = [
        f"{dd[0]} and {rank[0]} of retain, by probability {dd[1]} and {rank[1]}",
        "retain {}, real authors {}, world facts {}.".format(*kept(by_leak, "uld", "uld", *every)),
        "retain {}, real authors {}, world facts {};".format(*kept(by_leak, "me_kl", "defer", *every)),
        f"keeps {ga[0]} and {ga[1]}",
        f"({kl[0]} and {kl[1]}), more than `kl` through the sum ({kl[2]})",
    ]
    assert [phrase for phrase in said if phrase not in prose] == []
    paired, given = (study / "differences.md").read_text(), re.findall(r"−(\.\d{3}) ± (\.\d{3})", prose)
    assert len(given) >= 4 and [(m, h) for m, h in given if f"-0{m} ± 0{h}" not in paired] == []
